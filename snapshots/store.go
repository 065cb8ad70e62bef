package snapshots

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/parquet-go/parquet-go"
	"github.com/twmb/franz-go/pkg/kgo"
	"gocloud.dev/blob"

	"onerec/internal/buckets"
	"onerec/schemas"
	"onerec/snapshots/delta"
)

// Names of the tables, and of their folders.
const (
	TableSessions      = "sessions"
	TableDeadLetters   = "dead_letters"
	TableItems         = "items"
	TableCheckpoints   = "checkpoints"
	TableTrainingSteps = "training_steps"
)

// Store is where the tables are: a folder, or a bucket.
type Store struct{ bucket *buckets.Bucket }

// Open opens a store by URL, see [buckets.Open]; a path is a local folder, which is created.
func Open(ctx context.Context, url string) (*Store, error) {
	b, err := buckets.Open(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	return &Store{b}, nil
}

// CheckCreate finds out whether two writers can share the bucket, see [buckets.Bucket.CheckCreate].
func (s *Store) CheckCreate(ctx context.Context) error { return s.bucket.CheckCreate(ctx) }

// Close closes the bucket.
func (s *Store) Close() error { return s.bucket.Close() }

// URL returns the bucket's URL.
func (s *Store) URL() string { return s.bucket.URL }

// Table returns one of the tables, as this process sees it.
func (s *Store) Table(name string) *delta.Table {
	return delta.Open(s.bucket, name, delta.Options{})
}

// partitions are the columns that the folders of a table stand for.
var partitions = []delta.Field{
	{Name: "date", Type: "date", Nullable: true, Metadata: map[string]string{"comment": "day of the folder, UTC"}},
	{Name: "hour", Type: "integer", Nullable: true, Metadata: map[string]string{"comment": "hour of the folder, UTC"}},
}

// description of each table, for its log.
var description = map[string]string{
	TableSessions:      "every session with the filters' verdict, its views nested",
	TableDeadLetters:   "views that ingest refused, with the reason and the bytes",
	TableItems:         "what the catalogue and the newest checkpoint know of each item, as of the last refresh",
	TableCheckpoints:   "every checkpoint with what was measured of it, as of the last refresh",
	TableTrainingSteps: "every training step, as of the last refresh",
}

// create returns the actions that make a table, or give it new columns; none if it is as it should be.
func create[T any](s *delta.State, table string, now time.Time) ([]delta.Action, error) {
	fields, columns := partitions, []string{"date", "hour"}
	if !layouts[table].byHour {
		fields, columns = nil, []string{}
	}
	schema, err := delta.SchemaOf(reflect.TypeFor[T](), fields...)
	if err != nil {
		return nil, err
	}
	return s.Create(table, description[table], schema, columns, now), nil
}

// hourMs is the length of what a folder holds.
const hourMs = int64(time.Hour / time.Millisecond)

// folder returns the folder of an hour since the epoch, and what it stands for.
func folder(hour int64) (dir string, values map[string]string) {
	t := time.UnixMilli(hour * hourMs).UTC()
	date := t.Format(time.DateOnly)
	return fmt.Sprintf("date=%s/hour=%02d/", date, t.Hour()), map[string]string{"date": date, "hour": strconv.Itoa(t.Hour())}
}

// dataFile matches the paths of files that this package writes: an hour, if there are hours, and p with a partition
// and its offsets from and up to (streamed), or c (compacted, or written as a whole), and something random.
var dataFile = regexp.MustCompile(`^(?:date=\d{4,}-\d\d-\d\d/hour=\d\d/)?(p\d{4,}-\d{20}-\d{20}|c)-[A-Z2-7]{26}\.parquet$`)

// layout is how the files of a table are laid out.
type layout struct {
	byHour  bool
	sorting []string        // columns
	bloom   map[string]uint // dotted paths of columns with a bloom filter; its bits for each value, repeated ones too
	plain   []string        // dotted paths of columns whose bounds say nothing
}

var layouts = map[string]layout{
	TableSessions: {
		byHour:  true,
		sorting: []string{"user_id", "start"},
		// A user has a few sessions in a file, an item many views: 1 in 100 is looked for in vain, or fewer.
		bloom: map[string]uint{"user_id": 10, "views.list.element.item_id": 6},
		plain: []string{
			"session_id", "views.list.element.event_id", "views.list.element.item_id", "views.list.element.recommendation_id",
			"history.list.element.item_id",
		},
	},
	TableDeadLetters: {byHour: true, sorting: []string{"time"}, plain: []string{"key", "value"}},
}

// order returns the order of a file's rows.
func (l layout) order() parquet.SortingOption {
	sorting := make([]parquet.SortingColumn, len(l.sorting))
	for i, name := range l.sorting {
		sorting[i] = parquet.Ascending(name)
	}
	return parquet.SortingColumns(sorting...)
}

// options returns those of a table's files.
func (l layout) options() []parquet.WriterOption {
	out := []parquet.WriterOption{
		parquet.Compression(pages), parquet.CreatedBy("onerec", "2", ""),
		parquet.DataPageStatistics(false), // the column index has them
	}
	out = append(out, parquet.SortingWriterConfig(l.order()))
	var filters []parquet.BloomFilterColumn
	for _, name := range slices.Sorted(maps.Keys(l.bloom)) {
		filters = append(filters, parquet.SplitBlockFilter(l.bloom[name], splitPath(name)...))
	}
	out = append(out, parquet.BloomFilters(filters...))
	for _, name := range l.plain {
		out = append(out, parquet.SkipPageBounds(splitPath(name)...))
	}
	return out
}

// span says which records of a topic a file's rows come from; it is in the file's metadata.
type span struct {
	topic      string
	partition  int32
	from, next int64 // offsets; next is not in it
}

// file returns the name of a new file in a folder.
func (s span) file(dir string) string {
	return fmt.Sprintf("%sp%04d-%020d-%020d-%s.parquet", dir, s.partition, s.from, s.next, rand.Text())
}

// files writes those of one table. It is safe for concurrent use.
type files[T any] struct{ table string }

var (
	sessionFiles    = &files[Session]{table: TableSessions}
	deadLetterFiles = &files[DeadLetter]{table: TableDeadLetters}
)

// options returns those of a file.
func (f *files[T]) options(from span) []parquet.WriterOption {
	return append(layouts[f.table].options(), parquet.SchemaOf(*new(T)),
		parquet.KeyValueMetadata("onerec.topic", from.topic),
		parquet.KeyValueMetadata("onerec.partition", strconv.Itoa(int(from.partition))),
		parquet.KeyValueMetadata("onerec.from", strconv.FormatInt(from.from, 10)),
		parquet.KeyValueMetadata("onerec.next", strconv.FormatInt(from.next, 10)))
}

// write writes n rows as a Parquet file to w. Rows are asked for in order, a few at a time.
func (f *files[T]) write(w io.Writer, from span, n int, row func(i int) (T, error)) error {
	// Not one writer again and again: parquet-go's Reset forgets the sorting columns.
	pw := parquet.NewGenericWriter[T](w, f.options(from)...)
	batch := make([]T, 0, 64)
	for i := range n {
		v, err := row(i)
		if err != nil {
			return err
		}
		if batch = append(batch, v); len(batch) < cap(batch) && i < n-1 {
			continue
		}
		if _, err := pw.Write(batch); err != nil {
			return err
		}
		batch = batch[:0]
	}
	return pw.Close()
}

// put writes a file of the table. It appears whole or not at all.
func (f *files[T]) put(ctx context.Context, s *Store, name string, from span, n int, row func(i int) (T, error)) (size int64, err error) {
	return s.put(ctx, path.Join(f.table, name), func(w io.Writer) error { return f.write(w, from, n, row) })
}

// put makes an object of what fill writes, if that succeeds, and returns its size.
func (s *Store) put(ctx context.Context, key string, fill func(io.Writer) error) (size int64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := s.bucket.NewWriter(ctx, key, &blob.WriterOptions{ContentType: "application/vnd.apache.parquet"})
	if err != nil {
		return 0, fmt.Errorf("write snapshot %s: %w", key, err)
	}
	counted := &counter{w: w}
	if err := fill(counted); err != nil {
		cancel() // so that closing does not make half a file appear
		_ = w.Close()
		return 0, fmt.Errorf("write snapshot %s: %w", key, err)
	}
	if err := w.Close(); err != nil {
		return 0, fmt.Errorf("write snapshot %s: %w", key, err)
	}
	return counted.n, nil
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// get opens a file of a table for reading. Those of a bucket are read into memory whole.
func (s *Store) get(ctx context.Context, table, name string) (io.ReaderAt, int64, func() error, error) {
	key := path.Join(table, name)
	if file, ok := s.bucket.Path(key); ok {
		f, err := os.Open(file)
		if err != nil {
			return nil, 0, nil, err
		}
		info, err := f.Stat()
		if err != nil {
			return nil, 0, nil, errors.Join(err, f.Close())
		}
		return f, info.Size(), f.Close, nil
	}
	data, err := s.bucket.ReadAll(ctx, key)
	return bytes.NewReader(data), int64(len(data)), func() error { return nil }, err
}

// readRows calls fn with the rows of a file, in batches that it must not keep, and returns fn's first error. T
// may have fewer columns than the file, which makes it faster, and more, which are then empty.
func readRows[T any](r io.ReaderAt, size int64, fn func([]T) error) (err error) {
	defer malformed(&err)
	f, err := openFile[T](r, size)
	if err != nil {
		return err
	}
	pr := parquet.NewGenericReader[T](f)
	defer pr.Close()
	rows := make([]T, 256)
	for {
		clear(rows)
		n, err := pr.Read(rows)
		if n > 0 {
			if err := fn(rows[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// openFile opens a file that has the columns of T.
func openFile[T any](r io.ReaderAt, size int64) (*parquet.File, error) {
	f, err := parquet.OpenFile(r, size)
	if err != nil {
		return nil, err
	}
	if missing := missingColumns[T](f.Schema()); missing != "" {
		return nil, fmt.Errorf("it has no column %s: it is no file of this table", missing)
	}
	return f, nil
}

// malformed is deferred where parquet-go may panic on a malformed file, and makes an error of it.
func malformed(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("malformed Parquet: %v", p)
	}
}

// missingColumns names the first of T's columns that is required and not there: those that the first version of
// the files had.
func missingColumns[T any](schema *parquet.Schema) string {
	there := make(map[string]bool)
	for _, f := range schema.Fields() {
		there[f.Name()] = true
	}
	t := reflect.TypeFor[T]()
	for i := range t.NumField() {
		name := columnName(t.Field(i))
		if !there[name] && t.Field(i).Tag.Get("since") == "" {
			return name
		}
	}
	return ""
}

func splitPath(path string) []string { return strings.Split(path, ".") }

// WriteSessions writes records of sessions.judged as a Parquet file, as the service does. They must be in the order of users and
// starts.
func WriteSessions(w io.Writer, records []*kgo.Record) error {
	return writeSessions(w, span{topic: schemas.TopicJudgedSessions}, len(records), func(i int) *kgo.Record { return records[i] })
}
