// Package progress shows how far long work is: a bar with a rate on a terminal,
// a line now and then elsewhere.
package progress

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// lineEvery is the time between lines where there is no terminal.
const lineEvery = 5 * time.Second

// Reporter shows one piece of work after the other. A nil *Reporter shows
// nothing. It is safe for concurrent use.
type Reporter struct {
	w        io.Writer
	terminal bool
	color    bool

	mu      sync.Mutex
	label   string
	unit    string
	bar     *progressbar.ProgressBar
	begun   time.Time
	printed time.Time
	done    int
	total   int
}

// New returns a reporter that writes to w; NO_COLOR is respected
// (https://no-color.org).
func New(w io.Writer) *Reporter {
	r := &Reporter{w: w, color: os.Getenv("NO_COLOR") == ""}
	if f, ok := w.(*os.File); ok {
		r.terminal = term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
	}
	return r
}

// Func returns a function to be told how much of a piece of work is done; total 0
// means that nobody knows.
func (r *Reporter) Func(label, unit string) func(done, total int) {
	return func(done, total int) { r.Update(label, unit, done, total) }
}

// Update shows that done of total are done. What follows a comma in unit is a figure of
// the moment, such as a loss.
func (r *Reporter) Update(label, unit string, done, total int) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	of, figure, _ := strings.Cut(unit, ",")
	if label != r.label {
		r.finish()
		r.label, r.begun, r.printed = label, time.Now(), time.Now()
		if r.terminal {
			most := int64(total)
			if total == 0 {
				most = -1
			}
			r.bar = progressbar.NewOptions64(most,
				progressbar.OptionSetWriter(r.w), progressbar.OptionSetDescription(fmt.Sprintf("%-26s", label)),
				progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetItsString(of),
				progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionSetWidth(24),
				progressbar.OptionSetSpinnerChangeInterval(0), // or a goroutine would go on painting after Exit
				progressbar.OptionEnableColorCodes(r.color), progressbar.OptionSetTheme(theme(r.color)),
			)
		}
	}
	r.unit, r.done, r.total = unit, done, total
	switch {
	case r.bar != nil:
		if figure != "" {
			r.bar.Describe(fmt.Sprintf("%-26s", label+","+figure))
		}
		if total > 0 {
			r.bar.ChangeMax(total)
		}
		_ = r.bar.Set(done) // a terminal that can't be written to is no reason to stop
	case time.Since(r.printed) >= lineEvery:
		r.printed = time.Now()
		r.line("...")
	}
}

// Done ends the piece of work at hand.
func (r *Reporter) Done() {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.finish()
}

func (r *Reporter) finish() {
	if r.label == "" {
		return
	}
	if r.bar != nil { // gives way to a line that stays
		_ = r.bar.Clear()
		_ = r.bar.Exit()
		fmt.Fprint(r.w, "\r")
	}
	r.line("done")
	r.label, r.bar = "", nil
}

func (r *Reporter) line(state string) {
	of := ""
	if r.total > 0 {
		of = fmt.Sprintf(" of %d", r.total)
	}
	fmt.Fprintf(r.w, "%s: %d%s %s, %.0f/s, %s\n", r.label, r.done, of, r.unit, float64(r.done)/max(time.Since(r.begun).Seconds(), 1e-3), state)
}

func theme(color bool) progressbar.Theme {
	t := progressbar.Theme{Saucer: "=", SaucerHead: ">", SaucerPadding: " ", BarStart: "[", BarEnd: "]"}
	if color {
		t.Saucer, t.SaucerHead = "[green]=[reset]", "[green]>[reset]"
	}
	return t
}
