package rewarder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"onerec/decoder"
	"onerec/internal/kernels"
	"onerec/internal/ops"
	"onerec/semanticid"
)

// AlignConfig holds the settings of a DPO round.
type AlignConfig struct {
	// UserPercent is the share of the training users for whom candidates are drawn, one prompt each, and
	// Users the least number of them.
	UserPercent float64
	Users       int
	HeldOut     int // held-out users that the round is judged on, at most
	Candidates  int // N: sessions drawn for each prompt, half by beam search, half sampled
	Length      int // items of a candidate (m of the paper, 5)
	Temperature float64
	Pairing     string // which candidates of a prompt are compared: PairExtremes or PairRandom
	PairsAUser  int    // pairs of a prompt; with PairExtremes the best against so many of the worst
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
// list; dislikes count against it.
type RewardWeights struct{ Watch, Like, Completion, Dislike float64 }

// DefaultAlignConfig follows the paper where it gives figures, N excepted (128
// there).
func DefaultAlignConfig() AlignConfig {
	return AlignConfig{
		UserPercent: 1, Users: 256, HeldOut: 200, Candidates: 32, Length: 5, Temperature: 1, Pairing: PairExtremes, PairsAUser: 1, Loss: decoder.LossDPO, Beta: 0.2, Lambda: 1,
		LearningRate: 5e-5, Epochs: 2, MinMargin: 0.05, BatchTokens: 2048,
		Weights: RewardWeights{Watch: 1, Like: 1, Completion: 0.5},
		Gates:   DefaultGates(), Seed: 1,
	}
}

// LossBest is fine-tuning on the best candidates alone, without the worst (best of N, rejection sampling):
// what DPO has to beat.
const LossBest = "best"

// Which candidates are compared.
const (
	PairExtremes = "extremes" // the best with the worst, as in the paper
	PairRandom   = "random"   // sampled ones with each other, whatever they are worth
)

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
	Past    [heads]float32    // the user's part of the [Priors]
}

// Averages are what a view of the log holds on average, by objective.
type Averages struct{ WatchMs, Like, Completion, Dislike float64 }

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
	count(-w.Dislike, total(p.Dislike), avg.Dislike)
	if weights <= 0 {
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

// comparison is a prompt with a candidate and some that are worse.
type comparison struct {
	prompt  int
	better  []semanticid.Item
	worse   [][]semanticid.Item
	margins []float64 // of reward, to each
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
	// Facts are durations and priors of the codebook's items by their index. Or nil.
	Facts []Viewed
	// Withdrawn are items that nobody is recommended, by their index; no candidate holds one.
	Withdrawn map[int32]bool
	// Sessions are good ones of held-out users, which the decoder should still expect: the next-token loss is taken on
	// them. Without any it is not judged.
	Sessions []Prompt
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
	var compared []comparison
	if compared, o.Pairs = a.compare(drawn, a.rewards(predicted)); o.Pairs == 0 {
		return nil, o, ErrNoPairs
	}
	aligned := reference.Clone()
	if err := a.train(ctx, reference, aligned, prompts, compared, o, func(done, total int) { progress("align by DPO", "pairs", done, total) }); err != nil {
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
	gen = gen.Without(a.Withdrawn)
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
	o := decoder.Options{User: gen.Config().User(p.User), History: p.History, Exclude: seen, Length: a.cfg.Length, Width: (a.cfg.Candidates + 1) / 2}
	lists, err := gen.Generate(o)
	if err != nil {
		return nil, fmt.Errorf("draw candidates: %w", err)
	}
	o.Width, o.Temperature, o.Rand, o.LogProbs = a.cfg.Candidates/2, a.cfg.Temperature, rng, true
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
				var v Viewed
				if int(item) < len(a.Facts) {
					v = a.Facts[item]
				}
				v.ID, v.User = a.cb.ID(item), prompts[i].Past
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

// compare takes pairs of each prompt's candidates whose rewards differ by the least margin.
func (a *aligner) compare(drawn [][]decoder.List, rewards [][]float64) (out []comparison, pairs int) {
	rng := rand.New(rand.NewPCG(a.cfg.Seed, 0x9a15))
	for i, lists := range drawn {
		for _, p := range a.choose(rewards[i], rng) {
			margin := rewards[i][p[0]] - rewards[i][p[1]]
			if !(margin > 0) || margin < a.cfg.MinMargin {
				continue
			}
			pairs++
			worse := a.items(lists[p[1]])
			// One winner against several is one comparison to S-DPO only.
			if last := len(out) - 1; a.cfg.Loss == decoder.LossSDPO && a.cfg.Pairing == PairExtremes && last >= 0 && out[last].prompt == i {
				out[last].worse, out[last].margins = append(out[last].worse, worse), append(out[last].margins, margin)
				continue
			}
			out = append(out, comparison{i, a.items(lists[p[0]]), [][]semanticid.Item{worse}, []float64{margin}})
		}
	}
	return out, pairs
}

// choose returns pairs of candidates, the better first. Random pairs are of candidates that were
// sampled, which stand for what the model says, as those of the beam search don't; each is in one pair.
func (a *aligner) choose(rewards []float64, rng *rand.Rand) (out [][2]int) {
	switch a.cfg.Pairing {
	case PairRandom:
		first := min((a.cfg.Candidates+1)/2, len(rewards))
		order := rng.Perm(len(rewards) - first)
		for i := 0; i+1 < len(order) && len(out) < a.cfg.PairsAUser; i += 2 {
			x, y := first+order[i], first+order[i+1]
			if rewards[x] < rewards[y] {
				x, y = y, x
			}
			out = append(out, [2]int{x, y})
		}
	default:
		order := make([]int, len(rewards))
		for i := range order {
			order[i] = i
		}
		slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(rewards[j], rewards[i]) })
		for i := len(order) - 1; i > 0 && len(out) < a.cfg.PairsAUser; i-- {
			out = append(out, [2]int{order[0], order[i]})
		}
	}
	return out
}

// train makes Epochs passes over the comparisons, with the prompts' own good sessions
// as the next-token part.
func (a *aligner) train(ctx context.Context, reference, aligned *decoder.Weights, prompts []Prompt, compared []comparison, o *Outcome, progress func(done, total int)) error {
	c := reference.Config
	losers := 1 // of a comparison at most
	for _, p := range compared {
		losers = max(losers, len(p.worse))
	}
	capacity := max(a.cfg.BatchTokens, (2+losers)*c.MaxLen)
	most := max(losers, capacity/2/c.RowTokens(a.cfg.Length)) // pairs of a batch
	scorer, err := decoder.NewScorer(reference, capacity)
	if err != nil {
		return err
	}
	preference, lambda := a.cfg.preference(), a.cfg.Lambda
	if a.cfg.Loss == LossBest {
		lambda = 0
	}
	graph, err := decoder.NewPreferenceGraph(aligned, capacity, most, preference, float32(lambda))
	if err != nil {
		return err
	}
	solver := ops.NewSolver(a.cfg.LearningRate, 0)
	order := make([]int, len(compared))
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
			begin := lo
			for lo < len(order) {
				p := compared[order[lo]]
				prompt := prompts[p.prompt]
				rows := []decoder.Row{c.Fit(decoder.Row{User: c.User(prompt.User), History: prompt.History, Session: p.better})}
				for _, worse := range p.worse {
					rows = append(rows, c.Fit(decoder.Row{User: c.User(prompt.User), History: prompt.History, Session: worse}))
				}
				need := 0
				for _, r := range rows {
					need += c.Tokens(r)
				}
				var good *decoder.Row
				if len(prompt.Session) > 0 {
					r := c.Fit(decoder.Row{User: c.User(prompt.User), History: prompt.History, Session: prompt.Session[:min(len(prompt.Session), a.cfg.Length)]})
					good = &r
					need += c.Tokens(r)
				}
				if len(batch) > 0 && (b.Tokens()+need > capacity || len(batch)+len(p.worse) > most) {
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
				for i, margin := range p.margins {
					batch = append(batch, decoder.Pair{Winner: at, Loser: at + 1 + i, Reward: float32(margin)})
				}
				lo++
			}
			b.Close()
			if _, err := scorer.Run(b, nil, decoder.Dropout{}); err != nil {
				return fmt.Errorf("score pairs with the reference: %w", err)
			}
			if !preference.ReferenceFree() {
				logp := scorer.LogProbs()
				if preference.Averaged() {
					for row := range logp {
						logp[row] /= float32(b.Predictions(row))
					}
				}
				for i, p := range batch {
					batch[i].RefMargin = logp[p.Winner] - logp[p.Loser]
				}
			}
			l, err := graph.Step(b, batch, decoder.Dropout{}, solver)
			if errors.Is(err, decoder.ErrNotFinite) || errors.Is(err, ops.ErrDiverged) {
				return fmt.Errorf("step of alignment: %w: %w", ErrDiverged, err)
			}
			if err != nil {
				return fmt.Errorf("step of alignment: %w", err)
			}
			share := float64(lo-begin) / float64(len(order))
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
			rows = append(rows, decoder.Row{User: reference.Config.User(prompts[i].User), History: prompts[i].History, Session: a.items(l)})
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

// loss is the mean next-token loss over the [Judges]' sessions, nats a code; 0 without any.
func (a *aligner) loss(w *decoder.Weights) (float64, error) {
	rows := make([]decoder.Row, len(a.Sessions))
	for i, p := range a.Sessions {
		rows[i] = decoder.Row{User: w.Config.User(p.User), History: p.History, Session: p.Session}
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
