package recommender

import (
	"container/list"
	"sync"

	"onerec/decoder"
)

// pasts keeps what models made of the histories of the users who asked last, so that a user who comes
// back is asked about what is new alone; see [decoder.Past]. It is safe for concurrent use.
type pasts struct {
	max int64 // bytes at most; the user who has not asked for the longest goes first

	mu     sync.Mutex
	byUser map[string]*list.Element
	recent *list.List // of *userPast, the newest in front
	bytes  int64
}

type userPast struct {
	user  string
	past  *decoder.Past
	bytes int64
}

func newPasts(maxBytes int64) *pasts {
	return &pasts{max: maxBytes, byUser: make(map[string]*list.Element), recent: list.New()}
}

// take returns a user's past for a search, and nil if nothing is kept of users. It is empty for one who is
// new, or of whom another search has it.
func (p *pasts) take(user string) *decoder.Past {
	if p.max <= 0 || user == "" {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if e, ok := p.byUser[user]; ok {
		return p.remove(e).past
	}
	return new(decoder.Past)
}

// who says whether a user is one of whom something is kept.
func (p *pasts) who(user string) visitor {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.byUser[user]; ok {
		return returning
	}
	return newcomer
}

// put keeps a past for the next search of its user.
func (p *pasts) put(user string, past *decoder.Past) {
	const overhead = 256 // of an entry, about, without the name
	u := &userPast{user, past, past.Bytes() + int64(len(user)) + overhead}
	p.mu.Lock()
	defer p.mu.Unlock()
	if e, ok := p.byUser[user]; ok { // of a search that ran at the same time
		p.remove(e)
	}
	p.byUser[user] = p.recent.PushFront(u)
	for p.bytes += u.bytes; p.bytes > p.max; {
		p.remove(p.recent.Back())
	}
}

func (p *pasts) remove(e *list.Element) *userPast {
	u := p.recent.Remove(e).(*userPast)
	delete(p.byUser, u.user)
	p.bytes -= u.bytes
	return u
}

// size returns the bytes that are taken.
func (p *pasts) size() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bytes
}
