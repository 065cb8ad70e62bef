package trainer

import (
	"context"
	"errors"
	"math"
	"slices"

	"onerec/decoder"
	"onerec/internal/kernels"
)

// Holdout is what the model is worth on users it never saw.
type Holdout struct {
	Sessions    int     // rows
	Predictions int     // next items asked for
	Loss        float64 // nats a code, over the sessions' codes
	// Share of next items among the ten best of all items not yet seen, and
	// their discounted gain; beside them those of the most popular items, and of those that
	// most often followed the last item.
	HitRate10, NDCG10                 float64
	PopularHitRate10, PopularNDCG10   float64
	LastItemHitRate10, LastItemNDCG10 float64
}

// tally sums what rows were scored at.
type tally struct {
	rows, codes, predictions int
	loss                     float64 // nats, over all codes
	model, popular, last     gain
}

// gain sums hits among the first ten and their discounted gain.
type gain struct{ hits, discounted float64 }

// add counts an item of the given rank, from 0; -1 is beyond ten.
func (g *gain) add(rank int) {
	if rank >= 0 {
		g.hits++
		g.discounted += 1 / math.Log2(float64(rank)+2)
	}
}

func (t tally) holdout() Holdout {
	n := float64(max(t.predictions, 1))
	return Holdout{
		Sessions: t.rows, Predictions: t.predictions, Loss: t.loss / float64(max(t.codes, 1)),
		HitRate10: t.model.hits / n, NDCG10: t.model.discounted / n,
		PopularHitRate10: t.popular.hits / n, PopularNDCG10: t.popular.discounted / n,
		LastItemHitRate10: t.last.hits / n, LastItemNDCG10: t.last.discounted / n,
	}
}

// Evaluate scores the published weights on the held-out sessions that are kept, the newest:
// each item of each session, given the history and the items before it.
func (l *Learner) Evaluate(ctx context.Context, progress func(done, total int)) (Holdout, error) {
	t := tally{rows: len(l.heldOut)}
	if l.cb == nil || len(l.heldOut) == 0 {
		return t.holdout(), nil
	}
	err := l.score(ctx, l.heldOut, &t, progress)
	return t.holdout(), err
}

// prequentialRows are scored at a time: so few that hardly a step is made between the
// arrival of the first and its score, so many that the processors are busy.
const prequentialRows = 16

// scoreArrived scores the held-out rows that came and were not scored yet.
func (l *Learner) scoreArrived(ctx context.Context) error {
	rows := l.arrived
	l.arrived = nil
	if len(rows) == 0 {
		return nil
	}
	l.scored.rows += len(rows)
	return l.score(ctx, rows, &l.scored, nil)
}

// Prequential is what the published weights were worth on the held-out users' sessions at
// the time at which each of them came, before anything that came later was learned: the
// prequential score, test then train (Dawid, 1984; Gama et al., 2013). It covers the sessions since
// the last ResetPrequential, each counts once, and unlike [Learner.Evaluate] it does not look back with
// weights that know what became popular since.
func (l *Learner) Prequential(ctx context.Context) (Holdout, error) {
	if err := l.scoreArrived(ctx); err != nil {
		return Holdout{}, err
	}
	return l.scored.holdout(), nil
}

// ResetPrequential begins a new period.
func (l *Learner) ResetPrequential() { l.scored = tally{} }

// rankBeams is the beam width with which all items are ranked for the next one;
// the trie is then searched nearly exhaustively.
const rankBeams = 50

// score adds to t what the published weights are worth on rows.
func (l *Learner) score(ctx context.Context, rows []sample, t *tally, progress func(done, total int)) error {
	if err := l.scoreLoss(rows, t); err != nil {
		return err
	}
	gen, err := decoder.NewGenerator(l.average, l.cb)
	if err != nil {
		return err
	}
	byPopularity := make([]int32, len(l.popular))
	for i := range byPopularity {
		byPopularity[i] = int32(i)
	}
	slices.SortStableFunc(byPopularity, func(a, b int32) int { return l.popular[b] - l.popular[a] })

	tallies, errs := make([]tally, len(rows)), make([]error, len(rows))
	const batch = 16
	for lo := 0; lo < len(rows); lo += batch {
		if err := ctx.Err(); err != nil {
			return err
		}
		kernels.Parallel(min(batch, len(rows)-lo), func(i int) {
			errs[lo+i] = l.rank(gen, rows[lo+i], byPopularity, &tallies[lo+i])
		})
		if progress != nil {
			progress(min(lo+batch, len(rows)), len(rows))
		}
	}
	for _, of := range tallies { // in the rows' order, so that sums don't depend on threads
		t.predictions += of.predictions
		for _, g := range []struct{ to, from *gain }{{&t.model, &of.model}, {&t.popular, &of.popular}, {&t.last, &of.last}} {
			g.to.hits += g.from.hits
			g.to.discounted += g.from.discounted
		}
	}
	return errors.Join(errs...)
}

// rank asks for each item of a row's session, given those before it.
func (l *Learner) rank(gen *decoder.Generator, s sample, byPopularity []int32, t *tally) error {
	r := l.row(s)
	seen := make(map[int32]bool)
	for _, item := range s.history {
		seen[item] = true
	}
	known := 0 // items of the session that the model has read
	last := int32(unknown)
	if len(s.history) > 0 {
		last = s.history[len(s.history)-1]
	}
	for _, want := range s.session {
		t.predictions++
		if want == unknown {
			continue
		}
		next, err := gen.Next(decoder.Options{User: r.User, History: r.History, Session: r.Session[:known], Exclude: seen, Width: rankBeams}, 10)
		if err != nil {
			return err
		}
		t.model.add(slices.IndexFunc(next, func(n decoder.Next) bool { return n.Item == want }))
		t.popular.add(rankOf(want, seen, byPopularity))
		t.last.add(rankOf(want, seen, l.follows.after(last), byPopularity))
		seen[want] = true
		last = want
		known++
	}
	return nil
}

// rankOf returns the rank of an item in orders that follow each other, from which seen ones
// and repeated ones are left out, -1 beyond ten.
func rankOf(want int32, seen map[int32]bool, orders ...[]int32) int {
	rank := 0
	var before []int32
	for _, order := range orders {
		for _, item := range order {
			switch {
			case seen[item] || slices.Contains(before, item):
			case item == want:
				return rank
			default:
				before = append(before, item)
				if rank++; rank == 10 {
					return -1
				}
			}
		}
	}
	return -1
}

// scoreLoss adds to t the next-token loss over the codes of the rows' sessions.
func (l *Learner) scoreLoss(rows []sample, t *tally) error {
	for len(rows) > 0 {
		b := decoder.NewBatch(0)
		n := 0
		for ; len(rows) > 0; rows = rows[1:] {
			r := l.row(rows[0])
			if b.Tokens() > 0 && b.Tokens()+l.raw.Config.Tokens(r) > l.cfg.BatchTokens {
				break
			}
			if len(r.Session) == 0 {
				continue // all of it unknown
			}
			if err := b.Add(l.raw.Config, r); err != nil {
				return err
			}
			n += len(r.Session) * l.cfg.Levels
		}
		if n == 0 {
			break
		}
		b.Close()
		losses, err := l.eval.Run(b, nil, decoder.Dropout{})
		if err != nil {
			return err
		}
		t.loss += float64(losses.NTP) * float64(n)
		t.codes += n
	}
	return nil
}
