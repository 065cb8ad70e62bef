package trainer

import "slices"

// perItem is how many successors of an item are counted.
const perItem = 32

// successors counts which items follow which: the baseline that knows nothing but a user's
// last item. Of each item the most frequent are kept, nearly (Space-Saving; Metwally,
// Agrawal and El Abbadi, ICDT 2005), so that memory is bounded.
type successors struct {
	of [][]successor // by item
}

type successor struct {
	item  int32
	count int32
}

// add counts that b followed a.
func (s *successors) add(a, b int32) {
	for int(a) >= len(s.of) {
		s.of = append(s.of, nil)
	}
	list := s.of[a]
	if i := slices.IndexFunc(list, func(x successor) bool { return x.item == b }); i >= 0 {
		list[i].count++
		return
	}
	if len(list) < perItem {
		s.of[a] = append(list, successor{b, 1})
		return
	}
	least := 0
	for i, x := range list {
		if x.count < list[least].count {
			least = i
		}
	}
	list[least] = successor{b, list[least].count + 1} // may have come before: its count is at most this
}

// after returns the items that followed a, the most frequent first.
func (s *successors) after(a int32) []int32 {
	if a < 0 || int(a) >= len(s.of) {
		return nil
	}
	list := slices.Clone(s.of[a])
	slices.SortStableFunc(list, func(x, y successor) int { return int(y.count) - int(x.count) })
	out := make([]int32, len(list))
	for i, x := range list {
		out[i] = x.item
	}
	return out
}
