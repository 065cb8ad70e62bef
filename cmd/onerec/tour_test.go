package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestTour runs the commands of docs/tour.md, as they stand there, in a shell. It takes minutes and needs DuckDB, so it
// runs where ONEREC_TOUR is set.
func TestTour(t *testing.T) {
	if os.Getenv("ONEREC_TOUR") == "" {
		t.Skip("ONEREC_TOUR is not set")
	}
	if _, err := exec.LookPath("duckdb"); err != nil {
		t.Fatal("the tour asks DuckDB, whose command line is not on the PATH: ", err)
	}
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../docs/tour.md")
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	script.WriteString("set -e -o pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n")
	for _, m := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		if strings.Contains(m[1], "go build") { // which was done above
			continue
		}
		script.WriteString(m[1])
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "bash", "-c", script.String())
	cmd.Dir = dir
	cmd.WaitDelay = 10 * time.Second
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "ONEREC_") && !strings.HasPrefix(kv, "PATH=") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, "PATH="+filepath.Dir(path)+":"+os.Getenv("PATH"))
	begun := time.Now()
	out, err := cmd.CombinedOutput()
	t.Logf("%v\n%s", time.Since(begun).Round(time.Second), out)
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, "tour.log"))
		t.Fatalf("%v\nthe demo said:\n%s", err, log)
	}
	// What the reader is told to see.
	for _, want := range []string{"good_percent", "mine-1", "mine-2", "released: 0"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the tour does not show %q", want)
		}
	}
	// A round may release a newer version meanwhile, so what is served is one or the other, and a model's.
	if n := strings.Count(string(out), `"source":"model"`); n != 3 {
		t.Errorf("%d answers of a model", n)
	}
	without, err := os.ReadFile(filepath.Join(dir, "without.json"))
	if gone := regexp.MustCompile(`(?m)^(\S+) +withdrawn `).FindStringSubmatch(string(out)); err != nil || gone == nil || strings.Contains(string(without), `"`+gone[1]+`"`) {
		t.Errorf("%v; %v is withdrawn, and recommended is %s", err, gone, without)
	}
	good := regexp.MustCompile(`(?m)^\d+ sessions, (\d+) good$`).FindAllStringSubmatch(string(out), -1)
	if len(good) != 2 || len(good[0][1]) > len(good[1][1]) || good[0][1] >= good[1][1] && len(good[0][1]) == len(good[1][1]) {
		t.Errorf("easier rules do not make more sessions good: %v", good)
	}
}
