package trainer

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/decoder"
	"onerec/internal/stream"
	"onerec/publisher"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
	"onerec/semanticid"
)

// world is a broker with good sessions and a folder of checkpoints.
type world struct {
	t       *testing.T
	cluster stream.Cluster
	client  *kgo.Client
	store   *publisher.Store
}

func newWorld(t *testing.T) *world {
	t.Helper()
	b, err := stream.StartEmbedded("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	w := &world{t: t, cluster: stream.Cluster{Brokers: b.Brokers()}}
	if w.client, err = w.cluster.Client(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.client.Close)
	if _, err := stream.CreateTopics(t.Context(), w.client, 2, 1); err != nil {
		t.Fatal(err)
	}
	if w.store, err = publisher.Open(t.Context(), t.TempDir(), publisher.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.store.Close() })
	return w
}

func (w *world) produce(sessions []*onerecv1.Session) {
	w.t.Helper()
	for _, s := range sessions {
		value, err := proto.Marshal(&onerecv1.GoodSession{Session: s})
		if err != nil {
			w.t.Fatal(err)
		}
		if err := w.client.ProduceSync(w.t.Context(), &kgo.Record{Topic: schemas.TopicGoodSessions, Key: []byte(s.UserId), Value: value}).FirstErr(); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) service(once bool) *Service {
	return &Service{
		Cluster: w.cluster, Store: w.store, Model: "m", Learner: testConfig(), Bootstrap: 50, PublishSteps: 1, PublishEvery: time.Hour, Once: once,
		Log: slog.New(slog.DiscardHandler), OnReady: func() {},
	}
}

// TestServiceContinuesAndRebases: a run ends with a candidate; a second goes on
// from its weights and offsets; a third, live, takes over what was released
// meanwhile, and its next candidate descends from it.
func TestServiceContinuesAndRebases(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	sessions := testSessions(200, 8)
	w.produce(sessions[:100])
	first, err := w.service(true).Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if first.Stats.Sessions != 100 || first.Stats.Steps == 0 || first.Manifest.Parent != "" || first.Holdout.Predictions == 0 {
		t.Fatalf("first run: %+v, %+v", first.Stats, first.Manifest)
	}
	w.produce(sessions[100:150])
	second, err := w.service(true).Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if second.Stats.Sessions != 150 || second.Stats.Steps <= first.Stats.Steps || second.Manifest.Parent != first.Manifest.Version {
		t.Fatalf("second run: %+v, %+v", second.Stats, second.Manifest)
	}

	// A release, as the rewarder makes one.
	m, files, err := w.store.Load(ctx, second.Manifest.Version, second.Hash)
	if err != nil {
		t.Fatal(err)
	}
	weights, cb, err := decoder.Decode(files, m.Config)
	if err != nil {
		t.Fatal(err)
	}
	weights.Tensors()[1].Data[0] += 0.5
	files, config, err := decoder.Encode(weights, cb)
	if err != nil {
		t.Fatal(err)
	}
	aligned := &publisher.Manifest{Model: "m", Kind: publisher.KindAligned, Parent: m.Version, Codebook: cb.Version(), Config: config}
	hash, err := w.store.Publish(ctx, aligned, files)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := publisher.Announce(ctx, w.cluster, w.store, publisher.ChannelReleased, aligned.Version, hash); err != nil {
		t.Fatal(err)
	}

	live, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		_, err := w.service(false).Run(live)
		done <- err
	}()
	at := 150
	// descends lets it train until a candidate comes from a version, and returns the versions of those that came before.
	descends := func(from string) (before map[string]bool) {
		t.Helper()
		before = make(map[string]bool)
		for ; ; at++ {
			if at == len(sessions) {
				t.Fatalf("no candidate descends from %s", from)
			}
			w.produce(sessions[at : at+1])
			refs, err := publisher.Current(ctx, w.cluster, "m")
			if err != nil {
				t.Fatal(err)
			}
			if refs[publisher.ChannelCandidate].Parent == from {
				return before
			}
			before[refs[publisher.ChannelCandidate].Version] = true
			select { // it publishes when it has stepped; let it
			case <-ctx.Done():
				t.Fatal(ctx.Err())
			case err := <-done:
				t.Fatalf("the service ended: %v", err)
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
	descends(aligned.Version)
	// Back to what the release came from. Besides the newest candidate there is one at most that was under way.
	if _, ref, err := publisher.Rollback(ctx, w.cluster, w.store, "m", "", ""); err != nil || ref.Version != m.Version {
		t.Fatalf("rolled back to %s: %v", ref.GetVersion(), err)
	}
	if before := descends(m.Version); len(before) > 2 {
		t.Fatalf("after the rollback candidates %v still came from what was rolled back", before)
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// describe writes an item into the items topic; without attributes and embedding it takes
// the item out.
func (w *world) describe(id string, attributes []string, embedding ...float32) {
	w.t.Helper()
	r := &kgo.Record{Topic: schemas.TopicItems, Key: []byte(id)}
	if len(attributes)+len(embedding) > 0 {
		var err error
		if r.Value, err = proto.Marshal(&onerecv1.Item{ItemId: id, Attributes: attributes, Embedding: embedding}); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := w.client.ProduceSync(w.t.Context(), r).FirstErr(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) codebook(c *Candidate) *semanticid.Codebook {
	w.t.Helper()
	m, files, err := w.store.Load(w.t.Context(), c.Manifest.Version, c.Hash)
	if err != nil {
		w.t.Fatal(err)
	}
	_, cb, err := decoder.Decode(files, m.Config)
	if err != nil {
		w.t.Fatal(err)
	}
	return cb
}

// TestItemsTopic: the catalogue's embeddings make the codebook, so that items that nobody
// has watched have IDs, also those that come later; what is wrong with one item costs that
// item its embedding and nobody anything else.
func TestItemsTopic(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for g := range 4 {
		x := make([]float32, 5)
		x[g] = 3
		for i := range 12 { // two of each group are never watched
			x[4] = float32(i) / 10
			w.describe(fmt.Sprint("g", g, "-", i), nil, x...)
		}
	}
	w.describe("g0-0", nil, 1, 2)                           // another width: it gets its ID from what it is watched with
	w.describe("g3-11", nil)                                // out again
	w.describe("nothing known", []string{"tag"})            // no embedding, never watched: no ID
	w.describe("nan", nil, 0, float32(math.NaN()), 0, 0, 1) // the same
	if err := w.client.ProduceSync(ctx, &kgo.Record{Topic: schemas.TopicItems, Key: []byte("x"), Value: []byte{0xff}}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	sessions := testSessions(200, 8)
	w.produce(sessions[:100])
	first, err := w.service(true).Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cb := w.codebook(first)
	if cb.Len() != 47 || cb.Dim() != 5 {
		t.Errorf("%d items of width %d have IDs, want 47 of width 5", cb.Len(), cb.Dim())
	}
	for item, want := range map[string]bool{"g0-0": true, "g1-11": true, "g3-11": false, "nothing known": false, "nan": false} {
		if _, has := cb.Index(item); has != want {
			t.Errorf("item %q has an ID: %v, want %v", item, has, want)
		}
	}
	w.describe("later", nil, 0, 3, 0, 0, 0.35)
	w.produce(sessions[100:150])
	second, err := w.service(true).Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	next := w.codebook(second)
	if _, ok := next.Index("later"); !ok || !next.Extends(cb) || next.Len() != cb.Len()+1 {
		t.Errorf("an item that came later has an ID: %v; %d items, before %d", ok, next.Len(), cb.Len())
	}
	if second.Manifest.Offsets[schemas.TopicItems][0] != first.Manifest.Offsets[schemas.TopicItems][0]+1 {
		t.Errorf("offsets %v and %v", first.Manifest.Offsets, second.Manifest.Offsets)
	}
}

func TestServiceSaysThatThereIsNothing(t *testing.T) {
	w := newWorld(t)
	if _, err := w.service(true).Run(t.Context()); err == nil {
		t.Fatal("no error without sessions")
	}
}
