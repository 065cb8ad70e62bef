package recommender

import (
	"cmp"
	"container/list"
	"slices"
	"sync"

	"onerec/internal/history"
	"onerec/schemas"
)

// users keeps the histories of the users seen last, and how often each item was
// engaged with. It is safe for concurrent use.
type users struct {
	policy history.Policy
	max    int // users at most; the one without views for the longest goes first
	items  int // items counted at most

	mu     sync.Mutex
	byID   map[string]*list.Element
	recent *list.List // of *entry, the newest in front
	counts map[string]int
	top    []string // the most popular items, best first; nil when stale
}

type entry struct {
	id        string
	items     history.Items
	forgotten int // items that were in the history and are not any more
}

func newUsers(policy history.Policy, maxUsers, maxItems int) *users {
	return &users{policy: policy, max: maxUsers, items: maxItems, byID: make(map[string]*list.Element), recent: list.New(), counts: make(map[string]int)}
}

// add takes a view.
func (u *users) add(v *schemas.RawView) {
	u.mu.Lock()
	defer u.mu.Unlock()
	e, ok := u.byID[string(v.UserID)]
	if !ok {
		if !u.policy.Engaged(v) {
			return
		}
		id := string(v.UserID)
		e = u.recent.PushFront(&entry{id: id})
		u.byID[id] = e
		if len(u.byID) > u.max {
			oldest := u.recent.Back()
			u.recent.Remove(oldest)
			delete(u.byID, oldest.Value.(*entry).id)
		}
	}
	u.recent.MoveToFront(e)
	entry := e.Value.(*entry)
	before := entry.items.Len()
	items, changed := u.policy.Insert(entry.items, v)
	if !changed {
		return
	}
	entry.forgotten += before + 1 - items.Len()
	entry.items = items
	if _, known := u.counts[string(v.ItemID)]; known || len(u.counts) < u.items {
		u.counts[string(v.ItemID)]++
		u.top = nil
	}
}

// history returns a user's engaged items, oldest first, and how many there were before them.
func (u *users) history(id string) (items history.Items, before int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	e, ok := u.byID[id]
	if !ok {
		return nil, 0
	}
	entry := e.Value.(*entry)
	return slices.Clone(entry.items), entry.forgotten
}

// popular returns the n most popular items that are not excluded.
func (u *users) popular(n int, excluded func(item string) bool) []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.top == nil {
		for item := range u.counts {
			u.top = append(u.top, item)
		}
		slices.SortFunc(u.top, func(a, b string) int { return cmp.Or(u.counts[b]-u.counts[a], cmp.Compare(a, b)) })
		u.top = u.top[:min(len(u.top), 10_000)]
	}
	var out []string
	for _, item := range u.top {
		if len(out) == n {
			break
		}
		if !excluded(item) {
			out = append(out, item)
		}
	}
	return out
}

func (u *users) len() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.byID)
}
