package trainer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/decoder"
	"onerec/internal/kernels"
	"onerec/internal/stream"
	"onerec/publisher"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

// Group is the trainer's consumer group. Its members agree on which of them
// trains; offsets are in the checkpoints, not in the group.
const Group = "train"

// Service trains one model on sessions.good and publishes candidates.
type Service struct {
	Cluster stream.Cluster
	Store   *publisher.Store
	Model   string
	Learner Config

	Bootstrap    int           // good sessions from which the codebook and the first weights are made
	PublishSteps int           // a candidate is published after this many steps, ...
	PublishEvery time.Duration // ... or this long after the last one, if there were any
	Once         bool          // end, with a candidate, when the sessions that there are now have been learned

	Backfill *Backfill // what a new model learns first; nil: nothing

	// Static is the name of a static member of the group, see [stream.Lead]; empty: a
	// dynamic one.
	Static   string
	Log      *slog.Logger
	Metrics  *Metrics
	OnReady  func()
	Progress func(stage, unit string, done, total int) // or nil
}

// Candidate is what a run published last.
type Candidate struct {
	Manifest *publisher.Manifest
	Hash     string // of the manifest
	Stats    Stats
	Holdout  Holdout
	// Prequential is over the held-out sessions that came since the candidate before, each
	// scored when it came.
	Prequential Holdout
}

// Run works until ctx ends or, with Once, until it is done; it returns the last
// candidate, nil if there was none.
func (s *Service) Run(ctx context.Context) (*Candidate, error) {
	var last *Candidate
	err := stream.Lead(ctx, s.Cluster, Group, s.Static, s.OnReady, func(ctx context.Context) error {
		r := &run{Service: s, learner: NewLearner(s.Learner), offsets: make(map[int32]int64), items: make(map[int32]int64)}
		r.learner.Available = availableMemory()
		err := r.run(ctx)
		if r.last != nil {
			last = r.last
		}
		if ctx.Err() == nil {
			return err
		}
		// Asked to stop: what was learned since the last candidate is learned again.
		return nil
	})
	if err != nil {
		return last, fmt.Errorf("train: %w", err)
	}
	return last, nil
}

// run is one term as the model's only trainer.
type run struct {
	*Service
	learner *Learner
	offsets map[int32]int64 // of sessions.good: the next session to learn
	items   map[int32]int64 // of items: the next record to read
	parent  string          // version that the weights came from
	release string          // newest release among that version and its ancestors

	peak float64 // FLOP/s of the matrix product

	back *backfill // nil: there is none

	published   Stats     // as of the last candidate
	retryAt     time.Time // a checkpoint could not be written before
	publishedAt time.Time
	waiting     ages // sessions that came since the last publish
	last        *Candidate
}

func (r *run) run(ctx context.Context) error {
	if err := r.resume(ctx); err != nil {
		return err
	}
	if r.back != nil && r.back.end == nil || r.back == nil && r.parent == "" && r.Backfill != nil {
		if r.Backfill == nil {
			return fmt.Errorf("candidate %s has learned a part of its snapshots; go on with --from-snapshots, or train under another model name", r.parent)
		}
		if err := r.fill(ctx, false); err != nil {
			return err
		}
		if err := r.handOver(ctx); err != nil {
			return err
		}
	}
	todo, err := r.Cluster.Unread(ctx, schemas.TopicGoodSessions, r.offsets)
	if err != nil {
		return err
	}
	type arrived struct { // partitions are decoded side by side, and learned from one after the other
		*onerecv1.Session
		at time.Time
	}
	parse := func(rec *kgo.Record) (arrived, error) {
		s, err := ParseGood(rec)
		return arrived{s, rec.Timestamp}, err
	}
	end := func(a arrived) int64 { return a.EndMs }
	err = stream.ReadMerged(ctx, r.Cluster, schemas.TopicGoodSessions, todo, parse, end, func(a arrived) error {
		r.waiting.add(a.at)
		return r.learn(ctx, a.Session)
	})
	if err != nil {
		return err
	}
	stream.Advance(r.offsets, todo)
	if r.Once {
		if !r.learner.Ready() {
			if r.learner.Waiting() == 0 {
				return fmt.Errorf("topic %s holds no session; nothing can be learned. Do the filter's rules let any pass?", schemas.TopicGoodSessions)
			}
			if err := r.bootstrap(ctx); err != nil {
				return err
			}
		}
		if r.last != nil && r.learner.Stats().Steps == r.published.Steps {
			return nil
		}
		return r.publish(ctx)
	}
	return r.follow(ctx)
}

// resume continues from the newest candidate, if there is one.
func (r *run) resume(ctx context.Context) error {
	r.publishedAt = time.Now()
	refs, err := publisher.Current(ctx, r.Cluster, r.Model)
	if err != nil {
		return err
	}
	ref := refs[publisher.ChannelCandidate]
	if ref == nil {
		return nil
	}
	m, files, err := r.Store.Load(ctx, ref.Version, ref.ManifestSha256)
	if err != nil {
		return fmt.Errorf("resume from candidate %s: %w", ref.Version, err)
	}
	if err := r.learner.Resume(files, m.Config); err != nil {
		return fmt.Errorf("resume from candidate %s: %w", ref.Version, err)
	}
	r.parent, r.published, r.back = m.Version, r.learner.Stats(), backfillFrom(m)
	switch {
	case r.back != nil && r.Backfill != nil:
		if err := r.fill(ctx, true); err != nil {
			return fmt.Errorf("fill the replay buffer: %w", err)
		}
	case r.back != nil:
		r.Log.Warn("the model began with snapshots; without --from-snapshots the replay buffer holds only what the topic has", "sessions", r.back.seen)
	case r.Backfill != nil:
		r.Log.Warn("the model has begun without snapshots and learns nothing from them; train under another model name", "version", m.Version)
	}
	if err := r.describe(ctx, m.Offsets[schemas.TopicItems]); err != nil {
		return err
	}
	spans, err := r.Cluster.Spans(ctx, schemas.TopicGoodSessions)
	if err != nil {
		return err
	}
	for p, next := range m.Offsets[schemas.TopicGoodSessions] {
		r.offsets[p] = next
		if s, ok := spans[p]; ok && next > s.To {
			return fmt.Errorf("candidate %s has learned topic %s partition %d up to offset %d, which ends at %d; was the topic recreated? Train under another model name", m.Version, schemas.TopicGoodSessions, p, next, s.To)
		}
	}
	for p, s := range spans {
		spans[p] = r.back.begin(p, stream.Span{From: s.From, To: r.offsets[p]})
	}
	n := 0
	err = stream.ReadMerged(ctx, r.Cluster, schemas.TopicGoodSessions, spans, ParseGood, endOf, func(s *onerecv1.Session) error {
		n++
		return r.learner.Remember(s)
	})
	if err != nil {
		return fmt.Errorf("fill the replay buffer: %w", err)
	}
	if r.release, err = r.Store.NewestAligned(ctx, m, ""); err != nil {
		return err
	}
	r.trains()
	r.Log.Info("resumed training", "version", m.Version, "steps", r.published.Steps, "replayed_sessions", n)
	return r.rebase(ctx, false)
}

// follow trains on the stream as it comes.
func (r *run) follow(ctx context.Context) error {
	at := make(map[int32]kgo.Offset)
	for p, next := range r.offsets {
		at[p] = kgo.NewOffset().At(next)
	}
	cl, err := r.Cluster.Client(
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{schemas.TopicGoodSessions: at}),
	)
	if err != nil {
		return err
	}
	defer cl.Close()
	for {
		poll, cancel := context.WithTimeout(ctx, time.Second)
		fetches := cl.PollRecords(poll, 500)
		cancel()
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, e := range fetches.Errors() {
			if poll.Err() == nil {
				return fmt.Errorf("read topic %s partition %d: %w", e.Topic, e.Partition, e.Err)
			}
		}
		for rec := range fetches.RecordsAll() {
			s, err := ParseGood(rec)
			if err != nil {
				return fmt.Errorf("topic %s partition %d offset %d: %w", rec.Topic, rec.Partition, rec.Offset, err)
			}
			if err := r.learn(ctx, s); err != nil {
				return err
			}
			r.offsets[rec.Partition] = rec.Offset + 1
			r.waiting.add(rec.Timestamp)
		}
		if err := r.publishIfDue(ctx); err != nil {
			return err
		}
	}
}

// publishIfDue publishes a candidate after enough steps, or enough time.
func (r *run) publishIfDue(ctx context.Context) error {
	steps := r.learner.Stats().Steps - r.published.Steps
	if !r.learner.Ready() || steps == 0 || time.Now().Before(r.retryAt) || steps < r.PublishSteps && time.Since(r.publishedAt) < r.PublishEvery {
		return nil
	}
	if err := r.rebase(ctx, true); err != nil { // a candidate that came from what was taken back would be for nothing
		return err
	}
	if err := r.publish(ctx); errors.Is(err, errNotStored) && ctx.Err() == nil {
		// The last checkpoint stands and says where to read on from, so that nothing
		// is lost by going on; the next one will have all of it.
		pause := min(r.PublishEvery, storeRetry)
		r.retryAt = time.Now().Add(pause)
		r.Log.Error("no checkpoint could be written; training goes on and tries again", "in", pause, "error", err)
		r.Metrics.notStored()
		return nil
	} else if err != nil {
		return err
	}
	return r.rebase(ctx, false)
}

// learn takes one session and makes the steps that it pays for, so that what is
// learned depends on the order of sessions alone.
func (r *run) learn(ctx context.Context, s *onerecv1.Session) error {
	before := r.learner.Stats().Unassigned
	if err := r.learner.Observe(s); err != nil {
		return err
	}
	if n := r.learner.Stats().Unassigned; n > before && n&(n-1) == 0 { // at 1, 2, 4, 8, ...
		r.Log.Warn("the codebook is full: new items are not learned; train a new model with more --codes", "sessions_with_such_items", n)
	}
	if !r.learner.Ready() {
		if r.learner.Waiting() < r.Bootstrap {
			return nil
		}
		return r.bootstrap(ctx)
	}
	return r.steps(ctx)
}

func (r *run) bootstrap(ctx context.Context) error {
	if err := r.describe(ctx, nil); err != nil {
		return err
	}
	r.Log.Info("building the codebook", "sessions", r.learner.Waiting(), "items_described", r.learner.Catalogue().Len())
	if err := r.learner.Bootstrap(ctx); err != nil {
		return err
	}
	r.trains()
	return r.steps(ctx)
}

// steps trains until nothing is due.
func (r *run) steps(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		before := r.learner.Stats()
		stepped, err := r.learner.Step()
		if err != nil {
			return err
		}
		if !stepped {
			return nil
		}
		st := r.learner.Stats()
		if st.Skipped > before.Skipped {
			r.Log.Warn("a training step was not finite: skipped, continuing from the averaged weights", "step", st.Steps)
		}
		if st.Rollbacks > before.Rollbacks {
			r.Log.Error("training has diverged: back to the averaged weights; choose a lower --learning-rate if it happens again", "step", st.Steps, "loss", st.LastLoss)
		}
		r.Metrics.step(st, r.learner.raw.Config, r.peak)
		if r.Progress != nil {
			r.Progress("train the decoder", "steps", st.Steps, st.Steps+r.learner.Due())
		}
	}
}

// storeRetry is how long a checkpoint that could not be written waits for the next try
// at most.
const storeRetry = 30 * time.Second

// errNotStored says that a checkpoint is not in the store.
var errNotStored = errors.New("the checkpoint was not stored")

// trains says what training takes, and finds what the processors can do.
func (r *run) trains() {
	m := r.learner.Memory()
	const mib = 1 << 20
	r.Log.Info("memory of training, at most", "mib", m.Total()/mib, "weights", m.Weights/mib, "optimizer", m.Optimizer/mib, "activations", m.Activations/mib, "scratch", m.Scratch/mib, "scorer", m.Scorer/mib, "replay_buffer", m.Buffer/mib)
	r.Metrics.memory(m)
	if r.Metrics != nil && r.peak == 0 {
		r.peak = kernels.Peak()
	}
}

// describe reads on in the items topic: to its end, or, to know what the learner of a
// checkpoint knew, up to the given offsets. Items are only looked at here, at the beginning
// and before each candidate, so that what is learned between two candidates depends on the
// sessions alone.
func (r *run) describe(ctx context.Context, until map[int32]int64) error {
	spans, err := r.Cluster.Unread(ctx, schemas.TopicItems, r.items)
	if err != nil {
		return err
	}
	if until != nil {
		for p, s := range spans {
			spans[p] = stream.Span{From: s.From, To: min(s.To, until[p])}
		}
	}
	refused := r.learner.Catalogue().Refused
	decode := func(rec *kgo.Record) (*kgo.Record, error) { return rec, nil }
	err = stream.ReadMerged(ctx, r.Cluster, schemas.TopicItems, spans, decode, func(rec *kgo.Record) int64 { return rec.Timestamp.UnixMilli() }, func(rec *kgo.Record) error {
		if rec.Value == nil {
			return r.learner.Describe(string(rec.Key), nil)
		}
		item := new(onerecv1.Item)
		if err := proto.Unmarshal(rec.Value, item); err != nil {
			r.Log.Warn("a record is no Item and is passed over", "topic", rec.Topic, "partition", rec.Partition, "offset", rec.Offset, "error", err)
			return nil
		}
		if until != nil { // who was to get an ID then has it
			r.learner.Catalogue().Put(item)
			return nil
		}
		return r.learner.Describe(item.ItemId, item)
	})
	if err != nil {
		return fmt.Errorf("read what is known of items: %w", err)
	}
	stream.Advance(r.items, spans)
	if c := r.learner.Catalogue(); c.Refused > refused {
		r.Log.Warn("items or embeddings were not taken", "topic", schemas.TopicItems, "count", c.Refused-refused, "last", c.Why)
	}
	return nil
}

// rebuild makes a new codebook if the catalogue has outgrown the present one.
func (r *run) rebuild(ctx context.Context) error {
	if !r.learner.Outgrown() {
		return nil
	}
	st := r.learner.Stats()
	r.Log.Info("building the codebook anew", "items_then", st.Built, "items_since", st.New, "displaced", st.Displaced)
	kept, err := r.learner.Rebuild(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil { // the present one goes on
		r.Log.Error("the codebook can't be built anew; new items still get IDs as long as there is room. Train a new model with more --codes", "error", err)
		return nil
	}
	r.Log.Info("built the codebook anew", "version", r.learner.cb.Version(), "items", r.learner.cb.Len(), "codes_kept_by_level_and_ids_kept", fmt.Sprintf("%.2f", kept))
	return nil
}

// publish evaluates the averaged weights and announces them as the candidate.
func (r *run) publish(ctx context.Context) error {
	var progress func(done, total int)
	if r.Progress != nil {
		progress = func(done, total int) { r.Progress("rank for held-out users", "rows", done, total) }
	}
	pre, err := r.learner.Prequential(ctx) // before an item gets an ID, or another one
	if err != nil {
		return fmt.Errorf("score the held-out users who came: %w", err)
	}
	if err := r.describe(ctx, nil); err != nil {
		return err
	}
	if err := r.rebuild(ctx); err != nil {
		return err
	}
	h, err := r.learner.Evaluate(ctx, progress)
	if err != nil {
		return fmt.Errorf("evaluate on held-out users: %w", err)
	}
	files, config, err := r.learner.Checkpoint()
	if err != nil {
		return err
	}
	st := r.learner.Stats()
	m := &publisher.Manifest{
		Model: r.Model, Kind: publisher.KindBase, Parent: r.parent, Codebook: r.learner.cb.Version(), Config: config,
		Offsets: map[string]map[int32]int64{schemas.TopicGoodSessions: maps.Clone(r.offsets), schemas.TopicItems: maps.Clone(r.items)},
		Metrics: map[string]float64{
			"train_steps": float64(st.Steps), "train_tokens": float64(st.Tokens), "train_loss": st.LastLoss,
			"items": float64(r.learner.cb.Len()), "items_since_codebook": float64(st.New), "items_displaced": float64(st.Displaced), "codebook_rebuilds": float64(st.Rebuilds),
			"holdout_loss": h.Loss, "holdout_hit_rate_10": h.HitRate10, "holdout_ndcg_10": h.NDCG10,
			"popularity_hit_rate_10": h.PopularHitRate10, "popularity_ndcg_10": h.PopularNDCG10,
			"last_item_hit_rate_10": h.LastItemHitRate10, "last_item_ndcg_10": h.LastItemNDCG10,
		},
	}
	r.back.offsets(m.Offsets)
	if pre.Predictions > 0 {
		maps.Copy(m.Metrics, map[string]float64{
			"prequential_predictions": float64(pre.Predictions), "prequential_loss": pre.Loss,
			"prequential_hit_rate_10": pre.HitRate10, "prequential_ndcg_10": pre.NDCG10,
			"prequential_popularity_hit_rate_10": pre.PopularHitRate10, "prequential_popularity_ndcg_10": pre.PopularNDCG10,
			"prequential_last_item_hit_rate_10": pre.LastItemHitRate10, "prequential_last_item_ndcg_10": pre.LastItemNDCG10,
		})
	}
	maps.Copy(m.Metrics, r.waiting.metrics(time.Now()))
	hash, err := r.Store.Publish(ctx, m, files)
	if err != nil {
		return fmt.Errorf("%w: %w", errNotStored, err)
	}
	if err := r.announce(ctx, m.Version, hash); err != nil {
		return err
	}
	r.last = &Candidate{m, hash, st, h, pre}
	r.learner.ResetPrequential()
	r.learner.Published()
	r.parent, r.published, r.publishedAt, r.waiting = m.Version, st, time.Now(), ages{}
	r.Metrics.candidate(st, h, pre)
	r.Log.Info("published candidate", "version", m.Version, "steps", st.Steps, "loss", st.LastLoss, "holdout_loss", h.Loss, "hit_rate_10", h.HitRate10, "prequential_hit_rate_10", pre.HitRate10)
	return nil
}

func (r *run) announce(ctx context.Context, version, hash string) error {
	if _, err := publisher.Announce(ctx, r.Cluster, r.Store, publisher.ChannelCandidate, version, hash); err != nil {
		return err
	}
	removed, err := publisher.Retain(ctx, r.Cluster, r.Store)
	if err != nil { // the next one will
		r.Log.Warn("old checkpoints could not be removed", "error", err)
	} else if n := len(removed.Versions) + len(removed.Unfinished); n > 0 {
		r.Log.Info("removed old checkpoints", "versions", n, "bytes", removed.Bytes)
	}
	return nil
}

// rebase continues from what is released, if that is not what the lineage continued from
// already: an aligned version that is newer and came out of an earlier candidate, or any older one, to
// which somebody rolled back; with back only the latter. What was trained since then is given up, and
// comes back from the replay buffer. A release of another codebook is not taken.
func (r *run) rebase(ctx context.Context, back bool) error {
	refs, err := publisher.Current(ctx, r.Cluster, r.Model)
	if err != nil {
		return err
	}
	ref := refs[publisher.ChannelReleased]
	if ref == nil || ref.Version == r.release {
		return nil
	}
	if newer := ref.Version > r.release; newer && (back || ref.Kind != publisher.KindAligned) {
		return nil
	}
	r.release = ref.Version // also if it is not taken: it is looked at once
	m, files, err := r.Store.Load(ctx, ref.Version, ref.ManifestSha256)
	if err != nil {
		return fmt.Errorf("rebase onto %s: %w", ref.Version, err)
	}
	w, cb, err := decoder.Decode(files, m.Config)
	if err != nil {
		return fmt.Errorf("rebase onto %s: %w", ref.Version, err)
	}
	if err := r.learner.Rebase(w, cb); err != nil {
		r.Log.Warn("the released version was not taken over", "version", ref.Version, "error", err)
		return nil
	}
	r.parent = m.Version
	r.Log.Info("continuing from the released version", "version", m.Version)
	return nil
}

// ParseGood decodes a record of sessions.good.
func ParseGood(r *kgo.Record) (*onerecv1.Session, error) {
	good := new(onerecv1.GoodSession)
	if err := proto.Unmarshal(r.Value, good); err != nil {
		return nil, fmt.Errorf("no GoodSession (only filter may write there): %w", err)
	}
	if good.Session == nil {
		return nil, fmt.Errorf("a GoodSession without a session (only filter may write there)")
	}
	return good.Session, nil
}

func endOf(s *onerecv1.Session) int64 { return s.EndMs }

// Metrics are the trainer's Prometheus metrics. A nil *Metrics counts nothing.
type Metrics struct {
	steps, tokens, loss, norm, speed prometheus.Gauge
	items, fresh, displaced          prometheus.Gauge
	utilisation, bytes, back         prometheus.Gauge
	failed                           prometheus.Counter
	hitRate, prequential             *prometheus.GaugeVec
	prequentialLoss                  prometheus.Gauge
}

// NewMetrics registers the trainer's metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
		reg.MustRegister(g)
		return g
	}
	m := &Metrics{
		steps:       gauge("onerec_train_steps", "Training steps of the model since it began."),
		tokens:      gauge("onerec_train_tokens", "Tokens trained on since the model began."),
		loss:        gauge("onerec_train_loss_nats", "Running mean of the next-token loss, nats a token."),
		norm:        gauge("onerec_train_gradient_norm", "Gradient norm of the last step, before clipping."),
		speed:       gauge("onerec_train_tokens_per_second", "Speed of training steps."),
		back:        gauge("onerec_train_rollbacks", "How often training went back to the averaged weights: a step was not finite, or the loss had run away."),
		utilisation: gauge("onerec_train_flop_utilisation_ratio", "Model FLOP/s of training as a share of what the matrix product reaches alone on this machine."),
		bytes:       gauge("onerec_train_memory_bytes", "What training takes at most: weights, optimizer, activations, replay buffer."),
		items:       gauge("onerec_train_items", "Items that have a semantic ID."),
		fresh:       gauge("onerec_train_items_since_codebook", "Items that got their ID after the codebook was built."),
		displaced:   gauge("onerec_train_items_displaced", "Those of them whose nearest ID was taken; when many are, build the codebook anew."),
		failed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "onerec_train_checkpoints_failed_total", Help: "Checkpoints that could not be written; the one before stands.",
		}),
		hitRate: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "onerec_train_holdout_hit_rate_10", Help: "Hit rate at 10 on held-out users: of the newest candidate, of the most popular items, and of those that most often followed the last item.",
		}, []string{"model"}),
	}
	m.prequential = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "onerec_train_prequential_hit_rate_10", Help: "Hit rate at 10 on held-out users' sessions, each scored when it came, between the two newest candidates.",
	}, []string{"model"})
	m.prequentialLoss = gauge("onerec_train_prequential_loss_nats", "Next-token loss on held-out users' sessions, each scored when it came, between the two newest candidates.")
	reg.MustRegister(m.hitRate, m.prequential, m.failed)
	return m
}

func (m *Metrics) memory(of Memory) {
	if m != nil {
		m.bytes.Set(float64(of.Total()))
	}
}

// step shows the counters after a step; peak is what the processors can do, FLOP/s.
func (m *Metrics) step(s Stats, c decoder.Config, peak float64) {
	if m == nil {
		return
	}
	if peak > 0 && s.Seconds > 0 {
		m.utilisation.Set(c.FLOPs(1) * s.TokensPerSecond() / peak)
	}
	m.steps.Set(float64(s.Steps))
	m.back.Set(float64(s.Skipped + s.Rollbacks))
	m.tokens.Set(float64(s.Tokens))
	m.loss.Set(s.LastLoss)
	m.norm.Set(s.GradNorm)
	m.speed.Set(s.TokensPerSecond())
}

func (m *Metrics) notStored() {
	if m != nil {
		m.failed.Inc()
	}
}

func (m *Metrics) candidate(s Stats, h, pre Holdout) {
	if m == nil {
		return
	}
	m.items.Set(float64(s.Built + s.New))
	m.fresh.Set(float64(s.New))
	m.displaced.Set(float64(s.Displaced))
	show := func(g *prometheus.GaugeVec, h Holdout) {
		g.WithLabelValues("candidate").Set(h.HitRate10)
		g.WithLabelValues("popularity").Set(h.PopularHitRate10)
		g.WithLabelValues("last_item").Set(h.LastItemHitRate10)
	}
	show(m.hitRate, h)
	if pre.Predictions > 0 {
		show(m.prequential, pre)
		m.prequentialLoss.Set(pre.Loss)
	}
}
