package rewarder

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"

	"onerec/decoder"
	"onerec/internal/kernels"
	"onerec/internal/ops"
	"onerec/semanticid"
)

// AlignConfig holds the settings of a DPO round.
type AlignConfig struct {
	Users       int // training users, one prompt each, that candidates are drawn for
	HeldOut     int // held-out users that the round is judged on, at most
	Candidates  int // N: sessions drawn for each prompt, half by beam search, half sampled
	Length      int // items of a candidate (m of the paper, 5)
	Temperature float64
	// Loss is what is learned from a pair: one of decoder.PreferenceLosses, or LossBest.
	Loss         string
	Beta         float64 // of the loss
	Smoothing    float64 // share of pairs that may be the wrong way round: cDPO, rDPO
	Gamma        float64 // of SimPO
	Average      bool    // mean log probabilities over codes instead of their sum
	Lambda       float64 // weight of DPO against the next-token loss
	LearningRate float64
	Epochs       int     // passes over the pairs
	MinMargin    float64 // least difference of reward within a pair
	BatchTokens  int
	Weights      RewardWeights
	Gates        Gates
	Seed         uint64
}

// RewardWeights combine the objectives into one reward. Each objective counts
// relative to what the sessions of the log hold on average, so 1 is an ordinary
// list.
type RewardWeights struct{ Watch, Like, Completion float64 }

// DefaultAlignConfig follows the paper where it gives figures, N excepted (128
// there).
func DefaultAlignConfig() AlignConfig {
	return AlignConfig{
		Users: 256, HeldOut: 200, Candidates: 32, Length: 5, Temperature: 1, Loss: decoder.LossDPO, Beta: 0.2, Lambda: 1,
		LearningRate: 5e-5, Epochs: 2, MinMargin: 0.05, BatchTokens: 2048,
		Weights: RewardWeights{Watch: 1, Like: 1, Completion: 0.5},
		Gates:   DefaultGates(), Seed: 1,
	}
}

// LossBest is fine-tuning on the best candidates alone, without the worst (best of N, rejection sampling):
// what DPO has to beat.
const LossBest = "best"

// preference is the loss over pairs.
func (c AlignConfig) preference() decoder.Preference {
	p := decoder.Preference{Loss: c.Loss, Beta: float32(c.Beta), Smoothing: float32(c.Smoothing), Gamma: float32(c.Gamma), Average: c.Average}
	if c.Loss == LossBest { // the pairs are watched, and weigh nothing
		p.Loss = decoder.LossDPO
	}
	return p
}

// Prompt is what candidates are drawn for.
type Prompt struct {
	User    string
	History []semanticid.Item // oldest first
	Seen    []int32           // the same as indexes of the codebook; not recommended again
	Session []semanticid.Item // what the user watched then, if the session was good
}

// Averages are what a view of the log holds on average, by objective.
type Averages struct{ WatchMs, Like, Completion float64 }

// Reward scores a predicted list; 1 is an ordinary one. An objective that the
// log holds nothing of does not count.
func (w RewardWeights) Reward(p Prediction, avg Averages) float64 {
	var sum, weights float64
	n := float64(len(p.Like))
	count := func(weight, of, average float64) {
		if average > 0 {
			sum += weight * of / (n * average)
			weights += weight
		}
	}
	count(w.Watch, p.WatchMs, avg.WatchMs)
	count(w.Like, total(p.Like), avg.Like)
	count(w.Completion, total(p.Completion), avg.Completion)
	if weights == 0 {
		return 0
	}
	return sum / weights
}

// Outcome is what a round found.
type Outcome struct {
	Users, Candidates, Pairs int
	DPOFirst, DPOLast        float64 // mean DPO loss of the first and the last pass
	Wins                     float64 // share of pairs whose margin grew, last pass

	// On held-out users, by the reference and by the aligned model, with the same random
	// numbers. What is served is the first list of the beam search.
	HeldOutUsers          int
	Before, After         Held
	GainLow, GainHigh     float64 // 95 % interval of the mean gain of the served list's reward, paired by user
	SecondLow, SecondHigh float64 // the same by the second reward model; NaN without one
	KL                    float64 // nats a session, from the aligned model's own samples
	LossBefore, LossAfter float64 // nats a code, on held-out good sessions; 0 if there are none

	Gates    []Gate
	Accepted bool
	Why      string

	ServedBefore, ServedAfter []float64 // reward by held-out user
}

// Held is what a model is worth on held-out users.
type Held struct {
	Reward    float64  // of the list that would be served
	Best      float64  // of the best of the candidates
	Second    float64  // of the list that would be served, by the second reward model
	Objective Averages // of the list that would be served: predicted for a view
	Coverage  float64  // different items among what would be served, as a share of all
	Diversity float64  // share of pairs within a list whose first code differs
}

// ErrNoPairs says that no prompt gave a pair that differs enough.
var ErrNoPairs = errors.New("no pair of candidates differs in reward by the least margin")

// ErrDiverged says that the reward model or the aligned weights are not finite.
var ErrDiverged = errors.New("not a finite number")

// pair is a prompt with its best and its worst candidate.
type pair struct {
	prompt       int
	best, worst  []semanticid.Item
	rewardMargin float64
}

// Scorer predicts what users make of lists; a [Model] does.
type Scorer interface {
	Predict(examples []Example) ([]Prediction, error)
}

// Judges score candidates.
type Judges struct {
	Reward Scorer
	// Second learned the same from another seed and other users; it only judges. What the
	// aligned model gains by Reward's mistakes it does not gain by Second (Gao et al., 2023). Or nil.
	Second   Scorer
	Averages Averages
	// Durations are those of the codebook's items by their index, ms, as far as they are known. Or nil.
	Durations []int64
}

// Align runs one round: draw, score, pair best against worst, train a copy of
// the reference with DPO, and judge it on held-out users with the same random
// numbers. It returns the aligned weights whether they passed the gates or not.
func Align(ctx context.Context, reference *decoder.Weights, cb *semanticid.Codebook, judges Judges, prompts, heldOut []Prompt, cfg AlignConfig, progress func(stage, unit string, done, total int)) (*decoder.Weights, *Outcome, error) {
	if progress == nil {
		progress = func(string, string, int, int) {}
	}
	o := &Outcome{Users: len(prompts), Candidates: cfg.Candidates, SecondLow: math.NaN(), SecondHigh: math.NaN()}
	a := &aligner{cfg: cfg, cb: cb, Judges: judges}
	drawn, err := a.draw(ctx, reference, prompts, 0, func(done, total int) { progress("draw candidates", "users", done, total) })
	if err != nil {
		return nil, nil, err
	}
	predicted, err := a.predict(judges.Reward, prompts, drawn)
	if err != nil {
		return nil, o, err
	}
	pairs := a.pairs(drawn, a.rewards(predicted))
	if o.Pairs = len(pairs); o.Pairs == 0 {
		return nil, o, ErrNoPairs
	}
	aligned := reference.Clone()
	if err := a.train(ctx, reference, aligned, prompts, pairs, o, func(done, total int) { progress("align by DPO", "pairs", done, total) }); err != nil {
		return nil, o, err
	}
	if err := a.judge(ctx, reference, aligned, heldOut, o, func(done, total int) { progress("judge on held-out users", "draws", done, total) }); err != nil {
		return nil, o, err
	}
	return aligned, o, nil
}

type aligner struct {
	Judges
	cfg AlignConfig
	cb  *semanticid.Codebook
}

// draw returns candidates for each prompt: half by beam search, which are the
// model's favourites, half sampled, which are what else it might say. salt keeps
// the random numbers of different calls apart.
func (a *aligner) draw(ctx context.Context, w *decoder.Weights, prompts []Prompt, salt uint64, progress func(done, total int)) ([][]decoder.List, error) {
	gen, err := decoder.NewGenerator(w, a.cb)
	if err != nil {
		return nil, err
	}
	out := make([][]decoder.List, len(prompts))
	errs := make([]error, len(prompts))
	const chunk = 16
	for lo := 0; lo < len(prompts); lo += chunk {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		kernels.Parallel(min(chunk, len(prompts)-lo), func(i int) {
			out[lo+i], errs[lo+i] = a.candidates(gen, prompts[lo+i], rand.New(rand.NewPCG(a.cfg.Seed, salt<<32+uint64(lo+i))))
		})
		progress(min(lo+chunk, len(prompts)), len(prompts))
	}
	return out, errors.Join(errs...)
}

func (a *aligner) candidates(gen *decoder.Generator, p Prompt, rng *rand.Rand) ([]decoder.List, error) {
	seen := make(map[int32]bool, len(p.Seen))
	for _, i := range p.Seen {
		seen[i] = true
	}
	o := decoder.Options{History: p.History, Exclude: seen, Length: a.cfg.Length, Width: (a.cfg.Candidates + 1) / 2}
	lists, err := gen.Generate(o)
	if err != nil {
		return nil, fmt.Errorf("draw candidates: %w", err)
	}
	o.Width, o.Temperature, o.Rand = a.cfg.Candidates/2, a.cfg.Temperature, rng
	if o.Width == 0 {
		return lists, nil
	}
	sampled, err := gen.Generate(o)
	if err != nil {
		return nil, fmt.Errorf("draw candidates: %w", err)
	}
	return append(lists, sampled...), nil
}

func (a *aligner) items(l decoder.List) []semanticid.Item {
	ids := make([]semanticid.Item, len(l.Items))
	for i, item := range l.Items {
		ids[i] = a.cb.ID(item)
	}
	return ids
}

// predict asks a judge about each candidate.
func (a *aligner) predict(judge Scorer, prompts []Prompt, drawn [][]decoder.List) ([][]Prediction, error) {
	var examples []Example
	for i, lists := range drawn {
		for _, l := range lists {
			e := Example{History: prompts[i].History}
			for _, item := range l.Items {
				v := Viewed{ID: a.cb.ID(item)}
				if int(item) < len(a.Durations) {
					v.Duration = a.Durations[item]
				}
				e.Items = append(e.Items, v)
			}
			examples = append(examples, e)
		}
	}
	predicted, err := judge.Predict(examples)
	if err != nil {
		return nil, err
	}
	out := make([][]Prediction, len(drawn))
	for i, lists := range drawn {
		out[i], predicted = predicted[:len(lists)], predicted[len(lists):]
		for _, p := range out[i] {
			if r := a.cfg.Weights.Reward(p, a.Averages); math.IsNaN(r) || math.IsInf(r, 0) {
				return nil, fmt.Errorf("the reward model gives %v; it has diverged: %w", r, ErrDiverged)
			}
		}
	}
	return out, nil
}

func (a *aligner) rewards(predicted [][]Prediction) [][]float64 {
	out := make([][]float64, len(predicted))
	for i, ps := range predicted {
		for _, p := range ps {
			out[i] = append(out[i], a.cfg.Weights.Reward(p, a.Averages))
		}
	}
	return out
}

// pairs takes the best and the worst candidate of each prompt whose rewards
// differ by the least margin.
func (a *aligner) pairs(drawn [][]decoder.List, rewards [][]float64) []pair {
	var out []pair
	for i, lists := range drawn {
		if len(lists) == 0 {
			continue
		}
		best, worst := 0, 0
		for j, r := range rewards[i] {
			if r > rewards[i][best] {
				best = j
			}
			if r < rewards[i][worst] {
				worst = j
			}
		}
		if margin := rewards[i][best] - rewards[i][worst]; margin > 0 && margin >= a.cfg.MinMargin {
			out = append(out, pair{i, a.items(lists[best]), a.items(lists[worst]), margin})
		}
	}
	return out
}

// train makes Epochs passes over the pairs, with the prompts' own good sessions
// as the next-token part.
func (a *aligner) train(ctx context.Context, reference, aligned *decoder.Weights, prompts []Prompt, pairs []pair, o *Outcome, progress func(done, total int)) error {
	c := reference.Config
	capacity := max(a.cfg.BatchTokens, 3*c.MaxLen)
	most := max(1, capacity/2/(2+a.cfg.Length*(c.Levels+1))) // pairs of a batch
	scorer, err := decoder.NewScorer(reference, capacity)
	if err != nil {
		return err
	}
	defer scorer.Close()
	preference, lambda := a.cfg.preference(), a.cfg.Lambda
	if a.cfg.Loss == LossBest {
		lambda = 0
	}
	graph, err := decoder.NewPreferenceGraph(aligned, capacity, most, preference, float32(lambda))
	if err != nil {
		return err
	}
	defer graph.Close()
	solver := ops.NewSolver(a.cfg.LearningRate, 0)
	order := make([]int, len(pairs))
	for i := range order {
		order[i] = i
	}
	rng := rand.New(rand.NewPCG(a.cfg.Seed, 0xd90))
	for epoch := range a.cfg.Epochs {
		rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		var dpo, wins float64
		for lo := 0; lo < len(order); {
			if err := ctx.Err(); err != nil {
				return err
			}
			b := decoder.NewBatch(0)
			var batch []decoder.Pair
			var codes [][2]float32 // of winner and loser
			for lo < len(order) && len(batch) < most {
				p := pairs[order[lo]]
				prompt := prompts[p.prompt]
				rows := []decoder.Row{
					c.Fit(decoder.Row{History: prompt.History, Session: p.best}),
					c.Fit(decoder.Row{History: prompt.History, Session: p.worst}),
				}
				var good *decoder.Row
				need := c.Tokens(rows[0]) + c.Tokens(rows[1])
				if len(prompt.Session) > 0 {
					r := c.Fit(decoder.Row{History: prompt.History, Session: prompt.Session[:min(len(prompt.Session), a.cfg.Length)]})
					good = &r
					need += c.Tokens(r)
				}
				if len(batch) > 0 && b.Tokens()+need > capacity {
					break
				}
				at := b.Rows()
				for i, r := range rows {
					add := b.AddUnweighted
					if i == 0 && a.cfg.Loss == LossBest {
						add = b.Add
					}
					if err := add(c, r); err != nil {
						return err
					}
				}
				if good != nil {
					if err := b.Add(c, *good); err != nil {
						return err
					}
				}
				batch = append(batch, decoder.Pair{Winner: at, Loser: at + 1})
				codes = append(codes, [2]float32{float32(c.Levels * len(rows[0].Session)), float32(c.Levels * len(rows[1].Session))})
				lo++
			}
			b.Close()
			if _, err := scorer.Run(b, nil, decoder.Dropout{}); err != nil {
				return fmt.Errorf("score pairs with the reference: %w", err)
			}
			logp := scorer.LogProbs()
			for i := range batch {
				won, lost := logp[batch[i].Winner], logp[batch[i].Loser]
				if preference.Averaged() {
					won, lost = won/codes[i][0], lost/codes[i][1]
				}
				if !preference.ReferenceFree() {
					batch[i].RefMargin = won - lost
				}
			}
			l, err := graph.Step(b, batch, decoder.Dropout{}, solver)
			if errors.Is(err, decoder.ErrNotFinite) || errors.Is(err, ops.ErrDiverged) {
				return fmt.Errorf("step of alignment: %w: %w", ErrDiverged, err)
			}
			if err != nil {
				return fmt.Errorf("step of alignment: %w", err)
			}
			share := float64(len(batch)) / float64(len(pairs))
			dpo += share * float64(l.DPO)
			wins += share * l.Wins
			progress(epoch*len(order)+lo, a.cfg.Epochs*len(order))
		}
		if epoch == 0 {
			o.DPOFirst = dpo
		}
		o.DPOLast, o.Wins = dpo, wins
	}
	return nil
}

// divergence estimates KL(aligned || reference) from the aligned model's sampled
// lists: the mean of log p_aligned - log p_reference. The lists of the beam
// search are not samples and are left out.
func (a *aligner) divergence(reference *decoder.Weights, prompts []Prompt, after [][]decoder.List) (float64, error) {
	var rows []decoder.Row
	var own []float64
	for i, lists := range after {
		for _, l := range lists[min(len(lists), (a.cfg.Candidates+1)/2):] {
			rows = append(rows, decoder.Row{History: prompts[i].History, Session: a.items(l)})
			own = append(own, l.LogProb)
		}
	}
	logp, _, err := a.logProbs(reference, rows)
	if err != nil {
		return 0, err
	}
	var sum float64
	for i, lp := range logp {
		sum += own[i] - lp
	}
	return sum / float64(max(len(logp), 1)), nil
}

// loss is the mean next-token loss over the good sessions among the prompts.
func (a *aligner) loss(w *decoder.Weights, prompts []Prompt) (float64, error) {
	var rows []decoder.Row
	for _, p := range prompts {
		if len(p.Session) > 0 {
			rows = append(rows, decoder.Row{History: p.History, Session: p.Session})
		}
	}
	logp, codes, err := a.logProbs(w, rows)
	if err != nil {
		return 0, err
	}
	var sum float64
	for _, lp := range logp {
		sum -= lp
	}
	return sum / float64(max(codes, 1)), nil
}

// logProbs returns the log probability of each row's session and the number of
// codes in all of them.
func (a *aligner) logProbs(w *decoder.Weights, rows []decoder.Row) (logp []float64, codes int, err error) {
	c := w.Config
	capacity := max(a.cfg.BatchTokens, c.MaxLen)
	scorer, err := decoder.NewScorer(w, capacity)
	if err != nil {
		return nil, 0, err
	}
	defer scorer.Close()
	for lo := 0; lo < len(rows); {
		b := decoder.NewBatch(0)
		for lo < len(rows) {
			r := c.Fit(rows[lo])
			if b.Tokens() > 0 && b.Tokens()+c.Tokens(r) > capacity {
				break
			}
			if err := b.AddUnweighted(c, r); err != nil {
				return nil, 0, err
			}
			codes += len(r.Session) * c.Levels
			lo++
		}
		b.Close()
		if _, err := scorer.Run(b, nil, decoder.Dropout{}); err != nil {
			return nil, 0, fmt.Errorf("score sessions: %w", err)
		}
		for _, lp := range scorer.LogProbs() {
			logp = append(logp, float64(lp))
		}
	}
	return logp, codes, nil
}
