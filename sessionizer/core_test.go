package sessionizer

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"onerec/schemas/onerecv1"
)

const minute = int64(time.Minute / time.Millisecond)

func smallConfig() Config {
	cfg := DefaultConfig()
	cfg.MaxViews, cfg.MaxAge = 6, 2*time.Hour
	return cfg
}

// offline is the definition of a session, in a few plain lines over the whole
// input: sort, leave out repeated ids, cut.
func offline(views []*onerecv1.View, cfg Config) map[string][][]string {
	byUser := map[string][]*onerecv1.View{}
	seen := map[string]bool{}
	for _, v := range views {
		if !seen[v.EventId] {
			seen[v.EventId] = true
			byUser[v.UserId] = append(byUser[v.UserId], v)
		}
	}
	sessions := map[string][][]string{}
	for u, vs := range byUser {
		slices.SortFunc(vs, compareViews)
		var start, last int64
		var cur []string
		for _, v := range vs {
			if len(cur) > 0 && (v.EventTimeMs-last > cfg.Gap.Milliseconds() || len(cur) == cfg.MaxViews || v.EventTimeMs-start > cfg.MaxAge.Milliseconds()) {
				sessions[u] = append(sessions[u], cur)
				cur = nil
			}
			if len(cur) == 0 {
				start = v.EventTimeMs
			}
			cur = append(cur, v.EventId)
			last = v.EventTimeMs
		}
		sessions[u] = append(sessions[u], cur)
	}
	return sessions
}

// drawViews draws views of a few users with doubles, in an order that keeps
// every view within the lateness of the newest one before it.
func drawViews(t *rapid.T, cfg Config) []*onerecv1.View {
	n := rapid.IntRange(1, 80).Draw(t, "n")
	var views []*onerecv1.View
	clock := int64(1_000_000_000)
	for i := range n {
		clock += rapid.Int64Range(0, 45*minute).Draw(t, "step") / int64(rapid.SampledFrom([]int{1, 1, 20}).Draw(t, "speed"))
		back := rapid.Int64Range(0, cfg.Lateness.Milliseconds()).Draw(t, "back")
		views = append(views, &onerecv1.View{
			EventId: fmt.Sprint("e", i), UserId: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "user"),
			ItemId: fmt.Sprint("i", i%7), EventTimeMs: clock - back, WatchMs: int64(i), Like: i%2 == 0,
		})
		if rapid.IntRange(0, 5).Draw(t, "double") == 0 {
			views = append(views, proto.CloneOf(views[len(views)-1]))
		}
	}
	return views
}

func ids(s *onerecv1.Session) []string {
	out := make([]string, len(s.Views))
	for i, v := range s.Views {
		out[i] = v.EventId
	}
	return out
}

// TestSessionsEqualOfflineDefinition: any order within the lateness, any
// doubles, any interleaving of users, and a save and restore at any point give
// the sessions of the definition.
func TestSessionsEqualOfflineDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := smallConfig()
		views := drawViews(t, cfg)
		want := offline(views, cfg)
		core := New(cfg)
		got := map[string][][]string{}
		var all []*onerecv1.Session
		take := func() {
			for _, s := range core.TakeClosed() {
				got[s.UserId] = append(got[s.UserId], ids(s))
				all = append(all, s)
			}
		}
		crash := rapid.IntRange(0, len(views)).Draw(t, "crash")
		log := map[string]*onerecv1.UserState{} // the changelog
		accepted := 0
		for i, v := range views {
			if i == crash {
				state := core.SavePartition()
				core = New(cfg)
				core.RestorePartition(state)
				for id, s := range log {
					core.RestoreUser(id, s)
				}
			}
			if core.Add(proto.CloneOf(v)) == Accepted {
				accepted++
			}
			take()
			for _, id := range core.TakeDirty() {
				if s := core.SaveUser(id); s != nil {
					log[id] = proto.CloneOf(s)
				} else {
					delete(log, id)
				}
			}
		}
		core.Advance(views[len(views)-1].EventTimeMs + 1000*minute)
		take()
		// A double of a view whose session has closed already counts as late.
		if c := core.SavePartition(); int(c.Accepted) != accepted || int(c.Accepted+c.Duplicates+c.Late) != len(views) {
			t.Fatalf("counts %v do not add up to %d views", c, len(views))
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("sessions\n got %v\nwant %v", got, want)
		}
		last := map[string]int64{}
		for _, s := range all {
			for i, h := range s.History {
				if h.EventTimeMs >= s.StartMs || i > 0 && h.EventTimeMs < s.History[i-1].EventTimeMs {
					t.Fatalf("history of session at %d holds %v", s.StartMs, s.History)
				}
			}
			if s.StartMs < last[s.UserId] {
				t.Fatalf("user %s: session at %d closed after one that ends at %d", s.UserId, s.StartMs, last[s.UserId])
			}
			last[s.UserId] = s.EndMs
		}
	})
}

func TestEdges(t *testing.T) {
	view := func(id string, min int64) *onerecv1.View {
		return &onerecv1.View{EventId: id, UserId: "u", ItemId: "i", EventTimeMs: min * minute, Like: true}
	}
	tests := []struct {
		name     string
		views    []*onerecv1.View
		outcomes []Outcome
		want     string
	}{
		{"exactly the gap apart belongs together", []*onerecv1.View{view("a", 100), view("b", 130)}, []Outcome{Accepted, Accepted}, "[[a b]]"},
		{"one more does not", []*onerecv1.View{view("a", 100), {EventId: "b", UserId: "u", EventTimeMs: 130*minute + 1}}, []Outcome{Accepted, Accepted}, "[[a] [b]]"},
		{"a bridging view merges two", []*onerecv1.View{view("a", 100), view("c", 135), view("b", 126)}, []Outcome{Accepted, Accepted, Accepted}, "[[a b c]]"},
		{"a double counts once", []*onerecv1.View{view("a", 100), view("a", 100)}, []Outcome{Accepted, Duplicate}, "[[a]]"},
		{"too late", []*onerecv1.View{view("a", 100), view("b", 300), view("c", 110)}, []Outcome{Accepted, Accepted, Late}, "[[a] [b]]"},
		{"late but its session is open", []*onerecv1.View{view("a", 100), view("b", 125), view("c", 101)}, []Outcome{Accepted, Accepted, Accepted}, "[[a c b]]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			core := New(DefaultConfig())
			for i, v := range tt.views {
				if got := core.Add(v); got != tt.outcomes[i] {
					t.Errorf("view %d: outcome %v, want %v", i, got, tt.outcomes[i])
				}
			}
			core.Advance(10_000 * minute)
			var got [][]string
			for _, s := range core.TakeClosed() {
				got = append(got, ids(s))
			}
			if fmt.Sprint(got) != tt.want {
				t.Errorf("sessions %v, want %v", got, tt.want)
			}
		})
	}
}

// TestManyViews: duplicates are found before and after the map takes over, and
// after a part of a long session has been closed by size.
func TestManyViews(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MaxViews = 2 * manyViews
	core := New(cfg)
	view := func(i int) *onerecv1.View {
		return &onerecv1.View{EventId: fmt.Sprint("e", i), UserId: "u", ItemId: "i", EventTimeMs: 100*minute + int64(i)*1000}
	}
	const n = 5 * manyViews
	for i := range n {
		if got := core.Add(view(i)); got != Accepted {
			t.Fatalf("view %d: %v", i, got)
		}
		for _, again := range []int{i, max(0, i-manyViews/2)} {
			if got := core.Add(view(again)); got != Duplicate {
				t.Fatalf("view %d again after %d: %v", again, i, got)
			}
		}
	}
	core.Advance(10_000 * minute)
	views := 0
	for _, s := range core.TakeClosed() {
		views += len(s.Views)
	}
	if views != n {
		t.Fatalf("%d views in the sessions, want %d", views, n)
	}
}

// TestUsersAreBounded: at the limit the user who is due first is closed, with all
// views, and forgotten; nothing is lost, and the changelog follows.
func TestUsersAreBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := smallConfig()
		cfg.MaxUsers = rapid.IntRange(1, 3).Draw(t, "limit")
		core := New(cfg)
		log := map[string]bool{}
		views, seen, limited := drawViews(t, cfg), map[string]int{}, 0
		take := func() {
			for _, s := range core.TakeClosed() {
				for _, id := range ids(s) {
					seen[id]++
				}
				if s.ClosedBy == onerecv1.ClosedBy_CLOSED_BY_LIMIT {
					limited++
				}
			}
			for _, id := range core.TakeDirty() {
				if log[id] = true; core.SaveUser(id) == nil {
					delete(log, id)
				}
			}
		}
		accepted := map[string]bool{}
		for _, v := range views {
			if core.Add(proto.CloneOf(v)) == Accepted {
				accepted[v.EventId] = true
			}
			take()
			if core.OpenUsers() > cfg.MaxUsers || len(log) != core.OpenUsers() {
				t.Fatalf("%d users of at most %d, %d in the changelog", core.OpenUsers(), cfg.MaxUsers, len(log))
			}
		}
		core.Advance(views[len(views)-1].EventTimeMs + 1000*minute)
		take()
		for id := range accepted {
			if seen[id] == 0 {
				t.Fatalf("view %s is in no session", id)
			}
		}
		if cfg.MaxUsers == 3 && core.Evicted() > 0 || limited > int(core.Evicted())*len(views) {
			t.Fatalf("three users fit, but %d were evicted", core.Evicted())
		}
	})
}

// TestFutureViewsDoNotMoveTheWatermark: a wrong clock costs its own user only.
func TestFutureViewsDoNotMoveTheWatermark(t *testing.T) {
	core := New(DefaultConfig())
	core.SetCeiling(200 * minute)
	view := func(user string, min int64) *onerecv1.View {
		return &onerecv1.View{EventId: fmt.Sprint(user, min), UserId: user, ItemId: "i", EventTimeMs: min * minute}
	}
	core.Add(view("a", 100))
	if core.Add(view("wrong", 10_000)) != Accepted || core.SavePartition().MaxEventTimeMs != 100*minute {
		t.Fatal("the view from the future moved the watermark")
	}
	if core.Add(view("a", 110)) != Accepted || len(core.TakeClosed()) != 0 {
		t.Fatal("the session of another user was closed")
	}
	core.Advance(300 * minute)
	if closed := core.TakeClosed(); len(closed) != 1 || closed[0].UserId != "a" || len(closed[0].Views) != 2 {
		t.Fatalf("closed %v", closed)
	}
}

func TestUsersAreForgotten(t *testing.T) {
	core := New(DefaultConfig())
	core.Add(&onerecv1.View{EventId: "a", UserId: "u", ItemId: "i", EventTimeMs: 100 * minute, Like: true})
	core.Advance(200 * minute)
	if core.OpenUsers() != 1 {
		t.Fatal("the history should be remembered")
	}
	core.TakeDirty()
	core.Advance(200*minute + DefaultConfig().History.MaxAge.Milliseconds())
	if core.OpenUsers() != 0 {
		t.Fatal("an expired history should be forgotten")
	}
	if d := core.TakeDirty(); len(d) != 1 || core.SaveUser(d[0]) != nil {
		t.Fatalf("dirty %v: want a tombstone for u", d)
	}
}

func BenchmarkCore(b *testing.B) {
	views := make([]*onerecv1.View, 0, 1<<16)
	for i := range cap(views) {
		views = append(views, &onerecv1.View{UserId: fmt.Sprint("u", i*7919%4096), ItemId: "i", EventTimeMs: int64(i) * 500})
	}
	core, n := New(DefaultConfig()), 0
	b.ReportAllocs()
	for b.Loop() {
		v := proto.CloneOf(views[n%len(views)])
		v.EventId, v.EventTimeMs = fmt.Sprint(n), int64(n)*500
		core.Add(v)
		core.TakeClosed()
		if n++; n%1000 == 0 {
			core.TakeDirty()
		}
	}
}
