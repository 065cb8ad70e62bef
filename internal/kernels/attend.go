package kernels

import "math"

// Values are those of attention, k x n: the right side of products with weights.
type Values interface {
	// Attend computes C = P V for the values V of s's keys: row i of P is the softmax of the first
	// sees + i*step scores of row i, all keys' at most, and of its own ones. The latter become their weights.
	Attend(s *Scores, sees, step int, c []float32, ldc int)
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

// unseen is a score whose exponential is zero, next to any other's.
const unseen = -math.MaxFloat32

// begin prepares row i: what it does not see has a score of which the exponential is zero, up to a whole number of
// blocks. It returns the scores of the keys that it sees, and its own, with those, and the greatest.
func (s *Scores) begin(i, sees int) (keys, own []float32, top float32) {
	row := s.All[i*s.Width : (i+1)*s.Width]
	keys, own = row[:padded(sees)], row[s.ownAt:s.ownAt+padded(s.own)]
	fill(keys[sees:], unseen)
	fill(own[s.own:], unseen)
	return keys, own, greatest(own, greatest(keys, unseen))
}

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

// expSum replaces x by e^(x-top) and returns the sum.
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
	buf := take(s.rows)
	defer scratch.Put(buf)
	for i := range s.rows {
		keys, own, top := s.begin(i, min(s.keys, sees+i*step))
		norm := 1 / (expSum(keys, top) + expSum(own, top))
		scale(own, norm)
		if len(keys) < s.keys {
			clear(s.All[i*s.Width:][len(keys):s.keys])
		}
		(*buf)[i] = norm // is multiplied by at the end, where there is less
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
			factor := float32(0) // of a row that may hold anything, then
			if weighed >= least {
				factor = max(weighed/mostWeights, most/mostInt16)
				roundGain(q[from:to], x, gains, 1/factor)
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
		for j := 0; j < v.n; j += nr {
			mul16(s.rows, min(nr, v.n-j), pairs, r.q[from:], r.ld, by[b*rows:], v.data[j*stride+from/2*nr:], stride, ones[:], b > 0, c[j:], ldc)
		}
	}
}

// expWeigh replaces x by e^(x-top), as exactly as 16-bit integers ask for: the relative error is below 1e-5, and what
// should be zero may be 2^-125. It returns the sum of that, and the sum and the greatest of that times gain, which is not
// negative. x is not above top.
func expWeigh(x, gain []float32, top float32) (sum, weighed, most float32) {
	sum, weighed, most, i := expWeighBlocks(x, gain, top)
	for ; i < len(x); i++ {
		x[i] = Exp(x[i] - top)
		v := x[i] * gain[i]
		sum, weighed, most = sum+x[i], weighed+v, max(most, v)
	}
	return sum, weighed, most
}
