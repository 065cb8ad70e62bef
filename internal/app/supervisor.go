package app

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"onerec/internal/access"
	"onerec/internal/stream"
	"onerec/internal/telemetry"
)

// supervisor keeps one service going and shows how it is.
type supervisor struct {
	reg   atomic.Pointer[prometheus.Registry] // begins anew when the service starts over, as when a process does
	probe telemetry.Probe
}

func newSupervisor() *supervisor {
	s := new(supervisor)
	s.reg.Store(telemetry.NewRegistry())
	return s
}

// handler is the admin endpoint.
func (s *supervisor) handler(tokens access.Tokens) http.Handler {
	gather := prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return s.reg.Load().Gather() })
	return telemetry.Handler(gather, &s.probe, tokens)
}

// run runs the service until it ends or ctx does. When brokers fail for a while, or a
// disk is full, it starts over until that is mended.
func (s *supervisor) run(ctx context.Context, log *slog.Logger, run service) error {
	pause := firstPause
	for {
		err := run(ctx, host{s.reg.Load(), s.probe.Ready})
		passes := stream.Transient(err) || noRoom(err)
		if ctx.Err() != nil && passes {
			log.Warn("interrupted while it failed; what it did not commit is read again", "why", reason(err), "error", err)
			return nil
		}
		// What fails before the service was ever ready, an operator should see.
		if ctx.Err() != nil || !passes || !s.probe.IsReady() && pause == firstPause {
			return err
		}
		if s.probe.IsReady() {
			pause = firstPause
		}
		log.Warn("starting over", "why", reason(err), "in", pause, "error", err)
		s.probe.NotReady()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
		s.reg.Store(telemetry.NewRegistry())
	}
}

// Pauses before a service starts over after a failure; each is twice as long as
// the one before.
const (
	firstPause = 500 * time.Millisecond
	lastPause  = 10 * time.Second
)

// noRoom reports whether a write failed because a disk or a quota is full.
func noRoom(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

func reason(err error) string {
	if noRoom(err) {
		return "no room is left where it writes; free some"
	}
	return "the brokers fail"
}
