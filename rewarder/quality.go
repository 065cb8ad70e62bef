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

// mean3 is a running mean of likes, completions and watch time.
type mean3 struct{ sum, n [3]float64 }

func (m *mean3) add(v Viewed) {
	for k, label := range []Label{v.Like, v.Completion} {
		if label != Unknown {
			m.n[k]++
			if label == Yes {
				m.sum[k]++
			}
		}
	}
	if v.Watch >= 0 {
		m.n[2]++
		m.sum[2] += float64(v.Watch)
	}
}

// at is the mean, drawn towards that of everything as if five views more were like it.
func (m *mean3) at(k int, all *mean3) float64 {
	const prior = 5
	of := mean3{}
	if m != nil {
		of = *m
	}
	return (of.sum[k] + prior*all.sum[k]/max(all.n[k], 1)) / (of.n[k] + prior)
}

// baselines measures the means of items and users on the held-out sessions.
func (q *Quality) baselines(train, held []Example, sessions []session) {
	var all mean3
	items := make(map[string]*mean3)
	key := func(v Viewed) string {
		b := make([]byte, 0, 8)
		for _, code := range v.ID {
			b = append(b, byte(code), byte(code>>8))
		}
		return string(b)
	}
	for _, e := range train {
		for _, v := range e.Items {
			all.add(v)
			m := items[key(v)]
			if m == nil {
				m = new(mean3)
				items[key(v)] = m
			}
			m.add(v)
		}
	}
	users := make(map[string]*mean3)
	predict := func(e Example, of func(v Viewed) *mean3) (p Prediction) {
		for _, v := range e.Items {
			m := of(v)
			p.Like, p.Completion = append(p.Like, m.at(0, &all)), append(p.Completion, m.at(1, &all))
			p.WatchMs += m.at(2, &all)
		}
		return p
	}
	q.Item = score(held, func(i int) Prediction { return predict(held[i], func(v Viewed) *mean3 { return items[key(v)] }) }).baseline()
	q.User = score(held, func(i int) Prediction {
		m := users[sessions[i].user]
		p := predict(held[i], func(Viewed) *mean3 { return m })
		if m == nil {
			m = new(mean3)
			users[sessions[i].user] = m
		}
		for _, v := range held[i].Items { // only after it was asked
			m.add(v)
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
