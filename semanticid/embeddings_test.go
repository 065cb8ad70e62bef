package semanticid

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/ipc"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/parquet-go/parquet-go"
)

// write makes a file of embeddings and returns its path.
func write(t testing.TB, e *Embeddings, format string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x."+format)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Write(f, format); err != nil {
		t.Fatal(err)
	}
	_ = f.Close() // parquet's writer has closed it
	return path
}

// TestEmbeddingsRoundTrip: what is written is read, in both formats; and a plain Parquet
// file of another writer is read as well.
func TestEmbeddingsRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	want := new(Embeddings)
	for i := range 20_000 { // several batches
		if err := want.Add(fmt.Sprint("item", i), []float32{float32(r.NormFloat64()), 0, float32(i) + 1}); err != nil {
			t.Fatal(err)
		}
	}
	paths := []string{write(t, want, "parquet"), write(t, want, "arrow")}
	type row struct {
		Other     int64     `parquet:"other"`
		Embedding []float32 `parquet:"embedding,list"`
		Item      string    `parquet:"item_id"`
	}
	plain := filepath.Join(t.TempDir(), "plain.parquet")
	rows := make([]row, len(want.Items))
	for i, item := range want.Items {
		rows[i] = row{int64(i), want.X[i*3 : i*3+3], item}
	}
	if err := parquet.WriteFile(plain, rows); err != nil {
		t.Fatal(err)
	}
	for _, path := range append(paths, plain) {
		got, err := ReadEmbeddings(t.Context(), path)
		if err != nil {
			t.Errorf("%s: %v", filepath.Base(path), err)
			continue
		}
		if got.Dim != 3 || !slices.Equal(got.Items, want.Items) || !slices.Equal(got.X, want.X) {
			t.Errorf("%s: other embeddings", filepath.Base(path))
		}
	}
}

// TestEmbeddingsRefused: each fault is named, with its row.
func TestEmbeddingsRefused(t *testing.T) {
	nan := float32(math.NaN())
	schema := arrow.NewSchema([]arrow.Field{
		{Name: columnItem, Type: arrow.BinaryTypes.String, Nullable: true},
		{Name: columnEmbedding, Type: arrow.ListOf(arrow.PrimitiveTypes.Float32), Nullable: true},
	}, nil)
	for want, rows := range map[string][]struct {
		item string
		x    []float32
	}{
		`row 1: item "b": the embedding has width 1, those before 2`: {{"a", []float32{1, 2}}, {"b", []float32{1}}},
		`row 0: item "a": the embedding holds NaN at 1`:              {{"a", []float32{1, nan}}},
		`row 1: item "b": the embedding is all zeros`:                {{"a", []float32{1}}, {"b", []float32{0}}},
		`row 1: item "a" stands there twice`:                         {{"a", []float32{1}}, {"a", []float32{2}}},
		`row 0: the item id is empty`:                                {{"", []float32{1}}},
		`row 0 has no item_id or no embedding`:                       {{"a", nil}},
		`it holds no items`:                                          {},
	} {
		items := array.NewStringBuilder(memory.DefaultAllocator)
		vectors := array.NewListBuilder(memory.DefaultAllocator, arrow.PrimitiveTypes.Float32)
		for _, r := range rows {
			items.Append(r.item)
			if vectors.Append(r.x != nil); r.x != nil {
				vectors.ValueBuilder().(*array.Float32Builder).AppendValues(r.x, nil)
			}
		}
		path := filepath.Join(t.TempDir(), "x.arrow")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		w, err := ipc.NewFileWriter(f, ipc.WithSchema(schema))
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Write(array.NewRecord(schema, []arrow.Array{items.NewArray(), vectors.NewArray()}, int64(len(rows)))); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadEmbeddings(t.Context(), path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	other := filepath.Join(t.TempDir(), "x.csv")
	if err := os.WriteFile(other, []byte("item_id"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadEmbeddings(t.Context(), other); err == nil || !strings.Contains(err.Error(), ".csv") {
		t.Errorf("a CSV file: %v", err)
	}
}

// TestDamagedEmbeddings: bytes that are wrong make an error, or other embeddings; no panic,
// also not in goroutines of the readers, and no memory beyond what the file could need.
func TestDamagedEmbeddings(t *testing.T) {
	e := new(Embeddings)
	for i := range 3 {
		if err := e.Add(fmt.Sprint(i), []float32{1, float32(i)}); err != nil {
			t.Fatal(err)
		}
	}
	r := rand.New(rand.NewPCG(1, 1))
	for _, format := range []string{"parquet", "arrow"} {
		path := write(t, e, format)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		refused := 0
		for range 1000 {
			data := slices.Clone(whole)
			for range 1 + r.IntN(4) {
				data[r.IntN(len(data))] = byte(r.IntN(256))
			}
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := ReadEmbeddings(t.Context(), path); err != nil {
				refused++
			}
		}
		if refused < 100 {
			t.Errorf("%s: %d of 1000 damaged files were refused", format, refused)
		}
	}
}

// FuzzReadEmbeddings: no file makes the reader panic.
func FuzzReadEmbeddings(f *testing.F) {
	e := new(Embeddings)
	for i := range 3 {
		if err := e.Add(fmt.Sprint(i), []float32{1, float32(i)}); err != nil {
			f.Fatal(err)
		}
	}
	for _, format := range []string{"parquet", "arrow"} {
		data, err := os.ReadFile(write(f, e, format))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, format == "arrow")
		f.Add(data[:len(data)/2], format == "arrow")
	}
	f.Fuzz(func(t *testing.T, data []byte, ipc bool) {
		path := filepath.Join(t.TempDir(), "x.parquet")
		if ipc {
			path = filepath.Join(t.TempDir(), "x.arrow")
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		e, err := ReadEmbeddings(t.Context(), path)
		if err == nil && (len(e.Items) == 0 || len(e.X) != len(e.Items)*e.Dim) {
			t.Errorf("%d items of width %d have %d values", len(e.Items), e.Dim, len(e.X))
		}
	})
}
