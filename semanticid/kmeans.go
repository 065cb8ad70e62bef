package semanticid

import (
	"container/heap"
	"context"
	"math"
	"math/rand/v2"

	"onerec/internal/kernels"
)

const (
	maxIterations = 25
	tolerance     = 1e-4 // relative change of distortion that ends the iterations
	swapPasses    = 3
)

// balancedKMeans partitions n rows of x (width dim) into k clusters whose sizes
// differ by at most one, after OneRec's balanced k-means (arXiv 2502.18965,
// algorithm 1). Where the paper fills one cluster after the other with its
// nearest rows, rows are assigned in order of regret: the row that loses most by
// not getting its nearest free cluster goes first, and swaps of two rows mend
// what greed did wrong. It returns each row's cluster, the centroids (k x dim)
// and the distances it ended with (n x k, squared, without |x|^2).
func balancedKMeans(ctx context.Context, x []float32, n, dim, k int, rng *rand.Rand) (assign []int32, centroids, dist []float32, err error) {
	centroids = seedPlusPlus(x, n, dim, k, rng)
	dist = make([]float32, n*k)
	last := math.Inf(1)
	for range maxIterations {
		if err := ctx.Err(); err != nil {
			return nil, nil, nil, err
		}
		distances(dist, x, centroids, n, dim, k)
		assign = assignBalanced(dist, n, k)
		swap(assign, dist, n, k, nil)
		meansOf(centroids, x, assign, n, dim, k)
		d := distortion(x, centroids, assign, n, dim)
		if last-d <= tolerance*last {
			break
		}
		last = d
	}
	distances(dist, x, centroids, n, dim, k)
	return assign, centroids, dist, nil
}

// seedPlusPlus draws the first centroids as k-means++ does (Arthur and
// Vassilvitskii, SODA 2007): each with probability proportional to its squared
// distance from those drawn before.
func seedPlusPlus(x []float32, n, dim, k int, rng *rand.Rand) []float32 {
	c := make([]float32, k*dim)
	near := make([]float64, n)
	for i := range near {
		near[i] = math.Inf(1)
	}
	pick := rng.IntN(n)
	for j := range k {
		copy(c[j*dim:(j+1)*dim], x[pick*dim:])
		var sum float64
		for i := range near {
			near[i] = min(near[i], squaredDistance(x[i*dim:(i+1)*dim], c[j*dim:(j+1)*dim]))
			sum += near[i]
		}
		pick = rng.IntN(n) // if all rows are drawn already
		if sum > 0 {
			at := rng.Float64() * sum
			for i, d := range near {
				if at -= d; at < 0 {
					pick = i
					break
				}
			}
		}
	}
	return c
}

func squaredDistance(a, b []float32) float64 {
	var s float32
	for i, v := range a {
		d := v - b[i]
		s += d * d
	}
	return float64(s)
}

// distances fills dist (n x k) with |c|^2 - 2 x.c; |x|^2 would change nothing.
func distances(dist, x, c []float32, n, dim, k int) {
	norms := make([]float32, k)
	for j := range norms {
		row := c[j*dim : (j+1)*dim]
		norms[j] = kernels.Dot(row, row)
	}
	for i := range n {
		copy(dist[i*k:(i+1)*k], norms)
	}
	kernels.Gemm(false, true, n, k, dim, -2, x, dim, c, dim, 1, dist, k)
}

// assignBalanced gives each row the nearest cluster that still has room, in
// order of regret. The first n mod k clusters to fill hold one row more.
func assignBalanced(dist []float32, n, k int) []int32 {
	assign := make([]int32, n)
	if k == 1 {
		return assign
	}
	size, extra := n/k, n%k
	count := make([]int, k)
	full := make([]bool, k)
	if size == 0 { // fewer rows than clusters: every cluster takes at most one
		size, extra = 1, 0
	}
	best := make([]int32, n)
	second := make([]int32, n)
	look := func(i int) float32 {
		row := dist[i*k : (i+1)*k]
		b, s := int32(-1), int32(-1)
		for j, d := range row {
			switch {
			case full[j]:
			case b < 0 || d < row[b]:
				b, s = int32(j), b
			case s < 0 || d < row[s]:
				s = int32(j)
			}
		}
		best[i], second[i] = b, s
		if s < 0 {
			return 0
		}
		return row[s] - row[b]
	}
	h := make(regretHeap, n)
	for i := range h {
		h[i] = regret{look(i), int32(i)}
	}
	heap.Init(&h)
	for len(h) > 0 {
		i := h[0].row
		if full[best[i]] || second[i] >= 0 && full[second[i]] {
			h[0].value = look(int(i))
			heap.Fix(&h, 0)
			continue
		}
		heap.Pop(&h)
		c := best[i]
		assign[i] = c
		count[c]++
		switch {
		case count[c] > size:
			full[c] = true
			if extra--; extra == 0 {
				for j := range count { // no more larger clusters
					full[j] = full[j] || count[j] >= size
				}
			}
		case count[c] == size && extra == 0:
			full[c] = true
		}
	}
	return assign
}

type regret struct {
	value float32
	row   int32
}

type regretHeap []regret

func (h regretHeap) Len() int { return len(h) }
func (h regretHeap) Less(i, j int) bool {
	return h[i].value > h[j].value || h[i].value == h[j].value && h[i].row < h[j].row
}
func (h regretHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *regretHeap) Push(x any)   { *h = append(*h, x.(regret)) }
func (h *regretHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}

// swap exchanges the clusters of two rows wherever that lowers the distortion;
// sizes stay. With a groups argument it never gives two rows of one group the
// same cluster.
func swap(assign []int32, dist []float32, n, k int, groups *grouping) {
	members := make([][]int32, k)
	for i, c := range assign {
		members[c] = append(members[c], int32(i))
	}
	for range swapPasses {
		changed := false
		for i := range n {
			a, row := assign[i], dist[i*k:(i+1)*k]
			b := a
			for j, d := range row {
				if d < row[b] {
					b = int32(j)
				}
			}
			if a == b {
				continue
			}
			bestGain, bestAt := float32(1e-6), -1
			for at, j := range members[b] {
				other := dist[int(j)*k : (int(j)+1)*k]
				if gain := row[a] + other[b] - row[b] - other[a]; gain > bestGain && groups.mayswap(i, int(j), a, b) {
					bestGain, bestAt = gain, at
				}
			}
			if bestAt < 0 {
				continue
			}
			j := members[b][bestAt]
			members[b][bestAt] = int32(i)
			for at, m := range members[a] {
				if m == int32(i) {
					members[a][at] = j
				}
			}
			assign[i], assign[j] = b, a
			groups.swapped(i, int(j), a, b)
			changed = true
		}
		if !changed {
			return
		}
	}
}

func meansOf(centroids, x []float32, assign []int32, n, dim, k int) {
	clear(centroids)
	count := make([]float32, k)
	for i := range n {
		c := int(assign[i])
		kernels.Add(centroids[c*dim:(c+1)*dim], x[i*dim:(i+1)*dim])
		count[c]++
	}
	for c, m := range count {
		if m > 0 {
			row := centroids[c*dim : (c+1)*dim]
			for j := range row {
				row[j] /= m
			}
		}
	}
}

// distortion is the mean squared distance of a row from its centroid.
func distortion(x, centroids []float32, assign []int32, n, dim int) float64 {
	var sum float64
	for i := range n {
		c := int(assign[i])
		sum += squaredDistance(x[i*dim:(i+1)*dim], centroids[c*dim:(c+1)*dim])
	}
	return sum / float64(n)
}

// grouping says which rows share all codes but the last, and which last codes a
// group uses.
type grouping struct {
	of   []int32          // group of each row
	uses []map[int32]bool // by group: last codes in use
}

func (g *grouping) mayswap(i, j int, a, b int32) bool {
	if g == nil || g.of[i] == g.of[j] {
		return true
	}
	return !g.uses[g.of[i]][b] && !g.uses[g.of[j]][a]
}

func (g *grouping) swapped(i, j int, a, b int32) {
	if g == nil || g.of[i] == g.of[j] {
		return
	}
	gi, gj := g.uses[g.of[i]], g.uses[g.of[j]]
	delete(gi, a)
	gi[b] = true
	delete(gj, b)
	gj[a] = true
}

// makeUnique changes assign as little as it can so that no two rows of a group
// share a cluster, sizes unchanged.
//
// It is a flow problem: a group sends one unit to each cluster it uses, a
// cluster takes as many units as its size. Sizes that differ by at most one can
// always be met when no group is larger than k (Gale and Ryser, 1957), so a row
// that collides always finds an augmenting path: it takes a cluster, a row of
// another group there moves on, until the cluster that lost a row is filled.
func makeUnique(assign []int32, dist []float32, n, k int, groups *grouping) {
	spare := make([]int, k) // room that collisions leave
	members := make([]map[int32]bool, k)
	for c := range members {
		members[c] = make(map[int32]bool)
	}
	holder := make(map[[2]int32]int32) // group, cluster: row
	var homeless []int32
	for i := range n {
		key := [2]int32{groups.of[i], assign[i]}
		c := assign[i]
		if other, taken := holder[key]; taken {
			loser := int32(i)
			if dist[i*k+int(c)] < dist[int(other)*k+int(c)] {
				holder[key] = int32(i)
				delete(members[c], other)
				members[c][int32(i)] = true
				loser = other
			}
			homeless = append(homeless, loser)
			spare[c]++
			continue
		}
		holder[key] = int32(i)
		members[c][int32(i)] = true
	}
	for key := range holder {
		groups.uses[key[0]][key[1]] = true
	}
	for _, i := range homeless {
		augment(i, assign, dist, k, spare, members, groups)
	}
}

// augment places row i by the shortest augmenting path.
func augment(i int32, assign []int32, dist []float32, k int, spare []int, members []map[int32]bool, groups *grouping) {
	type step struct {
		row  int32 // the row that would move into the cluster
		from int32 // the cluster it would leave; -1 for row i
	}
	via := make([]step, k)
	seen := make([]bool, k)
	queue := nearestFirst(i, dist, k, func(c int32) bool { return !groups.uses[groups.of[i]][c] })
	for _, c := range queue {
		seen[c], via[c] = true, step{i, -1}
	}
	for head := 0; head < len(queue); head++ {
		c := queue[head]
		if spare[c] > 0 {
			spare[c]--
			for c >= 0 { // move every row on the path
				s := via[c]
				g := groups.uses[groups.of[s.row]]
				if s.from >= 0 {
					delete(members[s.from], s.row)
					delete(g, s.from)
				}
				members[c][s.row] = true
				g[c] = true
				assign[s.row] = c
				c = s.from
			}
			return
		}
		for _, j := range sorted(members[c]) {
			for to := range int32(k) {
				if !seen[to] && !groups.uses[groups.of[j]][to] {
					seen[to], via[to] = true, step{j, c}
					queue = append(queue, to)
				}
			}
		}
	}
	panic("semanticid: no augmenting path; a group is larger than the number of codes") // Build excludes it
}
