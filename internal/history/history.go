// Package history keeps a user's recent engaged items. Training and serving use
// this one piece of code, so that a model is asked about exactly the kind of
// history that it learned from.
package history

import (
	"iter"
	"slices"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"onerec/schemas"
)

// Policy bounds a history and says what belongs in it.
type Policy struct {
	MaxItems int           // n of the paper (256 there)
	MaxAge   time.Duration // items older than this, seen from the newest, expire
	MinWatch time.Duration // an effective view is at least this long, ...
	MinShare float64       // ... or this share of the video, whichever is shorter
}

// DefaultPolicy counts a view as effective from 18 s or the whole video, as the
// long_view of KuaiRand does.
func DefaultPolicy() Policy {
	return Policy{MaxItems: 64, MaxAge: 90 * 24 * time.Hour, MinWatch: 18 * time.Second, MinShare: 1}
}

// Engaged reports whether a view is a positive engagement: an effective view,
// like, follow, comment or share, without a dislike (PAPER: effective views,
// likes, follows, shares).
func (p Policy) Engaged(v *schemas.RawView) bool {
	if v.Dislike {
		return false
	}
	if v.Like || v.Follow || v.Comment || v.Share {
		return true
	}
	need := p.MinWatch.Milliseconds()
	if v.DurationMs > 0 {
		need = min(need, int64(p.MinShare*float64(v.DurationMs)))
	}
	return v.WatchMs >= max(need, 1)
}

// Field numbers: of the history in Session and in UserState, and within HistoryItem.
const (
	Field      = 13
	fieldItem  = 1
	fieldTime  = 2
	tagField   = Field<<3 | byte(protowire.BytesType)
	tagItem    = fieldItem<<3 | byte(protowire.BytesType)
	tagTime    = fieldTime<<3 | byte(protowire.VarintType)
	mostExtra  = 32   // bytes that an item takes beside its name, at most
	shortItems = 0x80 // lengths below this take one byte
)

// Items is a history, oldest first, packed as the field history of Session has it on
// the wire: a session takes it over by a copy. The zero value is empty.
type Items []byte

// Append adds an item that the user engaged with at ms since the epoch, not before
// the newest one. It may write into the room behind h, as append does.
func (h Items) Append(item []byte, ms int64) Items {
	inner := 1 + protowire.SizeBytes(len(item)) + 1 + protowire.SizeVarint(uint64(ms))
	h = protowire.AppendVarint(append(h, tagField), uint64(inner))
	h = protowire.AppendBytes(append(h, tagItem), item)
	return protowire.AppendVarint(append(h, tagTime), uint64(ms))
}

// All yields each item and its time in ms since the epoch.
func (h Items) All() iter.Seq2[[]byte, int64] {
	return func(yield func([]byte, int64) bool) {
		for len(h) > 0 {
			item, ms, n := h.first()
			if !yield(item, ms) {
				return
			}
			h = h[n:]
		}
	}
}

// first returns the oldest item, its time and its encoded size.
func (h Items) first() (item []byte, ms int64, size int) {
	inner, n := protowire.ConsumeBytes(h[1:])
	item, m := protowire.ConsumeBytes(inner[1:])
	x, _ := protowire.ConsumeVarint(inner[1+m+1:])
	return item, int64(x), 1 + n
}

// next returns the encoded size of the oldest item.
func (h Items) next() int {
	if h[1] < shortItems {
		return 2 + int(h[1])
	}
	inner, n := protowire.ConsumeVarint(h[1:])
	return 1 + n + int(inner)
}

// Len returns the number of items.
func (h Items) Len() int {
	n := 0
	for ; len(h) > 0; h = h[h.next():] {
		n++
	}
	return n
}

// Newest returns the time of the newest item in ms since the epoch, 0 if there is none.
func (h Items) Newest() int64 {
	if len(h) == 0 {
		return 0
	}
	for n := h.next(); n < len(h); n = h.next() {
		h = h[n:]
	}
	_, ms, _ := h.first()
	return ms
}

// Before returns the items older than t (ms since epoch). After a cut by size the
// next session may begin in the very millisecond in which the last one ended.
func (h Items) Before(t int64) Items {
	for at := 0; at < len(h); {
		_, ms, n := h[at:].first()
		if ms >= t {
			return h[:at:at]
		}
		at += n
	}
	return h[:len(h):len(h)]
}

// Parse checks one encoded HistoryItem and appends it to h in the form that
// Append gives.
func (h Items) Parse(b []byte) (Items, error) {
	if canonical(b) {
		return append(protowire.AppendVarint(append(h, tagField), uint64(len(b))), b...), nil
	}
	var item schemas.RawHistoryItem
	if err := item.Scan(b); err != nil {
		return h, err
	}
	return h.Append(item.ItemID, item.EventTimeMs), nil
}

// canonical reports whether b is what Append writes behind the length.
func canonical(b []byte) bool {
	if len(b) < 4 || b[0] != tagItem {
		return false
	}
	item, n := protowire.ConsumeBytes(b[1:])
	if n < 0 || n != protowire.SizeBytes(len(item)) || 1+n >= len(b) || b[1+n] != tagTime || !utf8.Valid(item) {
		return false
	}
	rest := b[1+n+1:]
	ms, m := protowire.ConsumeVarint(rest)
	return m == len(rest) && m == protowire.SizeVarint(ms)
}

// Trim forgets what the bounds exclude. It may move h within its memory.
func (p Policy) Trim(h Items) Items { return p.Extend(h, nil) }

// Extend appends items that are not older than those of h, and forgets what the bounds
// exclude. It may move h within its memory, and makes room first, so that a history that
// is full stays where it is.
func (p Policy) Extend(h, newer Items) Items {
	last := newer
	if len(last) == 0 {
		last = h
	}
	oldest := last.Newest() - p.MaxAge.Milliseconds()
	n := h.Len() + newer.Len()
	cut, n := p.excess(h, n, oldest)
	rest, _ := p.excess(newer, n, oldest)
	if cut > 0 {
		h = append(h[:0], h[cut:]...)
	}
	return append(h, newer[rest:]...)
}

// excess returns how many bytes at the front of h are items that the bounds exclude; n
// counts the items of h and those behind them, and what is left of it is returned.
func (p Policy) excess(h Items, n int, oldest int64) (at, left int) {
	for ; at < len(h); n-- {
		_, ms, size := h[at:].first()
		if n <= p.MaxItems && ms >= oldest {
			break
		}
		at += size
	}
	return at, n
}

// Insert adds one view that may be out of order, as the recommender meets them;
// it reports whether the history changed. A view that is there already, by item
// and time, changes nothing. It may move h within its memory.
func (p Policy) Insert(h Items, v *schemas.RawView) (Items, bool) {
	if !p.Engaged(v) {
		return h, false
	}
	at := 0 // behind the last item that is not newer
	for i := 0; i < len(h); {
		item, ms, n := h[i:].first()
		if ms > v.EventTimeMs {
			break
		}
		if ms == v.EventTimeMs && string(item) == string(v.ItemID) {
			return h, false
		}
		i += n
		at = i
	}
	one := Items(make([]byte, 0, len(v.ItemID)+mostExtra)).Append(v.ItemID, v.EventTimeMs)
	return p.Trim(slices.Insert(h, at, one...)), true
}
