package stream_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"onerec/internal/stream"
	"onerec/schemas"
)

// broker starts an embedded broker with the topics of the contract.
func broker(t *testing.T, partitions int) stream.Cluster {
	t.Helper()
	b, err := stream.StartEmbedded("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	c := stream.Cluster{Brokers: b.Brokers()}
	cl := client(t, c)
	if _, err := stream.CreateTopics(t.Context(), cl, partitions, 1); err != nil {
		t.Fatal(err)
	}
	return c
}

func client(t *testing.T, c stream.Cluster, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := c.Client(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// counter is a stateful stage that numbers the records of each key; its output is
// right only if no record is lost or doubled and no state forgotten.
type counter struct {
	counts map[int32]map[string]int
	fail   func() error // called for each record
}

func newCounter() *counter {
	return &counter{counts: make(map[int32]map[string]int), fail: func() error { return nil }}
}

func (c *counter) Changelog() string { return schemas.TopicSessionState }

func (c *counter) Restore(p int32, newest []*kgo.Record) error {
	c.counts[p] = make(map[string]int)
	for _, r := range newest {
		var n int
		if _, err := fmt.Sscan(string(r.Value), &n); err != nil {
			return err
		}
		c.counts[p][string(r.Key)] = n
	}
	return nil
}

func (c *counter) Drop(p int32)                                 { delete(c.counts, p) }
func (c *counter) Tick(int32, time.Time, *stream.Emitter) error { return nil }

func (c *counter) Process(_ context.Context, p int32, records []*kgo.Record, out *stream.Emitter) error {
	counts := c.counts[p]
	if counts == nil {
		return errors.New("records before the state was restored")
	}
	for _, r := range records {
		if err := c.fail(); err != nil {
			return err
		}
		k := string(r.Key)
		counts[k]++
		n := fmt.Sprint(counts[k])
		out.Emit(&kgo.Record{Topic: schemas.TopicSessions, Partition: p, Key: r.Key, Value: []byte(n)})
		out.Emit(&kgo.Record{Topic: schemas.TopicSessionState, Partition: p, Key: r.Key, Value: []byte(n)})
	}
	return nil
}

// TestExactlyOnce: instances come, crash in the middle of a transaction and go;
// what was committed is each key's 1, 2, 3, ... without a hole or a double.
func TestExactlyOnce(t *testing.T) {
	const partitions, keys, each = 3, 20, 60
	c := broker(t, partitions)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	produce := client(t, c, kgo.DefaultProduceTopic(schemas.TopicViews))
	var crashes atomic.Int32
	crash := errors.New("crash")
	instance := func(ctx context.Context, id string, after int) error {
		stage, n := newCounter(), 0
		stage.fail = func() error {
			if n++; after > 0 && n == after {
				crashes.Add(1)
				return crash
			}
			return nil
		}
		return stream.NewLoop(stream.Config{Cluster: c, Group: "count", Topic: schemas.TopicViews, InstanceID: id, Log: slog.New(slog.DiscardHandler)}, stage).Run(ctx)
	}
	var wg sync.WaitGroup
	running, stop := context.WithCancel(ctx)
	for i := range 2 {
		wg.Go(func() {
			for round := 0; running.Err() == nil; round++ { // the first runs of each instance crash
				after := 0
				if round < 3 {
					after = 37 * (i + 1) * (round + 1)
				}
				if err := instance(running, fmt.Sprint("i", i), after); err != nil && !errors.Is(err, crash) {
					t.Error(err)
					return
				}
			}
		})
	}
	for n := range each {
		for k := range keys {
			produce.Produce(ctx, &kgo.Record{Key: fmt.Append(nil, "k", k)}, nil)
		}
		if n%20 == 0 {
			if err := produce.Flush(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := produce.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if err := stream.WaitCaughtUp(ctx, produce, "count", schemas.TopicViews); err != nil {
		t.Fatal(err)
	}
	stop()
	wg.Wait()
	if crashes.Load() < 2 {
		t.Fatalf("only %d crashes; the test shows nothing", crashes.Load())
	}
	got := make(map[string][]string)
	if err := c.ReadTopic(ctx, schemas.TopicSessions, func(r *kgo.Record) error {
		got[string(r.Key)] = append(got[string(r.Key)], string(r.Value))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(got) != keys {
		t.Fatalf("%d keys, want %d", len(got), keys)
	}
	for k, values := range got {
		for i, v := range values {
			if v != fmt.Sprint(i+1) {
				t.Fatalf("key %s: %v", k, values)
			}
		}
		if len(values) != each {
			t.Fatalf("key %s: %d results, want %d", k, len(values), each)
		}
	}
}

// TestWaitingForAGroupThatHasNotJoined: who waits may be faster than who works.
func TestWaitingForAGroupThatHasNotJoined(t *testing.T) {
	c := broker(t, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cl := client(t, c)
	if err := cl.ProduceSync(ctx, &kgo.Record{Topic: schemas.TopicViews, Key: []byte("k")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	short, stop := context.WithTimeout(ctx, 200*time.Millisecond)
	defer stop()
	if err := stream.WaitCaughtUp(short, cl, "late", schemas.TopicViews); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error %v, want the deadline's", err)
	}
	running, end := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		done <- stream.NewLoop(stream.Config{Cluster: c, Group: "late", Topic: schemas.TopicViews, InstanceID: "i", Log: slog.New(slog.DiscardHandler)}, newCounter()).Run(running)
	}()
	if err := stream.WaitCaughtUp(ctx, cl, "late", schemas.TopicViews); err != nil {
		t.Fatal(err)
	}
	end()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestStaticMembership: an instance that was killed gets its partitions back as
// soon as it returns, long before its session times out.
func TestStaticMembership(t *testing.T) {
	c := broker(t, 2)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // less than the session's 45 s
	defer cancel()
	cl := client(t, c)
	reg := prometheus.NewRegistry()
	metrics := stream.NewMetrics(reg, "static")
	var wire sync.Map // connections of the first process
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if err == nil {
			wire.Store(conn, nil)
		}
		return conn, err
	}
	run := func(ctx context.Context, m *stream.Metrics, opts ...kgo.Opt) chan error {
		done := make(chan error, 1)
		go func() {
			done <- stream.NewLoop(stream.Config{
				Cluster: stream.Cluster{Brokers: c.Brokers, Options: opts}, Group: "static", Topic: schemas.TopicViews, InstanceID: "one", Static: true, Metrics: m, Log: slog.New(slog.DiscardHandler),
			}, newCounter()).Run(ctx)
		}()
		return done
	}
	produce := func() {
		t.Helper()
		for p := range 8 {
			if err := cl.ProduceSync(ctx, &kgo.Record{Topic: schemas.TopicViews, Key: fmt.Append(nil, "k", p)}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		if err := stream.WaitCaughtUp(ctx, cl, "static", schemas.TopicViews); err != nil {
			t.Fatal(err)
		}
	}
	var dead atomic.Bool
	first, stop := context.WithCancel(ctx)
	killed := run(first, nil, kgo.Dialer(func(ctx context.Context, network, address string) (net.Conn, error) {
		if dead.Load() {
			return nil, errors.New("killed")
		}
		return dial(ctx, network, address)
	}), kgo.RetryTimeout(time.Second))
	produce()
	dead.Store(true)
	wire.Range(func(conn, _ any) bool { _ = conn.(net.Conn).Close(); return true })
	stop()
	<-killed

	second, end := context.WithCancel(ctx)
	done := run(second, metrics)
	produce()
	// A commit can be seen before the loop that made it has counted it.
	for {
		n, err := testutil.GatherAndCount(reg, "onerec_stream_lag_records")
		if err == nil && n == 2 {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("lag of %d partitions, %v; want 2", n, err)
		}
		time.Sleep(time.Millisecond)
	}
	end()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestLead: of several processes one leads; when it goes, another takes over, and
// never two at once.
func TestLead(t *testing.T) {
	c := broker(t, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var leading, terms atomic.Int32
	took := make(chan int, 10)
	run := func(ctx context.Context, id int) error {
		return stream.Lead(ctx, c, "leaders", "", func() {}, func(ctx context.Context) error {
			if n := leading.Add(1); n != 1 {
				t.Errorf("%d lead at once", n)
			}
			terms.Add(1)
			took <- id
			<-ctx.Done()
			leading.Add(-1)
			return nil
		})
	}
	stops := make([]context.CancelFunc, 3)
	ended := make(chan error, 3)
	for i := range stops {
		one, stop := context.WithCancel(ctx)
		stops[i] = stop
		go func() { ended <- run(one, i) }()
	}
	seen := make([]int, 0, 3)
	for range stops {
		select {
		case id := <-took:
			if slices.Contains(seen, id) { // a rebalance may give the token back to the same one
				took <- id
				continue
			}
			seen = append(seen, id)
			stops[id]()
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
		case <-ctx.Done():
			t.Fatalf("after %v no one took over", seen)
		}
	}
	// A leader whose work ends by itself ends Lead.
	want := errors.New("done")
	if err := stream.Lead(ctx, c, "leaders", "", func() {}, func(context.Context) error { return want }); !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

// TestReadMerged: the order depends on the records alone.
func TestReadMerged(t *testing.T) {
	c := broker(t, 3)
	cl := client(t, c, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	var want []int64
	for i := range int64(300) {
		want = append(want, i)
		r := &kgo.Record{Topic: schemas.TopicViews, Partition: int32(i*i%7) % 3, Value: fmt.Append(nil, i)}
		if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	spans, err := c.Spans(t.Context(), schemas.TopicViews)
	if err != nil {
		t.Fatal(err)
	}
	decode := func(r *kgo.Record) (n int64, err error) {
		_, err = fmt.Sscan(string(r.Value), &n)
		return n, err
	}
	var got []int64
	key := func(n int64) int64 { return n }
	if err := stream.ReadMerged(t.Context(), c, schemas.TopicViews, spans, decode, key, func(n int64) error { got = append(got, n); return nil }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("read %v", got)
	}
	stop := errors.New("stop")
	if err := stream.ReadMerged(t.Context(), c, schemas.TopicViews, spans, decode, key, func(int64) error { return stop }); !errors.Is(err, stop) {
		t.Fatalf("error %v, want the function's", err)
	}
	bad := errors.New("bad")
	if err := stream.ReadMerged(t.Context(), c, schemas.TopicViews, spans, func(*kgo.Record) (int64, error) { return 0, bad }, key, func(int64) error { return nil }); !errors.Is(err, bad) {
		t.Fatalf("error %v, want the decoder's", err)
	}
}

func TestMissingTopicsAreNamed(t *testing.T) {
	b, err := stream.StartEmbedded("")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	cl := client(t, stream.Cluster{Brokers: b.Brokers()})
	if err := stream.CheckCoPartitioned(t.Context(), cl); !errors.Is(err, stream.ErrMissingTopics) {
		t.Fatalf("without topics: error %v", err)
	}
	if _, err := stream.CreateTopics(t.Context(), cl, 2, 1); err != nil {
		t.Fatal(err)
	}
	if created, err := stream.CreateTopics(t.Context(), cl, 4, 1); err != nil || len(created) != 0 {
		t.Fatalf("created %v again, %v", created, err)
	}
}

// TestBrokersLearnLate: of three brokers two learn of new topics later than the first.
// Whoever creates topics or checks them waits for those.
func TestBrokersLearnLate(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(3))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	const late = 8
	var left atomic.Int32 // answers of the other two without any topic
	cluster.ControlKey(int16(kmsg.Metadata), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		all := req.(*kmsg.MetadataRequest).Topics == nil
		if !all || cluster.CurrentNode() == 0 || left.Add(-1) < 0 {
			return nil, nil, false
		}
		return req.ResponseKind(), nil, true
	})
	cl := client(t, stream.Cluster{Brokers: cluster.ListenAddrs()})
	if err := stream.CheckCoPartitioned(t.Context(), cl); !errors.Is(err, stream.ErrMissingTopics) {
		t.Fatalf("without topics: error %v", err)
	}
	left.Store(late)
	if _, err := stream.CreateTopics(t.Context(), cl, 2, 1); err != nil {
		t.Fatal(err)
	}
	if n := left.Load(); n >= 0 {
		t.Errorf("creating did not wait: %d answers of %d are left", n, late)
	}
	left.Store(late)
	if err := stream.CheckCoPartitioned(t.Context(), cl); err != nil {
		t.Fatal(err)
	}
	if n := left.Load(); n >= 0 {
		t.Errorf("checking did not wait: %d answers of %d are left", n, late)
	}
}

// TestCheckWithoutABroker: a broker that is gone does not hide what the others know.
func TestCheckWithoutABroker(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(2))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	cl := client(t, stream.Cluster{Brokers: cluster.ListenAddrs()})
	if _, err := stream.CreateTopics(t.Context(), cl, 2, 1); err != nil {
		t.Fatal(err)
	}
	cluster.ControlKey(int16(kmsg.Metadata), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if req.(*kmsg.MetadataRequest).Topics == nil && cluster.CurrentNode() == 1 {
			return nil, errors.New("gone"), true // the connection is closed
		}
		return nil, nil, false
	})
	if err := stream.CheckCoPartitioned(t.Context(), cl); err != nil {
		t.Error(err)
	}
}
