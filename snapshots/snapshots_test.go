package snapshots

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/internal/stream"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

func judged(i int) *onerecv1.JudgedSession {
	s := &onerecv1.Session{
		SessionId: fmt.Sprint("s", i), UserId: fmt.Sprint("u", i%7), StartMs: 1_700_000_000_000 + int64(i), EndMs: 1_700_000_060_000,
		TotalWatchMs: 1234, Likes: 1, ClosedBy: onerecv1.ClosedBy_CLOSED_BY_GAP,
		Views:   []*onerecv1.View{{EventId: fmt.Sprint("e", i), ItemId: "v", EventTimeMs: 1_700_000_000_000, WatchMs: 1234, Like: true, Surface: "feed"}},
		History: []*onerecv1.HistoryItem{{ItemId: "h", EventTimeMs: 1_600_000_000_000}},
	}
	return &onerecv1.JudgedSession{Session: s, Verdict: &onerecv1.Verdict{FailedRules: []string{"min_views"}, RulesVersion: "r"}}
}

func TestRowsHoldEverything(t *testing.T) {
	name := filepath.Join(t.TempDir(), "sessions", "a.parquet")
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(name, []Session{row(judged(1)), row(judged(2))}); err != nil {
		t.Fatal(err)
	}
	var got []Session
	if err := ReadAll(filepath.Dir(filepath.Dir(name)), func(s Session) error { got = append(got, s); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || fmt.Sprintf("%+v", got[1]) != fmt.Sprintf("%+v", row(judged(2))) || got[0].ClosedBy != "gap" || !got[0].Views[0].Like || got[0].History[0].ItemID != "h" {
		t.Fatalf("read back %+v", got)
	}
}

func TestDamagedFilesAreNamed(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "sessions", "a.parquet")
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(name, []Session{row(judged(1))}); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, data := range [][]byte{nil, []byte("PAR1"), whole[:len(whole)/2], whole[len(whole)/2:]} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := ReadAll(dir, func(Session) error { return nil }); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%d bytes: error %v", len(data), err)
		}
	}
}

// TestExactlyOnce: crashes before a file appears, after it has appeared, and
// restarts in between; every session is in the files once.
func TestExactlyOnce(t *testing.T) {
	b, err := stream.StartEmbedded("")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	c := stream.Cluster{Brokers: b.Brokers()}
	cl, err := c.Client(kgo.DefaultProduceTopic(schemas.TopicJudgedSessions))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := stream.CreateTopics(ctx, cl, 3, 1); err != nil {
		t.Fatal(err)
	}
	const sessions = 500
	produced := 0
	produce := func(n int) {
		for range min(n, sessions-produced) {
			value, err := proto.Marshal(judged(produced))
			if err != nil {
				t.Fatal(err)
			}
			cl.Produce(ctx, &kgo.Record{Key: fmt.Append(nil, "u", produced%7), Value: value}, nil)
			produced++
		}
		if err := cl.Flush(ctx); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	crash := errors.New("crash")
	rng := rand.New(rand.NewPCG(1, 2))
	crashes := 0
	for run := 0; ; run++ {
		produce(60)
		s := &Service{Cluster: c, Dir: dir, MaxRows: 20, MaxAge: time.Hour, Once: true, Log: slog.New(slog.DiscardHandler), OnReady: func() {}}
		left, after := 1+rng.IntN(4), rng.IntN(2) == 0
		s.write = func(name string, rows []Session) error {
			if left--; left > 0 || run > 15 {
				return writeFile(name, rows)
			}
			if after {
				if err := writeFile(name, rows); err != nil {
					return err
				}
			}
			left = 1 // from now on the process is dead: nothing else gets written
			after = false
			return crash
		}
		err := s.Run(ctx)
		if err == nil && produced == sessions {
			break
		}
		if err != nil && !errors.Is(err, crash) {
			t.Fatal(err)
		}
		if err != nil {
			crashes++
		}
	}
	if crashes < 5 {
		t.Fatalf("only %d crashes; the test shows nothing", crashes)
	}
	seen := map[string]int{}
	if err := ReadAll(dir, func(s Session) error { seen[s.SessionID]++; return nil }); err != nil {
		t.Fatal(err)
	}
	for i := range sessions {
		if n := seen[fmt.Sprint("s", i)]; n != 1 {
			t.Errorf("session s%d is there %d times", i, n)
		}
	}
	if len(seen) != sessions {
		t.Errorf("%d sessions, want %d", len(seen), sessions)
	}
}

// TestLayout: within a file sessions are in the order of users and starts, and bloom filters say who and what
// is not in it.
func TestLayout(t *testing.T) {
	name := filepath.Join(t.TempDir(), "a.parquet")
	var rows []Session
	for i := range 300 {
		rows = append(rows, Session{
			SessionID: fmt.Sprint(i), UserID: fmt.Sprint("u", i*7%50), Start: ms(int64(i * 31 % 1000)), End: ms(2000),
			Views: []View{{EventID: fmt.Sprint("e", i), ItemID: fmt.Sprint("i", i%40), Time: ms(1)}},
		})
	}
	if err := writeFile(name, rows); err != nil {
		t.Fatal(err)
	}
	var got []Session
	if err := readFile(name, func(s Session) error { got = append(got, s); return nil }); err != nil || len(got) != 300 {
		t.Fatalf("%d sessions, %v", len(got), err)
	}
	if !slices.IsSortedFunc(got, func(a, b Session) int {
		return cmp.Or(cmp.Compare(a.UserID, b.UserID), a.Start.Compare(b.Start))
	}) {
		t.Error("not in order")
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	p, err := parquet.OpenFile(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	for column, values := range map[string][2]string{"user_id": {"u7", "u99"}, "views.list.element.item_id": {"i39", "i99"}} {
		leaf, ok := p.Schema().Lookup(strings.Split(column, ".")...)
		if !ok {
			t.Fatalf("no column %s", column)
		}
		filter := p.RowGroups()[0].ColumnChunks()[leaf.ColumnIndex].BloomFilter()
		if filter == nil {
			t.Fatalf("no bloom filter of %s", column)
		}
		for i, want := range []bool{true, false} {
			if has, err := filter.Check(parquet.ValueOf(values[i])); err != nil || has != want {
				t.Errorf("%s of %s: %v, %v", values[i], column, has, err)
			}
		}
	}
	if sorting := p.RowGroups()[0].SortingColumns(); len(sorting) != 2 || sorting[0].Path()[0] != "user_id" {
		t.Errorf("sorting columns %v", sorting)
	}
}

// TestAbandoned: what a killed process was writing goes after an hour, what one is writing stays.
func TestAbandoned(t *testing.T) {
	s := &Service{Dir: t.TempDir(), resumed: make(map[int32]int64)}
	dir := filepath.Join(s.Dir, "sessions", "partition=0000")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, age := range map[string]time.Duration{".tmp-old": 2 * time.Hour, ".tmp-young": time.Minute, fmt.Sprintf("%020d-%020d.parquet", 0, 7): 9 * time.Hour} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chtimes(path, time.Time{}, time.Now().Add(-age))); err != nil {
			t.Fatal(err)
		}
	}
	at, err := s.resume(t.Context(), map[string]map[int32]kgo.Offset{schemas.TopicJudgedSessions: {0: {}}})
	if err != nil || s.resumed[0] != 7 || len(at) != 1 {
		t.Fatalf("%v, %v, %v", at, s.resumed, err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 || left[0].Name() != ".tmp-young" {
		t.Errorf("left %v, %v", left, err)
	}
}
