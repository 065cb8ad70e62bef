package decoder

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"onerec/internal/kernels"
)

// Next is an item that may come next.
type Next struct {
	Item    int32   // index in the codebook
	LogProb float64 // among the items that may come; [List.Score] of a list of it alone
}

// dive is how many nodes of a level are followed at first, all the way down to items.
const dive = 16

// Next returns the n items that are most likely to come next, the best first: those that
// [Generator.Generate] finds with Length 1 and the same Width, or better ones, for less work.
//
// A score only falls on the way down the trie. So the search first dives, from the best few
// nodes down to items, and then follows of all others only those whose score is above the n-th
// best item's (best-first beam search, Meister et al., arXiv 2007.03909). And the model is not asked
// where the trie knows the answer: below a node with one item left the remaining codes are certain.
//
// Length, Temperature and Rand of the options are not used.
func (g *Generator) Next(o Options, n int) ([]Next, error) {
	if o.Width < 1 || n < 1 {
		return nil, fmt.Errorf("next items: width %d and number %d must be at least 1", o.Width, n)
	}
	o.Length = 1
	past, hidden, excluded, err := g.begin(o)
	if err != nil {
		return nil, err
	}
	defer past.release()
	g.company.enter()
	defer g.company.leave()
	last := g.w.Config.Levels - 1
	s := &search{g: g, excluded: excluded, n: n, suffix: newSuffix(g.w.Config, past, o.Width+dive, last)}
	defer s.suffix.release()
	s.suffix.social = true
	waiting := make([][]node, last+1) // by level
	waiting[0] = s.children(0, []node{{}}, hidden)
	for _, most := range []int{dive, o.Width} {
		for level := range last {
			nodes := s.worthwhile(waiting[level], o.Width)
			now := min(most, len(nodes))
			waiting[level] = nodes[now:]
			waiting[level+1] = append(waiting[level+1], s.follow(level, nodes[:now])...)
		}
	}
	return s.found, nil
}

// node is a node of the trie that the search has reached, with several items below it.
type node struct {
	at     int32 // in the trie
	score  float64
	places []int32 // of the suffix: where the tokens of the nodes above are
}

// search is that of one call of Next.
type search struct {
	g        *Generator
	excluded []map[int32]int32
	suffix   *suffix
	n        int
	found    []Next // at most n, the best first
}

// bound is the score that is not enough any more.
func (s *search) bound() float64 {
	if len(s.found) < s.n {
		return math.Inf(-1)
	}
	return s.found[s.n-1].LogProb
}

// add takes an item in if it is among the best n.
func (s *search) add(item int32, logProb float64) {
	at, _ := slices.BinarySearchFunc(s.found, logProb, func(f Next, logProb float64) int {
		if f.LogProb >= logProb { // among equals the earlier
			return -1
		}
		return 1
	})
	s.found = slices.Insert(s.found, at, Next{item, logProb})
	s.found = s.found[:min(len(s.found), s.n)]
}

// worthwhile returns the best nodes that can still lead to an item among the best, in order.
func (s *search) worthwhile(nodes []node, width int) []node {
	bound := s.bound()
	nodes = slices.DeleteFunc(nodes, func(n node) bool { return n.score <= bound })
	slices.SortStableFunc(nodes, func(a, b node) int { return cmp.Compare(b.score, a.score) })
	return nodes[:min(len(nodes), width)]
}

// follow asks the model what comes after nodes of a level. It takes in the items that are then
// certain, and returns the other nodes of the next level.
func (s *search) follow(level int, nodes []node) []node {
	if len(nodes) == 0 {
		return nil
	}
	places := make([][]int32, len(nodes))
	for i, n := range nodes {
		places[i] = n.places
	}
	s.suffix.resume(level, places)
	hidden := s.g.step(s.suffix, func(i int) int32 { return s.g.w.Config.token(level, s.g.trie.Code(level, nodes[i].at)) })
	for i := range nodes {
		nodes[i].places = append(slices.Clip(nodes[i].places), s.suffix.last(i))
	}
	return s.children(level+1, nodes, hidden)
}

// children looks at the nodes of a level below parents, from whose hidden states their codes
// follow. It takes in the items that are then certain, and returns the other nodes.
func (s *search) children(level int, parents []node, hidden []float32) (out []node) {
	c := s.g.w.Config
	logits := make([]float32, len(parents)*c.Codes)
	s.g.codes[level].MulParallel(len(parents), hidden, c.Dim, false, logits, c.Codes)
	var allowed []float32
	var nodes []int32
	for i, parent := range parents {
		row := logits[i*c.Codes : (i+1)*c.Codes]
		allowed, nodes = allowed[:0], nodes[:0]
		lo, hi := s.g.children(level, parent.at)
		for at := lo; at < hi; at++ {
			if s.left(level, at) > 0 {
				allowed, nodes = append(allowed, row[s.g.trie.Code(level, at)]), append(nodes, at)
			}
		}
		if len(nodes) == 0 {
			continue
		}
		norm := float64(kernels.LogSumExp(allowed))
		for j, at := range nodes {
			score := parent.score + float64(allowed[j]) - norm
			switch {
			case score <= s.bound():
			case s.left(level, at) == 1:
				s.add(s.only(level, at), score)
			default:
				out = append(out, node{at, score, parent.places})
			}
		}
	}
	return out
}

// left is the number of items below a node that are not excluded.
func (s *search) left(level int, at int32) int32 {
	return s.g.trie.Under(level, at) - s.excluded[level][at]
}

// only returns the one item below a node that is not excluded.
func (s *search) only(level int, at int32) int32 {
	for level++; level < s.g.trie.Levels(); level++ {
		lo, hi := s.g.trie.Children(level-1, at)
		for at = lo; at < hi-1 && s.left(level, at) == 0; at++ {
		}
	}
	return s.g.trie.Item(at)
}
