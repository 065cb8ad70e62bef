package rewarder

import (
	"math"
	"math/rand/v2"
	"testing"

	"onerec/semanticid"
)

func TestCalibrationError(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var p, off []float64
	var truth []bool
	for range 20_000 {
		x := r.Float64()
		p, off, truth = append(p, x), append(off, x/2), append(truth, r.Float64() < x)
	}
	if e := calibrationError(p, truth); e > 0.02 {
		t.Errorf("error of true probabilities %.3f", e)
	}
	if e := calibrationError(off, truth); math.Abs(e-0.25) > 0.02 {
		t.Errorf("error of half the probabilities %.3f, want 0.25", e)
	}
	if !math.IsNaN(calibrationError(nil, nil)) {
		t.Error("an error of nothing")
	}
}

// TestBaselines: where likes depend on the item alone the item's mean finds them, where they depend on the
// user alone the user's, and a user's mean knows only the sessions before.
func TestBaselines(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	draw := func(liked func(user, item int) bool) (train, held []Example, sessions []session) {
		for i := range 400 {
			user := i % 20
			e := Example{}
			for range 4 {
				item := r.IntN(5)
				v := Viewed{ID: semanticid.Item{uint16(item), 0}, Like: labelOf(liked(user, item)), Completion: Unknown, Watch: int64(1000 * (1 + item))}
				e.WatchMs += v.Watch
				e.Items = append(e.Items, v)
			}
			if i < 200 {
				train = append(train, e)
			} else {
				held, sessions = append(held, e), append(sessions, session{user: string(rune('a' + user))})
			}
		}
		return train, held, sessions
	}
	var q Quality
	q.baselines(draw(func(_, item int) bool { return item < 2 }))
	if q.Item.LikeAUC != 1 || q.User.LikeAUC > 0.7 || !math.IsNaN(q.Item.CompletionAUC) || q.Item.WatchTimeSpearman < 0.95 {
		t.Errorf("likes by item: %+v", q)
	}
	train, held, sessions := draw(func(user, _ int) bool { return user < 10 })
	q.baselines(train, held, sessions)
	if q.User.LikeAUC < 0.85 || q.User.LikeAUC == 1 || math.Abs(q.Item.LikeAUC-0.5) > 0.15 {
		t.Errorf("likes by user: %+v", q)
	}
	// The first session of each user is asked before anything is known of the user.
	q.baselines(train, held[:20], sessions[:20])
	if math.Abs(q.User.LikeAUC-0.5) > 1e-9 {
		t.Errorf("users who were never seen: %+v", q.User)
	}
}
