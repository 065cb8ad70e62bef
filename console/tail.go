package console

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kgo"

	"onerec/internal/stream"
)

// tail reads the newest records of a topic.
type tail struct {
	topic string
	keep  int64 // records that it begins with at most; when it falls so far behind, it goes on that far from the end
	// left is how many records were left out since it follows, loaded whether what was there is read.
	left   atomic.Int64
	loaded atomic.Bool
}

// follow calls fn with the newest records that are there, then with what comes, until ctx ends. Each partition's
// come in their order. Records that come faster than fn takes them are left out.
func (t *tail) follow(ctx context.Context, c stream.Cluster, fn func(*kgo.Record)) error {
	spans, err := c.Spans(ctx, t.topic)
	if err != nil {
		return err
	}
	keep := max(1, t.keep/int64(max(1, len(spans))))
	at := make(map[int32]kgo.Offset)
	waiting := make(map[int32]int64)
	for p, span := range spans {
		from := max(span.From, span.To-keep)
		at[p] = kgo.NewOffset().At(from)
		if from < span.To {
			waiting[p] = span.To
		}
	}
	cl, err := c.Client(
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(), kgo.FetchMaxBytes(2<<20),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{t.topic: at}),
	)
	if err != nil {
		return err
	}
	defer cl.Close()
	for {
		t.loaded.Store(len(waiting) == 0)
		fetches := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		var errs []error
		fetches.EachError(func(_ string, p int32, err error) { errs = append(errs, fmt.Errorf("partition %d: %w", p, err)) })
		if err := errors.Join(errs...); err != nil {
			return fmt.Errorf("read topic %s: %w", t.topic, err)
		}
		fetches.EachPartition(func(f kgo.FetchTopicPartition) {
			for _, r := range f.Records {
				if !r.Attrs.IsControl() {
					fn(r)
				}
			}
			if len(f.Records) == 0 {
				return
			}
			last := f.Records[len(f.Records)-1].Offset
			if last >= waiting[f.Partition]-1 {
				delete(waiting, f.Partition)
			}
			if behind := f.HighWatermark - last - 1; behind > 2*keep {
				t.left.Add(behind - keep)
				cl.RemoveConsumePartitions(map[string][]int32{t.topic: {f.Partition}})
				cl.AddConsumePartitions(map[string]map[int32]kgo.Offset{t.topic: {f.Partition: kgo.NewOffset().At(f.HighWatermark - keep)}})
			}
		})
	}
}
