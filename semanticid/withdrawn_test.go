package semanticid

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

// TestWithdrawn: whatever records come, the set is what the newest of each item says, as long as there is room; what is
// no Item, or too many, changes nothing and is an error.
func TestWithdrawn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := Withdrawn{MaxItems: rapid.IntRange(1, 5).Draw(t, "room")}
		want := make(map[string]bool)
		cb := &Codebook{index: map[string]int32{"i0": 0, "i3": 1}}
		for range rapid.IntRange(0, 40).Draw(t, "records") {
			id := fmt.Sprint("i", rapid.IntRange(0, 7).Draw(t, "item"))
			kind := rapid.SampledFrom([]string{"withdrawn", "withdrawn", "not", "none", "damaged", "empty id", "long id"}).Draw(t, "record")
			item := &onerecv1.Item{ItemId: id, Title: "x", Withdrawn: kind != "not"}
			switch kind {
			case "empty id":
				item.ItemId = ""
			case "long id":
				item.ItemId = strings.Repeat("x", schemas.MaxIDBytes+1)
			}
			value, err := proto.Marshal(item)
			if err != nil {
				t.Fatal(err)
			}
			switch kind {
			case "none":
				value = nil
			case "damaged":
				value = []byte("no item")
			}
			before := maps.Clone(want)
			tooMany := false
			switch kind {
			case "withdrawn":
				if tooMany = !want[id] && len(want) == w.MaxItems; !tooMany {
					want[id] = true
				}
			case "not", "none":
				delete(want, id)
			}
			changed, err := w.Read([]byte(id), value)
			if changed == maps.Equal(want, before) || (err != nil) != (tooMany || kind == "damaged") || errors.Is(err, ErrTooManyWithdrawn) != tooMany {
				t.Fatalf("%s %s: changed %v, %v", kind, id, changed, err)
			}
			if !maps.Equal(w.items, want) || w.Len() != len(want) || w.Has(id) != want[id] {
				t.Fatalf("withdrawn are %v, want %v", w.items, want)
			}
			in := w.In(cb)
			if in[0] != want["i0"] || in[1] != want["i3"] || len(in) > 2 {
				t.Fatalf("of the codebook are withdrawn %v, of all %v", in, want)
			}
		}
	})
}
