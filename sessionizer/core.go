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
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"slices"
	"strconv"
	"time"
	"unsafe"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"onerec/internal/history"
	"onerec/schemas"
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
	// MaxOpen bounds the open views of one user. Beyond it the user's first session is
	// closed without waiting for the watermark. 0: no limit.
	MaxOpen int
	// MaxSkew is how far ahead of the clock an event may be and still move the
	// watermark, so that one wrong clock does not close other users' sessions.
	MaxSkew time.Duration
	History history.Policy
}

// DefaultConfig returns the usual 30 min gap.
func DefaultConfig() Config {
	return Config{
		Gap: 30 * time.Minute, Lateness: 10 * time.Minute, MaxViews: 1000, MaxAge: 24 * time.Hour,
		MaxUsers: 1_000_000, MaxOpen: 10_000, MaxSkew: 10 * time.Minute, History: history.DefaultPolicy(),
	}
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
//
// It never builds Go values of views: an open view is the bytes that came, in one
// buffer a user, and what must be compared (time, event_id) in an index beside it.
// A closed session and a changelog record are joined from those bytes.
type Core struct {
	gap, lateness, maxAge       int64 // ms
	maxViews, maxUsers, maxOpen int
	ceiling                     int64 // events later than this don't move the watermark; ms since epoch
	policy                      history.Policy
	seed                        maphash.Seed

	users userTable
	due   dueHeap // when a user's next session may close; may hold stale entries
	state onerecv1.PartitionState
	dirty []*user // users changed since the last TakeChanges, each once

	closed  []Keyed
	taken   int // entries of closed that were handed out
	evicted int64

	in      schemas.RawView // the view at hand
	slab    []byte          // what is handed out is written into the room behind it
	used    [][]byte        // slabs that are full of what was handed out
	free    [][]byte        // slabs that nobody reads any more; see Recycle
	changes []Keyed         // what TakeChanges returned
	engaged history.Items   // scratch of close
	rest    []byte          // scratch of close
	spare   []buffers       // of users whose sessions have closed, for the next ones
	ahead   [LookAhead + dueAhead]*user
	fetched int64 // keeps the reads of fetch from being optimised away
}

// Keyed is an encoded message and its key.
type Keyed struct {
	Key   []byte
	Value []byte
}

// user is one user's memory.
type user struct {
	id string
	buffers
	ids           map[uint32]struct{} // the hashes of open, once there are many; see knows
	history       history.Items
	closedThrough int64
	newest        int64 // time of the history's newest item
	queued        int64 // earliest due time in the heap for this user
	last          int64 // of the due times in the heap that of when the user may be forgotten; never: none
	dirty, gone   bool

	// What the changelog holds of the user; see TakeChanges.
	rewrite   bool   // the change since then can't be told by an addition
	additions uint8  // to the whole state
	slots     uint8  // keys of additions ever used
	epoch     uint32 // of the whole state; 0: nothing was written yet
	whole     uint32 // bytes of the whole state
	added     uint32 // bytes of its additions
	saved     uint32 // bytes of buf that are in the changelog
	fresh     uint32 // bytes at the end of history that are not
	closed    bool   // a session has closed since
}

// buffers hold a user's open views.
type buffers struct {
	open []openView // in order of time, then event_id
	buf  []byte     // the views in the order in which they came, each as the field views of a Session
}

// openView says where a view is in its user's buffer, and what closing its session
// needs to know, so that no view is decoded twice. It has no pointers.
type openView struct {
	ms               int64  // since epoch
	id               uint32 // hash of the event_id
	at, size         uint32
	watch            uint32 // ms
	itemAt, itemSize uint16 // in the view's bytes
	flags            uint8
}

// Flags of an openView.
const (
	liked = 1 << iota
	followed
	commented
	shared
	disliked
	engaged // belongs into the history
	wide    // watch or item do not fit; the view must be decoded
)

// index returns the openView of a view that starts at at and takes size bytes.
func (c *Core) index(v *schemas.RawView, id uint32, at, size int) openView {
	o := openView{ms: v.EventTimeMs, id: id, at: uint32(at), size: uint32(size), watch: uint32(v.WatchMs)}
	if v.Engagement != (schemas.Engagement{}) { // few views have any
		o.flags = flags(v.Engagement)
	}
	if c.policy.Engaged(v) {
		o.flags |= engaged
	}
	itemAt := size - v.SizeWithoutUser() + v.ItemWithoutUser()
	o.itemAt, o.itemSize = uint16(itemAt), uint16(len(v.ItemID))
	if int64(o.watch) != v.WatchMs || v.ItemWithoutUser() < 0 || int(o.itemAt) != itemAt || int(o.itemSize) != len(v.ItemID) {
		o.flags |= wide
	}
	return o
}

const (
	never = math.MaxInt64
	// manyViews is the number of open views from which a map finds an event_id faster
	// than a look at each. Most sessions stay below it and need no map.
	manyViews = 128
	// A user's whole state is written again once its additions are as large as it is,
	// or as many as this: so whatever the sizes, the changelog takes about twice what
	// has changed, and a user has at most so many keys.
	maxAdditions = 64
	maxSpare     = 1024    // buffers kept at most
	maxDue       = 4       // entries of the heap a user, at most; two are of use
	slabSize     = 1 << 16 // bytes
	maxSlabs     = 128     // kept at most
	// maxBuffer bounds the encoded open views of one user, which openView counts in 32 bits.
	maxBuffer = 1 << 30
)

// New returns an empty core.
func New(cfg Config) *Core {
	return &Core{
		gap: cfg.Gap.Milliseconds(), lateness: cfg.Lateness.Milliseconds(),
		maxAge: cfg.MaxAge.Milliseconds(), maxViews: cfg.MaxViews, maxUsers: cfg.MaxUsers, maxOpen: cfg.MaxOpen,
		ceiling: never, policy: cfg.History, seed: maphash.MakeSeed(),
		users: newUserTable(),
	}
}

// LookAhead is the number of users that [Core.Preload] reads side by side, and dueAhead
// that of those whose sessions close next: a read that is not used costs little, a
// wait much. 16 gave less and 64 no more.
const (
	LookAhead = 32
	dueAhead  = 5
)

// Add takes an encoded View and moves the watermark. Sessions that this closes are
// returned by [Core.TakeClosed]. The core copies what it keeps. An error says that
// value is no View; nothing has changed then.
func (c *Core) Add(value []byte) (Outcome, error) {
	v := &c.in
	if err := v.Scan(value); err != nil {
		return 0, err
	}
	if len(v.UserID) > 0 && v.UserID[0] == 0 {
		return 0, errors.New("user_id starts with a zero byte, which the changelog's keys reserve")
	}
	u := c.users.get(v.UserID)
	id := uint32(maphash.Bytes(c.seed, v.EventID))
	outcome := Accepted
	switch {
	case u != nil && u.knows(id, v.EventID):
		outcome = Duplicate
		c.state.Duplicates++
	case c.isLate(u, v):
		outcome = Late
		c.state.Late++
	default:
		c.state.Accepted++
		if u == nil {
			u = &user{id: string(v.UserID), queued: never, last: never}
			c.users.put(u)
		}
		c.insert(u, v, id)
	}
	if v.EventTimeMs > c.state.MaxEventTimeMs && v.EventTimeMs <= c.ceiling {
		c.state.MaxEventTimeMs = v.EventTimeMs
	}
	c.Advance(c.state.MaxEventTimeMs - c.lateness)
	for c.maxUsers > 0 && c.users.n > c.maxUsers {
		c.evict()
	}
	return outcome, nil
}

// Preload reads what the next views will need, given their user_ids, [LookAhead] at
// most. It changes nothing but the speed: among many users each read of a user waits
// for the memory, one after the other within Add, but here they don't depend on each
// other, so that a processor has many under way at once. (As in: Chen et al., Improving
// Hash Join Performance through Prefetching, 2004.)
func (c *Core) Preload(userIDs [][]byte) {
	userIDs = userIDs[:min(LookAhead, len(userIDs))]
	var hashes [LookAhead]uint64
	var sum uint64
	for i, id := range userIDs {
		hashes[i] = maphash.Bytes(c.users.seed, id)
		sum += c.users.slots[c.users.home(hashes[i])].hash
	}
	c.fetched += int64(sum)
	users := c.ahead[:0]
	for i := range userIDs {
		if u := c.users.guess(hashes[i]); u != nil {
			users = append(users, u)
		}
	}
	closing := len(users)
	for _, e := range c.due[:min(dueAhead, len(c.due))] { // sessions that will close next
		users = append(users, e.user)
	}
	c.fetch(users)
	c.fetchAll(users[closing:])
}

// cacheLine is the size of what a processor reads at once, in bytes.
const cacheLine = 64

// fetch reads a word of most cache lines that Add and TakeChanges will read of users:
// first of the users themselves, then of what they point to.
func (c *Core) fetch(users []*user) {
	var sum int64
	for _, u := range users {
		sum += u.closedThrough + int64(u.saved) + int64(len(u.id))
	}
	const step = max(cacheLine/int(unsafe.Sizeof(openView{})), 1)
	for _, u := range users {
		if len(u.id) > 0 {
			sum += int64(u.id[0])
		}
		for i := 0; i < min(len(u.open), manyViews); i += step {
			sum += u.open[i].ms
		}
		if last := len(u.buf) - 1; last >= 0 {
			sum += int64(u.buf[last])
		}
	}
	c.fetched += sum
}

// fetchAll does the same for the views and the history, which close will read.
func (c *Core) fetchAll(users []*user) {
	var sum int64
	for _, u := range users {
		for i := 0; i < len(u.buf); i += cacheLine {
			sum += int64(u.buf[i])
		}
		for i := 0; i < len(u.history); i += cacheLine {
			sum += int64(u.history[i])
		}
	}
	c.fetched += sum
}

func flags(e schemas.Engagement) (f uint8) {
	for i, on := range [...]bool{e.Like, e.Follow, e.Comment, e.Share, e.Dislike} { // in the order of the flags
		if on {
			f |= 1 << i
		}
	}
	return f
}

// insert puts a view among the open ones of a user.
func (c *Core) insert(u *user, v *schemas.RawView, id uint32) {
	if u.open == nil && len(c.spare) > 0 {
		last := len(c.spare) - 1
		u.buffers = c.spare[last]
		c.spare = c.spare[:last]
	}
	at := len(u.open)
	atEnd := at == 0 || v.EventTimeMs > u.open[at-1].ms
	if !atEnd {
		at = u.search(v)
	}
	start := len(u.buf)
	u.buf = protowire.AppendVarint(append(u.buf, byte(tagViews)), uint64(v.SizeWithoutUser()))
	u.buf = v.AppendWithoutUser(u.buf)
	u.open = slices.Insert(u.open, at, c.index(v, id, start, len(u.buf)-start))
	if u.ids != nil {
		u.ids[id] = struct{}{}
	}
	c.touch(u)
	// A view behind the others can't bring the first session's end nearer, unless the
	// session is full or too old with it.
	if !atEnd || len(u.open) == 1 || len(u.open) >= c.maxViews || v.EventTimeMs-u.open[0].ms > c.maxAge {
		c.enqueue(u)
	}
	for c.maxOpen > 0 && len(u.open) > c.maxOpen || len(u.buf) > maxBuffer {
		c.closeEarly(u)
	}
}

// search returns where v belongs among the open views.
func (u *user) search(v *schemas.RawView) int {
	at, _ := slices.BinarySearchFunc(u.open, v, func(o openView, v *schemas.RawView) int {
		if o.ms != v.EventTimeMs {
			return cmp.Compare(o.ms, v.EventTimeMs)
		}
		return bytes.Compare(u.view(o).EventID, v.EventID)
	})
	return at
}

// raw returns an open view as the field views of a Session.
func (b *buffers) raw(o openView) []byte { return b.buf[o.at : o.at+o.size] }

// view finds the fields of an open view.
func (b *buffers) view(o openView) (v schemas.RawView) {
	value, _ := protowire.ConsumeBytes(b.raw(o)[1:])
	if err := v.Scan(value); err != nil {
		panic("an open view was scanned before: " + err.Error())
	}
	return v
}

// touch notes that a user's state has changed.
func (c *Core) touch(u *user) {
	if !u.dirty {
		u.dirty = true
		c.dirty = append(c.dirty, u)
	}
}

// forget removes a user.
func (c *Core) forget(u *user) {
	u.gone = true
	u.history, u.buffers, u.ids = nil, buffers{}, nil // an entry of the heap may outlive it
	c.users.remove(u)
	c.touch(u)
}

// SetCeiling tells the latest event time, in ms since the epoch, that may move the
// watermark from now on. The core has no clock of its own.
func (c *Core) SetCeiling(ms int64) { c.ceiling = ms }

// evict closes what the user who is due first has open, and forgets the user.
func (c *Core) evict() {
	for {
		u, at := c.nextDue(never)
		if u == nil {
			return
		}
		if c.dueAt(u) > at {
			c.enqueue(u)
			continue
		}
		for len(u.open) > 0 {
			c.closeEarly(u)
		}
		c.forget(u)
		c.evicted++
		return
	}
}

// closeEarly closes a user's first session because of a limit.
func (c *Core) closeEarly(u *user) {
	n, by, at := c.firstSession(u.open)
	if at > c.state.WatermarkMs {
		by = onerecv1.ClosedBy_CLOSED_BY_LIMIT
	}
	c.close(u, n, by)
}

// Evicted returns how many users the limit has cost since the core was made.
func (c *Core) Evicted() int64 { return c.evicted }

// isLate reports whether the session that v belongs to has closed: v is not
// after what was closed, and the open views within reach of it, if any, do not
// keep its session open.
func (c *Core) isLate(u *user, v *schemas.RawView) bool {
	end := v.EventTimeMs
	if u != nil {
		if v.EventTimeMs <= u.closedThrough {
			return true
		}
		if n := len(u.open); n > 0 && u.open[n-1].ms >= v.EventTimeMs {
			for _, next := range u.open[u.search(v):] {
				if next.ms-end > c.gap {
					break
				}
				end = next.ms
			}
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
	for u, _ := c.nextDue(watermark); u != nil; u, _ = c.nextDue(watermark) {
		for {
			n, by, at := c.firstSession(u.open)
			if n == 0 || at > watermark {
				break
			}
			c.close(u, n, by)
		}
		if len(u.open) == 0 && c.forgetAt(u) <= watermark {
			c.forget(u)
			continue
		}
		c.enqueue(u)
	}
}

// nextDue takes the user out of the heap whose entry is the first, if that is by the watermark,
// and returns the entry's time, before which nothing happens to the user; else it returns nil.
func (c *Core) nextDue(watermark int64) (u *user, at int64) {
	for len(c.due) > 0 && c.due[0].at <= watermark {
		e := c.due.pop()
		u := e.user
		if e.at == u.last {
			u.last = never
		}
		if u.gone || e.at != u.queued {
			continue // there is another entry
		}
		u.queued = never
		return u, e.at
	}
	return nil, 0
}

// firstSession returns the length of the first session of open, what ends it,
// and from which watermark on that is final; n is 0 if open is empty.
func (c *Core) firstSession(open []openView) (n int, by onerecv1.ClosedBy, finalAt int64) {
	for i := range open {
		if i == 0 {
			continue
		}
		prev, t := open[i-1].ms, open[i].ms
		switch {
		case i == c.maxViews:
			return i, onerecv1.ClosedBy_CLOSED_BY_SIZE, prev + 1
		case t-prev > c.gap:
			return i, onerecv1.ClosedBy_CLOSED_BY_GAP, prev + c.gap + 1
		case t-open[0].ms > c.maxAge:
			return i, onerecv1.ClosedBy_CLOSED_BY_AGE, open[0].ms + c.maxAge + 1
		}
	}
	switch n := len(open); n {
	case 0:
		return 0, 0, never
	case c.maxViews:
		return n, onerecv1.ClosedBy_CLOSED_BY_SIZE, open[n-1].ms + 1
	default:
		return n, onerecv1.ClosedBy_CLOSED_BY_GAP, open[n-1].ms + c.gap + 1
	}
}

// forgetAt returns the watermark from which nothing about a user without open
// views can matter.
func (c *Core) forgetAt(u *user) int64 {
	at := u.closedThrough + c.gap
	if len(u.history) > 0 {
		at = max(at, u.newest+c.policy.MaxAge.Milliseconds())
	}
	return at + 1
}

// enqueue sees to it that the heap holds the user, no later than at the time when the first
// session may close or the user may be forgotten. It may be earlier: who is taken out too
// early is put in again. So a user who goes on watching costs no entry a view, and none a
// session: beside that of the open session at most one, of when to forget, is kept.
func (c *Core) enqueue(u *user) {
	n, _, at := c.firstSession(u.open)
	if n == 0 {
		at = min(c.forgetAt(u), u.last)
	}
	switch {
	case at >= u.queued:
		return
	case n == 0 && at == u.last: // there is an entry
		u.queued = at
		return
	case n == 0:
		u.last = at
	}
	u.queued = at
	if len(c.due) >= maxDue*(c.users.n+1) {
		c.due.clean() // of users who were evicted, most of all
	}
	c.due.push(dueUser{at, u})
}

// dueAt returns from which watermark on something happens to the user.
func (c *Core) dueAt(u *user) int64 {
	if n, _, at := c.firstSession(u.open); n > 0 {
		return at
	}
	return c.forgetAt(u)
}

// Tags of Session's fields, the field number over the kind. UserState uses the same
// numbers for views and history.
const (
	tagSessionID = 1<<3 | uint64(protowire.BytesType)
	tagUserID    = 2<<3 | uint64(protowire.BytesType)
	tagStartMs   = 3<<3 | uint64(protowire.VarintType)
	tagEndMs     = 4<<3 | uint64(protowire.VarintType)
	tagViews     = 5<<3 | uint64(protowire.BytesType)
	tagWatchMs   = 6<<3 | uint64(protowire.VarintType)
	tagLikes     = 7<<3 | uint64(protowire.VarintType)
	tagFollows   = 8<<3 | uint64(protowire.VarintType)
	tagComments  = 9<<3 | uint64(protowire.VarintType)
	tagShares    = 10<<3 | uint64(protowire.VarintType)
	tagDislikes  = 11<<3 | uint64(protowire.VarintType)
	tagClosedBy  = 12<<3 | uint64(protowire.VarintType)
	tagHistory   = history.Field<<3 | uint64(protowire.BytesType)

	// Of UserState, and of it alone.
	tagClosedThrough = 1<<3 | uint64(protowire.VarintType)
	tagEpoch         = 2<<3 | uint64(protowire.VarintType)

	// sessionOverhead bounds the bytes of a Session beside its user_id, views and history.
	sessionOverhead = 192
)

// close writes the first n open views as a Session.
func (c *Core) close(u *user, n int, by onerecv1.ClosedBy) {
	views := u.open[:n]
	start, end := views[0].ms, views[n-1].ms
	earlier := u.history
	if u.closedThrough >= start { // only after a cut by size
		earlier = earlier.Before(start)
	}
	size := sessionOverhead + 2*len(u.id) + len(earlier)
	for _, o := range views {
		size += int(o.size)
	}
	first := u.view(views[0])
	b := c.room(size)
	b = append(b, u.id...)
	key := len(b)
	b = protowire.AppendVarint(b, tagSessionID)
	b = appendSessionID(append(b, sessionIDSize), u.id, first.EventID, start)
	b = protowire.AppendString(protowire.AppendVarint(b, tagUserID), u.id)
	b = appendVarint(b, tagStartMs, start)
	b = appendVarint(b, tagEndMs, end)
	var watch, likes, follows, comments, shares, dislikes int64
	c.engaged = c.engaged[:0]
	for _, o := range views {
		raw := u.raw(o)
		b = append(b, raw...)
		var item []byte
		watched := int64(o.watch)
		if o.flags&wide == 0 {
			item = raw[o.itemAt:][:o.itemSize]
		} else {
			v := u.view(o)
			item, watched = v.ItemID, v.WatchMs
		}
		watch += watched
		likes += int64(o.flags & liked / liked)
		follows += int64(o.flags & followed / followed)
		comments += int64(o.flags & commented / commented)
		shares += int64(o.flags & shared / shared)
		dislikes += int64(o.flags & disliked / disliked)
		if o.flags&engaged != 0 {
			c.engaged = c.engaged.Append(item, o.ms)
			u.newest = o.ms
		}
		if u.ids != nil {
			delete(u.ids, o.id)
		}
	}
	b = appendVarint(b, tagWatchMs, watch)
	b = appendVarint(b, tagLikes, likes)
	b = appendVarint(b, tagFollows, follows)
	b = appendVarint(b, tagComments, comments)
	b = appendVarint(b, tagShares, shares)
	b = appendVarint(b, tagDislikes, dislikes)
	b = appendVarint(b, tagClosedBy, int64(by))
	b = append(b, earlier...)
	c.closed = append(c.closed, c.handOut(b, key))

	if len(c.engaged) > 0 {
		u.history = c.policy.Extend(u.history, c.engaged)
		u.fresh += uint32(len(c.engaged))
	}
	u.closedThrough, u.closed = end, true
	c.state.Closed++
	c.remove(u, n)
	c.touch(u)
}

// remove takes the first n views out of a user's buffer.
func (c *Core) remove(u *user, n int) {
	u.saved = 0
	if n == len(u.open) {
		u.ids = nil
		if len(c.spare) < maxSpare && cap(u.buf) <= slabSize {
			c.spare = append(c.spare, buffers{u.open[:0], u.buf[:0]})
		}
		u.buffers = buffers{}
		return
	}
	u.rewrite = true // which of the rest are in the changelog is forgotten here
	c.rest = c.rest[:0]
	u.open = slices.Delete(u.open, 0, n)
	for i, o := range u.open {
		u.open[i].at = uint32(len(c.rest))
		c.rest = append(c.rest, u.raw(o)...)
	}
	u.buf = append(u.buf[:0], c.rest...)
}

// room returns an empty slice with room for n bytes, into which the caller appends;
// what is behind them becomes the next slab.
func (c *Core) room(n int) []byte {
	if cap(c.slab) >= n {
		return c.slab[:0]
	}
	if n > slabSize/4 { // its own, and the slab goes on
		return make([]byte, 0, n)
	}
	if last := len(c.free) - 1; last >= 0 {
		c.slab = c.free[last]
		c.free = c.free[:last]
	} else {
		c.slab = make([]byte, 0, slabSize)
	}
	c.used = append(c.used, c.slab)
	return c.slab
}

// handOut ends what was written into room: a key and a value behind it.
func (c *Core) handOut(b []byte, key int) Keyed {
	if cap(c.slab) > 0 && &b[0] == &c.slab[:1][0] {
		c.slab = b[len(b):]
	}
	return Keyed{b[:key:key], b[key:len(b):len(b)]}
}

// Recycle takes back the memory of all that TakeClosed and TakeChanges have returned:
// the caller says that nobody reads it any more. It does nothing while closed sessions
// wait to be taken.
func (c *Core) Recycle() {
	if len(c.closed) > 0 {
		return
	}
	clear(c.closed[:c.taken]) // so that none of it is held for want of the next transaction
	clear(c.changes)
	c.taken = 0
	if n := len(c.used) - 1; n >= 0 { // the last one is still written into
		room := min(n, maxSlabs-len(c.free))
		c.free = append(c.free, c.used[:room]...)
		c.used[0] = c.used[n]
		clear(c.used[1:])
		c.used = c.used[:1]
	}
}

// appendVarint appends a field, or nothing for its default value.
func appendVarint(b []byte, tag uint64, x int64) []byte {
	if x == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendVarint(b, tag), uint64(x))
}

// knows reports whether an event_id is among the open views.
func (u *user) knows(id uint32, eventID []byte) bool {
	if u.ids == nil && len(u.open) >= manyViews {
		u.ids = make(map[uint32]struct{}, 2*manyViews)
		for _, o := range u.open {
			u.ids[o.id] = struct{}{}
		}
	}
	if u.ids != nil {
		if _, ok := u.ids[id]; !ok {
			return false
		}
	}
	for _, o := range u.open {
		if o.id == id {
			if v := u.view(o); bytes.Equal(v.EventID, eventID) {
				return true
			}
		}
	}
	return false
}

const sessionIDSize = 32 // hex digits

// appendSessionID appends the first half of the SHA-256 of what names a session.
func appendSessionID(dst []byte, user string, eventID []byte, ms int64) []byte {
	var text [3 * 64]byte
	b := text[:0]
	// Lengths keep "ab","c" and "a","bc" apart.
	b = append(append(strconv.AppendInt(b, int64(len(user)), 10), ':'), user...)
	b = append(append(strconv.AppendInt(b, int64(len(eventID)), 10), ':'), eventID...)
	var digits [20]byte
	d := strconv.AppendInt(digits[:0], ms, 10)
	b = append(append(strconv.AppendInt(b, int64(len(d)), 10), ':'), d...)
	sum := sha256.Sum256(b)
	return hex.AppendEncode(dst, sum[:sessionIDSize/2])
}

// TakeClosed returns the sessions closed since the last call, encoded, in the order
// in which they closed. The slice is good until the core is used again, what it holds
// until [Core.Recycle].
func (c *Core) TakeClosed() []Keyed {
	closed := c.closed
	c.closed, c.taken = closed[:0], max(c.taken, len(closed))
	return closed
}

// Changed reports whether TakeChanges has something to return.
func (c *Core) Changed() bool { return len(c.dirty) > 0 }

// TakeChanges returns what the changelog must take up so that it holds the core's
// state; see UserState for keys and values. A nil value is a tombstone. The slice is
// good until the core is used again, what it holds until [Core.Recycle].
func (c *Core) TakeChanges() []Keyed {
	changes := c.changes[:0]
	for i, u := range c.dirty {
		if i%LookAhead == 0 {
			c.fetch(c.dirty[i:min(i+LookAhead, len(c.dirty))])
		}
		u.dirty = false
		c.dirty[i] = nil
		switch {
		case u.gone:
			for n := range u.slots {
				changes = append(changes, Keyed{Key: additionKey(nil, n+1, u.id)})
			}
			if c.users.get([]byte(u.id)) == nil { // else the user came back, as another value
				changes = append(changes, Keyed{Key: []byte(u.id)})
			}
		case u.epoch == 0, u.rewrite, u.added >= u.whole, u.additions == maxAdditions, int(u.fresh) > len(u.history):
			u.epoch++
			u.additions, u.added, u.rewrite = 0, 0, false
			change := c.keyed(u, 0)
			u.whole = uint32(len(change.Value))
			changes = append(changes, change)
		default:
			u.additions++
			u.slots = max(u.slots, u.additions)
			change := c.keyed(u, u.additions)
			u.added += uint32(len(change.Value))
			changes = append(changes, change)
		}
	}
	c.dirty, c.changes = c.dirty[:0], changes
	return changes
}

// keyed writes a user's addition n, or the whole state for 0.
func (c *Core) keyed(u *user, n uint8) Keyed {
	views, items, through := u.buf, u.history, u.closedThrough
	if n > 0 {
		views, items = views[u.saved:], items[len(items)-int(u.fresh):]
		if !u.closed {
			through = 0
		}
	}
	const overhead = 2 + 2*(1+10)
	b := c.room(overhead + len(u.id) + len(views) + len(items))
	if n > 0 {
		b = additionKey(b, n, u.id)
	} else {
		b = append(b, u.id...)
	}
	key := len(b)
	b = appendVarint(b, tagClosedThrough, through)
	b = appendVarint(b, tagEpoch, int64(u.epoch))
	b = append(b, views...)
	b = append(b, items...)
	u.saved, u.fresh, u.closed = uint32(len(u.buf)), 0, false
	return c.handOut(b, key)
}

func additionKey(dst []byte, n uint8, user string) []byte {
	return append(append(dst, 0, n), user...)
}

// SavePartition returns the watermark and the counters for the changelog.
func (c *Core) SavePartition() *onerecv1.PartitionState {
	return proto.CloneOf(&c.state)
}

// Restore sets what TakeChanges gave, from the newest value of each key, tombstones
// left out, in any order. The core must be empty; it copies what it keeps.
func (c *Core) Restore(changelog []Keyed) error {
	var additions [maxAdditions + 1][]Keyed // by number
	restore := func(r Keyed, id string, n uint8) error {
		if err := c.restore(r.Value, id, n); err != nil {
			// No user is named in logs; who has the topic finds the key by its hash.
			return fmt.Errorf("state of the user whose id has SHA-256 %.8x..., addition %d: %w", sha256.Sum256([]byte(id)), n, err)
		}
		return nil
	}
	for _, r := range changelog {
		switch {
		case len(r.Key) == 0 || r.Key[0] != 0:
			if err := restore(r, string(r.Key), 0); err != nil {
				return err
			}
		case len(r.Key) > 1 && r.Key[1] >= 1 && r.Key[1] <= maxAdditions:
			additions[r.Key[1]] = append(additions[r.Key[1]], r)
		default:
			return fmt.Errorf("key %q is none of the sessionizer's", r.Key)
		}
	}
	for n, records := range additions {
		for _, r := range records {
			if err := restore(r, string(r.Key[2:]), uint8(n)); err != nil {
				return err
			}
		}
	}
	for u := range c.users.all {
		u.newest = u.history.Newest()
		u.saved = uint32(len(u.buf))
		c.enqueue(u)
	}
	return nil
}

// restore takes a user's whole state, or addition n to it.
func (c *Core) restore(value []byte, id string, n uint8) error {
	u := c.users.get([]byte(id))
	if n == 0 {
		u = &user{id: id, queued: never, last: never, whole: uint32(len(value))}
	} else if u == nil {
		return errors.New("the state that it adds to is not there")
	}
	u.slots = max(u.slots, n)
	var epoch, through int64
	var views, items int // bytes
	err := schemas.EachField(value, func(num protowire.Number, kind protowire.Type, field []byte) (err error) {
		switch protowire.EncodeTag(num, kind) {
		case tagClosedThrough:
			through = int64(schemas.Varint(field))
		case tagEpoch:
			epoch = int64(schemas.Varint(field))
		case tagViews:
			views += 1 + protowire.SizeBytes(len(field))
		case tagHistory:
			items += 1 + protowire.SizeBytes(len(field))
		}
		return err
	})
	if err != nil {
		return err
	}
	switch {
	case epoch < 0 || epoch >= math.MaxUint32:
		return fmt.Errorf("epoch %d is out of bounds", epoch)
	case n > 0 && epoch > int64(u.epoch):
		return fmt.Errorf("it adds to the state of epoch %d, and the newest is of epoch %d", epoch, u.epoch)
	case n > 0 && epoch < int64(u.epoch):
		return nil // left over
	}
	if n > 0 && n != u.additions+1 {
		return fmt.Errorf("addition %d is missing", u.additions+1)
	}
	u.epoch, u.additions = uint32(epoch), n
	if n > 0 {
		u.added += uint32(len(value))
	}
	u.history, u.buf = slices.Grow(u.history, items), slices.Grow(u.buf, views)
	err = schemas.EachField(value, func(num protowire.Number, kind protowire.Type, field []byte) (err error) {
		switch protowire.EncodeTag(num, kind) {
		case tagViews:
			v := &c.in
			if err := v.Scan(field); err != nil {
				return err
			}
			start := len(u.buf)
			u.buf = protowire.AppendBytes(append(u.buf, byte(tagViews)), field)
			at := len(u.open)
			if at > 0 && v.EventTimeMs <= u.open[at-1].ms {
				at = u.search(v)
			}
			u.open = slices.Insert(u.open, at, c.index(v, uint32(maphash.Bytes(c.seed, v.EventID)), start, len(u.buf)-start))
		case tagHistory:
			u.history, err = u.history.Parse(field)
		}
		return err
	})
	if err != nil {
		return err
	}
	if through != 0 {
		u.closedThrough = through
		if closed := slices.IndexFunc(u.open, func(o openView) bool { return o.ms > through }); n > 0 && closed != 0 && len(u.open) > 0 {
			if closed < 0 {
				closed = len(u.open)
			}
			c.remove(u, closed)
			u.rewrite = false
		}
	}
	u.history = c.policy.Trim(u.history)
	c.users.put(u)
	return nil
}

// RestorePartition sets what SavePartition gave.
func (c *Core) RestorePartition(s *onerecv1.PartitionState) {
	proto.Reset(&c.state)
	proto.Merge(&c.state, s)
}

// OpenUsers returns how many users the core remembers.
func (c *Core) OpenUsers() int { return c.users.n }
