package kernels

import (
	"math"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestExp(t *testing.T) {
	for x := float32(-86.9); x < 88; x += 0.013 {
		want := math.Exp(float64(x))
		if got := float64(Exp(x)); math.Abs(got-want) > 3e-7*want {
			t.Fatalf("Exp(%v) = %v, want %v", x, got, want)
		}
	}
	if Exp(-200) != 0 || math.IsInf(float64(Exp(1000)), 0) {
		t.Fatal("Exp does not saturate")
	}
}

// gradient holds backward's gradient of sum(weights * forward(x)) against
// central differences.
func gradient(t *testing.T, name string, x []float32, outputs int, forward func(y []float32), backward func(dy, dx []float32)) {
	t.Helper()
	r := rand.New(rand.NewPCG(5, 6))
	dy := random(r, outputs)
	y := make([]float32, outputs)
	loss := func() (s float64) {
		clear(y)
		forward(y)
		for i, v := range y {
			s += float64(v) * float64(dy[i])
		}
		return s
	}
	dx := make([]float32, len(x))
	loss()
	backward(dy, dx)
	for i := range x {
		const eps = 5e-3
		old := x[i]
		x[i] = old + eps
		up := loss()
		x[i] = old - eps
		down := loss()
		x[i] = old
		want := (up - down) / (2 * eps)
		if math.Abs(float64(dx[i])-want) > 3e-3*(1+math.Abs(want)) {
			t.Errorf("%s: gradient at %d is %v, central difference %v", name, i, dx[i], want)
			return
		}
	}
}

func TestGradients(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const n, d, heads, f, vocab = 7, 8, 2, 5, 11
	bounds := []int{0, 3, 3, 7}
	x, gain, rstd := random(r, n*d), random(r, d), make([]float32, n)
	norm := func(y []float32) { RMSNorm(y, rstd, x, gain, n, d) }
	gradient(t, "RMSNorm x", x, n*d, norm, func(dy, dx []float32) { RMSNormBackward(dx, make([]float32, d), dy, x, gain, rstd, n, d) })
	gradient(t, "RMSNorm gain", gain, n*d, norm, func(dy, dg []float32) { RMSNormBackward(make([]float32, n*d), dg, dy, x, gain, rstd, n, d) })

	u := random(r, n*2*f)
	gradient(t, "SwiGLU", u, n*f, func(y []float32) { SwiGLU(y, u, n, f) }, func(dy, du []float32) { SwiGLUBackward(du, slices.Clone(dy), u, n, f) })
	down, between := random(r, d*f), make([]float32, n*f)
	linear := func(y []float32) { SwiGLULinear(y, u, down, n, f, d) }
	gradient(t, "SwiGLULinear u", u, n*d, linear, func(dy, du []float32) { SwiGLULinearBackward(du, between, dy, u, down, n, f, d) })
	gradient(t, "SwiGLULinear W", down, n*d, linear, func(dy, dw []float32) {
		SwiGLULinearBackward(make([]float32, n*2*f), between, dy, u, down, n, f, d)
		Gemm(true, false, d, f, n, 1, dy, d, between, f, 0, dw, f)
	})

	for _, causal := range []bool{true, false} {
		qkv := random(r, n*3*d)
		out, lse := make([]float32, n*d), make([]float32, n*heads)
		gradient(t, "Attention", qkv, n*d, func(y []float32) { Attention(y, lse, qkv, bounds, d, heads, causal) }, func(dy, dx []float32) {
			Attention(out, lse, qkv, bounds, d, heads, causal)
			AttentionBackward(dx, dy, out, lse, qkv, bounds, d, heads, causal)
		})
	}

	h, table, target := random(r, 4*d), random(r, vocab*d), []int32{3, 10, 0, 5}
	logp := func(y []float32) { LogProbs(y, h, target, table, vocab, d, nil) }
	gradient(t, "LogProbs h", h, len(target), logp, func(dy, dh []float32) {
		LogProbsBackward(dh, make([]float32, vocab*d), dy, h, target, table, vocab, d, nil)
	})
	gradient(t, "LogProbs table", table, len(target), logp, func(dy, dt []float32) {
		LogProbsBackward(make([]float32, len(h)), dt, dy, h, target, table, vocab, d, nil)
	})

	rot, z := NewRotary(4, 9), random(r, d)
	gradient(t, "Rotary", z, d, func(y []float32) { copy(y, z); rot.Turn(y, 5, false) }, func(dy, dz []float32) { copy(dz, dy); rot.Turn(dz, 5, true) })

	w := random(r, 100)
	gradient(t, "Dropout", w, 100, func(y []float32) { Dropout(y, w, 0.3, 9) }, func(dy, dx []float32) { Dropout(dx, dy, 0.3, 9) })
}

// TestInOne: kernels that are two in one give what the two give, to the last bit.
func TestInOne(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for _, n := range []int{1, 9, 23, 64, 300} {
		const f, d = 352, 128
		u, w, dy := random(r, n*2*f), random(r, d*f), random(r, n*d)
		h, y, got := make([]float32, n*f), make([]float32, n*d), make([]float32, n*d)
		SwiGLU(h, u, n, f)
		Gemm(false, true, n, d, f, 1, h, f, w, f, 0, y, d)
		if SwiGLULinear(got, u, w, n, f, d); !slices.Equal(got, y) {
			t.Errorf("SwiGLULinear of %d rows is another than SwiGLU and a product", n)
		}
		dh, du := make([]float32, n*f), make([]float32, n*2*f)
		Gemm(false, false, n, f, d, 1, dy, d, w, f, 0, dh, f)
		SwiGLUBackward(du, dh, u, n, f)
		between, gotU := make([]float32, n*f), make([]float32, n*2*f)
		if SwiGLULinearBackward(gotU, between, dy, u, w, n, f, d); !slices.Equal(gotU, du) || !slices.Equal(between, dh) {
			t.Errorf("SwiGLULinearBackward of %d rows is another than a product and SwiGLUBackward", n)
		}
		for _, p := range []float32{0, 0.3} {
			x, z, left := u[:n*f], u[n*f:], make([]float32, n*f)
			Dropout(left, z, p, 9)
			Add(left, x)
			sum := make([]float32, n*f)
			if AddDropout(sum, x, z, p, 9); !slices.Equal(sum, left) {
				t.Errorf("AddDropout of %d floats is another than Dropout and a sum", len(x))
			}
		}
	}
}

// TestKeptLogits: what a forward pass leaves for the backward pass changes nothing, whether it is all, a part or none.
func TestKeptLogits(t *testing.T) {
	const d, vocab, predictions = 16, 37, 2*LogitRows + 200
	r := rand.New(rand.NewPCG(5, 6))
	h, table, dlogp, target := random(r, predictions*d), random(r, vocab*d), random(r, predictions), make([]int32, predictions)
	for i := range target {
		target[i] = int32(r.IntN(vocab))
	}
	run := func(kept []float32) (logp, dh, dtable []float32) {
		logp, dh, dtable = make([]float32, predictions), make([]float32, predictions*d), make([]float32, vocab*d)
		LogProbs(logp, h, target, table, vocab, d, kept)
		LogProbsBackward(dh, dtable, dlogp, h, target, table, vocab, d, kept)
		return logp, dh, dtable
	}
	logp, dh, dtable := run(nil)
	for _, rows := range []int{LogitRows, 2 * LogitRows, predictions} {
		kept := make([]float32, rows*vocab)
		l, x, w := run(kept)
		if !slices.Equal(l, logp) || !slices.Equal(x, dh) || !slices.Equal(w, dtable) {
			t.Errorf("with the logits of %d of %d predictions kept, the results are others", rows, predictions)
		}
		clear(kept)
		clear(x)
		LogProbsBackward(x, w, dlogp, h, target, table, vocab, d, kept)
		if slices.Equal(x, dh) {
			t.Errorf("the backward pass does not read what is kept of %d predictions", rows)
		}
	}
	for _, c := range []struct{ n, vocab, want int }{{768, 25_000, 768}, {1342, 25_000, 1342}, {1343, 25_000, 1024}, {9000, 1000, 9000}, {600, 1 << 16, 512}, {512, 1 << 20, 0}} {
		if got := KeptRows(c.n, c.vocab); got != c.want {
			t.Errorf("of %d predictions of %d tokens %d are kept, want %d", c.n, c.vocab, got, c.want)
		}
	}
}

func TestCausalAttentionSeesNoFuture(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const n, d = 6, 8
	qkv := random(r, n*3*d)
	before, after := make([]float32, n*d), make([]float32, n*d)
	lse := make([]float32, 2*n)
	Attention(before, lse, qkv, []int{0, n}, d, 2, true)
	for i := (n - 1) * 3 * d; i < len(qkv); i++ {
		qkv[i] += 1
	}
	Attention(after, lse, qkv, []int{0, n}, d, 2, true)
	for i := range (n - 1) * d {
		if before[i] != after[i] {
			t.Fatalf("position %d saw the future", i/d)
		}
	}
}

func TestDropoutRate(t *testing.T) {
	x, y := make([]float32, 100_000), make([]float32, 100_000)
	for i := range x {
		x[i] = 1
	}
	Dropout(y, x, 0.2, 42)
	var sum float64
	for _, v := range y {
		sum += float64(v)
	}
	if mean := sum / float64(len(y)); math.Abs(mean-1) > 0.01 {
		t.Fatalf("mean after dropout %v, want 1", mean)
	}
}

func TestAdamW(t *testing.T) {
	o := AdamW{LearningRate: 0.1, Beta1: 0.9, Beta2: 0.99, Eps: 1e-8, WeightDecay: 0.01}
	w, m, v := []float32{1}, []float32{0}, []float32{0}
	wf, mf, vf := 1.0, 0.0, 0.0
	for step := 1; step <= 10; step++ {
		g := math.Sin(float64(step))
		o.Step(w, []float32{float32(2 * g)}, m, v, 0.5, step, true)
		mf, vf = 0.9*mf+0.1*g, 0.99*vf+0.01*g*g
		wf = wf*(1-0.1*0.01) - 0.1*mf/(1-math.Pow(0.9, float64(step)))/(math.Sqrt(vf/(1-math.Pow(0.99, float64(step))))+1e-8)
		if math.Abs(float64(w[0])-wf) > 1e-5 {
			t.Fatalf("step %d: %v, want %v", step, w[0], wf)
		}
	}
}

// TestDot: every length around the blocks of the assembly, against a sum in float64.
func TestDot(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 9))
	for n := range 140 {
		x, y := make([]float32, n), make([]float32, n)
		var want float64
		for i := range x {
			x[i], y[i] = float32(r.NormFloat64()), float32(r.NormFloat64())
			want += float64(x[i]) * float64(y[i])
		}
		if got := float64(Dot(x, y)); math.Abs(got-want) > 1e-5*float64(n+1) {
			t.Errorf("%d floats: %v, want %v", n, got, want)
		}
	}
}

// TestMatVec: any shape, rows further apart than they are long, against Dot.
func TestMatVec(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 9))
	for m := range 20 {
		for n := range 40 {
			lda := n + m%3
			a, x, y := make([]float32, m*lda), make([]float32, n), make([]float32, m)
			for i := range a {
				a[i] = float32(r.NormFloat64())
			}
			for i := range x {
				x[i] = float32(r.NormFloat64())
			}
			for i := range y {
				y[i] = 99
			}
			MatVec(y, a, m, n, lda, x)
			for i := range y {
				if want := Dot(a[i*lda:i*lda+n], x); math.Abs(float64(y[i]-want)) > 1e-4 {
					t.Fatalf("%d x %d, lda %d: row %d is %v, want %v", m, n, lda, i, y[i], want)
				}
			}
		}
	}
}

// attentionNaive is Attention in float64, without blocks.
func attentionNaive(qkv []float32, bounds []int, d, heads int, causal bool) []float64 {
	hd := d / heads
	out := make([]float64, bounds[len(bounds)-1]*d)
	for r := range len(bounds) - 1 {
		for h := range heads {
			for i := bounds[r]; i < bounds[r+1]; i++ {
				end := bounds[r+1]
				if causal {
					end = i + 1
				}
				var sum float64
				for j := bounds[r]; j < end; j++ {
					var s float64
					for x := range hd {
						s += float64(qkv[i*3*d+h*hd+x]) * float64(qkv[j*3*d+d+h*hd+x])
					}
					w := math.Exp(s / math.Sqrt(float64(hd)))
					sum += w
					for x := range hd {
						out[i*d+h*hd+x] += w * float64(qkv[j*3*d+2*d+h*hd+x])
					}
				}
				for x := range hd {
					out[i*d+h*hd+x] /= sum
				}
			}
		}
	}
	return out
}

// TestAttention holds the blocked kernel against the formula, for rows and heads of any
// size; buffers that are used again hold what was there before.
// TestInPlace: what kernels may write over what they read is what they write elsewhere, to the last bit.
func TestInPlace(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	for _, d := range []int{1, 7, 16, 43} {
		const n = 9
		x, y, gain, rstd := random(r, n*d), random(r, n*d), random(r, d), random(r, n)
		check := func(what string, compute func(out []float32), over []float32) {
			t.Helper()
			want, was := random(r, len(over)), slices.Clone(over)
			compute(want)
			compute(over)
			if !slices.Equal(over, want) {
				t.Errorf("%s of %d in the place of what it reads is another", what, d)
			}
			copy(over, was)
		}
		for _, p := range []float32{0, 0.4} {
			check("Dropout", func(out []float32) { Dropout(out, x, p, 3) }, x)
			check("AddDropout", func(out []float32) { AddDropout(out, y, x, p, 3) }, x)
		}
		check("RMSNormBackward", func(out []float32) { RMSNormBackward(out, make([]float32, d), x, y, gain, rstd, n, d) }, x)
		u := random(r, n*2*d)
		check("SwiGLUBackward", func(out []float32) { SwiGLUBackward(out, slices.Clone(y), u, n, d) }, u)
	}
}

func TestAttention(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		heads, hd := rapid.IntRange(1, 3).Draw(t, "heads"), 2*rapid.IntRange(1, 20).Draw(t, "half")
		d := heads * hd
		bounds := []int{0}
		for _, n := range rapid.SliceOfN(rapid.IntRange(0, 110), 1, 4).Draw(t, "rows") {
			bounds = append(bounds, bounds[len(bounds)-1]+n)
		}
		causal := rapid.Bool().Draw(t, "causal")
		n := bounds[len(bounds)-1]
		r := rand.New(rand.NewPCG(1, uint64(n*d)))
		qkv, out := random(r, n*3*d), random(r, n*d)
		lse := make([]float32, n*heads)
		Attention(out, lse, qkv, bounds, d, heads, causal)
		for i, want := range attentionNaive(qkv, bounds, d, heads, causal) {
			if math.Abs(float64(out[i])-want) > 1e-4*(1+math.Abs(want)) {
				t.Fatalf("at %d: %v, want %v", i, out[i], want)
			}
		}
		// The gradient, along one direction.
		dy, dir := random(r, n*d), random(r, n*3*d)
		loss := func(by float32) (s float64) {
			moved := make([]float32, len(qkv))
			for i := range moved {
				moved[i] = qkv[i] + by*dir[i]
			}
			for i, v := range attentionNaive(moved, bounds, d, heads, causal) {
				s += v * float64(dy[i])
			}
			return s
		}
		grad := random(r, len(qkv)) // is computed, not added to
		AttentionBackward(grad, dy, out, lse, qkv, bounds, d, heads, causal)
		inPlace := slices.Clone(qkv)
		if AttentionBackward(inPlace, dy, out, lse, inPlace, bounds, d, heads, causal); !slices.Equal(inPlace, grad) {
			t.Fatal("in the place of queries, keys and values the gradient is another")
		}
		var got, size float64
		for i, g := range grad {
			got += float64(g) * float64(dir[i])
			size += math.Abs(float64(g) * float64(dir[i]))
		}
		const eps = 1e-3
		if want := (loss(eps) - loss(-eps)) / (2 * eps); math.Abs(got-want) > 1e-3*(1+size) {
			t.Fatalf("gradient along a direction %v, want %v", got, want)
		}
	})
}

// TestVectors holds each vector kernel against plain Go, at every length.
func TestVectors(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 3))
	near := func(what string, n int, got, want []float32) {
		t.Helper()
		for i := range want {
			if math.Abs(float64(got[i]-want[i])) > 2e-5*(1+math.Abs(float64(want[i]))) {
				t.Fatalf("%s of %d, at %d: %v, want %v", what, n, i, got[i], want[i])
			}
		}
	}
	for n := 1; n < 70; n++ {
		x, y, z, w := random(r, n), random(r, n), random(r, n), random(r, n)
		sum, scaled, axpy := make([]float32, n), make([]float32, n), make([]float32, n)
		for i := range n {
			sum[i], scaled[i], axpy[i] = y[i]+x[i], 0.3*x[i], y[i]+0.3*x[i]
		}
		got := slices.Clone(y)
		Add(got, x)
		near("Add", n, got, sum)
		got = slices.Clone(y)
		AddScaled(got, x, 0.3)
		near("AddScaled", n, got, axpy)
		got = slices.Clone(x)
		scale(got, 0.3)
		near("scale", n, got, scaled)

		soft, total, top := make([]float32, n), 0.0, slices.Max(x)
		for _, v := range x {
			total += math.Exp(float64(v))
		}
		for i, v := range x {
			soft[i] = float32(math.Exp(float64(v)) / total)
		}
		got = slices.Clone(x)
		norm := softmaxNorm(got)
		near("Softmax", n, got, soft)
		near("its norm", n, []float32{norm}, []float32{float32(math.Log(total))})
		if m, i := maxBlocks(x, x[0]); max(m, slices.Max(append(x[i:], m))) != top {
			t.Fatalf("max of %d: %v, want %v", n, m, top)
		}

		u := append(slices.Clone(x), y...)
		gate, du := make([]float32, n), make([]float32, 2*n)
		for i := range n {
			s := 1 / (1 + math.Exp(-float64(x[i])))
			gate[i] = float32(float64(x[i]) * s * float64(y[i]))
			du[i] = float32(float64(z[i]) * float64(y[i]) * s * (1 + float64(x[i])*(1-s)))
			du[n+i] = float32(float64(z[i]) * float64(x[i]) * s)
		}
		SwiGLU(got, u, 1, n)
		near("SwiGLU", n, got, gate)
		back, dy := append(slices.Clone(w), w...), slices.Clone(z)
		SwiGLUBackward(back, dy, u, 1, n)
		near("SwiGLUBackward", n, back, du)
		near("what SwiGLUBackward computes again", n, dy, gate)

		o := AdamW{LearningRate: 0.1, Beta1: 0.9, Beta2: 0.99, Eps: 1e-8, WeightDecay: 0.1}
		wi, m, v := slices.Clone(w), slices.Clone(y), make([]float32, n)
		wantW, wantM, wantV := make([]float32, n), make([]float32, n), make([]float32, n)
		for i := range n {
			v[i] = z[i] * z[i]
			g := 0.5 * float64(x[i])
			mi, vi := 0.9*float64(m[i])+0.1*g, 0.99*float64(v[i])+0.01*g*g
			wantM[i], wantV[i] = float32(mi), float32(vi)
			const fix1, fix2 = 1 - 0.9*0.9*0.9, 1 - 0.99*0.99*0.99
			wantW[i] = float32(float64(w[i])*(1-0.1*0.1) - 0.1*mi/fix1/(math.Sqrt(vi/fix2)+1e-8))
		}
		o.Step(wi, x, m, v, 0.5, 3, true)
		near("AdamW", n, wi, wantW)
		near("its first moment", n, m, wantM)
		near("its second moment", n, v, wantV)

		rot, pos := NewRotary(2*n, 9), r.IntN(9)
		turned := append(slices.Clone(x), y...)
		wantT := make([]float32, 2*n)
		for i := range n {
			s, c := math.Sincos(float64(pos) * math.Pow(10000, -float64(i)/float64(n)))
			wantT[i], wantT[n+i] = float32(float64(x[i])*c-float64(y[i])*s), float32(float64(x[i])*s+float64(y[i])*c)
		}
		rot.Turn(turned, pos, false)
		near("Turn", n, turned, wantT)
		rot.Turn(turned, pos, true)
		near("Turn back", n, turned, append(slices.Clone(x), y...))

		const rows = 3
		xs, dys, dx, dgain := random(r, rows*n), random(r, rows*n), random(r, rows*n), random(r, n)
		rstd, ys := make([]float32, rows), make([]float32, rows*n)
		wantY, wantDx, wantDg := make([]float32, rows*n), slices.Clone(dx), slices.Clone(dgain)
		for i := range rows {
			var ss, dot float64
			for j := range n {
				ss += float64(xs[i*n+j]) * float64(xs[i*n+j])
				dot += float64(xs[i*n+j]) * float64(dys[i*n+j]) * float64(x[j])
			}
			s := 1 / math.Sqrt(ss/float64(n)+normEps)
			for j := range n {
				xi, dyi := float64(xs[i*n+j]), float64(dys[i*n+j])
				wantY[i*n+j] = float32(xi * s * float64(x[j]))
				wantDx[i*n+j] = float32(dyi*float64(x[j])*s - xi*dot*s*s*s/float64(n))
				wantDg[j] += float32(dyi * xi * s)
			}
		}
		RMSNorm(ys, rstd, xs, x, rows, n)
		near("RMSNorm", n, ys, wantY)
		RMSNormBackward(dx, dgain, dys, xs, x, rstd, rows, n)
		near("RMSNormBackward", n, dx, wantDx)
		near("its gain's", n, dgain, wantDg)
	}
	nan := []float32{1, 2, 3, 4, 5, 6, 7, 8, 9}
	nan[4] = float32(math.NaN())
	if softmaxNorm(nan); nan[4] == nan[4] {
		t.Error("NaN is lost in Softmax")
	}
}

// TestRowsBeyond: no row is taken from beyond the end.
func TestRowsBeyond(t *testing.T) {
	x, y := make([]float32, 32), make([]float32, 320)
	for _, n := range []int{1, 3, 4, 9} {
		for _, beyond := range []int32{289, 320, 1 << 30, -1, math.MinInt32} {
			for bad := range n {
				at, weights := make([]int32, n), make([]float32, n)
				at[bad] = beyond
				then := make([]int32, n)
				for name, fn := range map[string]func(){
					"DotsAt": func() { DotsAt(weights, x, y, at, 1, then) }, "AddAt": func() { AddAt(x, y, at, weights, then) },
				} {
					func() {
						defer func() {
							if recover() == nil {
								t.Errorf("%s takes row %d of %d from %d", name, bad, n, beyond)
							}
						}()
						debug.SetPanicOnFault(true)
						fn()
					}()
				}
			}
		}
	}
	at := []int32{288, 0, 288, 0, 288} // the last one
	DotsAt(make([]float32, 5), x, y, at, 1, at)
	AddAt(x, y, at, make([]float32, 5), at)
}

// TestRowsApart: rows that lie apart, whatever their size, are read as one by one.
func TestRowsApart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size, entries, blocks := rapid.SampledFrom([]int{1, 8, 20, 32, 64, 96}).Draw(t, "size"), rapid.IntRange(1, 5).Draw(t, "entries"), rapid.IntRange(0, 9).Draw(t, "blocks")
		row := size + rapid.IntRange(0, 3).Draw(t, "more")
		r := rand.New(rand.NewPCG(1, rapid.Uint64().Draw(t, "seed")))
		at := make([]int32, blocks)
		for i := range at {
			at[i] = int32((i*entries + r.IntN(entries)) * row)
		}
		x, y, w, before := random(r, size), random(r, blocks*entries*row), random(r, blocks+1), random(r, size)
		dots, sum := slices.Clone(w), slices.Clone(before)
		DotsAt(dots, x, y, at, 0.5, at)
		AddAt(sum, y, at, w, at)
		for b, place := range at {
			of := y[place:][:size]
			if want := 0.5 * Dot(x, of); dots[b] != want {
				t.Fatalf("product %d is %v, want %v", b, dots[b], want)
			}
			AddScaled(before, of, w[b])
		}
		if dots[blocks] != w[blocks] || !slices.Equal(sum, before) {
			t.Fatalf("%v and %v, want %v", dots, sum, before)
		}
	})
}
