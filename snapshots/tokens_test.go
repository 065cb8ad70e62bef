package snapshots

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func writeTokens(t interface{ Fatal(...any) }, rows []TokenRow, batch int) []byte {
	f, err := os.CreateTemp("", "tokens")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(f.Close(), os.Remove(f.Name())) }()
	w, err := NewTokenWriter(f, map[string]string{"onerec.checkpoint": "v1"}, batch)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if err := w.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestTokens: rows are read back as they were written, in batches of any size.
func TestTokens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rows := make([]TokenRow, rapid.IntRange(0, 30).Draw(t, "rows"))
		for i := range rows {
			n := rapid.IntRange(0, 9).Draw(t, "tokens")
			rows[i] = TokenRow{
				SessionID: rapid.String().Draw(t, "id"), UserBucket: rapid.Int32Range(0, UserBuckets-1).Draw(t, "bucket"), HeldOut: rapid.Bool().Draw(t, "held"),
				Ended:  time.UnixMilli(rapid.Int64Range(-1e12, 1e13).Draw(t, "ended")).UTC(),
				Tokens: rapid.SliceOfN(rapid.Int32(), n, n).Draw(t, "tokens"), Weights: rapid.SliceOfN(rapid.Float32Range(-1, 1), n, n).Draw(t, "weights"),
				SessionAt: rapid.Int32Range(0, int32(n)).Draw(t, "at"),
			}
		}
		var got []TokenRow
		metadata, err := ReadTokens(bytes.NewReader(writeTokens(t, rows, rapid.IntRange(1, 10).Draw(t, "batch"))), func(r TokenRow) error {
			r.Tokens, r.Weights = append([]int32{}, r.Tokens...), append([]float32{}, r.Weights...)
			got = append(got, r)
			return nil
		})
		if err != nil || metadata["onerec.checkpoint"] != "v1" || !slices.EqualFunc(got, rows, func(a, b TokenRow) bool { return reflect.DeepEqual(a, b) }) {
			t.Fatalf("read %+v, %v, %v, want %+v", got, metadata, err, rows)
		}
	})
}

func someTokens() []TokenRow {
	return []TokenRow{
		{SessionID: "a", Tokens: []int32{0, 5, 2, 7}, Weights: []float32{0, 0.25, 0, 1}, SessionAt: 3, Ended: time.UnixMilli(1)},
		{SessionID: "b", Tokens: []int32{0, 2, 9}, Weights: []float32{0, 0, 1}, SessionAt: 2, Ended: time.UnixMilli(2)},
	}
}

func TestBadTokens(t *testing.T) {
	whole := writeTokens(t, someTokens(), 1)
	boom := errors.New("boom")
	if _, err := ReadTokens(bytes.NewReader(whole), func(TokenRow) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("error %v", err)
	}
	for _, data := range [][]byte{nil, []byte("ARROW1"), whole[:len(whole)/2], whole[len(whole)/2:]} {
		if _, err := ReadTokens(bytes.NewReader(data), func(TokenRow) error { return nil }); err == nil {
			t.Errorf("%d bytes were read", len(data))
		}
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "x"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := NewTokenWriter(f, nil, 3)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []TokenRow{{Tokens: []int32{1}}, {SessionAt: 1}, {SessionAt: -1}} {
		if err := w.Write(r); err == nil {
			t.Errorf("%+v was written", r)
		}
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

// FuzzReadTokens: any bytes are rows whose lists lie within, or an error.
func FuzzReadTokens(f *testing.F) {
	f.Add(writeTokens(f, someTokens(), 1))
	f.Add(writeTokens(f, someTokens(), 5))
	f.Fuzz(func(_ *testing.T, data []byte) {
		sum := int32(0)
		_, _ = ReadTokens(io.NewSectionReader(bytes.NewReader(data), 0, int64(len(data))), func(r TokenRow) error {
			for i, x := range r.Tokens[r.SessionAt:] {
				sum += x + int32(r.Weights[i])
			}
			return nil
		})
	})
}
