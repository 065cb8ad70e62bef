package recommender

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// openAPI describes the API; a test holds the handlers against it.
//
//go:embed openapi.json
var openAPI []byte

// problem is an error for the caller, RFC 9457.
type problem struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`

	retryAfter int // seconds; 0: not said
}

func (p *problem) Error() string { return p.Detail }

func badRequest(format string, args ...any) error {
	return &problem{Title: "Bad Request", Status: http.StatusBadRequest, Detail: fmt.Sprintf(format, args...)}
}

// Handler serves the API. Who is let in is decided before it, see [Auth].
func (s *Service) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/recommendations", func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		timeout := s.Timeout
		if timeout == 0 {
			timeout = 5 * time.Second
		}
		ctx, cancel := context.WithTimeout(r.Context(), timeout)
		defer cancel()
		var q Request
		err := decode(http.MaxBytesReader(w, r.Body, maxBody), &q)
		var a *Answer
		if err == nil {
			a, err = s.Recommend(ctx, q)
		}
		status := s.answer(w, a, err)
		channel := ""
		if a != nil {
			channel = a.Channel
		}
		s.Metrics.request(status, channel, time.Since(start))
	})
	mux.HandleFunc("GET /v1/items/{id}", func(w http.ResponseWriter, r *http.Request) {
		info, err := s.Item(r.PathValue("id"))
		s.answer(w, info, err)
	})
	mux.HandleFunc("GET /v1/users/{id}", func(w http.ResponseWriter, r *http.Request) {
		s.answer(w, s.User(r.PathValue("id")), nil)
	})
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, _ *http.Request) {
		answer := map[string]any{"models": s.Models()}
		if why := s.held.Load(); why != nil {
			answer["releases_held"] = *why
		}
		s.answer(w, answer, nil)
	})
	mux.HandleFunc("GET /v1/openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(openAPI)
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		s.answer(w, map[string]string{"status": "ok"}, nil)
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := s.Ready(); err != nil {
			s.answer(w, nil, &problem{Title: "Service Unavailable", Status: http.StatusServiceUnavailable, Detail: err.Error()})
			return
		}
		s.answer(w, map[string]string{"status": "ok"}, nil)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		// The mux's own answers are plain text.
		p := &problem{Title: "Not Found", Status: http.StatusNotFound, Detail: "there is no such path; GET /v1/openapi.json describes what is there"}
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			other := r.Clone(r.Context())
			other.Method = method
			if _, pattern := mux.Handler(other); pattern != "/" && pattern != "" {
				w.Header().Set("Allow", method)
				p = &problem{Title: "Method Not Allowed", Status: http.StatusMethodNotAllowed, Detail: "the method for this path is " + method}
			}
		}
		s.answer(w, nil, p)
	})
	return mux
}

// Loaded is a model that is loaded.
type Loaded struct {
	Version   string             `json:"version"`
	Channel   string             `json:"channel"`
	Kind      string             `json:"kind"`
	Codebook  string             `json:"codebook"`
	Items     int                `json:"items"`
	CreatedAt time.Time          `json:"created_at"`
	LoadedAt  time.Time          `json:"loaded_at"`
	Metrics   map[string]float64 `json:"metrics"`
}

// Models returns what is loaded: the served model, and the canary.
func (s *Service) Models() []Loaded {
	out := []Loaded{}
	for _, m := range []*model{s.loaded.Load(), s.canary.Load()} {
		if m == nil {
			continue
		}
		metrics := m.manifest.Metrics
		if metrics == nil {
			metrics = map[string]float64{}
		}
		out = append(out, Loaded{m.ref.Version, m.ref.Channel, m.manifest.Kind, m.manifest.Codebook, m.cb.Len(), m.manifest.CreatedAt, m.loadedAt, metrics})
	}
	return out
}

// answer writes a body, or an error as a problem, and returns the status.
func (s *Service) answer(w http.ResponseWriter, body any, err error) int {
	if err == nil {
		reply(w, "application/json", http.StatusOK, body)
		return http.StatusOK
	}
	p := new(problem)
	if !errors.As(err, &p) {
		s.Log.Error("request failed", "error", err)
		p = &problem{Title: "Internal Server Error", Status: http.StatusInternalServerError, Detail: "the recommender failed; its log says why"}
	}
	refuse(w, p)
	return p.Status
}

func refuse(w http.ResponseWriter, p *problem) {
	if p.retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(p.retryAfter))
	}
	reply(w, "application/problem+json", p.Status, p)
}

func decode(r io.Reader, q *Request) error {
	dec := json.NewDecoder(r)
	dec.DisallowUnknownFields()
	err := dec.Decode(q)
	if err == nil {
		if _, err = dec.Token(); err == nil {
			return badRequest("something follows the request in the body")
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
	}
	var tooLarge *http.MaxBytesError
	var timeout net.Error
	switch {
	case errors.As(err, &tooLarge):
		return &problem{Title: "Content Too Large", Status: http.StatusRequestEntityTooLarge, Detail: fmt.Sprintf("the body has more than %d bytes", maxBody)}
	case errors.As(err, &timeout) && timeout.Timeout():
		return &problem{Title: "Request Timeout", Status: http.StatusRequestTimeout, Detail: "the body took too long to arrive"}
	}
	return badRequest("the body is no request: %v", err)
}

func reply(w http.ResponseWriter, contentType string, status int, body any) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the caller has gone if this fails
}
