package bench

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"onerec/filters"
	"onerec/ingest"
	"onerec/internal/stream"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
	"onerec/sessionizer"
	"onerec/simulator"
)

// encodedViews returns n simulated views of many users as they are on the topics.
func encodedViews(b *testing.B, users, n int) (keys, values [][]byte) {
	b.Helper()
	cfg := simulator.DefaultConfig()
	cfg.Users, cfg.Items, cfg.Days, cfg.Broken, cfg.SessionsADay = users, 20_000, 3650, 0, 6
	cfg.Start = time.Date(2015, 1, 1, 0, 0, 0, 0, time.UTC)
	w, err := simulator.New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	for e := range w.Events() {
		value, err := proto.Marshal(e) // a View has the same fields
		if err != nil {
			b.Fatal(err)
		}
		keys, values = append(keys, []byte(e.UserId)), append(values, value)
		if len(values) == n {
			break
		}
	}
	return keys, values
}

// BenchmarkCore is the sessionizer's pure core on one core: decoding each view,
// adding it, taking the closed sessions. The changelog's encoding is the shell's.
func BenchmarkCore(b *testing.B) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	const n = 300_000
	_, values := encodedViews(b, 5000, n)
	b.ReportAllocs()
	sessions, views := 0, 0
	for b.Loop() {
		core := sessionizer.New(sessionizer.DefaultConfig())
		for i, value := range values {
			v := new(onerecv1.View)
			if err := proto.Unmarshal(value, v); err != nil {
				b.Fatal(err)
			}
			core.Add(v)
			if i%10_000 == 0 {
				sessions += len(core.TakeClosed())
				core.TakeDirty()
			}
		}
		views += n
	}
	b.ReportMetric(float64(views)/b.Elapsed().Seconds(), "views/s")
	b.ReportMetric(float64(views)/float64(max(sessions, 1)), "views/session")
}

// cpu returns the CPU seconds that this process has used.
func cpu(b *testing.B) float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

// BenchmarkPipeline is ingest, sessionize and filter, each exactly once, through
// the embedded broker in one process.
func BenchmarkPipeline(b *testing.B) {
	const n, partitions = 300_000, 4
	keys, values := encodedViews(b, 5000, n)
	var seconds, spent float64
	for b.Loop() {
		b.StopTimer()
		broker, err := stream.StartEmbedded("")
		if err != nil {
			b.Fatal(err)
		}
		c := stream.Cluster{Brokers: broker.Brokers()}
		cl, err := c.Client(kgo.DefaultProduceTopic(schemas.TopicViewsRaw))
		if err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		if _, err := stream.CreateTopics(ctx, cl, partitions, 1); err != nil {
			b.Fatal(err)
		}
		for i := range values {
			cl.Produce(ctx, &kgo.Record{Key: keys[i], Value: values[i]}, nil)
		}
		if err := cl.Flush(ctx); err != nil {
			b.Fatal(err)
		}
		bounds := schemas.DefaultBounds()
		b.StartTimer()
		start, before := time.Now(), cpu(b)
		done := make(chan error, 3)
		for group, s := range map[string]struct {
			topic string
			stage stream.Stage
		}{
			"ingest":     {schemas.TopicViewsRaw, ingest.NewStage(ingest.NewValidator(bounds, nil), nil)},
			"sessionize": {schemas.TopicViews, sessionizer.NewStage(sessionizer.DefaultConfig(), time.Hour, nil)},
			"filter":     {schemas.TopicSessions, filters.NewStage(filters.DefaultRules(), nil)},
		} {
			go func() {
				done <- stream.NewLoop(stream.Config{Cluster: c, Group: group, Topic: s.topic, InstanceID: "b", Log: slog.New(slog.DiscardHandler)}, s.stage).Run(ctx)
			}()
		}
		for _, w := range [][2]string{{"ingest", schemas.TopicViewsRaw}, {"sessionize", schemas.TopicViews}, {"filter", schemas.TopicSessions}} {
			if err := stream.WaitCaughtUp(ctx, cl, w[0], w[1]); err != nil {
				b.Fatal(err)
			}
		}
		seconds += time.Since(start).Seconds()
		spent += cpu(b) - before
		b.StopTimer()
		cancel()
		for range 3 {
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		}
		cl.Close()
		broker.Close()
		b.StartTimer()
	}
	b.ReportMetric(float64(n*b.N)/seconds, "views/s")
	b.ReportMetric(spent/float64(n*b.N)*1e6, "CPU-s/Mviews")
}

// BenchmarkGrowth opens a session for each of more and more users: memory a user
// and speed should stay the same.
func BenchmarkGrowth(b *testing.B) {
	for _, users := range []int{10_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint(users), func(b *testing.B) {
			for b.Loop() {
				bytes, rate := grow(b, users)
				b.ReportMetric(bytes, "B/session")
				b.ReportMetric(rate, "views/s")
			}
		})
	}
}

// grow opens a session of three views for each user and returns the heap that a
// user takes and the speed.
func grow(b *testing.B, users int) (bytesEach, viewsPerSecond float64) {
	heap := func() uint64 {
		runtime.GC()
		runtime.GC() // what a finaliser or a pool held is gone after the second
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	cfg := sessionizer.DefaultConfig()
	cfg.MaxUsers = 0
	before := heap()
	core := sessionizer.New(cfg)
	start := time.Now()
	const each = 3
	for round := range each {
		for u := range users {
			core.Add(&onerecv1.View{
				EventId: fmt.Sprintf("e%d-%d", round, u), UserId: fmt.Sprintf("user-%07d", u), ItemId: fmt.Sprintf("item-%05d", u%20_000),
				EventTimeMs: int64(round)*600_000 + int64(u)*600_000/int64(users), WatchMs: 20_000, DurationMs: 20_000,
			})
		}
		core.TakeDirty()
	}
	elapsed := time.Since(start)
	after := heap()
	if core.OpenUsers() != users || len(core.TakeClosed()) != 0 {
		b.Fatalf("%d users have an open session, want %d", core.OpenUsers(), users)
	}
	return float64(after-before) / float64(users), float64(each*users) / elapsed.Seconds()
}
