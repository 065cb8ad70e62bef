// Package attribution sums what users did by the checkpoint whose recommendation they watched. Its
// source are the Parquet snapshots of sessions, whose views carry the checkpoint_version
// that came with the recommendation.
package attribution

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"onerec/internal/bootstrap"
	"onerec/snapshots"
)

// Sums are what one user, or all of them, had.
type Sums struct {
	Views    int64 `json:"views"`
	WatchMs  int64 `json:"watch_ms"`
	Likes    int64 `json:"likes"`
	Dislikes int64 `json:"dislikes"`
	Follows  int64 `json:"follows"`
	Shares   int64 `json:"shares"`
	Complete int64 `json:"complete"` // views to the end of those whose duration is known
	Timed    int64 `json:"timed"`    // views whose duration is known
}

func (s *Sums) add(v snapshots.View) {
	count := func(n *int64, yes bool) {
		if yes {
			*n++
		}
	}
	s.Views++
	s.WatchMs += v.WatchMs
	count(&s.Likes, v.Like)
	count(&s.Dislikes, v.Dislike)
	count(&s.Follows, v.Follow)
	count(&s.Shares, v.Share)
	count(&s.Timed, v.DurationMs > 0)
	count(&s.Complete, v.DurationMs > 0 && v.WatchMs >= v.DurationMs)
}

// Table holds the sums of each user by checkpoint version; views that no recommendation led to are
// under the empty version.
type Table struct {
	versions map[string]map[string]*Sums // by version and user
	users    int                         // over all versions
}

// MaxUsers bounds the pairs of a version and a user that a table holds.
const MaxUsers = 50_000_000

// Read sums the snapshots in a folder or a bucket, of views from a time on.
func Read(ctx context.Context, url string, since time.Time) (*Table, error) {
	t := &Table{versions: make(map[string]map[string]*Sums)}
	store, err := snapshots.Open(ctx, url)
	if err != nil {
		return nil, err
	}
	// A session that ended before holds no such view.
	days := snapshots.Range{From: since.UTC().Format(time.DateOnly)}
	err = errors.Join(snapshots.Read(ctx, store, snapshots.TableSessions, days, func(rows []row) error {
		for _, r := range rows {
			if err := t.add(r, since); err != nil {
				return err
			}
		}
		return nil
	}), store.Close())
	if err != nil {
		return nil, err
	}
	return t, nil
}

// row is what is read of a session.
type row struct {
	UserID string           `parquet:"user_id"`
	Views  []snapshots.View `parquet:"views,list"`
}

func (t *Table) add(r row, since time.Time) error {
	for _, v := range r.Views {
		if v.Time.Before(since) {
			continue
		}
		users := t.versions[v.CheckpointVersion]
		if users == nil {
			users = make(map[string]*Sums)
			t.versions[v.CheckpointVersion] = users
		}
		sums := users[r.UserID]
		if sums == nil {
			if t.users++; t.users > MaxUsers {
				return fmt.Errorf("more than %d users by version; ask for a later time", MaxUsers)
			}
			sums = new(Sums)
			users[r.UserID] = sums
		}
		sums.add(v)
	}
	return nil
}

// Interval is a figure with its 95 % bootstrap interval over users.
type Interval = bootstrap.Interval

// Line is what one version was worth.
type Line struct {
	Version string `json:"version"` // empty: views that no recommendation led to
	Users   int    `json:"users"`
	Sums
	WatchAView  Interval `json:"watch_seconds_a_view"`
	LikesAView  Interval `json:"likes_a_view"`
	WatchAUser  float64  `json:"watch_seconds_a_user"`
	Completions float64  `json:"completion_rate"` // of the views whose duration is known
}

// Lines sums up each version, in their order.
func (t *Table) Lines() []Line {
	out := []Line{}
	for version := range t.versions {
		of := t.sorted(version)
		l := Line{Version: version, Users: len(of)}
		for _, s := range of {
			l.Views += s.Views
			l.WatchMs += s.WatchMs
			l.Likes += s.Likes
			l.Dislikes += s.Dislikes
			l.Follows += s.Follows
			l.Shares += s.Shares
			l.Complete += s.Complete
			l.Timed += s.Timed
		}
		l.WatchAView = over(func(pick func(n int) int) float64 { return mean(of, pick, seconds, views) }, len(of))
		l.LikesAView = over(func(pick func(n int) int) float64 { return mean(of, pick, likes, views) }, len(of))
		l.WatchAUser = float64(l.WatchMs) / 1000 / float64(max(len(of), 1))
		l.Completions = float64(l.Complete) / float64(max(l.Timed, 1))
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b Line) int { return cmp.Compare(a.Version, b.Version) })
	return out
}

// sorted returns a version's users in the order of their names, so that the same snapshots give
// the same intervals.
func (t *Table) sorted(version string) []*Sums {
	users := t.versions[version]
	names := make([]string, 0, len(users))
	for name := range users {
		names = append(names, name)
	}
	slices.Sort(names)
	out := make([]*Sums, len(names))
	for i, name := range names {
		out[i] = users[name]
	}
	return out
}

func seconds(s *Sums) float64 { return float64(s.WatchMs) / 1000 }
func likes(s *Sums) float64   { return float64(s.Likes) }
func views(s *Sums) float64   { return float64(s.Views) }
func one(*Sums) float64       { return 1 }

// mean is the ratio of two sums over users.
func mean(of []*Sums, pick func(n int) int, x, y func(*Sums) float64) float64 {
	var a, b float64
	for i := range of {
		u := of[i]
		if pick != nil {
			u = of[pick(len(of))]
		}
		a, b = a+x(u), b+y(u)
	}
	if b == 0 {
		return 0
	}
	return a / b
}

// over is a figure of users, with its interval.
func over(figure func(pick func(n int) int) float64, users int) Interval {
	out := Interval{Mean: figure(nil)}
	if users == 0 {
		return out
	}
	draws := min(1000, max(100, 50_000_000/users))
	rng := rand.New(rand.NewPCG(1, 0xb007))
	out.Low, out.High = bootstrap.Bounds(draws, func() float64 { return figure(rng.IntN) })
	return out
}

// Rule decides over a canary.
type Rule struct {
	MinUsers int     // of each of the two
	MaxDrop  float64 // of likes a user that is allowed when watch time rises, relative
}

// DefaultRule asks for enough users to see a difference.
func DefaultRule() Rule { return Rule{MinUsers: 200, MaxDrop: 0.05} }

// What to do with a canary.
const (
	Promote  = "promote"
	Withdraw = "withdraw"
	Wait     = "wait"
)

// Judgement is what a rule says of a canary beside what is released. Users are assigned by hash, so the
// two groups differ by chance alone.
type Judgement struct {
	Canary   string   `json:"canary"`
	Released string   `json:"released"`
	Users    [2]int   `json:"users"`        // of the canary and of the released version
	Watch    Interval `json:"watch_a_user"` // relative gain of the canary
	Likes    Interval `json:"likes_a_user"`
	Decision string   `json:"decision"`
	Why      string   `json:"why"`
	// Held is why a promotion that was decided, and was to be applied, was not: nothing is released for now.
	Held string `json:"held,omitempty"`
}

// Judge compares two versions by what a user had of each.
func (t *Table) Judge(canary, released string, r Rule) Judgement {
	a, b := t.sorted(canary), t.sorted(released)
	gain := func(of func(*Sums) float64) Interval {
		return over(func(pick func(n int) int) float64 {
			base := mean(b, pick, of, one)
			if base == 0 {
				return 0
			}
			return mean(a, pick, of, one)/base - 1
		}, len(a)+len(b))
	}
	j := Judgement{Canary: canary, Released: released, Users: [2]int{len(a), len(b)}, Watch: gain(seconds), Likes: gain(likes)}
	percent := func(i Interval) string {
		return fmt.Sprintf("%+.1f %% (%+.1f to %+.1f)", 100*i.Mean, 100*i.Low, 100*i.High)
	}
	switch {
	case len(a) < r.MinUsers || len(b) < r.MinUsers:
		j.Decision, j.Why = Wait, fmt.Sprintf("%d and %d users, at least %d of each are asked for", len(a), len(b), r.MinUsers)
	case j.Watch.High < 0:
		j.Decision, j.Why = Withdraw, "watch time a user is less: "+percent(j.Watch)
	case j.Likes.High < -r.MaxDrop:
		j.Decision, j.Why = Withdraw, "likes a user are fewer: "+percent(j.Likes)
	case j.Watch.Low > 0 && j.Likes.Low > -r.MaxDrop:
		j.Decision, j.Why = Promote, "watch time a user is more: "+percent(j.Watch)+", likes "+percent(j.Likes)
	default:
		j.Decision, j.Why = Wait, "no difference is certain yet: watch time "+percent(j.Watch)+", likes "+percent(j.Likes)
	}
	return j
}
