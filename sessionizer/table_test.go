package sessionizer

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestUserTable holds the table against a map, in any order of calls, hashes in each
// other's way included.
func TestUserTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table, want := newUserTable(), map[string]*user{}
		ids := rapid.SliceOfNDistinct(rapid.StringN(0, 4, 8), 1, 60, rapid.ID).Draw(t, "ids")
		for range rapid.IntRange(0, 300).Draw(t, "calls") {
			id := rapid.SampledFrom(ids).Draw(t, "id")
			switch rapid.IntRange(0, 3).Draw(t, "call") {
			case 0, 1:
				u := &user{id: id}
				table.put(u)
				want[id] = u
			case 2:
				table.remove(&user{id: id}) // another value: nothing happens
			case 3:
				if u := want[id]; u != nil {
					table.remove(u)
					delete(want, id)
				}
			}
			if table.n != len(want) || 4*table.n > 3*len(table.slots) {
				t.Fatalf("%d users in %d slots, want %d", table.n, len(table.slots), len(want))
			}
			if u := table.get([]byte(id)); u != want[id] {
				t.Fatalf("%q is %p, want %p", id, u, want[id])
			}
		}
		for _, id := range ids {
			if u := table.get([]byte(id)); u != want[id] {
				t.Fatalf("%q is %p, want %p", id, u, want[id])
			}
		}
		all := slices.Collect(table.all)
		if len(all) != len(want) {
			t.Fatalf("%d users, want %d", len(all), len(want))
		}
		for _, u := range all {
			delete(want, u.id)
		}
		if len(want) > 0 {
			t.Fatalf("not among all: %q", slices.Collect(maps.Keys(want)))
		}
	})
}
