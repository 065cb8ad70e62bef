package app

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/internal/stream"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
	"onerec/semanticid"
	"onerec/trainer"
)

// Catalogue reads the items topic as it is now. A record that is no Item is counted like
// an item that was refused.
func (a *App) Catalogue(ctx context.Context) (*semanticid.Catalogue, error) {
	c := new(semanticid.Catalogue)
	err := a.eachItem(ctx, func(id string, item *onerecv1.Item, wrong error) {
		switch {
		case wrong != nil:
			c.Refused++
			c.Why = wrong.Error()
		case item == nil:
			c.Remove(id)
		default:
			c.Put(item)
		}
	})
	return c, err
}

// eachItem calls fn with the records of the items topic in their order: an item, nil for one that was taken out, or what
// is wrong with the record.
func (a *App) eachItem(ctx context.Context, fn func(id string, item *onerecv1.Item, wrong error)) error {
	n := 0
	err := a.withClient(ctx, func(*kgo.Client) error {
		return a.cluster().ReadTopic(ctx, schemas.TopicItems, func(r *kgo.Record) error {
			if n++; n%10_000 == 0 {
				a.Progress.Update("read the catalogue", "records", n, 0)
			}
			if r.Value == nil {
				fn(string(r.Key), nil, nil)
				return nil
			}
			item := new(onerecv1.Item)
			if err := proto.Unmarshal(r.Value, item); err != nil {
				fn(string(r.Key), nil, fmt.Errorf("topic %s partition %d offset %d is no Item: %w", r.Topic, r.Partition, r.Offset, err))
				return nil
			}
			fn(item.ItemId, item, nil)
			return nil
		})
	})
	a.Progress.Done()
	return err
}

// WithdrawItems writes that items must not be recommended, or, with gone unset, that they may be again, and keeps what
// else their records say. It returns the items for which that is new.
func (a *App) WithdrawItems(ctx context.Context, ids []string, gone bool) (changed []string, err error) {
	records := make(map[string]*onerecv1.Item)
	for _, id := range ids {
		if id == "" || len(id) > schemas.MaxIDBytes {
			return nil, fmt.Errorf("item %.40q: an id has 1 to %d bytes, this one %d", id, schemas.MaxIDBytes, len(id))
		}
		records[id] = &onerecv1.Item{ItemId: id}
	}
	err = a.eachItem(ctx, func(id string, item *onerecv1.Item, wrong error) {
		if _, wanted := records[id]; !wanted || wrong != nil {
			return
		}
		if item == nil {
			item = &onerecv1.Item{ItemId: id}
		}
		records[id] = item
	})
	if err != nil {
		return nil, err
	}
	var items []*onerecv1.Item
	for _, id := range slices.Compact(slices.Sorted(slices.Values(ids))) {
		if item := records[id]; item.Withdrawn != gone {
			item.Withdrawn = gone
			items, changed = append(items, item), append(changed, id)
		}
	}
	return changed, a.PutItems(ctx, items)
}

// WithdrawItem is [App.WithdrawItems] of one item.
func (a *App) WithdrawItem(ctx context.Context, id string, gone bool) error {
	_, err := a.WithdrawItems(ctx, []string{id}, gone)
	return err
}

// KeepWithdrawn marks those of items that are withdrawn now, so that other news of them does not bring them back.
func (a *App) KeepWithdrawn(ctx context.Context, items map[string]*onerecv1.Item) error {
	return a.eachItem(ctx, func(id string, item *onerecv1.Item, wrong error) {
		if news := items[id]; news != nil && wrong == nil {
			news.Withdrawn = item.GetWithdrawn()
		}
	})
}

// PutItems writes items into the items topic.
func (a *App) PutItems(ctx context.Context, items []*onerecv1.Item) error {
	return a.withClient(ctx, func(cl *kgo.Client) error {
		const batch = 1000
		for from := 0; from < len(items); from += batch {
			var records []*kgo.Record
			for _, item := range items[from:min(from+batch, len(items))] {
				value, err := proto.Marshal(item)
				if err != nil {
					return fmt.Errorf("encode item %q: %w", item.ItemId, err)
				}
				records = append(records, &kgo.Record{Topic: schemas.TopicItems, Key: []byte(item.ItemId), Value: value, Timestamp: time.Now()})
			}
			if err := cl.ProduceSync(ctx, records...).FirstErr(); err != nil {
				return fmt.Errorf("write topic %s: %w", schemas.TopicItems, err)
			}
			a.Progress.Update("write items", "items", from+len(records), len(items))
		}
		a.Progress.Done()
		return nil
	})
}

// GoodSequences reads what each user watched in the good sessions that there are, held-out
// users left out as in training.
func (a *App) GoodSequences(ctx context.Context) (sequences [][]string, err error) {
	var sessions []*onerecv1.Session
	err = a.withClient(ctx, func(*kgo.Client) error {
		spans, err := a.cluster().Spans(ctx, schemas.TopicGoodSessions)
		if err != nil {
			return err
		}
		return stream.ReadMerged(ctx, a.cluster(), schemas.TopicGoodSessions, spans, trainer.ParseGood,
			func(s *onerecv1.Session) int64 { return s.EndMs },
			func(s *onerecv1.Session) error {
				if sessions = append(sessions, s); len(sessions) >= 2*a.Train.Buffer {
					sessions = append(sessions[:0], sessions[len(sessions)-a.Train.Buffer:]...) // the newest
				}
				return nil
			})
	})
	return trainer.Sequences(sessions[max(0, len(sessions)-a.Train.Buffer):], a.Train.HoldoutPercent), err
}
