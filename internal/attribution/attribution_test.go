package attribution

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"

	"onerec/snapshots"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// write makes a snapshot of sessions.
func write(t *testing.T, sessions []snapshots.Session) string {
	t.Helper()
	dir := t.TempDir()
	folder := filepath.Join(dir, "sessions", "date=2026-01-01")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := parquet.WriteFile(filepath.Join(folder, "a.parquet"), sessions); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestLines(t *testing.T) {
	view := func(version string, at time.Duration, watch, duration int64, like bool) snapshots.View {
		return snapshots.View{CheckpointVersion: version, Time: start.Add(at), WatchMs: watch, DurationMs: duration, Like: like}
	}
	dir := write(t, []snapshots.Session{
		{UserID: "a", Views: []snapshots.View{view("v1", 0, 1000, 1000, true), view("v2", time.Hour, 5000, 0, false)}},
		{UserID: "b", Views: []snapshots.View{view("v1", time.Hour, 3000, 4000, false), view("", time.Hour, 7000, 0, true)}},
	})
	table, err := Read(t.Context(), dir, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	lines := table.Lines()
	if len(lines) != 3 || lines[0].Version != "" || lines[1].Version != "v1" || lines[2].Version != "v2" {
		t.Fatalf("%+v", lines)
	}
	v1 := lines[1]
	if v1.Users != 2 || v1.Sums != (Sums{Views: 2, WatchMs: 4000, Likes: 1, Complete: 1, Timed: 2}) || v1.WatchAView.Mean != 2 || v1.LikesAView.Mean != 0.5 || v1.WatchAUser != 2 || v1.Completions != 0.5 {
		t.Errorf("%+v", v1)
	}
	if v1.WatchAView.Low != 1 || v1.WatchAView.High != 3 {
		t.Errorf("an interval over two users is from one to the other: %+v", v1.WatchAView)
	}
	later, err := Read(t.Context(), dir, start.Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if lines := later.Lines(); len(lines) != 3 || lines[1].Views != 1 || lines[1].WatchMs != 3000 {
		t.Errorf("from a minute on: %+v", lines)
	}
	if empty, err := Read(t.Context(), write(t, nil), start); err != nil || len(empty.Lines()) != 0 {
		t.Errorf("of nothing: %v", err)
	}
}

// TestJudge: a difference that is there is found, one that is not is not, and few users say nothing.
func TestJudge(t *testing.T) {
	world := func(users int, watch, likes float64, seed uint64) *Table {
		r := rand.New(rand.NewPCG(seed, 2))
		table := &Table{versions: map[string]map[string]*Sums{"new": {}, "old": {}}}
		for i := range users {
			for version, by := range map[string][2]float64{"old": {1, 1}, "new": {1 + watch, 1 + likes}} {
				level := math.Exp(r.NormFloat64() / 2)
				table.versions[version][fmt.Sprint(i)] = &Sums{Views: 10, WatchMs: int64(60_000 * level * by[0]), Likes: int64(10 * level * by[1])}
			}
		}
		return table
	}
	for _, tt := range []struct {
		users        int
		watch, likes float64
		want         string
	}{
		{100, 1, 1, Wait}, {1200, 0.2, 0, Promote}, {1200, 0.2, 0.3, Promote}, {1200, -0.2, 0, Withdraw}, {1200, 0.2, -0.3, Withdraw}, {1200, 0, 0, Wait},
	} {
		right := 0
		for seed := range uint64(4) {
			j := world(tt.users, tt.watch, tt.likes, seed).Judge("new", "old", Rule{MinUsers: 200, MaxDrop: 0.1})
			if j.Decision == tt.want {
				right++
			}
			if !(j.Watch.Low <= j.Watch.Mean && j.Watch.Mean <= j.Watch.High) || j.Why == "" {
				t.Errorf("%+v", j)
			}
		}
		if right < 3 { // of 4; 95 % intervals err, and watch time and likes each have one
			t.Errorf("%d users, watch %+v, likes %+v: %s in %d of 4", tt.users, tt.watch, tt.likes, tt.want, right)
		}
	}
	if j := world(500, 0, 0, 1).Judge("never", "old", DefaultRule()); j.Decision != Wait {
		t.Errorf("a version that nobody had: %+v", j)
	}
}
