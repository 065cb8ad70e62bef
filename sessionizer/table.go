package sessionizer

import "hash/maphash"

// userTable finds users by id: open addressing with linear probing (Knuth, The Art of
// Computer Programming, volume 3, section 6.4, algorithms L and R). A map of Go's would
// do as well, but for [Core.Preload]: here the place where a user's entry lies follows
// from the id alone, so that the entries of many users can be read side by side.
type userTable struct {
	slots []slot // a power of two, at least a quarter of them empty
	n     int
	seed  maphash.Seed
}

// slot is empty if it has no user.
type slot struct {
	hash uint64
	user *user
}

const leastSlots = 16

func newUserTable() userTable {
	return userTable{slots: make([]slot, leastSlots), seed: maphash.MakeSeed()}
}

// home returns where the entry of a user with this hash is, unless others are in its way.
func (t *userTable) home(hash uint64) int { return int(hash & uint64(len(t.slots)-1)) }

func (t *userTable) next(at int) int { return (at + 1) & (len(t.slots) - 1) }

// get returns a user, or nil.
func (t *userTable) get(id []byte) *user {
	hash := maphash.Bytes(t.seed, id)
	for at := t.home(hash); t.slots[at].user != nil; at = t.next(at) {
		if s := t.slots[at]; s.hash == hash && s.user.id == string(id) {
			return s.user
		}
	}
	return nil
}

// guess returns the user whom get most likely returns, without a look at the user.
func (t *userTable) guess(hash uint64) *user {
	for at := t.home(hash); t.slots[at].user != nil; at = t.next(at) {
		if t.slots[at].hash == hash {
			return t.slots[at].user
		}
	}
	return nil
}

// put adds a user, or replaces the one with the same id.
func (t *userTable) put(u *user) {
	if 4*(t.n+1) > 3*len(t.slots) {
		old := t.slots
		t.slots, t.n = make([]slot, 2*len(old)), 0
		for _, s := range old {
			if s.user != nil {
				t.insert(s)
			}
		}
	}
	t.insert(slot{maphash.String(t.seed, u.id), u})
}

func (t *userTable) insert(s slot) {
	at := t.home(s.hash)
	for ; t.slots[at].user != nil; at = t.next(at) {
		if t.slots[at].hash == s.hash && t.slots[at].user.id == s.user.id {
			t.slots[at] = s
			return
		}
	}
	t.slots[at] = s
	t.n++
}

// remove takes a user out and closes the gap: whoever had to go on from there to find
// a place moves up.
func (t *userTable) remove(u *user) {
	at := t.home(maphash.String(t.seed, u.id))
	for t.slots[at].user != u {
		if t.slots[at].user == nil {
			return
		}
		at = t.next(at)
	}
	t.n--
	for from := t.next(at); t.slots[from].user != nil; from = t.next(from) {
		// It may move to at if that is not before its home, in the direction of probing.
		if mask := len(t.slots) - 1; (from-t.home(t.slots[from].hash))&mask >= (from-at)&mask {
			t.slots[at] = t.slots[from]
			at = from
		}
	}
	t.slots[at] = slot{}
}

// all yields every user, in no order.
func (t *userTable) all(yield func(*user) bool) {
	for _, s := range t.slots {
		if s.user != nil && !yield(s.user) {
			return
		}
	}
}
