package sessionizer

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"google.golang.org/protobuf/proto"

	"onerec/internal/stream"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

var (
	schedules = flag.Int("schedules", 200, "crash schedules that TestCrashSchedules runs")
	firstSeed = flag.Uint64("seed", 1, "seed of the first crash schedule; a failure names its seed")
)

// TestCrashSchedules runs seeded schedules of crashes, rebalances, broker errors
// and restarts over the real loop and a broker in memory; afterwards the committed
// sessions are those of the offline definition, none lost and none doubled.
//
// A crash cuts every connection of an instance at some request, before or after
// the broker got it, and throws its memory away; its transaction stays open and
// its group membership stands until the session's timeout, unless it comes back
// before. What happens follows from the seed, when it happens to the last request
// does not: clients have goroutines of their own. The real clock runs, with short
// timeouts, because a goroutine of the client that waits for a rebalance holds a
// mutex, which testing/synctest can't see through.
//
//	go test ./sessionizer -run CrashSchedules -schedules 2000
func TestCrashSchedules(t *testing.T) {
	n := *schedules
	if testing.Short() {
		n = min(n, 20)
	}
	var sum tally
	seeds := make(chan uint64)
	var wg sync.WaitGroup
	for range min(64, 16*runtime.GOMAXPROCS(0)) { // they mostly wait
		wg.Go(func() {
			for seed := range seeds {
				newSchedule(t, seed, &sum).run()
			}
		})
	}
	for i := range uint64(n) {
		if !t.Failed() {
			seeds <- *firstSeed + i
		}
	}
	close(seeds)
	wg.Wait()
	t.Logf("%d schedules: %d views in %d sessions, %d crashes, %d stops, %d restarts after an error, %d requests refused by the broker",
		n, sum.views.Load(), sum.sessions.Load(), sum.crashes.Load(), sum.stops.Load(), sum.restarts.Load(), sum.brokerErrors.Load())
	if n >= 20 && min(sum.crashes.Load(), sum.stops.Load(), sum.brokerErrors.Load()) < int64(n)/2 {
		t.Error("the schedules do not cover everything")
	}
}

// tally counts what happened over all schedules.
type tally struct{ views, sessions, crashes, stops, restarts, brokerErrors atomic.Int64 }

// wire is the network of one instance; it can be cut.
type wire struct {
	mu    sync.Mutex
	conns []net.Conn
	left  int  // writes until it is cut; 0: never
	after bool // the last write still gets through
	cut   bool
}

var errCut = errors.New("the network is cut")

func (w *wire) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut {
		return nil, errors.Join(errCut, c.Close())
	}
	w.conns = append(w.conns, c)
	return &wireConn{c, w}, nil
}

// sever closes every connection for good.
func (w *wire) sever() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = true
	for _, c := range w.conns {
		_ = c.Close() // it may be closed already
	}
}

func (w *wire) isCut() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cut
}

type wireConn struct {
	net.Conn
	w *wire
}

func (c *wireConn) Write(b []byte) (int, error) {
	c.w.mu.Lock()
	cut, last := c.w.cut, false
	if !cut && c.w.left > 0 {
		c.w.left--
		last = c.w.left == 0
	}
	after := c.w.after
	c.w.mu.Unlock()
	if cut {
		return 0, errCut
	}
	if last && !after {
		c.w.sever()
		return 0, errCut
	}
	n, err := c.Conn.Write(b)
	if last {
		c.w.sever()
	}
	return n, err
}

// schedule is one run.
type schedule struct {
	t       *testing.T
	rng     *rand.Rand
	seed    uint64
	sum     *tally
	cfg     Config
	commit  time.Duration
	session time.Duration // after which the group gives a member up; other timeouts follow from it
	broker  *kfake.Cluster
	cluster stream.Cluster
	running []*instance
	next    int // name of the next instance
	started int
	dead    []string // crashed and not back yet
	zombies []*instance
	log     logBuffer // shown if the schedule fails
}

type instance struct {
	name   string
	client string // its client id: name and how many were started before
	wire   *wire
	stop   context.CancelFunc
	done   chan error
}

func newSchedule(t *testing.T, seed uint64, sum *tally) *schedule {
	s := &schedule{t: t, rng: rand.New(rand.NewPCG(seed, 77)), seed: seed, sum: sum, cfg: smallConfig(), session: time.Second}
	s.commit = time.Duration(s.rng.IntN(3)) * 50 * time.Millisecond
	b, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.GroupMinSessionTimeout(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	s.broker = b
	s.cluster = stream.Cluster{Brokers: b.ListenAddrs()}
	return s
}

// start lets a new instance, or one that crashed before, run until it is stopped
// or cut. One that ends with an error is started again, as an operator's process
// manager would.
func (s *schedule) start(name string) {
	w := new(wire)
	ctx, cancel := context.WithCancel(context.Background())
	s.started++
	i := &instance{name: name, client: fmt.Sprint(name, "-", s.started), wire: w, stop: cancel, done: make(chan error, 1)}
	s.running = append(s.running, i)
	fmt.Fprintf(&s.log, "%s %s starts\n", time.Now().Format(time.TimeOnly), name)
	cluster := stream.Cluster{Brokers: s.cluster.Brokers, Options: []kgo.Opt{
		kgo.Dialer(w.dial), kgo.ClientID(i.client), kgo.SessionTimeout(s.session), kgo.HeartbeatInterval(s.session / 10), kgo.RebalanceTimeout(2 * s.session),
		kgo.RetryTimeout(3 * s.session),
	}}
	txn := s.session
	go func() {
		for {
			stage := NewStage(s.cfg, 1000*time.Hour, nil)
			err := stream.NewLoop(stream.Config{Cluster: cluster, Group: "sessionize", Topic: schemas.TopicViews, InstanceID: name, TxnTimeout: txn, CommitInterval: s.commit, Log: slog.New(slog.NewTextHandler(&s.log, nil)).With("instance", name)}, stage).Run(ctx)
			if ctx.Err() != nil || w.isCut() {
				i.done <- err
				return
			}
			s.sum.restarts.Add(1)
			fmt.Fprintf(&s.log, "%s %s restarts after: %v\n", time.Now().Format(time.TimeOnly), name, err)
			time.Sleep(20 * time.Millisecond)
		}
	}()
}

// logBuffer is a buffer for several goroutines.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// take removes a random running instance from the list.
func (s *schedule) take() *instance {
	at := s.rng.IntN(len(s.running))
	i := s.running[at]
	s.running = slices.Delete(s.running, at, at+1)
	return i
}

// step lets something happen.
func (s *schedule) step() {
	switch s.rng.IntN(7) {
	case 0, 1: // one joins
		if len(s.running) < 5 {
			s.next++
			s.start(fmt.Sprint("i", s.next))
		}
	case 2: // one leaves
		if len(s.running) > 0 {
			i := s.take()
			i.stop()
			<-i.done
			fmt.Fprintf(&s.log, "%s %s stopped\n", time.Now().Format(time.TimeOnly), i.name)
			s.sum.stops.Add(1)
		}
	case 3, 4: // one crashes at some request from now, and comes back, maybe much later
		if len(s.running) > 0 {
			i := s.take()
			i.wire.mu.Lock()
			i.wire.left, i.wire.after = 1+s.rng.IntN(12), s.rng.IntN(2) == 0
			i.wire.mu.Unlock()
			time.Sleep(time.Duration(s.rng.IntN(200)) * time.Millisecond)
			i.wire.sever() // if it was idle
			fmt.Fprintf(&s.log, "%s %s crashed\n", time.Now().Format(time.TimeOnly), i.name)
			i.stop()
			s.zombies = append(s.zombies, i) // it may struggle on, but nobody hears it
			s.sum.crashes.Add(1)
			if s.rng.IntN(2) == 0 {
				s.start(i.name)
			} else {
				s.dead = append(s.dead, i.name)
			}
		}
	case 5: // the broker drops the connection of some request
		skip := s.rng.IntN(20)
		s.broker.Control(func(kmsg.Request) (kmsg.Response, error, bool) {
			skip--
			switch {
			case skip >= 0:
				s.broker.KeepControl()
				return nil, nil, false
			case skip == -1:
				s.sum.brokerErrors.Add(1)
				return nil, errors.New("injected"), true
			default:
				s.broker.DropControl()
				return nil, nil, false
			}
		})
	case 6: // time passes, sometimes more than the session's timeout
		time.Sleep(time.Duration(s.rng.IntN(1200)) * time.Millisecond)
	}
}

// views draws views of a few users, in an order within the lateness, with doubles
// that come soon enough to be recognised as such.
func (s *schedule) views() []*onerecv1.View {
	var out []*onerecv1.View
	clock := int64(1_000_000_000)
	for i := range 60 + s.rng.IntN(120) {
		clock += s.rng.Int64N(20 * minute)
		v := &onerecv1.View{
			EventId: fmt.Sprint("e", i), UserId: fmt.Sprint("u", s.rng.IntN(6)), ItemId: fmt.Sprint("v", s.rng.IntN(9)),
			EventTimeMs: clock - s.rng.Int64N(s.cfg.Lateness.Milliseconds()), WatchMs: int64(i), Like: i%3 == 0,
		}
		out = append(out, v)
		if s.rng.IntN(10) == 0 {
			out = append(out, v)
		}
	}
	return out
}

func (s *schedule) run() {
	t := s.t
	ctx := context.Background()
	// Not idempotent: the broker's injected errors, made before it does anything,
	// would end an idempotent producer for good.
	producer, err := s.cluster.Client(kgo.DefaultProduceTopic(schemas.TopicViews), kgo.DisableIdempotentWrite())
	if err != nil {
		t.Fatal(err)
	}
	partitions := 1 + s.rng.IntN(3)
	if _, err := stream.CreateTopics(ctx, producer, partitions, 1); err != nil {
		t.Fatal(err)
	}
	views := s.views()
	s.next = 1
	s.start("i1")
	for at := 0; at < len(views); {
		for range min(1+s.rng.IntN(20), len(views)-at) {
			value, err := proto.Marshal(views[at])
			if err != nil {
				t.Fatal(err)
			}
			if err := producer.ProduceSync(ctx, &kgo.Record{Key: []byte(views[at].UserId), Value: value}).FirstErr(); err != nil {
				t.Fatal(err)
			}
			at++
		}
		s.step()
	}
	for _, name := range s.dead { // their open transactions would hold readers up for a minute
		s.start(name)
	}
	if len(s.running) == 0 {
		s.start("last")
	}
	manual, err := s.cluster.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.DisableIdempotentWrite())
	if err != nil {
		t.Fatal(err)
	}
	end := strconv.FormatInt(views[len(views)-1].EventTimeMs+10_000*minute, 10)
	for p := range int32(partitions) {
		r := &kgo.Record{Topic: schemas.TopicViews, Partition: p, Headers: []kgo.RecordHeader{{Key: schemas.HeaderWatermark, Value: []byte(end)}}}
		if err := manual.ProduceSync(ctx, r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.wait(producer); err != nil {
		t.Errorf("seed %d: %v; replay with -schedules 1 -seed %d; the log:\n%s", s.seed, err, s.seed, s.log.String())
	}
	for len(s.running) > 0 {
		i := s.take()
		i.stop()
		<-i.done
	}
	for _, i := range s.zombies {
		<-i.done
	}
	s.check(views)
	producer.Close()
	manual.Close()
	s.broker.Close()
}

// wait returns once everything was processed. Now and then it removes the members
// of crashed instances from the group, which a real broker does when their session
// has timed out: kfake forgets about a member whose connection ended between
// joining and synchronising. On a machine that has no time for them, members that are given up after a second
// keep each other from work; then one alone, with patience, does what is left.
func (s *schedule) wait(cl *kgo.Client) (err error) {
	for try := range 40 {
		if try == 8 {
			for len(s.running) > 0 {
				i := s.take()
				i.stop()
				<-i.done
			}
			s.session = 20 * time.Second
			s.start("patient")
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		err = stream.WaitCaughtUp(ctx, cl, "sessionize", schemas.TopicViews)
		if cancel(); err == nil {
			return nil
		}
		ctx = context.Background()
		groups, describeErr := kadm.NewClient(cl).DescribeGroups(ctx, "sessionize")
		if describeErr != nil { // an injected error
			continue
		}
		for _, m := range groups["sessionize"].Members {
			if !slices.ContainsFunc(s.zombies, func(i *instance) bool { return i.client == m.ClientID }) {
				continue
			}
			fmt.Fprintf(&s.log, "%s %s removed from the group\n", time.Now().Format(time.TimeOnly), m.ClientID)
			leave := kmsg.NewPtrLeaveGroupRequest()
			leave.Group = "sessionize"
			leave.MemberID = m.MemberID
			member := kmsg.NewLeaveGroupRequestMember()
			member.MemberID = m.MemberID
			leave.Members = append(leave.Members, member)
			if _, err := leave.RequestWith(ctx, cl); err != nil {
				fmt.Fprintf(&s.log, "%s: %v\n", m.ClientID, err)
			}
		}
	}
	return err
}

// check holds what was committed against the offline definition.
func (s *schedule) check(views []*onerecv1.View) {
	t := s.t
	got := map[string][][]string{}
	if err := s.cluster.ReadTopic(context.Background(), schemas.TopicSessions, func(r *kgo.Record) error {
		session := new(onerecv1.Session)
		if err := proto.Unmarshal(r.Value, session); err != nil {
			return err
		}
		got[session.UserId] = append(got[session.UserId], ids(session))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := offline(views, s.cfg)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("seed %d: committed sessions\n got %v\nwant %v", s.seed, got, want)
	}
	totals, err := Totals(context.Background(), s.cluster)
	if err != nil {
		t.Fatal(err)
	}
	sessions := 0
	for _, u := range want {
		sessions += len(u)
	}
	if int(totals.Accepted+totals.Duplicates+totals.Late) != len(views) || int(totals.Closed) != sessions {
		t.Errorf("seed %d: totals %v, want %d views and %d sessions", s.seed, totals, len(views), sessions)
	}
	s.sum.views.Add(int64(len(views)))
	s.sum.sessions.Add(int64(sessions))
}
