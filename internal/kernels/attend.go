package kernels

import "math"

// attentionRows is how many queries are looked at together.
const attentionRows = 48

// AttentionFrom is causal [Attention] of one row of n positions, for those from a position on; qkv and out have no others.
// keys and values are laid out for products, by head: headDim x n and scaled, and n x headDim. What it computes
// of a position does not depend on from, to the last bit.
func AttentionFrom(out, qkv []float32, keys []Leading, values []Values, from, n, d int) {
	hd, blocks := d/len(keys), (n-from+attentionRows-1)/attentionRows
	Parallel(len(keys)*blocks, func(i int) {
		head, block := i/blocks, blocks-1-i%blocks // the last positions see most, and come first
		off, q0 := head*hd, from+block*attentionRows
		q1 := min(n, q0+attentionRows)
		s := TakeScores(q1-q0, q1, 0)
		defer s.Release()
		keys[head].MulLeading(q1-q0, q1, hd, qkv[(q0-from)*3*d+off:], 3*d, false, s.All, s.Width)
		values[head].Attend(s, q0+1, 1, out[(q0-from)*d+off:], d)
	})
}

// attention is one head of one row of a packed batch, for training.
type attention struct {
	n, d, hd, heads int
	causal          bool
	qkv             []float32 // from the row's first token and the head's first float: n x 3d
	lse             []float32 // from the row's first token and the head: n x heads
	keys            Panels    // scaled, transposed
}

// head calls fn with each head of each row, and with where its output begins.
func head(qkv, lse []float32, bounds []int, d, heads int, causal bool, fn func(h attention, out int)) {
	hd := d / heads
	Parallel((len(bounds)-1)*heads, func(i int) {
		row, head := i/heads, i%heads
		lo, hi := bounds[row], bounds[row+1]
		if lo == hi {
			return
		}
		off := head * hd
		h := attention{n: hi - lo, d: d, hd: hd, heads: heads, causal: causal, qkv: qkv[lo*3*d+off:], lse: lse[lo*heads+head:]}
		h.keys = NewPanels(true, h.n, hd, h.qkv[d:], 3*d, h.scale())
		defer h.keys.Release()
		fn(h, lo*d+off)
	})
}

func (h attention) scale() float32 { return float32(1 / math.Sqrt(float64(h.hd))) }

// sees is how many keys the queries before q1 see at most.
func (h attention) sees(q1 int) int {
	if h.causal {
		return q1
	}
	return h.n
}

// scores returns those of the queries q0 to q1 with the keys that they see.
func (h attention) scores(q0, q1 int) *Scores {
	w := h.sees(q1)
	s := TakeScores(q1-q0, w, 0)
	h.keys.MulLeading(q1-q0, w, h.hd, h.qkv[q0*3*h.d:], 3*h.d, false, s.All, s.Width)
	return s
}

// Attention computes softmax(q k' / sqrt(headDim)) v for each head and each row
// of a packed batch. qkv is n x 3d (queries, keys, values, already rotated), out
// n x d; row r is positions bounds[r] to bounds[r+1]. With causal set, a
// position sees only itself and those before it. lse, n x heads, is for the gradient: the log of the sum of
// each softmax's exponentials. Scratch memory is linear in the longest row for each goroutine.
func Attention(out, lse, qkv []float32, bounds []int, d, heads int, causal bool) {
	head(qkv, lse, bounds, d, heads, causal, func(h attention, at int) { h.attend(out[at:]) })
}

// attend computes the attention of all positions.
func (h attention) attend(out []float32) {
	values := NewPanels(false, h.hd, h.n, h.qkv[2*h.d:], 3*h.d, 1)
	defer values.Release()
	for q0 := 0; q0 < h.n; q0 += attentionRows {
		s, step := h.scores(q0, min(h.n, q0+attentionRows)), 0
		if h.causal {
			step = 1
		}
		values.attend(s, h.sees(q0+1), step, out[q0*h.d:], h.d, h.lse[q0*h.heads:], h.heads)
		s.Release()
	}
}

// AttentionBackward computes dqkv (n x 3d), the gradient at the rotated queries, keys and values, which may be qkv.
// out and lse are as [Attention] left them; its weights are computed anew from those, so that little is kept
// (FlashAttention-2, Dao, arXiv 2307.08691, algorithm 2).
func AttentionBackward(dqkv, dout, out, lse, qkv []float32, bounds []int, d, heads int, causal bool) {
	head(qkv, lse, bounds, d, heads, causal, func(h attention, at int) {
		h.backward(dqkv[len(qkv)-len(h.qkv):], dout[at:], out[at:])
	})
}

// backward computes the gradient of the head's queries, keys and values. The last queries come first: they see all keys, whose
// gradients then need not be cleared.
func (h attention) backward(grad, dout, out []float32) {
	values := NewPanels(true, h.n, h.hd, h.qkv[2*h.d:], 3*h.d, 1)
	defer values.Release()
	keys := NewPanels(false, h.hd, h.n, h.qkv[h.d:], 3*h.d, h.scale())
	defer keys.Release()
	for q0 := (h.n - 1) / attentionRows * attentionRows; q0 >= 0; q0 -= attentionRows {
		q1 := min(h.n, q0+attentionRows)
		m, w, beta := q1-q0, h.sees(q1), float32(1)
		if q1 == h.n {
			beta = 0
		}
		do := dout[q0*h.d:]
		p, ds := h.scores(q0, q1), TakeScores(m, w, 0)
		values.MulLeading(m, w, h.hd, do, h.d, false, ds.All, ds.Width) // dP = dO V'
		for i := range m {
			visible := h.sees(q0 + i + 1)
			weights, gradient := p.All[i*p.Width:][:padded(visible)], ds.All[i*ds.Width:][:padded(visible)]
			fill(weights[visible:], unseen)
			expSum(weights, h.lse[(q0+i)*h.heads])
			p.forget(i, visible)
			dot := Dot(do[i*h.d:][:h.hd], out[(q0+i)*h.d:][:h.hd])
			for j := softmaxBackBlocks(gradient, weights, dot); j < len(gradient); j++ {
				gradient[j] = weights[j] * (gradient[j] - dot)
			}
			ds.forget(i, visible)
		}
		// dV += P' dO; dK += scale dS' Q; dQ = scale dS K
		gemmSerial(true, false, w, h.hd, m, 1, p.All, p.Width, do, h.d, beta, grad[2*h.d:], 3*h.d)
		gemmSerial(true, false, w, h.hd, m, h.scale(), ds.All, ds.Width, h.qkv[q0*3*h.d:], 3*h.d, beta, grad[h.d:], 3*h.d)
		keys.MulLeading(m, h.hd, w, ds.All, ds.Width, false, grad[q0*3*h.d:], 3*h.d)
		p.Release()
		ds.Release()
	}
}

// Values are those of attention, k x n: the right side of products with weights.
type Values interface {
	// Attend computes C = P V for the values V of s's keys: row i of P is the softmax of the first
	// sees + i*step scores of row i, all keys' at most, and of its own ones. The latter become their weights.
	Attend(s *Scores, sees, step int, c []float32, ldc int)
	// Bytes is what they take.
	Bytes() int64
	// Release lets others have its memory; it must not be used any more.
	Release()
}

// Scores are the products of queries and keys, a row for each query: with keys of which there are [Values] and, from
// a place of their own on, with others of the query's own.
type Scores struct {
	All   []float32
	Width int // of a row

	rows, keys, own int
	ownAt           int // where those of the query's own keys begin
	from            *[]float32
}

// scoreBlock is of how many floats rows of scores are whole numbers, for the kernels.
const scoreBlock = 16

func padded(n int) int { return (n + scoreBlock - 1) / scoreBlock * scoreBlock }

// TakeScores returns room for scores, which hold anything.
func TakeScores(rows, keys, own int) *Scores {
	width := padded(keys) + padded(own)
	data := take(rows * width)
	return &Scores{All: *data, Width: width, rows: rows, keys: keys, own: own, ownAt: padded(keys), from: data}
}

// Release lets others have the memory.
func (s *Scores) Release() { scratch.Put(s.from) }

// Own are row i's scores with its own keys or, later, their weights.
func (s *Scores) Own(i int) []float32 { return s.All[i*s.Width+s.ownAt:][:s.own] }

// Hide makes row i not see its own keys from the given one on.
func (s *Scores) Hide(i, from int) { fill(s.Own(i)[from:], unseen) }

// unseen is a score whose exponential is nothing, next to any other's.
const unseen = -math.MaxFloat32

// begin prepares row i: what it does not see has a score of which the exponential is nothing, up to a whole number of
// blocks. It returns the scores of the keys that it sees, and its own, with those, and the greatest.
func (s *Scores) begin(i, sees int) (keys, own []float32, top float32) {
	row := s.All[i*s.Width : (i+1)*s.Width]
	keys, own = row[:padded(sees)], row[s.ownAt:s.ownAt+padded(s.own)]
	fill(keys[sees:], unseen)
	fill(own[s.own:], unseen)
	return keys, own, greatest(own, greatest(keys, unseen))
}

// forget clears what row i has of scores with keys from the given one on.
func (s *Scores) forget(i, from int) { clear(s.All[i*s.Width:][from:padded(s.keys)]) }

// greatest returns the greatest of x, at least top.
func greatest(x []float32, top float32) float32 {
	top, i := maxBlocks(x, top)
	for _, v := range x[i:] {
		top = max(top, v)
	}
	return top
}

func fill(x []float32, v float32) {
	for i := range x {
		x[i] = v
	}
}

// expSum replaces x by e^(x-top), or by 2^-125 where that is less, and returns the sum. x is not above top by more than 88.
func expSum(x []float32, top float32) float32 {
	sum, i := expSumBlocks(x, top)
	for ; i < len(x); i++ {
		x[i] = Exp(x[i] - top)
		sum += x[i]
	}
	return sum
}

// Attend implements [Values].
func (p Panels) Attend(s *Scores, sees, step int, c []float32, ldc int) {
	p.attend(s, sees, step, c, ldc, nil, 0)
}

// attend is Attend that leaves the log of the sum of each row's exponentials in lse, ld apart, if there is one.
func (p Panels) attend(s *Scores, sees, step int, c []float32, ldc int, lse []float32, ld int) {
	buf := take(s.rows)
	defer scratch.Put(buf)
	for i := range s.rows {
		visible := min(s.keys, sees+i*step)
		keys, own, top := s.begin(i, visible)
		sum := expSum(keys, top) + expSum(own, top)
		scale(own, 1/sum)
		s.forget(i, visible)
		if lse != nil {
			lse[i*ld] = top + float32(math.Log(float64(sum)))
		}
		(*buf)[i] = 1 / sum // is multiplied by at the end, where there is less
	}
	p.MulLeading(s.rows, p.n, s.keys, s.All, s.Width, false, c, ldc)
	for i, norm := range *buf {
		scale(c[i*ldc:i*ldc+p.n], norm)
	}
}

// Attend implements [Values]. The weights take the values' factors in before they are rounded, a block of keys at a time.
func (v Values16) Attend(s *Scores, sees, step int, c []float32, ldc int) {
	r := takeRows16(s.rows, padded(s.keys))
	defer rows16Pool.Put(r)
	rows, blocks := len(r.by), (s.keys+valueBlock-1)/valueBlock
	buf := take(blocks * rows)
	defer scratch.Put(buf)
	by := *buf // what each block's rows are to be multiplied by
	if sees >= s.keys && blocks == 1 && softmaxRowsBlocks(s, v.by, r.q, r.ld, by) {
		mul16(s.rows, v.n, (s.keys+1)/2, r.q, r.ld, by, v.data, (v.k+1)/2, nil, false, c, ldc)
		return
	}
	for i := range s.rows {
		keys, own, top := s.begin(i, min(s.keys, sees+i*step))
		sum := expSum(own, top)
		q := r.q[i*r.ld : (i+1)*r.ld]
		clear(q[len(keys):])
		for b := range blocks {
			from, to := min(len(keys), b*valueBlock), min(len(keys), (b+1)*valueBlock)
			x, gains := keys[from:to], v.by[from:to]
			part, weighed, most := expWeigh(x, gains, top)
			sum += part
			factor := float32(0)
			if weighed >= least {
				factor = max(weighed/mostWeights, most/mostInt16)
				round(q[from:to], x, 1/factor)
			} else {
				clear(q[from:to])
			}
			by[b*rows+i] = factor
		}
		scale(own, 1/sum)
		for b := range blocks {
			by[b*rows+i] /= sum
		}
	}
	stride := (v.k + 1) / 2
	for b := range blocks {
		from := b * valueBlock
		pairs := (min(valueBlock, s.keys-from) + 1) / 2
		mul16(s.rows, v.n, pairs, r.q[from:], r.ld, by[b*rows:], v.data[from/2*nr:], stride, nil, b > 0, c, ldc)
	}
}

// expWeigh replaces x by e^(x-top) times gain, which is not negative, as exactly as 16-bit integers ask for: the relative error of
// exponentials is below 1e-5, and what should be zero may be 2^-125. It returns the sum of them, and the sum and the greatest
// of the new x. The old is not above top.
func expWeigh(x, gain []float32, top float32) (sum, weighed, most float32) {
	sum, weighed, most, i := expWeighBlocks(x, gain, top)
	for ; i < len(x); i++ {
		e := Exp(x[i] - top)
		x[i] = e * gain[i]
		sum, weighed, most = sum+e, weighed+x[i], max(most, x[i])
	}
	return sum, weighed, most
}
