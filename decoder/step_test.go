package decoder

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestTokensAtOnce: several tokens of every beam in one pass are what they are one after the other, to the last bit, and so
// is what comes after them.
func TestTokensAtOnce(t *testing.T) {
	one := Config{Layers: 3, Dim: 64, Heads: 2, Hidden: 96, Levels: 3, Codes: 20, MaxLen: 100}
	experts := one
	experts.Experts, experts.Active = 5, 2
	for i, numbers := range []Numbers{Float32, Int16, Float32, Int16} {
		c := []Config{one, one, experts, experts}[i]
		t.Run(fmt.Sprintf("%v, %d experts", numbers, c.Experts), func(t *testing.T) {
			w, err := NewWeights(c, 1)
			if err != nil {
				t.Fatal(err)
			}
			net := newNetwork(w, numbers)
			for seed := range uint64(20) {
				r := rand.New(rand.NewPCG(seed, 5))
				history := make([]int32, 1+r.IntN(40))
				for i := range history {
					history[i] = r.Int32N(int32(c.Vocab()))
				}
				past, _ := net.prefill(history, nil)
				width := 1 + r.IntN(50)
				var steps [][]int32 // by step and beam
				for range 12 {
					tokens := make([]int32, width)
					for i := range tokens {
						tokens[i] = r.Int32N(int32(c.Vocab()))
					}
					steps = append(steps, tokens)
				}
				parents := make([]int, width) // of a reordering after six tokens
				for i := range parents {
					parents[i] = r.IntN(width)
				}
				// run takes so many tokens at a time, and returns what came out of the sixth and of the last.
				run := func(each int) []float32 {
					s := newSuffix(c, past, width, len(steps))
					defer s.release()
					s.beams = width
					var out []float32
					for at := 0; at < len(steps); at += each {
						var tokens []func(int) int32
						for _, of := range steps[at : at+each] {
							tokens = append(tokens, func(beam int) int32 { return of[beam] })
						}
						h := net.step(s, tokens...)
						switch at + each {
						case 6:
							out = append(out, h...)
							s.reorder(parents)
						case len(steps):
							out = append(out, h...)
						}
					}
					return out
				}
				want := run(1)
				for _, each := range []int{2, 3, 6} {
					if got := run(each); !slices.Equal(got, want) {
						t.Fatalf("seed %d, %d beams: %d tokens at once are not what they are one after the other", seed, width, each)
					}
				}
				past.release()
			}
		})
	}
}
