package decoder

import (
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestPastAsWithout: whatever a user does between searches, and whatever the searches are, with the past
// of the one before they find the same as without, to the last bit, and read no more than they must.
func TestPastAsWithout(t *testing.T) {
	const items = 60
	type kind struct {
		compact bool // and with experts
		numbers Numbers
	}
	models := make(map[kind][2]*Generator)
	for _, compact := range []bool{false, true} {
		c, err := Preset("tiny", 2, 16, 40, 5)
		if err != nil {
			t.Fatal(err)
		}
		if c = c.WithRows(compact, 3); compact {
			c.Experts, c.Active = 6, 2
		}
		first, err := NewGenerator(randomWeights(t, c, 1), testCodebook(t, items, c.Codes))
		if err != nil {
			t.Fatal(err)
		}
		second, err := first.With(randomWeights(t, c, 2))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []Numbers{Float32, Int16, Int8} {
			models[kind{compact, n}] = [2]*Generator{first.In(n), second.In(n)}
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		models := models[kind{rapid.Bool().Draw(t, "compact"), rapid.SampledFrom([]Numbers{Float32, Int16, Int8}).Draw(t, "numbers")}]
		item := rapid.Custom(func(t *rapid.T) Item { return models[0].ids(rapid.Int32Range(0, items-1).Draw(t, "item")) })
		var history []Item
		var past Past
		var by *Generator  // whose past it is
		var before []int32 // the row
		for range rapid.IntRange(2, 6).Draw(t, "searches") {
			switch rapid.SampledFrom([]string{"watch", "watch", "watch", "nothing", "forget", "late"}).Draw(t, "between") {
			case "watch":
				history = append(slices.Clip(history), rapid.SliceOfN(item, 1, 20).Draw(t, "watched")...)
			case "forget":
				history = history[rapid.IntRange(0, min(10, len(history))).Draw(t, "forgotten"):]
			case "late":
				history = slices.Insert(slices.Clone(history), rapid.IntRange(0, len(history)).Draw(t, "at"), item.Draw(t, "late"))
			}
			gen := models[rapid.SampledFrom([]int{0, 0, 0, 1}).Draw(t, "model")]
			next := rapid.Bool().Draw(t, "next")
			o := Options{
				History: history, User: rapid.SampledFrom([]int32{0, 0, 0, 1}).Draw(t, "user"),
				Length: 1, Width: rapid.SampledFrom([]int{1, 3, 40}).Draw(t, "width"), Session: rapid.SliceOfN(item, 0, 2).Draw(t, "session"),
			}
			if !next {
				o.Length, o.Temperature = rapid.IntRange(1, 3).Draw(t, "length"), rapid.SampledFrom([]float64{0, 1}).Draw(t, "temperature")
			}
			search := func(past *Past) (found any) {
				o.Past, o.Rand = past, rand.New(rand.NewPCG(1, 2))
				var err error
				if next {
					found, err = gen.Next(o, 5)
				} else {
					found, err = gen.Generate(o)
				}
				if err != nil {
					t.Fatal(err)
				}
				return found
			}
			var alone Past
			if want, got := search(&alone), search(&past); !reflect.DeepEqual(got, want) {
				t.Fatalf("found %v, without a past %v", got, want)
			}
			if without := search(nil); !reflect.DeepEqual(without, search(&alone)) {
				t.Fatalf("found %v after the same row", without)
			}
			want := 0
			for gen == by && want < min(len(before), len(past.tokens)-1) && before[want] == past.tokens[want] {
				want++
			}
			if all, kept := past.Tokens(); kept != want || all != len(alone.tokens) {
				t.Fatalf("%d of %d tokens were kept, want %d of %d", kept, all, want, len(alone.tokens))
			}
			by, before = gen, slices.Clone(past.tokens)
		}
	})
}

// TestPastIsOfOneModel: a past takes what its row's keys and values do, half of it in 16-bit integers, and does not hold on
// to its model.
func TestPastIsOfOneModel(t *testing.T) {
	c, err := Preset("small", 2, 16, 50, 1)
	if err != nil {
		t.Fatal(err)
	}
	var past Past
	if past.Bytes() != 0 {
		t.Errorf("an empty past takes %d bytes", past.Bytes())
	}
	for numbers, perValue := range map[Numbers]float64{Float32: 4, Int16: 2 + 4/float64(c.Dim/c.Heads), Int8: 2 + 4/float64(c.Dim/c.Heads)} { // a factor for each head's
		func() {
			gen, err := NewGenerator(randomWeights(t, c, 1), testCodebook(t, 99, c.Codes))
			if err != nil {
				t.Fatal(err)
			}
			o := Options{Width: 4, Past: &past}
			for i := range int32(43) {
				o.History = append(o.History, gen.ids(i))
			}
			if _, err := gen.In(numbers).Next(o, 3); err != nil {
				t.Fatal(err)
			}
		}()
		all, _ := past.Tokens()
		if takes, least := float64(past.Bytes()), perValue*float64(all*c.Layers*2*c.Dim); takes < least || takes > 1.2*least {
			t.Errorf("a past of %d tokens in %v takes %v bytes, its keys and values %v", all, numbers, takes, least)
		}
	}
	for range 3 {
		runtime.GC()
	}
	if past.of.Value() != nil {
		t.Error("the past keeps its model in memory")
	}
}
