package kernels

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestInt8Products: what rounding both sides costs has a bound, whatever the numbers are; processors with products of bytes and
// those without compute the same, and so do one goroutine and all of them.
func TestInt8Products(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, n, k := rapid.IntRange(1, 130).Draw(t, "m"), rapid.IntRange(1, 70).Draw(t, "n"), rapid.IntRange(1, 700).Draw(t, "k")
		if rapid.Bool().Draw(t, "whole blocks") {
			k = (k + 15) / 16 * 16
		}
		add, extra := rapid.Bool().Draw(t, "add"), rapid.IntRange(0, 3).Draw(t, "extra columns")
		lda, ldc := k+extra, n+extra
		a, b, before := drawn(t, m, k, lda, true), drawn(t, n, k, lda, true), drawn(t, m, n, ldc, true)
		c := slices.Clone(before)
		wide := newPacked8(n, k, b, lda, false)
		wide.Mul(m, a, lda, add, c, ldc)
		packed := NewPacked8(n, k, b, lda)
		for name, product := range map[string]func(int, []float32, int, bool, []float32, int){
			"16 bits, all processors": wide.MulParallel, "one goroutine": packed.Mul, "all processors": packed.MulParallel,
		} {
			again := slices.Clone(before)
			if product(m, a, lda, add, again, ldc); !slices.Equal(again, c) {
				t.Fatalf("%s: %v, want %v", name, again, c)
			}
		}
		for i := range m {
			row := a[i*lda:][:k]
			for j := range n {
				column := b[j*lda:][:k]
				var want, sizes float64 // rounding moves each number by half a step at most
				stepA, stepB := float64(maxAbs(row))/mostInt8, float64(maxAbs(column))/mostInt8
				for p, x := range row {
					want += float64(x) * float64(column[p])
					sizes += math.Abs(float64(x))*stepB/2 + math.Abs(float64(column[p]))*stepA/2 + stepA*stepB/4
				}
				allowed := 1.01*sizes + 1e-6*math.Abs(want) + 1e-15*math.Max(1, float64(maxAbs(row))+float64(maxAbs(column)))*float64(k)
				if add {
					old := float64(before[i*ldc+j])
					want += old
					allowed += 1e-6 * (math.Abs(want) + math.Abs(old))
				}
				if got := float64(c[i*ldc+j]); !(math.Abs(got-want) <= allowed) {
					t.Fatalf("row %d, column %d: %v, want %v +- %v", i, j, got, want, allowed)
				}
			}
			for j := i*ldc + n; j < min(len(c), (i+1)*ldc); j++ {
				if c[j] != before[j] {
					t.Fatalf("beyond row %d: %v was written", i, c[j])
				}
			}
		}
	})
}

// TestInt8Aligned: where all products have one sign and the greatest size, as large as sums can be, they are still right.
func TestInt8Aligned(t *testing.T) {
	for _, k := range []int{1, 2, 3, 4, 5, 256, 5000, mostRows8} {
		const m, n = 7, 34
		same := func(size int, of float32) []float32 {
			x := make([]float32, size)
			fill(x, of)
			return x
		}
		for _, bytes := range []bool{false, useInt8} {
			c := make([]float32, m*n)
			newPacked8(n, k, same(n*k, -3), k, bytes).Mul(m, same(m*k, 2), k, false, c, n)
			for i, got := range c {
				if want := -6 * float32(k); math.Abs(float64(got/want-1)) > 1e-5 {
					t.Fatalf("%d rows, bytes %v: element %d is %v, want %v", k, bytes, i, got, want)
				}
			}
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("more rows than sums have room for are taken")
		}
	}()
	NewPacked8(1, mostRows8+1, make([]float32, mostRows8+1), mostRows8+1)
}

// TestInt8NotFinite: what is not a number is not hidden, and zeros are zero.
func TestInt8NotFinite(t *testing.T) {
	for _, bad := range []float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1)), 0} {
		for _, k := range []int{40, 48, 2000} {
			for _, bytes := range []bool{false, useInt8} {
				a, b, c := make([]float32, k), make([]float32, k), make([]float32, 1)
				if bad != 0 {
					fill(a, 1)
				}
				fill(b, 1)
				a[7] = bad
				newPacked8(1, k, b, k, bytes).Mul(1, a, k, false, c, 1)
				if x := float64(c[0]); bad == 0 && x != 0 || bad != 0 && !math.IsNaN(x) && !math.IsInf(x, 0) {
					t.Errorf("%d rows, bytes %v: a product with %v is %v", k, bytes, bad, x)
				}
			}
		}
	}
}

// BenchmarkInt8 measures products with weights beside those of 16 bits; op/s counts a product and its addition as two.
func BenchmarkInt8(b *testing.B) {
	for _, s := range [][3]int{{128, 768, 256}, {128, 1376, 256}, {128, 256, 688}} {
		m, n, k := s[0], s[1], s[2]
		r := rand.New(rand.NewPCG(1, 2))
		x, y, z := random(r, m*k), random(r, n*k), make([]float32, m*n)
		for name, right := range map[string]Shared{"int16": NewPacked16(n, k, y, k), "int8": NewPacked8(n, k, y, k)} {
			b.Run(fmt.Sprintf("%dx%dx%d/%s", m, n, k, name), func(b *testing.B) {
				for b.Loop() {
					right.MulParallel(m, x, k, false, z, n)
				}
				b.ReportMetric(2*float64(m*n*k)*float64(b.N)/b.Elapsed().Seconds()/1e9, "Gop/s")
			})
		}
	}
}
