package rewarder

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"onerec/decoder"
	"onerec/internal/holdout"
	"onerec/schemas/onerecv1"
	"onerec/semanticid"
)

func TestAUC(t *testing.T) {
	for _, tt := range []struct {
		scores   []float64
		positive []bool
		want     float64
	}{
		{[]float64{1, 2, 3, 4}, []bool{false, false, true, true}, 1},
		{[]float64{4, 3, 2, 1}, []bool{false, false, true, true}, 0},
		{[]float64{5, 5, 5}, []bool{true, false, true}, 0.5},
		{[]float64{1, 2, 2, 3}, []bool{false, true, false, true}, 0.875},
	} {
		if got := auc(tt.scores, tt.positive); math.Abs(got-tt.want) > 1e-12 {
			t.Errorf("AUC of %v is %v, want %v", tt.scores, got, tt.want)
		}
	}
	if !math.IsNaN(auc([]float64{1, 2}, []bool{true, true})) {
		t.Error("without negatives there is no AUC")
	}
}

func TestSpearman(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.SliceOfNDistinct(rapid.IntRange(-50, 50), 3, 20, rapid.ID[int]).Draw(t, "x")
		x, up, down := make([]float64, len(n)), make([]float64, len(n)), make([]float64, len(n))
		for i, v := range n {
			x[i] = float64(v)
			up[i], down[i] = math.Exp(x[i]/10), -x[i]*x[i]*x[i]
		}
		if a, b := spearman(x, up), spearman(x, down); math.Abs(a-1) > 1e-9 || math.Abs(b+1) > 1e-9 {
			t.Fatalf("%v and %v, want 1 and -1", a, b)
		}
	})
}

// TestInterval: the interval of the mean of normal numbers is about
// mean +- 1.96 s / sqrt(n).
func TestInterval(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	x := make([]float64, 400)
	for i := range x {
		x[i] = 3 + r.NormFloat64()
	}
	lo, hi := interval(x, r)
	if m := mean(x); math.Abs(lo-(m-0.098)) > 0.02 || math.Abs(hi-(m+0.098)) > 0.02 {
		t.Fatalf("%v to %v around %v", lo, hi, m)
	}
}

// TestCompare: the best of each prompt with the worst, or sampled candidates with each other; never a pair
// that differs by less than the margin, never more than are wanted, the better one first.
func TestCompare(t *testing.T) {
	cb := testCodebook(t)
	rapid.Check(t, func(t *rapid.T) {
		a := &aligner{cfg: AlignConfig{
			MinMargin: rapid.Float64Range(0, 1).Draw(t, "margin"), Pairing: rapid.SampledFrom([]string{PairExtremes, PairRandom}).Draw(t, "pairing"),
			PairsAUser: rapid.IntRange(1, 4).Draw(t, "pairs a user"), Loss: rapid.SampledFrom([]string{decoder.LossDPO, decoder.LossSDPO}).Draw(t, "loss"),
			Candidates: 6, Seed: rapid.Uint64().Draw(t, "seed"),
		}, cb: cb}
		var drawn [][]decoder.List
		var rewards [][]float64
		for range rapid.IntRange(1, 5).Draw(t, "prompts") {
			r := rapid.SliceOfNDistinct(rapid.Float64Range(0, 2), 0, 6, rapid.ID[float64]).Draw(t, "rewards")
			lists := make([]decoder.List, len(r))
			for i := range lists {
				lists[i].Items = []int32{int32(i)}
			}
			drawn, rewards = append(drawn, lists), append(rewards, r)
		}
		compared, pairs := a.compare(drawn, rewards)
		type of struct{ better, worse []int } // candidates
		byPrompt := make([]of, len(drawn))
		for _, c := range compared {
			find := func(ids []semanticid.Item) int {
				return slices.IndexFunc(drawn[c.prompt], func(l decoder.List) bool { return slices.Equal(cb.ID(l.Items[0]), ids[0]) })
			}
			if len(c.worse) != 1 && (a.cfg.Loss != decoder.LossSDPO || a.cfg.Pairing != PairExtremes) {
				t.Fatalf("a comparison with %d", len(c.worse))
			}
			for i, worse := range c.worse {
				x, y := find(c.better), find(worse)
				if m := rewards[c.prompt][x] - rewards[c.prompt][y]; m != c.margins[i] || m <= 0 || m < a.cfg.MinMargin {
					t.Fatalf("candidates %d and %d of %v differ by %v, %v is said and %v allowed", x, y, rewards[c.prompt], m, c.margins[i], a.cfg.MinMargin)
				}
				p := &byPrompt[c.prompt]
				p.better, p.worse = append(p.better, x), append(p.worse, y)
				pairs--
			}
		}
		if pairs != 0 {
			t.Fatalf("%d pairs too many are said", pairs)
		}
		for i, p := range byPrompt {
			r := rewards[i]
			if len(p.better) > a.cfg.PairsAUser {
				t.Fatalf("%d pairs of a prompt", len(p.better))
			}
			if a.cfg.Pairing == PairRandom {
				used := make(map[int]bool)
				for _, x := range append(p.better, p.worse...) {
					if used[x] || x < a.cfg.Candidates/2 {
						t.Fatalf("candidate %d is used twice or was not sampled", x)
					}
					used[x] = true
				}
				continue
			}
			var want []int // the worst first, as far as they are worse enough
			if len(r) > 0 {
				best := slices.Max(r)
				for _, v := range slices.Sorted(slices.Values(r))[:min(len(r)-1, a.cfg.PairsAUser)] {
					if best-v >= a.cfg.MinMargin {
						want = append(want, slices.Index(r, v))
					}
				}
				for _, x := range p.better {
					if r[x] != best {
						t.Fatalf("%v won, the best is %v", r[x], best)
					}
				}
			}
			if !slices.Equal(p.worse, want) {
				t.Fatalf("prompt %d with rewards %v: %v lost, want %v", i, r, p.worse, want)
			}
		}
	})
}

func TestGates(t *testing.T) {
	good := Outcome{
		HeldOutUsers: 10, GainLow: 0.1, GainHigh: 0.3, KL: 1, LossBefore: 2, LossAfter: 2.05,
		Before: Held{Reward: 1, Second: 1, Coverage: 0.5, Diversity: 0.8, Objective: Averages{1000, 0.1, 0.4, 0.01}},
		After:  Held{Reward: 1.2, Second: 1.1, Coverage: 0.4, Diversity: 0.7, Objective: Averages{1100, 0.1, 0.395, 0.011}},
	}
	log := Averages{1000, 0.1, 0.4, 0.01}
	g := Gates{MaxLossRise: 0.05, MaxKL: 2, MinCoverage: 0.7, MinDiversity: 0.7, MaxDrop: 0.02, MaxDislikes: 0.11}
	for name, change := range map[string]func(*Outcome){
		"held-out user":             func(o *Outcome) { o.HeldOutUsers = 0 },
		"reward went":               func(o *Outcome) { o.GainLow = -0.01 },
		"interval":                  func(o *Outcome) { o.GainLow = math.NaN() },
		"second":                    func(o *Outcome) { o.After.Second = 0.99 },
		"distance":                  func(o *Outcome) { o.KL = 2.1 },
		"nats":                      func(o *Outcome) { o.KL = math.NaN() },
		"loss":                      func(o *Outcome) { o.LossAfter = 2.2 },
		"different items":           func(o *Outcome) { o.After.Coverage = 0.3 },
		"diversity":                 func(o *Outcome) { o.After.Diversity = 0.5 },
		"predicted watch time went": func(o *Outcome) { o.After.Objective.WatchMs = 900 },
		"predicted like went":       func(o *Outcome) { o.After.Objective.Like = 0.09 },
		"predicted dislikes went":   func(o *Outcome) { o.After.Objective.Dislike = 0.012 },
		"predicted completion went": func(o *Outcome) { o.After.Objective.Completion = 0.3 },
	} {
		o := good
		change(&o)
		g.judge(&o, log)
		failed := 0
		for _, gate := range o.Gates {
			if !gate.Passed() {
				failed++
			}
		}
		if o.Accepted || failed != 1 || !strings.Contains(o.Why, name) {
			t.Errorf("%s: accepted %v, %d gates failed, why %q", name, o.Accepted, failed, o.Why)
		}
	}
	if g.judge(&good, log); !good.Accepted || good.Why == "" {
		t.Errorf("a good round: accepted %v, why %q", good.Accepted, good.Why)
	}
	unknown := good
	unknown.LossBefore, unknown.LossAfter = 0, 0 // no session to take it on
	if g.judge(&unknown, log); !unknown.Accepted || !strings.Contains(unknown.Why, "not judged") || len(unknown.Gates) != len(good.Gates)-1 {
		t.Errorf("without a loss: accepted %v, %d gates, why %q", unknown.Accepted, len(unknown.Gates), unknown.Why)
	}
	good.After.Objective.Dislike = 1 // of nothing
	if g.judge(&good, Averages{1000, 0.1, 0.4, 0}); !good.Accepted {
		t.Errorf("dislikes that the log has none of: %q", good.Why)
	}
}

func TestRewardIsOneForAnOrdinaryList(t *testing.T) {
	avg := Averages{WatchMs: 2000, Like: 0.25, Completion: 0.5}
	p := Prediction{Like: []float64{0.25, 0.25}, Completion: []float64{0.4, 0.6}, WatchMs: 4000}
	w := RewardWeights{Watch: 1, Like: 2, Completion: 0.5}
	if r := w.Reward(p, avg); math.Abs(r-1) > 1e-12 {
		t.Errorf("reward %v", r)
	}
	avg.Like = 0 // the log holds no likes: they don't count
	if r := w.Reward(p, avg); math.Abs(r-1) > 1e-12 {
		t.Errorf("without likes: %v", r)
	}
	avg.Dislike, p.Dislike, w.Dislike = 0.1, []float64{0.1, 0.1}, 0.3
	if r := w.Reward(p, avg); math.Abs(r-1) > 1e-12 {
		t.Errorf("with an ordinary number of dislikes: %v", r)
	}
	p.Dislike[0] = 0.2
	if r := w.Reward(p, avg); r >= 1 {
		t.Errorf("with more dislikes: %v", r)
	}
	if r := w.Reward(p, Averages{}); r != 0 {
		t.Errorf("without anything: %v", r)
	}
}

func testCodebook(t testing.TB) *semanticid.Codebook {
	t.Helper()
	r := rand.New(rand.NewPCG(11, 12))
	const n = 20
	x, names := make([]float32, n*4), make([]string, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	for i := range names {
		names[i] = fmt.Sprint("i", i)
	}
	cb, err := semanticid.Build(context.Background(), names, x, 4, semanticid.Config{Levels: testLevels, Codes: testCodes, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	return cb
}

func testPrompts(cb *semanticid.Codebook, name string, n int, r *rand.Rand) []Prompt {
	var out []Prompt
	for i := range n {
		p := Prompt{User: fmt.Sprint(name, i)}
		for range 3 {
			item := int32(r.IntN(cb.Len()))
			p.History, p.Seen = append(p.History, cb.ID(item)), append(p.Seen, item)
		}
		for range 3 {
			p.Session = append(p.Session, cb.ID(int32(r.IntN(cb.Len()))))
		}
		out = append(out, p)
	}
	return out
}

// TestAlign: a reward model that loves one first code; after a round the decoder
// writes it more often, for users it was not trained on too.
func TestAlign(t *testing.T) {
	cb := testCodebook(t)
	r := rand.New(rand.NewPCG(13, 14))
	rm := testModel(t)
	var taste []Example
	for range 600 {
		id := cb.ID(int32(r.IntN(cb.Len())))
		e := Example{Items: []Viewed{{ID: id, Like: labelOf(id[0] == 2), Completion: labelOf(id[0] == 2), Watch: -1}}, WatchMs: 1000}
		if id[0] == 2 {
			e.WatchMs = 20_000
		}
		taste = append(taste, e)
	}
	for range 12 {
		if _, err := rm.Train(taste, r); err != nil {
			t.Fatal(err)
		}
	}
	c := decoder.Config{Layers: 1, Dim: 16, Heads: 2, Hidden: 24, Levels: testLevels, Codes: testCodes, MaxLen: 40}
	w, err := decoder.NewWeights(c, 1)
	if err != nil {
		t.Fatal(err)
	}
	cfg := alignConfig()
	run := func() (*decoder.Weights, *Outcome) {
		judges := Judges{Reward: rm, Averages: averages(taste), Sessions: testPrompts(cb, "held", 9, rand.New(rand.NewPCG(3, 3)))}
		aligned, o, err := Align(t.Context(), w, cb, judges, testPrompts(cb, "train", 40, rand.New(rand.NewPCG(1, 1))), testPrompts(cb, "held", 30, rand.New(rand.NewPCG(2, 2))), cfg, nil)
		if err != nil {
			t.Fatal(err)
		}
		return aligned, o
	}
	before := w.Clone()
	aligned, o := run()
	if !o.Accepted || o.LossBefore <= 0 || o.LossAfter <= 0 || o.After.Reward <= o.Before.Reward || o.DPOLast >= o.DPOFirst || o.Wins < 0.8 || o.KL <= 0 || o.Pairs == 0 {
		t.Fatalf("outcome %+v", o)
	}
	for i, p := range w.Tensors() {
		for j, v := range p.Data {
			if v != before.Tensors()[i].Data[j] {
				t.Fatal("the reference was changed")
			}
		}
	}
	again, o2 := run()
	if !slices.Equal(o.ServedAfter, o2.ServedAfter) || o.KL != o2.KL || again.Tensors()[0].Data[7] != aligned.Tensors()[0].Data[7] {
		t.Fatalf("the same round again: %+v, before %+v", o2, o)
	}
}

// TestHeldOutSessions: the loss is taken on good sessions of held-out users, several of one if need be, up to as many as
// users are asked.
func TestHeldOutSessions(t *testing.T) {
	cb := testCodebook(t)
	c := &Core{data: newDataset(50)}
	good := 0
	for i := range 40 {
		j := &onerecv1.JudgedSession{
			Session: &onerecv1.Session{UserId: fmt.Sprint("u", i%4), Views: []*onerecv1.View{{ItemId: fmt.Sprint("i", i%cb.Len())}}},
			Verdict: &onerecv1.Verdict{Good: i/4%3 == 0},
		}
		c.data.add(j)
		if holdout.Contains(j.Session.UserId, 50) && j.Verdict.Good {
			good++
		}
	}
	cfg := alignConfig()
	for _, most := range []int{good - 1, good, 2 * good} {
		cfg.HeldOut = most
		sessions := c.heldOutSessions(cb, cfg)
		if len(sessions) != min(most, good) {
			t.Errorf("%d sessions, want %d of %d", len(sessions), min(most, good), good)
		}
		users := make(map[string]bool)
		for _, p := range sessions {
			users[p.User] = true
			if !holdout.Contains(p.User, 50) || len(p.Session) == 0 {
				t.Errorf("%+v is not a good session of a held-out user", p)
			}
		}
		if len(users) >= len(sessions) {
			t.Errorf("%d users have %d sessions", len(users), len(sessions))
		}
	}
}

func alignConfig() AlignConfig {
	cfg := DefaultAlignConfig()
	cfg.Candidates, cfg.Length, cfg.LearningRate, cfg.Epochs, cfg.BatchTokens = 12, 3, 3e-3, 6, 256
	cfg.Gates = Gates{MaxLossRise: 1, MaxKL: 100}
	return cfg
}

// scorer scores each item by itself.
type scorer func(id semanticid.Item) float64

func (s scorer) Predict(examples []Example) ([]Prediction, error) {
	out := make([]Prediction, len(examples))
	for i, e := range examples {
		for _, v := range e.Items {
			r := s(v.ID)
			out[i].Like, out[i].Completion = append(out[i].Like, r), append(out[i].Completion, r)
			out[i].WatchMs += 1000 * r
		}
	}
	return out, nil
}

// TestPoisonedRewards: whatever is wrong with the reward, no round of it is released, and it is
// said why.
func TestPoisonedRewards(t *testing.T) {
	cb := testCodebook(t)
	honest := scorer(func(id semanticid.Item) float64 { return 0.2 + 0.6*float64(id[0])/testCodes })
	favourite := cb.ID(7)
	c := decoder.Config{Layers: 1, Dim: 16, Heads: 2, Hidden: 24, Levels: testLevels, Codes: testCodes, MaxLen: 40}
	w, err := decoder.NewWeights(c, 1)
	if err != nil {
		t.Fatal(err)
	}
	round := func(reward, second Scorer, gates Gates) *Outcome {
		t.Helper()
		cfg := alignConfig()
		cfg.Gates = gates
		core := &Core{cfg: CoreConfig{Second: second != nil}}
		judges := Judges{Reward: reward, Second: second, Averages: Averages{1000, 0.5, 0.5, 0}}
		_, o, err := Align(t.Context(), w, cb, judges, testPrompts(cb, "train", 40, rand.New(rand.NewPCG(1, 1))), testPrompts(cb, "held", 30, rand.New(rand.NewPCG(2, 2))), cfg, nil)
		if err = core.rejected(o, err); err != nil {
			t.Fatal(err)
		}
		return o
	}
	lax := Gates{MaxLossRise: 10, MaxKL: 1000, MaxDrop: 1}
	if o := round(honest, honest, lax); !o.Accepted || !(o.SecondLow > 0) {
		t.Fatalf("an honest reward: %s", o.Why)
	}
	flipped := scorer(func(id semanticid.Item) float64 { return 1 - honest(id) })
	one := scorer(func(id semanticid.Item) float64 {
		if slices.Equal(id, favourite) {
			return 1
		}
		return 0.1
	})
	for name, tt := range map[string]struct {
		reward, second Scorer
		gates          Gates
		why            string
	}{
		"constant":       {scorer(func(semanticid.Item) float64 { return 0.5 }), honest, lax, ErrNoPairs.Error()},
		"NaN":            {scorer(func(semanticid.Item) float64 { return math.NaN() }), honest, lax, ErrDiverged.Error()},
		"infinite later": {honest, scorer(func(semanticid.Item) float64 { return math.Inf(1) }), lax, ErrDiverged.Error()},
		"sign flipped":   {flipped, honest, lax, "second reward model"},
		"one favourite":  {one, honest, Gates{MaxLossRise: 10, MaxKL: 1000, MaxDrop: 1, MinCoverage: 0.6}, "different items"},
	} {
		if o := round(tt.reward, tt.second, tt.gates); o.Accepted || !strings.Contains(o.Why, tt.why) {
			t.Errorf("%s: accepted %v, why %q, want %q", name, o.Accepted, o.Why, tt.why)
		}
	}
}

// TestNoCandidateIsWithdrawn: in a round no reward model is asked about an item that nobody is recommended.
func TestNoCandidateIsWithdrawn(t *testing.T) {
	cb := testCodebook(t)
	gone, asked := make(map[int32]bool), make(map[string]bool)
	for i := int32(0); i < int32(cb.Len()); i += 2 {
		gone[i] = true
	}
	watching := scorer(func(id semanticid.Item) float64 {
		asked[fmt.Sprint(id)] = true
		return 0.2 + 0.6*float64(id[0])/testCodes
	})
	w, err := decoder.NewWeights(decoder.Config{Layers: 1, Dim: 16, Heads: 2, Hidden: 24, Levels: testLevels, Codes: testCodes, MaxLen: 40}, 1)
	if err != nil {
		t.Fatal(err)
	}
	judges := Judges{Reward: watching, Second: watching, Averages: Averages{1000, 0.5, 0.5, 0}, Withdrawn: gone}
	_, o, err := Align(t.Context(), w, cb, judges, testPrompts(cb, "train", 40, rand.New(rand.NewPCG(1, 1))), testPrompts(cb, "held", 30, rand.New(rand.NewPCG(2, 2))), alignConfig(), nil)
	if err != nil || o.Pairs == 0 || len(asked) < 5 {
		t.Fatalf("%d pairs of %d items; %v", o.Pairs, len(asked), err)
	}
	for i := range gone {
		if asked[fmt.Sprint(cb.ID(i))] {
			t.Errorf("item %d, which is withdrawn, was a candidate's", i)
		}
	}
}

// TestLosses: whatever is learned from the pairs, what would be served to others is worth more afterwards.
func TestLosses(t *testing.T) {
	cb := testCodebook(t)
	honest := scorer(func(id semanticid.Item) float64 { return 0.2 + 0.6*float64(id[0])/testCodes })
	w, err := decoder.NewWeights(decoder.Config{Layers: 1, Dim: 16, Heads: 2, Hidden: 24, Levels: testLevels, Codes: testCodes, MaxLen: 40}, 1)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*AlignConfig){
		"dpo":          func(*AlignConfig) {},
		"dpo, average": func(c *AlignConfig) { c.Average, c.Beta = true, 1 },
		"cdpo":         func(c *AlignConfig) { c.Smoothing = 0.1 },
		"rdpo":         func(c *AlignConfig) { c.Loss, c.Smoothing = decoder.LossRDPO, 0.1 },
		"ipo":          func(c *AlignConfig) { c.Loss = decoder.LossIPO },
		"simpo":        func(c *AlignConfig) { c.Loss, c.Beta, c.Gamma = decoder.LossSimPO, 2, 0.5 },
		"best":         func(c *AlignConfig) { c.Loss = LossBest },
		"sdpo":         func(c *AlignConfig) { c.Loss, c.PairsAUser = decoder.LossSDPO, 3 },
		"three pairs":  func(c *AlignConfig) { c.PairsAUser = 3 },
		"random pairs": func(c *AlignConfig) { c.Pairing, c.PairsAUser = PairRandom, 2 },
		"copg":         func(c *AlignConfig) { c.Loss, c.Pairing, c.PairsAUser = decoder.LossCoPG, PairRandom, 4 },
	} {
		cfg := alignConfig()
		change(&cfg)
		judges := Judges{Reward: honest, Averages: Averages{1000, 0.5, 0.5, 0}}
		_, o, err := Align(t.Context(), w, cb, judges, testPrompts(cb, "train", 40, rand.New(rand.NewPCG(1, 1))), testPrompts(cb, "held", 30, rand.New(rand.NewPCG(2, 2))), cfg, nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !(o.GainLow > 0) || o.Wins < 0.6 {
			t.Errorf("%s: reward %.3f to %.3f, %.2f of the pairs won", name, o.Before.Reward, o.After.Reward, o.Wins)
		}
	}
}
