package progress

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestLines: without a terminal there is a line now and then, and one at the end
// of each piece of work, and no escape sequence.
func TestLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		r := New(&b)
		for i := range 121 {
			r.Update("train", "steps", i, 120)
			time.Sleep(100 * time.Millisecond)
		}
		r.Update("draw", "users", 3, 0)
		r.Done()
		r.Done()
		got := strings.Split(strings.TrimSpace(b.String()), "\n")
		if len(got) != 4 || got[2] != "train: 120 of 120 steps, 10/s, done" || !strings.HasPrefix(got[3], "draw: 3 users") || strings.Contains(b.String(), "\x1b") {
			t.Fatalf("%q", got)
		}
	})
}

func TestNilShowsNothing(*testing.T) {
	var r *Reporter
	r.Update("x", "y", 1, 2)
	r.Done()
}

// TestBar: on a terminal there is a bar; NO_COLOR takes its colours.
func TestBar(t *testing.T) {
	for _, color := range []bool{true, false} {
		if !color {
			t.Setenv("NO_COLOR", "1")
		} else if err := os.Unsetenv("NO_COLOR"); err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		r := New(&b)
		r.terminal = true
		r.Update("train", "steps", 60, 120)
		r.Update("train", "steps", 120, 120)
		r.Done()
		if out := b.String(); !strings.Contains(out, "train") || !strings.Contains(out, "120") || strings.Contains(out, "\x1b[32m") != color {
			t.Errorf("colour %v: %q", color, out)
		}
	}
}
