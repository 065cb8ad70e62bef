package nextitem

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"onerec/decoder"
	"onerec/internal/kernels"
	"onerec/internal/ops"
	"onerec/internal/safetensors"
	"onerec/semanticid"
)

// Config holds everything that a result depends on, but the data.
type Config struct {
	Levels    int     `json:"levels"`
	Codes     int     `json:"codes"`
	RandomIDs bool    `json:"random_ids"` // the control: the same IDs, given to items at random
	Width     int     `json:"embedding_width"`
	Window    int     `json:"embedding_window"`
	Attribute float64 `json:"attribute_weight"`

	Layers int `json:"layers"`
	Dim    int `json:"dim"`
	Heads  int `json:"heads"`
	Hidden int `json:"hidden"`
	Items  int `json:"items"` // of a row at most, the newest

	Experts int `json:"experts,omitempty"` // of width Hidden, of which Active work on a token; 0: one part
	Active  int `json:"active,omitempty"`

	Compact bool `json:"compact,omitempty"` // rows without separators between items
	Users   int  `json:"users,omitempty"`   // buckets of users who have a token; 0: none

	Epochs       int     `json:"epochs"`
	BatchTokens  int     `json:"batch_tokens"`
	LearningRate float64 `json:"learning_rate"` // at its highest; it falls with a cosine to 0
	Warmup       int     `json:"warmup_steps"`
	WeightDecay  float64 `json:"weight_decay"`
	Dropout      float64 `json:"dropout"`
	Average      float64 `json:"average,omitempty"` // decay by step of the weights' moving average, which is what is tested; 0: the weights
	// Augmentation, anew in each epoch: share of a row's items that are left out, and of
	// neighbours that are exchanged (crop, mask and reorder of CL4SRec, arXiv 2010.14395).
	LeaveOut float64 `json:"leave_out"`
	Exchange float64 `json:"exchange"`

	Beams      int    `json:"beams"`
	Numbers    string `json:"numbers,omitempty"` // that searches compute in; empty: float32
	Every      int    `json:"validate_every"`    // epochs
	Validation int    `json:"validation_users"`  // a sample of so many; 0: all
	Patience   int    `json:"patience"`          // validations without a better one that end training; 0: never
	Seed       uint64 `json:"seed"`
}

// DefaultConfig suits a set of the size of Amazon Beauty.
func DefaultConfig() Config {
	return Config{
		Levels: 2, Codes: 2048, Width: 128, Window: 5, Attribute: 1,
		Layers: 4, Dim: 128, Heads: 4, Hidden: 352, Items: 32,
		Epochs: 40, BatchTokens: 4096, LearningRate: 2e-3, Warmup: 200, WeightDecay: 0.05, Dropout: 0.4,
		Beams: 50, Every: 4, Validation: 10_000, Patience: 5, Seed: 1,
	}
}

// Point is a validation during training.
type Point struct {
	Epoch    int     `json:"epoch"`
	Loss     float64 `json:"loss"` // of training, nats a code, mean since the last point
	Recall10 float64 `json:"recall_10"`
	NDCG10   float64 `json:"ndcg_10"`
	Seconds  float64 `json:"seconds"` // of training so far
	// Balance is how evenly tokens went to experts in the last step, see decoder.Losses; 0 without experts.
	Balance float64 `json:"balance,omitempty"`
}

// Result is what a run found.
type Result struct {
	Config     Config  `json:"config"`
	Test       bool    `json:"test"` // else the metrics are of the validation
	Model      Metrics `json:"model"`
	Popularity Metrics `json:"popularity"`
	Best       int     `json:"best_epoch"`
	Weights    int     `json:"weights"`
	TokensPerS float64 `json:"tokens_per_second"`
	Curve      []Point `json:"curve"`
}

// Run trains on the training parts, keeps the weights of the best validation, and reads
// the test users once, at the end, or not at all without final: then the result is that
// of the validation, for choosing among configurations. With a folder dir, which exists, it keeps its state
// after each validation and goes on from there. progress may be nil.
func Run(ctx context.Context, d *Data, cfg Config, final bool, dir string, progress func(stage, unit string, done, total int)) (*Result, error) {
	if progress == nil {
		progress = func(string, string, int, int) {}
	}
	r := &run{cfg: cfg, data: d, dir: dir, progress: progress}
	if err := r.prepare(ctx); err != nil {
		return nil, fmt.Errorf("next item: %w", err)
	}
	if err := r.train(ctx); err != nil {
		return nil, fmt.Errorf("next item: %w", err)
	}
	users := make([]int32, len(d.Sequences))
	for i := range users {
		users[i] = int32(i)
	}
	ask, stage := test, "test"
	if !final {
		ask, stage = validation, "validate the best"
	}
	ranks, err := r.ranks(ctx, r.best, users, ask, stage)
	if err != nil {
		return nil, fmt.Errorf("next item: %w", err)
	}
	return &Result{
		Config: cfg, Test: final, Model: measure(ranks, cfg.Seed), Popularity: measure(popularity(d, users, ask), cfg.Seed),
		Best: r.state.Best, Weights: r.weights.Count(), TokensPerS: float64(r.state.Tokens) / max(r.state.Seconds, 1e-9), Curve: r.state.Curve,
	}, nil
}

// state is what a run remembers beside its tensors.
type state struct {
	Key     string // of the configuration and the data
	Epoch   int    // finished
	Steps   int
	Tokens  int64
	Seconds float64 // of training
	Best    int     // epoch of the best weights
	Score   float64 // of them: NDCG at 10 in validation
	Worse   int     // validations since
	Curve   []Point
	Done    bool
}

type run struct {
	cfg      Config
	data     *Data
	dir      string
	progress func(stage, unit string, done, total int)

	cb            *semanticid.Codebook
	ids           []decoder.Item // by index of the data
	byCodebook    []int32        // index of the data by that of the codebook
	inCodebook    []int32        // and the other way
	shape         decoder.Config
	weights, best *decoder.Weights
	average       *decoder.Weights // the same as weights without an average
	solver        *ops.Solver
	numbers       decoder.Numbers
	state         state
}

// prepare makes the codebook from the training parts, and the first weights.
func (r *run) prepare(ctx context.Context) (err error) {
	c := r.cfg
	if r.numbers, err = decoder.ParseNumbers(cmp.Or(c.Numbers, decoder.Float32.String())); err != nil {
		return err
	}
	embedder := semanticid.NewEmbedder(c.Width, c.Window, c.Seed)
	embedder.Attributes = c.Attribute
	for _, s := range r.data.Sequences {
		names := make([]string, 0, len(s))
		for _, i := range training(s) {
			names = append(names, r.data.Items[i])
		}
		embedder.Add(names)
	}
	for _, item := range r.data.Items { // those too that only stand among the last two items
		var attributes []string
		if r.data.Attributes != nil {
			attributes = r.data.Attributes(item)
		}
		embedder.Describe(item, attributes)
	}
	x, err := embedder.Embed()
	if err != nil {
		return err
	}
	r.cb, err = semanticid.Build(ctx, embedder.Items(), x, c.Width, semanticid.Config{Levels: c.Levels, Codes: c.Codes, Seed: c.Seed, Progress: func(level, iteration int, distortion float64) {
		r.progress(fmt.Sprintf("level %d of %d", level+1, c.Levels), fmt.Sprintf("iterations, distortion %.4g", distortion), iteration, 0)
	}})
	if err != nil {
		return err
	}
	if c.RandomIDs {
		r.cb = r.cb.Shuffled(c.Seed)
	}
	r.ids, r.byCodebook, r.inCodebook = make([]decoder.Item, len(r.data.Items)), make([]int32, len(r.data.Items)), make([]int32, len(r.data.Items))
	for i, item := range r.data.Items {
		at, ok := r.cb.Index(item)
		if !ok {
			return fmt.Errorf("item %q has no semantic ID", item)
		}
		r.ids[i], r.byCodebook[at], r.inCodebook[i] = r.cb.ID(at), int32(i), at
	}
	r.shape = decoder.Config{Layers: c.Layers, Dim: c.Dim, Heads: c.Heads, Hidden: c.Hidden, Levels: c.Levels, Codes: r.cb.Codes(), Compact: c.Compact, Users: c.Users, Experts: c.Experts, Active: c.Active}
	r.shape.MaxLen = r.shape.RowTokens(c.Items)
	if r.weights, err = decoder.NewWeights(r.shape, c.Seed); err != nil {
		return err
	}
	r.average = r.weights
	if c.Average > 0 {
		r.average = r.weights.Clone()
	}
	r.best, r.solver = r.weights.Clone(), ops.NewSolver(c.LearningRate, c.WeightDecay)
	h := sha256.New()
	learned := c
	learned.Beams, learned.Numbers = 0, "" // those that search may be others than those that chose
	if err := json.NewEncoder(h).Encode(learned); err != nil {
		return err
	}
	fmt.Fprint(h, r.data.Items, r.data.Sequences, r.cb.Version())
	r.state.Key = hex.EncodeToString(h.Sum(nil))
	return r.load()
}

// row is what a user's items look like to the decoder: one session, so that training and
// asking look alike.
func (r *run) row(user int, items []int32) decoder.Row {
	row := decoder.Row{User: r.shape.User(strconv.Itoa(user))}
	for _, i := range items {
		row.Session = append(row.Session, r.ids[i])
	}
	return row
}

// rows returns a row of each user, in random order; of longer sequences a random part.
func (r *run) rows(rng *rand.Rand) []sequence {
	rows := make([]sequence, 0, len(r.data.Sequences))
	for user, s := range r.data.Sequences {
		s = training(s)
		if over := len(s) - r.cfg.Items; over > 0 {
			from := rng.IntN(over + 1)
			s = s[from : from+r.cfg.Items]
		}
		s = augment(s, r.cfg.LeaveOut, r.cfg.Exchange, rng)
		rows = append(rows, sequence{user, s})
	}
	rng.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
	return rows
}

// sequence is what a user is trained on.
type sequence struct {
	user  int
	items []int32
}

// augment leaves out a share of the items, but for two at least, and exchanges a share of
// neighbours.
func augment(s []int32, leaveOut, exchange float64, rng *rand.Rand) []int32 {
	if leaveOut == 0 && exchange == 0 {
		return s
	}
	out := make([]int32, 0, len(s))
	for i, item := range s {
		if left := len(s) - i; len(out)+left > 2 && rng.Float64() < leaveOut {
			continue
		}
		out = append(out, item)
	}
	for i := 0; i+1 < len(out); i++ {
		if rng.Float64() < exchange {
			out[i], out[i+1] = out[i+1], out[i]
			i++
		}
	}
	return out
}

func (r *run) train(ctx context.Context) error {
	c := r.cfg
	graph, err := decoder.NewGraph(r.weights, max(c.BatchTokens, r.shape.MaxLen))
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(c.Seed, 0x7a11d))
	users := make([]int32, len(r.data.Sequences))
	for i, u := range rng.Perm(len(users)) {
		users[i] = int32(u)
	}
	if c.Validation > 0 {
		users = users[:min(c.Validation, len(users))]
	}
	var loss, balance float64
	steps := 0
	for !r.state.Done && r.state.Epoch < c.Epochs {
		rows := r.rows(rand.New(rand.NewPCG(c.Seed, uint64(r.state.Epoch))))
		for at := 0; at < len(rows); {
			if err := ctx.Err(); err != nil {
				return err
			}
			begun := time.Now()
			b := decoder.NewBatch(0)
			for at < len(rows) && (b.Tokens() == 0 || b.Tokens()+r.shape.Tokens(decoder.Row{Session: make([]decoder.Item, len(rows[at].items))}) <= c.BatchTokens) {
				if err := b.Add(r.shape, r.row(rows[at].user, rows[at].items)); err != nil {
					return err
				}
				at++
			}
			b.Close()
			total := float64(c.Epochs)
			done := float64(r.state.Epoch) + float64(at)/float64(len(rows))
			r.solver.LearningRate = c.LearningRate * min(1, float64(r.state.Steps+1)/float64(max(c.Warmup, 1))) * 0.5 * (1 + math.Cos(math.Pi*min(1, done/total)))
			l, err := graph.Step(b, nil, decoder.Dropout{Residual: float32(c.Dropout), Embedding: float32(c.Dropout), Seed: c.Seed<<32 + uint64(r.state.Steps)}, r.solver)
			if err != nil {
				return fmt.Errorf("step %d: %w", r.state.Steps, err)
			}
			loss, balance = loss+float64(l.NTP), float64(l.Balance)
			steps++
			r.state.Steps++
			if c.Average > 0 {
				r.average.Follow(r.weights, c.Average, r.state.Steps)
			}
			r.state.Tokens += int64(b.Tokens())
			r.state.Seconds += time.Since(begun).Seconds()
			r.progress(fmt.Sprintf("epoch %d of %d", r.state.Epoch+1, c.Epochs), fmt.Sprintf("users, loss %.3f", loss/float64(steps)), at, len(rows))
		}
		if r.state.Epoch++; r.state.Epoch%max(c.Every, 1) != 0 && r.state.Epoch < c.Epochs {
			continue
		}
		ranks, err := r.ranks(ctx, r.average, users, validation, "validate")
		if err != nil {
			return err
		}
		m := measure(ranks, c.Seed)
		r.state.Curve = append(r.state.Curve, Point{r.state.Epoch, loss / float64(steps), m.Recall10.Mean, m.NDCG10.Mean, r.state.Seconds, balance})
		loss, steps = 0, 0
		if r.state.Worse++; m.NDCG10.Mean > r.state.Score {
			r.state.Score, r.state.Best, r.state.Worse = m.NDCG10.Mean, r.state.Epoch, 0
			for i, t := range r.average.Tensors() {
				copy(r.best.Tensors()[i].Data, t.Data)
			}
		}
		r.state.Done = c.Patience > 0 && r.state.Worse >= c.Patience
		if err := r.save(); err != nil {
			return err
		}
	}
	return nil
}

// ranks returns for each user the rank of the wanted item among all that the user has not.
func (r *run) ranks(ctx context.Context, w *decoder.Weights, users []int32, ask func([]int32) ([]int32, int32), stage string) ([]int32, error) {
	gen, err := decoder.NewGenerator(w, r.cb)
	if err != nil {
		return nil, err
	}
	gen = gen.In(r.numbers)
	ranks, errs := make([]int32, len(users)), make([]error, len(users))
	const batch = 64
	for lo := 0; lo < len(users); lo += batch {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n := min(batch, len(users)-lo)
		kernels.Parallel(n, func(j int) {
			i := lo + j
			before, want := ask(r.data.Sequences[users[i]])
			o := decoder.Options{Length: 1, Width: r.cfg.Beams, Exclude: make(map[int32]bool, len(before))}
			for _, item := range before {
				if item != want {
					o.Exclude[r.inCodebook[item]] = true
				}
			}
			row := r.row(int(users[i]), before[max(0, len(before)-(r.cfg.Items-1)):])
			o.Session, o.User = row.Session, row.User
			lists, err := gen.Generate(o)
			ranks[i], errs[i] = beyond, err
			for rank, list := range lists {
				if r.byCodebook[list.Items[0]] == want {
					ranks[i] = int32(rank)
				}
			}
		})
		if err := errors.Join(errs[lo : lo+n]...); err != nil {
			return nil, err
		}
		r.progress(stage, "users", lo+n, len(users))
	}
	return ranks, nil
}

// stateFile holds a run's weights and moments, and in its metadata the state.
const stateFile = "state.safetensors"

func (r *run) tensors() []safetensors.Tensor {
	var out []safetensors.Tensor
	for i, t := range r.weights.Tensors() {
		size := len(t.Data)
		if len(r.solver.M) <= i {
			r.solver.M, r.solver.V = append(r.solver.M, make([]float32, size)), append(r.solver.V, make([]float32, size))
		}
		kinds := map[string][]float32{"now": t.Data, "best": r.best.Tensors()[i].Data, "m": r.solver.M[i], "v": r.solver.V[i]}
		if r.cfg.Average > 0 {
			kinds["average"] = r.average.Tensors()[i].Data
		}
		for kind, data := range kinds {
			out = append(out, safetensors.Tensor{Name: kind + "." + t.Name, Shape: t.Shape, Data: data})
		}
	}
	slices.SortFunc(out, func(a, b safetensors.Tensor) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
	return out
}

func (r *run) save() error {
	if r.dir == "" {
		return nil
	}
	meta, err := json.Marshal(r.state)
	if err != nil {
		return err
	}
	err = semanticid.WriteFile(filepath.Join(r.dir, stateFile), func(f *os.File) error {
		return safetensors.Write(f, safetensors.File{Metadata: map[string]string{"state": string(meta)}, Tensors: r.tensors()})
	})
	if err != nil {
		return fmt.Errorf("keep the state: %w", err)
	}
	return nil
}

// load goes on from what a run of the same configuration and data kept.
func (r *run) load() error {
	if r.dir == "" {
		return nil
	}
	path := filepath.Join(r.dir, stateFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	f, err := safetensors.Parse(data)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	var s state
	if err := json.Unmarshal([]byte(f.Metadata["state"]), &s); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if s.Key != r.state.Key {
		return fmt.Errorf("%s is of another configuration or other data; choose another folder, or remove it", path)
	}
	kept := make(map[string][]float32, len(f.Tensors))
	for _, t := range f.Tensors {
		kept[t.Name] = t.Data
	}
	for _, t := range r.tensors() {
		if len(kept[t.Name]) != len(t.Data) {
			return fmt.Errorf("%s: tensor %s has %d values, want %d", path, t.Name, len(kept[t.Name]), len(t.Data))
		}
		copy(t.Data, kept[t.Name])
	}
	r.state, r.solver.Steps = s, s.Steps
	return nil
}
