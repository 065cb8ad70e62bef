package rewarder

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"onerec/decoder"
	"onerec/internal/holdout"
	"onerec/internal/safetensors"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
	"onerec/semanticid"
)

// CoreConfig is about the reward models.
type CoreConfig struct {
	Network        ModelConfig
	Epochs         int // passes over the sessions when a model is new; later it makes one before each round
	LearningRate   float64
	Second         bool // keep a second reward model, which only judges
	HoldoutPercent int  // the trainer's
	Seed           uint64
}

// DefaultCoreConfig suits a small service.
func DefaultCoreConfig() CoreConfig {
	return CoreConfig{Network: DefaultModelConfig(), Epochs: 4, LearningRate: 2e-3, Second: true, HoldoutPercent: 10, Seed: 1}
}

// Core is the rewarder's pure part: sessions in, rounds out. What it does depends on nothing but
// the sessions, the configuration and the seeds. It is not safe for concurrent use.
type Core struct {
	// Withdrawn are items that no candidate of a round holds.
	Withdrawn semanticid.Withdrawn

	cfg           CoreConfig
	data          *dataset
	model, second *Model
	shape         [2]int // levels and codes that the models speak
	avg           Averages
	facts         []Viewed // of the codebook's items
	quality       Quality
}

// NewCore returns a core that has seen nothing.
func NewCore(cfg CoreConfig) *Core { return &Core{cfg: cfg, data: newDataset(cfg.HoldoutPercent)} }

// Add takes a session, good or not.
func (c *Core) Add(j *onerecv1.JudgedSession) { c.data.add(j) }

// Sessions returns how many were added.
func (c *Core) Sessions() int64 { return c.data.seen }

// Quality is what the reward model was worth on held-out users when it last learned.
func (c *Core) Quality() Quality { return c.quality }

// Learn brings the reward models up to date and measures the first on held-out users. A
// codebook of another shape needs other models. round tells calls apart.
func (c *Core) Learn(ctx context.Context, cb *semanticid.Codebook, round uint64, progress func(stage, unit string, done, total int)) error {
	sessions := c.data.train.sessions
	if len(sessions) == 0 {
		return fmt.Errorf("topic %s holds no session of a training user; there is nothing to learn a reward from", schemas.TopicJudgedSessions)
	}
	train := c.data.examples(cb, sessions)
	c.avg = averages(train)
	epochs := 1
	if shape := [2]int{cb.Levels(), cb.Codes()}; c.model == nil || c.shape != shape {
		c.model, c.second = nil, nil
		var err error
		if c.model, err = NewModel(c.cfg.Network, cb.Levels(), cb.Codes(), max(c.avg.WatchMs, 1), c.cfg.LearningRate, c.cfg.Seed); err != nil {
			return err
		}
		if c.cfg.Second {
			if c.second, err = NewModel(c.cfg.Network, cb.Levels(), cb.Codes(), max(c.avg.WatchMs, 1), c.cfg.LearningRate, c.cfg.Seed^secondSeed); err != nil {
				return err
			}
		}
		c.shape, epochs = shape, c.cfg.Epochs
	}
	prior := c.data.priors(cb)
	prior.pasts(&c.data.train, c.model.scaleMs, true)
	prior.pasts(&c.data.heldOut, c.model.scaleMs, false)
	prior.give(train, sessions, c.model.scaleMs, true)
	var half []Example // what the second one learns from: half of the users
	if c.second != nil {
		for i, s := range sessions {
			if holdout.Contains(secondHalf+s.user, 50) {
				half = append(half, train[i])
			}
		}
		if len(half) == 0 {
			half = train
		}
	}
	for epoch := range epochs {
		for _, of := range []struct {
			model    *Model
			examples []Example
			salt     uint64
		}{{c.model, train, 0}, {c.second, half, secondSeed}} {
			if of.model == nil {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			if _, err := of.model.Train(of.examples, rand.New(rand.NewPCG(c.cfg.Seed^of.salt, round<<32+uint64(epoch)))); err != nil {
				return err
			}
		}
		if progress != nil {
			progress("train the reward model", "passes", epoch+1, epochs)
		}
	}
	held := c.data.examples(cb, c.data.heldOut.sessions)
	prior.give(held, c.data.heldOut.sessions, c.model.scaleMs, false)
	c.facts = c.data.facts(cb, prior, c.model.scaleMs)
	q, err := c.model.Measure(held)
	if err != nil {
		return err
	}
	q.Sessions = c.data.seen
	q.baselines(prior, held, c.data.heldOut.sessions)
	c.quality = q
	return nil
}

// The second reward model's seed, and which half of the users it learns from.
const (
	secondSeed = 0x2d
	secondHalf = "second/"
)

// tensors are the reward model's, with items' priors by their index in the codebook.
func (c *Core) tensors() []safetensors.Tensor {
	priors := safetensors.Tensor{Name: "item_priors", Shape: []int{len(c.facts), heads}}
	for _, f := range c.facts {
		priors.Data = append(priors.Data, f.Item[:]...)
	}
	return append(slices.Clone(c.model.params), priors)
}

// Round aligns a reference after Learn. A round in which no pair was found, or something was
// not a finite number, is an outcome that is not accepted, and not an error; after the latter the next
// Learn begins with new models.
func (c *Core) Round(ctx context.Context, reference *decoder.Weights, cb *semanticid.Codebook, cfg AlignConfig, progress func(stage, unit string, done, total int)) (*decoder.Weights, *Outcome, error) {
	judges := Judges{Reward: c.model, Averages: c.avg, Facts: c.facts, Withdrawn: c.Withdrawn.In(cb), Sessions: c.heldOutSessions(cb, cfg)}
	if c.second != nil {
		judges.Second = c.second
	}
	aligned, o, err := Align(ctx, reference, cb, judges, c.prompts(cb, cfg), c.heldOutPrompts(cb, cfg), cfg, progress)
	return aligned, o, c.rejected(o, err)
}

// rejected makes an error that says that a round is no good the round's outcome.
func (c *Core) rejected(o *Outcome, err error) error {
	switch {
	case errors.Is(err, ErrNoPairs):
		o.Why = err.Error()
		return nil
	case errors.Is(err, ErrDiverged):
		o.Why = err.Error()
		c.model, c.second = nil, nil // the next round begins anew
		return nil
	}
	return err
}

// averages are over views with the label, watch time over all views.
func averages(examples []Example) (a Averages) {
	var views, liked, completed float64
	for _, e := range examples {
		a.WatchMs += float64(e.WatchMs)
		for _, v := range e.Items {
			views++
			if v.Like != Unknown {
				liked++
			}
			if v.Like == Yes {
				a.Like++
			}
			if v.Dislike == Yes {
				a.Dislike++
			}
			if v.Completion != Unknown {
				completed++
			}
			if v.Completion == Yes {
				a.Completion++
			}
		}
	}
	a.WatchMs /= max(views, 1)
	a.Like /= max(liked, 1)
	a.Dislike /= max(liked, 1)
	a.Completion /= max(completed, 1)
	return a
}

// prompts draws training users' good sessions, one a user while there are enough.
func (c *Core) prompts(cb *semanticid.Codebook, cfg AlignConfig) []Prompt {
	rng := rand.New(rand.NewPCG(cfg.Seed, 0x9409))
	users := make(map[string]bool)
	for _, s := range c.data.train.sessions {
		users[s.user] = true
	}
	n := max(cfg.Users, int(math.Ceil(cfg.UserPercent/100*float64(len(users)))))
	return choose(c.data, cb, c.data.train.sessions, n, rng, func(p Prompt) bool { return len(p.Session) > 0 && len(p.History) > 0 })
}

// heldOutPrompts draws held-out users' sessions, one a user.
func (c *Core) heldOutPrompts(cb *semanticid.Codebook, cfg AlignConfig) []Prompt {
	rng := rand.New(rand.NewPCG(cfg.Seed, 0x4e1d))
	return choose(c.data, cb, c.data.heldOut.sessions, cfg.HeldOut, rng, func(p Prompt) bool { return len(p.History) > 0 })
}

// heldOutSessions draws held-out users' good sessions, as many as users are held out; few have one among those that
// they are asked at.
func (c *Core) heldOutSessions(cb *semanticid.Codebook, cfg AlignConfig) []Prompt {
	rng := rand.New(rand.NewPCG(cfg.Seed, 0x105e))
	var out []Prompt
	for _, i := range rng.Perm(len(c.data.heldOut.sessions)) {
		if len(out) == cfg.HeldOut {
			break
		}
		s := c.data.heldOut.sessions[i]
		if !s.good {
			continue
		}
		if p := c.data.prompt(cb, s); len(p.Session) > 0 {
			out = append(out, p)
		}
	}
	return out
}

// choose draws one session a user, those that ok accepts, up to n users.
func choose(d *dataset, cb *semanticid.Codebook, sessions []session, n int, rng *rand.Rand, ok func(Prompt) bool) []Prompt {
	var out []Prompt
	used := make(map[string]bool)
	for _, i := range rng.Perm(len(sessions)) {
		if len(out) == n {
			break
		}
		if used[sessions[i].user] {
			continue
		}
		if p := d.prompt(cb, sessions[i]); ok(p) {
			used[p.User] = true
			out = append(out, p)
		}
	}
	return out
}
