package rewarder

import (
	"cmp"
	"math"
	"slices"
)

// Quality is what the reward model is worth on held-out users. A figure is NaN where there is
// nothing to measure it on.
type Quality struct {
	Sessions          int64   // it was trained on
	HeldOut           int     // sessions measured
	LikeAUC           float64 // over views of items with an ID
	CompletionAUC     float64 // over those of them whose duration is known
	WatchTimeSpearman float64 // over sessions' total watch time
	// LikeCalibration is the expected calibration error: the mean distance between the predicted
	// and the real share of likes over ten bins of as many views each (Naeini et al., 2015).
	LikeCalibration float64

	// The same measures of what needs no model: the mean of the item over training users, and that of
	// the user's own sessions so far.
	Item, User Baseline
}

// Baseline is what a mean is worth.
type Baseline struct {
	LikeAUC, CompletionAUC, WatchTimeSpearman float64
}

// Measure holds the model's predictions against what held-out users did.
func (m *Model) Measure(examples []Example) (Quality, error) {
	predicted, err := m.Predict(examples)
	if err != nil {
		return Quality{}, err
	}
	s := score(examples, func(i int) Prediction { return predicted[i] })
	return Quality{
		HeldOut: len(examples), LikeAUC: auc(s.like, s.liked), CompletionAUC: auc(s.completion, s.completed),
		WatchTimeSpearman: spearman(s.watch, s.watched), LikeCalibration: calibrationError(s.like, s.liked),
	}, nil
}

// scores are predictions beside what happened.
type scores struct {
	like, completion, watch []float64
	liked, completed        []bool
	watched                 []float64
}

func score(examples []Example, predict func(i int) Prediction) (s scores) {
	for i, e := range examples {
		p := predict(i)
		for j, v := range e.Items {
			if v.Like != Unknown {
				s.like, s.liked = append(s.like, p.Like[j]), append(s.liked, v.Like == Yes)
			}
			if v.Completion != Unknown {
				s.completion, s.completed = append(s.completion, p.Completion[j]), append(s.completed, v.Completion == Yes)
			}
		}
		s.watch, s.watched = append(s.watch, p.WatchMs), append(s.watched, float64(e.WatchMs))
	}
	return s
}

func (s scores) baseline() Baseline {
	return Baseline{auc(s.like, s.liked), auc(s.completion, s.completed), spearman(s.watch, s.watched)}
}

// baselines measures the means of items and users on the held-out sessions.
func (q *Quality) baselines(items *priors, held []Example, sessions []session) {
	users := make(map[string]*means)
	predict := func(e Example, of func(i int) *means) (p Prediction) {
		for i := range e.Items {
			m := of(i)
			p.Like, p.Completion = append(p.Like, m.at(headLike, &items.all)), append(p.Completion, m.at(headCompletion, &items.all))
			p.Dislike = append(p.Dislike, m.at(headDislike, &items.all))
			p.WatchMs += m.at(headWatch, &items.all)
		}
		return p
	}
	q.Item = score(held, func(i int) Prediction {
		return predict(held[i], func(j int) *means { return items.of(sessions[i].items[j]) })
	}).baseline()
	q.User = score(held, func(i int) Prediction {
		m := users[sessions[i].user]
		p := predict(held[i], func(int) *means { return m })
		if m == nil {
			m = new(means)
			users[sessions[i].user] = m
		}
		for j := range held[i].Items { // only after it was asked
			m.add(sessions[i].view(j))
		}
		return p
	}).baseline()
}

// calibrationError is the mean over ten bins of as many views each of the distance between the
// mean of p and the share of true; NaN without any.
func calibrationError(p []float64, truth []bool) float64 {
	const bins = 10
	if len(p) == 0 {
		return math.NaN()
	}
	order := make([]int, len(p))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(p[a], p[b]) })
	var sum float64
	for b := range bins {
		part := order[b*len(p)/bins : (b+1)*len(p)/bins]
		var predicted, real float64
		for _, i := range part {
			predicted += p[i]
			if truth[i] {
				real++
			}
		}
		sum += math.Abs(predicted - real)
	}
	return sum / float64(len(p))
}
