// Package recommender answers with recommendations over HTTP.
//
// It follows the checkpoints topic and swaps models between requests: a request
// holds on to the model that it began with, so no answer is a mixture. It follows
// the views topic and keeps each user's history with the code that the
// sessionizer uses for training rows. It follows the items topic and recommends nothing
// that is withdrawn. Without a model it answers with popular items and says so.
//
//	POST /v1/recommendations   {"user_id": "u1", "n": 5}
//	GET  /v1/items/{id}        an item's semantic ID and its neighbours
//	GET  /v1/users/{id}        a user's history
//	GET  /v1/models            what is loaded
//	GET  /v1/openapi.json      the API's description
//
// A share of the users may be served by a canary, see [Service.CanaryPercent]. Requests beyond
// what can be answered in time are turned away at once, see [Service.MaxWait].
package recommender

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"onerec/decoder"
	"onerec/internal/history"
	"onerec/internal/stream"
	"onerec/publisher"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
	"onerec/semanticid"
)

// Service answers requests.
type Service struct {
	Cluster stream.Cluster
	Store   *publisher.Store
	Model   string
	Channel string // publisher.ChannelReleased or ChannelCandidate
	// CanaryPercent is the share of the users, by hash, who are served by what is on the canary
	// channel, while there is something.
	CanaryPercent float64
	Policy        history.Policy
	Beams         int             // width of the beam search
	Numbers       decoder.Numbers // that searches compute in
	// MaxUsers and MaxItems bound what is remembered of users, and of items: how popular they are, and
	// which are withdrawn. HistoryCache (bytes) bounds what models made of the histories of those who
	// asked last; 0: every request reads all of its user's.
	MaxUsers, MaxItems int
	HistoryCache       int64
	// MaxWait is how long a request may have to wait for others before its own search begins; one
	// that would have to wait longer is turned away. Timeout is for all of a request.
	MaxWait, Timeout time.Duration
	// MaxModelAge is how old the served checkpoint may be before the service says that it is not
	// ready; 0: any age. While releases are held any age is fit.
	MaxModelAge time.Duration
	// MaxViewAge is how long ago a view may have been written that is read at a start; 0: all that the topic
	// holds.
	MaxViewAge time.Duration
	Log        *slog.Logger
	Metrics    *Metrics
	OnReady    func() // histories are caught up, and a model is loaded if one was announced

	users          *users
	pasts          *pasts
	loaded, canary atomic.Pointer[model]
	serving        sync.RWMutex // of withdrawn, and held while what serves is exchanged
	withdrawn      semanticid.Withdrawn
	caughtUp       atomic.Bool
	toRead         atomic.Pointer[backlog] // of views, until caughtUp
	held           atomic.Pointer[string]  // why nothing newer is to be released for now; or nil
	admission      *admission
}

// Open makes the service ready to be used; Run then keeps it up to date.
func (s *Service) Open() {
	s.users = newUsers(s.Policy, s.MaxUsers, s.MaxItems)
	s.pasts = newPasts(s.HistoryCache)
	s.withdrawn.MaxItems = s.MaxItems
	s.admission = newAdmission(runtime.GOMAXPROCS(0)*decoder.SideBySide(s.Beams), cmp.Or(s.MaxWait, time.Second))
}

// Run follows items, checkpoints and views until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	g, running := errgroup.WithContext(ctx)
	known := make(chan struct{})
	g.Go(func() error { return s.followItems(running, func() { close(known) }) })
	g.Go(func() error {
		select {
		case <-known: // what was withdrawn before is not recommended for a moment
		case <-running.Done():
			return nil
		}
		// What is there already comes first, so that readiness means something.
		refs, err := publisher.Current(running, s.Cluster, s.Model)
		if err != nil {
			return err
		}
		for channel, ref := range refs {
			s.announced(running, channel, ref)
		}
		g.Go(func() error { return s.followViews(running) })
		return publisher.Follow(running, s.Cluster, s.Model, func(channel string, ref *onerecv1.CheckpointRef) { s.announced(running, channel, ref) })
	})
	if err := g.Wait(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// Ready says why the service is not fit to be asked, or nil.
func (s *Service) Ready() error {
	m := s.loaded.Load()
	switch {
	case !s.caughtUp.Load():
		return fmt.Errorf("the users' histories are still being read%s", s.toRead.Load())
	case m == nil:
		return errors.New("no model is loaded; popular items are served")
	case s.MaxModelAge > 0 && s.held.Load() == nil && time.Since(m.manifest.CreatedAt) > s.MaxModelAge:
		return fmt.Errorf("checkpoint %s is from %s, older than %v", m.ref.Version, m.manifest.CreatedAt.Format(time.RFC3339), s.MaxModelAge)
	}
	return nil
}

// followViews keeps the histories.
func (s *Service) followViews(ctx context.Context) error {
	record := func(r *kgo.Record) error {
		if len(r.Value) == 0 { // a watermark
			return nil
		}
		var v schemas.RawView
		if err := v.Scan(r.Value); err != nil {
			return fmt.Errorf("topic %s partition %d offset %d is no View (only ingest may write there): %w", r.Topic, r.Partition, r.Offset, err)
		}
		s.users.add(&v)
		return nil
	}
	var since time.Time
	if s.MaxViewAge > 0 {
		since = time.Now().Add(-s.MaxViewAge)
	}
	said := time.Now()
	return s.follow(ctx, schemas.TopicViews, since, record, func(b backlog) {
		s.Metrics.setUsers(s.users.len())
		if s.caughtUp.Load() {
			return
		}
		if s.toRead.Store(&b); time.Since(said) > 10*time.Second {
			said = time.Now()
			s.Log.Info("reading users' histories", "read", b.of-b.left, "of", b.of)
		}
	}, func() {
		s.caughtUp.Store(true)
		s.OnReady()
	})
}

// backlog is how many records of a topic are left to be read of those that it had at first.
type backlog struct{ left, of int64 }

// String is for after a sentence.
func (b *backlog) String() string {
	if b == nil {
		return ""
	}
	return fmt.Sprintf(": %d of %d records", b.of-b.left, b.of)
}

// follow calls record with the committed records of a topic, from those on that were written at a time or, with none, from its
// beginning, until ctx ends; polled after every few of them, and caughtUp once, when it has read what was there when it began.
func (s *Service) follow(ctx context.Context, topic string, since time.Time, record func(*kgo.Record) error, polled func(backlog), caughtUp func()) error {
	spans, err := s.Cluster.SpansSince(ctx, topic, since)
	if err != nil {
		return err
	}
	var toRead backlog
	at := make(map[int32]kgo.Offset)
	for p, span := range spans {
		at[p] = kgo.NewOffset().At(span.From)
		toRead.of += span.To - span.From
	}
	cl, err := s.Cluster.Client(
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: at}),
	)
	if err != nil {
		return err
	}
	defer cl.Close()
	maps.DeleteFunc(spans, func(_ int32, span stream.Span) bool { return span.From >= span.To })
	ready := false
	for {
		if len(spans) == 0 && !ready {
			ready = true
			caughtUp()
		}
		fetches := cl.PollRecords(ctx, 10_000)
		if ctx.Err() != nil {
			return nil
		}
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("read topic %s: %w", topic, err)
		}
		for r := range fetches.RecordsAll() {
			if span, ok := spans[r.Partition]; ok {
				if span.From = r.Offset + 1; span.From >= span.To {
					delete(spans, r.Partition)
				} else {
					spans[r.Partition] = span
				}
			}
			if r.Attrs.IsControl() {
				continue
			}
			if err := record(r); err != nil {
				return err
			}
		}
		toRead.left = 0
		for _, span := range spans {
			toRead.left += span.To - span.From
		}
		polled(toRead)
	}
}

// History returns the items that the service knows a user to have engaged with,
// oldest first.
func (s *Service) History(user string) []string {
	items, _ := s.known(user)
	return items
}

// known returns a user's items, oldest first, and how many there were before them.
func (s *Service) known(user string) (items []string, before int) {
	of, before := s.users.history(user)
	for item := range of.All() {
		items = append(items, string(item))
	}
	return items, before
}

// Metrics are the recommender's Prometheus metrics. A nil *Metrics counts
// nothing.
type Metrics struct {
	requests *prometheus.CounterVec
	latency  prometheus.Histogram
	swaps    *prometheus.CounterVec
	created  *prometheus.GaugeVec
	waited   *prometheus.GaugeVec
	users    prometheus.Gauge
	tokens   *prometheus.CounterVec
	pasts    prometheus.Gauge
	gone     prometheus.Gauge
	held     prometheus.Gauge
}

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "onerec_serve_requests_total", Help: "Requests for recommendations by HTTP status and the channel of the model that answered; none: popular items, or an error."}, []string{"status", "channel"}),
		latency:  prometheus.NewHistogram(prometheus.HistogramOpts{Name: "onerec_serve_request_seconds", Help: "Time to answer.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 12)}),
		swaps:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "onerec_serve_checkpoints_total", Help: "Announced checkpoints: loaded or refused."}, []string{"outcome"}),
		created:  prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "onerec_serve_checkpoint_created_seconds", Help: "When the checkpoint that is served was made, seconds since the epoch, by channel."}, []string{"channel"}),
		waited:   prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "onerec_serve_session_to_serving_seconds", Help: "From a good session's record to a serving model that has learned from it, for the sessions that are new to the model, by channel and quantile."}, []string{"channel", "quantile"}),
		users:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "onerec_serve_users", Help: "Users whose history is in memory."}),
		tokens:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "onerec_serve_history_tokens_total", Help: "Tokens of users' histories: read by the model for a request, or kept from the user's last one."}, []string{"source"}),
		pasts:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "onerec_serve_history_cache_bytes", Help: "Memory for what models made of the histories of the users who asked last."}),
		gone:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "onerec_serve_withdrawn_items", Help: "Items that are not recommended because their record on the items topic says that they are withdrawn."}),
		held:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "onerec_serve_releases_held", Help: "1 while an operator holds releases, as after a rollback, else 0."}),
	}
	reg.MustRegister(m.requests, m.latency, m.swaps, m.created, m.waited, m.users, m.tokens, m.pasts, m.gone, m.held)
	return m
}

func (m *Metrics) request(status int, channel string, d time.Duration) {
	if m != nil {
		m.requests.WithLabelValues(strconv.Itoa(status), cmp.Or(channel, "none")).Inc()
		m.latency.Observe(d.Seconds())
	}
}

func (m *Metrics) swap(outcome string) {
	if m != nil {
		m.swaps.WithLabelValues(outcome).Inc()
	}
}

func (m *Metrics) serving(of *model) {
	if m == nil {
		return
	}
	channel := of.ref.Channel
	m.created.WithLabelValues(channel).Set(float64(of.manifest.CreatedAt.UnixMilli()) / 1000)
	for quantile, metric := range map[string]string{"0.5": publisher.MetricAgeP50, "0.99": publisher.MetricAgeP99} {
		if age := of.waited(metric); age > 0 {
			m.waited.WithLabelValues(channel, quantile).Set(age.Seconds())
		}
	}
}

func (m *Metrics) setUsers(n int) {
	if m != nil {
		m.users.Set(float64(n))
	}
}

// read counts what a search had to read.
func (m *Metrics) read(past *decoder.Past) {
	if m != nil {
		all, kept := past.Tokens()
		m.tokens.WithLabelValues("read").Add(float64(all - kept))
		m.tokens.WithLabelValues("kept").Add(float64(kept))
	}
}

func (m *Metrics) setPasts(bytes int64) {
	if m != nil {
		m.pasts.Set(float64(bytes))
	}
}

func (m *Metrics) setHeld(held bool) {
	switch {
	case m == nil:
	case held:
		m.held.Set(1)
	default:
		m.held.Set(0)
	}
}

func (m *Metrics) setWithdrawn(n int) {
	if m != nil {
		m.gone.Set(float64(n))
	}
}
