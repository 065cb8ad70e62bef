package semanticid

import (
	"math"
)

// Quality says what a level of a codebook is worth.
type Quality struct {
	Level      int     // from 1
	Distortion float64 // mean squared distance of an item from the sum of its centroids so far
	Share      float64 // of the embeddings' variance that is left
	Smallest   int     // items of the smallest code, and of the largest
	Largest    int
	Entropy    float64 // of the codes' sizes, bits; log2 of the number of codes if they are equal
	Prefixes   int     // different prefixes up to this level
}

// Quality measures every level on the embeddings of the codebook's items (Len x width).
func (c *Codebook) Quality(x []float32) []Quality {
	n, dim := len(c.items), c.dim
	residual := append([]float32(nil), x[:n*dim]...)
	var group []int32
	out := make([]Quality, c.levels)
	variance := varianceOf(x, n, dim)
	assign := make([]int32, n)
	for l := range out {
		sizes := make([]int, c.codes)
		for i := range n {
			assign[i] = int32(c.ID(int32(i))[l])
			sizes[assign[i]]++
			centroid := c.centroids[(l*c.codes+int(assign[i]))*dim:]
			for j, row := 0, residual[i*dim:(i+1)*dim]; j < dim; j++ {
				row[j] -= centroid[j]
			}
		}
		q := Quality{Level: l + 1, Distortion: squaresOf(residual, n, dim), Smallest: n}
		if variance > 0 {
			q.Share = q.Distortion / variance
		}
		for _, s := range sizes {
			q.Smallest, q.Largest = min(q.Smallest, s), max(q.Largest, s)
			if s > 0 {
				p := float64(s) / float64(n)
				q.Entropy -= p * math.Log2(p)
			}
		}
		group, q.Prefixes = refine(group, assign)
		out[l] = q
	}
	return out
}

// varianceOf is the mean squared distance from the mean.
func varianceOf(x []float32, n, dim int) float64 {
	mean := make([]float32, dim)
	meansOf(mean, x, make([]int32, n), n, dim, 1)
	return distortion(x, mean, make([]int32, n), n, dim)
}

// Purity is the share of items that have the commonest attribute of their prefix of so
// many codes, over prefixes of more than one item with attributes. Compare it with the
// same codebook's whose items are shuffled: that is what chance gives.
func (c *Codebook) Purity(codes int, attributes func(item string) []string) float64 {
	type prefix struct {
		items int
		with  map[string]int
	}
	prefixes := make(map[string]*prefix)
	for i, item := range c.items {
		has := attributes(item)
		if len(has) == 0 {
			continue
		}
		key := idKey(c.ID(int32(i))[:codes])
		p := prefixes[key]
		if p == nil {
			p = &prefix{with: make(map[string]int)}
			prefixes[key] = p
		}
		p.items++
		for _, a := range has {
			p.with[a]++
		}
	}
	var common, all int
	for _, p := range prefixes {
		if p.items < 2 {
			continue
		}
		most := 0
		for _, n := range p.with {
			most = max(most, n)
		}
		common, all = common+most, all+p.items
	}
	if all == 0 {
		return 0
	}
	return float64(common) / float64(all)
}
