// Package registry puts the schema registry's wire format (Confluent's: a zero byte,
// the schema's id, the message's index, the message) around the values of our topics,
// and takes it off, for clusters whose other clients expect it.
//
// It sits in the Kafka client, as hooks, so that no stage knows of it. A Protobuf
// message never begins with a zero byte; so values with and without the format may
// stand on one topic, and a cluster can move from one to the other.
package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sr"

	"onerec/internal/stream"
	"onerec/schemas"
)

// Registry frames and unframes values. It is a hook of [kgo.WithHooks].
type Registry struct {
	ctx      context.Context
	cl       *sr.Client
	register bool
	log      *slog.Logger
	header   sr.ConfluentHeader

	mu     sync.Mutex
	frames map[string][]byte     // by topic: what goes before a value; nil until Register
	ids    map[int]string        // our schemas' topics; several topics may share an id
	kinds  map[int]sr.SchemaType // of schemas met in values
	absent map[int]error         // ids that the registry does not have
}

const (
	// maxKnown bounds how many schema ids are remembered.
	maxKnown   = 10_000
	timeout    = 10 * time.Second // of a request
	retryAfter = time.Second
)

var (
	_ kgo.HookProduceRecordBuffered = (*Registry)(nil)
	_ kgo.HookFetchRecordUnbuffered = (*Registry)(nil)
)

// New returns a registry at a URL, which may hold a user and a password. While it does
// not answer, records wait, until ctx ends. With register the schemas are registered,
// as "<topic>-value"; without it they must be there.
func New(ctx context.Context, address string, register bool, log *slog.Logger) (*Registry, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("schema registry %q: want http://HOST:PORT or https://HOST:PORT", address)
	}
	opts := []sr.ClientOpt{sr.UserAgent("onerec")}
	if u.User != nil {
		password, _ := u.User.Password()
		opts = append(opts, sr.BasicAuth(u.User.Username(), password))
		u.User = nil
	}
	cl, err := sr.NewClient(append(opts, sr.URLs(u.String()))...)
	if err != nil {
		return nil, fmt.Errorf("schema registry %q: %w", u, err)
	}
	return &Registry{ctx: ctx, cl: cl, register: register, log: log, kinds: make(map[int]sr.SchemaType), absent: make(map[int]error)}, nil
}

// Subjects returns the topics whose values are framed, and the index of each one's
// message in the schema. The sessionizer's changelog is its own affair and stays bare.
var Subjects = sync.OnceValue(func() map[string]int {
	out := make(map[string]int)
	for _, t := range schemas.Topics() {
		if n, ok := schemas.MessageIndex(t.Message); ok && t.Name != schemas.TopicSessionState {
			out[t.Name] = n
		}
	}
	return out
})

// Register registers the schema for every topic, or looks it up. It does nothing after
// it has succeeded.
func (r *Registry) Register(ctx context.Context) error {
	r.mu.Lock()
	done := r.frames != nil
	r.mu.Unlock()
	if done {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	frames, ids := make(map[string][]byte), make(map[int]string)
	schema := sr.Schema{Schema: schemas.Source, Type: sr.TypeProtobuf}
	for topic, index := range Subjects() {
		subject := topic + "-value"
		var s sr.SubjectSchema
		var err error
		if r.register {
			s, err = r.cl.CreateSchema(ctx, subject, schema)
		} else {
			s, err = r.cl.LookupSchema(ctx, subject, schema)
		}
		if err != nil {
			what := "register"
			if !r.register {
				what = "look up"
			}
			return fmt.Errorf("schema registry: %s the schema of subject %q: %w", what, subject, err)
		}
		frame, err := r.header.AppendEncode(nil, s.ID, []int{index})
		if err != nil {
			return fmt.Errorf("schema registry: frame for %q: %w", subject, err)
		}
		frames[topic], ids[s.ID] = frame, topic
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.frames, r.ids = frames, ids
	return nil
}

// OnProduceRecordBuffered puts the frame before a value.
func (r *Registry) OnProduceRecordBuffered(rec *kgo.Record) {
	if len(rec.Value) == 0 || rec.Value[0] == 0 { // a tombstone, a control record, or framed already
		return
	}
	for _, h := range rec.Headers {
		if h.Key == schemas.HeaderContentType || h.Key == schemas.HeaderReplayed {
			return // it says itself what it is, or must stay as it was
		}
	}
	for r.ctx.Err() == nil {
		r.mu.Lock()
		frame, registered := r.frames[rec.Topic], r.frames != nil
		r.mu.Unlock()
		if registered {
			if frame != nil {
				rec.Value = append(append(make([]byte, 0, len(frame)+len(rec.Value)), frame...), rec.Value...)
			}
			return
		}
		r.wait(r.Register(r.ctx))
	}
}

// OnFetchRecordUnbuffered takes the frame off a value. A value whose frame can't be
// understood stays as it is, and the record says why; see [stream.FrameError].
func (r *Registry) OnFetchRecordUnbuffered(rec *kgo.Record, polled bool) {
	if !polled || len(rec.Value) == 0 || rec.Value[0] != 0 {
		return
	}
	if _, ok := Subjects()[rec.Topic]; !ok {
		return
	}
	value, kind, err := r.unframe(rec.Topic, rec.Value)
	rec.Context = stream.WithFrame(rec.Context, stream.Frame{Original: rec.Value, Err: err})
	if err != nil {
		return
	}
	rec.Value = value
	if kind == sr.TypeJSON {
		rec.Headers = append(rec.Headers, kgo.RecordHeader{Key: schemas.HeaderContentType, Value: []byte(schemas.ContentTypeJSON)})
	}
}

// unframe returns the message in a framed value.
func (r *Registry) unframe(topic string, value []byte) ([]byte, sr.SchemaType, error) {
	id, rest, err := r.header.DecodeID(value)
	if err != nil {
		return nil, 0, fmt.Errorf("schema registry's wire format: %w", err)
	}
	kind, err := r.kind(id)
	if err != nil {
		return nil, 0, err
	}
	switch kind {
	case sr.TypeJSON:
		return rest, kind, nil
	case sr.TypeProtobuf:
		const deepest = 32
		index, message, err := r.header.DecodeIndex(rest, deepest)
		if err != nil {
			return nil, 0, fmt.Errorf("schema registry's wire format: message index: %w", err)
		}
		r.mu.Lock()
		_, ours := r.ids[id]
		want := Subjects()[topic]
		r.mu.Unlock()
		if ours && (len(index) != 1 || index[0] != want) {
			return nil, 0, fmt.Errorf("schema %d, message %v is not what belongs on topic %s (%d)", id, index, topic, want)
		}
		return message, kind, nil
	default:
		return nil, 0, fmt.Errorf("schema %d is %s; PROTOBUF or JSON can be read", id, kind)
	}
}

// kind returns the type of a schema, which it asks the registry for once. It waits
// while the registry does not answer.
func (r *Registry) kind(id int) (sr.SchemaType, error) {
	for {
		r.mu.Lock()
		kind, known := r.kinds[id]
		absent := r.absent[id]
		r.mu.Unlock()
		if known || absent != nil {
			return kind, absent
		}
		if r.ctx.Err() != nil {
			return 0, stream.ErrInterrupted
		}
		ctx, cancel := context.WithTimeout(r.ctx, timeout)
		s, err := r.cl.SchemaByID(ctx, id)
		cancel()
		var answer *sr.ResponseError
		notThere := errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound
		r.mu.Lock()
		if len(r.kinds)+len(r.absent) >= maxKnown { // someone sends ids at random
			clear(r.kinds)
			clear(r.absent)
		}
		switch {
		case err == nil:
			r.kinds[id] = s.Type
		case notThere:
			r.absent[id] = fmt.Errorf("schema %d is not in the registry", id)
		}
		r.mu.Unlock()
		if err != nil && !notThere {
			r.wait(fmt.Errorf("schema %d: %w", id, err))
		}
	}
}

// wait pauses after an error.
func (r *Registry) wait(err error) {
	if err == nil || r.ctx.Err() != nil {
		return
	}
	r.log.Warn("the schema registry does not help; records wait", "error", err)
	select {
	case <-r.ctx.Done():
	case <-time.After(retryAfter):
	}
}
