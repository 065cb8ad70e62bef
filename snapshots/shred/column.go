package shred

import (
	"fmt"
	"slices"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress"
	"github.com/parquet-go/parquet-go/encoding"
	"github.com/parquet-go/parquet-go/format"
)

// column is a column chunk: the values of a page that is not full yet, and the pages before it.
type column struct {
	path       []string
	typ        parquet.Type
	encoding   encoding.Encoding // of data pages
	codec      compress.Codec
	repeated   bool
	dictionary *dictionary // nil: without

	// Values of the page, by the column's type.
	ints    []int64
	small   []int32 // 32-bit integers, or indexes into the dictionary
	bits    []byte
	bools   int
	text    []byte
	offsets []uint32 // of values in text, from 0 to its end

	body        [][]byte // pages with their headers
	size, plain int64    // their bytes, and those before they were compressed
	pages       []format.PageLocation
	count       int64 // of values, those that stand for empty lists included
	nulls       int64 // of those
	index       parquet.ColumnIndexer
	bloom       parquet.BloomFilterColumn // nil: none

	bounded         bool // whether bounds are kept
	known           bool // whether there are any
	least, greatest parquet.Value
}

func newColumn(config *parquet.WriterConfig, path []string, leaf parquet.LeafColumn) (*column, error) {
	c := &column{path: path, typ: leaf.Node.Type(), encoding: leaf.Node.Encoding(), codec: leaf.Node.Compression(), repeated: leaf.MaxRepetitionLevel > 0, offsets: []uint32{0}}
	if c.codec == nil {
		c.codec = config.Compression
	}
	if c.codec == nil || c.codec.CompressionCodec() == format.Uncompressed {
		return nil, fmt.Errorf("shred: column %s is not compressed; only compressed pages are written", dotted(c.path))
	}
	switch kind := c.typ.Kind(); {
	case kind != parquet.ByteArray && kind != parquet.Int64 && kind != parquet.Int32 && kind != parquet.Boolean:
		return nil, fmt.Errorf("shred: column %s is a %s, which is not written", dotted(c.path), kind)
	case c.encoding != nil && c.encoding.Encoding() == format.RLEDictionary:
		if kind != parquet.ByteArray {
			return nil, fmt.Errorf("shred: column %s has a dictionary and is no text", dotted(c.path))
		}
		c.encoding, c.dictionary = &parquet.RLEDictionary, newDictionary()
	case c.encoding == nil && kind == parquet.ByteArray: // as parquet-go has it
		c.encoding = &parquet.DeltaLengthByteArray
	case c.encoding == nil:
		c.encoding = &parquet.Plain
	}
	c.index = c.typ.NewColumnIndexer(config.ColumnIndexSizeLimit(c.path))
	c.bounded = !slices.ContainsFunc(config.SkipPageBounds, func(path []string) bool { return slices.Equal(path, c.path) })
	for _, b := range config.BloomFilters {
		if slices.Equal(b.Path(), c.path) {
			if c.dictionary == nil {
				return nil, fmt.Errorf("shred: column %s has a Bloom filter, but no dictionary to make it of", dotted(c.path))
			}
			c.bloom = b
		}
	}
	return c, nil
}

// Text is a column of strings or bytes.
type Text struct{ c *column }

// Ints is a column of 64-bit integers, or of times in the column's unit.
type Ints struct{ c *column }

// Smalls is a column of 32-bit integers.
type Smalls struct{ c *column }

// Bools is a column of booleans.
type Bools struct{ c *column }

// Text returns a column by its dotted path. It panics, as the others do, if there is none of that kind.
func (w *Writer) Text(path string) Text { return Text{w.column(path, parquet.ByteArray)} }

// Ints returns a column by its dotted path.
func (w *Writer) Ints(path string) Ints { return Ints{w.column(path, parquet.Int64)} }

// Smalls returns a column by its dotted path.
func (w *Writer) Smalls(path string) Smalls { return Smalls{w.column(path, parquet.Int32)} }

// Bools returns a column by its dotted path.
func (w *Writer) Bools(path string) Bools { return Bools{w.column(path, parquet.Boolean)} }

func (w *Writer) column(path string, kind parquet.Kind) *column {
	for _, c := range w.columns {
		if dotted(c.path) == path && c.typ.Kind() == kind {
			return c
		}
	}
	panic(fmt.Sprintf("shred: there is no column %s of kind %s", path, kind))
}

// Append appends a value, which is copied.
func (t Text) Append(value []byte) {
	c := t.c
	if c.dictionary != nil {
		c.small = c.dictionary.add(c.small, value)
		return
	}
	c.text = append(c.text, value...)
	c.offsets = append(c.offsets, uint32(len(c.text)))
}

// Append appends a value.
func (i Ints) Append(value int64) { i.c.ints = append(i.c.ints, value) }

// Append appends a value.
func (s Smalls) Append(value int32) { s.c.small = append(s.c.small, value) }

// Append appends a value.
func (b Bools) Append(value bool) {
	c := b.c
	if c.bools%8 == 0 {
		c.bits = append(c.bits, 0)
	}
	if value {
		c.bits[c.bools/8] |= 1 << (c.bools % 8)
	}
	c.bools++
}

// len returns how many values the page has.
func (c *column) len() int {
	switch {
	case c.dictionary != nil || c.typ.Kind() == parquet.Int32:
		return len(c.small)
	case c.typ.Kind() == parquet.Int64:
		return len(c.ints)
	case c.typ.Kind() == parquet.Boolean:
		return c.bools
	default:
		return len(c.offsets) - 1
	}
}

// values returns those of the page.
func (c *column) values() encoding.Values {
	switch c.typ.Kind() {
	case parquet.Int32:
		return encoding.Int32Values(c.small)
	case parquet.Int64:
		return encoding.Int64Values(c.ints)
	case parquet.Boolean:
		return encoding.BooleanValues(c.bits)
	default:
		return encoding.ByteArrayValues(c.text, c.offsets)
	}
}

func (c *column) encode(dst []byte) ([]byte, error) {
	if c.dictionary != nil {
		return c.encoding.EncodeInt32(dst, c.small)
	}
	return c.typ.Encode(dst, c.values(), c.encoding)
}

// bounds returns the least and the greatest value of the page. They share its memory.
func (c *column) bounds() (least, greatest parquet.Value, ok bool) {
	if c.dictionary != nil {
		return c.dictionary.bounds(c.small)
	}
	return c.typ.NewPage(0, c.len(), c.values()).Bounds()
}

// widen makes the column's bounds those of a page, too.
func (c *column) widen(least, greatest parquet.Value) {
	if !c.known || c.typ.Compare(least, c.least) < 0 {
		c.least = least.Clone()
	}
	if !c.known || c.typ.Compare(greatest, c.greatest) > 0 {
		c.greatest = greatest.Clone()
	}
	c.known = true
}

func (c *column) statistics() format.Statistics {
	s := format.Statistics{NullCount: c.nulls}
	if c.known {
		s.MinValue, s.MaxValue = c.least.AppendBytes([]byte{}), c.greatest.AppendBytes([]byte{})
	}
	return s
}

// bloomFilter returns that of the whole column; nil if it has none.
func (c *column) bloomFilter() ([]byte, error) {
	if c.bloom == nil || c.dictionary.len() == 0 {
		return nil, nil
	}
	values, offsets := c.dictionary.values()
	return c.typ.Encode(make([]byte, c.bloom.Size(int64(c.dictionary.len()))), encoding.ByteArrayValues(values, offsets), c.bloom.Encoding())
}

// reset begins a new page.
func (c *column) reset() {
	c.ints, c.small, c.bits, c.bools, c.text, c.offsets = c.ints[:0], c.small[:0], c.bits[:0], 0, c.text[:0], c.offsets[:1]
}
