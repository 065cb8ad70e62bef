// Package publisher makes checkpoints that can be trusted.
//
// A version is a folder of a bucket that is written once and never changed:
//
//	versions/000007-9f3ac1d2/decoder.safetensors
//	versions/000007-9f3ac1d2/...
//	versions/000007-9f3ac1d2/manifest.json      written last
//
// The manifest holds the SHA-256 of every file. A version without a manifest
// does not exist; one whose bytes differ from its manifest, or whose manifest
// differs from the hash that was announced, is refused by every reader.
//
// A release is one record on the compacted checkpoints topic that points a
// channel ("candidate", "released") at a version.
package publisher

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/blob/fileblob"
	"gocloud.dev/gcerrors"
)

// Kinds of a version.
const (
	KindBase    = "base"    // next-token training
	KindAligned = "aligned" // after a DPO round
)

// SchemaVersion is the manifest's; readers refuse newer ones.
const SchemaVersion = 1

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

// ErrCorrupt says that a version's bytes are not what its manifest or its
// announcement says.
var ErrCorrupt = errors.New("checkpoint is corrupt")

// ErrNotFound says that there is no such version.
var ErrNotFound = errors.New("checkpoint not found")

// Store is a bucket of versions.
type Store struct {
	bucket *blob.Bucket
	url    string
}

// Open opens a bucket by URL, as gocloud.dev/blob writes it; a path without a
// scheme is a local folder, which is created.
func Open(ctx context.Context, url string) (*Store, error) {
	if !strings.Contains(url, "://") {
		dir, err := filepath.Abs(url)
		if err != nil {
			return nil, fmt.Errorf("open checkpoint bucket %q: %w", url, err)
		}
		url = "file://" + filepath.ToSlash(dir)
	}
	var bucket *blob.Bucket
	var err error
	if dir, ok := strings.CutPrefix(url, "file://"); ok {
		if err = os.MkdirAll(dir, 0o755); err == nil {
			// Temporary files beside the final ones, so that the rename is atomic.
			bucket, err = fileblob.OpenBucket(dir, &fileblob.Options{NoTempDir: true, Metadata: fileblob.MetadataDontWrite})
		}
	} else {
		bucket, err = blob.OpenBucket(ctx, url)
	}
	if err != nil {
		return nil, fmt.Errorf("open checkpoint bucket %q: %w", url, err)
	}
	return &Store{bucket, url}, nil
}

// URL returns the bucket's URL.
func (s *Store) URL() string { return s.url }

// Close closes the bucket.
func (s *Store) Close() error { return s.bucket.Close() }

func key(version, file string) string { return "versions/" + version + "/" + file }

// Publish writes a version: the files, then the manifest, which makes it exist.
// It fills in m's Schema, Version, CreatedAt and Files and returns the
// manifest's hash. A publish that fails takes back what it wrote, as well as it can.
func (s *Store) Publish(ctx context.Context, m *Manifest, files map[string][]byte) (hash string, err error) {
	all := sha256.New()
	m.Files = nil
	for _, name := range slices.Sorted(maps.Keys(files)) {
		sum := sha256.Sum256(files[name])
		all.Write(sum[:])
		m.Files = append(m.Files, File{name, int64(len(files[name])), hex.EncodeToString(sum[:])})
	}
	existing, err := s.List(ctx)
	if err != nil {
		return "", err
	}
	next := 1
	if len(existing) > 0 {
		last, err := sequence(existing[len(existing)-1])
		if err != nil {
			return "", err
		}
		next = last + 1
	}
	m.Schema, m.CreatedAt = SchemaVersion, time.Now().UTC().Truncate(time.Millisecond)
	m.Version = fmt.Sprintf("%06d-%s", next, hex.EncodeToString(all.Sum(nil)[:4]))
	var written []string
	defer func() {
		if err == nil || len(written) == 0 {
			return
		}
		// A full disk would only get fuller. What stays is no version, for want of a
		// manifest; if there is one, another writer has made the same version.
		ctx := context.WithoutCancel(ctx)
		if exists, lookErr := s.bucket.Exists(ctx, key(m.Version, "manifest.json")); exists || lookErr != nil {
			return
		}
		for _, k := range written {
			_ = s.bucket.Delete(ctx, k)
		}
	}()
	for _, f := range m.Files {
		written = append(written, key(m.Version, f.Name))
		if err := s.bucket.WriteAll(ctx, key(m.Version, f.Name), files[f.Name], nil); err != nil {
			return "", fmt.Errorf("publish %s: write %s to %s: %w", m.Version, f.Name, s.url, err)
		}
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return "", fmt.Errorf("publish %s: manifest: %w", m.Version, err)
	}
	// IfNotExist: of two writers of one version, one fails.
	if err := s.bucket.WriteAll(ctx, key(m.Version, "manifest.json"), text, &blob.WriterOptions{IfNotExist: true, ContentType: "application/json"}); err != nil {
		return "", fmt.Errorf("publish %s: write the manifest to %s: %w", m.Version, s.url, err)
	}
	hash = hashOf(text)
	if _, _, err := s.Load(ctx, m.Version, hash); err != nil { // read back before anyone hears of it
		return "", fmt.Errorf("publish %s: %w", m.Version, err)
	}
	return hash, nil
}

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

// List returns the versions that have a manifest, oldest first.
func (s *Store) List(ctx context.Context) ([]string, error) {
	var versions []string
	it := s.bucket.List(&blob.ListOptions{Prefix: "versions/"})
	for {
		o, err := it.Next(ctx)
		if errors.Is(err, io.EOF) {
			slices.Sort(versions)
			return versions, nil
		}
		if err != nil {
			return nil, fmt.Errorf("list checkpoints in %s: %w", s.url, err)
		}
		if v, ok := strings.CutSuffix(strings.TrimPrefix(o.Key, "versions/"), "/manifest.json"); ok {
			versions = append(versions, v)
		}
	}
}

// Manifest reads a version's manifest; manifestHash may be empty if nobody
// announced one. It returns the hash.
func (s *Store) Manifest(ctx context.Context, version, manifestHash string) (*Manifest, string, error) {
	text, err := s.read(ctx, version, "manifest.json", maxManifest)
	if err != nil {
		return nil, "", err
	}
	hash := hashOf(text)
	if manifestHash != "" && hash != manifestHash {
		return nil, "", fmt.Errorf("%w: the manifest of %s in %s has hash %s, announced was %s", ErrCorrupt, version, s.url, hash, manifestHash)
	}
	m := new(Manifest)
	if err := json.Unmarshal(text, m); err != nil {
		return nil, "", fmt.Errorf("%w: the manifest of %s in %s: %w", ErrCorrupt, version, s.url, err)
	}
	if m.Schema != SchemaVersion {
		return nil, "", fmt.Errorf("the manifest of %s in %s has schema %d, this onerec reads %d; upgrade", version, s.url, m.Schema, SchemaVersion)
	}
	if m.Version != version {
		return nil, "", fmt.Errorf("%w: the manifest of %s in %s is of %q", ErrCorrupt, version, s.url, m.Version)
	}
	return m, hash, nil
}

// Load reads a version and verifies every byte of it.
func (s *Store) Load(ctx context.Context, version, manifestHash string) (*Manifest, map[string][]byte, error) {
	m, _, err := s.Manifest(ctx, version, manifestHash)
	if err != nil {
		return nil, nil, err
	}
	files := make(map[string][]byte, len(m.Files))
	for _, f := range m.Files {
		data, err := s.read(ctx, version, f.Name, f.Bytes)
		if err != nil {
			return nil, nil, err
		}
		if int64(len(data)) != f.Bytes || hashOf(data) != f.SHA256 {
			return nil, nil, fmt.Errorf("%w: %s of %s in %s is not what the manifest says", ErrCorrupt, f.Name, version, s.url)
		}
		files[f.Name] = data
	}
	return m, files, nil
}

func (s *Store) read(ctx context.Context, version, name string, limit int64) ([]byte, error) {
	if strings.Contains(version, "/") || strings.Contains(version, "..") || strings.Contains(name, "..") || limit < 0 || limit > maxFile {
		return nil, fmt.Errorf("%w: version %q, file %q, %d bytes", ErrCorrupt, version, name, limit)
	}
	r, err := s.bucket.NewReader(ctx, key(version, name), nil)
	if err != nil {
		if gcerrors.Code(err) == gcerrors.NotFound {
			return nil, fmt.Errorf("%w: %s of %s in %s", ErrNotFound, name, version, s.url)
		}
		return nil, fmt.Errorf("read %s of %s in %s: %w", name, version, s.url, err)
	}
	defer r.Close()
	var b bytes.Buffer
	if _, err := io.Copy(&b, io.LimitReader(r, limit+1)); err != nil {
		return nil, fmt.Errorf("read %s of %s in %s: %w", name, version, s.url, err)
	}
	return b.Bytes(), nil
}
