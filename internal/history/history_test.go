package history

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"onerec/schemas/onerecv1"
)

func TestEngaged(t *testing.T) {
	p := DefaultPolicy()
	for _, tt := range []struct {
		name string
		v    *onerecv1.View
		want bool
	}{
		{"long", &onerecv1.View{WatchMs: 18_000, DurationMs: 60_000}, true},
		{"short", &onerecv1.View{WatchMs: 17_999, DurationMs: 60_000}, false},
		{"whole short video", &onerecv1.View{WatchMs: 7000, DurationMs: 7000}, true},
		{"unknown duration", &onerecv1.View{WatchMs: 17_999}, false},
		{"not watched at all", &onerecv1.View{DurationMs: 0}, false},
		{"liked", &onerecv1.View{Like: true}, true},
		{"liked and disliked", &onerecv1.View{Like: true, Dislike: true}, false},
		{"long but disliked", &onerecv1.View{WatchMs: 60_000, Dislike: true}, false},
	} {
		if got := p.Engaged(tt.v); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// TestInsertEqualsAppend: whatever the order in which views come, the
// recommender's history is the sessionizer's.
func TestInsertEqualsAppend(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Policy{MaxItems: rapid.IntRange(1, 8).Draw(t, "max"), MaxAge: time.Hour, MinWatch: time.Second, MinShare: 1}
		var views []*onerecv1.View
		for i := range rapid.IntRange(0, 30).Draw(t, "n") {
			views = append(views, &onerecv1.View{
				ItemId:      string(rune('a' + i)),
				EventTimeMs: int64(1_000_000 + 60_000*i), WatchMs: rapid.SampledFrom([]int64{0, 5000}).Draw(t, "watch"),
			})
		}
		want := p.Append(nil, views)
		// Any order in which nothing that would have been kept comes after it was
		// pushed out: the newest MaxItems can come in any order.
		order := slices.Clone(views)
		if rapid.Bool().Draw(t, "shuffle") && len(want) < p.MaxItems {
			order = rapid.Permutation(views).Draw(t, "order")
		}
		var got []*onerecv1.HistoryItem
		for _, v := range order {
			got, _ = p.Insert(got, v)
			if again, changed := p.Insert(got, v); changed || len(again) != len(got) {
				t.Fatal("the same view twice changed the history")
			}
		}
		if !slices.EqualFunc(got, want, func(a, b *onerecv1.HistoryItem) bool {
			return a.ItemId == b.ItemId && a.EventTimeMs == b.EventTimeMs
		}) {
			t.Fatalf("inserted %v, appended %v", got, want)
		}
	})
}

func TestBefore(t *testing.T) {
	items := []*onerecv1.HistoryItem{{ItemId: "a", EventTimeMs: 1}, {ItemId: "b", EventTimeMs: 5}, {ItemId: "c", EventTimeMs: 5}}
	if got := Before(items, 5); len(got) != 1 || cap(got) != 1 {
		t.Fatalf("%v with room for %d", got, cap(got))
	}
}
