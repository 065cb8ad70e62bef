package decoder

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"onerec/internal/gradcheck"
	"onerec/internal/ops"
)

func testConfig() Config {
	return Config{Layers: 2, Dim: 16, Heads: 2, Hidden: 24, Levels: 2, Codes: 5, MaxLen: 40}
}

// testExperts is testConfig with a mixture of experts.
func testExperts() Config {
	c := testConfig()
	c.Hidden, c.Experts, c.Active = 12, 5, 2
	return c
}

func randomRow(r *rand.Rand, c Config, history, session int) Row {
	item := func() Item {
		id := make(Item, c.Levels)
		for l := range id {
			id[l] = uint16(r.IntN(c.Codes))
		}
		return id
	}
	var row Row
	for range history {
		row.History = append(row.History, item())
	}
	for range session {
		row.Session = append(row.Session, item())
	}
	return row
}

func testBatch(t testing.TB, c Config, historyWeight float32, rows ...Row) *Batch {
	t.Helper()
	b := NewBatch(historyWeight)
	for _, r := range rows {
		if err := b.Add(c, r); err != nil {
			t.Fatal(err)
		}
	}
	b.Close()
	return b
}

// randomWeights draws weights large enough that every gradient matters.
func randomWeights(t testing.TB, c Config, seed uint64) *Weights {
	t.Helper()
	w, err := NewWeights(c, seed)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(seed, 1))
	for _, p := range w.params {
		for i := range p.Data {
			p.Data[i] += float32(r.NormFloat64()) * 0.3
		}
	}
	return w
}

// checkGradients holds the graph's gradient of each parameter against central
// differences along random directions.
func checkGradients(t *testing.T, g *Graph, b *Batch, pairs []Pair, dropout Dropout) {
	t.Helper()
	gradcheck.Directions(t, g.weights.params, g.model, func() float64 {
		l, err := g.Run(b, pairs, dropout)
		if err != nil {
			t.Fatal(err)
		}
		return float64(l.Total)
	})
}

func TestGradientsOfNextTokenLoss(t *testing.T) {
	all := testExperts()
	all.Active = all.Experts // or a difference would be one between routes; TestPyTorch chooses some
	for name, c := range map[string]Config{"one part": testConfig(), "experts": all} {
		t.Run(name, func(t *testing.T) { gradientsOfNextTokenLoss(t, c) })
	}
}

func gradientsOfNextTokenLoss(t *testing.T, c Config) {
	w := randomWeights(t, c, 1)
	g, err := NewGraph(w, 128)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	b := testBatch(t, c, 0.5, randomRow(r, c, 3, 2), randomRow(r, c, 0, 4), randomRow(r, c, 5, 1))
	checkGradients(t, g, b, nil, Dropout{})
	checkGradients(t, g, b, nil, Dropout{Residual: 0.2, Embedding: 0.3, Seed: 3})
}

// TestPreferenceLosses holds each loss against its formula, and its gradients against central
// differences.
func TestPreferenceLosses(t *testing.T) {
	c := testConfig()
	f := func(x float64) float64 { return math.Log1p(math.Exp(x)) }
	for name, tt := range map[string]struct {
		of   Preference
		want func(m float64) float64
	}{
		"dpo":          {Preference{Loss: LossDPO, Beta: 0.3}, func(m float64) float64 { return f(-0.3 * m) }},
		"cdpo":         {Preference{Loss: LossDPO, Beta: 0.3, Smoothing: 0.1}, func(m float64) float64 { return 0.9*f(-0.3*m) + 0.1*f(0.3*m) }},
		"rdpo":         {Preference{Loss: LossRDPO, Beta: 0.3, Smoothing: 0.1}, func(m float64) float64 { return (0.9*f(-0.3*m) - 0.1*f(0.3*m)) / 0.8 }},
		"ipo":          {Preference{Loss: LossIPO, Beta: 0.5}, func(m float64) float64 { return (m - 1) * (m - 1) }},
		"ipo, average": {Preference{Loss: LossIPO, Beta: 0.5, Average: true}, func(m float64) float64 { return (m - 1) * (m - 1) }},
		"simpo":        {Preference{Loss: LossSimPO, Beta: 2, Gamma: 0.4}, func(m float64) float64 { return f(0.4 - 2*m) }},
		"sdpo of one":  {Preference{Loss: LossSDPO, Beta: 0.3}, func(m float64) float64 { return f(-0.3 * m) }},
		"copg":         {Preference{Loss: LossCoPG, Beta: 0.3}, func(m float64) float64 { return (0.8 - 0.3*m) * (0.8 - 0.3*m) }},
	} {
		t.Run(name, func(t *testing.T) {
			w := randomWeights(t, c, 2)
			g, err := NewPreferenceGraph(w, 128, 4, tt.of, 1.5)
			if err != nil {
				t.Fatal(err)
			}
			r := rand.New(rand.NewPCG(3, 4))
			rows := []Row{randomRow(r, c, 3, 2), randomRow(r, c, 3, 1), randomRow(r, c, 1, 3), randomRow(r, c, 1, 3)}
			b := testBatch(t, c, 0, rows...)
			pairs := []Pair{{Winner: 0, Loser: 1, RefMargin: 0.4, Reward: 0.8}, {Winner: 3, Loser: 2, RefMargin: -0.7, Reward: 0.8}}
			if tt.of.ReferenceFree() {
				pairs[0].RefMargin, pairs[1].RefMargin = 0, 0
			}
			checkGradients(t, g, b, pairs, Dropout{})

			l, err := g.Run(b, pairs, Dropout{})
			if err != nil {
				t.Fatal(err)
			}
			logp := g.LogProbs()
			var want float64
			for _, p := range pairs {
				of := func(row int) float64 {
					if tt.of.Averaged() {
						return float64(logp[row]) / float64(c.Levels*len(rows[row].Session))
					}
					return float64(logp[row])
				}
				want += tt.want(of(p.Winner)-of(p.Loser)-float64(p.RefMargin)) / 2
			}
			if math.Abs(float64(l.DPO)-want) > 1e-5*max(1, want) || math.Abs(float64(l.Total)-float64(l.NTP)-1.5*want) > 2e-5*max(1, want) {
				t.Fatalf("losses %+v, want %v", l, want)
			}
		})
	}
	for _, bad := range []Preference{{Loss: "ppo", Beta: 1}, {Loss: LossDPO}, {Loss: LossRDPO, Beta: 1, Smoothing: 0.5}} {
		if _, err := NewPreferenceGraph(randomWeights(t, c, 2), 128, 4, bad, 1); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
}

// TestSDPO: two winners against two losers and one, and a second batch whose comparisons are others.
func TestSDPO(t *testing.T) {
	c := testConfig()
	const beta = 0.5
	g, err := NewPreferenceGraph(randomWeights(t, c, 2), 128, 4, Preference{Loss: LossSDPO, Beta: beta}, 1)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(3, 4))
	b := testBatch(t, c, 0, randomRow(r, c, 3, 2), randomRow(r, c, 3, 1), randomRow(r, c, 1, 3), randomRow(r, c, 1, 3))
	for _, pairs := range [][]Pair{
		{{Winner: 0, Loser: 1, RefMargin: 0.4}, {Winner: 0, Loser: 2, RefMargin: -0.2}, {Winner: 3, Loser: 2, RefMargin: -0.7}},
		{{Winner: 3, Loser: 2, RefMargin: 200}, {Winner: 3, Loser: 0, RefMargin: -200}, {Winner: 3, Loser: 1}},
	} {
		checkGradients(t, g, b, pairs, Dropout{})
		l, err := g.Run(b, pairs, Dropout{})
		if err != nil {
			t.Fatal(err)
		}
		logp := g.LogProbs()
		odds := make(map[int]float64) // by winner
		for _, p := range pairs {
			odds[p.Winner] += math.Exp(-beta * float64(logp[p.Winner]-logp[p.Loser]-p.RefMargin))
		}
		var want float64
		for _, o := range odds {
			want += math.Log1p(o) / float64(len(odds))
		}
		if math.Abs(float64(l.DPO)-want) > 1e-5*want {
			t.Errorf("loss %v, want %v", l.DPO, want)
		}
	}
}

// TestPacking: the rows of a batch do not see each other.
func TestPacking(t *testing.T) {
	c := testConfig()
	w := randomWeights(t, c, 3)
	g, err := NewGraph(w, 128)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(5, 6))
	rows := []Row{randomRow(r, c, 3, 2), randomRow(r, c, 1, 4), randomRow(r, c, 0, 1)}
	if _, err := g.Run(testBatch(t, c, 1, rows...), nil, Dropout{}); err != nil {
		t.Fatal(err)
	}
	together := g.LogProbs()
	for i, row := range rows {
		if _, err := g.Run(testBatch(t, c, 1, row), nil, Dropout{}); err != nil {
			t.Fatal(err)
		}
		if alone := g.LogProbs()[0]; math.Abs(float64(alone-together[i])) > 1e-4 {
			t.Errorf("row %d: log probability %v alone, %v in a batch", i, alone, together[i])
		}
	}
}

// TestMemorises: a few rows can be learned by heart, to nearly no loss.
func TestMemorises(t *testing.T) {
	for name, c := range map[string]Config{"one part": testConfig(), "experts": testExperts()} {
		t.Run(name, func(t *testing.T) { memorises(t, c) })
	}
}

func memorises(t *testing.T, c Config) {
	w, err := NewWeights(c, 4)
	if err != nil {
		t.Fatal(err)
	}
	g, err := NewGraph(w, 128)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(7, 8))
	b := testBatch(t, c, 0, randomRow(r, c, 2, 3), randomRow(r, c, 3, 3))
	solver := ops.NewSolver(0.01, 0)
	var first, last Losses
	for i := range 120 {
		last, err = g.Step(b, nil, Dropout{}, solver)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = last
		}
	}
	if math.Abs(float64(first.NTP)-math.Log(float64(c.Vocab()))) > 0.5 || last.NTP > 0.05 {
		t.Fatalf("loss from %v to %v", first.NTP, last.NTP)
	}
}

// TestNothingPredicted: rows that predict nothing, as recorded tokens may, have no log probability and no gradient, a lane full of
// them, too.
func TestNothingPredicted(t *testing.T) {
	for name, c := range map[string]Config{"one part": testConfig(), "experts": testExperts()} {
		t.Run(name, func(t *testing.T) {
			g, err := newGraph(randomWeights(t, c, 3), 128, 2, true, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			r := rand.New(rand.NewPCG(5, 6))
			tokens, weights, _, err := c.Layout(randomRow(r, c, 4, 3), 1)
			if err != nil {
				t.Fatal(err)
			}
			for predicting := range 3 { // rows of two
				b := NewBatch(1)
				for row := range 2 {
					of := make([]float32, len(weights))
					if row < predicting {
						of = weights
					}
					if err := b.AddTokens(c, tokens, of); err != nil {
						t.Fatal(err)
					}
				}
				b.Close()
				l, err := g.Run(b, nil, Dropout{})
				if err != nil {
					t.Fatal(err)
				}
				largest := float32(0)
				for _, v := range flat(t, g.model) {
					largest = max(largest, v, -v)
				}
				p := g.LogProbs()
				for row := range p {
					if (p[row] < 0) != (row < predicting) {
						t.Errorf("%d rows predict: the log probability of row %d is %v", predicting, row, p[row])
					}
				}
				if (l.NTP > 0) != (predicting > 0) || (largest > 0.01) != (predicting > 0) || !(largest < 100) {
					t.Errorf("%d rows predict: loss %v, largest gradient %v", predicting, l, largest)
				}
			}
		})
	}
}

// TestTokensOnce: a token that a batch has in several places is one row before attention, unless each place has a dropout of its own.
func TestTokensOnce(t *testing.T) {
	c := testConfig()
	g, err := newGraph(randomWeights(t, c, 3), 128, 1, true, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(5, 6))
	for i, dropout := range []Dropout{{}, {Residual: 0.1}, {Embedding: 0.1}, {}} {
		b := testBatch(t, c, 1, randomRow(r, c, 4, 2), randomRow(r, c, 3, 3))
		if _, err := g.Run(b, nil, dropout); err != nil {
			t.Fatal(err)
		}
		d := g.lanes[0].distinct
		var back []int32
		for _, row := range d.which {
			back = append(back, d.tokens[row])
		}
		once := slices.Compact(slices.Sorted(slices.Values(b.tokens)))
		if !slices.Equal(back, b.tokens) || (d.Len() == len(once)) != (dropout.Embedding == 0) {
			t.Errorf("run %d: %d rows for %d tokens, %d of which are others: %v is %v", i, d.Len(), len(b.tokens), len(once), b.tokens, back)
		}
	}
}
