package console

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"onerec/internal/stream"
	"onerec/schemas"
)

// stageSpec is a service as the picture of the flow shows it.
type stageSpec struct {
	name  string // of the command, and of the consumer group
	reads string // the topic by which its lag is counted; empty: none
	// work and made are the counters of what it takes in and puts out, units what they count.
	work, unit string
	made       string
	x, y       int // its box in the picture
	alone      bool
}

// flow are the services in the order of the data.
var flow = []stageSpec{
	{name: "ingest", reads: schemas.TopicViewsRaw, work: "onerec_stream_records_in_total", unit: "views/s", made: "onerec_stream_records_out_total", x: 20, y: 36},
	{name: "sessionize", reads: schemas.TopicViews, work: "onerec_stream_records_in_total", unit: "views/s", made: "onerec_sessionizer_sessions_closed_total", x: 290, y: 36},
	{name: "filter", reads: schemas.TopicSessions, work: "onerec_stream_records_in_total", unit: "sessions/s", x: 560, y: 36},
	{name: "snapshot", reads: schemas.TopicJudgedSessions, work: "onerec_snapshot_rows_total", unit: "rows/s", x: 560, y: 176},
	{name: "train", work: "onerec_train_tokens", unit: "tokens/s", x: 830, y: 36, alone: true},
	{name: "reward", work: "onerec_reward_rounds_total", unit: "rounds/s", x: 830, y: 176, alone: true},
	{name: "serve", work: "onerec_serve_requests_total", unit: "requests/s", x: 290, y: 176},
}

func stageNames() []string {
	var out []string
	for _, s := range flow {
		out = append(out, s.name)
	}
	return out
}

// Health is how a stage is.
type health string

const (
	unseen   health = "unseen"   // nothing is known of it
	healthy  health = "healthy"  // it works
	troubled health = "troubled" // it works, but not as it should
	down     health = "down"     // it does not work
)

// stageState is a stage at one moment. Figures that are not known are NaN, or -1 for lag.
type stageState struct {
	stageSpec
	Health    health
	Why       string
	Processes int // that answer, or, without targets, members of the group
	Known     int // that there should be
	Rate      float64
	Made      float64 // a second
	Lag       int64   // records
	Age       float64 // seconds from a record to its commit, mean of the last while
}

// Getters of what templates need.
func (s stageState) Name() string { return s.name }

// X and Y are the place of its box.
func (s stageState) X() int { return s.x }

// Y is the upper side of its box.
func (s stageState) Y() int { return s.y }

// Unit is that of its rate.
func (s stageState) Unit() string { return s.unit }

// Reads is the topic by which its lag is counted.
func (s stageState) Reads() string { return s.reads }

// state is everything that the watcher saw at one moment.
type state struct {
	At     time.Time // zero: nothing yet
	Err    string    // why the brokers can't be asked, or empty
	Stages []stageState
	Ends   map[string]int64 // sum of end offsets by topic
	Rates  rateChart
	// Gauges of training and serving, NaN where unknown.
	TokensPerSecond, LossNow, Users, RequestSeconds, SessionToServing float64
	// Views by outcome since the processes began, -1 where unknown.
	Accepted, Duplicate, Late, Rejected int64
}

// rateChart are the stages' rates of the last minutes.
type rateChart struct {
	At    []int64 // seconds since the epoch
	Rates map[string][]float64
}

// watcher looks at brokers and targets.
type watcher struct {
	cluster stream.Cluster
	scraper *scraper
	log     *slog.Logger
	now     guarded[state]

	meters map[string]*meter // by stage and metric
	lags   map[string]*meter
	chart  rateChart
	seen   map[string]bool // stages that worked once
}

func newWatcher(c stream.Cluster, s *scraper, log *slog.Logger) *watcher {
	return &watcher{cluster: c, scraper: s, log: log, meters: make(map[string]*meter), lags: make(map[string]*meter), seen: make(map[string]bool), chart: rateChart{Rates: make(map[string][]float64)}}
}

// Bounds of the chart of rates: a point each so many looks, so many points.
const (
	chartEvery  = 5
	chartPoints = 120
)

func (w *watcher) run(ctx context.Context) {
	var cl *kgo.Client
	defer func() {
		if cl != nil {
			cl.Close()
		}
	}()
	tick := time.NewTicker(Every)
	defer tick.Stop()
	for i := 0; ctx.Err() == nil; i++ {
		if cl == nil {
			var err error
			if cl, err = w.cluster.Client(); err != nil {
				w.log.Error("the console has no client of the brokers", "error", err)
			}
		}
		// Brokers that do not answer must not hold up what the services say.
		ps := make(chan []process, 1)
		go func() { ps <- w.scraper.scrape(ctx) }()
		var k brokers
		if cl != nil {
			k = askBrokers(ctx, kadm.NewClient(cl))
		}
		w.now.set(w.assemble(time.Now(), <-ps, k, i%chartEvery == 0))
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// brokers is what the brokers said.
type brokers struct {
	err    error
	ends   map[string]map[int32]int64
	groups map[string]group
}

// group is a consumer group.
type group struct {
	members   int
	committed map[string]map[int32]int64
}

// brokersTimeout is how long the brokers may take.
const brokersTimeout = 1500 * time.Millisecond

func askBrokers(ctx context.Context, adm *kadm.Client) (k brokers) {
	ctx, cancel := context.WithTimeout(ctx, brokersTimeout)
	defer cancel()
	var topics, names []string
	for _, t := range schemas.Topics() {
		topics = append(topics, t.Name)
	}
	for _, s := range flow {
		names = append(names, s.name)
	}
	ends, err := adm.ListEndOffsets(ctx, topics...)
	if err != nil {
		k.err = fmt.Errorf("the brokers do not say where topics end: %w", err)
		return k
	}
	k.ends = make(map[string]map[int32]int64)
	ends.Each(func(o kadm.ListedOffset) {
		if o.Err == nil {
			if k.ends[o.Topic] == nil {
				k.ends[o.Topic] = make(map[int32]int64)
			}
			k.ends[o.Topic][o.Partition] = o.Offset
		}
	})
	described, err := adm.DescribeGroups(ctx, names...)
	if err != nil {
		k.err = fmt.Errorf("the brokers do not describe the consumer groups: %w", err)
		return k
	}
	k.groups = make(map[string]group)
	fetched := adm.FetchManyOffsets(ctx, names...)
	for _, name := range names {
		d, ok := described[name]
		if !ok || d.Err != nil {
			continue
		}
		g := group{members: len(d.Members), committed: make(map[string]map[int32]int64)}
		if f, ok := fetched[name]; ok && f.Err == nil {
			f.Fetched.Each(func(o kadm.OffsetResponse) {
				if o.Err == nil && o.At >= 0 {
					if g.committed[o.Topic] == nil {
						g.committed[o.Topic] = make(map[int32]int64)
					}
					g.committed[o.Topic][o.Partition] = o.At
				}
			})
		}
		k.groups[name] = g
	}
	return k
}

// assemble makes one state of what was seen.
func (w *watcher) assemble(now time.Time, ps []process, k brokers, point bool) state {
	st := state{At: now, Ends: make(map[string]int64)}
	if k.err != nil {
		st.Err = k.err.Error()
	}
	for topic, ends := range k.ends {
		for _, end := range ends {
			st.Ends[topic] += end
		}
	}
	for _, spec := range flow {
		st.Stages = append(st.Stages, w.stage(now, spec, ps, k))
	}
	get := func(stage, name string, match ...string) float64 {
		if v, ok := sum(ps, stage, name, match...); ok {
			return v
		}
		return math.NaN()
	}
	st.TokensPerSecond, st.LossNow = get("train", "onerec_train_tokens_per_second"), get("train", "onerec_train_loss_nats")
	st.Users = get("serve", "onerec_serve_users")
	st.SessionToServing = get("serve", "onerec_serve_session_to_serving_seconds", "channel", "released", "quantile", "0.5")
	whole := func(stage, name string, match ...string) int64 {
		if v, ok := sum(ps, stage, name, match...); ok {
			return int64(v)
		}
		return -1
	}
	views := func(outcome string) int64 {
		return whole("sessionize", "onerec_sessionizer_views_total", "outcome", outcome)
	}
	st.Accepted, st.Duplicate, st.Late = views("accepted"), views("duplicate"), views("late")
	if st.Rejected = whole("ingest", "onerec_ingest_rejected_total"); st.Rejected < 0 && st.Accepted >= 0 {
		st.Rejected = 0 // a counter with labels is not there before it counts
	}
	st.RequestSeconds = w.mean(now, ps, "serve", "onerec_serve_request_seconds")
	if point {
		w.chart.At = append(w.chart.At, now.Unix())
		from := max(0, len(w.chart.At)-chartPoints)
		w.chart.At = slices.Clone(w.chart.At[from:])
		for _, s := range st.Stages[:3] { // whose rates have one scale
			w.chart.Rates[s.name] = slices.Clone(append(w.chart.Rates[s.name], s.Rate)[from:])
		}
	}
	st.Rates = rateChart{At: w.chart.At, Rates: make(map[string][]float64)}
	for name, r := range w.chart.Rates {
		st.Rates.Rates[name] = r
	}
	return st
}

func (w *watcher) stage(now time.Time, spec stageSpec, ps []process, k brokers) stageState {
	s := stageState{stageSpec: spec, Rate: math.NaN(), Made: math.NaN(), Age: math.NaN(), Lag: -1}
	g, hasGroup := k.groups[spec.name]
	committed := float64(0)
	if spec.reads != "" && len(g.committed[spec.reads]) > 0 {
		s.Lag = 0
		for p, end := range k.ends[spec.reads] {
			at := g.committed[spec.reads][p]
			s.Lag += max(0, end-at)
			committed += float64(at)
		}
	}
	var whys []string
	ready, finished, targeted := 0, 0, false
	for _, p := range ps {
		if p.stage != spec.name {
			continue
		}
		targeted = true
		if p.done {
			finished++
			continue
		}
		s.Known++
		if p.up {
			s.Processes++
		}
		if p.ready {
			ready++
		}
		if p.reached {
			w.seen[spec.name] = true
		}
		if p.why != "" {
			whys = append(whys, p.url+": "+p.why)
		}
	}
	if targeted {
		if v, ok := sum(ps, spec.name, spec.work); ok {
			s.Rate = w.rate(now, spec.name+" "+spec.work, v)
		}
		if spec.made != "" {
			if v, ok := sum(ps, spec.name, spec.made); ok {
				s.Made = w.rate(now, spec.name+" "+spec.made, v)
			}
		}
		s.Age = w.mean(now, ps, spec.name, "onerec_stream_record_age_seconds")
	} else {
		s.Processes, s.Known = g.members, g.members
		if s.Lag >= 0 {
			s.Rate = w.rate(now, spec.name+" committed", committed)
		}
		if g.members > 0 {
			w.seen[spec.name] = true
		}
	}
	switch {
	case finished > 0 && s.Known == 0:
		s.Health, s.Why = unseen, "it has done its work and ended"
	case targeted && s.Processes == 0 && w.seen[spec.name], !targeted && hasGroup && g.members == 0 && len(g.committed) > 0, !targeted && w.seen[spec.name] && g.members == 0 && k.err == nil:
		s.Health, s.Why = down, "no process answers"
		if !targeted {
			s.Why = "its consumer group has no members"
		}
	case targeted && s.Processes == 0:
		s.Health, s.Why = unseen, "not started yet"
	case !targeted && g.members == 0:
		s.Health, s.Why = unseen, "no consumer group; name its admin endpoint with --console-targets"
		if spec.name != "serve" && k.err == nil {
			s.Why = "never started"
		}
	case targeted && s.Processes < s.Known:
		s.Health, s.Why = troubled, fmt.Sprintf("%d of %d processes do not answer", s.Known-s.Processes, s.Known)
	case targeted && ready == 0 || targeted && !spec.alone && ready < s.Known:
		s.Health, s.Why = troubled, fmt.Sprintf("%d of %d processes are not ready", s.Known-ready, s.Known)
	case w.behind(now, s):
		s.Health, s.Why = troubled, "falls behind: its lag grows and is more than a minute's work"
	default:
		s.Health = healthy
	}
	if len(whys) > 0 && s.Health != unseen {
		s.Why += ": " + whys[0]
	}
	return s
}

// behind reports whether a stage has more to do than it does in a minute, and gets no closer.
func (w *watcher) behind(now time.Time, s stageState) bool {
	if s.Lag < 0 || math.IsNaN(s.Rate) {
		return false
	}
	m := w.lags[s.name]
	if m == nil {
		m = new(meter)
		w.lags[s.name] = m
	}
	growth := m.slope(now, float64(s.Lag))
	return s.Lag > 1000 && float64(s.Lag) > 60*s.Rate && growth > 0
}

func (w *watcher) meter(key string) *meter {
	m := w.meters[key]
	if m == nil {
		m = new(meter)
		w.meters[key] = m
	}
	return m
}

// rate is how fast a counter grows, over the last seconds.
func (w *watcher) rate(now time.Time, key string, v float64) float64 {
	return max(0, w.meter(key).slope(now, v))
}

// mean is the mean of what a histogram got in the last seconds, NaN if nothing.
func (w *watcher) mean(now time.Time, ps []process, stage, name string) float64 {
	total, ok := sum(ps, stage, name)
	if !ok {
		return math.NaN()
	}
	sum := w.meter(stage+" "+name+" sum").slope(now, total)
	n := w.meter(stage+" "+name+" count").slope(now, count(ps, stage, name))
	if n <= 0 {
		return math.NaN()
	}
	return sum / n
}

// meterSpan is the time over which rates are taken: long enough to be calm, short enough to be now.
const meterSpan = 5 * time.Second

// meter remembers the last values of a counter.
type meter struct {
	at     []time.Time
	values []float64
}

// slope adds a value and returns the growth a second. A counter that fell began anew.
func (m *meter) slope(now time.Time, v float64) float64 {
	if n := len(m.values); n > 0 && v < m.values[n-1]/2 {
		m.at, m.values = nil, nil
	}
	m.at, m.values = append(m.at, now), append(m.values, v)
	from := 0
	for from+2 < len(m.at) && now.Sub(m.at[from]) > meterSpan {
		from++
	}
	m.at, m.values = m.at[from:], m.values[from:]
	dt := now.Sub(m.at[0]).Seconds()
	if dt <= 0 {
		return 0
	}
	return (v - m.values[0]) / dt
}
