package decoder

import (
	"runtime"
	"testing"

	"onerec/internal/ops"
)

// TestMemory: what is said that training takes is what it allocates, nearly.
func TestMemory(t *testing.T) {
	for _, c := range []Config{
		{Layers: 3, Dim: 64, Heads: 2, Hidden: 176, Levels: 3, Codes: 256, MaxLen: 128},
		{Layers: 2, Dim: 192, Heads: 4, Hidden: 512, Levels: 2, Codes: 64, MaxLen: 128},
	} {
		const tokens = 2048
		allocated := func() uint64 {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.TotalAlloc
		}
		before := allocated()
		w, err := NewWeights(c, 1)
		if err != nil {
			t.Fatal(err)
		}
		average := w.Clone()
		g, err := NewGraph(w, tokens)
		if err != nil {
			t.Fatal(err)
		}
		b := testBatch(t, c, 1, Row{Session: []Item{make(Item, c.Levels)}})
		if _, err := g.Step(b, nil, Dropout{}, ops.NewSolver(1e-3, 0)); err != nil {
			t.Fatal(err)
		}
		got, want := float64(allocated()-before), float64(c.Memory(tokens).Total())
		if got < 0.7*want || got > 1.3*want {
			t.Errorf("%+v: %.1f MiB were allocated, %.1f are said", c, got/(1<<20), want/(1<<20))
		}
		t.Logf("%.1f MiB were allocated, %.1f are said", got/(1<<20), want/(1<<20))
		_ = g.Close() // frees nothing that anyone waits for
		runtime.KeepAlive(average)
	}
}
