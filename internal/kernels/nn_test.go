package kernels

import (
	"math"
	"math/rand/v2"
	"testing"
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
	gradient(t, "SwiGLU", u, n*f, func(y []float32) { SwiGLU(y, u, n, f) }, func(dy, du []float32) { SwiGLUBackward(du, dy, u, n, f) })

	for _, causal := range []bool{true, false} {
		qkv := random(r, n*3*d)
		gradient(t, "Attention", qkv, n*d, func(y []float32) { Attention(y, qkv, bounds, d, heads, causal) },
			func(dy, dx []float32) { AttentionBackward(dx, dy, qkv, bounds, d, heads, causal) })
	}

	h, table := random(r, n*d), random(r, vocab*d)
	at, target := []int32{0, 2, 2, 6}, []int32{3, 10, 0, 5}
	logp := func(y []float32) { LogProbs(y, h, at, target, table, vocab, d) }
	gradient(t, "LogProbs h", h, len(at), logp, func(dy, dh []float32) {
		LogProbsBackward(dh, make([]float32, vocab*d), dy, h, at, target, table, vocab, d)
	})
	gradient(t, "LogProbs table", table, len(at), logp, func(dy, dt []float32) {
		LogProbsBackward(make([]float32, n*d), dt, dy, h, at, target, table, vocab, d)
	})

	rot, z := NewRotary(4, 9), random(r, d)
	gradient(t, "Rotary", z, d, func(y []float32) { copy(y, z); rot.Turn(y, 5, false) }, func(dy, dz []float32) { copy(dz, dy); rot.Turn(dz, 5, true) })

	w := random(r, 100)
	gradient(t, "Dropout", w, 100, func(y []float32) { Dropout(y, w, 0.3, 9) }, func(dy, dx []float32) { Dropout(dx, dy, 0.3, 9) })
}

func TestCausalAttentionSeesNoFuture(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const n, d = 6, 8
	qkv := random(r, n*3*d)
	before, after := make([]float32, n*d), make([]float32, n*d)
	Attention(before, qkv, []int{0, n}, d, 2, true)
	for i := (n - 1) * 3 * d; i < len(qkv); i++ {
		qkv[i] += 1
	}
	Attention(after, qkv, []int{0, n}, d, 2, true)
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
