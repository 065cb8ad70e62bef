package recommender

import (
	"context"
	"math"
	"net/http"
	"sync"
	"time"
)

// admission lets as many requests search as there are slots, has a few wait, and turns away at once what
// would have to wait too long: under overload the answers that are given are given in time, and the others
// are told to come back, instead of all being late.
//
// The last quarter of the queue is for users of whom something is kept (see [pasts]): their searches read little, so that more
// users get answers, and who has begun to watch is not sent away in between. A newcomer may have a place there, too, after
// everyFew of theirs.
type admission struct {
	slots   chan struct{}
	maxWait time.Duration

	mu      sync.Mutex
	waiting int
	passed  int           // places that returning users took since a newcomer took one
	mean    time.Duration // of a search, moving
}

// visitor is who asks: a user of whom nothing is kept, or one who returns.
type visitor int

const (
	newcomer visitor = iota
	returning
)

const everyFew = 3

func newAdmission(slots int, maxWait time.Duration) *admission {
	return &admission{slots: make(chan struct{}, slots), maxWait: maxWait}
}

// admit waits for a slot; done gives it back. A request that is turned away gets a problem that says
// when to come back.
func (a *admission) admit(ctx context.Context, who visitor) (done func(), err error) {
	if err := a.queue(who); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*a.maxWait) // searches may get slower meanwhile
	defer cancel()
	select {
	case a.slots <- struct{}{}:
		a.leave()
	case <-ctx.Done():
		a.leave()
		return nil, busy(a.maxWait)
	}
	begun := time.Now()
	return func() {
		<-a.slots
		a.took(time.Since(begun))
	}, nil
}

// queue takes a place among those who wait, if the wait is short enough: those before it, and
// those who search, each as long as a search takes.
func (a *admission) queue(who visitor) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	most := a.maxWait
	if who == newcomer && a.passed < everyFew {
		most -= most / 4
	}
	if wait := a.mean * time.Duration(a.waiting) / time.Duration(cap(a.slots)); wait > most {
		return busy(wait)
	}
	a.waiting++
	if a.passed++; who == newcomer {
		a.passed = 0
	}
	return nil
}

func (a *admission) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.waiting--
}

func (a *admission) took(d time.Duration) {
	const weight = 20 // of the past
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mean == 0 {
		a.mean = d
	}
	a.mean += (d - a.mean) / weight
}

func busy(wait time.Duration) error {
	return &problem{
		Title: "Service Unavailable", Status: http.StatusServiceUnavailable, Detail: "more is asked than can be answered in time; try again",
		retryAfter: int(math.Ceil(max(wait.Seconds(), 1))),
	}
}
