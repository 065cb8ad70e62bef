package kernels

import (
	"math"
	"sync"
)

const grain = 64 // rows of an elementwise kernel that one call of Parallel's function takes

// rows splits n rows into grains; the last takes what is no whole one, too.
func rows(n int, fn func(lo, hi int)) {
	if n < 2*grain {
		fn(0, n)
		return
	}
	parts := n / grain
	Parallel(parts, func(i int) {
		lo, hi := i*grain, (i+1)*grain
		if i == parts-1 {
			hi = n
		}
		fn(lo, hi)
	})
}

// Exp is e^x with a relative error below 2e-7; it saturates outside [-87, 88].
// Polynomial of Cephes' expf.
func Exp(x float32) float32 {
	if x < -87 {
		return 0
	}
	x = min(x, 88)
	n := int32(x*1.44269504+128.5) - 128 // nearest integer: the sum is positive
	f := float32(n)
	r := x - f*0.693359375 + f*2.12194440e-4
	p := ((((1.9875691500e-4*r+1.3981999507e-3)*r+8.3334519073e-3)*r+4.1665795894e-2)*r+1.6666665459e-1)*r + 5.0000001201e-1
	return (p*r*r + r + 1) * math.Float32frombits(uint32(n+127)<<23)
}

// Sigmoid is 1 / (1 + e^-x).
func Sigmoid(x float32) float32 { return 1 / (1 + Exp(-x)) }

const normEps = 1e-6

// RMSNorm computes y = x / rms(x) * gain for n rows of d (Zhang and Sennrich,
// arXiv 1910.07467) and keeps 1/rms of each row in rstd.
func RMSNorm(y, rstd, x, gain []float32, n, d int) {
	rows(n, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			xi, yi := x[i*d:i*d+d], y[i*d:i*d+d]
			r := float32(1 / math.Sqrt(float64(Dot(xi, xi)/float32(d))+normEps))
			rstd[i] = r
			for j := mulScaleBlocks(yi, xi, gain, r); j < d; j++ {
				yi[j] = xi[j] * r * gain[j]
			}
		}
	})
}

// RMSNormBackward computes dx (n x d), which may be dy, and adds to dgain (d).
func RMSNormBackward(dx, dgain, dy, x, gain, rstd []float32, n, d int) {
	parts := (n + grain - 1) / grain
	buf := take(parts * d)
	defer scratch.Put(buf)
	sums := *buf // of dgain, by grain
	clear(sums)
	Parallel(parts, func(part int) {
		sum := sums[part*d:][:d]
		for i := part * grain; i < min(n, (part+1)*grain); i++ {
			xi, dyi, dxi, r := x[i*d:i*d+d], dy[i*d:i*d+d], dx[i*d:i*d+d], rstd[i]
			dot, j := dot3Blocks(dyi, gain[:d], xi)
			for ; j < d; j++ {
				dot += dyi[j] * gain[j] * xi[j]
			}
			dot *= r * r * r / float32(d)
			for j := normBackBlocks(dxi, sum, dyi, xi, gain, r, dot); j < d; j++ {
				v := dyi[j]
				dxi[j] = v*gain[j]*r - xi[j]*dot
				sum[j] += v * xi[j] * r
			}
		}
	})
	for i := range parts {
		Add(dgain[:d], sums[i*d:(i+1)*d])
	}
}

// SwiGLU computes y = silu(a) * b, n rows of f, where a and b are the halves of
// each row of u, n x 2f (Shazeer, arXiv 2002.05202).
func SwiGLU(y, u []float32, n, f int) {
	rows(n, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			a, b, yi := u[2*i*f:2*i*f+f], u[2*i*f+f:2*(i+1)*f], y[i*f:i*f+f]
			for j := swigluBlocks(yi, a, b); j < f; j++ {
				yi[j] = a[j] * Sigmoid(a[j]) * b[j]
			}
		}
	})
}

// SwiGLUBackward computes du (n x 2f), the gradient at u, and replaces dy, the gradient at y, by y.
func SwiGLUBackward(du, dy, u []float32, n, f int) {
	rows(n, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			a, b, dyi := u[2*i*f:2*i*f+f], u[2*i*f+f:2*(i+1)*f], dy[i*f:i*f+f]
			da, db := du[2*i*f:2*i*f+f], du[2*i*f+f:2*(i+1)*f]
			for j := swigluBackBlocks(da, db, dyi, a, b); j < f; j++ {
				x, y, g, s := a[j], b[j], dyi[j], Sigmoid(a[j])
				da[j] = g * y * s * (1 + x*(1-s))
				db[j] = g * x * s
				dyi[j] = x * s * y
			}
		}
	})
}

// SwiGLULinear computes y = SwiGLU(u) W' for u n x 2f and W d x f, some rows at a time.
func SwiGLULinear(y, u, w []float32, n, f, d int) {
	right := takePacked(true, d, f, w, f)
	defer right.release()
	Blocks(n, func(lo, hi int, mul Product) {
		h := take((hi - lo) * f)
		defer scratch.Put(h)
		SwiGLU(*h, u[lo*2*f:], hi-lo, f)
		mul(right, hi-lo, *h, f, false, y[lo*d:], d)
	})
}

// SwiGLULinearBackward computes du (n x 2f), which may be u, and h (n x f), which is SwiGLU(u): W's gradient is dy' h.
func SwiGLULinearBackward(du, h, dy, u, w []float32, n, f, d int) {
	right := takePacked(false, f, d, w, f)
	defer right.release()
	Blocks(n, func(lo, hi int, mul Product) {
		mul(right, hi-lo, dy[lo*d:], d, false, h[lo*f:], f)
		SwiGLUBackward(du[lo*2*f:], h[lo*f:], u[lo*2*f:], hi-lo, f)
	})
}

// Dropout computes y = x * mask / (1-p) over len(x) values, where y may be x; the mask depends on
// seed and position alone, so the backward pass is the same call on gradients.
func Dropout(y, x []float32, p float32, seed uint64) {
	if p == 0 {
		if len(x) > 0 && &y[0] != &x[0] {
			copy(y, x)
		}
		return
	}
	keep := uint64((1 - p) * 65536)
	scale := 1 / (float32(keep) / 65536)
	const chunk = 1 << 14
	Parallel((len(x)+chunk-1)/chunk, func(c int) {
		for i := c * chunk; i < min(len(x), (c+1)*chunk); i += 4 {
			bits := mix(seed + uint64(i))
			for j := i; j < min(i+4, len(x)); j++ {
				if bits&0xffff < keep {
					y[j] = x[j] * scale
				} else {
					y[j] = 0
				}
				bits >>= 16
			}
		}
	})
}

// AddDropout computes y = x + Dropout(z), where y may be z.
func AddDropout(y, x, z []float32, p float32, seed uint64) {
	const chunk = 1 << 12
	Parallel((len(y)+chunk-1)/chunk, func(c int) {
		lo, hi := c*chunk, min(len(y), (c+1)*chunk)
		Dropout(y[lo:hi], z[lo:hi], p, seed+uint64(lo))
		Add(y[lo:hi], x[lo:hi])
	})
}

// mix is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
func mix(z uint64) uint64 {
	z *= 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// Rotary is a table of rotary position embeddings (Su et al., arXiv 2104.09864).
type Rotary struct {
	half     int
	cos, sin []float32 // maxLen x half
}

// NewRotary returns the table for heads of width headDim and positions below
// maxLen, base 10,000.
func NewRotary(headDim, maxLen int) *Rotary {
	r := &Rotary{half: headDim / 2, cos: make([]float32, maxLen*headDim/2), sin: make([]float32, maxLen*headDim/2)}
	for pos := range maxLen {
		for i := range r.half {
			s, c := math.Sincos(float64(pos) * math.Pow(10000, -2*float64(i)/float64(headDim)))
			r.cos[pos*r.half+i], r.sin[pos*r.half+i] = float32(c), float32(s)
		}
	}
	return r
}

// Len returns the number of positions.
func (r *Rotary) Len() int { return len(r.cos) / r.half }

// Turn rotates the heads of x, one row of a query or key, to position pos; with
// back set it undoes that, which is also the derivative.
func (r *Rotary) Turn(x []float32, pos int, back bool) {
	cos, sin := r.cos[pos*r.half:(pos+1)*r.half], r.sin[pos*r.half:(pos+1)*r.half]
	sign := float32(1)
	if back {
		sign = -1
	}
	if turnHeads(x, cos, sin, sign) {
		return
	}
	for h := 0; h < len(x); h += 2 * r.half {
		a, b := x[h:h+r.half], x[h+r.half:h+2*r.half]
		for i := turnBlocks(a, b, cos, sin, sign); i < r.half; i++ {
			c, s := cos[i], sign*sin[i]
			a[i], b[i] = a[i]*c-b[i]*s, a[i]*s+b[i]*c
		}
	}
}

// Logits take far more than anything else does, so that they have a pool of their own: in a common one small
// things would be found in their large buffers, and new ones be made for them.
var scratch, logitsScratch = sync.Pool{New: newFloats}, sync.Pool{New: newFloats}

func newFloats() any { return new([]float32) }

// Take returns n floats of scratch memory, for [Put]; they hold anything.
func Take(n int) *[]float32 { return take(n) }

// Put lets others have scratch memory.
func Put(p *[]float32) { scratch.Put(p) }

func take(n int) *[]float32 { return takeFrom(&scratch, n) }

func takeFrom(pool *sync.Pool, n int) *[]float32 {
	p := pool.Get().(*[]float32)
	if cap(*p) < n {
		*p = make([]float32, n)
	}
	*p = (*p)[:n]
	return p
}

// Softmax replaces x by its softmax.
func Softmax(x []float32) { softmax(x) }

// softmax is Softmax; it returns the greatest of x and the sum of the exponentials of what the others are less.
func softmax(x []float32) (top, sum float32) {
	top = greatest(x, x[0])
	sum = expSum(x, top)
	scale(x, 1/sum)
	return top, sum
}

// softmaxNorm is Softmax; it returns the log of the sum of exponentials.
func softmaxNorm(x []float32) float32 {
	top, sum := softmax(x)
	return top + float32(math.Log(float64(sum)))
}

// LogSumExp returns the log of the sum of exponentials.
func LogSumExp(x []float32) float32 {
	buf := take(len(x))
	defer scratch.Put(buf)
	copy(*buf, x)
	return softmaxNorm(*buf)
}

// LogitRows bounds the logits in memory at one time, in rows, beside those that are kept.
const LogitRows = 512

// keptLogits bounds what is kept of the logits for a backward pass, in floats.
const keptLogits = 1 << 25

// KeptRows is for how many of n predictions a backward pass should find what the forward pass computed: for all, or
// for as many times [LogitRows] as 128 MiB hold. The logits of the others are computed again.
func KeptRows(n, vocab int) int {
	if n*vocab <= keptLogits {
		return n
	}
	return keptLogits / vocab / LogitRows * LogitRows
}

// LogProbs computes log softmax(h[i] table')[target[i]] for each row i of h, which is n x
// d; table is vocab x d. The logits are never all in memory, beyond kept, which holds the softmax of the first
// predictions after it, a row of vocab for each: of [KeptRows], or of none.
func LogProbs(logp, h []float32, target []int32, table []float32, vocab, d int, kept []float32) {
	eachChunk(len(target), vocab, kept, func(i0, n int, logits []float32, _ bool) {
		Gemm(false, true, n, vocab, d, 1, h[i0*d:], d, table, d, 0, logits, vocab)
		rows(n, func(lo, hi int) {
			for i := lo; i < hi; i++ {
				row := logits[i*vocab : (i+1)*vocab]
				t := row[target[i0+i]]
				logp[i0+i] = t - softmaxNorm(row)
			}
		})
	})
}

// LogProbsBackward computes dh, and adds to dtable, the gradient of sum_i dlogp[i] logp[i]. kept is as [LogProbs] left it,
// and is overwritten.
func LogProbsBackward(dh, dtable, dlogp, h []float32, target []int32, table []float32, vocab, d int, kept []float32) {
	eachChunk(len(target), vocab, kept, func(i0, n int, logits []float32, known bool) {
		x := h[i0*d:]
		if !known {
			Gemm(false, true, n, vocab, d, 1, x, d, table, d, 0, logits, vocab)
		}
		rows(n, func(lo, hi int) {
			for i := lo; i < hi; i++ {
				row, g := logits[i*vocab:(i+1)*vocab], dlogp[i0+i]
				if !known {
					Softmax(row)
				}
				scale(row, -g)
				row[target[i0+i]] += g
			}
		})
		Gemm(false, false, n, d, vocab, 1, logits, vocab, table, d, 0, dh[i0*d:], d)
		Gemm(true, false, vocab, d, n, 1, logits, vocab, x, d, 1, dtable, d)
	})
}

// eachChunk calls fn with a place for the logits of the n of so many predictions from i0 on, chunk by chunk, and with
// whether it is one of those in kept.
func eachChunk(predictions, vocab int, kept []float32, fn func(i0, n int, logits []float32, kept bool)) {
	inKept := len(kept) / vocab
	var buf *[]float32
	for i0 := 0; i0 < predictions; i0 += LogitRows {
		n := min(LogitRows, predictions-i0)
		if i0 < inKept {
			fn(i0, n, kept[i0*vocab:(i0+n)*vocab], true)
			continue
		}
		if buf == nil {
			buf = takeFrom(&logitsScratch, n*vocab)
			defer logitsScratch.Put(buf)
		}
		fn(i0, n, (*buf)[:n*vocab], false)
	}
}

// Add adds x to y.
func Add(y, x []float32) {
	x = x[:len(y)]
	const chunk = 1 << 15
	if len(y) > chunk {
		Parallel((len(y)+chunk-1)/chunk, func(i int) {
			lo, hi := i*chunk, min(len(y), (i+1)*chunk)
			Add(y[lo:hi], x[lo:hi])
		})
		return
	}
	for i := addBlocks(y, x); i < len(y); i++ {
		y[i] += x[i]
	}
}

// AddScaled adds s times x to y.
func AddScaled(y, x []float32, s float32) {
	x = x[:len(y)]
	for i := axpyBlocks(y, x, s); i < len(y); i++ {
		y[i] += s * x[i]
	}
}

func scale(x []float32, s float32) {
	for i := scaleBlocks(x, s); i < len(x); i++ {
		x[i] *= s
	}
}

// Dot returns the inner product.
func Dot(x, y []float32) float32 {
	y = y[:len(x)]
	var s1, s2, s3 float32
	s0, i := dotBlocks(x, y)
	for ; i+4 <= len(x); i += 4 {
		s0 += x[i] * y[i]
		s1 += x[i+1] * y[i+1]
		s2 += x[i+2] * y[i+2]
		s3 += x[i+3] * y[i+3]
	}
	for ; i < len(x); i++ {
		s0 += x[i] * y[i]
	}
	return s0 + s1 + s2 + s3
}

// DotsAt writes s times the inner products of x with rows of y that lie apart: row t begins at at[t]. Memory is asked for the rows
// at the places then, of which there are as many: those of the next call.
func DotsAt(out, x, y []float32, at []int32, s float32, then []int32) {
	if dotsAtBlocks(out, x, y, at, s, then) {
		return
	}
	for t, place := range at {
		out[t] = s * Dot(x, y[place:][:len(x)])
	}
}

// AddAt adds to out rows of y that lie apart, as for [DotsAt], each times its weight.
func AddAt(out, y []float32, at []int32, weights []float32, then []int32) {
	if addAtBlocks(out, y, at, weights, then) {
		return
	}
	for t, place := range at {
		AddScaled(out, y[place:][:len(out)], weights[t])
	}
}

// MatVec computes y = A x for A m x n with rows lda floats apart.
func MatVec(y, a []float32, m, n, lda int, x []float32) {
	x = x[:n]
	i := 0
	for ; i+8 <= m; i += 8 {
		rows, out := a[i*lda:], y[i:i+8]
		from := dots8(out, rows, lda, x)
		if from == n && n > 0 {
			continue
		}
		for r := range out {
			rest := Dot(rows[r*lda+from:r*lda+n], x[from:])
			if from == 0 {
				out[r] = rest
			} else {
				out[r] += rest
			}
		}
	}
	for ; i < m; i++ {
		y[i] = Dot(a[i*lda:i*lda+n], x)
	}
}

// AdamW holds the hyperparameters of one step (Loshchilov and Hutter, arXiv
// 1711.05101, algorithm 2).
type AdamW struct {
	LearningRate, Beta1, Beta2, Eps, WeightDecay float64
}

// adamwConstants are what a step multiplies by.
type adamwConstants struct{ scale, b1, c1, b2, c2, shrink, lr, eps, fix float32 }

// Step updates w by gradient g times scale; m and v are the moments, step counts
// from 1.
func (o AdamW) Step(w, g, m, v []float32, scale float32, step int, decay bool) {
	c := adamwConstants{
		scale: scale, b1: float32(o.Beta1), c1: 1 - float32(o.Beta1), b2: float32(o.Beta2), c2: 1 - float32(o.Beta2),
		shrink: 1, lr: float32(o.LearningRate / (1 - math.Pow(o.Beta1, float64(step)))), eps: float32(o.Eps),
		fix: float32(1 / (1 - math.Pow(o.Beta2, float64(step)))),
	}
	if decay {
		c.shrink = float32(1 - o.LearningRate*o.WeightDecay)
	}
	const chunk = 1 << 14
	Parallel((len(w)+chunk-1)/chunk, func(part int) {
		lo, hi := part*chunk, min(len(w), (part+1)*chunk)
		w, g, m, v := w[lo:hi], g[lo:hi], m[lo:hi], v[lo:hi]
		for i := adamwBlocks(w, g, m, v, c); i < len(w); i++ {
			gi := g[i] * c.scale
			m[i] = c.b1*m[i] + c.c1*gi
			v[i] = c.b2*v[i] + c.c2*gi*gi
			w[i] = w[i]*c.shrink - c.lr*m[i]/(float32(math.Sqrt(float64(v[i]*c.fix)))+c.eps)
		}
	})
}
