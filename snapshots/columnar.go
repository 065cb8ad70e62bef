package snapshots

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/parquet-go/parquet-go"
)

// errOtherLayout says that a file's columns are not laid out as ours are; the general reader takes it.
var errOtherLayout = errors.New("the columns are laid out otherwise")

// column is a column of a row group, decoded: its values one after the other and, of a column within a list, a row's
// beginning (repetition level 0) and whether there is a value at all (the highest definition level).
type column struct {
	reps, defs []byte
	present    byte // definition level of a value
	texts      []string
	ints       []int64
	bools      []bool
}

// readGood calls fn with the sessions of each row group. It decodes columns, not rows: what is the same for a page is
// done once for it, and an item's name is made once for a dictionary, not for each view.
func readGood(r io.ReaderAt, size int64, fn func([]GoodSession) error) (err error) {
	defer malformed(&err)
	f, err := openFile[goodRow](r, size)
	if err != nil {
		return err
	}
	for _, group := range f.RowGroups() {
		rows, err := goodRows(f.Schema(), group, size)
		if err != nil {
			return err
		}
		if err := fn(rows); err != nil {
			return err
		}
	}
	return nil
}

func goodRows(schema *parquet.Schema, group parquet.RowGroup, size int64) ([]GoodSession, error) {
	const likely = 16 // values for a byte of the file
	c := &columnReader{schema: schema, group: group, most: likely * size}
	id, user := c.read("session_id", 0), c.read("user_id", 0)
	start, end := c.times("start", 0), c.times("end", 0)
	good := c.read("good", 0)
	partition, offset := c.read("kafka_partition", 0), c.read("kafka_offset", 0)
	items := c.read("views.list.element.item_id", 1)
	past, when := c.read("history.list.element.item_id", 1), c.times("history.list.element.time", 1)
	if c.err != nil {
		return nil, c.err
	}
	n := int(group.NumRows())
	for _, col := range []*column{id, user, start, end, good, partition, offset} {
		if col != nil && len(col.texts)+len(col.ints)+len(col.bools) != n {
			return nil, fmt.Errorf("a column has %d values, want %d", len(col.texts)+len(col.ints)+len(col.bools), n)
		}
	}
	rows := make([]GoodSession, n)
	for i := range rows {
		g := &rows[i]
		g.SessionID, g.UserID = id.texts[i], user.texts[i]
		g.StartMs, g.EndMs, g.Good = start.ints[i], end.ints[i], good.bools[i]
		if partition != nil && offset != nil {
			g.Partition, g.Offset = int32(partition.ints[i]), offset.ints[i]
		}
	}
	if len(past.texts) != len(when.ints) {
		return nil, fmt.Errorf("%d items of histories have %d times", len(past.texts), len(when.ints))
	}
	if err := items.lists(n, len(items.texts), func(row, from, to int) { rows[row].Items = items.texts[from:to:to] }); err != nil {
		return nil, err
	}
	return rows, past.lists(n, len(past.texts), func(row, from, to int) {
		rows[row].History, rows[row].HistoryMs = past.texts[from:to:to], when.ints[from:to:to]
	})
}

// lists calls fn with the bounds of each row's list among the values.
func (c *column) lists(rows, values int, fn func(row, from, to int)) error {
	row, from, at := -1, 0, 0
	for i, rep := range c.reps {
		if rep == 0 {
			if row >= 0 {
				fn(row, from, at)
			}
			if row++; row >= rows {
				return fmt.Errorf("a list column has more than %d rows", rows)
			}
			from = at
		}
		if c.defs[i] == c.present {
			at++
		}
	}
	if row >= 0 {
		fn(row, from, at)
	}
	if row != rows-1 || at != values {
		return fmt.Errorf("a list column has %d rows and %d values, want %d and %d", row+1, at, rows, values)
	}
	return nil
}

// floorMilli makes milliseconds of microseconds.
func floorMilli(micros int64) int64 {
	if micros < 0 {
		return (micros - 999) / 1000
	}
	return micros / 1000
}

// columnReader reads columns of a row group, up to the first error.
type columnReader struct {
	schema *parquet.Schema
	group  parquet.RowGroup
	most   int64 // values that room is made for before they come: a damaged file asks for any number
	err    error
}

// read decodes a column with so many lists around it; nil if the file is older than the column.
func (c *columnReader) read(path string, lists int) *column {
	if c.err != nil {
		return nil
	}
	leaf, ok := c.schema.Lookup(strings.Split(path, ".")...)
	if !ok {
		if !strings.HasPrefix(path, "kafka_") {
			c.err = errOtherLayout
		}
		return nil
	}
	if leaf.MaxRepetitionLevel != lists || leaf.MaxDefinitionLevel != lists {
		c.err = errOtherLayout
		return nil
	}
	chunk := c.group.ColumnChunks()[leaf.ColumnIndex]
	col := newColumn(leaf, int(min(chunk.NumValues(), c.most)))
	pages := chunk.Pages()
	defer func() { c.err = errors.Join(c.err, pages.Close()) }()
	var names []string // of the dictionary
	for {
		page, err := pages.ReadPage()
		if errors.Is(err, io.EOF) {
			return col
		}
		if err != nil {
			c.err = fmt.Errorf("column %s: %w", path, err)
			return nil
		}
		if err := col.add(page, &names); err != nil {
			c.err = fmt.Errorf("column %s: %w", path, err)
		}
		parquet.Release(page)
		if c.err != nil {
			return nil
		}
	}
}

// newColumn returns an empty column with room for n values.
func newColumn(leaf parquet.LeafColumn, n int) *column {
	col := &column{present: byte(leaf.MaxDefinitionLevel)}
	if leaf.MaxRepetitionLevel > 0 {
		col.reps, col.defs = make([]byte, 0, n), make([]byte, 0, n)
	}
	switch leaf.Node.Type().Kind() {
	case parquet.ByteArray:
		col.texts = make([]string, 0, n)
	case parquet.Boolean:
		col.bools = make([]bool, 0, n)
	default:
		col.ints = make([]int64, 0, n)
	}
	return col
}

// times is read for timestamps, which become milliseconds.
func (c *columnReader) times(path string, lists int) *column {
	col := c.read(path, lists)
	if col == nil {
		return nil
	}
	leaf, _ := c.schema.Lookup(strings.Split(path, ".")...)
	switch t := leaf.Node.Type().String(); {
	case strings.Contains(t, "unit=MILLIS"):
	case strings.Contains(t, "unit=MICROS"):
		for i, v := range col.ints {
			col.ints[i] = floorMilli(v)
		}
	default:
		c.err = errOtherLayout
	}
	return col
}

// add appends a page's values.
func (c *column) add(page parquet.Page, names *[]string) error {
	c.reps, c.defs = append(c.reps, page.RepetitionLevels()...), append(c.defs, page.DefinitionLevels()...)
	data := page.Data()
	if dict := page.Dictionary(); dict != nil {
		if *names == nil {
			*names = make([]string, 0, dict.Len())
			if dict.Type().Kind() != parquet.ByteArray {
				return errOtherLayout
			}
			values := dict.Page().Data()
			text, offsets := values.ByteArray()
			for i := 0; i+1 < len(offsets); i++ {
				*names = append(*names, string(text[offsets[i]:offsets[i+1]]))
			}
		}
		for _, i := range data.Int32() {
			c.texts = append(c.texts, (*names)[i])
		}
		return nil
	}
	switch page.Type().Kind() {
	case parquet.ByteArray:
		text, offsets := data.ByteArray()
		for i := 0; i+1 < len(offsets); i++ {
			c.texts = append(c.texts, string(text[offsets[i]:offsets[i+1]]))
		}
	case parquet.Int64:
		c.ints = append(c.ints, data.Int64()...)
	case parquet.Int32:
		for _, v := range data.Int32() {
			c.ints = append(c.ints, int64(v))
		}
	case parquet.Boolean:
		bits := data.Boolean()
		for i := range int(page.NumValues()) {
			c.bools = append(c.bools, bits[i/8]>>(i%8)&1 == 1)
		}
	default:
		return errOtherLayout
	}
	return nil
}
