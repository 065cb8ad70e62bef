package integration

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/schemas"
	"onerec/schemas/onerecv1"
	"onerec/snapshots"
)

// Names of the stages, which are those of their consumer groups.
const (
	ingest   = "ingest"
	sessions = "sessionize"
	filter   = "filter"
	snapshot = "snapshot"
	gap      = 30 * time.Minute // the services' default
	lateness = 10 * time.Minute // too
)

// reads says which topic a stage reads.
var reads = map[string]string{ingest: schemas.TopicViewsRaw, sessions: schemas.TopicViews, filter: schemas.TopicSessions, snapshot: schemas.TopicJudgedSessions}

// flow is the stages at work on a known input.
type flow struct {
	c        *cluster
	stages   map[string]*service
	events   []*onerecv1.ViewEvent
	fed      int
	producer *kgo.Client
	adm      *kadm.Client
	fetch    func() error // brings the snapshots to where this process sees them; nil: they are there
}

// newFlow starts the stages on a cluster, with n events to come. Five of a hundred are
// sent twice, and as many come up to the lateness late.
func newFlow(c *cluster, seed uint64, n int) *flow {
	c.t.Helper()
	c.tool("topics", "create", "--partitions", "4", "--replication", fmt.Sprint(max(1, min(3, len(c.brokers)))))
	return newFlowOn(c, seed, n, func(string) []string { return nil })
}

// newFlowOn is newFlow on topics that are there, with more settings for each stage.
func newFlowOn(c *cluster, seed uint64, n int, more func(stage string) []string) *flow {
	c.t.Helper()
	f := &flow{c: c, stages: map[string]*service{}, producer: c.client(kgo.DefaultProduceTopic(schemas.TopicViewsRaw), kgo.RecordDeliveryTimeout(patience))}
	f.adm = kadm.NewClient(c.client())
	rng := rand.New(rand.NewPCG(seed, 1))
	clock := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()
	for i := range n {
		clock += rng.Int64N(2000)
		at := clock
		if rng.IntN(20) == 0 {
			at -= rng.Int64N(lateness.Milliseconds())
		}
		e := &onerecv1.ViewEvent{
			EventId: fmt.Sprint("e", i), UserId: fmt.Sprint("u", rng.IntN(500)), ItemId: fmt.Sprint("i", rng.IntN(300)),
			EventTimeMs: at, WatchMs: rng.Int64N(40_000), DurationMs: 30_000, Like: rng.IntN(5) == 0,
		}
		f.events = append(f.events, e)
		if rng.IntN(20) == 0 {
			f.events = append(f.events, e)
		}
	}
	for _, name := range []string{ingest, sessions, filter, snapshot} {
		f.stages[name] = f.launch(name, "one", more(name)...)
	}
	for _, s := range f.stages {
		s.ready()
	}
	return f
}

// launch starts an instance of a stage.
func (f *flow) launch(name, instance string, more ...string) *service {
	f.c.t.Helper()
	args := []string{name, "--instance", instance}
	if instance == "one" { // it is killed and comes back; others leave
		args = append(args, "--static-membership")
	}
	switch name {
	case snapshot:
		args = append(args, "--snapshots", f.snapshots(), "--snapshot-age", "500ms")
	case sessions:
		args = append(args, "--idle-timeout", "24h")
	}
	return f.c.launch(append(args, more...)...)
}

func (f *flow) snapshots() string { return filepath.Join(f.c.mount, "snapshots") }

// feed sends the next events, a share of all, and does not wait for the stages.
func (f *flow) feed(share float64) {
	f.c.t.Helper()
	end := min(len(f.events), f.fed+int(share*float64(len(f.events))))
	for _, e := range f.events[f.fed:end] {
		value, err := proto.Marshal(e)
		if err != nil {
			f.c.t.Fatal(err)
		}
		f.producer.Produce(f.c.t.Context(), &kgo.Record{Key: []byte(e.UserId), Value: value}, func(_ *kgo.Record, err error) {
			if err != nil && !f.c.t.Failed() {
				f.c.t.Errorf("the test's own producer: %v", err)
			}
		})
	}
	f.fed = end
}

// committed returns how many records of its input a group has processed.
func (f *flow) committed(group string) (n int64, err error) {
	ctx, cancel := context.WithTimeout(f.c.t.Context(), 5*time.Second)
	defer cancel()
	offsets, err := f.adm.FetchOffsets(ctx, group)
	if err != nil {
		// The client asks a coordinator that is dead again and again, for this request
		// alone; a new one looks for the present coordinator.
		f.adm = kadm.NewClient(f.c.client())
		return 0, err
	}
	offsets.Each(func(o kadm.OffsetResponse) {
		if o.Topic == reads[group] {
			n += max(0, o.At)
		}
	})
	return n, nil
}

// recovers waits until a group has processed most of what was fed and returns how long
// that took.
func (f *flow) recovers(group string) time.Duration {
	f.c.t.Helper()
	start := time.Now()
	f.reaches(group, 0.9*float64(f.fed)/float64(len(f.events)))
	return time.Since(start)
}

// reaches waits until a group has processed a share of the events.
func (f *flow) reaches(group string, share float64) {
	f.c.t.Helper()
	eventually(f.c.t, fmt.Sprintf("%s is at %.0f %%", group, 100*share), func() error {
		n, err := f.committed(group)
		if err == nil && n < int64(share*float64(len(f.events))) {
			err = fmt.Errorf("it has processed %d records", n)
		}
		return err
	})
}

// check feeds what is left, lets every session close, and holds what the stages have
// committed against the definition of a session over the whole input.
func (f *flow) check() {
	t := f.c.t
	t.Helper()
	f.feed(1)
	if err := f.producer.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.caughtUp(ingest)
	f.caughtUp(sessions)
	manual := f.c.client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	end := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()
	for p := range int32(4) {
		r := &kgo.Record{Topic: schemas.TopicViews, Partition: p, Headers: []kgo.RecordHeader{{Key: schemas.HeaderWatermark, Value: fmt.Append(nil, end)}}}
		if err := manual.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	f.caughtUp(sessions)
	f.caughtUp(filter)
	want := definition(f.events)
	got, judged := map[string]int{}, map[string]int{}
	f.read(schemas.TopicSessions, func(value []byte) error {
		s := new(onerecv1.Session)
		if err := proto.Unmarshal(value, s); err != nil {
			return err
		}
		got[describe(s)]++
		return nil
	})
	f.read(schemas.TopicJudgedSessions, func(value []byte) error {
		j := new(onerecv1.JudgedSession)
		if err := proto.Unmarshal(value, j); err != nil {
			return err
		}
		judged[describe(j.Session)]++
		return nil
	})
	lost, doubled := compare(want, got)
	t.Logf("%d events, %d sessions: %d lost, %d doubled", len(f.events), len(want), lost, doubled)
	if lost+doubled > 0 || !maps.Equal(got, want) {
		t.Errorf("the sessions are not those of the definition: %d lost, %d doubled or other", lost, doubled)
	}
	if !maps.Equal(judged, want) {
		t.Errorf("%d sessions were judged, want %d", len(judged), len(want))
	}
	eventually(t, "the snapshots hold every session", func() error {
		if f.fetch != nil {
			if err := f.fetch(); err != nil {
				return err
			}
		}
		rows, ids := 0, map[string]bool{}
		if err := snapshots.ReadAll(t.Context(), f.snapshots(), func(s snapshots.Session) error {
			rows++
			ids[s.SessionID] = true
			return nil
		}); err != nil {
			return err
		}
		if rows != len(want) || len(ids) != rows {
			return fmt.Errorf("%d rows, %d sessions, want %d", rows, len(ids), len(want))
		}
		return nil
	})
}

// startOver lets every group begin at the start of its topic again. No member may be
// left.
func (f *flow) startOver() {
	f.c.t.Helper()
	for group := range reads {
		eventually(f.c.t, "group "+group+" is deleted", func() error {
			_, err := f.adm.DeleteGroup(f.c.t.Context(), group)
			return err
		})
	}
}

func (f *flow) caughtUp(group string) {
	f.c.t.Helper()
	eventually(f.c.t, group+" has caught up", func() error {
		ctx, cancel := context.WithTimeout(f.c.t.Context(), 5*time.Second)
		defer cancel()
		ends, err := f.adm.ListEndOffsets(ctx, reads[group])
		if err != nil {
			return err
		}
		offsets, err := f.adm.FetchOffsets(ctx, group)
		if err != nil {
			return err
		}
		var left int64
		ends.Each(func(end kadm.ListedOffset) {
			at, _ := offsets.Lookup(end.Topic, end.Partition)
			left += end.Offset - max(0, at.At)
		})
		if left > 0 {
			return fmt.Errorf("%d records are left", left)
		}
		return nil
	})
}

func (f *flow) read(topic string, fn func(value []byte) error) {
	f.c.t.Helper()
	if err := f.c.stream().ReadTopic(f.c.t.Context(), topic, func(r *kgo.Record) error { return fn(r.Value) }); err != nil {
		f.c.t.Fatal(err)
	}
}

// describe names a session by its user and its views.
func describe(s *onerecv1.Session) string {
	text := s.UserId + ":"
	for _, v := range s.Views {
		text += " " + v.EventId
	}
	return text
}

// definition cuts the whole input into sessions in plain lines.
func definition(events []*onerecv1.ViewEvent) map[string]int {
	byUser, seen := map[string][]*onerecv1.ViewEvent{}, map[string]bool{}
	for _, e := range events {
		if !seen[e.EventId] {
			seen[e.EventId] = true
			byUser[e.UserId] = append(byUser[e.UserId], e)
		}
	}
	out := map[string]int{}
	for user, es := range byUser {
		slices.SortFunc(es, func(a, b *onerecv1.ViewEvent) int {
			return cmp.Or(cmp.Compare(a.EventTimeMs, b.EventTimeMs), cmp.Compare(a.EventId, b.EventId))
		})
		text := ""
		for i, e := range es {
			if i == 0 || e.EventTimeMs-es[i-1].EventTimeMs > gap.Milliseconds() {
				if text != "" {
					out[text]++
				}
				text = user + ":"
			}
			text += " " + e.EventId
		}
		out[text]++
	}
	return out
}

// compare returns how many sessions are missing and how many are there too often, or
// should not be there.
func compare(want, got map[string]int) (lost, doubled int) {
	for s, n := range want {
		lost += max(0, n-got[s])
	}
	for s, n := range got {
		doubled += max(0, n-want[s])
	}
	return lost, doubled
}

// TestCompare: the comparison of the suite sees what it must see.
func TestCompare(t *testing.T) {
	lost, doubled := compare(map[string]int{"a": 1, "b": 1}, map[string]int{"b": 2, "c": 1})
	if lost != 1 || doubled != 2 {
		t.Errorf("%d lost, %d doubled", lost, doubled)
	}
}
