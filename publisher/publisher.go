// Package publisher makes checkpoints that can be trusted.
//
// A version is a folder of a bucket that is written once and never changed:
//
//	numbers/000007                              says which version has the number
//	versions/000007-9f3ac1d2/decoder.safetensors
//	versions/000007-9f3ac1d2/...
//	versions/000007-9f3ac1d2/manifest.4be1[...].sig   if versions are signed
//	versions/000007-9f3ac1d2/manifest.json      written last
//
// The manifest holds the SHA-256 of every file. A version without a manifest
// does not exist; one whose bytes differ from its manifest, or whose manifest
// differs from the hash that was announced or from its signature, is refused by
// every reader. A number is taken by creating a key that must not exist, so of two
// writers one gets it. What a crash leaves behind is taken up by the next publish of the same
// bytes, or removed by [Store.Collect].
//
// A release is one record on the compacted checkpoints topic that points a
// channel ("candidate", "canary", "released") at a version.
package publisher

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"onerec/internal/buckets"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
	"golang.org/x/sync/errgroup"
)

// Kinds of a version.
const (
	KindBase    = "base"    // next-token training
	KindAligned = "aligned" // after a DPO round
)

// Metrics of a manifest that tell how long sessions waited, from their record on sessions.good to the time
// at which the manifest was made, for a model that has learned from them.
const (
	MetricSessions = "new_sessions"            // since the version before
	MetricAgeP50   = "session_age_p50_seconds" // the median of them
	MetricAgeP99   = "session_age_p99_seconds"
)

// SchemaVersion is the manifest's; readers refuse newer ones.
const SchemaVersion = 1

// Files of every version.
const (
	fileManifest = "manifest.json"
	// A signature's name holds its manifest's hash: of two writers of one version, each has its own.
	fileSignature = "manifest.%.16s.sig"
)

// Limits of what a reader accepts.
const (
	maxManifest = 4 << 20
	maxFile     = 8 << 30
)

// Manifest describes one version.
type Manifest struct {
	Schema    int                `json:"schema"`
	Version   string             `json:"version"`
	Model     string             `json:"model"`
	Kind      string             `json:"kind"`
	Parent    string             `json:"parent,omitempty"` // version it was trained from
	Codebook  string             `json:"codebook"`         // content hash
	CreatedAt time.Time          `json:"created_at"`
	Files     []File             `json:"files"`
	Metrics   map[string]float64 `json:"metrics,omitempty"`
	// Offsets are, by topic and partition, the next record that the version has
	// not been trained on.
	Offsets map[string]map[int32]int64 `json:"offsets,omitempty"`
	Config  json.RawMessage            `json:"config,omitempty"` // of the model, as its package reads it
}

// File is one file of a version.
type File struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// File returns the entry of a file.
func (m *Manifest) File(name string) (File, bool) {
	for _, f := range m.Files {
		if f.Name == name {
			return f, true
		}
	}
	return File{}, false
}

// Shares reports whether a file of two versions is the same, byte for byte.
func (m *Manifest) Shares(other *Manifest, name string) bool {
	a, ok := m.File(name)
	b, too := other.File(name)
	return ok && too && a == b
}

// ErrCorrupt says that a version's bytes are not what its manifest or its
// announcement says.
var ErrCorrupt = errors.New("checkpoint is corrupt")

// ErrNotFound says that there is no such version.
var ErrNotFound = errors.New("checkpoint not found")

// Options of a store.
type Options struct {
	// Sign, if set, signs what is published.
	Sign ed25519.PrivateKey
	// Trust, if there is any, are the keys by one of which a version must be signed.
	Trust []ed25519.PublicKey
	// Retain says what [Retain] keeps; with Keep 0 it keeps everything.
	Retain GC
	// Progress is told how many bytes of a publish or a load are done, or nil.
	Progress func(done, total int64)
}

// Store is a bucket of versions. It is safe for concurrent use.
type Store struct {
	bucket *buckets.Bucket
	Options
}

// Open opens a bucket by URL, as gocloud.dev/blob writes it: s3://, gs://, azblob://, file://,
// with the drivers' parameters; a path without a scheme is a local folder, which is created.
func Open(ctx context.Context, url string, o Options) (*Store, error) {
	bucket, err := buckets.Open(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("open checkpoints: %w", err)
	}
	return &Store{bucket, o}, nil
}

// URL returns the bucket's URL.
func (s *Store) URL() string { return s.bucket.URL }

// CheckCreate finds out whether two writers can share the bucket, see [buckets.Bucket.CheckCreate].
func (s *Store) CheckCreate(ctx context.Context) error { return s.bucket.CheckCreate(ctx) }

// Close closes the bucket.
func (s *Store) Close() error { return s.bucket.Close() }

func versionKey(version, file string) string { return "versions/" + version + "/" + file }

func hashOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func sequence(version string) (int, error) {
	seq, _, _ := strings.Cut(version, "-")
	n, err := strconv.Atoi(seq)
	if err != nil {
		return 0, fmt.Errorf("checkpoint version %q does not begin with a number", version)
	}
	return n, nil
}

// numbers returns the claims by number.
func (s *Store) numbers(ctx context.Context) ([]int, error) {
	var out []int
	err := s.each(ctx, "numbers/", func(o *blob.ListObject) error {
		if n, err := strconv.Atoi(strings.TrimPrefix(o.Key, "numbers/")); err == nil {
			out = append(out, n)
		}
		return nil
	})
	return out, err
}

// folders returns all keys of versions by version, those of unfinished ones included.
func (s *Store) folders(ctx context.Context) (map[string][]*blob.ListObject, error) {
	out := make(map[string][]*blob.ListObject)
	err := s.each(ctx, "versions/", func(o *blob.ListObject) error {
		if version, _, ok := strings.Cut(strings.TrimPrefix(o.Key, "versions/"), "/"); ok {
			out[version] = append(out[version], o)
		}
		return nil
	})
	return out, err
}

func (s *Store) each(ctx context.Context, prefix string, fn func(o *blob.ListObject) error) error {
	it := s.bucket.List(&blob.ListOptions{Prefix: prefix})
	for {
		o, err := it.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list checkpoints in %s: %w", s.bucket.URL, err)
		}
		if err := fn(o); err != nil {
			return err
		}
	}
}

// whole reports whether a version has a manifest.
func whole(version string, keys []*blob.ListObject) bool {
	return slices.ContainsFunc(keys, func(o *blob.ListObject) bool { return o.Key == versionKey(version, fileManifest) })
}

// List returns the versions that have a manifest, oldest first.
func (s *Store) List(ctx context.Context) ([]string, error) {
	folders, err := s.folders(ctx)
	if err != nil {
		return nil, err
	}
	var versions []string
	for version, keys := range folders {
		if whole(version, keys) {
			versions = append(versions, version)
		}
	}
	slices.Sort(versions)
	return versions, nil
}

// Manifest reads a version's manifest; manifestHash may be empty if nobody
// announced one. It returns the hash.
func (s *Store) Manifest(ctx context.Context, version, manifestHash string) (*Manifest, string, error) {
	text, err := s.read(ctx, version, fileManifest, maxManifest)
	if err != nil {
		return nil, "", err
	}
	hash := hashOf(text)
	if manifestHash != "" && hash != manifestHash {
		return nil, "", fmt.Errorf("%w: the manifest of %s in %s has hash %s, announced was %s", ErrCorrupt, version, s.bucket.URL, hash, manifestHash)
	}
	if err := s.trusted(ctx, version, text); err != nil {
		return nil, "", err
	}
	m := new(Manifest)
	if err := json.Unmarshal(text, m); err != nil {
		return nil, "", fmt.Errorf("%w: the manifest of %s in %s: %w", ErrCorrupt, version, s.bucket.URL, err)
	}
	if m.Schema != SchemaVersion {
		return nil, "", fmt.Errorf("the manifest of %s in %s has schema %d, this onerec reads %d; upgrade", version, s.bucket.URL, m.Schema, SchemaVersion)
	}
	if m.Version != version {
		return nil, "", fmt.Errorf("%w: the manifest of %s in %s is of %q", ErrCorrupt, version, s.bucket.URL, m.Version)
	}
	return m, hash, nil
}

// NewestAligned walks a version's lineage back to the newest aligned version in it, the version itself included, as
// far as it is newer than after; "" if there is none, or none that is still kept.
func (s *Store) NewestAligned(ctx context.Context, m *Manifest, after string) (string, error) {
	for m.Version > after {
		if m.Kind == KindAligned {
			return m.Version, nil
		}
		if m.Parent == "" {
			return "", nil
		}
		var err error
		if m, _, err = s.Manifest(ctx, m.Parent, ""); errors.Is(err, ErrNotFound) {
			return "", nil
		} else if err != nil {
			return "", fmt.Errorf("follow the lineage of versions: %w", err)
		}
	}
	return "", nil
}

// Load reads a version's files, those that are named or, if none is, all, and verifies every byte of
// them.
func (s *Store) Load(ctx context.Context, version, manifestHash string, names ...string) (*Manifest, map[string][]byte, error) {
	m, _, err := s.Manifest(ctx, version, manifestHash)
	if err != nil {
		return nil, nil, err
	}
	wanted := m.Files
	if len(names) > 0 {
		wanted = nil
		for _, name := range names {
			f, ok := m.File(name)
			if !ok {
				return nil, nil, fmt.Errorf("%w: %s in %s has no %s", ErrCorrupt, version, s.bucket.URL, name)
			}
			wanted = append(wanted, f)
		}
	}
	data := make([][]byte, len(wanted))
	if err := s.parts(ctx, wanted, func(ctx context.Context, i int) (err error) {
		data[i], err = s.part(ctx, version, wanted[i])
		return err
	}); err != nil {
		return nil, nil, err
	}
	files := make(map[string][]byte, len(wanted))
	for i, f := range wanted {
		files[f.Name] = data[i]
	}
	return m, files, nil
}

// part reads a file and verifies it.
func (s *Store) part(ctx context.Context, version string, f File) ([]byte, error) {
	data, err := s.read(ctx, version, f.Name, f.Bytes)
	if err != nil {
		return nil, err
	}
	if int64(len(data)) != f.Bytes || hashOf(data) != f.SHA256 {
		return nil, fmt.Errorf("%w: %s of %s in %s is not what the manifest says", ErrCorrupt, f.Name, version, s.bucket.URL)
	}
	return data, nil
}

// parts calls fn for each file, a few at a time, and tells the progress.
func (s *Store) parts(ctx context.Context, files []File, fn func(ctx context.Context, i int) error) error {
	var total, done int64
	for _, f := range files {
		total += f.Bytes
	}
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, f := range files {
		g.Go(func() error {
			if err := fn(ctx, i); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			if done += f.Bytes; s.Progress != nil {
				s.Progress(done, total)
			}
			return nil
		})
	}
	return g.Wait()
}

// parallel is the number of files that are read or written at the same time.
const parallel = 4

func (s *Store) read(ctx context.Context, version, name string, limit int64) ([]byte, error) {
	if strings.Contains(version, "/") || strings.Contains(version, "..") || strings.Contains(name, "..") || limit < 0 || limit > maxFile {
		return nil, fmt.Errorf("%w: version %q, file %q, %d bytes", ErrCorrupt, version, name, limit)
	}
	r, err := s.bucket.NewReader(ctx, versionKey(version, name), nil)
	if err != nil {
		if gcerrors.Code(err) == gcerrors.NotFound {
			return nil, fmt.Errorf("%w: %s of %s in %s", ErrNotFound, name, version, s.bucket.URL)
		}
		return nil, fmt.Errorf("read %s of %s in %s: %w", name, version, s.bucket.URL, err)
	}
	defer r.Close()
	var b bytes.Buffer
	b.Grow(int(min(r.Size(), limit)) + bytes.MinRead)
	if _, err := io.Copy(&b, io.LimitReader(r, limit+1)); err != nil {
		return nil, fmt.Errorf("read %s of %s in %s: %w", name, version, s.bucket.URL, err)
	}
	return b.Bytes(), nil
}
