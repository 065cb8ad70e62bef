// Package trainer turns good sessions into a better decoder, for ever.
//
// [Learner] is the pure part: it takes sessions in their order and makes training
// steps, and what it does depends on nothing but the sessions, the
// configuration and the seed. [Run] feeds it from Kafka and publishes
// candidates.
//
// # What a step trains on
//
// Every session that arrives pays for a number of rows (the replay ratio). A
// step takes the sessions that were not trained on yet first and fills the rest
// of its batch from the replay buffer. Published weights are an exponential
// moving average of the trained ones, which does for an endless stream what a
// decaying learning rate does for a finite one (Polyak and Juditsky, 1992).
//
// # Held-out users
//
// A fixed share of users, by hash, is never trained on; their sessions measure
// the model: each once when it arrives ([Learner.Prequential]), and the newest ones
// together ([Learner.Evaluate]). They bring no item into the codebook either: that an item has an ID
// would tell that a held-out user engaged with it. An item that only they watch
// is therefore a miss for every model.
package trainer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"onerec/decoder"
	"onerec/internal/holdout"
	"onerec/internal/kernels"
	"onerec/internal/ops"
	"onerec/schemas/onerecv1"
	"onerec/semanticid"
)

// Config holds the hyperparameters.
type Config struct {
	Preset string // of the decoder
	Levels int    // of the codebook
	Codes  int    // of the codebook; 0 chooses
	// Headroom is the codebook's room for items to come, as a share of those there are.
	Headroom float64
	// Items of a row: History before the session at most, Session in it.
	History, Session int
	CompactRows      bool // without separators, see decoder.Config
	UserBuckets      int  // of users who have a token, see decoder.Config
	EmbeddingDim     int  // of learned item embeddings
	EmbeddingWindow  int

	BatchTokens  int     // tokens of a step at most
	ReplayRatio  float64 // rows trained for each row that arrives
	LearningRate float64
	WarmupSteps  int
	WeightDecay  float64
	Dropout      float64
	// EmbeddingDropout is that of the tokens' embeddings.
	EmbeddingDropout float64
	HistoryWeight    float64 // of the history's codes in the loss, against 1 for the session's
	Average          float64 // decay of the weights' moving average, per step

	Buffer int // sessions in the replay buffer at most
	// RebuildAfter is the growth of the catalogue after which the codebook is built anew, as
	// a share of the items that it was built with; 0: never.
	RebuildAfter float64
	// RebuildStick is what an item gives to keep its codes then, see semanticid.Config.
	RebuildStick float64

	HoldoutPercent int // share of users that is never trained on
	MaxHoldout     int // held-out sessions kept at most, the newest
	Seed           uint64
}

// DefaultConfig suits a small catalogue on a laptop.
func DefaultConfig() Config {
	return Config{
		Preset: "tiny", Levels: 3, Headroom: 1, History: 32, Session: 8, EmbeddingDim: 48, EmbeddingWindow: 12,
		BatchTokens: 2048, ReplayRatio: 10, LearningRate: 2e-3, WarmupSteps: 50, WeightDecay: 0.05,
		Dropout: 0.2, HistoryWeight: 0.25, Average: 0.995,
		Buffer: 50_000, RebuildAfter: 0.5, RebuildStick: 0.5, HoldoutPercent: 10, MaxHoldout: 500, Seed: 1,
	}
}

// sample is a row in terms of the items' indexes in the codebook. Only the session
// of a held-out user may hold unknown items.
type sample struct {
	user             int32 // see decoder.Config.User
	history, session []int32
}

// unknown is the index of an item that has no ID.
const unknown = -1

// decoder returns the architecture for a codebook.
func (c Config) decoder(cb *semanticid.Codebook) (decoder.Config, error) {
	dc, err := decoder.Preset(c.Preset, cb.Levels(), cb.Codes(), c.History, c.Session)
	if err != nil {
		return dc, err
	}
	return dc.WithRows(c.CompactRows, c.UserBuckets), nil
}

// Learner is the trainer's pure core. It is not safe for concurrent use.
type Learner struct {
	Available int64 // bytes that training may take; 0: nobody knows

	cfg Config

	catalogue *semanticid.Catalogue // what the items topic says
	dim       int                   // width of embeddings: the catalogue's, or Config's
	given     bool                  // embeddings are the catalogue's
	index     map[string]int32
	vectors   []float32 // embeddings by index
	pending   []*onerecv1.Session

	cb      *semanticid.Codebook
	raw     *decoder.Weights // what steps change
	average *decoder.Weights // what is published
	graph   *decoder.Graph
	eval    *decoder.Graph // over average
	solver  *ops.Solver

	buffer  []sample
	next    int // slot of the buffer that the next session takes once it is full
	fresh   []sample
	heldOut []sample
	nextOut int
	arrived []sample // held-out rows that are not scored yet, see Prequential
	scored  tally    // those that were, since the last ResetPrequential
	popular []int    // views of training users, by item
	follows successors

	memory Memory

	steps []StepRecord // since the last checkpoint that is kept

	debt float64 // rows that arrived sessions paid for
	stat Stats
}

// Stats counts since the learner began.
type Stats struct {
	Sessions int // that arrived, held-out ones included
	Steps    int
	Rows     int64
	Tokens   int64
	Skipped  int // steps whose loss or gradient was not finite
	// Diverging counts the latest steps in a row whose loss was far above LastLoss,
	// Rollbacks how often there were so many that the weights went back to their average.
	Diverging, Rollbacks int
	// Built is the number of items for which the codebook was built, New that of those
	// which got an ID since, Displaced that of new ones whose nearest ID was taken.
	Built, New, Displaced int
	Rebuilds              int
	// Unassigned counts sessions with an item that got no ID because the codebook is
	// full.
	Unassigned int
	FirstLoss  float64
	LastLoss   float64 // running mean of the newest steps
	GradNorm   float64
	Seconds    float64 // spent in steps
}

// TokensPerSecond is the speed of training steps.
func (s Stats) TokensPerSecond() float64 {
	if s.Seconds == 0 {
		return 0
	}
	return float64(s.Tokens) / s.Seconds
}

// NewLearner returns a learner that has seen nothing.
func NewLearner(cfg Config) *Learner {
	return &Learner{
		cfg:       cfg,
		catalogue: new(semanticid.Catalogue),
		index:     make(map[string]int32),
	}
}

// Describe takes what the items topic says of an item; a nil item is taken out of the
// catalogue. Until Bootstrap it is only kept. Afterwards, where embeddings are the
// catalogue's, an item that has one gets an ID at once, before anybody has watched it.
func (l *Learner) Describe(id string, item *onerecv1.Item) error {
	if item == nil {
		l.catalogue.Remove(id)
		return nil
	}
	l.catalogue.Put(item)
	if l.cb == nil || !l.given {
		return nil
	}
	if _, known := l.index[id]; known || len(item.Embedding) != l.dim {
		return nil
	}
	err := l.give(id, item.Embedding)
	if errors.Is(err, semanticid.ErrFull) {
		l.stat.Unassigned++
		return nil
	}
	return err
}

// Catalogue returns what the learner knows of items.
func (l *Learner) Catalogue() *semanticid.Catalogue { return l.catalogue }

// Observe takes the next good session. It trains nothing; see Step.
func (l *Learner) Observe(s *onerecv1.Session) error {
	l.stat.Sessions++
	if l.cb == nil {
		l.pending = append(l.pending, s)
		if len(l.pending) > l.cfg.Buffer {
			l.pending = l.pending[1:]
		}
		return nil
	}
	if err := l.add(s, true); err != nil {
		return err
	}
	if len(l.arrived) < prequentialRows {
		return nil
	}
	return l.scoreArrived(context.Background())
}

// Waiting returns how many sessions wait for Bootstrap.
func (l *Learner) Waiting() int { return len(l.pending) }

// Ready reports whether there is a model.
func (l *Learner) Ready() bool { return l.cb != nil }

// sequence is what a session says about which items are near a new one.
func (l *Learner) sequence(s *onerecv1.Session) []string {
	var seq []string
	for _, h := range s.History[max(0, len(s.History)-l.cfg.EmbeddingWindow):] {
		seq = append(seq, h.ItemId)
	}
	for _, v := range s.Views {
		seq = append(seq, v.ItemId)
	}
	return seq
}

// Sequences returns what each user of some sessions watched, in order, every item once
// although the histories of a user's sessions overlap; held-out users are left out.
func Sequences(sessions []*onerecv1.Session, holdoutPercent int) [][]string {
	var out [][]string
	type timeline struct {
		at      int   // in out
		through int64 // what is older is in it already; ms since epoch
	}
	users := make(map[string]*timeline)
	for _, s := range sessions {
		if holdout.Contains(s.UserId, holdoutPercent) {
			continue
		}
		u := users[s.UserId]
		if u == nil {
			u = &timeline{at: len(out), through: math.MinInt64}
			users[s.UserId] = u
			out = append(out, nil)
		}
		for _, h := range s.History {
			if h.EventTimeMs > u.through {
				out[u.at] = append(out[u.at], h.ItemId)
			}
		}
		for _, v := range s.Views {
			out[u.at] = append(out[u.at], v.ItemId)
		}
		u.through = max(u.through, s.EndMs)
	}
	return out
}

// Bootstrap builds the codebook, over the catalogue's embeddings or over those that it
// learns from the sessions so far, and draws the first weights.
func (l *Learner) Bootstrap(ctx context.Context) error {
	if len(l.pending) == 0 {
		return errors.New("bootstrap: no good session has arrived")
	}
	sequences := Sequences(l.pending, l.cfg.HoldoutPercent)
	if len(sequences) == 0 {
		return fmt.Errorf("bootstrap: all %d good sessions are of held-out users", len(l.pending))
	}
	e := l.catalogue.Embeddings()
	if l.given = len(e.Items) > 0; !l.given {
		var err error
		if e, err = l.embed(sequences, nil); err != nil {
			return fmt.Errorf("bootstrap: %w", err)
		}
	}
	l.dim, l.vectors, l.stat.Built = e.Dim, e.X, len(e.Items)
	cb, err := semanticid.Build(ctx, e.Items, e.X, e.Dim, semanticid.Config{Levels: l.cfg.Levels, Codes: l.cfg.Codes, Headroom: l.cfg.Headroom, Seed: l.cfg.Seed})
	if err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	dc, err := l.cfg.decoder(cb)
	if err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	w, err := decoder.NewWeights(dc, l.cfg.Seed)
	if err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	if err := l.begin(cb, w, w.Clone(), ops.NewSolver(l.cfg.LearningRate, l.cfg.WeightDecay)); err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	pending := l.pending
	l.pending = nil
	for _, s := range pending {
		if err := l.add(s, true); err != nil {
			return fmt.Errorf("bootstrap: %w", err)
		}
	}
	return nil
}

// embed learns embeddings from what was watched together and from the catalogue's
// attributes; with old ones, those of the same items stay near them, and all are kept.
func (l *Learner) embed(sequences [][]string, old *semanticid.Embeddings) (*semanticid.Embeddings, error) {
	embedder := semanticid.NewEmbedder(l.cfg.EmbeddingDim, l.cfg.EmbeddingWindow, l.cfg.Seed)
	for _, sequence := range sequences {
		embedder.Add(sequence)
	}
	watched := len(embedder.Items())
	for item := range l.catalogue.All {
		if attributes := l.catalogue.Attributes(item.ItemId); len(attributes) > 0 {
			embedder.Describe(item.ItemId, attributes)
		}
	}
	if old != nil {
		return embedder.Refresh(old)
	}
	x, err := embedder.Embed()
	if err != nil {
		return nil, err
	}
	e := &semanticid.Embeddings{Dim: l.cfg.EmbeddingDim}
	for i, item := range embedder.Items() {
		// What was watched gets an ID in any case; what was not, if something is known of it.
		row := x[i*e.Dim : (i+1)*e.Dim]
		if i < watched || kernels.Dot(row, row) > 0 {
			e.Items, e.X = append(e.Items, item), append(e.X, row...)
		}
	}
	return e, nil
}

// Outgrown reports whether so many items came since the codebook was built that it should
// be built anew.
func (l *Learner) Outgrown() bool {
	return l.cb != nil && l.cfg.RebuildAfter > 0 && float64(l.stat.New) > l.cfg.RebuildAfter*float64(l.stat.Built)
}

// Rebuild builds the codebook anew, over all items and embeddings learned from what is in
// the replay buffer, or the catalogue's. It starts from the present one, so that codes go
// on meaning what they meant, nearly, and the decoder is not drawn anew. It returns how
// much of the items' IDs was kept, see [semanticid.Codebook.Kept]. An error leaves the
// learner as it was.
func (l *Learner) Rebuild(ctx context.Context) ([]float64, error) {
	old := &semanticid.Embeddings{Dim: l.dim, X: slices.Clone(l.vectors)}
	for i := range int32(l.cb.Len()) {
		old.Items = append(old.Items, l.cb.Item(i))
	}
	var e *semanticid.Embeddings
	if l.given {
		e = old
		for item := range l.catalogue.All {
			if i, ok := l.index[item.ItemId]; ok && len(item.Embedding) == l.dim {
				copy(e.X[int(i)*l.dim:], item.Embedding)
			}
		}
	} else {
		var sequences [][]string
		for _, s := range l.buffer {
			var items []string
			for _, i := range append(slices.Clip(s.history), s.session...) {
				items = append(items, l.cb.Item(i))
			}
			sequences = append(sequences, items)
		}
		var err error
		if e, err = l.embed(sequences, old); err != nil {
			return nil, fmt.Errorf("rebuild: %w", err)
		}
	}
	cb, err := semanticid.Build(ctx, e.Items, e.X, e.Dim, semanticid.Config{Levels: l.cfg.Levels, Codes: l.cb.Codes(), Seed: l.cfg.Seed, Warm: l.cb, Stick: l.cfg.RebuildStick})
	if err != nil {
		return nil, fmt.Errorf("rebuild: %w", err)
	}
	kept := cb.Kept(l.cb)
	l.cb, l.vectors = cb, e.X
	for i := len(l.popular); i < cb.Len(); i++ { // new ones, known by their attributes
		l.index[cb.Item(int32(i))] = int32(i)
		l.popular = append(l.popular, 0)
	}
	l.stat.Built, l.stat.New, l.stat.Displaced = cb.Len(), 0, 0
	l.stat.Rebuilds++
	return kept, nil
}

// begin starts training from a model.
func (l *Learner) begin(cb *semanticid.Codebook, raw, average *decoder.Weights, solver *ops.Solver) (err error) {
	l.cb, l.raw, l.average, l.solver = cb, raw, average, solver
	for i := range int32(cb.Len()) {
		l.index[cb.Item(i)] = i
	}
	l.popular = make([]int, cb.Len())
	capacity := max(l.cfg.BatchTokens, raw.Config.MaxLen) // the longest row fits in any case
	if l.memory, err = l.fits(raw.Config, capacity); err != nil {
		return err
	}
	if l.graph, err = decoder.NewGraph(l.raw, capacity); err != nil {
		return err
	}
	l.eval, err = decoder.NewScorer(l.average, capacity)
	return err
}

// Memory is what training takes at most, in bytes.
type Memory struct {
	decoder.Memory
	Scorer int64 // of held-out users
	Buffer int64 // of replay and held-out rows
}

// Total is the sum.
func (m Memory) Total() int64 { return m.Memory.Total() + m.Scorer + m.Buffer }

func (m Memory) String() string {
	const mib = 1 << 20
	return fmt.Sprintf("%d MiB: weights %d, optimizer %d, activations %d, scratch %d, scorer %d, replay buffer %d", m.Total()/mib, m.Weights/mib, m.Optimizer/mib, m.Activations/mib, m.Scratch/mib, m.Scorer/mib, m.Buffer/mib)
}

// fits returns what training takes, and an error if that is more than is available.
func (l *Learner) fits(c decoder.Config, tokens int) (Memory, error) {
	m := Memory{Memory: c.Memory(tokens), Scorer: c.ScorerMemory(tokens)}
	m.Buffer = int64(l.cfg.Buffer+l.cfg.MaxHoldout) * (4*int64(l.cfg.History+l.cfg.Session) + 64)
	if l.Available > 0 && m.Total() > l.Available {
		return m, fmt.Errorf("training takes %v; %d MiB are available. Choose a smaller --preset, --batch-tokens or --replay-buffer", m, l.Available>>20)
	}
	return m, nil
}

// Memory returns what training takes at most, once there is a model.
func (l *Learner) Memory() Memory { return l.memory }

// add puts a session into the buffer or among the held-out ones; new items of
// training users get IDs.
func (l *Learner) add(s *onerecv1.Session, train bool) error {
	held := holdout.Contains(s.UserId, l.cfg.HoldoutPercent)
	if !held {
		if err := l.assign(s); err != nil {
			return err
		}
	}
	indexOf := func(item string) int32 {
		if i, ok := l.index[item]; ok {
			return i
		}
		return unknown
	}
	var history, session []int32
	for _, h := range s.History {
		history = append(history, indexOf(h.ItemId))
	}
	for _, v := range s.Views {
		session = append(session, indexOf(v.ItemId))
	}
	history = slices.DeleteFunc(history, isUnknown)
	if !held { // a held-out user's unknown item is a miss, a training user's nothing
		session = slices.DeleteFunc(session, isUnknown)
	}
	user := l.raw.Config.User(s.UserId)
	return cut(history, session, l.cfg.History, l.cfg.Session, func(row sample) error {
		row.user = user
		if held {
			l.heldOut, l.nextOut = ring(l.heldOut, l.nextOut, l.cfg.MaxHoldout, row)
			if train && l.stat.Steps > 0 {
				l.arrived = append(l.arrived, row)
			}
			return nil
		}
		last := int32(unknown)
		if len(row.history) > 0 {
			last = row.history[len(row.history)-1]
		}
		for _, i := range row.session {
			l.popular[i]++
			if last != unknown {
				l.follows.add(last, i)
			}
			last = i
		}
		l.buffer, l.next = ring(l.buffer, l.next, l.cfg.Buffer, row)
		if train {
			l.fresh = append(l.fresh, row)
			l.debt += l.cfg.ReplayRatio
		}
		return nil
	})
}

// cut makes rows of a session: a long one becomes several, each with the items before it as history.
func cut(history, session []int32, maxHistory, maxSession int, fn func(sample) error) error {
	for len(session) > 0 {
		n := min(len(session), maxSession)
		row := sample{history: history[max(0, len(history)-maxHistory):], session: session[:n]}
		session = session[n:]
		history = append(slices.Clip(history), slices.DeleteFunc(slices.Clone(row.session), isUnknown)...)
		if err := fn(row); err != nil {
			return err
		}
	}
	return nil
}

func isUnknown(item int32) bool { return item == unknown }

func ring(buf []sample, next, size int, s sample) ([]sample, int) {
	if len(buf) < size {
		return append(buf, s), 0
	}
	buf[next] = s
	return buf, (next + 1) % size
}

// assign gives the new items of a session IDs near the items they were watched
// with: their embedding is the catalogue's, or the mean of the session's known ones.
func (l *Learner) assign(s *onerecv1.Session) error {
	seq := l.sequence(s)
	for _, h := range s.History {
		seq = append(seq, h.ItemId)
	}
	var mean []float32
	for _, item := range seq {
		if _, ok := l.index[item]; ok {
			continue
		}
		if mean == nil {
			mean = l.meanOf(l.sequence(s))
		}
		x := mean
		if d := l.catalogue.Item(item); d != nil && l.given && len(d.Embedding) == l.dim {
			x = d.Embedding
		}
		if err := l.give(item, x); errors.Is(err, semanticid.ErrFull) {
			l.stat.Unassigned++
			return nil // training goes on with the items that have an ID
		} else if err != nil {
			return err
		}
	}
	return nil
}

// give gives a new item an ID near x, its embedding.
func (l *Learner) give(item string, x []float32) error {
	nearest, err := l.cb.Assign(item, x)
	if err != nil {
		return err
	}
	l.index[item] = int32(len(l.popular))
	l.popular = append(l.popular, 0)
	l.vectors = append(l.vectors, x...)
	l.stat.New++
	if !nearest {
		l.stat.Displaced++
	}
	return nil
}

func (l *Learner) meanOf(items []string) []float32 {
	d := l.dim
	mean := make([]float32, d)
	for _, item := range items {
		if i, ok := l.index[item]; ok && (int(i)+1)*d <= len(l.vectors) {
			kernels.Add(mean, l.vectors[int(i)*d:(int(i)+1)*d])
		}
	}
	if norm := math.Sqrt(float64(kernels.Dot(mean, mean))); norm > 1e-6 {
		for i := range mean {
			mean[i] /= float32(norm)
		}
	}
	return mean
}

// row returns a sample as the decoder reads it, unknown items left out.
func (l *Learner) row(s sample) decoder.Row {
	ids := func(items []int32) []decoder.Item {
		out := make([]decoder.Item, 0, len(items))
		for _, i := range items {
			if i != unknown {
				out = append(out, l.cb.ID(i))
			}
		}
		return out
	}
	return l.raw.Config.Fit(decoder.Row{History: ids(s.history), Session: ids(s.session), User: s.user})
}

// Due returns how many steps the arrived sessions have paid for, roughly.
func (l *Learner) Due() int {
	if l.cb == nil || len(l.buffer) == 0 || l.debt <= 0 {
		return 0
	}
	rowTokens := float64(l.raw.Config.RowTokens(l.cfg.History/2 + l.cfg.Session)) // a guess until there were rows
	if l.stat.Rows > 0 {
		rowTokens = float64(l.stat.Tokens) / float64(l.stat.Rows)
	}
	return int(math.Ceil(l.debt * rowTokens / float64(l.cfg.BatchTokens)))
}

// Training has diverged when so many steps in a row have a loss so many times and nats
// above the running mean: then the weights go back to their average, and the moments and
// the warm-up of the learning rate begin anew.
const (
	divergedSteps = 10
	divergedBy    = 1.5
)

// Step makes one training step if one is due, and reports whether it was.
func (l *Learner) Step() (bool, error) {
	if l.cb == nil || len(l.buffer) == 0 || l.debt <= 0 {
		return false, nil
	}
	start := time.Now()
	step := uint64(l.stat.Steps + l.stat.Skipped)
	rng := rand.New(rand.NewPCG(l.cfg.Seed, step))
	b := decoder.NewBatch(float32(l.cfg.HistoryWeight))
	was := StepRecord{}
	defer func() {
		if was.Rows > 0 {
			was.Step, was.Seconds = l.stat.Steps, time.Since(start).Seconds()
			l.record(was)
		}
	}()
	fresh := 0
	for {
		var s sample
		if len(l.fresh) > 0 {
			s = l.fresh[0]
		} else {
			s = l.buffer[rng.IntN(len(l.buffer))]
		}
		r := l.row(s)
		if b.Tokens() > 0 && b.Tokens()+l.raw.Config.Tokens(r) > l.cfg.BatchTokens {
			break
		}
		if err := b.Add(l.raw.Config, r); err != nil {
			return false, err
		}
		if len(l.fresh) > 0 {
			l.fresh = l.fresh[1:]
			fresh++
		}
		l.debt--
	}
	b.Close()
	l.solver.LearningRate = l.learningRate()
	losses, err := l.graph.Step(b, nil, decoder.Dropout{Residual: float32(l.cfg.Dropout), Embedding: float32(l.cfg.EmbeddingDropout), Seed: l.cfg.Seed<<32 + step}, l.solver)
	was = StepRecord{LearningRate: l.solver.LearningRate, Rows: b.Rows(), Tokens: b.Tokens(), Fresh: fresh}
	switch {
	case errors.Is(err, decoder.ErrNotFinite), errors.Is(err, ops.ErrDiverged):
		was.Skipped = true
		// The weights are as before; start again from their average.
		l.stat.Skipped++
		l.restart(l.average)
		return true, nil
	case err != nil:
		return false, err
	}
	l.stat.Steps++
	l.stat.Rows += int64(b.Rows())
	l.stat.Tokens += int64(b.Tokens())
	l.stat.GradNorm = l.solver.LastNorm
	was.Loss, was.GradNorm = float64(losses.NTP), l.stat.GradNorm
	if l.stat.Steps == 1 {
		l.stat.FirstLoss, l.stat.LastLoss = float64(losses.NTP), float64(losses.NTP)
	}
	if float64(losses.NTP) > divergedBy*l.stat.LastLoss+divergedBy {
		if l.stat.Diverging++; l.stat.Diverging == divergedSteps {
			l.restart(l.average)
			l.stat.Diverging = 0
			l.stat.Rollbacks++
		}
		l.stat.Seconds += time.Since(start).Seconds()
		return true, nil // the average does not follow
	}
	l.stat.Diverging = 0
	l.stat.LastLoss += 0.05 * (float64(losses.NTP) - l.stat.LastLoss)
	l.average.Follow(l.raw, l.cfg.Average, l.stat.Steps)
	l.stat.Seconds += time.Since(start).Seconds()
	return true, nil
}

// restart sets the trained weights to w and forgets the moments.
func (l *Learner) restart(w *decoder.Weights) {
	for i, t := range l.raw.Tensors() {
		copy(t.Data, w.Tensors()[i].Data)
	}
	*l.solver = *ops.NewSolver(l.cfg.LearningRate, l.cfg.WeightDecay)
}

// learningRate falls with the square root of time to a tenth, at which it stays
// for as long as the stream flows. It warms up while the solver's moments are
// young: at the beginning, and after a restart from other weights.
func (l *Learner) learningRate() float64 {
	hold := float64(4 * max(l.cfg.WarmupSteps, 1))
	n := max(float64(l.stat.Steps+1), hold)
	young := min(1, float64(l.solver.Steps+1)/float64(max(l.cfg.WarmupSteps, 1)))
	return l.cfg.LearningRate * young * max(0.1, math.Sqrt(hold/n))
}

// Stats returns the counters.
func (l *Learner) Stats() Stats { return l.stat }
