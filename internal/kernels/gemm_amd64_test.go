//go:build amd64 && !purego

package kernels

import (
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestTwoTilesAtOnce: with AVX-512 two tiles are those that AVX2 computes one after the other, to the last bit, so that what
// is trained on one processor goes on as it would on the other.
func TestTwoTilesAtOnce(t *testing.T) {
	if !useAVX512 {
		t.Skip("this processor has no AVX-512")
	}
	rapid.Check(t, func(t *rapid.T) {
		k, lda, ldc := rapid.IntRange(1, 300).Draw(t, "k"), rapid.IntRange(0, 5).Draw(t, "more"), rapid.IntRange(nr, nr+5).Draw(t, "ldc")
		lda += k
		r := rand.New(rand.NewPCG(1, rapid.Uint64().Draw(t, "seed")))
		tiles := rapid.IntRange(1, 5).Draw(t, "tiles")
		packed, rows, b, got := random(r, tiles*mr*k), random(r, tiles*mr*lda), random(r, nr*k), random(r, tiles*mr*ldc)
		add := rapid.Bool().Draw(t, "add")
		want := slices.Clone(got)
		if rapid.Bool().Draw(t, "A is packed") {
			gemm6x16(tiles, k, packed, b, got, ldc, add)
			gemm6x16AVX2(tiles, k, &packed[0], &b[0], &want[0], ldc, add)
		} else {
			gemm6x16Rows(tiles, k, rows, lda, b, got, ldc, add)
			gemm6x16RowsAVX2(tiles, k, &rows[0], lda, &b[0], &want[0], ldc, add)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%v, want %v", got, want)
		}
	})
}
