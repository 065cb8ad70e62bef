package recommender

import (
	"context"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kgo"

	"onerec/schemas"
)

// followItems keeps what is withdrawn out of every answer that is begun after its record was read.
func (s *Service) followItems(ctx context.Context, caughtUp func()) error {
	changed := false
	record := func(r *kgo.Record) error {
		s.serving.Lock()
		defer s.serving.Unlock()
		now, err := s.withdrawn.Read(r.Key, r.Value)
		if err != nil {
			s.Log.Error("a record is passed over", "topic", r.Topic, "partition", r.Partition, "offset", r.Offset, "error", err)
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
			slot.Store(m.without(s.withdrawn.In(m.cb)))
		}
	}
	s.Metrics.setWithdrawn(s.withdrawn.Len())
}

// serve lets a model serve, or none.
func (s *Service) serve(slot *atomic.Pointer[model], m *model) {
	s.serving.Lock()
	defer s.serving.Unlock()
	if m != nil {
		m = m.without(s.withdrawn.In(m.cb))
	}
	slot.Store(m)
}

// isWithdrawn reports whether an item must not be recommended.
func (s *Service) isWithdrawn(item string) bool {
	s.serving.RLock()
	defer s.serving.RUnlock()
	return s.withdrawn.Has(item)
}

// without returns a model that writes none of some items.
func (m *model) without(items map[int32]bool) *model {
	other := *m
	other.gen = m.gen.Without(items)
	return &other
}
