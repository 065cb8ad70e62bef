package decoder

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"onerec/internal/kernels"
)

// TestTokensAtOnce: several tokens of every beam in one pass are what they are one after the other, to the last bit, and so
// is what comes after them.
func TestTokensAtOnce(t *testing.T) {
	one := Config{Layers: 3, Dim: 64, Heads: 2, Hidden: 96, Levels: 3, Codes: 20, MaxLen: 100}
	experts := one
	experts.Experts, experts.Active = 5, 2
	for i, numbers := range []Numbers{Float32, Int16, Int8, Float32, Int16, Int8} {
		c := []Config{one, one, one, experts, experts, experts}[i]
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

// TestShare: the groups of passes have all beams once, in order, about as many rows each, and but for the last whole tiles, as far as beams
// of several tokens allow.
func TestShare(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var passes []*pass
		n, beams := 0, 0
		for range rapid.IntRange(1, 5).Draw(t, "passes") {
			p := &pass{suffix: &suffix{beams: rapid.IntRange(1, 140).Draw(t, "beams")}, each: rapid.IntRange(1, 2).Draw(t, "each")}
			p.tokens = make([]int32, p.suffix.beams*p.each)
			passes = append(passes, p)
			n += len(p.tokens)
			beams += p.suffix.beams
		}
		groups := rapid.IntRange(1, 5).Draw(t, "groups")
		all := share(passes, n, groups)
		if len(all) > groups {
			t.Fatalf("%d groups, want %d", len(all), groups)
		}
		row, beam := 0, 0 // where the next part begins
		var parts []part
		for i, g := range all {
			if g.row != row || g.beam != beam {
				t.Fatalf("group %d begins at row %d and beam %d, want %d and %d", i, g.row, g.beam, row, beam)
			}
			for _, p := range g.parts {
				if at := p.row + p.from*p.each; at != row || p.beam+p.from != beam || p.to <= p.from {
					t.Fatalf("group %d has beams %d to %d from row %d, want row %d and beam %d", i, p.from, p.to, at, row, beam)
				}
				row += (p.to - p.from) * p.each
				beam += p.to - p.from
				if rows := (p.to - p.from) * p.each; rows > together {
					t.Fatalf("a part has %d rows", rows)
				}
			}
			parts = append(parts, g.parts...)
			if g.row+g.n != row || g.to != beam {
				t.Fatalf("group %d ends at row %d and beam %d, want %d and %d", i, g.row+g.n, g.to, row, beam)
			}
			if most := n/groups + kernels.Tile + 2; g.n > most {
				t.Fatalf("group %d has %d of %d rows, want %d at most", i, g.n, n, most)
			}
			if i < len(all)-1 && row%kernels.Tile > 1 {
				t.Fatalf("group %d ends at row %d", i, row)
			}
		}
		if row != n || beam != beams {
			t.Fatalf("%d rows and %d beams, want %d and %d", row, beam, n, beams)
		}
		for _, p := range passes { // whose parts say so
			left := p.suffix.beams
			for _, part := range parts {
				if part.suffix == p.suffix {
					left -= part.to - part.from
				}
			}
			if left != 0 {
				t.Fatalf("%d beams of a pass are left over", left)
			}
		}
	})
}

// TestPlaces: no two tokens that beams look at have one place, beams keep theirs, and places are written again before new ones are taken.
func TestPlaces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Config{Layers: 1, Dim: 4, Heads: 1}
		width, steps := rapid.IntRange(1, 20).Draw(t, "width"), rapid.IntRange(1, 12).Draw(t, "steps")
		s := newSuffix(c, nil, width, steps)
		defer s.release()
		parents := rapid.SliceOfN(rapid.Just(0), 1, width).Draw(t, "first beams")
		s.beams = len(parents)
		tokens := make([][]int, s.beams) // of each beam, by number
		holds := make(map[int32]int)     // by place, the token
		next, most := 0, 0
		for s.steps < steps {
			each := min(rapid.IntRange(1, 2).Draw(t, "tokens"), steps-s.steps)
			s.write(each)
			for i := range tokens {
				tokens[i] = slices.Clone(tokens[i])
				for step := s.steps; step < s.steps+each; step++ {
					tokens[i] = append(tokens[i], next)
					holds[s.at[i*s.stride+step]] = next
					next++
				}
			}
			s.steps += each
			live := make(map[int]bool)
			for i, of := range tokens {
				for step, token := range of {
					at := s.at[i*s.stride+step]
					if at < 0 || int(at)%s.dim != 0 || int(at) >= s.places*s.dim {
						t.Fatalf("place %d", at)
					}
					if holds[at] != token {
						t.Fatalf("beam %d finds token %d at step %d, want %d", i, holds[at], step, token)
					}
					live[token] = true
				}
			}
			if most = max(most, len(live)); s.fresh > most {
				t.Fatalf("%d places were taken for %d tokens at most", s.fresh, most)
			}
			parents := rapid.SliceOfN(rapid.IntRange(0, s.beams-1), 1, width).Draw(t, "parents")
			s.reorder(parents)
			was := tokens
			tokens = make([][]int, len(parents))
			for i, p := range parents {
				tokens[i] = was[p]
			}
		}
	})
}

// TestRooms: what is given back is taken again, the smallest that will do, and no more is kept than there are processors.
func TestRooms(t *testing.T) {
	var r rooms
	large, small := r.take(100), r.take(10)
	r.put(large)
	r.put(small)
	if got := r.take(7); len(got) != 7 || &got[0] != &small[0] {
		t.Error("another room than the smallest is taken")
	}
	if got := r.take(11); len(got) != 11 || &got[0] != &large[0] {
		t.Error("what was given back is not taken")
	}
	for n := range 3 * runtime.GOMAXPROCS(0) {
		r.put(make([]float32, n+1))
	}
	if n := runtime.GOMAXPROCS(0); len(r.free) != n {
		t.Errorf("%d rooms are kept, want %d", len(r.free), n)
	}
	for _, room := range r.free {
		if cap(room) <= 2*runtime.GOMAXPROCS(0) {
			t.Errorf("a room of %d is kept, and larger ones were not", cap(room))
		}
	}
}
