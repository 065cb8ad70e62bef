package recommender

import (
	"context"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

// withdrawn is the set of items that must not be recommended, as the items topic has it.
type withdrawn struct {
	max   int // items at most
	items map[string]bool
}

// put takes what the newest record says of an item; it reports whether that changes anything, and whether there was
// room for it.
func (w *withdrawn) put(item string, gone bool) (changed, ok bool) {
	switch {
	case gone == w.items[item]:
		return false, true
	case gone && len(w.items) >= w.max:
		return false, false
	case gone:
		w.items[item] = true
	default:
		delete(w.items, item)
	}
	return true, true
}

// of returns the indexes of those that a model knows.
func (w *withdrawn) of(m *model) map[int32]bool {
	known := make(map[int32]bool)
	for item := range w.items {
		if i, ok := m.cb.Index(item); ok {
			known[i] = true
		}
	}
	return known
}

// followItems keeps what is withdrawn out of every answer that is begun after its record was read.
func (s *Service) followItems(ctx context.Context, caughtUp func()) error {
	changed := false
	record := func(r *kgo.Record) error {
		id, gone := string(r.Key), false // without a value nothing is known of it
		if r.Value != nil {
			item := new(onerecv1.Item)
			if err := proto.Unmarshal(r.Value, item); err != nil {
				s.Log.Warn("a record is no Item and is passed over", "topic", r.Topic, "partition", r.Partition, "offset", r.Offset, "error", err)
				return nil
			}
			id, gone = item.ItemId, item.Withdrawn
		}
		if id == "" || len(id) > schemas.MaxIDBytes {
			return nil // nothing has such an id
		}
		s.serving.Lock()
		defer s.serving.Unlock()
		now, ok := s.withdrawn.put(id, gone)
		if !ok {
			s.Log.Error("an item is withdrawn and may be recommended all the same: there are too many; raise --max-items, or give records without a value to items that no checkpoint knows any more",
				"item", id, "withdrawn", len(s.withdrawn.items))
		}
		changed = changed || now
		return nil
	}
	return s.follow(ctx, schemas.TopicItems, record, func() {
		if changed {
			s.withdraw()
			changed = false
		}
	}, caughtUp)
}

// withdraw makes what is loaded heed the items that are withdrawn now.
func (s *Service) withdraw() {
	s.serving.Lock()
	defer s.serving.Unlock()
	for _, slot := range []*atomic.Pointer[model]{&s.loaded, &s.canary} {
		if m := slot.Load(); m != nil {
			slot.Store(m.without(s.withdrawn.of(m)))
		}
	}
	s.Metrics.setWithdrawn(len(s.withdrawn.items))
}

// serve lets a model serve, or none.
func (s *Service) serve(slot *atomic.Pointer[model], m *model) {
	s.serving.Lock()
	defer s.serving.Unlock()
	if m != nil {
		m = m.without(s.withdrawn.of(m))
	}
	slot.Store(m)
}

// isWithdrawn reports whether an item must not be recommended.
func (s *Service) isWithdrawn(item string) bool {
	s.serving.RLock()
	defer s.serving.RUnlock()
	return s.withdrawn.items[item]
}

// without returns a model that writes none of some items.
func (m *model) without(items map[int32]bool) *model {
	other := *m
	other.gen = m.gen.Without(items)
	return &other
}
