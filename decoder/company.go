package decoder

import "sync"

// few is how many rows a product of matrices must have to be about as fast, by row, as any:
// a pass of fewer seeks company.
const few = 32

// SideBySide is how many searches of a width a processor should have at once: enough for
// large products, and no more, since each holds the past of its user.
func SideBySide(width int) int {
	const most = 8
	return min(most, max(1, few/max(1, width)))
}

// company lets searches that run at the same time take their steps together. A search of
// few beams spends its time reading weights for a few rows; several at once read them once
// for the rows of all (batching as in Orca, Yu et al., OSDI 2022: by step, not by request,
// so that a search comes and goes without waiting for another's end).
//
// A search of few beams is a member between its own steps: nobody waits for one that reads
// its history or runs a large pass, and a step waits no longer than others take to choose
// their next codes.
type company struct {
	run func([]*pass)

	mu      sync.Mutex
	members int
	waiting []*pass
}

// enter and leave say that a search may have steps to take, and that it has no more for now.
func (c *company) enter() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members++
}

func (c *company) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members--
	c.depart()
}

// step runs a member's pass, together with those of the other members if it is small.
func (c *company) step(p *pass) {
	if len(p.tokens) >= few {
		c.leave()
		defer c.enter()
		c.run([]*pass{p})
		return
	}
	p.turn = make(chan []*pass, 1)
	c.mu.Lock()
	c.waiting = append(c.waiting, p)
	c.depart()
	c.mu.Unlock()
	all := <-p.turn
	if all == nil {
		return // another member ran it
	}
	defer func() {
		for _, other := range all {
			if other != p {
				other.turn <- nil
			}
		}
	}()
	c.run(all)
}

// depart lets one of the waiting passes take all through the model, if no member is missing.
func (c *company) depart() {
	if n := len(c.waiting); n > 0 && n >= c.members {
		c.waiting[n-1].turn <- c.waiting
		c.waiting = nil
	}
}
