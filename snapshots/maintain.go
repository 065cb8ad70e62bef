package snapshots

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/parquet-go/parquet-go"
	"gocloud.dev/blob"

	"onerec/snapshots/delta"
)

// Maintenance says what [Store.Maintain] does.
type Maintenance struct {
	Size  int64         // bytes that a file is meant to have; smaller ones of an hour are made one
	Quiet time.Duration // hours of which a file came since are left alone: more may come
	Keep  int           // days that are kept; 0: all
	Grace time.Duration // files that are no part of a table any more are kept for so long, for who still reads them
	Now   time.Time
	// Progress is told how many hours of a table are done, or nil.
	Progress func(done, total int)
}

// Maintained says what was done.
type Maintained struct {
	Merged, Into  int   // small files, and what became of them
	Expired       int   // files of days that are not kept
	Deleted       int   // files that nobody needs any more
	DeletedBytes  int64 // their bytes
	RowsRewritten int64
}

// Maintain makes small files one, takes days out that are over, and deletes what nobody needs any more. Each of
// its commits leaves the table with the same rows or with none of a day. It may run beside the service, and
// beside itself: who is late in a commit finds it made and leaves it.
func (s *Store) Maintain(ctx context.Context, table string, m Maintenance) (done Maintained, err error) {
	t := s.Table(table)
	defer func() {
		if err != nil {
			err = fmt.Errorf("maintain %s of %s: %w", table, s.URL(), err)
		}
	}()
	if err := s.expire(ctx, t, layouts[table].byHour, m, &done); err != nil {
		return done, err
	}
	state, err := t.State(ctx)
	if err != nil {
		return done, err
	}
	var groups [][]*delta.Add
	if layouts[table].byHour { // the others are one file
		groups = small(state, m)
	}
	for i, group := range groups {
		if err := s.merge(ctx, t, table, group, m, &done); err != nil && !errors.Is(err, delta.ErrConflict) {
			return done, err
		}
		if m.Progress != nil {
			m.Progress(i+1, len(groups))
		}
	}
	done.Deleted, done.DeletedBytes, err = t.Vacuum(ctx, m.Now.Add(-m.Grace), func(name string) bool {
		if i := strings.Index(name, ".parquet."); i >= 0 && strings.HasSuffix(name, ".tmp") { // of a process that was killed
			name = name[:i] + ".parquet"
		}
		return dataFile.MatchString(name)
	})
	return done, err
}

// expire takes the days out that are not kept.
func (s *Store) expire(ctx context.Context, t *delta.Table, byHour bool, m Maintenance, done *Maintained) error {
	if m.Keep <= 0 || !byHour {
		return nil
	}
	first := m.Now.UTC().AddDate(0, 0, -m.Keep).Format(time.DateOnly)
	return t.Commit(ctx, "DELETE", func(state *delta.State) (actions []delta.Action, err error) {
		done.Expired = 0
		for _, f := range state.Files {
			if f.PartitionValues["date"] < first {
				actions = append(actions, f.Remove(m.Now.UnixMilli(), true))
				done.Expired++
			}
		}
		return actions, nil
	})
}

// small returns the files that are to be made one: groups of at least two files of an hour, which together have
// about the size of one.
func small(state *delta.State, m Maintenance) (groups [][]*delta.Add) {
	hours := make(map[string][]*delta.Add)
	busy := make(map[string]bool)
	for _, f := range state.Files {
		dir := path.Dir(f.Path)
		if m.Now.Sub(time.UnixMilli(f.ModificationTime)) < m.Quiet {
			busy[dir] = true
		}
		if f.Size < m.Size/2 {
			hours[dir] = append(hours[dir], f)
		}
	}
	dirs := make([]string, 0, len(hours))
	for dir := range hours {
		if !busy[dir] {
			dirs = append(dirs, dir)
		}
	}
	slices.Sort(dirs)
	for _, dir := range dirs {
		files := hours[dir]
		slices.SortFunc(files, func(a, b *delta.Add) int { return strings.Compare(a.Path, b.Path) })
		var group []*delta.Add
		size := int64(0)
		for i, f := range files {
			group, size = append(group, f), size+f.Size
			if size >= m.Size || i == len(files)-1 {
				if len(group) > 1 {
					groups = append(groups, group)
				}
				group, size = nil, 0
			}
		}
	}
	return groups
}

// merge writes files of an hour as one and puts it in their place.
func (s *Store) merge(ctx context.Context, t *delta.Table, table string, group []*delta.Add, m Maintenance, done *Maintained) error {
	name := path.Join(path.Dir(group[0].Path), "c-"+rand.Text()+".parquet")
	var size, rows int64
	var err error
	switch table {
	case TableSessions:
		size, rows, err = mergeFiles[Session](ctx, s, table, name, group)
	case TableDeadLetters:
		size, rows, err = mergeFiles[DeadLetter](ctx, s, table, name, group)
	default:
		return fmt.Errorf("there is no table %q", table)
	}
	if err != nil {
		return err
	}
	stats, err := json.Marshal(mergeStats(group, rows))
	if err != nil {
		return err
	}
	if err := s.bucket.Sync(t.Key(name)); err != nil {
		return err
	}
	err = t.Commit(ctx, "OPTIMIZE", func(state *delta.State) ([]delta.Action, error) {
		actions := []delta.Action{{Add: &delta.Add{
			Path: name, PartitionValues: group[0].PartitionValues, Size: size, ModificationTime: m.Now.UnixMilli(), Stats: string(stats),
		}}}
		for _, f := range group {
			if state.Files[f.Path] == nil {
				return nil, fmt.Errorf("%w: %s is no part of the table any more", delta.ErrConflict, f.Path)
			}
			actions = append(actions, f.Remove(m.Now.UnixMilli(), false))
		}
		return actions, nil
	})
	if errors.Is(err, delta.ErrConflict) { // nobody will ever read it
		return errors.Join(err, s.bucket.Delete(ctx, t.Key(name)))
	}
	if err == nil {
		done.Merged, done.Into, done.RowsRewritten = done.Merged+len(group), done.Into+1, done.RowsRewritten+rows
	}
	return err
}

// mergeFiles writes the rows of files, in their order, as one file. Few rows are in memory at a time.
func mergeFiles[T any](ctx context.Context, s *Store, table, name string, group []*delta.Add) (size, rows int64, err error) {
	defer malformed(&err)
	var groups []parquet.RowGroup
	for _, file := range group {
		r, bytes, closed, err := s.get(ctx, table, file.Path)
		if err != nil {
			return 0, 0, err
		}
		defer func() { _ = closed() }()
		f, err := parquet.OpenFile(r, bytes)
		if err != nil {
			return 0, 0, fmt.Errorf("%s: %w", file.Path, err)
		}
		groups = append(groups, f.RowGroups()...)
		rows += f.NumRows()
	}
	merged, err := parquet.MergeRowGroups(groups, parquet.SchemaOf(*new(T)), parquet.SortingRowGroupConfig(layouts[table].order()))
	if err != nil {
		return 0, 0, err
	}
	size, err = s.put(ctx, path.Join(table, name), func(w io.Writer) error { return copyRows[T](w, table, merged, rows) })
	return size, rows, err
}

func copyRows[T any](w io.Writer, table string, from parquet.RowGroup, want int64) error {
	pw := parquet.NewGenericWriter[T](w, layouts[table].options()...)
	rows := from.Rows()
	n, err := parquet.CopyRows(pw, rows)
	if err = errors.Join(err, rows.Close()); err != nil {
		return err
	}
	if n != want {
		return fmt.Errorf("%d rows became %d", want, n)
	}
	return pw.Close()
}

// mergeStats sums the statistics of files up. A bound that one of them does not say, nobody says.
func mergeStats(group []*delta.Add, rows int64) delta.Stats {
	out := delta.Stats{NumRecords: rows, MinValues: map[string]any{}, MaxValues: map[string]any{}, NullCount: map[string]int64{}}
	for i, f := range group {
		var s delta.Stats
		_ = json.Unmarshal([]byte(f.Stats), &s)
		if i == 0 {
			if s.MinValues != nil && s.MaxValues != nil {
				out.MinValues, out.MaxValues = s.MinValues, s.MaxValues
			}
			continue
		}
		bound(out.MinValues, s.MinValues, -1)
		bound(out.MaxValues, s.MaxValues, 1)
	}
	for column := range out.MinValues {
		out.NullCount[column] = 0
	}
	return out
}

func bound(of, other map[string]any, sign int) {
	for column, v := range of {
		a, ok := v.(string)
		b, too := other[column].(string)
		switch {
		case !ok || !too:
			delete(of, column)
		case strings.Compare(b, a) == sign:
			of[column] = b
		}
	}
}

// Fault is what is wrong with a file.
type Fault struct {
	File string `json:"file"`
	What string `json:"fault"`
}

// Verified says what [Store.Verify] has read.
type Verified struct {
	Files  int     `json:"files"`
	Rows   int64   `json:"rows"`
	Bytes  int64   `json:"bytes"`
	Loose  int     `json:"loose_files"` // files of ours in the folder that are no part of the table
	Faults []Fault `json:"faults"`
}

// Verify reads every file of a table, of the days asked for, and says what is wrong with it: that it can't be
// read, is not what the log says, or holds rows of another hour, out of order, or twice.
func (s *Store) Verify(ctx context.Context, table string, days Range, progress func(done, total int)) (Verified, error) {
	v := Verified{Faults: []Fault{}}
	t := s.Table(table)
	state, err := t.State(ctx)
	if err != nil {
		return v, fmt.Errorf("verify snapshots: %w", err)
	}
	files, err := s.files(ctx, state, table, days)
	if err != nil {
		return v, err
	}
	seen := make(offsets)
	for i, f := range files {
		var rows int64
		switch table {
		case TableSessions:
			rows, err = s.verifySessions(ctx, f, state.Version >= 0, seen)
		case TableDeadLetters:
			rows, err = verifyRows(ctx, s, table, f, func(*DeadLetter) error { return nil })
		case TableItems:
			rows, err = verifyRows(ctx, s, table, f, func(*Item) error { return nil })
		case TableCheckpoints:
			rows, err = verifyRows(ctx, s, table, f, func(*Checkpoint) error { return nil })
		case TableTrainingSteps:
			rows, err = verifyRows(ctx, s, table, f, func(*TrainingStep) error { return nil })
		default:
			return v, fmt.Errorf("there is no table %q", table)
		}
		if ctx.Err() != nil {
			return v, ctx.Err()
		}
		if err != nil {
			v.Faults = append(v.Faults, Fault{path.Join(table, f.Path), err.Error()})
		}
		v.Files, v.Rows, v.Bytes = v.Files+1, v.Rows+rows, v.Bytes+f.Size
		if progress != nil {
			progress(i+1, len(files))
		}
	}
	if state.Version < 0 {
		return v, nil
	}
	return v, t.Each(ctx, "", func(o *blob.ListObject) error {
		if name := strings.TrimPrefix(o.Key, table+"/"); state.Files[name] == nil && dataFile.MatchString(name) {
			v.Loose++
		}
		return nil
	})
}

func (s *Store) verifySessions(ctx context.Context, f *delta.Add, logged bool, seen offsets) (int64, error) {
	last := Session{}
	sorted := strings.HasPrefix(path.Base(f.Path), "p0") || strings.HasPrefix(path.Base(f.Path), "c-")
	return verifyRows(ctx, s, TableSessions, f, func(row *Session) error {
		if dir, _ := folder(hourOf(row.End.UnixMilli())); logged && path.Dir(f.Path)+"/" != dir {
			return fmt.Errorf("session %s ended in another hour, %s", row.SessionID, row.End.UTC().Format(time.RFC3339))
		}
		if sorted && (row.UserID < last.UserID || row.UserID == last.UserID && row.Start.Before(last.Start)) {
			return fmt.Errorf("session %s is out of order", row.SessionID)
		}
		last = *row
		if !logged || row.Offset == 0 && row.Partition == 0 {
			return nil
		}
		if seen.add(row.Partition, row.Offset) {
			return fmt.Errorf("session %s, record %d of partition %d, is in the table twice", row.SessionID, row.Offset, row.Partition)
		}
		return nil
	})
}

// offsets is a set of records, a bit for each: by partition and by 65,536 offsets.
type offsets map[[2]int64]*[1 << 10]uint64

// add adds a record and reports whether it was there.
func (o offsets) add(partition int32, offset int64) bool {
	key := [2]int64{int64(partition), offset >> 16}
	if o[key] == nil {
		o[key] = new([1 << 10]uint64)
	}
	word, bit := &o[key][offset&0xffff>>6], uint64(1)<<(offset&63)
	there := *word&bit != 0
	*word |= bit
	return there
}

// verifyRows reads a file whole and holds it against the log.
func verifyRows[T any](ctx context.Context, s *Store, table string, f *delta.Add, check func(*T) error) (rows int64, err error) {
	r, size, closed, err := s.get(ctx, table, f.Path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, closed()) }()
	if f.Size != size {
		return 0, fmt.Errorf("it has %d bytes, the log says %d", size, f.Size)
	}
	err = readRows(r, size, func(batch []T) error {
		rows += int64(len(batch))
		for i := range batch {
			if err := check(&batch[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if want := f.Rows(); err == nil && want >= 0 && rows != want {
		err = fmt.Errorf("it has %d rows, the log says %d", rows, want)
	}
	return rows, err
}
