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
		kind := rapid.SampledFrom([]string{"packed", "panels", "values"}).Draw(t, "kind")
		lead := rapid.Bool().Draw(t, "leading part")
		a := drawn(t, m, k, k+extra, kind != "values")
		c := drawn(t, m, n, n+extra, true)
		before := slices.Clone(c)
		usedN, usedK := n, k
		if lead && kind == "panels" {
			usedN = rapid.IntRange(1, n).Draw(t, "columns")
		}
		if lead && kind == "values" {
			usedK = rapid.IntRange(1, k).Draw(t, "rows")
		}
		var at func(p, j int) float64 // of B
		// slack of element j: how far rounding may move a product with a row of A.
		var slack func(row []float32, j int) float64
		if kind == "values" {
			b := drawn(t, k, n, n+extra, true)
			values := NewValues16(n, k, b, n+extra)
			values.MulLeading(m, n, usedK, a, k+extra, add, c, n+extra)
			values.Release() // what comes next finds what was there before
			at = func(p, j int) float64 { return float64(b[p*(n+extra)+j]) }
			slack = func(row []float32, _ int) (s float64) {
				for from := 0; from < len(row); from += valueBlock {
					to := min(len(row), from+valueBlock)
					var sum, top float64 // of weights times the greatest values of their rows
					for p := from; p < to; p++ {
						w := float64(row[p]) * float64(maxAbs(b[p*(n+extra):p*(n+extra)+n]))
						sum, top = sum+w, max(top, w)
					}
					// Half a unit of each weight, and half a unit of each value.
					s += 0.5*float64(to-from)*max(sum/mostWeights, top/most) + sum/mostValue/2
				}
				return s
			}
		} else {
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
			at = func(p, j int) float64 { return float64(b[j*(k+extra)+p]) }
			slack = func(row []float32, j int) float64 {
				x, y := b[j*(k+extra):j*(k+extra)+k], row
				return math.Sqrt(float64(Dot(x, x))) * math.Sqrt(float64(Dot(y, y))) * (math.Sqrt(float64(k))/most + 1e-6)
			}
		}
		for i := range m {
			row := a[i*(k+extra) : i*(k+extra)+usedK]
			for j := range n + extra {
				if at := i*(n+extra) + j; at < len(c) && j >= usedN {
					if c[at] != before[at] {
						t.Fatalf("row %d, column %d was written", i, j)
					}
					continue
				}
				var want float64
				for p := range usedK {
					want += float64(row[p]) * at(p, j)
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
			"packed": NewPacked16(n, k, same(n*k, -3), k), "panels": NewPanels16(n, k, same(n*k, -3), k, 1), "values": NewValues16(n, k, same(n*k, -3), n),
		} {
			c := make([]float32, m*n)
			right.Mul(m, same(m*k, 2), k, false, c, n)
			for i, got := range c {
				if want := -6 * float32(k); math.Abs(float64(got/want-1)) > 2e-2 {
					t.Fatalf("%s of %d: element %d is %v, want %v", name, k, i, got, want)
				}
			}
		}
	}
}

// TestInt16Attention: attention in integers is near that in floats, and what it computes of a position depends neither on
// where it begins nor on the positions that come later, to the last bit.
func TestInt16Attention(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		heads, hd, n := rapid.IntRange(1, 3).Draw(t, "heads"), 2*rapid.IntRange(1, 20).Draw(t, "half"), rapid.IntRange(1, 600).Draw(t, "n")
		d := heads * hd
		r := rand.New(rand.NewPCG(1, rapid.Uint64().Draw(t, "seed")))
		qkv, want := random(r, n*3*d), make([]float32, n*d)
		Attention(want, qkv, []int{0, n}, d, heads, true)
		attend := func(from, n int) []float32 {
			var keys, values []Leading
			for head := range heads {
				keys = append(keys, NewPanels16(n, hd, qkv[d+head*hd:], 3*d, float32(1/math.Sqrt(float64(hd)))))
				values = append(values, NewValues16(hd, n, qkv[2*d+head*hd:], 3*d))
			}
			out := make([]float32, (n-from)*d)
			AttentionFrom(out, qkv, keys, values, from, n, d)
			return out
		}
		got := attend(0, n)
		for i, w := range want {
			if math.Abs(float64(got[i]-w)) > 2e-3 {
				t.Fatalf("at %d: %v, want %v", i, got[i], w)
			}
		}
		from := rapid.IntRange(0, n-1).Draw(t, "from")
		to := rapid.IntRange(from+1, n).Draw(t, "to")
		if part := attend(from, to); !slices.Equal(part, got[from*d:to*d]) {
			t.Fatalf("positions %d to %d depend on the others", from, to)
		}
	})
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
		pairs, lda, ldc := rapid.IntRange(1, 70).Draw(t, "pairs"), rapid.IntRange(0, 5).Draw(t, "more"), rapid.IntRange(nr, nr+5).Draw(t, "ldc")
		lda += 2 * pairs
		r := rand.New(rand.NewPCG(2, rapid.Uint64().Draw(t, "seed")))
		size := rapid.SampledFrom([]int{1, 100, most}).Draw(t, "size")
		integer := func() int16 { return int16(r.IntN(2*size+1) - size) }
		a, b := make([]int16, tiles*mr*lda), make([]uint32, nr*pairs)
		for i := range a {
			a[i] = integer()
		}
		for i := range b {
			b[i] = uint32(uint16(integer()))<<16 | uint32(uint16(integer()))
		}
		ra, rb, before := random(r, tiles*mr), random(r, nr), random(r, tiles*mr*ldc)
		add := rapid.Bool().Draw(t, "add")
		want := slices.Clone(before)
		gemmInt16Go(tiles, pairs, a, lda, b, ra, rb, want, ldc, add)
		for name, kernel := range kernels {
			got := slices.Clone(before)
			kernel(tiles, pairs, a, lda, b, ra, rb, got, ldc, add)
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
