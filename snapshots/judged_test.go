package snapshots

import (
	"bytes"
	"io"
	"reflect"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

// session is a record's row, by the Protobuf library: what [sessionRows] must come to without it.
func session(r *kgo.Record, j *onerecv1.JudgedSession) Session {
	s := j.Session
	out := Session{
		SessionID: s.SessionId, UserID: s.UserId, Start: ms(s.StartMs), End: ms(s.EndMs), TotalWatchMs: s.TotalWatchMs,
		Likes: s.Likes, Follows: s.Follows, Comments: s.Comments, Shares: s.Shares, Dislikes: s.Dislikes,
		ClosedBy: closedBy(s.ClosedBy),
		Good:     j.Verdict.GetGood(), FailedRules: j.Verdict.GetFailedRules(), RulesVersion: j.Verdict.GetRulesVersion(),
		Partition: r.Partition, Offset: r.Offset,
		Views: make([]View, len(s.Views)), History: make([]HistoryItem, len(s.History)),
	}
	for i, v := range s.Views {
		out.Views[i] = View{
			EventID: v.EventId, ItemID: v.ItemId, Time: ms(v.EventTimeMs), WatchMs: v.WatchMs, DurationMs: v.DurationMs,
			Like: v.Like, Follow: v.Follow, Comment: v.Comment, Share: v.Share, Dislike: v.Dislike,
			Surface: v.Surface, RecommendationID: v.RecommendationId, CheckpointVersion: v.CheckpointVersion,
		}
	}
	for i, h := range s.History {
		out.History[i] = HistoryItem{h.ItemId, ms(h.EventTimeMs)}
	}
	return out
}

func unmarshalJudged(r *kgo.Record, j *onerecv1.JudgedSession) error {
	if err := proto.Unmarshal(r.Value, j); err != nil || j.Session == nil {
		return noJudged(r, err)
	}
	return nil
}

// writeRows writes rows by parquet-go's writer.
func writeRows(w io.Writer, rows []Session) error {
	return sessionFiles.write(w, span{topic: schemas.TopicJudgedSessions}, len(rows), func(i int) (Session, error) { return rows[i], nil })
}

// sameRow writes records as sessionRows does, and holds the rows that are read back against what the Protobuf library
// reads of them; what it refuses must be refused.
func sameRow(t interface {
	Fatal(...any)
	Fatalf(string, ...any)
}, records ...*kgo.Record) {
	var data bytes.Buffer
	err := WriteSessions(&data, records)
	var want, got []Session
	for _, r := range records {
		j := new(onerecv1.JudgedSession)
		if wantErr := unmarshalJudged(r, j); wantErr != nil {
			if err == nil {
				t.Fatalf("no error, by Protobuf %v", wantErr)
			}
			return
		}
		want = append(want, stored(session(r, j)))
	}
	if err != nil {
		t.Fatalf("error %v, by Protobuf none", err)
	}
	if err := readRows(bytes.NewReader(data.Bytes()), int64(data.Len()), func(rows []Session) error {
		for _, r := range rows {
			got = append(got, withoutEmpty(r))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("rows are\n%+v, by Protobuf\n%+v", got, want)
	}
}

// stored is a row as it is read from a file: times in microseconds, of which parquet-go makes nanoseconds (those beyond
// 2262 overflow), and lists of no elements alike.
func stored(s Session) Session {
	us := func(t time.Time) time.Time { return time.Unix(0, 1000*t.UnixMicro()).UTC() }
	s = withoutEmpty(s)
	s.Start, s.End = us(s.Start), us(s.End)
	for i := range s.Views {
		s.Views[i].Time = us(s.Views[i].Time)
	}
	for i := range s.History {
		s.History[i].Time = us(s.History[i].Time)
	}
	return s
}

// withoutEmpty copies a row's lists, and makes empty ones nil.
func withoutEmpty(s Session) Session {
	s.Views, s.History, s.FailedRules = append([]View(nil), s.Views...), append([]HistoryItem(nil), s.History...), append([]string(nil), s.FailedRules...)
	return s
}

// TestSessionRows: rows that are made of a record's bytes are those that the Protobuf library reads, whatever is in them.
func TestSessionRows(t *testing.T) {
	text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"", "i00815", "0123456789abcdef0123456789abcdef", "häufig"}))
	view := rapid.Custom(func(t *rapid.T) *onerecv1.View {
		return &onerecv1.View{
			EventId: text.Draw(t, "event"), ItemId: text.Draw(t, "item"), EventTimeMs: rapid.Int64().Draw(t, "time"), WatchMs: rapid.Int64().Draw(t, "watch"), DurationMs: rapid.Int64().Draw(t, "duration"),
			Like: rapid.Bool().Draw(t, "like"), Follow: rapid.Bool().Draw(t, "follow"), Comment: rapid.Bool().Draw(t, "comment"), Share: rapid.Bool().Draw(t, "share"), Dislike: rapid.Bool().Draw(t, "dislike"),
			Surface: text.Draw(t, "surface"), RecommendationId: text.Draw(t, "recommendation"), CheckpointVersion: text.Draw(t, "checkpoint"),
		}
	})
	past := rapid.Custom(func(t *rapid.T) *onerecv1.HistoryItem {
		return &onerecv1.HistoryItem{ItemId: text.Draw(t, "item"), EventTimeMs: rapid.Int64().Draw(t, "time")}
	})
	record := rapid.Custom(func(t *rapid.T) *kgo.Record {
		j := &onerecv1.JudgedSession{
			Session: &onerecv1.Session{
				SessionId: text.Draw(t, "id"), UserId: text.Draw(t, "user"), StartMs: rapid.Int64().Draw(t, "start"), EndMs: rapid.Int64().Draw(t, "end"),
				Views: rapid.SliceOfN(view, 0, 4).Draw(t, "views"), TotalWatchMs: rapid.Int64().Draw(t, "watch"), Likes: rapid.Int32().Draw(t, "likes"), Follows: rapid.Int32().Draw(t, "follows"),
				Comments: rapid.Int32().Draw(t, "comments"), Shares: rapid.Int32().Draw(t, "shares"), Dislikes: rapid.Int32().Draw(t, "dislikes"),
				ClosedBy: onerecv1.ClosedBy(rapid.Int32Range(-1, 7).Draw(t, "closed by")), History: rapid.SliceOfN(past, 0, 4).Draw(t, "history"),
			},
			Verdict: &onerecv1.Verdict{Good: rapid.Bool().Draw(t, "good"), FailedRules: rapid.SliceOfN(text, 0, 3).Draw(t, "failed"), RulesVersion: text.Draw(t, "rules")},
		}
		value, err := proto.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		return &kgo.Record{Value: value, Partition: rapid.Int32().Draw(t, "partition"), Offset: rapid.Int64().Draw(t, "offset")}
	})
	rapid.Check(t, func(t *rapid.T) { sameRow(t, rapid.SliceOfN(record, 0, 5).Draw(t, "records")...) })
}

// FuzzSessionRows: any bytes are the row that the Protobuf library makes of them, or refused as it refuses them.
func FuzzSessionRows(f *testing.F) {
	value, err := proto.Marshal(judged(3))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(value)
	f.Add(append(value, value...))                                                 // both parts twice, which are merged
	f.Add([]byte{0x0a, 0x09, 0x10, 1, 0x0a, 1, 'a', 0x0a, 1, 'b', 0x1d})           // torn
	f.Add([]byte{0x0a, 0x0b, 0x10, 1, 0x0a, 1, 'a', 0x0a, 1, 'b', 0xf8, 1, 5})     // a field of another kind, one twice, one of a later version
	f.Add([]byte{0x0a, 0x03, 0x0a, 1, 0xff})                                       // no UTF-8
	f.Add([]byte{0x0a, 0x00, 0x12, 0x08, 0x12, 0x01, 'a', 0x12, 0x01, 0xff, 8, 1}) // here neither
	f.Add([]byte{0x0a, 0x05, 0x1d, 5, 0, 0, 0})                                    // start_ms of another kind
	f.Add([]byte{0x0a, 0x00, 0x08, 0x05, 0x10, 0x05})                              // session and verdict of another kind, too
	f.Add([]byte{0x12, 0x02, 0x08, 0x01})                                          // no session
	f.Fuzz(func(t *testing.T, value []byte) { sameRow(t, &kgo.Record{Value: value, Partition: 1, Offset: 2}) })
}
