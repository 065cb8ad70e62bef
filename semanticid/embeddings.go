package semanticid

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/ipc"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/apache/arrow/go/v17/parquet"
	"github.com/apache/arrow/go/v17/parquet/compress"
	"github.com/apache/arrow/go/v17/parquet/file"
	"github.com/apache/arrow/go/v17/parquet/pqarrow"
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
	e = &Embeddings{known: make(map[string]bool)}
	switch ext := strings.ToLower(filepath.Ext(path)); ext {
	case ".parquet":
		err = e.readParquet(ctx, f)
	case ".arrow", ".feather", ".ipc":
		err = e.readArrow(f)
	default:
		err = fmt.Errorf("the extension %q is none of .parquet, .arrow, .feather, .ipc", ext)
	}
	if err == nil && len(e.Items) == 0 {
		err = errors.New("it holds no items")
	}
	return e, err
}

func (e *Embeddings) readParquet(ctx context.Context, f parquet.ReaderAtSeeker) error {
	r, err := file.NewParquetReader(f)
	if err != nil {
		return err
	}
	defer r.Close()
	columns := make([]int, 0, 2)
	for i := range r.MetaData().Schema.NumColumns() {
		switch strings.Split(r.MetaData().Schema.Column(i).Path(), ".")[0] {
		case columnItem, columnEmbedding:
			columns = append(columns, i)
		}
	}
	ar, err := pqarrow.NewFileReader(r, pqarrow.ArrowReadProperties{BatchSize: 8192}, memory.DefaultAllocator)
	if err != nil {
		return err
	}
	records, err := ar.GetRecordReader(ctx, columns, nil)
	if err != nil {
		return err
	}
	defer records.Release()
	for records.Next() {
		if err := e.add(records.Record()); err != nil {
			return err
		}
	}
	if err := records.Err(); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

func (e *Embeddings) readArrow(f ipc.ReadAtSeeker) error {
	r, err := ipc.NewFileReader(f)
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
	case len(x) == 0 || len(x) > MaxDim:
		return fmt.Errorf("item %q: the embedding has width %d, allowed is 1 to %d", item, len(x), MaxDim)
	case e.Dim != 0 && len(x) != e.Dim:
		return fmt.Errorf("item %q: the embedding has width %d, those before %d", item, len(x), e.Dim)
	}
	zero := true
	for j, v := range x {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return fmt.Errorf("item %q: the embedding holds %v at %d", item, v, j)
		}
		zero = zero && v == 0
	}
	if zero {
		return fmt.Errorf("item %q: the embedding is all zeros; leave the item out, it gets an ID when something is known of it", item)
	}
	e.Dim = len(x)
	e.known[item] = true
	e.Items = append(e.Items, item)
	e.X = append(e.X, x...)
	return nil
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
