package semanticid

import (
	"cmp"
	"slices"

	"onerec/internal/kernels"
)

// Bounds of what a row that had to leave its cluster tries in order to get nearer.
const (
	swapClusters = 4    // better clusters that it tries to get into
	swapRounds   = 2    // over all such rows
	smallGroup   = 32   // a group up to this size is searched, a larger one has a bitset
	swapGain     = 1e-6 // least gain of a swap
	noRow        = -1
)

// spread changes a clustering, as little as it can, so that no cluster holds more than
// limit rows of one group; sizes stay. Rows of a group are the items that share all codes
// so far. At the last level the limit is one, which makes IDs unique; before it, the limit
// sees to it that there will be codes enough (see limitAt).
//
// It is a flow problem: a group sends at most limit units to a cluster, a cluster takes
// as many units as its size. Sizes that differ by at most one can always be met at the
// last level when no group is larger than k (Gale and Ryser, 1957), and before it with
// half the room to spare (limitAt), so a row that is too many always finds an augmenting path: it takes
// a cluster, a row of another group there moves on, until the cluster that lost a row is
// filled. Afterwards rows that had to leave their cluster swap with others where that
// brings the two nearer together.
type spread struct {
	x, centroids []float32
	n, dim, k    int
	limit        int
	norms        []float32 // |c|^2
	assign       []int32   // -1: no cluster

	group   []int32    // of each row
	rows    []int32    // by group
	starts  []int32    // of each group in rows; one more than groups
	counts  [][]uint16 // by group: its rows by cluster; nil for groups that are searched
	members [][]int32  // by cluster
	at      []int32    // of each row among its cluster's members
	spare   []int      // by cluster: rows that are missing
}

// spreadOut works on assign and returns how many rows had to leave their cluster.
func spreadOut(assign []int32, x, centroids []float32, n, dim, k, limit int, group []int32, groups int) (moved int) {
	u := &spread{
		x: x, centroids: centroids, n: n, dim: dim, k: k, limit: limit, norms: make([]float32, k), assign: assign, group: group,
		rows: make([]int32, n), starts: make([]int32, groups+1), counts: make([][]uint16, groups),
		members: make([][]int32, k), at: make([]int32, n), spare: make([]int, k),
	}
	for c := range u.norms {
		u.norms[c] = kernels.Dot(u.centroid(int32(c)), u.centroid(int32(c)))
	}
	for _, g := range group {
		u.starts[g+1]++
	}
	for g := range groups {
		u.starts[g+1] += u.starts[g]
	}
	next := slices.Clone(u.starts)
	for i, g := range group {
		u.rows[next[g]] = int32(i)
		next[g]++
	}
	homeless := u.tooMany()
	for _, i := range homeless {
		u.spare[assign[i]]++
		assign[i] = noRow
	}
	for i, c := range assign {
		if c != noRow {
			u.enter(int32(i), c)
		}
	}
	costs := make([]float32, k)
	for _, i := range homeless {
		u.place(i, costs)
	}
	for range swapRounds {
		changed := false
		for _, i := range homeless {
			changed = u.swap(i, costs) || changed
		}
		if !changed {
			break
		}
	}
	return len(homeless)
}

// tooMany returns the rows that stand in a cluster in which limit rows of their group are
// nearer to the centroid, and makes the counts of large groups.
func (u *spread) tooMany() (homeless []int32) {
	type place struct {
		cluster  int32
		distance float32
		row      int32
	}
	var places []place
	for g := range u.counts {
		rows := u.rows[u.starts[g]:u.starts[g+1]]
		if len(rows) <= u.limit {
			continue
		}
		if len(rows) > smallGroup {
			u.counts[g] = make([]uint16, u.k)
		}
		places = places[:0]
		for _, i := range rows {
			places = append(places, place{u.assign[i], u.distance(i, u.assign[i]), i})
		}
		slices.SortFunc(places, func(a, b place) int {
			return cmp.Or(cmp.Compare(a.cluster, b.cluster), cmp.Compare(a.distance, b.distance), cmp.Compare(a.row, b.row))
		})
		in := 0 // the cluster at hand
		for j, p := range places {
			if j > 0 && p.cluster != places[j-1].cluster {
				in = 0
			}
			if in++; in > u.limit {
				homeless = append(homeless, p.row)
			}
		}
	}
	return homeless
}

func (u *spread) centroid(c int32) []float32 {
	return u.centroids[int(c)*u.dim : (int(c)+1)*u.dim]
}

// distance is squared, without |x|^2.
func (u *spread) distance(i, c int32) float32 {
	return u.norms[c] - 2*kernels.Dot(u.x[int(i)*u.dim:(int(i)+1)*u.dim], u.centroid(c))
}

// full reports whether cluster c holds as many rows of group g as it may.
func (u *spread) full(g, c int32) bool {
	if counts := u.counts[g]; counts != nil {
		return int(counts[c]) >= u.limit
	}
	rows := u.rows[u.starts[g]:u.starts[g+1]]
	if len(rows) <= u.limit {
		return false
	}
	in := 0
	for _, i := range rows {
		if u.assign[i] == c {
			in++
		}
	}
	return in >= u.limit
}

// enter puts row i into cluster c, and leave takes it out.
func (u *spread) enter(i, c int32) {
	u.assign[i], u.at[i] = c, int32(len(u.members[c]))
	u.members[c] = append(u.members[c], i)
	if counts := u.counts[u.group[i]]; counts != nil {
		counts[c]++
	}
}

func (u *spread) leave(i int32) {
	c, at := u.assign[i], u.at[i]
	m := u.members[c]
	last := m[len(m)-1]
	m[at], u.at[last] = last, at
	u.members[c] = m[:len(m)-1]
	u.assign[i] = noRow
	if counts := u.counts[u.group[i]]; counts != nil {
		counts[c]--
	}
}

// nearest fills costs with the distances of row i and returns the clusters that may take
// it, nearest first.
func (u *spread) nearest(i int32, costs []float32) []int32 {
	order := make([]int32, 0, u.k)
	kernels.MatVec(costs, u.centroids, u.k, u.dim, u.dim, u.x[int(i)*u.dim:(int(i)+1)*u.dim])
	for c := range int32(u.k) {
		costs[c] = u.norms[c] - 2*costs[c]
		if !u.full(u.group[i], c) {
			order = append(order, c)
		}
	}
	slices.SortStableFunc(order, func(a, b int32) int {
		switch {
		case costs[a] < costs[b]:
			return -1
		case costs[a] > costs[b]:
			return 1
		}
		return 0
	})
	return order
}

// place puts row i where a row is missing, by the shortest augmenting path.
func (u *spread) place(i int32, costs []float32) {
	type step struct {
		row  int32 // that would move into the cluster
		from int32 // the cluster it would leave; -1 for row i
	}
	queue, via := u.nearest(i, costs), make([]step, u.k)
	finish := func(c int32) { // moves every row on the path that ends in c
		u.spare[c]--
		for c >= 0 {
			s := via[c]
			if s.from >= 0 {
				u.leave(s.row)
			}
			u.enter(s.row, c)
			c = s.from
		}
	}
	seen := make([]bool, u.k)
	for _, c := range queue {
		if seen[c], via[c] = true, (step{i, noRow}); u.spare[c] > 0 {
			finish(c)
			return
		}
	}
	var unseen []int32
	for c := range int32(u.k) {
		if !seen[c] {
			unseen = append(unseen, c)
		}
	}
	for head := 0; head < len(queue); head++ {
		c := queue[head]
		for _, j := range u.members[c] {
			left := unseen[:0]
			for _, to := range unseen {
				if u.full(u.group[j], to) {
					left = append(left, to)
					continue
				}
				if via[to] = (step{j, c}); u.spare[to] > 0 {
					finish(to)
					return
				}
				queue = append(queue, to)
			}
			unseen = left
		}
	}
	panic("semanticid: no augmenting path; a group is larger than limitAt lets it be") // Build excludes it
}

// swap exchanges row i with one of a nearer cluster where that brings the two nearer to
// their centroids.
func (u *spread) swap(i int32, costs []float32) bool {
	a := u.assign[i]
	order := u.nearest(i, costs)
	for _, b := range order[:min(swapClusters, len(order))] {
		if costs[b] >= costs[a] {
			return false
		}
		best, found := float32(swapGain), int32(noRow)
		for _, j := range u.members[b] {
			gain := costs[a] - costs[b] + u.distance(j, b) - u.distance(j, a)
			if gain > best && u.group[j] != u.group[i] && !u.full(u.group[j], a) {
				best, found = gain, j
			}
		}
		if found != noRow {
			u.leave(i)
			u.leave(found)
			u.enter(i, b)
			u.enter(found, a)
			return true
		}
	}
	return false
}

// refine numbers the rows' prefixes after one more code, given those before it (nil: no
// code), in the order in which they first stand.
func refine(group, assign []int32) (finer []int32, groups int) {
	finer = make([]int32, len(assign))
	known := make(map[uint64]int32)
	for i, c := range assign {
		key := uint64(c)
		if group != nil {
			key |= uint64(group[i]) << 32
		}
		g, ok := known[key]
		if !ok {
			g = int32(len(known))
			known[key] = g
		}
		finer[i] = g
	}
	return finer, len(known)
}
