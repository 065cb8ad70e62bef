package snapshots

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"path"
	"time"

	"onerec/snapshots/delta"
)

// Item is a row of the table items: what the catalogue and a checkpoint know of a video.
type Item struct {
	ItemID            string    `parquet:"item_id" doc:"the video" example:"i00815"`
	Title             string    `parquet:"title" doc:"for people; empty: not said" example:"Sourdough in 30 seconds"`
	DurationMs        int64     `parquet:"duration_ms" unit:"ms" doc:"length; 0: unknown" example:"21000"`
	Created           time.Time `parquet:"created,timestamp(microsecond)" unit:"UTC" doc:"when it was published; 1970: unknown" example:"2025-12-01 09:00:00"`
	Attributes        []string  `parquet:"attributes,list" doc:"what it has in common with others" example:"[author:17]"`
	Withdrawn         bool      `parquet:"withdrawn" doc:"whether it must not be recommended" example:"false"`
	Codes             []int32   `parquet:"codes,list" doc:"its semantic ID, level by level; empty: it has none yet" example:"[3, 17, 4]"`
	SemanticID        string    `parquet:"semantic_id" doc:"the same as text; items with a common beginning are alike" example:"3-17-4"`
	CheckpointVersion string    `parquet:"checkpoint_version,dict" doc:"whose semantic IDs these are" example:"000007-9f3ac1d2"`
	Codebook          string    `parquet:"codebook,dict" doc:"content hash of that checkpoint's codebook" example:"7809a1bdd54382b2"`
}

// Checkpoint is a row of the table checkpoints.
type Checkpoint struct {
	Version  string    `parquet:"version" doc:"the version" example:"000007-9f3ac1d2"`
	Model    string    `parquet:"model,dict" doc:"the model's name" example:"onerec"`
	Kind     string    `parquet:"kind,dict" doc:"base (next-token training) or aligned (DPO)" example:"aligned"`
	Parent   string    `parquet:"parent" doc:"the version that it was trained from; empty: none" example:"000006-1b2c3d4e"`
	Codebook string    `parquet:"codebook,dict" doc:"content hash of its codebook" example:"7809a1bdd54382b2"`
	Created  time.Time `parquet:"created,timestamp(microsecond)" unit:"UTC" doc:"when it was published" example:"2026-01-01 06:00:00"`
	Bytes    int64     `parquet:"bytes" unit:"bytes" doc:"size of its files" example:"9437184"`
	Metrics  []Metric  `parquet:"metrics,list" doc:"what was measured of it"`
}

// Metric is a figure of a checkpoint.
type Metric struct {
	Name  string  `parquet:"name,dict" doc:"what was measured; losses in nats, rates and rewards without a unit" example:"holdout_loss"`
	Value float64 `parquet:"value" doc:"the figure" example:"2.1164"`
}

// TrainingStep is a row of the table training_steps.
type TrainingStep struct {
	Version      string  `parquet:"version,dict" doc:"the first checkpoint that holds the step" example:"000007-9f3ac1d2"`
	Model        string  `parquet:"model,dict" doc:"the model's name" example:"onerec"`
	Step         int64   `parquet:"step,delta" doc:"its number since training began" example:"1200"`
	Loss         float64 `parquet:"loss" unit:"nats a token" doc:"next-token loss of the batch; 0: skipped" example:"2.1"`
	GradNorm     float64 `parquet:"grad_norm" doc:"norm of the gradient before clipping" example:"0.8"`
	LearningRate float64 `parquet:"learning_rate" doc:"of the step" example:"0.002"`
	Rows         int64   `parquet:"rows" unit:"rows" doc:"in the batch" example:"17"`
	Tokens       int64   `parquet:"tokens" unit:"tokens" doc:"in the batch" example:"2013"`
	Fresh        int64   `parquet:"fresh" unit:"rows" doc:"of these, trained on for the first time" example:"2"`
	Seconds      float64 `parquet:"seconds" unit:"s" doc:"what it took" example:"0.19"`
	Skipped      bool    `parquet:"skipped" doc:"not finite, so that it changed nothing" example:"false"`
}

// Files of the tables that are written anew as a whole.
var (
	itemFiles       = &files[Item]{table: TableItems}
	checkpointFiles = &files[Checkpoint]{table: TableCheckpoints}
	stepFiles       = &files[TrainingStep]{table: TableTrainingSteps}
)

// ReplaceItems makes rows the table items; readers see the old ones or the new ones.
func (s *Store) ReplaceItems(ctx context.Context, rows []Item) error {
	return replace(ctx, s, itemFiles, rows)
}

// ReplaceCheckpoints makes rows the table checkpoints, and keeps those of versions that are not among them: their
// files may have been removed since.
func (s *Store) ReplaceCheckpoints(ctx context.Context, rows []Checkpoint) error {
	rows, err := keep(ctx, s, TableCheckpoints, rows, func(c Checkpoint) string { return c.Version })
	if err != nil {
		return err
	}
	return replace(ctx, s, checkpointFiles, rows)
}

// ReplaceTrainingSteps does the same for the table training_steps.
func (s *Store) ReplaceTrainingSteps(ctx context.Context, rows []TrainingStep) error {
	rows, err := keep(ctx, s, TableTrainingSteps, rows, func(c TrainingStep) string { return c.Version })
	if err != nil {
		return err
	}
	return replace(ctx, s, stepFiles, rows)
}

// keep puts a table's rows of other versions before rows.
func keep[T any](ctx context.Context, s *Store, table string, rows []T, version func(T) string) (out []T, err error) {
	there := make(map[string]bool)
	for _, r := range rows {
		there[version(r)] = true
	}
	err = Read(ctx, s, table, Range{}, func(old []T) error {
		for _, r := range old {
			if !there[version(r)] {
				out = append(out, r)
			}
		}
		clear(old) // so that the lists of those that are kept are not written over
		return nil
	})
	return append(out, rows...), err
}

// replace makes rows the table, by one commit.
func replace[T any](ctx context.Context, s *Store, f *files[T], rows []T) error {
	name := "c-" + rand.Text() + ".parquet"
	size, err := f.put(ctx, s, name, span{}, len(rows), func(i int) (T, error) { return rows[i], nil })
	if err != nil {
		return err
	}
	if err := s.bucket.Sync(path.Join(f.table, name)); err != nil {
		return err
	}
	now := time.Now()
	stats, err := json.Marshal(delta.Stats{NumRecords: int64(len(rows))})
	if err != nil {
		return err
	}
	err = s.Table(f.table).Commit(ctx, "WRITE", func(state *delta.State) ([]delta.Action, error) {
		actions, err := create[T](state, f.table, now)
		if err != nil {
			return nil, err
		}
		for _, old := range state.Files {
			actions = append(actions, old.Remove(now.UnixMilli(), true))
		}
		return append(actions, delta.Action{Add: &delta.Add{
			Path: name, PartitionValues: map[string]string{}, Size: size, ModificationTime: now.UnixMilli(), DataChange: true, Stats: string(stats),
		}}), nil
	})
	if err != nil {
		return fmt.Errorf("write table %s: %w", f.table, err)
	}
	return nil
}
