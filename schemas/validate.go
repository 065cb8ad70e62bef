package schemas

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"onerec/schemas/onerecv1"
)

// MaxIDBytes is the longest id of an event, a user or an item.
const MaxIDBytes = 256

// Bounds are the limits of the view rules that a deployment may set.
type Bounds struct {
	MaxWatch    time.Duration // longest watch time of one view
	MaxDuration time.Duration // longest video
	MaxFuture   time.Duration // how far event time may lie ahead of the wall clock
	MinTime     time.Time     // oldest event time
}

// DefaultBounds returns limits that only nonsense exceeds.
func DefaultBounds() Bounds {
	return Bounds{
		MaxWatch:    24 * time.Hour,
		MaxDuration: 24 * time.Hour,
		MaxFuture:   10 * time.Minute,
		MinTime:     time.Date(2010, 1, 1, 0, 0, 0, 0, time.UTC),
	}
}

// Rule is one thing that every view must keep.
type Rule struct {
	Name string // travels as [HeaderReason]; part of the contract
	Why  string // for the people who read a dead letter
	// Broken says what is wrong with v at wall-clock time now, or "".
	Broken func(v *onerecv1.ViewEvent, now time.Time) string
}

// ReasonUndecodable is the reason of a dead letter that is no ViewEvent at all.
const ReasonUndecodable = "undecodable"

// ViewRules returns the rules in the order in which they are checked.
func ViewRules(b Bounds) []Rule {
	id := func(field string, get func(*onerecv1.ViewEvent) string) func(*onerecv1.ViewEvent, time.Time) string {
		return func(v *onerecv1.ViewEvent, _ time.Time) string {
			switch s := get(v); {
			case s == "":
				return field + " is empty"
			case len(s) > MaxIDBytes:
				return fmt.Sprintf("%s has %d bytes, at most %d are allowed", field, len(s), MaxIDBytes)
			case !utf8.ValidString(s):
				return field + " is not UTF-8"
			case strings.IndexByte(s, 0) >= 0:
				return field + " holds a zero byte"
			}
			return ""
		}
	}
	length := func(field string, limit time.Duration, get func(*onerecv1.ViewEvent) int64) func(*onerecv1.ViewEvent, time.Time) string {
		return func(v *onerecv1.ViewEvent, _ time.Time) string {
			if ms := get(v); ms < 0 || ms > limit.Milliseconds() {
				return fmt.Sprintf("%s is %d, allowed is 0 to %d", field, ms, limit.Milliseconds())
			}
			return ""
		}
	}
	return []Rule{
		{"no_event_id", "without an id a repeated event would count twice", id("event_id", (*onerecv1.ViewEvent).GetEventId)},
		{"no_user", "a session belongs to a user", id("user_id", (*onerecv1.ViewEvent).GetUserId)},
		{"no_item", "a view is of an item", id("item_id", (*onerecv1.ViewEvent).GetItemId)},
		{"bad_watch_time", "a negative or absurd watch time would count as attention", length("watch_ms", b.MaxWatch, (*onerecv1.ViewEvent).GetWatchMs)},
		{"bad_duration", "a negative or absurd duration would spoil watch ratios", length("duration_ms", b.MaxDuration, (*onerecv1.ViewEvent).GetDurationMs)},
		{"too_old", "event time before the first possible view is a broken clock", func(v *onerecv1.ViewEvent, _ time.Time) string {
			if v.EventTimeMs < b.MinTime.UnixMilli() {
				return fmt.Sprintf("event_time_ms is %d, the earliest allowed is %d", v.EventTimeMs, b.MinTime.UnixMilli())
			}
			return ""
		}},
		{"in_future", "one wrong clock must not close other users' sessions", func(v *onerecv1.ViewEvent, now time.Time) string {
			if limit := now.Add(b.MaxFuture).UnixMilli(); v.EventTimeMs > limit {
				return fmt.Sprintf("event_time_ms is %d, the latest allowed is %d", v.EventTimeMs, limit)
			}
			return ""
		}},
	}
}

var jsonOptions = protojson.UnmarshalOptions{DiscardUnknown: true}

// DecodeViewEvent reads the value of a record on views.raw: Protobuf, or JSON
// when contentType is [ContentTypeJSON].
func DecodeViewEvent(contentType string, value []byte) (*onerecv1.ViewEvent, error) {
	v := new(onerecv1.ViewEvent)
	switch contentType {
	case "", "application/x-protobuf":
		if len(value) == 0 {
			return nil, errors.New("decode view event: the value is empty")
		}
		if err := proto.Unmarshal(value, v); err != nil {
			return nil, fmt.Errorf("decode view event as Protobuf: %w", err)
		}
	case ContentTypeJSON:
		if err := jsonOptions.Unmarshal(value, v); err != nil {
			return nil, fmt.Errorf("decode view event as JSON: %w", err)
		}
	default:
		return nil, fmt.Errorf("decode view event: content-type %q is neither %s nor application/x-protobuf", contentType, ContentTypeJSON)
	}
	return v, nil
}
