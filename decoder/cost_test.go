package decoder

import (
	"runtime"
	"slices"
	"testing"

	"onerec/internal/ops"
)

// TestMemory: what is said that training and scoring take is what they allocate, nearly.
func TestMemory(t *testing.T) {
	for _, c := range []Config{
		{Layers: 3, Dim: 64, Heads: 2, Hidden: 176, Levels: 3, Codes: 256, MaxLen: 128},
		{Layers: 2, Dim: 192, Heads: 4, Hidden: 512, Levels: 2, Codes: 64, MaxLen: 128},
		{Layers: 6, Dim: 64, Heads: 2, Hidden: 176, Levels: 2, Codes: 2048, MaxLen: 128},
	} {
		const tokens = 2048
		var rows []Row
		for n := 0; n+c.MaxLen <= tokens; n += c.MaxLen {
			rows = append(rows, Row{Session: slices.Repeat([]Item{make(Item, c.Levels)}, c.MaxItems())})
		}
		var w *Weights
		allocates := func(what string, want int64, work func() error) {
			t.Helper()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if err := work(); err != nil {
				t.Fatal(err)
			}
			runtime.ReadMemStats(&after)
			got := float64(after.TotalAlloc - before.TotalAlloc)
			if got < 0.75*float64(want) || got > 1.25*float64(want) {
				t.Errorf("%s, %+v: %.1f MiB were allocated, %.1f are said", what, c, got/(1<<20), float64(want)/(1<<20))
			}
			t.Logf("%s: %.1f MiB were allocated, %.1f are said", what, got/(1<<20), float64(want)/(1<<20))
		}
		var average *Weights
		allocates("training", c.Memory(tokens).Total(), func() (err error) {
			if w, err = NewWeights(c, 1); err != nil {
				return err
			}
			average = w.Clone()
			g, err := NewGraph(w, tokens)
			if err != nil {
				return err
			}
			b := testBatch(t, c, 1, rows...)
			_, err = g.Step(b, nil, Dropout{}, ops.NewSolver(1e-3, 0))
			return err
		})
		allocates("scoring", c.ScorerMemory(tokens), func() error {
			g, err := NewScorer(average, tokens)
			if err != nil {
				return err
			}
			_, err = g.Run(testBatch(t, c, 1, rows...), nil, Dropout{})
			return err
		})
	}
}
