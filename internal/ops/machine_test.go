package ops

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
	"pgregory.net/rapid"

	"onerec/internal/kernels"
)

// part is a batch of which a number of rows are in use.
type part struct{ rows int }

func (p *part) Len() int      { return p.rows }
func (p *part) Bounds() []int { return []int{0, p.rows / 2, p.rows} }

// world is a graph and what it reads: parameters, a batch, and what the cost weighs.
type world struct {
	g         *gorgonia.ExprGraph
	b         *part
	params    gorgonia.Nodes
	cost      *gorgonia.Node
	gradients gorgonia.Nodes
}

const (
	rows, width = 6, 4
)

// draw makes a graph of operations that follows from plan alone: each number chooses an operation and,
// among those that there are, what it reads, so that results have several readers, early and late.
func draw(t interface{ Fatal(args ...any) }, plan []int, seed uint64) *world {
	w := &world{g: gorgonia.NewGraph(), b: &part{rows}}
	rng := rand.New(rand.NewPCG(seed, 1))
	param := func(shape ...int) *gorgonia.Node {
		data := make([]float32, tensor.Shape(shape).TotalSize())
		for i := range data {
			data[i] = float32(rng.NormFloat64())
		}
		n := gorgonia.NewTensor(w.g, tensor.Float32, len(shape), gorgonia.WithShape(shape...), gorgonia.WithName(fmt.Sprint("p", len(w.params))),
			gorgonia.WithValue(tensor.New(tensor.WithShape(shape...), tensor.WithBacking(data))))
		w.params = append(w.params, n)
		return n
	}
	ids := func() []int32 { return []int32{0, 2, 1, 2, 0, 1}[:w.b.rows] }
	table, rotary := param(3, width), kernels.NewRotary(width/2, rows)
	made := []*gorgonia.Node{Gather(table, ids, rows)}
	var balance *gorgonia.Node
	for _, p := range plan {
		x, y := made[p/8%len(made)], made[p/64%len(made)]
		var n *gorgonia.Node
		switch p % 8 {
		case 0:
			n = Linear(w.b, x, param(width, width))
		case 1:
			n = RMSNorm(w.b, x, param(width))
		case 2:
			n = SwiGLULinear(w.b, Linear(w.b, x, param(2*width, width)), param(width, width))
		case 3:
			n = Attention(w.b, Rotate(w.b, Linear(w.b, x, param(3*width, width)), rotary, func(row int) int { return row }), 2, true)
		case 4:
			n = Mul(w.b, x, y)
		case 5:
			n = Add(w.b, x, y)
		case 7:
			n = Gather(x, ids, rows)
		case 6:
			const experts, active = 3, 2
			e := NewExperts(w.b, Linear(w.b, x, param(experts, width)), active)
			n = e.Down(e.Up(x, param(experts, 2*width, width)), param(experts, width, width))
			if balance = e.Balance(w.b.Len); p%2 == 0 {
				balance = gorgonia.Must(gorgonia.Mul(balance, gorgonia.NewConstant(float32(p))))
			}
		}
		made = append(made, n)
	}
	// Everything that was made counts, so that every gradient is a sum.
	sum := made[0]
	for _, n := range made[1:] {
		sum = Add(w.b, sum, n)
	}
	const picked = 4 // at most
	some := &part{3}
	sum = Gather(sum, func() []int32 { return []int32{0, 2, int32(w.b.rows - 1)} }, picked)
	logp := LogProbs(RMSNorm(some, sum, param(width)), table, func() []int32 { return []int32{1, 0, 2} })
	ones := tensor.New(tensor.WithShape(picked), tensor.WithBacking([]float32{1, 2, 3, 1}))
	w.cost = gorgonia.Must(gorgonia.Mul(gorgonia.NodeFromAny(w.g, ones, gorgonia.WithName("ones")), logp))
	if balance != nil {
		w.cost = gorgonia.Must(gorgonia.Add(w.cost, balance))
	}
	var err error
	if w.gradients, err = gorgonia.Grad(w.cost, w.params...); err != nil {
		t.Fatal(err)
	}
	return w
}

// TestMachine: whatever the graph, the machine finds what gorgonia's finds, also in a second run with other weights
// and fewer rows, and takes less memory than a place for each result.
func TestMachine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		plan := rapid.SliceOfN(rapid.IntRange(0, 1<<12), 0, 12).Draw(t, "plan")
		seed := rapid.Uint64().Draw(t, "seed")
		ours, theirs := draw(t, plan, seed), draw(t, plan, seed)
		m, err := NewMachine(ours.g, append(gorgonia.Nodes{ours.cost}, ours.gradients...)...)
		if err != nil {
			t.Fatal(err)
		}
		tape := gorgonia.NewTapeMachine(theirs.g, gorgonia.BindDualValues(theirs.params...))
		defer tape.Close()
		model := m.Model(ours.params, ours.gradients)
		for run := range 2 {
			if err := m.Run(); err != nil {
				t.Fatal(err)
			}
			for _, p := range theirs.params { // the tape machine adds to what it finds
				if g, err := p.Grad(); err == nil && g != nil {
					clear(g.Data().([]float32))
				}
			}
			tape.Reset()
			if err := tape.RunAll(); err != nil {
				t.Fatal(err)
			}
			got, want := m.Value(ours.cost).Data().(float32), theirs.cost.Value().Data().(float32)
			if got != want && (got == got || want == want) { // some graphs grow beyond floats
				t.Fatalf("run %d: the cost is %v, want %v", run, got, want)
			}
			for i, p := range theirs.params {
				want, err := p.Grad()
				if err != nil {
					t.Fatal(err)
				}
				got, err := model[i].Grad()
				if err != nil {
					t.Fatal(err)
				}
				for j, v := range want.Data().([]float32) {
					if got.Data().([]float32)[j] != v && v == v {
						t.Fatalf("run %d: gradient %d is %v, want %v", run, i, got.Data(), want.Data())
					}
				}
			}
			for _, w := range []*world{ours, theirs} {
				w.b.rows = rows - 2
				for _, p := range w.params {
					for j, v := range p.Value().Data().([]float32) {
						p.Value().Data().([]float32)[j] = 1 - v/2
					}
				}
			}
		}
		each := 0
		for _, s := range m.steps {
			if s.planned() {
				each += s.node.Shape().TotalSize()
			}
		}
		if len(plan) > 2 && m.floats > each*3/4 {
			t.Fatalf("%d floats are planned, a place for each result takes %d", m.floats, each)
		}
	})
}

// TestPack: places that are in use at the same time never overlap, and together they are no larger than all of them
// and no smaller than what is in use at any time.
func TestPack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var all []*place
		sum := 0
		for range rapid.IntRange(0, 30).Draw(t, "places") {
			from := rapid.IntRange(0, 20).Draw(t, "from")
			p := &place{from: from, to: from + rapid.IntRange(0, 10).Draw(t, "for"), size: 16 * rapid.IntRange(1, 9).Draw(t, "size")}
			all, sum = append(all, p), sum+p.size
		}
		size := pack(all)
		for i, p := range all {
			if p.offset < 0 || p.offset+p.size > size {
				t.Fatalf("%+v is outside of %d", *p, size)
			}
			for _, q := range all[:i] {
				if p.from <= q.to && q.from <= p.to && p.offset < q.offset+q.size && q.offset < p.offset+p.size {
					t.Fatalf("%+v and %+v overlap", *p, *q)
				}
			}
		}
		for now := range 31 {
			used := 0
			for _, p := range all {
				if p.from <= now && now <= p.to {
					used += p.size
				}
			}
			if size < used || size > sum {
				t.Fatalf("%d floats for %d at once and %d in all", size, used, sum)
			}
		}
	})
}

func TestMachineRefuses(t *testing.T) {
	w := draw(t, nil, 1)
	m, err := NewMachine(w.g, w.cost)
	if err != nil {
		t.Fatal(err)
	}
	if v := m.Value(w.cost); v != nil {
		t.Errorf("before a run the cost is %v", v)
	}
	if v := m.Value(w.gradients[0]); v != nil {
		t.Errorf("what nobody asked for is %v", v)
	}
	if m, err = NewMachine(w.g, w.gradients...); err != nil {
		t.Fatal(err)
	}
	for i, p := range m.Model(w.params, w.gradients) {
		if _, err := p.Grad(); err == nil {
			t.Errorf("there is a gradient %d before a run", i)
		}
	}
	x := gorgonia.NewMatrix(w.g, tensor.Float32, gorgonia.WithShape(rows, width), gorgonia.WithName("unset"))
	y := Linear(w.b, x, w.params[0])
	if m, err = NewMachine(w.g, y); err != nil {
		t.Fatal(err)
	}
	if err := m.Run(); err == nil {
		t.Error("an input without a value was read")
	}
}
