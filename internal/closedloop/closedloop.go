// Package closedloop measures in a simulated world, whose users' tastes are known, what a user
// gets from each step of onerec: popular items, the decoder as it learned from the log, the
// decoder after rounds of alignment. The pipeline's own cores read a log that a fixed
// ranker made, and see no more than a log holds; then each policy serves the same users
// from the same moment on, with the same luck, and an oracle that knows the tastes shows
// what could be had.
package closedloop

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"onerec/decoder"
	"onerec/filters"
	"onerec/ingest"
	"onerec/internal/history"

	"onerec/rewarder"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
	"onerec/semanticid"
	"onerec/sessionizer"
	"onerec/simulator"
	"onerec/trainer"
)

// Config says how a loop goes.
type Config struct {
	World   simulator.Config
	Trainer trainer.Config
	Reward  rewarder.CoreConfig
	Align   rewarder.AlignConfig

	Rounds []int // numbers of rounds after which the aligned decoder serves, rising
	Days   int   // that each policy serves
	List   int   // items that a policy is asked for at a time
	Beams  int   // of the decoder that serves
	Seeds  int   // worlds
	// Variants are rounds that begin at the pretrained decoder, too; what each makes of it serves,
	// whatever the gates say.
	Variants []Variant
	Workers  int // shards of users that are served at the same time; 0: as many as there are processors
}

// Variant is a way to align.
type Variant struct {
	Name  string
	Align rewarder.AlignConfig
}

// DefaultConfig is the large loop: less than an hour on two processors.
func DefaultConfig() Config {
	c := Config{
		World: simulator.DefaultConfig(), Trainer: trainer.DefaultConfig(), Reward: rewarder.DefaultCoreConfig(), Align: rewarder.DefaultAlignConfig(),
		Rounds: []int{1, 3, 5}, Days: 3, List: 5, Beams: 16, Seeds: 5,
	}
	c.World.Users, c.World.Items, c.World.Days = 1000, 800, 10
	c.World.Duplicates, c.World.Broken = 0, 0
	c.Trainer.ReplayRatio = 4
	c.Align.Users, c.Align.HeldOut, c.Align.LearningRate = 400, 200, 3e-5
	return c
}

// Policies that are compared.
const (
	Popularity = "popularity"
	Ranker     = "the log's ranker"
	Pretrained = "pretrained"
	Oracle     = "oracle"
)

// Aligned names the decoder after n rounds.
func Aligned(n int) string {
	if n == 1 {
		return "aligned, 1 round"
	}
	return fmt.Sprintf("aligned, %d rounds", n)
}

// Served is what one user had from one policy.
type Served struct {
	WatchMs, Likes, Views, Sessions float64
}

// Policy is what one policy did in one world.
type Policy struct {
	Name     string
	Users    []Served // by number of the user; users who did not come have none
	Coverage float64  // different items shown, as a share of those that are there
}

// Run is one world.
type Run struct {
	Seed     uint64
	Log      simulator.Summary
	Good     int // good sessions of the log
	Sessions int
	Training trainer.Stats
	Holdout  trainer.Holdout
	Reward   rewarder.Quality
	Rounds   []*rewarder.Outcome
	Variants []*rewarder.Outcome
	Policies []Policy
	Seconds  float64
}

// Loop runs one world. progress may be nil.
func Loop(ctx context.Context, cfg Config, seed uint64, progress func(stage, unit string, done, total int)) (*Run, error) {
	if progress == nil {
		progress = func(string, string, int, int) {}
	}
	begun := time.Now()
	cfg.World.Seed, cfg.Trainer.Seed, cfg.Reward.Seed, cfg.Align.Seed = seed, seed, seed, seed
	cfg.Reward.HoldoutPercent = cfg.Trainer.HoldoutPercent
	l := &loop{cfg: cfg, progress: progress, run: &Run{Seed: seed}, histories: make(map[string]history.Items)}
	for _, step := range []func(context.Context) error{l.log, l.train, l.align, l.serve} {
		if err := step(ctx); err != nil {
			return nil, fmt.Errorf("closed loop, seed %d: %w", seed, err)
		}
	}
	l.run.Seconds = time.Since(begun).Seconds()
	return l.run, nil
}

type loop struct {
	cfg      Config
	progress func(stage, unit string, done, total int)
	run      *Run

	world     *simulator.World // at the end of the log
	ranker    simulator.Policy
	end       time.Time // of the log
	judged    []*onerecv1.JudgedSession
	histories map[string]history.Items // at the end of the log
	views     []float64                // of the log, by item
	watchMs   float64                  // mean of a view
	likes     float64

	cb       *semanticid.Codebook
	versions []version // pretrained first
}

type version struct {
	name    string
	weights *decoder.Weights
}

// log lets the ranker serve, and cuts what it logged into judged sessions.
func (l *loop) log(ctx context.Context) (err error) {
	if l.world, err = simulator.New(l.cfg.World); err != nil {
		return err
	}
	l.ranker = l.world.Ranker()
	l.views = make([]float64, l.world.Items())
	validator := ingest.NewValidator(schemas.DefaultBounds(), nil)
	core := sessionizer.New(sessionizer.DefaultConfig())
	rules, policy := filters.DefaultRules(), history.DefaultPolicy()
	take := func() error {
		for _, closed := range core.TakeClosed() {
			s := new(onerecv1.Session)
			if err := proto.Unmarshal(closed.Value, s); err != nil {
				return err
			}
			l.judged = append(l.judged, &onerecv1.JudgedSession{Session: s, Verdict: rules.Judge(s)})
		}
		return nil
	}
	var events []*onerecv1.ViewEvent
	for e := range l.world.Events() {
		if err := ctx.Err(); err != nil {
			return err
		}
		value, err := proto.Marshal(e)
		if err != nil {
			return err
		}
		view, _, rejected := validator.Check("", value, time.UnixMilli(e.EventTimeMs))
		if rejected != nil {
			continue
		}
		events = append(events, e)
		if value, err = proto.Marshal(view); err != nil {
			return err
		}
		if _, err := core.Add(value); err != nil {
			return err
		}
		core.Advance(e.EventTimeMs)
		if err := take(); err != nil {
			return err
		}
		if err := remember(l.histories, policy, value); err != nil {
			return err
		}
		at, _ := l.world.Item(e.ItemId)
		l.views[at]++
		l.watchMs += float64(e.WatchMs)
		if e.Like {
			l.likes++
		}
		if len(events)%10_000 == 0 {
			l.progress("log", "views", len(events), 0)
		}
	}
	l.end = l.cfg.World.Start.AddDate(0, 0, l.cfg.World.Days)
	core.Advance(l.end.AddDate(0, 0, 1).UnixMilli())
	if err := take(); err != nil {
		return err
	}
	l.run.Log = simulator.Summarize(slices.Values(events), false)
	l.run.Sessions = len(l.judged)
	l.watchMs, l.likes = l.watchMs/float64(len(events)), l.likes/float64(len(events))
	return nil
}

// remember adds a view to its user's history, if it engaged the user.
func remember(of map[string]history.Items, policy history.Policy, view []byte) error {
	var v schemas.RawView
	if err := v.Scan(view); err != nil {
		return err
	}
	if !policy.Engaged(&v) {
		return nil
	}
	user := string(v.UserID)
	of[user], _ = policy.Insert(of[user], &v)
	of[user] = policy.Trim(of[user])
	return nil
}

// train makes the decoder from the good sessions.
func (l *loop) train(ctx context.Context) (err error) {
	learner := trainer.NewLearner(l.cfg.Trainer)
	for _, j := range l.judged {
		if j.Verdict.Good {
			l.run.Good++
			if err := learner.Observe(j.Session); err != nil {
				return err
			}
		}
	}
	if err := learner.Bootstrap(ctx); err != nil {
		return err
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		stepped, err := learner.Step()
		if err != nil {
			return err
		}
		if !stepped {
			break
		}
		n := learner.Stats().Steps
		l.progress("train the decoder", "steps", n, n+learner.Due())
	}
	if l.run.Holdout, err = learner.Evaluate(ctx, func(done, total int) { l.progress("rank for held-out users", "rows", done, total) }); err != nil {
		return err
	}
	l.run.Training = learner.Stats()
	files, config, err := learner.Checkpoint() // what a fleet would load
	if err != nil {
		return err
	}
	w, cb, err := decoder.Decode(files, config)
	if err != nil {
		return err
	}
	l.cb, l.versions = cb, []version{{Pretrained, w}}
	return nil
}

// align makes the rounds; a round that its gates reject leaves the reference where it was.
func (l *loop) align(ctx context.Context) (err error) {
	core := rewarder.NewCore(l.cfg.Reward)
	for _, j := range l.judged {
		core.Add(j)
	}
	reference := l.versions[0].weights
	for round := 1; len(l.cfg.Rounds) > 0 && round <= l.cfg.Rounds[len(l.cfg.Rounds)-1]; round++ {
		if err := core.Learn(ctx, l.cb, uint64(round), l.progress); err != nil {
			return err
		}
		cfg := l.cfg.Align
		cfg.Seed += uint64(round)
		aligned, o, err := core.Round(ctx, reference, l.cb, cfg, l.progress)
		if err != nil {
			return err
		}
		l.run.Rounds = append(l.run.Rounds, o)
		if o.Accepted {
			reference = aligned
		}
		if slices.Contains(l.cfg.Rounds, round) {
			l.versions = append(l.versions, version{Aligned(round), reference})
		}
	}
	if len(l.cfg.Variants) > 0 && len(l.cfg.Rounds) == 0 {
		if err := core.Learn(ctx, l.cb, 1, l.progress); err != nil {
			return err
		}
	}
	for i, v := range l.cfg.Variants {
		v.Align.Seed = l.cfg.Align.Seed + 1
		aligned, o, err := core.Round(ctx, l.versions[0].weights, l.cb, v.Align, func(stage, unit string, done, total int) {
			l.progress(fmt.Sprintf("variant %d of %d, %s: %s", i+1, len(l.cfg.Variants), v.Name, stage), unit, done, total)
		})
		if err != nil {
			return fmt.Errorf("variant %q: %w", v.Name, err)
		}
		if aligned == nil {
			return fmt.Errorf("variant %q came to nothing: %s", v.Name, o.Why)
		}
		l.run.Variants = append(l.run.Variants, o)
		l.versions = append(l.versions, version{v.Name, aligned})
	}
	l.run.Reward = core.Quality()
	return nil
}

// serve lets each policy serve the same users.
func (l *loop) serve(ctx context.Context) error {
	type contender struct {
		name   string
		policy func(w *simulator.World) (simulator.Policy, func(*onerecv1.ViewEvent) error, error)
	}
	plain := func(make func(w *simulator.World) simulator.Policy) func(w *simulator.World) (simulator.Policy, func(*onerecv1.ViewEvent) error, error) {
		return func(w *simulator.World) (simulator.Policy, func(*onerecv1.ViewEvent) error, error) {
			return make(w), nil, nil
		}
	}
	contenders := []contender{
		{Popularity, plain(func(w *simulator.World) simulator.Policy { return w.Popularity(l.views) })},
		{Ranker, plain(func(*simulator.World) simulator.Policy { return l.ranker })},
	}
	for _, v := range l.versions {
		contenders = append(contenders, contender{v.name, func(w *simulator.World) (simulator.Policy, func(*onerecv1.ViewEvent) error, error) {
			s, err := l.server(w, v.weights)
			if err != nil {
				return nil, nil, err
			}
			return s, s.saw, nil
		}})
	}
	contenders = append(contenders, contender{Oracle, plain(func(w *simulator.World) simulator.Policy {
		return w.Oracle(time.Duration(l.watchMs*float64(time.Millisecond)), l.likes)
	})})

	until := l.end.AddDate(0, 0, l.cfg.Days)
	workers := cmp.Or(l.cfg.Workers, runtime.GOMAXPROCS(0))
	for i, c := range contenders {
		l.progress("serve: "+c.name, "policies", i, len(contenders))
		world := l.world.Clone()
		policy, saw, err := c.policy(world)
		if err != nil {
			return err
		}
		p := Policy{Name: c.name, Users: make([]Served, l.cfg.World.Users)}
		shown := make([]map[string]bool, workers)
		errs := make([]error, workers)
		var wg sync.WaitGroup
		for s, shard := range world.Shards(workers) {
			shown[s] = make(map[string]bool)
			wg.Go(func() {
				last := make(map[int32]int64) // time of the user's last view
				var failed error
				err := shard.Run(policy, l.cfg.List, until, func(e *onerecv1.ViewEvent) bool {
					var number int32
					if _, failed = fmt.Sscanf(e.UserId, "u%d", &number); failed != nil {
						return false
					}
					u := &p.Users[number]
					u.Views++
					u.WatchMs += float64(e.WatchMs)
					if e.Like {
						u.Likes++
					}
					if at, ok := last[number]; !ok || e.EventTimeMs-at > 30*60*1000 {
						u.Sessions++
					}
					last[number] = e.EventTimeMs
					shown[s][e.ItemId] = true
					if saw != nil {
						failed = saw(e)
					}
					return failed == nil && ctx.Err() == nil
				})
				errs[s] = errors.Join(err, failed)
			})
		}
		wg.Wait()
		if err := errors.Join(append(errs, ctx.Err())...); err != nil {
			return err
		}
		all := make(map[string]bool)
		for _, s := range shown {
			for item := range s {
				all[item] = true
			}
		}
		live := 0
		for item := range int32(l.world.Items()) {
			if l.world.Live(item, l.end) {
				live++
			}
		}
		p.Coverage = float64(len(all)) / float64(max(live, 1))
		l.run.Policies = append(l.run.Policies, p)
	}
	l.progress("serve", "policies", len(contenders), len(contenders))
	return nil
}

// server recommends as the recommender does: the best list of the beam search after the
// user's history, without what is in it.
type server struct {
	world  *simulator.World
	gen    *decoder.Generator
	cb     *semanticid.Codebook
	beams  int
	policy history.Policy

	mu        sync.Mutex
	histories map[string]history.Items
}

func (l *loop) server(w *simulator.World, weights *decoder.Weights) (*server, error) {
	gen, err := decoder.NewGenerator(weights, l.cb)
	if err != nil {
		return nil, err
	}
	s := &server{world: w, gen: gen, cb: l.cb, beams: l.cfg.Beams, policy: history.DefaultPolicy(), histories: make(map[string]history.Items, len(l.histories))}
	for user, h := range l.histories {
		s.histories[user] = slices.Clone(h)
	}
	return s, nil
}

// saw takes a view into its user's history.
func (s *server) saw(e *onerecv1.ViewEvent) error {
	value, err := proto.Marshal(&onerecv1.View{
		EventId: e.EventId, UserId: e.UserId, ItemId: e.ItemId, EventTimeMs: e.EventTimeMs, WatchMs: e.WatchMs, DurationMs: e.DurationMs,
		Like: e.Like, Follow: e.Follow, Comment: e.Comment, Share: e.Share, Dislike: e.Dislike,
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return remember(s.histories, s.policy, value)
}

// Recommend implements simulator.Policy.
func (s *server) Recommend(v simulator.Visit, n int) (simulator.List, error) {
	s.mu.Lock()
	past := s.histories[v.User]
	s.mu.Unlock()
	o := decoder.Options{Exclude: make(map[int32]bool), Length: n, Width: s.beams}
	for item := range past.All() {
		if i, ok := s.cb.Index(string(item)); ok {
			o.History = append(o.History, s.cb.ID(i))
			o.Exclude[i] = true
		}
	}
	for _, at := range v.Session {
		if i, ok := s.cb.Index(s.world.ItemID(at)); ok {
			o.Exclude[i] = true
		}
	}
	for i := range int32(s.cb.Len()) {
		if at, ok := s.world.Item(s.cb.Item(i)); ok && !s.world.Live(at, v.Now) {
			o.Exclude[i] = true
		}
	}
	lists, err := s.gen.Generate(o)
	if err != nil || len(lists) == 0 {
		return simulator.List{}, err
	}
	var out simulator.List
	for _, i := range lists[0].Items {
		if at, ok := s.world.Item(s.cb.Item(i)); ok {
			out.Items = append(out.Items, at)
		}
	}
	return out, nil
}
