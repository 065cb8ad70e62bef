package recommender

import (
	"context"
	"fmt"
	"hash/fnv"
	"time"

	"onerec/decoder"
	"onerec/publisher"
	"onerec/schemas/onerecv1"
	"onerec/semanticid"
)

// model is a loaded checkpoint.
type model struct {
	ref      *onerecv1.CheckpointRef
	manifest *publisher.Manifest
	cb       *semanticid.Codebook
	gen      *decoder.Generator
	longest  int // items of a row
	loadedAt time.Time
}

// announced takes in what a channel points at: it loads the version if it is one to serve, which is the
// channel's, or, until the channel has one, the newest candidate, and the canary's. A nil ref is a
// channel that was withdrawn; without what is served there is nothing better than what is loaded.
func (s *Service) announced(ctx context.Context, channel string, ref *onerecv1.CheckpointRef) {
	if channel == publisher.ChannelReleased {
		var held *string
		if why := ref.GetHeld(); why != "" {
			held = &why
		}
		s.held.Store(held)
		s.Metrics.setHeld(held != nil)
	}
	slot, old := &s.loaded, s.loaded.Load()
	switch {
	case channel == publisher.ChannelCanary && s.Channel != publisher.ChannelCanary:
		if s.CanaryPercent <= 0 {
			return
		}
		slot, old = &s.canary, s.canary.Load()
		if ref == nil {
			if old != nil {
				s.serve(slot, nil)
				s.Log.Info("the canary was withdrawn", "version", old.ref.Version)
			}
			return
		}
	case ref == nil, channel != s.Channel && old != nil && old.ref.Channel == s.Channel,
		channel != s.Channel && channel != publisher.ChannelCandidate:
		return
	}
	if old != nil && old.ref.Version == ref.Version && old.ref.Channel == ref.Channel {
		return
	}
	m, err := s.load(ctx, ref)
	if err != nil {
		s.Metrics.swap("refused")
		s.Log.Error("checkpoint refused, serving goes on with what is loaded", "version", ref.Version, "channel", ref.Channel, "error", err)
		return
	}
	s.serve(slot, m)
	s.Metrics.swap("loaded")
	s.Metrics.serving(m)
	s.Log.Info("serving", "version", ref.Version, "channel", ref.Channel, "items", m.cb.Len(), "session_to_serving_p99", m.waited(publisher.MetricAgeP99))
}

// waited is how long the sessions that are new to a model have waited until it served, by one of the
// manifest's metrics; 0 if it says nothing.
func (m *model) waited(metric string) time.Duration {
	age, ok := m.manifest.Metrics[metric]
	if !ok {
		return 0
	}
	return time.Duration(age*float64(time.Second)) + m.loadedAt.Sub(m.manifest.CreatedAt)
}

// Waited returns how long the good sessions that are new to the model that serves have waited for it, from
// their record on sessions.good on: the median and the 99th percentile; 0 if nothing is loaded.
func (s *Service) Waited() (p50, p99 time.Duration) {
	m := s.loaded.Load()
	if m == nil {
		return 0, 0
	}
	return m.waited(publisher.MetricAgeP50), m.waited(publisher.MetricAgeP99)
}

func (s *Service) load(ctx context.Context, ref *onerecv1.CheckpointRef) (*model, error) {
	manifest, files, err := s.Store.Load(ctx, ref.Version, ref.ManifestSha256, decoder.Files()...)
	if err != nil {
		return nil, err
	}
	m := &model{ref: ref, manifest: manifest}
	if err := m.decode(files, s.Numbers, s.loaded.Load(), s.canary.Load()); err != nil {
		return nil, err
	}
	// Find out before any user does if it can't answer. A narrow search reads the same weights as a
	// wide one, and leaves the processors to the requests.
	if _, err := m.gen.Generate(decoder.Options{Length: 1, Width: 1}); err != nil {
		return nil, fmt.Errorf("the model does not answer: %w", err)
	}
	m.loadedAt = time.Now()
	return m, nil
}

// decode makes a model of a checkpoint's files. Most checkpoints have the items of the one before:
// then their index and their trie are taken from a model that has them already.
func (m *model) decode(files map[string][]byte, numbers decoder.Numbers, loaded ...*model) error {
	for _, of := range loaded {
		if of == nil || !m.manifest.Shares(of.manifest, decoder.FileCodebook) || !m.manifest.Shares(of.manifest, decoder.FileItems) {
			continue
		}
		w, err := decoder.DecodeWeights(files, m.manifest.Config)
		if err != nil {
			return err
		}
		m.cb, m.longest = of.cb, w.Config.MaxItems()
		m.gen, err = of.gen.With(w)
		return err
	}
	w, cb, err := decoder.Decode(files, m.manifest.Config)
	if err != nil {
		return err
	}
	m.cb, m.longest = cb, w.Config.MaxItems()
	if m.gen, err = decoder.NewGenerator(w, cb); err != nil {
		return err
	}
	m.gen = m.gen.In(numbers)
	return nil
}

// choose returns the model that serves a user, and nil if there is none. A channel that is asked
// for by name must be loaded.
func (s *Service) choose(user, channel string) (*model, error) {
	m, canary := s.loaded.Load(), s.canary.Load()
	if channel == "" {
		if canary != nil && InCanary(user, s.CanaryPercent) {
			return canary, nil
		}
		return m, nil
	}
	for _, of := range []*model{m, canary} {
		if of != nil && of.ref.Channel == channel {
			return of, nil
		}
	}
	return nil, &problem{Title: "Not Found", Status: 404, Detail: fmt.Sprintf("no model of channel %q is loaded", channel)}
}

// InCanary reports whether a user is among the given percent who get the canary: the same ones for
// every process, and the more users the higher the percent.
func InCanary(user string, percent float64) bool {
	h := fnv.New64a()
	h.Write([]byte("canary/" + user)) // a hash never fails
	const parts = 100_000
	return float64(h.Sum64()%parts) < percent/100*parts
}
