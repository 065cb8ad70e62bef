package decoder

import "onerec/internal/kernels"

// FLOPs is what a training step over so many tokens takes in products of matrices: 6 for
// each weight and token (Kaplan et al., arXiv 2001.08361, table 1), of experts for those that
// a token goes to, and those of causal attention over rows of MaxLen at most. All codes are predicted, and what else
// comes out of the last layer, but for keys and values, is not computed. What the first layer computes once for a token
// that is in several places counts for each.
func (c Config) FLOPs(tokens int) float64 {
	attending, rest := 3*c.Dim*c.Dim, c.Dim*c.Dim+3*c.Dim*c.hidden()+c.Experts*c.Dim
	weights := c.Layers*attending + (c.Layers-1)*rest + (rest+c.Vocab()*c.Dim)*c.Levels/c.stride()
	attention := c.Layers * c.Dim * c.MaxLen // two products over half a square of positions
	return 6 * float64(tokens) * float64(weights+attention)
}

// hidden is how wide the feed-forward part is that a token goes through.
func (c Config) hidden() int { return max(1, c.Active) * c.Hidden }

// Memory is what training takes, in bytes.
type Memory struct {
	Weights     int64 // as trained, and their average
	Optimizer   int64 // moments
	Activations int64 // of a batch, the softmax of its logits, and gradients, most of which lie where activations were
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
	return Memory{Weights: 2 * 4 * weights, Optimizer: 2 * 4 * weights, Activations: n * (4*(c.planned(in)+c.beside(in)) + c.keptLogits(in)), Scratch: n * c.scratch(in)}
}

// ofLayer is how many floats a lane keeps of so many tokens in a layer, for its gradient, of which some go through the
// feed-forward part: both sums, the rotated queries, keys and values, what attention gives, the gates of experts, and what goes into SwiGLU;
// the rest is computed again.
func (c Config) ofLayer(tokens, some int) int64 {
	d, f := int64(c.Dim), int64(c.hidden())
	return int64(tokens)*4*d + int64(some)*(2*d+2*f+int64(c.Experts))
}

// activations is how many floats a lane keeps of so many tokens, and the gradients of a sum, if all go through everything.
func (c Config) activations(tokens int) int64 {
	d, vocab := int64(c.Dim), int64(c.Vocab())
	// The embedding has two gradients, as output and, when all that is gone, as input.
	return max(int64(c.Layers)*c.ofLayer(tokens, tokens)+int64(tokens)*2*d, vocab*d)
}

// planned is how many floats a lane takes for activations and gradients, which lie where those of layers were that went
// back already. Most are in use where the feed-forward part of a layer goes back, the last, the one before it or the first, as the weights or
// the tokens are more, or where the embedding has its second gradient.
func (c Config) planned(tokens int) int64 {
	d, last, predictions := int64(c.Dim), c.Layers-1, c.predictions(tokens)
	embedding, sum := int64(c.Vocab())*d, int64(tokens)*d
	feed := int64(max(1, c.Experts)) * 3 * d * int64(c.Hidden)
	weights := feed + 4*d*d + int64(c.Experts)*d
	most := int64(last+1)*weights + embedding // at the end
	for _, l := range []int{last, last - 1, 0} {
		if l < 0 {
			continue
		}
		some, kept := tokens, int64(l+1)*c.ofLayer(tokens, tokens)
		if l == last {
			some = predictions
			kept += c.ofLayer(tokens, some) + int64(some)*d - c.ofLayer(tokens, tokens) // and what was picked of attention's
		}
		gates, sums := int64(some*c.Experts), 2*int64(some)*d
		most = max(most, kept+int64(last-l)*weights+feed+gates+sums)
	}
	return embedding + sum + most
}

// beside is how many more floats a lane keeps: of norms and softmax, the gradient at what logits are made of, and routes.
func (c Config) beside(tokens int) int64 {
	each := c.Layers * (2 + c.Heads + 5*c.Active)
	return int64(tokens)*int64(each) + int64(c.predictions(tokens)*c.Dim)
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
	return 4 * int64(kernels.KeptRows(c.predictions(tokens), c.Vocab())*c.Vocab())
}

// scratch is what the kernels take, in bytes: logits, what SwiGLU gives, what goes to experts and comes from them, and
// matrices laid out for products.
func (c Config) scratch(tokens int) int64 {
	d, f, vocab := int64(c.Dim), int64(c.hidden()), int64(c.Vocab())
	routed := int64(tokens*c.Active)*2*d + int64(c.Experts)*2*int64(c.Hidden)*d
	return 4 * (kernels.LogitRows*(vocab+d) + max(vocab*d, int64(tokens)*2*f) + int64(tokens)*f + routed)
}

// ScorerMemory returns what a scorer of batches of at most so many tokens takes, in bytes, beside
// the weights: of a layer at a time, two sums and what goes into SwiGLU, and the gates of
// experts with a gap of their size, or queries, keys and values of distinct tokens and of all; of all layers, the norms of both sums
// and of softmax, and routes.
func (c Config) ScorerMemory(tokens int) int64 {
	d, f := int64(c.Dim), int64(c.hidden())
	all := int64(c.Layers) * int64(2+c.Heads+4*c.Active)
	return 4*int64(tokens)*(max(2*d+2*f+2*int64(c.Experts), 7*d)+all) + c.scratch(tokens)
}
