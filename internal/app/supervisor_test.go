package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
)

// TestStartsOver: what brokers or a full disk do to a service that was ready passes, however often; what else fails
// ends it, as does what fails before it was ever ready.
func TestStartsOver(t *testing.T) {
	passing := []error{fmt.Errorf("end transaction: %w", context.DeadlineExceeded), fmt.Errorf("write: %w", syscall.ENOSPC), io.EOF, kerr.CoordinatorNotAvailable}
	lasting := errors.New("a record that nobody may have written")
	for _, tt := range []struct {
		name  string
		errs  []error // of each run, the last one's is returned
		ready bool
		runs  int
		want  error
	}{
		{"passes", append(passing, nil), true, 5, nil},
		{"lasts", []error{io.EOF, lasting}, true, 2, lasting},
		{"never ready", []error{io.EOF}, false, 1, io.EOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, runs, begun := newSupervisor(), 0, time.Now()
				err := s.run(t.Context(), small(t).Log, func(_ context.Context, h host) error {
					// In a registry that it had before, this would panic.
					h.reg.MustRegister(prometheus.NewCounter(prometheus.CounterOpts{Name: "runs"}))
					if s.probe.IsReady() {
						t.Error("it is ready before it says so")
					}
					if tt.ready {
						h.ready()
					}
					runs++
					return tt.errs[runs-1]
				})
				if !errors.Is(err, tt.want) || runs != tt.runs {
					t.Errorf("%d runs, %v; want %d, %v", runs, err, tt.runs, tt.want)
				}
				if waited := time.Since(begun); waited != time.Duration(runs-1)*firstPause {
					t.Errorf("waited %v for %d runs", waited, runs)
				}
			})
		})
	}
}

// TestPausesGrow: a service that is not ready again is started over ever later, and until then its endpoint says so.
func TestPausesGrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s, runs := newSupervisor(), 0
		var at []time.Duration
		begun := time.Now()
		err := s.run(ctx, small(t).Log, func(_ context.Context, h host) error {
			at = append(at, time.Since(begun))
			if runs++; runs == 1 {
				h.ready()
			}
			if runs == 8 {
				cancel()
			}
			return io.EOF
		})
		if err != nil {
			t.Errorf("interrupted while the brokers fail: %v", err)
		}
		want := "[0s 500ms 1.5s 3.5s 7.5s 15.5s 25.5s 35.5s]"
		if fmt.Sprint(at) != want {
			t.Errorf("%v, want %v", at, want)
		}
		w := httptest.NewRecorder()
		s.handler(nil).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
		if w.Code != http.StatusServiceUnavailable {
			t.Errorf("ready: %d", w.Code)
		}
	})
}

// TestBackgroundOutlivesFailures: in a demo as in a process of its own a service starts over; what
// nothing mends ends the demo and names the service.
func TestBackgroundOutlivesFailures(t *testing.T) {
	b := newBackground(t.Context(), small(t).Log)
	runs := make(chan int, 3)
	n := 0
	err := b.start("filter", func(ctx context.Context, h host) error {
		n++
		runs <- n
		h.ready()
		if n == 1 {
			return fmt.Errorf("end transaction: %w", context.DeadlineExceeded)
		}
		<-ctx.Done()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for want := 1; want <= 2; want++ {
		if got := <-runs; got != want {
			t.Fatalf("run %d, want %d", got, want)
		}
	}
	again := 0
	if err := b.once("train", func(_ context.Context, h host) error {
		h.ready()
		if again++; again == 1 {
			return io.EOF
		}
		return nil
	}); err != nil || again != 2 {
		t.Errorf("a step of the demo: %d runs, %v", again, err)
	}
	if targets := b.Targets(); len(targets) != 2 || targets[0].Done || !targets[1].Done {
		t.Errorf("endpoints %+v", targets)
	}
	if err := b.start("sessionize", func(context.Context, host) error { return errors.New("no such rule") }); err != nil {
		t.Fatal(err)
	}
	<-b.ctx.Done()
	if err := b.end(); err == nil || !strings.Contains(err.Error(), "sessionize: no such rule") {
		t.Errorf("the demo ends with %v", err)
	}
}
