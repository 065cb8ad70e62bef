package ingest

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/internal/stream"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

// TestDeadLettersComeBack: what was refused under a bound too strict is kept as it
// was, and accepted when it is replayed under another.
func TestDeadLettersComeBack(t *testing.T) {
	b, err := stream.StartEmbedded("")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	c := stream.Cluster{Brokers: b.Brokers()}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cl, err := c.Client(kgo.DefaultProduceTopic(schemas.TopicViewsRaw))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if _, err := stream.CreateTopics(ctx, cl, 2, 1); err != nil {
		t.Fatal(err)
	}
	// run lets ingest catch up.
	run := func(bounds schemas.Bounds) {
		t.Helper()
		running, stop := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() {
			done <- stream.NewLoop(stream.Config{Cluster: c, Group: "ingest", Topic: schemas.TopicViewsRaw, InstanceID: "i", Log: slog.New(slog.DiscardHandler)},
				NewStage(NewValidator(bounds, nil), nil)).Run(running)
		}()
		if err := stream.WaitCaughtUp(ctx, cl, "ingest", schemas.TopicViewsRaw); err != nil {
			t.Fatal(err)
		}
		stop()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	for i := range 5 {
		value, err := proto.Marshal(&onerecv1.ViewEvent{EventId: fmt.Sprint("e", i), UserId: "u", ItemId: "i", EventTimeMs: 1_700_000_000_000, WatchMs: int64(i) * 1000})
		if err != nil {
			t.Fatal(err)
		}
		r := &kgo.Record{Key: []byte("u"), Value: value, Headers: []kgo.RecordHeader{{Key: schemas.HeaderProducer, Value: []byte("android")}, {Key: "trace", Value: []byte("t")}}}
		if err := cl.ProduceSync(ctx, r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	if err := cl.ProduceSync(ctx, &kgo.Record{Key: []byte("u"), Value: []byte("\xff")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	strict := schemas.DefaultBounds()
	strict.MaxWatch = 2500 * time.Millisecond
	run(strict)
	var letters []DeadLetter
	count := func(reason string) int {
		letters = nil
		if err := DeadLetters(ctx, c, reason, func(d DeadLetter) error { letters = append(letters, d); return nil }); err != nil {
			t.Fatal(err)
		}
		return len(letters)
	}
	if all, long := count(""), count("bad_watch_time"); all != 3 || long != 2 {
		t.Fatalf("%d dead letters, %d of them too long; want 3 and 2", all, long)
	}
	d := letters[0]
	if d.Producer != "android" || d.FromTopic != schemas.TopicViewsRaw || d.FromOffset == "" || d.Err == "" || d.Time == "" || string(d.Key) != "u" || len(d.Headers) != 2 {
		t.Fatalf("%+v", d)
	}
	if n, err := Replay(ctx, c, letters); n != 2 || err != nil {
		t.Fatalf("replayed %d, %v", n, err)
	}
	run(schemas.DefaultBounds())
	views := map[string]bool{}
	if err := c.ReadTopic(ctx, schemas.TopicViews, func(r *kgo.Record) error {
		v := new(onerecv1.View)
		if err := proto.Unmarshal(r.Value, v); err != nil {
			return err
		}
		views[v.EventId] = true
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(views) != 5 || count("") != 3 {
		t.Fatalf("%d views and %d dead letters after the replay, want 5 and 3", len(views), len(letters))
	}
}

// TestProducersAreBounded: a producer that names itself anew each time fills no
// memory.
func TestProducersAreBounded(t *testing.T) {
	reg := prometheus.NewRegistry()
	s := NewStage(NewValidator(schemas.DefaultBounds(), nil), reg)
	for i := range 3 * maxProducers {
		r := &kgo.Record{Headers: []kgo.RecordHeader{{Key: schemas.HeaderProducer, Value: fmt.Append(nil, "p", i)}}}
		s.rejected.WithLabelValues("no_user", s.producerLabel(r)).Inc()
	}
	if n := testutil.CollectAndCount(s.rejected); n != maxProducers+1 {
		t.Errorf("%d series, want %d", n, maxProducers+1)
	}
	for name, want := range map[string]string{"": "unknown", "p1": "p1", "p299": "other", "a\x00b": "other"} {
		if got := s.producerLabel(&kgo.Record{Headers: []kgo.RecordHeader{{Key: schemas.HeaderProducer, Value: []byte(name)}}}); got != want {
			t.Errorf("producer %q has label %q, want %q", name, got, want)
		}
	}
}
