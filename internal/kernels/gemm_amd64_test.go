//go:build amd64 && !purego

package kernels

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestTwoPanelsAtOnce: with AVX-512 two panels are those that AVX2 computes one after the other, to the last bit, so that what
// is trained on one processor goes on as it would on the other.
func TestTwoPanelsAtOnce(t *testing.T) {
	if !useAVX512 {
		t.Skip("this processor has no AVX-512")
	}
	rapid.Check(t, func(t *rapid.T) {
		k, lda, ldc := rapid.IntRange(1, 300).Draw(t, "k"), rapid.IntRange(0, 5).Draw(t, "more"), rapid.IntRange(2*nr, 2*nr+5).Draw(t, "ldc")
		lda += k
		next := nr*k + rapid.IntRange(0, 40).Draw(t, "between panels")
		r := rand.New(rand.NewPCG(1, rapid.Uint64().Draw(t, "seed")))
		tiles := rapid.IntRange(1, 5).Draw(t, "tiles")
		packed, rows, b, got := random(r, tiles*mr*k), random(r, tiles*mr*lda), random(r, next+nr*k), random(r, tiles*mr*ldc)
		add := rapid.Bool().Draw(t, "add")
		want := slices.Clone(got)
		isPacked := rapid.Bool().Draw(t, "A is packed")
		if isPacked {
			gemm6x32(tiles, k, packed, b, next, got, ldc, add)
		} else {
			gemm6x32Rows(tiles, k, rows, lda, b, next, got, ldc, add)
		}
		for panel := range 2 {
			b, c := &b[panel*next], &want[panel*nr]
			if isPacked {
				gemm6x16AVX2(tiles, k, &packed[0], b, c, ldc, add)
			} else {
				gemm6x16RowsAVX2(tiles, k, &rows[0], lda, b, c, ldc, add)
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%v, want %v", got, want)
		}
	})
}

// TestWideAsNarrow: with AVX-512 everything is what AVX2 computes, to the last bit.
func TestWideAsNarrow(t *testing.T) {
	if !useAVX512 {
		t.Skip("this processor has no AVX-512")
	}
	// narrow runs fn as processors without AVX-512 do.
	narrow := func(fn func()) {
		useAVX512 = false
		defer func() { useAVX512 = true }()
		fn()
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 100).Draw(t, "n")
		if rapid.Bool().Draw(t, "whole blocks") {
			n = padded(n)
		}
		r := rand.New(rand.NewPCG(1, rapid.Uint64().Draw(t, "seed")))
		size := rapid.SampledFrom([]float32{1e-30, 0.1, 1, 10, 100, 1e30}).Draw(t, "size")
		floats := func(n int) []float32 {
			x := random(r, n)
			for i := range x {
				x[i] *= size
			}
			return x
		}
		x, y := floats(n), floats(n)
		top := greatest(x, unseen)
		gain := make([]float32, n)
		for i := range gain {
			gain[i] = max(0, float32(r.NormFloat64()))
		}
		heads, at := rapid.IntRange(1, 5).Draw(t, "heads"), rapid.IntRange(0, 9).Draw(t, "position")
		queries, rotary := floats(heads*32), NewRotary(32, 10)
		rows, keys, own := rapid.IntRange(1, 14).Draw(t, "rows"), rapid.IntRange(1, 300).Draw(t, "keys"), rapid.IntRange(0, 40).Draw(t, "own keys")
		scores := TakeScores(rows, keys, own)
		defer scores.Release()
		copy(scores.All, floats(len(scores.All)))
		values := NewValues16(32, keys, floats(keys*32), 32)
		given := slices.Clone(scores.All)
		// all returns what everything comes to.
		all := func() (out []any) {
			swiglu, exps, weighed, turned := make([]float32, n), slices.Clone(x), slices.Clone(x), slices.Clone(queries)
			SwiGLU(swiglu, slices.Concat(x, y), 1, n)
			sum := expSum(exps, top)
			total, part, most := expWeigh(weighed, gain, top)
			rounded := make([]int16, n)
			round(rounded, x, 1000/size)
			rotary.Turn(turned, at, true)
			copy(scores.All, given)
			attended := make([]float32, rows*32)
			values.Attend(scores, keys, 0, attended, 32)
			var weights []float32
			for i := range rows {
				weights = append(weights, scores.Own(i)...)
			}
			return []any{swiglu, exps, sum, weighed, total, part, most, rounded, greatest(x, -1), turned, attended, weights}
		}
		got := fmt.Sprint(all()...)
		narrow(func() {
			if want := fmt.Sprint(all()...); got != want {
				t.Fatalf("%v\nwant %v", got, want)
			}
		})
	})
}

// BenchmarkLayOut lays 1,024 rows of B out, panel by panel and four panels at a time, of matrices that no cache holds.
func BenchmarkLayOut(b *testing.B) {
	if !useAVX2 {
		b.Skip("there is no AVX2")
	}
	const k, matrices = 1024, 16
	for _, n := range []int{256, 768, 1376} {
		src, dst := make([][]float32, matrices), make([]float32, panelFloats(n, k))
		for i := range src {
			src[i] = make([]float32, k*n)
			fill(src[i], 1)
		}
		lay := func(panels int, fn func(k int, dst, src []float32, ld int) bool) {
			b.Run(fmt.Sprintf("%d columns, %d panels at a time", n, panels), func(b *testing.B) {
				b.SetBytes(4 * k * int64(n))
				for i := range b.N {
					for pc := 0; pc < k; pc += kc {
						for j := 0; j+panels*nr <= n; j += panels * nr {
							fn(kc, dst[pc*n+j*kc:], src[i%matrices][pc*n+j:], n)
						}
					}
				}
			})
		}
		lay(1, packRowsOf16)
		lay(4, packRowsOf64)
	}
}
