package ops

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"onerec/internal/kernels"
)

// Machine runs an expression graph, as gorgonia's TapeMachine does, in memory that is planned:
// what an operation gives lies where another's result was that nobody reads any more. Of the
// activations' gradients, of which a TapeMachine keeps one for each node, a few are there at a
// time, and a parameter's gradient is the operation's result and no copy of it.
//
// It is not safe for concurrent use.
type Machine struct {
	steps  []step
	of     map[*gorgonia.Node]int // step of a node
	values []gorgonia.Value       // of each step, as of the last run
	floats int                    // planned
}

// step is a node that a run visits, after those it reads.
type step struct {
	node *gorgonia.Node
	in   []int
	last int           // the last step that reads it; the number of steps if its value is asked for
	out  *tensor.Dense // where the result lies by plan
	sum  bool          // out = in[0] + in[1], gorgonia's sum of gradients
}

// over lists the inputs where the result may lie, if nobody reads them later.
func (s step) over() []int {
	if o, ours := s.node.Op().(*op); ours {
		return o.over
	}
	if s.sum {
		return []int{0, 1}
	}
	return nil
}

// passes reports whether the value may be that of the first input.
func (s step) passes() bool {
	o, ours := s.node.Op().(*op)
	return ours && o.passes != nil
}

// planned reports whether the result has a place by plan: gorgonia's own operations find one
// themselves; there are few, over small tensors.
func (s step) planned() bool {
	_, ours := s.node.Op().(*op)
	return ours || s.sum
}

// NewMachine plans how the values of outputs are computed.
func NewMachine(g *gorgonia.ExprGraph, outputs ...*gorgonia.Node) (*Machine, error) {
	wanted := make(map[*gorgonia.Node]bool)
	var want func(n *gorgonia.Node)
	want = func(n *gorgonia.Node) {
		if wanted[n] {
			return
		}
		wanted[n] = true
		for _, c := range children(g, n) {
			want(c)
		}
	}
	for _, n := range outputs {
		want(n)
	}
	m := &Machine{of: make(map[*gorgonia.Node]int)}
	for _, n := range g.AllNodes() { // a node is made after those that it reads
		if !wanted[n] {
			continue
		}
		s, terms := step{node: n}, children(g, n)
		for _, c := range terms {
			i, ok := m.of[c]
			if !ok {
				return nil, fmt.Errorf("plan a graph: %v reads %v, which comes after it", n, c)
			}
			s.in = append(s.in, i)
			m.steps[i].last = len(m.steps)
		}
		s.sum = isSum(n, terms)
		m.of[n] = len(m.steps)
		m.steps = append(m.steps, s)
	}
	for _, n := range outputs {
		m.steps[m.of[n]].last = len(m.steps)
	}
	for i := len(m.steps) - 1; i >= 0; i-- {
		s := m.steps[i]
		within := s.in // what gorgonia's operations give may lie in what they read
		if s.planned() {
			within = nil
		}
		if s.passes() {
			within = s.in[:1]
		}
		for _, j := range within {
			m.steps[j].last = max(m.steps[j].last, s.last)
		}
	}
	m.values = make([]gorgonia.Value, len(m.steps))
	m.plan()
	return m, nil
}

func children(g *gorgonia.ExprGraph, n *gorgonia.Node) (out gorgonia.Nodes) {
	for it := g.From(n.ID()); it.Next(); {
		out = append(out, it.Node().(*gorgonia.Node))
	}
	return out
}

// isSum reports whether a node is gorgonia's sum of two tensors of one shape.
func isSum(n *gorgonia.Node, terms gorgonia.Nodes) bool {
	if _, ours := n.Op().(*op); ours || n.Op() == nil || n.Dims() == 0 {
		return false
	}
	return n.Op().String() == sumOp && terms[0].Shape().Eq(n.Shape()) && terms[1].Shape().Eq(n.Shape())
}

// sumOp is how gorgonia writes the operation of such a node.
var sumOp = func() string {
	g := gorgonia.NewGraph()
	x := gorgonia.NewVector(g, tensor.Float32, gorgonia.WithShape(2), gorgonia.WithName("x"))
	y := gorgonia.NewVector(g, tensor.Float32, gorgonia.WithShape(2), gorgonia.WithName("y"))
	return gorgonia.Must(gorgonia.Add(x, y)).Op().String()
}()

// plan gives every operation of ours, and every sum, a place for its result in one piece of
// memory, that of an input or its own: the largest first, each at the lowest place that is free for as long as it is read
// (greedy by size, Pisarchyk and Lee, arXiv 2001.03288, section 5.2).
func (m *Machine) plan() {
	var all []*place
	at := make([]*place, len(m.steps))
	for i := range m.steps {
		s := &m.steps[i]
		if !s.planned() {
			continue
		}
		for _, in := range s.over() {
			if j := s.in[in]; at[j] != nil && m.steps[j].last == i {
				at[i] = at[j]
			}
		}
		if at[i] == nil {
			const line = 16 // floats of a cache line
			size := (s.node.Shape().TotalSize() + line - 1) / line * line
			at[i] = &place{from: i, size: size}
			all = append(all, at[i])
		}
		at[i].to = max(at[i].to, s.last)
	}
	memory := make([]float32, pack(all))
	m.floats = len(memory)
	for i := range m.steps {
		s := &m.steps[i]
		if at[i] == nil {
			continue
		}
		n := s.node.Shape().TotalSize()
		result := memory[at[i].offset : at[i].offset+n : at[i].offset+n]
		s.out = tensor.New(tensor.WithShape(s.node.Shape().Clone()...), tensor.WithBacking(result))
		if o, ours := s.node.Op().(*op); ours {
			o.out = s.out
		}
	}
}

// place is a piece of memory that is in use during steps from to to.
type place struct{ from, to, size, offset int }

// pack chooses offsets at which no two places overlap that are in use at the same time, and
// returns the size of all together.
func pack(all []*place) (size int) {
	bySize := slices.SortedStableFunc(slices.Values(all), func(a, b *place) int { return cmp.Compare(b.size, a.size) })
	var placed []*place // by offset
	for _, p := range bySize {
		gap := 0 // the lowest offset that may be free
		for _, q := range placed {
			if q.from > p.to || p.from > q.to {
				continue
			}
			if q.offset-gap >= p.size {
				break
			}
			gap = max(gap, q.offset+q.size)
		}
		p.offset = gap
		i, _ := slices.BinarySearchFunc(placed, gap, func(q *place, offset int) int { return cmp.Compare(q.offset, offset) })
		placed = slices.Insert(placed, i, p)
		size = max(size, gap+p.size)
	}
	return size
}

func same(a, b []float32) bool { return len(a) > 0 && len(b) > 0 && &a[0] == &b[0] }

// Run computes the outputs.
func (m *Machine) Run() error {
	var in []gorgonia.Value
	for i := range m.steps {
		s := &m.steps[i]
		switch {
		case s.node.Op() == nil:
			if m.values[i] = s.node.Value(); m.values[i] == nil {
				return fmt.Errorf("input %v has no value", s.node)
			}
			continue
		case s.sum:
			if err := s.add(m.values[s.in[0]], m.values[s.in[1]]); err != nil {
				return err
			}
			m.values[i] = s.out
			continue
		case s.passes() && s.node.Op().(*op).passes():
			m.values[i] = m.values[s.in[0]]
			continue
		}
		in = in[:0]
		for _, j := range s.in {
			in = append(in, m.values[j])
		}
		v, err := s.node.Op().Do(in...)
		if err != nil {
			return fmt.Errorf("%v: %w", s.node, err)
		}
		m.values[i] = v
	}
	return nil
}

// add makes a sum of its terms.
func (s *step) add(x, y gorgonia.Value) error {
	out := s.out.Data().([]float32)
	a, okA := x.Data().([]float32)
	b, okB := y.Data().([]float32)
	if !okA || !okB || len(a) != len(out) || len(b) != len(out) {
		return fmt.Errorf("%v: the terms are not of its shape", s.node)
	}
	if same(b, out) {
		a, b = b, a
	}
	if !same(a, out) {
		copy(out, a)
	}
	kernels.Add(out, b)
	return nil
}

// Value returns what the last run found for an output; nil before the first.
func (m *Machine) Value(n *gorgonia.Node) gorgonia.Value {
	i, ok := m.of[n]
	if !ok {
		return nil
	}
	return m.values[i]
}

// Floats is how many floats the results take by plan.
func (m *Machine) Floats() int { return m.floats }

// Model returns parameters and their gradients, for a Solver.
func (m *Machine) Model(params, gradients gorgonia.Nodes) []gorgonia.ValueGrad {
	out := make([]gorgonia.ValueGrad, len(params))
	for i := range params {
		out[i] = parameter{params[i], gradients[i], m}
	}
	return out
}

type parameter struct {
	node, gradient *gorgonia.Node
	m              *Machine
}

var errNotRun = errors.New("there is no gradient before a run")

func (p parameter) Value() gorgonia.Value { return p.node.Value() }

func (p parameter) Grad() (gorgonia.Value, error) {
	if v := p.m.Value(p.gradient); v != nil {
		return v, nil
	}
	return nil, errNotRun
}
