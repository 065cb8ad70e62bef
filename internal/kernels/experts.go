package kernels

import "slices"

// Routing says which experts each token goes to, and groups the choices by expert, so that an expert's tokens are
// the rows of one matrix: see [Routing.Route].
type Routing struct {
	active  int
	weights []float32 // tokens x active: how much of a chosen expert's answer counts; a token's add up to 1
	chosen  []int32   // tokens x active
	places  []int32   // tokens x active: which entry the choice is
	starts  []int32   // expert e has entries starts[e] to starts[e+1]
	choices []int32   // of each entry: its index in weights and chosen, which is its token's times active, and up
}

// Route replaces the router's logits (n x experts) by gates, their softmax, and sends each token to the active
// experts with the greatest, among equals the first; an answer's weight is the expert's share of the gates that were
// chosen (as in Mixtral, arXiv 2401.04088, section 2.1).
func (r *Routing) Route(logits []float32, n, experts, active int) {
	r.active = active
	entries := n * active
	r.weights, r.chosen = slices.Grow(r.weights[:0], entries)[:entries], slices.Grow(r.chosen[:0], entries)[:entries]
	r.places, r.choices = slices.Grow(r.places[:0], entries)[:entries], slices.Grow(r.choices[:0], entries)[:entries]
	rows(n, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			own, chosen, weights := logits[i*experts:(i+1)*experts], r.chosen[i*active:(i+1)*active], r.weights[i*active:(i+1)*active]
			choose(chosen, own) // not by gates: equal logits may have gates that are not
			Softmax(own)
			var sum float32
			for k, e := range chosen {
				weights[k] = own[e]
				sum += own[e]
			}
			scale(weights, 1/sum)
		}
	})
	r.starts = slices.Grow(r.starts[:0], experts+1)[:experts+1]
	clear(r.starts)
	for _, e := range r.chosen {
		r.starts[e+1]++
	}
	for e := range experts {
		r.starts[e+1] += r.starts[e]
	}
	next := slices.Clone(r.starts)
	for c, e := range r.chosen {
		at := next[e]
		next[e]++
		r.places[c], r.choices[at] = at, int32(c)
	}
}

// choose finds the greatest logits, in their order.
func choose(chosen []int32, logits []float32) {
	found := 0
	for e, v := range logits {
		at := found
		for ; at > 0 && v > logits[chosen[at-1]]; at-- {
			if at < len(chosen) {
				chosen[at] = chosen[at-1]
			}
		}
		if at < len(chosen) {
			chosen[at] = int32(e)
			found = min(found+1, len(chosen))
		}
	}
}

// RouteBackward computes dlogits (n x experts), the gradient at the router's logits, from that at the gates, dgates; the two may be the same.
func RouteBackward(dlogits, dgates, gates []float32, n, experts int) {
	rows(n, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			at, g := dlogits[i*experts:(i+1)*experts], gates[i*experts:(i+1)*experts]
			dg := dgates[i*experts : (i+1)*experts]
			dot := Dot(dg, g)
			for e := range at {
				at[e] = g[e] * (dg[e] - dot)
			}
		}
	})
}

// WeightsBackward computes dgates (tokens x experts), the gradient at the gates, from that at the weights of the entries.
func (r *Routing) WeightsBackward(dgates, dweights, gates []float32) {
	experts := r.Experts()
	rows(len(r.chosen)/r.active, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			own, g := dgates[i*experts:(i+1)*experts], gates[i*experts:(i+1)*experts]
			clear(own)
			var sum, mean float32
			for c := i * r.active; c < (i+1)*r.active; c++ {
				sum += g[r.chosen[c]]
				mean += r.weights[c] * dweights[r.places[c]]
			}
			for c := i * r.active; c < (i+1)*r.active; c++ {
				own[r.chosen[c]] = (dweights[r.places[c]] - mean) / sum
			}
		}
	})
}

// Experts is how many there are.
func (r *Routing) Experts() int { return len(r.starts) - 1 }

// Entries is how many choices there are: each token's active experts.
func (r *Routing) Entries() int { return len(r.choices) }

// Share is the part of all choices that fell on an expert.
func (r *Routing) Share(expert int) float32 {
	return float32(r.starts[expert+1]-r.starts[expert]) / float32(max(1, len(r.choices)))
}

// Groups calls fn with the entries of each expert, some at a time, on all processors.
func (r *Routing) Groups(fn func(expert, lo, hi int)) {
	type group struct{ expert, lo, hi int }
	var all []group
	for e := range r.Experts() {
		lo, hi := int(r.starts[e]), int(r.starts[e+1])
		for n := (hi - lo + blockRows - 1) / blockRows; n > 0; n-- {
			to := lo + (hi-lo+n-1)/n
			all = append(all, group{e, lo, to})
			lo = to
		}
	}
	Parallel(len(all), func(i int) { fn(all[i].expert, all[i].lo, all[i].hi) })
}

// Gather copies the rows of x, one for each token, that entries lo to hi go out from, into rows of width d.
func (r *Routing) Gather(rows, x []float32, lo, hi, d int) {
	for i, c := range r.choices[lo:hi] {
		copy(rows[i*d:(i+1)*d], x[int(c)/r.active*d:])
	}
}

// Combine adds to x, or writes there if add is not set, for each token what its experts answer, answers (entries x d), times the weights.
func (r *Routing) Combine(x, answers []float32, d int, add bool) {
	r.combine(x, answers, d, add, func(c int) float32 { return r.weights[c] })
}

func (r *Routing) combine(x, entries []float32, d int, add bool, weight func(choice int) float32) {
	rows(len(r.chosen)/max(1, r.active), func(lo, hi int) {
		for i := lo; i < hi; i++ {
			row := x[i*d : (i+1)*d]
			if !add {
				clear(row)
			}
			for c := i * r.active; c < (i+1)*r.active; c++ {
				at := int(r.places[c])
				AddScaled(row, entries[at*d:(at+1)*d], weight(c))
			}
		}
	})
}

// lay lays op of each expert's matrix that has entries out for products, n x k after op, in scratch memory.
func (r *Routing) lay(trans bool, n, k int, w []float32) (right []Packed, from *[]float32) {
	experts, size, ld := r.Experts(), panelFloats(n, k), n
	if trans {
		ld = k
	}
	right, from = make([]Packed, experts), take(experts*size)
	Parallel(experts, func(e int) {
		if r.starts[e+1] > r.starts[e] {
			right[e] = Packed{n, k, (*from)[e*size : (e+1)*size]}
			packAll(serially, right[e].data, trans, w[e*n*k:], ld, 0, k, 0, n, 1)
		}
	})
	return right, from
}

// ExpertsUp computes u (entries x out): for each entry its token's row of h (tokens x d) times W', the expert's of w
// (experts x out x d).
func (r *Routing) ExpertsUp(u, h, w []float32, out, d int) {
	right, from := r.lay(true, out, d, w)
	defer scratch.Put(from)
	r.Groups(func(e, lo, hi int) {
		x := take((hi - lo) * d)
		defer scratch.Put(x)
		r.Gather(*x, h, lo, hi, d)
		right[e].Mul(hi-lo, *x, d, false, u[lo*out:], out)
	})
}

// ExpertsUpBackward computes dh (tokens x d) from du (entries x out).
func (r *Routing) ExpertsUpBackward(dh, du, w []float32, out, d int) {
	right, from := r.lay(false, d, out, w)
	defer scratch.Put(from)
	dx := take(r.Entries() * d)
	defer scratch.Put(dx)
	r.Groups(func(e, lo, hi int) { right[e].Mul(hi-lo, du[lo*out:], out, false, (*dx)[lo*d:], d) })
	r.combine(dh, *dx, d, false, func(int) float32 { return 1 })
}

// ExpertsWeights computes dw (experts x m x n), the gradients of the experts' matrices: for each the sum over its entries of
// the outer products of rows of a (entries x m) and b (entries x n).
func (r *Routing) ExpertsWeights(dw, a, b []float32, m, n int) {
	Parallel(r.Experts(), func(e int) {
		lo, own := int(r.starts[e]), dw[e*m*n:(e+1)*m*n]
		entries := int(r.starts[e+1]) - lo
		if entries == 0 {
			clear(own)
			return
		}
		gemmSerial(true, false, m, n, entries, 1, a[lo*m:], m, b[lo*n:], n, 0, own, n)
	})
}

// ExpertsDown computes y (tokens x d): for each token the weighted sum over its entries of SwiGLU(u) W', for u entries x
// 2f and w experts x d x f.
func (r *Routing) ExpertsDown(y, u, w []float32, f, d int) {
	right, from := r.lay(true, d, f, w)
	defer scratch.Put(from)
	answers := take(r.Entries() * d)
	defer scratch.Put(answers)
	r.Groups(func(e, lo, hi int) {
		h := take((hi - lo) * f)
		defer scratch.Put(h)
		SwiGLU(*h, u[lo*2*f:], hi-lo, f)
		right[e].Mul(hi-lo, *h, f, false, (*answers)[lo*d:], d)
	})
	r.Combine(y, *answers, d, false)
}

// ExpertsDownBackward computes, from dy (tokens x d), du (entries x 2f), which may be u, the gradient at the weights of
// the entries, and what the experts' gradients are made of: rows (entries x d), those of dy that the entries go out from, and h (entries x f), SwiGLU(u)
// times the weights.
func (r *Routing) ExpertsDownBackward(du, dweights, rows, h, dy, u, w []float32, f, d int) {
	right, from := r.lay(false, f, d, w)
	defer scratch.Put(from)
	r.Groups(func(e, lo, hi int) {
		r.Gather(rows[lo*d:], dy, lo, hi, d)
		right[e].Mul(hi-lo, rows[lo*d:], d, false, h[lo*f:], f)
		unweighted := take((hi - lo) * f) // gradient at SwiGLU(u) if the weights were 1
		defer scratch.Put(unweighted)
		copy(*unweighted, h[lo*f:])
		for i := lo; i < hi; i++ {
			scale(h[i*f:(i+1)*f], r.weights[r.choices[i]])
		}
		SwiGLUBackward(du[lo*2*f:], h[lo*f:], u[lo*2*f:], hi-lo, f)
		for i := lo; i < hi; i++ {
			own := h[i*f : (i+1)*f]
			dweights[i] = Dot((*unweighted)[(i-lo)*f:(i-lo+1)*f], own)
			scale(own, r.weights[r.choices[i]])
		}
	})
}
