// Package faultybucket is an object store in memory that Fails, tears and dies on request, for tests of what
// writes to buckets.
package faultybucket

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/blob/driver"
	"gocloud.dev/gcerrors"
)

// Bucket is a bucket in memory whose changes can fail. It is kept apart from the blob.Bucket over
// it, so that what a crash leaves can be opened again.
type Bucket struct {
	mu      sync.Mutex
	Objects map[string]Object
	// Fault is asked before each change; what it says becomes of the change.
	Fault func(change int, key string) Outcome
	Made  int // changes so far
	// Condition says what becomes of a write on the condition that the key is not there yet.
	Condition Condition
	Now       time.Time // what is written gets this time
}

// Object is what is under a key.
type Object struct {
	Data []byte
	At   time.Time
}

// Condition is how a conditional write is taken.
type Condition int

// Conditions.
const (
	Kept       Condition = iota
	LooksFirst           // the key is looked for when a write begins, and may be there when it ends
	Ignored
)

// Outcome is what becomes of a change.
type Outcome int

// Outcomes.
const (
	Works    Outcome = iota
	Fails            // without effect
	Torn             // half of the bytes are there, and an error
	TornAway         // the same, and nothing works any more
	Lost             // it worked, and the answer is an error
	Crashes          // without effect, and nothing works any more
	Crashed          // it worked, and nothing works any more
)

// ErrFault is what a change that fails says.
var ErrFault = errors.New("injected fault")

var (
	errNotFound = errors.New("no such key")
	errExists   = errors.New("the key exists")
)

// New returns an empty bucket.
func New() *Bucket {
	return &Bucket{Objects: make(map[string]Object), Now: time.Unix(1e9, 0)}
}

// Open opens the bucket as a new process would, without faults.
func (b *Bucket) Open() *blob.Bucket {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.Fault, b.Made = nil, 0
	return blob.NewBucket(&connection{Bucket: b})
}

// change makes a change as far as the fault lets it.
func (c *connection) change(key string, ifNotExist bool, data []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead {
		return ErrFault
	}
	_, exists := c.Objects[key]
	if ifNotExist && exists && c.Condition == Kept {
		return errExists
	}
	if data == nil && !exists {
		return errNotFound
	}
	o := Works
	if c.Fault != nil {
		o = c.Fault(c.Made, key)
	}
	c.Made++
	switch o {
	case Fails, Crashes:
	case Torn, TornAway:
		if data == nil {
			break
		}
		c.Objects[key] = Object{slices.Clone(data[:len(data)/2]), c.Now}
	default:
		if data == nil {
			delete(c.Objects, key)
		} else {
			c.Objects[key] = Object{slices.Clone(data), c.Now}
		}
	}
	c.dead = o == Crashes || o == Crashed || o == TornAway
	if o != Works {
		return ErrFault
	}
	return nil
}

func (c *connection) get(key string) (Object, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead {
		return Object{}, ErrFault
	}
	o, ok := c.Objects[key]
	if !ok {
		return o, errNotFound
	}
	return o, nil
}

// Keys returns all keys, sorted.
func (b *Bucket) Keys() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Sorted(maps.Keys(b.Objects))
}

// connection is what one process has of the bucket; it implements driver.Bucket.
type connection struct {
	*Bucket
	dead bool // the process is
}

func (*connection) ErrorCode(err error) gcerrors.ErrorCode {
	switch {
	case errors.Is(err, errNotFound):
		return gcerrors.NotFound
	case errors.Is(err, errExists):
		return gcerrors.FailedPrecondition
	}
	return gcerrors.Internal
}
func (*connection) As(any) bool             { return false }
func (*connection) ErrorAs(error, any) bool { return false }
func (*connection) Close() error            { return nil }
func (*connection) SignedURL(context.Context, string, *driver.SignedURLOptions) (string, error) {
	return "", ErrFault
}
func (*connection) Copy(context.Context, string, string, *driver.CopyOptions) error { return ErrFault }

func (c *connection) Attributes(_ context.Context, key string) (*driver.Attributes, error) {
	o, err := c.get(key)
	if err != nil {
		return nil, err
	}
	return &driver.Attributes{Size: int64(len(o.Data)), ModTime: o.At}, nil
}

func (c *connection) ListPaged(_ context.Context, opts *driver.ListOptions) (*driver.ListPage, error) {
	page := new(driver.ListPage)
	for _, key := range c.Keys() {
		if strings.HasPrefix(key, opts.Prefix) {
			o, err := c.get(key)
			if err != nil {
				return nil, err
			}
			page.Objects = append(page.Objects, &driver.ListObject{Key: key, Size: int64(len(o.Data)), ModTime: o.At})
		}
	}
	return page, nil
}

func (c *connection) NewRangeReader(_ context.Context, key string, offset, length int64, _ *driver.ReaderOptions) (driver.Reader, error) {
	o, err := c.get(key)
	if err != nil {
		return nil, err
	}
	data := o.Data[min(offset, int64(len(o.Data))):]
	if length >= 0 {
		data = data[:min(length, int64(len(data)))]
	}
	return reader{bytes.NewReader(data), o}, nil
}

type reader struct {
	*bytes.Reader
	o Object
}

func (reader) Close() error { return nil }
func (reader) As(any) bool  { return false }
func (r reader) Attributes() *driver.ReaderAttributes {
	return &driver.ReaderAttributes{Size: int64(len(r.o.Data)), ModTime: r.o.At}
}

func (c *connection) NewTypedWriter(ctx context.Context, key, _ string, opts *driver.WriterOptions) (driver.Writer, error) {
	w := &writer{ctx: ctx, c: c, key: key, ifNotExist: opts != nil && opts.IfNotExist}
	if w.ifNotExist && c.Condition == LooksFirst {
		if _, err := c.get(key); err == nil {
			return nil, errExists
		}
		runtime.Gosched() // so that others look, too, before this one writes
	}
	return w, nil
}

type writer struct {
	bytes.Buffer
	ctx        context.Context
	c          *connection
	key        string
	ifNotExist bool
}

func (w *writer) Close() error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	return w.c.change(w.key, w.ifNotExist, append([]byte{}, w.Bytes()...))
}

func (c *connection) Delete(_ context.Context, key string, _ *driver.DeleteOptions) error {
	return c.change(key, false, nil)
}

var _ io.Writer = (*writer)(nil)
