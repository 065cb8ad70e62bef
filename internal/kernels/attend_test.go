package kernels

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestAttend holds the weighing of values, in floats and in integers, against softmax in float64.
func TestAttend(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, n, k := rapid.IntRange(1, 60).Draw(t, "m"), rapid.IntRange(1, 70).Draw(t, "n"), rapid.IntRange(1, 700).Draw(t, "k")
		own, extra := rapid.IntRange(0, 20).Draw(t, "own"), rapid.IntRange(0, 3).Draw(t, "extra columns")
		sees, step := rapid.IntRange(1, k).Draw(t, "sees"), rapid.IntRange(0, 1).Draw(t, "step")
		size := rapid.SampledFrom([]float64{0, 0.1, 3, 200}).Draw(t, "size of the scores")
		integers := rapid.Bool().Draw(t, "integers")
		rows := k // that are laid out; one may see less than there is
		if rapid.Bool().Draw(t, "a part") {
			rows += rapid.IntRange(1, 300).Draw(t, "more rows")
		}
		b := drawn(t, rows, n, n+extra, true)
		r := rand.New(rand.NewPCG(3, rapid.Uint64().Draw(t, "seed of the scores")))
		s := TakeScores(m, k, own)
		for i := range s.All {
			s.All[i] = float32(math.NaN()) // what is beyond the scores may be anything
		}
		weights, weightsOwn := make([][]float64, m), make([][]float64, m) // expected
		for i := range m {
			row := append(s.All[i*s.Width:][:k:k], s.Own(i)...)
			for j := range row {
				row[j] = float32(r.NormFloat64() * size)
			}
			copy(s.All[i*s.Width:], row[:k])
			copy(s.Own(i), row[k:])
			visible := min(k, sees+i*step)
			exps, sum, top := make([]float64, len(row)), 0.0, math.Inf(-1)
			for j, v := range row {
				if j < visible || j >= k {
					top = max(top, float64(v))
				}
			}
			for j, v := range row {
				if j < visible || j >= k {
					exps[j] = math.Exp(float64(v) - top)
					sum += exps[j]
				}
			}
			for j := range exps {
				exps[j] /= sum
			}
			weights[i], weightsOwn[i] = exps[:k], exps[k:]
		}
		c := random(r, m*(n+extra))
		before := slices.Clone(c)
		if integers {
			used := takeColumns16(n, rows, padded(rows))
			fill(used.by, float32(math.NaN()))
			used.Release()
			v := NewValues16(n, rows, b, n+extra)
			defer v.Release() // what comes next finds what was there before
			v.Attend(s, sees, step, c, n+extra)
		} else {
			v := NewPanels(false, n, rows, b, n+extra, 1)
			defer v.Release()
			v.Attend(s, sees, step, c, n+extra)
		}
		defer s.Release()
		for i, row := range weights {
			for j, w := range weightsOwn[i] {
				if got := float64(s.Own(i)[j]); !(math.Abs(got-w) <= 2e-5*w+1e-30) {
					t.Fatalf("row %d: its own weight %d is %v, want %v", i, j, got, w)
				}
			}
			var slack, sums float64
			for from := 0; from < k; from += valueBlock {
				to := min(k, from+valueBlock)
				var sum, top float64 // of weights times the greatest values of their rows
				for p := from; p < to; p++ {
					w := row[p] * float64(maxAbs(b[p*(n+extra):p*(n+extra)+n]))
					sum, top = sum+w, max(top, w)
				}
				// Half a unit of each weight, and half a unit of each value.
				slack += 0.5*float64(to-from)*max(sum/mostWeights, top/mostInt16) + sum/mostValue/2
				sums += sum
			}
			if !integers {
				slack = 0
			}
			for j := range n + extra {
				at := i*(n+extra) + j
				if j >= n {
					if c[at] != before[at] {
						t.Fatalf("row %d, column %d was written", i, j)
					}
					continue
				}
				var want float64
				for p, w := range row {
					want += w * float64(b[p*(n+extra)+j])
				}
				if got := float64(c[at]); !(math.Abs(got-want) <= 1.01*slack+2e-5*sums+1e-15) {
					t.Fatalf("row %d, column %d: %v, want %v +- %v", i, j, got, want, slack)
				}
			}
		}
	})
}

// TestExpWeigh: exponentials for integers are as exact as is said.
func TestExpWeigh(t *testing.T) {
	const top = 3
	var x, gain [64]float32
	for from := float32(top); from > top-90; from -= 64e-3 {
		for i := range x {
			x[i], gain[i] = from-float32(i)*1e-3, float32(i%7)
		}
		was := x
		sum, weighed, most := expWeigh(x[:], gain[:], top)
		var wantSum, wantWeighed, wantMost float64
		for i, v := range was {
			want := math.Exp(float64(v) - top)
			w := want * float64(gain[i])
			if math.Abs(float64(x[i])-w) > 1e-5*w+2e-37 {
				t.Fatalf("e^%v times %v is %v, want %v", v-top, gain[i], x[i], w)
			}
			wantSum, wantWeighed, wantMost = wantSum+want, wantWeighed+w, max(wantMost, w)
		}
		for i, pair := range [][2]float64{{float64(sum), wantSum}, {float64(weighed), wantWeighed}, {float64(most), wantMost}} {
			if math.Abs(pair[0]-pair[1]) > 1e-5*pair[1]+1e-35 {
				t.Fatalf("from %v on, result %d is %v, want %v", from, i, pair[0], pair[1])
			}
		}
	}
	x[0], gain[0] = unseen, 1
	if expWeigh(x[:], gain[:], top); x[0] > 3e-38 {
		t.Errorf("what is not seen weighs %v", x[0])
	}
}

// TestExpSum: exponentials are as exact as floats, next to the greatest, and NaN stays.
func TestExpSum(t *testing.T) {
	const top = 3
	var x [40]float32
	for from := float32(top); from > top-90; from -= 40e-3 {
		for i := range x {
			x[i] = from - float32(i)*1e-3
		}
		was := x
		sum := expSum(x[:], top)
		var want float64
		for i, v := range was {
			e := math.Exp(float64(v - top))
			if want += e; math.Abs(float64(x[i])-e) > 3e-7*max(e, e*float64(top-v)/10)+3e-38 {
				t.Fatalf("e^%v is %v, want %v", v-top, x[i], e)
			}
		}
		if math.Abs(float64(sum)-want) > 2e-6*want+1e-36 {
			t.Fatalf("from %v on, the sum is %v, want %v", from, sum, want)
		}
	}
	for i := range x {
		x[i] = unseen
	}
	x[5] = float32(math.NaN())
	if sum := expSum(x[:], top); x[4] > 3e-38 || x[5] == x[5] || sum == sum {
		t.Errorf("what is not seen weighs %v, NaN %v, in all %v", x[4], x[5], sum)
	}
}

// TestAttentionFrom: attention over what is laid out once is near that of training and, in floats and in integers, what it
// computes of a position depends neither on where it begins nor on the positions that come later, to the last bit.
func TestAttentionFrom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		heads, hd, n := rapid.IntRange(1, 3).Draw(t, "heads"), 2*rapid.IntRange(1, 20).Draw(t, "half"), rapid.IntRange(1, 600).Draw(t, "n")
		d := heads * hd
		r := rand.New(rand.NewPCG(1, rapid.Uint64().Draw(t, "seed")))
		qkv, want := random(r, n*3*d), make([]float32, n*d)
		Attention(want, make([]float32, n*heads), qkv, []int{0, n}, d, heads, true)
		from := rapid.IntRange(0, n-1).Draw(t, "from")
		to := rapid.IntRange(from+1, n).Draw(t, "to")
		scale := float32(1 / math.Sqrt(float64(hd)))
		kept := rapid.IntRange(0, from).Draw(t, "kept")
		for _, numbers := range []struct {
			near   float64
			keys   func(n int, k []float32) Leading
			values func(n int, v []float32) Values
			// the same, the first of which are laid out before, with others that are not the same
			moreKeys   func(before Leading, n int, k []float32) Leading
			moreValues func(before Values, n int, v []float32) Values
		}{
			{
				1e-5, func(n int, k []float32) Leading { return NewPanels(true, n, hd, k, 3*d, scale) }, func(n int, v []float32) Values { return NewPanels(false, hd, n, v, 3*d, 1) },
				func(before Leading, n int, k []float32) Leading {
					return before.(Panels).WithColumns(kept, n, hd, k, 3*d, scale)
				},
				func(before Values, n int, v []float32) Values { return before.(Panels).WithRows(kept, hd, n, v, 3*d) },
			},
			{
				2e-3, func(n int, k []float32) Leading { return NewPanels16(n, hd, k, 3*d, scale) }, func(n int, v []float32) Values { return NewValues16(hd, n, v, 3*d) },
				func(before Leading, n int, k []float32) Leading {
					return before.(Panels16).WithColumns(kept, n, hd, k, 3*d, scale)
				},
				func(before Values, n int, v []float32) Values { return before.(Values16).WithRows(kept, hd, n, v, 3*d) },
			},
		} {
			attend := func(from, n int, more bool) []float32 {
				var keys []Leading
				var values []Values
				for head := range heads {
					k, v := qkv[d+head*hd:], qkv[2*d+head*hd:]
					if !more {
						keys, values = append(keys, numbers.keys(n, k)), append(values, numbers.values(n, v))
						continue
					}
					other := slices.Clone(qkv)
					for i := range other[kept*3*d:] {
						other[kept*3*d+i] *= -3
					}
					before := min(kept+11, len(qkv)/(3*d))
					keys = append(keys, numbers.moreKeys(numbers.keys(before, other[d+head*hd:]), n, k[kept*3*d:]))
					values = append(values, numbers.moreValues(numbers.values(before, other[2*d+head*hd:]), n, v[kept*3*d:]))
				}
				out := make([]float32, (n-from)*d)
				AttentionFrom(out, qkv[from*3*d:], keys, values, from, n, d)
				return out
			}
			got := attend(0, n, false)
			for i, w := range want {
				if math.Abs(float64(got[i]-w)) > numbers.near {
					t.Fatalf("at %d: %v, want %v +- %v", i, got[i], w, numbers.near)
				}
			}
			for _, more := range []bool{false, true} {
				if part := attend(from, to, more); !slices.Equal(part, got[from*d:to*d]) {
					t.Fatalf("positions %d to %d depend on the others; %d are laid out before: %v", from, to, kept, more)
				}
			}
		}
	})
}
