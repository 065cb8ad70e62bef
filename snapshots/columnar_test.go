package snapshots

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// bothReaders reads a file by columns and by rows.
func bothReaders(t interface {
	Helper()
	Fatal(...any)
}, data []byte) (byColumns, byRows []GoodSession) {
	t.Helper()
	for i, read := range []reader[GoodSession]{readGood, readGoodRows} {
		out := []*[]GoodSession{&byColumns, &byRows}[i]
		if err := read(bytes.NewReader(data), int64(len(data)), func(rows []GoodSession) error {
			for _, r := range rows {
				r.Items, r.History, r.HistoryMs = append([]string{}, r.Items...), append([]string{}, r.History...), append([]int64{}, r.HistoryMs...)
				*out = append(*out, r)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return byColumns, byRows
}

// TestColumnar: sessions read by columns are those that parquet-go reads by rows: empty lists, few and many values,
// several pages, files of the first version.
func TestColumnar(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rows := make([]Session, rapid.IntRange(0, 40).Draw(t, "rows"))
		at := func(name string) time.Time { return time.UnixMilli(rapid.Int64Range(-9e12, 9e12).Draw(t, name)).UTC() }
		for i := range rows {
			r := &rows[i]
			r.SessionID, r.UserID, r.Start, r.End, r.Good = rapid.String().Draw(t, "id"), rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "user"), at("start"), at("end"), rapid.Bool().Draw(t, "good")
			r.Partition, r.Offset = rapid.Int32().Draw(t, "partition"), rapid.Int64().Draw(t, "offset")
			for range rapid.IntRange(0, 5).Draw(t, "views") {
				r.Views = append(r.Views, View{ItemID: rapid.StringN(0, 3, -1).Draw(t, "item")})
			}
			for range rapid.IntRange(0, 5).Draw(t, "history") {
				r.History = append(r.History, HistoryItem{rapid.StringN(0, 3, -1).Draw(t, "item"), at("time")})
			}
		}
		var data bytes.Buffer
		if err := writeRows(&data, rows); err != nil {
			t.Fatal(err)
		}
		if a, b := bothReaders(t, data.Bytes()); len(a) != len(rows) || !reflect.DeepEqual(a, b) {
			t.Fatalf("by columns\n%+v, by rows\n%+v", a, b)
		}
	})
	var many []Session
	for i := range 20_000 {
		s := sessionOf(i)
		for j := range i % 9 {
			s.Views = append(s.Views, View{ItemID: fmt.Sprint("item", i*j%5000)})
			s.History = append(s.History, HistoryItem{fmt.Sprint("item-with-a-long-name-", i*j), s.Start})
		}
		if i%7 == 0 {
			s.Views, s.History = nil, nil
		}
		many = append(many, s)
	}
	var data bytes.Buffer
	if err := writeRows(&data, many); err != nil {
		t.Fatal(err)
	}
	if a, b := bothReaders(t, data.Bytes()); len(a) != len(many) || !reflect.DeepEqual(a, b) {
		t.Error("many sessions differ")
	}
	old, err := os.ReadFile(filepath.Join("testdata", "v1", "sessions", "partition=0001", "00000000000000000000-00000000000000000005.parquet"))
	if err != nil {
		t.Fatal(err)
	}
	if a, b := bothReaders(t, old); len(a) != 4 || !reflect.DeepEqual(a, b) {
		t.Errorf("of the first version, by columns\n%+v, by rows\n%+v", a, b)
	}
}

// FuzzColumnar: damaged files are errors, or rows. It is run by hand: parquet-go passes over a page header's damaged
// map item by item, and one of two billion items takes it three quarters of a minute, which fuzzing calls hung.
func FuzzColumnar(f *testing.F) {
	var data bytes.Buffer
	if err := writeRows(&data, []Session{sessionOf(1), sessionOf(2)}); err != nil {
		f.Fatal(err)
	}
	// The engine changes a few bytes of the input; where, it is told.
	f.Add(uint32(10), byte(1), uint32(100), byte(0xff))
	f.Fuzz(func(_ *testing.T, i uint32, x byte, j uint32, y byte) {
		b := slices.Clone(data.Bytes())
		b[int(i)%len(b)] ^= x
		b[int(j)%len(b)] ^= y
		n := 0
		_ = readGood(bytes.NewReader(b), int64(len(b)), func(rows []GoodSession) error {
			for _, r := range rows {
				n += len(r.Items) + len(r.History)
			}
			return nil
		})
	})
}
