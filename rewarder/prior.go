package rewarder

import (
	"hash/fnv"
	"math"

	"onerec/semanticid"
)

// means are running means of likes, completions, dislikes and watch time, in the order of the model's outputs.
type means struct{ sum, n [heads]float64 }

func (m *means) add(v Viewed) {
	for k, label := range v.labels() {
		if label != Unknown {
			m.n[k]++
			if label == Yes {
				m.sum[k]++
			}
		}
	}
	if v.Watch >= 0 {
		m.n[headWatch]++
		m.sum[headWatch] += float64(v.Watch)
	}
}

// at is the mean, drawn towards that of everything as if five views more were like it.
func (m *means) at(k int, all *means) float64 {
	const prior = 5
	var of means
	if m != nil {
		of = *m
	}
	return (of.sum[k] + prior*all.sum[k]/max(all.n[k], 1)) / (of.n[k] + prior)
}

// priors are the means of items over training users' sessions, and those of users over their own
// sessions so far. The model starts from their sum, in log-odds, so it need not learn them by small
// steps, and learns what they don't know: which items are for whom.
//
// A model that is trained on a mean which its own label is part of learns to trust it too much.
// So users are in folds, and the mean that is given with a training user's view is over the
// other folds (out-of-fold target encoding; Micci-Barreca, 2001).
type priors struct {
	all   means          // of items with an ID
	items [][folds]means // by the dataset's number
	sums  []means        // over the folds
}

const folds = 5

// fold is the user's.
func fold(user string) int {
	h := fnv.New64a()
	h.Write([]byte("fold/" + user)) // a hash never fails
	return int(h.Sum64() % folds)
}

// priors counts the items of the training users' sessions; what the codebook doesn't know is no
// part of the mean of all.
func (d *dataset) priors(cb *semanticid.Codebook) *priors {
	return newPriors(d.train.sessions, len(d.names), func(item int32) bool { return d.id(cb, item) != nil })
}

func newPriors(sessions []session, items int, known func(item int32) bool) *priors {
	p := &priors{items: make([][folds]means, items), sums: make([]means, items)}
	for _, s := range sessions {
		f := fold(s.user)
		for i, item := range s.items {
			if item < 0 {
				continue
			}
			v := s.view(i)
			p.items[item][f].add(v)
			p.sums[item].add(v)
		}
	}
	for item, m := range p.sums {
		if !known(int32(item)) {
			continue
		}
		for k := range m.n {
			p.all.n[k] += m.n[k]
			p.all.sum[k] += m.sum[k]
		}
	}
	return p
}

// of is an item's mean; nil if there is none.
func (p *priors) of(item int32) *means {
	if item < 0 || int(item) >= len(p.sums) {
		return nil
	}
	return &p.sums[item]
}

// without is the mean over all folds but one.
func (p *priors) without(item int32, fold int) *means {
	if item < 0 || int(item) >= len(p.sums) {
		return nil
	}
	m, out := p.sums[item], p.items[item][fold]
	for k := range m.n {
		m.n[k] -= out.n[k]
		m.sum[k] -= out.sum[k]
	}
	return &m
}

// outputs says a mean in the units of the model's outputs.
func (p *priors) outputs(m *means, scaleMs float64) (out [heads]float32) {
	logit := func(x float64) float32 {
		x = min(max(x, 1e-5), 1-1e-5)
		return float32(math.Log(x / (1 - x)))
	}
	for h := range labels {
		out[h] = logit(m.at(h, &p.all))
	}
	// The inverse of softplus.
	watch := max(m.at(headWatch, &p.all)/scaleMs, 1e-2)
	out[headWatch] = float32(watch + math.Log(-math.Expm1(-watch)))
	return out
}

// give sets the priors of sessions' examples; of those that a model learns from each
// without what its user's fold knows.
func (p *priors) give(examples []Example, sessions []session, scaleMs float64, train bool) {
	for i := range sessions {
		s := &sessions[i]
		f := fold(s.user)
		for j := range examples[i].Items {
			m := p.of(s.items[j])
			if train {
				m = p.without(s.items[j], f)
			}
			examples[i].Items[j].Priors = Priors{p.outputs(m, scaleMs), s.past}
		}
	}
}

// pasts sets what each session's user did in the sessions before, as far as they are kept,
// beside what their items' means had expected.
func (p *priors) pasts(r *ring, scaleMs float64, train bool) {
	type past struct{ was, expected means }
	users := make(map[string]*past)
	for i := range r.sessions {
		s := &r.sessions[(r.next+i)%len(r.sessions)] // oldest first
		u := users[s.user]
		if u == nil {
			u = new(past)
			users[s.user] = u
		}
		s.past = p.outputs(&u.was, scaleMs)
		for h, e := range p.outputs(&u.expected, scaleMs) {
			s.past[h] -= e
		}
		for j, item := range s.items {
			v, m := s.view(j), p.of(item)
			if train {
				m = p.without(item, fold(s.user))
			}
			u.was.add(v)
			known := v.labels()
			for k := range heads {
				if k == headWatch && v.Watch >= 0 || k != headWatch && known[k] != Unknown {
					u.expected.n[k]++
					u.expected.sum[k] += m.at(k, &p.all)
				}
			}
		}
	}
}
