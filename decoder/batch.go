package decoder

import (
	"fmt"

	"onerec/semanticid"
)

// Item is an item's semantic ID.
type Item = semanticid.Item

// Row is one training row: what the user did, and what to write.
type Row struct {
	History []Item // oldest first
	Session []Item
	User    int32 // see Config.User; 0: nobody in particular
}

// Tokens returns the length of the row, at most; see RowTokens.
func (c Config) Tokens(r Row) int {
	return c.RowTokens(len(r.History) + len(r.Session))
}

// Fit returns the row with its oldest history left out until it fits MaxLen, and
// then the end of its session.
func (c Config) Fit(r Row) Row {
	space := c.MaxItems()
	r.Session = r.Session[:min(len(r.Session), space)]
	if n := space - len(r.Session); len(r.History) > n {
		r.History = r.History[len(r.History)-n:]
	}
	return r
}

// Batch is a set of rows packed one after the other.
type Batch struct {
	tokens, pos []int32
	bounds      []int     // row r is tokens bounds[r] to bounds[r+1]
	at, target  []int32   // predictions: position of the token before, token
	weight      []float32 // of each prediction in the loss; sums to 1 over the batch
	firstTarget []int     // predictions of row r begin here
	dropout     Dropout

	historyWeight float32
}

// NewBatch returns an empty batch in which the codes of the history weigh
// historyWeight times those of the session.
func NewBatch(historyWeight float32) *Batch {
	return &Batch{bounds: []int{0}, historyWeight: historyWeight}
}

// Add appends a row; the weights are then normalised by Close.
func (b *Batch) Add(c Config, r Row) error { return b.add(c, r, 1) }

// AddUnweighted appends a row whose session has log probabilities but no part in
// the next-token loss: a winner or a loser of DPO.
func (b *Batch) AddUnweighted(c Config, r Row) error { return b.add(c, r, 0) }

func (b *Batch) add(c Config, r Row, sessionWeight float32) error {
	if r.User < 0 || int(r.User) > c.Users {
		return fmt.Errorf("a row of user bucket %d; there are %d", r.User, c.Users)
	}
	if n := c.Tokens(r); n > c.MaxLen {
		return fmt.Errorf("a row of %d tokens exceeds the longest, %d; use Fit", n, c.MaxLen)
	}
	b.firstTarget = append(b.firstTarget, len(b.target))
	pos := int32(0)
	push := func(t int32) {
		b.tokens, b.pos = append(b.tokens, t), append(b.pos, pos)
		pos++
	}
	item := func(id Item, weight float32, predict bool) {
		for l, code := range id {
			t := c.token(l, code)
			if predict {
				b.at = append(b.at, int32(len(b.tokens)-1))
				b.target = append(b.target, t)
				b.weight = append(b.weight, weight)
			}
			push(t)
		}
	}
	push(c.first(r.User))
	for _, h := range r.History {
		item(h, b.historyWeight*sessionWeight, b.historyWeight*sessionWeight > 0)
		if !c.Compact {
			push(tokenSEP)
		}
	}
	push(tokenSES)
	for i, s := range r.Session {
		if i > 0 && !c.Compact {
			push(tokenSEP)
		}
		item(s, sessionWeight, true)
	}
	b.bounds = append(b.bounds, len(b.tokens))
	return nil
}

// Close normalises the weights, so that the loss is a mean.
func (b *Batch) Close() {
	var sum float32
	for _, w := range b.weight {
		sum += w
	}
	if sum > 0 {
		for i := range b.weight {
			b.weight[i] /= sum
		}
	}
}

// Tokens returns the number of tokens.
func (b *Batch) Tokens() int { return len(b.tokens) }

// Rows returns the number of rows.
func (b *Batch) Rows() int { return len(b.bounds) - 1 }

// Predictions returns the number of predictions of a row.
func (b *Batch) Predictions(row int) int {
	from, to := b.predictions(row)
	return to - from
}

// predictions are the bounds of a row's predictions.
func (b *Batch) predictions(row int) (from, to int) {
	if row+1 < len(b.firstTarget) {
		return b.firstTarget[row], b.firstTarget[row+1]
	}
	return b.firstTarget[row], len(b.target)
}

// Layout returns a row as the decoder reads it: its tokens, the weight of each in the loss (0: it is not
// predicted), with the codes of the history weighing historyWeight times those of the session, and where the
// session begins.
func (c Config) Layout(r Row, historyWeight float32) (tokens []int32, weights []float32, session int, err error) {
	b := NewBatch(historyWeight)
	if err := b.Add(c, r); err != nil {
		return nil, nil, 0, err
	}
	weights = make([]float32, len(b.tokens))
	for i, at := range b.at {
		weights[at+1] = b.weight[i]
	}
	return b.tokens, weights, c.RowTokens(len(r.History)), nil
}

// AddTokens appends a row as Layout returned it.
func (b *Batch) AddTokens(c Config, tokens []int32, weights []float32) error {
	if len(tokens) > c.MaxLen || len(weights) != len(tokens) {
		return fmt.Errorf("a row of %d tokens and %d weights; the longest has %d", len(tokens), len(weights), c.MaxLen)
	}
	predicted := 0
	for i, t := range tokens {
		if weights[i] != 0 {
			predicted++
		}
		if t < 0 || int(t) >= c.Vocab() || i == 0 && weights[0] != 0 {
			return fmt.Errorf("token %d of a row is %d with weight %g; there are %d tokens, and the first is not predicted", i, t, weights[i], c.Vocab())
		}
	}
	if most := (len(tokens) - 1) * c.Levels / c.stride(); predicted > most {
		return fmt.Errorf("%d of a row's %d tokens are predicted; the codes of items are %d at most", predicted, len(tokens), most)
	}
	b.firstTarget = append(b.firstTarget, len(b.target))
	first := int32(len(b.tokens))
	for i, t := range tokens {
		b.tokens, b.pos = append(b.tokens, t), append(b.pos, int32(i))
		if weights[i] != 0 {
			b.at, b.target, b.weight = append(b.at, first+int32(i)-1), append(b.target, t), append(b.weight, weights[i])
		}
	}
	b.bounds = append(b.bounds, len(b.tokens))
	return nil
}

// distinct are the tokens of a batch, each once, and which of them is where: the rows of what follows from a token alone.
type distinct struct {
	tokens []int32
	which  []int32 // for each token of the batch
	own    []int32 // memory of tokens
	rows   []int32 // vocabulary: where a token is in tokens, plus 1, while that is made
}

// find makes d that of tokens; without once, each place has a row of its own.
func (d *distinct) find(tokens []int32, once bool) {
	d.which = d.which[:0]
	if !once {
		d.tokens = tokens
		for i := range tokens {
			d.which = append(d.which, int32(i))
		}
		return
	}
	d.own = d.own[:0]
	for _, t := range tokens {
		if d.rows[t] == 0 {
			d.own = append(d.own, t)
			d.rows[t] = int32(len(d.own))
		}
		d.which = append(d.which, d.rows[t]-1)
	}
	for _, t := range d.own {
		d.rows[t] = 0
	}
	d.tokens = d.own
}

// Len implements ops.Rows.
func (d *distinct) Len() int { return len(d.tokens) }

// Bounds implements ops.Rows.
func (d *distinct) Bounds() []int { return []int{0, len(d.tokens)} }

// halves returns the rows of b in two parts of about as many tokens, in order; the second is empty if there is
// one row. They share what they can with b.
func (b *Batch) halves() (first, second *Batch) {
	row := 1
	for row < b.Rows() && b.bounds[row]+b.bounds[row+1] < len(b.tokens) {
		row++
	}
	const other = 1 << 56 // seed of the second's dropout
	return b.part(0, row, 0), b.part(row, b.Rows(), other)
}

// part returns rows lo to hi.
func (b *Batch) part(lo, hi int, seed uint64) *Batch {
	from, to := b.bounds[lo], b.bounds[hi]
	p := &Batch{tokens: b.tokens[from:to], pos: b.pos[from:to], bounds: []int{0}, dropout: b.dropout}
	p.dropout.Seed += seed
	for row := lo; row < hi; row++ {
		p.bounds = append(p.bounds, b.bounds[row+1]-from)
		first, end := b.predictions(row)
		p.firstTarget = append(p.firstTarget, len(p.at))
		for i := first; i < end; i++ {
			p.at = append(p.at, b.at[i]-int32(from))
		}
		p.target, p.weight = append(p.target, b.target[first:end]...), append(p.weight, b.weight[first:end]...)
	}
	return p
}
