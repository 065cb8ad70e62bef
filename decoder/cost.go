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
	Activations int64 // of a batch, and the gradients of a layer
}

// Total is the sum.
func (m Memory) Total() int64 { return m.Weights + m.Optimizer + m.Activations }

// Memory returns what training takes with batches of at most so many tokens.
func (c Config) Memory(tokens int) Memory {
	var weights int64
	for _, t := range c.layout() {
		n := int64(1)
		for _, d := range t.Shape {
			n *= int64(d)
		}
		weights += n
	}
	d, f, vocab := int64(c.Dim), int64(c.Hidden), int64(c.Vocab())
	// Of a layer stays, for its gradient: both norms and both sums, the turned queries, keys and
	// values, what attention gives, and the feed-forward part. The gradients of one layer are
	// there at a time, and what the products lay out. The embedding has two gradients, as input
	// and as output, and one that is being summed.
	floats := int64(tokens) * (int64(c.Layers)*(8*d+3*f) + 7*d + 5*f)
	floats += kernels.LogitRows * (vocab + d)
	return Memory{Weights: 2 * 4 * weights, Optimizer: 4 * (3*weights + 2*vocab*d), Activations: 4 * floats}
}

// ScorerMemory returns what a scorer of batches of at most so many tokens takes, in bytes, beside
// the weights: the turned queries, keys and values of each layer, and the rest of one.
func (c Config) ScorerMemory(tokens int) int64 {
	d, f := int64(c.Dim), int64(c.Hidden)
	return 4 * (int64(tokens)*(int64(c.Layers)*3*d+3*d+3*f) + kernels.LogitRows*(int64(c.Vocab())+d))
}
