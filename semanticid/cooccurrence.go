package semanticid

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/floats"
	"gonum.org/v1/gonum/mat"

	"onerec/internal/kernels"
)

// Embedder learns item embeddings from which items are watched near each other, and from
// their attributes where there are some, for catalogues that bring no embeddings: shifted
// positive pointwise mutual information, factorised, which is what word2vec does
// implicitly (Levy and Goldberg, NIPS 2014).
//
// An attribute is one more node of the graph of what occurs together, which every item
// that has it stands beside: so items with common attributes are near each other, and an
// item that nobody has watched yet is near those that are like it.
type Embedder struct {
	Dim    int     // width of an embedding
	Window int     // items at most this many places apart occur together
	Shift  float64 // subtracted from the mutual information, nats: log of word2vec's negative samples
	// Attributes is how much an item's attributes weigh together, as a share of what its
	// neighbours weigh.
	Attributes float64
	MaxPairs   int // pairs that are kept at most; beyond that the rarest quarter is forgotten
	Seed       uint64

	items []string
	index map[string]int32
	pairs map[[2]int32]float64 // i < j: how often together, nearer counts more

	attributes map[string]int32 // to their number
	described  map[int32][]int32
}

// NewEmbedder returns an embedder that has seen nothing.
func NewEmbedder(dim, window int, seed uint64) *Embedder {
	return &Embedder{
		Dim: dim, Window: window, Attributes: 1, MaxPairs: 10_000_000, Seed: seed,
		index: make(map[string]int32), pairs: make(map[[2]int32]float64),
		attributes: make(map[string]int32), described: make(map[int32][]int32),
	}
}

func (e *Embedder) indexOf(item string) int32 {
	i, ok := e.index[item]
	if !ok {
		i = int32(len(e.items))
		e.index[item] = i
		e.items = append(e.items, item)
	}
	return i
}

// Add counts one sequence of items, in time order.
func (e *Embedder) Add(sequence []string) {
	at := make([]int32, len(sequence))
	for i, item := range sequence {
		at[i] = e.indexOf(item)
	}
	for i := range at {
		for j := i + 1; j < min(len(at), i+1+e.Window); j++ {
			if a, b := min(at[i], at[j]), max(at[i], at[j]); a != b {
				e.pairs[[2]int32{a, b}] += 1 / float64(j-i)
			}
		}
	}
	if len(e.pairs) > e.MaxPairs {
		e.forget()
	}
}

// Describe says what attributes an item has; the last call for an item counts.
func (e *Embedder) Describe(item string, attributes []string) {
	var of []int32
	for _, name := range attributes {
		a, ok := e.attributes[name]
		if !ok {
			a = int32(len(e.attributes))
			e.attributes[name] = a
		}
		if !slices.Contains(of, a) {
			of = append(of, a)
		}
	}
	e.described[e.indexOf(item)] = of
}

// forget drops the quarter of the pairs that were seen least.
func (e *Embedder) forget() {
	keys := slices.Collect(maps.Keys(e.pairs))
	slices.SortFunc(keys, func(a, b [2]int32) int {
		return cmp.Or(cmp.Compare(e.pairs[a], e.pairs[b]), slices.Compare(a[:], b[:]))
	})
	for _, k := range keys[:max(1, len(keys)/4)] {
		delete(e.pairs, k)
	}
}

// Items returns the items in the order in which they were first seen.
func (e *Embedder) Items() []string { return slices.Clone(e.items) }

// Embed returns an embedding of unit length for each item of Items (n x Dim); an item
// that occurs with no other, and shares no attribute with one, has zeros.
//
// The matrix is symmetric and sparse; its leading eigenvectors come from a
// randomised range finder with power iterations (Halko, Martinsson and Tropp,
// SIAM Review 2011, algorithm 4.4).
func (e *Embedder) Embed() ([]float32, error) { return e.embed(nil) }

// Embeddings is Embed without the items of which nothing is known.
func (e *Embedder) Embeddings() (*Embeddings, error) {
	return e.Refresh(&Embeddings{Dim: e.Dim})
}

// Refresh returns the embeddings of what was seen since, beside old ones: those of the
// same items are turned towards the old ones as near as a rotation brings them (orthogonal
// Procrustes; Schönemann, Psychometrika 1966), so that a codebook that was built over the
// old ones still fits, and old items that were not seen keep theirs. Items of which
// nothing is known are left out. The search for eigenvectors starts from the old
// embeddings and needs one power iteration instead of three.
func (e *Embedder) Refresh(old *Embeddings) (*Embeddings, error) {
	if old.Dim != e.Dim {
		return nil, fmt.Errorf("refresh embeddings: the old ones have width %d, the new ones %d", old.Dim, e.Dim)
	}
	x, err := e.embed(old)
	if err != nil {
		return nil, fmt.Errorf("refresh embeddings: %w", err)
	}
	d := e.Dim
	known := func(i int) bool { return slices.ContainsFunc(x[i*d:(i+1)*d], func(v float32) bool { return v != 0 }) }
	var was, is []float64
	for at, item := range old.Items {
		if i, ok := e.index[item]; ok && known(int(i)) {
			for j := range d {
				was = append(was, float64(old.X[at*d+j]))
				is = append(is, float64(x[int(i)*d+j]))
			}
		}
	}
	if len(was) > 0 {
		var cross, turn mat.Dense
		cross.Mul(mat.NewDense(len(is)/d, d, is).T(), mat.NewDense(len(was)/d, d, was))
		var svd mat.SVD
		if !svd.Factorize(&cross, mat.SVDFull) {
			return nil, errors.New("refresh embeddings: the rotation onto the old ones did not converge")
		}
		var u, v mat.Dense
		svd.UTo(&u)
		svd.VTo(&v)
		turn.Mul(&u, v.T())
		rotation := make([]float32, d*d)
		for i := range rotation {
			rotation[i] = float32(turn.At(i/d, i%d))
		}
		turned := make([]float32, len(x))
		kernels.Gemm(false, false, len(x)/d, d, d, 1, x, d, rotation, d, 0, turned, d)
		for i := range len(x) / d {
			if known(i) { // else rounding
				copy(x[i*d:(i+1)*d], turned[i*d:(i+1)*d])
			}
		}
	}
	out := &Embeddings{Dim: d, known: make(map[string]bool, len(e.items))}
	for at, item := range old.Items { // in their order: it is that of a codebook
		row := old.X[at*d : (at+1)*d]
		if i, ok := e.index[item]; ok && known(int(i)) {
			row = x[int(i)*d : (int(i)+1)*d]
		}
		out.append(item, row)
	}
	for i, item := range e.items {
		if !out.known[item] && known(i) {
			out.append(item, x[i*d:(i+1)*d])
		}
	}
	return out, nil
}

// embed starts from old embeddings, if there are some.
func (e *Embedder) embed(old *Embeddings) ([]float32, error) {
	n := len(e.items)
	if n == 0 {
		return nil, errors.New("learn embeddings: no items were seen")
	}
	const oversample = 10
	m := e.information()
	width := min(e.Dim+oversample, m.n)
	rng := rand.New(rand.NewPCG(e.Seed, 0x0c0cc))
	y := mat.NewDense(m.n, width, nil)
	for i := range m.n {
		for j := range width {
			y.Set(i, j, rng.NormFloat64())
		}
	}
	powers := 3
	if old != nil && len(old.Items) > 0 {
		powers = 1
		for at, item := range old.Items {
			if i, ok := e.index[item]; ok {
				for j := range min(e.Dim, width) {
					y.Set(int(i), j, float64(old.X[at*e.Dim+j])*math.Sqrt(float64(m.n)))
				}
			}
		}
	}
	for range powers {
		y = orthonormal(m.times(y))
	}
	// The matrix within the subspace, small and symmetric.
	var small mat.Dense
	small.Mul(y.T(), m.times(y))
	sym := mat.NewSymDense(width, nil)
	for i := range width {
		for j := i; j < width; j++ {
			sym.SetSym(i, j, (small.At(i, j)+small.At(j, i))/2)
		}
	}
	var eigen mat.EigenSym
	if !eigen.Factorize(sym, true) {
		return nil, fmt.Errorf("learn embeddings: the eigenvalues of %d items did not converge", n)
	}
	values := eigen.Values(nil)
	var vectors, full mat.Dense
	eigen.VectorsTo(&vectors)
	full.Mul(y, &vectors)
	order := make([]int, width)
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(values[b], values[a]) })
	out := make([]float32, n*e.Dim)
	for j := range min(e.Dim, width) {
		scale := math.Sqrt(max(values[order[j]], 0))
		for i := range n {
			out[i*e.Dim+j] = float32(full.At(i, order[j]) * scale)
		}
	}
	for i := range n {
		row := out[i*e.Dim : (i+1)*e.Dim]
		if norm := math.Sqrt(float64(kernels.Dot(row, row))); norm > 1e-6 {
			for j := range row {
				row[j] /= float32(norm)
			}
		} else {
			clear(row)
		}
	}
	return out, nil
}

// sparse is a symmetric matrix by compressed rows.
type sparse struct {
	n       int
	starts  []int32 // n+1
	columns []int32
	values  []float64
}

// information returns, for items and after them attributes, log(p(i,j) / (p(i) p(j)^0.75))
// less the shift, where it is positive; the exponent keeps rare items from dominating (Levy,
// Goldberg and Dagan, TACL 2015).
func (e *Embedder) information() sparse {
	items := len(e.items)
	n := items + len(e.attributes)
	type together struct {
		i, j   int32
		weight float64
	}
	all := make([]together, 0, len(e.pairs))
	for k, weight := range e.pairs {
		all = append(all, together{k[0], k[1], weight})
	}
	order := func(a, b together) int { return cmp.Or(cmp.Compare(a.i, b.i), cmp.Compare(a.j, b.j)) }
	slices.SortFunc(all, order)
	count, smooth := make([]float64, n), make([]float64, n)
	for _, t := range all {
		count[t.i] += t.weight
		count[t.j] += t.weight
	}
	if e.Attributes > 0 {
		watched := len(all)
		for i := range int32(items) { // an item that was never watched counts like one seen once
			for _, a := range e.described[i] {
				all = append(all, together{i, int32(items) + a, e.Attributes * (count[i] + 1) / float64(len(e.described[i]))})
			}
		}
		for _, t := range all[watched:] {
			count[t.i] += t.weight
			count[t.j] += t.weight
		}
		slices.SortFunc(all, order)
	}
	var totalSmooth float64
	for i, c := range count {
		smooth[i] = math.Pow(c, 0.75)
		totalSmooth += smooth[i]
	}
	m := sparse{n: n, starts: make([]int32, n+1)}
	kept := all[:0]
	for _, t := range all {
		a := math.Log(t.weight * totalSmooth / (count[t.i] * smooth[t.j]))
		b := math.Log(t.weight * totalSmooth / (count[t.j] * smooth[t.i]))
		if t.weight = (a+b)/2 - e.Shift; t.weight > 0 {
			kept = append(kept, t)
			m.starts[t.i+1]++
			m.starts[t.j+1]++
		}
	}
	for i := range n {
		m.starts[i+1] += m.starts[i]
	}
	m.columns, m.values = make([]int32, m.starts[n]), make([]float64, m.starts[n])
	next := slices.Clone(m.starts)
	for _, t := range kept {
		for _, side := range [2][2]int32{{t.i, t.j}, {t.j, t.i}} {
			at := next[side[0]]
			m.columns[at], m.values[at] = side[1], t.weight
			next[side[0]]++
		}
	}
	return m
}

// times is the product with x (n x width).
func (m sparse) times(x *mat.Dense) *mat.Dense {
	_, width := x.Dims()
	y := mat.NewDense(m.n, width, nil)
	const chunk = 256
	kernels.Parallel((m.n+chunk-1)/chunk, func(part int) {
		for i := part * chunk; i < min((part+1)*chunk, m.n); i++ {
			dst := y.RawRowView(i)
			for at := m.starts[i]; at < m.starts[i+1]; at++ {
				floats.AddScaled(dst, m.values[at], x.RawRowView(int(m.columns[at])))
			}
		}
	})
	return y
}

// orthonormal returns an orthonormal basis of y's columns (n x width): Gram and Schmidt,
// modified, twice, which is as good as rounding allows. Columns that depend on those
// before them become zero.
func orthonormal(y *mat.Dense) *mat.Dense {
	n, width := y.Dims()
	columns := make([][]float64, width)
	for j := range columns {
		columns[j] = mat.Col(nil, j, y)
	}
	for range 2 {
		for j, c := range columns {
			before := floats.Norm(c, 2)
			for _, earlier := range columns[:j] {
				floats.AddScaled(c, -floats.Dot(earlier, c), earlier)
			}
			if after := floats.Norm(c, 2); after > 1e-12*before {
				floats.Scale(1/after, c)
			} else {
				clear(c)
			}
		}
	}
	q := mat.NewDense(n, width, nil)
	for j, c := range columns {
		q.SetCol(j, c)
	}
	return q
}
