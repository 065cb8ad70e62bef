package snapshots

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"google.golang.org/protobuf/proto"

	"onerec/internal/buckets"
	"onerec/internal/faultybucket"
	"onerec/internal/stream"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

var (
	schedules = flag.Int("schedules", 5, "crash schedules that TestCrashSchedules runs")
	firstSeed = flag.Uint64("seed", 1, "seed of the first schedule")
)

// TestCrashSchedules runs seeded schedules of services that come, stop, are killed before, within or after any
// change that they make to the bucket, find it full, or hear no answer; of requests that the broker drops; and
// of compactions beside them, which die, too. In the end every session is in the table once, with its views,
// and the folders hold no row twice. What happens follows from the seed, when it happens to the last request
// does not: clients have goroutines of their own.
//
//	go test ./snapshots -run CrashSchedules -schedules 2000
func TestCrashSchedules(t *testing.T) {
	n := *schedules
	var sum tally
	seeds := make(chan uint64)
	var wg sync.WaitGroup
	for range 8 { // they mostly wait
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
	t.Logf("%d schedules: %d sessions and %d dead letters in %d files; %d runs of a service, %d faults of the bucket, of which %d killed, %d requests refused by the broker, %d compactions",
		n, sum.sessions.Load(), sum.letters.Load(), sum.files.Load(), sum.runs.Load(), sum.faults.Load(), sum.kills.Load(), sum.brokerErrors.Load(), sum.merges.Load())
	if n >= 100 && min(sum.kills.Load(), sum.brokerErrors.Load(), sum.merges.Load()) < int64(n)/4 {
		t.Error("the schedules do not cover everything")
	}
}

// tally counts what happened over all schedules.
type tally struct {
	sessions, letters, files, runs, faults, kills, brokerErrors, merges atomic.Int64
}

type schedule struct {
	t       *testing.T
	seed    uint64
	rng     *rand.Rand
	sum     *tally
	broker  *kfake.Cluster
	cluster stream.Cluster
	client  *kgo.Client
	bucket  *faultybucket.Bucket

	sessions, letters int
	log               logBuffer // shown if the schedule fails
}

type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
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

const schedulePartitions = 3

func newSchedule(t *testing.T, seed uint64, sum *tally) *schedule {
	s := &schedule{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 99)), sum: sum, bucket: faultybucket.New()}
	s.bucket.Now = time.Now()
	b, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.GroupMinSessionTimeout(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	s.broker = b
	s.cluster = stream.Cluster{Brokers: b.ListenAddrs(), Options: []kgo.Opt{
		kgo.SessionTimeout(3 * time.Second), kgo.HeartbeatInterval(50 * time.Millisecond), kgo.RebalanceTimeout(5 * time.Second),
		kgo.RetryBackoffFn(func(int) time.Duration { return 10 * time.Millisecond }),
	}}
	if s.client, err = s.cluster.Client(kgo.RecordPartitioner(kgo.ManualPartitioner())); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *schedule) run() {
	defer s.broker.Close()
	defer s.client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if _, err := stream.CreateTopics(ctx, s.client, schedulePartitions, 1); err != nil {
		s.fail(err)
		return
	}
	for range 4 + s.rng.IntN(5) {
		s.produce(ctx)
		s.step(ctx)
	}
	s.produce(ctx)
	for tries := 0; ; tries++ {
		err := s.service(0, true).Run(ctx)
		if err == nil {
			break
		}
		if tries > 20 || ctx.Err() != nil {
			s.fail(fmt.Errorf("the last run: %w", err))
			return
		}
	}
	if err := s.check(ctx); err != nil {
		s.fail(err)
	}
}

func (s *schedule) fail(err error) {
	s.t.Errorf("seed %d: %v; replay with -schedules 1 -seed %d; the log:\n%s", s.seed, err, s.seed, s.log.String())
}

func (s *schedule) note(format string, args ...any) { fmt.Fprintf(&s.log, format+"\n", args...) }

// produce writes a few sessions and dead letters.
func (s *schedule) produce(ctx context.Context) {
	for range s.rng.IntN(60) {
		j := judged(s.sessions)
		j.Session.EndMs += s.rng.Int64N(3) * hourMs
		value, err := proto.Marshal(j)
		if err != nil {
			s.t.Error(err)
		}
		s.client.Produce(ctx, &kgo.Record{Topic: schemas.TopicJudgedSessions, Partition: int32(s.sessions % schedulePartitions), Value: value}, nil)
		s.sessions++
	}
	for range s.rng.IntN(4) {
		s.client.Produce(ctx, &kgo.Record{Topic: schemas.TopicDeadLetters, Partition: int32(s.letters % schedulePartitions), Value: fmt.Append(nil, s.letters)}, nil)
		s.letters++
	}
	if err := s.client.Flush(ctx); err != nil {
		s.t.Error(err)
	}
}

// createAndProduce makes the topics, with a few sessions on partition 1.
func (s *schedule) createAndProduce(ctx context.Context, n int) {
	if _, err := stream.CreateTopics(ctx, s.client, schedulePartitions, 1); err != nil {
		s.t.Fatal(err)
	}
	for i := range n {
		if err := s.client.ProduceSync(ctx, &kgo.Record{Topic: schemas.TopicJudgedSessions, Partition: 1, Value: record(s.t, i).Value}).FirstErr(); err != nil {
			s.t.Fatal(err)
		}
	}
}

// service returns one as a new process is, with its own connection to the bucket.
func (s *schedule) service(fault int, once bool) *Service {
	s.sum.runs.Add(1)
	size := int64(1000 + 2000*(fault%3))
	return &Service{
		Cluster: s.cluster, Store: s.open(), Size: size, Memory: 6 * size, MaxAge: 20 * time.Millisecond, Dead: true, Once: once,
		Log: slog.New(slog.NewTextHandler(&s.log, nil)), OnReady: func() {},
	}
}

func (s *schedule) open() *Store {
	return &Store{&buckets.Bucket{Bucket: s.bucket.Open(), URL: "faulty://"}}
}

// step lets services run for a while, with something that happens to them.
func (s *schedule) step(ctx context.Context) {
	at, outcome := s.rng.IntN(25), faultybucket.Outcome(1+s.rng.IntN(int(faultybucket.Crashed)))
	refuse, merge := s.rng.IntN(3) == 0, s.rng.IntN(3) == 0
	n := 1 + s.rng.IntN(2)
	var run []*Service
	for range n {
		run = append(run, s.service(at, false))
	}
	var stores []*Store
	if merge {
		stores = append(stores, s.open())
	}
	if s.rng.IntN(4) > 0 {
		s.bucket.Fault = func(change int, key string) faultybucket.Outcome {
			if change != at {
				return faultybucket.Works
			}
			what := outcome
			if what == faultybucket.Torn && strings.Contains(key, "/_delta_log/") {
				what = faultybucket.Fails // what is created is there or not, in object stores and folders
			} else if what == faultybucket.TornAway && strings.Contains(key, "/_delta_log/") {
				what = faultybucket.Crashes
			}
			s.sum.faults.Add(1)
			if what == faultybucket.Crashes || what == faultybucket.Crashed || what == faultybucket.TornAway {
				s.sum.kills.Add(1)
			}
			s.note("fault %d at %s", what, key)
			return what
		}
	}
	if refuse {
		skip := s.rng.IntN(40)
		s.broker.Control(func(kmsg.Request) (kmsg.Response, error, bool) {
			switch skip--; {
			case skip >= 0:
				s.broker.KeepControl()
			case skip == -1:
				s.sum.brokerErrors.Add(1)
				return nil, fmt.Errorf("injected"), true
			default:
				s.broker.DropControl()
			}
			return nil, nil, false
		})
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(50+s.rng.IntN(250))*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for _, service := range run {
		wg.Go(func() {
			if err := service.Run(ctx); err != nil {
				s.note("a service ended: %v", err)
			}
		})
	}
	for _, store := range stores {
		wg.Go(func() {
			time.Sleep(30 * time.Millisecond)
			// Nothing is old enough to be deleted: that a file is needed no more needs time to be known.
			done, err := store.Maintain(ctx, TableSessions, Maintenance{Size: 1 << 20, Grace: time.Hour, Now: time.Now()})
			s.sum.merges.Add(int64(done.Into))
			if err != nil {
				s.note("a compaction ended: %v", err)
			}
		})
	}
	wg.Wait()
	s.broker.DropControl()
}

// check holds the tables against what was produced.
func (s *schedule) check(ctx context.Context) error {
	store := s.open()
	seen := make(map[string]int)
	if err := Read(ctx, store, TableSessions, Range{}, func(rows []Session) error {
		for _, r := range rows {
			seen[r.SessionID]++
			if len(r.Views) != 1 || r.Views[0].EventID != "e"+strings.TrimPrefix(r.SessionID, "s") {
				return fmt.Errorf("session %s has views %v", r.SessionID, r.Views)
			}
		}
		return nil
	}); err != nil {
		return err
	}
	for i := range s.sessions {
		if n := seen[fmt.Sprint("s", i)]; n != 1 {
			return fmt.Errorf("session s%d is there %d times", i, n)
		}
	}
	letters := make(map[string]int)
	if err := Read(ctx, store, TableDeadLetters, Range{}, func(rows []DeadLetter) error {
		for _, r := range rows {
			letters[string(r.Value)]++
		}
		return nil
	}); err != nil {
		return err
	}
	if len(seen) != s.sessions || len(letters) != s.letters {
		return fmt.Errorf("%d sessions and %d dead letters, want %d and %d", len(seen), len(letters), s.sessions, s.letters)
	}
	for _, table := range []string{TableSessions, TableDeadLetters} {
		v, err := store.Verify(ctx, table, Range{}, nil)
		if err != nil || len(v.Faults) > 0 {
			return fmt.Errorf("verify %s: %v, %w", table, v.Faults, err)
		}
		s.sum.files.Add(int64(v.Files))
		state, err := store.Table(table).State(ctx)
		if err != nil {
			return err
		}
		for _, key := range s.bucket.Keys() {
			name, ours := strings.CutPrefix(key, table+"/")
			if ours && strings.HasPrefix(name, "date=") && strings.Contains(name, "/p0") && state.Files[name] == nil && state.Removed[name] == nil {
				return fmt.Errorf("the folders hold rows of %s twice", name)
			}
		}
	}
	s.sum.sessions.Add(int64(s.sessions))
	s.sum.letters.Add(int64(s.letters))
	return nil
}

func judged(i int) *onerecv1.JudgedSession {
	s := &onerecv1.Session{
		SessionId: fmt.Sprint("s", i), UserId: fmt.Sprint("u", i%7), StartMs: 1_700_000_000_000 + int64(i), EndMs: 1_700_000_060_000,
		TotalWatchMs: 1234, Likes: 1, ClosedBy: onerecv1.ClosedBy_CLOSED_BY_GAP,
		Views:   []*onerecv1.View{{EventId: fmt.Sprint("e", i), ItemId: "v", EventTimeMs: 1_700_000_000_000, WatchMs: 1234, Like: true, Surface: "feed"}},
		History: []*onerecv1.HistoryItem{{ItemId: "h", EventTimeMs: 1_600_000_000_000}},
	}
	return &onerecv1.JudgedSession{Session: s, Verdict: &onerecv1.Verdict{FailedRules: []string{"min_views"}, RulesVersion: "r"}}
}

// TestStopsBetweenWrites: asked to stop while a file is being written, the service writes it to its end,
// and nobody has to read its rows again.
func TestStopsBetweenWrites(t *testing.T) {
	s := newSchedule(t, 1, new(tally))
	defer s.broker.Close()
	defer s.client.Close()
	s.createAndProduce(t.Context(), 5)
	service := s.service(0, false)
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	s.bucket.Fault = func(_ int, key string) faultybucket.Outcome {
		if strings.HasPrefix(key, TableSessions+"/"+intents) {
			stop()
		}
		return faultybucket.Works
	}
	if err := service.Run(ctx); err != nil {
		t.Fatalf("%v\n%s", err, s.log.String())
	}
	if got := readSessions(t, service.Store); len(got) != 5 {
		t.Errorf("%d sessions were written, want 5", len(got))
	}
}
