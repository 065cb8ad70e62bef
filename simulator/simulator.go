// Package simulator makes view events of synthetic users with hidden tastes, for
// demos, load and tests.
//
// A user has a taste and an item a content vector over the same latent topics;
// an item also has a quality and a duration, a user an appetite. How well an item
// suits a user,
//
//	fit = taste . content + quality,
//
// decides how much of it is watched, whether it is liked, followed, shared,
// commented or disliked, and whether the user stays. What a user is shown comes
// from a policy that knows popularity and, noisily, tastes, and likes to go on
// with what was just watched. None of this is in the events: they hold what a log
// would.
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
	"time"

	"google.golang.org/protobuf/proto"

	"onerec/schemas/onerecv1"
)

// Config says how large the world is.
type Config struct {
	Users, Items int
	Topics       int // latent dimensions
	Days         int
	SessionsADay float64 // mean, by user
	Start        time.Time
	Duplicates   float64 // share of events that are sent twice
	Broken       float64 // share of events with a negative watch time
	Seed         uint64
}

// DefaultConfig is a week of a small service.
func DefaultConfig() Config {
	return Config{
		Users: 250, Items: 800, Topics: 8, Days: 7, SessionsADay: 1.5,
		Start: time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC), Duplicates: 0.003, Broken: 0.001, Seed: 1,
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
	if !(c.SessionsADay > 0) || c.Duplicates < 0 || c.Duplicates > 1 || c.Broken < 0 || c.Broken > 1 {
		return errors.New("simulate: sessions a day must be above 0, the shares of duplicates and broken events between 0 and 1")
	}
	return nil
}

type item struct {
	id       string
	content  []float64
	quality  float64
	duration time.Duration
	topic    int
}

type user struct {
	id       string
	taste    []float64
	appetite float64 // log odds of staying
	next     time.Time
	left     int   // most views left in this session; 0: between sessions
	last     *item // watched before in this session
	rng      *rand.Rand
}

// World is a set of users and items.
type World struct {
	cfg     Config
	items   []item
	byTopic [][]int32
	popular []float64 // cumulative weights of exposure
	users   agenda
}

// New draws a world.
func New(cfg Config) (*World, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	rng := rand.New(rand.NewPCG(cfg.Seed, 0x51a))
	w := &World{cfg: cfg, byTopic: make([][]int32, cfg.Topics)}
	var sum float64
	for i, rank := range rng.Perm(cfg.Items) {
		it := item{
			id: fmt.Sprintf("v%05d", i), topic: rng.IntN(cfg.Topics), quality: 0.5 * rng.NormFloat64(),
			content:  make([]float64, cfg.Topics),
			duration: time.Duration(math.Exp(math.Log(20_000)+0.6*rng.NormFloat64())) * time.Millisecond,
		}
		for t := range it.content {
			it.content[t] = 0.25 * rng.NormFloat64()
		}
		it.content[it.topic]++
		w.items = append(w.items, it)
		w.byTopic[it.topic] = append(w.byTopic[it.topic], int32(i))
		sum += math.Exp(0.5*it.quality) / math.Pow(float64(rank+10), 0.8) // Zipf-like, a little by quality
		w.popular = append(w.popular, sum)
	}
	for i := range cfg.Users {
		u := &user{id: fmt.Sprintf("u%05d", i), taste: make([]float64, cfg.Topics), appetite: 1.6 + 0.5*rng.NormFloat64(), rng: rand.New(rand.NewPCG(cfg.Seed, uint64(i)+1<<32))}
		for t := range u.taste {
			u.taste[t] = 1.1 * rng.NormFloat64()
		}
		u.next = cfg.Start.Add(w.pause(u))
		w.users = append(w.users, u)
	}
	heap.Init(&w.users)
	return w, nil
}

// pause is the time to a user's next session.
func (w *World) pause(u *user) time.Duration {
	return time.Hour + time.Duration(u.rng.ExpFloat64()*float64(24*time.Hour)/w.cfg.SessionsADay)
}

// Events yields the events in the order of their time; it can be ranged over
// once.
func (w *World) Events() iter.Seq[*onerecv1.ViewEvent] {
	end := w.cfg.Start.AddDate(0, 0, w.cfg.Days)
	faults := rand.New(rand.NewPCG(w.cfg.Seed, 0xfa17))
	n := 0
	return func(yield func(*onerecv1.ViewEvent) bool) {
		for len(w.users) > 0 && w.users[0].next.Before(end) {
			u := w.users[0]
			e := w.view(u)
			heap.Fix(&w.users, 0)
			n++
			e.EventId = fmt.Sprintf("sim-%d-%d", w.cfg.Seed, n)
			if faults.Float64() < w.cfg.Broken {
				e.WatchMs = -1
			}
			if !yield(e) {
				return
			}
			if faults.Float64() < w.cfg.Duplicates && !yield(proto.CloneOf(e)) {
				return
			}
		}
	}
}

// view lets a user watch one item and moves the user on.
func (w *World) view(u *user) *onerecv1.ViewEvent {
	if u.left == 0 {
		u.left, u.last = 50, nil
	}
	it := w.expose(u)
	fit := it.quality
	for t, v := range it.content {
		fit += u.taste[t] * v
	}
	share := 1.25 * sigmoid(1.2*fit+0.7*u.rng.NormFloat64())
	watched := time.Duration(share * float64(it.duration)).Truncate(time.Millisecond)
	e := &onerecv1.ViewEvent{
		UserId: u.id, ItemId: it.id, EventTimeMs: u.next.UnixMilli(), WatchMs: watched.Milliseconds(), DurationMs: it.duration.Milliseconds(), Surface: "feed",
		Like:    u.rng.Float64() < sigmoid(1.6*fit-2.6),
		Follow:  u.rng.Float64() < sigmoid(1.6*fit-6),
		Comment: u.rng.Float64() < sigmoid(1.2*fit-5),
		Share:   u.rng.Float64() < sigmoid(1.4*fit-5.5),
		Dislike: u.rng.Float64() < sigmoid(-1.6*fit-5),
	}
	u.next = u.next.Add(watched + time.Duration((0.5+2*u.rng.Float64())*float64(time.Second)))
	u.last = it
	if u.left--; u.rng.Float64() > sigmoid(u.appetite+0.6*fit) {
		u.left = 0
	}
	if u.left == 0 {
		u.next = u.next.Add(w.pause(u))
	}
	return e
}

// expose is the policy: of a few items, drawn by popularity or from the topic
// that was just watched, the one that a noisy ranker thinks best.
func (w *World) expose(u *user) *item {
	var best *item
	top := math.Inf(-1)
	for range 4 {
		at := w.draw(u.rng)
		if u.last != nil && u.rng.Float64() < 0.5 {
			topic := w.byTopic[u.last.topic]
			at = topic[u.rng.IntN(len(topic))]
		}
		it := &w.items[at]
		score := 1.5 * u.rng.NormFloat64()
		for t, v := range it.content {
			score += u.taste[t] * v
		}
		if score > top {
			best, top = it, score
		}
	}
	return best
}

// draw picks an item by popularity.
func (w *World) draw(rng *rand.Rand) int32 {
	at := rng.Float64() * w.popular[len(w.popular)-1]
	lo, hi := 0, len(w.popular)-1
	for lo < hi {
		if mid := (lo + hi) / 2; w.popular[mid] < at {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return int32(lo)
}

func sigmoid(x float64) float64 { return 1 / (1 + math.Exp(-x)) }

// agenda is a container/heap of users by the time of their next view.
type agenda []*user

func (a agenda) Len() int { return len(a) }
func (a agenda) Less(i, j int) bool {
	return a[i].next.Before(a[j].next) || a[i].next.Equal(a[j].next) && a[i].id < a[j].id
}
func (a agenda) Swap(i, j int) { a[i], a[j] = a[j], a[i] }
func (a *agenda) Push(x any)   { *a = append(*a, x.(*user)) }
func (a *agenda) Pop() any {
	old := *a
	last := old[len(old)-1]
	*a = old[:len(old)-1]
	return last
}
