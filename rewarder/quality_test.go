package rewarder

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"onerec/internal/kernels"
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
	draw := func(liked func(user, item int) bool) (train *priors, held []Example, sessions []session) {
		var learned []session
		for i := range 400 {
			user := i % 20
			e, s := Example{}, session{user: string(rune('a' + user))}
			for range 4 {
				item := r.IntN(5)
				s.items, s.like = append(s.items, int32(item)), append(s.like, liked(user, item))
				s.dislike = append(s.dislike, item == 0)
				s.completion, s.watch = append(s.completion, Unknown), append(s.watch, int64(1000*(1+item)))
				v := s.view(len(s.items) - 1)
				e.WatchMs += v.Watch
				e.Items = append(e.Items, v)
			}
			if i < 200 {
				learned = append(learned, s)
			} else {
				held, sessions = append(held, e), append(sessions, s)
			}
		}
		return newPriors(learned, 5, func(int32) bool { return true }), held, sessions
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

// TestPriors: a training user's view comes with the mean of the others, whatever fold the user is in; a
// held-out user's with the mean of all. In the model's units a mean is what the model would say with
// nothing of its own.
func TestPriors(t *testing.T) {
	var sessions []session
	for i := range 40 {
		sessions = append(sessions, session{
			user: fmt.Sprint("u", i), items: []int32{0, 1}, like: []bool{i%2 == 0, true}, dislike: []bool{i%3 == 0, false},
			completion: []Label{Unknown, Yes}, watch: []int64{int64(1000 * i), 2000},
		})
	}
	p := newPriors(sessions, 3, func(int32) bool { return true })
	for f := range folds {
		others := newPriors(slices.DeleteFunc(slices.Clone(sessions), func(s session) bool { return fold(s.user) == f }), 3, func(int32) bool { return true })
		if n := others.sums[0].n[headLike]; n == 0 || n == 40 {
			t.Fatalf("%v users are outside fold %d", n, f)
		}
		for item := range int32(3) {
			if *p.without(item, f) != others.sums[item] {
				t.Errorf("item %d without fold %d: %+v, the others' sessions give %+v", item, f, *p.without(item, f), others.sums[item])
			}
		}
	}
	const scale = 3000
	m := p.of(0)
	z := p.outputs(m, scale)
	if got, want := float64(kernels.Sigmoid(z[headLike])), m.at(headLike, &p.all); math.Abs(got-want) > 1e-5 {
		t.Errorf("like %v, want %v", got, want)
	}
	if got, want := scale*softplus(z[headWatch]), m.at(headWatch, &p.all); math.Abs(got-want) > 0.1 {
		t.Errorf("watch time %v, want %v", got, want)
	}
	if p.of(-1) != nil || p.of(3) != nil || p.without(7, 0) != nil {
		t.Error("an item that nobody watched has a mean of its own")
	}
	if of, none := p.outputs(nil, scale), p.outputs(new(means), scale); of != none {
		t.Errorf("without a mean %v, with an empty one %v", of, none)
	}
}
