package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"onerec/decoder"
	"onerec/publisher"
	"onerec/snapshots"
	"onerec/trainer"
)

// Refreshed says how many rows the tables have that RefreshTables wrote.
type Refreshed struct {
	Items         int `json:"items"`
	Checkpoints   int `json:"checkpoints"`
	TrainingSteps int `json:"training_steps"`
}

// RefreshTables writes the snapshots' tables of items, checkpoints and training steps anew, from the items topic and
// the checkpoints. Semantic IDs are the newest checkpoint's.
func (a *App) RefreshTables(ctx context.Context) (out Refreshed, err error) {
	var versions []snapshots.Checkpoint
	var steps []snapshots.TrainingStep
	var items []snapshots.Item
	catalogue, err := a.Catalogue(ctx)
	if err != nil {
		return out, err
	}
	known := make(map[string]int) // index in items
	for item := range catalogue.All {
		known[item.ItemId] = len(items)
		items = append(items, snapshots.Item{
			ItemID: item.ItemId, Title: item.Title, DurationMs: item.DurationMs, Created: time.UnixMilli(item.CreatedMs).UTC(), Attributes: catalogue.Attributes(item.ItemId), Withdrawn: item.Withdrawn,
		})
	}
	err = a.withStore(ctx, func(store *publisher.Store) error {
		names, err := store.List(ctx)
		if err != nil {
			return err
		}
		var newest *publisher.Manifest
		for _, v := range names {
			m, _, err := store.Manifest(ctx, v, "")
			if errors.Is(err, publisher.ErrCorrupt) || errors.Is(err, publisher.ErrUntrusted) || errors.Is(err, publisher.ErrNotFound) {
				a.Log.Warn("a checkpoint is left out", "version", v, "error", err)
				continue
			}
			if err != nil {
				return err
			}
			newest = m
			versions = append(versions, checkpointRow(m))
			if !slices.ContainsFunc(m.Files, func(f publisher.File) bool { return f.Name == trainer.FileSteps }) {
				continue
			}
			_, files, err := store.Load(ctx, v, "", trainer.FileSteps)
			if err != nil {
				return err
			}
			of, err := trainer.DecodeSteps(files[trainer.FileSteps])
			if err != nil {
				return fmt.Errorf("checkpoint %s: %w", v, err)
			}
			for _, s := range of {
				steps = append(steps, snapshots.TrainingStep{
					Version: v, Model: m.Model, Step: int64(s.Step), Loss: s.Loss, GradNorm: s.GradNorm, LearningRate: s.LearningRate,
					Rows: int64(s.Rows), Tokens: int64(s.Tokens), Fresh: int64(s.Fresh), Seconds: s.Seconds, Skipped: s.Skipped,
				})
			}
		}
		if newest == nil {
			return nil
		}
		_, files, err := store.Load(ctx, newest.Version, "", decoder.Files()...)
		if err != nil {
			return err
		}
		_, cb, err := decoder.Decode(files, newest.Config)
		if err != nil {
			return err
		}
		for i := range int32(cb.Len()) {
			at, ok := known[cb.Item(i)]
			if !ok {
				at = len(items)
				items = append(items, snapshots.Item{ItemID: cb.Item(i), Created: time.UnixMilli(0).UTC()})
			}
			item := &items[at]
			item.CheckpointVersion, item.Codebook = newest.Version, cb.Version()
			codes := make([]string, cb.Levels())
			for l, code := range cb.ID(i) {
				item.Codes = append(item.Codes, int32(code))
				codes[l] = fmt.Sprint(code)
			}
			item.SemanticID = strings.Join(codes, "-")
		}
		return nil
	})
	if err != nil {
		return out, err
	}
	slices.SortFunc(items, func(a, b snapshots.Item) int { return strings.Compare(a.ItemID, b.ItemID) })
	err = a.WithSnapshots(ctx, func(s *snapshots.Store) error {
		return errors.Join(s.ReplaceItems(ctx, items), s.ReplaceCheckpoints(ctx, versions), s.ReplaceTrainingSteps(ctx, steps))
	})
	return Refreshed{len(items), len(versions), len(steps)}, err
}

func checkpointRow(m *publisher.Manifest) snapshots.Checkpoint {
	c := snapshots.Checkpoint{Version: m.Version, Model: m.Model, Kind: m.Kind, Parent: m.Parent, Codebook: m.Codebook, Created: m.CreatedAt.UTC()}
	for _, f := range m.Files {
		c.Bytes += f.Bytes
	}
	for name, value := range m.Metrics {
		c.Metrics = append(c.Metrics, snapshots.Metric{Name: name, Value: value})
	}
	slices.SortFunc(c.Metrics, func(a, b snapshots.Metric) int { return strings.Compare(a.Name, b.Name) })
	return c
}
