package semanticid

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/floats"
	"gonum.org/v1/gonum/mat"

	"onerec/internal/kernels"
)

// Embedder learns item embeddings from which items are watched near each other,
// for catalogues that bring none: positive pointwise mutual information,
// factorised, which is what word2vec does implicitly (Levy and Goldberg, NIPS
// 2014).
type Embedder struct {
	Dim    int // width of an embedding
	Window int // items at most this many places apart occur together
	Seed   uint64

	items []string
	index map[string]int32
	pairs map[[2]int32]float64 // i < j: how often together, nearer counts more
}

// NewEmbedder returns an embedder that has seen nothing.
func NewEmbedder(dim, window int, seed uint64) *Embedder {
	return &Embedder{Dim: dim, Window: window, Seed: seed, index: make(map[string]int32), pairs: make(map[[2]int32]float64)}
}

// Add counts one sequence of items, in time order.
func (e *Embedder) Add(sequence []string) {
	at := make([]int32, len(sequence))
	for i, item := range sequence {
		id, ok := e.index[item]
		if !ok {
			id = int32(len(e.items))
			e.index[item] = id
			e.items = append(e.items, item)
		}
		at[i] = id
	}
	for i := range at {
		for j := i + 1; j < min(len(at), i+1+e.Window); j++ {
			if a, b := min(at[i], at[j]), max(at[i], at[j]); a != b {
				e.pairs[[2]int32{a, b}] += 1 / float64(j-i)
			}
		}
	}
}

// Items returns the items in the order in which they were first seen.
func (e *Embedder) Items() []string { return slices.Clone(e.items) }

type entry struct {
	row, col int32
	value    float64
}

// Embed returns an embedding of unit length for each item of Items (n x Dim);
// an item that occurs with no other has zeros.
//
// The matrix is symmetric and sparse; its leading eigenvectors come from a
// randomised range finder with power iterations (Halko, Martinsson and Tropp,
// SIAM Review 2011, algorithm 4.4).
func (e *Embedder) Embed() ([]float32, error) {
	n := len(e.items)
	if n == 0 {
		return nil, errors.New("learn embeddings: no items were seen")
	}
	entries := e.ppmi()
	const oversample, powers = 10, 3
	width := min(e.Dim+oversample, n)
	rng := rand.New(rand.NewPCG(e.Seed, 0x0c0cc))
	y := mat.NewDense(n, width, nil)
	for i := range n {
		for j := range width {
			y.Set(i, j, rng.NormFloat64())
		}
	}
	for range powers {
		y = orthonormal(multiply(entries, y))
	}
	// The matrix within the subspace, small and symmetric.
	var small mat.Dense
	small.Mul(y.T(), multiply(entries, y))
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
	slices.SortFunc(order, func(a, b int) int {
		if values[a] > values[b] {
			return -1
		}
		return 1
	})
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

// ppmi returns log(p(i,j) / (p(i) p(j)^0.75)) where it is positive; the exponent
// keeps rare items from dominating (Levy, Goldberg and Dagan, TACL 2015).
func (e *Embedder) ppmi() []entry {
	n := len(e.items)
	count, smooth := make([]float64, n), make([]float64, n)
	var total, totalSmooth float64
	keys := make([][2]int32, 0, len(e.pairs))
	for k := range e.pairs {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b [2]int32) int { return slices.Compare(a[:], b[:]) })
	for _, k := range keys {
		c := e.pairs[k]
		count[k[0]] += c
		count[k[1]] += c
		total += 2 * c
	}
	for i, c := range count {
		smooth[i] = math.Pow(c, 0.75)
		totalSmooth += smooth[i]
	}
	var entries []entry
	for _, k := range keys {
		c := e.pairs[k]
		a := math.Log(c * totalSmooth / (count[k[0]] * smooth[k[1]]))
		b := math.Log(c * totalSmooth / (count[k[1]] * smooth[k[0]]))
		if v := (a + b) / 2; v > 0 {
			entries = append(entries, entry{k[0], k[1], v}, entry{k[1], k[0], v})
		}
	}
	return entries
}

func multiply(entries []entry, x *mat.Dense) *mat.Dense {
	n, width := x.Dims()
	y := mat.NewDense(n, width, nil)
	for _, e := range entries {
		src, dst := x.RawRowView(int(e.col)), y.RawRowView(int(e.row))
		for j, v := range src {
			dst[j] += e.value * v
		}
	}
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
