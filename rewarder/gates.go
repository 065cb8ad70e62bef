package rewarder

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"onerec/decoder"
)

// Gates are the bounds that a round must keep to be released.
type Gates struct {
	MaxLossRise  float64 // of the held-out next-token loss, relative to the reference's
	MaxKL        float64 // nats a session
	MinCoverage  float64 // different items served, as a share of the reference's
	MinDiversity float64 // within a list, as a share of the reference's
	MaxDrop      float64 // of watch time, likes or completion, relative to the reference's
	MaxDislikes  float64 // rise of dislikes, relative to the log's
}

// DefaultGates lets a model move, but not collapse.
func DefaultGates() Gates {
	return Gates{MaxLossRise: 0.05, MaxKL: 10, MinCoverage: 0.6, MinDiversity: 0.6, MaxDrop: 0.05, MaxDislikes: 0.1}
}

// Gate is a bound with what was found.
type Gate struct {
	Name   string
	Figure float64
	Bound  float64
	Least  bool // Bound is the least that passes, else the most
	Above  bool // and it does not pass itself
	Why    string
}

// Passed reports whether the figure is within the bound; one that is not a number is not.
func (g Gate) Passed() bool {
	switch {
	case g.Above:
		return g.Figure > g.Bound
	case g.Least:
		return g.Figure >= g.Bound
	}
	return g.Figure <= g.Bound
}

// judge holds an outcome against the gates, all of them, so that a report shows how near each
// was. What the log holds nothing of, by its averages, is not judged.
func (g Gates) judge(o *Outcome, log Averages) {
	o.Gates = []Gate{
		{"held_out_users", float64(o.HeldOutUsers), 1, true, false, "no held-out user could be asked, so nothing shows that the round helps"},
		{"reward_gain", o.GainLow, 0, true, true, fmt.Sprintf("held-out reward went from %.4f to %.4f; the 95 %% interval of the gain, %.4f to %.4f, must lie above 0", o.Before.Reward, o.After.Reward, o.GainLow, o.GainHigh)},
	}
	if !math.IsNaN(o.SecondLow) {
		o.Gates = append(o.Gates, Gate{"second_reward_gain", o.After.Second - o.Before.Second, 0, true, true, fmt.Sprintf("the second reward model sees no gain, reward %.4f to %.4f: what was gained are the first one's mistakes", o.Before.Second, o.After.Second)})
	}
	o.Gates = append(o.Gates, Gate{"kl", o.KL, g.MaxKL, false, false, fmt.Sprintf("distance from the reference is %.3f nats a session, at most %.3f is allowed", o.KL, g.MaxKL)})
	loss := "not judged: no held-out session is good"
	if o.LossBefore != 0 {
		loss = fmt.Sprintf("%.4f to %.4f", o.LossBefore, o.LossAfter)
		o.Gates = append(o.Gates, Gate{"loss", o.LossAfter, o.LossBefore * (1 + g.MaxLossRise), false, false, fmt.Sprintf("held-out next-token loss rose from %.4f to %.4f, at most %.1f %% is allowed", o.LossBefore, o.LossAfter, 100*g.MaxLossRise)})
	}
	o.Gates = append(o.Gates,
		Gate{"coverage", o.After.Coverage, o.Before.Coverage * g.MinCoverage, true, false, fmt.Sprintf("the share of different items among what is served went from %.4f to %.4f, at least %.0f %% of it must stay", o.Before.Coverage, o.After.Coverage, 100*g.MinCoverage)},
		Gate{"diversity", o.After.Diversity, o.Before.Diversity * g.MinDiversity, true, false, fmt.Sprintf("diversity within lists went from %.4f to %.4f, at least %.0f %% of it must stay", o.Before.Diversity, o.After.Diversity, 100*g.MinDiversity)},
	)
	for _, objective := range []struct {
		name               string
		log, before, after float64
	}{
		{"watch_time", log.WatchMs, o.Before.Objective.WatchMs, o.After.Objective.WatchMs},
		{"like", log.Like, o.Before.Objective.Like, o.After.Objective.Like},
		{"completion", log.Completion, o.Before.Objective.Completion, o.After.Objective.Completion},
	} {
		if objective.log == 0 {
			continue
		}
		o.Gates = append(o.Gates, Gate{objective.name, objective.after, objective.before * (1 - g.MaxDrop), true, false, fmt.Sprintf("predicted %s went from %.4g to %.4g a view, a loss of at most %.1f %% is allowed", strings.ReplaceAll(objective.name, "_", " "), objective.before, objective.after, 100*g.MaxDrop)})
	}
	if log.Dislike > 0 {
		o.Gates = append(o.Gates, Gate{"dislike", o.After.Objective.Dislike, o.Before.Objective.Dislike + g.MaxDislikes*log.Dislike, false, false, fmt.Sprintf("predicted dislikes went from %.4g to %.4g a view, a rise of at most %.1f %% of the log's %.4g is allowed", o.Before.Objective.Dislike, o.After.Objective.Dislike, 100*g.MaxDislikes, log.Dislike)})
	}
	o.Accepted = true
	o.Why = ""
	for _, gate := range o.Gates {
		if !gate.Passed() {
			o.Accepted = false
			o.Why += "; " + gate.Why
		}
	}
	if o.Why = strings.TrimPrefix(o.Why, "; "); o.Accepted {
		o.Why = fmt.Sprintf("held-out reward rose by %.4f to %.4f (95 %%); distance %.3f of at most %.3f nats; loss %s", o.GainLow, o.GainHigh, o.KL, g.MaxKL, loss)
	}
}

// judge measures the aligned model beside the reference and applies the gates.
func (a *aligner) judge(ctx context.Context, reference, aligned *decoder.Weights, heldOut []Prompt, o *Outcome, progress func(done, total int)) error {
	const salt = 1
	users := len(heldOut)
	before, err := a.draw(ctx, reference, heldOut, salt, func(done, _ int) { progress(done, 2*users) })
	if err != nil {
		return err
	}
	after, err := a.draw(ctx, aligned, heldOut, salt, func(done, _ int) { progress(users+done, 2*users) })
	if err != nil {
		return err
	}
	// Users to whom both have something to say.
	var prompts []Prompt
	var was, is [][]decoder.List
	for i, p := range heldOut {
		if len(before[i]) > 0 && len(after[i]) > 0 {
			prompts, was, is = append(prompts, p), append(was, before[i]), append(is, after[i])
		}
	}
	o.HeldOutUsers = len(prompts)
	var secondBefore, secondAfter []float64
	if o.Before, o.ServedBefore, secondBefore, err = a.hold(prompts, was); err != nil {
		return err
	}
	if o.After, o.ServedAfter, secondAfter, err = a.hold(prompts, is); err != nil {
		return err
	}
	if len(prompts) > 0 {
		rng := rand.New(rand.NewPCG(a.cfg.Seed, 0xb007))
		o.GainLow, o.GainHigh = interval(differences(o.ServedAfter, o.ServedBefore), rng)
		if a.Second != nil {
			o.SecondLow, o.SecondHigh = interval(differences(secondAfter, secondBefore), rng)
		}
	}
	if o.KL, err = a.divergence(reference, heldOut, after); err != nil {
		return err
	}
	if o.LossBefore, err = a.loss(reference); err != nil {
		return err
	}
	if o.LossAfter, err = a.loss(aligned); err != nil {
		return err
	}
	a.cfg.Gates.judge(o, a.Averages)
	return nil
}

func differences(x, y []float64) []float64 {
	d := make([]float64, len(x))
	for i := range x {
		d[i] = x[i] - y[i]
	}
	return d
}

// hold measures what was drawn for prompts; none of the draws is empty. It returns the
// reward of each first list by both reward models, too.
func (a *aligner) hold(prompts []Prompt, drawn [][]decoder.List) (h Held, served, second []float64, err error) {
	predicted, err := a.predict(a.Reward, prompts, drawn)
	if err != nil || len(prompts) == 0 {
		return h, nil, nil, err
	}
	n := float64(len(prompts))
	shown := make(map[int32]bool)
	views, pairs := 0.0, 0.0
	for i, rewards := range a.rewards(predicted) {
		served = append(served, rewards[0])
		h.Best += slices.Max(rewards) / n
		p, list := predicted[i][0], drawn[i][0].Items
		h.Objective.WatchMs += p.WatchMs
		h.Objective.Like += total(p.Like)
		h.Objective.Completion += total(p.Completion)
		h.Objective.Dislike += total(p.Dislike)
		views += float64(len(list))
		for j, item := range list {
			shown[item] = true
			for _, other := range list[:j] {
				pairs++
				if a.cb.ID(item)[0] != a.cb.ID(other)[0] {
					h.Diversity++
				}
			}
		}
	}
	h.Reward = mean(served)
	h.Objective = Averages{h.Objective.WatchMs / views, h.Objective.Like / views, h.Objective.Completion / views, h.Objective.Dislike / views}
	h.Coverage = float64(len(shown)) / float64(a.cb.Len())
	h.Diversity /= max(pairs, 1)
	if a.Second == nil {
		return h, served, nil, nil
	}
	first := make([][]decoder.List, len(drawn))
	for i := range drawn {
		first[i] = drawn[i][:1]
	}
	if predicted, err = a.predict(a.Second, prompts, first); err != nil {
		return h, nil, nil, err
	}
	for _, rewards := range a.rewards(predicted) {
		second = append(second, rewards[0])
	}
	h.Second = mean(second)
	return h, served, second, nil
}
