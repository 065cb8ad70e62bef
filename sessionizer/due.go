package sessionizer

// dueUser says when a user's next session may close, or when the user may be
// forgotten: ms since epoch.
type dueUser struct {
	at   int64
	user *user
}

// stale reports whether the user has moved on since the entry was pushed.
func (e dueUser) stale() bool { return e.user.gone || e.user.queued != e.at }

// before orders by time; ties by id, so that the order in which sessions close does
// not depend on the order of a map.
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
	s = s[:n]
	*h = s
	if n == 0 {
		return top
	}
	i := 0
	for {
		least := 4*i + 1
		if least >= n {
			break
		}
		for child := least + 1; child < min(4*i+5, n); child++ {
			if s[child].before(s[least]) {
				least = child
			}
		}
		if !s[least].before(e) {
			break
		}
		s[i] = s[least]
		i = least
	}
	s[i] = e
	return top
}
