// Package sessionizer cuts each user's views into sessions by event time.
//
// A session is a run of one user's views in which no two neighbours are further
// apart than the gap; views exactly the gap apart belong together. Views may
// come out of order: the watermark trails the greatest event time by the allowed
// lateness, and a session closes once the watermark has passed its last view by
// more than the gap, because then nothing that is still allowed to come could
// belong to it. A view that fits into a session still open is taken however late
// it is (as in Flink's session windows); one whose session has closed is late.
//
// [Core] is the pure part: it has no clock, no Kafka and no goroutine, and one
// Core serves one partition. [Stage] runs it inside the stream's transactions.
package sessionizer

import (
	"cmp"
	"container/heap"
	"crypto/sha256"
	"encoding/hex"
	"math"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	"onerec/internal/history"
	"onerec/schemas/onerecv1"
)

// Config holds the limits of a session.
type Config struct {
	Gap      time.Duration // views at most this far apart belong together
	Lateness time.Duration // how far the watermark trails the newest view
	MaxViews int           // a session with this many views is closed by size
	MaxAge   time.Duration // a view later than this after the first opens a new session
	// MaxUsers bounds the users that a partition remembers, open sessions and
	// histories alike. Beyond it, the user whose next session is due first is closed
	// and forgotten at once; such a session may be cut short. 0: no limit.
	MaxUsers int
	// MaxSkew is how far ahead of the clock an event may be and still move the
	// watermark, so that one wrong clock does not close other users' sessions.
	MaxSkew time.Duration
	History history.Policy
}

// DefaultConfig returns the usual 30 min gap.
func DefaultConfig() Config {
	return Config{Gap: 30 * time.Minute, Lateness: 10 * time.Minute, MaxViews: 1000, MaxAge: 24 * time.Hour, MaxUsers: 1_000_000, MaxSkew: 10 * time.Minute, History: history.DefaultPolicy()}
}

// Outcome says what became of a view.
type Outcome int

// Outcomes of [Core.Add].
const (
	Accepted  Outcome = iota // it is in an open session, or in one just closed
	Duplicate                // its event_id is in an open session of the user
	Late                     // its session has closed
)

// Core holds the open sessions of one partition.
type Core struct {
	gap, lateness, maxAge int64 // ms
	maxViews, maxUsers    int
	ceiling               int64 // events later than this don't move the watermark; ms since epoch
	policy                history.Policy

	users map[string]*user
	due   dueHeap // when a user's next session may close; may hold stale entries
	state onerecv1.PartitionState
	dirty map[string]struct{} // users changed since the last TakeDirty

	closed  []*onerecv1.Session
	evicted int64
}

type user struct {
	open          []*onerecv1.View    // in order of time, then event_id
	ids           map[string]struct{} // the event_ids of open, once there are many; see knows
	history       []*onerecv1.HistoryItem
	closedThrough int64
	queued        int64 // earliest due time in the heap for this user
}

const never = math.MaxInt64

// New returns an empty core.
func New(cfg Config) *Core {
	return &Core{
		gap: cfg.Gap.Milliseconds(), lateness: cfg.Lateness.Milliseconds(),
		maxAge: cfg.MaxAge.Milliseconds(), maxViews: cfg.MaxViews, maxUsers: cfg.MaxUsers,
		ceiling: never, policy: cfg.History,
		users: make(map[string]*user), dirty: make(map[string]struct{}),
	}
}

// Add takes a view and moves the watermark. Sessions that this closes are
// returned by [Core.TakeClosed]. The core keeps v.
func (c *Core) Add(v *onerecv1.View) Outcome {
	u := c.users[v.UserId]
	outcome := Accepted
	if u != nil && u.knows(v.EventId) {
		outcome = Duplicate
	}
	if outcome == Accepted && c.isLate(u, v) {
		outcome = Late
	}
	switch outcome {
	case Duplicate:
		c.state.Duplicates++
	case Late:
		c.state.Late++
	case Accepted:
		c.state.Accepted++
		if u == nil {
			u = &user{queued: never}
			c.users[v.UserId] = u
		}
		at, _ := slices.BinarySearchFunc(u.open, v, compareViews)
		u.open = slices.Insert(u.open, at, v)
		if u.ids != nil {
			u.ids[v.EventId] = struct{}{}
		}
		c.dirty[v.UserId] = struct{}{}
		c.enqueue(v.UserId, u)
	}
	if v.EventTimeMs > c.state.MaxEventTimeMs && v.EventTimeMs <= c.ceiling {
		c.state.MaxEventTimeMs = v.EventTimeMs
	}
	c.Advance(c.state.MaxEventTimeMs - c.lateness)
	for c.maxUsers > 0 && len(c.users) > c.maxUsers {
		c.evict()
	}
	return outcome
}

// SetCeiling tells the latest event time, in ms since the epoch, that may move the
// watermark from now on. The core has no clock of its own.
func (c *Core) SetCeiling(ms int64) { c.ceiling = ms }

// evict closes what the user who is due first has open, and forgets the user.
func (c *Core) evict() {
	for len(c.due) > 0 {
		e := heap.Pop(&c.due).(dueUser)
		u := c.users[e.id]
		if u == nil || u.queued != e.at {
			continue // stale
		}
		for len(u.open) > 0 {
			n, by, at := c.firstSession(u.open)
			if at > c.state.WatermarkMs {
				by = onerecv1.ClosedBy_CLOSED_BY_LIMIT
			}
			c.close(e.id, u, n, by)
		}
		delete(c.users, e.id)
		c.dirty[e.id] = struct{}{}
		c.evicted++
		return
	}
}

// Evicted returns how many users the limit has cost since the core was made.
func (c *Core) Evicted() int64 { return c.evicted }

// isLate reports whether the session that v belongs to has closed: v is not
// after what was closed, and the open views within reach of it, if any, do not
// keep its session open.
func (c *Core) isLate(u *user, v *onerecv1.View) bool {
	end := v.EventTimeMs
	if u != nil {
		if v.EventTimeMs <= u.closedThrough {
			return true
		}
		at, _ := slices.BinarySearchFunc(u.open, v, compareViews)
		for _, next := range u.open[at:] {
			if next.EventTimeMs-end > c.gap {
				break
			}
			end = next.EventTimeMs
		}
	}
	return end+c.gap < c.state.WatermarkMs
}

// Advance raises the watermark (it never falls) and closes what is due.
func (c *Core) Advance(watermark int64) {
	if watermark <= c.state.WatermarkMs {
		return
	}
	c.state.WatermarkMs = watermark
	for len(c.due) > 0 && c.due[0].at <= watermark {
		e := heap.Pop(&c.due).(dueUser)
		u := c.users[e.id]
		if u == nil || u.queued != e.at {
			continue // stale
		}
		u.queued = never
		for {
			n, by, at := c.firstSession(u.open)
			if n == 0 || at > watermark {
				break
			}
			c.close(e.id, u, n, by)
		}
		if len(u.open) == 0 && c.forgetAt(u) <= watermark {
			delete(c.users, e.id)
			c.dirty[e.id] = struct{}{}
			continue
		}
		c.enqueue(e.id, u)
	}
}

// firstSession returns the length of the first session of open, what ends it,
// and from which watermark on that is final; n is 0 if open is empty.
func (c *Core) firstSession(open []*onerecv1.View) (n int, by onerecv1.ClosedBy, finalAt int64) {
	for i := range open {
		if i == 0 {
			continue
		}
		prev, t := open[i-1].EventTimeMs, open[i].EventTimeMs
		switch {
		case i == c.maxViews:
			return i, onerecv1.ClosedBy_CLOSED_BY_SIZE, prev + 1
		case t-prev > c.gap:
			return i, onerecv1.ClosedBy_CLOSED_BY_GAP, prev + c.gap + 1
		case t-open[0].EventTimeMs > c.maxAge:
			return i, onerecv1.ClosedBy_CLOSED_BY_AGE, open[0].EventTimeMs + c.maxAge + 1
		}
	}
	switch n := len(open); n {
	case 0:
		return 0, 0, never
	case c.maxViews:
		return n, onerecv1.ClosedBy_CLOSED_BY_SIZE, open[n-1].EventTimeMs + 1
	default:
		return n, onerecv1.ClosedBy_CLOSED_BY_GAP, open[n-1].EventTimeMs + c.gap + 1
	}
}

// forgetAt returns the watermark from which nothing about a user without open
// views can matter.
func (c *Core) forgetAt(u *user) int64 {
	at := u.closedThrough + c.gap
	if n := len(u.history); n > 0 {
		at = max(at, u.history[n-1].EventTimeMs+c.policy.MaxAge.Milliseconds())
	}
	return at + 1
}

func (c *Core) enqueue(id string, u *user) {
	n, _, at := c.firstSession(u.open)
	if n == 0 {
		at = c.forgetAt(u)
	}
	if at < u.queued {
		u.queued = at
		heap.Push(&c.due, dueUser{at, id})
	}
}

func (c *Core) close(id string, u *user, n int, by onerecv1.ClosedBy) {
	views := slices.Clone(u.open[:n])
	u.open = slices.Delete(u.open, 0, n)
	s := &onerecv1.Session{
		SessionId: sessionID(id, views[0]), UserId: id,
		StartMs: views[0].EventTimeMs, EndMs: views[n-1].EventTimeMs,
		Views: views, ClosedBy: by, History: history.Before(u.history, views[0].EventTimeMs),
	}
	for _, v := range views {
		if u.ids != nil {
			delete(u.ids, v.EventId)
		}
		s.TotalWatchMs += v.WatchMs
		s.Likes += count(v.Like)
		s.Follows += count(v.Follow)
		s.Comments += count(v.Comment)
		s.Shares += count(v.Share)
		s.Dislikes += count(v.Dislike)
		v.UserId = ""
	}
	if len(u.open) == 0 {
		u.ids = nil
	}
	u.history = c.policy.Append(slices.Clone(u.history), views)
	u.closedThrough = s.EndMs
	c.state.Closed++
	c.closed = append(c.closed, s)
	c.dirty[id] = struct{}{}
}

func count(b bool) int32 {
	if b {
		return 1
	}
	return 0
}

func compareViews(a, b *onerecv1.View) int {
	return cmp.Or(cmp.Compare(a.EventTimeMs, b.EventTimeMs), cmp.Compare(a.EventId, b.EventId))
}

// manyViews is the number of open views from which a map finds an event_id faster
// than a look at each. Most sessions stay below it and need no map.
const manyViews = 48

// knows reports whether an event_id is among the open views.
func (u *user) knows(eventID string) bool {
	if u.ids == nil && len(u.open) >= manyViews {
		u.ids = make(map[string]struct{}, 2*manyViews)
		for _, v := range u.open {
			u.ids[v.EventId] = struct{}{}
		}
	}
	if u.ids != nil {
		_, ok := u.ids[eventID]
		return ok
	}
	return slices.ContainsFunc(u.open, func(v *onerecv1.View) bool { return v.EventId == eventID })
}

func sessionID(user string, first *onerecv1.View) string {
	var buf [3 * 64]byte
	b := buf[:0]
	for _, s := range [...]string{user, first.EventId, strconv.FormatInt(first.EventTimeMs, 10)} {
		b = strconv.AppendInt(b, int64(len(s)), 10) // lengths keep "ab","c" and "a","bc" apart
		b = append(append(b, ':'), s...)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// TakeClosed returns the sessions closed since the last call, in the order in
// which they closed.
func (c *Core) TakeClosed() []*onerecv1.Session {
	closed := c.closed
	c.closed = nil
	return closed
}

// TakeDirty returns, sorted, the users whose state changed since the last call.
func (c *Core) TakeDirty() []string {
	ids := make([]string, 0, len(c.dirty))
	for id := range c.dirty {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	clear(c.dirty)
	return ids
}

// SaveUser returns a user's state for the changelog, nil if the user is
// forgotten. It shares memory with the core until the next Add.
func (c *Core) SaveUser(id string) *onerecv1.UserState {
	u := c.users[id]
	if u == nil {
		return nil
	}
	return &onerecv1.UserState{Open: u.open, History: u.history, ClosedThroughMs: u.closedThrough}
}

// SavePartition returns the watermark and the counters for the changelog.
func (c *Core) SavePartition() *onerecv1.PartitionState {
	return proto.CloneOf(&c.state)
}

// RestoreUser sets a user's state, as SaveUser gave it. The core keeps s.
func (c *Core) RestoreUser(id string, s *onerecv1.UserState) {
	u := &user{open: s.Open, history: s.History, closedThrough: s.ClosedThroughMs, queued: never}
	for _, v := range u.open {
		v.UserId = id
	}
	c.users[id] = u
	c.enqueue(id, u)
}

// RestorePartition sets what SavePartition gave.
func (c *Core) RestorePartition(s *onerecv1.PartitionState) {
	proto.Reset(&c.state)
	proto.Merge(&c.state, s)
}

// OpenUsers returns how many users the core remembers.
func (c *Core) OpenUsers() int { return len(c.users) }

type dueUser struct {
	at int64
	id string
}

// dueHeap is a container/heap of users; ties in order of id, so that the order
// in which sessions close does not depend on the order of a map.
type dueHeap []dueUser

func (h dueHeap) Len() int { return len(h) }
func (h dueHeap) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].id < h[j].id
}
func (h dueHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *dueHeap) Push(x any)   { *h = append(*h, x.(dueUser)) }
func (h *dueHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}
