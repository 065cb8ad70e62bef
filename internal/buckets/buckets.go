// Package buckets opens object stores by URL: S3, Google Cloud Storage, Azure, and local folders that keep
// the same promises.
//
// A local folder promises less than an object store where it comes to who was first: the file driver of
// gocloud.dev looks whether a file is there and then renames another one over it. [Bucket.Create] makes one
// winner there, too, among all processes that see the folder, and what it made survives a loss of power.
package buckets

import (
	"bytes"
	"context"
	"crypto/md5" // the sum that stores verify an upload by
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"gocloud.dev/blob"
	"gocloud.dev/blob/fileblob"
	"gocloud.dev/gcerrors"
	"golang.org/x/sync/errgroup"
)

// ErrExists is [Bucket.Create]'s answer when somebody was first.
var ErrExists = errors.New("the object exists already")

// Bucket is an object store.
type Bucket struct {
	*blob.Bucket
	URL string
	dir string // of a local one
}

// Open opens a bucket by URL, as gocloud.dev/blob writes it: s3://, gs://, azblob://, file://, with the
// drivers' parameters; a path without a scheme is a local folder, which is created.
func Open(ctx context.Context, url string) (*Bucket, error) {
	if !strings.Contains(url, "://") {
		dir, err := filepath.Abs(url)
		if err != nil {
			return nil, fmt.Errorf("open bucket %q: %w", url, err)
		}
		url = "file://" + filepath.ToSlash(dir)
	}
	dir, local := strings.CutPrefix(url, "file://")
	if !local {
		b, err := blob.OpenBucket(ctx, url)
		if err != nil {
			return nil, fmt.Errorf("open bucket %q: %w", url, err)
		}
		return &Bucket{Bucket: b, URL: url}, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("open bucket %q: %w", url, err)
	}
	// Temporary files beside the final ones, so that the rename is atomic.
	b, err := fileblob.OpenBucket(dir, &fileblob.Options{NoTempDir: true, Metadata: fileblob.MetadataDontWrite})
	if err != nil {
		return nil, fmt.Errorf("open bucket %q: %w", url, err)
	}
	return &Bucket{Bucket: b, URL: url, dir: dir}, nil
}

// path returns where a local bucket has an object. Keys are ours: letters that the file driver doesn't escape.
func (b *Bucket) path(key string) string { return filepath.Join(b.dir, filepath.FromSlash(key)) }

// Path returns the file of an object, if the bucket is a local folder.
func (b *Bucket) Path(key string) (string, bool) { return b.path(key), b.dir != "" }

// Create writes an object that must not be there yet: of several writers one succeeds, the others get
// ErrExists. After another error it may be there or not.
func (b *Bucket) Create(ctx context.Context, key string, data []byte) error {
	if b.dir == "" {
		sum := md5.Sum(data)
		// Not WriteAll: Azure's driver reads what that writes through a pipe, and closes it, when the object
		// exists, while the writer may look at it.
		err := b.Upload(ctx, key, bytes.NewReader(data), &blob.WriterOptions{IfNotExist: true, ContentType: "application/octet-stream", ContentMD5: sum[:]})
		if code := gcerrors.Code(err); code == gcerrors.FailedPrecondition || code == gcerrors.AlreadyExists {
			return fmt.Errorf("create %s: %w", key, ErrExists)
		}
		return err
	}
	return b.link(key, data)
}

// ErrNoCreate says that a store does not keep the promise of [Bucket.Create].
var ErrNoCreate = errors.New("the object store lets several writers create the same object")

// probeWriters is how many try to create the same object at once.
const probeWriters = 8

// CheckCreate finds out whether the store keeps the promise of [Bucket.Create], by an object that several
// writers try to create at once; it is deleted again. Some servers that speak S3 ignore the condition, others
// look whether the object is there and then write. The error is [ErrNoCreate] if the promise was broken;
// any other says that it could not be found out. In a local folder Create is our own and needs no check.
func (b *Bucket) CheckCreate(ctx context.Context) (err error) {
	if b.dir != "" {
		return nil
	}
	key := "probes/" + rand.Text()
	var won atomic.Int32
	var g errgroup.Group
	for range probeWriters {
		g.Go(func() error {
			err := b.Create(ctx, key, []byte("onerec looks whether one of several writers wins"))
			if err == nil {
				won.Add(1)
			}
			if errors.Is(err, ErrExists) {
				return nil
			}
			return err
		})
	}
	err = g.Wait()
	switch n := won.Load(); {
	case n == 0 && err == nil:
		err = fmt.Errorf("%s: nobody could create %s, and it was not there", b.URL, key)
	case n == 0:
	case n > 1:
		err = fmt.Errorf("%s: %w: %d of %d did, at once", b.URL, ErrNoCreate, n, probeWriters)
	default: // one that comes later must lose, too
		if again := b.Create(ctx, key, nil); again == nil {
			err = fmt.Errorf("%s: %w: one did, and another one after it", b.URL, ErrNoCreate)
		} else if !errors.Is(again, ErrExists) {
			err = errors.Join(err, again)
		}
	}
	if won.Load() > 0 {
		if gone := b.Delete(ctx, key); gone != nil {
			err = errors.Join(err, fmt.Errorf("delete %s: %w", key, gone))
		}
	}
	return err
}

// link makes a file appear whole under a name that nobody had.
func (b *Bucket) link(key string, data []byte) (err error) {
	name := b.path(key)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), tempPrefix+"*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), name); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create %s: %w", key, ErrExists)
	} else if err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

// tempPrefix begins the names of what Create was writing when its process was killed.
const tempPrefix = ".tmp-"

// Sync makes objects that were written survive a loss of power, as object stores do by themselves.
func (b *Bucket) Sync(keys ...string) error {
	if b.dir == "" {
		return nil
	}
	dirs := make(map[string]bool)
	for _, key := range keys {
		f, err := os.Open(b.path(key))
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
		dirs[filepath.Dir(b.path(key))] = true
	}
	for dir := range dirs {
		if err := syncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// syncDir makes the names in a folder survive a loss of power, where folders can be synced.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	_ = f.Sync() // Windows has no such thing
	return f.Close()
}
