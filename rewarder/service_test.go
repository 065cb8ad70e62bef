package rewarder

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/decoder"
	"onerec/internal/stream"
	"onerec/publisher"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

// TestSchedule: a round begins by time or by number of sessions, whichever is first, and never
// over what the last one was over.
func TestSchedule(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, tt := range map[string]struct {
		newSessions int64
		reference   string
		sessions    int64
		after       time.Duration
		want        bool
	}{
		"too early":                      {0, "b", 200, 59 * time.Minute, false},
		"time":                           {0, "b", 200, time.Hour, true},
		"time, new sessions alone":       {0, "a", 101, time.Hour, true},
		"time, a new reference alone":    {0, "b", 100, time.Hour, true},
		"time, nothing new":              {0, "a", 100, 9 * time.Hour, false},
		"enough sessions":                {50, "a", 150, time.Second, true},
		"one too few":                    {50, "a", 149, time.Second, false},
		"too few, but it is time":        {50, "a", 149, time.Hour, true},
		"new reference, sessions as few": {50, "b", 100, time.Second, false},
	} {
		s := schedule{every: time.Hour, newSessions: tt.newSessions}
		if w := s.wait(start); w <= 0 || w > 10*time.Second {
			t.Errorf("%s: %v until the first look after the first", name, w)
		}
		if !s.due("a", 100, start) {
			t.Errorf("%s: the first round is not due at once", name)
		}
		s.made("a", 100, start)
		if got := s.due(tt.reference, tt.sessions, start.Add(tt.after)); got != tt.want {
			t.Errorf("%s: due %v, want %v", name, got, tt.want)
		}
		if w := s.wait(start); tt.newSessions == 0 && w != time.Hour || tt.newSessions > 0 && w > 10*time.Second {
			t.Errorf("%s: wait %v", name, w)
		}
		if w := s.wait(start.Add(2 * time.Hour)); w <= 0 { // overdue, and nothing new: no busy loop
			t.Errorf("%s: wait %v", name, w)
		}
	}
}

// world is a broker with the topics, and a store of versions.
func world(t *testing.T) (stream.Cluster, *kgo.Client, *publisher.Store) {
	t.Helper()
	b, err := stream.StartEmbedded("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	cluster := stream.Cluster{Brokers: b.Brokers()}
	cl, err := cluster.Client()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	if _, err := stream.CreateTopics(t.Context(), cl, 2, 1); err != nil {
		t.Fatal(err)
	}
	store, err := publisher.Open(t.Context(), t.TempDir(), publisher.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return cluster, cl, store
}

// TestReadWithdrawn: before each round the rewarder reads on in the items topic, and passes over what is no Item.
func TestReadWithdrawn(t *testing.T) {
	cluster, cl, _ := world(t)
	r := &run{Service: &Service{Cluster: cluster, Log: slog.New(slog.DiscardHandler)}, core: NewCore(DefaultCoreConfig()), offsets: make(map[int32]int64), items: make(map[int32]int64)}
	for step, tt := range []struct {
		item *onerecv1.Item // nil: a record that is none
		want string
	}{
		{&onerecv1.Item{ItemId: "a", Withdrawn: true}, "a"},
		{nil, "a"},
		{&onerecv1.Item{ItemId: "b", Withdrawn: true}, "a b"},
		{&onerecv1.Item{ItemId: "a"}, "b"},
	} {
		record := &kgo.Record{Topic: schemas.TopicItems, Key: []byte("x"), Value: []byte("no item")}
		if tt.item != nil {
			value, err := proto.Marshal(tt.item)
			if err != nil {
				t.Fatal(err)
			}
			record.Value = value
		}
		if err := cl.ProduceSync(t.Context(), record).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := r.read(t.Context()); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, id := range []string{"a", "b", "x"} {
			if r.core.Withdrawn.Has(id) {
				got = append(got, id)
			}
		}
		if strings.Join(got, " ") != tt.want || r.items[0] != int64(step+1) {
			t.Errorf("after record %d: withdrawn are %v, want %s; the next record is %d", step, got, tt.want, r.items[0])
		}
	}
}

// TestHeldReleases: what passes the gates while releases are held is published, counted apart, and not released.
func TestHeldReleases(t *testing.T) {
	ctx := t.Context()
	cluster, _, store := world(t)
	w, err := decoder.NewWeights(decoder.Config{Layers: 1, Dim: 16, Heads: 2, Hidden: 24, Levels: testLevels, Codes: testCodes, MaxLen: 40}, 1)
	if err != nil {
		t.Fatal(err)
	}
	r := &run{Service: &Service{Cluster: cluster, Store: store, Model: "m", Reward: DefaultCoreConfig(), Log: slog.New(slog.DiscardHandler)}, core: NewCore(DefaultCoreConfig())}
	r.core.model = testModel(t)
	parent := &publisher.Manifest{Model: "m", Kind: publisher.KindBase}
	if _, err := store.Publish(ctx, parent, map[string][]byte{"x": nil}); err != nil {
		t.Fatal(err)
	}
	release := func(wantHeld string) string {
		t.Helper()
		version, held, err := r.release(ctx, parent, w, testCodebook(t), &Outcome{Accepted: true})
		if err != nil || held != wantHeld {
			t.Fatalf("held %q, %v; want %q", held, err, wantHeld)
		}
		if _, _, err := store.Load(ctx, version, ""); err != nil {
			t.Fatalf("it is not published: %v", err)
		}
		return version
	}
	released := func() string {
		t.Helper()
		refs, err := publisher.Current(ctx, cluster, "m")
		if err != nil {
			t.Fatal(err)
		}
		return refs[publisher.ChannelReleased].GetVersion()
	}
	first := release("")
	if _, err := publisher.Hold(ctx, cluster, "m", "a holiday"); err != nil {
		t.Fatal(err)
	}
	if second := release("a holiday"); released() != first || second == first {
		t.Errorf("released is %s; the first was %s, published while held %s", released(), first, second)
	}
	if _, err := publisher.Hold(ctx, cluster, "m", ""); err != nil {
		t.Fatal(err)
	}
	if third := release(""); released() != third {
		t.Errorf("released is %s, want %s", released(), third)
	}

	m := NewMetrics(prometheus.NewRegistry())
	for _, round := range []*onerecv1.AlignmentRound{{Accepted: true}, {Accepted: true, Held: "a holiday"}, {Accepted: true, Held: "a holiday"}, {}} {
		m.round(round, Quality{})
	}
	for outcome, want := range map[string]float64{"accepted": 1, "held": 2, "rejected": 1} {
		if got := testutil.ToFloat64(m.rounds.WithLabelValues(outcome)); got != want {
			t.Errorf("%v rounds are %s, want %v", got, outcome, want)
		}
	}
}

// TestReference: rounds begin from what is newest, but from nothing that comes from a release that was rolled back.
func TestReference(t *testing.T) {
	ctx := t.Context()
	cluster, _, store := world(t)
	r := &run{Service: &Service{Cluster: cluster, Store: store, Model: "m", Log: slog.New(slog.DiscardHandler)}}
	publish := func(kind, parent, channel string) string {
		t.Helper()
		m := &publisher.Manifest{Model: "m", Kind: kind, Parent: parent}
		hash, err := store.Publish(ctx, m, map[string][]byte{"x": []byte(kind + parent)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := publisher.Announce(ctx, cluster, store, channel, m.Version, hash); err != nil {
			t.Fatal(err)
		}
		return m.Version
	}
	wants := func(when, want string) {
		t.Helper()
		for range 2 { // what is remembered says the same
			ref, err := r.reference(ctx)
			if err != nil || ref.GetVersion() != want {
				t.Fatalf("%s: from %q, %v; want %s", when, ref.GetVersion(), err, want)
			}
		}
	}
	wants("with nothing", "")
	base := publish(publisher.KindBase, "", publisher.ChannelCandidate)
	wants("without a release", base)
	first := publish(publisher.KindAligned, base, publisher.ChannelReleased)
	wants("after a release", first)
	beside := publish(publisher.KindBase, base, publisher.ChannelCandidate)
	wants("after a candidate that is not of the release", beside)
	second := publish(publisher.KindAligned, beside, publisher.ChannelReleased)
	after := publish(publisher.KindBase, publish(publisher.KindBase, second, publisher.ChannelCandidate), publisher.ChannelCandidate)
	wants("after the release's candidates", after)
	if _, ref, err := publisher.Rollback(ctx, cluster, store, "m", "", ""); err != nil || ref.Version != first {
		t.Fatalf("rolled back to %s: %v", ref.GetVersion(), err)
	}
	wants("after a rollback", first)
	again := publish(publisher.KindBase, first, publisher.ChannelCandidate)
	wants("after the trainer went back, too", again)
}
