package decoder

import "onerec/internal/kernels"

// FLOPs is what a training step over so many tokens takes in products of matrices: 6 for
// each weight and token (Kaplan et al., arXiv 2001.08361, table 1), and those of causal
// attention over rows of MaxLen at most.
func (c Config) FLOPs(tokens int) float64 {
	weights := c.Layers*(4*c.Dim*c.Dim+3*c.Dim*c.Hidden) + c.Vocab()*c.Dim*c.Levels/c.stride()
	attention := c.Layers * c.Dim * c.MaxLen // two products over half a square of positions
	return 6 * float64(tokens) * float64(weights+attention)
}

// Memory is what training takes, in bytes.
type Memory struct {
	Weights     int64 // as trained, and their average
	Optimizer   int64 // gradients and moments
	Activations int64 // of a batch, the softmax of its logits, and the gradients of a layer
	Scratch     int64 // what the kernels lay out meanwhile
}

// Total is the sum.
func (m Memory) Total() int64 { return m.Weights + m.Optimizer + m.Activations + m.Scratch }

// count is the number of weights.
func (c Config) count() (weights int64) {
	for _, t := range c.layout() {
		n := int64(1)
		for _, d := range t.Shape {
			n *= int64(d)
		}
		weights += n
	}
	return weights
}

// Memory returns what training takes with batches of at most so many tokens.
func (c Config) Memory(tokens int) Memory {
	weights := c.count()
	lanes := c.lanes(tokens)
	n, in := int64(lanes), c.laneTokens(tokens, lanes)
	return Memory{Weights: 2 * 4 * weights, Optimizer: (2 + n) * 4 * weights, Activations: n * (4*c.activations(in) + c.keptLogits(in)), Scratch: n * c.scratch(in)}
}

// activations is how many floats a lane keeps of so many tokens.
func (c Config) activations(tokens int) int64 {
	d, f, vocab := int64(c.Dim), int64(c.Hidden), int64(c.Vocab())
	// Of a layer stays, for its gradient: both sums, the rotated queries, keys and values, what
	// attention gives, and what goes into SwiGLU; the rest is computed again. Gradients lie where that
	// was, but for those of the sums. The embedding has two gradients, as output and, when all
	// that is gone, as input.
	return max(int64(tokens)*(int64(c.Layers)*(6*d+2*f)+2*d), vocab*d)
}

// lanes is in how many parts a batch of so many tokens goes through the model: two, unless their own
// gradients would take more than half of what activations take, or rows are so long that there are few.
func (c Config) lanes(tokens int) int {
	const most, rows = 2, 4
	if most*c.count() > c.activations(tokens) || rows*c.MaxLen > tokens {
		return 1
	}
	return 2
}

// laneTokens is how many tokens a lane has at most: half, and half of a row.
func (c Config) laneTokens(tokens, lanes int) int {
	if lanes == 1 {
		return tokens
	}
	return (tokens + c.MaxLen + 1) / 2
}

// keptLogits is what the gradient need not compute again, in bytes.
func (c Config) keptLogits(tokens int) int64 {
	predictions := (tokens*c.Levels + c.stride() - 1) / c.stride()
	return 4 * int64(kernels.KeptRows(predictions, c.Vocab())*c.Vocab())
}

// scratch is what the kernels take, in bytes: logits, what SwiGLU gives, and matrices laid out for
// products.
func (c Config) scratch(tokens int) int64 {
	d, f, vocab := int64(c.Dim), int64(c.Hidden), int64(c.Vocab())
	return 4 * (kernels.LogitRows*(vocab+d) + max(vocab*d, int64(tokens)*2*f) + int64(tokens)*f)
}

// ScorerMemory returns what a scorer of batches of at most so many tokens takes, in bytes, beside
// the weights: of a layer at a time, two sums and what goes into SwiGLU, or what goes into attention and what it gives;
// of all, the norms of both sums and of softmax.
func (c Config) ScorerMemory(tokens int) int64 {
	d, f := int64(c.Dim), int64(c.Hidden)
	norms := int64(c.Layers) * int64(2+c.Heads)
	return 4*int64(tokens)*(max(2*d+2*f, 5*d)+norms) + c.scratch(tokens)
}
