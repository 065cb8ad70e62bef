package decoder

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"onerec/semanticid"
)

// BenchmarkGenerate writes lists of 10 and of 1 item after 50 items of history, with the small preset.
func BenchmarkGenerate(b *testing.B) {
	const items, dim = 5000, 8
	r := rand.New(rand.NewPCG(1, 1))
	x, names := make([]float32, items*dim), make([]string, items)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	for i := range names {
		names[i] = fmt.Sprint(i)
	}
	cb, err := semanticid.Build(b.Context(), names, x, dim, semanticid.Config{Levels: 3, Codes: 128, Seed: 1})
	if err != nil {
		b.Fatal(err)
	}
	for _, preset := range []string{"small", "base"} {
		c, err := Preset(preset, 3, 128, 50, 10)
		if err != nil {
			b.Fatal(err)
		}
		w, err := NewWeights(c, 1)
		if err != nil {
			b.Fatal(err)
		}
		gen, err := NewGenerator(w, cb)
		if err != nil {
			b.Fatal(err)
		}
		for _, beams := range []int{1, 16, 128} {
			for _, length := range []int{1, 10} {
				b.Run(fmt.Sprintf("%s/%d beams/%d items", preset, beams, length), func(b *testing.B) {
					o := Options{Length: length, Width: beams}
					for range 50 {
						o.History = append(o.History, cb.ID(int32(r.IntN(items))))
					}
					for b.Loop() {
						if _, err := gen.Generate(o); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
	}
}
