package recommender

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/decoder"
	"onerec/internal/history"
	"onerec/internal/stream"
	"onerec/publisher"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
	"onerec/semanticid"
)

// checkpoint returns the files of a random decoder over n items.
func checkpoint(t testing.TB, n int, seed uint64) (map[string][]byte, *publisher.Manifest) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	x, names := make([]float32, n*4), make([]string, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	for i := range names {
		names[i] = fmt.Sprint("i", i)
	}
	cb, err := semanticid.Build(t.Context(), names, x, 4, semanticid.Config{Levels: 2, Codes: 8, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	w, err := decoder.NewWeights(decoder.Config{Layers: 1, Dim: 16, Heads: 2, Hidden: 24, Levels: 2, Codes: 8, MaxLen: 50}, seed)
	if err != nil {
		t.Fatal(err)
	}
	files, config, err := decoder.Encode(w, cb)
	if err != nil {
		t.Fatal(err)
	}
	return files, &publisher.Manifest{Model: "m", Kind: publisher.KindBase, Codebook: cb.Version(), Config: config}
}

// TestModelsShareItems: a checkpoint with the items of one that is loaded takes them from there,
// and answers as if it had been loaded alone; one with other items does not.
func TestModelsShareItems(t *testing.T) {
	store, err := publisher.Open(t.Context(), t.TempDir(), publisher.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	load := func(items, weights uint64, loaded ...*model) *model {
		t.Helper()
		files, manifest := checkpoint(t, 20, items)
		other, _ := checkpoint(t, 20, weights)
		files[decoder.FileWeights] = other[decoder.FileWeights]
		if _, err := store.Publish(t.Context(), manifest, files); err != nil {
			t.Fatal(err)
		}
		m := &model{manifest: manifest}
		if err := m.decode(files, decoder.Int16, loaded...); err != nil {
			t.Fatal(err)
		}
		if got := m.gen.Numbers(); got != decoder.Int16 {
			t.Fatalf("it computes in %v", got)
		}
		return m
	}
	lists := func(m *model) []decoder.List {
		t.Helper()
		lists, err := m.gen.Generate(decoder.Options{History: []decoder.Item{m.cb.ID(3)}, Length: 3, Width: 8})
		if err != nil {
			t.Fatal(err)
		}
		return lists
	}
	first := load(1, 1)
	next, alone, others := load(1, 2, nil, first), load(1, 2), load(2, 2, first)
	if next.cb != first.cb || alone.cb == first.cb || others.cb == first.cb {
		t.Error("the same items are not shared, or others are")
	}
	if !reflect.DeepEqual(lists(next), lists(alone)) || reflect.DeepEqual(lists(next), lists(first)) {
		t.Error("a model with another's items does not answer as it would alone")
	}
	if reflect.DeepEqual(lists(next), lists(others)) {
		t.Error("a model of other items answers with the first's")
	}
}

type world struct {
	svc     *Service
	store   *publisher.Store
	dir     string
	cluster stream.Cluster
	client  *kgo.Client
}

// start runs a recommender against an embedded broker.
func start(t *testing.T) *world { return startWith(t, func(*Service) {}) }

func startWith(t *testing.T, change func(*Service)) *world {
	t.Helper()
	b, err := stream.StartEmbedded("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	w := &world{dir: t.TempDir(), cluster: stream.Cluster{Brokers: b.Brokers()}}
	if w.store, err = publisher.Open(t.Context(), w.dir, publisher.Options{}); err != nil {
		t.Fatal(err)
	}
	if w.client, err = w.cluster.Client(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.client.Close)
	if _, err := stream.CreateTopics(t.Context(), w.client, 2, 1); err != nil {
		t.Fatal(err)
	}
	w.svc = service()
	change(w.svc)
	<-w.begin(t, w.svc)
	return w
}

// begin runs a recommender until the test ends; ready is closed when it is.
func (w *world) begin(t *testing.T, svc *Service) (ready chan struct{}) {
	t.Helper()
	svc.Cluster, svc.Store = w.cluster, w.store
	ready = make(chan struct{})
	svc.OnReady = sync.OnceFunc(func() { close(ready) })
	svc.Open()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- svc.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return ready
}

func service() *Service {
	return &Service{Model: "m", Channel: publisher.ChannelReleased, Policy: history.DefaultPolicy(), Beams: 8, MaxUsers: 100, MaxItems: 100, HistoryCache: 1 << 20, Log: slog.New(slog.DiscardHandler), OnReady: func() {}}
}

func (w *world) publish(t *testing.T, channel string, seed uint64) string {
	t.Helper()
	files, m := checkpoint(t, 20, seed)
	hash, err := w.store.Publish(t.Context(), m, files)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := publisher.Announce(t.Context(), w.cluster, w.store, channel, m.Version, hash); err != nil {
		t.Fatal(err)
	}
	return m.Version
}

func (w *world) view(t *testing.T, user, item string, at int64) {
	t.Helper()
	value, err := proto.Marshal(&onerecv1.View{EventId: fmt.Sprint(user, item, at), UserId: user, ItemId: item, EventTimeMs: at, Like: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.client.ProduceSync(t.Context(), &kgo.Record{Topic: schemas.TopicViews, Key: []byte(user), Value: value}).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

func ask(t testing.TB, h http.Handler, body string) (int, *Answer, string) {
	t.Helper()
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/v1/recommendations", strings.NewReader(body)))
	a := new(Answer)
	if rec.Code == http.StatusOK {
		if err := json.Unmarshal(rec.Body.Bytes(), a); err != nil {
			t.Fatal(err)
		}
	}
	return rec.Code, a, rec.Body.String()
}

// eventually waits until ok says so.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("it never happened: %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// TestLifeOfAService: popular items first, then a candidate, then what is
// released; a damaged checkpoint is refused and the old one serves on.
func TestLifeOfAService(t *testing.T) {
	w := start(t)
	h := w.svc.Handler()
	for i := range 3 {
		w.view(t, "a", fmt.Sprint("i", i), int64(1000+i))
		w.view(t, "b", "i2", int64(1000+i))
	}
	eventually(t, "views arrive", func() bool { return len(w.svc.History("a")) == 3 && len(w.svc.History("b")) == 3 })
	code, a, body := ask(t, h, `{"user_id":"c","n":2}`)
	if code != 200 || a.Source != "popular" || a.Why == "" || len(a.Items) != 2 || a.Items[0].ItemID != "i2" || a.RecommendationID == "" {
		t.Fatalf("%d %s", code, body)
	}
	if _, a, _ := ask(t, h, `{"user_id":"a","n":5}`); len(a.Items) != 0 {
		t.Fatalf("user a has seen everything, but got %v", a.Items)
	}

	candidate := w.publish(t, publisher.ChannelCandidate, 1)
	eventually(t, "the candidate serves", func() bool { _, a, _ := ask(t, h, `{"user_id":"a"}`); return a.CheckpointVersion == candidate })
	code, a, body = ask(t, h, `{"user_id":"a","n":5}`)
	if code != 200 || a.Channel != publisher.ChannelCandidate || len(a.Items) != 5 || a.HistoryItems != 3 {
		t.Fatalf("%d %s", code, body)
	}
	for _, item := range a.Items {
		if item.ItemID == "i0" || item.ItemID == "i1" || item.ItemID == "i2" || len(item.SemanticID) != 2 {
			t.Fatalf("seen or without an ID: %+v", item)
		}
	}
	if _, a, _ := ask(t, h, `{"user_id":"nobody","mode":"next","n":20}`); len(a.Items) != 20 {
		t.Fatalf("all 20 items were asked for, got %d", len(a.Items))
	}

	released := w.publish(t, publisher.ChannelReleased, 2)
	eventually(t, "the released version serves", func() bool { _, a, _ := ask(t, h, `{"user_id":"a"}`); return a.CheckpointVersion == released })
	w.publish(t, publisher.ChannelCandidate, 3) // no longer of interest

	// Announced, then damaged before it is read: a reader's own check must catch it.
	files, m := checkpoint(t, 20, 4)
	hash, err := w.store.Publish(t.Context(), m, files)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(w.dir, "versions", m.Version, decoder.FileWeights)
	if err := os.WriteFile(path, append(bytes.Clone(files[decoder.FileWeights][:len(files[decoder.FileWeights])-1]), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	value, err := proto.Marshal(&onerecv1.CheckpointRef{Model: "m", Channel: publisher.ChannelReleased, Version: m.Version, ManifestSha256: hash})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.client.ProduceSync(t.Context(), &kgo.Record{Topic: schemas.TopicCheckpoints, Key: []byte("m/released"), Value: value}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	last := w.publish(t, publisher.ChannelReleased, 5) // comes after the damaged one
	versions := map[string]bool{}
	eventually(t, "the next good version serves", func() bool {
		_, a, _ := ask(t, h, `{"user_id":"a"}`)
		versions[a.CheckpointVersion] = true
		return a.CheckpointVersion == last
	})
	if versions[m.Version] {
		t.Fatal("the damaged version served")
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/v1/models", nil))
	if !strings.Contains(rec.Body.String(), `"version":"`+last+`"`) {
		t.Fatalf("models: %s", rec.Body)
	}
}

func TestBadRequests(t *testing.T) {
	s := service()
	s.Open()
	h := s.Handler()
	long := strings.Repeat("x", schemas.MaxIDBytes+1)
	for body, want := range map[string]int{
		``:                               400,
		`{}`:                             400,
		`{"user_id":"u","n":-1}`:         400,
		`{"user_id":"u","n":101}`:        400,
		`{"user_id":"u","n":"five"}`:     400,
		`{"user_id":"u","mode":"all"}`:   400,
		`{"user_id":"` + long + `"}`:     400,
		`{"user_id":"u","colour":"red"}`: 400,
		`{"user_id":"u","history":[1]}`:  400,
		strings.Repeat("[", 60_000):      400,
		`{"user_id":"` + strings.Repeat("x", maxBody) + `"}`: 413,
		`{"history":[]}`:  200,
		`{"user_id":"u"}`: 200,
	} {
		code, _, reply := ask(t, h, body)
		if code != want {
			t.Errorf("%.60q: %d, want %d: %s", body, code, want, reply)
		}
		if code != 200 && !strings.Contains(reply, `"detail"`) {
			t.Errorf("%.60q: the answer says nothing: %s", body, reply)
		}
	}
}

// TestStart: a service that starts reads no view that was written too long ago, is not ready until a transaction that was open is
// decided, and says how far it is.
func TestStart(t *testing.T) {
	w := start(t)
	w.publish(t, publisher.ChannelReleased, 1)
	produce := func(cl *kgo.Client, item string, age time.Duration) {
		t.Helper()
		value, err := proto.Marshal(&onerecv1.View{EventId: item, UserId: "u", ItemId: item, EventTimeMs: time.Now().Add(-age).UnixMilli(), Like: true})
		if err != nil {
			t.Fatal(err)
		}
		r := &kgo.Record{Topic: schemas.TopicViews, Key: []byte("u"), Value: value, Timestamp: time.Now().Add(-age)}
		if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	produce(w.client, "i1", 3*time.Hour)
	produce(w.client, "i2", 2*time.Hour)
	produce(w.client, "i3", 30*time.Minute)
	open, err := w.cluster.Client(kgo.TransactionalID("t"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if err := open.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	produce(open, "i4", 0)

	young := service()
	young.MaxViewAge = time.Hour
	ready := w.begin(t, young)
	eventually(t, "it says how far it is", func() bool {
		err := young.Ready()
		return err != nil && strings.Contains(err.Error(), "still being read: 1 of 2 records")
	})
	if err := open.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	<-ready
	if got := young.History("u"); !slices.Equal(got, []string{"i3", "i4"}) {
		t.Errorf("it knows %v", got)
	}
	all := service()
	<-w.begin(t, all)
	if got := all.History("u"); !slices.Equal(got, []string{"i1", "i2", "i3", "i4"}) {
		t.Errorf("without a limit %v", got)
	}
	none := service()
	none.MaxViewAge = time.Nanosecond
	<-w.begin(t, none)
	if got := none.History("u"); len(got) > 0 {
		t.Errorf("of views that are all too old, %v", got)
	}
}

func TestUsersAreBounded(t *testing.T) {
	u := newUsers(history.DefaultPolicy(), 10, 5)
	like := schemas.Engagement{Like: true}
	for i := range 100 {
		u.add(&schemas.RawView{UserID: fmt.Append(nil, "u", i), ItemID: fmt.Append(nil, "i", i), EventTimeMs: int64(i), Engagement: like})
		u.add(&schemas.RawView{UserID: []byte("faithful"), ItemID: []byte("x"), EventTimeMs: int64(i), Engagement: like})
	}
	if u.len() != 10 || len(u.counts) != 5 {
		t.Errorf("%d users and %d items", u.len(), len(u.counts))
	}
	faithful, _ := u.history("faithful")
	if first, _ := u.history("u5"); faithful == nil || first != nil {
		t.Error("who was there last should be remembered, who was there first forgotten")
	}
}
