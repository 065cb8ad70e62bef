// Package simulator makes view events of synthetic users with hidden tastes, for
// demos, load, tests, and to measure in a closed loop whether a model helps.
//
// A user has a taste and an item a content vector over the same latent topics; tastes
// drift. An item also has a quality, a duration, a day on which it comes and perhaps one on
// which it goes. How well an item suits a user now,
//
//	fit = taste . content + quality + freshness - fatigue - boredom,
//
// decides how much of it is watched, whether it is liked, followed, shared, commented or
// disliked, and whether the user stays: fatigue is what the session held of the topic
// lately, boredom that the user knows the item. None of this is in the events, which hold
// what a log would, and a [Policy] sees no more either.
//
// What a user is shown comes from a policy; the log carries the bias of whoever served
// it. A user's times, drift and reactions come from random numbers of their own, by user, session and
// place in the session, so that two policies are compared on the same luck (common random
// numbers).
//
// The same configuration gives the same events.
package simulator

import (
	"container/heap"
	"errors"
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	"onerec/schemas/onerecv1"
)

// Config says how large the world is, and how it moves. The figures of [DefaultConfig] are
// calibrated on real views, see docs/simulator.md.
type Config struct {
	Users, Items int
	Topics       int // latent dimensions
	Days         int // of the log
	SessionsADay float64
	Start        time.Time

	New       float64       // share of the items that come during the log, evenly
	Life      time.Duration // mean time after which an item goes; 0: it stays
	Drift     time.Duration // after which a taste keeps half of what it was; 0: it stays
	Fatigue   float64       // fit that each view of a topic takes from it, for a while
	Freshness float64       // fit of an item on its first day, falling by half each three days

	Duplicates float64 // share of events that are sent twice
	Broken     float64 // share of events with a negative watch time
	Seed       uint64
}

// DefaultConfig is a week of a small service.
func DefaultConfig() Config {
	return Config{
		Users: 250, Items: 800, Topics: 8, Days: 7, SessionsADay: 1.5,
		Start: time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC),
		New:   0.2, Life: 90 * 24 * time.Hour, Drift: 60 * 24 * time.Hour, Fatigue: 0.2, Freshness: 0.3,
		Duplicates: 0.003, Broken: 0.001, Seed: 1,
	}
}

func (c Config) check() error {
	for _, b := range []struct {
		name   string
		v, max int
	}{{"users", c.Users, 100_000_000}, {"items", c.Items, 100_000_000}, {"topics", c.Topics, 1024}, {"days", c.Days, 36_500}} {
		if b.v < 1 || b.v > b.max {
			return fmt.Errorf("simulate: %s is %d, allowed is 1 to %d", b.name, b.v, b.max)
		}
	}
	if !(c.SessionsADay > 0) || c.Duplicates < 0 || c.Duplicates > 1 || c.Broken < 0 || c.Broken > 1 || c.New < 0 || c.New > 1 {
		return errors.New("simulate: sessions a day must be above 0, the shares of new items, duplicates and broken events between 0 and 1")
	}
	if c.Life < 0 || c.Drift < 0 || !(c.Fatigue >= 0) || math.IsNaN(c.Freshness) {
		return errors.New("simulate: life, drift and fatigue can't be negative")
	}
	return nil
}

type item struct {
	id       string
	content  []float64
	quality  float64
	duration time.Duration
	topic    int32
	from, to time.Time // it can be shown from, until; to is zero if it stays
}

// live reports whether an item can be shown.
func (it *item) live(now time.Time) bool {
	return !now.Before(it.from) && (it.to.IsZero() || now.Before(it.to))
}

// World is a set of users and items, and where each user is. It is not safe for concurrent
// use; see [World.Shards].
type World struct {
	cfg     Config
	items   []item
	number  map[string]int32
	byTopic [][]int32
	popular []float64 // cumulative weights of exposure
	users   agenda
	refused int // items of a policy that could not be shown
}

// New draws a world.
func New(cfg Config) (*World, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	rng := rand.New(rand.NewPCG(cfg.Seed, 0x51a))
	w := &World{cfg: cfg, byTopic: make([][]int32, cfg.Topics), number: make(map[string]int32, cfg.Items)}
	span := time.Duration(cfg.Days) * 24 * time.Hour
	var sum float64
	for i, rank := range rng.Perm(cfg.Items) {
		it := item{
			id: fmt.Sprintf("v%05d", i), topic: int32(rng.IntN(cfg.Topics)), quality: 0.5 * rng.NormFloat64(),
			content: make([]float64, cfg.Topics), duration: drawDuration(rng), from: cfg.Start.AddDate(0, 0, -30),
		}
		for t := range it.content {
			it.content[t] = 0.25 * rng.NormFloat64()
		}
		it.content[it.topic]++
		if rng.Float64() < cfg.New {
			it.from = cfg.Start.Add(time.Duration(rng.Float64() * float64(span)))
		}
		if cfg.Life > 0 {
			if it.to = it.from.Add(time.Duration(rng.ExpFloat64() * float64(cfg.Life))); it.to.Before(cfg.Start) {
				it.to = it.to.Add(30*24*time.Hour + span) // who went before the log begins is none of its items
			}
		}
		w.number[it.id] = int32(len(w.items))
		w.items = append(w.items, it)
		w.byTopic[it.topic] = append(w.byTopic[it.topic], int32(i))
		sum += math.Exp(0.5*it.quality) / math.Pow(float64(rank+10), 0.8) // Zipf-like, a little by quality
		w.popular = append(w.popular, sum)
	}
	for i := range cfg.Users {
		u := &user{number: int32(i), id: fmt.Sprintf("u%05d", i), taste: make([]float64, cfg.Topics), fatigue: make([]float64, cfg.Topics), seen: make(map[int32]bool)}
		u.seed(cfg.Seed, streamUser, 0)
		u.appetite = 2.1 + 0.5*u.rng.NormFloat64()
		for t := range u.taste {
			u.taste[t] = tasteSpread * u.rng.NormFloat64()
		}
		u.next = cfg.Start.Add(w.pause(u))
		w.users = append(w.users, u)
	}
	heap.Init(&w.users)
	return w, nil
}

// drawDuration is a video's length: real ones are half short and half long.
func drawDuration(rng *rand.Rand) time.Duration {
	s := math.Exp(2.35 + 0.3*rng.NormFloat64())
	if rng.Float64() < 0.52 {
		s = math.Exp(3.75 + 0.75*rng.NormFloat64())
	}
	return time.Duration(min(max(s, 3), 600)*1000) * time.Millisecond
}

// Items returns how many items there are, those included that are not there yet or any more.
func (w *World) Items() int { return len(w.items) }

// ItemID returns the name of an item.
func (w *World) ItemID(item int32) string { return w.items[item].id }

// Item returns the number of the item of a name.
func (w *World) Item(id string) (int32, bool) {
	n, ok := w.number[id]
	return n, ok
}

// Live reports whether an item can be shown at a time.
func (w *World) Live(item int32, now time.Time) bool { return w.items[item].live(now) }

// Refused counts items that a policy wanted to show although they are not there.
func (w *World) Refused() int { return w.refused }

// Shards splits the users over n worlds, which may be run at the same time. The world itself
// is not to be used afterwards.
func (w *World) Shards(n int) []*World {
	shards := make([]*World, n)
	for i := range shards {
		s := *w
		s.users = nil
		shards[i] = &s
	}
	for _, u := range w.users {
		s := shards[int(u.number)%n]
		s.users = append(s.users, u)
	}
	for _, s := range shards {
		heap.Init(&s.users)
	}
	return shards
}

// Clone returns a world in the same state, so that what follows can be tried more than
// once.
func (w *World) Clone() *World {
	c := *w
	c.users = make(agenda, len(w.users))
	for i, u := range w.users {
		n := *u
		n.taste, n.fatigue, n.queue = slices.Clone(u.taste), slices.Clone(u.fatigue), slices.Clone(u.queue)
		n.session = slices.Clone(u.session)
		n.seen = make(map[int32]bool, len(u.seen))
		for k := range u.seen {
			n.seen[k] = true
		}
		n.rng, n.policy = nil, nil
		c.users[i] = &n
	}
	return &c
}

// Events yields the log: what the fixed ranker of [World.Ranker] showed, in the order of
// time, with doubles and broken events as configured. It goes on where the one before
// ended.
func (w *World) Events() iter.Seq[*onerecv1.ViewEvent] {
	end := w.cfg.Start.AddDate(0, 0, w.cfg.Days)
	faults := rand.New(rand.NewPCG(w.cfg.Seed, 0xfa17))
	return func(yield func(*onerecv1.ViewEvent) bool) {
		// The ranker can't fail.
		_ = w.Run(w.Ranker(), 1, end, func(e *onerecv1.ViewEvent) bool {
			if faults.Float64() < w.cfg.Broken {
				e.WatchMs = -1
			}
			return yield(e) && (faults.Float64() >= w.cfg.Duplicates || yield(proto.CloneOf(e)))
		})
	}
}

// Run lets the users live until a time, with what policy shows them, for whom it is asked n items at a time, and hands each view to fn in the order
// of time; the policy is asked for a user's next items only when fn has had all of the user's views. It
// ends early when fn returns false, and with the policy's error.
func (w *World) Run(policy Policy, n int, until time.Time, fn func(*onerecv1.ViewEvent) bool) error {
	for len(w.users) > 0 && w.users[0].next.Before(until) {
		e, err := w.view(w.users[0], policy, n)
		heap.Fix(&w.users, 0)
		if err != nil {
			return fmt.Errorf("simulate: %w", err)
		}
		if e != nil && !fn(e) {
			return nil
		}
	}
	return nil
}

// view lets a user watch one item and moves the user on; nil if there was nothing to watch.
func (w *World) view(u *user, policy Policy, n int) (*onerecv1.ViewEvent, error) {
	if u.left == 0 {
		w.open(u)
	}
	at, err := w.expose(u, policy, n)
	if err != nil {
		return nil, err
	}
	if at < 0 { // nothing to see: the user goes
		w.leave(u)
		return nil, nil
	}
	it := &w.items[at]
	u.seed(w.cfg.Seed, streamView, u.sessions<<16|uint64(len(u.session)))
	r := react(u.rng, w.fit(u, at), u.appetite, it.duration)
	e := &onerecv1.ViewEvent{
		EventId: "s" + strconv.FormatUint(w.cfg.Seed, 10) + "-" + strconv.Itoa(int(u.number)) + "-" + strconv.FormatUint(u.sessions, 10) + "-" + strconv.Itoa(len(u.session)),
		UserId:  u.id, ItemId: it.id, EventTimeMs: u.next.UnixMilli(), WatchMs: r.watched.Milliseconds(), DurationMs: it.duration.Milliseconds(), Surface: "feed",
		RecommendationId: u.list.RecommendationID, CheckpointVersion: u.list.CheckpointVersion,
		Like: r.like, Follow: r.follow, Comment: r.comment, Share: r.share, Dislike: r.dislike,
	}
	for t := range u.fatigue {
		u.fatigue[t] *= 0.8
	}
	u.fatigue[it.topic] += w.cfg.Fatigue
	u.seen[at] = true
	u.session = append(u.session, at)
	u.next = u.next.Add(r.watched + r.pause)
	if u.left--; !r.stays || u.left == 0 {
		w.leave(u)
	}
	return e, nil
}

// expose takes the next item of the list that the policy made, or asks for another list.
// It returns -1 if there is none.
func (w *World) expose(u *user, policy Policy, n int) (int32, error) {
	for asked := 0; ; asked++ {
		for len(u.queue) > 0 {
			at := u.queue[0]
			u.queue = u.queue[1:]
			if at >= 0 && int(at) < len(w.items) && w.items[at].live(u.next) {
				return at, nil
			}
			w.refused++
		}
		if asked == 2 {
			return -1, nil
		}
		u.asked++
		u.policySeed(w.cfg.Seed)
		list, err := policy.Recommend(Visit{User: u.id, Number: u.number, Now: u.next, Session: u.session, Rand: u.policy}, n)
		if err != nil {
			return -1, err
		}
		u.list, u.queue = list, append(u.queue[:0], list.Items...)
	}
}

// agenda is a container/heap of users by the time of their next view.
type agenda []*user

func (a agenda) Len() int { return len(a) }
func (a agenda) Less(i, j int) bool {
	return a[i].next.Before(a[j].next) || a[i].next.Equal(a[j].next) && a[i].number < a[j].number
}
func (a agenda) Swap(i, j int) { a[i], a[j] = a[j], a[i] }
func (a *agenda) Push(x any)   { *a = append(*a, x.(*user)) }
func (a *agenda) Pop() any {
	old := *a
	last := old[len(old)-1]
	*a = old[:len(old)-1]
	return last
}
