// Package decoder is the generative recommender: a causal transformer that reads
// a user's recent history as semantic IDs and writes the next session, item by
// item, code by code.
//
// # Rows
//
// A training row is the history, then the session:
//
//	BOS  h1.1 h1.2 h1.3 SEP  h2.1 h2.2 h2.3 SEP ... SES  s1.1 s1.2 s1.3 SEP ...
//
// where x.l is the code of item x at level l. The token before an item's first
// code is always BOS, SEP or SES; each code is predicted from the token before
// it. Rows of a batch are packed one after the other, so nothing is padded. Rows
// may be compact, without SEP, and begin with a user's token instead of BOS; see [Config].
//
// # Training and generation
//
// Training goes through gorgonia: the model is an expression graph of coarse
// operations over internal/kernels, differentiated by gorgonia and stepped by a
// gorgonia Solver; a machine that plans its memory runs it (graph.go, internal/ops). Generation (generate.go)
// drives the same kernels directly with a KV cache. A test holds the two against
// each other.
package decoder

import (
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"onerec/internal/safetensors"
)

// Config is the architecture: RMSNorm before each part, rotary positions,
// SwiGLU, no biases, tied embeddings, as in Llama (Touvron et al., arXiv
// 2302.13971).
type Config struct {
	Layers int `json:"layers"`
	Dim    int `json:"dim"`     // width of the residual stream
	Heads  int `json:"heads"`   // attention heads; Dim / Heads is even
	Hidden int `json:"hidden"`  // width of the feed-forward part, or of each expert
	Levels int `json:"levels"`  // codes of an item
	Codes  int `json:"codes"`   // values of a code
	MaxLen int `json:"max_len"` // longest row, in tokens
	// Compact leaves SEP out: items follow each other, and the first code of one is predicted
	// from the last of the one before. Rows are a fourth shorter with three levels.
	Compact bool `json:"compact,omitempty"`
	// Users is the number of tokens for users, who are hashed into that many buckets (TIGER,
	// arXiv 2305.05065, section 3.2). A row of a known user begins with the user's instead of BOS.
	Users int `json:"users,omitempty"`
	// Experts makes the feed-forward part a sparse mixture of so many, as the paper's is (OneRec, arXiv
	// 2502.18965): each token goes to the Active ones that its layer's router gives most. 0: one part, for all tokens, as
	// presets have: on the data that we know experts earn nothing (docs/decoder.md).
	Experts int `json:"experts,omitempty"`
	Active  int `json:"active,omitempty"` // experts of a token, 2 at least
}

// Preset returns the named size for a codebook of levels x codes and rows that
// hold a history of n and a session of m items.
func Preset(name string, levels, codes, n, m int) (Config, error) {
	c := Config{Levels: levels, Codes: codes}
	c.MaxLen = c.RowTokens(n + m)
	switch name {
	case "tiny":
		c.Layers, c.Dim, c.Heads, c.Hidden = 2, 64, 2, 176
	case "small":
		c.Layers, c.Dim, c.Heads, c.Hidden = 4, 128, 4, 352
	case "base":
		c.Layers, c.Dim, c.Heads, c.Hidden = 6, 256, 8, 688
	default:
		return Config{}, fmt.Errorf("decoder preset %q is not one of %s", name, strings.Join(Presets(), ", "))
	}
	return c, nil
}

// Presets lists the names of sizes.
func Presets() []string { return []string{"tiny", "small", "base"} }

// WithRows returns c with rows that are compact or not, of so many user buckets, as long as
// that takes for the same number of items.
func (c Config) WithRows(compact bool, users int) Config {
	items := c.MaxItems()
	c.Compact, c.Users = compact, users
	c.MaxLen = c.RowTokens(items)
	return c
}

// Special tokens; the codes of level l follow at firstCode + l*Codes, and the users behind the codes.
const (
	tokenBOS = iota // begins a row
	tokenSEP        // ends an item
	tokenSES        // ends the history, begins the session
	firstCode
)

// Vocab is the number of tokens.
func (c Config) Vocab() int { return firstCode + c.Levels*c.Codes + c.Users }

// stride is the number of tokens of an item, its separator included.
func (c Config) stride() int {
	if c.Compact {
		return c.Levels
	}
	return c.Levels + 1
}

// RowTokens is the length of a row of so many items, history and session together, at most: the
// last item of a session has no separator.
func (c Config) RowTokens(items int) int { return 2 + items*c.stride() }

// predictions is how many codes rows of so many tokens have at most, all of which may be predicted.
func (c Config) predictions(tokens int) int { return (tokens*c.Levels + c.stride() - 1) / c.stride() }

// User is the bucket of a user for [Row] and [Options]; 0, which stands for any user, if the
// model knows none, or none is named.
func (c Config) User(id string) int32 {
	if c.Users == 0 || id == "" {
		return 0
	}
	h := fnv.New64a()
	h.Write([]byte(id)) // a hash never fails
	return 1 + int32(h.Sum64()%uint64(c.Users))
}

// first is the token that a row begins with.
func (c Config) first(user int32) int32 {
	if user == 0 {
		return tokenBOS
	}
	return int32(c.Vocab()-c.Users) + user - 1
}

// MaxItems is the number of items, history and session together, that a row of
// MaxLen tokens holds.
func (c Config) MaxItems() int { return (c.MaxLen - 2) / c.stride() }

func (c Config) token(level int, code uint16) int32 {
	return int32(firstCode + level*c.Codes + int(code))
}

func (c Config) check() error {
	switch {
	case c.Layers < 1 || c.Layers > 64 || c.Dim < 2 || c.Dim > 8192 || c.Heads < 1 || c.Hidden < 1 || c.Hidden > 1<<16:
		return fmt.Errorf("decoder: %d layers of width %d, %d heads, hidden %d is out of range", c.Layers, c.Dim, c.Heads, c.Hidden)
	case c.Dim%(2*c.Heads) != 0:
		return fmt.Errorf("decoder: width %d must be a multiple of twice the %d heads", c.Dim, c.Heads)
	case c.Levels < 1 || c.Levels > 16 || c.Codes < 1 || c.Codes > 1<<16:
		return fmt.Errorf("decoder: %d levels of %d codes is out of range", c.Levels, c.Codes)
	case c.Users < 0 || c.Users > 1<<20:
		return fmt.Errorf("decoder: %d buckets of users is out of range", c.Users)
	case c.Experts == 0 && c.Active != 0, c.Experts != 0 && (c.Active < 2 || c.Active > c.Experts || c.Experts > 1<<10):
		return fmt.Errorf("decoder: %d active experts of %d is out of range: at least 2 are active, at most 1024 are there; without experts both are 0", c.Active, c.Experts)
	case c.MaxLen < c.Levels+2 || c.MaxLen > 1<<17:
		return fmt.Errorf("decoder: rows of %d tokens is out of range", c.MaxLen)
	}
	return nil
}

// Weights are the parameters, in a fixed order.
type Weights struct {
	Config Config
	params []safetensors.Tensor
}

type layerWeights struct {
	normAttn, qkv, out, normFF, up, down []float32
	router                               []float32 // of a mixture of experts
}

// layout lists names and shapes. A matrix is out x in, as in PyTorch; experts have one each, one after the other.
func (c Config) layout() []safetensors.Tensor {
	t := []safetensors.Tensor{{Name: "embed", Shape: []int{c.Vocab(), c.Dim}}}
	for l := range c.Layers {
		name := func(s string) string { return fmt.Sprintf("layers.%d.%s", l, s) }
		t = append(t,
			safetensors.Tensor{Name: name("norm_attn"), Shape: []int{c.Dim}},
			safetensors.Tensor{Name: name("qkv"), Shape: []int{3 * c.Dim, c.Dim}},
			safetensors.Tensor{Name: name("out"), Shape: []int{c.Dim, c.Dim}},
			safetensors.Tensor{Name: name("norm_ff"), Shape: []int{c.Dim}},
		)
		up, down := []int{2 * c.Hidden, c.Dim}, []int{c.Dim, c.Hidden}
		if c.Experts == 0 {
			t = append(t, safetensors.Tensor{Name: name("up"), Shape: up}, safetensors.Tensor{Name: name("down"), Shape: down})
			continue
		}
		t = append(t,
			safetensors.Tensor{Name: name("up"), Shape: append([]int{c.Experts}, up...)},
			safetensors.Tensor{Name: name("down"), Shape: append([]int{c.Experts}, down...)},
			safetensors.Tensor{Name: name("router"), Shape: []int{c.Experts, c.Dim}},
		)
	}
	return append(t, safetensors.Tensor{Name: "norm", Shape: []int{c.Dim}})
}

// NewWeights draws weights: normal with deviation 0.02, the projections back
// into the residual stream scaled by 1/sqrt(2 layers) (GPT-2, Radford et al.,
// 2019), gains of 1.
func NewWeights(c Config, seed uint64) (*Weights, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	w := &Weights{Config: c, params: c.layout()}
	rng := rand.New(rand.NewPCG(seed, 0xdec0de))
	for i := range w.params {
		t := &w.params[i]
		n := 1
		for _, d := range t.Shape {
			n *= d
		}
		t.Data = make([]float32, n)
		dev := 0.02
		switch {
		case len(t.Shape) == 1:
			for j := range t.Data {
				t.Data[j] = 1
			}
			continue
		case strings.HasSuffix(t.Name, ".out"), strings.HasSuffix(t.Name, ".down"):
			dev /= math.Sqrt(float64(2 * c.Layers))
		}
		for j := range t.Data {
			t.Data[j] = float32(rng.NormFloat64() * dev)
		}
	}
	return w, nil
}

// Tensors returns the parameters, shared, not copied.
func (w *Weights) Tensors() []safetensors.Tensor { return w.params }

// LoadWeights takes tensors as Tensors returned them; it checks names and shapes.
func LoadWeights(c Config, tensors []safetensors.Tensor) (*Weights, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	byName := make(map[string]safetensors.Tensor, len(tensors))
	for _, t := range tensors {
		byName[t.Name] = t
	}
	w := &Weights{Config: c, params: c.layout()}
	for i := range w.params {
		want := &w.params[i]
		got, ok := byName[want.Name]
		if !ok || fmt.Sprint(got.Shape) != fmt.Sprint(want.Shape) {
			return nil, fmt.Errorf("load decoder: tensor %q has shape %v, want %v", want.Name, got.Shape, want.Shape)
		}
		if i := slices.IndexFunc(got.Data, notFinite); i >= 0 {
			return nil, fmt.Errorf("load decoder: tensor %q holds %v", want.Name, got.Data[i])
		}
		want.Data = got.Data
	}
	return w, nil
}

// notFinite reports an infinity or not a number: all bits of the exponent are set.
func notFinite(v float32) bool {
	const exponent = 0xff << 23
	return math.Float32bits(v)&exponent == exponent
}

// Clone returns a copy that shares nothing.
func (w *Weights) Clone() *Weights {
	c := &Weights{Config: w.Config, params: w.Config.layout()}
	for i := range c.params {
		c.params[i].Data = append([]float32(nil), w.params[i].Data...)
	}
	return c
}

// Follow moves w towards trained weights of the same shape: w becomes their exponential
// moving average, with the given decay by step. After few steps it forgets faster, or it
// would hold on to the first weights.
func (w *Weights) Follow(trained *Weights, decay float64, steps int) {
	keep := float32(min(decay, float64(1+steps)/float64(10+steps)))
	for i, t := range trained.params {
		average := w.params[i].Data
		for j, v := range t.Data {
			average[j] = keep*average[j] + (1-keep)*v
		}
	}
}

// Count is the number of parameters.
func (w *Weights) Count() int { return int(w.Config.count()) }

func (w *Weights) embed() []float32 { return w.params[0].Data }
func (w *Weights) norm() []float32  { return w.params[len(w.params)-1].Data }

func (w *Weights) layer(l int) layerWeights {
	of := layerParams(w.Config, w.params, l)
	p := layerWeights{of[0].Data, of[1].Data, of[2].Data, of[3].Data, of[4].Data, of[5].Data, nil}
	if w.Config.Experts > 0 {
		p.router = of[6].Data
	}
	return p
}

// layerParams returns those of a layer, of all in the order of layout.
func layerParams[T any](c Config, all []T, l int) []T {
	each := (len(all) - 2) / c.Layers
	return all[1+each*l:][:each]
}
