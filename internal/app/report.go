package app

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
)

// Report is what the demo measured, as report.json holds it. docs/report.md says
// what each key means and in which unit.
type Report struct {
	Views           ViewsReport     `json:"views"`
	Sessions        SessionsReport  `json:"sessions"`
	Training        TrainingReport  `json:"training"`
	RewardModel     RewardReport    `json:"reward_model"`
	Alignment       []RoundReport   `json:"alignment"`
	Checkpoints     []VersionReport `json:"checkpoints"`
	Recommendations []RecReport     `json:"recommendations"`

	SessionToServing WaitReport `json:"session_to_serving"`

	Seconds      map[string]Float `json:"seconds"`
	PeakRSSBytes int64            `json:"peak_rss_bytes"`
}

// Float is a number that is null in JSON where it is not defined.
type Float float64

// MarshalJSON implements json.Marshaler.
func (f Float) MarshalJSON() ([]byte, error) {
	if math.IsNaN(float64(f)) || math.IsInf(float64(f), 0) {
		return []byte("null"), nil
	}
	return json.Marshal(float64(f))
}

// ViewsReport counts views; the four last add up to Read.
type ViewsReport struct {
	Read       int64 `json:"read"`
	Accepted   int64 `json:"accepted"`
	Rejected   int64 `json:"rejected"`
	Duplicates int64 `json:"duplicates"`
	Late       int64 `json:"late"`
}

// SessionsReport counts sessions; one that failed several rules is counted under
// each.
type SessionsReport struct {
	Closed      int64            `json:"closed"`
	Good        int64            `json:"good"`
	FailedRules map[string]int64 `json:"failed_rules"`
}

// TrainingReport is about the decoder.
type TrainingReport struct {
	Steps           int           `json:"steps"`
	Tokens          int64         `json:"tokens"`
	TokensPerSecond Float         `json:"tokens_per_second"`
	FirstLoss       Float         `json:"first_loss"`
	LastLoss        Float         `json:"last_loss"`
	Holdout         HoldoutReport `json:"holdout"`
}

// HoldoutReport is about users whom the decoder never saw.
type HoldoutReport struct {
	Sessions            int   `json:"sessions"`
	Predictions         int   `json:"predictions"`
	Loss                Float `json:"loss"`
	HitRate10           Float `json:"hit_rate_10"`
	NDCG10              Float `json:"ndcg_10"`
	PopularityHitRate10 Float `json:"popularity_hit_rate_10"`
	PopularityNDCG10    Float `json:"popularity_ndcg_10"`
	LastItemHitRate10   Float `json:"last_item_hit_rate_10"`
	LastItemNDCG10      Float `json:"last_item_ndcg_10"`
}

// RewardReport is about the reward model on held-out users.
type RewardReport struct {
	Sessions          int64 `json:"sessions"`
	LikeAUC           Float `json:"like_auc"`
	CompletionAUC     Float `json:"completion_auc"`
	WatchTimeSpearman Float `json:"watch_time_spearman"`
	LikeCalibration   Float `json:"like_calibration_error"`
	// The same of the item's mean over training users, and of the user's own sessions so far.
	ItemMean MeansReport `json:"item_mean"`
	UserMean MeansReport `json:"user_mean"`
}

// MeansReport is what a mean is worth where the reward model was measured.
type MeansReport struct {
	LikeAUC           Float `json:"like_auc"`
	CompletionAUC     Float `json:"completion_auc"`
	WatchTimeSpearman Float `json:"watch_time_spearman"`
}

// RoundReport is one DPO round.
type RoundReport struct {
	Round        int32  `json:"round"`
	Users        int32  `json:"users"`
	Candidates   int32  `json:"candidates"`
	Pairs        int32  `json:"pairs"`
	RewardBefore Float  `json:"reward_before"`
	RewardAfter  Float  `json:"reward_after"`
	KL           Float  `json:"kl"`
	Accepted     bool   `json:"accepted"`
	Why          string `json:"why"`

	Gates []GateReport `json:"gates"`
}

// GateReport is a bound of a round, with what was found.
type GateReport struct {
	Name   string `json:"name"`
	Figure Float  `json:"figure"`
	Bound  Float  `json:"bound"`
	Least  bool   `json:"least"` // the bound is the least that passes; else the most
	Passed bool   `json:"passed"`
}

// VersionReport is one checkpoint.
type VersionReport struct {
	Version  string `json:"version"`
	Parent   string `json:"parent"`
	Kind     string `json:"kind"`
	SHA256   string `json:"sha256"` // of the manifest
	Codebook string `json:"codebook"`
}

// WaitReport says how long good sessions waited, from their record on sessions.good to a
// serving model that has learned from them.
type WaitReport struct {
	P50 Float `json:"p50_seconds"`
	P99 Float `json:"p99_seconds"`
}

// RecReport is what the recommender answered for a user.
type RecReport struct {
	UserID     string   `json:"user_id"`
	Checkpoint string   `json:"checkpoint"`
	Items      []string `json:"items"`

	watched []string // for people
}

// check finds contradictions in a report.
func (r *Report) check() error {
	if v := r.Views; v.Accepted+v.Rejected+v.Duplicates+v.Late != v.Read {
		return fmt.Errorf("%d accepted, %d rejected, %d duplicate and %d late views do not add up to %d read", v.Accepted, v.Rejected, v.Duplicates, v.Late, v.Read)
	}
	for _, rec := range r.Recommendations {
		known := slices.ContainsFunc(r.Checkpoints, func(v VersionReport) bool { return v.Version == rec.Checkpoint })
		if !known {
			return fmt.Errorf("user %s got recommendations of checkpoint %q, which was never published", rec.UserID, rec.Checkpoint)
		}
	}
	return nil
}

// write makes report.json appear whole.
func (r *Report) write(dir string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	tmp := filepath.Join(dir, ".report.json.tmp")
	if err := os.WriteFile(tmp, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, "report.json")); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// Print shows the report to people.
func (r *Report) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	v, s, tr, h := r.Views, r.Sessions, r.Training, r.Training.Holdout
	fmt.Fprintf(t, "\nviews\t%d read\t%d accepted, %d rejected, %d duplicate, %d late\n", v.Read, v.Accepted, v.Rejected, v.Duplicates, v.Late)
	fmt.Fprintf(t, "sessions\t%d closed\t%d good; %s\n", s.Closed, s.Good, failures(s.FailedRules))
	fmt.Fprintf(t, "training\t%d steps\tloss %.3f to %.3f nats a code; %d tokens, %.0f a second\n", tr.Steps, tr.FirstLoss, tr.LastLoss, tr.Tokens, tr.TokensPerSecond)
	fmt.Fprintf(t, "held-out users\t%d predictions\thit rate at 10: %.4f, popularity %.4f, what followed the last item %.4f; NDCG at 10: %.4f, %.4f, %.4f; loss %.3f\n", h.Predictions, h.HitRate10, h.PopularityHitRate10, h.LastItemHitRate10, h.NDCG10, h.PopularityNDCG10, h.LastItemNDCG10, h.Loss)
	if h.HitRate10 <= h.PopularityHitRate10 {
		fmt.Fprintf(t, "\t\tthe decoder does not beat popularity on these users: %d good sessions may be too few to learn from\n", s.Good)
	}
	m := r.RewardModel
	fmt.Fprintf(t, "reward model\t%d sessions\ton held-out users: like AUC %.3f, completion AUC %.3f, watch time Spearman %.3f; calibration error of likes %.3f\n", m.Sessions, m.LikeAUC, m.CompletionAUC, m.WatchTimeSpearman, m.LikeCalibration)
	fmt.Fprintf(t, "\t\tthe item's mean: %.3f, %.3f, %.3f; the user's own: %.3f, %.3f, %.3f\n", m.ItemMean.LikeAUC, m.ItemMean.CompletionAUC, m.ItemMean.WatchTimeSpearman, m.UserMean.LikeAUC, m.UserMean.CompletionAUC, m.UserMean.WatchTimeSpearman)
	for _, a := range r.Alignment {
		verdict := "rejected"
		if a.Accepted {
			verdict = "accepted"
		}
		fmt.Fprintf(t, "DPO round %d\t%s\t%d users x %d candidates, %d pairs; reward %.4f to %.4f; %s\n", a.Round, verdict, a.Users, a.Candidates, a.Pairs, a.RewardBefore, a.RewardAfter, a.Why)
		for _, g := range a.Gates {
			verdict, side := "passed", "at most"
			if !g.Passed {
				verdict = "FAILED"
			}
			if g.Least {
				side = "at least"
				if strings.HasSuffix(g.Name, "_gain") {
					side = "above"
				}
			}
			fmt.Fprintf(t, "\tgate %s\t%s: %.4g, %s %.4g\n", verdict, strings.ReplaceAll(g.Name, "_", " "), g.Figure, side, g.Bound)
		}
	}
	for _, c := range r.Checkpoints {
		parent := "no parent"
		if c.Parent != "" {
			parent = "from " + c.Parent
		}
		fmt.Fprintf(t, "checkpoint\t%s\t%s, %s, codebook %s\n", c.Version, c.Kind, parent, c.Codebook)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	t = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "\nuser\twatched last\trecommended\n")
	for _, rec := range r.Recommendations {
		fmt.Fprintf(t, "%s\t%s\t%s\n", rec.UserID, strings.Join(rec.watched, " "), strings.Join(rec.Items, " "))
	}
	fmt.Fprint(t, "\n")
	fmt.Fprintf(t, "from a good session to a serving model that has learned from it: p50 %.1f s, p99 %.1f s (all of the input came before the training)\n", r.SessionToServing.P50, r.SessionToServing.P99)
	var stages []string
	for _, name := range demoStages {
		if sec, ok := r.Seconds[name]; ok {
			stages = append(stages, fmt.Sprintf("%s %.1f s", name, sec))
		}
	}
	fmt.Fprintf(t, "%s; peak memory %d MiB\n", strings.Join(stages, ", "), r.PeakRSSBytes>>20)
	return t.Flush()
}

func failures(rules map[string]int64) string {
	var parts []string
	for name, n := range rules {
		parts = append(parts, fmt.Sprintf("%d failed %s", n, name))
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}
