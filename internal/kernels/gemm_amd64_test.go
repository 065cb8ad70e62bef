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
