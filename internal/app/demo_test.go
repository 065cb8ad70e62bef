package app

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"onerec/internal/stream"
	"onerec/schemas"
	"onerec/snapshots"
)

const realViews = "../../../shared/data/kuairand/views.tsv.gz"

// small returns an app over a world in which everything takes seconds.
func small(t testing.TB) *App {
	t.Helper()
	s := Defaults()
	s.LogLevel, s.Partitions = "warn", 2
	s.Simulate.Users, s.Simulate.Items, s.Simulate.Days = 60, 120, 3
	s.Simulate.Duplicates, s.Simulate.Broken = 0.02, 0.01
	s.Train.ReplayRatio, s.Train.WarmupSteps, s.Train.History, s.Train.HoldoutPercent, s.Train.BatchTokens = 2, 5, 8, 20, 1024
	s.Align.Users, s.Align.Candidates, s.Align.Length, s.Align.Epochs, s.Reward.Epochs = 20, 8, 3, 1, 1
	return New(s, testWriter{t}, nil)
}

// testWriter shows logs with the test that they belong to.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func TestDemo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "demo")
	run := func(dir string) (*App, *Report) {
		a := small(t)
		r, err := a.RunDemo(t.Context(), Demo{Dir: dir, Users: 3}, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		return a, r
	}
	a, r := run(dir)
	v := r.Views
	if v.Accepted == 0 || v.Rejected == 0 || v.Duplicates == 0 || v.Accepted+v.Rejected+v.Duplicates+v.Late != v.Read {
		t.Errorf("views %+v", v)
	}
	if r.Sessions.Closed < r.Sessions.Good || r.Sessions.Good == 0 {
		t.Errorf("sessions %+v", r.Sessions)
	}
	if r.Training.Steps == 0 || r.Training.LastLoss >= r.Training.FirstLoss {
		t.Errorf("training %+v", r.Training)
	}
	if len(r.Alignment) != 1 || r.Alignment[0].Why == "" || r.Alignment[0].Accepted != (len(r.Checkpoints) == 2) {
		t.Errorf("rounds %+v, checkpoints %+v", r.Alignment, r.Checkpoints)
	}
	// Every view that was accepted is in the Parquet files, once.
	events := map[string]bool{}
	views := int64(0)
	sessions := int64(0)
	items := map[string]bool{}
	if err := snapshots.ReadAll(t.Context(), a.SnapshotDir, func(s snapshots.Session) error {
		sessions++
		if s.Good != (len(s.FailedRules) == 0) {
			t.Errorf("session %s is good: %v, failed %v", s.SessionID, s.Good, s.FailedRules)
		}
		for _, v := range s.Views {
			views++
			events[v.EventID] = true
			items[v.ItemID] = true
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if views != v.Accepted || int64(len(events)) != views || sessions != r.Sessions.Closed {
		t.Errorf("%d views (%d ids) in %d sessions in the snapshots; accepted were %d in %d", views, len(events), sessions, v.Accepted, r.Sessions.Closed)
	}
	// Only real items are recommended, and none twice.
	if len(r.Recommendations) != 3 {
		t.Errorf("recommendations %+v", r.Recommendations)
	}
	for _, rec := range r.Recommendations {
		if len(rec.Items) != a.Align.Length || len(slices.Compact(slices.Sorted(slices.Values(rec.Items)))) != len(rec.Items) {
			t.Errorf("user %s: %v", rec.UserID, rec.Items)
		}
		for _, item := range rec.Items {
			if !items[item] {
				t.Errorf("user %s: item %s was never seen", rec.UserID, item)
			}
		}
	}
	// report.json is what was returned.
	data, err := os.ReadFile(filepath.Join(dir, "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := json.MarshalIndent(r, "", "  ")
	if err != nil || !bytes.Equal(bytes.TrimSpace(data), want) {
		t.Errorf("report.json differs from the report: %v", err)
	}

	// Again into the same folder: refused, and nothing is touched.
	if _, err := small(t).RunDemo(t.Context(), Demo{Dir: dir}, io.Discard); !errors.Is(err, ErrUsed) || !strings.Contains(err.Error(), "a finished demo") {
		t.Errorf("a second run in the folder: %v", err)
	}
	if again, err := os.ReadFile(filepath.Join(dir, "report.json")); err != nil || !bytes.Equal(again, data) {
		t.Error("the second run changed the report")
	}

	// The same seed and input elsewhere: the same sessions, codebook and losses.
	_, r2 := run(filepath.Join(t.TempDir(), "again"))
	for _, rep := range []*Report{r, r2} {
		rep.Seconds, rep.PeakRSSBytes, rep.Training.TokensPerSecond, rep.SessionToServing = nil, 0, 0, WaitReport{}
		for i := range rep.Checkpoints {
			rep.Checkpoints[i].SHA256 = "" // the manifest holds the time
		}
		for i := range rep.Recommendations {
			rep.Recommendations[i].Checkpoint = ""
		}
	}
	r.Checkpoints, r2.Checkpoints = versionless(r.Checkpoints), versionless(r2.Checkpoints)
	if !reflect.DeepEqual(r, r2) {
		t.Errorf("the same run again:\n%+v\nbefore:\n%+v", r2, r)
	}
}

// versionless leaves out what holds the time of the run.
func versionless(v []VersionReport) []VersionReport {
	for i := range v {
		v[i].Version, v[i].Parent = "", ""
	}
	return v
}

// TestDemoLeavesNothingOfABadInput: the input is read before the folder is made.
func TestDemoLeavesNothingOfABadInput(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "demo")
	empty := filepath.Join(t.TempDir(), "empty.csv")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := small(t).RunDemo(t.Context(), Demo{Views: empty, Dir: dir}, io.Discard); err == nil || !strings.Contains(err.Error(), empty) {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is there: %v", err)
	}
}

func TestDemoSaysWhyThereIsNothingToLearn(t *testing.T) {
	views := filepath.Join(t.TempDir(), "views.jsonl")
	line := `{"event_id":"e","user_id":"u","item_id":"i","event_time_ms":1700000000000,"watch_ms":10}` + "\n"
	if err := os.WriteFile(views, []byte(line+"no JSON\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := small(t).RunDemo(t.Context(), Demo{Views: views, Dir: t.TempDir()}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "1 sessions were closed and none is good") {
		t.Errorf("error %v", err)
	}
}

// TestFolders: what holds something else, or can't be written to, is refused.
func TestFolders(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "thesis.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := claim(dir); !errors.Is(err, ErrUsed) || !strings.Contains(err.Error(), "something else") {
		t.Errorf("error %v", err)
	}
	if err := claim(filepath.Join(dir, "thesis.txt")); err == nil {
		t.Error("a file was taken for a folder")
	}
	fresh := filepath.Join(dir, "a", "b")
	if err := claim(fresh); err != nil {
		t.Fatal(err)
	}
	if err := claim(fresh); !errors.Is(err, ErrUsed) || !strings.Contains(err.Error(), "did not end") {
		t.Errorf("error %v", err)
	}
}

// streamed runs a file of views through the stages, without training.
func streamed(t *testing.T, views string) (*App, *Report) {
	t.Helper()
	a := small(t)
	broker, err := stream.StartEmbedded("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(broker.Close)
	a.Brokers, a.SnapshotDir = broker.Brokers(), t.TempDir()
	if err := a.createTopics(t.Context()); err != nil {
		t.Fatal(err)
	}
	in, err := a.views(views)
	if err != nil {
		t.Fatal(err)
	}
	r := new(Report)
	b := newBackground(t.Context(), a.Log)
	if err := errors.Join(a.demoStream(b, in, r), b.end()); err != nil {
		t.Fatal(err)
	}
	return a, r
}

// TestRealSessionsEqualOfflineCount runs the real views through the stages and
// counts them independently: sort, leave out doubles, cut at 30 minutes.
func TestRealSessionsEqualOfflineCount(t *testing.T) {
	f, err := os.Open(realViews)
	if err != nil {
		t.Skipf("the real views are not here: %v", err)
	}
	defer f.Close()
	gz, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	type view struct {
		time, watch int64
		like        int
		item        string
	}
	byUser := map[string][]view{}
	seen := map[string]bool{}
	read, accepted := int64(0), int64(0)
	for lines := bufio.NewScanner(gz); lines.Scan(); {
		c := strings.Split(lines.Text(), "\t")
		if c[0] == "user_id" {
			continue
		}
		read++
		if key := c[0] + " " + c[1] + " " + c[4]; !seen[key] {
			seen[key] = true
			accepted++
			at, _ := strconv.ParseInt(c[4], 10, 64)
			watch, _ := strconv.ParseInt(c[10], 10, 64)
			score := map[string]int{"1": 1, "0": -1}[c[14]]
			for _, i := range []int{6, 7, 8} {
				if c[i] == "1" {
					score++
				}
			}
			byUser[c[0]] = append(byUser[c[0]], view{at, watch, score, c[1]})
		}
	}
	closed, good := int64(0), int64(0)
	for _, views := range byUser {
		slices.SortFunc(views, func(a, b view) int { return cmp.Compare(a.time, b.time) })
		n, watch, score := 0, int64(0), 0
		for i, v := range views {
			n, watch, score = n+1, watch+v.watch, score+v.like
			if i+1 == len(views) || views[i+1].time-v.time > 30*60*1000 {
				closed++
				if n >= 5 && watch >= 30_000 && score >= 1 {
					good++
				}
				n, watch, score = 0, 0, 0
			}
		}
	}

	_, r := streamed(t, realViews)
	if r.Views.Read != read || r.Views.Accepted != accepted || r.Views.Duplicates != read-accepted || r.Views.Rejected != 0 || r.Views.Late != 0 {
		t.Errorf("views %+v; %d were read, %d of them different", r.Views, read, accepted)
	}
	if r.Sessions.Closed != closed || r.Sessions.Good != good {
		t.Errorf("%d sessions, %d good; counted %d and %d", r.Sessions.Closed, r.Sessions.Good, closed, good)
	}
}

// TestBadRowsBecomeDeadLetters: rows that can't be read or break a rule are
// counted and kept, byte for byte, and the rest goes its way.
func TestBadRowsBecomeDeadLetters(t *testing.T) {
	const header = "user_id,video_id,time_ms,play_time_ms,duration_ms,is_like,is_hate\n"
	good, bad := "", []string{"1,2", "1,2,noon,5,5,0,0", "1,2,1700000000000,,5,0,0"}
	for i := range 7 {
		good += fmt.Sprintf("7,%d,%d,20000,20000,1,0\n", i, 1_700_000_000_000+60_000*i)
	}
	path := filepath.Join(t.TempDir(), "views.csv")
	broken := "7,9,1700000000000,-5,20000,0,0\n" + ",9,1700000000000,5,20000,0,0\n"
	if err := os.WriteFile(path, []byte(header+good+strings.Join(bad, "\n")+"\n"+broken), 0o600); err != nil {
		t.Fatal(err)
	}
	a, r := streamed(t, path)
	if want := (ViewsReport{Read: 12, Accepted: 7, Rejected: 5}); r.Views != want || r.Sessions.Closed != 1 || r.Sessions.Good != 1 {
		t.Errorf("%+v and %+v, want %+v", r.Views, r.Sessions, want)
	}
	kept := map[string]string{}
	if err := a.cluster().ReadTopic(t.Context(), schemas.TopicDeadLetters, func(rec *kgo.Record) error {
		for _, h := range rec.Headers {
			if h.Key == schemas.HeaderReason {
				kept[string(rec.Value)] = string(h.Value)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, row := range bad {
		if kept[row] != schemas.ReasonUndecodable {
			t.Errorf("row %q: reason %q", row, kept[row])
		}
	}
	if reasons := fmt.Sprint(slices.Sorted(maps.Values(kept))); reasons != "[bad_watch_time no_user undecodable undecodable undecodable]" {
		t.Errorf("reasons %v", reasons)
	}
}

// TestDemoStops: a cancelled demo ends with an error and without a report.
func TestDemoStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	dir := t.TempDir()
	a := small(t)
	a.Train.ReplayRatio = 1000
	w := writerFunc(func(p []byte) (int, error) {
		if strings.Contains(string(p), "of them good") {
			cancel()
		}
		return len(p), nil
	})
	if _, err := a.RunDemo(ctx, Demo{Dir: dir}, w); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "report.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("there is a report: %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
