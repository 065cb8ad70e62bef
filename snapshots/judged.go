package snapshots

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/encoding/protowire"

	"onerec/schemas"
	"onerec/schemas/onerecv1"
	"onerec/snapshots/shred"
)

// sessionRows writes records of sessions.judged as rows of the table sessions, see [Session], without ever making one: fields are
// appended to their columns as they are found in the record. A session's own fields wait for its end, since in an
// encoded message the last value of a field counts. It accepts exactly what proto.Unmarshal accepts.
type sessionRows struct {
	w *shred.Writer

	id, user, closedBy, rules                  shred.Text
	start, end, watch, offset                  shred.Ints
	likes, follows, comments, shares, dislikes shred.Smalls
	partition                                  shred.Smalls
	good                                       shred.Bools

	views                                        shred.List
	event, item, surface, recommendation, source shred.Text
	time, watched, duration                      shred.Ints
	like, follow, comment, share, dislike        shred.Bools

	history     shred.List
	historyItem shred.Text
	historyTime shred.Ints

	failed     shred.List
	failedRule shred.Text

	row  sessionRow
	view schemas.RawView
	past schemas.RawHistoryItem
}

// sessionRow is what is found of a record before its end.
type sessionRow struct {
	found                                      bool
	id, user, rules                            []byte
	start, end, watch                          int64
	likes, follows, comments, shares, dislikes int32
	closedBy                                   int32
	good                                       bool
}

func newSessionRows(w *shred.Writer) *sessionRows {
	const view, history = "views.list.element.", "history.list.element."
	return &sessionRows{
		w:  w,
		id: w.Text("session_id"), user: w.Text("user_id"), closedBy: w.Text("closed_by"), rules: w.Text("rules_version"),
		start: w.Ints("start"), end: w.Ints("end"), watch: w.Ints("total_watch_ms"), offset: w.Ints("kafka_offset"),
		likes: w.Smalls("likes"), follows: w.Smalls("follows"), comments: w.Smalls("comments"), shares: w.Smalls("shares"), dislikes: w.Smalls("dislikes"),
		partition: w.Smalls("kafka_partition"), good: w.Bools("good"),

		views: w.List("views"),
		event: w.Text(view + "event_id"), item: w.Text(view + "item_id"), surface: w.Text(view + "surface"),
		recommendation: w.Text(view + "recommendation_id"), source: w.Text(view + "checkpoint_version"),
		time: w.Ints(view + "time"), watched: w.Ints(view + "watch_ms"), duration: w.Ints(view + "duration_ms"),
		like: w.Bools(view + "like"), follow: w.Bools(view + "follow"), comment: w.Bools(view + "comment"), share: w.Bools(view + "share"), dislike: w.Bools(view + "dislike"),

		history: w.List("history"), historyItem: w.Text(history + "item_id"), historyTime: w.Ints(history + "time"),
		failed: w.List("failed_rules"), failedRule: w.Text("failed_rules.list.element"),
	}
}

// write writes a record as a row.
func (s *sessionRows) write(r *kgo.Record) error {
	s.row = sessionRow{}
	err := schemas.EachField(r.Value, func(num protowire.Number, kind protowire.Type, value []byte) error {
		switch {
		case num == 1 && kind == protowire.BytesType:
			s.row.found = true
			return schemas.EachField(value, s.sessionField)
		case num == 2 && kind == protowire.BytesType:
			return schemas.EachField(value, s.verdictField)
		}
		return nil
	})
	if err == nil && !s.row.found {
		err = errors.New("there is no session in it")
	}
	if err != nil {
		return noJudged(r, err)
	}
	s.id.Append(s.row.id)
	s.user.Append(s.row.user)
	s.start.Append(s.row.start * microsPerMs)
	s.end.Append(s.row.end * microsPerMs)
	s.watch.Append(s.row.watch)
	s.likes.Append(s.row.likes)
	s.follows.Append(s.row.follows)
	s.comments.Append(s.row.comments)
	s.shares.Append(s.row.shares)
	s.dislikes.Append(s.row.dislikes)
	reason, ok := closedByNames[s.row.closedBy]
	if !ok { // of a later version: its number
		reason = []byte(closedBy(onerecv1.ClosedBy(s.row.closedBy)))
	}
	s.closedBy.Append(reason)
	s.good.Append(s.row.good)
	s.rules.Append(s.row.rules)
	s.partition.Append(r.Partition)
	s.offset.Append(r.Offset)
	return s.w.EndRow()
}

const microsPerMs = 1000

func noJudged(r *kgo.Record, err error) error {
	return fmt.Errorf("topic %s partition %d offset %d is no JudgedSession (only filter may write there): %w", r.Topic, r.Partition, r.Offset, err)
}

// closedByNames are the names of the reasons that this version knows.
var closedByNames = func() map[int32][]byte {
	names := make(map[int32][]byte)
	for number := range onerecv1.ClosedBy_name {
		names[number] = []byte(closedBy(onerecv1.ClosedBy(number)))
	}
	return names
}()

func closedBy(c onerecv1.ClosedBy) string {
	return strings.ToLower(strings.TrimPrefix(c.String(), "CLOSED_BY_"))
}

// sessionField takes a field of Session, by its number in onerec.proto.
func (s *sessionRows) sessionField(num protowire.Number, kind protowire.Type, value []byte) error {
	row := &s.row
	if kind == protowire.BytesType {
		switch num {
		case 1:
			return text(&row.id, num, value)
		case 2:
			return text(&row.user, num, value)
		case 5:
			return s.addView(value)
		case 13:
			return s.addHistory(value)
		}
		return nil
	}
	if kind != protowire.VarintType {
		return nil
	}
	x := schemas.Varint(value)
	switch num {
	case 3:
		row.start = int64(x)
	case 4:
		row.end = int64(x)
	case 6:
		row.watch = int64(x)
	case 7:
		row.likes = int32(x)
	case 8:
		row.follows = int32(x)
	case 9:
		row.comments = int32(x)
	case 10:
		row.shares = int32(x)
	case 11:
		row.dislikes = int32(x)
	case 12:
		row.closedBy = int32(x)
	}
	return nil
}

// verdictField takes a field of Verdict.
func (s *sessionRows) verdictField(num protowire.Number, kind protowire.Type, value []byte) error {
	switch {
	case num == 1 && kind == protowire.VarintType:
		s.row.good = schemas.Varint(value) != 0
	case num == 2 && kind == protowire.BytesType:
		var rule []byte
		if err := text(&rule, num, value); err != nil {
			return err
		}
		s.failed.Next()
		s.failedRule.Append(rule)
	case num == 3 && kind == protowire.BytesType:
		return text(&s.row.rules, num, value)
	}
	return nil
}

func (s *sessionRows) addView(value []byte) error {
	v := &s.view
	if err := v.Scan(value); err != nil {
		return err
	}
	s.views.Next()
	s.event.Append(v.EventID)
	s.item.Append(v.ItemID)
	s.time.Append(v.EventTimeMs * microsPerMs)
	s.watched.Append(v.WatchMs)
	s.duration.Append(v.DurationMs)
	s.like.Append(v.Like)
	s.follow.Append(v.Follow)
	s.comment.Append(v.Comment)
	s.share.Append(v.Share)
	s.dislike.Append(v.Dislike)
	s.surface.Append(v.Surface)
	s.recommendation.Append(v.RecommendationID)
	s.source.Append(v.CheckpointVersion)
	return nil
}

func (s *sessionRows) addHistory(value []byte) error {
	h := &s.past
	if err := h.Scan(value); err != nil {
		return err
	}
	s.history.Next()
	s.historyItem.Append(h.ItemID)
	s.historyTime.Append(h.EventTimeMs * microsPerMs)
	return nil
}

// text sets a field of a message that must be UTF-8, as strings of Protobuf and of Parquet are.
func text(field *[]byte, num protowire.Number, value []byte) error {
	if !utf8.Valid(value) {
		return fmt.Errorf("field %d is not UTF-8", num)
	}
	*field = value
	return nil
}

// writeSessions writes records of sessions.judged as a file to w, in their order.
func writeSessions(w io.Writer, from span, n int, record func(i int) *kgo.Record) error {
	sw, err := shred.New(w, sessionFiles.options(from)...)
	if err != nil {
		return err
	}
	rows := newSessionRows(sw)
	for i := range n {
		if err := rows.write(record(i)); err != nil {
			return err
		}
	}
	return sw.Close()
}
