package snapshots

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"

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
		if err := readFile(ctx, s, table, f.Path, readRows, fn); err != nil {
			return err
		}
	}
	return nil
}

// readFile reads one file of a table.
func readFile[T any](ctx context.Context, s *Store, table, name string, read reader[T], fn func([]T) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r, size, done, err := s.get(ctx, table, name)
	if err == nil {
		var failed error
		err = errors.Join(read(r, size, func(rows []T) error {
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

// Offsets returns how far each partition of a topic is in its table: the next offset, by partition.
func (s *Store) Offsets(ctx context.Context, table, topic string) (map[int32]int64, error) {
	state, err := s.Table(table).State(ctx)
	if err != nil {
		return nil, fmt.Errorf("read snapshots: %w", err)
	}
	out := make(map[int32]int64)
	for app, next := range state.Apps {
		if p, ok := strings.CutPrefix(app, topic+"/"); ok {
			n, err := strconv.ParseInt(p, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("read snapshots: the log of %s counts %q", table, app)
			}
			out[int32(n)] = next
		}
	}
	return out, nil
}

// ReadHours calls fn with all rows of each hour in the order of time, so that a reader can put them into an order
// of its own. An hour is in memory whole. A file that was compacted away meanwhile is looked for anew; of one
// that can't be read, damaged is told: with nil it is left out, with an error the reading ends.
func ReadHours[T any](ctx context.Context, s *Store, table string, days Range, damaged func(file string, err error) error, fn func([]T) error) error {
	return readHours(ctx, s, table, days, readRows[T], damaged, fn)
}

// reader reads the rows of a file, in batches.
type reader[T any] func(r io.ReaderAt, size int64, fn func([]T) error) error

func readHours[T any](ctx context.Context, s *Store, table string, days Range, read reader[T], damaged func(file string, err error) error, fn func([]T) error) error {
	hours := make(map[string]bool)
	files, err := s.Files(ctx, table, days)
	if err != nil {
		return err
	}
	for _, f := range files {
		hours[path.Dir(f.Path)] = true
	}
	for _, hour := range slices.Sorted(maps.Keys(hours)) {
		rows, err := readHour(ctx, s, table, hour, files, read, damaged)
		for gone := 0; errors.Is(err, errGone) && gone < 3; gone++ {
			if files, err = s.Files(ctx, table, days); err != nil {
				return err
			}
			rows, err = readHour(ctx, s, table, hour, files, read, damaged)
		}
		if err != nil {
			return err
		}
		if err := fn(rows); err != nil {
			return err
		}
	}
	return nil
}

// errGone says that a file is not there any more.
var errGone = errors.New("the file is gone")

func readHour[T any](ctx context.Context, s *Store, table, hour string, files []*delta.Add, read reader[T], damaged func(file string, err error) error) (rows []T, err error) {
	for _, f := range files {
		if path.Dir(f.Path) != hour {
			continue
		}
		whole := len(rows)
		err := readFile(ctx, s, table, f.Path, read, func(batch []T) error {
			rows = append(rows, batch...)
			return nil
		})
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, fs.ErrNotExist), gcerrors.Code(err) == gcerrors.NotFound:
			return nil, fmt.Errorf("%w: %w", errGone, err)
		default:
			rows = rows[:whole]
			if err := damaged(f.Path, err); err != nil {
				return nil, err
			}
		}
	}
	return rows, nil
}
