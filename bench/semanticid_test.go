package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"onerec/semanticid"
)

// embeddings draws n rows of a mixture with as many centres as a catalogue has kinds,
// some frequent, most rare.
func embeddings(n, dim, centres int, seed uint64) []float32 {
	r := rand.New(rand.NewPCG(seed, 1))
	zipf := rand.NewZipf(r, 1.3, 10, uint64(centres-1))
	c := make([]float32, centres*dim)
	for i := range c {
		c[i] = float32(r.NormFloat64())
	}
	x := make([]float32, n*dim)
	for i := range n {
		at := int(zipf.Uint64()) * dim
		for j := range dim {
			x[i*dim+j] = c[at+j] + 0.7*float32(r.NormFloat64())
		}
	}
	return x
}

// BenchmarkSemanticIDs builds codebooks of 3 levels over catalogues of 10 thousand to 1
// million items, and with 256 to 1,024 codes. Run with -benchtime 1x.
func BenchmarkSemanticIDs(b *testing.B) {
	const dim, levels = 128, 3
	for _, size := range []struct{ n, codes int }{{10_000, 256}, {100_000, 256}, {100_000, 512}, {100_000, 1024}, {1_000_000, 1024}} {
		b.Run(fmt.Sprintf("%dx%d", size.n, size.codes), func(b *testing.B) {
			x := embeddings(size.n, dim, 2000, 7)
			names := make([]string, size.n)
			for i := range names {
				names[i] = fmt.Sprintf("item-%07d", i)
			}
			for b.Loop() {
				start, level := time.Now(), -1
				cfg := semanticid.Config{Levels: levels, Codes: size.codes, Seed: 1}
				if testing.Verbose() {
					cfg.Progress = func(l, iteration int, distortion float64) {
						if l != level {
							level = l
						}
						b.Logf("level %d iteration %d: distortion %.3f after %.1f s", l+1, iteration, distortion, time.Since(start).Seconds())
					}
				}
				if _, err := semanticid.Build(context.Background(), names, x, dim, cfg); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(size.n)*float64(b.N)/b.Elapsed().Seconds(), "items/s")
		})
	}
}
