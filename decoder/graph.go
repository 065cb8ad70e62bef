package decoder

import (
	"errors"
	"fmt"

	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"onerec/internal/kernels"
	"onerec/internal/ops"
)

// Graph is the decoder as gorgonia expression graphs over shared weights. Their
// tensors hold a batch of at most Capacity tokens. It is not safe for concurrent
// use.
//
// A batch goes through the model in lanes, half of its rows each, whose gradients are added
// up: see [kernels.Lanes]. How many there are follows from the model and the capacity, so that results
// do not depend on the machine.
type Graph struct {
	weights  *Weights
	capacity int
	batch    *Batch
	lanes    []*lane
	model    []gorgonia.ValueGrad // with the gradients of all lanes, after a run
}

// lane is the expression graph for some rows of a batch.
type lane struct {
	batch   *Batch
	g       *gorgonia.ExprGraph
	machine *ops.Machine
	params  gorgonia.Nodes
	model   []gorgonia.ValueGrad
	logp    *gorgonia.Node // predictions: log probability of each

	weight    *tensor.Dense // predictions: of each in the next-token loss
	cost, ntp *gorgonia.Node
	balance   *gorgonia.Node // of the experts of all layers; nil without
	distinct  distinct
	whole     *Batch // all lanes' together
	dpo       *dpoInputs
}

// dpoInputs are what the DPO part of the loss reads beside the batch.
type dpoInputs struct {
	preference Preference

	pairs  int
	signs  *tensor.Dense // pairs x predictions: 1 for a prediction of the winner, -1 of the loser; divided by their number for means
	ref    *tensor.Dense // pairs: log p_ref(winner) - log p_ref(loser)
	share  *tensor.Dense // pairs: weight of each pair, 0 where there is none
	reward *tensor.Dense // pairs: of the winner less the loser's
	groups []int         // where each comparison's pairs begin, and the end
	margin *gorgonia.Node
	loss   *gorgonia.Node
}

// NewGraph builds the next-token loss
//
//	NTP = - sum_i w_i log p(target_i | tokens before)
//
// and its gradient for batches of at most capacity tokens.
func NewGraph(w *Weights, capacity int) (*Graph, error) {
	return newGraph(w, capacity, w.Config.lanes(capacity), true, nil, 0)
}

// NewScorer is NewGraph without gradients: it scores, at a third of the work, and
// can't step.
func NewScorer(w *Weights, capacity int) (*Graph, error) {
	return newGraph(w, capacity, 1, false, nil, 0)
}

// NewPreferenceGraph builds the loss of a round of iterative preference alignment
// (OneRec, arXiv 2502.18965, equation 10, where the preference is DPO's)
//
//	NTP + lambda * mean over pairs of the preference's loss
//
// over the margins log p(winner) - log p(loser) of the pairs' sessions.
func NewPreferenceGraph(w *Weights, capacity, pairs int, preference Preference, lambda float32) (*Graph, error) {
	if err := preference.check(); err != nil {
		return nil, err
	}
	const lanes = 1 // a pair's rows must be in the same
	return newGraph(w, capacity, lanes, true, &dpoInputs{pairs: pairs, preference: preference}, lambda)
}

func newGraph(w *Weights, capacity, lanes int, train bool, dpo *dpoInputs, lambda float32) (*Graph, error) {
	g := &Graph{weights: w, capacity: capacity, batch: NewBatch(0)}
	for range lanes {
		ln, err := newLane(w, w.Config.laneTokens(capacity, lanes), train, dpo, lambda)
		if err != nil {
			return nil, err
		}
		g.lanes = append(g.lanes, ln)
	}
	g.model = g.lanes[0].model
	return g, nil
}

func newLane(w *Weights, capacity int, train bool, dpo *dpoInputs, lambda float32) (_ *lane, err error) {
	defer func() { // gorgonia.Must panics on a graph that does not type-check
		if p := recover(); p != nil {
			err = fmt.Errorf("build the decoder's graph: %v", p)
		}
	}()
	c := w.Config
	predictions := c.predictions(capacity)
	ln := &lane{batch: NewBatch(0), g: gorgonia.NewGraph(), distinct: distinct{rows: make([]int32, c.Vocab())}, dpo: dpo}
	for _, t := range w.params {
		v := tensor.New(tensor.WithShape(t.Shape...), tensor.WithBacking(t.Data))
		n := gorgonia.NewTensor(ln.g, tensor.Float32, len(t.Shape), gorgonia.WithShape(t.Shape...), gorgonia.WithName(t.Name), gorgonia.WithValue(v))
		ln.params = append(ln.params, n)
	}
	rotary := kernels.NewRotary(c.Dim/c.Heads, c.MaxLen)
	residual := func() (float32, uint64) { return ln.batch.dropout.Residual, ln.batch.dropout.Seed }
	embedding := func() (float32, uint64) { return ln.batch.dropout.Embedding, ln.batch.dropout.Seed }
	pos := func(i int) int { return int(ln.batch.pos[i]) }

	// Before attention a token's row follows from the token alone: it is computed once for all places that it has.
	spread := func(x *gorgonia.Node) *gorgonia.Node {
		return ops.Gather(x, func() []int32 { return ln.distinct.which }, capacity)
	}
	x := ops.Gather(ln.params[0], func() []int32 { return ln.distinct.tokens }, capacity)
	x = ops.Dropout(ln, x, 2*c.Layers, embedding)
	var rows ops.Rows = &ln.distinct // of x
	for l := range c.Layers {
		p := layerParams(c, ln.params, l)
		h := ops.Linear(rows, ops.RMSNorm(rows, x, p[0]), p[1])
		if l == 0 {
			h = spread(h)
			x, rows = spread(x), ln
		}
		h = ops.Attention(ln, ops.Rotate(ln, h, rotary, pos), c.Heads, true)
		if l == c.Layers-1 { // nobody asks what else comes out of tokens that nothing is predicted from
			predicting := func() []int32 { return ln.batch.at }
			x, h = ops.Gather(x, predicting, predictions), ops.Gather(h, predicting, predictions)
			rows = predictingRows{ln}
		}
		h = ops.Linear(rows, h, p[2])
		x = ops.AddDropout(rows, x, h, 2*l, residual)
		h = ops.RMSNorm(rows, x, p[3])
		if c.Experts > 0 {
			h = ln.experts(rows, c, h, p[4], p[5], p[6])
		} else {
			h = ops.SwiGLULinear(rows, ops.Linear(rows, h, p[4]), p[5])
		}
		x = ops.AddDropout(rows, x, h, 2*l+1, residual)
	}
	x = ops.RMSNorm(rows, x, ln.params[len(ln.params)-1])
	ln.logp = ops.LogProbs(x, ln.params[0], func() []int32 { return ln.batch.target })

	ln.weight = tensor.New(tensor.WithShape(predictions), tensor.Of(tensor.Float32))
	weight := gorgonia.NodeFromAny(ln.g, ln.weight, gorgonia.WithName("weight"))
	ln.ntp = gorgonia.Must(gorgonia.Neg(gorgonia.Must(gorgonia.Mul(weight, ln.logp))))
	ln.cost = ln.ntp
	outputs := gorgonia.Nodes{ln.logp, ln.ntp}
	if dpo != nil {
		dpo.signs = tensor.New(tensor.WithShape(dpo.pairs, predictions), tensor.Of(tensor.Float32))
		dpo.ref = tensor.New(tensor.WithShape(dpo.pairs), tensor.Of(tensor.Float32))
		dpo.share = tensor.New(tensor.WithShape(dpo.pairs), tensor.Of(tensor.Float32))
		dpo.reward = tensor.New(tensor.WithShape(dpo.pairs), tensor.Of(tensor.Float32))
		input := func(name string, v *tensor.Dense) *gorgonia.Node {
			return gorgonia.NodeFromAny(ln.g, v, gorgonia.WithName(name))
		}
		dpo.margin = gorgonia.Must(gorgonia.Sub(gorgonia.Must(gorgonia.Mul(input("signs", dpo.signs), ln.logp)), input("ref", dpo.ref)))
		each := dpo.preference.of(dpo.margin, input("reward", dpo.reward), func() []int { return dpo.groups })
		dpo.loss = gorgonia.Must(gorgonia.Mul(input("share", dpo.share), each))
		ln.cost = gorgonia.Must(gorgonia.Add(ln.ntp, gorgonia.Must(gorgonia.Mul(dpo.loss, gorgonia.NewConstant(lambda)))))
		outputs = append(outputs, dpo.margin, dpo.loss)
	}
	if ln.balance != nil {
		ln.cost = gorgonia.Must(gorgonia.Add(ln.cost, gorgonia.Must(gorgonia.Mul(ln.balance, gorgonia.NewConstant(float32(balanceFactor))))))
		outputs = append(outputs, ln.balance)
	}
	outputs = append(outputs, ln.cost)
	var gradients gorgonia.Nodes
	if train {
		if gradients, err = gorgonia.Grad(ln.cost, ln.params...); err != nil {
			return nil, fmt.Errorf("differentiate the decoder's graph: %w", err)
		}
	}
	if ln.machine, err = ops.NewMachine(ln.g, append(outputs, gradients...)...); err != nil {
		return nil, fmt.Errorf("build the decoder's graph: %w", err)
	}
	if train {
		ln.model = ln.machine.Model(ln.params, gradients)
	}
	return ln, nil
}

// balanceFactor is that of the loss that keeps experts busy (Fedus et al., arXiv 2101.03961, section 2.2).
const balanceFactor = 0.01

// experts adds a layer's mixture to the graph, and how even it is to the lane's sum of that.
func (ln *lane) experts(rows ops.Rows, c Config, h, up, down, router *gorgonia.Node) *gorgonia.Node {
	e := ops.NewExperts(rows, ops.Linear(rows, h, router), c.Active)
	balance := e.Balance(func() int {
		if rows == ops.Rows(ln) {
			return len(ln.whole.tokens)
		}
		return len(ln.whole.at)
	})
	if ln.balance != nil {
		balance = gorgonia.Must(gorgonia.Add(ln.balance, balance))
	}
	ln.balance = balance
	return e.Down(e.Up(h, up), down)
}

// predictingRows are those of a lane's tokens that something is predicted from.
type predictingRows struct{ *lane }

// Len implements ops.Rows.
func (p predictingRows) Len() int { return len(p.batch.at) }

// Len implements ops.Rows.
func (ln *lane) Len() int { return len(ln.batch.tokens) }

// Bounds implements ops.Rows.
func (ln *lane) Bounds() []int { return ln.batch.bounds }

// Pair is a winner and a loser of one user among the rows of a batch. Under S-DPO neighbours with
// one winner are one comparison.
type Pair struct {
	Winner, Loser int     // rows
	RefMargin     float32 // log p_ref(winner) - log p_ref(loser), of means where the loss is over means; 0 without a reference
	Reward        float32 // the winner's less the loser's; only CoPG asks
}

// Losses are what a run found, in nats.
type Losses struct {
	Total float32
	NTP   float32 // mean over predictions, by weight
	DPO   float32 // mean of the preference's loss over pairs
	Wins  float64 // share of pairs whose margin grew over the reference's
	// Balance is how evenly tokens go to experts, mean over layers: 1 if to all alike, Experts / Active if all go to the
	// same; 0 without experts.
	Balance float32
}

// ErrNotFinite says that the loss of a batch is NaN or infinite.
var ErrNotFinite = errors.New("the loss is not finite")

// Dropout is the share of values that are left out of a pass; which follows from the seed.
type Dropout struct {
	Residual  float32 // of what each part adds to the residual stream
	Embedding float32 // of the tokens' embeddings
	Seed      uint64
}

// Run computes the losses of a batch and, in the graph, the gradients.
func (g *Graph) Run(b *Batch, pairs []Pair, dropout Dropout) (Losses, error) {
	if len(b.tokens) == 0 || len(b.tokens) > g.capacity {
		return Losses{}, fmt.Errorf("a batch of %d tokens, allowed is 1 to %d", len(b.tokens), g.capacity)
	}
	g.batch, b.dropout = b, dropout
	g.lanes[0].batch = b
	if len(g.lanes) == 2 {
		g.lanes[0].batch, g.lanes[1].batch = b.halves()
	}
	losses, errs := make([]Losses, len(g.lanes)), make([]error, len(g.lanes))
	for _, ln := range g.lanes {
		ln.whole = b
	}
	kernels.Lanes(len(g.lanes), func(i int) { losses[i], errs[i] = g.lanes[i].run(pairs) })
	if err := errors.Join(errs...); err != nil {
		return Losses{}, fmt.Errorf("run the decoder's graph: %w", err)
	}
	l := losses[0]
	for i, ln := range g.lanes[1:] {
		of := losses[1+i]
		l.Total, l.NTP, l.Balance = l.Total+of.Total, l.NTP+of.NTP, l.Balance+of.Balance
		if err := ln.addGradients(g.model); err != nil {
			return Losses{}, err
		}
	}
	l.Balance /= float32(g.weights.Config.Layers)
	if l.Total != l.Total || l.Total-l.Total != 0 {
		return l, ErrNotFinite
	}
	return l, nil
}

// run computes the losses of the lane's rows and, in the graph, their gradients.
func (ln *lane) run(pairs []Pair) (Losses, error) {
	if ln.batch.Rows() == 0 {
		return Losses{}, nil
	}
	ln.distinct.find(ln.batch.tokens, ln.batch.dropout.Embedding == 0)
	w := ln.weight.Data().([]float32)
	clear(w)
	copy(w, ln.batch.weight)
	if ln.dpo != nil {
		if err := ln.dpo.set(ln.batch, pairs, len(w)); err != nil {
			return Losses{}, err
		}
	}
	if err := ln.machine.Run(); err != nil {
		return Losses{}, err
	}
	l := Losses{Total: scalar(ln.machine.Value(ln.cost)), NTP: scalar(ln.machine.Value(ln.ntp))}
	if ln.balance != nil {
		l.Balance = scalar(ln.machine.Value(ln.balance))
	}
	if ln.dpo != nil {
		l.DPO = scalar(ln.machine.Value(ln.dpo.loss))
		for _, m := range ln.machine.Value(ln.dpo.margin).Data().([]float32)[:len(pairs)] {
			if m > 0 {
				l.Wins += 1 / float64(len(pairs))
			}
		}
	}
	return l, nil
}

// addGradients adds those of the lane's rows to the sum.
func (ln *lane) addGradients(sum []gorgonia.ValueGrad) error {
	if ln.batch.Rows() == 0 {
		return nil
	}
	for i, of := range ln.model {
		to, err := sum[i].Grad()
		if err != nil {
			return err
		}
		from, err := of.Grad()
		if err != nil {
			return err
		}
		kernels.Add(to.Data().([]float32), from.Data().([]float32))
	}
	return nil
}

// Step runs a batch and updates the weights. After an error the weights are as
// they were.
func (g *Graph) Step(b *Batch, pairs []Pair, dropout Dropout, solver gorgonia.Solver) (Losses, error) {
	if g.model == nil {
		return Losses{}, errors.New("a scorer can't step")
	}
	l, err := g.Run(b, pairs, dropout)
	if err != nil {
		return l, err
	}
	return l, solver.Step(g.model)
}

// LogProbs returns, after a Run, the log probability of each row's predictions,
// summed.
func (g *Graph) LogProbs() []float32 {
	logp := g.logProbs()
	out := make([]float32, g.batch.Rows())
	for r := range out {
		from, to := g.batch.predictions(r)
		for _, v := range logp[from:to] {
			out[r] += v
		}
	}
	return out
}

// logProbs returns those of the predictions.
func (g *Graph) logProbs() (out []float32) {
	for _, ln := range g.lanes {
		if n := len(ln.batch.at); n > 0 {
			out = append(out, ln.machine.Value(ln.logp).Data().([]float32)[:n]...)
		}
	}
	return out
}

func (d *dpoInputs) set(b *Batch, pairs []Pair, predictions int) error {
	if len(pairs) > d.pairs {
		return fmt.Errorf("%d pairs, at most %d fit", len(pairs), d.pairs)
	}
	signs, ref := d.signs.Data().([]float32), d.ref.Data().([]float32)
	share, reward := d.share.Data().([]float32), d.reward.Data().([]float32)
	for _, v := range [][]float32{signs, ref, share, reward} {
		clear(v)
	}
	d.groups = d.groups[:0]
	mark := func(pair, row int, sign float32) {
		from, to := b.predictions(row)
		if d.preference.Averaged() {
			sign /= float32(to - from)
		}
		for i := from; i < to; i++ {
			signs[pair*predictions+i] = sign
		}
	}
	for i, p := range pairs {
		mark(i, p.Winner, 1)
		mark(i, p.Loser, -1)
		ref[i], reward[i] = p.RefMargin, p.Reward
		if d.preference.Loss != LossSDPO || i == 0 || p.Winner != pairs[i-1].Winner {
			d.groups = append(d.groups, i)
		}
	}
	for _, first := range d.groups {
		share[first] = 1 / float32(len(d.groups))
	}
	d.groups = append(d.groups, len(pairs))
	return nil
}

func scalar(v gorgonia.Value) float32 {
	switch d := v.Data().(type) {
	case float32:
		return d
	case []float32:
		return d[0]
	}
	panic(fmt.Sprintf("decoder: %T is no scalar", v.Data()))
}
