// Package history keeps a user's recent engaged items. Training and serving use
// this one piece of code, so that a model is asked about exactly the kind of
// history that it learned from.
package history

import (
	"slices"
	"time"

	"onerec/schemas/onerecv1"
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
func (p Policy) Engaged(v *onerecv1.View) bool {
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

// Append adds the engaged ones of views, which are in event-time order and none
// older than the newest item, and forgets what the policy's bounds exclude.
func (p Policy) Append(items []*onerecv1.HistoryItem, views []*onerecv1.View) []*onerecv1.HistoryItem {
	for _, v := range views {
		if p.Engaged(v) {
			items = append(items, &onerecv1.HistoryItem{ItemId: v.ItemId, EventTimeMs: v.EventTimeMs})
		}
	}
	if len(items) == 0 {
		return items
	}
	oldest := items[len(items)-1].EventTimeMs - p.MaxAge.Milliseconds()
	first, _ := slices.BinarySearchFunc(items, oldest, func(h *onerecv1.HistoryItem, t int64) int {
		if h.EventTimeMs < t {
			return -1
		}
		return 1
	})
	first = max(first, len(items)-p.MaxItems)
	return slices.Clone(items[first:])
}

// Before returns the items older than t (ms since epoch). After a cut by size the
// next session may begin in the very millisecond in which the last one ended.
func Before(items []*onerecv1.HistoryItem, t int64) []*onerecv1.HistoryItem {
	n := len(items)
	for n > 0 && items[n-1].EventTimeMs >= t {
		n--
	}
	return items[:n:n]
}

// Insert adds one view that may be out of order, as the recommender meets them;
// it reports whether the history changed. A view that is there already, by item
// and time, changes nothing.
func (p Policy) Insert(items []*onerecv1.HistoryItem, v *onerecv1.View) ([]*onerecv1.HistoryItem, bool) {
	if !p.Engaged(v) {
		return items, false
	}
	at := len(items)
	for at > 0 && items[at-1].EventTimeMs > v.EventTimeMs {
		at--
	}
	for i := at - 1; i >= 0 && items[i].EventTimeMs == v.EventTimeMs; i-- {
		if items[i].ItemId == v.ItemId {
			return items, false
		}
	}
	items = slices.Insert(items, at, &onerecv1.HistoryItem{ItemId: v.ItemId, EventTimeMs: v.EventTimeMs})
	return p.Append(items, nil), true
}
