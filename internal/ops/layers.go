package ops

import (
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"onerec/internal/kernels"
)

// Rows is what layers need to know of a batch: how many rows of the activations
// are in use, and where sequences begin.
type Rows interface {
	Len() int      // rows in use
	Bounds() []int // sequence s is rows Bounds[s] to Bounds[s+1]
}

func cols(n *gorgonia.Node) int { return n.Shape()[1] }

func matrix(rows, cols int) tensor.Shape { return tensor.Shape{rows, cols} }

// Linear is x W' for x (rows x in) and W (out x in), as in PyTorch.
func Linear(b Rows, x, w *gorgonia.Node) *gorgonia.Node {
	in, out := cols(x), w.Shape()[0]
	capacity := x.Shape()[0]
	return Apply("linear", matrix(capacity, out), func(y []float32, v [][]float32) {
		kernels.Gemm(false, true, b.Len(), out, in, 1, v[0], in, v[1], in, 0, y, out)
	}, func(v gorgonia.Nodes, _, dy *gorgonia.Node) gorgonia.Nodes {
		dx := Apply("linear dx", matrix(capacity, in), func(dx []float32, g [][]float32) {
			kernels.Gemm(false, false, b.Len(), in, out, 1, g[0], out, g[1], in, 0, dx, in)
		}, nil, dy, v[1])
		dw := Apply("linear dw", matrix(out, in), func(dw []float32, g [][]float32) {
			kernels.Gemm(true, false, out, in, b.Len(), 1, g[0], out, g[1], in, 0, dw, in)
		}, nil, dy, recomputed(v[0]))
		return gorgonia.Nodes{dx, dw}
	}, x, w)
}

// RMSNorm normalises each row of x (rows x d) and scales by gain (d).
func RMSNorm(b Rows, x, gain *gorgonia.Node) *gorgonia.Node {
	capacity, d := x.Shape()[0], cols(x)
	rstd := make([]float32, capacity)
	return light(Apply("rmsnorm", matrix(capacity, d), func(y []float32, v [][]float32) {
		kernels.RMSNorm(y, rstd, v[0], v[1], b.Len(), d)
	}, func(v gorgonia.Nodes, _, dy *gorgonia.Node) gorgonia.Nodes {
		// One kernel gives both gradients; the second node reads what the first
		// one's run left.
		dgain := make([]float32, d)
		dx := overlay(Apply("rmsnorm dx", matrix(capacity, d), func(dx []float32, g [][]float32) {
			clear(dgain)
			kernels.RMSNormBackward(dx, dgain, g[0], g[1], g[2], rstd, b.Len(), d)
		}, nil, dy, v[0], v[1]), 0)
		dg := Apply("rmsnorm dgain", tensor.Shape{d}, func(out []float32, _ [][]float32) { copy(out, dgain) }, nil, dx)
		return gorgonia.Nodes{dx, dg}
	}, x, gain))
}

// SwiGLULinear is SwiGLU(u) W' for u (rows x 2f) and W (out x f). The two are one so that what is
// between them is there for a few rows at a time on the way forward, and computed again beside u's gradient on the
// way back.
func SwiGLULinear(b Rows, u, w *gorgonia.Node) *gorgonia.Node {
	capacity, f, d := u.Shape()[0], cols(u)/2, w.Shape()[0]
	return Apply("swiglu linear", matrix(capacity, d), func(y []float32, v [][]float32) {
		kernels.SwiGLULinear(y, v[0], v[1], b.Len(), f, d)
	}, func(v gorgonia.Nodes, _, dy *gorgonia.Node) gorgonia.Nodes {
		var h *[]float32 // SwiGLU(u), from du's run to that of dw, which reads du to come after it
		const over = 1
		du := overlay(Apply("swiglu linear du", matrix(capacity, 2*f), func(du []float32, g [][]float32) {
			h = kernels.Take(b.Len() * f)
			kernels.SwiGLULinearBackward(du, *h, g[0], g[over], g[2], b.Len(), f, d)
		}, nil, dy, v[0], v[1]), over)
		dw := Apply("swiglu linear dw", matrix(d, f), func(dw []float32, g [][]float32) {
			kernels.Gemm(true, false, d, f, b.Len(), 1, g[0], d, *h, f, 0, dw, f)
			kernels.Put(h)
			h = nil // or it would be kept, whoever has it next
		}, nil, dy, du)
		return gorgonia.Nodes{du, dw}
	}, u, w)
}

// AddDropout is x + dropout(y); p and the seed are read at each run, and the
// place in the model gives each layer its own mask.
func AddDropout(b Rows, x, y *gorgonia.Node, place int, p func() (rate float32, seed uint64)) *gorgonia.Node {
	capacity, d := x.Shape()[0], cols(x)
	salt := uint64(place) << 40
	const residual, part = 0, 1
	return overlay(Apply("add", matrix(capacity, d), func(out []float32, v [][]float32) {
		rate, seed := p()
		n := b.Len() * d
		kernels.AddDropout(out[:n], v[residual][:n], v[part][:n], rate, seed+salt)
	}, func(_ gorgonia.Nodes, _, grad *gorgonia.Node) gorgonia.Nodes {
		none := func() bool { rate, _ := p(); return rate == 0 }
		return gorgonia.Nodes{grad, passing(dropout(b, "add dy", grad, salt, p, nil), none)}
	}, x, y), part)
}

// Dropout is dropout(x); see AddDropout.
func Dropout(b Rows, x *gorgonia.Node, place int, p func() (rate float32, seed uint64)) *gorgonia.Node {
	salt := uint64(place) << 40
	return dropout(b, "dropout", x, salt, p, func(_ gorgonia.Nodes, _, dy *gorgonia.Node) gorgonia.Nodes {
		return gorgonia.Nodes{dropout(b, "dropout dx", dy, salt, p, nil)}
	})
}

func dropout(b Rows, name string, x *gorgonia.Node, salt uint64, p func() (rate float32, seed uint64), diff Derivative) *gorgonia.Node {
	capacity, d := x.Shape()[0], cols(x)
	return overlay(Apply(name, matrix(capacity, d), func(out []float32, v [][]float32) {
		rate, seed := p()
		n := b.Len() * d
		kernels.Dropout(out[:n], v[0][:n], rate, seed+salt)
	}, diff, x), 0)
}

// Rotate turns queries and keys, two thirds of each row of qkv (rows x 3d), by the angles of position pos(row).
func Rotate(b Rows, qkv *gorgonia.Node, rotary *kernels.Rotary, pos func(row int) int) *gorgonia.Node {
	capacity, width := qkv.Shape()[0], cols(qkv)
	turn := func(name string, x *gorgonia.Node, back bool, diff Derivative) *gorgonia.Node {
		return overlay(Apply(name, matrix(capacity, width), func(y []float32, v [][]float32) {
			const grain = 64
			x, n := v[0], b.Len()
			kernels.Parallel((n+grain-1)/grain, func(c int) {
				for i := c * grain; i < min(n, (c+1)*grain); i++ {
					row := y[i*width : (i+1)*width]
					if !same(y, x) {
						copy(row, x[i*width:])
					}
					rotary.Turn(row[:width/3*2], pos(i), back)
				}
			})
		}, diff, x), 0)
	}
	return turn("rotate", qkv, false, func(_ gorgonia.Nodes, _, dy *gorgonia.Node) gorgonia.Nodes {
		return gorgonia.Nodes{turn("rotate dqkv", dy, true, nil)}
	})
}

// Attention maps queries, keys and values (rows x 3d) to rows x d, each sequence by itself.
func Attention(b Rows, qkv *gorgonia.Node, heads int, causal bool) *gorgonia.Node {
	capacity, d := qkv.Shape()[0], cols(qkv)/3
	lse := make([]float32, capacity*heads)
	return Apply("attention", matrix(capacity, d), func(out []float32, v [][]float32) {
		kernels.Attention(out, lse, v[0], b.Bounds(), d, heads, causal)
	}, func(v gorgonia.Nodes, out, dy *gorgonia.Node) gorgonia.Nodes {
		const over = 2 // the head's queries, keys and values are read before their gradients are written
		return gorgonia.Nodes{overlay(Apply("attention dqkv", matrix(capacity, 3*d), func(dqkv []float32, g [][]float32) {
			kernels.AttentionBackward(dqkv, g[0], g[1], lse, g[over], b.Bounds(), d, heads, causal)
		}, nil, dy, out, v[0]), over)}
	}, qkv)
}

// Gather gives, for each row that the batch lists, that row of x (n x d), at most capacity: embeddings of tokens, say. The
// gradients of those that are listed several times add up.
func Gather(x *gorgonia.Node, list func() []int32, capacity int) *gorgonia.Node {
	n, d := x.Shape()[0], cols(x)
	return Apply("gather", matrix(capacity, d), func(out []float32, v [][]float32) {
		for i, row := range list() {
			copy(out[i*d:(i+1)*d], v[0][int(row)*d:])
		}
	}, func(_ gorgonia.Nodes, _, dy *gorgonia.Node) gorgonia.Nodes {
		return gorgonia.Nodes{Apply("gather dx", matrix(n, d), func(dx []float32, g [][]float32) {
			clear(dx)
			for i, row := range list() {
				kernels.Add(dx[int(row)*d:(int(row)+1)*d], g[0][i*d:(i+1)*d])
			}
		}, nil, dy)}
	}, x)
}

// LogProbs gives, for prediction i, log softmax(h[i] table')[target[i]], as a vector as long as h has rows, zero beyond
// the predictions of the batch.
func LogProbs(h, table *gorgonia.Node, targets func() []int32) *gorgonia.Node {
	rows, d, vocab := h.Shape()[0], cols(h), table.Shape()[0]
	var probs []float32 // of the last run: what the gradient need not compute again
	differentiated := false
	return Apply("logprobs", tensor.Shape{rows}, func(out []float32, v [][]float32) {
		target := targets()
		clear(out[len(target):])
		if n := kernels.KeptRows(len(target), vocab) * vocab; differentiated && cap(probs) < n {
			probs = make([]float32, n)
		} else if differentiated {
			probs = probs[:n]
		}
		kernels.LogProbs(out, v[0], target, v[1], vocab, d, probs)
	}, func(v gorgonia.Nodes, _, grad *gorgonia.Node) gorgonia.Nodes {
		differentiated = true
		// One kernel gives both gradients; the second node reads what the first one's run left.
		dh := make([]float32, rows*d)
		dt := Apply("logprobs dtable", matrix(vocab, d), func(dtable []float32, g [][]float32) {
			clear(dtable)
			kernels.LogProbsBackward(dh, dtable, g[0], g[1], targets(), g[2], vocab, d, probs)
		}, nil, grad, v[0], v[1])
		return gorgonia.Nodes{Apply("logprobs dh", matrix(rows, d), func(out []float32, _ [][]float32) { copy(out, dh[:len(targets())*d]) }, nil, dt), dt}
	}, h, table)
}

// EmbedBag gives, for row i, the mean of the rows of table (n x d) that bag i
// lists; an empty bag gives zeros. Bag i is ids[starts[i]:starts[i+1]].
func EmbedBag(b Rows, table *gorgonia.Node, bags func() (ids, starts []int32), capacity int) *gorgonia.Node {
	n, d := table.Shape()[0], cols(table)
	each := func(fn func(i int, bag []int32, weight float32)) {
		ids, starts := bags()
		for i := range b.Len() {
			if bag := ids[starts[i]:starts[i+1]]; len(bag) > 0 {
				fn(i, bag, 1/float32(len(bag)))
			}
		}
	}
	return Apply("embedbag", matrix(capacity, d), func(out []float32, v [][]float32) {
		clear(out[:b.Len()*d])
		each(func(i int, bag []int32, weight float32) {
			row := out[i*d : (i+1)*d]
			for _, id := range bag {
				kernels.Add(row, v[0][int(id)*d:(int(id)+1)*d])
			}
			for j := range row {
				row[j] *= weight
			}
		})
	}, func(_ gorgonia.Nodes, _, dy *gorgonia.Node) gorgonia.Nodes {
		scaled := make([]float32, d)
		return gorgonia.Nodes{Apply("embedbag dtable", matrix(n, d), func(dt []float32, g [][]float32) {
			clear(dt)
			each(func(i int, bag []int32, weight float32) {
				for j, v := range g[0][i*d : (i+1)*d] {
					scaled[j] = v * weight
				}
				for _, id := range bag {
					kernels.Add(dt[int(id)*d:(int(id)+1)*d], scaled)
				}
			})
		}, nil, dy)}
	}, table)
}

// Mul multiplies x and y, both rows x d, element by element.
func Mul(b Rows, x, y *gorgonia.Node) *gorgonia.Node {
	capacity, d := x.Shape()[0], cols(x)
	product := func(name string, x, y *gorgonia.Node, diff Derivative) *gorgonia.Node {
		return Apply(name, matrix(capacity, d), func(out []float32, v [][]float32) {
			out, a := out[:b.Len()*d], v[0]
			for i, w := range v[1][:len(out)] {
				out[i] = a[i] * w
			}
		}, diff, x, y)
	}
	return product("mul", x, y, func(v gorgonia.Nodes, _, dy *gorgonia.Node) gorgonia.Nodes {
		return gorgonia.Nodes{product("mul dx", dy, v[1], nil), product("mul dy", dy, v[0], nil)}
	})
}

// Add is x + y, both rows x d.
func Add(b Rows, x, y *gorgonia.Node) *gorgonia.Node {
	return AddDropout(b, x, y, 0, func() (float32, uint64) { return 0, 0 })
}
