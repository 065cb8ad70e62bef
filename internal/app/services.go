package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/plugin/kprom"
	"golang.org/x/sync/errgroup"

	"onerec/decoder"
	"onerec/filters"
	"onerec/ingest"
	"onerec/internal/access"
	"onerec/internal/buckets"
	"onerec/internal/progress"
	"onerec/internal/registry"
	"onerec/internal/stream"
	"onerec/internal/telemetry"
	"onerec/publisher"
	"onerec/recommender"
	"onerec/rewarder"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
	"onerec/sessionizer"
	"onerec/snapshots"
	"onerec/trainer"
)

// Consumer groups of the stages.
const (
	groupIngest     = "ingest"
	groupSessionize = "sessionize"
	groupFilter     = "filter"
)

// rulesEvery is how often the rules file is looked at.
const rulesEvery = 2 * time.Second

// brokersTimeout is how long a service waits for a first answer.
const brokersTimeout = 15 * time.Second

// App runs services with some settings.
type App struct {
	*Settings
	Log      *slog.Logger
	Progress *progress.Reporter // nil: none

	security []kgo.Opt
	registry *registry.Registry // nil: none
}

// Open takes up what the settings say of the way to the brokers: security, and the
// schema registry, if one is set. What uses the brokers comes after it.
func (a *App) Open(ctx context.Context) (err error) {
	if a.security, err = a.Security.options(); err != nil {
		return err
	}
	if a.SchemaRegistry == "" {
		return nil
	}
	r, err := registry.New(ctx, a.SchemaRegistry, a.RegisterSchemas, a.Log)
	if err != nil {
		return err
	}
	if err := r.Register(ctx); err != nil {
		return err
	}
	a.registry = r
	return nil
}

// cluster says how to reach the brokers.
func (a *App) cluster() stream.Cluster {
	c := stream.Cluster{Brokers: a.Brokers, Options: slices.Clone(a.security)}
	if a.registry != nil {
		c.Options = append(c.Options, kgo.WithHooks(a.registry))
	}
	return c
}

// New returns an app that logs to w.
func New(s *Settings, w io.Writer, p *progress.Reporter) *App {
	return &App{Settings: s, Log: telemetry.NewLogger(w, s.level(), s.LogFormat == "json"), Progress: p}
}

// host is what a service gets from the process around it.
type host struct {
	reg   prometheus.Registerer
	ready func()
}

// Service is one of the services by name.
type service func(ctx context.Context, h host) error

// RunIngest runs ingest, with its admin endpoint, until ctx ends, as do the Run
// methods that follow with theirs.
func (a *App) RunIngest(ctx context.Context) error { return a.serve(ctx, a.ingest) }

// RunSessionize runs the sessionizer.
func (a *App) RunSessionize(ctx context.Context) error {
	// Its memory is mostly state that stays. Collecting at half the usual growth costs
	// no speed that a benchmark shows and saves a quarter of the memory.
	collectAt(50)
	return a.serve(ctx, a.sessionize)
}

// collectAt has garbage collected when memory has grown by so many percent of what is in use, unless the
// environment says otherwise.
func collectAt(percent int) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}

// learning is the growth, in percent, at which services that train collect garbage: what they hold are few large
// pieces without pointers, which take no time to look through (docs/decoder.md).
const learning = 25

// RunFilter runs the filters.
func (a *App) RunFilter(ctx context.Context) error { return a.serve(ctx, a.filter) }

// RunSnapshot runs the snapshot service; with once it ends when what there is now
// is written.
func (a *App) RunSnapshot(ctx context.Context, once bool) error {
	return a.serve(ctx, func(ctx context.Context, h host) error { return a.snapshot(ctx, h, once) })
}

// RunTrain runs the trainer; with once it ends when what there is now is learned.
func (a *App) RunTrain(ctx context.Context, once bool) error {
	collectAt(learning)
	return a.serve(ctx, func(ctx context.Context, h host) error {
		_, err := a.train(ctx, h, once)
		return err
	})
}

// RunReward runs the rewarder; with once it ends after the rounds that the
// settings ask for, and returns them.
func (a *App) RunReward(ctx context.Context, once bool) (report *rewarder.Report, err error) {
	collectAt(learning)
	err = a.serve(ctx, func(ctx context.Context, h host) (err error) {
		report, err = a.reward(ctx, h, once)
		return err
	})
	return report, err
}

// RunServe runs the recommender and its API.
func (a *App) RunServe(ctx context.Context) error {
	if err := a.Auth.Check(a.Listen); err != nil {
		return err
	}
	secure, err := a.Auth.TLS()
	if err != nil {
		return err
	}
	return a.serve(ctx, func(ctx context.Context, h host) error {
		l, err := listen(ctx, a.Listen) // each time that the service starts over
		if err != nil {
			return fmt.Errorf("listen for requests: %w", err)
		}
		a.Log.Info("listening", "address", l.Addr().String())
		if secure != nil {
			l = tls.NewListener(l, secure)
		}
		return a.recommend(ctx, h, l, func(*recommender.Service) {})
	})
}

// serve runs one service as a process does: topics checked first, admin endpoint
// beside it.
func (a *App) serve(ctx context.Context, run service) error {
	if err := a.checkTopics(ctx); err != nil {
		return err
	}
	s := newSupervisor()
	g, ctx := errgroup.WithContext(ctx)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if a.HTTP != "" {
		tokens, err := access.ReadTokens(a.HTTPTokens)
		if err != nil {
			return fmt.Errorf("--http-tokens: %w", err)
		}
		l, err := listen(ctx, a.HTTP)
		if err != nil {
			return fmt.Errorf("listen for health and metrics: %w", err)
		}
		g.Go(func() error { return telemetry.Serve(ctx, l, s.handler(tokens)) })
	}
	g.Go(func() error {
		defer cancel() // a service that ends by itself ends the process
		return s.run(ctx, a.Log, run)
	})
	return g.Wait()
}

func listen(ctx context.Context, address string) (net.Listener, error) {
	return new(net.ListenConfig).Listen(ctx, "tcp", address)
}

// checkTopics says early what is missing.
func (a *App) checkTopics(ctx context.Context) error {
	return a.withClient(ctx, func(cl *kgo.Client) error { return stream.CheckCoPartitioned(ctx, cl) })
}

func (a *App) loop(ctx context.Context, h host, group, topic string, stage stream.Stage) error {
	log := a.Log.With("service", group)
	log.Info("starting", "brokers", a.Brokers, "instance", a.Instance)
	hooks := []kgo.Hook{kafkaMetrics(h.reg)}
	if a.TracesEndpoint != "" {
		begin := 0.0
		if group == groupIngest { // what later stages write without a cause, as their state, begins no trace
			begin = a.TracesShare
		}
		tracing, err := telemetry.NewTracing(ctx, a.TracesEndpoint, group, begin)
		if err != nil {
			return err
		}
		defer func() {
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), tracesTimeout)
			defer cancel()
			if err := tracing.Close(end); err != nil {
				log.Warn("the last traces were not sent", "error", err)
			}
		}()
		hooks = append(hooks, tracing.Hooks(group)...)
	}
	return stream.NewLoop(stream.Config{
		Hooks:   hooks,
		Cluster: a.cluster(), Group: group, Topic: topic, InstanceID: a.Instance, Static: a.Static, CommitInterval: a.CommitInterval,
		Metrics: stream.NewMetrics(h.reg, group), Log: log, OnReady: h.ready,
	}, stage).Run(ctx)
}

// tracesTimeout is how long a service that ends waits for its last traces to be sent.
const tracesTimeout = 3 * time.Second

// kafkaMetrics counts what a stage's client and the brokers say to each other.
func kafkaMetrics(reg prometheus.Registerer) *kprom.Metrics {
	return kprom.NewMetrics("onerec_kafka", kprom.Registerer(reg), kprom.FetchAndProduceDetail(kprom.ByTopic, kprom.Batches, kprom.Records, kprom.CompressedBytes), kprom.BrokerLabels())
}

func (a *App) ingest(ctx context.Context, h host) error {
	keys, err := a.pseudonymKeys()
	if err != nil {
		return err
	}
	return a.loop(ctx, h, groupIngest, schemas.TopicViewsRaw, ingest.NewStage(ingest.NewValidator(a.Bounds, keys), h.reg))
}

func (a *App) sessionize(ctx context.Context, h host) error {
	cfg := a.Sessions
	cfg.History = a.History
	return a.loop(ctx, h, groupSessionize, schemas.TopicViews, sessionizer.NewStage(cfg, a.Idle, h.reg))
}

func (a *App) filter(ctx context.Context, h host) error {
	rules, err := a.rules()
	if err != nil {
		return err
	}
	stage := filters.NewStage(rules, h.reg)
	if a.RulesFile == "" {
		return a.loop(ctx, h, groupFilter, schemas.TopicSessions, stage)
	}
	// The watcher ends with the loop, whatever ends that.
	ctx, cancel := context.WithCancel(ctx)
	tick := time.NewTicker(rulesEvery)
	defer tick.Stop()
	var watcher sync.WaitGroup
	watcher.Go(func() { stage.Follow(ctx, a.RulesFile, tick.C, a.Log.With("service", groupFilter)) })
	defer watcher.Wait()
	defer cancel()
	return a.loop(ctx, h, groupFilter, schemas.TopicSessions, stage)
}

func (a *App) snapshot(ctx context.Context, h host, once bool) error {
	return a.WithSnapshots(ctx, func(store *snapshots.Store) error {
		if err := a.sharable(ctx, store); err != nil {
			return err
		}
		const mib = 1 << 20
		s := &snapshots.Service{
			Cluster: a.cluster(), Store: store, Size: int64(a.SnapshotSize) * mib, Memory: int64(a.SnapshotMemory) * mib, MaxAge: a.SnapshotAge, Dead: a.SnapshotDead, Once: once,
			Static: a.static(snapshots.Group), Log: a.Log.With("service", "snapshot"), Metrics: snapshots.NewMetrics(h.reg), OnReady: h.ready,
		}
		return s.Run(ctx)
	})
}

// WithSnapshots opens the snapshots for the time of fn.
func (a *App) WithSnapshots(ctx context.Context, fn func(*snapshots.Store) error) (err error) {
	store, err := snapshots.Open(ctx, a.SnapshotDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	return fn(store)
}

// probeTimeout bounds what a writing service waits for an answer from its object store before it starts.
const probeTimeout = 15 * time.Second

// sharable ends a service whose object store would let another writer overwrite what it has written: checkpoint
// numbers and the snapshots' log rest on that.
func (a *App) sharable(ctx context.Context, store interface{ CheckCreate(context.Context) error }) error {
	probe, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	switch err := store.CheckCreate(probe); {
	case ctx.Err() != nil: // the service was asked to stop, and sees that itself
	case errors.Is(err, buckets.ErrNoCreate):
		return fmt.Errorf("%w: its server does not keep If-None-Match; docs/checkpoints.md says what is asked of one", err)
	case err != nil: // a store that is away for a while is no reason not to start
		a.Log.Warn("it could not be found out whether the object store is safe for two writers", "error", err)
	}
	return nil
}

// static names this process as a static member of a group; empty if it is to be a dynamic
// one.
func (a *App) static(group string) string {
	if !a.Static {
		return ""
	}
	return group + "-" + a.Instance
}

// withStore opens the checkpoints for the time of fn.
func (a *App) withStore(ctx context.Context, fn func(*publisher.Store) error) (err error) {
	o := publisher.Options{Retain: publisher.GC{Keep: a.KeepCheckpoints, KeepFor: a.KeepCheckpointsFor}}
	if a.SignKeyFile != "" {
		if o.Sign, err = publisher.ReadPrivateKey(a.SignKeyFile); err != nil {
			return err
		}
	}
	for _, file := range a.TrustKeyFiles {
		k, err := publisher.ReadPublicKey(file)
		if err != nil {
			return err
		}
		o.Trust = append(o.Trust, k)
	}
	if a.Progress != nil {
		const mib = 1 << 20
		o.Progress = func(done, total int64) {
			if total >= 16*mib { // less is there at once
				a.Progress.Update("checkpoint's files", "MiB", int(done/mib), int(total/mib))
			}
		}
	}
	store, err := publisher.Open(ctx, a.Bucket, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	return fn(store)
}

func (a *App) train(ctx context.Context, h host, once bool) (c *trainer.Candidate, err error) {
	err = a.withStore(ctx, func(store *publisher.Store) error {
		if err := a.sharable(ctx, store); err != nil {
			return err
		}
		s := &trainer.Service{
			Cluster: a.cluster(), Store: store, Model: a.Model, Learner: a.Train,
			Bootstrap: a.Bootstrap, PublishSteps: a.PublishSteps, PublishEvery: a.PublishEvery, Once: once,
			Static: a.static(trainer.Group), Log: a.Log.With("service", "train"), Metrics: trainer.NewMetrics(h.reg), OnReady: h.ready,
			Progress: a.Progress.Update,
		}
		if a.FromSnapshots != "" {
			if _, err := time.Parse(time.DateOnly, a.SnapshotsSince); a.SnapshotsSince != "" && err != nil {
				return fmt.Errorf("--snapshots-since %q is no day; write it as 2026-01-31", a.SnapshotsSince)
			}
			history, err := snapshots.Open(ctx, a.FromSnapshots)
			if err != nil {
				return err
			}
			defer func() { _ = history.Close() }() // it was only read
			s.Backfill = &trainer.Backfill{Store: history, Since: a.SnapshotsSince, SkipDamaged: a.SkipDamaged}
		}
		c, err = s.Run(ctx)
		a.Progress.Done()
		return err
	})
	return c, err
}

func (a *App) reward(ctx context.Context, h host, once bool) (report *rewarder.Report, err error) {
	err = a.withStore(ctx, func(store *publisher.Store) error {
		if err := a.sharable(ctx, store); err != nil {
			return err
		}
		align := a.Align
		align.Seed, align.BatchTokens = a.Train.Seed, a.Train.BatchTokens
		reward := a.Reward
		reward.Seed, reward.HoldoutPercent = a.Train.Seed, a.Train.HoldoutPercent
		var onRound func(*onerecv1.AlignmentRound, *rewarder.Outcome)
		if a.RewardReports != "" {
			onRound = func(round *onerecv1.AlignmentRound, o *rewarder.Outcome) {
				if err := writeRound(a.RewardReports, round, o); err != nil { // the round stands
					a.Log.Error("a round's report was not written", "error", err)
				}
			}
		}
		s := &rewarder.Service{
			OnRound: onRound,
			Cluster: a.cluster(), Store: store, Model: a.Model, Reward: reward, Align: align, Every: a.RewardEvery, NewSessions: a.RewardNewSessions, Once: once, Rounds: a.Rounds,
			Static: a.static(rewarder.Group), Log: a.Log.With("service", "reward"), Metrics: rewarder.NewMetrics(h.reg), OnReady: h.ready,
			Progress: a.Progress.Update,
		}
		report, err = s.Run(ctx)
		a.Progress.Done()
		return err
	})
	return report, err
}

// recommend runs the recommender with its API on l; use gets the service once it
// runs.
func (a *App) recommend(ctx context.Context, h host, l net.Listener, use func(*recommender.Service)) error {
	return a.withStore(ctx, func(store *publisher.Store) error {
		s, err := a.recommender(store)
		if err != nil {
			return errors.Join(err, l.Close())
		}
		s.Log, s.Metrics = a.Log.With("service", "serve"), recommender.NewMetrics(h.reg)
		s.OnReady = h.ready
		s.Open()
		use(s)
		handler, err := a.Auth.Protect(s.Handler())
		if err != nil {
			return errors.Join(err, l.Close())
		}
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return s.Run(ctx) })
		g.Go(func() error { return telemetry.Serve(ctx, l, handler) })
		return g.Wait()
	})
}

func (a *App) recommender(store *publisher.Store) (*recommender.Service, error) {
	numbers, err := decoder.ParseNumbers(a.Numbers)
	if err != nil {
		return nil, err
	}
	return &recommender.Service{
		CanaryPercent: a.CanaryPercent, MaxWait: a.MaxWait, Timeout: a.RequestTimeout, MaxModelAge: a.MaxModelAge, MaxViewAge: a.MaxViewAge,
		Cluster: a.cluster(), Store: store, Model: a.Model, Channel: a.Channel, Policy: a.History,
		Beams: a.Beams, Numbers: numbers, MaxUsers: a.MaxUsers, MaxItems: a.MaxItems, HistoryCache: int64(a.HistoryCache) << 20,
	}, nil
}
