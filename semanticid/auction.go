package semanticid

import (
	"math"
	"slices"

	"onerec/internal/kernels"
)

// listed is how many clusters a row looks at before it looks at all of them.
const listed = 48

// patience is how many bids a row makes, in the mean, before epsilon doubles.
const patience = 8

// blockFloats bounds the block of the distance matrix that is in memory at a time.
const blockFloats = 1 << 21

// auction assigns rows to clusters of given sizes at the least sum of squared
// distances, nearly: Bertsekas' auction for the transportation problem (Bertsekas and
// Castañon, Annals of OR 20, 1989).
//
// Clusters have prices. A row without a cluster bids for the one that costs it least,
// distance and price together: it offers so much more that it would be as content with
// its second choice, plus epsilon. A cluster that is full gives up its lowest bidder,
// whose bid becomes its price. In the end every row is within epsilon of its cheapest
// cluster at the final prices, so that the mean distance is within epsilon of the least
// that any assignment with these sizes has.
//
// A row keeps a list of its cheapest clusters. Prices only rise, so that what was not
// cheap enough for the list can't become cheaper than the list's end was; only when
// the best listed one costs more than that are all clusters looked at again. So the
// n x k distances need not be kept.
type auction struct {
	x, centroids []float32 // n x dim, k x dim
	n, dim, k    int
	norms        []float32 // |c|^2
	// home is a cluster that is cheaper by stick for each row, or noRow; nil: there are none.
	home  []int32
	stick float32

	width    int       // of a list
	clusters []uint16  // n x width
	dists    []float32 // n x width: |c|^2 - 2 x.c; |x|^2 would change nothing
	ends     []float64 // n: no cluster that is not listed costs less

	prices []float64 // kept from one call to the next: the next centroids are near these
	held   [][]bid   // by cluster, a heap: lowest bid first
	bonus  []bool    // the cluster holds one row more than the least size

	assign []int32   // n
	dist   []float32 // n: of the row's cluster
	waits  []int32   // rows without a cluster
	row    []float32 // scratch of look
}

type bid struct {
	price float64
	row   int32
}

// newAuction returns an auction for n rows. It keeps no reference to data of callers
// but x.
func newAuction(x []float32, n, dim, k int) *auction {
	a := &auction{
		x: x, n: n, dim: dim, k: k, norms: make([]float32, k), width: min(k, listed),
		prices: make([]float64, k), held: make([][]bid, k), bonus: make([]bool, k),
		assign: make([]int32, n), dist: make([]float32, n), ends: make([]float64, n), row: make([]float32, k),
	}
	a.clusters, a.dists = make([]uint16, n*a.width), make([]float32, n*a.width)
	bids := make([]bid, n+k)
	for c := range a.held {
		room := n/k + 1
		a.held[c] = bids[c*n/k+c:][:0:min(room, len(bids)-c*n/k-c)]
	}
	return a
}

// run assigns every row, with centroids (k x dim) as they are now. The clusters' sizes
// differ by at most one. Where prices have to rise far, because many rows want what few
// can have, small steps would take for ever: so epsilon doubles after every patience
// bids a row, and what it was in the end is returned.
func (a *auction) run(centroids []float32, epsilon float64) float64 {
	a.centroids = centroids
	for c := range a.norms {
		row := a.centroid(int32(c))
		a.norms[c] = kernels.Dot(row, row)
	}
	lowest := slices.Min(a.prices)
	for c := range a.prices {
		if a.prices[c] -= lowest; math.IsInf(a.prices[c], 0) || math.IsNaN(a.prices[c]) {
			a.prices[c] = 0
		}
		a.held[c], a.bonus[c] = a.held[c][:0], false
	}
	a.list()
	size, extra := a.n/a.k, a.n%a.k
	a.waits = a.waits[:0]
	for i := a.n - 1; i >= 0; i-- {
		a.waits = append(a.waits, int32(i))
	}
	for bids := 1; len(a.waits) > 0; bids++ {
		if bids%(patience*a.n) == 0 {
			epsilon *= 2
		}
		i := a.waits[len(a.waits)-1]
		a.waits = a.waits[:len(a.waits)-1]
		at, best, second := a.choose(i)
		if best > a.ends[i] {
			a.look(i)
			at, best, second = a.choose(i)
		}
		second = min(second, a.ends[i])
		if math.IsInf(second, 0) { // one cluster alone has room: any bid wins
			second = best
		}
		c := a.clusters[int(i)*a.width+at]
		a.assign[i], a.dist[i] = int32(c), a.dists[int(i)*a.width+at]
		offer := bid{a.prices[c] + second - best + epsilon, i}
		capacity := size
		switch {
		case a.bonus[c]:
			capacity++
		case len(a.held[c]) == size && extra > 0:
			a.bonus[c] = true
			capacity++
			if extra--; extra == 0 && size == 0 { // what is empty stays so
				for other := range a.prices {
					if !a.bonus[other] {
						a.prices[other] = math.Inf(1)
					}
				}
			}
		}
		if len(a.held[c]) < capacity {
			push(&a.held[c], offer)
		} else {
			a.waits = append(a.waits, replace(a.held[c], offer))
		}
		if len(a.held[c]) == capacity && (a.bonus[c] || extra == 0) {
			a.prices[c] = max(a.prices[c], a.held[c][0].price)
		}
	}
	return epsilon
}

func (a *auction) atHome(i, c int32) bool { return a.home != nil && a.home[i] == c }

func (a *auction) centroid(c int32) []float32 {
	return a.centroids[int(c)*a.dim : (int(c)+1)*a.dim]
}

// choose returns the place in row i's list of the cheapest cluster, what it costs, and
// what the next one does.
func (a *auction) choose(i int32) (at int, best, second float64) {
	best, second = math.Inf(1), math.Inf(1)
	from := int(i) * a.width
	for j, c := range a.clusters[from : from+a.width] {
		switch cost := float64(a.dists[from+j]) + a.prices[c]; {
		case cost < best:
			at, best, second = j, cost, best
		case cost < second:
			second = cost
		}
	}
	return at, best, second
}

// list fills every row's list.
func (a *auction) list() {
	base := make([]float32, a.k)
	for c := range base {
		base[c] = a.norms[c] + float32(a.prices[c])
	}
	rows := max(1, blockFloats/a.k)
	block := make([]float32, min(rows, a.n)*a.k)
	const chunk = 64
	for from := 0; from < a.n; from += rows {
		m := min(rows, a.n-from)
		costs := block[:m*a.k]
		for i := range m {
			copy(costs[i*a.k:], base)
		}
		kernels.Gemm(false, true, m, a.k, a.dim, -2, a.x[from*a.dim:], a.dim, a.centroids, a.dim, 1, costs, a.k)
		kernels.Parallel((m+chunk-1)/chunk, func(part int) {
			for i := part * chunk; i < min((part+1)*chunk, m); i++ {
				if a.home != nil && a.home[from+i] != noRow {
					costs[i*a.k+int(a.home[from+i])] -= a.stick
				}
				a.take(from+i, costs[i*a.k:(i+1)*a.k])
			}
		})
	}
}

// look fills row i's list again, at the present prices.
func (a *auction) look(i int32) {
	x := a.x[int(i)*a.dim : (int(i)+1)*a.dim]
	kernels.MatVec(a.row, a.centroids, a.k, a.dim, a.dim, x)
	for c, product := range a.row {
		a.row[c] = a.norms[c] - 2*product + float32(a.prices[c])
	}
	if a.home != nil && a.home[i] != noRow {
		a.row[a.home[i]] -= a.stick
	}
	a.take(int(i), a.row)
}

// take makes the list of row i from what every cluster costs it: the width least, in no
// certain order.
func (a *auction) take(i int, costs []float32) {
	at := i * a.width
	list, dists := a.clusters[at:at+a.width], a.dists[at:at+a.width]
	var least [2 * listed]costing
	n, limit := 0, float32(math.Inf(1))
	for c, cost := range costs {
		if cost >= limit {
			continue
		}
		least[n] = costing{cost, uint16(c)}
		if n++; n == len(least) {
			limit = selectLeast(least[:], a.width)
			n = a.width
		}
	}
	a.ends[i] = math.Inf(1)
	if a.width < a.k {
		for c := 0; n < a.width; c++ { // infinite costs that the loop passed over
			if math.IsInf(float64(costs[c]), 1) {
				least[n] = costing{costs[c], uint16(c)}
				n++
			}
		}
		a.ends[i] = float64(selectLeast(least[:n], a.width))
	} else {
		for c, cost := range costs {
			least[c] = costing{cost, uint16(c)}
		}
	}
	for j := range list {
		c, cost := least[j].cluster, least[j].cost
		list[j] = c
		if dists[j] = cost - float32(a.prices[c]); math.IsInf(a.prices[c], 0) {
			if dists[j] = a.norms[c] - 2*kernels.Dot(a.x[i*a.dim:(i+1)*a.dim], a.centroid(int32(c))); a.atHome(int32(i), int32(c)) {
				dists[j] -= a.stick
			}
		}
	}
}

type costing struct {
	cost    float32
	cluster uint16
}

// selectLeast moves the n least to the front (Hoare's selection) and returns the greatest
// of them.
func selectLeast(s []costing, n int) float32 {
	for from, to := 0, len(s)-1; from < to; {
		pivot := s[(from+to)/2].cost
		i, j := from, to
		for i <= j {
			for s[i].cost < pivot {
				i++
			}
			for pivot < s[j].cost {
				j--
			}
			if i <= j {
				s[i], s[j] = s[j], s[i]
				i++
				j--
			}
		}
		switch {
		case n-1 <= j:
			to = j
		case n-1 >= i:
			from = i
		default:
			from = to
		}
	}
	greatest := s[0].cost
	for _, e := range s[1:n] {
		greatest = max(greatest, e.cost)
	}
	return greatest
}

// push and replace keep a cluster's bids a heap, ties by row.

func (b bid) below(o bid) bool { return b.price < o.price || b.price == o.price && b.row < o.row }

func push(h *[]bid, b bid) {
	s := append(*h, b)
	i := len(s) - 1
	for i > 0 && b.below(s[(i-1)/2]) {
		s[i] = s[(i-1)/2]
		i = (i - 1) / 2
	}
	s[i] = b
	*h = s
}

// replace puts b in the place of the lowest bid, or lets it lose at once, and returns
// the row that has no cluster now.
func replace(s []bid, b bid) int32 {
	if len(s) == 0 || b.below(s[0]) {
		return b.row
	}
	lost := s[0].row
	i := 0
	for {
		child := 2*i + 1
		if child >= len(s) {
			break
		}
		if child+1 < len(s) && s[child+1].below(s[child]) {
			child++
		}
		if !s[child].below(b) {
			break
		}
		s[i] = s[child]
		i = child
	}
	s[i] = b
	return lost
}
