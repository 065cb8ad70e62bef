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
		packed, rows, b, got := random(r, 2*mr*k), random(r, 2*mr*lda), random(r, nr*k), random(r, 2*mr*ldc)
		add := rapid.Bool().Draw(t, "add")
		want := slices.Clone(got)
		if rapid.Bool().Draw(t, "A is packed") {
			gemm12x16(k, packed, b, got, ldc, add)
			gemm6x16(k, packed, b, want, ldc, add)
			gemm6x16(k, packed[mr*k:], b, want[mr*ldc:], ldc, add)
		} else {
			gemm12x16Rows(k, rows, lda, b, got, ldc, add)
			gemm6x16Rows(k, rows, lda, b, want, ldc, add)
			gemm6x16Rows(k, rows[mr*lda:], lda, b, want[mr*ldc:], ldc, add)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%v, want %v", got, want)
		}
	})
}
