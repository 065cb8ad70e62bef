package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"onerec/internal/app"
	"onerec/internal/kafkatest"
	"onerec/internal/stream"
	"onerec/publisher"
)

// chromium finds the browser; without one the test is skipped, unless ONEREC_NEED_CHROMIUM says that it must
// not be.
func chromium(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("ONEREC_NEED_CHROMIUM") != "" {
		t.Fatal("there is no Chromium, and ONEREC_NEED_CHROMIUM is set")
	}
	t.Skip("there is no Chromium here")
	return ""
}

// keptDemo starts "onerec demo --keep" and returns its folder, its console, its brokers and its recommender's URL.
func keptDemo(t testing.TB) (dir, console, brokers, serves string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "demo")
	cmd := onerec(t, "demo", "--dir", dir, "--keep", "--rate", "20", "--rounds", "2",
		"--sim-users", "120", "--sim-items", "200", "--sim-days", "4", "--replay-ratio", "2", "--warmup-steps", "5", "--train-history", "8", "--holdout-percent", "20",
		"--align-users", "40", "--candidates", "8", "--candidate-items", "3", "--align-epochs", "2", "--reward-epochs", "2", "--align-learning-rate", "0.0003", "--min-coverage", "0.1", "--min-diversity", "0.1", "--max-drop", "0.5", "--max-dislikes", "10", "--max-loss-rise", "1")
	pipe, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	kept := make(chan bool)
	var said []string // last, which is where a failure is
	wg.Go(func() {
		for lines := bufio.NewScanner(pipe); lines.Scan(); {
			line := lines.Text()
			if said = append(said, line); len(said) > 20 {
				said = said[1:]
			}
			if m := regexp.MustCompile(`^console: (http://\S+)`).FindStringSubmatch(line); m != nil {
				console = m[1]
			}
			if m := regexp.MustCompile(`^brokers: (\S+); recommendations: (http://[^/]+)`).FindStringSubmatch(line); m != nil {
				brokers, serves = m[1], m[2]
			}
			if strings.HasPrefix(line, "everything goes on") {
				close(kept)
			}
		}
	})
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		wg.Wait()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the demo that was kept and interrupted: %v\n%s", err, strings.Join(said, "\n"))
		}
	})
	select {
	case <-kept:
	case <-time.After(5 * time.Minute):
		t.Fatal("the demo does not come to its end")
	}
	return dir, console, brokers, serves
}

// browser drives a page and remembers what went wrong in it.
type browser struct {
	t   *testing.T
	ctx context.Context

	mu     sync.Mutex
	errors []string
}

func newBrowser(t *testing.T) *browser {
	t.Helper()
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(chromium(t)), chromedp.NoSandbox, chromedp.WindowSize(1280, 1000),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true))
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), opts...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	b := &browser{t: t, ctx: ctx}
	err := chromedp.Listen(ctx, func(ev any) {
		b.mu.Lock()
		defer b.mu.Unlock()
		switch ev := ev.(type) {
		case *runtime.EventExceptionThrown:
			b.errors = append(b.errors, fmt.Sprintf("%s at %s:%d", ev.ExceptionDetails.Text, ev.ExceptionDetails.URL, ev.ExceptionDetails.LineNumber))
		case *log.EventEntryAdded:
			if ev.Entry.Level == log.EntryLevelError || ev.Entry.Level == log.EntryLevelWarning {
				b.errors = append(b.errors, ev.Entry.Text+" "+ev.Entry.URL)
			}
		case *runtime.EventConsoleAPICalled:
			if ev.Type == runtime.ConsoleAPICalledTypeError || ev.Type == runtime.ConsoleAPICalledTypeWarning {
				b.errors = append(b.errors, fmt.Sprintf("console.%s: %v", ev.Type, ev.Args))
			}
		}
	})
	if err != nil {
		t.Fatalf("start Chromium: %v", err)
	}
	if _, err := chromedp.Call(ctx, log.Enable, cdp.Empty{}); err != nil {
		t.Fatal(err)
	}
	return b
}

// patience is how long the page may take for a thing.
const patience = time.Minute

func (b *browser) fatal(what string, err error) {
	b.t.Helper()
	text, _ := chromedp.Run(b.ctx, chromedp.Evaluate[string]("document.body.innerText"))
	state, _ := chromedp.Run(b.ctx, chromedp.Evaluate[string](`JSON.stringify({hidden: document.hidden, now: new Date(), events: performance.getEntriesByType("resource").filter(e => e.name.endsWith("/events")).map(e => [e.responseStatus, e.startTime, e.duration])})`))
	fresh, _ := chromedp.Run(b.ctx, chromedp.Evaluate[string](`fetch("/").then(r => r.text()).then(t => (t.match(/<time[^>]*>/) || ["no time"])[0])`, chromedp.EvalAwaitPromise))
	b.t.Logf("the page: %s; asked anew it has %s", state, fresh)
	b.t.Fatalf("%s: %v; the page says:\n%s", what, err, text)
}

// do takes steps.
func (b *browser) do(what string, steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		b.fatal(what, err)
	}
}

// open goes to a page and waits until something of it can be seen.
func (b *browser) open(url, selector string) {
	b.t.Helper()
	b.do("open "+url, chromedp.Navigate(url), chromedp.WaitVisible(chromedp.CSS(selector)))
}

// click clicks what a selector finds and waits until something else can be seen.
func (b *browser) click(selector, then string) {
	b.t.Helper()
	b.do("click "+selector, chromedp.Click(chromedp.CSS(selector)), chromedp.WaitVisible(chromedp.CSS(then)))
}

// read evaluates an expression in the page.
func read[T any](b *browser, expression string) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		b.fatal(expression, err)
	}
	return v
}

// until waits until an expression is true.
func (b *browser) until(what, expression string) {
	b.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		ok, err := chromedp.Run(b.ctx, chromedp.Evaluate[bool]("Boolean("+expression+")"))
		if err == nil && ok {
			return
		}
		if time.Now().After(deadline) {
			b.fatal("never: "+what, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// clean fails if something went wrong in the page.
func (b *browser) clean() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.errors {
		b.t.Errorf("in the browser: %s", e)
	}
	b.errors = nil
}

// shot keeps a picture of the page, if ONEREC_SCREENSHOTS names a folder.
func (b *browser) shot(name string) {
	dir := os.Getenv("ONEREC_SCREENSHOTS")
	if dir == "" {
		return
	}
	png, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644); err != nil {
		b.t.Error(err)
	}
}

// accessible runs axe, if ONEREC_AXE names its script.
func (b *browser) accessible(what string) {
	b.t.Helper()
	path := os.Getenv("ONEREC_AXE")
	if path == "" {
		b.t.Log("accessibility is not checked: ONEREC_AXE names no axe.min.js")
		return
	}
	script, err := os.ReadFile(path)
	if err != nil {
		b.t.Fatal(err)
	}
	read[any](b, string(script)+";null")
	found := read[[]string](b, `axe.run(document, {runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}).then(r => r.violations.flatMap(v => v.nodes.map(n => v.id + ": " + n.target + ": " + n.failureSummary)))`)
	for _, f := range found {
		b.t.Errorf("%s is not accessible: %s", what, f)
	}
}

// TestBrowser uses the console of a demo as a person does, in a real browser: what it shows is what report.json
// says, a rollback works, a stage that dies turns red, and nothing goes wrong in the page.
func TestBrowser(t *testing.T) {
	chromium(t)
	dir, console, brokers, serves := keptDemo(t)
	data, err := os.ReadFile(filepath.Join(dir, "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	var r app.Report
	if err := json.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	b := newBrowser(t)
	b.open(console, "#flow svg")
	b.until("the page is live", `document.querySelectorAll("#flow .health.healthy").length === 7`)

	// The numbers of the report. Sessions go on, so there are as many or more of them.
	b.until("charts are drawn", `document.querySelectorAll(".chart canvas").length >= 4`)
	judged, good := read[int64](b, `+document.querySelector("[data-figure=judged]").title`), read[int64](b, `+document.querySelector("[data-figure=good]").title`)
	if judged < r.Sessions.Closed || judged > r.Sessions.Closed+r.Sessions.Closed/2 || good < r.Sessions.Good {
		t.Errorf("%d sessions, %d good; the report has %d, %d", judged, good, r.Sessions.Closed, r.Sessions.Good)
	}
	for figure, want := range map[string]int64{"accepted": r.Views.Accepted, "duplicate": r.Views.Duplicates, "late": r.Views.Late, "rejected": r.Views.Rejected} {
		if got := read[int64](b, `+document.querySelector("[data-figure=`+figure+`]").title`); got < want || got > want+want/2+50 {
			t.Errorf("%d views are %s, the report has %d", got, figure, want)
		}
	}
	failed := read[map[string]string](b, `Object.fromEntries([...document.querySelectorAll("[data-rule]")].map(e => [e.dataset.rule, e.querySelector("td").title]))`)
	for rule, n := range r.Sessions.FailedRules {
		var shown int64
		if _, err := fmt.Sscan(failed[rule], &shown); err != nil || shown < n {
			t.Errorf("rule %s failed %q, the report has %d", rule, failed[rule], n)
		}
	}
	rounds := read[map[string]string](b, `Object.fromEntries([...document.querySelectorAll("[data-round]")].map(e => [e.dataset.round, [...e.querySelectorAll("td")].map(td => td.textContent).join("|")]))`)
	for _, round := range r.Alignment {
		verdict := "rejected"
		if round.Accepted {
			verdict = "accepted"
		}
		row := rounds[fmt.Sprint(round.Round)]
		if !strings.Contains(row, verdict) || !strings.Contains(row, fmt.Sprintf("|%.4f|%.4f|", float64(round.RewardBefore), float64(round.RewardAfter))) {
			t.Errorf("round %d is shown as %q", round.Round, row)
		}
	}
	versions := read[[]string](b, `[...document.querySelectorAll("#checkpoints [data-version]")].map(e => e.dataset.version)`)
	for _, v := range r.Checkpoints {
		if !slices.Contains(versions, v.Version) {
			t.Errorf("checkpoint %s is not among %v", v.Version, versions)
		}
	}
	hit := read[string](b, `document.querySelector("[data-metric='hit rate at 10'] td").textContent`)
	if fmt.Sprintf("%.4f", float64(r.Training.Holdout.HitRate10)) != hit && len(versions) == len(r.Checkpoints) { // the trainer goes on
		t.Errorf("hit rate %s, the report has %.4f", hit, float64(r.Training.Holdout.HitRate10))
	}
	b.shot("console")
	b.accessible("the page")

	// It is live: the clock goes on, and views come.
	b.until("the numbers are at most 2 s old", `Date.now() - Date.parse(document.querySelector("#status time").dateTime) < 3000`) // whole seconds are shown
	b.until("sessions come", fmt.Sprintf(`+document.querySelector("[data-figure=judged]").title > %d`, judged))

	// A user, by the keyboard.
	user := r.Recommendations[0].UserID
	b.do("look up a user", chromedp.SendKeys(chromedp.CSS("#user-id"), user+"\r"), chromedp.WaitVisible(chromedp.CSS("#user table")))
	b.until("the user is shown in the page", fmt.Sprintf(`document.querySelector("#user").textContent.includes("User %s") && document.querySelectorAll("[data-recommended]").length === 10 && location.pathname === "/"`, user))
	seen := read[string](b, `document.querySelector("#status time").textContent`)
	b.until("the page goes on", fmt.Sprintf(`document.querySelector("#status time").textContent !== %q`, seen))
	b.until("what was typed stays meanwhile", fmt.Sprintf(`document.querySelector("#user-id").value === %q && document.querySelectorAll("[data-recommended]").length === 10`, user))
	b.accessible("the page with a user")
	b.click("[data-recommended] a", "mark, .empty")
	b.accessible("the item's page")
	b.shot("item")

	// A rollback, asked about first.
	if !slices.ContainsFunc(r.Alignment, func(round app.RoundReport) bool { return round.Accepted }) {
		t.Fatalf("no round of this demo was accepted, so there is nothing to roll back: %+v", r.Alignment)
	}
	b.open(console, "#checkpoints p.act a")
	released := read[string](b, `document.querySelector("[data-figure=released]").textContent`)
	b.click("#checkpoints p.act a", "button.strong")
	b.accessible("the question")
	earlier := read[string](b, `document.querySelector("[name=version]").value`)
	refs, err := publisher.Current(t.Context(), stream.Cluster{Brokers: []string{brokers}}, "default")
	if err != nil {
		t.Fatal(err)
	}
	if ref := refs[publisher.ChannelReleased]; ref.GetVersion() == released && publisher.Earlier(ref) != earlier {
		t.Errorf("%s is rolled back to %s, before it was %s", released, earlier, publisher.Earlier(ref))
	}
	b.do("say why", chromedp.SendKeys(chromedp.CSS("#why"), "likes fell"))
	b.click("button.strong", "[role=status]")
	b.until("the earlier version is released", fmt.Sprintf(`document.querySelector("[data-figure=released]").textContent === %q`, earlier))
	b.until("releases are held", `document.querySelector("#held")?.textContent.includes("likes fell")`)
	b.accessible("while releases are held")
	b.shot("held")
	eventually(t, "the recommender follows", func() bool {
		b.open(console+"/user?id="+user, "#user caption")
		return strings.Contains(read[string](b, `document.querySelector("#user caption").textContent`), earlier)
	})
	b.open(console, "#held")
	b.click(`#checkpoints a[href="/confirm?do=resume"]`, "button.strong")
	b.click("button.strong", "[role=status]")
	b.until("releases go on", `document.querySelector("#held") === null`)

	b.clean()
	for _, page := range []string{"/rounds", "/checkpoints", "/compare", "/letters", "/sign-in"} {
		b.open(console+page, "main")
		b.accessible(page)
	}
	b.clean()

	// On a phone, in the dark.
	dark := chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}}})
		return err
	})
	b.do("take a phone", chromedp.EmulateViewport(390, 844, chromedp.EmulateScale(2)), dark)
	b.open(console, "#flow table")
	b.until("charts are drawn", `document.querySelectorAll(".chart canvas").length >= 4`)
	if wide := read[int64](b, `document.documentElement.scrollWidth`); wide > 390 {
		t.Errorf("on a phone the page is %d wide", wide)
	}
	b.accessible("the page on a phone, in the dark")
	b.shot("phone")
	b.clean()

	// A service that is killed.
	filter := start(t, "filter", "--brokers", brokers, "--instance", "second")
	address := kafkatest.FreeAddress(t)
	second := start(t, "console", "--brokers", brokers, "--checkpoints", filepath.Join(dir, "checkpoints"), "--console-listen", address, "--console-targets", "filter=http://"+filter.http, "--console-recommender", serves)
	b.do("take a desk", chromedp.EmulateViewport(1280, 1000))
	b.open("http://"+address, "#flow table")
	b.until("the filter is green", `document.querySelector("[data-stage=filter] .health.healthy")`)
	if read[int](b, `document.querySelectorAll(".operator").length`) != 0 {
		t.Error("whoever looks may act")
	}
	filter.kill()
	killed := time.Now()
	b.until("the filter is red", `document.querySelector("[data-stage=filter] .health.down") && document.querySelector("#status").textContent.includes("filter is down")`)
	t.Logf("red after %v", time.Since(killed).Round(time.Millisecond))
	b.clean()

	// And the console itself.
	second.kill()
	b.until("the page says that it is old", `!document.querySelector("#stale").hidden && document.querySelector("#stale").textContent.startsWith("No news for")`)
}

// BenchmarkConsole measures what a console costs while ten browsers have it open over a demo that goes on: the
// share of a core, and how long the first screen takes.
func BenchmarkConsole(b *testing.B) {
	dir, _, brokers, serves := keptDemo(b)
	address, admin := kafkatest.FreeAddress(b), kafkatest.FreeAddress(b)
	var targets []string // its own endpoint in place of seven others
	for _, stage := range []string{"ingest", "sessionize", "filter", "snapshot", "train", "reward", "serve"} {
		targets = append(targets, stage+"=http://"+admin)
	}
	cmd := onerec(b, "console", "--http", admin, "--brokers", brokers, "--checkpoints", filepath.Join(dir, "checkpoints"), "--console-listen", address, "--console-recommender", serves, "--console-targets", strings.Join(targets, ","))
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	eventually(b, "the console is ready", func() bool { return get(admin+"/readyz") == http.StatusOK && get(address) == http.StatusOK })
	const browsers = 10
	const measured = 30 * time.Second
	ctx, cancel := context.WithTimeout(b.Context(), measured)
	defer cancel()
	before := cpu(b, cmd.Process.Pid)
	begun := time.Now()
	var read atomic.Int64
	var wg sync.WaitGroup
	for range browsers {
		wg.Go(func() {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/events", nil)
			if err != nil {
				b.Error(err)
				return
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				b.Error(err)
				return
			}
			defer resp.Body.Close()
			n, _ := io.Copy(io.Discard, resp.Body) // until the time is over
			read.Add(n)
		})
	}
	wg.Wait()
	took := time.Since(begun)
	used := cpu(b, cmd.Process.Pid) - before
	first := time.Now()
	resp, err := http.Get("http://" + address + "/")
	if err != nil {
		b.Fatal(err)
	}
	n, err := io.Copy(io.Discard, resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(100*used.Seconds()/took.Seconds(), "%core")
	b.ReportMetric(float64(read.Load())/browsers/took.Seconds(), "B/s/browser")
	b.ReportMetric(float64(time.Since(first).Milliseconds()), "ms/page")
	b.ReportMetric(float64(n), "B/page")
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
}

// cpu returns the processor time that a process has used.
func cpu(b *testing.B, pid int) time.Duration {
	b.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Skipf("processor time of a process is read from /proc only: %v", err)
	}
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	var user, system int64
	if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
		b.Fatal(err)
	}
	return time.Duration(user+system) * time.Second / 100 // ticks
}
