package semanticid

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"

	"onerec/internal/limited"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/ipc"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/apache/arrow/go/v17/parquet"
	"github.com/apache/arrow/go/v17/parquet/compress"
	"github.com/apache/arrow/go/v17/parquet/pqarrow"
	parquetgo "github.com/parquet-go/parquet-go"
)

// Columns of a file of embeddings.
const (
	columnItem      = "item_id"   // utf8, unique
	columnEmbedding = "embedding" // FixedSizeList<float32>, or List<float32> of one length
)

// MaxDim bounds the width of embeddings.
const MaxDim = 1 << 14

// Embeddings are items and what is known of them as vectors.
type Embeddings struct {
	Items []string
	X     []float32 // len(Items) x Dim
	Dim   int

	known map[string]bool
}

// A file may ask for so much memory at once: damaged ones ask for any amount.
const (
	allocationBase   = 64 << 20 // bytes
	allocationFactor = 64       // bytes for each byte of the file
)

// ReadEmbeddings reads a Parquet (.parquet) or Arrow IPC (.arrow, .feather, .ipc) file
// with the columns item_id (string) and embedding (fixed-size list of float32). It refuses
// empty and doubled ids, missing values, widths that differ, NaN, infinities, and rows of
// zeros, which are near nothing.
func ReadEmbeddings(ctx context.Context, path string) (e *Embeddings, err error) {
	defer func() {
		if p := recover(); p != nil { // the readers panic on some malformed files
			err = fmt.Errorf("malformed file: %v", p)
		}
		if err != nil {
			e, err = nil, fmt.Errorf("read embeddings %s: %w", path, err)
		}
	}()
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	e = &Embeddings{known: make(map[string]bool)}
	bounded := limited.Allocator{Allocator: memory.DefaultAllocator, Limit: allocationBase + allocationFactor*int(info.Size())}
	switch ext := strings.ToLower(filepath.Ext(path)); ext {
	case ".parquet":
		err = e.readParquet(ctx, f, info.Size())
	case ".arrow", ".feather", ".ipc":
		err = limited.CheckArrow(f, info.Size())
		if err == nil {
			err = e.readArrow(f, bounded)
		}
	default:
		err = fmt.Errorf("the extension %q is none of .parquet, .arrow, .feather, .ipc", ext)
	}
	if err == nil && len(e.Items) == 0 {
		err = errors.New("it holds no items")
	}
	return e, err
}

// checkParquet refuses a Parquet file whose footer is said to be longer than the file: the
// reader would allocate as much.
func checkParquet(f io.ReaderAt, size int64) error {
	var tail [8]byte // length of the footer, magic
	if size < 12 {
		return fmt.Errorf("it has %d bytes and is no Parquet file", size)
	}
	if _, err := f.ReadAt(tail[:], size-8); err != nil {
		return err
	}
	if footer := int64(binary.LittleEndian.Uint32(tail[:])); footer > size-12 {
		return fmt.Errorf("it has %d bytes, its footer %d: the file is damaged", size, footer)
	}
	return nil
}

// readParquet reads with parquet-go: Arrow's reader panics on damaged files in goroutines
// of its own, where nobody can recover.
func (e *Embeddings) readParquet(ctx context.Context, f *os.File, size int64) error {
	if err := checkParquet(f, size); err != nil {
		return err
	}
	r, err := parquetgo.OpenFile(f, size, parquetgo.SkipPageIndex(true), parquetgo.SkipBloomFilters(true))
	if err != nil {
		return err
	}
	var items, vectors []parquetgo.LeafColumn
	for _, path := range r.Schema().Columns() {
		leaf, _ := r.Schema().Lookup(path...)
		switch path[0] {
		case columnItem:
			items = append(items, leaf)
		case columnEmbedding:
			vectors = append(vectors, leaf)
		}
	}
	switch {
	case len(items) != 1 || len(vectors) != 1:
		return fmt.Errorf("there are %d columns %q and %d columns %q, want one of each; the columns are %v", len(items), columnItem, len(vectors), columnEmbedding, r.Schema().Columns())
	case items[0].Node.Type().Kind() != parquetgo.ByteArray || len(items[0].Path) > 1:
		return fmt.Errorf("column %s is %s, want a string", columnItem, items[0].Node.Type())
	case vectors[0].Node.Type().Kind() != parquetgo.Float || vectors[0].MaxRepetitionLevel != items[0].MaxRepetitionLevel+1:
		return fmt.Errorf("column %s is %s, want a list of float32", columnEmbedding, vectors[0].Node.Type())
	}
	for _, group := range r.RowGroups() {
		var names []parquetgo.Value
		err := eachValue(ctx, group.ColumnChunks()[items[0].ColumnIndex], func(v parquetgo.Value) error {
			names = append(names, v.Clone())
			return nil
		})
		if err != nil {
			return err
		}
		var x []float32
		row, missing := -1, "" // within the group; what the row lacks
		finish := func() error {
			switch at := len(e.Items); {
			case row < 0:
				return nil
			case row >= len(names):
				return fmt.Errorf("row %d lies outside of the values", at)
			case names[row].IsNull():
				return fmt.Errorf("row %d has no %s or no %s", at, columnItem, columnEmbedding)
			case missing != "":
				return fmt.Errorf("row %d %s", at, missing)
			default:
				if err := e.Add(string(names[row].ByteArray()), x); err != nil {
					return fmt.Errorf("row %d: %w", at, err)
				}
				return nil
			}
		}
		err = eachValue(ctx, group.ColumnChunks()[vectors[0].ColumnIndex], func(v parquetgo.Value) error {
			if v.RepetitionLevel() == 0 {
				if err := finish(); err != nil {
					return err
				}
				row, x, missing = row+1, x[:0], ""
			}
			switch {
			case !v.IsNull():
				x = append(x, v.Float())
			case v.RepetitionLevel() == 0: // or it is empty, which is no better
				missing = fmt.Sprintf("has no %s or no %s", columnItem, columnEmbedding)
			default:
				missing = fmt.Sprintf("lacks a value at %d of the embedding", len(x))
			}
			return nil
		})
		if err == nil {
			err = finish()
		}
		if err != nil {
			return err
		}
		if row+1 != len(names) {
			return fmt.Errorf("there are %d values of %s and %d of %s", len(names), columnItem, row+1, columnEmbedding)
		}
	}
	return nil
}

// eachValue calls fn with every value of a column chunk.
func eachValue(ctx context.Context, chunk parquetgo.ColumnChunk, fn func(parquetgo.Value) error) error {
	pages := chunk.Pages()
	defer pages.Close()
	values := make([]parquetgo.Value, 4096)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		page, err := pages.ReadPage()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		for r := page.Values(); ; {
			n, err := r.ReadValues(values)
			for _, v := range values[:n] {
				if err := fn(v); err != nil {
					return err
				}
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err == nil && n == 0 {
				err = io.ErrNoProgress
			}
			if err != nil {
				return err
			}
		}
		parquetgo.Release(page)
	}
}

func (e *Embeddings) readArrow(f ipc.ReadAtSeeker, mem memory.Allocator) error {
	r, err := ipc.NewFileReader(f, ipc.WithAllocator(mem))
	if err != nil {
		return err
	}
	defer r.Close()
	for i := range r.NumRecords() {
		record, err := r.Record(i)
		if err != nil {
			return err
		}
		if err := e.add(record); err != nil {
			return err
		}
	}
	return nil
}

// add takes the rows of a record batch.
func (e *Embeddings) add(r arrow.Record) error {
	column := func(name string) (arrow.Array, error) {
		at := r.Schema().FieldIndices(name)
		if len(at) != 1 {
			return nil, fmt.Errorf("there are %d columns %q, want one; the columns are %v", len(at), name, fields(r.Schema()))
		}
		return r.Column(at[0]), nil
	}
	items, err := column(columnItem)
	if err != nil {
		return err
	}
	vectors, err := column(columnEmbedding)
	if err != nil {
		return err
	}
	names, ok := items.(interface{ Value(int) string })
	if !ok || items.DataType().ID() != arrow.STRING && items.DataType().ID() != arrow.LARGE_STRING {
		return fmt.Errorf("column %s is %s, want a string", columnItem, items.DataType())
	}
	list, ok := vectors.(array.ListLike)
	if !ok {
		return fmt.Errorf("column %s is %s, want a fixed-size list of float32", columnEmbedding, vectors.DataType())
	}
	values, ok := list.ListValues().(*array.Float32)
	if !ok {
		return fmt.Errorf("column %s is %s, want a fixed-size list of float32", columnEmbedding, vectors.DataType())
	}
	element, ok := vectors.DataType().(arrow.ListLikeType)
	nullable := ok && element.ElemField().Nullable // else the values' bitmap means nothing
	for i := range int(r.NumRows()) {
		row := len(e.Items)
		if items.IsNull(i) || vectors.IsNull(i) {
			return fmt.Errorf("row %d has no %s or no %s", row, columnItem, columnEmbedding)
		}
		from, to := list.ValueOffsets(i)
		if from < 0 || to < from || to > int64(values.Len()) {
			return fmt.Errorf("row %d lies outside of the values", row)
		}
		for j := from; nullable && j < to; j++ {
			if values.IsNull(int(j)) {
				return fmt.Errorf("row %d: the embedding lacks a value at %d", row, j-from)
			}
		}
		if err := e.Add(strings.Clone(names.Value(i)), values.Float32Values()[from:to]); err != nil {
			return fmt.Errorf("row %d: %w", row, err)
		}
	}
	return nil
}

// Add takes one item. It copies x.
func (e *Embeddings) Add(item string, x []float32) error {
	if e.known == nil {
		e.known = make(map[string]bool)
	}
	switch {
	case item == "":
		return errors.New("the item id is empty")
	case e.known[item]:
		return fmt.Errorf("item %q stands there twice", item)
	}
	if fault := faultOf(x, e.Dim); fault != "" {
		return fmt.Errorf("item %q: the embedding %s", item, fault)
	}
	e.append(item, x)
	return nil
}

// faultOf says what is wrong with an embedding, where those before have a width, or 0;
// "" if nothing is.
func faultOf(x []float32, width int) string {
	switch {
	case len(x) == 0 || len(x) > MaxDim:
		return fmt.Sprintf("has width %d, allowed is 1 to %d", len(x), MaxDim)
	case width != 0 && len(x) != width:
		return fmt.Sprintf("has width %d, those before %d", len(x), width)
	}
	zero := true
	for j, v := range x {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return fmt.Sprintf("holds %v at %d", v, j)
		}
		zero = zero && v == 0
	}
	if zero {
		return "is all zeros; leave the item out, it gets an ID when something is known of it"
	}
	return ""
}

// append takes an item that nothing is wrong with.
func (e *Embeddings) append(item string, x []float32) {
	e.Dim = len(x)
	e.known[item] = true
	e.Items = append(e.Items, item)
	e.X = append(e.X, x...)
}

func fields(s *arrow.Schema) (names []string) {
	for _, f := range s.Fields() {
		names = append(names, f.Name)
	}
	return names
}

// Write writes what ReadEmbeddings reads; format is "parquet" or "arrow".
func (e *Embeddings) Write(w io.WriteSeeker, format string) error {
	schema := arrow.NewSchema([]arrow.Field{
		{Name: columnItem, Type: arrow.BinaryTypes.String},
		// Nullable, though nothing is missing: Arrow 17 writes fixed-size lists that are not
		// as if every value were.
		{Name: columnEmbedding, Type: arrow.FixedSizeListOf(int32(e.Dim), arrow.PrimitiveTypes.Float32), Nullable: true},
	}, nil)
	items := array.NewStringBuilder(memory.DefaultAllocator)
	defer items.Release()
	items.AppendValues(e.Items, nil)
	vectors := array.NewFixedSizeListBuilderWithField(memory.DefaultAllocator, int32(e.Dim), schema.Field(1).Type.(*arrow.FixedSizeListType).ElemField())
	defer vectors.Release()
	for range e.Items {
		vectors.Append(true)
	}
	vectors.ValueBuilder().(*array.Float32Builder).AppendValues(e.X, nil)
	record := array.NewRecord(schema, []arrow.Array{items.NewArray(), vectors.NewArray()}, int64(len(e.Items)))
	defer record.Release()
	var out interface {
		Write(arrow.Record) error
		Close() error
	}
	var err error
	switch format {
	case "parquet":
		out, err = pqarrow.NewFileWriter(schema, w, parquet.NewWriterProperties(parquet.WithCompression(compress.Codecs.Zstd)), pqarrow.NewArrowWriterProperties(pqarrow.WithStoreSchema()))
	case "arrow":
		out, err = ipc.NewFileWriter(w, ipc.WithSchema(schema))
	default:
		err = fmt.Errorf("format %q is neither parquet nor arrow", format)
	}
	if err == nil {
		err = errors.Join(out.Write(record), out.Close())
	}
	if err != nil {
		return fmt.Errorf("write embeddings: %w", err)
	}
	return nil
}
