package stream

import (
	"context"
	"errors"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Frame is what a hook of the client leaves on a record whose value was framed, with a
// schema registry's id for instance.
type Frame struct {
	Original []byte // the value as it is on the topic
	Err      error  // why the frame could not be taken off; the value is the original then
}

// ErrInterrupted is a Frame's error when the process ended before it could be known
// what the value is. A loop commits no such record.
var ErrInterrupted = errors.New("interrupted while reading a record's frame")

type frameKey struct{}

// WithFrame returns a record's context that remembers a frame; parent may be nil.
func WithFrame(parent context.Context, f Frame) context.Context {
	if parent == nil {
		parent = context.Background()
	}
	return context.WithValue(parent, frameKey{}, f)
}

func frameOf(r *kgo.Record) (f Frame) {
	if r.Context != nil {
		f, _ = r.Context.Value(frameKey{}).(Frame)
	}
	return f
}

// Original returns a record's value as it is on the topic.
func Original(r *kgo.Record) []byte {
	if f := frameOf(r); f.Original != nil {
		return f.Original
	}
	return r.Value
}

// FrameError returns why a record's frame could not be taken off, nil if it had none
// or it could.
func FrameError(r *kgo.Record) error { return frameOf(r).Err }
