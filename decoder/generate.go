package decoder

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"onerec/internal/kernels"
	"onerec/semanticid"
)

// Generator writes items with a decoder. Every code it writes continues some ID
// of the trie, so that it only ever produces real items, and no list holds an
// item twice. It is safe for concurrent use; the weights must not change
// meanwhile.
type Generator struct {
	*network
	all, trie *semanticid.Trie // of all items, and of those that it may write
	ids       func(item int32) Item
}

// network is a model as generation runs it.
type network struct {
	w      *Weights
	rotary *kernels.Rotary

	// The weights, laid out once for the products that every step makes.
	numbers Numbers
	embed   kernels.Shared
	codes   []kernels.Shared // the part of embed that a level's codes have
	layers  []packedLayer
	// What the first layer makes of a token, before it is turned to a position, is the same wherever that stands: vocab x 3d; nil, if the
	// vocabulary is large.
	first []float32

	company company // of the searches that run now
}

type packedLayer struct {
	qkv, out kernels.Shared
	router   kernels.Shared // nil without experts
	experts  []packedExpert // or the one part
}

type packedExpert struct{ up, down kernels.Shared }

// NewGenerator returns a generator for the items that the codebook holds now.
func NewGenerator(w *Weights, cb *semanticid.Codebook) (*Generator, error) {
	if err := w.Config.speaks(cb.Levels(), cb.Codes()); err != nil {
		return nil, err
	}
	trie := semanticid.NewTrie(cb)
	return &Generator{newNetwork(w, Float32), trie, trie, cb.ID}, nil
}

// With returns a generator of other weights for the same items, in the same numbers. The two share the
// trie, which for many items takes longer to build than all else.
func (g *Generator) With(w *Weights) (*Generator, error) {
	if err := w.Config.speaks(g.w.Config.Levels, g.w.Config.Codes); err != nil {
		return nil, err
	}
	return &Generator{newNetwork(w, g.numbers), g.all, g.trie, g.ids}, nil
}

// In returns a generator of the same model that computes in other numbers; the two share the trie.
func (g *Generator) In(numbers Numbers) *Generator {
	if numbers == g.numbers {
		return g
	}
	return &Generator{newNetwork(g.w, numbers), g.all, g.trie, g.ids}
}

// Without returns a generator of the same model that writes none of the given items (indexes in the codebook), but all
// others, whatever g left out. The two share all but the trie's counts, the keys and values of a [Past] too.
func (g *Generator) Without(items map[int32]bool) *Generator {
	return &Generator{g.network, g.all, g.all.Without(items), g.ids}
}

func newNetwork(w *Weights, numbers Numbers) *network {
	c := w.Config
	d, f := c.Dim, c.Hidden
	net := &network{w: w, numbers: numbers, rotary: kernels.NewRotary(d/c.Heads, c.MaxLen), embed: numbers.weights(c.Vocab(), d, w.embed())}
	net.company.run = net.run
	for level := range c.Levels {
		net.codes = append(net.codes, numbers.weights(c.Codes, d, w.embed()[int(c.token(level, 0))*d:]))
	}
	for l := range c.Layers {
		of := w.layer(l)
		layer := packedLayer{qkv: numbers.layer(3*d, d, of.qkv), out: numbers.layer(d, d, of.out)}
		if c.Experts > 0 { // in float32, whatever the numbers: what is rounded may go elsewhere
			layer.router = Float32.weights(c.Experts, d, of.router)
		}
		for e := range max(1, c.Experts) {
			layer.experts = append(layer.experts, packedExpert{numbers.layer(2*f, d, of.up[e*2*f*d:]), numbers.layer(d, f, of.down[e*d*f:])})
		}
		net.layers = append(net.layers, layer)
	}
	if n := c.Vocab(); n*3*d <= firstFloats {
		a := newActivations(c, n, 0)
		defer a.release()
		copy(a.x, w.embed())
		first := make([]float32, n*3*d)
		net.project(kernels.All, 0, a, n, first, func(int, int) {})
		net.first = first
	}
	return net
}

// firstFloats is how large a table of what the first layer makes of all tokens may be.
const firstFloats = 1 << 22

// Config returns that of the weights.
func (g *Generator) Config() Config { return g.w.Config }

// Numbers returns those it computes in.
func (g *Generator) Numbers() Numbers { return g.numbers }

// List is a generated session.
type List struct {
	Items   []int32 // indexes in the codebook
	LogProb float64 // with Options.LogProbs: the sum of the log probabilities of all codes, over the whole vocabulary
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
	User    int32          // see Config.User; 0: nobody in particular
	Past    *Past          // of the user's last search; nil: all of the history is read
	Length  int            // items to write
	Width   int            // lists: beams, or samples
	// Temperature above 0 samples each code with p^(1/T) among those allowed;
	// with 0 it is a beam search.
	Temperature float64
	Rand        *rand.Rand // for sampling
	// LogProbs asks for [List.LogProb], for which the logits of codes of other levels, which cannot come next, must be computed, too.
	LogProbs bool
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
	if o.Width < 1 || o.Length < 1 {
		return nil, fmt.Errorf("generate: width %d and length %d must be at least 1", o.Width, o.Length)
	}
	past, hidden, excluded, err := g.begin(o)
	if err != nil {
		return nil, err
	}
	beams := []beam{{}}
	if o.Temperature > 0 {
		beams = make([]beam, o.Width) // all the same, until the first draw
	}
	defer past.release()
	st := newSuffix(c, past, o.Width, o.Length*c.stride())
	defer st.release()
	if st.social = o.Width < few; st.social {
		g.company.enter()
		defer g.company.leave()
	}
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
			code := func(i int) int32 { return c.token(level, g.trie.Code(level, beams[i].node)) }
			switch {
			case level < c.Levels-1, step < o.Length-1 && c.Compact:
				h = g.step(st, code)
			case step < o.Length-1: // what follows an item's last code is certain
				h = g.step(st, code, func(int) int32 { return tokenSEP })
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
	}
	return finish(done, o), nil
}

// begin reads what the user did. It returns the cache of that, the hidden state from which the
// first code follows, and the excluded items by node.
func (g *Generator) begin(o Options) (past *prefix, hidden []float32, excluded []map[int32]int32, err error) {
	c := g.w.Config
	if n := len(o.Session) + o.Length; n > c.MaxItems() {
		return nil, nil, nil, fmt.Errorf("generate: %d items do not fit rows of %d tokens", n, c.MaxLen)
	}
	row := c.Fit(Row{History: o.History, Session: append(slices.Clone(o.Session), make([]Item, o.Length)...)})
	b := NewBatch(0)
	if err := b.Add(c, Row{History: row.History, Session: o.Session, User: o.User}); err != nil {
		return nil, nil, nil, err
	}
	tokens := b.tokens
	if len(o.Session) > 0 && !c.Compact {
		tokens = append(tokens, tokenSEP)
	}
	past, hidden = g.prefill(tokens, o.Past)
	return past, hidden, g.countExcluded(o.Exclude), nil
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
		if last := len(path) - 1; !ok || g.trie.Under(last, path[last]) == 0 {
			continue // nobody's, or left out already
		}
		for l, node := range path {
			counts[l][node]++
		}
	}
	return counts
}

// choice is a code that continues a beam.
type choice struct {
	parent         int
	node           int32
	logProb, score float64
	total          float64 // the beam's score with it
}

// choosing is how many beams look for their next codes together.
const choosing = 16

// extend chooses the next code of each beam. It returns the new beams and which
// old one each continues.
func (g *Generator) extend(beams []beam, hidden []float32, level int, excluded []map[int32]int32, o Options) ([]beam, []int) {
	c := g.w.Config
	n := len(beams)
	right, width, first := g.codes[level], c.Codes, 0 // whose logits, and where the level's codes begin
	if o.LogProbs {
		right, width, first = g.embed, c.Vocab(), int(c.token(level, 0))
	}
	buf := take(&passFloats, n*width)
	defer passFloats.Put(buf)
	logits := *buf
	right.MulParallel(n, hidden, c.Dim, false, logits, width)
	codes := func(i int) []float32 { return logits[i*width+first:][:c.Codes] }
	parts := make([]*topChoices, (n+choosing-1)/choosing)
	defer func() {
		for _, part := range parts {
			topPool.Put(part)
		}
	}()
	enough := newAtLeast()
	kernels.Parallel(len(parts), func(p int) {
		best := takeTop(o.Width, enough)
		for i := p * choosing; i < min(n, (p+1)*choosing); i++ {
			row := logits[i*width : (i+1)*width]
			norm := kernels.LogSumExp(row)
			for j := range row { // log probabilities in the place of logits, among those that are there
				row[j] -= norm
			}
			if o.Temperature > 0 {
				continue // who draws takes turns
			}
			best.mine = g.choices(beams, i, codes(i), level, excluded, best.mine[:0])
			for _, ch := range best.mine {
				best.add(ch)
			}
		}
		parts[p] = best
	})
	var choices []choice
	if o.Temperature == 0 {
		choices = bestOf(parts)
	} else {
		mine := make([]choice, 0, c.Codes)
		for i := range beams {
			if mine = g.choices(beams, i, codes(i), level, excluded, mine[:0]); len(mine) > 0 {
				choices = append(choices, draw(mine, o))
			}
		}
	}
	next, parents := make([]beam, len(choices)), make([]int, len(choices))
	for i, ch := range choices {
		next[i] = beams[ch.parent]
		next[i].node = ch.node
		if o.LogProbs {
			next[i].logProb += ch.logProb
		}
		next[i].score += ch.score
		parents[i] = ch.parent
	}
	return next, parents
}

// choices appends to mine the codes that may continue beam i, of which the level's have the given log probabilities.
func (g *Generator) choices(beams []beam, i int, logProbs []float32, level int, excluded []map[int32]int32, mine []choice) []choice {
	lo, hi := g.children(level, beams[i].node)
	allowed := float32(0)
	for node := lo; node < hi; node++ {
		free := g.trie.Under(level, node)
		if len(excluded[level]) > 0 {
			free -= excluded[level][node]
		}
		for _, p := range beams[i].paths {
			if p[level] == node {
				free--
			}
		}
		if free > 0 {
			lp := logProbs[g.trie.Code(level, node)]
			mine = append(mine, choice{parent: i, node: node, logProb: float64(lp)})
			allowed += kernels.Exp(lp)
		}
	}
	norm := math.Log(float64(allowed))
	for j := range mine {
		mine[j].score = mine[j].logProb - norm
		mine[j].total = beams[i].score + mine[j].score
	}
	return mine
}

// draw draws one of a beam's choices.
func draw(mine []choice, o Options) choice {
	weights := make([]float64, len(mine))
	top := math.Inf(-1)
	for _, ch := range mine {
		top = max(top, ch.logProb)
	}
	var sum float64
	for j, ch := range mine {
		weights[j] = math.Exp((ch.logProb - top) / o.Temperature)
		sum += weights[j]
	}
	at, pick := o.Rand.Float64()*sum, len(mine)-1
	for j, w := range weights {
		if at -= w; at < 0 {
			pick = j
			break
		}
	}
	return mine[pick]
}

// inOrder has choices come as they are looked at.
func inOrder(a, b choice) int {
	return cmp.Or(cmp.Compare(a.parent, b.parent), cmp.Compare(a.node, b.node))
}

// topChoices keeps the best choices that it is given; among equals those that come first in order.
type topChoices struct {
	limit  int
	kept   []choice // up to twice the limit
	enough *atLeast // so many are at hand that have this total
	mine   []choice // of one beam
}

var topPool = sync.Pool{New: func() any { return new(topChoices) }}

func takeTop(limit int, enough *atLeast) *topChoices {
	t := topPool.Get().(*topChoices)
	t.limit, t.enough, t.kept = limit, enough, t.kept[:0]
	return t
}

func (t *topChoices) add(c choice) {
	if c.total < t.enough.load() {
		return
	}
	if t.kept = append(t.kept, c); len(t.kept) == 2*t.limit {
		t.shrink()
	}
}

func (t *topChoices) shrink() {
	if len(t.kept) < t.limit {
		return
	}
	slices.SortFunc(t.kept, func(a, b choice) int {
		switch {
		case a.total > b.total:
			return -1
		case a.total < b.total:
			return 1
		}
		return inOrder(a, b)
	})
	t.kept = t.kept[:t.limit]
	t.enough.raise(t.kept[t.limit-1].total)
}

// bestOf returns the best of what the parts were given. They are in order: beams that continue the same one come one after
// the other, and so do their keys and values of every step before, which attention then finds in nearer caches.
func bestOf(parts []*topChoices) []choice {
	best := takeTop(parts[0].limit, parts[0].enough)
	defer topPool.Put(best)
	for _, part := range parts {
		for _, c := range part.kept {
			best.add(c)
		}
	}
	best.shrink()
	slices.SortFunc(best.kept, inOrder)
	return slices.Clone(best.kept)
}

// atLeast is a number that only rises.
type atLeast struct{ bits atomic.Uint64 }

func newAtLeast() *atLeast {
	a := new(atLeast)
	a.bits.Store(math.Float64bits(math.Inf(-1)))
	return a
}

func (a *atLeast) load() float64 { return math.Float64frombits(a.bits.Load()) }

func (a *atLeast) raise(x float64) {
	for old := a.bits.Load(); x > math.Float64frombits(old) && !a.bits.CompareAndSwap(old, math.Float64bits(x)); {
		old = a.bits.Load()
	}
}

// children returns the nodes lo to hi of a level below node, a node of the level before.
func (g *Generator) children(level int, node int32) (lo, hi int32) {
	if level == 0 {
		return g.trie.Roots()
	}
	return g.trie.Children(level-1, node)
}

// prefix is the KV cache of the tokens that all beams share, by layer and head: the turned
// keys, transposed and scaled, and the values, both laid out for products with the queries
// of all beams.
type prefix struct {
	n      int
	kept   bool // by a [Past]
	keys   [][]kernels.Leading
	values [][]kernels.Values
}

// release ends a search's use of it.
func (p *prefix) release() {
	if !p.kept {
		p.free()
	}
}

// free lets other searches have the memory; nobody uses it any more.
func (p *prefix) free() {
	for l := range p.keys {
		for head := range p.keys[l] {
			p.keys[l][head].Release()
			p.values[l][head].Release()
		}
	}
}

// of returns what a head has in a layer; nothing, of none.
func (p *prefix) of(layer, head int) (kernels.Leading, kernels.Values) {
	if p == nil {
		return nil, nil
	}
	return p.keys[layer][head], p.values[layer][head]
}

// bytes is what it takes.
func (p *prefix) bytes() (n int64) {
	for l := range p.keys {
		for head := range p.keys[l] {
			n += p.keys[l][head].Bytes() + p.values[l][head].Bytes()
		}
	}
	return n
}

// prefill runs tokens through the model at once, but for those that an earlier search's past has, if
// there is one. It returns their cache and the last one's hidden state. Of the last layer only the keys
// and values of all tokens are needed, and the rest of the last token alone.
func (net *network) prefill(tokens []int32, past *Past) (*prefix, []float32) {
	c, n, from := net.w.Config, len(tokens), 0
	p := &prefix{n: n, kept: past != nil, keys: make([][]kernels.Leading, c.Layers), values: make([][]kernels.Values, c.Layers)}
	var before *prefix
	if past != nil {
		before, from = past.begin(net, tokens, p)
	}
	d, hd, m := c.Dim, c.Dim/c.Heads, n-from
	buf := newActivations(c, m, m) // of the tokens from from on
	defer buf.release()
	x, h, qkv := buf.x, buf.h, buf.qkv
	for i, t := range tokens[from:] {
		copy(x[i*d:(i+1)*d], net.w.embed()[int(t)*d:])
	}
	place := func(row int) int { return from + row }
	for l := range c.Layers {
		net.beginLayer(kernels.All, l, buf, tokens[from:], qkv, place)
		p.keys[l], p.values[l] = make([]kernels.Leading, c.Heads), make([]kernels.Values, c.Heads)
		kernels.Parallel(2*c.Heads, func(i int) {
			head := i / 2
			switch k, v := qkv[d+head*hd:], qkv[2*d+head*hd:]; {
			case past == nil && i%2 == 0:
				p.keys[l][head] = net.numbers.keys(n, hd, k, 3*d)
			case past == nil:
				p.values[l][head] = net.numbers.values(n, hd, v, 3*d)
			case i%2 == 0:
				first, _ := before.of(l, head)
				p.keys[l][head] = net.numbers.moreKeys(first, from, n, hd, k, 3*d)
			default:
				_, first := before.of(l, head)
				p.values[l][head] = net.numbers.moreValues(first, from, n, hd, v, 3*d)
			}
		})
		if l < c.Layers-1 {
			kernels.AttentionFrom(h, qkv, p.keys[l], p.values[l], from, n, d)
			net.finishLayer(kernels.All, l, buf, m)
			continue
		}
		last := newActivations(c, 1, 0)
		defer last.release()
		copy(last.x, x[(m-1)*d:m*d])
		s := kernels.TakeScores(1, n, 0)
		for head := range c.Heads {
			off := head * hd
			p.keys[l][head].Mul(1, qkv[(m-1)*3*d+off:], 3*d, false, s.All, s.Width)
			p.values[l][head].Attend(s, n, 0, last.h[off:], d)
		}
		s.Release()
		net.finishLayer(kernels.All, l, last, 1)
		x = last.x
	}
	if before != nil {
		before.free()
	}
	out := make([]float32, d)
	kernels.RMSNorm(out, make([]float32, 1), x, net.w.norm(), 1, d)
	return p, out
}

// activations are the buffers of a pass over n tokens.
type activations struct {
	x, h, rstd []float32
	qkv        []float32 // of as many as was asked for
	all        *[]float32
}

// passFloats is memory of passes.
var passFloats = sync.Pool{New: func() any { return new([]float32) }}

// take returns room for n floats, which hold anything.
func take(pool *sync.Pool, n int) *[]float32 {
	p := pool.Get().(*[]float32)
	*p = slices.Grow((*p)[:0], n)[:n]
	return p
}

func newActivations(c Config, n, qkv int) *activations {
	d := c.Dim
	all := take(&passFloats, n*(2*d+1)+qkv*3*d)
	x, h, rest := (*all)[:n*d], (*all)[n*d:2*n*d], (*all)[2*n*d:]
	return &activations{x, h, rest[:n], rest[n:], all}
}

// from is what a has of rows from one on.
func (a *activations) from(row, d int) *activations {
	return &activations{x: a.x[row*d:], h: a.h[row*d:], rstd: a.rstd[row:], qkv: a.qkv[min(len(a.qkv), row*3*d):]}
}

func (a *activations) release() { passFloats.Put(a.all) }

// beginLayer computes the queries, keys and values (n x 3d) of tokens that stand at the given places; h is overwritten.
func (net *network) beginLayer(crew kernels.Crew, l int, a *activations, tokens []int32, qkv []float32, place func(row int) int) {
	n, d := len(tokens), net.w.Config.Dim
	turn := func(lo, hi int) {
		for i := lo; i < hi; i++ {
			net.rotary.Turn(qkv[i*3*d:i*3*d+2*d], place(i), false)
		}
	}
	if l > 0 || net.first == nil {
		net.project(crew, l, a, n, qkv, turn)
		return
	}
	crew.Blocks(n, func(lo, hi int, _ kernels.Product) {
		for i, t := range tokens[lo:hi] {
			copy(qkv[(lo+i)*3*d:(lo+i+1)*3*d], net.first[int(t)*3*d:])
		}
		turn(lo, hi)
	})
}

// project computes a layer's queries, keys and values of n rows, and calls then with some of them after the other.
func (net *network) project(crew kernels.Crew, l int, a *activations, n int, qkv []float32, then func(lo, hi int)) {
	d := net.w.Config.Dim
	crew.Blocks(n, func(lo, hi int, mul kernels.Product) {
		h := a.h[lo*d:]
		kernels.RMSNorm(h, a.rstd[lo:], a.x[lo*d:], net.w.layer(l).normAttn, hi-lo, d)
		mul(net.layers[l].qkv, hi-lo, h, d, false, qkv[lo*3*d:], 3*d)
		then(lo, hi)
	})
}

// finishLayer adds the attention's output projection, of h, and the feed-forward part
// to x; h is overwritten.
func (net *network) finishLayer(crew kernels.Crew, l int, a *activations, n int) {
	d, f := net.w.Config.Dim, net.w.Config.Hidden
	p := net.layers[l]
	if p.router != nil {
		net.finishExperts(l, a, n)
		return
	}
	one := p.experts[0]
	crew.Blocks(n, func(lo, hi int, mul kernels.Product) {
		n, h, x := hi-lo, a.h[lo*d:], a.x[lo*d:]
		buf := kernels.Take(n * 3 * f)
		defer kernels.Put(buf)
		up, act := (*buf)[:n*2*f], (*buf)[n*2*f:]
		mul(p.out, n, h, d, true, x, d)
		kernels.RMSNorm(h, a.rstd[lo:], x, net.w.layer(l).normFF, n, d)
		mul(one.up, n, h, d, false, up, 2*f)
		kernels.SwiGLU(act, up, n, f)
		mul(one.down, n, act, f, true, x, d)
	})
}

// routings are for passes through experts.
var routings = sync.Pool{New: func() any { return new(kernels.Routing) }}

// finishExperts is finishLayer where the feed-forward part is a mixture of experts: rows are grouped by expert, over all
// searches that the pass is of.
func (net *network) finishExperts(l int, a *activations, n int) {
	c, p := net.w.Config, net.layers[l]
	d, f := c.Dim, c.Hidden
	gates := kernels.Take(n * c.Experts)
	defer kernels.Put(gates)
	kernels.Blocks(n, func(lo, hi int, mul kernels.Product) {
		n, h, x := hi-lo, a.h[lo*d:], a.x[lo*d:]
		mul(p.out, n, h, d, true, x, d)
		kernels.RMSNorm(h, a.rstd[lo:], x, net.w.layer(l).normFF, n, d)
		mul(p.router, n, h, d, false, (*gates)[lo*c.Experts:], c.Experts)
	})
	r := routings.Get().(*kernels.Routing)
	defer routings.Put(r)
	r.Route(*gates, n, c.Experts, c.Active)
	answers := kernels.Take(r.Entries() * d)
	defer kernels.Put(answers)
	r.Groups(func(expert, lo, hi int) {
		of, n := p.experts[expert], hi-lo
		buf := kernels.Take(n * (d + 3*f))
		defer kernels.Put(buf)
		rows, up, act := (*buf)[:n*d], (*buf)[n*d:n*(d+2*f)], (*buf)[n*(d+2*f):]
		r.Gather(rows, a.h, lo, hi, d)
		of.up.Mul(n, rows, d, false, up, 2*f)
		kernels.SwiGLU(act, up, n, f)
		of.down.Mul(n, act, f, false, (*answers)[lo*d:], d)
	})
	r.Combine(a.x, *answers, d, true)
}

// suffix is the KV cache of what the beams wrote themselves. What was written stays where it is; beams that continue the same one
// share it, so that a beam is no more than a list of where its tokens are. A place that no beam looks at any more is
// written again before one that never was, so that what is in use stays close together: of all that
// 128 beams write in a list a quarter to a half.
type suffix struct {
	past   *prefix
	social bool // its search is a member of the generator's company
	beams  int
	steps  int         // tokens so far
	stride int         // most steps
	dim    int         // of a head
	places int         // for tokens
	kv     [][]float32 // by layer: for each head its keys, and its values, both places x dim
	memory []float32   // that kv is in
	hidden []float32   // of the last step
	at     []int32     // beams x stride: where a head's keys, and its values, have the row of the beam's token of a step
	spare  []int32
	fresh  int     // the first place that was never taken
	free   []int32 // places, taken before, that no beam looks at, the last first
	seen   []bool  // by place; for reorder
}

func newSuffix(c Config, past *prefix, width, steps int) *suffix {
	n := width * steps
	s := &suffix{past: past, beams: 1, stride: steps, dim: c.Dim / c.Heads, places: n, at: make([]int32, n), spare: make([]int32, n), seen: make([]bool, n)}
	size := 2 * n * c.Dim
	s.memory = suffixes.take(c.Layers * size)
	for l := range c.Layers {
		s.kv = append(s.kv, s.memory[l*size:(l+1)*size])
	}
	return s
}

// release lets other searches have the memory.
func (s *suffix) release() { suffixes.put(s.memory) }

// rooms is memory of what beams wrote, as much as a search of many beams on each processor takes. It stays: new memory must be cleared,
// page by page, which can take longer than the search.
type rooms struct {
	mu   sync.Mutex
	free [][]float32
}

var suffixes rooms

// take returns room for n floats, which hold anything: the smallest that will do.
func (r *rooms) take(n int) []float32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	best := -1
	for i, room := range r.free {
		if cap(room) >= n && (best < 0 || cap(room) < cap(r.free[best])) {
			best = i
		}
	}
	if best < 0 {
		return make([]float32, n)
	}
	room := r.free[best]
	r.free = slices.Delete(r.free, best, best+1)
	return room[:n]
}

// put gives room back. The largest are kept.
func (r *rooms) put(room []float32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.free = append(r.free, room)
	if len(r.free) > runtime.GOMAXPROCS(0) {
		least := 0
		for i, room := range r.free {
			if cap(room) < cap(r.free[least]) {
				least = i
			}
		}
		r.free = slices.Delete(r.free, least, least+1)
	}
}

// of returns a head's keys and values in a layer, a row for each place. A head's rows lie side
// by side: with rows of all heads in one, those that a head looks at would be far apart, at distances that caches map to the same few places.
func (s *suffix) of(layer, head int) (keys, values []float32) {
	size := s.places * s.dim
	kv := s.kv[layer][head*2*size:][:2*size]
	return kv[:size], kv[size:]
}

// reorder makes beam i continue old beam parents[i].
func (s *suffix) reorder(parents []int) {
	s.beams = len(parents)
	clear(s.seen[:s.fresh])
	for i, p := range parents {
		own := s.spare[i*s.stride:][:s.steps]
		copy(own, s.at[p*s.stride:])
		for _, at := range own {
			s.seen[int(at)/s.dim] = true
		}
	}
	s.at, s.spare = s.spare, s.at
	s.free = s.free[:0]
	for place := s.fresh - 1; place >= 0; place-- {
		if !s.seen[place] {
			s.free = append(s.free, int32(place*s.dim))
		}
	}
}

// resume makes the beams those that have their tokens so far at the given places, one for each step.
func (s *suffix) resume(steps int, places [][]int32) {
	s.beams, s.steps = len(places), steps
	for i, of := range places {
		copy(s.at[i*s.stride:], of[:steps])
	}
}

// last is where a beam has its last token.
func (s *suffix) last(beam int) int32 { return s.at[beam*s.stride+s.steps-1] }

// write finds places for the next tokens of every beam.
func (s *suffix) write(each int) {
	for i := range s.beams {
		for step := s.steps; step < s.steps+each; step++ {
			at := int32(s.fresh * s.dim)
			if last := len(s.free) - 1; last >= 0 {
				at, s.free = s.free[last], s.free[:last]
			} else {
				s.fresh++
			}
			s.at[i*s.stride+step] = at
		}
	}
}

// pass is the next tokens of every beam of a search, on their way through the model.
type pass struct {
	suffix *suffix
	each   int     // tokens of a beam
	tokens []int32 // beam after beam
	turn   chan []*pass
}

// step runs the next tokens of every beam and returns the hidden states of the last ones (beams x d), until the next step.
func (net *network) step(s *suffix, tokens ...func(beam int) int32) []float32 {
	p := &pass{suffix: s, each: len(tokens), tokens: make([]int32, 0, s.beams*len(tokens))}
	for i := range s.beams {
		for _, token := range tokens {
			p.tokens = append(p.tokens, token(i))
		}
	}
	if s.social {
		net.company.step(p)
	} else {
		net.run([]*pass{p})
	}
	return s.hidden
}

// run takes passes of different searches through the model as one: products with the
// weights are those of all rows at once, each row attends to its own search's past. What
// comes out of a pass does not depend on the others, nor on how many tokens it has at once. Of the last
// layer only the keys and values of all tokens are needed, and the rest of each beam's last.
func (net *network) run(passes []*pass) {
	c, n, beams := net.w.Config, 0, 0
	for _, p := range passes {
		n += len(p.tokens)
		beams += p.suffix.beams
	}
	d := c.Dim
	a, last := newActivations(c, n, n), newActivations(c, beams, 0)
	tokens, places := make([]int32, 0, n), make([]int, 0, n)
	defer a.release()
	defer last.release()
	row := 0
	for _, p := range passes {
		for i, t := range p.tokens {
			copy(a.x[(row+i)*d:(row+i+1)*d], net.w.embed()[int(t)*d:])
			places = append(places, p.suffix.past.n+p.suffix.steps+i%p.each)
		}
		p.suffix.write(p.each)
		tokens = append(tokens, p.tokens...)
		row += len(p.tokens)
	}
	shares, crew := 1, kernels.All
	if c.Experts == 0 { // with experts, rows are grouped over all
		shares = kernels.Shares(n)
	}
	if shares > 1 {
		crew = kernels.Alone
	}
	groups := share(passes, n, shares)
	kernels.Parallel(len(groups), func(i int) { net.through(crew, groups[i], a, last, tokens, places) })
	x := last.x
	for _, p := range passes {
		s, size := p.suffix, p.suffix.beams*d
		s.steps += p.each
		s.hidden = slices.Grow(s.hidden[:0], size)[:size]
		kernels.RMSNorm(s.hidden, last.rstd, x, net.w.norm(), s.beams, d)
		x = x[size:]
	}
}

// group is some of the rows of a pass, whole beams, in parts that attention looks at together.
type group struct {
	parts    []part
	row, n   int // of all passes' tokens
	beam, to int // of all passes' beams
}

// share shares the n tokens of passes out in groups.
func share(passes []*pass, n, groups int) []group {
	all := make([]group, 1, groups)
	at := part{}
	for _, p := range passes {
		at.suffix, at.each = p.suffix, p.each
		for at.from = 0; at.from < p.suffix.beams; at.from = at.to {
			g := &all[len(all)-1]
			left := (n*len(all)/groups+kernels.Tile-1)/kernels.Tile*kernels.Tile - g.row - g.n // of the group's share, in whole tiles
			if left <= 0 && len(all) < groups {
				all = append(all, group{row: g.row + g.n, beam: g.to, to: g.to})
				at.to = at.from
				continue
			}
			at.to = min(p.suffix.beams, at.from+max(1, together/p.each))
			if len(all) < groups {
				at.to = min(at.to, at.from+max(1, left/p.each))
			}
			g.parts = append(g.parts, at)
			g.n += (at.to - at.from) * p.each
			g.to += at.to - at.from
		}
		at.row += len(p.tokens)
		at.beam += p.suffix.beams
	}
	return all
}

// through takes a group through all layers. What it writes of a and last are the group's rows and beams.
func (net *network) through(crew kernels.Crew, g group, a, last *activations, tokens []int32, places []int) {
	c, parts := net.w.Config, g.parts
	d := c.Dim
	mine, ends := a.from(g.row, d), last.from(g.beam, d)
	for l := range c.Layers {
		net.beginLayer(crew, l, mine, tokens[g.row:g.row+g.n], mine.qkv, func(row int) int { return places[g.row+row] })
		if l < c.Layers-1 {
			crew.Parallel(c.Heads*len(parts), func(i int) {
				parts[i%len(parts)].attend(l, i/len(parts), a.qkv, a.h, false)
			})
			net.finishLayer(crew, l, mine, g.n)
			continue
		}
		for _, p := range parts {
			for i := p.from; i < p.to; i++ {
				copy(last.x[(p.beam+i)*d:(p.beam+i+1)*d], a.x[(p.row+(i+1)*p.each-1)*d:])
			}
		}
		crew.Parallel(c.Heads*len(parts), func(i int) {
			parts[i%len(parts)].attend(l, i/len(parts), a.qkv, last.h, true)
		})
		net.finishLayer(crew, l, ends, g.to-g.beam)
	}
}

// together is how many rows are looked at as a group, heads one by one.
const together = 36

// part is a group of the beams of a pass.
type part struct {
	*suffix
	each     int // tokens of a beam
	row      int // of the pass's first token, among those of all passes
	beam     int // the pass's first one, among those of all passes
	from, to int // beams
}

// attend keeps the keys and values of one head of a layer for the part's beams, and computes the attention, out of qkv into h: of
// each token or, with last, of each beam's last one, for which h has a row.
func (p part) attend(layer, head int, qkv, h []float32, last bool) {
	hd := p.dim
	d := len(p.past.keys[layer]) * hd
	off, first := head*hd, p.row+p.from*p.each
	keys, values := p.of(layer, head)
	for i := range (p.to - p.from) * p.each {
		row := qkv[(first+i)*3*d+off:]
		at := p.at[(p.from+i/p.each)*p.stride+p.steps+i%p.each]
		copy(keys[at:int(at)+hd], row[d:])
		copy(values[at:int(at)+hd], row[2*d:])
	}
	// The rows that attend: of each beam's tokens those from skip on.
	skip, between, row := 0, 3*d, first
	if last {
		skip, between, row = p.each-1, p.each*3*d, p.beam+p.from
	}
	rest := p.each - skip
	n, queries, out := (p.to-p.from)*rest, qkv[(first+skip)*3*d+off:], h[row*d+off:]
	s := kernels.TakeScores(n, p.past.n, p.steps+p.each)
	defer s.Release()
	// The shared past is a matrix product, whatever the number of beams.
	p.past.keys[layer][head].Mul(n, queries, between, false, s.All, s.Width)
	// own are the places of the tokens of its beam that a row sees, and of those that the next beam's sees.
	own := func(i int) (sees, then []int32) {
		at := (p.from + i/rest) * p.stride
		length := p.steps + skip + i%rest + 1
		sees = p.at[at:][:length]
		if then = sees; i+rest < n {
			then = p.at[at+p.stride:][:length]
		}
		return sees, then
	}
	scale := float32(1 / math.Sqrt(float64(hd)))
	for i := range n {
		sees, then := own(i)
		kernels.DotsAt(s.Own(i)[:len(sees)], queries[i*between:i*between+hd], keys, sees, scale, then)
		s.Hide(i, len(sees))
	}
	p.past.values[layer][head].Attend(s, p.past.n, 0, out, d)
	for i := range n {
		sees, then := own(i)
		kernels.AddAt(out[i*d:i*d+hd], values, sees, s.Own(i)[:len(sees)], then)
	}
}
