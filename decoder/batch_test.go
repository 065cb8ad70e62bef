package decoder

import (
	"math/rand/v2"
	"reflect"
	"testing"
)

// TestLayout: a row written down as tokens and read back is the row.
func TestLayout(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	for _, c := range []Config{
		{Layers: 1, Dim: 8, Heads: 1, Hidden: 8, Levels: 3, Codes: 8, MaxLen: 80},
		{Layers: 1, Dim: 8, Heads: 1, Hidden: 8, Levels: 3, Codes: 8, MaxLen: 80, Compact: true, Users: 4},
	} {
		layout(t, r, c)
	}
}

func layout(t *testing.T, r *rand.Rand, c Config) {
	for _, historyWeight := range []float32{0, 0.25} {
		direct, read := NewBatch(historyWeight), NewBatch(historyWeight)
		for i := range 20 {
			row := randomRow(r, c, i%7, 1+i%3)
			row.User = int32(r.IntN(c.Users + 1))
			if err := direct.Add(c, row); err != nil {
				t.Fatal(err)
			}
			separators := i%7 + i%3 // one behind each item of the history, one between those of the session
			if c.Compact {
				separators = 0
			}
			tokens, weights, session, err := c.Layout(row, historyWeight)
			if err != nil {
				t.Fatal(err)
			}
			if tokens[session-1] != tokenSES {
				t.Errorf("the session begins at %d of %v", session, tokens)
			}
			if (tokens[0] == tokenBOS) != (row.User == 0) || len(tokens) != 2+(i%7+1+i%3)*c.Levels+separators {
				t.Errorf("the row of user %d is %v", row.User, tokens)
			}
			if err := read.AddTokens(c, tokens, weights); err != nil {
				t.Fatal(err)
			}
		}
		if !reflect.DeepEqual(direct, read) {
			t.Errorf("history weight %g: read back\n%+v, want\n%+v", historyWeight, read, direct)
		}
	}
	for name, bad := range map[string]struct {
		tokens  []int32
		weights []float32
	}{
		"a token that there is not": {[]int32{0, int32(c.Vocab())}, []float32{0, 1}},
		"a negative one":            {[]int32{0, -1}, []float32{0, 1}},
		"nothing before the first":  {[]int32{0, 1}, []float32{1, 1}},
		"fewer weights":             {[]int32{0, 1}, []float32{0}},
		"too long":                  {make([]int32, 81), make([]float32, 81)},
	} {
		if err := NewBatch(1).AddTokens(c, bad.tokens, bad.weights); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
