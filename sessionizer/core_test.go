package sessionizer

import (
	"bytes"
	"cmp"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"onerec/schemas/onerecv1"
)

// add gives the core a view as the topic has it.
func add(t interface{ Fatal(...any) }, c *Core, v *onerecv1.View) Outcome {
	value, err := proto.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	outcome, err := c.Add(value)
	if err != nil {
		t.Fatal(err)
	}
	return outcome
}

// takeClosed decodes the closed sessions, and holds each against its own numbers. What
// it was handed it wipes, as memory that is used again would be.
func takeClosed(t interface{ Fatal(...any) }, c *Core) []*onerecv1.Session {
	var out []*onerecv1.Session
	for _, k := range c.TakeClosed() {
		s := new(onerecv1.Session)
		if err := proto.Unmarshal(k.Value, s); err != nil {
			t.Fatal(err)
		}
		var watch int64
		var likes int32
		for _, v := range s.Views {
			watch += v.WatchMs
			if v.Like {
				likes++
			}
			if v.UserId != "" {
				t.Fatal("a view of a session has its user", v)
			}
		}
		if string(k.Key) != s.UserId || s.TotalWatchMs != watch || s.Likes != likes ||
			s.StartMs != s.Views[0].EventTimeMs || s.EndMs != s.Views[len(s.Views)-1].EventTimeMs {
			t.Fatal("key ", string(k.Key), " and session ", s, " don't fit")
		}
		out = append(out, s)
		clear(k.Key)
		clear(k.Value)
	}
	c.Recycle()
	return out
}

func compareViews(a, b *onerecv1.View) int {
	return cmp.Or(cmp.Compare(a.EventTimeMs, b.EventTimeMs), cmp.Compare(a.EventId, b.EventId))
}

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

// TestSessionsEqualOfflineDefinition: any order within the lateness, any doubles, any
// interleaving of users, any split over partitions, and a save and restore of any
// partition at any point, as when it moves to another instance, give the sessions of
// the definition.
func TestSessionsEqualOfflineDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := smallConfig()
		views := drawViews(t, cfg)
		want := offline(views, cfg)
		partitions := make([]*Core, rapid.IntRange(1, 3).Draw(t, "partitions"))
		logs := make([]map[string][]byte, len(partitions)) // the changelogs
		for p := range partitions {
			partitions[p], logs[p] = New(cfg), map[string][]byte{}
		}
		got := map[string][][]string{}
		var all []*onerecv1.Session
		take := func(core *Core) {
			for _, s := range takeClosed(t, core) {
				got[s.UserId] = append(got[s.UserId], ids(s))
				all = append(all, s)
			}
		}
		moves := rapid.SliceOfN(rapid.IntRange(0, len(views)-1), 0, 3).Draw(t, "moves")
		accepted := 0
		for i, v := range views {
			p := int(v.UserId[0]) % len(partitions)
			if slices.Contains(moves, i) {
				state := partitions[p].SavePartition()
				partitions[p] = New(cfg)
				partitions[p].RestorePartition(state)
				if err := partitions[p].Restore(keyed(logs[p])); err != nil {
					t.Fatal(err)
				}
			}
			partitions[p].Preload([][]byte{[]byte(v.UserId), []byte("nobody")})
			if add(t, partitions[p], v) == Accepted {
				accepted++
			}
			take(partitions[p])
			keep(logs[p], partitions[p])
		}
		sum := new(onerecv1.PartitionState)
		for _, core := range partitions {
			core.Advance(views[len(views)-1].EventTimeMs + 1000*minute)
			take(core)
			c := core.SavePartition()
			sum.Accepted += c.Accepted
			sum.Duplicates += c.Duplicates
			sum.Late += c.Late
		}
		// A double of a view whose session has closed already counts as late.
		if int(sum.Accepted) != accepted || int(sum.Accepted+sum.Duplicates+sum.Late) != len(views) {
			t.Fatalf("counts %v do not add up to %d views", sum, len(views))
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

// keep applies changes to a changelog.
// keep takes a core's changes up into its changelog. What it was handed it wipes.
func keep(log map[string][]byte, c *Core) {
	for _, change := range c.TakeChanges() {
		if log[string(change.Key)] = bytes.Clone(change.Value); change.Value == nil {
			delete(log, string(change.Key))
		}
		clear(change.Key)
		clear(change.Value)
	}
	c.Recycle()
}

func keyed(log map[string][]byte) (records []Keyed) {
	for key, value := range log {
		records = append(records, Keyed{[]byte(key), value})
	}
	return records
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
				if got := add(t, core, v); got != tt.outcomes[i] {
					t.Errorf("view %d: outcome %v, want %v", i, got, tt.outcomes[i])
				}
			}
			core.Advance(10_000 * minute)
			var got [][]string
			for _, s := range takeClosed(t, core) {
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
		if got := add(t, core, view(i)); got != Accepted {
			t.Fatalf("view %d: %v", i, got)
		}
		for _, again := range []int{i, max(0, i-manyViews/2)} {
			if got := add(t, core, view(again)); got != Duplicate {
				t.Fatalf("view %d again after %d: %v", again, i, got)
			}
		}
	}
	core.Advance(10_000 * minute)
	views := 0
	for _, s := range takeClosed(t, core) {
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
		log := map[string][]byte{}
		views, seen, limited := drawViews(t, cfg), map[string]int{}, 0
		take := func() {
			for _, s := range takeClosed(t, core) {
				for _, id := range ids(s) {
					seen[id]++
				}
				if s.ClosedBy == onerecv1.ClosedBy_CLOSED_BY_LIMIT {
					limited++
				}
			}
			keep(log, core)
			users := map[string]bool{} // whom any key names
			for key := range log {
				if key[0] == 0 {
					key = key[2:]
				}
				users[key] = true
			}
			if len(users) != core.OpenUsers() {
				t.Fatalf("%d users, %d in the changelog", core.OpenUsers(), len(users))
			}
		}
		accepted := map[string]bool{}
		for _, v := range views {
			if add(t, core, v) == Accepted {
				accepted[v.EventId] = true
			}
			take()
			if core.OpenUsers() > cfg.MaxUsers {
				t.Fatalf("%d users of at most %d", core.OpenUsers(), cfg.MaxUsers)
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

// TestOpenViewsAreBounded: a user who sends more than the limit within the lateness
// has sessions closed early; every accepted view is in one of them.
func TestOpenViewsAreBounded(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MaxOpen, cfg.MaxViews = 20, 8
	core := New(cfg)
	accepted, seen, limited := 0, 0, 0
	for i := range 500 {
		// Out of order, all within the lateness: the watermark closes none of them.
		v := &onerecv1.View{EventId: fmt.Sprint(i), UserId: "u", ItemId: "i", EventTimeMs: 100*minute + int64(i*7919%500)*1000}
		if add(t, core, v) == Accepted {
			accepted++
		}
		if n := len(core.users.get([]byte("u")).open); n > cfg.MaxOpen {
			t.Fatalf("%d views open", n)
		}
		if i == 20 && accepted != 21 {
			t.Fatalf("%d of 21 views accepted", accepted)
		}
	}
	core.Advance(10_000 * minute)
	for _, s := range takeClosed(t, core) {
		seen += len(s.Views)
		if s.ClosedBy == onerecv1.ClosedBy_CLOSED_BY_LIMIT {
			limited++
		}
	}
	if seen != accepted || limited == 0 {
		t.Fatalf("%d views accepted, %d in sessions, %d sessions closed by the limit", accepted, seen, limited)
	}
}

// TestChangelogIsExact: whatever happened, a core restored from the changelog goes on
// like the first one, and the changelog grows by about what came: a view is written
// as an addition and again, at most, with the whole state.
func TestChangelogIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := smallConfig()
		cfg.MaxViews = rapid.SampledFrom([]int{6, 1000}).Draw(t, "max views")
		cfg.MaxUsers = rapid.SampledFrom([]int{0, 2}).Draw(t, "max users")
		cfg.History.MaxAge = 3 * time.Hour // users are forgotten, and come back
		first := New(cfg)
		log := map[string][]byte{}
		views := drawViews(t, cfg)
		every := rapid.IntRange(1, 5).Draw(t, "transaction")
		for i, v := range views {
			add(t, first, v)
			takeClosed(t, first)
			if i%every != 0 && i != len(views)-1 {
				continue
			}
			keep(log, first)
			second := New(cfg)
			if err := second.Restore(keyed(log)); err != nil {
				t.Fatal(err)
			}
			if a, b := memory(first), memory(second); a != b {
				t.Fatalf("after %d views\n had %s\nrestored %s", i+1, a, b)
			}
		}
	})
}

// memory writes down all that a core knows of its users.
func memory(c *Core) string {
	var b strings.Builder
	for _, u := range slices.SortedFunc(c.users.all, func(a, b *user) int { return cmp.Compare(a.id, b.id) }) {
		fmt.Fprintf(&b, "%s closed through %d, newest %d, epoch %d, saved %d of %d, %d additions, %d slots, %d %d %v, history %x:", u.id, u.closedThrough, u.newest, u.epoch, u.saved, len(u.buf), u.additions, u.slots, u.whole, u.added, u.rewrite, []byte(u.history))
		for _, o := range u.open {
			v := u.view(o)
			fmt.Fprintf(&b, " %s at %d, %d %d %b", v.EventID, o.ms, o.watch, o.itemSize, o.flags)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// TestFutureViewsDoNotMoveTheWatermark: a wrong clock costs its own user only.
func TestFutureViewsDoNotMoveTheWatermark(t *testing.T) {
	core := New(DefaultConfig())
	core.SetCeiling(200 * minute)
	view := func(user string, min int64) *onerecv1.View {
		return &onerecv1.View{EventId: fmt.Sprint(user, min), UserId: user, ItemId: "i", EventTimeMs: min * minute}
	}
	add(t, core, view("a", 100))
	if add(t, core, view("wrong", 10_000)) != Accepted || core.SavePartition().MaxEventTimeMs != 100*minute {
		t.Fatal("the view from the future moved the watermark")
	}
	if add(t, core, view("a", 110)) != Accepted || len(takeClosed(t, core)) != 0 {
		t.Fatal("the session of another user was closed")
	}
	core.Advance(300 * minute)
	if closed := takeClosed(t, core); len(closed) != 1 || closed[0].UserId != "a" || len(closed[0].Views) != 2 {
		t.Fatalf("closed %v", closed)
	}
}

func TestUsersAreForgotten(t *testing.T) {
	core := New(DefaultConfig())
	add(t, core, &onerecv1.View{EventId: "a", UserId: "u", ItemId: "i", EventTimeMs: 100 * minute, Like: true})
	core.Advance(200 * minute)
	if core.OpenUsers() != 1 {
		t.Fatal("the history should be remembered")
	}
	core.TakeChanges()
	core.Advance(200*minute + DefaultConfig().History.MaxAge.Milliseconds())
	if core.OpenUsers() != 0 {
		t.Fatal("an expired history should be forgotten")
	}
	if d := core.TakeChanges(); len(d) != 1 || string(d[0].Key) != "u" || d[0].Value != nil {
		t.Fatalf("changes %v: want a tombstone for u", d)
	}
}

// TestRestoreMissesALostState: an addition whose whole state isn't there must not wait
// in the changelog until a later whole state has its epoch.
func TestRestoreMissesALostState(t *testing.T) {
	core := New(smallConfig())
	log := map[string][]byte{}
	var first []byte
	for i := range 40 {
		add(t, core, &onerecv1.View{EventId: fmt.Sprint(i), UserId: "u", ItemId: "i", EventTimeMs: 100 * minute})
		keep(log, core)
		if first == nil {
			first = log["u"]
		}
	}
	if err := New(smallConfig()).Restore(keyed(log)); err != nil {
		t.Fatal(err)
	}
	log["u"] = first
	if err := New(smallConfig()).Restore(keyed(log)); err == nil || !strings.Contains(err.Error(), "the newest is of epoch 1") {
		t.Fatalf("restored on an old state: %v", err)
	}
}

// FuzzRestore: whatever a changelog holds gives an error or a core that goes on, whose
// own changelog restores to the same.
func FuzzRestore(f *testing.F) {
	first := New(smallConfig())
	for i := range 3 {
		add(f, first, &onerecv1.View{EventId: fmt.Sprint(i), UserId: "u", ItemId: "i", EventTimeMs: (100 + 50*int64(i)) * minute, Like: true})
		for _, c := range first.TakeChanges() {
			f.Add(c.Key, c.Value, []byte("\x00\x01u"), []byte{})
		}
	}
	f.Add([]byte("u"), []byte("\x10\x01"), []byte("\x00\x01u"), []byte("\x10\x01\x2a\x07\x0a\x01e\x1a\x00\x20\x05"))
	f.Add([]byte(PartitionKey), []byte{}, []byte{0, 200}, []byte{})
	f.Fuzz(func(t *testing.T, key1, value1, key2, value2 []byte) {
		core := New(smallConfig())
		if err := core.Restore([]Keyed{{key1, value1}, {key2, value2}}); err != nil {
			return
		}
		if _, err := core.Add([]byte("\x0a\x01n\x12\x01u\x20\x64")); err != nil { // event n of user u at 100 ms
			t.Fatal(err)
		}
		log := map[string][]byte{string(key1): value1, string(key2): value2}
		keep(log, core)
		again := New(smallConfig())
		if err := again.Restore(keyed(log)); err != nil {
			t.Fatal(err)
		}
		core.Advance(1 << 40)
		core.TakeClosed()
	})
}

// TestWhoIsDueFirst: whatever the heap's entries were made of, the limit costs the user who
// is due first, ties by user.
func TestWhoIsDueFirst(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := smallConfig()
		cfg.MaxUsers = rapid.SampledFrom([]int{2, 3}).Draw(t, "max users")
		cfg.History.MaxAge = 3 * time.Hour // users are forgotten, and come back
		core := New(cfg)
		for _, v := range drawViews(t, cfg) {
			evicted, limit := core.Evicted(), core.OpenUsers() == cfg.MaxUsers
			var first *user
			for u := range core.users.all {
				if u.id != v.UserId && (first == nil || core.dueAt(u) < core.dueAt(first) || core.dueAt(u) == core.dueAt(first) && u.id < first.id) {
					first = u
				}
			}
			before := core.state.WatermarkMs
			add(t, core, v)
			if limit && core.Evicted() > evicted && before == core.state.WatermarkMs { // nobody closed or forgotten by time
				newcomer := core.users.get([]byte(v.UserId))
				if core.users.get([]byte(first.id)) != nil && newcomer != nil {
					t.Fatalf("%s was due first, and another was evicted", first.id)
				}
			}
			takeClosed(t, core)
		}
	})
}

// TestHeapIsBounded: neither views, nor sessions, nor users who were evicted leave more
// in the heap than a few entries a user.
func TestHeapIsBounded(t *testing.T) {
	for _, tt := range []struct {
		name     string
		maxUsers int
		most     int // entries a user
	}{
		{"the same users", 0, 2},
		{"new users take the place of others", 80, maxDue},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := DefaultConfig()
			cfg.MaxUsers = tt.maxUsers
			core := New(cfg)
			for i := range 20_000 {
				v := &onerecv1.View{EventId: fmt.Sprint(i), UserId: fmt.Sprint(i % 90), ItemId: "i", EventTimeMs: int64(i) * minute, Like: true}
				if tt.maxUsers > 0 && i%9 == 0 { // comes once and leaves no history; the others every 90 minutes
					v.UserId, v.Like = fmt.Sprint("once", i), false
				}
				add(t, core, v)
				takeClosed(t, core)
				core.TakeChanges()
				if n, most := len(core.due), tt.most*(core.OpenUsers()+1); n > most {
					t.Fatalf("%d entries for %d users after %d views", n, core.OpenUsers(), i+1)
				}
			}
			if core.state.Closed < 10_000 || tt.maxUsers > 0 && core.Evicted() < 100 {
				t.Fatalf("%d users evicted, %d sessions closed: nothing was tried", core.Evicted(), core.state.Closed)
			}
		})
	}
}

// TestRecycleLetsGo: what was handed out is not held once it was taken back, but for some
// slabs for the next transaction, however much it was.
func TestRecycleLetsGo(t *testing.T) {
	core := New(DefaultConfig())
	for i := range 40_000 {
		add(t, core, &onerecv1.View{EventId: fmt.Sprintf("%01000d", i), UserId: fmt.Sprint(i), ItemId: "i", EventTimeMs: minute})
	}
	core.TakeChanges()
	core.Recycle()
	heap := func() int {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	core.Advance(1000 * minute)
	size := 0
	for _, k := range core.TakeClosed() {
		size += len(k.Value)
	}
	core.TakeChanges()
	before := heap()
	core.Recycle()
	if less := before - heap(); size < 40_000_000 || less < size*3/4 {
		t.Errorf("%d bytes are let go of sessions of %d", less, size)
	}
	runtime.KeepAlive(core)
}
