package sessionizer

import "slices"

// dueUser says when to look at a user because the next session may close, or because the
// user may be forgotten: ms since epoch.
type dueUser struct {
	at   int64
	user *user
}

// stale reports whether nobody needs the entry any more.
func (e dueUser) stale() bool {
	return e.user.gone || e.at != e.user.queued && e.at != e.user.last
}

// before orders by time; ties by id, so that the order in which sessions close does
// not depend on the order of a table.
func (e dueUser) before(o dueUser) bool {
	return e.at < o.at || e.at == o.at && e.user.id < o.user.id
}

// dueHeap is a heap of four children a node: half as deep as one of two, and a node's
// children share a cache line.
type dueHeap []dueUser

func (h *dueHeap) push(e dueUser) {
	s := append(*h, e)
	i := len(s) - 1
	for i > 0 {
		parent := (i - 1) / 4
		if !e.before(s[parent]) {
			break
		}
		s[i] = s[parent]
		i = parent
	}
	s[i] = e
	*h = s
}

// pop returns the earliest entry; the heap must not be empty.
func (h *dueHeap) pop() dueUser {
	s := *h
	top, n := s[0], len(s)-1
	e := s[n]
	s[n] = dueUser{} // let the user be collected
	*h = s[:n]
	if n > 0 {
		h.sink(0, e)
	}
	return top
}

// sink puts e where i is, or further down.
func (h dueHeap) sink(i int, e dueUser) {
	for {
		least := 4*i + 1
		if least >= len(h) {
			break
		}
		for child := least + 1; child < min(4*i+5, len(h)); child++ {
			if h[child].before(h[least]) {
				least = child
			}
		}
		if !h[least].before(e) {
			break
		}
		h[i] = h[least]
		i = least
	}
	h[i] = e
}

// clean drops what is stale.
func (h *dueHeap) clean() {
	s := slices.DeleteFunc(*h, dueUser.stale)
	for i := len(s) / 4; i >= 0 && len(s) > 0; i-- {
		s.sink(i, s[i])
	}
	*h = s
}
