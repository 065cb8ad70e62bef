package app

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"onerec/snapshots"
)

// TestAnalystsQueries runs each query of docs/analysts.md in DuckDB on the snapshots of a finished demo, and holds
// what it says against the same counted in Go.
func TestAnalystsQueries(t *testing.T) {
	dir := os.Getenv("ONEREC_TEST_DEMO")
	if dir == "" {
		t.Skip("ONEREC_TEST_DEMO does not name a folder of a finished demo")
	}
	if out, err := exec.Command("python3", "-c", "import duckdb").CombinedOutput(); err != nil {
		t.Skipf("python3 has no duckdb (pip install duckdb): %.100s", out)
	}
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "analysts.md"))
	if err != nil {
		t.Fatal(err)
	}
	var queries []string
	for _, m := range regexp.MustCompile("(?s)```sql\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		queries = append(queries, m[1])
	}
	if len(queries) < 8 || strings.Count(string(text), "\n## ") != len(queries) {
		t.Fatalf("%d queries", len(queries))
	}
	store, err := snapshots.Open(t.Context(), filepath.Join(dir, "snapshots"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	var statements strings.Builder
	if err := store.WriteSQL(t.Context(), &statements, snapshots.Range{}); err != nil {
		t.Fatal(err)
	}
	dead := 0
	if err := snapshots.Read(t.Context(), store, snapshots.TableDeadLetters, snapshots.Range{}, func(rows []snapshots.DeadLetter) error {
		dead += len(rows)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	queries = append([]string{statements.String()}, queries...)
	if dead == 0 { // there is no such table, and the last question is about it
		queries = queries[:len(queries)-1]
	}
	in, err := json.Marshal(queries)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("python3", "-c", `
import duckdb, json, sys
db = duckdb.connect()
queries = json.load(sys.stdin)
db.execute(queries[0])
print(json.dumps([[list(map(str, row)) for row in db.execute(q).fetchall()] for q in queries[1:]]))`)
	cmd.Stdin, cmd.Stderr = strings.NewReader(string(in)), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("DuckDB: %v", err)
	}
	var answers [][][]string
	if err := json.Unmarshal(out, &answers); err != nil {
		t.Fatal(err)
	}

	sessions, views, again := 0, 0, 0
	byDay, failed, seen := map[string][2]int64{}, map[string]int{}, map[string]bool{} // sessions and likes by day
	long, butForEngagement, good := 0, 0, 0
	if err := snapshots.ReadAll(t.Context(), filepath.Join(dir, "snapshots"), func(s snapshots.Session) error {
		sessions++
		views += len(s.Views)
		day := byDay[s.End.Format("2006-01-02")]
		byDay[s.End.Format("2006-01-02")] = [2]int64{day[0] + 1, day[1] + int64(s.Likes)}
		rules := map[string]bool{}
		for _, rule := range s.FailedRules {
			failed[rule]++
			rules[rule] = true
		}
		if !rules["min_views"] {
			long++
		}
		if len(rules) == 0 || len(rules) == 1 && rules["min_engagement"] {
			butForEngagement++
		}
		if s.Good {
			good++
		}
		for _, v := range s.Views {
			if key := s.UserID + "\x00" + v.ItemID; seen[key] {
				again++
			} else {
				seen[key] = true
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for i, answer := range answers {
		if len(answer) == 0 {
			t.Errorf("no row answers\n%s", queries[i+1])
		}
	}
	if len(answers[0]) != len(byDay) {
		t.Errorf("%d days, want %d", len(answers[0]), len(byDay))
	}
	for _, row := range answers[0] {
		if day := byDay[row[0]]; row[1] != fmt.Sprint(day[0]) || row[4] != fmt.Sprint(day[1]) {
			t.Errorf("%v, want %v sessions and likes", row, day)
		}
	}
	if len(answers[1]) != len(failed) {
		t.Errorf("rules %v, want %v", answers[1], failed)
	}
	for _, row := range answers[1] {
		if row[1] != fmt.Sprint(failed[row[0]]) {
			t.Errorf("rule %v, want %d", row, failed[row[0]])
		}
	}
	if want := []string{fmt.Sprint(views), fmt.Sprint(sessions), fmt.Sprint(long), fmt.Sprint(butForEngagement), fmt.Sprint(good)}; strings.Join(answers[2][0], " ") != strings.Join(want, " ") {
		t.Errorf("funnel %v, want %v", answers[2][0], want)
	}
	if row := answers[4][0]; row[0] != fmt.Sprint(views) || row[1] != fmt.Sprint(again) {
		t.Errorf("watched again: %v, want %d of %d", row, again, views)
	}
}
