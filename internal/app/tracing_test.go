package app

import (
	"compress/gzip"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"onerec/internal/stream"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

// spans collects what is sent to it by OTLP.
type spans struct {
	mu    sync.Mutex
	names map[string][]string // by trace id
	text  strings.Builder     // everything
}

func (s *spans) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		body = z
	}
	data, err := io.ReadAll(body)
	req := new(collector.ExportTraceServiceRequest)
	if err = errors.Join(err, proto.Unmarshal(data, req)); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text.WriteString(req.String())
	for _, rs := range req.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			for _, span := range ss.Spans {
				id := hex.EncodeToString(span.TraceId)
				s.names[id] = append(s.names[id], span.Name)
			}
		}
	}
}

// TestTraces: the trace that came with a view goes on through its session to the verdict, in the records' headers
// and in what is sent to the collector; other views begin none; and no user is named in any span.
func TestTraces(t *testing.T) {
	got := &spans{names: make(map[string][]string)}
	srv := httptest.NewServer(got)
	defer srv.Close()
	a := small(t)
	broker, err := stream.StartEmbedded("")
	if err != nil {
		t.Fatal(err)
	}
	defer broker.Close()
	a.Brokers, a.TracesEndpoint, a.TracesShare = broker.Brokers(), srv.URL, 0
	if err := a.createTopics(t.Context()); err != nil {
		t.Fatal(err)
	}
	cl, err := a.cluster().Client()
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	const traceID = "0af7651916cd43dd8448eb211c80319c"
	for i, user := range []string{"secret-user-one", "secret-user-two"} {
		for j := range 3 {
			value, err := proto.Marshal(&onerecv1.ViewEvent{EventId: fmt.Sprint(i, j), UserId: user, ItemId: "v", EventTimeMs: int64(1_700_000_000_000 + 1000*j), WatchMs: 1000})
			if err != nil {
				t.Fatal(err)
			}
			r := &kgo.Record{Topic: schemas.TopicViewsRaw, Key: []byte(user), Value: value}
			if i == 0 && j == 1 {
				r.Headers = []kgo.RecordHeader{{Key: "traceparent", Value: []byte("00-" + traceID + "-b7ad6b7169203331-01")}}
			}
			if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range []service{a.ingest, a.sessionize, a.filter} {
		g.Go(func() error { return s(ctx, host{prometheus.NewRegistry(), func() {}}) })
	}
	if err := a.finish(ctx, 1_700_000_010_000); err != nil {
		t.Fatal(err)
	}
	for _, w := range [][2]string{{groupSessionize, schemas.TopicViews}, {groupFilter, schemas.TopicSessions}} {
		if err := stream.WaitCaughtUp(ctx, cl, w[0], w[1]); err != nil {
			t.Fatal(err)
		}
	}
	traced := make(map[string]string)
	if err := a.cluster().ReadTopic(ctx, schemas.TopicJudgedSessions, func(r *kgo.Record) error {
		for _, h := range r.Headers {
			if h.Key == "traceparent" && strings.HasSuffix(string(h.Value), "-01") {
				traced[string(r.Key)] = strings.Split(string(h.Value), "-")[1]
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(traced) != 1 || traced["secret-user-one"] != traceID {
		t.Errorf("traced are %v", traced)
	}
	cancel()
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	got.mu.Lock()
	defer got.mu.Unlock()
	for _, want := range []string{"views.raw receive", "views publish", "views receive", "sessions publish", "sessions receive", "sessions.judged publish"} {
		if !slices.Contains(got.names[traceID], want) {
			t.Errorf("span %q is missing among %v", want, got.names[traceID])
		}
	}
	if len(got.names) != 1 {
		t.Errorf("traces %v", got.names)
	}
	if text := got.text.String(); strings.Contains(text, "secret-user") || !strings.Contains(text, "onerec-sessionize") {
		t.Errorf("spans name a user, or no service: %s", text)
	}

	a.TracesEndpoint = "collector:4318"
	if err := a.ingest(t.Context(), host{prometheus.NewRegistry(), func() {}}); err == nil || !strings.Contains(err.Error(), "want a URL") {
		t.Errorf("an endpoint that is no URL: %v", err)
	}
}
