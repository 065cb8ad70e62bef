package snapshots

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/schemas"
	"onerec/schemas/onerecv1"
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

// newFeed returns a feed; rows returns, for each file, what makes its rows.
func newFeed[T any](topic string, to *files[T], at func(*kgo.Record) (place, error), rows func() func(*kgo.Record) (T, error)) *feed {
	return &feed{
		topic: topic, table: to.table, place: at,
		write: func(ctx context.Context, s *Store, name string, from span, records []held) (int64, error) {
			row := rows()
			return to.put(ctx, s, name, from, len(records), func(i int) (T, error) { return row(records[i].Record) })
		},
		create: func(s *delta.State, now time.Time) ([]delta.Action, error) { return create[T](s, to.table, now) },
	}
}

// feeds returns what the service writes.
func feeds(dead bool) []*feed {
	out := []*feed{
		newFeed(schemas.TopicJudgedSessions, sessionFiles, sessionPlace, func() func(*kgo.Record) (Session, error) {
			j := new(onerecv1.JudgedSession)
			return func(r *kgo.Record) (Session, error) {
				if err := unmarshalJudged(r, j); err != nil {
					return Session{}, err
				}
				return session(r, j), nil
			}
		}),
	}
	if !dead {
		return out
	}
	return append(out, newFeed(schemas.TopicDeadLetters, deadLetterFiles, func(r *kgo.Record) (place, error) {
		t := deadLetterTime(r).UnixMilli()
		return place{hour: hourOf(t), start: t}, nil
	}, func() func(*kgo.Record) (DeadLetter, error) {
		return func(r *kgo.Record) (DeadLetter, error) { return deadLetter(r), nil }
	}))
}

func unmarshalJudged(r *kgo.Record, j *onerecv1.JudgedSession) error {
	if err := proto.Unmarshal(r.Value, j); err != nil || j.Session == nil {
		return fmt.Errorf("topic %s partition %d offset %d is no JudgedSession (only filter may write there): %w", r.Topic, r.Partition, r.Offset, err)
	}
	return nil
}

// sessionPlace reads only what it needs of a JudgedSession.
func sessionPlace(r *kgo.Record) (place, error) {
	var j schemas.RawJudged
	if err := j.Scan(r.Value); err != nil {
		return place{}, fmt.Errorf("topic %s partition %d offset %d is no JudgedSession (only filter may write there): %w", r.Topic, r.Partition, r.Offset, err)
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
