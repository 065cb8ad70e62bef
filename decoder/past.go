package decoder

import (
	"slices"
	"weak"
)

// Past keeps what a model made of the history that a search read, the keys and values of its tokens,
// for the next search of the same user: what the two rows have in common, from their first token on, is
// not read again. Users come back with a few items more, and reading the history is half of a
// search for the next item. (Serving systems of language models call it prefix caching: Kwon et
// al., SOSP 2023; Zheng et al., arXiv 2312.07104.)
//
// What a search finds does not depend on it, to the last bit. The zero value is empty. A past of
// another model, as after a swap, counts as empty; it does not keep that model in memory. One search
// at a time may use it.
type Past struct {
	of     weak.Pointer[network]
	tokens []int32
	kv     [][]float32 // by layer: tokens x 2d, the turned keys and the values
	kept   int
}

// Bytes is what it takes.
func (p *Past) Bytes() int64 {
	bytes := int64(4 * cap(p.tokens))
	for _, kv := range p.kv {
		bytes += int64(4 * cap(kv))
	}
	return bytes
}

// Tokens says how many tokens the row had that the last search read, and how many of them were kept from
// the one before.
func (p *Past) Tokens() (all, kept int) { return len(p.tokens), p.kept }

// begin makes p that of a row which is about to be read, and returns how many tokens at its front need
// not be: never all, since what follows is told by the last one's hidden state.
func (p *Past) begin(net *network, tokens []int32) (kept int) {
	c := net.w.Config
	if of := weak.Make(net); p.of != of {
		*p = Past{of: of, kv: make([][]float32, c.Layers)}
	}
	for kept < min(len(p.tokens), len(tokens)-1) && p.tokens[kept] == tokens[kept] {
		kept++
	}
	p.kept, p.tokens = kept, append(p.tokens[:0], tokens...)
	for l, kv := range p.kv {
		size := len(tokens) * 2 * c.Dim
		p.kv[l] = slices.Grow(kv[:kept*2*c.Dim], size-kept*2*c.Dim)[:size]
	}
	return kept
}

// fill copies the keys and values of the kept tokens to their places in a layer's qkv (tokens x 3d).
func (p *Past) fill(layer, d int, qkv []float32) {
	for i := range p.kept {
		copy(qkv[i*3*d+d:(i+1)*3*d], p.kv[layer][i*2*d:])
	}
}

// keep takes over those of the other tokens.
func (p *Past) keep(layer, d int, qkv []float32) {
	for i := p.kept; i < len(p.tokens); i++ {
		copy(p.kv[layer][i*2*d:(i+1)*2*d], qkv[i*3*d+d:])
	}
}
