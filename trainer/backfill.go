package trainer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"

	"onerec/internal/stream"
	"onerec/publisher"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
	"onerec/snapshots"
)

// Backfill is history that a new model learns before the stream: the good sessions of the snapshots.
//
// Their order is that of their ends, so what is learned depends on the sessions alone. A candidate says how many
// it has learned, out of which (those before an offset of each partition of sessions.judged), and, once all are
// learned, where on sessions.good the stream goes on: behind the last session of each partition that the
// snapshots hold. No session is learned twice and none is left out, whenever the trainer is killed.
type Backfill struct {
	Store *snapshots.Store
	Since string // first day, YYYY-MM-DD; empty: all
	// SkipDamaged leaves files out that can't be read, and says so; else the first one ends the training.
	SkipDamaged bool
}

// Names under which a candidate's offsets say how far the backfill is.
const (
	backfillOf   = "snapshots/sessions.judged" // sessions before these are its
	backfillSeen = "snapshots/learned"         // how many of them are learned
	backfillEnd  = "snapshots/sessions.good"   // where the stream goes on, once all are
)

// backfill is how far a run is in it.
type backfill struct {
	of   map[int32]int64
	seen int64
	end  map[int32]int64 // nil: it is not done
}

// offsets are what a candidate says of it.
func (b *backfill) offsets(out map[string]map[int32]int64) {
	if b == nil {
		return
	}
	out[backfillOf], out[backfillSeen] = b.of, map[int32]int64{0: b.seen}
	if b.end != nil {
		out[backfillEnd] = b.end
	}
}

func backfillFrom(m *publisher.Manifest) *backfill {
	of := m.Offsets[backfillOf]
	if of == nil {
		return nil
	}
	return &backfill{of, m.Offsets[backfillSeen][0], m.Offsets[backfillEnd]}
}

func message(g *snapshots.GoodSession) *onerecv1.Session {
	s := &onerecv1.Session{SessionId: g.SessionID, UserId: g.UserID, StartMs: g.StartMs, EndMs: g.EndMs}
	for _, item := range g.Items {
		s.Views = append(s.Views, &onerecv1.View{ItemId: item})
	}
	for i, item := range g.History {
		s.History = append(s.History, &onerecv1.HistoryItem{ItemId: item, EventTimeMs: g.HistoryMs[i]})
	}
	return s
}

// GoodSessions calls fn with the good sessions of snapshots in the order of their ends; before, if not nil, leaves
// out those from an offset of their partition of sessions.judged on.
func GoodSessions(ctx context.Context, store *snapshots.Store, days snapshots.Range, before map[int32]int64, damaged func(file string, err error) error, fn func(*onerecv1.Session) error) error {
	return snapshots.ReadGood(ctx, store, days, before, damaged, func(rows []snapshots.GoodSession) error {
		slices.SortFunc(rows, func(a, b snapshots.GoodSession) int {
			return cmp.Or(cmp.Compare(a.EndMs, b.EndMs), strings.Compare(a.SessionID, b.SessionID))
		})
		for i := range rows {
			if err := fn(message(&rows[i])); err != nil {
				return err
			}
		}
		return nil
	})
}

// damaged says what becomes of a file that can't be read.
func (r *run) damaged(file string, err error) error {
	if !r.Backfill.SkipDamaged {
		return fmt.Errorf("%w; \"onerec snapshot verify\" looks at all of them, --skip-damaged leaves it out", err)
	}
	r.Log.Error("a file of the snapshots can't be read: its sessions are not learned", "file", file, "error", err)
	return nil
}

// fill learns the backfill from where the last candidate left it, or, with remember, fills the replay buffer with
// what it has learned of it.
func (r *run) fill(ctx context.Context, remember bool) error {
	if r.back == nil {
		of, err := r.Backfill.Store.Offsets(ctx, snapshots.TableSessions, schemas.TopicJudgedSessions)
		if err != nil {
			return err
		}
		if len(of) == 0 {
			return fmt.Errorf("there are no snapshots of sessions in %s", r.Backfill.Store.URL())
		}
		r.back = &backfill{of: of}
		r.Log.Info("learning from snapshots", "url", r.Backfill.Store.URL(), "since", r.Backfill.Since)
	}
	n := int64(0)
	done := errors.New("all that was learned is remembered")
	err := GoodSessions(ctx, r.Backfill.Store, snapshots.Range{From: r.Backfill.Since}, r.back.of, r.damaged, func(s *onerecv1.Session) error {
		n++
		switch {
		case remember && n > r.back.seen:
			return done
		case remember:
			return r.learner.Remember(s)
		case n <= r.back.seen:
			return nil
		}
		if err := r.learn(ctx, s); err != nil {
			return err
		}
		r.back.seen = n
		return r.publishIfDue(ctx)
	})
	if errors.Is(err, done) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("learn from snapshots: %w", err)
	}
	if n < r.back.seen {
		return fmt.Errorf("learn from snapshots: the candidate has learned %d sessions of them, %s holds %d; it is not what it was", r.back.seen, r.Backfill.Store.URL(), n)
	}
	return nil
}

// handOver finds where on sessions.good the stream goes on: of each partition behind the last session that the
// snapshots hold. It is there in the order of sessions.judged, since both are written together. Of sessions in a
// damaged file, those behind the last readable one come from the stream, if it still has them.
func (r *run) handOver(ctx context.Context) error {
	type last struct {
		session string
		offset  int64
	}
	lasts := make(map[int32]last)
	// Of all days: what is older than Since is not learned from the stream either.
	err := snapshots.ReadHours(ctx, r.Backfill.Store, snapshots.TableSessions, snapshots.Range{}, r.damaged, func(rows []struct {
		SessionID string `parquet:"session_id"`
		Good      bool   `parquet:"good"`
		Partition int32  `parquet:"kafka_partition"`
		Offset    int64  `parquet:"kafka_offset"`
	}) error {
		for _, g := range rows {
			if l, ok := lasts[g.Partition]; g.Good && g.Offset < r.back.of[g.Partition] && (!ok || g.Offset > l.offset) {
				lasts[g.Partition] = last{g.SessionID, g.Offset}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("learn from snapshots: %w", err)
	}
	spans, err := r.Cluster.Spans(ctx, schemas.TopicGoodSessions)
	if err != nil {
		return err
	}
	end := make(map[int32]int64)
	for p, span := range spans {
		end[p] = span.From // everything that is still there is newer, unless the last one is among it
		l, ok := lasts[p]
		if !ok {
			continue
		}
		if err := r.Cluster.ReadSpan(ctx, schemas.TopicGoodSessions, p, span, func(rec *kgo.Record) error {
			s, err := ParseGood(rec)
			if err != nil {
				return fmt.Errorf("topic %s partition %d offset %d: %w", rec.Topic, rec.Partition, rec.Offset, err)
			}
			if s.SessionId == l.session {
				end[p] = rec.Offset + 1
				return errFound
			}
			return nil
		}); err != nil && !errors.Is(err, errFound) {
			return err
		}
	}
	r.back.end = end
	for p, at := range end {
		r.offsets[p] = at
	}
	r.Log.Info("learned from snapshots", "sessions", r.back.seen, "stream_from", end)
	return nil
}

var errFound = errors.New("found")

// begin returns where on sessions.good the stream began for this model.
func (b *backfill) begin(p int32, span stream.Span) stream.Span {
	if b != nil {
		span.From = max(span.From, b.end[p])
	}
	return span
}
