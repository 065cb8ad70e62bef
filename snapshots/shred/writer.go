// Package shred writes Parquet files column by column.
//
// A row is never built as a Go value: whoever reads it from somewhere appends each of its values to the column where it
// belongs (record shredding, Melnik et al., Dremel, VLDB 2010). Columns of one list share their levels, which are encoded once for all
// of them, and names are found in a dictionary of our own. Schema, options, encodings, bounds and Bloom filters are
// parquet-go's; what it does between a row and its pages is what is left out.
//
// It writes what the tables of this project have: required columns and lists of them, as one row group, in data pages of
// version 2.
package shred

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/encoding/rle"
	"github.com/parquet-go/parquet-go/encoding/thrift"
	"github.com/parquet-go/parquet-go/format"
)

// A page ends with the row in which it has this many values, or one of its group this many bytes of text.
const (
	pageValues = 1 << 15
	pageBytes  = 1 << 20
)

// maxPage is how large a page or a dictionary may be, in bytes; their sizes are of 32 bits.
const maxPage = 1 << 30

// Writer writes a file. For each row, a value is appended to each column ([Text], [Ints] and so on; to those of a list
// one for each element, after [List.Next]), and EndRow is called. Pages wait, compressed, for Close. A Writer is not safe for
// concurrent use.
type Writer struct {
	out     io.Writer
	written int64 // bytes
	config  *parquet.WriterConfig
	columns []*column // in the schema's order
	groups  []*group
	rows    int64
	err     error // the first one

	pageValues, pageBytes int

	protocol     thrift.CompactProtocol
	header       bytes.Buffer
	page, packed []byte // scratch
}

// group is columns whose pages have the same rows: those of a list, or those of none.
type group struct {
	path       string // of the list; empty: of none
	columns    []*column
	rows       int // of the page
	elements   int // of the row
	repetition []byte
	definition []byte
	values     int // of the page, without those that stand for an empty list
}

// New returns a writer of files as [parquet.NewGenericWriter] would write them, with these options, which must hold the schema.
func New(w io.Writer, options ...parquet.WriterOption) (*Writer, error) {
	config, err := parquet.NewWriterConfig(options...)
	if err != nil {
		return nil, err
	}
	if config.Schema == nil {
		return nil, errors.New("shred: the options hold no schema")
	}
	out := &Writer{out: w, config: config, pageValues: pageValues, pageBytes: pageBytes}
	flat := &group{}
	out.groups = append(out.groups, flat)
	for _, path := range config.Schema.Columns() {
		leaf, _ := config.Schema.Lookup(path...)
		g := flat
		switch {
		case leaf.MaxRepetitionLevel == 1 && leaf.MaxDefinitionLevel == 1:
			list := listOf(config.Schema, path)
			i := slices.IndexFunc(out.groups, func(g *group) bool { return g.path == list })
			if i < 0 {
				i = len(out.groups)
				out.groups = append(out.groups, &group{path: list})
			}
			g = out.groups[i]
		case leaf.MaxRepetitionLevel != 0 || leaf.MaxDefinitionLevel != 0:
			return nil, fmt.Errorf("shred: column %s is optional, or a list within a list: only required columns and lists of them are written", dotted(path))
		}
		c, err := newColumn(config, slices.Clone(path), leaf)
		if err != nil {
			return nil, err
		}
		out.columns = append(out.columns, c)
		g.columns = append(g.columns, c)
	}
	return out, nil
}

func dotted(path []string) string { return strings.Join(path, ".") }

// listOf returns the dotted path of what is repeated above a column.
func listOf(schema *parquet.Schema, path []string) string {
	var node parquet.Node = schema
	for i, name := range path {
		fields := node.Fields()
		node = fields[slices.IndexFunc(fields, func(f parquet.Field) bool { return f.Name() == name })]
		if node.Repeated() {
			return dotted(path[:i+1])
		}
	}
	return ""
}

// List is where the elements of a list are counted.
type List struct{ group *group }

// List returns the list that the columns below a dotted path belong to.
func (w *Writer) List(path string) List {
	for _, g := range w.groups {
		if g.path != "" && strings.HasPrefix(g.path, path+".") {
			return List{g}
		}
	}
	panic("shred: there is no list " + path)
}

// Next begins the row's next element.
func (l List) Next() {
	g := l.group
	level := byte(1)
	if g.elements == 0 {
		level = 0
	}
	g.repetition = append(g.repetition, level)
	g.definition = append(g.definition, 1)
	g.elements++
	g.values++
}

// EndRow ends a row. Its error is that of a page that could not be encoded; no more is written then.
func (w *Writer) EndRow() error {
	w.rows++
	for _, g := range w.groups {
		g.rows++
		full := g.rows >= w.pageValues
		if g.path != "" {
			if g.elements == 0 {
				g.repetition = append(g.repetition, 0)
				g.definition = append(g.definition, 0)
			}
			g.elements = 0
			full = len(g.definition) >= w.pageValues
		} else {
			g.values++
		}
		for _, c := range g.columns {
			full = full || len(c.text) >= w.pageBytes
		}
		if full {
			w.flush(g)
		}
	}
	return w.err
}

// flush makes a page of what the columns of a group hold.
func (w *Writer) flush(g *group) {
	if g.rows == 0 || w.err != nil {
		return
	}
	var repetition, definition []byte
	values := g.rows
	if g.path != "" {
		var err error
		levels := rle.Encoding{BitWidth: 1}
		if repetition, err = levels.EncodeLevels(nil, g.repetition); err == nil {
			definition, err = levels.EncodeLevels(nil, g.definition)
		}
		if err != nil {
			w.err = fmt.Errorf("shred: levels of %s: %w", g.path, err)
			return
		}
		values = len(g.definition)
	}
	for _, c := range g.columns {
		if err := w.flushColumn(c, g, values, repetition, definition); err != nil {
			w.err = fmt.Errorf("shred: column %s: %w", dotted(c.path), err)
			return
		}
	}
	g.rows, g.values, g.repetition, g.definition = 0, 0, g.repetition[:0], g.definition[:0]
}

// flushColumn makes a page of what a column holds.
func (w *Writer) flushColumn(c *column, g *group, values int, repetition, definition []byte) (err error) {
	if c.dictionary != nil {
		c.small = c.dictionary.number(c.small)
		if n := len(c.dictionary.text); n > maxPage {
			return fmt.Errorf("a dictionary of %d bytes, more than %d: write fewer rows to a file", n, maxPage)
		}
	}
	if n := c.len(); n != g.values {
		return fmt.Errorf("%d values in %d rows or elements", n, g.values)
	}
	if w.page, err = c.encode(w.page[:0]); err != nil {
		return err
	}
	nulls := values - g.values
	header := format.PageHeader{Type: format.DataPageV2}
	header.DataPageHeaderV2.Valid = true
	header.DataPageHeaderV2.V = format.DataPageHeaderV2{
		NumValues: int32(values), NumNulls: int32(nulls), NumRows: int32(g.rows), Encoding: c.encoding.Encoding(),
		DefinitionLevelsByteLength: int32(len(definition)), RepetitionLevelsByteLength: int32(len(repetition)), IsCompressed: thrift.New(true),
	}
	at := c.size
	if err := w.addPage(c, &header, repetition, definition); err != nil {
		return err
	}
	var least, greatest parquet.Value
	if c.bounded {
		var ok bool
		if least, greatest, ok = c.bounds(); ok {
			c.widen(least, greatest)
		}
	}
	c.index.IndexPage(int64(values), int64(nulls), least, greatest)
	c.pages = append(c.pages, format.PageLocation{Offset: at, CompressedPageSize: int32(c.size - at), FirstRowIndex: w.rows - int64(g.rows)})
	c.count += int64(values)
	c.nulls += int64(nulls)
	c.reset()
	return nil
}

// addPage compresses what is in w.page and puts it behind the column's other pages.
func (w *Writer) addPage(c *column, header *format.PageHeader, repetition, definition []byte) (err error) {
	plain := len(repetition) + len(definition) + len(w.page)
	if plain > maxPage {
		return fmt.Errorf("a page of %d bytes, more than %d: write fewer rows to a file", plain, maxPage)
	}
	if w.packed, err = c.codec.Encode(w.packed[:0], w.page); err != nil {
		return err
	}
	sum := crc32.ChecksumIEEE(repetition)
	sum = crc32.Update(sum, crc32.IEEETable, definition)
	sum = crc32.Update(sum, crc32.IEEETable, w.packed)
	header.CRC = int32(sum)
	header.UncompressedPageSize = int32(plain)
	header.CompressedPageSize = int32(len(repetition) + len(definition) + len(w.packed))
	if err := w.encode(header); err != nil {
		return err
	}
	page := slices.Concat(w.header.Bytes(), repetition, definition, w.packed)
	c.body = append(c.body, page)
	c.size += int64(len(page))
	c.plain += int64(w.header.Len() + plain)
	return nil
}

// encode writes a structure of the format to w.header.
func (w *Writer) encode(v any) error {
	w.header.Reset()
	return thrift.NewEncoder(w.protocol.NewWriter(&w.header)).Encode(v)
}

func (w *Writer) write(b []byte) error {
	n, err := w.out.Write(b)
	w.written += int64(n)
	return err
}

// writeEncoded writes a structure of the format, and returns where it is.
func (w *Writer) writeEncoded(v any) (at int64, size int32, err error) {
	if err := w.encode(v); err != nil {
		return 0, 0, err
	}
	at = w.written
	return at, int32(w.header.Len()), w.write(w.header.Bytes())
}

// Close writes the file. Without an error it is whole.
func (w *Writer) Close() error {
	for _, g := range w.groups {
		w.flush(g)
	}
	if w.err != nil {
		return w.err
	}
	w.err = errors.New("shred: the writer is closed")
	footer, err := w.footer()
	if err != nil {
		return err
	}
	if err := w.write([]byte("PAR1")); err != nil {
		return err
	}
	if w.rows > 0 {
		group, err := w.writeColumns()
		if err != nil {
			return err
		}
		footer.RowGroups, footer.NumRows = []format.RowGroup{group}, w.rows
	}
	_, size, err := w.writeEncoded(footer)
	if err != nil {
		return err
	}
	return w.write(append(binary.LittleEndian.AppendUint32(nil, uint32(size)), "PAR1"...))
}

// footer returns what parquet-go would write at the end of a file without rows: schema, metadata and all else that
// does not depend on rows.
func (w *Writer) footer() (*format.FileMetaData, error) {
	var empty bytes.Buffer
	if err := parquet.NewWriter(&empty, w.config).Close(); err != nil {
		return nil, err
	}
	f, err := parquet.OpenFile(bytes.NewReader(empty.Bytes()), int64(empty.Len()))
	if err != nil {
		return nil, err
	}
	return f.Metadata(), nil
}

// writeColumns writes pages, Bloom filters and the page index, in this order.
func (w *Writer) writeColumns() (format.RowGroup, error) {
	group := format.RowGroup{NumRows: w.rows, FileOffset: w.written, SortingColumns: w.sorting(), Columns: make([]format.ColumnChunk, len(w.columns))}
	for i, c := range w.columns {
		chunk := &group.Columns[i].MetaData
		*chunk = format.ColumnMetaData{
			Type: format.Type(c.typ.Kind()), PathInSchema: c.path, Codec: c.codec.CompressionCodec(), NumValues: c.count, Statistics: c.statistics(),
			EncodingStats: []format.PageEncodingStats{{PageType: format.DataPageV2, Encoding: c.encoding.Encoding(), Count: int32(len(c.pages))}},
		}
		encodings := []format.Encoding{c.encoding.Encoding()}
		if c.repeated {
			encodings = append(encodings, format.RLE)
		}
		pages := c.body
		if c.dictionary != nil {
			encodings = append(encodings, format.Plain)
			chunk.EncodingStats = append(chunk.EncodingStats, format.PageEncodingStats{PageType: format.DictionaryPage, Encoding: format.Plain, Count: 1})
			c.body = nil
			if err := w.addDictionary(c); err != nil {
				return group, fmt.Errorf("shred: column %s: %w", dotted(c.path), err)
			}
			chunk.DictionaryPageOffset = w.written
			pages = append(c.body, pages...)
			chunk.DataPageOffset = w.written + int64(len(c.body[0]))
		} else {
			chunk.DataPageOffset = w.written
		}
		slices.Sort(encodings)
		chunk.Encoding = slices.Compact(encodings)
		for _, page := range pages {
			if err := w.write(page); err != nil {
				return group, err
			}
		}
		chunk.TotalCompressedSize, chunk.TotalUncompressedSize = c.size, c.plain
		group.TotalCompressedSize += c.size
		group.TotalByteSize += c.plain
		for j := range c.pages {
			c.pages[j].Offset += chunk.DataPageOffset
		}
	}
	for i, c := range w.columns {
		chunk := &group.Columns[i].MetaData
		filter, err := c.bloomFilter()
		if err != nil || filter == nil {
			if err != nil {
				return group, fmt.Errorf("shred: Bloom filter of column %s: %w", dotted(c.path), err)
			}
			continue
		}
		header := format.BloomFilterHeader{NumBytes: int32(len(filter))}
		header.Algorithm.Value, header.Hash.Value, header.Compression.Value = &format.SplitBlockAlgorithm{}, &format.XxHash{}, &format.BloomFilterUncompressed{}
		at, size, err := w.writeEncoded(&header)
		if err == nil {
			err = w.write(filter)
		}
		if err != nil {
			return group, err
		}
		chunk.BloomFilterOffset, chunk.BloomFilterLength = at, size+int32(len(filter))
	}
	for i, c := range w.columns {
		index := c.index.ColumnIndex()
		at, size, err := w.writeEncoded(&index)
		if err != nil {
			return group, err
		}
		group.Columns[i].ColumnIndexOffset, group.Columns[i].ColumnIndexLength = at, size
	}
	for i, c := range w.columns {
		at, size, err := w.writeEncoded(&format.OffsetIndex{PageLocations: c.pages})
		if err != nil {
			return group, err
		}
		group.Columns[i].OffsetIndexOffset, group.Columns[i].OffsetIndexLength = at, size
	}
	return group, nil
}

func (w *Writer) addDictionary(c *column) (err error) {
	values, offsets := c.dictionary.values()
	if w.page, err = parquet.Plain.EncodeByteArray(w.page[:0], values, offsets); err != nil {
		return err
	}
	header := format.PageHeader{Type: format.DictionaryPage}
	header.DictionaryPageHeader.Valid = true
	header.DictionaryPageHeader.V = format.DictionaryPageHeader{NumValues: int32(c.dictionary.len()), Encoding: format.Plain}
	return w.addPage(c, &header, nil, nil)
}

// sorting says by which columns rows are sorted, as the options do.
func (w *Writer) sorting() []format.SortingColumn {
	var out []format.SortingColumn
	for _, s := range w.config.Sorting.SortingColumns {
		for i, c := range w.columns {
			if slices.Equal(c.path, s.Path()) {
				out = append(out, format.SortingColumn{ColumnIdx: int32(i), Descending: s.Descending(), NullsFirst: s.NullsFirst()})
			}
		}
	}
	return out
}
