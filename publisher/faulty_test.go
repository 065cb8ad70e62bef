package publisher

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/blob/driver"
	"gocloud.dev/gcerrors"
)

// faulty is a bucket in memory whose changes can fail. It is kept apart from the blob.Bucket over
// it, so that what a crash leaves can be opened again.
type faulty struct {
	mu      sync.Mutex
	objects map[string]object
	// fault is asked before each change; what it says becomes of the change.
	fault func(change int, key string) outcome
	made  int // changes so far
	dead  bool
	now   time.Time
}

type object struct {
	data []byte
	at   time.Time
}

type outcome int

const (
	works    outcome = iota
	fails            // without effect
	torn             // half of the bytes are there, and an error
	tornAway         // the same, and nothing works any more
	lost             // it worked, and the answer is an error
	crashes          // without effect, and nothing works any more
	crashed          // it worked, and nothing works any more
)

var (
	errFault    = errors.New("injected fault")
	errNotFound = errors.New("no such key")
	errExists   = errors.New("the key exists")
)

func newFaulty() *faulty {
	return &faulty{objects: make(map[string]object), now: time.Unix(1e9, 0)}
}

// open returns a store as a new process would.
func (f *faulty) open(o Options) *Store {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead, f.fault, f.made = false, nil, 0
	return &Store{blob.NewBucket(connection{f}), "faulty://", o}
}

// change makes a change as far as the fault lets it.
func (f *faulty) change(key string, ifNotExist bool, data []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return errFault
	}
	_, exists := f.objects[key]
	if ifNotExist && exists {
		return errExists
	}
	if data == nil && !exists {
		return errNotFound
	}
	o := works
	if f.fault != nil {
		o = f.fault(f.made, key)
	}
	f.made++
	switch o {
	case fails, crashes:
	case torn, tornAway:
		if data == nil {
			break
		}
		f.objects[key] = object{slices.Clone(data[:len(data)/2]), f.now}
	default:
		if data == nil {
			delete(f.objects, key)
		} else {
			f.objects[key] = object{slices.Clone(data), f.now}
		}
	}
	f.dead = o == crashes || o == crashed || o == tornAway
	if o != works {
		return errFault
	}
	return nil
}

func (f *faulty) get(key string) (object, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return object{}, errFault
	}
	o, ok := f.objects[key]
	if !ok {
		return o, errNotFound
	}
	return o, nil
}

// keys returns all keys, sorted.
func (f *faulty) keys() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.objects))
}

// connection implements driver.Bucket.
type connection struct{ *faulty }

func (connection) ErrorCode(err error) gcerrors.ErrorCode {
	switch {
	case errors.Is(err, errNotFound):
		return gcerrors.NotFound
	case errors.Is(err, errExists):
		return gcerrors.FailedPrecondition
	}
	return gcerrors.Internal
}
func (connection) As(any) bool             { return false }
func (connection) ErrorAs(error, any) bool { return false }
func (connection) Close() error            { return nil }
func (connection) SignedURL(context.Context, string, *driver.SignedURLOptions) (string, error) {
	return "", errFault
}
func (connection) Copy(context.Context, string, string, *driver.CopyOptions) error { return errFault }

func (c connection) Attributes(_ context.Context, key string) (*driver.Attributes, error) {
	o, err := c.get(key)
	if err != nil {
		return nil, err
	}
	return &driver.Attributes{Size: int64(len(o.data)), ModTime: o.at}, nil
}

func (c connection) ListPaged(_ context.Context, opts *driver.ListOptions) (*driver.ListPage, error) {
	page := new(driver.ListPage)
	for _, key := range c.keys() {
		if strings.HasPrefix(key, opts.Prefix) {
			o, err := c.get(key)
			if err != nil {
				return nil, err
			}
			page.Objects = append(page.Objects, &driver.ListObject{Key: key, Size: int64(len(o.data)), ModTime: o.at})
		}
	}
	return page, nil
}

func (c connection) NewRangeReader(_ context.Context, key string, offset, _ int64, _ *driver.ReaderOptions) (driver.Reader, error) {
	o, err := c.get(key)
	if err != nil {
		return nil, err
	}
	return reader{bytes.NewReader(o.data[offset:]), o}, nil
}

type reader struct {
	*bytes.Reader
	o object
}

func (reader) Close() error { return nil }
func (reader) As(any) bool  { return false }
func (r reader) Attributes() *driver.ReaderAttributes {
	return &driver.ReaderAttributes{Size: int64(len(r.o.data)), ModTime: r.o.at}
}

func (c connection) NewTypedWriter(ctx context.Context, key, _ string, opts *driver.WriterOptions) (driver.Writer, error) {
	return &writer{ctx: ctx, c: c, key: key, ifNotExist: opts != nil && opts.IfNotExist}, nil
}

type writer struct {
	bytes.Buffer
	ctx        context.Context
	c          connection
	key        string
	ifNotExist bool
}

func (w *writer) Close() error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	return w.c.change(w.key, w.ifNotExist, append([]byte{}, w.Bytes()...))
}

func (c connection) Delete(_ context.Context, key string, _ *driver.DeleteOptions) error {
	return c.change(key, false, nil)
}

var _ io.Writer = (*writer)(nil)
