// Package delta keeps the log of a Delta Lake table (protocol: reader 1, writer 2): which files are its rows.
//
// A table is a folder of Parquet files and a log, _delta_log, of numbered commits. A commit is one object that
// must not be there yet, so all of it is in the table or nothing is, and of two writers of one number the
// second reads what the first one did and tries the next. That is all that is asked of a bucket: no service
// keeps a catalogue. Spark, Trino, DuckDB, Polars and delta-rs read such tables.
//
// A commit may say how far an application has come (its txn action). A writer that commits rows together with
// where it read them writes them exactly once.
//
// Source: github.com/delta-io/delta, PROTOCOL.md.
package delta

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/parquet-go/parquet-go"
	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"

	"onerec/internal/buckets"
)

const (
	readerVersion, writerVersion = 1, 2

	logDir         = "_delta_log/"
	lastCheckpoint = logDir + "_last_checkpoint"

	maxCommit     = 256 << 20 // bytes that a reader accepts
	maxCheckpoint = 4 << 30
)

// Options of a table.
type Options struct {
	// CheckpointEvery is the number of commits after which their sum is written down, so that a reader needs not
	// read all of them; 0: 50.
	CheckpointEvery int64
	// KeepLog is how long a commit is kept that a checkpoint holds, for readers of old versions; 0: 30 days.
	KeepLog time.Duration
	Now     func() time.Time // nil: time.Now
}

// Table is a table that this process reads and writes. It is not safe for concurrent use; several processes, or
// several Tables, are.
type Table struct {
	bucket *buckets.Bucket
	root   string // with a slash at the end, or empty
	Options
	state State
	at    time.Time // when the log was last read to its end
}

// State is what the log says as of a version.
type State struct {
	Version  int64     // of the last commit; -1: there is none
	Metadata *Metadata // nil: there is none
	Files    map[string]*Add
	Removed  map[string]*Remove // files that were taken out and may still be there
	Apps     map[string]int64   // how far each application has come

	protocol *Protocol
}

// ErrConflict is for what a commit's author finds out: what it wants to change is no more as it was.
var ErrConflict = errors.New("another writer was faster")

// Open returns the table in a folder of a bucket. Nothing needs to be there yet.
func Open(bucket *buckets.Bucket, root string, o Options) *Table {
	if root != "" && !strings.HasSuffix(root, "/") {
		root += "/"
	}
	if o.CheckpointEvery == 0 {
		o.CheckpointEvery = 50
	}
	if o.KeepLog == 0 {
		o.KeepLog = 30 * 24 * time.Hour
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Table{bucket: bucket, root: root, Options: o, state: newState()}
}

func newState() State {
	return State{Version: -1, Files: make(map[string]*Add), Removed: make(map[string]*Remove), Apps: make(map[string]int64)}
}

// Key returns the key in the bucket of a path within the table.
func (t *Table) Key(path string) string { return t.root + path }

func commitKey(version int64) string { return fmt.Sprintf("%s%020d.json", logDir, version) }
func checkpointKey(version int64) string {
	return fmt.Sprintf("%s%020d.checkpoint.parquet", logDir, version)
}

// State reads what is new in the log and returns what it says now. The caller must not change it, and it changes
// with the next call.
func (t *Table) State(ctx context.Context) (*State, error) {
	now := t.Now()
	if now.Sub(t.at) > t.KeepLog/2 {
		t.state = newState() // the commits that would have come next may be gone
	}
	if t.state.Version < 0 {
		if err := t.load(ctx); err != nil {
			return nil, err
		}
	}
	for {
		actions, err := t.commit(ctx, t.state.Version+1)
		if gcerrors.Code(err) == gcerrors.NotFound {
			t.at = now
			return &t.state, nil
		}
		if err != nil {
			return nil, err
		}
		if err := t.state.apply(actions); err != nil {
			return nil, fmt.Errorf("%s: %w", t.Key(commitKey(t.state.Version+1)), err)
		}
		t.state.Version++
	}
}

// load begins with the last checkpoint, if there is one.
func (t *Table) load(ctx context.Context) error {
	data, err := t.read(ctx, lastCheckpoint, 1<<20)
	if gcerrors.Code(err) == gcerrors.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	var last struct{ Version int64 }
	if err := json.Unmarshal(data, &last); err != nil {
		return fmt.Errorf("%s: %w", t.Key(lastCheckpoint), err)
	}
	if data, err = t.read(ctx, checkpointKey(last.Version), maxCheckpoint); err != nil {
		return err
	}
	actions, err := parseCheckpoint(data)
	if err != nil {
		return fmt.Errorf("%s: %w", t.Key(checkpointKey(last.Version)), err)
	}
	t.state = newState()
	if err := t.state.apply(actions); err != nil {
		return fmt.Errorf("%s: %w", t.Key(checkpointKey(last.Version)), err)
	}
	t.state.Version = last.Version
	return nil
}

func (t *Table) commit(ctx context.Context, version int64) ([]Action, error) {
	data, err := t.read(ctx, commitKey(version), maxCommit)
	if err != nil {
		return nil, err
	}
	actions, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.Key(commitKey(version)), err)
	}
	return actions, nil
}

func (t *Table) read(ctx context.Context, name string, limit int64) ([]byte, error) {
	r, err := t.bucket.NewReader(ctx, t.Key(name), nil)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if r.Size() > limit {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", t.Key(name), r.Size(), limit)
	}
	data, err := io.ReadAll(io.LimitReader(r, limit))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", t.Key(name), err)
	}
	return data, nil
}

func (s *State) apply(actions []Action) error {
	for _, a := range actions {
		switch {
		case a.Protocol != nil:
			if a.Protocol.MinReaderVersion > readerVersion || a.Protocol.MinWriterVersion > writerVersion {
				return fmt.Errorf("the table needs reader %d and writer %d of the Delta protocol; this one knows %d and %d", a.Protocol.MinReaderVersion, a.Protocol.MinWriterVersion, readerVersion, writerVersion)
			}
			s.protocol = a.Protocol
		case a.Metadata != nil:
			s.Metadata = a.Metadata
		case a.Txn != nil:
			s.Apps[a.Txn.AppID] = a.Txn.Version
		case a.Add != nil:
			s.Files[a.Add.Path] = a.Add
			delete(s.Removed, a.Add.Path)
		case a.Remove != nil:
			delete(s.Files, a.Remove.Path)
			s.Removed[a.Remove.Path] = a.Remove
		}
	}
	return nil
}

// Commit adds one commit, whose actions build returns for the newest state; it is asked again when another
// writer was faster. No action, no commit. build's errors are returned as they are. After another error the
// commit may have been made or not: the state tells.
func (t *Table) Commit(ctx context.Context, operation string, build func(*State) ([]Action, error)) error {
	id := rand.Text()
	for {
		s, err := t.State(ctx)
		if err != nil {
			return err
		}
		actions, err := build(s)
		if err != nil || len(actions) == 0 {
			return err
		}
		info := Action{CommitInfo: &CommitInfo{Timestamp: t.Now().UnixMilli(), Operation: operation, EngineInfo: "onerec", TxnID: id}}
		data, err := format(append([]Action{info}, actions...))
		if err != nil {
			return err
		}
		version := s.Version + 1
		if err := t.bucket.Create(ctx, t.Key(commitKey(version)), data); errors.Is(err, buckets.ErrExists) {
			// Perhaps by ourselves: a request that seemed to fail and was sent again.
			if made, err := t.commit(ctx, version); err != nil {
				return err
			} else if len(made) == 0 || made[0].CommitInfo == nil || made[0].CommitInfo.TxnID != id {
				continue
			}
		} else if err != nil {
			return fmt.Errorf("commit %d of %s: %w", version, t.root, err)
		}
		if _, err := t.State(ctx); err != nil {
			return err
		}
		if version > 0 && version%t.CheckpointEvery == 0 {
			// Readers do without; the next one is tried after as many commits.
			_ = t.Checkpoint(ctx)
		}
		return nil
	}
}

// Create returns the actions that make a new table, or give an old one a later schema; none if there is nothing
// to do. They belong into the first commit.
func (s *State) Create(name, description, schema string, partitionColumns []string, now time.Time) []Action {
	if s.Metadata != nil && s.Metadata.SchemaString == schema {
		return nil
	}
	m := &Metadata{
		ID: newID(), Name: name, Description: description, SchemaString: schema, PartitionColumns: partitionColumns,
		Format: Format{Provider: "parquet", Options: map[string]string{}}, Configuration: map[string]string{}, CreatedTime: now.UnixMilli(),
	}
	if s.Metadata != nil {
		m.ID, m.CreatedTime, m.Configuration = s.Metadata.ID, s.Metadata.CreatedTime, s.Metadata.Configuration
		return []Action{{Metadata: m}}
	}
	return []Action{{Protocol: &Protocol{readerVersion, writerVersion}}, {Metadata: m}}
}

// newID returns a random UUID (version 4).
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it can't fail
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// Checkpoint writes the sum of all commits down and removes those that it holds and nobody needs any more.
func (t *Table) Checkpoint(ctx context.Context) error {
	s, err := t.State(ctx)
	if err != nil || s.Version < 0 {
		return err
	}
	actions := []Action{{Protocol: s.protocol}, {Metadata: s.Metadata}}
	for _, app := range sorted(s.Apps) {
		actions = append(actions, Action{Txn: &Txn{AppID: app, Version: s.Apps[app]}})
	}
	for _, name := range sorted(s.Files) {
		actions = append(actions, Action{Add: s.Files[name]})
	}
	for _, name := range sorted(s.Removed) {
		actions = append(actions, Action{Remove: s.Removed[name]})
	}
	var data bytes.Buffer
	w := parquet.NewGenericWriter[Action](&data, parquet.Compression(&parquet.Snappy))
	if _, err := w.Write(actions); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	if err := t.bucket.WriteAll(ctx, t.Key(checkpointKey(s.Version)), data.Bytes(), nil); err != nil {
		return err
	}
	last, err := json.Marshal(map[string]int64{"version": s.Version, "size": int64(len(actions))})
	if err != nil {
		return err
	}
	if err := t.bucket.Sync(t.Key(checkpointKey(s.Version))); err != nil {
		return err
	}
	if err := t.bucket.WriteAll(ctx, t.Key(lastCheckpoint), last, nil); err != nil {
		return err
	}
	return t.trim(ctx, s.Version)
}

func sorted[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// trim removes commits and checkpoints before a checkpoint, once they are old enough.
func (t *Table) trim(ctx context.Context, version int64) error {
	return t.Each(ctx, logDir, func(o *blob.ListObject) error {
		var v int64
		_, err := fmt.Sscanf(path.Base(o.Key), "%d.", &v)
		if old := t.Now().Sub(o.ModTime) > t.KeepLog; !old || err == nil && v >= version || path.Base(o.Key) == path.Base(lastCheckpoint) {
			return nil
		}
		return t.bucket.Delete(ctx, o.Key)
	})
}

// Each calls fn with every object of the table whose path begins with prefix.
func (t *Table) Each(ctx context.Context, prefix string, fn func(o *blob.ListObject) error) error {
	it := t.bucket.List(&blob.ListOptions{Prefix: t.Key(prefix)})
	for {
		o, err := it.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list %s: %w", t.Key(prefix), err)
		}
		if err := fn(o); err != nil {
			return err
		}
	}
}

// parseCheckpoint reads a checkpoint.
func parseCheckpoint(data []byte) (actions []Action, err error) {
	defer func() { // parquet-go panics on some malformed files
		if p := recover(); p != nil {
			err = fmt.Errorf("malformed Parquet: %v", p)
		}
	}()
	r := parquet.NewGenericReader[Action](bytes.NewReader(data))
	defer r.Close()
	rows := make([]Action, 256)
	for {
		clear(rows)
		n, err := r.Read(rows)
		actions = append(actions, rows[:n]...)
		if errors.Is(err, io.EOF) {
			return actions, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// Vacuum deletes data files that are no part of the table: what was taken out before a time, and what a writer
// that died before it could commit has left, if it was written before. Only files whose paths ours accepts are
// touched. It returns how many it deleted, and their bytes.
func (t *Table) Vacuum(ctx context.Context, before time.Time, ours func(path string) bool) (files int, size int64, err error) {
	s, err := t.State(ctx)
	if err != nil {
		return 0, 0, err
	}
	err = t.Each(ctx, "", func(o *blob.ListObject) error {
		name := strings.TrimPrefix(o.Key, t.root)
		if strings.HasPrefix(name, logDir) || s.Files[name] != nil || !ours(name) || !o.ModTime.Before(before) {
			return nil
		}
		if r := s.Removed[name]; r != nil && r.DeletionTimestamp >= before.UnixMilli() {
			return nil
		}
		if err := t.bucket.Delete(ctx, o.Key); err != nil && gcerrors.Code(err) != gcerrors.NotFound {
			return err
		}
		files, size = files+1, size+o.Size
		return nil
	})
	// A tombstone has done its work when its file is gone.
	for name, r := range s.Removed {
		if err == nil && r.DeletionTimestamp < before.UnixMilli() {
			delete(s.Removed, name)
		}
	}
	return files, size, err
}
