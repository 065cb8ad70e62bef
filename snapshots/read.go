package snapshots

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"gocloud.dev/blob"

	"onerec/snapshots/delta"
)

// Range is the days that are read, UTC, as YYYY-MM-DD; an empty one is no bound.
type Range struct{ From, To string } // both included

func (r Range) holds(date string) bool {
	return date >= r.From && (r.To == "" || date <= r.To)
}

// Files returns the files that are a table's rows now, by path, of the days asked for. Files from before there
// was a log are among them: those of a folder that the service has not taken over yet.
func (s *Store) Files(ctx context.Context, table string, days Range) ([]*delta.Add, error) {
	state, err := s.Table(table).State(ctx)
	if err != nil {
		return nil, fmt.Errorf("read snapshots: %w", err)
	}
	return s.files(ctx, state, table, days)
}

func (s *Store) files(ctx context.Context, state *delta.State, table string, days Range) ([]*delta.Add, error) {
	var out []*delta.Add
	for _, f := range state.Files {
		if days.holds(f.PartitionValues["date"]) {
			out = append(out, f)
		}
	}
	if state.Version < 0 {
		old, err := s.unlogged(ctx, table)
		if err != nil {
			return nil, err
		}
		out = append(out, old...)
	}
	slices.SortFunc(out, func(a, b *delta.Add) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}

// unlogged returns the Parquet files of a table that has no log: those of the first version, whose names end in
// partition=NNNN/FROM-NEXT.parquet, or any that somebody put there.
func (s *Store) unlogged(ctx context.Context, table string) (out []*delta.Add, err error) {
	it := s.bucket.List(&blob.ListOptions{Prefix: table + "/"})
	for {
		o, err := it.Next(ctx)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("list snapshots: %w", err)
		}
		// One with a name of ours was about to become part of a table, and did not.
		if name := strings.TrimPrefix(o.Key, table+"/"); strings.HasSuffix(name, ".parquet") && !dataFile.MatchString(name) {
			out = append(out, &delta.Add{Path: name, Size: o.Size})
		}
	}
}

// Read calls fn with the rows of a table, file after file, in batches that it must not keep. T has columns of
// the table's row type, not necessarily all: what is not asked for is not read. It returns fn's first error.
func Read[T any](ctx context.Context, s *Store, table string, days Range, fn func([]T) error) error {
	files, err := s.Files(ctx, table, days)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := readFile(ctx, s, table, f.Path, fn); err != nil {
			return err
		}
	}
	return nil
}

// readFile reads one file of a table.
func readFile[T any](ctx context.Context, s *Store, table, name string, fn func([]T) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r, size, done, err := s.get(ctx, table, name)
	if err == nil {
		var failed error
		err = errors.Join(readRows(r, size, func(rows []T) error {
			failed = fn(rows)
			return failed
		}), done())
		if failed != nil {
			return failed
		}
	}
	if err != nil {
		return fmt.Errorf("read snapshot %s: %w", path.Join(s.URL(), table, name), err)
	}
	return nil
}

// ReadAll calls fn with every session of the snapshots at a URL and returns fn's first error.
func ReadAll(ctx context.Context, url string, fn func(Session) error) (err error) {
	s, err := Open(ctx, url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return Read(ctx, s, TableSessions, Range{}, func(rows []Session) error {
		for _, row := range rows {
			if err := fn(row); err != nil {
				return err
			}
		}
		return nil
	})
}
