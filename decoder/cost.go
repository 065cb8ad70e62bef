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
	Activations int64 // of a batch, with their gradients
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
	d, f := int64(c.Dim), int64(c.Hidden)
	// Of a layer: two norms, three times the queries, keys and values, what attention and
	// the projections give, the feed-forward part; the gradients are as much again. Of
	// gradients of weights there are two copies: the operation's and the sum.
	floats := int64(tokens) * (int64(c.Layers)*(24*d+6*f) + 6*d)
	floats += kernels.LogitRows * (int64(c.Vocab()) + d)
	return Memory{Weights: 2 * 4 * weights, Optimizer: 4 * 4 * weights, Activations: 4 * floats}
}
