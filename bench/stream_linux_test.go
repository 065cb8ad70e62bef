package bench

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"onerec/filters"
	"onerec/ingest"
	"onerec/internal/history"
	"onerec/internal/hugepages"
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
	slab := make([]byte, 0, 128*n) // one object, so that the garbage collector is not measured on the input
	for e := range w.Events() {
		at := len(slab)
		slab, err = proto.MarshalOptions{}.MarshalAppend(append(slab, e.UserId...), e) // a View has the same fields
		if err != nil {
			b.Fatal(err)
		}
		keys, values = append(keys, slab[at:at+len(e.UserId)]), append(values, slab[at+len(e.UserId):])
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
	keys, values := encodedViews(b, 5000, n)
	b.ReportAllocs()
	sessions, views := 0, 0
	for b.Loop() {
		core := sessionizer.New(sessionizer.DefaultConfig())
		for i, value := range values {
			if i%sessionizer.LookAhead == 0 {
				core.Preload(keys[i:])
			}
			if _, err := core.Add(value); err != nil {
				b.Fatal(err)
			}
			if i%10_000 == 0 {
				sessions += len(core.TakeClosed())
				core.TakeChanges()
				core.Recycle()
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
	const n = 300_000
	keys, values := encodedViews(b, 5000, n)
	var seconds, spent float64
	for b.Loop() {
		b.StopTimer()
		s, c := pipeline(b, keys, values, stream.Config{CommitInterval: 100 * time.Millisecond})
		seconds += s
		spent += c
		b.StartTimer()
	}
	b.ReportMetric(float64(n*b.N)/seconds, "views/s")
	b.ReportMetric(spent/float64(n*b.N)*1e6, "CPU-s/Mviews")
}

// BenchmarkSettings is BenchmarkPipeline with one setting of the stages changed at a
// time: what the loop's defaults were chosen by. Run with -benchtime 5x.
func BenchmarkSettings(b *testing.B) {
	const n = 300_000
	keys, values := encodedViews(b, 5000, n)
	for _, s := range []struct {
		name   string
		commit time.Duration
		opts   []kgo.Opt
	}{
		{"default", 100 * time.Millisecond, nil},
		{"compression=none", 100 * time.Millisecond, []kgo.Opt{kgo.ProducerBatchCompression(kgo.NoCompression())}},
		{"compression=lz4", 100 * time.Millisecond, []kgo.Opt{kgo.ProducerBatchCompression(kgo.Lz4Compression())}},
		{"compression=zstd", 100 * time.Millisecond, []kgo.Opt{kgo.ProducerBatchCompression(kgo.ZstdCompression())}},
		{"linger=0", 100 * time.Millisecond, []kgo.Opt{kgo.ProducerLinger(0)}},
		{"linger=50ms", 100 * time.Millisecond, []kgo.Opt{kgo.ProducerLinger(50 * time.Millisecond)}},
		{"batch=128KiB", 100 * time.Millisecond, []kgo.Opt{kgo.ProducerBatchMaxBytes(128 << 10)}},
		{"commit=0", 0, nil},
		{"commit=1s", time.Second, nil},
	} {
		b.Run(s.name, func(b *testing.B) {
			var rates, spent []float64
			var sizes batchSizes
			for b.Loop() {
				b.StopTimer()
				seconds, c := pipeline(b, keys, values, stream.Config{CommitInterval: s.commit, Cluster: stream.Cluster{Options: append(s.opts, kgo.WithHooks(&sizes))}})
				rates, spent = append(rates, n/seconds), append(spent, c/n*1e6)
				b.StartTimer()
			}
			slices.Sort(rates)
			slices.Sort(spent)
			b.ReportMetric(rates[len(rates)/2], "views/s")
			b.ReportMetric(spent[len(spent)/2], "CPU-s/Mviews")
			b.ReportMetric(float64(sizes.wire.Load())/float64(n*b.N), "B-written/view")
			b.ReportMetric(float64(sizes.records.Load())/float64(sizes.batches.Load()), "records/batch")
		})
	}
}

// batchSizes adds up what a client has written.
type batchSizes struct{ wire, records, batches atomic.Int64 }

// OnProduceBatchWritten implements [kgo.HookProduceBatchWritten].
func (s *batchSizes) OnProduceBatchWritten(_ kgo.BrokerMetadata, _ string, _ int32, m kgo.ProduceBatchMetrics) {
	s.wire.Add(int64(m.CompressedBytes))
	s.records.Add(int64(m.NumRecords))
	s.batches.Add(1)
}

// pipeline runs the stages over views on a new embedded broker, and returns the
// seconds and the CPU seconds that it took.
func pipeline(b *testing.B, keys, values [][]byte, cfg stream.Config) (seconds, spent float64) {
	b.Helper()
	const partitions = 4
	broker, err := stream.StartEmbedded("")
	if err != nil {
		b.Fatal(err)
	}
	defer broker.Close()
	cl, err := stream.Cluster{Brokers: broker.Brokers()}.Client(kgo.DefaultProduceTopic(schemas.TopicViewsRaw))
	if err != nil {
		b.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if _, err := stream.CreateTopics(ctx, cl, partitions, 1); err != nil {
		b.Fatal(err)
	}
	for i := range values {
		cl.Produce(ctx, &kgo.Record{Key: keys[i], Value: values[i]}, nil)
	}
	if err := cl.Flush(ctx); err != nil {
		b.Fatal(err)
	}
	cfg.Cluster.Brokers, cfg.InstanceID, cfg.Log = broker.Brokers(), "b", slog.New(slog.DiscardHandler)
	start, before := time.Now(), cpu(b)
	done := make(chan error, 3)
	for group, s := range map[string]struct {
		topic string
		stage stream.Stage
	}{
		"ingest":     {schemas.TopicViewsRaw, ingest.NewStage(ingest.NewValidator(schemas.DefaultBounds(), nil), nil)},
		"sessionize": {schemas.TopicViews, sessionizer.NewStage(sessionizer.DefaultConfig(), time.Hour, nil)},
		"filter":     {schemas.TopicSessions, filters.NewStage(filters.DefaultRules(), nil)},
	} {
		cfg := cfg
		cfg.Group, cfg.Topic = group, s.topic
		go func() { done <- stream.NewLoop(cfg, s.stage).Run(ctx) }()
	}
	for _, w := range [][2]string{{"ingest", schemas.TopicViewsRaw}, {"sessionize", schemas.TopicViews}, {"filter", schemas.TopicSessions}} {
		if err := stream.WaitCaughtUp(ctx, cl, w[0], w[1]); err != nil {
			b.Fatal(err)
		}
	}
	seconds, spent = time.Since(start).Seconds(), cpu(b)-before
	cancel()
	for range 3 {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	return seconds, spent
}

// BenchmarkGrowth keeps more and more sessions open: the memory of each and the
// speed should stay the same, as far as the machine's memory does, whose latency over as
// many bytes is printed beside. Views come in waves ten minutes of event time apart;
// a user watches ten videos in a row and pauses for an hour, so that sessions end
// and begin all the time; who comes next is far away in memory. Each user has a full
// history from the start, restored as after a restart, and two whole sessions go by before
// the clock starts. Run with -benchtime 1x.
func BenchmarkGrowth(b *testing.B) {
	for _, users := range []int{10_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint(users), func(b *testing.B) {
			for b.Loop() {
				grow(b, users)
			}
		})
	}
}

func grow(b *testing.B, users int) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	const (
		wave     = 600_000 // ms
		cycle    = 16      // waves
		watching = 10      // waves of a cycle in which a user watches
		warm     = 2       // cycles until all is as it will stay
		measured = 3_000_000
		step     = 7_654_321 // prime, and no user count is a multiple of it
	)
	heap := func() float64 {
		runtime.GC()
		runtime.GC() // what a finaliser or a pool held is gone after the second
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	ids, items := make([][]byte, users), make([]string, 20_000)
	for u := range ids {
		ids[u] = fmt.Appendf(nil, "user-%07d", u)
	}
	for i := range items {
		items[i] = fmt.Sprintf("item-%05d", i)
	}
	before := heap()
	cfg := sessionizer.DefaultConfig()
	cfg.MaxUsers = 0
	core := sessionizer.New(cfg)
	b.ReportMetric(float64(users)/restoreAll(b, core, ids, cfg.History.MaxItems).Seconds(), "restored-users/s")
	values := make([][]byte, 0, 10_000)
	var next [][]byte // user_ids of values
	view := new(onerecv1.View)
	var eventID [32]byte
	var slab []byte
	var elapsed time.Duration
	views, sessions, in, out := 0, 0, 0, 0
	flush := func() {
		start := time.Now()
		for i, value := range values {
			if i%sessionizer.LookAhead == 0 {
				core.Preload(next[i:])
			}
			if _, err := core.Add(value); err != nil {
				b.Fatal(err)
			}
		}
		closed, changes := core.TakeClosed(), core.TakeChanges()
		elapsed += time.Since(start)
		hugepages.Heap() // as the stage does with every transaction; asking takes long only while the heap grows
		defer core.Recycle()
		sessions += len(closed)
		for _, r := range changes {
			out += len(r.Key) + len(r.Value)
		}
		in += len(slab)
		views += len(values)
		values, next, slab = values[:0], next[:0], slab[:0]
	}
	for w := 0; views < warm*users*watching+measured; w++ {
		if w == warm*cycle {
			flush()
			elapsed, sessions, views = 0, 0, warm*users*watching
		}
		for i := range users {
			u := i * step % users
			if (w+u)%cycle >= watching {
				continue
			}
			view.EventId = string(strconv.AppendInt(strconv.AppendInt(append(eventID[:0], "event-"...), int64(w), 10), int64(1_000_000+u), 10))
			view.UserId, view.ItemId = string(ids[u]), items[(u+w)%len(items)]
			view.EventTimeMs = 1_700_000_000_000 + int64(w)*wave + int64(i)*wave/int64(users)
			view.WatchMs, view.DurationMs = 20_000, int64(20_000*(1+(u+w)%2))
			n := len(slab)
			var err error
			if slab, err = (proto.MarshalOptions{}).MarshalAppend(slab, view); err != nil {
				b.Fatal(err)
			}
			values = append(values, slab[n:])
			next = append(next, ids[u])
			if len(values) == cap(values) {
				flush()
			}
		}
	}
	flush()
	slab, values, next = nil, nil, nil
	if core.OpenUsers() != users || sessions == 0 {
		b.Fatalf("%d users are in memory and %d sessions closed, want %d users", core.OpenUsers(), sessions, users)
	}
	open := heap()
	b.ReportMetric((open-before)/float64(users), "B/user")
	b.ReportMetric(randomRead(int(open-before)), "ns/random-read")
	b.ReportMetric(float64(views-warm*users*watching)/elapsed.Seconds(), "views/s")
	b.ReportMetric(float64(out)/float64(in), "changelog-B/B")
	core.Advance(core.SavePartition().WatermarkMs + 2*time.Hour.Milliseconds())
	if n := len(core.TakeClosed()); n == 0 {
		b.Fatal("no session was open")
	}
	core.TakeChanges()
	core.Recycle()
	b.ReportMetric((heap()-before)/float64(users), "B/user-without-session")
	runtime.KeepAlive(core)
	runtime.KeepAlive(ids)
	runtime.KeepAlive(items)
}

// randomRead returns the ns that a read takes which depends on the one before, in n
// bytes of memory: what a look at a user who is in no cache costs on this machine,
// whatever the program.
func randomRead(n int) float64 {
	const reads = 2_000_000
	const page = 4096
	memory := make([]byte, n)
	for at := 0; at < n; at += page {
		memory[at] = 1
	}
	start, x := time.Now(), uint64(1)
	for range reads {
		x = (x + uint64(memory[(x>>20)%uint64(n)])) * 6364136223846793005
	}
	runtime.KeepAlive(x)
	return float64(time.Since(start).Nanoseconds()) / reads
}

// restoreAll lets a core come back with users who have full histories.
func restoreAll(b *testing.B, core *sessionizer.Core, ids [][]byte, each int) time.Duration {
	changelog := make([]sessionizer.Keyed, len(ids))
	var items history.Items
	for i := range each {
		items = items.Append(fmt.Appendf(nil, "item-%05d", i), 1_699_000_000_000+int64(i)*60_000)
	}
	for u, id := range ids {
		changelog[u] = sessionizer.Keyed{Key: id, Value: items}
	}
	start := time.Now()
	if err := core.Restore(changelog); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}
