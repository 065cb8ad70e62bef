package decoder

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"onerec/internal/kernels"
	"onerec/internal/ops"
	"onerec/semanticid"
)

// BenchmarkGenerate writes lists of 10 and of 1 item after 50 items of history, with the presets small and base, in
// float32 and in 16-bit integers.
func BenchmarkGenerate(b *testing.B) {
	const items = 5000
	r := rand.New(rand.NewPCG(1, 1))
	cb := randomCodebook(b, items, 3, 128, 1)
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
				o := Options{Length: length, Width: beams}
				for range 50 {
					o.History = append(o.History, cb.ID(int32(r.IntN(items))))
				}
				for _, numbers := range []Numbers{Float32, Int16, Int8} {
					gen := gen.In(numbers)
					b.Run(fmt.Sprintf("%s/%d beams/%d items/%v", preset, beams, length, numbers), func(b *testing.B) {
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
}

// BenchmarkGenerateTogether writes lists of 10 items after 50 with the base preset, by searches of different widths: one
// a processor, and as many as should be side by side.
func BenchmarkGenerateTogether(b *testing.B) {
	const items = 10_000
	r := rand.New(rand.NewPCG(1, 1))
	cb := randomCodebook(b, items, 3, 256, 1)
	c, err := Preset("base", 3, 256, 50, 10)
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
	var history []Item
	for range 50 {
		history = append(history, cb.ID(r.Int32N(items)))
	}
	for _, beams := range []int{1, 4, 16, 32, 128} {
		for _, side := range slices.Compact([]int{1, SideBySide(beams)}) {
			b.Run(fmt.Sprintf("%d beams/%d", beams, side), func(b *testing.B) {
				b.SetParallelism(side)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if _, err := gen.Generate(Options{Length: 10, Width: beams, History: history}); err != nil {
							b.Error(err)
							return
						}
					}
				})
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lists/s")
				b.ReportMetric(float64(b.N*beams)/b.Elapsed().Seconds(), "beams/s")
			})
		}
	}
}

// BenchmarkNext asks the base preset for the 10 items most likely to come next of 10,000, after 50 items of history,
// by 128 beams and by Next with the same width, where the model is sure of little, as random weights are, and of more.
func BenchmarkNext(b *testing.B) {
	const items = 10_000
	r := rand.New(rand.NewPCG(1, 1))
	cb := randomCodebook(b, items, 3, 256, 1)
	o := Options{Length: 1, Width: 128}
	for range 50 {
		o.History = append(o.History, cb.ID(r.Int32N(items)))
	}
	c, err := Preset("base", 3, 256, 50, 10)
	if err != nil {
		b.Fatal(err)
	}
	for _, steepness := range []float32{1, 4, 8} {
		gen := steep(b, c, cb, steepness)
		best, err := gen.Next(o, 10)
		if err != nil {
			b.Fatal(err)
		}
		name := fmt.Sprintf("best %.2g, tenth %.2g", math.Exp(best[0].LogProb), math.Exp(best[9].LogProb))
		b.Run(name+"/128 beams", func(b *testing.B) {
			for b.Loop() {
				if _, err := gen.Generate(o); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/next", func(b *testing.B) {
			for b.Loop() {
				if _, err := gen.Next(o, 10); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// steep returns a generator of random weights; the steeper, the surer it is of what comes next.
func steep(b *testing.B, c Config, cb *semanticid.Codebook, steepness float32) *Generator {
	b.Helper()
	w, err := NewWeights(c, 1)
	if err != nil {
		b.Fatal(err)
	}
	for i := range w.embed() {
		w.embed()[i] *= steepness
	}
	gen, err := NewGenerator(w, cb)
	if err != nil {
		b.Fatal(err)
	}
	return gen
}

// BenchmarkReturns asks the base preset for the 10 items most likely to come next, and for a list of 10 by 16
// beams, for a user with 50 items of history, of whom 45 were there at the last search: with its past, and without.
func BenchmarkReturns(b *testing.B) {
	const items, returned = 10_000, 5
	r := rand.New(rand.NewPCG(1, 1))
	cb := randomCodebook(b, items, 3, 256, 1)
	var history []Item
	for range 50 {
		history = append(history, cb.ID(r.Int32N(items)))
	}
	c, err := Preset("base", 3, 256, 50, 10)
	if err != nil {
		b.Fatal(err)
	}
	for _, steepness := range []float32{1, 8} {
		gen := steep(b, c, cb, steepness)
		for _, mode := range []string{"next", "list"} {
			search := func(o Options) error {
				if mode == "next" {
					o.Width = 128
					_, err := gen.Next(o, 10)
					return err
				}
				o.Width, o.Length = 16, 10
				_, err := gen.Generate(o)
				return err
			}
			for _, with := range []bool{false, true} {
				b.Run(fmt.Sprintf("steepness %v/%s/past %v", steepness, mode, with), func(b *testing.B) {
					var first Past
					if err := search(Options{History: history[:len(history)-returned], Past: &first}); err != nil {
						b.Fatal(err)
					}
					for b.Loop() {
						var past *Past
						if with {
							past = &Past{of: first.of, tokens: slices.Clone(first.tokens), row: clone(gen.network, first.row)}
						}
						if err := search(Options{History: history, Past: past}); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
	}
}

// clone returns a copy of what a past keeps.
func clone(net *network, p *prefix) *prefix {
	out, hd := &prefix{n: p.n, kept: true}, net.w.Config.Dim/net.w.Config.Heads
	for l := range p.keys {
		var keys []kernels.Leading
		var values []kernels.Values
		for head := range p.keys[l] {
			k, v := p.of(l, head)
			keys, values = append(keys, net.numbers.moreKeys(k, p.n, p.n, hd, nil, 0)), append(values, net.numbers.moreValues(v, p.n, p.n, hd, nil, 0))
		}
		out.keys, out.values = append(out.keys, keys), append(out.values, values)
	}
	return out
}

// BenchmarkLanes makes training steps of 16 rows of 128 tokens in one lane, and in two.
func BenchmarkLanes(b *testing.B) {
	for _, name := range Presets() {
		c, err := Preset(name, 3, 340, 21, 10)
		if err != nil {
			b.Fatal(err)
		}
		r := rand.New(rand.NewPCG(1, 2))
		batch := NewBatch(1)
		for range 16 {
			if err := batch.Add(c, randomRow(r, c, 21, 10)); err != nil {
				b.Fatal(err)
			}
		}
		batch.Close()
		for lanes := 1; lanes <= 2; lanes++ {
			b.Run(fmt.Sprintf("%s/%d", name, lanes), func(b *testing.B) {
				w, err := NewWeights(c, 1)
				if err != nil {
					b.Fatal(err)
				}
				g, err := newGraph(w, batch.Tokens(), lanes, true, nil, 0)
				if err != nil {
					b.Fatal(err)
				}
				solver := ops.NewSolver(1e-3, 0.01)
				for b.Loop() {
					if _, err := g.Step(batch, nil, Dropout{}, solver); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.N*batch.Tokens())/b.Elapsed().Seconds(), "tokens/s")
			})
		}
	}
}
