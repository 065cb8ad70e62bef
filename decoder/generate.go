package decoder

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"onerec/internal/kernels"
	"onerec/semanticid"
)

// Generator writes items with a decoder. Every code it writes continues some ID
// of the trie, so that it only ever produces real items, and no list holds an
// item twice. It is safe for concurrent use; the weights must not change
// meanwhile.
type Generator struct {
	w      *Weights
	trie   *semanticid.Trie
	ids    func(item int32) Item
	rotary *kernels.Rotary
}

// NewGenerator returns a generator for the items that the codebook holds now.
func NewGenerator(w *Weights, cb *semanticid.Codebook) (*Generator, error) {
	c := w.Config
	if cb.Levels() != c.Levels || cb.Codes() != c.Codes {
		return nil, fmt.Errorf("the decoder speaks %d levels of %d codes, the codebook %d of %d", c.Levels, c.Codes, cb.Levels(), cb.Codes())
	}
	return &Generator{w: w, trie: semanticid.NewTrie(cb), ids: cb.ID, rotary: kernels.NewRotary(c.Dim/c.Heads, c.MaxLen)}, nil
}

// List is a generated session.
type List struct {
	Items   []int32 // indexes in the codebook
	LogProb float64 // sum of the log probabilities of all codes, over the whole vocabulary
	// Score is the same over the codes that were allowed at each step: the log
	// probability of drawing the list at temperature 1. What is left of the
	// vocabulary says nothing about which item is better, so beams are ranked by it.
	Score float64
}

// Options of a generation.
type Options struct {
	History []Item         // oldest first; the oldest are left out if it is too long
	Session []Item         // items that the session begins with
	Exclude map[int32]bool // items that must not be written
	Length  int            // items to write
	Width   int            // lists: beams, or samples
	// Temperature above 0 samples each code with p^(1/T) among those allowed;
	// with 0 it is a beam search.
	Temperature float64
	Rand        *rand.Rand // for sampling
}

// beam is a list under construction.
type beam struct {
	items   []int32
	paths   [][]int32 // trie nodes of each item
	node    int32     // in the trie, at the level before the current one
	logProb float64   // over the whole vocabulary
	score   float64   // over the codes that were allowed
}

// Generate returns at most Width lists: the best first in a beam search, in the
// order of drawing when sampling. It returns fewer, or shorter ones, only when
// the trie holds too few items.
func (g *Generator) Generate(o Options) ([]List, error) {
	c := g.w.Config
	reserve := len(o.Session) + o.Length
	if reserve > c.MaxItems() {
		return nil, fmt.Errorf("generate: %d items do not fit rows of %d tokens", reserve, c.MaxLen)
	}
	if o.Width < 1 || o.Length < 1 {
		return nil, fmt.Errorf("generate: width %d and length %d must be at least 1", o.Width, o.Length)
	}
	row := c.Fit(Row{History: o.History, Session: append(slices.Clone(o.Session), make([]Item, o.Length)...)})
	b := NewBatch(0)
	if err := b.Add(c, Row{History: row.History, Session: o.Session}); err != nil {
		return nil, err
	}
	tokens := b.tokens
	if len(o.Session) > 0 {
		tokens = append(tokens, tokenSEP)
	}
	excluded := g.countExcluded(o.Exclude)
	past, hidden := g.prefill(tokens)

	beams := []beam{{}}
	if o.Temperature > 0 {
		beams = make([]beam, o.Width) // all the same, until the first draw
	}
	st := newSuffix(c, past, o.Width, o.Length*(c.Levels+1))
	h := make([]float32, 0, o.Width*c.Dim)
	for range beams {
		h = append(h, hidden...)
	}
	var done []List
	for step := range o.Length {
		for level := range c.Levels {
			var parents []int
			beams, parents = g.extend(beams, h, level, excluded, o)
			if len(beams) == 0 {
				return finish(done, o), nil
			}
			if step == 0 && level == 0 { // nothing to reorder yet
				st.beams = len(beams)
			} else {
				st.reorder(parents)
			}
			if level < c.Levels-1 || step < o.Length-1 {
				h = g.step(st, func(i int) int32 { return c.token(level, g.trie.Code(level, beams[i].node)) })
			}
		}
		done = done[:0]
		for i := range beams {
			bm := &beams[i]
			item := g.trie.Item(bm.node)
			path, _ := g.trie.Path(g.ids(item))
			bm.items = append(slices.Clip(bm.items), item)
			bm.paths = append(slices.Clip(bm.paths), path)
			done = append(done, List{bm.items, bm.logProb, bm.score})
		}
		if step < o.Length-1 {
			h = g.step(st, func(int) int32 { return tokenSEP })
		}
	}
	return finish(done, o), nil
}

func finish(done []List, o Options) []List {
	if o.Temperature == 0 {
		slices.SortStableFunc(done, func(a, b List) int { return cmp.Compare(b.Score, a.Score) })
	}
	return done
}

// countExcluded returns for each level how many excluded items each node has.
func (g *Generator) countExcluded(exclude map[int32]bool) []map[int32]int32 {
	counts := make([]map[int32]int32, g.trie.Levels())
	for l := range counts {
		counts[l] = make(map[int32]int32)
	}
	for item := range exclude {
		path, ok := g.trie.Path(g.ids(item))
		for l := 0; ok && l < len(path); l++ {
			counts[l][path[l]]++
		}
	}
	return counts
}

// extend chooses the next code of each beam. It returns the new beams and which
// old one each continues.
func (g *Generator) extend(beams []beam, hidden []float32, level int, excluded []map[int32]int32, o Options) ([]beam, []int) {
	c := g.w.Config
	n, vocab := len(beams), c.Vocab()
	logits := make([]float32, n*vocab)
	kernels.Gemm(false, true, n, vocab, c.Dim, 1, hidden, c.Dim, g.w.embed(), c.Dim, 0, logits, vocab)
	type choice struct {
		parent         int
		node           int32
		logProb, score float64
	}
	var choices []choice
	var weights []float64
	for i := range beams {
		row := logits[i*vocab : (i+1)*vocab]
		norm := logSumExp(row)
		from, allowed := len(choices), 0.0
		for node := range g.children(level, beams[i].node) {
			free := g.trie.Under(level, node) - excluded[level][node]
			for _, p := range beams[i].paths {
				if p[level] == node {
					free--
				}
			}
			if free > 0 {
				lp := float64(row[c.token(level, g.trie.Code(level, node))]) - norm
				choices = append(choices, choice{i, node, lp, lp})
				allowed += math.Exp(lp)
			}
		}
		for j := from; j < len(choices); j++ {
			choices[j].score -= math.Log(allowed)
		}
		if o.Temperature > 0 { // draw one for this beam
			mine := choices[from:]
			if len(mine) == 0 {
				continue
			}
			weights = weights[:0]
			top := math.Inf(-1)
			for _, ch := range mine {
				top = max(top, ch.logProb)
			}
			var sum float64
			for _, ch := range mine {
				w := math.Exp((ch.logProb - top) / o.Temperature)
				sum += w
				weights = append(weights, w)
			}
			at, pick := o.Rand.Float64()*sum, len(mine)-1
			for j, w := range weights {
				if at -= w; at < 0 {
					pick = j
					break
				}
			}
			choices = append(choices[:from], mine[pick])
		}
	}
	if o.Temperature == 0 {
		slices.SortStableFunc(choices, func(a, b choice) int {
			return cmp.Compare(beams[b.parent].score+b.score, beams[a.parent].score+a.score)
		})
		choices = choices[:min(len(choices), o.Width)]
	}
	next, parents := make([]beam, len(choices)), make([]int, len(choices))
	for i, ch := range choices {
		next[i] = beams[ch.parent]
		next[i].node = ch.node
		next[i].logProb += ch.logProb
		next[i].score += ch.score
		parents[i] = ch.parent
	}
	return next, parents
}

// children yields the nodes of a level below node, a node of the level before.
func (g *Generator) children(level int, node int32) func(yield func(int32) bool) {
	lo, hi := g.trie.Roots()
	if level > 0 {
		lo, hi = g.trie.Children(level-1, node)
	}
	return func(yield func(int32) bool) {
		for i := lo; i < hi; i++ {
			if !yield(i) {
				return
			}
		}
	}
}

func logSumExp(x []float32) float64 {
	top := x[0]
	for _, v := range x {
		top = max(top, v)
	}
	var sum float32
	for _, v := range x {
		sum += kernels.Exp(v - top)
	}
	return float64(top) + math.Log(float64(sum))
}

// prefix is the KV cache of the tokens that all beams share.
type prefix struct {
	n  int
	kv [][]float32 // by layer: n x 2d, turned keys and values
}

// prefill runs tokens through the model at once. It returns their cache and the
// last one's hidden state.
func (g *Generator) prefill(tokens []int32) (*prefix, []float32) {
	c, n := g.w.Config, len(tokens)
	d, f := c.Dim, c.Hidden
	x, h, qkv := make([]float32, n*d), make([]float32, n*d), make([]float32, n*3*d)
	up, act := make([]float32, n*2*f), make([]float32, n*f)
	rstd := make([]float32, n)
	for i, t := range tokens {
		copy(x[i*d:(i+1)*d], g.w.embed()[int(t)*d:])
	}
	p := &prefix{n: n}
	for l := range c.Layers {
		w := g.w.layer(l)
		kernels.RMSNorm(h, rstd, x, w.normAttn, n, d)
		kernels.Gemm(false, true, n, 3*d, d, 1, h, d, w.qkv, d, 0, qkv, 3*d)
		kv := make([]float32, n*2*d)
		for i := range n {
			g.rotary.Turn(qkv[i*3*d:i*3*d+2*d], i, false)
			copy(kv[i*2*d:(i+1)*2*d], qkv[i*3*d+d:])
		}
		p.kv = append(p.kv, kv)
		kernels.Attention(h, qkv, []int{0, n}, d, c.Heads, true)
		g.finishLayer(w, x, h, up, act, rstd, n)
	}
	last := make([]float32, d)
	kernels.RMSNorm(last, rstd, x[(n-1)*d:], g.w.norm(), 1, d)
	return p, last
}

// finishLayer adds the attention's output projection and the feed-forward part
// to x; attn is overwritten.
func (g *Generator) finishLayer(w layerWeights, x, attn, up, act, rstd []float32, n int) {
	d, f := g.w.Config.Dim, g.w.Config.Hidden
	kernels.Gemm(false, true, n, d, d, 1, attn, d, w.out, d, 1, x, d)
	kernels.RMSNorm(attn, rstd, x, w.normFF, n, d)
	kernels.Gemm(false, true, n, 2*f, d, 1, attn, d, w.up, d, 0, up, 2*f)
	kernels.SwiGLU(act, up, n, f)
	kernels.Gemm(false, true, n, d, f, 1, act, f, w.down, f, 1, x, d)
}

// suffix is the KV cache of what the beams wrote themselves.
type suffix struct {
	past   *prefix
	beams  int
	steps  int         // tokens so far
	stride int         // most steps
	kv     [][]float32 // by layer: beams x stride x 2d
	spare  []float32
}

func newSuffix(c Config, past *prefix, width, steps int) *suffix {
	s := &suffix{past: past, beams: 1, stride: steps, spare: make([]float32, width*steps*2*c.Dim)}
	for range c.Layers {
		s.kv = append(s.kv, make([]float32, width*steps*2*c.Dim))
	}
	return s
}

// reorder makes beam i a copy of old beam parents[i].
func (s *suffix) reorder(parents []int) {
	s.beams = len(parents)
	inOrder := true
	for i, p := range parents {
		inOrder = inOrder && i == p
	}
	if inOrder {
		return
	}
	entry := len(s.past.kv[0]) / s.past.n // 2d
	row := s.stride * entry
	for l, kv := range s.kv {
		for i, p := range parents {
			copy(s.spare[i*row:i*row+s.steps*entry], kv[p*row:])
		}
		s.kv[l], s.spare = s.spare, kv
	}
}

// step runs one token of every beam and returns the hidden states (beams x d).
func (g *Generator) step(s *suffix, token func(beam int) int32) []float32 {
	c, n := g.w.Config, s.beams
	d, f, hd := c.Dim, c.Hidden, c.Dim/c.Heads
	x, h, qkv := make([]float32, n*d), make([]float32, n*d), make([]float32, n*3*d)
	up, act := make([]float32, n*2*f), make([]float32, n*f)
	rstd := make([]float32, n)
	for i := range n {
		copy(x[i*d:(i+1)*d], g.w.embed()[int(token(i))*d:])
	}
	pos := s.past.n + s.steps
	scale := float32(1 / math.Sqrt(float64(hd)))
	width := s.past.n + s.steps + 1
	for l := range c.Layers {
		w := g.w.layer(l)
		kernels.RMSNorm(h, rstd, x, w.normAttn, n, d)
		kernels.Gemm(false, true, n, 3*d, d, 1, h, d, w.qkv, d, 0, qkv, 3*d)
		for i := range n {
			g.rotary.Turn(qkv[i*3*d:i*3*d+2*d], pos, false)
			copy(s.kv[l][(i*s.stride+s.steps)*2*d:(i*s.stride+s.steps+1)*2*d], qkv[i*3*d+d:])
		}
		past := s.past.kv[l]
		kernels.Parallel(c.Heads, func(head int) {
			off := head * hd
			p := make([]float32, n*width)
			// The shared part is a matrix product, whatever the number of beams.
			kernels.Gemm(false, true, n, s.past.n, hd, scale, qkv[off:], 3*d, past[off:], 2*d, 0, p, width)
			for i := range n {
				q, row := qkv[i*3*d+off:i*3*d+off+hd], p[i*width:(i+1)*width]
				for t := range s.steps + 1 {
					at := (i*s.stride+t)*2*d + off
					row[s.past.n+t] = scale * kernels.Dot(q, s.kv[l][at:at+hd])
				}
				kernels.Softmax(row)
			}
			kernels.Gemm(false, false, n, hd, s.past.n, 1, p, width, past[d+off:], 2*d, 0, h[off:], d)
			for i := range n {
				out := h[i*d+off : i*d+off+hd]
				for t := range s.steps + 1 {
					weight, at := p[i*width+s.past.n+t], (i*s.stride+t)*2*d+d+off
					for j, v := range s.kv[l][at : at+hd] {
						out[j] += weight * v
					}
				}
			}
		})
		g.finishLayer(w, x, h, up, act, rstd, n)
	}
	s.steps++
	out := make([]float32, n*d)
	kernels.RMSNorm(out, rstd, x, g.w.norm(), n, d)
	return out
}
