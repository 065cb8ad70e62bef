package stream

import (
	"context"
	"fmt"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"
)

// Emitter writes records into the current transaction.
type Emitter struct {
	sess       *kgo.GroupTransactSession
	partitions map[string]int32
	// Kept, because making a partitioner costs more than everything that ingest does.
	partitioner kgo.TopicPartitioner
	keyed       kgo.Record
	ctx         context.Context
	cause       context.Context
	count       int
	newestEvent int64

	mu  sync.Mutex
	err error // the first failure of this transaction
}

func (e *Emitter) reset(ctx context.Context) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ctx, e.cause, e.err, e.count, e.newestEvent = ctx, nil, nil, 0, 0
}

func (e *Emitter) failure() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.err
}

// Trace returns the trace that a record belongs to, nil if it is not traced.
func Trace(r *kgo.Record) context.Context {
	if r.Context == nil || !trace.SpanContextFromContext(r.Context).IsSampled() {
		return nil
	}
	return r.Context
}

// Cause says which trace what is emitted next belongs to; nil: none.
func (e *Emitter) Cause(trace context.Context) { e.cause = trace }

// Emit writes a record; its Partition must be set. Failures abort the
// transaction.
func (e *Emitter) Emit(r *kgo.Record) {
	e.count++
	if r.Context == nil {
		r.Context = e.cause
	}
	e.sess.Produce(e.ctx, r, func(_ *kgo.Record, err error) {
		if err != nil {
			e.mu.Lock()
			defer e.mu.Unlock()
			if e.err == nil {
				e.err = fmt.Errorf("to %s partition %d: %w", r.Topic, r.Partition, err)
			}
		}
	})
}

// Event notes that what is emitted is about an event at ms since the epoch, for the
// metric of latency from event time.
func (e *Emitter) Event(ms int64) { e.newestEvent = max(e.newestEvent, ms) }

// EmitProto writes a message; a nil message is a tombstone.
func (e *Emitter) EmitProto(topic string, partition int32, key string, m proto.Message) error {
	r := &kgo.Record{Topic: topic, Partition: partition, Key: []byte(key)}
	if m != nil {
		var err error
		if r.Value, err = proto.Marshal(m); err != nil {
			return fmt.Errorf("encode %T for %s: %w", m, topic, err)
		}
	}
	e.Emit(r)
	return nil
}

// Partitions returns how many partitions a topic has, 0 if it does not exist.
func (e *Emitter) Partitions(topic string) int32 { return e.partitions[topic] }

// PartitionOf returns the partition that Kafka's default partitioner (murmur2)
// gives a key among n.
func (e *Emitter) PartitionOf(key string, n int32) int32 {
	e.keyed.Key = append(e.keyed.Key[:0], key...)
	return int32(e.partitioner.Partition(&e.keyed, int(n)))
}
