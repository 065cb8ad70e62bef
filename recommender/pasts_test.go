package recommender

import (
	"fmt"
	"reflect"
	"strconv"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"pgregory.net/rapid"

	"onerec/decoder"
	"onerec/internal/history"
	"onerec/publisher"
	"onerec/schemas"
)

// TestReturningUsers: users who come back, with more items or without, after a swap, and several at once, get
// what they get from a service that keeps nothing; and only what is new to the model is read.
func TestReturningUsers(t *testing.T) {
	metrics := NewMetrics(prometheus.NewRegistry())
	w := startWith(t, func(s *Service) { s.Metrics = metrics })
	forgetful := startWith(t, func(s *Service) { s.HistoryCache = 0 })
	same := func(body string) *Answer {
		t.Helper()
		_, got, reply := ask(t, w.svc.Handler(), body)
		_, want, _ := ask(t, forgetful.svc.Handler(), body)
		if len(want.Items) == 0 || !reflect.DeepEqual(got.Items, want.Items) || got.CheckpointVersion != want.CheckpointVersion || got.HistoryItems != want.HistoryItems {
			t.Fatalf("%s: %s, want %+v", body, reply, want)
		}
		return got
	}
	tokens := func() (read, kept float64) {
		return testutil.ToFloat64(metrics.tokens.WithLabelValues("read")), testutil.ToFloat64(metrics.tokens.WithLabelValues("kept"))
	}
	publish := func(seed uint64) {
		t.Helper()
		for _, w := range []*world{w, forgetful} {
			version := w.publish(t, publisher.ChannelReleased, seed)
			eventually(t, "the version serves", func() bool { m := w.svc.loaded.Load(); return m != nil && m.ref.Version == version })
		}
	}
	publish(1)
	watch := func(i int) {
		t.Helper()
		for _, w := range []*world{w, forgetful} {
			w.view(t, "a", fmt.Sprint("i", i), int64(1000+i))
			eventually(t, "the view arrives", func() bool { return len(w.svc.History("a")) == i+1 })
		}
	}
	watch(0)
	same(`{"user_id":"a","n":3}`)
	read, kept := tokens()
	if read != 5 || kept != 0 { // BOS, two codes, SEP, SES
		t.Errorf("at first %v tokens were read and %v kept", read, kept)
	}
	watch(1)
	watch(2)
	for i, body := range []string{`{"user_id":"a","n":3}`, `{"user_id":"a","n":3}`, `{"user_id":"a","mode":"next","n":4}`} {
		same(body)
		before := read
		read, kept = tokens()
		if want := []float64{7, 1, 1}[i]; read-before != want { // two items and SES, then SES alone
			t.Errorf("request %d read %v tokens, want %v", i, read-before, want)
		}
	}
	if kept != 4+10+10 {
		t.Errorf("%v tokens were kept, want 24", kept)
	}
	if got, want := testutil.ToFloat64(metrics.pasts), float64(w.svc.pasts.size()); got != want || want == 0 {
		t.Errorf("the metric says %v bytes, %v are taken", got, want)
	}
	// A history in the request is the user's, too, and need not be what is known.
	same(`{"user_id":"a","history":["i0","i1","i9"],"n":3}`)
	before := read
	if read, _ = tokens(); read-before != 4 {
		t.Errorf("another history with the same beginning: %v tokens were read, want 4", read-before)
	}
	same(`{"history":["i0","i1","i9"],"n":3}`) // nobody's
	before = read
	if read, _ = tokens(); read != before || w.svc.pasts.recent.Len() != 1 {
		t.Errorf("what nobody asked was kept: %d users", w.svc.pasts.recent.Len())
	}
	publish(2)
	same(`{"user_id":"a","n":3}`)
	before = read
	if read, _ = tokens(); read-before != 11 {
		t.Errorf("a new model read %v tokens, want all 11", read-before)
	}
	// At the same time: each is right, whoever has the past.
	_, want, _ := ask(t, forgetful.svc.Handler(), `{"user_id":"a","n":3}`)
	t.Run("together", func(t *testing.T) {
		for i := range 20 {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				if _, got, reply := ask(t, w.svc.Handler(), `{"user_id":"a","n":3}`); !reflect.DeepEqual(got.Items, want.Items) {
					t.Errorf("%s, want %+v", reply, want)
				}
			})
		}
	})
	if n := w.svc.pasts.recent.Len(); n != 1 {
		t.Errorf("one user has %d pasts", n)
	}
}

// TestPastsAreBounded: whatever searches do, no more is kept than allowed, it is those who asked last who are kept, and
// what is counted is what is there.
func TestPastsAreBounded(t *testing.T) {
	files, manifest := checkpoint(t, 20, 1)
	m := &model{manifest: manifest}
	if err := m.decode(files, decoder.Float32); err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		p := newPasts(rapid.Int64Range(0, 20_000).Draw(t, "max"))
		var last []string // users, by when they asked
		for range rapid.IntRange(1, 30).Draw(t, "requests") {
			user := rapid.SampledFrom([]string{"", "a", "b", "c", "d", "e"}).Draw(t, "user")
			past := p.take(user)
			if (past == nil) != (p.max == 0 || user == "") {
				t.Fatalf("the past of %q is %v", user, past)
			}
			if past == nil {
				continue
			}
			if rapid.Bool().Draw(t, "at the same time") {
				other := p.take(user)
				if other == past {
					t.Fatal("two searches have the same past")
				}
				p.put(user, other)
			}
			history := make([]decoder.Item, rapid.IntRange(0, 10).Draw(t, "items"))
			for i := range history {
				history[i] = m.cb.ID(int32(i))
			}
			if _, err := m.gen.Next(decoder.Options{History: history, Width: 1, Past: past}, 1); err != nil {
				t.Fatal(err)
			}
			p.put(user, past)
			last = append(last, user)
			var bytes int64
			kept, seen := make(map[string]bool), make(map[string]bool)
			for e := p.recent.Front(); e != nil; e = e.Next() {
				u := e.Value.(*userPast)
				kept[u.user], bytes = true, bytes+u.bytes
			}
			if bytes != p.size() || bytes > p.max || len(kept) != p.recent.Len() || len(kept) != len(p.byUser) {
				t.Fatalf("%d bytes are counted of %d, %d allowed; %d users, %d entries, %d found", p.size(), bytes, p.max, len(kept), p.recent.Len(), len(p.byUser))
			}
			for i := len(last) - 1; i >= 0 && len(seen) < len(kept); i-- {
				if seen[last[i]] = true; !kept[last[i]] {
					t.Fatalf("%v are kept, but %v asked last", kept, last)
				}
			}
		}
	})
}

// TestHistoriesBeginSteadily: whichever items a model knows, and however many a history and a row hold, the model is
// asked about the newest, with less than a step fewer than it has room for, and histories begin anew once in a step's
// items.
func TestHistoriesBeginSteadily(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most, row := rapid.IntRange(1, 40).Draw(t, "items of a history"), rapid.IntRange(2, 60).Draw(t, "items of a row")
		room := row - rapid.IntRange(1, row-1).Draw(t, "length")
		policy := history.DefaultPolicy()
		policy.MaxItems = most
		u := newUsers(policy, 10, 10)
		every := rapid.IntRange(1, 4).Draw(t, "unknown is every, 1: none")
		step := min(most, row) / 4
		var begun []int // items that histories began with
		for i := range 200 {
			u.add(&schemas.RawView{UserID: []byte("a"), ItemID: fmt.Append(nil, i), EventTimeMs: int64(i), Engagement: schemas.Engagement{Like: true}})
			u.add(&schemas.RawView{UserID: []byte("a"), ItemID: []byte("bored"), EventTimeMs: int64(i)}) // not engaged
			items, before := u.history("a")
			if before != max(0, i+1-most) || items.Len() != min(i+1, most) {
				t.Fatalf("after %d items of which %d are kept, %d were before %d", i+1, most, before, items.Len())
			}
			var places []int
			for item := range items.All() {
				place, err := strconv.Atoi(string(item))
				if err != nil {
					t.Fatal(err)
				}
				if every == 1 || place%every != 0 {
					places = append(places, place)
				}
			}
			skip := steady(places, before, room, step)
			asked := len(places) - skip
			if asked > room || asked < min(len(places), room)-max(step-1, 0) || before == 0 && len(places) <= room && skip > 0 {
				t.Fatalf("of %d items %d are left out, with room for %d", len(places), skip, room)
			}
			if asked > 0 && (len(begun) == 0 || begun[len(begun)-1] != places[skip]) {
				begun = append(begun, places[skip])
			}
		}
		if most := 1 + (begun[len(begun)-1]-begun[0]+step-1)/max(step, 1); step > 0 && len(begun) > most {
			t.Fatalf("histories begin with each of %v, in steps of %d", begun, step)
		}
	})
}
