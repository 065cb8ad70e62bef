// Package recommender answers with recommendations over HTTP.
//
// It follows the checkpoints topic and swaps models between requests: a request
// holds on to the model that it began with, so no answer is a mixture. It follows
// the views topic and keeps each user's history with the code that the
// sessionizer uses for training rows. Without a model it answers with popular
// items and says so.
//
//	POST /v1/recommendations   {"user_id": "u1", "n": 5}
//	GET  /v1/models            what is loaded
package recommender

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"runtime"
	"strconv"
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

// Limits of a request.
const (
	maxBody    = 64 << 10 // bytes
	maxN       = 100
	maxHistory = 1000
)

// Service answers requests.
type Service struct {
	Cluster stream.Cluster
	Store   *publisher.Store
	Model   string
	Channel string // publisher.ChannelReleased or ChannelCandidate
	Policy  history.Policy
	Beams   int // width of the beam search
	// MaxUsers and MaxItems bound what is remembered.
	MaxUsers, MaxItems int
	Log                *slog.Logger
	Metrics            *Metrics
	OnReady            func() // histories are caught up, and a model is loaded if one was announced

	users  *users
	loaded atomic.Pointer[model]
	slots  chan struct{} // requests that search at the same time
}

// model is a loaded checkpoint.
type model struct {
	ref      *onerecv1.CheckpointRef
	manifest *publisher.Manifest
	cb       *semanticid.Codebook
	gen      *decoder.Generator
	longest  int // items of a row
	loadedAt time.Time
}

// Open makes the service ready to be used; Run then keeps it up to date.
func (s *Service) Open() {
	s.users = newUsers(s.Policy, s.MaxUsers, s.MaxItems)
	s.slots = make(chan struct{}, 2*runtime.GOMAXPROCS(0))
}

// Run follows views and checkpoints until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	// What is there already comes first, so that readiness means something.
	refs, err := publisher.Current(ctx, s.Cluster, s.Model)
	if err == nil {
		for _, ref := range refs {
			s.announced(ctx, ref)
		}
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return s.followViews(ctx) })
		g.Go(func() error {
			return publisher.Follow(ctx, s.Cluster, s.Model, func(_ string, ref *onerecv1.CheckpointRef) {
				if ref != nil {
					s.announced(ctx, ref)
				}
			})
		})
		err = g.Wait()
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// announced loads a version if it is the one to serve: the channel's, or, until
// the channel has one, the newest candidate.
func (s *Service) announced(ctx context.Context, ref *onerecv1.CheckpointRef) {
	old := s.loaded.Load()
	switch {
	case ref.Channel != s.Channel && old != nil && old.ref.Channel == s.Channel,
		old != nil && old.ref.Version == ref.Version && old.ref.Channel == ref.Channel:
		return
	}
	m, err := s.load(ctx, ref)
	if err != nil {
		s.Metrics.swap("refused")
		s.Log.Error("checkpoint refused, serving goes on with what is loaded", "version", ref.Version, "channel", ref.Channel, "error", err)
		return
	}
	s.loaded.Store(m)
	s.Metrics.swap("loaded")
	s.Log.Info("serving", "version", ref.Version, "channel", ref.Channel, "items", m.cb.Len())
}

func (s *Service) load(ctx context.Context, ref *onerecv1.CheckpointRef) (*model, error) {
	manifest, files, err := s.Store.Load(ctx, ref.Version, ref.ManifestSha256)
	if err != nil {
		return nil, err
	}
	w, cb, err := decoder.Decode(files, manifest.Config)
	if err != nil {
		return nil, err
	}
	gen, err := decoder.NewGenerator(w, cb)
	if err != nil {
		return nil, err
	}
	m := &model{ref, manifest, cb, gen, w.Config.MaxItems(), time.Now()}
	// Warm up, and find out before any user does if it can't answer.
	if _, err := gen.Generate(decoder.Options{Length: 1, Width: s.Beams}); err != nil {
		return nil, fmt.Errorf("the model does not answer: %w", err)
	}
	return m, nil
}

// followViews keeps the histories; it reads the topic from its beginning.
func (s *Service) followViews(ctx context.Context) error {
	spans, err := s.Cluster.Spans(ctx, schemas.TopicViews)
	if err != nil {
		return err
	}
	at := make(map[int32]kgo.Offset)
	for p, span := range spans {
		at[p] = kgo.NewOffset().At(span.From)
	}
	cl, err := s.Cluster.Client(
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{schemas.TopicViews: at}),
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
			s.OnReady()
		}
		fetches := cl.PollRecords(ctx, 10_000)
		if ctx.Err() != nil {
			return nil
		}
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("read topic %s: %w", schemas.TopicViews, err)
		}
		for r := range fetches.RecordsAll() {
			if span, ok := spans[r.Partition]; ok && r.Offset >= span.To-1 {
				delete(spans, r.Partition)
			}
			if r.Attrs.IsControl() || len(r.Value) == 0 { // an empty value is a watermark
				continue
			}
			var v schemas.RawView
			if err := v.Scan(r.Value); err != nil {
				return fmt.Errorf("topic %s partition %d offset %d is no View (only ingest may write there): %w", r.Topic, r.Partition, r.Offset, err)
			}
			s.users.add(&v)
		}
		s.Metrics.setUsers(s.users.len())
	}
}

// Request asks for recommendations.
type Request struct {
	UserID string `json:"user_id"`
	// History replaces what is known of the user: items, oldest first.
	History []string `json:"history,omitempty"`
	N       int      `json:"n,omitempty"` // items; 10 if not set
	// Mode is "list", a whole session written item by item, or "next", the n items
	// most likely to be next; "list" if not set.
	Mode string `json:"mode,omitempty"`
	// IncludeSeen allows items of the history.
	IncludeSeen bool `json:"include_seen,omitempty"`
}

// Answer is a list of recommendations.
type Answer struct {
	RecommendationID string `json:"recommendation_id"` // to be sent back in view events
	// CheckpointVersion is the model's version; empty if Source is "popular".
	CheckpointVersion string `json:"checkpoint_version,omitempty"`
	Channel           string `json:"channel,omitempty"`
	// Source is "model", or "popular" if no model is loaded, and Why says why.
	Source string `json:"source"`
	Why    string `json:"why,omitempty"`
	// HistoryItems is how many items of the history the model knew.
	HistoryItems int    `json:"history_items"`
	Items        []Item `json:"items"`
}

// Item is one recommendation.
type Item struct {
	ItemID     string   `json:"item_id"`
	SemanticID []uint16 `json:"semantic_id,omitempty"`
	// LogProb is the item's log probability in mode "next", that of the whole list
	// in mode "list", among what could be recommended; answers are in its order.
	LogProb float64 `json:"log_prob,omitempty"`
}

// problem is an error for the caller, RFC 9457.
type problem struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
}

func (p *problem) Error() string { return p.Detail }

func badRequest(format string, args ...any) error {
	return &problem{"Bad Request", http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// Recommend answers one request.
func (s *Service) Recommend(ctx context.Context, q Request) (*Answer, error) {
	switch {
	case q.UserID == "" && q.History == nil:
		return nil, badRequest("user_id is empty; name a user, or give a history")
	case len(q.UserID) > schemas.MaxIDBytes:
		return nil, badRequest("user_id has %d bytes, at most %d are allowed", len(q.UserID), schemas.MaxIDBytes)
	case q.N < 0 || q.N > maxN:
		return nil, badRequest("n is %d, allowed is 1 to %d", q.N, maxN)
	case len(q.History) > maxHistory:
		return nil, badRequest("history has %d items, at most %d are allowed", len(q.History), maxHistory)
	case q.Mode != "" && q.Mode != "list" && q.Mode != "next":
		return nil, badRequest("mode is %q, allowed are list and next", q.Mode)
	}
	if q.N == 0 {
		q.N = 10
	}
	items := q.History
	if items == nil {
		items = s.users.history(q.UserID)
	}
	a := &Answer{RecommendationID: rand.Text()}
	m := s.loaded.Load()
	if m == nil {
		seen := make(map[string]bool)
		for _, item := range items {
			seen[item] = !q.IncludeSeen
		}
		a.Source, a.Why = "popular", "no model has been announced yet"
		for _, item := range s.users.popular(q.N, seen) {
			a.Items = append(a.Items, Item{ItemID: item})
		}
		return a, nil
	}
	a.Source, a.CheckpointVersion, a.Channel = "model", m.ref.Version, m.ref.Channel
	o := decoder.Options{Exclude: make(map[int32]bool), Length: q.N, Width: s.Beams}
	for _, item := range items {
		if i, ok := m.cb.Index(item); ok {
			o.History = append(o.History, m.cb.ID(i))
			if !q.IncludeSeen {
				o.Exclude[i] = true
			}
		}
	}
	a.HistoryItems = len(o.History)
	if q.Mode == "next" {
		o.Length, o.Width = 1, max(s.Beams, q.N)
	} else if q.N > m.longest {
		return nil, badRequest("n is %d, the model writes lists of at most %d items; use mode next", q.N, m.longest)
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return nil, &problem{"Service Unavailable", http.StatusServiceUnavailable, "too many requests at the same time; try again"}
	}
	lists, err := m.gen.Generate(o)
	if err != nil {
		return nil, fmt.Errorf("recommend with %s: %w", m.ref.Version, err)
	}
	add := func(i int32, logProb float64) {
		a.Items = append(a.Items, Item{m.cb.Item(i), m.cb.ID(i), logProb})
	}
	if q.Mode == "next" {
		for _, l := range lists[:min(len(lists), q.N)] {
			add(l.Items[0], l.Score)
		}
	} else if len(lists) > 0 {
		for _, i := range lists[0].Items {
			add(i, lists[0].Score)
		}
	}
	return a, nil
}

// History returns the items that the service knows a user to have engaged with,
// oldest first.
func (s *Service) History(user string) []string { return s.users.history(user) }

// Handler serves the API.
func (s *Service) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/recommendations", func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		var q Request
		err := decode(http.MaxBytesReader(w, r.Body, maxBody), &q)
		var a *Answer
		if err == nil {
			a, err = s.Recommend(ctx, q)
		}
		status := http.StatusOK
		if err != nil {
			p := new(problem)
			if !errors.As(err, &p) {
				s.Log.Error("request failed", "error", err)
				p = &problem{"Internal Server Error", http.StatusInternalServerError, "the recommender failed; its log says why"}
			}
			status = p.Status
			reply(w, "application/problem+json", status, p)
		} else {
			reply(w, "application/json", status, a)
		}
		s.Metrics.request(status, time.Since(start))
	})
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, _ *http.Request) {
		type loaded struct {
			Version  string             `json:"version"`
			Channel  string             `json:"channel"`
			Kind     string             `json:"kind"`
			Codebook string             `json:"codebook"`
			Items    int                `json:"items"`
			LoadedAt time.Time          `json:"loaded_at"`
			Metrics  map[string]float64 `json:"metrics"`
		}
		out := []loaded{}
		if m := s.loaded.Load(); m != nil {
			out = append(out, loaded{m.ref.Version, m.ref.Channel, m.manifest.Kind, m.manifest.Codebook, m.cb.Len(), m.loadedAt, m.manifest.Metrics})
		}
		reply(w, "application/json", http.StatusOK, map[string]any{"models": out})
	})
	return mux
}

func decode(r io.Reader, q *Request) error {
	dec := json.NewDecoder(r)
	dec.DisallowUnknownFields()
	if err := dec.Decode(q); err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return &problem{"Content Too Large", http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d bytes", maxBody)}
		}
		return badRequest("the body is no request: %v", err)
	}
	return nil
}

func reply(w http.ResponseWriter, contentType string, status int, body any) {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the caller has gone if this fails
}

// Metrics are the recommender's Prometheus metrics. A nil *Metrics counts
// nothing.
type Metrics struct {
	requests *prometheus.CounterVec
	latency  prometheus.Histogram
	swaps    *prometheus.CounterVec
	users    prometheus.Gauge
}

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "onerec_serve_requests_total", Help: "Requests for recommendations by HTTP status."}, []string{"status"}),
		latency:  prometheus.NewHistogram(prometheus.HistogramOpts{Name: "onerec_serve_request_seconds", Help: "Time to answer.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 12)}),
		swaps:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "onerec_serve_checkpoints_total", Help: "Announced checkpoints: loaded or refused."}, []string{"outcome"}),
		users:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "onerec_serve_users", Help: "Users whose history is in memory."}),
	}
	reg.MustRegister(m.requests, m.latency, m.swaps, m.users)
	return m
}

func (m *Metrics) request(status int, d time.Duration) {
	if m != nil {
		m.requests.WithLabelValues(strconv.Itoa(status)).Inc()
		m.latency.Observe(d.Seconds())
	}
}

func (m *Metrics) swap(outcome string) {
	if m != nil {
		m.swaps.WithLabelValues(outcome).Inc()
	}
}

func (m *Metrics) setUsers(n int) {
	if m != nil {
		m.users.Set(float64(n))
	}
}
