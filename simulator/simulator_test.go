package simulator

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"onerec/schemas/onerecv1"
)

func events(t *testing.T, cfg Config) []*onerecv1.ViewEvent {
	t.Helper()
	w, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var out []*onerecv1.ViewEvent
	for e := range w.Events() {
		out = append(out, e)
	}
	return out
}

func small() Config {
	cfg := DefaultConfig()
	cfg.Users, cfg.Items, cfg.Days = 60, 200, 3
	return cfg
}

func TestSameSeedSameEvents(t *testing.T) {
	a, b := events(t, small()), events(t, small())
	other := small()
	other.Seed++
	c := events(t, other)
	if len(a) != len(b) || len(a) < 1000 {
		t.Fatalf("%d and %d events", len(a), len(b))
	}
	same := 0
	for i := range a {
		if !proto.Equal(a[i], b[i]) {
			t.Fatalf("event %d differs", i)
		}
		if i < len(c) && a[i].ItemId == c[i].ItemId {
			same++
		}
	}
	if same > len(a)/4 {
		t.Fatalf("another seed gave %d of %d events with the same item", same, len(a))
	}
}

// TestLogLooksLikeALog: in order of time, with unique ids but for the doubles
// that were asked for, and with tastes that show.
func TestLogLooksLikeALog(t *testing.T) {
	cfg := small()
	cfg.Duplicates, cfg.Broken = 0.05, 0.02
	all := events(t, cfg)
	ids := map[string]bool{}
	doubles, broken, likes, liked, other := 0, 0, 0, int64(0), int64(0)
	last := int64(0)
	for _, e := range all {
		if e.EventTimeMs < last {
			t.Fatal("not in order of time")
		}
		last = e.EventTimeMs
		if ids[e.EventId] {
			doubles++
		}
		ids[e.EventId] = true
		switch {
		case e.WatchMs < 0:
			broken++
		case e.Like:
			likes++
			liked += 1000 * e.WatchMs / e.DurationMs
		default:
			other += 1000 * e.WatchMs / e.DurationMs
		}
	}
	n := float64(len(all))
	if d, b := float64(doubles)/n, float64(broken)/n; d < 0.03 || d > 0.07 || b < 0.01 || b > 0.03 {
		t.Errorf("share of doubles %.3f, of broken %.3f; asked for 0.05 and 0.02", d, b)
	}
	if share := float64(likes) / n; share < 0.05 || share > 0.5 {
		t.Errorf("%.2f of the views are liked", share)
	}
	if a, b := float64(liked)/float64(likes), float64(other)/(n-float64(likes)); a < 1.2*b {
		t.Errorf("liked views are watched to %.0f per mille, others to %.0f", a, b)
	}
}

func TestRefusesImpossibleWorlds(t *testing.T) {
	for _, change := range []func(*Config){
		func(c *Config) { c.Users = 0 }, func(c *Config) { c.Items = -1 }, func(c *Config) { c.SessionsADay = 0 }, func(c *Config) { c.Broken = 2 },
	} {
		cfg := DefaultConfig()
		change(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
}

func BenchmarkEvents(b *testing.B) {
	cfg := DefaultConfig()
	cfg.Days = 365
	w, err := New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	n := 0
	for range w.Events() {
		if n++; n >= b.N {
			break
		}
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
}
