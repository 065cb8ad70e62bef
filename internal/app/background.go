package app

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"onerec/console"
	"onerec/internal/telemetry"
)

// background runs services beside the steps of a demo, each as in a process of its own: with metrics,
// readiness and an admin endpoint on loopback, where a console reads, and started over while brokers fail.
type background struct {
	ctx  context.Context // ends with the first of them that fails
	stop context.CancelFunc
	g    *errgroup.Group
	log  *slog.Logger

	mu      sync.Mutex
	targets []console.Target
	url     string // of the recommender, once it runs
	console string // URL of the console, if there is one
}

func newBackground(ctx context.Context, log *slog.Logger) *background {
	ctx, stop := context.WithCancel(ctx)
	g, ctx := errgroup.WithContext(ctx)
	return &background{ctx: ctx, stop: stop, g: g, log: log}
}

// start runs a service until the demo ends.
func (b *background) start(name string, run service) error {
	s, err := b.supervise(name)
	if err != nil {
		return err
	}
	b.g.Go(func() error {
		if err := s.run(b.ctx, b.log.With("service", name), run); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
	return nil
}

// once runs a service that ends by itself.
func (b *background) once(name string, run service) error {
	s, err := b.supervise(name)
	if err != nil {
		return err
	}
	err = s.run(b.ctx, b.log.With("service", name), run)
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.targets {
		b.targets[i].Done = b.targets[i].Done || b.targets[i].Stage == name
	}
	return err
}

// supervise opens a service's admin endpoint, in place of one of its name that has ended.
func (b *background) supervise(name string) (*supervisor, error) {
	l, err := listen(b.ctx, "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for health and metrics: %w", err)
	}
	s := newSupervisor()
	b.g.Go(func() error { return telemetry.Serve(b.ctx, l, s.handler(nil)) })
	t := console.Target{Stage: name, URL: "http://" + l.Addr().String()}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.targets {
		if b.targets[i].Stage == name {
			b.targets[i] = t
			return s, nil
		}
	}
	b.targets = append(b.targets, t)
	return s, nil
}

// end stops everything and returns the first failure.
func (b *background) end() error {
	b.stop()
	return b.g.Wait()
}

// Targets returns the admin endpoints.
func (b *background) Targets() []console.Target {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.targets)
}

// Recommender returns the URL of the recommender, once it runs.
func (b *background) Recommender() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.url
}

// Console returns the URL of the console, if there is one.
func (b *background) Console() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.console
}

func (b *background) watched(url string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.console = url
}

func (b *background) serves(url string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.url = url
}
