package snapshots

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
	arrowfile "github.com/apache/arrow/go/v17/parquet/file"
	"github.com/apache/arrow/go/v17/parquet/pqarrow"
)

// sums are what every reader must agree on.
type sums struct {
	Sessions, Views, History, WatchMs, Likes, EndMs int64
}

// TestEngines: DuckDB by our SQL and by the folders, pyarrow, delta-rs by the log, and Arrow's reader in Go count and
// sum what ours does: files of this version, compacted ones, checkpoints of the log, and those of the first version.
func TestEngines(t *testing.T) {
	if out, err := exec.Command("python3", "-c", "import duckdb, pyarrow, deltalake").CombinedOutput(); err != nil {
		if os.Getenv("ONEREC_NEED_PYTHON") != "" {
			t.Fatalf("python3 has no duckdb, pyarrow and deltalake: %s", out)
		}
		t.Skipf("python3 has no duckdb, pyarrow and deltalake (pip install duckdb pyarrow deltalake): %.100s", out)
	}
	for name, make := range map[string]func(*testing.T, *Store, string){
		"written": func(t *testing.T, s *Store, _ string) { fillStore(t, s) },
		"of several pages": func(t *testing.T, s *Store, _ string) {
			if err := newWriter(t, s).feed(t, 0, 40_000); err != nil {
				t.Fatal(err)
			}
		},
		"compacted": func(t *testing.T, s *Store, _ string) {
			fillStore(t, s)
			for _, m := range []Maintenance{{Size: 1 << 20, Now: time.Now().Add(time.Hour)}, {Size: 1 << 20, Now: time.Now().Add(2 * time.Hour)}} {
				if done, err := s.Maintain(t.Context(), TableSessions, m); err != nil || done.Merged == 0 && done.Deleted == 0 {
					t.Fatalf("%+v, %v", done, err)
				}
			}
			if err := s.Table(TableSessions).Checkpoint(t.Context()); err != nil {
				t.Fatal(err)
			}
		},
		"first layout": func(t *testing.T, _ *Store, dir string) {
			if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", "v1"))); err != nil {
				t.Fatal(err)
			}
		},
		"second layout": func(t *testing.T, _ *Store, dir string) {
			if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", "v2"))); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := newStore(t)
			make(t, s, dir)
			var want sums
			if err := ReadAll(t.Context(), dir, func(row Session) error {
				want.Sessions++
				want.Views += int64(len(row.Views))
				want.History += int64(len(row.History))
				want.WatchMs += row.TotalWatchMs
				want.Likes += int64(row.Likes)
				want.EndMs += row.End.UnixMilli()
				return nil
			}); err != nil || want.Sessions == 0 {
				t.Fatalf("%+v, %v", want, err)
			}
			files, err := s.Files(t.Context(), TableSessions, Range{})
			if err != nil {
				t.Fatal(err)
			}
			names := []string{}
			for _, f := range files {
				names = append(names, s.Locate(TableSessions, f.Path))
			}
			if got := byArrow(t, names); got != want {
				t.Errorf("Arrow in Go: %+v, want %+v", got, want)
			}
			var sql bytes.Buffer
			if err := s.WriteSQL(t.Context(), &sql, Range{}); err != nil {
				t.Fatal(err)
			}
			state, err := s.Table(TableSessions).State(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			in, err := json.Marshal(map[string]any{"sql": sql.String(), "files": names, "dir": filepath.Join(dir, TableSessions), "log": state.Version >= 0})
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("python3", filepath.Join("testdata", "engines.py"))
			cmd.Stdin, cmd.Stderr = bytes.NewReader(in), os.Stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			var got map[string]sums
			if err := json.Unmarshal(out, &got); err != nil {
				t.Fatal(err)
			}
			if len(got) != 4 && (state.Version >= 0 || len(got) != 3) {
				t.Errorf("engines %v", got)
			}
			for engine, sums := range got {
				if sums != want {
					t.Errorf("%s: %+v, want %+v", engine, sums, want)
				}
			}
		})
	}
}

// fillStore writes some flushes.
func fillStore(t *testing.T, s *Store) {
	t.Helper()
	w := newWriter(t, s)
	for i := range 5 {
		if err := w.feed(t, i*30, i*30+30); err != nil {
			t.Fatal(err)
		}
	}
}

// byArrow reads by apache/arrow.
func byArrow(t *testing.T, names []string) (out sums) {
	t.Helper()
	for _, name := range names {
		f, err := arrowfile.OpenParquetFile(name, false)
		if err != nil {
			t.Fatal(err)
		}
		r, err := pqarrow.NewFileReader(f, pqarrow.ArrowReadProperties{}, memory.DefaultAllocator)
		if err != nil {
			t.Fatal(err)
		}
		table, err := r.ReadTable(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		tr := array.NewTableReader(table, -1)
		for tr.Next() {
			batch := tr.Record()
			column := func(name string) int { return batch.Schema().FieldIndices(name)[0] }
			for i := range int(batch.NumRows()) {
				out.Sessions++
				from, to := batch.Column(column("views")).(*array.List).ValueOffsets(i)
				out.Views += to - from
				from, to = batch.Column(column("history")).(*array.List).ValueOffsets(i)
				out.History += to - from
				out.WatchMs += batch.Column(column("total_watch_ms")).(*array.Int64).Value(i)
				out.Likes += int64(batch.Column(column("likes")).(*array.Int32).Value(i))
				end := batch.Column(column("end")).(*array.Timestamp)
				if fmt.Sprint(end.DataType()) == "timestamp[us, tz=UTC]" {
					out.EndMs += int64(end.Value(i)) / 1000
				} else {
					out.EndMs += int64(end.Value(i))
				}
			}
		}
		tr.Release()
		table.Release()
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return out
}
