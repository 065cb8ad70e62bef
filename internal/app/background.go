package app

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"onerec/console"
	"onerec/internal/telemetry"
)

// background runs services beside the steps of a demo, each as in a process of its own: with metrics,
// readiness and an admin endpoint on loopback, where a console reads.
type background struct {
	ctx  context.Context // ends with the first of them that fails
	stop context.CancelFunc
	g    *errgroup.Group

	mu      sync.Mutex
	targets []console.Target
	url     string // of the recommender, once it runs
	console string // URL of the console, if there is one
}

func newBackground(ctx context.Context) *background {
	ctx, stop := context.WithCancel(ctx)
	g, ctx := errgroup.WithContext(ctx)
	return &background{ctx: ctx, stop: stop, g: g}
}

// start runs a service until the demo ends.
func (b *background) start(name string, run service) error {
	h, err := b.host(name)
	if err != nil {
		return err
	}
	b.g.Go(func() error {
		if err := run(b.ctx, h); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
	return nil
}

// once runs a service that ends by itself.
func (b *background) once(name string, run service) error {
	h, err := b.host(name)
	if err != nil {
		return err
	}
	err = run(b.ctx, h)
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.targets {
		b.targets[i].Done = b.targets[i].Done || b.targets[i].Stage == name
	}
	return err
}

// host opens a service's admin endpoint, in place of one of its name that has ended.
func (b *background) host(name string) (host, error) {
	l, err := listen(b.ctx, "127.0.0.1:0")
	if err != nil {
		return host{}, fmt.Errorf("listen for health and metrics: %w", err)
	}
	reg, probe := telemetry.NewRegistry(), new(telemetry.Probe)
	b.g.Go(func() error { return telemetry.Serve(b.ctx, l, telemetry.Handler(reg, probe, nil)) })
	t := console.Target{Stage: name, URL: "http://" + l.Addr().String()}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.targets {
		if b.targets[i].Stage == name {
			b.targets[i] = t
			return host{reg, probe.Ready}, nil
		}
	}
	b.targets = append(b.targets, t)
	return host{reg, probe.Ready}, nil
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
