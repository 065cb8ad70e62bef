package decoder

import "weak"

// Past keeps what a model made of the history that a search read, the keys and values of its tokens as the search laid them out,
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
	row    *prefix
	kept   int
}

// Bytes is what it takes.
func (p *Past) Bytes() int64 {
	bytes := int64(4 * cap(p.tokens))
	if p.row != nil {
		bytes += p.row.bytes()
	}
	return bytes
}

// Tokens says how many tokens the row had that the last search read, and how many of them were kept from
// the one before.
func (p *Past) Tokens() (all, kept int) { return len(p.tokens), p.kept }

// begin makes p that of a row which is about to be read, and returns what is laid out of the row before, and how
// many tokens at its front need not be read: never all, since what follows is told by the last one's hidden state.
func (p *Past) begin(net *network, tokens []int32, row *prefix) (before *prefix, kept int) {
	if of := weak.Make(net); p.of != of {
		*p = Past{of: of}
	}
	for kept < min(len(p.tokens), len(tokens)-1) && p.tokens[kept] == tokens[kept] {
		kept++
	}
	before, p.row = p.row, row
	p.kept, p.tokens = kept, append(p.tokens[:0], tokens...)
	return before, kept
}
