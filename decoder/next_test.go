package decoder

import (
	"math"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// TestNextEqualsExhaustiveSearch: whatever trie, history and exclusions, the items are real, distinct and allowed,
// their scores are those of a search through everything, and no beam search of the same width finds better ones; a
// search that is wide enough finds the best.
func TestNextEqualsExhaustiveSearch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := testConfig()
		c.Levels, c.Codes = rapid.IntRange(2, 4).Draw(t, "levels"), rapid.SampledFrom([]int{2, 5, 20}).Draw(t, "codes") // of 20 more than one dive takes
		c.Compact = rapid.Bool().Draw(t, "compact")
		most := min(int(math.Pow(float64(c.Codes), float64(c.Levels)))/2, 800)
		items := max(1, most*rapid.SampledFrom([]int{0, 10, 100}).Draw(t, "full")/100)
		seed := rapid.Uint64().Draw(t, "seed")
		r := rand.New(rand.NewPCG(seed, 1))
		cb := randomCodebook(t, items, c.Levels, c.Codes, seed)
		w, err := NewWeights(c, seed)
		if err != nil {
			t.Fatal(err)
		}
		scale := rapid.SampledFrom([]float32{1, 10, 20, 60}).Draw(t, "scale") // from flat distributions to steep ones
		for _, p := range w.params[:len(w.params)-1] {
			for i := range p.Data {
				p.Data[i] *= scale
			}
		}
		gen, err := NewGenerator(w, cb)
		if err != nil {
			t.Fatal(err)
		}
		o := Options{Length: 1, Width: rapid.SampledFrom([]int{1, 10, 60}).Draw(t, "width"), Exclude: make(map[int32]bool)}
		for range rapid.IntRange(0, 4).Draw(t, "history") {
			o.History = append(o.History, cb.ID(r.Int32N(int32(items))))
		}
		for range items * rapid.SampledFrom([]int{0, 20, 300}).Draw(t, "excluded") / 100 {
			o.Exclude[r.Int32N(int32(items))] = true
		}
		n := rapid.SampledFrom([]int{1, 10, 100}).Draw(t, "n")
		got, err := gen.Next(o, n)
		if err != nil {
			t.Fatal(err)
		}
		beams, err := gen.Generate(o)
		if err != nil {
			t.Fatal(err)
		}
		o.Width = items
		all, err := gen.Generate(o)
		if err != nil {
			t.Fatal(err)
		}
		score := make(map[int32]float64)
		for _, l := range all {
			score[l.Items[0]] = l.Score
		}
		wide, err := gen.Next(o, n)
		if err != nil {
			t.Fatal(err)
		}
		const tolerance = 1e-3
		if len(wide) != min(n, len(all)) || len(got) < min(n, len(beams)) || len(got) > n {
			t.Fatalf("%d items, with the widest search %d, of %d; a beam search finds %d, there are %d", len(got), len(wide), n, len(beams), len(all))
		}
		for i, item := range wide {
			if math.Abs(item.LogProb-all[i].Score) > tolerance {
				t.Fatalf("the widest search: item %d has %v, the best that there is %v", i, item.LogProb, all[i].Score)
			}
		}
		known := make(map[int32]bool)
		for i, item := range got {
			want, ok := score[item.Item]
			if !ok || known[item.Item] || o.Exclude[item.Item] || math.Abs(item.LogProb-want) > tolerance {
				t.Fatalf("item %d is %+v, want %v (allowed: %v, twice: %v)", i, item, want, ok, known[item.Item])
			}
			known[item.Item] = true
			if i > 0 && item.LogProb > got[i-1].LogProb {
				t.Fatalf("item %d is better than the one before", i)
			}
			if i < len(beams) && item.LogProb < beams[i].Score-tolerance {
				t.Fatalf("item %d has %v, by beam search %v", i, item.LogProb, beams[i].Score)
			}
		}
	})
}

func TestNextRefuses(t *testing.T) {
	c := testConfig()
	cb := testCodebook(t, 9, c.Codes)
	gen, err := NewGenerator(randomWeights(t, c, 1), cb)
	if err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]struct {
		o Options
		n int
	}{
		"no width": {Options{}, 1}, "no number": {Options{Width: 1}, 0},
		"a full row": {Options{Width: 1, Session: make([]Item, c.MaxItems())}, 1},
	} {
		if _, err := gen.Next(call.o, call.n); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	all := make(map[int32]bool)
	for i := range int32(cb.Len()) {
		all[i] = true
	}
	if got, err := gen.Next(Options{Width: 5, Exclude: all}, 5); err != nil || len(got) > 0 {
		t.Errorf("everything is excluded: %v, %v", got, err)
	}
}
