// Package rewarder improves the decoder by what sessions are worth, rather than
// by what was watched alone.
//
// A [Model], the reward model, learns from all sessions, not only the good ones,
// what a user will make of a list: likes, completion, watch time. In a round
// ([Align]) the newest decoder, frozen as the reference, draws N candidate
// sessions for each of a sample of users; the reward model picks the best and the
// worst; DPO teaches the decoder to prefer the one to the other (OneRec, arXiv
// 2502.18965, section 3.4).
//
// A round must prove itself: it is judged on users whom neither the decoder nor
// the reward model was ever trained on, against the reference and with the same
// random numbers, and only a round that passes every one of the [Gates] is
// released. Every round, released or not, is a record on the rounds topic that
// says why.
//
// The score is the reward model's own (as in the paper's offline table): that a
// round scores higher does not show that people watch longer. Only an experiment
// does.
package rewarder

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/decoder"
	"onerec/internal/safetensors"
	"onerec/internal/stream"
	"onerec/publisher"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
	"onerec/semanticid"
)

// Group is the rewarder's consumer group. Its members agree on which of them
// works.
const Group = "reward"

// FileReward is the reward model's file in an aligned checkpoint.
const FileReward = "reward.safetensors"

// Service runs rounds.
type Service struct {
	Cluster stream.Cluster
	Store   *publisher.Store
	Model   string

	Reward CoreConfig
	Align  AlignConfig

	// A round begins when Every has passed since the last one, or NewSessions are new; 0: only by time.
	Every       time.Duration
	NewSessions int
	Once        bool // end after Rounds rounds
	// Rounds is how many rounds a run with Once makes.
	Rounds int

	// Static is the name of a static member of the group, see [stream.Lead]; empty: a
	// dynamic one.
	Static   string
	Log      *slog.Logger
	Metrics  *Metrics
	OnReady  func()
	OnRound  func(*onerecv1.AlignmentRound, *Outcome)  // a round was recorded; or nil
	Progress func(stage, unit string, done, total int) // or nil
}

// Report is what a run found.
type Report struct {
	Quality Quality
	Rounds  []*onerecv1.AlignmentRound
}

// Run works until ctx ends or, with Once, until its rounds are done.
func (s *Service) Run(ctx context.Context) (*Report, error) {
	var last *Report
	err := stream.Lead(ctx, s.Cluster, Group, s.Static, s.OnReady, func(ctx context.Context) error {
		r := &run{Service: s, core: NewCore(s.Reward), offsets: make(map[int32]int64), items: make(map[int32]int64), report: new(Report)}
		err := r.run(ctx)
		last = r.report
		if ctx.Err() == nil {
			return err
		}
		// Asked to stop: a round that was not published leaves nothing behind.
		return nil
	})
	if err != nil {
		return last, fmt.Errorf("reward: %w", err)
	}
	return last, nil
}

// run is one term as the model's only rewarder.
type run struct {
	*Service
	core    *Core
	offsets map[int32]int64 // of sessions.judged: the next session to read
	items   map[int32]int64 // of the items topic: the next record
	rounds  int32           // made so far, by anyone
	descent descent
	report  *Report
}

func (r *run) run(ctx context.Context) error {
	err := r.Cluster.ReadTopic(ctx, schemas.TopicRounds, func(rec *kgo.Record) error {
		round := new(onerecv1.AlignmentRound)
		if err := proto.Unmarshal(rec.Value, round); err != nil {
			return fmt.Errorf("topic %s offset %d is no AlignmentRound: %w", rec.Topic, rec.Offset, err)
		}
		if round.Model == r.Model {
			r.rounds = max(r.rounds, round.Round)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if r.Once {
		for range r.Rounds {
			ref, err := r.reference(ctx)
			if err != nil {
				return err
			}
			if ref == nil {
				return fmt.Errorf("there is no candidate of model %q to align; run \"onerec train\" first", r.Model)
			}
			if err := r.read(ctx); err != nil {
				return err
			}
			if err := r.round(ctx, ref); err != nil {
				return err
			}
		}
		return nil
	}
	plan := schedule{every: r.Every, newSessions: int64(r.NewSessions)}
	for {
		ref, err := r.reference(ctx)
		if err != nil {
			return err
		}
		if ref == nil {
			r.Log.Info("waiting for a first candidate")
		} else {
			if err := r.read(ctx); err != nil {
				return err
			}
			if plan.due(ref.Version, r.core.Sessions(), time.Now()) {
				if err := r.round(ctx, ref); err != nil {
					return err
				}
				plan.made(ref.Version, r.core.Sessions(), time.Now())
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(plan.wait(time.Now())):
		}
	}
}

// schedule says when a round begins: after a time, or when enough sessions are new.
type schedule struct {
	every       time.Duration
	newSessions int64 // 0: only by time

	reference string // of the last round
	sessions  int64  // that were known to it
	next      time.Time
}

// due reports whether a round begins; the same reference and the same sessions again would say
// the same again.
func (s *schedule) due(reference string, sessions int64, now time.Time) bool {
	if reference == s.reference && sessions == s.sessions {
		return false
	}
	return !now.Before(s.next) || s.newSessions > 0 && sessions-s.sessions >= s.newSessions
}

func (s *schedule) made(reference string, sessions int64, now time.Time) {
	s.reference, s.sessions, s.next = reference, sessions, now.Add(s.every)
}

// wait is the time to the next look at what is new.
func (s *schedule) wait(now time.Time) time.Duration {
	const look = 5 * time.Second // for a first candidate, and for sessions that are counted
	if s.newSessions > 0 || s.reference == "" {
		return look
	}
	return max(s.next.Sub(now), min(s.every, look))
}

// reference is the newest version of the model, candidate or released; but no candidate that comes from a release
// that was rolled back.
func (r *run) reference(ctx context.Context) (*onerecv1.CheckpointRef, error) {
	refs, err := publisher.Current(ctx, r.Cluster, r.Model)
	if err != nil {
		return nil, err
	}
	candidate, released := refs[publisher.ChannelCandidate], refs[publisher.ChannelReleased]
	switch {
	case released == nil:
		return candidate, nil
	case candidate == nil || released.Version > candidate.Version:
		return released, nil
	}
	d := descent{candidate: candidate.Version, released: released.Version}
	if r.descent.candidate != d.candidate || r.descent.released != d.released {
		m, _, err := r.Store.Manifest(ctx, candidate.Version, candidate.ManifestSha256)
		if err != nil {
			return nil, fmt.Errorf("look where the candidate comes from: %w", err)
		}
		if d.from, err = r.Store.NewestAligned(ctx, m, released.Version); err != nil {
			return nil, err
		}
		if r.descent = d; d.from != "" {
			r.Log.Info("the candidate comes from a release that was rolled back; rounds go on from what is released", "candidate", d.candidate, "from", d.from, "released", d.released)
		}
	}
	if r.descent.from != "" {
		return released, nil
	}
	return candidate, nil
}

// descent says which aligned version a candidate comes from that is newer than what is released; "": from none.
type descent struct{ candidate, released, from string }

// round trains the reward model on what was read, aligns and records.
func (r *run) round(ctx context.Context, ref *onerecv1.CheckpointRef) error {
	m, files, err := r.Store.Load(ctx, ref.Version, ref.ManifestSha256, decoder.Files()...)
	if err != nil {
		return fmt.Errorf("load the reference: %w", err)
	}
	weights, cb, err := decoder.Decode(files, m.Config)
	if err != nil {
		return fmt.Errorf("load the reference %s: %w", ref.Version, err)
	}
	r.rounds++
	if err := r.core.Learn(ctx, cb, uint64(r.rounds), r.Progress); err != nil {
		return err
	}
	q := r.core.Quality()
	r.report.Quality = q
	round := &onerecv1.AlignmentRound{
		Model: r.Model, Round: r.rounds, Reference: ref.Version,
		RewardSessions: q.Sessions, LikeAuc: q.LikeAUC, WatchTimeSpearman: q.WatchTimeSpearman,
	}
	cfg := r.Align
	cfg.Seed += uint64(r.rounds)
	r.Log.Info("round begins", "round", r.rounds, "reference", ref.Version, "candidates", cfg.Candidates)
	aligned, o, err := r.core.Round(ctx, weights, cb, cfg, r.Progress)
	if err != nil {
		return fmt.Errorf("round %d: %w", r.rounds, err)
	}
	round.Users, round.Candidates, round.Pairs = int32(o.Users), int32(o.Candidates), int32(o.Pairs)
	round.RewardBefore, round.RewardAfter, round.Kl = o.Before.Reward, o.After.Reward, o.KL
	round.LossBefore, round.LossAfter, round.Accepted, round.Why = o.LossBefore, o.LossAfter, o.Accepted, o.Why
	round.RewardBeforePercentiles, round.RewardAfterPercentiles = percentiles(o.ServedBefore), percentiles(o.ServedAfter)
	for _, g := range o.Gates {
		round.Gates = append(round.Gates, &onerecv1.AlignmentGate{Name: g.Name, Figure: g.Figure, Bound: g.Bound, Least: g.Least, Passed: g.Passed()})
	}
	if o.Accepted {
		if round.Published, round.Held, err = r.release(ctx, m, aligned, cb, o); err != nil {
			return fmt.Errorf("round %d: %w", r.rounds, err)
		}
	}
	if err := r.record(ctx, round); err != nil {
		return fmt.Errorf("round %d: %w", r.rounds, err)
	}
	r.report.Rounds = append(r.report.Rounds, round)
	r.Metrics.round(round, q)
	if r.OnRound != nil {
		r.OnRound(round, o)
	}
	r.Log.Info("round ends", "round", r.rounds, "accepted", o.Accepted, "why", o.Why, "published", round.Published, "held", round.Held)
	return nil
}

// read takes the sessions that are new on sessions.judged, and what is new of items.
func (r *run) read(ctx context.Context) error {
	todo, err := r.Cluster.Unread(ctx, schemas.TopicJudgedSessions, r.offsets)
	if err != nil {
		return err
	}
	err = stream.ReadMerged(ctx, r.Cluster, schemas.TopicJudgedSessions, todo, func(rec *kgo.Record) (*onerecv1.JudgedSession, error) {
		j := new(onerecv1.JudgedSession)
		if err := proto.Unmarshal(rec.Value, j); err != nil {
			return nil, fmt.Errorf("no JudgedSession (only filter may write there): %w", err)
		}
		if j.Session == nil {
			return nil, errors.New("a JudgedSession without a session (only filter may write there)")
		}
		return j, nil
	}, func(j *onerecv1.JudgedSession) int64 { return j.Session.EndMs }, func(j *onerecv1.JudgedSession) error {
		r.core.Add(j)
		return nil
	})
	if err != nil {
		return err
	}
	stream.Advance(r.offsets, todo)
	if todo, err = r.Cluster.Unread(ctx, schemas.TopicItems, r.items); err != nil {
		return err
	}
	for p, span := range todo {
		err := r.Cluster.ReadSpan(ctx, schemas.TopicItems, p, span, func(rec *kgo.Record) error {
			if _, err := r.core.Withdrawn.Read(rec.Key, rec.Value); err != nil {
				r.Log.Error("a record is passed over", "topic", rec.Topic, "partition", rec.Partition, "offset", rec.Offset, "error", err)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	stream.Advance(r.items, todo)
	return nil
}

// release publishes the aligned model and points the released channel at it, unless releases are held; then it
// says why.
func (r *run) release(ctx context.Context, parent *publisher.Manifest, w *decoder.Weights, cb *semanticid.Codebook, o *Outcome) (version, held string, err error) {
	files, config, err := decoder.Encode(w, cb)
	if err != nil {
		return "", "", err
	}
	meta, err := json.Marshal(r.Reward.Network)
	if err != nil {
		return "", "", fmt.Errorf("encode the reward model's configuration: %w", err)
	}
	var b bytes.Buffer
	err = safetensors.Write(&b, safetensors.File{Tensors: r.core.tensors(), Metadata: map[string]string{
		"config": string(meta), "scale_ms": fmt.Sprint(r.core.model.scaleMs),
	}})
	if err != nil {
		return "", "", err
	}
	files[FileReward] = b.Bytes()
	q := r.core.Quality()
	m := &publisher.Manifest{
		Model: r.Model, Kind: publisher.KindAligned, Parent: parent.Version, Codebook: cb.Version(), Config: config, Offsets: parent.Offsets,
		Metrics: map[string]float64{
			"round": float64(r.rounds), "reward_before": o.Before.Reward, "reward_after": o.After.Reward, "gain_low": o.GainLow, "gain_high": o.GainHigh,
			"best_reward_before": o.Before.Best, "best_reward_after": o.After.Best, "second_reward_before": o.Before.Second, "second_reward_after": o.After.Second,
			"loss_before": o.LossBefore, "pairs": float64(o.Pairs), "like_auc": q.LikeAUC, "watch_time_spearman": q.WatchTimeSpearman,
		},
	}
	for _, name := range []string{publisher.MetricAgeP50, publisher.MetricAgeP99} { // they have waited for this round, too
		if age, ok := parent.Metrics[name]; ok {
			m.Metrics[name] = age + time.Since(parent.CreatedAt).Seconds()
		}
	}
	for _, g := range o.Gates {
		m.Metrics["gate_"+g.Name], m.Metrics["bound_"+g.Name] = g.Figure, g.Bound
	}
	maps.DeleteFunc(m.Metrics, func(_ string, v float64) bool { return v != v }) // JSON has no NaN
	hash, err := r.Store.Publish(ctx, m, files)
	if err != nil {
		return "", "", err
	}
	held, err = publisher.Release(ctx, r.Cluster, r.Store, m.Version, hash)
	return m.Version, held, err
}

func (r *run) record(ctx context.Context, round *onerecv1.AlignmentRound) error {
	cl, err := r.Cluster.Client()
	if err != nil {
		return err
	}
	defer cl.Close()
	value, err := proto.Marshal(round)
	if err != nil {
		return fmt.Errorf("encode AlignmentRound: %w", err)
	}
	if err := cl.ProduceSync(ctx, &kgo.Record{Topic: schemas.TopicRounds, Key: []byte(round.Model), Value: value}).FirstErr(); err != nil {
		return fmt.Errorf("record on topic %s: %w", schemas.TopicRounds, err)
	}
	return nil
}

// Metrics are the rewarder's Prometheus metrics. A nil *Metrics counts nothing.
type Metrics struct {
	rounds  *prometheus.CounterVec
	reward  *prometheus.GaugeVec
	kl      prometheus.Gauge
	quality *prometheus.GaugeVec
}

// NewMetrics registers the rewarder's metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		rounds:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "onerec_reward_rounds_total", Help: "DPO rounds by outcome: accepted, rejected, or held: accepted, but not released, as an operator holds releases."}, []string{"outcome"}),
		reward:  prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "onerec_reward_held_out_reward", Help: "Mean reward of what would be served to held-out users, in the last round; 1 is an ordinary session."}, []string{"when"}),
		kl:      prometheus.NewGauge(prometheus.GaugeOpts{Name: "onerec_reward_kl_nats", Help: "Distance of the last round's model from its reference, nats a session."}),
		quality: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "onerec_reward_model_quality", Help: "The reward model on held-out users, by measure."}, []string{"measure"}),
	}
	reg.MustRegister(m.rounds, m.reward, m.kl, m.quality)
	return m
}

func (m *Metrics) round(r *onerecv1.AlignmentRound, q Quality) {
	if m == nil {
		return
	}
	outcome := "rejected"
	switch {
	case r.Held != "":
		outcome = "held"
	case r.Accepted:
		outcome = "accepted"
	}
	m.rounds.WithLabelValues(outcome).Inc()
	m.reward.WithLabelValues("before").Set(r.RewardBefore)
	m.reward.WithLabelValues("after").Set(r.RewardAfter)
	m.kl.Set(r.Kl)
	m.quality.WithLabelValues("like_auc").Set(q.LikeAUC)
	m.quality.WithLabelValues("completion_auc").Set(q.CompletionAUC)
	m.quality.WithLabelValues("watch_time_spearman").Set(q.WatchTimeSpearman)
	m.quality.WithLabelValues("like_calibration_error").Set(q.LikeCalibration)
	m.quality.WithLabelValues("item_mean_like_auc").Set(q.Item.LikeAUC)
	m.quality.WithLabelValues("user_mean_like_auc").Set(q.User.LikeAUC)
}
