package delta

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gocloud.dev/blob"

	"onerec/internal/buckets"
	"onerec/internal/faultybucket"
)

type row struct {
	ID   string    `parquet:"id" doc:"what it is"`
	Time time.Time `parquet:"time,timestamp(microsecond)"`
	Tags []string  `parquet:"tags,list"`
	In   []struct {
		N int64 `parquet:"n"`
	} `parquet:"in,list"`
	Raw []byte `parquet:"raw"`
}

func open(b *faultybucket.Bucket, o Options) *Table {
	return Open(&buckets.Bucket{Bucket: b.Open(), URL: "faulty://"}, "t", o)
}

func schema(t *testing.T) string {
	t.Helper()
	s, err := SchemaOf(reflect.TypeFor[row](), Field{Name: "date", Type: "date", Nullable: true, Metadata: map[string]string{}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// add returns a build function that adds a file once an application is where it should be.
func add(schema, app string, from, next int64) func(*State) ([]Action, error) {
	return func(s *State) ([]Action, error) {
		if s.Apps[app] != from {
			return nil, ErrConflict
		}
		now := time.Unix(1e9, 0)
		return append(s.Create("t", "", schema, []string{"date"}, now),
			Action{Txn: &Txn{AppID: app, Version: next}},
			Action{Add: &Add{Path: fmt.Sprintf("%s-%d.parquet", app, next), PartitionValues: map[string]string{"date": "2026-01-01"}, Size: 1, DataChange: true, Stats: `{"numRecords":3}`}},
		), nil
	}
}

func TestSchema(t *testing.T) {
	const want = `{"type":"struct","fields":[{"name":"id","type":"string","nullable":true,"metadata":{"comment":"what it is"}},` +
		`{"name":"time","type":"timestamp","nullable":true,"metadata":{}},` +
		`{"name":"tags","type":{"type":"array","elementType":"string","containsNull":false},"nullable":true,"metadata":{}},` +
		`{"name":"in","type":{"type":"array","elementType":{"type":"struct","fields":[{"name":"n","type":"long","nullable":true,"metadata":{}}]},"containsNull":false},"nullable":true,"metadata":{}},` +
		`{"name":"raw","type":"binary","nullable":true,"metadata":{}},{"name":"date","type":"date","nullable":true,"metadata":{}}]}`
	if got := schema(t); got != want {
		t.Errorf("schema\n%s, want\n%s", got, want)
	}
	if _, err := SchemaOf(reflect.TypeFor[struct{ C chan int }]()); err == nil {
		t.Error("a channel became a column")
	}
}

// TestWriters: of many writers, each through its own Table, every commit is there once and in order, and what a
// checkpoint and the commits after it say is what all commits say.
func TestWriters(t *testing.T) {
	b, s := faultybucket.New(), schema(t)
	b.Now = time.Now() // or checkpoints would take the commits for old ones and remove them
	const writers, commits = 6, 20
	var wg sync.WaitGroup
	for w := range writers {
		table := open(b, Options{CheckpointEvery: 7})
		wg.Go(func() {
			for i := range int64(commits) {
				if err := table.Commit(context.Background(), "WRITE", add(s, fmt.Sprint("app", w), i, i+1)); err != nil {
					t.Error(w, i, err)
				}
			}
		})
	}
	wg.Wait()
	read, err := open(b, Options{}).State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if read.Version != writers*commits-1 || len(read.Files) != writers*commits || len(read.Apps) != writers || read.Apps["app3"] != commits {
		t.Fatalf("version %d, %d files, applications %v", read.Version, len(read.Files), read.Apps)
	}
	if read.Files["app3-7.parquet"].Rows() != 3 {
		t.Errorf("rows %d", read.Files["app3-7.parquet"].Rows())
	}
	delete(b.Objects, "t/"+lastCheckpoint)
	all, err := open(b, Options{}).State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(read.Files, all.Files) || !reflect.DeepEqual(read.Apps, all.Apps) || !reflect.DeepEqual(read.Metadata, all.Metadata) {
		t.Errorf("the checkpoint says something else than the commits:\n%+v\n%+v", read, all)
	}
}

// TestFaults: whatever becomes of a commit's write, it is in the table or not, and trying again makes it once.
func TestFaults(t *testing.T) {
	s := schema(t)
	for outcome := faultybucket.Fails; outcome <= faultybucket.Crashed; outcome++ {
		if outcome == faultybucket.Torn || outcome == faultybucket.TornAway {
			continue // object stores and links don't tear what is created
		}
		b := faultybucket.New()
		table := open(b, Options{})
		b.Fault = func(change int, key string) faultybucket.Outcome {
			if strings.HasSuffix(key, commitKey(1)) && change == 1 {
				return outcome
			}
			return faultybucket.Works
		}
		var failed int
		for i := range int64(3) {
			for err := errors.New(""); err != nil; {
				if err = table.Commit(t.Context(), "WRITE", add(s, "app", i, i+1)); err != nil {
					failed++
					table = open(b, Options{}) // as a new process
					state, err := table.State(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					if state.Apps["app"] == i+1 {
						break
					}
				}
			}
		}
		state, err := table.State(t.Context())
		if err != nil || len(state.Files) != 3 || state.Version != 2 || failed != 1 {
			t.Errorf("outcome %d: version %d, %d files, %d failed, %v", outcome, state.Version, len(state.Files), failed, err)
		}
	}
}

// TestConflict: a commit that builds on what is no more so is refused, and leaves nothing.
func TestConflict(t *testing.T) {
	b, s := faultybucket.New(), schema(t)
	one, other := open(b, Options{}), open(b, Options{})
	if _, err := other.State(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := one.Commit(t.Context(), "WRITE", add(s, "app", 0, 5)); err != nil {
		t.Fatal(err)
	}
	if err := other.Commit(t.Context(), "WRITE", add(s, "app", 0, 7)); !errors.Is(err, ErrConflict) {
		t.Errorf("error %v", err)
	}
	if len(b.Keys()) != 1 {
		t.Errorf("keys %v", b.Keys())
	}
}

// TestVacuum: what is no part of the table goes when it is old enough, what is stays, and so does what is not ours.
func TestVacuum(t *testing.T) {
	b, s := faultybucket.New(), schema(t)
	now := b.Now
	table := open(b, Options{Now: func() time.Time { return now }, KeepLog: time.Hour})
	for i := range int64(3) {
		if err := table.Commit(t.Context(), "WRITE", add(s, "app", i, i+1)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"app-1.parquet", "app-2.parquet", "app-3.parquet", "lost.parquet", "notes.txt"} {
		b.Objects["t/"+name] = faultybucket.Object{Data: []byte("x"), At: now}
	}
	now = now.Add(2 * time.Hour)
	if err := table.Commit(t.Context(), "DELETE", func(s *State) ([]Action, error) {
		return []Action{s.Files["app-1.parquet"].Remove(now.UnixMilli(), true)}, nil
	}); err != nil {
		t.Fatal(err)
	}
	ours := func(name string) bool { return strings.HasSuffix(name, ".parquet") }
	n, size, err := table.Vacuum(t.Context(), now.Add(-time.Hour), ours)
	if err != nil || n != 1 || size != 1 {
		t.Fatalf("deleted %d files, %d bytes, %v", n, size, err) // the lost one: the other was taken out just now
	}
	now = now.Add(2 * time.Hour)
	if n, _, err = table.Vacuum(t.Context(), now.Add(-time.Hour), ours); err != nil || n != 1 {
		t.Fatalf("deleted %d files, %v", n, err)
	}
	if err := table.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, key := range b.Keys() {
		left = append(left, path.Base(key))
	}
	want := []string{path.Base(checkpointKey(3)), path.Base(commitKey(3)), "_last_checkpoint", "app-2.parquet", "app-3.parquet", "notes.txt"}
	if slices.Sort(left); !slices.Equal(left, want) {
		// The commits that the checkpoint holds are older than KeepLog, too.
		t.Errorf("left %v, want %v", left, want)
	}
	state, err := open(b, Options{}).State(t.Context())
	if err != nil || len(state.Files) != 2 || state.Version != 3 || len(state.Removed) != 0 {
		t.Errorf("read again: %+v, %v", state, err)
	}
	// A process that slept for so long that the commits it would read next may be gone begins anew.
	now = now.Add(time.Hour)
	if err := table.Commit(t.Context(), "WRITE", add(s, "app", 3, 4)); err != nil || table.state.Version != 4 {
		t.Errorf("version %d, %v", table.state.Version, err)
	}
}

// TestBadLogs: what can't be read or needs more than this package knows is said, with the name.
func TestBadLogs(t *testing.T) {
	for name, text := range map[string]string{
		"torn":      `{"add":{"path":"a`,
		"no path":   `{"add":{"size":3}}`,
		"no app":    `{"txn":{"version":3}}`,
		"too new":   `{"protocol":{"minReaderVersion":3,"minWriterVersion":7}}`,
		"no object": `[1]`,
	} {
		b := faultybucket.New()
		b.Objects["t/"+commitKey(0)] = faultybucket.Object{Data: []byte(text)}
		if _, err := open(b, Options{}).State(t.Context()); err == nil || !strings.Contains(err.Error(), commitKey(0)) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	b := faultybucket.New()
	b.Objects["t/"+lastCheckpoint] = faultybucket.Object{Data: []byte(`{"version":7,"size":1}`)}
	if _, err := open(b, Options{}).State(t.Context()); err == nil {
		t.Error("a checkpoint that is not there was read")
	}
	b.Objects["t/"+checkpointKey(7)] = faultybucket.Object{Data: []byte("PAR1 no PAR1")}
	if _, err := open(b, Options{}).State(t.Context()); err == nil || !strings.Contains(err.Error(), checkpointKey(7)) {
		t.Errorf("error %v", err)
	}
	if err := (&Table{bucket: &buckets.Bucket{Bucket: b.Open()}}).Each(t.Context(), "", func(*blob.ListObject) error { return errors.New("x") }); err == nil {
		t.Error("an error was lost")
	}
}

// FuzzParse: any bytes are a commit or an error; what was read and written again reads the same.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"commitInfo":{"timestamp":1,"operation":"WRITE"}}` + "\n" + `{"add":{"path":"a","partitionValues":{"date":"x"},"size":1,"modificationTime":2,"dataChange":true,"stats":"{}"}}`))
	f.Add([]byte(`{"remove":{"path":"a","deletionTimestamp":3,"dataChange":false}}{"txn":{"appId":"x","version":-1}}`))
	f.Add([]byte(`{"protocol":{"minReaderVersion":1,"minWriterVersion":2}} {"metaData":{"id":"1","format":{"provider":"parquet"},"schemaString":"{}"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		actions, err := parse(data)
		if err != nil {
			return
		}
		s := newState()
		_ = s.apply(actions)
		text, err := format(actions)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parse(text)
		if err != nil {
			t.Fatal(err)
		}
		a, _ := json.Marshal(actions)
		b, _ := json.Marshal(again)
		if !bytes.Equal(a, b) {
			t.Errorf("%s became %s", a, b)
		}
	})
}
