package stream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
)

// Cluster says how to reach the brokers.
type Cluster struct {
	Brokers []string
	Options []kgo.Opt // of every client, e.g. security
}

// Client returns a client with the cluster's options and more.
func (c Cluster) Client(more ...kgo.Opt) (*kgo.Client, error) {
	cl, err := kgo.NewClient(c.options(more...)...)
	if err != nil {
		return nil, fmt.Errorf("client of the brokers %v: %w", c.Brokers, err)
	}
	return cl, nil
}

func (c Cluster) options(more ...kgo.Opt) []kgo.Opt {
	return slices.Concat([]kgo.Opt{kgo.SeedBrokers(c.Brokers...)}, c.Options, more)
}

// readNewest returns the newest record of each key on a partition, tombstones
// left out. Memory is bounded by the number of keys.
func (c Cluster) readNewest(ctx context.Context, topic string, partition int32) ([]*kgo.Record, error) {
	newest := make(map[string]*kgo.Record)
	spans, err := c.Spans(ctx, topic)
	if err != nil {
		return nil, err
	}
	span, ok := spans[partition]
	if !ok {
		return nil, fmt.Errorf("topic %q has no partition %d", topic, partition)
	}
	err = c.ReadSpan(ctx, topic, partition, span, func(r *kgo.Record) error {
		if r.Value == nil {
			delete(newest, string(r.Key))
		} else {
			newest[string(r.Key)] = r
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return slices.Collect(maps.Values(newest)), nil
}

// Span is a range of offsets of one partition, To excluded.
type Span struct{ From, To int64 }

// Spans returns what each partition of a topic holds now, up to the high
// watermark: transactions that are still open are included, and reading such a
// span waits until they are decided.
func (c Cluster) Spans(ctx context.Context, topic string) (map[int32]Span, error) {
	return c.SpansSince(ctx, topic, time.Time{})
}

// SpansSince is Spans from the first record of each partition on that is not older than t.
func (c Cluster) SpansSince(ctx context.Context, topic string, t time.Time) (map[int32]Span, error) {
	cl, err := c.Client()
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	var starts kadm.ListedOffsets
	if t.IsZero() {
		starts, err = adm.ListStartOffsets(ctx, topic)
	} else { // the end, if all are older
		starts, err = adm.ListOffsetsAfterMilli(ctx, t.UnixMilli(), topic)
	}
	if err != nil {
		return nil, fmt.Errorf("list offsets of topic %q: %w", topic, err)
	}
	ends, err := adm.ListEndOffsets(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("list offsets of topic %q: %w", topic, err)
	}
	if err := errors.Join(starts.Error(), ends.Error()); err != nil {
		return nil, fmt.Errorf("list offsets of topic %q (if it is missing, run \"onerec topics create\"): %w", topic, err)
	}
	spans := make(map[int32]Span)
	ends.Each(func(end kadm.ListedOffset) {
		start, _ := starts.Lookup(topic, end.Partition)
		spans[end.Partition] = Span{start.Offset, end.Offset}
	})
	return spans, nil
}

// Unread is Spans from the given offsets on.
func (c Cluster) Unread(ctx context.Context, topic string, from map[int32]int64) (map[int32]Span, error) {
	spans, err := c.Spans(ctx, topic)
	for p, s := range spans {
		spans[p] = Span{max(s.From, from[p]), s.To}
	}
	return spans, err
}

// Advance moves offsets behind spans that were read.
func Advance(offsets map[int32]int64, spans map[int32]Span) {
	for p, s := range spans {
		offsets[p] = max(offsets[p], s.To)
	}
}

// ReadSpan calls fn with every committed record of a span in order and returns
// fn's first error.
func (c Cluster) ReadSpan(ctx context.Context, topic string, partition int32, span Span, fn func(*kgo.Record) error) error {
	if span.From >= span.To {
		return nil
	}
	cl, err := c.Client(
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // they may be the last of a span
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {partition: kgo.NewOffset().At(span.From)}}),
	)
	if err != nil {
		return err
	}
	defer cl.Close()
	for {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("read topic %q partition %d: %w", topic, partition, err)
		}
		last := int64(-1)
		for r := range fetches.RecordsAll() {
			last = r.Offset
			if !r.Attrs.IsControl() && r.Offset < span.To {
				if err := fn(r); err != nil {
					return err
				}
			}
		}
		if last >= span.To-1 {
			return nil
		}
	}
}

// ReadTopic calls fn with every committed record that a topic holds now, one
// partition after the other, and returns fn's first error.
func (c Cluster) ReadTopic(ctx context.Context, topic string, fn func(*kgo.Record) error) error {
	spans, err := c.Spans(ctx, topic)
	if err != nil {
		return err
	}
	for _, p := range slices.Sorted(maps.Keys(spans)) {
		if err := c.ReadSpan(ctx, topic, p, spans[p], fn); err != nil {
			return err
		}
	}
	return nil
}

// ReadMerged decodes the committed records of spans and calls fn with them in
// one order that depends on nothing but the records: each partition's order is
// kept, and between partitions the smaller key (event time, say) goes first.
func ReadMerged[T any](ctx context.Context, c Cluster, topic string, spans map[int32]Span, decode func(*kgo.Record) (T, error), key func(T) int64, fn func(T) error) error {
	g, ctx := errgroup.WithContext(ctx)
	partitions := slices.Sorted(maps.Keys(spans))
	streams := make([]chan T, len(partitions))
	for i, p := range partitions {
		streams[i] = make(chan T, 256)
		g.Go(func() error {
			err := c.ReadSpan(ctx, topic, p, spans[p], func(r *kgo.Record) error {
				v, err := decode(r)
				if err != nil {
					return fmt.Errorf("topic %q partition %d offset %d: %w", topic, p, r.Offset, err)
				}
				select {
				case streams[i] <- v:
					return nil
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			})
			if err == nil {
				close(streams[i]) // only a complete stream ends: the merge must not go on without one that failed
			}
			return err
		})
	}
	g.Go(func() error {
		heads, open := make([]T, len(streams)), make([]bool, len(streams))
		next := func(i int) error {
			select {
			case heads[i], open[i] = <-streams[i]:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		for i := range streams {
			if err := next(i); err != nil {
				return err
			}
		}
		for {
			first := -1
			for i := range heads {
				if open[i] && (first < 0 || key(heads[i]) < key(heads[first])) {
					first = i
				}
			}
			if first < 0 {
				return nil
			}
			if err := fn(heads[first]); err != nil {
				return err
			}
			if err := next(first); err != nil {
				return err
			}
		}
	})
	return g.Wait()
}
