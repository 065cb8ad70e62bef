// Package telemetry is what an operator sees of a service from outside: metrics,
// health, readiness, logs.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"onerec/internal/access"
)

// Probe is a service's readiness.
type Probe struct{ ready atomic.Bool }

// Ready says that the service does its work from now on.
func (p *Probe) Ready() { p.ready.Store(true) }

// NotReady says that it does not, for now.
func (p *Probe) NotReady() { p.ready.Store(false) }

// IsReady reports which was said last.
func (p *Probe) IsReady() bool { return p.ready.Load() }

// NewRegistry returns a registry with the process's own metrics.
func NewRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}

// Handler serves /healthz (the process answers) and /readyz (503 until the probe is
// ready) to everybody, and /metrics and /debug/pprof/ to this machine and to who has one of the tokens.
func Handler(reg prometheus.Gatherer, probe *Probe, tokens access.Tokens) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !probe.ready.Load() {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	inside := http.NewServeMux()
	inside.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	inside.HandleFunc("GET /debug/pprof/", pprof.Index) // heap, goroutine and others by name
	inside.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	inside.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	inside.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	inside.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		token, _ := access.Bearer(r)
		// By the peer's address, and by the name that it asked for: a page elsewhere can make a browser here ask, by a
		// name that was made to resolve to this machine.
		if here := access.Loopback(r.RemoteAddr) && access.Loopback(r.Host); !here && !tokens.Has(token) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="onerec"`)
			http.Error(w, "from another machine this needs a bearer token of the file that --http-tokens names", http.StatusUnauthorized)
			return
		}
		inside.ServeHTTP(w, r)
	})
	return mux
}

// Serve serves h on l until ctx ends, then lets requests in flight finish.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: time.Minute,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
	}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		stopped <- srv.Shutdown(grace)
	})
	err := srv.Serve(l)
	if stop() { // it did not run: Serve failed by itself
		return fmt.Errorf("serve HTTP on %s: %w", l.Addr(), err)
	}
	if err := <-stopped; err != nil {
		return fmt.Errorf("stop HTTP on %s: %w", l.Addr(), err)
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP on %s: %w", l.Addr(), err)
	}
	return nil
}

// NewLogger returns a logger that writes lines of text or, with json set, JSON.
func NewLogger(w io.Writer, level slog.Level, json bool) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level}
	if json {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}
