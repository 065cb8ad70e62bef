package snapshots

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"regexp"
	"slices"
	"strconv"
	"time"

	"gocloud.dev/gcerrors"

	"onerec/schemas"
	"onerec/snapshots/delta"
)

// firstLayout matches the paths of the first version's files: a partition, and offsets from and up to.
var firstLayout = regexp.MustCompile(`^partition=(\d+)/(\d{20})-(\d{20})\.parquet$`)

// adopt makes a folder of the first version, which had no log, a table. Its sessions are written again, by hour,
// and become the table by one commit, with where to read on; then the old files go. A crash in between leaves
// the old folder or the new table, and files that "onerec snapshot compact" removes.
func (s *Store) adopt(ctx context.Context, log *slog.Logger) error {
	t := s.Table(TableSessions)
	state, err := t.State(ctx)
	if err != nil || state.Version >= 0 {
		return err
	}
	old, err := s.unlogged(ctx, TableSessions)
	if err != nil || len(old) == 0 {
		return err
	}
	log.Info("taking over snapshots of the first layout", "files", len(old))
	now := time.Now()
	next := make(map[int32]int64)
	var actions []delta.Action
	for _, f := range old {
		m := firstLayout.FindStringSubmatch(f.Path)
		if m == nil {
			return fmt.Errorf("take over %s: %s is not a file of ours; move it away", s.URL(), path.Join(TableSessions, f.Path))
		}
		n, err := strconv.ParseInt(m[1], 10, 32)
		if err != nil {
			return fmt.Errorf("take over %s: partition of %s: %w", s.URL(), f.Path, err)
		}
		from, err := strconv.ParseInt(m[2], 10, 64)
		to, err2 := strconv.ParseInt(m[3], 10, 64)
		if err := errors.Join(err, err2); err != nil {
			return fmt.Errorf("take over %s: offsets of %s: %w", s.URL(), f.Path, err)
		}
		p := int32(n)
		next[p] = max(next[p], to)
		added, err := s.rewrite(ctx, f.Path, span{schemas.TopicJudgedSessions, p, from, to}, now)
		if err != nil {
			return fmt.Errorf("take over %s: %w", s.URL(), err)
		}
		actions = append(actions, added...)
	}
	for p, to := range next {
		actions = append(actions, delta.Action{Txn: &delta.Txn{AppID: topicPartition{schemas.TopicJudgedSessions, p}.app(), Version: to, LastUpdated: now.UnixMilli()}})
	}
	err = t.Commit(ctx, "TAKE OVER", func(state *delta.State) ([]delta.Action, error) {
		if state.Version >= 0 {
			return nil, delta.ErrConflict // another process has done it
		}
		made, err := create[Session](state, TableSessions, now)
		return append(made, actions...), err
	})
	if errors.Is(err, delta.ErrConflict) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("take over %s: %w", s.URL(), err)
	}
	for _, f := range old {
		if err := s.bucket.Delete(ctx, t.Key(f.Path)); err != nil && gcerrors.Code(err) != gcerrors.NotFound {
			return fmt.Errorf("take over %s: %w", s.URL(), err)
		}
	}
	return nil
}

// rewrite writes the sessions of a file of the first version by hour.
func (s *Store) rewrite(ctx context.Context, name string, from span, now time.Time) (actions []delta.Action, err error) {
	var rows []Session
	if err := readFile(ctx, s, TableSessions, name, readRows, func(batch []Session) error {
		rows = append(rows, batch...)
		return nil
	}); err != nil {
		return nil, err
	}
	hour := func(r Session) int64 { return hourOf(r.End.UnixMilli()) }
	at := func(r Session) held {
		return held{place: place{hour(r), r.UserID, r.Start.UnixMilli()}}
	}
	slices.SortStableFunc(rows, func(a, b Session) int { return byPlace(at(a), at(b)) })
	for len(rows) > 0 {
		n := 1
		for n < len(rows) && hour(rows[n]) == hour(rows[0]) {
			n++
		}
		dir, values := folder(hour(rows[0]))
		file := from.file(dir)
		size, err := sessionFiles.put(ctx, s, file, from, n, func(i int) (Session, error) { return rows[i], nil })
		if err != nil {
			return nil, err
		}
		if err := s.bucket.Sync(path.Join(TableSessions, file)); err != nil {
			return nil, err
		}
		stats, err := json.Marshal(delta.Stats{NumRecords: int64(n)})
		if err != nil {
			return nil, err
		}
		actions = append(actions, delta.Action{Add: &delta.Add{
			Path: file, PartitionValues: values, Size: size, ModificationTime: now.UnixMilli(), DataChange: true, Stats: string(stats),
		}})
		rows = rows[n:]
	}
	return actions, nil
}
