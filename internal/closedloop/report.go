package closedloop

import (
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"text/tabwriter"

	"onerec/internal/bootstrap"
)

// Interval is a mean with its 95 % interval.
type Interval = bootstrap.Interval

// Line is what a policy was worth over all worlds.
type Line struct {
	Policy       string  `json:"policy"`
	WatchSeconds float64 `json:"watch_seconds_a_session"`
	Likes        float64 `json:"likes_a_session"`
	Views        float64 `json:"views_a_session"`
	Coverage     float64 `json:"coverage"`
	// Gains over popularity and over the pretrained decoder, relative to them.
	WatchOverPopularity Interval `json:"watch_over_popularity"`
	LikesOverPopularity Interval `json:"likes_over_popularity"`
	WatchOverPretrained Interval `json:"watch_over_pretrained"`
	LikesOverPretrained Interval `json:"likes_over_pretrained"`
	// Of what the oracle gains over popularity, the share that is reached.
	OracleWatch float64 `json:"share_of_oracle_watch"`
	OracleLikes float64 `json:"share_of_oracle_likes"`
}

// Compare sums up runs of the same configuration. The intervals are of a bootstrap over users, paired: each user is held
// against the same user under the other policy, with the same luck.
func Compare(runs []*Run) []Line {
	type measure func(Served) float64
	watch := func(s Served) float64 { return s.WatchMs / 1000 }
	likes := func(s Served) float64 { return s.Likes }
	gather := func(name string, of measure) (x, sessions []float64) {
		for _, r := range runs {
			p := r.Policies[slices.IndexFunc(r.Policies, func(p Policy) bool { return p.Name == name })]
			for _, u := range p.Users {
				x, sessions = append(x, of(u)), append(sessions, u.Sessions)
			}
		}
		return x, sessions
	}
	rate := func(name string, of measure) float64 {
		x, sessions := gather(name, of)
		return sum(x) / max(sum(sessions), 1)
	}
	gain := func(name, base string, of measure) Interval {
		x, xs := gather(name, of)
		y, ys := gather(base, of)
		return ratio(x, xs, y, ys)
	}
	share := func(name string, of measure) float64 {
		low := rate(Popularity, of)
		return (rate(name, of) - low) / (rate(Oracle, of) - low)
	}
	var lines []Line
	for i, p := range runs[0].Policies {
		l := Line{
			Policy: p.Name, WatchSeconds: rate(p.Name, watch), Likes: rate(p.Name, likes), Views: rate(p.Name, func(s Served) float64 { return s.Views }),
			WatchOverPopularity: gain(p.Name, Popularity, watch), LikesOverPopularity: gain(p.Name, Popularity, likes),
			WatchOverPretrained: gain(p.Name, Pretrained, watch), LikesOverPretrained: gain(p.Name, Pretrained, likes),
			OracleWatch: share(p.Name, watch), OracleLikes: share(p.Name, likes),
		}
		for _, r := range runs {
			l.Coverage += r.Policies[i].Coverage / float64(len(runs))
		}
		lines = append(lines, l)
	}
	return lines
}

func sum(x []float64) (s float64) {
	for _, v := range x {
		s += v
	}
	return s
}

// ratio is x a session over y a session, less 1, with a bootstrap interval over users.
func ratio(x, xs, y, ys []float64) Interval {
	const draws = 1000
	rng := rand.New(rand.NewPCG(1, 0xb007))
	of := func(pick func(i int) int) float64 {
		var a, as, b, bs float64
		for i := range x {
			j := pick(i)
			a, as, b, bs = a+x[j], as+xs[j], b+y[j], bs+ys[j]
		}
		return a/max(as, 1)/max(b/max(bs, 1), 1e-12) - 1
	}
	out := Interval{Mean: of(func(i int) int { return i })}
	out.Low, out.High = bootstrap.Bounds(draws, func() float64 { return of(func(int) int { return rng.IntN(len(x)) }) })
	return out
}

// Print writes a table.
func Print(w io.Writer, runs []*Run) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range runs {
		accepted := 0
		for _, o := range r.Rounds {
			if o.Accepted {
				accepted++
			}
		}
		fmt.Fprintf(t, "world %d\t%d views of the log, %d sessions, %d good; %d steps; hit rate at 10 %.3f (popularity %.3f); like AUC %.3f, watch time Spearman %.3f; %d of %d rounds accepted; %.0f s\n",
			r.Seed, r.Log.Views, r.Sessions, r.Good, r.Training.Steps, r.Holdout.HitRate10, r.Holdout.PopularHitRate10, r.Reward.LikeAUC, r.Reward.WatchTimeSpearman, accepted, len(r.Rounds), r.Seconds)
	}
	fmt.Fprintf(t, "\nPOLICY\tWATCH s\tLIKES\tVIEWS\tCOVERAGE\tWATCH, BESIDE POPULARITY\tLIKES\tWATCH, BESIDE PRETRAINED\tLIKES\tOF THE ORACLE'S WATCH\tLIKES\n")
	for _, l := range Compare(runs) {
		fmt.Fprintf(t, "%s\t%.1f\t%.3f\t%.2f\t%.2f\t%s\t%s\t%s\t%s\t%.0f %%\t%.0f %%\n", l.Policy, l.WatchSeconds, l.Likes, l.Views, l.Coverage,
			percent(l.WatchOverPopularity), percent(l.LikesOverPopularity), percent(l.WatchOverPretrained), percent(l.LikesOverPretrained), 100*l.OracleWatch, 100*l.OracleLikes)
	}
	return t.Flush()
}

func percent(i Interval) string {
	return fmt.Sprintf("%+.1f %% (%+.1f to %+.1f)", 100*i.Mean, 100*i.Low, 100*i.High)
}

// Report is what a program reads.
type Report struct {
	Worlds   []World `json:"worlds"`
	Policies []Line  `json:"policies"`
}

// World sums up one run.
type World struct {
	Seed              uint64  `json:"seed"`
	Views             int     `json:"log_views"`
	Sessions          int     `json:"log_sessions"`
	GoodSessions      int     `json:"log_good_sessions"`
	Steps             int     `json:"train_steps"`
	HitRate10         float64 `json:"hit_rate_10"`
	PopularHitRate10  float64 `json:"popularity_hit_rate_10"`
	LikeAUC           float64 `json:"like_auc"`
	ItemLikeAUC       float64 `json:"item_mean_like_auc"`
	WatchTimeSpearman float64 `json:"watch_time_spearman"`
	Rounds            []Round `json:"rounds"`
	Seconds           float64 `json:"seconds"`
}

// Round sums up one round of alignment.
type Round struct {
	Accepted     bool    `json:"accepted"`
	Why          string  `json:"why"`
	RewardBefore float64 `json:"reward_before"`
	RewardAfter  float64 `json:"reward_after"`
}

// NewReport sums up runs.
func NewReport(runs []*Run) Report {
	r := Report{Policies: Compare(runs)}
	for _, run := range runs {
		w := World{
			Seed: run.Seed, Views: run.Log.Views, Sessions: run.Sessions, GoodSessions: run.Good, Steps: run.Training.Steps,
			HitRate10: run.Holdout.HitRate10, PopularHitRate10: run.Holdout.PopularHitRate10,
			LikeAUC: run.Reward.LikeAUC, ItemLikeAUC: run.Reward.Item.LikeAUC, WatchTimeSpearman: run.Reward.WatchTimeSpearman, Seconds: run.Seconds,
		}
		for _, o := range run.Rounds {
			w.Rounds = append(w.Rounds, Round{o.Accepted, o.Why, o.Before.Reward, o.After.Reward})
		}
		r.Worlds = append(r.Worlds, w)
	}
	return r
}
