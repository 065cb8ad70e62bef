package decoder

import (
	"math"
	"runtime"
	"slices"
	"testing"

	"onerec/internal/ops"
)

// TestMemory: what is said that training and scoring take is what they keep, nearly; what the kernels lay out
// meanwhile is not looked at.
func TestMemory(t *testing.T) {
	const tokens = 2048
	for _, c := range []Config{
		{Layers: 3, Dim: 64, Heads: 2, Hidden: 176, Levels: 3, Codes: 256, MaxLen: 128},
		{Layers: 2, Dim: 192, Heads: 4, Hidden: 512, Levels: 2, Codes: 64, MaxLen: 128},
		{Layers: 6, Dim: 64, Heads: 2, Hidden: 176, Levels: 2, Codes: 2048, MaxLen: 128},
		{Layers: 4, Dim: 128, Heads: 4, Hidden: 176, Levels: 3, Codes: 256, MaxLen: 128, Experts: 8, Active: 2},
		{Layers: 3, Dim: 64, Heads: 2, Hidden: 48, Levels: 2, Codes: 64, MaxLen: 128, Experts: 16, Active: 3},
	} {
		live := func() float64 {
			var m runtime.MemStats
			runtime.GC() // twice: pools keep what they have for one
			runtime.GC()
			runtime.ReadMemStats(&m)
			return float64(m.HeapAlloc)
		}
		compare := func(what string, got float64, want int64) {
			t.Helper()
			if got < 0.93*float64(want) || got > 1.07*float64(want) {
				t.Errorf("%s, %+v: %.1f MiB are kept, %.1f are said", what, c, got/(1<<20), float64(want)/(1<<20))
			}
			t.Logf("%s: %.1f MiB are kept, %.1f are said", what, got/(1<<20), float64(want)/(1<<20))
		}
		before := live()
		w, err := NewWeights(c, 1)
		if err != nil {
			t.Fatal(err)
		}
		average := w.Clone()
		g, err := NewGraph(w, tokens)
		if err != nil {
			t.Fatal(err)
		}
		row := Row{Session: slices.Repeat([]Item{make(Item, c.Levels)}, c.MaxItems())}
		b, solver := testBatch(t, c, 1, slices.Repeat([]Row{row}, tokens/c.MaxLen)...), ops.NewSolver(1e-3, 0)
		if _, err := g.Step(b, nil, Dropout{}, solver); err != nil {
			t.Fatal(err)
		}
		want := c.Memory(tokens)
		if got, said := g.lanes[0].machine.Floats(), c.planned(c.laneTokens(tokens, len(g.lanes))); math.Abs(float64(got)-float64(said)) > 0.001*float64(said) {
			t.Errorf("%+v: a lane takes %d floats by plan, %d are said", c, got, said)
		}
		trained := live()
		compare("training", trained-before, want.Total()-want.Scratch)
		scorer, err := NewScorer(average, tokens)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := scorer.Run(b, nil, Dropout{}); err != nil {
			t.Fatal(err)
		}
		compare("scoring", live()-trained, c.ScorerMemory(tokens)-c.scratch(tokens))
		runtime.KeepAlive(average)
		runtime.KeepAlive(g)
		runtime.KeepAlive(solver)
		runtime.KeepAlive(scorer)
	}
}
