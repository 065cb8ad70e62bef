package app

import (
	"context"
	"errors"
	"fmt"
	"os"

	"onerec/decoder"
	"onerec/publisher"
	"onerec/snapshots"
	"onerec/trainer"
)

// Exported says what an export of tokens wrote.
type Exported struct {
	Version string   `json:"version"`
	Rows    int64    `json:"rows"`
	Tokens  int64    `json:"tokens"`
	Bytes   int64    `json:"bytes"`
	Loss    *float64 `json:"loss,omitempty"` // nats a token, of that version's decoder
}

// ExportTokens writes the good sessions of the snapshots as rows of tokens in the language of a checkpoint; an
// empty version is the newest. With loss, what its decoder makes of the file is measured, too.
func (a *App) ExportTokens(ctx context.Context, file, version string, days snapshots.Range, batchRows int, loss bool) (out Exported, err error) {
	var w *decoder.Weights
	err = a.withStore(ctx, func(store *publisher.Store) error {
		if version == "" {
			all, err := store.List(ctx)
			if err != nil {
				return err
			}
			if len(all) == 0 {
				return fmt.Errorf("there is no checkpoint in %s, whose semantic IDs the tokens could be", a.Bucket)
			}
			version = all[len(all)-1]
		}
		m, files, err := store.Load(ctx, version, "", decoder.Files()...)
		if err != nil {
			return err
		}
		weights, cb, err := decoder.Decode(files, m.Config)
		if err != nil {
			return err
		}
		w, out.Version = weights, version
		t := &trainer.Tokens{
			Decoder: w.Config, Codebook: cb, Checkpoint: version, History: a.Train.History, Session: a.Train.Session,
			HistoryWeight: a.Train.HistoryWeight, HoldoutPercent: a.Train.HoldoutPercent,
		}
		return a.WithSnapshots(ctx, func(s *snapshots.Store) (err error) {
			f, err := os.Create(file)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, f.Close()) }()
			tw, err := snapshots.NewTokenWriter(f, t.Metadata(string(m.Config)), batchRows)
			if err != nil {
				return err
			}
			damaged := func(name string, err error) error {
				if !a.SkipDamaged {
					return fmt.Errorf("%w; --skip-damaged leaves it out", err)
				}
				a.Log.Error("a file can't be read: its sessions are not exported", "file", name, "error", err)
				return nil
			}
			out.Rows, out.Tokens, err = t.Export(ctx, s, days, damaged, tw)
			if err = errors.Join(err, tw.Close()); err != nil {
				return err
			}
			info, err := f.Stat()
			if err == nil {
				out.Bytes = info.Size()
			}
			return err
		})
	})
	if err != nil || !loss || out.Rows == 0 {
		return out, err
	}
	l, _, err := trainer.TokenLoss(w, file, false, a.Train.BatchTokens)
	if err != nil {
		return out, err
	}
	out.Loss = &l
	return out, nil
}
