package shred

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go/encoding/thrift"
	"github.com/parquet-go/parquet-go/format"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"
	"pgregory.net/rapid"
)

// row has a column of each kind, in no list and in lists.
type row struct {
	ID    string    `parquet:"id"`
	Name  string    `parquet:"name,dict"`
	At    time.Time `parquet:"at,timestamp(microsecond),delta"`
	N     int32     `parquet:"n"`
	Good  bool      `parquet:"good"`
	Words []string  `parquet:"words,list"`
	Items []item    `parquet:"items,list"`
	Size  int64     `parquet:"size"`
}

type item struct {
	Name string    `parquet:"name,dict"`
	Text string    `parquet:"text"`
	At   time.Time `parquet:"at,timestamp(microsecond),delta"`
	N    int32     `parquet:"n"`
	Flag bool      `parquet:"flag"`
}

func options(more ...parquet.WriterOption) []parquet.WriterOption {
	return append([]parquet.WriterOption{
		parquet.SchemaOf(row{}), parquet.Compression(&zstd.Codec{}), parquet.CreatedBy("test", "1", "2"), parquet.DataPageStatistics(false),
		parquet.SortingWriterConfig(parquet.SortingColumns(parquet.Ascending("name"), parquet.Descending("at"))),
		parquet.BloomFilters(parquet.SplitBlockFilter(10, "name"), parquet.SplitBlockFilter(6, "items", "list", "element", "name")),
		parquet.SkipPageBounds("id"), parquet.KeyValueMetadata("a", "b"), parquet.KeyValueMetadata("c", "d"),
	}, more...)
}

// ours writes rows by this package, with few values to a page.
func ours(t require, rows []row, pageValues, pageBytes int) []byte {
	var out bytes.Buffer
	w, err := New(&out, options()...)
	if err != nil {
		t.Fatal(err)
	}
	w.pageValues, w.pageBytes = pageValues, pageBytes
	id, name, at, n, good, size := w.Text("id"), w.Text("name"), w.Ints("at"), w.Smalls("n"), w.Bools("good"), w.Ints("size")
	words, word := w.List("words"), w.Text("words.list.element")
	const e = "items.list.element."
	items, itemName, itemText, itemAt, itemN, itemFlag := w.List("items"), w.Text(e+"name"), w.Text(e+"text"), w.Ints(e+"at"), w.Smalls(e+"n"), w.Bools(e+"flag")
	for _, r := range rows {
		id.Append([]byte(r.ID))
		name.Append([]byte(r.Name))
		at.Append(r.At.UnixMicro())
		n.Append(r.N)
		good.Append(r.Good)
		size.Append(r.Size)
		for _, v := range r.Words {
			words.Next()
			word.Append([]byte(v))
		}
		for _, v := range r.Items {
			items.Next()
			itemName.Append([]byte(v.Name))
			itemText.Append([]byte(v.Text))
			itemAt.Append(v.At.UnixMicro())
			itemN.Append(v.N)
			itemFlag.Append(v.Flag)
		}
		if err := w.EndRow(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// theirs writes rows by parquet-go's writer.
func theirs(t require, rows []row) []byte {
	var out bytes.Buffer
	w := parquet.NewGenericWriter[row](&out, options()...)
	if _, err := w.Write(rows); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

type require interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

func open(t require, b []byte) *parquet.File {
	t.Helper()
	f, err := parquet.OpenFile(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestAsParquetGo: whatever the rows are and wherever pages end, the file says what parquet-go's says: rows, schema, metadata,
// order, and of each column encodings, counts, bounds and Bloom filter.
func TestAsParquetGo(t *testing.T) {
	text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"", "a", "b", "i000001", "i000002", "a-name-of-20-bytes-01", "a-name-of-20-bytes-02"}))
	at := rapid.Map(rapid.Int64Range(-1<<50, 1<<50), func(us int64) time.Time { return time.UnixMicro(us).UTC() })
	items := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) item {
		return item{text.Draw(t, "name"), text.Draw(t, "text"), at.Draw(t, "at"), rapid.Int32().Draw(t, "n"), rapid.Bool().Draw(t, "flag")}
	}), 0, 6)
	rows := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) row {
		return row{
			text.Draw(t, "id"), text.Draw(t, "name"), at.Draw(t, "at"), rapid.Int32().Draw(t, "n"), rapid.Bool().Draw(t, "good"),
			rapid.SliceOfN(text, 0, 3).Draw(t, "words"), items.Draw(t, "items"), rapid.Int64().Draw(t, "size"),
		}
	}), 0, 30)
	rapid.Check(t, func(t *rapid.T) {
		same(t, rows.Draw(t, "rows"), rapid.IntRange(1, 20).Draw(t, "values of a page"), rapid.IntRange(1, 200).Draw(t, "bytes of a page"))
	})
}

// TestManyRows: pages as they are outside of tests, and more names than a small table has room for.
func TestManyRows(t *testing.T) {
	rows := make([]row, 40_000)
	for i := range rows {
		at := time.UnixMicro(int64(i) * 977).UTC()
		rows[i] = row{ID: fmt.Sprint("id", i), Name: fmt.Sprint("name", i/7), At: at, N: int32(i), Good: i%3 == 0, Size: int64(i * i)}
		for j := range i % 4 {
			rows[i].Items = append(rows[i].Items, item{fmt.Sprintf("i%06d", i*j%30_000), strings.Repeat("x", i%50), at, int32(j), j == 1})
		}
	}
	same(t, rows, pageValues, pageBytes)
}

func same(t require, rows []row, pageValues, pageBytes int) {
	t.Helper()
	a, b := open(t, ours(t, rows, pageValues, pageBytes)), open(t, theirs(t, rows))
	if got, want := readAll(t, a), readAll(t, b); !reflect.DeepEqual(got, want) {
		t.Fatalf("rows are\n%+v, not\n%+v", got, want)
	}
	ma, mb := a.Metadata(), b.Metadata()
	if !reflect.DeepEqual(ma.Schema, mb.Schema) || !reflect.DeepEqual(ma.ColumnOrders, mb.ColumnOrders) || !reflect.DeepEqual(ma.KeyValueMetadata, mb.KeyValueMetadata) ||
		ma.CreatedBy != mb.CreatedBy || ma.Version != mb.Version || ma.NumRows != mb.NumRows || len(ma.RowGroups) != len(mb.RowGroups) {
		t.Fatalf("metadata is\n%+v, not\n%+v", ma, mb)
	}
	if len(rows) == 0 {
		return
	}
	ga, gb := ma.RowGroups[0], mb.RowGroups[0]
	if ga.NumRows != gb.NumRows || !slices.Equal(ga.SortingColumns, gb.SortingColumns) || len(ga.SortingColumns) != 2 {
		t.Fatalf("row group is %+v, not %+v", ga, gb)
	}
	for i := range gb.Columns {
		ca, cb := ga.Columns[i].MetaData, gb.Columns[i].MetaData
		slices.Sort(cb.Encoding)
		if ca.Type != cb.Type || !slices.Equal(ca.Encoding, cb.Encoding) || !slices.Equal(ca.PathInSchema, cb.PathInSchema) || ca.Codec != cb.Codec || ca.NumValues != cb.NumValues ||
			!reflect.DeepEqual(ca.Statistics, cb.Statistics) {
			t.Fatalf("column %v is\n%+v, not\n%+v", cb.PathInSchema, ca, cb)
		}
		checkPages(t, a, i, pageValues)
		checkBloom(t, a, b, i)
	}
}

func readAll(t require, f *parquet.File) []row {
	t.Helper()
	r := parquet.NewGenericReader[row](f)
	defer r.Close()
	out := make([]row, f.NumRows())
	if n, err := r.Read(out); n != len(out) || err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(n, err)
	}
	return out
}

// checkPages holds the index of a column's pages, and their headers, against what is in them.
func checkPages(t require, f *parquet.File, column, pageValues int) {
	t.Helper()
	chunk := f.RowGroups()[0].ColumnChunks()[column]
	bounds, err := chunk.ColumnIndex()
	if err != nil {
		t.Fatal(err)
	}
	offsets, err := chunk.OffsetIndex()
	if err != nil {
		t.Fatal(err)
	}
	pages := chunk.Pages()
	defer pages.Close()
	row := int64(0)
	for i := 0; ; i++ {
		page, err := pages.ReadPage()
		if errors.Is(err, io.EOF) {
			if i != bounds.NumPages() || i != offsets.NumPages() {
				t.Fatalf("%d pages, %d and %d in the index", i, bounds.NumPages(), offsets.NumPages())
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if offsets.FirstRowIndex(i) != row || bounds.NullCount(i) != page.NumNulls() || bounds.NullPage(i) != (page.NumNulls() == page.NumValues()) {
			t.Fatalf("column %d: page %d begins with row %d and has %d of %d nulls; by the index %d and %d, all: %t",
				column, i, row, page.NumNulls(), page.NumValues(), offsets.FirstRowIndex(i), bounds.NullCount(i), bounds.NullPage(i))
		}
		var header format.PageHeader
		var protocol thrift.CompactProtocol
		if err := thrift.NewDecoder(protocol.NewReader(io.NewSectionReader(f, offsets.Offset(i), offsets.CompressedPageSize(i)))).Decode(&header); err != nil {
			t.Fatalf("column %d: page %d: %v", column, i, err)
		}
		if h := header.DataPageHeaderV2.V; int64(h.NumValues) != page.NumValues() || int64(h.NumNulls) != page.NumNulls() || int64(h.NumRows) != page.NumRows() {
			t.Fatalf("column %d: page %d has %d values, %d nulls, %d rows; by its header %d, %d, %d", column, i, page.NumValues(), page.NumNulls(), page.NumRows(), h.NumValues, h.NumNulls, h.NumRows)
		}
		const longest = 6 // list
		if n := int(page.NumValues()); n >= pageValues+longest {
			t.Fatalf("column %d: page %d has %d values, and should have ended at %d", column, i, n, pageValues)
		}
		values := make([]parquet.Value, page.NumValues())
		if n, err := page.Values().ReadValues(values); n != len(values) || err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(n, err)
		}
		values = slices.DeleteFunc(values, parquet.Value.IsNull)
		if least := bounds.MinValue(i); column != 0 && len(values) > 0 {
			order := chunk.Type().Compare
			if least, most := slices.MinFunc(values, order), slices.MaxFunc(values, order); order(least, bounds.MinValue(i)) < 0 || order(most, bounds.MaxValue(i)) > 0 && len(most.String()) < 16 {
				t.Fatalf("column %d: page %d is from %v to %v, by the index from %v to %v", column, i, least, most, bounds.MinValue(i), bounds.MaxValue(i))
			}
		} else if column == 0 && len(least.String()) > 0 && !least.IsNull() {
			t.Fatalf("there are bounds, %v", least)
		}
		row += page.NumRows()
		parquet.Release(page)
	}
}

func checkBloom(t require, a, b *parquet.File, column int) {
	t.Helper()
	fa, fb := a.RowGroups()[0].ColumnChunks()[column].BloomFilter(), b.RowGroups()[0].ColumnChunks()[column].BloomFilter()
	if (fa == nil) != (fb == nil) {
		t.Fatalf("column %d: one has a Bloom filter", column)
	}
	if fa == nil {
		return
	}
	ba, bb := make([]byte, fa.Size()), make([]byte, fb.Size())
	_, errA := fa.ReadAt(ba, 0)
	_, errB := fb.ReadAt(bb, 0)
	if err := errors.Join(errA, errB); err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(ba, bb) {
		t.Fatalf("column %d: the Bloom filters differ, or can't be read: %v", column, err)
	}
}

// TestRefused: what can't be written is an error that says which column it is.
func TestRefused(t *testing.T) {
	for want, o := range map[string][]parquet.WriterOption{
		"no schema":    {parquet.Compression(&zstd.Codec{})},
		"not compress": {parquet.SchemaOf(row{})},
		"a is optional": {parquet.Compression(&zstd.Codec{}), parquet.SchemaOf(struct {
			A *string `parquet:"a,optional"`
		}{})},
		"a is a DOUBLE": {parquet.Compression(&zstd.Codec{}), parquet.SchemaOf(struct {
			A float64 `parquet:"a"`
		}{})},
		"a has a dictionary": {parquet.Compression(&zstd.Codec{}), parquet.SchemaOf(struct {
			A int64 `parquet:"a,dict"`
		}{})},
		"a has a Bloom filter": {parquet.Compression(&zstd.Codec{}), parquet.BloomFilters(parquet.SplitBlockFilter(10, "a")), parquet.SchemaOf(struct {
			A string `parquet:"a"`
		}{})},
	} {
		if _, err := New(io.Discard, o...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	w, err := New(io.Discard, options()...)
	if err != nil {
		t.Fatal(err)
	}
	w.Text("id").Append([]byte("x"))
	if err := w.EndRow(); err != nil {
		t.Fatal(err) // the page is not full
	}
	if err := w.Close(); err == nil || !strings.Contains(err.Error(), "column name: 0 values in 1 rows") {
		t.Error(err)
	}
	if err := w.EndRow(); err == nil {
		t.Error("a row after Close")
	}
	for name, get := range map[string]func(){
		"column": func() { w.Text("nobody") }, "kind": func() { w.Ints("id") }, "list": func() { w.List("id") },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("no panic: %s", name)
				}
			}()
			get()
		}()
	}
}

// TestFailingWriter: an error of what is written to comes out, whichever write it is.
func TestFailingWriter(t *testing.T) {
	for n := 0; ; n++ {
		out := &failing{left: n}
		w, err := New(out, options()...)
		if err != nil {
			t.Fatal(err)
		}
		w.Text("id").Append([]byte("a"))
		w.Text("name").Append([]byte("b"))
		w.Ints("at").Append(0)
		w.Smalls("n").Append(0)
		w.Bools("good").Append(false)
		w.Ints("size").Append(0)
		w.List("words").Next()
		w.Text("words.list.element").Append([]byte("c"))
		if err := w.EndRow(); err != nil {
			t.Fatal(err)
		}
		err = w.Close()
		if !out.failed {
			if columns := len(w.columns); err != nil || n < 3*columns { // pages, two indexes, and more
				t.Fatalf("after %d writes: %v", n, err)
			}
			return
		}
		if !errors.Is(err, io.ErrShortWrite) {
			t.Fatalf("after %d writes: %v", n, err)
		}
	}
}

// failing fails once it has been written to that often.
type failing struct {
	left   int
	failed bool
}

func (f *failing) Write(b []byte) (int, error) {
	if f.left == 0 {
		f.failed = true
		return len(b) / 2, io.ErrShortWrite
	}
	f.left--
	return len(b), nil
}

// TestDictionary: numbers are those of a map, in the order of first appearance.
func TestDictionary(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		letters := rapid.IntRange(1, 3).Draw(t, "letters")
		d, want, numbers := newDictionary(), map[string]int32{}, []int32(nil)
		values := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string {
			return rapid.StringOfN(rapid.RuneFrom([]rune("abc")[:letters]), 0, 20, -1).Draw(t, "value")
		}), 0, 3*block).Draw(t, "values")
		var wanted []int32
		for i, v := range values {
			if _, ok := want[v]; !ok {
				want[v] = int32(len(want))
			}
			wanted = append(wanted, want[v])
			if numbers = d.add(numbers, []byte(v)); i%100 == 99 {
				numbers = d.number(numbers)
			}
		}
		if numbers = d.number(numbers); !slices.Equal(numbers, wanted) || d.len() != len(want) {
			t.Fatalf("numbers of %q are %v, not %v", values, numbers, wanted)
		}
		for v, i := range want {
			if string(d.value(uint32(i))) != v {
				t.Fatalf("number %d is %q, not %q", i, d.value(uint32(i)), v)
			}
		}
		least, most, ok := d.bounds(numbers)
		if ok != (len(values) > 0) || ok && (least.String() != slices.Min(values) || most.String() != slices.Max(values)) {
			t.Fatalf("bounds of %q are %v and %v", values, least, most)
		}
	})
	// Values that begin at the same place of the table are told from each other, whatever their keys say.
	for _, values := range [][2]string{{"aaaaaaaaaa", "bbbbbbbbbb"}, {"a", "aa"}} {
		d := newDictionary()
		e := [2]*entry{}
		for i, v := range values {
			e[i] = &entry{key: 1, size: uint32(len(v))}
		}
		h := d.hash(*e[0])
		if a, b, c := d.find(e[0], h, []byte(values[0])), d.find(e[1], h, []byte(values[1])), d.find(e[0], h, []byte(values[0])); a != 0 || b != 1 || c != 0 {
			t.Error(values, a, b, c)
		}
	}
	d := newDictionary()
	if n := d.add(nil, make([]byte, blockBytes)); len(n) != 0 {
		t.Error("one value does not wait")
	} else if n = d.add(n, []byte("a")); len(n) != 2 || d.waiting != 0 {
		t.Error("more bytes wait than may")
	}
}
