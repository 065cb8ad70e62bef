package snapshots

import (
	"bytes"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"onerec/schemas"
)

// Session is a row of the table sessions. The tags doc, unit and example are what docs/snapshots.md says of each column. New columns
// come at the end.
type Session struct {
	SessionID    string        `parquet:"session_id" doc:"from the user and the first view; the same however often it is computed" example:"fdee204a4f5fb030551938d8552932b5"`
	UserID       string        `parquet:"user_id,dict" doc:"the user, or the user's pseudonym; rows of a file are in its order, and it has a bloom filter" example:"u00042"`
	Start        time.Time     `parquet:"start,timestamp(microsecond),delta" unit:"UTC" doc:"time of the first view" example:"2026-01-01 00:00:00"`
	End          time.Time     `parquet:"end,timestamp(microsecond),delta" unit:"UTC" doc:"time of the last view; date and hour are its" example:"2026-01-01 00:12:30"`
	Views        []View        `parquet:"views,list" doc:"the views, oldest first"`
	TotalWatchMs int64         `parquet:"total_watch_ms,delta" unit:"ms" doc:"watch time of all views" example:"310500"`
	Likes        int32         `parquet:"likes" unit:"views" doc:"views that were liked" example:"2"`
	Follows      int32         `parquet:"follows" unit:"views" doc:"views after which the author was followed" example:"0"`
	Comments     int32         `parquet:"comments" unit:"views" doc:"views that were commented on" example:"0"`
	Shares       int32         `parquet:"shares" unit:"views" doc:"views that were shared" example:"1"`
	Dislikes     int32         `parquet:"dislikes" unit:"views" doc:"views that were disliked" example:"0"`
	ClosedBy     string        `parquet:"closed_by,dict" doc:"why the session ended: gap, size, age or limit" example:"gap"`
	History      []HistoryItem `parquet:"history,list" doc:"items that the user had engaged with before the start, oldest first"`
	Good         bool          `parquet:"good" doc:"whether every rule was passed" example:"true"`
	FailedRules  []string      `parquet:"failed_rules,list" doc:"rules that were not passed" example:"[min_views]"`
	RulesVersion string        `parquet:"rules_version,dict" doc:"version of the rules that judged" example:"default-1"`
	Partition    int32         `parquet:"kafka_partition" since:"2" doc:"where the session is on sessions.judged; with the offset it names the record" example:"3"`
	Offset       int64         `parquet:"kafka_offset,delta" since:"2" doc:"the record's offset there; both are 0 in files of before the columns were added" example:"120"`
}

// View is one view of a session.
type View struct {
	EventID           string    `parquet:"event_id" doc:"the view event's id, unique within its user" example:"e-7f3a"`
	ItemID            string    `parquet:"item_id,dict" doc:"the video; it has a bloom filter" example:"i00815"`
	Time              time.Time `parquet:"time,timestamp(microsecond),delta" unit:"UTC" doc:"when the view began" example:"2026-01-01 00:00:00"`
	WatchMs           int64     `parquet:"watch_ms,delta" unit:"ms" doc:"how long it was watched; more than the duration if it ran again" example:"15200"`
	DurationMs        int64     `parquet:"duration_ms,delta" unit:"ms" doc:"length of the video; 0: unknown" example:"21000"`
	Like              bool      `parquet:"like" doc:"liked" example:"true"`
	Follow            bool      `parquet:"follow" doc:"the author was followed" example:"false"`
	Comment           bool      `parquet:"comment" doc:"commented on" example:"false"`
	Share             bool      `parquet:"share" doc:"shared" example:"false"`
	Dislike           bool      `parquet:"dislike" doc:"disliked" example:"false"`
	Surface           string    `parquet:"surface,dict" doc:"where it was shown; empty: not said" example:"feed"`
	RecommendationID  string    `parquet:"recommendation_id" doc:"the recommender's answer that led to it; empty: none" example:"K7Q2..."`
	CheckpointVersion string    `parquet:"checkpoint_version,dict" doc:"the checkpoint that recommended it; empty: none" example:"000007-9f3ac1d2"`
}

// HistoryItem is an item that the user engaged with before the session.
type HistoryItem struct {
	ItemID string    `parquet:"item_id,dict" doc:"the video" example:"i00042"`
	Time   time.Time `parquet:"time,timestamp(microsecond),delta" unit:"UTC" doc:"when the engaging view began" example:"2025-12-31 20:00:00"`
}

// DeadLetter is a row of the table dead_letters.
type DeadLetter struct {
	Time      time.Time `parquet:"time,timestamp(microsecond),delta" unit:"UTC" doc:"when it was put aside; date and hour are its" example:"2026-01-01 00:00:03"`
	Reason    string    `parquet:"reason,dict" doc:"the rule that failed" example:"no_user"`
	Error     string    `parquet:"error" doc:"what was wrong" example:"user_id is empty"`
	Producer  string    `parquet:"producer,dict" doc:"the program that sent it; empty: not said" example:"android-7.1"`
	Topic     string    `parquet:"topic,dict" doc:"where it was" example:"views.raw"`
	Partition int32     `parquet:"partition" doc:"where it was" example:"3"`
	Offset    int64     `parquet:"offset,delta" doc:"where it was" example:"120"`
	Key       []byte    `parquet:"key" doc:"the record's key, byte for byte" example:"u00042"`
	Value     []byte    `parquet:"value" doc:"the record's value, byte for byte; onerec dlq replay sends it again" example:"0a04..."`
}

func ms(t int64) time.Time { return time.UnixMilli(t).UTC() }

// deadLetter makes a row of a record of views.dlq. What a header does not say stays empty: the bytes are kept
// whatever they are.
func deadLetter(r *kgo.Record) DeadLetter {
	d := DeadLetter{Time: deadLetterTime(r), Key: bytes.Clone(r.Key), Value: bytes.Clone(r.Value)}
	for _, h := range r.Headers {
		v := string(h.Value)
		switch h.Key {
		case schemas.HeaderReason:
			d.Reason = v
		case schemas.HeaderError:
			d.Error = v
		case schemas.HeaderProducer:
			d.Producer = v
		case schemas.HeaderTopic:
			d.Topic = v
		case schemas.HeaderPartition:
			if n, err := strconv.ParseInt(v, 10, 32); err == nil {
				d.Partition = int32(n)
			}
		case schemas.HeaderOffset:
			d.Offset, _ = strconv.ParseInt(v, 10, 64)
		}
	}
	return d
}
