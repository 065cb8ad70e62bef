package kernels

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// drawn is a matrix of numbers of any size, with rows that are zero, even, or of one large number.
func drawn(t *rapid.T, rows, columns, ld int, negative bool) []float32 {
	r := rand.New(rand.NewPCG(1, rapid.Uint64().Draw(t, "seed")))
	x := make([]float32, rows*ld)
	for i := range rows {
		row := x[i*ld : i*ld+columns]
		size := float32(math.Pow(10, float64(r.IntN(17)-8)))
		kind := r.IntN(5)
		for j := range row {
			switch kind {
			case 0:
			case 1:
				row[j] = size
			case 2:
				row[j] = size / 1000 * float32(r.NormFloat64())
			default:
				row[j] = size * float32(r.NormFloat64())
			}
			if !negative {
				row[j] = max(row[j], -row[j])
			}
		}
		if kind == 2 {
			row[r.IntN(columns)] = size
		}
	}
	return x
}

// TestInt16Products: what rounding both sides costs has a bound, whatever the numbers are; no sum overflows.
func TestInt16Products(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, n, k := rapid.IntRange(1, 130).Draw(t, "m"), rapid.IntRange(1, 70).Draw(t, "n"), rapid.IntRange(1, 700).Draw(t, "k")
		add, extra := rapid.Bool().Draw(t, "add"), rapid.IntRange(0, 3).Draw(t, "extra columns")
		kind := rapid.SampledFrom([]string{"packed", "panels"}).Draw(t, "kind")
		lead := rapid.Bool().Draw(t, "leading part")
		a := drawn(t, m, k, k+extra, true)
		c := drawn(t, m, n, n+extra, true)
		before := slices.Clone(c)
		usedN := n
		if lead && kind == "panels" {
			usedN = rapid.IntRange(1, n).Draw(t, "columns")
		}
		b := drawn(t, n, k, k+extra, true)
		if kind == "packed" {
			packed, alone := NewPacked16(n, k, b, k+extra), slices.Clone(c)
			packed.MulParallel(m, a, k+extra, add, c, n+extra)
			packed.Mul(m, a, k+extra, add, alone, n+extra)
			if !slices.Equal(alone, c) {
				t.Fatal("one goroutine and all processors give different products")
			}
		} else {
			NewPanels16(n, k, b, k+extra, 1).MulLeading(m, usedN, k, a, k+extra, add, c, n+extra)
		}
		// slack of element j: how far rounding may move a product with a row of A.
		slack := func(row []float32, j int) float64 {
			x, y := b[j*(k+extra):j*(k+extra)+k], row
			return math.Sqrt(float64(Dot(x, x))) * math.Sqrt(float64(Dot(y, y))) * (math.Sqrt(float64(k))/mostInt16 + 1e-6)
		}
		for i := range m {
			row := a[i*(k+extra) : i*(k+extra)+k]
			for j := range n + extra {
				if at := i*(n+extra) + j; at < len(c) && j >= usedN {
					if c[at] != before[at] {
						t.Fatalf("row %d, column %d was written", i, j)
					}
					continue
				}
				var want float64
				for p := range k {
					want += float64(row[p]) * float64(b[j*(k+extra)+p])
				}
				allowed := slack(row, j)*1.01 + 1e-6*math.Abs(want) + 1e-15
				if add {
					want += float64(before[i*(n+extra)+j])
					allowed += 1e-6 * (math.Abs(want) + math.Abs(float64(before[i*(n+extra)+j])))
				}
				if got := float64(c[i*(n+extra)+j]); !(math.Abs(got-want) <= allowed) {
					t.Fatalf("row %d, column %d: %v, want %v +- %v", i, j, got, want, allowed)
				}
			}
		}
	})
}

// TestInt16Aligned: where all products have one sign and the greatest size, as large as sums can be, they are still right.
func TestInt16Aligned(t *testing.T) {
	for _, k := range []int{1, 2, 255, 256, 257, 512, 5000} {
		const m, n = 7, 18
		same := func(size int, of float32) []float32 {
			x := make([]float32, size)
			for i := range x {
				x[i] = of
			}
			return x
		}
		for name, right := range map[string]Right{
			"packed": NewPacked16(n, k, same(n*k, -3), k), "panels": NewPanels16(n, k, same(n*k, -3), k, 1),
		} {
			c := make([]float32, m*n)
			right.Mul(m, same(m*k, 2), k, false, c, n)
			for i, got := range c {
				if want := -6 * float32(k); math.Abs(float64(got/want-1)) > 2e-2 {
					t.Fatalf("%s of %d: element %d is %v, want %v", name, k, i, got, want)
				}
			}
		}
		scores, c := TakeScores(m, k, 0), make([]float32, m*n)
		clear(scores.All)
		NewValues16(n, k, same(n*k, -3), n).Attend(scores, k, 0, c, n)
		for i, got := range c {
			if math.Abs(float64(got/-3-1)) > 2e-2 {
				t.Fatalf("values of %d: element %d is %v, want -3", k, i, got)
			}
		}
	}
}

// TestInt16NotFinite: what is not a number is not hidden.
func TestInt16NotFinite(t *testing.T) {
	for _, bad := range []float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1))} {
		a, b, c := make([]float32, 40), make([]float32, 40), make([]float32, 1)
		for i := range a {
			a[i], b[i] = 1, 1
		}
		a[7] = bad
		NewPacked16(1, 40, b, 40).Mul(1, a, 40, false, c, 1)
		if x := float64(c[0]); !math.IsNaN(x) && !math.IsInf(x, 0) {
			t.Errorf("a product with %v is %v", bad, x)
		}
	}
}

// TestInt16Kernels holds the micro-kernels that this processor has against the portable one: integers leave no
// room for a difference.
func TestInt16Kernels(t *testing.T) {
	kernels := int16Kernels()
	if len(kernels) == 0 {
		t.Skip("this processor has the portable kernel alone")
	}
	rapid.Check(t, func(t *rapid.T) {
		tiles := rapid.IntRange(1, 4).Draw(t, "tiles")
		pairs, lda, ldc := rapid.IntRange(1, 70).Draw(t, "pairs"), rapid.IntRange(0, 5).Draw(t, "more"), rapid.IntRange(2*nr, 2*nr+5).Draw(t, "ldc")
		next := nr*pairs + rapid.IntRange(0, 40).Draw(t, "between panels")
		lda += 2 * pairs
		r := rand.New(rand.NewPCG(2, rapid.Uint64().Draw(t, "seed")))
		size := rapid.SampledFrom([]int{1, 100, mostInt16}).Draw(t, "size")
		integer := func() int16 { return int16(r.IntN(2*size+1) - size) }
		a, b := make([]int16, tiles*mr*lda), make([]uint32, next+nr*pairs)
		for i := range a {
			a[i] = integer()
		}
		for i := range b {
			b[i] = uint32(uint16(integer()))<<16 | uint32(uint16(integer()))
		}
		ra, rb, before := random(r, tiles*mr), random(r, 2*nr), random(r, tiles*mr*ldc)
		add := rapid.Bool().Draw(t, "add")
		want := slices.Clone(before)
		gemmInt16Go(tiles, pairs, a, lda, b, ra, rb, want, ldc, add)
		gemmInt16Go(tiles, pairs, a, lda, b[next:], ra, rb[nr:], want[nr:], ldc, add)
		for name, kernel := range kernels {
			got := slices.Clone(before)
			kernel(tiles, pairs, a, lda, b, next, ra, rb, got, ldc, add)
			if !slices.Equal(got, want) {
				t.Fatalf("%s: %v, want %v", name, got, want)
			}
		}
	})
}

// BenchmarkInt16 measures products with weights beside float32's; op/s counts a product and its addition as two.
func BenchmarkInt16(b *testing.B) {
	for _, s := range [][3]int{{1024, 384, 128}, {1024, 128, 352}, {128, 704, 128}, {512, 1408, 512}} {
		m, n, k := s[0], s[1], s[2]
		r := rand.New(rand.NewPCG(1, 2))
		x, y, z := random(r, m*k), random(r, n*k), make([]float32, m*n)
		for name, right := range map[string]Shared{"float32": NewPacked(true, n, k, y, k), "int16": NewPacked16(n, k, y, k)} {
			b.Run(fmt.Sprintf("%dx%dx%d/%s", m, n, k, name), func(b *testing.B) {
				for b.Loop() {
					right.MulParallel(m, x, k, false, z, n)
				}
				b.ReportMetric(2*float64(m*n*k)*float64(b.N)/b.Elapsed().Seconds()/1e9, "Gop/s")
			})
		}
	}
}

// TestFitRows: rows become integers that are off by a half at most, as long as they may be, rows of nothing zero.
func TestFitRows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, k, extra := rapid.IntRange(1, 5).Draw(t, "m"), rapid.IntRange(1, 100).Draw(t, "k"), rapid.IntRange(0, 3).Draw(t, "extra columns")
		if rapid.Bool().Draw(t, "whole blocks") {
			k = (k + 15) / 16 * 16
		}
		a := drawn(t, m, k, k+extra, true)
		zero := rapid.IntRange(0, m).Draw(t, "row of nothing")
		if zero < m {
			for j := range k {
				a[zero*(k+extra)+j] = 1e-20
			}
		}
		q, by := make([]int16, m*(k+extra)), make([]float32, m)
		const beyond = 77
		for i := range q {
			q[i] = beyond
		}
		fitRows(m, k, q, k+extra, a, k+extra, by)
		for i := range m {
			var squares, rounded float64
			for j, v := range a[i*(k+extra):][:k] {
				at := i*(k+extra) + j
				// What is rounded is a product of floats, itself off by some of their last bits.
				if off := math.Abs(float64(v) - float64(q[at])*float64(by[i])); off > (0.5+3.0*mostInt16/(1<<24))*float64(by[i]) && i != zero {
					t.Fatalf("row %d, column %d: %v became %v times %v", i, j, v, q[at], by[i])
				}
				squares += float64(v) * float64(v)
				rounded += float64(q[at]) * float64(q[at])
			}
			length := math.Sqrt(rounded)
			switch none := squares < tiny*tiny; {
			case i == zero || none:
				if length != 0 || by[i] != 0 {
					t.Fatalf("row %d of nothing is %v long, times %v", i, length, by[i])
				}
			case math.Abs(length-mostInt16) > math.Sqrt(float64(k))+0.1:
				t.Fatalf("row %d is %v long", i, length)
			}
			for j, v := range q[i*(k+extra)+k:][:extra] {
				if v != beyond {
					t.Fatalf("row %d: %d beyond its end, at %d", i, v, j)
				}
			}
		}
	})
}

// TestInt16Layout: what is laid out many numbers at a time is where it should be.
func TestInt16Layout(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, k, extra := rapid.IntRange(1, 70).Draw(t, "n"), rapid.IntRange(1, 70).Draw(t, "k"), rapid.IntRange(0, 3).Draw(t, "extra columns")
		pairs := (k + 1) / 2
		at := func(j, p int) int { return (j/nr*pairs+p)*nr + j%nr }
		b := drawn(t, n, k, k+extra, true)
		keys := NewPanels16(n, k, b, k+extra, 0.5)
		for j := range n {
			var back [1]float32
			q := make([]int16, 2*pairs)
			fitRows(1, k, q, 0, b[j*(k+extra):], 0, back[:])
			if keys.by[j] != back[0]*0.5 {
				t.Fatalf("column %d is multiplied by %v, want %v", j, keys.by[j], back[0]*0.5)
			}
			for p := range pairs {
				if got, want := keys.data[at(j, p)], pair(q[2*p], q[2*p+1]); got != want {
					t.Fatalf("column %d, pair %d: %x, want %x", j, p, got, want)
				}
			}
		}
		b = drawn(t, k, n, n+extra, true)
		values := NewValues16(n, k, b, n+extra)
		for p := range pairs {
			for j := range n {
				var want [2]int16
				for i := range want {
					if row := 2*p + i; row < k && values.by[row] > 0 {
						want[i] = toInt16(b[row*(n+extra)+j] * (mostValue / maxAbs(b[row*(n+extra):][:n])))
					}
				}
				if got := values.data[at(j, p)]; got != pair(want[0], want[1]) {
					t.Fatalf("column %d, pair %d: %x, want %v", j, p, got, want)
				}
			}
		}
	})
}
