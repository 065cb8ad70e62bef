package app

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"onerec/internal/replay"
	"onerec/schemas/onerecv1"
	"onerec/simulator"
)

// input is where views come from.
type input struct {
	format string // for people
	total  int    // events, 0 if not known
	events iter.Seq[replay.Event]
	err    error // why events ended early
}

// pace lets so many events a second through; 0: all that come.
func (in *input) pace(ctx context.Context, rate float64) {
	if rate <= 0 {
		return
	}
	events := in.events
	in.events = func(yield func(replay.Event) bool) {
		tick := time.NewTicker(time.Duration(float64(time.Second) / rate))
		defer tick.Stop()
		for e := range events {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if !yield(e) {
				return
			}
		}
	}
}

// views reads a file, or, without one, sets up the simulator.
func (a *App) views(path string) (*input, error) {
	if path == "" {
		world, err := simulator.New(a.Simulate)
		if err != nil {
			return nil, err
		}
		c := a.Simulate
		return &input{
			format: fmt.Sprintf("the simulator: %d users, %d items, %d days, seed %d", c.Users, c.Items, c.Days, c.Seed),
			events: replay.Encode(world.Events()),
		}, nil
	}
	f, err := replay.Read(path)
	if err != nil {
		return nil, err
	}
	return &input{format: f.Format, total: len(f.Events), events: slices.Values(f.Events)}, nil
}

// served lets the simulator's users live on for some days after the log of the settings, which
// is taken as played, with what a running recommender shows them.
func (a *App) served(ctx context.Context, r Recommender) (*input, error) {
	world, err := simulator.New(a.Simulate)
	if err != nil {
		return nil, err
	}
	c := a.Simulate
	in := &input{format: fmt.Sprintf("the simulator: %d users, %d items, served by %s for %d days after day %d, seed %d", c.Users, c.Items, r.URL, r.Days, c.Days, c.Seed)}
	in.events = func(yield func(replay.Event) bool) {
		for range world.Events() { // as they were played before
			if ctx.Err() != nil {
				return
			}
		}
		authorization := ""
		if r.Token != "" {
			authorization = "Bearer " + r.Token
		}
		policy := world.Remote(ctx, r.URL, authorization, r.Patience, world.Ranker())
		until := c.Start.AddDate(0, 0, c.Days+r.Days)
		replay.Encode(func(yield func(*onerecv1.ViewEvent) bool) {
			if err := world.Run(policy, r.List, until, func(e *onerecv1.ViewEvent) bool { return ctx.Err() == nil && yield(e) }); ctx.Err() == nil {
				in.err = err
			}
		})(yield)
	}
	return in, nil
}

// Recommender is a running recommender that the simulator's users ask.
type Recommender struct {
	URL      string
	Token    string        // bearer token, or empty
	Days     int           // that it serves
	List     int           // items that it is asked for at a time
	Patience time.Duration // how long it may give no answer before that is an error
}

// play produces an input to views.raw.
func (a *App) play(ctx context.Context, in *input) (n int, latestMs int64, err error) {
	n, latestMs, err = replay.Play(ctx, a.cluster(), in.events, func(done int) { a.Progress.Update("replay views", "views", done, in.total) })
	a.Progress.Done()
	return n, latestMs, errors.Join(err, in.err)
}

// finish tells the sessionizer that nothing follows an input, so that its last
// sessions close.
func (a *App) finish(ctx context.Context, latestMs int64) error {
	return replay.Finish(ctx, a.cluster(), groupIngest, latestMs+a.Sessions.Gap.Milliseconds()+1)
}

// RunReplay plays a file, or the simulator, into views.raw, so many views a second or, with 0, as fast as the broker takes them.
// With finish, it waits for ingest and closes the sessions of the input. A recommender, if there is one, shows the
// simulator's users what to watch. It returns a line for people.
func (a *App) RunReplay(ctx context.Context, path string, r *Recommender, rate float64, finish bool) (string, error) {
	views := func() (*input, error) { return a.views(path) }
	if r != nil {
		views = func() (*input, error) { return a.served(ctx, *r) }
	}
	in, err := views()
	if err != nil {
		return "", err
	}
	if err := a.checkTopics(ctx); err != nil {
		return "", err
	}
	in.pace(ctx, rate)
	n, latest, err := a.play(ctx, in)
	if err != nil {
		return "", err
	}
	if finish {
		a.Log.Info("waiting for ingest")
		if err := a.finish(ctx, latest); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%d views of %s", n, in.format), nil
}
