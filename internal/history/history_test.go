package history

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

func TestEngaged(t *testing.T) {
	p := DefaultPolicy()
	for _, tt := range []struct {
		name string
		v    *schemas.RawView
		want bool
	}{
		{"long", &schemas.RawView{WatchMs: 18_000, DurationMs: 60_000}, true},
		{"short", &schemas.RawView{WatchMs: 17_999, DurationMs: 60_000}, false},
		{"whole short video", &schemas.RawView{WatchMs: 7000, DurationMs: 7000}, true},
		{"unknown duration", &schemas.RawView{WatchMs: 17_999}, false},
		{"not watched at all", &schemas.RawView{DurationMs: 0}, false},
		{"liked", &schemas.RawView{Engagement: schemas.Engagement{Like: true}}, true},
		{"liked and disliked", &schemas.RawView{Engagement: schemas.Engagement{Like: true, Dislike: true}}, false},
		{"long but disliked", &schemas.RawView{WatchMs: 60_000, Engagement: schemas.Engagement{Dislike: true}}, false},
	} {
		if got := p.Engaged(tt.v); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// plain is a history as a slice, against which the packed one is held.
type plain struct {
	item string
	ms   int64
}

func unpack(h Items) []plain {
	var out []plain
	for item, ms := range h.All() {
		out = append(out, plain{string(item), ms})
	}
	return out
}

func (p Policy) trimPlain(items []plain) []plain {
	if len(items) == 0 {
		return nil
	}
	newest := items[len(items)-1].ms
	items = slices.DeleteFunc(slices.Clone(items), func(i plain) bool { return i.ms < newest-p.MaxAge.Milliseconds() })
	return items[max(0, len(items)-p.MaxItems):]
}

// TestPacked: the packed history equals the plain one after any appends and cuts,
// is the field history of a Session, and survives Parse.
func TestPacked(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Policy{MaxItems: rapid.IntRange(0, 8).Draw(t, "max"), MaxAge: time.Hour}
		var h, newer Items
		var want []plain
		clock := rapid.Int64Range(-1000, 1<<41).Draw(t, "start")
		for range rapid.IntRange(0, 20).Draw(t, "n") {
			item := rapid.StringN(0, 200, 300).Draw(t, "item")
			clock += rapid.Int64Range(0, 40*60_000).Draw(t, "step") / int64(rapid.SampledFrom([]int{1, 60_000_000}).Draw(t, "speed"))
			newer = newer.Append([]byte(item), clock)
			want = append(want, plain{item, clock})
			switch rapid.IntRange(0, 2).Draw(t, "what") {
			case 0:
				h, newer = append(h, newer...), newer[:0]
			case 1:
				room := cap(h)
				fits := h.Len() == p.MaxItems && newer.Len() == 1 && len(h) > 0 && len(newer) <= h.next()
				h, newer, want = p.Extend(h, newer), newer[:0], p.trimPlain(want)
				if fits && cap(h) != room {
					t.Fatalf("a full history has moved to get an item no longer than its oldest")
				}
			}
		}
		h = append(h, newer...)
		if got := unpack(h); !slices.Equal(got, want) || h.Len() != len(want) {
			t.Fatalf("packed %v, plain %v", got, want)
		}
		if len(want) > 0 && h.Newest() != want[len(want)-1].ms {
			t.Fatalf("newest %d", h.Newest())
		}
		cut := rapid.Int64Range(clock-7_200_000, clock+1).Draw(t, "before")
		older := slices.DeleteFunc(slices.Clone(want), func(i plain) bool { return i.ms >= cut })
		if got := unpack(h.Before(cut)); !slices.Equal(got, older) {
			t.Fatalf("before %d: %v, want %v", cut, got, older)
		}
		s := new(onerecv1.Session)
		if err := proto.Unmarshal(h, s); err != nil {
			t.Fatal(err)
		}
		var again Items
		for i, item := range s.History {
			if (plain{item.ItemId, item.EventTimeMs}) != want[i] {
				t.Fatalf("a session has %v, want %v", s.History, want)
			}
			b, err := proto.Marshal(item)
			if err != nil {
				t.Fatal(err)
			}
			if again, err = again.Parse(b); err != nil {
				t.Fatal(err)
			}
		}
		if len(s.History) != len(want) || !bytes.Equal(again, h) {
			t.Fatalf("parsed %x, packed %x", again, h)
		}
	})
}

// TestInsertEqualsAppend: whatever the order in which views come, the
// recommender's history is the sessionizer's.
func TestInsertEqualsAppend(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Policy{MaxItems: rapid.IntRange(1, 8).Draw(t, "max"), MaxAge: time.Hour, MinWatch: time.Second, MinShare: 1}
		var views []*schemas.RawView
		var want Items
		for i := range rapid.IntRange(0, 30).Draw(t, "n") {
			v := &schemas.RawView{
				ItemID:      []byte{byte('a' + i)},
				EventTimeMs: int64(1_000_000 + 60_000*i), WatchMs: rapid.SampledFrom([]int64{0, 5000}).Draw(t, "watch"),
			}
			views = append(views, v)
			if p.Engaged(v) {
				want = p.Trim(want.Append(v.ItemID, v.EventTimeMs))
			}
		}
		// Any order in which nothing that would have been kept comes after it was
		// pushed out: the newest MaxItems can come in any order.
		order := slices.Clone(views)
		if rapid.Bool().Draw(t, "shuffle") && want.Len() < p.MaxItems {
			order = rapid.Permutation(views).Draw(t, "order")
		}
		var got Items
		for _, v := range order {
			got, _ = p.Insert(got, v)
			size := len(got)
			var changed bool
			if got, changed = p.Insert(got, v); changed || len(got) != size {
				t.Fatal("the same view twice changed the history")
			}
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("inserted %v, appended %v", unpack(got), unpack(want))
		}
	})
}

// FuzzParse: outside bytes give an error or an item that reads back.
func FuzzParse(f *testing.F) {
	f.Add([]byte(Items{}.Append([]byte("item"), 1_500_000_000_000)[2:]))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		item := new(onerecv1.HistoryItem)
		wantErr := proto.Unmarshal(b, item)
		h, err := Items(nil).Parse(b)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("Parse: %v, Unmarshal: %v", err, wantErr)
		}
		if err == nil && !slices.Equal(unpack(h), []plain{{item.ItemId, item.EventTimeMs}}) {
			t.Fatalf("parsed %v, want %v", unpack(h), item)
		}
	})
}
