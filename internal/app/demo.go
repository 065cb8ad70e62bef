package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/console"
	"onerec/filters"
	"onerec/internal/access"
	"onerec/internal/stream"
	"onerec/publisher"
	"onerec/recommender"
	"onerec/rewarder"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
	"onerec/sessionizer"
	"onerec/snapshots"
	"onerec/trainer"
)

// demoStages are the keys of Report.Seconds, in order.
var demoStages = []string{"read", "stream", "train", "align", "recommend", "total"}

// Demo says what a demo does beside the settings.
type Demo struct {
	Views string // file; empty: the simulator
	Dir   string // everything is kept there; must not exist, or be empty
	Users int    // users whose recommendations are shown
	// Console is the address of the console while the demo runs; empty: none.
	Console string
	// Keep goes on after the report, as services in production do, until the context ends. The simulator's
	// users go on, too: so many views a second, of what the recommender shows them.
	Keep bool
	Rate float64
	// Report is called with the report, before a demo that is kept goes on.
	Report func(*Report) error
}

// ErrUsed says that a folder holds a demo already.
var ErrUsed = errors.New("the folder is not empty")

// RunDemo runs every service in this process, on the embedded broker, over one
// input: views to sessions to a trained, aligned and published decoder, and
// recommendations from it. It says on w what it is doing and returns the report,
// which is also in report.json.
func (a *App) RunDemo(ctx context.Context, d Demo, w io.Writer) (*Report, error) {
	r, err := a.runDemo(ctx, d, w)
	if err != nil && ctx.Err() == nil {
		// A broker without disk only says that something unexpected happened.
		if free, ok := freeBytes(d.Dir); ok && free < lowDisk {
			err = fmt.Errorf("the disk of %s has only %d KiB left; free some, or name another folder with --dir: %w", d.Dir, free>>10, err)
		}
	}
	return r, err
}

// lowDisk is the free space, in bytes, below which a failure is put down to it.
const lowDisk = 2 << 20

func (a *App) runDemo(ctx context.Context, d Demo, w io.Writer) (r *Report, err error) {
	begun := time.Now()
	r = &Report{Seconds: make(map[string]Float)}
	timed := func(stage string, fn func() error) error {
		start := time.Now()
		err := fn()
		r.Seconds[stage] = Float(time.Since(start).Seconds())
		if err != nil {
			return fmt.Errorf("demo: %s: %w", stage, err)
		}
		return nil
	}
	// The input first: one that can't be read should leave nothing behind.
	var in *input
	if err := timed("read", func() (err error) { in, err = a.views(d.Views); return err }); err != nil {
		return nil, err
	}
	fmt.Fprintf(w, "reading %s\n", in.format)
	if err := claim(d.Dir); err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	fmt.Fprintf(w, "everything is kept in %s; the broker is the embedded one, for demos and development only\n", d.Dir)
	a.Bucket, a.SnapshotDir = filepath.Join(d.Dir, "checkpoints"), filepath.Join(d.Dir, "snapshots")
	a.RewardReports = filepath.Join(d.Dir, "rounds")
	a.Idle = 24 * time.Hour // the input says when it ends, not the clock: a slow machine gives the same sessions
	broker, err := stream.StartEmbedded(filepath.Join(d.Dir, "kafka"))
	if err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	defer broker.Close()
	a.Brokers = broker.Brokers()
	if err := a.createTopics(ctx); err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	services := newBackground(ctx, a.Log)
	defer func() {
		if failed := services.end(); failed != nil { // which is why the steps could not go on
			err = fmt.Errorf("demo: %w", failed)
		}
	}()
	ctx = services.ctx
	if d.Console != "" {
		if err := a.demoConsole(services, d.Console, w); err != nil {
			return nil, fmt.Errorf("demo: %w", err)
		}
	}
	if err := timed("stream", func() error { return a.demoStream(services, in, r) }); err != nil {
		return nil, err
	}
	if r.Sessions.Good == 0 {
		return nil, fmt.Errorf("demo: %d sessions were closed and none is good (%s), so there is nothing to learn; give more views, or other rules with --rules", r.Sessions.Closed, failures(r.Sessions.FailedRules))
	}
	fmt.Fprintf(w, "%d sessions, %d of them good\n", r.Sessions.Closed, r.Sessions.Good)
	if err := timed("train", func() error { return a.demoTrain(services, r) }); err != nil {
		return nil, err
	}
	if err := timed("align", func() error { return a.demoAlign(services, r) }); err != nil {
		return nil, err
	}
	if err := a.listVersions(ctx, r); err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	if err := timed("recommend", func() error { return a.demoRecommend(services, d.Users, r) }); err != nil {
		return nil, err
	}
	if _, err := a.RefreshTables(ctx); err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	r.Seconds["total"], r.PeakRSSBytes = Float(time.Since(begun).Seconds()), peakRSS()
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("demo: the report contradicts itself, which is a bug: %w", err)
	}
	if err := r.write(d.Dir); err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	if d.Report != nil {
		if err := d.Report(r); err != nil {
			return nil, err
		}
	}
	if d.Keep {
		return r, a.keep(services, d, w)
	}
	return r, nil
}

// demoConsole runs the console beside the demo.
func (a *App) demoConsole(b *background, address string, w io.Writer) error {
	if !access.Loopback(address) {
		return fmt.Errorf("the demo's console asks for no token, so it listens on 127.0.0.1 only, not on %q", address)
	}
	l, err := listen(b.ctx, address)
	if err != nil {
		return fmt.Errorf("listen for browsers: %w", err)
	}
	b.watched("http://" + l.Addr().String())
	fmt.Fprintf(w, "console: %s\n", b.Console())
	b.g.Go(func() error {
		return a.console(b.ctx, l, console.Auth{Operate: true}, b.Targets, b.Recommender, func() {})
	})
	return nil
}

// keep lets the trainer and the rewarder go on, and the simulator's users.
func (a *App) keep(b *background, d Demo, w io.Writer) error {
	// From here on the console shows the progress. What runs already goes on with the app as it is.
	later := *a
	later.Progress = nil
	a = &later
	for name, s := range map[string]service{
		"train":  func(ctx context.Context, h host) error { _, err := a.train(ctx, h, false); return err },
		"reward": func(ctx context.Context, h host) error { _, err := a.reward(ctx, h, false); return err },
	} {
		if err := b.start(name, s); err != nil {
			return fmt.Errorf("demo: %w", err)
		}
	}
	if d.Views == "" && d.Rate > 0 {
		b.g.Go(func() error { return a.traffic(b.ctx, b.Recommender(), d.Rate) })
	}
	if err := a.writeEnvironment(d.Dir, b); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	fmt.Fprintf(w, "brokers: %s; recommendations: %s/v1/recommendations\nfor other commands, in another shell: . %s\neverything goes on until it is interrupted (Ctrl-C)\n", strings.Join(a.Brokers, ","), b.Recommender(), filepath.Join(d.Dir, environmentFile))
	<-b.ctx.Done()
	return nil
}

// environmentFile is what another shell reads to reach a demo that is kept.
const environmentFile = "env.sh"

// writeEnvironment leaves a file that makes other commands of onerec work on the demo that is kept. It appears whole.
func (a *App) writeEnvironment(dir string, b *background) error {
	bucket, err1 := filepath.Abs(a.Bucket)
	tables, err2 := filepath.Abs(a.SnapshotDir)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
	text := fmt.Sprintf("# Of a demo that is kept: for commands of onerec in another shell, while it runs.\nexport ONEREC_BROKERS=%s ONEREC_CHECKPOINTS=%s ONEREC_SNAPSHOTS=%s\nRECOMMENDER=%s\nCONSOLE=%s\n",
		quote(strings.Join(a.Brokers, ",")), quote(bucket), quote(tables), quote(b.Recommender()), quote(b.Console()))
	name := filepath.Join(dir, environmentFile)
	if err := os.WriteFile(name+".tmp", []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(name+".tmp", name)
}

// traffic lets the simulator's users go on after the demo's input, with what the recommender shows them.
func (a *App) traffic(ctx context.Context, url string, rate float64) error {
	in, err := a.served(ctx, Recommender{URL: url, Days: 100 * 365, List: a.Align.Length, Patience: 5 * time.Minute})
	if err != nil {
		return err
	}
	in.pace(ctx, rate)
	if _, _, err = a.play(ctx, in); ctx.Err() != nil {
		err = nil // it was interrupted
	}
	return err
}

// claim makes sure that dir is ours alone and can be written to.
func claim(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the folder: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		state := "a demo that did not end"
		if slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == "report.json" }) {
			state = "a finished demo"
		} else if !slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == markerFile }) {
			state = "something else"
		}
		return fmt.Errorf("%w: %s holds %s; name another with --dir, or delete it", ErrUsed, dir, state)
	}
	// Only one of two demos that start at the same time can make this.
	f, err := os.OpenFile(filepath.Join(dir, markerFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("write to the folder: %w", err)
	}
	if _, err := f.WriteString("This folder belongs to a run of \"onerec demo\".\n"); err != nil {
		return errors.Join(fmt.Errorf("write to the folder: %w", err), f.Close())
	}
	return f.Close()
}

const markerFile = ".onerec-demo"

func (a *App) createTopics(ctx context.Context) error {
	cl, err := a.cluster().Client()
	if err != nil {
		return err
	}
	defer cl.Close()
	_, err = stream.CreateTopics(ctx, cl, a.Partitions, int16(a.Replication))
	return err
}

// demoStream starts ingest, sessionize, filter and snapshot and waits until they are at the end of
// the input.
func (a *App) demoStream(b *background, in *input, r *Report) error {
	ctx := b.ctx
	for _, s := range []struct {
		name string
		run  service
	}{
		{groupIngest, a.ingest}, {groupSessionize, a.sessionize}, {groupFilter, a.filter},
		{snapshots.Group, func(ctx context.Context, h host) error { return a.snapshot(ctx, h, false) }},
	} {
		if err := b.start(s.name, s.run); err != nil {
			return err
		}
	}
	n, latest, err := a.play(ctx, in)
	if err != nil {
		return err
	}
	r.Views.Read = int64(n)
	if err := a.finish(ctx, latest); err != nil {
		return err
	}
	cl, err := a.cluster().Client()
	if err != nil {
		return err
	}
	defer cl.Close()
	for _, w := range []struct{ group, topic string }{
		{groupSessionize, schemas.TopicViews}, {groupFilter, schemas.TopicSessions}, {snapshots.Group, schemas.TopicJudgedSessions},
	} {
		if err := stream.WaitCaughtUp(ctx, cl, w.group, w.topic); err != nil {
			return err
		}
	}
	return a.count(ctx, r)
}

// count reads what the stages left on their topics.
func (a *App) count(ctx context.Context, r *Report) error {
	c := a.cluster()
	totals, err := sessionizer.Totals(ctx, c)
	if err != nil {
		return err
	}
	r.Views.Accepted, r.Views.Duplicates, r.Views.Late = totals.Accepted, totals.Duplicates, totals.Late
	if err := c.ReadTopic(ctx, schemas.TopicDeadLetters, func(*kgo.Record) error { r.Views.Rejected++; return nil }); err != nil {
		return err
	}
	r.Sessions.FailedRules = make(map[string]int64)
	for _, rule := range filters.RuleNames() {
		r.Sessions.FailedRules[rule] = 0
	}
	return c.ReadTopic(ctx, schemas.TopicJudgedSessions, func(rec *kgo.Record) error {
		j := new(onerecv1.JudgedSession)
		if err := proto.Unmarshal(rec.Value, j); err != nil {
			return fmt.Errorf("topic %s offset %d is no JudgedSession: %w", rec.Topic, rec.Offset, err)
		}
		r.Sessions.Closed++
		if j.Verdict.GetGood() {
			r.Sessions.Good++
		}
		for _, rule := range j.Verdict.GetFailedRules() {
			r.Sessions.FailedRules[rule]++
		}
		return nil
	})
}

func (a *App) demoTrain(b *background, r *Report) error {
	a.Bootstrap = int(r.Sessions.Good) // the codebook from the whole input, not from its beginning
	var c *trainer.Candidate
	err := b.once(trainer.Group, func(ctx context.Context, h host) (err error) { c, err = a.train(ctx, h, true); return err })
	if err != nil {
		return err
	}
	if c == nil {
		return context.Cause(b.ctx)
	}
	st, h := c.Stats, c.Holdout
	r.Training = TrainingReport{
		Steps: st.Steps, Tokens: st.Tokens, TokensPerSecond: Float(st.TokensPerSecond()), FirstLoss: Float(st.FirstLoss), LastLoss: Float(st.LastLoss),
		Holdout: HoldoutReport{
			Sessions: h.Sessions, Predictions: h.Predictions, Loss: Float(h.Loss), HitRate10: Float(h.HitRate10), NDCG10: Float(h.NDCG10),
			PopularityHitRate10: Float(h.PopularHitRate10), PopularityNDCG10: Float(h.PopularNDCG10),
			LastItemHitRate10: Float(h.LastItemHitRate10), LastItemNDCG10: Float(h.LastItemNDCG10),
		},
	}
	return nil
}

func (a *App) demoAlign(b *background, r *Report) error {
	var report *rewarder.Report
	err := b.once(rewarder.Group, func(ctx context.Context, h host) (err error) { report, err = a.reward(ctx, h, true); return err })
	if err != nil {
		return err
	}
	if err := b.ctx.Err(); err != nil {
		return err
	}
	q := report.Quality
	means := func(b rewarder.Baseline) MeansReport {
		return MeansReport{Float(b.LikeAUC), Float(b.CompletionAUC), Float(b.WatchTimeSpearman)}
	}
	r.RewardModel = RewardReport{q.Sessions, Float(q.LikeAUC), Float(q.CompletionAUC), Float(q.WatchTimeSpearman), Float(q.LikeCalibration), means(q.Item), means(q.User)}
	for _, round := range report.Rounds {
		r.Alignment = append(r.Alignment, newRoundReport(round))
	}
	return nil
}

func (a *App) listVersions(ctx context.Context, r *Report) error {
	return a.withStore(ctx, func(store *publisher.Store) error {
		versions, err := store.List(ctx)
		if err != nil {
			return err
		}
		for _, v := range versions {
			m, hash, err := store.Manifest(ctx, v, "")
			if err != nil {
				return err
			}
			r.Checkpoints = append(r.Checkpoints, VersionReport{m.Version, m.Parent, m.Kind, hash, m.Codebook})
		}
		return nil
	})
}

// demoRecommend starts the recommender and asks it, over HTTP, for the users who
// were there last.
func (a *App) demoRecommend(b *background, n int, r *Report) error {
	ctx := b.ctx
	users, err := a.lastUsers(ctx, n)
	if err != nil {
		return err
	}
	l, err := listen(ctx, "127.0.0.1:0")
	if err != nil {
		return err
	}
	url := "http://" + l.Addr().String()
	ready := make(chan struct{})
	var once sync.Once
	var svc *recommender.Service
	err = b.start("serve", func(ctx context.Context, h host) error {
		isReady := h.ready
		h.ready = func() { isReady(); once.Do(func() { close(ready) }) }
		at := l
		if svc != nil { // it starts over, where it was
			again, err := listen(ctx, l.Addr().String())
			if err != nil {
				return fmt.Errorf("listen for requests: %w", err)
			}
			at = again
		}
		return a.recommend(ctx, h, at, func(s *recommender.Service) {
			if svc == nil {
				svc = s
			}
		})
	})
	if err != nil {
		return errors.Join(err, l.Close())
	}
	select {
	case <-ready:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	b.serves(url)
	p50, p99 := svc.Waited()
	r.SessionToServing = WaitReport{Float(p50.Seconds()), Float(p99.Seconds())}
	for _, user := range users {
		answer, err := ask(ctx, url, recommender.Request{UserID: user, N: a.Align.Length})
		if err != nil {
			return err
		}
		rec := RecReport{UserID: user, Checkpoint: answer.CheckpointVersion, Items: []string{}}
		for _, item := range answer.Items {
			rec.Items = append(rec.Items, item.ItemID)
		}
		watched := svc.History(user)
		rec.watched = watched[max(0, len(watched)-a.Align.Length):]
		r.Recommendations = append(r.Recommendations, rec)
	}
	return nil
}

// ask sends one request.
func ask(ctx context.Context, url string, q recommender.Request) (*recommender.Answer, error) {
	body, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/recommendations", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the recommender: %w", err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("ask the recommender: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask the recommender for user %s: %s: %s", q.UserID, resp.Status, data)
	}
	answer := new(recommender.Answer)
	if err := json.Unmarshal(data, answer); err != nil {
		return nil, fmt.Errorf("ask the recommender: %w", err)
	}
	return answer, nil
}

// lastUsers returns the n users of good sessions whose sessions ended last.
func (a *App) lastUsers(ctx context.Context, n int) ([]string, error) {
	last := make(map[string]int64)
	err := a.cluster().ReadTopic(ctx, schemas.TopicGoodSessions, func(rec *kgo.Record) error {
		g := new(onerecv1.GoodSession)
		if err := proto.Unmarshal(rec.Value, g); err != nil {
			return fmt.Errorf("topic %s offset %d is no GoodSession: %w", rec.Topic, rec.Offset, err)
		}
		if s := g.Session; s != nil {
			last[s.UserId] = max(last[s.UserId], s.EndMs)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	users := make([]string, 0, len(last))
	for u := range last {
		users = append(users, u)
	}
	slices.SortFunc(users, func(a, b string) int {
		if last[a] != last[b] {
			return int(min(1, max(-1, last[b]-last[a])))
		}
		return bytes.Compare([]byte(a), []byte(b))
	})
	return users[:min(n, len(users))], nil
}
