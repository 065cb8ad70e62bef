package snapshots

import (
	"cmp"
	"context"
	"io"
	"path"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"onerec/schemas"
	"onerec/snapshots/delta"
)

// feed says how the records of a topic become rows of a table.
type feed struct {
	topic, table string
	place        func(*kgo.Record) (place, error)
	write        func(ctx context.Context, s *Store, name string, from span, rows []held) (size int64, err error)
	create       func(*delta.State, time.Time) ([]delta.Action, error)
}

// place says where a row belongs: in which folder, and where in a file.
type place struct {
	hour  int64 // of the folder, since the epoch
	user  string
	start int64 // ms since epoch
}

// held is a record that waits for its file. It stays as it came: rows take several times its room.
type held struct {
	place
	*kgo.Record
}

func inOrder(a, b held) int { return cmp.Or(byPlace(a, b), cmp.Compare(a.Offset, b.Offset)) }

func byPlace(a, b held) int {
	return cmp.Or(cmp.Compare(a.hour, b.hour), strings.Compare(a.user, b.user), cmp.Compare(a.start, b.start))
}

// feeds returns what the service writes.
func feeds(dead bool) []*feed {
	out := []*feed{{
		topic: schemas.TopicJudgedSessions, table: sessionFiles.table, place: sessionPlace,
		write: func(ctx context.Context, s *Store, name string, from span, records []held) (int64, error) {
			return s.put(ctx, path.Join(sessionFiles.table, name), func(w io.Writer) error {
				return writeSessions(w, from, len(records), func(i int) *kgo.Record { return records[i].Record })
			})
		},
		create: func(s *delta.State, now time.Time) ([]delta.Action, error) {
			return create[Session](s, sessionFiles.table, now)
		},
	}}
	if !dead {
		return out
	}
	return append(out, &feed{
		topic: schemas.TopicDeadLetters, table: deadLetterFiles.table,
		place: func(r *kgo.Record) (place, error) {
			t := deadLetterTime(r).UnixMilli()
			return place{hour: hourOf(t), start: t}, nil
		},
		write: func(ctx context.Context, s *Store, name string, from span, records []held) (int64, error) {
			return deadLetterFiles.put(ctx, s, name, from, len(records), func(i int) (DeadLetter, error) { return deadLetter(records[i].Record), nil })
		},
		create: func(s *delta.State, now time.Time) ([]delta.Action, error) {
			return create[DeadLetter](s, deadLetterFiles.table, now)
		},
	})
}

// sessionPlace reads only what it needs of a JudgedSession.
func sessionPlace(r *kgo.Record) (place, error) {
	var j schemas.RawJudged
	if err := j.Scan(r.Value); err != nil {
		return place{}, noJudged(r, err)
	}
	return place{hourOf(j.EndMs), string(j.UserID), j.StartMs}, nil
}

func deadLetterTime(r *kgo.Record) time.Time {
	for _, h := range r.Headers {
		if h.Key == schemas.HeaderTime {
			if t, err := time.Parse(time.RFC3339, string(h.Value)); err == nil {
				return t.UTC()
			}
		}
	}
	return r.Timestamp.UTC()
}

// hourOf returns the hour that a time is in, since the epoch.
func hourOf(ms int64) int64 {
	hour := ms / hourMs
	if ms%hourMs < 0 {
		hour--
	}
	return hour
}
