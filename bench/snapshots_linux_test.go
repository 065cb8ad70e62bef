package bench

import (
	"bufio"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/schemas"
	"onerec/schemas/onerecv1"

	"onerec/snapshots"
)

// sessionsOf draws records of sessions of a busy hour, in the order of the files: 10 views each, a history of 31 items, of
// 50,000 items of which few are watched by most. In memory they lie in the order in which they came.
func sessionsOf(b *testing.B, n int) []*kgo.Record {
	type judged struct {
		*onerecv1.Session
		*kgo.Record
	}
	r := rand.New(rand.NewPCG(1, 2))
	zipf := rand.NewZipf(r, 1.2, 8, 50_000)
	hour := time.Date(2026, 1, 1, 5, 0, 0, 0, time.UTC).UnixMilli()
	all := make([]judged, n)
	for i := range all {
		at := hour + r.Int64N(3_600_000)
		s := &onerecv1.Session{
			SessionId: fmt.Sprintf("%.32x", sha256.Sum256(fmt.Append(nil, i))), UserId: fmt.Sprintf("u%07d", r.IntN(n/10+1)), StartMs: at,
			ClosedBy: onerecv1.ClosedBy_CLOSED_BY_GAP,
		}
		verdict := &onerecv1.Verdict{Good: i%3 == 0, RulesVersion: "default-1"}
		if !verdict.Good {
			verdict.FailedRules = []string{"min_engagement"}
		}
		for range 1 + r.IntN(19) {
			duration := 5_000 + r.Int64N(60_000)
			v := &onerecv1.View{
				EventId: fmt.Sprintf("e%x", r.Uint64()), ItemId: fmt.Sprintf("i%06d", zipf.Uint64()), EventTimeMs: at, WatchMs: r.Int64N(duration * 6 / 5), DurationMs: duration,
				Like: r.IntN(20) == 0, Surface: "feed", CheckpointVersion: "000007-9f3ac1d2", RecommendationId: fmt.Sprintf("%X", i*100+len(s.Views)/8),
			}
			if v.Like {
				s.Likes++
			}
			s.TotalWatchMs += v.WatchMs
			s.Views = append(s.Views, v)
			s.EndMs = at
			at += v.WatchMs + r.Int64N(2_000)
		}
		for range r.IntN(63) {
			s.History = append(s.History, &onerecv1.HistoryItem{ItemId: fmt.Sprintf("i%06d", zipf.Uint64()), EventTimeMs: s.StartMs - r.Int64N(30*24*3600)*1000})
		}
		value, err := proto.Marshal(&onerecv1.JudgedSession{Session: s, Verdict: verdict})
		if err != nil {
			b.Fatal(err)
		}
		all[i] = judged{s, &kgo.Record{Topic: schemas.TopicJudgedSessions, Partition: int32(i % 8), Offset: int64(i / 8), Value: value}}
	}
	slices.SortFunc(all, func(a, b judged) int {
		return cmp.Or(strings.Compare(a.UserId, b.UserId), cmp.Compare(a.StartMs, b.StartMs), cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Offset, b.Offset))
	})
	out := make([]*kgo.Record, n)
	for i, s := range all {
		out[i] = s.Record
	}
	return out
}

// arrowPeer is the pyarrow process.
type arrowPeer struct {
	b   *testing.B
	in  *bufio.Writer
	out *bufio.Scanner
}

func (p *arrowPeer) ask(format string, args ...any) (seconds float64, answer int64) {
	p.b.Helper()
	fmt.Fprintf(p.in, format+"\n", args...)
	if err := p.in.Flush(); err != nil {
		p.b.Fatal(err)
	}
	if !p.out.Scan() {
		p.b.Fatal("pyarrow has ended")
	}
	if _, err := fmt.Sscan(p.out.Text(), &seconds, &answer); err != nil {
		p.b.Fatal(err)
	}
	return seconds, answer
}

// BenchmarkSnapshotsPeers writes and reads 100,000 sessions, nested views and zstd, on one core, ours and pyarrow by
// turns: ours from the topic's records in memory, pyarrow from an Arrow table in memory, as it writes by itself and with the page
// index, checksums and bloom filters that our files have; read are whole files, and the columns that training needs.
// It prints medians and ratios. ONEREC_PYTHON names a Python with pyarrow.
func BenchmarkSnapshotsPeers(b *testing.B) {
	python := os.Getenv("ONEREC_PYTHON")
	if python == "" {
		python = "python3"
	}
	if out, err := exec.Command(python, "-c", "import pyarrow").CombinedOutput(); err != nil {
		b.Skipf("%s has no pyarrow: %.100s", python, out)
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	cmd := exec.Command("taskset", "-c", "0", python, filepath.Join("snapshots", "peer.py"))
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	p := &arrowPeer{b, bufio.NewWriter(in), bufio.NewScanner(out)}
	defer func() {
		if err := in.Close(); err != nil {
			b.Error(err)
		}
		_ = cmd.Wait()
	}()

	const n, rounds = 100_000, 7
	records := sessionsOf(b, n)
	dir := b.TempDir()
	store, err := snapshots.Open(b.Context(), dir)
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	ours, theirs := filepath.Join(dir, "sessions", "ours.parquet"), filepath.Join(dir, "theirs.parquet")
	if err := os.MkdirAll(filepath.Dir(ours), 0o755); err != nil {
		b.Fatal(err)
	}
	write := func() {
		f, err := os.Create(ours)
		if err != nil {
			b.Fatal(err)
		}
		if err := errors.Join(snapshots.WriteSessions(f, records), f.Close()); err != nil {
			b.Fatal(err)
		}
	}
	read := func() {
		count := 0
		if err := snapshots.Read(b.Context(), store, snapshots.TableSessions, snapshots.Range{}, func(rows []snapshots.Session) error {
			count += len(rows)
			return nil
		}); err != nil || count != n {
			b.Fatal(count, err)
		}
	}
	few := func() {
		count := 0
		if err := snapshots.ReadGood(b.Context(), store, snapshots.Range{}, nil, nil, func(rows []snapshots.GoodSession) error {
			count += len(rows)
			return nil
		}); err != nil || count == 0 {
			b.Fatal(count, err)
		}
	}
	write()
	p.ask("load %s", ours)
	const columns = "session_id user_id start end views.list.element.item_id history.list.element.item_id history.list.element.time good kafka_partition kafka_offset"
	for _, bench := range []struct {
		name   string
		ours   func()
		theirs map[string]string // commands by a word for each
	}{
		{"write", write, map[string]string{"pyarrow": "write " + theirs, "pyarrow-with-indexes": "write+ " + theirs}},
		{"read all", read, map[string]string{"pyarrow": "read " + ours}},
		{"read for training", few, map[string]string{"pyarrow": "read " + ours + " " + columns}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			for b.Loop() {
				var a []float64
				c := make(map[string][]float64)
				for range rounds {
					runtime.GC()
					start := time.Now()
					bench.ours()
					a = append(a, time.Since(start).Seconds())
					for name, command := range bench.theirs {
						seconds, _ := p.ask("%s", command)
						c[name] = append(c[name], seconds)
					}
				}
				slices.Sort(a)
				b.ReportMetric(n/a[rounds/2], "sessions/s")
				for name, seconds := range c {
					slices.Sort(seconds)
					b.ReportMetric(n/seconds[rounds/2], name+"-sessions/s")
					b.ReportMetric(seconds[rounds/2]/a[rounds/2], "times-"+name)
				}
			}
		})
	}
	for name, file := range map[string]string{"ours": ours, "pyarrow": theirs} {
		info, err := os.Stat(file)
		if err != nil {
			b.Fatal(err)
		}
		b.Logf("%s: %.1f MB, %.0f bytes a session", name, float64(info.Size())/1e6, float64(info.Size())/n)
	}
}
