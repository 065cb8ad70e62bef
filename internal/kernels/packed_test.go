package kernels

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestPacked: what is laid out once gives the products that Gemm gives.
func TestPacked(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, n, k := rapid.IntRange(1, 300).Draw(t, "m"), rapid.IntRange(1, 200).Draw(t, "n"), rapid.IntRange(1, 700).Draw(t, "k")
		trans, add := rapid.Bool().Draw(t, "trans"), rapid.Bool().Draw(t, "add")
		extra := rapid.IntRange(0, 3).Draw(t, "extra columns")
		rows, columns := k, n
		if trans {
			rows, columns = n, k
		}
		fill := func(size int, by int) []float32 {
			x := make([]float32, size)
			for i := range x {
				x[i] = float32((i*by)%17-8) / 8
			}
			return x
		}
		a, b, c := fill(m*(k+extra), 5), fill(rows*(columns+extra), 7), fill(m*(n+extra), 3)
		want := append([]float32(nil), c...)
		beta := float32(0)
		if add {
			beta = 1
		}
		Gemm(false, trans, m, n, k, 1, a, k+extra, b, columns+extra, beta, want, n+extra)
		alone := slices.Clone(c)
		packed := NewPacked(trans, n, k, b, columns+extra)
		packed.MulParallel(m, a, k+extra, add, c, n+extra)
		packed.Mul(m, a, k+extra, add, alone, n+extra)
		if !slices.Equal(alone, c) {
			t.Fatal("one goroutine and all processors give different products")
		}
		for i := range want {
			if math.Abs(float64(want[i]-c[i])) > 1e-3 {
				t.Fatalf("element %d: %v, want %v", i, c[i], want[i])
			}
		}
	})
}
