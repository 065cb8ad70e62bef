package kernels

import (
	"cmp"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestRoute: whatever the logits, equal ones among them, a token goes to the experts whose logits are the greatest, among
// equals the first, weighted by the shares of their gates; and each choice is one entry, of its expert and token, in the tokens' order.
func TestRoute(t *testing.T) {
	var r Routing // the same, for batches of other sizes
	rapid.Check(t, func(t *rapid.T) {
		n, experts := rapid.IntRange(0, 200).Draw(t, "tokens"), rapid.IntRange(1, 40).Draw(t, "experts")
		active := rapid.IntRange(1, experts).Draw(t, "active")
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		values := rapid.SampledFrom([]int{1, 3, 1000}).Draw(t, "values") // few: many are equal
		gates := make([]float32, n*experts)
		for i := range gates {
			gates[i] = float32(rng.IntN(values)) * 4 / float32(values)
		}
		logits := slices.Clone(gates)
		r.Route(gates, n, experts, active)
		if r.Entries() != n*active || r.Experts() != experts {
			t.Fatalf("%d entries of %d experts, want %d of %d", r.Entries(), r.Experts(), n*active, experts)
		}
		seen := make([]int, n*active) // how often a choice is an entry
		of := make([]int, r.Entries())
		r.Groups(func(expert, lo, hi int) {
			if hi-lo > blockRows || hi == lo {
				t.Fatalf("a group of %d", hi-lo)
			}
			for i := lo; i < hi; i++ {
				of[i] = expert
			}
		})
		for at := range of {
			c := r.choices[at]
			seen[c]++
			if r.places[c] != int32(at) || r.chosen[c] != int32(of[at]) {
				t.Fatalf("entry %d of expert %d is choice %d, which is at %d and of %d", at, of[at], c, r.places[c], r.chosen[c])
			}
			if at > 0 && (of[at] < of[at-1] || of[at] == of[at-1] && c/int32(active) <= r.choices[at-1]/int32(active)) {
				t.Fatalf("entries are not in the order of experts and tokens: %v, %v", of, r.choices)
			}
		}
		if slices.ContainsFunc(seen, func(times int) bool { return times != 1 }) {
			t.Fatalf("choices are entries %v times", seen)
		}
		for i := range n {
			own := logits[i*experts : (i+1)*experts]
			order := make([]int32, experts)
			for e := range order {
				order[e] = int32(e)
			}
			slices.SortStableFunc(order, func(a, b int32) int { return cmp.Compare(own[b], own[a]) })
			if got := r.chosen[i*active : (i+1)*active]; !slices.Equal(got, order[:active]) {
				t.Fatalf("logits %v: %v are chosen, want %v", own, got, order[:active])
			}
			var sum, all float64
			for _, v := range own {
				all += math.Exp(float64(v))
			}
			for _, e := range order[:active] {
				sum += math.Exp(float64(own[e]))
			}
			for k, e := range order[:active] {
				want := math.Exp(float64(own[e])) / sum
				if got := float64(r.weights[i*active+k]); math.Abs(got-want) > 1e-6 || math.Abs(float64(gates[i*experts+int(e)])-want*sum/all) > 1e-6 {
					t.Fatalf("expert %d has weight %v and gate %v, want %v and %v", e, got, gates[i*experts+int(e)], want, want*sum/all)
				}
			}
		}
	})
}

// TestRouteNotFinite: logits that are no numbers choose some experts, and are left to be found in what comes out.
func TestRouteNotFinite(t *testing.T) {
	nan := float32(math.NaN())
	var r Routing
	r.Route([]float32{nan, 1, 2, nan, nan, nan}, 2, 3, 2)
	if r.Entries() != 4 || r.weights[0] == r.weights[0] {
		t.Errorf("%d entries, weights %v", r.Entries(), r.weights)
	}
}

// experts is a mixture and what it is asked.
type experts struct {
	n, experts, active, d, f int
	h, logits, up, down      []float32
}

func randomExperts(r *rand.Rand, n, count, active, d, f int) experts {
	return experts{n, count, active, d, f, random(r, n*d), random(r, n*count), random(r, count*2*f*d), random(r, count*d*f)}
}

// run computes what the experts answer, and the gates; gradients too, of dy, if it is not nil.
func (x experts) run(dy []float32) (y, gates, dh, dlogits, dup, ddown []float32) {
	var r Routing
	gates = slices.Clone(x.logits)
	r.Route(gates, x.n, x.experts, x.active)
	u := make([]float32, r.Entries()*2*x.f)
	r.ExpertsUp(u, x.h, x.up, 2*x.f, x.d)
	y = slices.Repeat([]float32{3}, x.n*x.d) // is overwritten
	r.ExpertsDown(y, u, x.down, x.f, x.d)
	if dy == nil {
		return y, gates, nil, nil, nil, nil
	}
	dweights, rows, h := make([]float32, r.Entries()), make([]float32, r.Entries()*x.d), make([]float32, r.Entries()*x.f)
	r.ExpertsDownBackward(u, dweights, rows, h, dy, u, x.down, x.f, x.d)
	ddown, dup = slices.Repeat([]float32{3}, len(x.down)), slices.Repeat([]float32{3}, len(x.up))
	r.ExpertsWeights(ddown, rows, h, x.d, x.f)
	in := make([]float32, r.Entries()*x.d)
	r.Gather(in, x.h, 0, r.Entries(), x.d)
	r.ExpertsWeights(dup, u, in, 2*x.f, x.d)
	dh, dlogits = slices.Repeat([]float32{3}, len(x.h)), slices.Repeat([]float32{3}, len(x.logits))
	r.ExpertsUpBackward(dh, u, x.up, 2*x.f, x.d)
	r.WeightsBackward(dlogits, dweights, gates)
	RouteBackward(dlogits, dlogits, gates, x.n, x.experts)
	return y, gates, dh, dlogits, dup, ddown
}

// TestExperts: what a token gets is the weighted sum of its experts' parts, one by one in float64, and does not depend on
// the number of processors or on which tokens there are beside it, to the last bit; nor do gradients on processors.
func TestExperts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		count := rapid.IntRange(2, 9).Draw(t, "experts")
		x := randomExperts(rng, rapid.IntRange(1, 150).Draw(t, "tokens"), count, rapid.IntRange(1, count).Draw(t, "active"), rapid.IntRange(1, 40).Draw(t, "d"), rapid.IntRange(1, 40).Draw(t, "f"))
		dy := random(rng, x.n*x.d)
		y, gates, dh, dlogits, dup, ddown := x.run(dy)
		for i := range x.n {
			own := x.logits[i*count : (i+1)*count]
			order := make([]int, count)
			for e := range order {
				order[e] = e
			}
			slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(own[b], own[a]) })
			var sum float64
			for _, e := range order[:x.active] {
				sum += float64(gates[i*count+e])
			}
			want := make([]float64, x.d)
			for _, e := range order[:x.active] {
				hidden := make([]float64, 2*x.f)
				for j := range hidden {
					for k := range x.d {
						hidden[j] += float64(x.up[(e*2*x.f+j)*x.d+k]) * float64(x.h[i*x.d+k])
					}
				}
				for j := range want {
					for k := range x.f {
						a := hidden[k]
						want[j] += float64(gates[i*count+e]) / sum * float64(x.down[(e*x.d+j)*x.f+k]) * a / (1 + math.Exp(-a)) * hidden[x.f+k]
					}
				}
			}
			for j, v := range want {
				if got := float64(y[i*x.d+j]); math.Abs(got-v) > 1e-4*(1+math.Abs(v))*float64(x.d) {
					t.Fatalf("token %d gets %v at %d, want %v", i, got, j, v)
				}
			}
		}
		func() {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1 + runtime.GOMAXPROCS(0)%2))
			y2, _, dh2, dlogits2, dup2, ddown2 := x.run(dy)
			if !slices.Equal(y, y2) || !slices.Equal(dh, dh2) || !slices.Equal(dlogits, dlogits2) || !slices.Equal(dup, dup2) || !slices.Equal(ddown, ddown2) {
				t.Fatal("other processors find something else")
			}
		}()
		part := x
		from := rapid.IntRange(0, x.n-1).Draw(t, "from")
		part.n, part.h, part.logits = x.n-from, x.h[from*x.d:], x.logits[from*count:]
		if alone, _, _, _, _, _ := part.run(nil); !slices.Equal(alone, y[from*x.d:]) {
			t.Fatal("what a token gets depends on the others")
		}
	})
}

func TestExpertsGradients(t *testing.T) {
	x := randomExperts(rand.New(rand.NewPCG(1, 2)), 9, 5, 2, 6, 7)
	forward := func(y []float32) {
		out, _, _, _, _, _ := x.run(nil)
		copy(y, out)
	}
	for name, of := range map[string]struct {
		x    []float32
		pick func(dh, dlogits, dup, ddown []float32) []float32
	}{
		"h":      {x.h, func(dh, _, _, _ []float32) []float32 { return dh }},
		"logits": {x.logits, func(_, dlogits, _, _ []float32) []float32 { return dlogits }},
		"up":     {x.up, func(_, _, dup, _ []float32) []float32 { return dup }},
		"down":   {x.down, func(_, _, _, ddown []float32) []float32 { return ddown }},
	} {
		gradient(t, "experts "+name, of.x, x.n*x.d, forward, func(dy, dx []float32) {
			_, _, dh, dlogits, dup, ddown := x.run(dy)
			copy(dx, of.pick(dh, dlogits, dup, ddown))
		})
	}
	gates := func(y []float32) {
		var r Routing
		copy(y, x.logits)
		r.Route(y, x.n, x.experts, x.active)
	}
	gradient(t, "gates", x.logits, x.n*x.experts, gates, func(dy, dx []float32) {
		y := make([]float32, len(dy))
		gates(y)
		RouteBackward(dx, dy, y, x.n, x.experts)
	})
}
