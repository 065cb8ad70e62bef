package rewarder

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"onerec/decoder"
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

// TestPairs: of each prompt the best and the worst, never a pair that differs by
// less than the margin.
func TestPairs(t *testing.T) {
	cb := testCodebook(t)
	rapid.Check(t, func(t *rapid.T) {
		a := &aligner{cfg: AlignConfig{MinMargin: rapid.Float64Range(0, 1).Draw(t, "margin")}, cb: cb}
		var drawn [][]decoder.List
		var rewards [][]float64
		for range rapid.IntRange(1, 5).Draw(t, "prompts") {
			r := rapid.SliceOfN(rapid.Float64Range(0, 2), 0, 6).Draw(t, "rewards")
			lists := make([]decoder.List, len(r))
			for i := range lists {
				lists[i].Items = []int32{int32(i)}
			}
			drawn, rewards = append(drawn, lists), append(rewards, r)
		}
		byPrompt := map[int]pair{}
		for _, p := range a.pairs(drawn, rewards) {
			byPrompt[p.prompt] = p
		}
		for i, r := range rewards {
			lo, hi := math.Inf(1), math.Inf(-1)
			for _, v := range r {
				lo, hi = min(lo, v), max(hi, v)
			}
			p, ok := byPrompt[i]
			if want := len(r) > 0 && hi > lo && hi-lo >= a.cfg.MinMargin; ok != want {
				t.Fatalf("prompt %d with rewards %v: pair %v, want %v", i, r, ok, want)
			}
			if !ok {
				continue
			}
			find := func(ids []semanticid.Item) float64 {
				for j := range r {
					if fmt.Sprint(cb.ID(int32(j))) == fmt.Sprint(ids[0]) {
						return r[j]
					}
				}
				return math.NaN()
			}
			if find(p.best) != hi || find(p.worst) != lo {
				t.Fatalf("prompt %d with rewards %v: best %v, worst %v", i, r, find(p.best), find(p.worst))
			}
		}
	})
}

func TestGates(t *testing.T) {
	good := Outcome{HeldOutUsers: 10, RewardBefore: 1, RewardAfter: 1.2, GainLow: 0.1, GainHigh: 0.3, KL: 1, LossBefore: 2, LossAfter: 2.05}
	g := Gates{MaxLossRise: 0.05, MaxKL: 2}
	for name, change := range map[string]func(*Outcome){
		"held-out user": func(o *Outcome) { o.HeldOutUsers = 0 },
		"reward":        func(o *Outcome) { o.GainLow = -0.01 },
		"interval":      func(o *Outcome) { o.GainLow = math.NaN() },
		"distance":      func(o *Outcome) { o.KL = 2.1 },
		"nats":          func(o *Outcome) { o.KL = math.NaN() },
		"loss":          func(o *Outcome) { o.LossAfter = 2.2 },
	} {
		o := good
		change(&o)
		if ok, why := g.judge(&o); ok || !strings.Contains(why, name) {
			t.Errorf("%s: accepted %v, why %q", name, ok, why)
		}
	}
	if ok, why := g.judge(&good); !ok || why == "" {
		t.Errorf("a good round: accepted %v, why %q", ok, why)
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
		e := Example{Items: []Viewed{{ID: id, Like: labelOf(id[0] == 2), Completion: labelOf(id[0] == 2)}}, WatchMs: 1000}
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
	cfg := DefaultAlignConfig()
	cfg.Candidates, cfg.Length, cfg.LearningRate, cfg.Epochs, cfg.BatchTokens = 12, 3, 3e-3, 6, 256
	cfg.Gates = Gates{MaxLossRise: 1, MaxKL: 100}
	run := func() (*decoder.Weights, *Outcome) {
		aligned, o, err := Align(t.Context(), w, cb, rm, averages(taste), testPrompts(cb, "train", 40, rand.New(rand.NewPCG(1, 1))), testPrompts(cb, "held", 30, rand.New(rand.NewPCG(2, 2))), cfg, nil)
		if err != nil {
			t.Fatal(err)
		}
		return aligned, o
	}
	before := w.Clone()
	aligned, o := run()
	if !o.Accepted || o.RewardAfter <= o.RewardBefore || o.DPOLast >= o.DPOFirst || o.Wins < 0.8 || o.KL <= 0 || o.Pairs == 0 {
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
	if *o != *o2 || again.Tensors()[0].Data[7] != aligned.Tensors()[0].Data[7] {
		t.Fatalf("the same round again: %+v, before %+v", o2, o)
	}

	// A reward that is the same for everything, or not a number, stops the round.
	for _, p := range rm.params {
		clear(p.Data)
	}
	if _, _, err := Align(t.Context(), w, cb, rm, averages(taste), testPrompts(cb, "train", 5, r), nil, cfg, nil); !errors.Is(err, ErrNoPairs) {
		t.Fatalf("constant reward: error %v, want %v", err, ErrNoPairs)
	}
	rm.params[len(rm.params)-1].Data[0] = float32(math.NaN())
	if _, _, err := Align(t.Context(), w, cb, rm, averages(taste), testPrompts(cb, "train", 5, r), nil, cfg, nil); !errors.Is(err, ErrDiverged) {
		t.Fatalf("reward of NaN: error %v", err)
	}
}
