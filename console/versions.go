package console

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"onerec/internal/stream"
	"onerec/publisher"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

// Bounds of what is remembered of checkpoints.
const (
	keptVersions = 500      // the newest
	stepPoints   = 50       // of a candidate's training loss
	maxSteps     = 64 << 20 // bytes of a candidate's steps
	listEvery    = 5 * time.Second
	fileSteps    = "steps.jsonl" // of a candidate: what each step was
)

// versions keeps the manifests of checkpoints and what channels point at.
type versions struct {
	store *publisher.Store
	wake  chan struct{} // something was announced

	mu        sync.Mutex
	listed    bool
	manifests map[string]*publisher.Manifest
	steps     map[string][]step // by version, thinned out
	bad       map[string]string // versions that can't be read, and why
	channels  map[string]*onerecv1.CheckpointRef
}

// step is what a training step was; of several the mean.
type step struct {
	Step int     `json:"step"`
	Loss float64 `json:"loss"`
}

func newVersions(store *publisher.Store) *versions {
	return &versions{
		store: store, wake: make(chan struct{}, 1), manifests: make(map[string]*publisher.Manifest), steps: make(map[string][]step),
		bad: make(map[string]string), channels: make(map[string]*onerecv1.CheckpointRef),
	}
}

// follow keeps the channels.
func (v *versions) follow(ctx context.Context, c stream.Cluster, model string) error {
	return publisher.Follow(ctx, c, model, func(channel string, ref *onerecv1.CheckpointRef) {
		v.mu.Lock()
		if ref == nil {
			delete(v.channels, channel)
		} else {
			v.channels[channel] = ref
		}
		v.mu.Unlock()
		select {
		case v.wake <- struct{}{}:
		default:
		}
	})
}

// list keeps the manifests.
func (v *versions) list(ctx context.Context) error {
	for {
		names, err := v.store.List(ctx)
		if err != nil {
			return err
		}
		if err := v.take(ctx, names[max(0, len(names)-keptVersions):]); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-v.wake:
		case <-time.After(listEvery):
		}
	}
}

// take reads what is new of some versions, and forgets the others.
func (v *versions) take(ctx context.Context, names []string) error {
	v.mu.Lock()
	known := make(map[string]bool, len(v.manifests)+len(v.bad))
	for name := range v.manifests {
		known[name] = true
	}
	for name := range v.bad {
		known[name] = true
	}
	v.mu.Unlock()
	for _, name := range names {
		if known[name] {
			delete(known, name)
			continue
		}
		m, steps, err := v.read(ctx, name)
		v.mu.Lock()
		switch {
		case errors.Is(err, publisher.ErrNotFound): // it was removed meanwhile
		case errors.Is(err, publisher.ErrCorrupt), errors.Is(err, publisher.ErrUntrusted):
			v.bad[name] = err.Error()
		case err != nil:
			v.mu.Unlock()
			return err
		default:
			v.manifests[name] = m
			if len(steps) > 0 {
				v.steps[name] = steps
			}
		}
		v.mu.Unlock()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for name := range known { // no longer there
		delete(v.manifests, name)
		delete(v.steps, name)
		delete(v.bad, name)
	}
	v.listed = true
	return nil
}

func (v *versions) read(ctx context.Context, name string) (*publisher.Manifest, []step, error) {
	m, hash, err := v.store.Manifest(ctx, name, "")
	if err != nil {
		return nil, nil, err
	}
	if f, ok := m.File(fileSteps); !ok || f.Bytes > maxSteps {
		return m, nil, nil
	}
	_, files, err := v.store.Load(ctx, name, hash, fileSteps)
	if err != nil {
		return nil, nil, err
	}
	return m, thin(files[fileSteps]), nil
}

// thin reads the steps of a candidate and returns means over runs of them. Lines that are none are left out.
func thin(lines []byte) []step {
	var all []step
	sc := bufio.NewScanner(bytes.NewReader(lines))
	for sc.Scan() {
		var s step
		if json.Unmarshal(sc.Bytes(), &s) == nil && s.Loss > 0 {
			all = append(all, s)
		}
	}
	width := (len(all) + stepPoints - 1) / stepPoints
	var out []step
	for from := 0; from < len(all); from += width {
		run := all[from:min(len(all), from+width)]
		mean := 0.0
		for _, s := range run {
			mean += s.Loss / float64(len(run))
		}
		out = append(out, step{run[len(run)-1].Step, mean})
	}
	return out
}

// at returns the version that a channel points at, or "".
func (v *versions) at(channel string) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.channels[channel].GetVersion()
}

// has reports whether a version is there.
func (v *versions) has(version string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.manifests[version] != nil
}

// versionsView is what the page shows of checkpoints.
type versionsView struct {
	Loaded      bool
	Total       int
	Page, Pages int
	Versions    []versionView // the newest first
	Released    string
	Canary      string
	Candidate   string
	Earlier     string // what a rollback leads to, if it is there
	Held        string // why no other version is released; empty: nobody holds releases
	Bad         []badVersion
	Lineage     lineage
}

type badVersion struct{ Version, Why string }

// versionView is a checkpoint.
type versionView struct {
	*publisher.Manifest
	Channels []string
	Bytes    int64
	Figures  []figure // the most telling metrics
}

type figure struct {
	Name, Unit string
	Value      float64
}

// versionsAPage is how many the page shows at a time.
const versionsAPage = 10

func (v *versions) view(page int) versionsView {
	v.mu.Lock()
	defer v.mu.Unlock()
	all := v.sorted()
	out := versionsView{
		Loaded: v.listed, Total: len(all), Lineage: drawLineage(all, v.channelsOf),
		Released: v.channels[publisher.ChannelReleased].GetVersion(), Canary: v.channels[publisher.ChannelCanary].GetVersion(), Candidate: v.channels[publisher.ChannelCandidate].GetVersion(),
	}
	released := v.channels[publisher.ChannelReleased]
	if out.Held = released.GetHeld(); v.manifests[publisher.Earlier(released)] != nil {
		out.Earlier = publisher.Earlier(released)
	}
	for name, why := range v.bad {
		out.Bad = append(out.Bad, badVersion{name, why})
	}
	slices.SortFunc(out.Bad, func(a, b badVersion) int { return strings.Compare(b.Version, a.Version) })
	slices.Reverse(all)
	var part []*publisher.Manifest
	part, out.Page, out.Pages = paged(all, page, versionsAPage)
	for _, m := range part {
		out.Versions = append(out.Versions, versionView{m, v.channelsOf(m.Version), size(m), figures(m)})
	}
	return out
}

// sorted returns the manifests, oldest first. The caller holds the lock.
func (v *versions) sorted() []*publisher.Manifest {
	all := make([]*publisher.Manifest, 0, len(v.manifests))
	for _, m := range v.manifests {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b *publisher.Manifest) int { return strings.Compare(a.Version, b.Version) })
	return all
}

// channelsOf returns the channels that point at a version. The caller holds the lock.
func (v *versions) channelsOf(version string) (out []string) {
	for _, channel := range publisher.Channels() {
		if v.channels[channel].GetVersion() == version {
			out = append(out, channel)
		}
	}
	return out
}

func size(m *publisher.Manifest) (n int64) {
	for _, f := range m.Files {
		n += f.Bytes
	}
	return n
}

func figures(m *publisher.Manifest) (out []figure) {
	add := func(name, metric, unit string) {
		if x, ok := m.Metrics[metric]; ok {
			out = append(out, figure{name, unit, x})
		}
	}
	if m.Kind == publisher.KindAligned {
		add("reward", "reward_after", "")
		add("before", "reward_before", "")
		add("distance", "gate_kl", "nats")
		return out
	}
	add("held-out loss", "holdout_loss", "nats")
	add("hit rate at 10", "holdout_hit_rate_10", "")
	add("popularity's", "popularity_hit_rate_10", "")
	return out
}

// comparison is two versions side by side.
type comparison struct {
	A, B *publisher.Manifest
	All  []string // versions to choose from, the newest first
	Rows []comparedMetric
}

type comparedMetric struct {
	Name       string
	A, B       float64
	HasA, HasB bool
}

// Change is the relative change in percent, NaN where there is none.
func (c comparedMetric) Change() float64 {
	if !c.HasA || !c.HasB || c.A == 0 {
		return math.NaN()
	}
	return 100 * (c.B - c.A) / math.Abs(c.A)
}

func (v *versions) compare(a, b string) comparison {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := comparison{A: v.manifests[a], B: v.manifests[b]}
	for _, m := range slices.Backward(v.sorted()) {
		out.All = append(out.All, m.Version)
	}
	if out.B == nil && len(out.All) > 0 {
		out.B = v.manifests[out.All[0]]
	}
	if out.A == nil && out.B != nil {
		if out.A = v.manifests[out.B.Parent]; out.A == nil {
			out.A = out.B
		}
	}
	if out.A == nil {
		return out
	}
	names := make(map[string]bool)
	for _, m := range []*publisher.Manifest{out.A, out.B} {
		for name := range m.Metrics {
			names[name] = true
		}
	}
	for name := range names {
		x, hasA := out.A.Metrics[name]
		y, hasB := out.B.Metrics[name]
		out.Rows = append(out.Rows, comparedMetric{name, x, y, hasA, hasB})
	}
	slices.SortFunc(out.Rows, func(a, b comparedMetric) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// trainingView is what the page shows of training.
type trainingView struct {
	Loaded         bool
	Newest         *publisher.Manifest // candidate, nil: none yet
	Holdout, Preq  []modelFigures
	Waiting        int64 // good sessions that no candidate has learned from; -1: not known
	Loss, HitRates chart
}

// modelFigures compares the decoder with the baselines.
type modelFigures struct {
	Name                     string
	Model, Popular, LastItem float64
}

func (v *versions) training(ends map[string]int64) trainingView {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := trainingView{Loaded: v.listed, Waiting: -1}
	var lossX, loss, held []float64
	var x, model, popular, last []float64
	for _, m := range v.sorted() {
		if m.Kind != publisher.KindBase {
			continue
		}
		out.Newest = m
		for _, s := range v.steps[m.Version] {
			lossX, loss, held = append(lossX, float64(s.Step)), append(loss, s.Loss), append(held, math.NaN())
		}
		steps := m.Metrics["train_steps"]
		lossX, loss, held = append(lossX, steps), append(loss, math.NaN()), append(held, metric(m, "holdout_loss"))
		x = append(x, steps)
		model, popular, last = append(model, metric(m, "holdout_hit_rate_10")), append(popular, metric(m, "popularity_hit_rate_10")), append(last, metric(m, "last_item_hit_rate_10"))
	}
	if out.Newest == nil {
		return out
	}
	lossX, loss, held = ordered(lossX, loss, held)
	out.Loss = chart{X: lossX, XLabel: "step", Y: "nats a code", Series: []series{{Label: "training", Values: loss}, {Label: "held-out users, at each candidate", Values: held, Points: true}}}
	x, model, popular, last = ordered3(x, model, popular, last)
	out.HitRates = chart{X: x, XLabel: "step", Y: "hit rate at 10, held-out users", Series: []series{
		{Label: "decoder", Values: model, Points: true}, {Label: "most popular", Values: popular, Points: true}, {Label: "what followed the last item", Values: last, Points: true},
	}}
	m := out.Newest
	for _, of := range []struct{ name, metric string }{{"hit rate at 10", "hit_rate_10"}, {"NDCG at 10", "ndcg_10"}} {
		f := modelFigures{Name: of.name, Model: metric(m, "holdout_"+of.metric), Popular: metric(m, "popularity_"+of.metric), LastItem: metric(m, "last_item_"+of.metric)}
		out.Holdout = append(out.Holdout, f)
		if _, ok := m.Metrics["prequential_"+of.metric]; ok {
			out.Preq = append(out.Preq, modelFigures{Name: of.name, Model: metric(m, "prequential_"+of.metric), Popular: metric(m, "prequential_popularity_"+of.metric), LastItem: metric(m, "prequential_last_item_"+of.metric)})
		}
	}
	if at, ok := m.Offsets[schemas.TopicGoodSessions]; ok && ends != nil {
		out.Waiting = ends[schemas.TopicGoodSessions]
		for _, offset := range at {
			out.Waiting -= offset
		}
		out.Waiting = max(0, out.Waiting)
	}
	return out
}

func metric(m *publisher.Manifest, name string) float64 {
	if x, ok := m.Metrics[name]; ok {
		return x
	}
	return math.NaN()
}

// maxChart is how many points a chart has at most, the newest.
const maxChart = 1000

// ordered sorts the points of two series by x.
func ordered(x, a, b []float64) ([]float64, []float64, []float64) {
	x, a, b, _ = ordered3(x, a, b, b)
	return x, a, b
}

// ordered3 sorts the points of three series by x, joins those of one x, and keeps the newest.
func ordered3(x, a, b, c []float64) (_, _, _, _ []float64) {
	index := make([]int, len(x))
	for i := range index {
		index[i] = i
	}
	slices.SortStableFunc(index, func(i, j int) int {
		switch {
		case x[i] < x[j]:
			return -1
		case x[i] > x[j]:
			return 1
		}
		return 0
	})
	index = index[max(0, len(index)-maxChart):]
	// Points of one x are one point.
	var xs, as, bs, cs []float64
	or := func(v, other float64) float64 {
		if math.IsNaN(v) {
			return other
		}
		return v
	}
	for _, j := range index {
		if n := len(xs); n > 0 && xs[n-1] == x[j] {
			as[n-1], bs[n-1], cs[n-1] = or(a[j], as[n-1]), or(b[j], bs[n-1]), or(c[j], cs[n-1])
			continue
		}
		xs, as, bs, cs = append(xs, x[j]), append(as, a[j]), append(bs, b[j]), append(cs, c[j])
	}
	return xs, as, bs, cs
}

// lineage is the graph of versions: who was trained from whom.
type lineage struct {
	Width, Height int
	Nodes         []node
	Edges         []edge
	Older         int // versions that are not drawn
}

type node struct {
	X, Y             int
	Version, Label   string
	Kind, Title      string
	Channels         string
	Released, Canary bool
}

type edge struct{ X1, Y1, X2, Y2 int }

// Sizes of the lineage's picture.
const (
	lineageNodes = 24
	nodeStep     = 62
	baseLane     = 46
	alignedLane  = 116
)

// drawLineage places the newest versions from left to right, trained ones above aligned ones.
func drawLineage(all []*publisher.Manifest, channels func(version string) []string) lineage {
	from := max(0, len(all)-lineageNodes)
	l := lineage{Older: from, Width: 20 + nodeStep*(len(all)-from), Height: 150}
	at := make(map[string]node)
	for i, m := range all[from:] {
		n := node{X: 40 + nodeStep*i, Y: baseLane, Version: m.Version, Kind: m.Kind, Label: label(m.Version)}
		if m.Kind == publisher.KindAligned {
			n.Y = alignedLane
		}
		of := channels(m.Version)
		n.Channels = strings.Join(of, ", ")
		n.Released, n.Canary = slices.Contains(of, publisher.ChannelReleased), slices.Contains(of, publisher.ChannelCanary)
		n.Title = fmt.Sprintf("%s, %s", m.Version, m.Kind)
		if m.Parent != "" {
			n.Title += ", from " + m.Parent
		}
		if n.Channels != "" {
			n.Title += ", " + n.Channels
		}
		at[m.Version] = n
		l.Nodes = append(l.Nodes, n)
		if p, ok := at[m.Parent]; ok {
			l.Edges = append(l.Edges, edge{p.X, p.Y, n.X, n.Y})
		}
	}
	return l
}

// label is a version's number.
func label(version string) string {
	number, _, _ := strings.Cut(version, "-")
	if n, err := strconv.Atoi(number); err == nil {
		return strconv.Itoa(n)
	}
	return number
}
