package recommender

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"onerec/schemas"
)

// followItems keeps what is withdrawn out of every answer that is begun after its record was read.
func (s *Service) followItems(ctx context.Context, caughtUp func()) error {
	var records []*kgo.Record
	return s.follow(ctx, schemas.TopicItems, time.Time{}, func(r *kgo.Record) error {
		records = append(records, r)
		return nil
	}, func(backlog) {
		s.withdraw(records)
		clear(records)
		records = records[:0]
	}, caughtUp)
}

// withdraw takes records of the items topic in, and makes what is loaded heed them.
func (s *Service) withdraw(records []*kgo.Record) {
	s.serving.Lock()
	defer s.serving.Unlock()
	changed := false
	for _, r := range records {
		now, err := s.withdrawn.Read(r.Key, r.Value)
		if err != nil {
			s.Log.Error("a record is passed over", "topic", r.Topic, "partition", r.Partition, "offset", r.Offset, "error", err)
		}
		changed = changed || now
	}
	if !changed {
		return
	}
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
