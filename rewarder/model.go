package rewarder

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"

	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"onerec/internal/kernels"
	"onerec/internal/ops"
	"onerec/internal/safetensors"
	"onerec/semanticid"
)

// ModelConfig is the architecture of the reward model.
type ModelConfig struct {
	Dim         int     // width
	Heads       int     // attention heads
	Hidden      int     // width of the feed-forward part
	Rows        int     // views of a batch at most
	Dropout     float64 // of what is known of items and of the user
	WeightDecay float64
}

// DefaultModelConfig is small: there is one label a view, not one a token.
func DefaultModelConfig() ModelConfig {
	return ModelConfig{Dim: 48, Heads: 2, Hidden: 96, Rows: 256, Dropout: 0.5, WeightDecay: 0.05}
}

// The outputs for a view, in their order.
const (
	headLike = iota
	headCompletion
	headDislike
	headWatch
	heads

	labels = headWatch // the outputs before it are of a yes or no
)

// Example is a list of items that a user watched, or might, after a history.
type Example struct {
	History []semanticid.Item // oldest first
	Items   []Viewed
	WatchMs int64 // over all items; unused in prediction
}

// Viewed is an item of an example with its labels.
type Viewed struct {
	ID         semanticid.Item // nil if the codebook doesn't know the item
	Like       Label
	Completion Label
	Dislike    Label
	Watch      int64 // ms; below 0: unknown
	Duration   int64 // of the video, ms; 0: unknown
	Priors
}

// labels are a view's in the order of the model's outputs.
func (v Viewed) labels() [labels]Label {
	return [labels]Label{headLike: v.Like, headCompletion: v.Completion, headDislike: v.Dislike}
}

// Priors are what the item's own past and the user's say, in the units of the model's outputs; the
// model learns how far to trust them, and what remains. Zero says nothing.
type Priors struct{ Item, User [heads]float32 }

// Label is a yes, a no or an unknown.
type Label int8

// Values of a label.
const (
	Unknown Label = iota
	No
	Yes
)

func labelOf(yes bool) Label {
	if yes {
		return Yes
	}
	return No
}

// Model predicts what a user will make of a list: for each view whether it is
// liked, disliked or watched to the end, and how long the list is watched in
// total. After OneRec's reward model (arXiv 2502.18965, section 3.3): item
// representations are made aware of the user by an element-wise product with the
// user's, the list's items attend to each other, and each objective has a head.
//
//	v = mean of the embeddings of the item's codes     u = mean over the history
//	x = v A + u B + (v * u) C
//	x = x + attention(x);  x = x + swiglu(x);  z = norm(x) H + trust * priors of item and user
//	p(like) = sigmoid(z.0)  p(completion) = sigmoid(z.1)  p(dislike) = sigmoid(z.2)
//	watch = scale * sum over views of softplus(z.3)
//
// The loss is binary cross-entropy for the first three and the squared difference
// of log(1 + watch/scale) for the third, of each view and of the whole list, which a few very long
// views can't dominate. It is not safe for concurrent use.
type Model struct {
	cfg           ModelConfig
	levels, codes int
	scaleMs       float64 // mean watch time of a view
	params        []safetensors.Tensor

	batch   *batch // what the graphs read
	dropout struct {
		rate float32
		seed uint64
	}
	train, infer *net
	solver       *ops.Solver
}

// net is the model's expression graph on a machine of its own.
type net struct {
	machine      *ops.Machine
	params       []gorgonia.ValueGrad
	cost, logits *gorgonia.Node
}

// NewModel returns an untrained model for a codebook's shape; scaleMs is the mean
// watch time of a view.
func NewModel(cfg ModelConfig, levels, codes int, scaleMs float64, learningRate float64, seed uint64) (*Model, error) {
	if cfg.Dim < 2 || cfg.Heads < 1 || cfg.Dim%(2*cfg.Heads) != 0 || cfg.Hidden < 1 || cfg.Rows < 1 || !(cfg.Dropout >= 0 && cfg.Dropout < 1) || !(scaleMs > 0) {
		return nil, fmt.Errorf("reward model: %+v with a scale of %v ms is out of range", cfg, scaleMs)
	}
	m := &Model{cfg: cfg, levels: levels, codes: codes, scaleMs: scaleMs, batch: new(batch), solver: ops.NewSolver(learningRate, cfg.WeightDecay)}
	rng := rand.New(rand.NewPCG(seed, 0x4e3a4d))
	for _, t := range m.layout() {
		t.Data = make([]float32, tensor.Shape(t.Shape).TotalSize())
		dev := 1 / math.Sqrt(float64(t.Shape[len(t.Shape)-1]))
		for i := range t.Data {
			switch {
			case len(t.Shape) == 1, t.Name == "trust":
				t.Data[i] = 1 // gains
			default:
				t.Data[i] = float32(rng.NormFloat64() * dev)
			}
		}
		m.params = append(m.params, t)
	}
	var err error
	if m.train, err = m.build(true); err != nil {
		return nil, err
	}
	m.infer, err = m.build(false)
	return m, err
}

// layout lists names and shapes; a matrix is out x in, as in PyTorch.
func (m *Model) layout() []safetensors.Tensor {
	d := m.cfg.Dim
	return []safetensors.Tensor{
		{Name: "codes", Shape: []int{1 + m.levels*m.codes + durations, d}}, // row 0: an item without an ID
		{Name: "item", Shape: []int{d, d}}, {Name: "user", Shape: []int{d, d}}, {Name: "match", Shape: []int{d, d}},
		{Name: "norm_attn", Shape: []int{d}}, {Name: "qkv", Shape: []int{3 * d, d}}, {Name: "out", Shape: []int{d, d}},
		{Name: "norm_ff", Shape: []int{d}}, {Name: "up", Shape: []int{2 * m.cfg.Hidden, d}}, {Name: "down", Shape: []int{d, m.cfg.Hidden}},
		{Name: "norm", Shape: []int{d}}, {Name: "heads", Shape: []int{heads, d}},
		{Name: "norm_item", Shape: []int{d}}, {Name: "norm_user", Shape: []int{d}},
		{Name: "trust", Shape: []int{2, heads}}, // in the priors of items and of users
	}
}

// build makes a graph over the shared weights, with gradients if train is set.
func (m *Model) build(train bool) (_ *net, err error) {
	defer func() { // gorgonia.Must panics on a graph that does not type-check
		if p := recover(); p != nil {
			err = fmt.Errorf("build the reward model's graph: %v", p)
		}
	}()
	g := gorgonia.NewGraph()
	var nodes gorgonia.Nodes
	p := make(map[string]*gorgonia.Node, len(m.params))
	for _, t := range m.params {
		v := tensor.New(tensor.WithShape(t.Shape...), tensor.WithBacking(t.Data))
		p[t.Name] = gorgonia.NewTensor(g, tensor.Float32, len(t.Shape), gorgonia.WithShape(t.Shape...), gorgonia.WithName(t.Name), gorgonia.WithValue(v))
		nodes = append(nodes, p[t.Name])
	}
	b := m.batch
	v := ops.EmbedBag(b, p["codes"], func() (ids, starts []int32) { return b.items.ids, b.items.starts }, m.cfg.Rows)
	u := ops.EmbedBag(b, p["codes"], func() (ids, starts []int32) { return b.users.ids, b.users.starts }, m.cfg.Rows)
	dropout := func() (float32, uint64) { return m.dropout.rate, m.dropout.seed }
	// Normalised, or the product of two means of small numbers would be lost beside them.
	v, u = ops.RMSNorm(b, v, p["norm_item"]), ops.RMSNorm(b, u, p["norm_user"])
	v, u = ops.Dropout(b, v, 0, dropout), ops.Dropout(b, u, 1, dropout)
	x := ops.Linear(b, v, p["item"])
	x = ops.Add(b, x, ops.Linear(b, u, p["user"]))
	x = ops.Add(b, x, ops.Linear(b, ops.Mul(b, v, u), p["match"]))
	h := ops.Linear(b, ops.RMSNorm(b, x, p["norm_attn"]), p["qkv"])
	h = ops.Attention(b, h, m.cfg.Heads, false)
	x = ops.Add(b, x, ops.Linear(b, h, p["out"]))
	h = ops.Linear(b, ops.RMSNorm(b, x, p["norm_ff"]), p["up"])
	x = ops.Add(b, x, ops.SwiGLULinear(b, h, p["down"]))
	z := ops.Linear(b, ops.RMSNorm(b, x, p["norm"]), p["heads"])
	z = m.onPriors(z, p["trust"])
	n := &net{logits: z}
	if !train {
		n.machine, err = ops.NewMachine(g, z)
		return n, err
	}
	ones := make([]float32, m.cfg.Rows)
	for i := range ones {
		ones[i] = 1
	}
	weight := gorgonia.NodeFromAny(g, tensor.New(tensor.WithShape(m.cfg.Rows), tensor.WithBacking(ones)), gorgonia.WithName("ones"))
	n.cost = gorgonia.Must(gorgonia.Mul(weight, m.loss(z)))
	gradients, err := gorgonia.Grad(n.cost, nodes...)
	if err != nil {
		return nil, fmt.Errorf("differentiate the reward model's graph: %w", err)
	}
	if n.machine, err = ops.NewMachine(g, append(gorgonia.Nodes{z, n.cost}, gradients...)...); err != nil {
		return nil, fmt.Errorf("build the reward model's graph: %w", err)
	}
	n.params = n.machine.Model(nodes, gradients)
	return n, nil
}

// onPriors adds what is known of items and users without the model, by how far each is trusted.
func (m *Model) onPriors(z, trust *gorgonia.Node) *gorgonia.Node {
	b := m.batch
	return ops.Apply("reward priors", tensor.Shape{m.cfg.Rows, heads}, func(out []float32, v [][]float32) {
		copy(out, v[0])
		for i, p := range b.priors {
			for h := range heads {
				out[i*heads+h] += v[1][h]*p.Item[h] + v[1][heads+h]*p.User[h]
			}
		}
	}, func(_ gorgonia.Nodes, _, dy *gorgonia.Node) gorgonia.Nodes {
		return gorgonia.Nodes{dy, ops.Apply("reward priors dtrust", tensor.Shape{2, heads}, func(dt []float32, g [][]float32) {
			clear(dt)
			for i, p := range b.priors {
				for h := range heads {
					dt[h] += g[0][i*heads+h] * p.Item[h]
					dt[heads+h] += g[0][i*heads+h] * p.User[h]
				}
			}
		}, nil, dy)}
	}, z, trust)
}

// loss is a vector of one loss a row, zero beyond the batch: what the row's view
// adds, and on a list's first row what the list's watch time adds.
func (m *Model) loss(z *gorgonia.Node) *gorgonia.Node {
	b := m.batch
	return ops.Apply("reward loss", tensor.Shape{m.cfg.Rows}, func(out []float32, v [][]float32) {
		clear(out)
		for s := range b.lists() {
			lo, hi := b.bounds[s], b.bounds[s+1]
			for i := lo; i < hi; i++ {
				for h, label := range b.labels[i] {
					out[i] += b.perView * crossEntropy(v[0][i*heads+h], label)
				}
				if b.logView[i] >= 0 {
					diff := watched(v[0], i, i+1) - b.logView[i]
					out[i] += b.perView * diff * diff
				}
			}
			diff := watched(v[0], lo, hi) - b.logWatch[s]
			out[lo] += b.perList * diff * diff
		}
	}, func(v gorgonia.Nodes, _, dy *gorgonia.Node) gorgonia.Nodes {
		return gorgonia.Nodes{ops.Apply("reward loss dz", tensor.Shape{m.cfg.Rows, heads}, func(dz []float32, g [][]float32) {
			dy, z := g[0], g[1]
			for s := range b.lists() {
				lo, hi := b.bounds[s], b.bounds[s+1]
				log := watched(z, lo, hi)
				dWatch := dy[lo] * b.perList * 2 * (log - b.logWatch[s]) * kernels.Exp(-log) // d log(1+w) = dw / (1+w)
				for i := lo; i < hi; i++ {
					row := dz[i*heads : (i+1)*heads]
					for h, label := range b.labels[i] {
						row[h] = dy[i] * b.perView * crossEntropySlope(z[i*heads+h], label)
					}
					d := dWatch
					if b.logView[i] >= 0 {
						log := watched(z, i, i+1)
						d += dy[i] * b.perView * 2 * (log - b.logView[i]) * kernels.Exp(-log)
					}
					row[headWatch] = d * kernels.Sigmoid(z[i*heads+headWatch])
				}
			}
		}, nil, dy, v[0])}
	}, z)
}

// watched is log(1 + sum of softplus of the watch outputs of rows lo to hi).
func watched(z []float32, lo, hi int) float32 {
	var sum float64
	for i := lo; i < hi; i++ {
		sum += softplus(z[i*heads+headWatch])
	}
	return float32(math.Log1p(sum))
}

func softplus(x float32) float64 {
	return max(float64(x), 0) + math.Log1p(math.Exp(-math.Abs(float64(x))))
}

func crossEntropy(z float32, label Label) float32 {
	switch label {
	case Yes:
		return float32(softplus(-z))
	case No:
		return float32(softplus(z))
	}
	return 0
}

func crossEntropySlope(z float32, label Label) float32 {
	switch label {
	case Yes:
		return kernels.Sigmoid(z) - 1
	case No:
		return kernels.Sigmoid(z)
	}
	return 0
}

// bag is a list of bags of code ids; see ops.EmbedBag.
type bag struct{ ids, starts []int32 }

// batch is a set of lists packed one after the other.
type batch struct {
	items, users     bag
	priors           []Priors
	bounds           []int // list s is rows bounds[s] to bounds[s+1]
	labels           [][labels]Label
	logWatch         []float32 // of lists
	logView          []float32 // of views; -1: unknown
	perView, perList float32   // weights that make the loss a mean
}

func (b *batch) Len() int      { return b.bounds[len(b.bounds)-1] }
func (b *batch) Bounds() []int { return b.bounds }
func (b *batch) lists() int    { return len(b.bounds) - 1 }

// load fills the batch with the examples; they must fit.
func (m *Model) load(examples []Example) {
	b := m.batch
	*b = batch{
		items: bag{b.items.ids[:0], append(b.items.starts[:0], 0)}, users: bag{b.users.ids[:0], append(b.users.starts[:0], 0)},
		priors: b.priors[:0],
		bounds: append(b.bounds[:0], 0), labels: b.labels[:0], logWatch: b.logWatch[:0], logView: b.logView[:0],
	}
	var user []int32
	for _, e := range examples {
		user = user[:0]
		for _, id := range e.History {
			user = m.tokens(user, id)
		}
		for _, v := range e.Items {
			b.items.ids = m.tokens(b.items.ids, v.ID)
			if v.Duration > 0 {
				b.items.ids = append(b.items.ids, int32(1+m.levels*m.codes+durationClass(v.Duration)))
			}
			b.items.starts = append(b.items.starts, int32(len(b.items.ids)))
			b.users.ids = append(b.users.ids, user...)
			b.users.starts = append(b.users.starts, int32(len(b.users.ids)))
			b.priors = append(b.priors, v.Priors)
			b.labels = append(b.labels, v.labels())
			log := float32(-1)
			if v.Watch >= 0 {
				log = float32(math.Log1p(float64(v.Watch) / m.scaleMs))
			}
			b.logView = append(b.logView, log)
		}
		b.bounds = append(b.bounds, len(b.labels))
		b.logWatch = append(b.logWatch, float32(math.Log1p(float64(e.WatchMs)/m.scaleMs)))
	}
	b.perView, b.perList = 1/float32(len(b.labels)), 1/float32(len(examples))
}

func (m *Model) tokens(dst []int32, id semanticid.Item) []int32 {
	if id == nil {
		return append(dst, 0)
	}
	for l, code := range id {
		dst = append(dst, int32(1+l*m.codes+int(code)))
	}
	return dst
}

// durations is the number of classes of videos' durations.
const durations = 16

// durationClass tells durations apart by a factor of the square root of 2, from 2 s to 6 minutes.
func durationClass(ms int64) int {
	return min(max(int(2*math.Log2(float64(ms)/2000)), 0), durations-1)
}

// split calls fn with runs of examples that fit a batch. A list longer than a
// batch is cut.
func (m *Model) split(examples []Example, fn func(lo int, part []Example) error) error {
	for lo := 0; lo < len(examples); {
		rows, hi := 0, lo
		for hi < len(examples) {
			if n := len(examples[hi].Items); n > m.cfg.Rows {
				examples[hi].Items = examples[hi].Items[:m.cfg.Rows]
			}
			if rows += len(examples[hi].Items); rows > m.cfg.Rows {
				break
			}
			hi++
		}
		if err := fn(lo, examples[lo:hi]); err != nil {
			return err
		}
		lo = hi
	}
	return nil
}

func (m *Model) run(n *net, part []Example) error {
	m.load(part)
	if err := n.machine.Run(); err != nil {
		return fmt.Errorf("run the reward model's graph: %w", err)
	}
	return nil
}

// Train makes one pass over the examples in an order drawn from rng and returns
// the mean loss of its batches. Examples without items are not allowed.
func (m *Model) Train(examples []Example, rng *rand.Rand) (float64, error) {
	shuffled := make([]Example, len(examples))
	for i, j := range rng.Perm(len(examples)) {
		shuffled[i] = examples[j]
	}
	var sum float64
	steps := 0
	err := m.split(shuffled, func(_ int, part []Example) error {
		m.dropout.rate, m.dropout.seed = float32(m.cfg.Dropout), rng.Uint64()
		err := m.run(m.train, part)
		m.dropout.rate = 0
		if err != nil {
			return err
		}
		loss, ok := m.train.machine.Value(m.train.cost).Data().(float32)
		if !ok || loss != loss {
			return fmt.Errorf("train reward model: the loss is %v", m.train.machine.Value(m.train.cost))
		}
		sum += float64(loss)
		steps++
		return m.solver.Step(m.train.params)
	})
	return sum / float64(max(steps, 1)), err
}

// Prediction is what a user will make of a list.
type Prediction struct {
	Like       []float64 // probability, by view
	Completion []float64 // probability, by view
	Dislike    []float64 // probability, by view
	Watch      []float64 // ms, by view
	WatchMs    float64   // of the whole list
}

// Predict returns a prediction for each example.
func (m *Model) Predict(examples []Example) ([]Prediction, error) {
	out := make([]Prediction, len(examples))
	err := m.split(examples, func(lo int, part []Example) error {
		if err := m.run(m.infer, part); err != nil {
			return err
		}
		z, ok := m.infer.machine.Value(m.infer.logits).Data().([]float32)
		if !ok {
			return errors.New("predict: the reward model has no outputs")
		}
		for s := range part {
			p := &out[lo+s]
			for i := m.batch.bounds[s]; i < m.batch.bounds[s+1]; i++ {
				p.Like = append(p.Like, float64(kernels.Sigmoid(z[i*heads+headLike])))
				p.Completion = append(p.Completion, float64(kernels.Sigmoid(z[i*heads+headCompletion])))
				p.Dislike = append(p.Dislike, float64(kernels.Sigmoid(z[i*heads+headDislike])))
				p.Watch = append(p.Watch, m.scaleMs*softplus(z[i*heads+headWatch]))
				p.WatchMs += p.Watch[len(p.Watch)-1]
			}
		}
		return nil
	})
	return out, err
}
