package app

import (
	"context"
	"fmt"
	"iter"
	"slices"

	"onerec/internal/replay"
	"onerec/simulator"
)

// input is where views come from.
type input struct {
	format string // for people
	total  int    // events, 0 if not known
	events iter.Seq[replay.Event]
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

// play produces an input to views.raw.
func (a *App) play(ctx context.Context, in *input) (n int, latestMs int64, err error) {
	n, latestMs, err = replay.Play(ctx, a.cluster(), in.events, func(done int) { a.Progress.Update("replay views", "views", done, in.total) })
	a.Progress.Done()
	return n, latestMs, err
}

// finish tells the sessionizer that nothing follows an input, so that its last
// sessions close.
func (a *App) finish(ctx context.Context, latestMs int64) error {
	return replay.Finish(ctx, a.cluster(), groupIngest, latestMs+a.Sessions.Gap.Milliseconds()+1)
}

// RunReplay plays a file, or the simulator, into views.raw. With finish, it waits
// for ingest and closes the sessions of the input. It returns a line for people.
func (a *App) RunReplay(ctx context.Context, path string, finish bool) (string, error) {
	in, err := a.views(path)
	if err != nil {
		return "", err
	}
	if err := a.checkTopics(ctx); err != nil {
		return "", err
	}
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
