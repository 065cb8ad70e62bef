package semanticid

import (
	"cmp"
	"slices"
)

// Trie is the set of all IDs as a prefix tree in flat arrays, for generation
// that only ever produces real items. A node of level l is an index into that
// level's arrays; the children of a node are neighbours, in order of code.
type Trie struct {
	levels []trieLevel
	items  []int32 // item index of each leaf
}

type trieLevel struct {
	code  []uint16
	under []int32 // items below the node that may be written; empty at the last level while there is one below each
	first []int32 // first child in the next level; one more than codes, so that first[i+1] ends node i
}

// NewTrie returns the trie of a codebook's items as of now.
func NewTrie(c *Codebook) *Trie {
	order := make([]int32, c.Len())
	for i := range order {
		order[i] = int32(i)
	}
	slices.SortFunc(order, func(a, b int32) int { return slices.Compare(c.ID(a), c.ID(b)) })
	t := &Trie{levels: make([]trieLevel, c.Levels()), items: order}
	for pos, item := range order {
		id := c.ID(item)
		differs := pos == 0 // from here on the prefix is new
		for l, code := range id {
			differs = differs || cmp.Compare(code, c.ID(order[pos-1])[l]) != 0
			if !differs {
				continue
			}
			t.levels[l].code = append(t.levels[l].code, code)
			if l+1 < len(id) {
				t.levels[l].under = append(t.levels[l].under, 0)
				t.levels[l].first = append(t.levels[l].first, int32(len(t.levels[l+1].code)))
			}
		}
		for l := range len(t.levels) - 1 {
			t.levels[l].under[len(t.levels[l].under)-1]++
		}
	}
	for l := range len(t.levels) - 1 {
		t.levels[l].first = append(t.levels[l].first, int32(len(t.levels[l+1].code)))
	}
	for l, level := range t.levels { // without the room that append left
		t.levels[l] = trieLevel{exact(level.code), exact(level.under), exact(level.first)}
	}
	return t
}

func exact[T any](s []T) []T {
	out := make([]T, len(s))
	copy(out, s)
	return out
}

// Bytes returns the size of the arrays.
func (t *Trie) Bytes() int {
	n := 4 * cap(t.items)
	for _, l := range t.levels {
		n += 2*cap(l.code) + 4*cap(l.under) + 4*cap(l.first)
	}
	return n
}

// Roots returns the nodes of level 0 as a range lo to hi.
func (t *Trie) Roots() (lo, hi int32) { return 0, int32(len(t.levels[0].code)) }

// Children returns the nodes of level l+1 below node i of level l.
func (t *Trie) Children(l int, i int32) (lo, hi int32) {
	return t.levels[l].first[i], t.levels[l].first[i+1]
}

// Code returns the code of node i of level l.
func (t *Trie) Code(l int, i int32) uint16 { return t.levels[l].code[i] }

// Under returns how many items are below node i of level l, but for those that the trie is [Trie.Without].
func (t *Trie) Under(l int, i int32) int32 {
	if under := t.levels[l].under; len(under) > 0 {
		return under[i]
	}
	return 1
}

// Without returns the trie without some items, given by index: they keep their nodes, but [Trie.Under] does not count
// them. The two share all but these counts.
func (t *Trie) Without(items map[int32]bool) *Trie {
	if len(items) == 0 {
		return t
	}
	out := &Trie{levels: slices.Clone(t.levels), items: t.items}
	last := len(t.levels) - 1
	for l := last; l >= 0; l-- {
		under := make([]int32, len(t.levels[l].code))
		for i := range under {
			if l == last {
				if under[i] = t.Under(l, int32(i)); items[t.items[i]] {
					under[i] = 0
				}
				continue
			}
			lo, hi := t.Children(l, int32(i))
			for child := lo; child < hi; child++ {
				under[i] += out.Under(l+1, child)
			}
		}
		out.levels[l].under = under
	}
	return out
}

// Path returns the node of each level on the way to an ID, false if no item has
// it.
func (t *Trie) Path(id []uint16) ([]int32, bool) {
	path := make([]int32, 0, len(t.levels))
	lo, hi := t.Roots()
	for l, code := range id {
		at, ok := slices.BinarySearch(t.levels[l].code[lo:hi], code)
		if !ok {
			return nil, false
		}
		node := lo + int32(at)
		path = append(path, node)
		if l+1 < len(t.levels) {
			lo, hi = t.Children(l, node)
		}
	}
	return path, len(path) == len(t.levels)
}

// Item returns the item index of leaf i, a node of the last level.
func (t *Trie) Item(i int32) int32 { return t.items[i] }

// Levels is L.
func (t *Trie) Levels() int { return len(t.levels) }

// Len is the number of items, those that it is [Trie.Without] among them.
func (t *Trie) Len() int { return len(t.items) }
