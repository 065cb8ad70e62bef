package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/internal/kafkatest"
	"onerec/internal/stream"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

var peerRuns = flag.Int("peer-runs", 5, "how often a benchmark runs onerec and its peer, one after the other")

const (
	peerPartitions = 4
	peerTopic      = "streams.sessions"
	commitInterval = 100 * time.Millisecond // the default of all
)

// system is onerec's sessionizer or its peer, as a process on one core.
type system struct {
	name   string
	group  string
	output string
	start  func(brokers string, gap, lateness time.Duration) *exec.Cmd
	endMs  func(value []byte) (int64, error) // of a closed session
}

// systems builds all.
func systems(b *testing.B) []system {
	b.Helper()
	root := kafkatest.Root(b)
	program := filepath.Join(b.TempDir(), "onerec")
	build := exec.Command("go", "build", "-o", program, "./cmd/onerec")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	kafkatest.Maven(b, "bench/kafkastreams", "package", "dependency:copy-dependencies", "-DoutputDirectory=target/libs")
	target := filepath.Join(root, "bench", "kafkastreams", "target")
	peer := func(name, store string) system {
		return system{
			name, "streams-sessions", peerTopic,
			func(brokers string, gap, lateness time.Duration) *exec.Cmd {
				return exec.Command("taskset", "-c", "1", "java", "-Xmx1g", "-Dstate="+b.TempDir(),
					"-cp", filepath.Join(target, "sessions-1.jar")+":"+filepath.Join(target, "libs", "*"), "bench.Sessions", brokers, schemas.TopicViews, peerTopic,
					strconv.FormatInt(gap.Milliseconds(), 10), strconv.FormatInt(lateness.Milliseconds(), 10), strconv.FormatInt(commitInterval.Milliseconds(), 10), store)
			},
			func(value []byte) (int64, error) { return int64(binary.BigEndian.Uint64(value[8:])), nil },
		}
	}
	return []system{
		{
			"onerec", "sessionize", schemas.TopicSessions,
			func(brokers string, gap, lateness time.Duration) *exec.Cmd {
				cmd := exec.Command("taskset", "-c", "1", program, "sessionize", "--brokers", brokers, "--instance", "bench", "--http", "",
					"--session-gap", gap.String(), "--session-lateness", lateness.String(), "--session-max-views", "100000", "--session-max-age", "720h",
					"--idle-timeout", "24h", "--commit-interval", commitInterval.String(), "--log-level", "error")
				cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
				return cmd
			},
			func(value []byte) (int64, error) {
				s := new(onerecv1.Session)
				err := proto.Unmarshal(value, s)
				return s.EndMs, err
			},
		},
		peer("KafkaStreams", "memory"),
		peer("KafkaStreamsRocksDB", "rocksdb"),
	}
}

// broker starts a real broker on the other core, with the topics.
func broker(b *testing.B, jars string) (stream.Cluster, *kgo.Client) {
	b.Helper()
	c := stream.Cluster{Brokers: []string{kafkatest.Start(b, jars, nil, "taskset", "-c", "0")}}
	cl, err := c.Client()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(cl.Close)
	ctx := context.Background()
	if _, err := stream.CreateTopics(ctx, cl, peerPartitions, 1); err != nil {
		b.Fatal(err)
	}
	if _, err := kadm.NewClient(cl).CreateTopic(ctx, peerPartitions, 1, nil, peerTopic); err != nil {
		b.Fatal(err)
	}
	return c, cl
}

// BenchmarkKafkaStreams is the sessionizer beside Kafka Streams on the same broker
// (Apache Kafka, real), data, partitions and commit interval, exactly once, one core
// each, the broker on the other. Run with -benchtime 1x; medians of -peer-runs
// are printed.
func BenchmarkKafkaStreams(b *testing.B) {
	const n = 1_000_000
	jars := kafkatest.Jars(b)
	all := systems(b)
	keys, values := encodedViews(b, 20_000, n)
	figures := map[string][]float64{}
	sessions := map[string]int64{}
	want := offlineSessions(b, keys, values, 30*time.Minute)
	for range *peerRuns {
		for _, s := range all {
			b.Run(s.name, func(b *testing.B) {
				c, cl := broker(b, jars)
				for i := range values {
					cl.Produce(b.Context(), &kgo.Record{Topic: schemas.TopicViews, Key: keys[i], Value: values[i]}, nil)
				}
				if err := cl.Flush(b.Context()); err != nil {
					b.Fatal(err)
				}
				log := new(bytes.Buffer)
				cmd := s.start(c.Brokers[0], 30*time.Minute, 10*time.Minute)
				cmd.Stdout, cmd.Stderr = log, log
				if err := cmd.Start(); err != nil {
					b.Fatal(err)
				}
				views, seconds := follow(b, cl, s.group, n)
				finish(b, cl, s.group, n, values[n-1])
				memory := peakMiB(b, cmd.Process.Pid)
				if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
					b.Fatal(err)
				}
				_ = cmd.Wait() // the peer's status after a signal is not zero
				if log.Len() > 0 {
					b.Fatalf("%s said:\n%s", s.name, log)
				}
				cpu := (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
				sessions[s.name] = records(b, c, s.output)
				for unit, x := range map[string]float64{"views/s": views / seconds, "CPU-s/Mviews": cpu / n * 1e6, "peak-MiB": memory} {
					figures[s.name+" "+unit] = append(figures[s.name+" "+unit], x)
				}
				b.Logf("%s: %.0f views/s, %.2f CPU-s a million views, %.0f MiB, %d sessions", s.name, views/seconds, cpu/n*1e6, memory, sessions[s.name])
			})
		}
		for name, n := range sessions {
			if n != want {
				fmt.Printf("%s wrote %d sessions, there are %d\n", name, n, want)
			}
		}
		if n, ok := sessions["onerec"]; ok && n != want {
			b.Errorf("onerec wrote %d sessions, there are %d", n, want)
		}
	}
	median := func(key string) float64 {
		x := slices.Sorted(slices.Values(figures[key]))
		if len(x) == 0 {
			return math.NaN() // it did not run
		}
		return x[len(x)/2]
	}
	for _, s := range all {
		for _, unit := range []string{"views/s", "CPU-s/Mviews", "peak-MiB"} {
			ours, theirs := median("onerec "+unit), median(s.name+" "+unit)
			fmt.Printf("median of %d, %s: %s %.4g, onerec's is %.3g times that\n", len(figures[s.name+" "+unit]), unit, s.name, theirs, ours/theirs)
		}
	}
}

// BenchmarkKafkaStreamsLatency is the time from when a session may close (its last
// view, gap and lateness) until a reader of committed records has it, at a steady rate
// of views. Run with -benchtime 1x.
func BenchmarkKafkaStreamsLatency(b *testing.B) {
	const (
		gap, lateness = 2 * time.Second, 500 * time.Millisecond
		rate          = 5000 // views a second
		warm, lasts   = 15 * time.Second, 30 * time.Second
	)
	jars := kafkatest.Jars(b)
	all := systems(b)
	for range *peerRuns {
		for _, s := range all {
			b.Run(s.name, func(b *testing.B) {
				c, cl := broker(b, jars)
				cmd := s.start(c.Brokers[0], gap, lateness)
				if err := cmd.Start(); err != nil {
					b.Fatal(err)
				}
				begin := time.Now()
				go pace(b.Context(), cl, rate, begin.Add(warm+lasts))
				reader, err := c.Client(kgo.ConsumeTopics(s.output), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
				if err != nil {
					b.Fatal(err)
				}
				defer reader.Close()
				var late []float64
				for time.Now().Before(begin.Add(warm + lasts)) {
					ctx, cancel := context.WithDeadline(b.Context(), begin.Add(warm+lasts))
					fetches := reader.PollFetches(ctx)
					cancel()
					now := time.Now()
					if now.Before(begin.Add(warm)) {
						continue
					}
					fetches.EachRecord(func(r *kgo.Record) {
						end, err := s.endMs(r.Value)
						if err != nil {
							b.Fatal(err)
						}
						late = append(late, now.Sub(time.UnixMilli(end).Add(gap+lateness)).Seconds()*1000)
					})
				}
				if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
					b.Fatal(err)
				}
				_ = cmd.Wait() // the peer's status after a signal is not zero
				if len(late) == 0 {
					b.Fatal("no session was closed")
				}
				slices.Sort(late)
				b.Logf("%s: %d sessions, p50 %.0f ms, p99 %.0f ms", s.name, len(late), late[len(late)/2], late[len(late)*99/100])
				b.ReportMetric(late[len(late)/2], "p50-ms")
				b.ReportMetric(late[len(late)*99/100], "p99-ms")
			})
		}
	}
}

// pace sends views of now: sessions of five views half a second apart, of new users.
func pace(ctx context.Context, cl *kgo.Client, rate int, until time.Time) {
	const views, step = 5, 500 * time.Millisecond
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	type visit struct {
		user, left int
		next       time.Time
	}
	var visits []visit
	user := 0
	for now := range tick.C {
		if now.After(until) || ctx.Err() != nil {
			return
		}
		for range rate / 100 / views {
			visits = append(visits, visit{user, views, now})
			user++
		}
		for i := range visits {
			v := &visits[i]
			if v.left == 0 || v.next.After(now) {
				continue
			}
			value, err := proto.Marshal(&onerecv1.View{
				EventId: fmt.Sprint(v.user, "-", v.left), UserId: fmt.Sprint("u", v.user), ItemId: "i", EventTimeMs: now.UnixMilli(), WatchMs: 1000, DurationMs: 2000,
			})
			if err != nil {
				panic(err) // it has no invalid string
			}
			cl.Produce(ctx, &kgo.Record{Topic: schemas.TopicViews, Key: fmt.Append(nil, "u", v.user), Value: value}, nil)
			v.left--
			v.next = now.Add(step)
		}
		visits = slices.DeleteFunc(visits, func(v visit) bool { return v.left == 0 })
	}
}

// follow waits until a group has committed n records and returns how many of them
// after the first quarter, in which the process starts and warms up, took how long.
func follow(b *testing.B, cl *kgo.Client, group string, n int64) (views, seconds float64) {
	b.Helper()
	adm := kadm.NewClient(cl)
	var from int64
	var start time.Time
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		committed, err := adm.FetchOffsets(b.Context(), group)
		if err != nil {
			committed = nil // the group does not exist yet
		}
		var done int64
		committed.Each(func(o kadm.OffsetResponse) {
			if o.Topic == schemas.TopicViews {
				done += o.At
			}
		})
		if start.IsZero() && done >= n/4 {
			from, start = done, time.Now()
		}
		if done >= n {
			return float64(done - from), time.Since(start).Seconds()
		}
		if time.Since(begin) > 10*time.Minute {
			b.Fatalf("%s has processed %d of %d views after ten minutes", group, done, n)
		}
	}
}

// offlineSessions counts the sessions of views that are in order of time.
func offlineSessions(b *testing.B, keys, values [][]byte, gap time.Duration) (n int64) {
	b.Helper()
	last := map[string]int64{}
	for i, value := range values {
		v := new(onerecv1.View)
		if err := proto.Unmarshal(value, v); err != nil {
			b.Fatal(err)
		}
		if at, ok := last[string(keys[i])]; !ok || v.EventTimeMs-at > gap.Milliseconds() {
			n++
		}
		last[string(keys[i])] = v.EventTimeMs
	}
	return n
}

// finish lets event time pass on every partition so that all sessions close, and
// waits until that is committed. The peer emits results once a second at most.
func finish(b *testing.B, cl *kgo.Client, group string, n int64, last []byte) {
	b.Helper()
	v := new(onerecv1.View)
	if err := proto.Unmarshal(last, v); err != nil {
		b.Fatal(err)
	}
	manual, err := kgo.NewClient(kgo.SeedBrokers(cl.OptValue(kgo.SeedBrokers).([]string)...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		b.Fatal(err)
	}
	defer manual.Close()
	const rounds = 3
	for round := range rounds {
		for p := range int32(peerPartitions) {
			value, err := proto.Marshal(&onerecv1.View{
				EventId: fmt.Sprint("last-", round, "-", p), UserId: fmt.Sprint("last-", p), ItemId: "i",
				EventTimeMs: v.EventTimeMs + (2 * time.Hour).Milliseconds() + int64(round), WatchMs: 1,
			})
			if err != nil {
				b.Fatal(err)
			}
			r := &kgo.Record{Topic: schemas.TopicViews, Partition: p, Key: fmt.Append(nil, "last-", p), Value: value}
			if err := manual.ProduceSync(b.Context(), r).FirstErr(); err != nil {
				b.Fatal(err)
			}
		}
		time.Sleep(1500 * time.Millisecond)
	}
	follow(b, cl, group, n+rounds*peerPartitions)
}

// records counts what was committed to a topic.
func records(b *testing.B, c stream.Cluster, topic string) (n int64) {
	b.Helper()
	if err := c.ReadTopic(b.Context(), topic, func(*kgo.Record) error { n++; return nil }); err != nil {
		b.Fatal(err)
	}
	return n
}

// peakMiB returns the greatest resident memory that a process has had.
func peakMiB(b testing.TB, pid int) float64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if kib, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.Atoi(strings.Fields(kib)[0])
			if err != nil {
				b.Fatal(err)
			}
			return float64(n) / 1024
		}
	}
	b.Fatal("the process has no VmHWM")
	return 0
}
