package simulator

import (
	"iter"
	"math"
	"slices"

	"onerec/schemas/onerecv1"
)

// Quantiles are the 10th, 25th, 50th, 75th and 90th percentile.
type Quantiles [5]float64

// Summary is what a log of views looks like from afar: what a simulated and a real one are compared
// by.
type Summary struct {
	Views, Users, Items int

	WatchSeconds    Quantiles
	DurationSeconds Quantiles
	WatchRatio      Quantiles // of watch time to duration, where it is known
	GapSeconds      Quantiles // between views of a session
	PauseHours      Quantiles // between sessions
	SessionViews    Quantiles
	UserViews       Quantiles
	UserLikes       Quantiles // share of a user's views

	Likes, Dislikes, Follows, Comments, Shares float64 // share of views
	Top1, Top10                                float64 // share of views that goes to the hundredth, the tenth of items with the most
	LikesByRatio                               [5]float64
}

// RatioBounds are the upper bounds of LikesByRatio.
var RatioBounds = [5]float64{0.1, 0.3, 0.7, 1, math.Inf(1)}

// sessionGap cuts sessions in a summary, ms.
const sessionGap = 30 * 60 * 1000

// Summarize reads a log, in any order; broken events and doubles are left out. Labelled keeps only
// views that are liked or disliked, of users who did both: what
// published logs are often filtered to.
func Summarize(events iter.Seq[*onerecv1.ViewEvent], labelled bool) Summary {
	byUser := make(map[string][]*onerecv1.ViewEvent)
	ids := make(map[string]bool)
	for e := range events {
		if e.WatchMs < 0 || ids[e.EventId] || labelled && !e.Like && !e.Dislike {
			continue
		}
		ids[e.EventId] = true
		byUser[e.UserId] = append(byUser[e.UserId], e)
	}
	var s Summary
	var watch, duration, ratio, gap, pause, session, views, likes []float64
	var within, liked [5]float64
	items := make(map[string]float64)
	for _, es := range byUser {
		if labelled && !(slices.ContainsFunc(es, func(e *onerecv1.ViewEvent) bool { return e.Like }) && slices.ContainsFunc(es, func(e *onerecv1.ViewEvent) bool { return e.Dislike })) {
			continue
		}
		slices.SortStableFunc(es, func(a, b *onerecv1.ViewEvent) int { return int(a.EventTimeMs - b.EventTimeMs) })
		s.Users++
		n, userLikes := 0.0, 0.0
		for i, e := range es {
			s.Views++
			items[e.ItemId]++
			watch = append(watch, float64(e.WatchMs)/1000)
			if e.DurationMs > 0 {
				duration = append(duration, float64(e.DurationMs)/1000)
				r := float64(e.WatchMs) / float64(e.DurationMs)
				ratio = append(ratio, r)
				bin := slices.IndexFunc(RatioBounds[:], func(bound float64) bool { return r < bound })
				within[bin]++
				if e.Like {
					liked[bin]++
				}
			}
			for _, c := range []struct {
				yes bool
				sum *float64
			}{{e.Like, &s.Likes}, {e.Like, &userLikes}, {e.Dislike, &s.Dislikes}, {e.Follow, &s.Follows}, {e.Comment, &s.Comments}, {e.Share, &s.Shares}} {
				if c.yes {
					*c.sum++
				}
			}
			if i > 0 {
				if d := float64(e.EventTimeMs - es[i-1].EventTimeMs); d < sessionGap {
					gap = append(gap, d/1000)
				} else {
					pause, session = append(pause, d/3_600_000), append(session, n)
					n = 0
				}
			}
			n++
		}
		session, views, likes = append(session, n), append(views, float64(len(es))), append(likes, userLikes/float64(len(es)))
	}
	all := float64(max(s.Views, 1))
	for _, v := range []*float64{&s.Likes, &s.Dislikes, &s.Follows, &s.Comments, &s.Shares} {
		*v /= all
	}
	for i := range within {
		s.LikesByRatio[i] = liked[i] / max(within[i], 1)
	}
	var counts []float64
	for _, n := range items {
		counts = append(counts, n)
	}
	slices.SortFunc(counts, func(a, b float64) int { return int(b - a) })
	s.Items = len(counts)
	for i, n := range counts {
		if i < max(1, len(counts)/100) {
			s.Top1 += n / all
		}
		if i < max(1, len(counts)/10) {
			s.Top10 += n / all
		}
	}
	s.WatchSeconds, s.DurationSeconds, s.WatchRatio, s.GapSeconds = quantiles(watch), quantiles(duration), quantiles(ratio), quantiles(gap)
	s.PauseHours, s.SessionViews, s.UserViews, s.UserLikes = quantiles(pause), quantiles(session), quantiles(views), quantiles(likes)
	return s
}

func quantiles(x []float64) (q Quantiles) {
	if len(x) == 0 {
		return q
	}
	slices.Sort(x)
	for i, p := range []float64{0.1, 0.25, 0.5, 0.75, 0.9} {
		q[i] = x[int(p*float64(len(x)-1))]
	}
	return q
}
