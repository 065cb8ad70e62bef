package decoder

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"onerec/internal/kernels"
	"onerec/semanticid"
)

func testCodebook(t testing.TB, n, codes int) *semanticid.Codebook {
	t.Helper()
	return randomCodebook(t, n, 2, codes, 11)
}

// randomCodebook is that of items at random places. rapid.T is no testing.TB.
func randomCodebook(t interface{ Fatal(args ...any) }, n, levels, codes int, seed uint64) *semanticid.Codebook {
	const dim = 4
	r := rand.New(rand.NewPCG(seed, 12))
	x, names := make([]float32, n*dim), make([]string, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	for i := range names {
		names[i] = fmt.Sprint("i", i)
	}
	cb, err := semanticid.Build(context.Background(), names, x, dim, semanticid.Config{Levels: levels, Codes: codes, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	return cb
}

// graphLogProb scores a session with the training graph.
func graphLogProb(t *testing.T, g *Graph, c Config, row Row) float64 {
	t.Helper()
	if _, err := g.Run(testBatch(t, c, 0, row), nil, Dropout{}); err != nil {
		t.Fatal(err)
	}
	return float64(g.LogProbs()[0])
}

// TestBeamEqualsExhaustiveSearch: with beams enough, the best lists are those of
// scoring every list with the training graph, and so are their log
// probabilities.
func TestBeamEqualsExhaustiveSearch(t *testing.T) {
	t.Run("experts", func(t *testing.T) { beamEqualsExhaustiveSearch(t, testExperts(), 0) })
	for _, compact := range []bool{false, true} {
		for user := range int32(2) {
			t.Run(fmt.Sprintf("compact=%v,user=%d", compact, user), func(t *testing.T) {
				c := testConfig()
				c.Compact, c.Users = compact, 3*int(user)
				beamEqualsExhaustiveSearch(t, c, user)
			})
		}
	}
}

func beamEqualsExhaustiveSearch(t *testing.T, c Config, user int32) {
	cb := testCodebook(t, 9, c.Codes)
	w := randomWeights(t, c, 5)
	gen, err := NewGenerator(w, cb)
	if err != nil {
		t.Fatal(err)
	}
	g, err := NewGraph(w, 64)
	if err != nil {
		t.Fatal(err)
	}
	history := []Item{cb.ID(3), cb.ID(1), cb.ID(3)}
	exclude := map[int32]bool{4: true}
	want := map[string]float64{} // log probability over the whole vocabulary
	for i := range int32(9) {
		for j := range int32(9) {
			if i != j && i != 4 && j != 4 {
				want[fmt.Sprint([]int32{i, j})] = graphLogProb(t, g, c, Row{history, []Item{cb.ID(i), cb.ID(j)}, user})
			}
		}
	}
	got, err := gen.Generate(Options{LogProbs: true, History: history, User: user, Exclude: exclude, Length: 2, Width: 100})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Fatalf("%d lists, want %d", len(got), len(want))
	}
	var total float64
	for i, l := range got {
		if lp, ok := want[fmt.Sprint(l.Items)]; !ok || math.Abs(l.LogProb-lp) > 1e-3 {
			t.Fatalf("list %v has log probability %v, want %v", l.Items, l.LogProb, lp)
		}
		delete(want, fmt.Sprint(l.Items))
		if i > 0 && l.Score > got[i-1].Score {
			t.Fatalf("list %d scores %v, more than the one before, %v", i, l.Score, got[i-1].Score)
		}
		total += math.Exp(l.Score)
	}
	if math.Abs(total-1) > 1e-4 {
		t.Fatalf("the probabilities of all lists add up to %v", total)
	}
	// Fewer beams find the same best lists.
	few, err := gen.Generate(Options{History: history, User: user, Exclude: exclude, Length: 2, Width: 20})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if fmt.Sprint(few[i].Items) != fmt.Sprint(got[i].Items) {
			t.Fatalf("with 20 beams list %d is %v, want %v", i, few[i].Items, got[i].Items)
		}
	}
	// A session that has begun.
	rest, err := gen.Generate(Options{LogProbs: true, History: history, User: user, Session: []Item{cb.ID(got[0].Items[0])}, Length: 1, Width: 3})
	if err != nil {
		t.Fatal(err)
	}
	begun := graphLogProb(t, g, c, Row{history, []Item{cb.ID(got[0].Items[0])}, user})
	both := graphLogProb(t, g, c, Row{history, []Item{cb.ID(got[0].Items[0]), cb.ID(rest[0].Items[0])}, user})
	if math.Abs(begun+rest[0].LogProb-both) > 1e-3 {
		t.Fatalf("log probability of the rest is %v, want %v", rest[0].LogProb, both-begun)
	}
}

// TestSamplingFrequencies holds the frequencies of sampled items against their
// exact probabilities (chi-squared).
func TestSamplingFrequencies(t *testing.T) {
	c := testConfig()
	cb := testCodebook(t, 9, c.Codes)
	w := randomWeights(t, c, 6)
	gen, err := NewGenerator(w, cb)
	if err != nil {
		t.Fatal(err)
	}
	history := []Item{cb.ID(0)}
	all, err := gen.Generate(Options{LogProbs: true, History: history, Length: 1, Width: 100})
	if err != nil {
		t.Fatal(err)
	}
	// Sampling renormalises among the allowed codes of each level.
	byFirst := map[uint16]float64{}
	prob := map[int32]float64{}
	var total float64
	for _, l := range all {
		p := math.Exp(l.LogProb)
		byFirst[cb.ID(l.Items[0])[0]] += p
		prob[l.Items[0]] = p
	}
	const draws = 4000
	o := Options{History: history, Length: 1, Width: draws, Temperature: 1, Rand: rand.New(rand.NewPCG(1, 2))}
	lists, err := gen.Generate(o)
	if err != nil {
		t.Fatal(err)
	}
	count := map[int32]int{}
	for _, l := range lists {
		count[l.Items[0]]++
	}
	// Exact: P(first) among allowed firsts, by the model's own log probabilities.
	first := map[uint16]float64{}
	var firstSum float64
	_, hidden := gen.prefill([]int32{tokenBOS, c.token(0, history[0][0]), c.token(1, history[0][1]), tokenSEP, tokenSES}, nil)
	for code := range byFirst {
		e := w.embed()[int(c.token(0, code))*c.Dim:]
		var dot float64
		for j, v := range hidden {
			dot += float64(v) * float64(e[j])
		}
		first[code] = math.Exp(dot)
		firstSum += math.Exp(dot)
	}
	var chi float64
	for item, p := range prob {
		code := cb.ID(item)[0]
		expected := draws * first[code] / firstSum * p / byFirst[code]
		if l := all[slices.IndexFunc(all, func(l List) bool { return l.Items[0] == item })]; math.Abs(draws*math.Exp(l.Score)-expected) > 1e-2 {
			t.Errorf("item %d has score %v, its exact log probability is %v", item, l.Score, math.Log(expected/draws))
		}
		total += expected
		chi += (float64(count[item]) - expected) * (float64(count[item]) - expected) / expected
	}
	if math.Abs(total-draws) > 1e-3*draws || chi > 26.1 { // 8 degrees of freedom, p = 0.001
		t.Fatalf("chi-squared %v, expected draws %v", chi, total)
	}
}

// TestListsHoldRealDistinctItems: sampled lists of any length never repeat an
// item or hold an excluded one, also when nearly all items are used up.
func TestListsHoldRealDistinctItems(t *testing.T) {
	c := testConfig()
	cb := testCodebook(t, 7, c.Codes)
	gen, err := NewGenerator(randomWeights(t, c, 7), cb)
	if err != nil {
		t.Fatal(err)
	}
	for _, temperature := range []float64{0, 1} {
		o := Options{Length: 6, Width: 20, Temperature: temperature, Exclude: map[int32]bool{2: true}, Rand: rand.New(rand.NewPCG(3, 4))}
		lists, err := gen.Generate(o)
		if err != nil {
			t.Fatal(err)
		}
		if len(lists) != 20 {
			t.Fatalf("%d lists, want 20", len(lists))
		}
		for _, l := range lists {
			seen := map[int32]bool{2: true}
			for _, item := range l.Items {
				if seen[item] {
					t.Fatalf("temperature %v: list %v repeats or holds an excluded item", temperature, l.Items)
				}
				seen[item] = true
			}
			if len(l.Items) != 6 {
				t.Fatalf("list %v, want 6 items", l.Items)
			}
		}
		o.Length = 7 // one more than there are
		if lists, err = gen.Generate(o); err != nil || len(lists) == 0 || len(lists[0].Items) != 6 {
			t.Fatalf("with too few items: %v, %v", lists, err)
		}
	}
}

// TestWithoutAsExcluding: a generator without some items writes what it would write if each search excluded them, to
// the last bit, the user's own exclusions, passes in company and a past from the time before on top; and with them
// again it is as it was.
func TestWithoutAsExcluding(t *testing.T) {
	const items = 60
	c := testConfig()
	c.Levels, c.Codes = 3, 5
	cb := randomCodebook(t, items, c.Levels, c.Codes, 1)
	w := randomWeights(t, c, 7)
	plain, err := NewGenerator(w, cb)
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		some := func(name string) map[int32]bool {
			set := make(map[int32]bool)
			for _, item := range rapid.SliceOfN(rapid.Int32Range(0, items-1), 0, items).Draw(t, name) {
				set[item] = true
			}
			return set
		}
		withdrawn, own := some("withdrawn"), some("own")
		both := maps.Clone(own)
		maps.Copy(both, withdrawn)
		of := plain.In(rapid.SampledFrom([]Numbers{Float32, Int16, Int8}).Draw(t, "numbers"))
		without := of.Without(some("before")).Without(withdrawn)
		o := Options{
			History: []Item{cb.ID(3), cb.ID(4)}, Length: rapid.IntRange(1, 3).Draw(t, "length"), Width: rapid.SampledFrom([]int{1, 8, 40}).Draw(t, "width"),
			Temperature: rapid.SampledFrom([]float64{0, 1}).Draw(t, "temperature"),
		}
		search := func(gen *Generator, exclude map[int32]bool, past *Past) ([]List, []Next) {
			t.Helper()
			o := o
			o.Exclude, o.Past, o.Rand = exclude, past, rand.New(rand.NewPCG(3, 4))
			lists, err := gen.Generate(o)
			if err != nil {
				t.Fatal(err)
			}
			next, err := gen.Next(o, 10)
			if err != nil {
				t.Fatal(err)
			}
			return lists, next
		}
		var past Past
		search(of, own, &past)
		lists, next := search(without, own, &past)
		if all, kept := past.Tokens(); kept != all-1 {
			t.Fatalf("of %d tokens that the model read before, it kept %d", all, kept)
		}
		wantLists, wantNext := search(of, both, nil)
		if !reflect.DeepEqual(lists, wantLists) || !reflect.DeepEqual(next, wantNext) {
			t.Fatalf("without %v:\n%v\n%v\nexcluded:\n%v\n%v", withdrawn, lists, next, wantLists, wantNext)
		}
		lists, next = search(without.Without(nil), own, nil)
		wantLists, wantNext = search(of, own, nil)
		if !reflect.DeepEqual(lists, wantLists) || !reflect.DeepEqual(next, wantNext) {
			t.Fatal("with all items again it is not as it was")
		}
	})
}

// TestTopChoices: of what parts are given at the same time the best, among equals the earlier, as sorting all of them gives.
func TestTopChoices(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 30).Draw(t, "limit")
		var all []choice
		enough := newAtLeast()
		parts := make([]*topChoices, rapid.IntRange(1, 4).Draw(t, "parts"))
		given := make([][]choice, len(parts))
		for p := range parts {
			parts[p] = &topChoices{limit: limit, enough: enough}
			for i, total := range rapid.SliceOfN(rapid.IntRange(-8, 0), 0, 120).Draw(t, "totals") {
				given[p] = append(given[p], choice{parent: p, node: int32(i), total: float64(total)})
			}
			all = append(all, given[p]...)
		}
		kernels.Parallel(len(parts), func(p int) {
			for _, c := range given[p] {
				parts[p].add(c)
			}
		})
		slices.SortStableFunc(all, func(a, b choice) int { return cmp.Compare(b.total, a.total) })
		want := all[:min(limit, len(all))]
		slices.SortFunc(want, inOrder)
		if got := bestOf(parts); !slices.Equal(got, want) {
			t.Fatalf("%v, want %v", got, want)
		}
	})
}

// TestLogProbs: lists and their scores are the same with log probabilities over the vocabulary and without, which are there only if asked for.
func TestLogProbs(t *testing.T) {
	cb := testCodebook(t, 80, 20)
	c := Config{Layers: 2, Dim: 32, Heads: 2, Hidden: 48, Levels: cb.Levels(), Codes: cb.Codes(), MaxLen: 60}
	gen, err := NewGenerator(randomWeights(t, c, 1), cb)
	if err != nil {
		t.Fatal(err)
	}
	for _, temperature := range []float64{0, 1} {
		search := func(logProbs bool) []List {
			lists, err := gen.Generate(Options{
				History: []Item{cb.ID(5), cb.ID(6)}, Length: 3, Width: 30, Temperature: temperature, Rand: rand.New(rand.NewPCG(1, 2)), LogProbs: logProbs,
			})
			if err != nil {
				t.Fatal(err)
			}
			return lists
		}
		with, without := search(true), search(false)
		for i, l := range without {
			if !slices.Equal(l.Items, with[i].Items) || math.Abs(l.Score-with[i].Score) > 1e-4 {
				t.Fatalf("temperature %v, list %d: %v with score %v, want %v with %v", temperature, i, l.Items, l.Score, with[i].Items, with[i].Score)
			}
			if l.LogProb != 0 || with[i].LogProb >= with[i].Score {
				t.Fatalf("temperature %v, list %d: log probability %v, and %v if asked for; score %v", temperature, i, l.LogProb, with[i].LogProb, l.Score)
			}
		}
	}
}

// TestFirstLayerLookedUp: what the first layer makes of tokens is the same where there is a table of it and where there is none, to the last bit.
func TestFirstLayerLookedUp(t *testing.T) {
	cb := testCodebook(t, 80, 20)
	c := Config{Layers: 2, Dim: 32, Heads: 2, Hidden: 48, Levels: cb.Levels(), Codes: cb.Codes(), MaxLen: 60, Users: 7}
	for _, numbers := range []Numbers{Float32, Int16, Int8} {
		gen, err := NewGenerator(randomWeights(t, c, 1), cb)
		if err != nil {
			t.Fatal(err)
		}
		with, without := gen.In(numbers), gen.In(numbers)
		if numbers == Float32 { // In is the same one then
			if without, err = gen.With(gen.w); err != nil {
				t.Fatal(err)
			}
		}
		if with.first == nil {
			t.Fatal("a small vocabulary has no table")
		}
		without.first = nil
		o := Options{User: 3, Length: 3, Width: 30}
		for i := range int32(12) {
			o.History = append(o.History, cb.ID(i))
		}
		want, err := without.Generate(o)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := with.Generate(o); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%v: %v, %v, want %v", numbers, got, err, want)
		}
	}
	c.Users = firstFloats / (3 * c.Dim) // and codes
	if net := newNetwork(randomWeights(t, c, 1), Float32); net.first != nil {
		t.Error("a large vocabulary has a table")
	}
}
