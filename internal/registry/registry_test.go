package registry

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sr"
	"github.com/twmb/franz-go/pkg/sr/srfake"
	"google.golang.org/protobuf/proto"

	"onerec/ingest"
	"onerec/internal/stream"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

func open(t testing.TB, url string, register bool) *Registry {
	t.Helper()
	r, err := New(t.Context(), url, register, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestThroughTheBroker: what one client writes framed is framed on the topic, and a
// client with the registry reads it bare; values without frames are read as well.
func TestThroughTheBroker(t *testing.T) {
	fake := srfake.New()
	defer fake.Close()
	r := open(t, fake.URL(), true)
	if err := r.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	for topic := range Subjects() {
		if !fake.SubjectExists(topic + "-value") {
			t.Errorf("no subject for %s", topic)
		}
	}
	broker, err := stream.StartEmbedded("")
	if err != nil {
		t.Fatal(err)
	}
	defer broker.Close()
	bare := stream.Cluster{Brokers: broker.Brokers()}
	framed := stream.Cluster{Brokers: broker.Brokers(), Options: []kgo.Opt{kgo.WithHooks(r)}}
	admin, err := bare.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	if _, err := stream.CreateTopics(t.Context(), admin, 1, 1); err != nil {
		t.Fatal(err)
	}
	value, err := proto.Marshal(&onerecv1.Session{SessionId: "s", UserId: "u"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []stream.Cluster{framed, bare} {
		cl, err := c.Client()
		if err != nil {
			t.Fatal(err)
		}
		for _, topic := range []string{schemas.TopicSessions, schemas.TopicSessionState} {
			if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Value: append([]byte(nil), value...)}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		cl.Close()
	}
	read := func(c stream.Cluster, topic string) (values []string) {
		if err := c.ReadTopic(t.Context(), topic, func(r *kgo.Record) error {
			values = append(values, string(r.Value))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return values
	}
	if got := read(framed, schemas.TopicSessions); len(got) != 2 || got[0] != string(value) || got[1] != string(value) {
		t.Errorf("read %q, want twice %q", got, value)
	}
	wire := read(bare, schemas.TopicSessions)
	session := (&onerecv1.Session{}).ProtoReflect().Descriptor().Index()
	if h := []byte(wire[0]); len(wire) != 2 || h[0] != 0 || len(h) != 5+2+len(value) || h[5] != 2 || int(h[6]) != 2*session || wire[1] != string(value) {
		t.Errorf("on the topic %q", wire)
	}
	if got := read(bare, schemas.TopicSessionState); got[0] != string(value) {
		t.Errorf("the changelog is framed: %q", got)
	}
}

// TestIngestReadsOtherProducers: other teams' schemas, Protobuf or JSON, are read; what
// can't be is a dead letter with its bytes as they were.
func TestIngestReadsOtherProducers(t *testing.T) {
	fake := srfake.New()
	defer fake.Close()
	const theirProto, theirJSON, theirAvro = 71, 72, 73
	fake.SeedSchema("player-value", 1, theirProto, sr.Schema{Type: sr.TypeProtobuf, Schema: `syntax = "proto3"; message View { string event_id = 1; }`})
	fake.SeedSchema("web-value", 1, theirJSON, sr.Schema{Type: sr.TypeJSON, Schema: `{"type":"object"}`})
	fake.SeedSchema("old-value", 1, theirAvro, sr.Schema{Type: sr.TypeAvro, Schema: `"string"`})
	r := open(t, fake.URL(), true)
	if err := r.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	frame := func(id int, index []int, value string) []byte {
		b, err := r.header.AppendEncode(nil, id, index)
		if err != nil {
			t.Fatal(err)
		}
		return append(b, value...)
	}
	message, err := proto.Marshal(&onerecv1.ViewEvent{EventId: "e", UserId: "u", ItemId: "i", EventTimeMs: 1_500_000_000_000, WatchMs: 5})
	if err != nil {
		t.Fatal(err)
	}
	noUser, err := proto.Marshal(&onerecv1.ViewEvent{EventId: "e"})
	if err != nil {
		t.Fatal(err)
	}
	ours := 0
	for id, topic := range r.ids {
		if _, ok := Subjects()[topic]; ok {
			ours = id
		}
	}
	values := map[string][]byte{
		"":                    frame(theirProto, []int{0}, string(message)),
		"json":                frame(theirJSON, nil, `{"eventId":"j","userId":"u","itemId":"i","eventTimeMs":"1500000000000"}`),
		"user_id is empty":    frame(theirProto, []int{3, 1}, string(noUser)),
		"is AVRO":             frame(theirAvro, nil, "x"),
		"schema 99 is not in": frame(99, []int{0}, string(message)),
		"not what belongs on": frame(ours, []int{5}, string(message)),
		"wire format":         {0, 1},
		"cannot parse":        frame(theirProto, []int{0}, "\xff\xff"),
		"message index":       frame(theirProto, nil, ""),
	}
	broker, err := stream.StartEmbedded("")
	if err != nil {
		t.Fatal(err)
	}
	defer broker.Close()
	bare := stream.Cluster{Brokers: broker.Brokers()}
	framed := stream.Cluster{Brokers: broker.Brokers(), Options: []kgo.Opt{kgo.WithHooks(r)}}
	cl, err := bare.Client(kgo.DefaultProduceTopic(schemas.TopicViewsRaw))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if _, err := stream.CreateTopics(t.Context(), cl, 1, 1); err != nil {
		t.Fatal(err)
	}
	for _, value := range values {
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Value: value}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- stream.NewLoop(stream.Config{Cluster: framed, Group: "ingest", Topic: schemas.TopicViewsRaw, InstanceID: "i", Log: slog.New(slog.DiscardHandler)},
			ingest.NewStage(ingest.NewValidator(schemas.DefaultBounds(), nil), nil)).Run(ctx)
	}()
	if err := stream.WaitCaughtUp(t.Context(), cl, "ingest", schemas.TopicViewsRaw); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	var views []string
	if err := framed.ReadTopic(t.Context(), schemas.TopicViews, func(r *kgo.Record) error {
		v := new(onerecv1.View)
		if err := proto.Unmarshal(r.Value, v); err != nil {
			return err
		}
		views = append(views, v.EventId)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(views) != 2 {
		t.Errorf("accepted %q, want e and j", views)
	}
	letters := map[string]string{} // error by value
	if err := bare.ReadTopic(t.Context(), schemas.TopicDeadLetters, func(r *kgo.Record) error {
		for _, h := range r.Headers {
			if h.Key == schemas.HeaderError {
				letters[string(r.Value)] = string(h.Value)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for want, value := range values {
		if got, refused := letters[string(value)]; want != "" && want != "json" && (!refused || !strings.Contains(got, want)) {
			t.Errorf("%q: dead letter says %q, want %q", value, got, want)
		}
	}
	if len(letters) != len(values)-2 {
		t.Errorf("%d dead letters: %q", len(letters), letters)
	}
}

// TestRegistryIsDown: records wait while the registry does not answer, and an end
// meanwhile is no verdict on them.
func TestRegistryIsDown(t *testing.T) {
	fake := srfake.New()
	defer fake.Close()
	var asked atomic.Int32
	fake.SeedSchema("player-value", 1, 7, sr.Schema{Type: sr.TypeProtobuf, Schema: `syntax = "proto3"; message View { string event_id = 1; }`})
	fake.Intercept(func(w http.ResponseWriter, _ *http.Request) bool {
		if asked.Add(1) == 1 {
			http.Error(w, `{"error_code":50002,"message":"down"}`, http.StatusServiceUnavailable)
			return true
		}
		return false
	})
	ctx, cancel := context.WithCancel(t.Context())
	r, err := New(ctx, fake.URL(), true, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	rec := &kgo.Record{Topic: schemas.TopicViewsRaw, Value: []byte("\x00\x00\x00\x00\x07\x00")}
	if r.OnFetchRecordUnbuffered(rec, true); stream.FrameError(rec) != nil || len(rec.Value) != 0 || asked.Load() < 2 {
		t.Errorf("after %d requests: %q, %v", asked.Load(), rec.Value, stream.FrameError(rec))
	}
	cancel()
	rec = &kgo.Record{Topic: schemas.TopicViewsRaw, Value: []byte("\x00\x00\x00\x00\x08\x00")}
	if r.OnFetchRecordUnbuffered(rec, true); !errors.Is(stream.FrameError(rec), stream.ErrInterrupted) {
		t.Errorf("interrupted: %v", stream.FrameError(rec))
	}
}

// TestRegisterErrors: what is wrong at start is said at start.
func TestRegisterErrors(t *testing.T) {
	if _, err := New(t.Context(), "localhost:8081", true, nil); err == nil {
		t.Error("a URL without a scheme was taken")
	}
	fake := srfake.New(srfake.WithAuth("Basic dTpw")) // u:p
	defer fake.Close()
	with := func(user string) string { return strings.Replace(fake.URL(), "http://", "http://"+user, 1) }
	if err := open(t, fake.URL(), true).Register(t.Context()); err == nil {
		t.Error("registered without the password")
	}
	if err := open(t, with("u:p@"), false).Register(t.Context()); err == nil || !strings.Contains(err.Error(), "look up") {
		t.Errorf("looking up what nobody registered: %v", err)
	}
	if err := open(t, with("u:p@"), true).Register(t.Context()); err != nil {
		t.Error(err)
	}
	if err := open(t, with("u:p@"), false).Register(t.Context()); err != nil {
		t.Error(err)
	}
}

// FuzzUnframe: outside bytes give an error or a shorter value, never a panic, and ask
// the registry no more than once for an id.
func FuzzUnframe(f *testing.F) {
	fake := srfake.New()
	defer fake.Close()
	fake.SeedSchema("player-value", 1, 7, sr.Schema{Type: sr.TypeProtobuf, Schema: `syntax = "proto3"; message View { string event_id = 1; }`})
	r, err := New(context.Background(), fake.URL(), true, slog.New(slog.DiscardHandler))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("\x00\x00\x00\x00\x07\x00message"))
	f.Add([]byte("\x00\x00\x00\x00\x07\x04\x02\x00message"))
	f.Add([]byte("\x00\x00\x00\x00\x07\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Add([]byte{0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 5 {
			b[1], b[2], b[3], b[4] = 0, 0, 0, 7+b[4]&1 // few ids, so that the registry is not what is measured
		}
		value, _, err := r.unframe(schemas.TopicViewsRaw, b)
		if err == nil && len(value) >= len(b) {
			t.Fatalf("%q became %q", b, value)
		}
	})
}
