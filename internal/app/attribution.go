package app

import (
	"context"
	"fmt"
	"time"

	"onerec/internal/attribution"
	"onerec/publisher"
	"onerec/schemas/onerecv1"
)

// Attribution sums the snapshots' views from a time on by checkpoint.
func (a *App) Attribution(ctx context.Context, since time.Time) ([]attribution.Line, error) {
	t, err := attribution.Read(ctx, a.SnapshotDir, since)
	if err != nil {
		return nil, err
	}
	return t.Lines(), nil
}

// JudgeCanary compares the canary with what is released by the snapshots' views since the canary was
// announced, or since another time if one is given. With apply, what the rule decides is done,
// but for a promotion while releases are held: see [App.Hold].
func (a *App) JudgeCanary(ctx context.Context, rule attribution.Rule, since time.Time, apply bool) (j attribution.Judgement, err error) {
	err = a.withRelease(ctx, func(store *publisher.Store, refs map[string]*onerecv1.CheckpointRef) error {
		canary, released := refs[publisher.ChannelCanary], refs[publisher.ChannelReleased]
		if canary == nil || released == nil {
			return fmt.Errorf("model %q needs a version on each of the channels canary and released; \"onerec checkpoints promote --channel canary\" gives it a canary", a.Model)
		}
		if since.IsZero() {
			since = time.UnixMilli(max(canary.AnnouncedAtMs, released.AnnouncedAtMs))
		}
		t, err := attribution.Read(ctx, a.SnapshotDir, since)
		if err != nil {
			return err
		}
		j = t.Judge(canary.Version, released.Version, rule)
		if !apply || j.Decision == attribution.Wait {
			return nil
		}
		if j.Decision == attribution.Promote {
			if j.Held, err = publisher.Release(ctx, a.cluster(), store, canary.Version, canary.ManifestSha256); err != nil || j.Held != "" {
				return err
			}
		}
		return publisher.Withdraw(ctx, a.cluster(), a.Model, publisher.ChannelCanary)
	})
	return j, err
}
