package simulator

import (
	"errors"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"onerec/schemas/onerecv1"
)

// live runs a policy for two days from the beginning.
func live(t *testing.T, w *World, p Policy, n int) []*onerecv1.ViewEvent {
	t.Helper()
	var out []*onerecv1.ViewEvent
	if err := w.Run(p, n, w.cfg.Start.AddDate(0, 0, 2), func(e *onerecv1.ViewEvent) bool {
		out = append(out, e)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

func world(t *testing.T, cfg Config) *World {
	t.Helper()
	w, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func likes(events []*onerecv1.ViewEvent) (share float64) {
	for _, e := range events {
		if e.Like {
			share += 1 / float64(len(events))
		}
	}
	return share
}

// TestCommonRandomNumbers: users come at the same times whoever serves them, and who is shown the
// same at the same place does the same.
func TestCommonRandomNumbers(t *testing.T) {
	w := world(t, small())
	first := func(events []*onerecv1.ViewEvent) map[string]*onerecv1.ViewEvent {
		out := make(map[string]*onerecv1.ViewEvent)
		for _, e := range events {
			if out[e.UserId] == nil {
				out[e.UserId] = e
			}
		}
		return out
	}
	a := first(live(t, w.Clone(), w.Random(), 1))
	b := first(live(t, w.Clone(), w.Popularity(make([]float64, w.Items())), 5))
	if len(a) < 30 || len(a) != len(b) {
		t.Fatalf("%d and %d users came", len(a), len(b))
	}
	for user, e := range a {
		if b[user].EventTimeMs != e.EventTimeMs {
			t.Fatalf("%s came at %d and at %d", user, e.EventTimeMs, b[user].EventTimeMs)
		}
	}
	// The same policy again, from a clone: the same views. And in shards.
	again, other := live(t, w.Clone(), w.Random(), 3), live(t, w.Clone(), w.Random(), 3)
	var sharded []*onerecv1.ViewEvent
	for _, s := range w.Clone().Shards(3) {
		sharded = append(sharded, live(t, s, w.Random(), 3)...)
	}
	order := func(x, y *onerecv1.ViewEvent) int {
		if d := x.EventTimeMs - y.EventTimeMs; d != 0 {
			return int(d)
		}
		return slices.Compare([]byte(x.EventId), []byte(y.EventId))
	}
	slices.SortFunc(again, order)
	slices.SortFunc(other, order)
	slices.SortFunc(sharded, order)
	equal := func(x, y *onerecv1.ViewEvent) bool { return proto.Equal(x, y) }
	if !slices.EqualFunc(again, other, equal) || !slices.EqualFunc(again, sharded, equal) {
		t.Fatal("the same policy from the same moment gave other views")
	}
}

// TestPoliciesDiffer: who knows more gives more.
func TestPoliciesDiffer(t *testing.T) {
	cfg := small()
	cfg.Users = 200
	w := world(t, cfg)
	clone := w.Clone()
	oracle := likes(live(t, clone, clone.Oracle(10*time.Second, 0.05), 5))
	ranker, random := likes(live(t, w.Clone(), w.Ranker(), 1)), likes(live(t, w.Clone(), w.Random(), 1))
	if oracle < 1.3*ranker || ranker < 1.2*random {
		t.Fatalf("likes of the oracle %.3f, the ranker %.3f, at random %.3f", oracle, ranker, random)
	}
}

// TestPolicyMistakes: what can't be shown is passed over and counted, who is shown nothing leaves, and a
// policy's error ends the run.
func TestPolicyMistakes(t *testing.T) {
	cfg := small()
	cfg.New = 0.5
	w := world(t, cfg)
	gone := int32(slices.IndexFunc(w.items, func(it item) bool { return !it.live(cfg.Start.AddDate(0, 0, 2)) }))
	there := int32(slices.IndexFunc(w.items, func(it item) bool { return it.live(cfg.Start) && it.live(cfg.Start.AddDate(0, 0, 2)) }))
	clone := w.Clone()
	events := live(t, clone, PolicyFunc(func(Visit, int) (List, error) { return List{Items: []int32{gone, -1, 1 << 30, there}}, nil }), 4)
	for _, e := range events {
		if e.ItemId != w.ItemID(there) {
			t.Fatalf("%s was shown", e.ItemId)
		}
	}
	if len(events) == 0 || clone.Refused() < 3*len(events)-100 {
		t.Fatalf("%d views, %d refused", len(events), clone.Refused())
	}
	if events := live(t, w.Clone(), PolicyFunc(func(Visit, int) (List, error) { return List{}, nil }), 1); len(events) != 0 {
		t.Fatalf("%d views of nothing", len(events))
	}
	broken := errors.New("no answer")
	err := w.Clone().Run(PolicyFunc(func(Visit, int) (List, error) { return List{}, broken }), 1, cfg.Start.AddDate(0, 0, 2), func(*onerecv1.ViewEvent) bool { return true })
	if !errors.Is(err, broken) {
		t.Fatalf("error %v", err)
	}
}

// TestItemsComeAndGo: the log shows no item before its time or after.
func TestItemsComeAndGo(t *testing.T) {
	cfg := small()
	cfg.New, cfg.Life, cfg.Days = 0.5, 5*24*time.Hour, 6
	w := world(t, cfg)
	for e := range w.Events() {
		at, ok := w.Item(e.ItemId)
		if !ok || !w.Live(at, time.UnixMilli(e.EventTimeMs)) {
			t.Fatalf("%s was shown at %v", e.ItemId, time.UnixMilli(e.EventTimeMs))
		}
	}
}

// TestSummary: the simulated log, cut down as the published one is, has its figures, roughly. The bounds are
// those of real views (KuaiRand), give or take what docs/simulator.md says.
func TestSummary(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Users, cfg.Items, cfg.Days, cfg.SessionsADay = 300, 5000, 14, 2
	w := world(t, cfg)
	s := Summarize(w.Events(), true)
	for name, c := range map[string][3]float64{
		"median watch time, s":     {s.WatchSeconds[2], 7, 15},
		"median share watched":     {s.WatchRatio[2], 0.6, 1},
		"upper share watched":      {s.WatchRatio[4], 1.4, 2.2},
		"likes":                    {s.Likes, 0.78, 0.88},
		"likes where skipped":      {s.LikesByRatio[0], 0.4, 0.6},
		"likes where all was seen": {s.LikesByRatio[4], 0.9, 1},
		"comments":                 {s.Comments, 0.02, 0.06},
		"views of the first 1 %":   {s.Top1, 0.05, 0.12},
	} {
		if c[0] < c[1] || c[0] > c[2] {
			t.Errorf("%s: %.3f, want %.3f to %.3f", name, c[0], c[1], c[2])
		}
	}
}
