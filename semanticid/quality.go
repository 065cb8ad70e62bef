package semanticid

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
)

// Quality says what a level of a codebook is worth.
type Quality struct {
	Level      int     `json:"level"`         // from 1
	Distortion float64 `json:"distortion"`    // mean squared distance of an item from the sum of its centroids so far
	Share      float64 `json:"variance_left"` // of the embeddings' variance that is left
	Smallest   int     `json:"smallest"`      // items of the smallest code, and of the largest
	Largest    int     `json:"largest"`
	Entropy    float64 `json:"entropy_bits"` // of the codes' sizes, bits; log2 of the number of codes if they are equal
	Prefixes   int     `json:"prefixes"`     // different prefixes up to this level
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

// Neighbour is an item and how many first codes it shares with another.
type Neighbour struct {
	Item  int32
	Codes int
}

// Neighbours returns the n items that share most first codes with the item at index i.
// Items that share none are no neighbours.
func (c *Codebook) Neighbours(i int32, n int) []Neighbour {
	id := c.ID(i)
	by := make([][]int32, c.levels+1) // the first n by codes in common
	for j := range int32(len(c.items)) {
		common := 0
		for other := c.ID(j); common < c.levels && id[common] == other[common]; {
			common++
		}
		if j != i && common > 0 && len(by[common]) < n {
			by[common] = append(by[common], j)
		}
	}
	var out []Neighbour
	for common := c.levels; common > 0; common-- {
		for _, j := range by[common] {
			if len(out) < n {
				out = append(out, Neighbour{j, common})
			}
		}
	}
	return out
}

// Shuffled returns the codebook with its IDs given to items at random: the control that
// a figure of a codebook is compared with.
func (c *Codebook) Shuffled(seed uint64) *Codebook {
	d := c.Clone()
	r := rand.New(rand.NewPCG(seed, 0x5bff))
	r.Shuffle(len(d.items), func(i, j int) { d.items[i], d.items[j] = d.items[j], d.items[i] })
	for i, item := range d.items {
		d.index[item] = int32(i)
	}
	return d
}

// Align returns the embeddings of the codebook's items in their order (Len x width).
func (c *Codebook) Align(e *Embeddings) ([]float32, error) {
	if e.Dim != c.dim {
		return nil, fmt.Errorf("the embeddings have width %d, the codebook %d", e.Dim, c.dim)
	}
	x, seen := make([]float32, len(c.items)*c.dim), 0
	for i, item := range e.Items {
		if at, ok := c.index[item]; ok {
			copy(x[int(at)*c.dim:int(at+1)*c.dim], e.X[i*c.dim:])
			seen++
		}
	}
	if seen < len(c.items) {
		return nil, fmt.Errorf("%d of the codebook's %d items have no embedding in the file", len(c.items)-seen, len(c.items))
	}
	return x, nil
}

// Drift compares new items with those for which a codebook was built.
type Drift struct {
	New           int     `json:"new_items"`      // that got IDs
	Old           int     `json:"old_items"`      // that had some
	NewDistortion float64 `json:"new_distortion"` // mean squared distance from the sum of an item's centroids
	OldDistortion float64 `json:"old_distortion"`
	Displaced     float64 `json:"displaced"` // share of the new ones whose nearest code path was not free
}

// AssignAll gives IDs to all items of e that have none, in their order, and tells how well
// they fit. Old items keep theirs.
func (c *Codebook) AssignAll(e *Embeddings) (Drift, error) {
	var d Drift
	if e.Dim != c.dim {
		return d, fmt.Errorf("the embeddings have width %d, the codebook %d", e.Dim, c.dim)
	}
	displaced := 0
	for i, item := range e.Items {
		x := e.X[i*c.dim : (i+1)*c.dim]
		if at, old := c.index[item]; old {
			d.Old++
			d.OldDistortion += c.distance(x, c.ID(at))
			continue
		}
		nearest, err := c.Assign(item, x)
		if err != nil {
			return d, err
		}
		d.New++
		d.NewDistortion += c.distance(x, c.ID(c.index[item]))
		if !nearest {
			displaced++
		}
	}
	d.NewDistortion /= float64(max(d.New, 1))
	d.OldDistortion /= float64(max(d.Old, 1))
	d.Displaced = float64(displaced) / float64(max(d.New, 1))
	return d, nil
}

// distance is that of x from the sum of an ID's centroids, squared.
func (c *Codebook) distance(x []float32, id []uint16) float64 {
	rest := slices.Clone(x)
	for l, code := range id {
		c.subtract(rest, l, code)
	}
	return squaresOf(rest, 1, c.dim)
}

func (c *Codebook) subtract(x []float32, level int, code uint16) {
	centroid := c.centroids[(level*c.codes+int(code))*c.dim:]
	for j := range x {
		x[j] -= centroid[j]
	}
}

// nearest is the ID that x would have if all were free.
func (c *Codebook) nearest(x []float32) []uint16 {
	rest, id := slices.Clone(x), make([]uint16, c.levels)
	for l := range id {
		best := math.Inf(1)
		for code := range c.codes {
			at := (l*c.codes + code) * c.dim
			if d := squaredDistance(rest, c.centroids[at:at+c.dim]); d < best {
				best, id[l] = d, uint16(code)
			}
		}
		c.subtract(rest, l, id[l])
	}
	return id
}
