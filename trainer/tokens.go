package trainer

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"strconv"
	"time"

	"onerec/decoder"
	"onerec/internal/holdout"
	"onerec/schemas/onerecv1"
	"onerec/semanticid"
	"onerec/snapshots"
)

// Tokens says how sessions become rows of tokens for programs that train elsewhere: as in a [Learner]'s steps.
type Tokens struct {
	Decoder          decoder.Config
	Codebook         *semanticid.Codebook
	Checkpoint       string // version that decoder and codebook are of
	History, Session int    // items of a row at most; longer sessions make several rows
	HistoryWeight    float64
	HoldoutPercent   int
}

// Export writes the good sessions of snapshots as rows of tokens, in the order of their ends, and returns how many
// rows and tokens it wrote. Items without an ID are left out.
func (t *Tokens) Export(ctx context.Context, store *snapshots.Store, days snapshots.Range, damaged func(file string, err error) error, to *snapshots.TokenWriter) (rows, tokens int64, err error) {
	ids := make([]decoder.Item, t.Codebook.Len())
	for i := range ids {
		ids[i] = t.Codebook.ID(int32(i))
	}
	err = GoodSessions(ctx, store, days, nil, damaged, func(s *onerecv1.Session) error {
		var history, session []int32
		for _, h := range s.History {
			if i, ok := t.Codebook.Index(h.ItemId); ok {
				history = append(history, i)
			}
		}
		for _, v := range s.Views {
			if i, ok := t.Codebook.Index(v.ItemId); ok {
				session = append(session, i)
			}
		}
		return cut(history, session, t.History, t.Session, func(r sample) error {
			row := decoder.Row{History: items(ids, r.history), Session: items(ids, r.session), User: t.Decoder.User(s.UserId)}
			codes, weights, at, err := t.Decoder.Layout(t.Decoder.Fit(row), float32(t.HistoryWeight))
			if err != nil {
				return err
			}
			rows, tokens = rows+1, tokens+int64(len(codes))
			return to.Write(snapshots.TokenRow{
				SessionID: s.SessionId, UserBucket: bucket(s.UserId), HeldOut: holdout.Contains(s.UserId, t.HoldoutPercent), Ended: time.UnixMilli(s.EndMs),
				Tokens: codes, Weights: weights, SessionAt: int32(at),
			})
		})
	})
	return rows, tokens, err
}

// Metadata is what the file says of itself.
func (t *Tokens) Metadata(config string) map[string]string {
	return map[string]string{
		"onerec.format": "1", "onerec.checkpoint": t.Checkpoint, "onerec.codebook": t.Codebook.Version(), "onerec.config": config,
		"onerec.history_weight": strconv.FormatFloat(t.HistoryWeight, 'g', -1, 64),
	}
}

func items(ids []decoder.Item, at []int32) []decoder.Item {
	out := make([]decoder.Item, len(at))
	for i, k := range at {
		out[i] = ids[k]
	}
	return out
}

// bucket hashes a user.
func bucket(user string) int32 {
	h := fnv.New64a()
	_, _ = io.WriteString(h, "bucket/"+user) // a hash never fails
	return int32(h.Sum64() % snapshots.UserBuckets)
}

// TokenLoss returns the mean loss of a decoder over a file of tokens, in nats a token, by the tokens' weights, and
// how many rows it is of; held-out rows alone if asked for.
func TokenLoss(w *decoder.Weights, file string, heldOut bool, batchTokens int) (loss float64, rows int, err error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	capacity := max(batchTokens, w.Config.MaxLen)
	g, err := decoder.NewScorer(w, capacity)
	if err != nil {
		return 0, 0, err
	}
	b := decoder.NewBatch(0)
	sum, total, weight := 0.0, 0.0, 0.0
	score := func() error {
		if weight == 0 {
			return nil
		}
		b.Close()
		losses, err := g.Run(b, nil, decoder.Dropout{})
		sum, total = sum+weight*float64(losses.NTP), total+weight
		b, weight = decoder.NewBatch(0), 0
		return err
	}
	_, err = snapshots.ReadTokens(f, func(r snapshots.TokenRow) error {
		if heldOut && !r.HeldOut {
			return nil
		}
		if b.Tokens()+len(r.Tokens) > capacity {
			if err := score(); err != nil {
				return err
			}
		}
		for _, x := range r.Weights {
			weight += float64(x)
		}
		rows++
		return b.AddTokens(w.Config, r.Tokens, r.Weights)
	})
	if err = errors.Join(err, score()); err != nil {
		return 0, rows, fmt.Errorf("%s: %w", file, err)
	}
	if total == 0 {
		return 0, rows, fmt.Errorf("%s: no row has a token to predict", file)
	}
	return sum / total, rows, nil
}
