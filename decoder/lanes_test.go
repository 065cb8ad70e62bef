package decoder

import (
	"math"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"testing"

	"gorgonia.org/gorgonia"
	"pgregory.net/rapid"

	"onerec/internal/ops"
)

// TestLanes: whatever the rows, two lanes find the log probabilities that one finds, to the last bit, and losses and
// gradients that differ by no more than the order of a sum and, with experts, what lanes that keep their own balance make of that.
func TestLanes(t *testing.T) {
	t.Run("one part", func(t *testing.T) { testLanes(t, testConfig(), 1e-5) })
	t.Run("experts", func(t *testing.T) { testLanes(t, testExperts(), 0.05) })
}

func testLanes(t *testing.T, c Config, tolerance float32) {
	w := randomWeights(t, c, 3)
	const capacity = 200
	graphs := make([]*Graph, 2)
	for i := range graphs {
		var err error
		if graphs[i], err = newGraph(w, capacity, 1+i, true, nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		b := NewBatch(rapid.SampledFrom([]float32{0, 0.5}).Draw(t, "history's weight"))
		for range rapid.IntRange(1, 12).Draw(t, "rows") {
			row := randomRow(r, c, rapid.IntRange(0, 8).Draw(t, "history"), rapid.IntRange(1, 4).Draw(t, "session"))
			if b.Tokens()+c.Tokens(row) > capacity {
				break
			}
			if err := b.Add(c, row); err != nil {
				t.Fatal(err)
			}
		}
		b.Close()
		var losses [2]Losses
		var logProbs, rows, gradients [2][]float32
		for i, g := range graphs {
			var err error
			if losses[i], err = g.Run(b, nil, Dropout{}); err != nil {
				t.Fatal(err)
			}
			logProbs[i], rows[i], gradients[i] = g.logProbs()[:len(b.target)], g.LogProbs(), flat(t, g.model)
		}
		if !slices.Equal(logProbs[0], logProbs[1]) || !slices.Equal(rows[0], rows[1]) {
			t.Fatalf("log probabilities %v, in two lanes %v", logProbs[0], logProbs[1])
		}
		d, balance := losses[0].NTP-losses[1].NTP, losses[1].Total-losses[1].NTP-balanceFactor*losses[1].Balance*float32(c.Layers)
		if max(d, -d) > 1e-5*losses[0].NTP || max(balance, -balance) > 1e-6*losses[1].Total {
			t.Fatalf("loss %v, in two lanes %v", losses[0], losses[1])
		}
		var largest, worst float32
		for i, v := range gradients[0] {
			d := v - gradients[1][i]
			largest, worst = max(largest, v, -v), max(worst, d, -d)
		}
		if worst > tolerance*largest {
			t.Fatalf("gradients differ by %v, the largest is %v", worst, largest)
		}
	})
}

// TestBalance: that of a batch is the mean of its lanes', by their tokens; and dearer the fewer experts are chosen.
func TestBalance(t *testing.T) {
	c := testExperts()
	w := randomWeights(t, c, 3)
	r := rand.New(rand.NewPCG(1, 2))
	var rows []Row
	for range 8 {
		rows = append(rows, randomRow(r, c, 4, 3))
	}
	b := testBatch(t, c, 0.5, rows...)
	balance := func(lanes int, b *Batch) float64 {
		t.Helper()
		g, err := newGraph(w, 300, lanes, true, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		l, err := g.Run(b, nil, Dropout{})
		if err != nil {
			t.Fatal(err)
		}
		return float64(l.Balance)
	}
	first, second := b.halves()
	n := float64(b.Tokens())
	want := balance(1, first)*float64(first.Tokens())/n + balance(1, second)*float64(second.Tokens())/n
	if got := balance(2, b); math.Abs(got-want) > 1e-5*want {
		t.Errorf("balance %v in two lanes, of which the mean is %v", got, want)
	}
	before := balance(1, b)
	for l := range c.Layers { // logits of 0 are all alike: the first two are chosen
		clear(w.layer(l).router)
	}
	if got := balance(1, b); math.Abs(got-1) > 1e-5 || before <= got {
		t.Errorf("balance %v with gates all alike, %v before", got, before)
	}
}

// flat is a copy of all gradients.
func flat(t interface{ Fatal(args ...any) }, model []gorgonia.ValueGrad) (out []float32) {
	for _, p := range model {
		g, err := p.Grad()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, g.Data().([]float32)...)
	}
	return out
}

// TestProcessorsMakeNoDifference: training with dropout, which chooses two lanes, gives the same weights to the last
// bit however many processors there are, and another mask to the rows of each lane.
func TestProcessorsMakeNoDifference(t *testing.T) {
	c, err := Preset("tiny", 2, 16, 10, 5)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("one part", func(t *testing.T) { processorsMakeNoDifference(t, c) })
	c.Hidden, c.Experts, c.Active = 32, 4, 2
	t.Run("experts", func(t *testing.T) { processorsMakeNoDifference(t, c) })
}

func processorsMakeNoDifference(t *testing.T, c Config) {
	r := rand.New(rand.NewPCG(1, 2))
	one := randomRow(r, c, 8, 4)
	rows := []Row{one, one}
	for range 12 {
		rows = append(rows, randomRow(r, c, r.IntN(8), 1+r.IntN(5)))
	}
	rows = append(rows, rows...)
	train := func(processors int) *Weights {
		t.Helper()
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(processors))
		w := randomWeights(t, c, 1)
		g, err := NewGraph(w, 2000)
		if err != nil {
			t.Fatal(err)
		}
		if len(g.lanes) != 2 {
			t.Fatalf("%d lanes", len(g.lanes))
		}
		solver := ops.NewSolver(1e-3, 0.01)
		for step := range uint64(3) {
			if _, err := g.Step(testBatch(t, c, 0.5, rows...), nil, Dropout{Residual: 0.1, Embedding: 0.1, Seed: step}, solver); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := g.Run(testBatch(t, c, 0.5, one, one), nil, Dropout{Residual: 0.5, Seed: 1}); err != nil {
			t.Fatal(err)
		}
		if p := g.LogProbs(); p[0] == p[1] {
			t.Error("the same row has the same dropout in both lanes")
		}
		return w
	}
	want := train(1)
	for _, processors := range []int{2, 3, 8} {
		if got := train(processors); !reflect.DeepEqual(got.params, want.params) {
			t.Errorf("%d processors train other weights than one", processors)
		}
	}
}

// TestLanesFit: whatever rows fill a batch, no lane has more tokens than it was made for.
func TestLanesFit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := testConfig()
		capacity := rapid.IntRange(4*c.MaxLen, 10*c.MaxLen).Draw(t, "capacity")
		b := NewBatch(0)
		for {
			row := Row{Session: make([]Item, rapid.IntRange(1, c.MaxItems()).Draw(t, "items"))}
			for i := range row.Session {
				row.Session[i] = make(Item, c.Levels)
			}
			if b.Tokens()+c.Tokens(row) > capacity {
				break
			}
			if err := b.Add(c, row); err != nil {
				t.Fatal(err)
			}
		}
		first, second := b.halves()
		if n := c.laneTokens(capacity, 2); first.Tokens() > n || second.Tokens() > n || first.Tokens()+second.Tokens() != b.Tokens() {
			t.Fatalf("%d of %d and %d tokens, %d fit", first.Tokens(), b.Tokens(), second.Tokens(), n)
		}
		for row := range b.Rows() {
			half, of := first, row
			if row >= first.Rows() {
				half, of = second, row-first.Rows()
			}
			from, to := half.predictions(of)
			wantFrom, wantTo := b.predictions(row)
			if !slices.Equal(half.target[from:to], b.target[wantFrom:wantTo]) {
				t.Fatalf("row %d of %d predicts %v, want %v", row, b.Rows(), half.target[from:to], b.target[wantFrom:wantTo])
			}
		}
	})
}
