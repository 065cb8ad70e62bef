package schemas

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"onerec/schemas/onerecv1"
)

// Field user_id of View, and the tags of View's fields: the number over the kind.
const (
	fieldUserID = 2

	tagEventID           = 1<<3 | byte(protowire.BytesType)
	tagUserID            = fieldUserID<<3 | byte(protowire.BytesType)
	tagItemID            = 3<<3 | byte(protowire.BytesType)
	tagEventTimeMs       = 4<<3 | byte(protowire.VarintType)
	tagWatchMs           = 5<<3 | byte(protowire.VarintType)
	tagDurationMs        = 6<<3 | byte(protowire.VarintType)
	tagLike              = 7<<3 | byte(protowire.VarintType)
	tagFollow            = 8<<3 | byte(protowire.VarintType)
	tagComment           = 9<<3 | byte(protowire.VarintType)
	tagShare             = 10<<3 | byte(protowire.VarintType)
	tagDislike           = 11<<3 | byte(protowire.VarintType)
	tagSurface           = 12<<3 | byte(protowire.BytesType)
	tagRecommendationID  = 13<<3 | byte(protowire.BytesType)
	tagCheckpointVersion = 14<<3 | byte(protowire.BytesType)
)

// RawView is an encoded View (or ViewEvent) whose fields were found but not
// copied. A stage that passes views on needs no more, and the bytes that it passes
// on keep fields that a newer producer may have added.
type RawView struct {
	EventID, UserID, ItemID          []byte // share memory with what was scanned, as all bytes here
	EventTimeMs, WatchMs, DurationMs int64
	Engagement
	Surface, RecommendationID, CheckpointVersion []byte

	value           []byte // what was scanned
	userAt, userEnd int    // where its last user_id is, tag included
	users, userSize int    // how often user_id is there, and in how many bytes
	itemEnd         int    // where its last item_id ends
}

// Engagement is what a user did with a video, besides watching it.
type Engagement struct {
	Like, Follow, Comment, Share, Dislike bool
}

// Raw returns the view as Scan would find it in v's encoding.
func Raw(v *onerecv1.View) *RawView {
	return &RawView{
		EventID: []byte(v.EventId), UserID: []byte(v.UserId), ItemID: []byte(v.ItemId),
		EventTimeMs: v.EventTimeMs, WatchMs: v.WatchMs, DurationMs: v.DurationMs,
		Engagement: Engagement{Like: v.Like, Follow: v.Follow, Comment: v.Comment, Share: v.Share, Dislike: v.Dislike},
		Surface:    []byte(v.Surface), RecommendationID: []byte(v.RecommendationId), CheckpointVersion: []byte(v.CheckpointVersion),
	}
}

var errNotUTF8 = errors.New("a string is not UTF-8")

// Scan finds the fields of an encoded View. It accepts exactly what proto.Unmarshal
// accepts, and allocates nothing.
func (v *RawView) Scan(b []byte) error {
	*v = RawView{value: b}
	for at := 0; at < len(b); {
		tag, n := b[at], 1
		if tag >= 1<<7 || tag < 1<<3 { // a large field number, or a tag that takes more bytes than it needs
			num, kind, m := consumeTag(b[at:])
			if m < 0 {
				return fmt.Errorf("decode view: %w", protowire.ParseError(m))
			}
			tag, n = 0, m
			if num < 1<<4 {
				tag = byte(num)<<3 | byte(kind)
			}
		}
		value := b[at+n:]
		switch tag {
		case tagEventID, tagUserID, tagItemID, tagSurface, tagRecommendationID, tagCheckpointVersion:
			field, m := consumeBytes(value)
			if m < 0 {
				return fmt.Errorf("decode view: field %d: %w", tag>>3, protowire.ParseError(m))
			}
			if !validUTF8(field) {
				return fmt.Errorf("decode view: field %d: %w", tag>>3, errNotUTF8)
			}
			switch tag {
			case tagEventID:
				v.EventID = field
			case tagItemID:
				v.ItemID = field
				v.itemEnd = at + n + m
			case tagUserID:
				v.UserID = field
				v.users++
				v.userSize += n + m
				v.userAt, v.userEnd = at, at+n+m
			case tagSurface:
				v.Surface = field
			case tagRecommendationID:
				v.RecommendationID = field
			case tagCheckpointVersion:
				v.CheckpointVersion = field
			}
			at += n + m
		case tagEventTimeMs, tagWatchMs, tagDurationMs, tagLike, tagFollow, tagComment, tagShare, tagDislike:
			x, m := consumeVarint(value)
			if m < 0 {
				return fmt.Errorf("decode view: field %d: %w", tag>>3, protowire.ParseError(m))
			}
			switch tag {
			case tagEventTimeMs:
				v.EventTimeMs = int64(x)
			case tagWatchMs:
				v.WatchMs = int64(x)
			case tagDurationMs:
				v.DurationMs = int64(x)
			case tagLike:
				v.Like = x != 0
			case tagFollow:
				v.Follow = x != 0
			case tagComment:
				v.Comment = x != 0
			case tagShare:
				v.Share = x != 0
			case tagDislike:
				v.Dislike = x != 0
			}
			at += n + m
		default: // a field of a later version, or of another kind
			num, kind, _ := consumeTag(b[at:])
			m := protowire.ConsumeFieldValue(num, kind, value)
			if m < 0 {
				return fmt.Errorf("decode view: field %d: %w", num, protowire.ParseError(m))
			}
			at += n + m
		}
	}
	return nil
}

// AppendWithoutUser appends the encoded view without its user_id, as it stands in a
// Session. v must have been scanned.
func (v *RawView) AppendWithoutUser(dst []byte) []byte {
	if v.users <= 1 {
		return append(append(dst, v.value[:v.userAt]...), v.value[v.userEnd:]...)
	}
	from := 0 // start of what is not copied yet
	for at := 0; at < len(v.value); {
		num, kind, n := consumeTag(v.value[at:])
		end := at + n + protowire.ConsumeFieldValue(num, kind, v.value[at+n:])
		if num == fieldUserID && kind == protowire.BytesType {
			dst = append(dst, v.value[from:at]...)
			from = end
		}
		at = end
	}
	return append(dst, v.value[from:]...)
}

// SizeWithoutUser is how many bytes AppendWithoutUser appends.
func (v *RawView) SizeWithoutUser() int { return len(v.value) - v.userSize }

// ItemWithoutUser returns where the item_id begins in what AppendWithoutUser appends;
// -1 if the view has no item_id, or user_id more than once.
func (v *RawView) ItemWithoutUser() int {
	at := v.itemEnd - len(v.ItemID)
	switch {
	case v.itemEnd == 0 || v.users > 1:
		return -1
	case v.users == 1 && v.userAt < at:
		return at - v.userSize
	default:
		return at
	}
}

// RawHistoryItem is an encoded HistoryItem whose fields were found but not copied.
type RawHistoryItem struct {
	ItemID      []byte // shares memory with what was scanned
	EventTimeMs int64
}

// Scan finds the fields of an encoded HistoryItem, as [RawView.Scan] does a View's.
func (h *RawHistoryItem) Scan(b []byte) error {
	*h = RawHistoryItem{}
	for len(b) > 0 {
		num, kind, n := consumeTag(b)
		if n < 0 {
			return fmt.Errorf("decode history item: %w", protowire.ParseError(n))
		}
		var m int
		switch {
		case num == 1 && kind == protowire.BytesType:
			if h.ItemID, m = consumeBytes(b[n:]); m >= 0 && !validUTF8(h.ItemID) {
				return fmt.Errorf("decode history item: field %d: %w", num, errNotUTF8)
			}
		case num == 2 && kind == protowire.VarintType:
			var x uint64
			x, m = consumeVarint(b[n:])
			h.EventTimeMs = int64(x)
		default: // a field of a later version, or of another kind
			m = protowire.ConsumeFieldValue(num, kind, b[n:])
		}
		if m < 0 {
			return fmt.Errorf("decode history item: field %d: %w", num, protowire.ParseError(m))
		}
		b = b[n+m:]
	}
	return nil
}

// EachField calls fn with every field of an encoded message, in their order, and
// returns fn's first error, or what is wrong with the bytes. A value of
// protowire.BytesType comes without its length.
func EachField(b []byte, fn func(num protowire.Number, kind protowire.Type, value []byte) error) error {
	for len(b) > 0 {
		num, kind, n := consumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		var value []byte
		var m int
		if kind == protowire.BytesType {
			value, m = consumeBytes(b[n:])
		} else if m = protowire.ConsumeFieldValue(num, kind, b[n:]); m >= 0 {
			value = b[n : n+m]
		}
		if m < 0 {
			return fmt.Errorf("field %d: %w", num, protowire.ParseError(m))
		}
		if err := fn(num, kind, value); err != nil {
			return err
		}
		b = b[n+m:]
	}
	return nil
}

// Varint returns the number of a field of that kind, as EachField gives it.
func Varint(value []byte) uint64 {
	x, _ := protowire.ConsumeVarint(value)
	return x
}

// consumeTag is protowire.ConsumeTag, with the bounds of proto.Unmarshal, and a short way for small numbers.
func consumeTag(b []byte) (protowire.Number, protowire.Type, int) {
	if len(b) > 0 && b[0] < 1<<7 && b[0] >= 1<<3 {
		return protowire.Number(b[0] >> 3), protowire.Type(b[0] & 7), 1
	}
	num, kind, n := protowire.ConsumeTag(b)
	if num > protowire.MaxValidNumber {
		return 0, 0, -1
	}
	return num, kind, n
}

// consumeBytes is protowire.ConsumeBytes with a short way for short fields.
func consumeBytes(b []byte) ([]byte, int) {
	if len(b) > 0 && b[0] < 0x80 && int(b[0]) < len(b) {
		n := 1 + int(b[0])
		return b[1:n:n], n
	}
	return protowire.ConsumeBytes(b)
}

// validUTF8 is utf8.Valid with a short way for short ASCII, as most ids are.
func validUTF8(b []byte) bool {
	const high = 0x8080808080808080
	switch n := len(b); {
	case n > 32:
		return utf8.Valid(b)
	case n >= 8:
		or := binary.LittleEndian.Uint64(b[n-8:])
		for i := 0; i < n-8; i += 8 {
			or |= binary.LittleEndian.Uint64(b[i:])
		}
		return or&high == 0 || utf8.Valid(b)
	case n >= 4:
		return (binary.LittleEndian.Uint32(b)|binary.LittleEndian.Uint32(b[n-4:]))&uint32(high&0xffffffff) == 0 || utf8.Valid(b)
	default:
		return utf8.Valid(b)
	}
}

// consumeVarint is protowire.ConsumeVarint with a short way for short numbers.
func consumeVarint(b []byte) (uint64, int) {
	if len(b) > 0 && b[0] < 0x80 {
		return uint64(b[0]), 1
	}
	return protowire.ConsumeVarint(b)
}
