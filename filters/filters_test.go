package filters

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"pgregory.net/rapid"

	"onerec/schemas/onerecv1"
)

func session(views int, watch time.Duration, likes, dislikes int32) *onerecv1.Session {
	s := &onerecv1.Session{TotalWatchMs: watch.Milliseconds(), Likes: likes, Dislikes: dislikes}
	for range views {
		s.Views = append(s.Views, &onerecv1.View{DurationMs: 10_000, WatchMs: watch.Milliseconds() / int64(views)})
	}
	return s
}

func TestDefaultRulesFollowThePaper(t *testing.T) {
	for _, tt := range []struct {
		name string
		s    *onerecv1.Session
		want []string
	}{
		{"good", session(5, 30*time.Second, 1, 0), nil},
		{"four views", session(4, 30*time.Second, 1, 0), []string{RuleViews}},
		{"29 s", session(5, 29*time.Second, 1, 0), []string{RuleWatch}},
		{"no engagement", session(5, 30*time.Second, 0, 0), []string{RuleEngagement}},
		{"as many dislikes as likes", session(5, 30*time.Second, 1, 1), []string{RuleEngagement}},
		{"everything wrong", session(1, time.Second, 0, 0), []string{RuleViews, RuleWatch, RuleEngagement}},
	} {
		v := DefaultRules().Judge(tt.s)
		if !slices.Equal(v.FailedRules, tt.want) || v.Good != (len(tt.want) == 0) || v.RulesVersion == "" {
			t.Errorf("%s: %v, want failed %v", tt.name, v, tt.want)
		}
	}
}

func TestWatchRatio(t *testing.T) {
	r := RuleSet{Version: "x", MinWatchRatio: 0.5}
	s := &onerecv1.Session{Views: []*onerecv1.View{{WatchMs: 90_000, DurationMs: 10_000}, {WatchMs: 0, DurationMs: 10_000}, {WatchMs: 5}}}
	if !r.Judge(s).Good {
		t.Error("a ratio of exactly one half should pass; a loop counts once, an unknown duration not at all")
	}
	s.Views[0].WatchMs = 9_000
	if r.Judge(s).Good {
		t.Error("0.45 passed")
	}
	if !r.Judge(&onerecv1.Session{Views: []*onerecv1.View{{WatchMs: 5}}}).Good {
		t.Error("without a known duration nothing speaks against the session")
	}
}

// TestMoreNeverHurts: a better session passes every rule that a worse one passes.
func TestMoreNeverHurts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rules := RuleSet{
			Version: "r", MinViews: rapid.IntRange(0, 9).Draw(t, "views"), MinWatch: time.Duration(rapid.IntRange(0, 60).Draw(t, "watch")) * time.Second,
			MinEngagement: float64(rapid.IntRange(0, 3).Draw(t, "engagement")), Weights: DefaultRules().Weights,
		}
		n, w, l := rapid.IntRange(1, 9).Draw(t, "n"), rapid.IntRange(0, 60).Draw(t, "w"), rapid.Int32Range(0, 3).Draw(t, "l")
		worse := rules.Judge(session(n, time.Duration(w)*time.Second, l, 0))
		better := rules.Judge(session(n+1, time.Duration(w+5)*time.Second, l+1, 0))
		for _, failed := range better.FailedRules {
			if !slices.Contains(worse.FailedRules, failed) {
				t.Fatalf("the better session fails %s, the worse one does not", failed)
			}
		}
	})
}

func TestParseRules(t *testing.T) {
	r, err := ParseRules([]byte("version: v2\nmin_views: 3\nmin_watch: 1m\nmin_watch_ratio: 0.2\nmin_engagement: 2\nweights: {like: 1, share: 3}\n"))
	if err != nil || r.Version != "v2" || r.MinViews != 3 || r.MinWatch != time.Minute || r.Weights.Share != 3 {
		t.Fatalf("%+v, %v", r, err)
	}
	for text, want := range map[string]string{
		"":                                     "empty",
		"min_views: 3\n":                       "version",
		"version: a\nmin_view: 3\n":            "min_view",
		"version: a\nmin_views: -1\n":          "min_views",
		"version: a\nmin_watch_ratio: 1.5\n":   "min_watch_ratio",
		"version: a\nmin_watch: soon\n":        "line 2",
		"version: a\nweights: {likes: 1}\n":    "likes",
		"version: a\nmin_watch_ratio: .nan\n":  "min_watch_ratio",
		"version: a\nweights: {like: .inf}\n":  "weights",
		"version: a\nmin_engagement: .nan\n":   "min_engagement",
		"version: a\n---\nversion: b\n":        "one document",
		"version: a\nmin_views: 1\nfoo: [1, 2": "line",
	} {
		if _, err := ParseRules([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one that says %q", text, err, want)
		}
	}
}

// TestFollow: a changed file is taken over, a broken or missing one is not, and
// the next good one is again.
func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rules.yaml")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("version: a\n")
	first, err := ParseRules([]byte("version: a\n"))
	if err != nil {
		t.Fatal(err)
	}
	s := NewStage(first, nil)
	ctx, cancel := context.WithCancel(t.Context())
	tick := make(chan time.Time)
	var logs bytes.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Follow(ctx, path, tick, slog.New(slog.NewTextHandler(&logs, nil)))
	}()
	look := func() string { // the second tick is taken only when the first was dealt with
		tick <- time.Time{}
		tick <- time.Time{}
		return s.rules.Load().Version
	}
	if v := look(); v != "a" {
		t.Errorf("version %s", v)
	}
	write("version: b\nmin_views: 2\n")
	if v := look(); v != "b" || s.rules.Load().MinViews != 2 {
		t.Errorf("version %s", v)
	}
	write("version: c\nmin_views: -2\n")
	if v := look(); v != "b" {
		t.Errorf("a broken file was taken over: %s", v)
	}
	look()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if v := look(); v != "b" {
		t.Errorf("a missing file was taken over: %s", v)
	}
	write("version: d\n")
	if v := look(); v != "d" {
		t.Errorf("version %s", v)
	}
	cancel()
	<-done
	if n := strings.Count(logs.String(), "min_views is -2"); n != 1 {
		t.Errorf("the broken file was logged %d times:\n%s", n, logs.String())
	}
	if n := testutil.ToFloat64(s.reloads.WithLabelValues("loaded")); n != 2 {
		t.Errorf("%v reloads, want 2", n)
	}
}

func FuzzParseRules(f *testing.F) {
	f.Add([]byte("version: v2\nmin_views: 3\nmin_watch: 1m\nweights: {like: 1}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ParseRules(data)
		if err != nil {
			return
		}
		if r.Version == "" || r.MinViews < 0 {
			t.Fatalf("accepted %+v", r)
		}
		r.Judge(session(3, time.Minute, 1, 0))
	})
}
