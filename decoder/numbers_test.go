package decoder

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// rounded returns the weights with so many bits of the significand, one of them implied: 11 as in TF32, 8 as in bfloat16.
func rounded(w *Weights, bits int) *Weights {
	out := &Weights{Config: w.Config, params: w.Config.layout()}
	drop := uint32(24 - bits)
	for i, p := range w.params {
		out.params[i].Data = slices.Clone(p.Data)
		for j, v := range p.Data {
			out.params[i].Data[j] = math.Float32frombits((math.Float32bits(v) + 1<<(drop-1)) &^ (1<<drop - 1))
		}
	}
	return out
}

func TestParseNumbers(t *testing.T) {
	for _, n := range []Numbers{Float32, Int16, Int8} {
		if got, err := ParseNumbers(n.String()); err != nil || got != n {
			t.Errorf("%v: %v, %v", n, got, err)
		}
	}
	if _, err := ParseNumbers("bfloat16"); err == nil {
		t.Error("other numbers are taken")
	}
}

// TestInt16LosesLittle: for models that are sure and for such that are not, searches in 16-bit integers find what those
// in float32 find, and log probabilities move less than they do in float32 when the weights alone, but nothing else, are
// rounded as TF32 rounds them; by less than a tenth of what bfloat16's rounding of the weights costs, or a fifth where tokens may be rounded from one
// expert to another. 8-bit integers lose more: a few times what bfloat16's rounding of the weights costs, and of the best lists of models that are very sure some.
func TestInt16LosesLittle(t *testing.T) {
	t.Run("one part", func(t *testing.T) { int16LosesLittle(t, 0, 160, 10) })
	t.Run("experts", func(t *testing.T) { int16LosesLittle(t, 8, 80, 5) })
}

func int16LosesLittle(t *testing.T, experts, hidden int, bfloat16 float64) {
	const items, searches, best = 400, 20, 10
	for _, scale := range []float32{1, 4, 8} {
		c, err := Preset("tiny", 3, 32, 60, 4)
		if err != nil {
			t.Fatal(err)
		}
		c.Dim, c.Heads, c.Hidden, c.Experts, c.Active = 64, 4, hidden, experts, min(2, experts)
		w, err := NewWeights(c, 3)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range w.params[:len(w.params)-1] {
			for i := range p.Data {
				p.Data[i] *= scale
			}
		}
		gen, err := NewGenerator(w, randomCodebook(t, items, c.Levels, c.Codes, 1))
		if err != nil {
			t.Fatal(err)
		}
		others := map[string]*Generator{"int16": gen.In(Int16), "int8": gen.In(Int8)}
		for name, bits := range map[string]int{"TF32 weights": 11, "bfloat16 weights": 8} {
			if others[name], err = gen.With(rounded(w, bits)); err != nil {
				t.Fatal(err)
			}
		}
		moved, same, r := make(map[string]float64), make(map[string]int), rand.New(rand.NewPCG(1, 2))
		for range searches {
			o := Options{Width: 64, Length: 2, LogProbs: true}
			for range 60 {
				o.History = append(o.History, gen.ids(r.Int32N(items)))
			}
			lists, err := gen.Generate(o)
			if err != nil {
				t.Fatal(err)
			}
			for name, other := range others {
				found, err := other.Generate(o)
				if err != nil {
					t.Fatal(err)
				}
				for _, l := range lists[:best] {
					at := slices.IndexFunc(found, func(m List) bool { return slices.Equal(m.Items, l.Items) })
					if at < 0 {
						continue
					}
					same[name]++
					by := found[at].LogProb - l.LogProb
					moved[name] += by * by
				}
			}
		}
		for name := range others {
			moved[name] = math.Sqrt(moved[name] / float64(same[name]))
			t.Logf("weights times %v, %s: %d of the best %d lists found, log probabilities off by %.2g", scale, name, same[name], best*searches, moved[name])
		}
		if same["int16"] < best*searches*99/100 || moved["int16"] > moved["TF32 weights"] || moved["int16"] > moved["bfloat16 weights"]/bfloat16 {
			t.Errorf("weights times %v: int16 loses too much", scale)
		}
		if same["int8"] < best*searches*7/10 || scale == 1 && same["int8"] < best*searches*99/100 || moved["int8"] > 6*moved["bfloat16 weights"] {
			t.Errorf("weights times %v: int8 loses too much", scale)
		}
	}
}
