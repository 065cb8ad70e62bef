package ops

import (
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"onerec/internal/kernels"
)

// Experts is a mixture of experts of which each token goes to a few (Shazeer et al., arXiv 1701.06538): an operation
// for each of its steps.
type Experts struct {
	gates *gorgonia.Node // rows x experts: softmax of the router's logits

	rows   Rows
	active int
	route  kernels.Routing // as of the last run
}

// NewExperts sends rows to the active experts whose logits, rows x experts, are the greatest.
func NewExperts(b Rows, logits *gorgonia.Node, active int) *Experts {
	e := &Experts{rows: b, active: active}
	capacity, experts := logits.Shape()[0], cols(logits)
	e.gates = overlay(Apply("route", matrix(capacity, experts), func(gates []float32, v [][]float32) {
		n := b.Len() * experts
		if !same(gates, v[0]) {
			copy(gates[:n], v[0])
		}
		e.route.Route(gates[:n], b.Len(), experts, active)
	}, func(_ gorgonia.Nodes, gates, grad *gorgonia.Node) gorgonia.Nodes {
		return gorgonia.Nodes{overlay(Apply("route dlogits", matrix(capacity, experts), func(dlogits []float32, g [][]float32) {
			kernels.RouteBackward(dlogits, g[0], g[1], b.Len(), experts)
		}, nil, grad, gates), 0)}
	}, logits), 0)
	return e
}

// Up is, for each choice of each row, the row of h (rows x d) times the chosen expert's matrix of w (experts x out x d), transposed: a matrix of
// active times as many rows, grouped by expert.
func (e *Experts) Up(h, w *gorgonia.Node) *gorgonia.Node {
	capacity, d := h.Shape()[0], cols(h)
	out := w.Shape()[1]
	const order = 1 // that input is read to come after it: what it left is the routing
	return fixed(Apply("experts up", matrix(capacity*e.active, out), func(u []float32, v [][]float32) {
		e.route.ExpertsUp(u, v[0], v[2], out, d)
	}, func(v gorgonia.Nodes, _, du *gorgonia.Node) gorgonia.Nodes {
		dh := Apply("experts up dh", matrix(capacity, d), func(dh []float32, g [][]float32) {
			e.route.ExpertsUpBackward(dh, g[0], g[1], out, d)
		}, nil, du, v[2])
		dw := Apply("experts up dw", w.Shape().Clone(), func(dw []float32, g [][]float32) {
			x := kernels.Take(e.route.Entries() * d)
			defer kernels.Put(x)
			e.route.Gather(*x, g[1], 0, e.route.Entries(), d)
			e.route.ExpertsWeights(dw, g[0], *x, out, d)
		}, nil, du, recomputed(v[0]))
		return gorgonia.Nodes{dh, nil, dw}
	}, h, e.gates, w), order)
}

// Down is, for each row, what its experts answer, by how much the row counts them: SwiGLU of u, as Up gives it, times the
// expert's matrix of w (experts x d x f), transposed.
func (e *Experts) Down(u, w *gorgonia.Node) *gorgonia.Node {
	entries, f, d := u.Shape()[0], cols(u)/2, w.Shape()[1]
	capacity := entries / e.active
	return Apply("experts down", matrix(capacity, d), func(y []float32, v [][]float32) {
		e.route.ExpertsDown(y, v[0], v[2], f, d)
	}, func(v gorgonia.Nodes, _, dy *gorgonia.Node) gorgonia.Nodes {
		var rows, h *[]float32 // what w's gradient is made of, from du's run to that of dw, which reads du to come after it
		dweights := make([]float32, entries)
		const over = 1
		du := overlay(Apply("experts down du", matrix(entries, 2*f), func(du []float32, g [][]float32) {
			n := e.route.Entries()
			rows, h = kernels.Take(n*d), kernels.Take(n*f)
			e.route.ExpertsDownBackward(du, dweights, *rows, *h, g[0], g[over], g[2], f, d)
		}, nil, dy, v[0], v[2]), over)
		dgates := Apply("experts down dgates", e.gates.Shape().Clone(), func(dgates []float32, g [][]float32) {
			e.route.WeightsBackward(dgates, dweights, g[1])
		}, nil, du, v[1])
		dw := Apply("experts down dw", w.Shape().Clone(), func(dw []float32, _ [][]float32) {
			e.route.ExpertsWeights(dw, *rows, *h, d, f)
			kernels.Put(rows)
			kernels.Put(h)
			rows, h = nil, nil // or they would be kept, whoever has them next
		}, nil, du)
		return gorgonia.Nodes{du, dgates, dw}
	}, u, e.gates, w)
}

// Balance is the loss that keeps all experts busy (Fedus et al., arXiv 2101.03961, equation 4; its factor is the caller's): the number of experts times the sum over
// them of the share of choices that fell on one and its mean gate, over so many rows as there are in all, of which these may be a part. It is 1 where all are chosen alike, and
// more the fewer are: as many times as there are experts for an active one, at most.
func (e *Experts) Balance(all func() int) *gorgonia.Node {
	capacity, experts := e.gates.Shape()[0], cols(e.gates)
	loads := Apply("loads", tensor.Shape{experts}, func(out []float32, _ [][]float32) {
		for i := range out {
			out[i] = float32(experts) * e.route.Share(i)
		}
	}, nil, e.gates)
	mean := Apply("mean gates", tensor.Shape{experts}, func(out []float32, v [][]float32) {
		clear(out)
		part := 1 / float32(all())
		for i := range e.rows.Len() {
			for j, g := range v[0][i*experts : (i+1)*experts] {
				out[j] += g * part
			}
		}
	}, func(_ gorgonia.Nodes, _, grad *gorgonia.Node) gorgonia.Nodes {
		return gorgonia.Nodes{Apply("mean gates dgates", matrix(capacity, experts), func(dgates []float32, g [][]float32) {
			part := 1 / float32(all())
			for i := range e.rows.Len() {
				for j, v := range g[0] {
					dgates[i*experts+j] = v * part
				}
			}
		}, nil, grad)}
	}, e.gates)
	return gorgonia.Must(gorgonia.Mul(loads, mean))
}
