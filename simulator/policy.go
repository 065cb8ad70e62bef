package simulator

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// Visit is what a policy is told when a user wants to see something: what the service would know.
type Visit struct {
	User    string
	Number  int32 // of the user
	Now     time.Time
	Session []int32 // items that were watched since the user came; not to be kept
	// Rand is for the policy's own draws, the same ones for every policy.
	Rand *rand.Rand
}

// Policy decides what users are shown. One that serves several [World.Shards] is asked by
// them at the same time.
type Policy interface {
	// Recommend returns up to n items.
	Recommend(v Visit, n int) (List, error)
}

// List is what a policy shows, in this order, until the user leaves. Items that are not there
// are passed over; a user to whom nothing can be shown leaves.
type List struct {
	Items []int32
	// Where the list came from, for the view events; or empty.
	RecommendationID, CheckpointVersion string
}

// PolicyFunc is a function as a Policy.
type PolicyFunc func(v Visit, n int) (List, error)

// Recommend calls f.
func (f PolicyFunc) Recommend(v Visit, n int) (List, error) { return f(v, n) }

// Random shows any item that is there.
func (w *World) Random() Policy {
	return PolicyFunc(func(v Visit, n int) (List, error) {
		var out []int32
		for tries := 0; len(out) < n && tries < 50*n; tries++ {
			if at := int32(v.Rand.IntN(len(w.items))); w.items[at].live(v.Now) && !slices.Contains(out, at) {
				out = append(out, at)
			}
		}
		return List{Items: out}, nil
	})
}

// Popularity shows everybody the items of the highest score that are there and that the
// session has not had, score by number of the item.
func (w *World) Popularity(score []float64) Policy {
	order := make([]int32, len(w.items))
	for i := range order {
		order[i] = int32(i)
	}
	slices.SortStableFunc(order, func(a, b int32) int {
		switch {
		case score[a] > score[b]:
			return -1
		case score[a] < score[b]:
			return 1
		}
		return 0
	})
	return PolicyFunc(func(v Visit, n int) (List, error) {
		var out []int32
		for _, at := range order {
			if len(out) == n {
				break
			}
			if w.items[at].live(v.Now) && !slices.Contains(v.Session, at) {
				out = append(out, at)
			}
		}
		return List{Items: out}, nil
	})
}

// Ranker is who served the log: of a few items, drawn by popularity or from the topic that was
// just watched, it shows the one that a noisy guess of the user's taste, at the beginning, thinks best. It asks for
// one item at a time.
func (w *World) Ranker() Policy {
	guess := make(map[int32][]float64, len(w.users))
	for _, u := range w.users {
		guess[u.number] = slices.Clone(u.taste)
	}
	return PolicyFunc(func(v Visit, n int) (List, error) {
		var out []int32
		for range n {
			best, top := int32(-1), math.Inf(-1)
			for range 4 {
				at := w.draw(v)
				if at < 0 {
					continue
				}
				it := &w.items[at]
				score := 1.5 * v.Rand.NormFloat64()
				for t, c := range it.content {
					score += guess[v.Number][t] * c
				}
				if score > top && !slices.Contains(v.Session, at) && !slices.Contains(out, at) {
					best, top = at, score
				}
			}
			if best >= 0 {
				out = append(out, best)
			}
		}
		return List{Items: out}, nil
	})
}

// draw picks an item by popularity, or of the topic just watched; -1 if it finds none that
// is there.
func (w *World) draw(v Visit) int32 {
	related := len(v.Session) > 0 && v.Rand.Float64() < 0.5
	for range 20 {
		var at int32
		if related {
			topic := w.byTopic[w.items[v.Session[len(v.Session)-1]].topic]
			at = topic[v.Rand.IntN(len(topic))]
		} else {
			i, _ := slices.BinarySearch(w.popular, v.Rand.Float64()*w.popular[len(w.popular)-1])
			at = int32(min(i, len(w.items)-1))
		}
		if w.items[at].live(v.Now) {
			return at
		}
	}
	return -1
}

// Oracle knows the users' tastes as they are: it shows what is worth most, watch time and
// likes counted relative to the given means of a view, each item less when its topic
// was just shown. It is the bound against which others are measured.
func (w *World) Oracle(meanWatch time.Duration, meanLike float64) Policy {
	users := make(map[int32]*user, len(w.users))
	for _, u := range w.users {
		users[u.number] = u
	}
	return PolicyFunc(func(v Visit, n int) (List, error) {
		u := users[v.Number]
		type scored struct {
			at    int32
			value float64
		}
		fatigue := slices.Clone(u.fatigue)
		defer copy(u.fatigue, fatigue)
		var out []int32
		for len(out) < n {
			best := scored{-1, math.Inf(-1)}
			for at := range w.items {
				it := &w.items[at]
				if !it.live(v.Now) || slices.Contains(v.Session, int32(at)) || slices.Contains(out, int32(at)) {
					continue
				}
				watch, like := expected(w.fit(u, int32(at)), it.duration)
				if value := watch/meanWatch.Seconds() + like/max(meanLike, 1e-9); value > best.value {
					best = scored{int32(at), value}
				}
			}
			if best.at < 0 {
				break
			}
			out = append(out, best.at)
			for t := range u.fatigue {
				u.fatigue[t] *= 0.8
			}
			u.fatigue[w.items[best.at].topic] += w.cfg.Fatigue
		}
		return List{Items: out}, nil
	})
}
