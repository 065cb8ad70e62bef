package app

import (
	"context"
	"fmt"
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
	n := 0
	err := a.withClient(ctx, func(*kgo.Client) error {
		return a.cluster().ReadTopic(ctx, schemas.TopicItems, func(r *kgo.Record) error {
			if n++; n%10_000 == 0 {
				a.Progress.Update("read the catalogue", "records", n, 0)
			}
			if r.Value == nil {
				c.Remove(string(r.Key))
				return nil
			}
			item := new(onerecv1.Item)
			if err := proto.Unmarshal(r.Value, item); err != nil {
				c.Refused++
				c.Why = fmt.Sprintf("topic %s partition %d offset %d is no Item: %v", r.Topic, r.Partition, r.Offset, err)
				return nil
			}
			c.Put(item)
			return nil
		})
	})
	a.Progress.Done()
	return c, err
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
