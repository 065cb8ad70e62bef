package snapshots

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"

	"onerec/internal/stream"
	"onerec/snapshots/delta"
)

// Group is the consumer group of the snapshot service.
const Group = "snapshot"

// Service writes sessions.judged and views.dlq as tables.
type Service struct {
	Cluster stream.Cluster
	Store   *Store
	Size    int64         // bytes that a file is meant to have
	Memory  int64         // bytes of records that wait for their files at most
	MaxAge  time.Duration // a row waits at most this long for its file
	Static  string        // name of a static member of the group (KIP-345); empty: a dynamic one
	Dead    bool          // write dead letters, too
	Once    bool          // end when the records that there are now are written
	Log     *slog.Logger
	Metrics *Metrics
	OnReady func()
}

// errFenced says that a partition has another owner by now.
var errFenced = errors.New("another member of the group has taken the partition over")

// Run works until ctx ends, then writes what waits.
func (s *Service) Run(ctx context.Context) error {
	if err := s.Store.adopt(ctx, s.Log); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	for {
		err := newMember(s).run(ctx)
		if errors.Is(err, errFenced) && ctx.Err() == nil {
			s.Log.Warn("joining the group anew", "why", err)
			continue
		}
		if err != nil {
			return fmt.Errorf("snapshot: %w", err)
		}
		return nil
	}
}

// firstRatio is what a file is thought to have of its records' bytes, before there was one.
const firstRatio = 0.35

// writer is one membership in the group.
type writer struct {
	*Service
	feeds map[string]*feed // by topic, as the others

	mu     sync.Mutex // the group's callbacks come from goroutines of the client
	tables map[string]*delta.Table
	parts  map[topicPartition]*part
	ratio  map[string]float64 // bytes of a file for each of its records
	held   int64              // bytes of all that waits
	failed error              // of a write, or of taking partitions over: nothing is written any more, the next member of the group reads it again
}

func newMember(s *Service) *writer {
	w := &writer{Service: s, feeds: make(map[string]*feed), tables: make(map[string]*delta.Table), parts: make(map[topicPartition]*part), ratio: make(map[string]float64)}
	for _, f := range feeds(s.Dead) {
		w.feeds[f.topic], w.tables[f.topic], w.ratio[f.topic] = f, s.Store.Table(f.table), firstRatio
	}
	return w
}

type topicPartition struct {
	topic     string
	partition int32
}

// app is the name of a partition in its table's log; it is there with the offset of the next record.
func (tp topicPartition) app() string { return fmt.Sprintf("%s/%d", tp.topic, tp.partition) }

// owner is the name under which the log counts who had the partition. The newest one may commit.
func (tp topicPartition) owner() string { return "owner of " + tp.app() }

// part is a partition that this member has, and what waits for its next files.
type part struct {
	owner      int64 // number of this ownership
	committed  int64 // next offset, as the log has it; -1: nothing is in the table yet
	seen       bool  // a record was
	from, next int64 // offsets
	rows       []held
	bytes      int64
	since      time.Time
}

func (w *writer) run(ctx context.Context) error {
	topics := slices.Sorted(maps.Keys(w.feeds))
	ends := make(map[topicPartition]stream.Span)
	if w.Once {
		for _, topic := range topics {
			spans, err := w.Cluster.Spans(ctx, topic)
			if err != nil {
				return err
			}
			for p, span := range spans {
				ends[topicPartition{topic, p}] = span
			}
		}
	}
	opts := []kgo.Opt{
		kgo.ConsumerGroup(Group),
		kgo.ConsumeTopics(topics...),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(),
		kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(), // a partition never leaves between a poll and what is done with it
		kgo.FetchMaxBytes(int32(min(w.Memory/4+1, 50<<20))),
		kgo.AdjustFetchOffsetsFn(w.resume),
		kgo.OnPartitionsAssigned(func(context.Context, *kgo.Client, map[string][]int32) { w.OnReady() }),
		kgo.OnPartitionsRevoked(func(ctx context.Context, _ *kgo.Client, gone map[string][]int32) {
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, tp := range each(gone) {
				if err := w.flush(ctx, tp); err != nil {
					w.Log.Error("could not write a snapshot before giving its partition up; the next owner reads it again", "partition", tp.app(), "error", err)
				}
				w.drop(tp)
			}
		}),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, gone map[string][]int32) {
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, tp := range each(gone) {
				w.drop(tp) // another owner may be writing them already
			}
		}),
	}
	if w.Static != "" {
		opts = append(opts, kgo.InstanceID(w.Static))
	}
	cl, err := w.Cluster.Client(opts...)
	if err != nil {
		return err
	}
	defer cl.CloseAllowingRebalance()
	work, end := outlive(ctx, lastFlush) // files that are under way when the service is asked to stop are written to their end
	defer end()
	for {
		poll, cancel := context.WithTimeout(ctx, min(time.Second, w.MaxAge))
		fetches := cl.PollRecords(poll, 10_000)
		cancel()
		if ctx.Err() != nil {
			return w.flushAll(work)
		}
		if err := w.take(work, fetches); err != nil {
			return err
		}
		if err := w.failure(); err != nil {
			return err
		}
		// For lag only; see the package comment.
		if err := cl.CommitUncommittedOffsets(ctx); err != nil && ctx.Err() == nil {
			w.Log.Warn("could not commit offsets; lag will look larger than it is", "error", err)
		}
		if w.Once && w.reached(ends) {
			return w.flushAll(work)
		}
		cl.AllowRebalance()
	}
}

// outlive returns a context that ends so long after ctx has ended.
func outlive(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(d, cancel)
		context.AfterFunc(longer, func() { timer.Stop() })
	})
	return longer, func() { stop(); cancel() }
}

func each(partitions map[string][]int32) (out []topicPartition) {
	for topic, numbers := range partitions {
		for _, p := range numbers {
			out = append(out, topicPartition{topic, p})
		}
	}
	return out
}

func (w *writer) drop(tp topicPartition) {
	if p := w.parts[tp]; p != nil {
		w.held -= p.bytes
	}
	delete(w.parts, tp)
}

// resume takes partitions over, and sets where each is read from: behind what its table has of it.
func (w *writer) resume(ctx context.Context, offsets map[string]map[int32]kgo.Offset) (_ map[string]map[int32]kgo.Offset, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer func() {
		if err != nil && ctx.Err() == nil { // the client says so later, or not at all
			w.failed = err
		}
	}()
	for topic, partitions := range offsets {
		spans, err := w.Cluster.Spans(ctx, topic)
		if err != nil {
			return nil, err
		}
		if err := w.own(ctx, topic, slices.Sorted(maps.Keys(partitions))); err != nil {
			w.Log.Error("could not take partitions over", "topic", topic, "error", err)
			return nil, err
		}
		for n := range partitions {
			partitions[n] = kgo.NewOffset().AtStart()
			p, span := w.parts[topicPartition{topic, n}], spans[n]
			switch {
			case p.committed < 0:
			case p.committed > span.To:
				w.Log.Error("more of a partition is in the snapshots than there is; was the topic made anew? Write to another folder", "topic", topic, "partition", n, "written", p.committed, "end", span.To)
				return nil, fmt.Errorf("topic %s partition %d ends at %d, but everything before %d is in %s already", topic, n, span.To, p.committed, w.Store.URL())
			case p.committed < span.From:
				w.Log.Error("records are gone that were never written to a snapshot; let the topic keep them for longer", "topic", topic, "partition", n, "from", p.committed, "to", span.From)
				w.Metrics.missed(span.From - p.committed)
			default:
				partitions[n] = kgo.NewOffset().At(p.committed)
			}
		}
	}
	return offsets, nil
}

// own makes this member the newest owner of partitions of a topic, and removes what an owner that died has left
// of files that it could not commit. From then on nobody who had a partition before can commit for it.
func (w *writer) own(ctx context.Context, topic string, numbers []int32) error {
	table := w.tables[topic]
	now := time.Now()
	err := table.Commit(ctx, "ASSIGN", func(s *delta.State) ([]delta.Action, error) {
		actions, err := w.feeds[topic].create(s, now)
		if err != nil {
			return nil, err
		}
		for _, n := range numbers {
			tp := topicPartition{topic, n}
			p := &part{owner: s.Apps[tp.owner()] + 1, committed: -1}
			if next, ok := s.Apps[tp.app()]; ok {
				p.committed = next
			}
			w.drop(tp)
			w.parts[tp] = p
			actions = append(actions, delta.Action{Txn: &delta.Txn{AppID: tp.owner(), Version: p.owner, LastUpdated: now.UnixMilli()}})
		}
		return actions, nil
	})
	if err != nil {
		return err
	}
	return w.clean(ctx, topic, numbers)
}

// intent is written before the files that it names, and tells the next owner what to look for. Each owner of a
// partition has its own.
type intent struct {
	Files []string `json:"files"`
}

const intents = "_pending/"

func intentKey(partition int32, owner int64) string {
	return fmt.Sprintf("%sp%04d-%d.json", intents, partition, owner)
}

// clean removes the files that earlier owners wrote for partitions and never committed.
func (w *writer) clean(ctx context.Context, topic string, numbers []int32) error {
	table := w.tables[topic]
	s, err := table.State(ctx)
	if err != nil {
		return err
	}
	return table.Each(ctx, intents, func(o *blob.ListObject) error {
		var n int32
		var owner int64
		if _, err := fmt.Sscanf(path.Base(o.Key), "p%d-%d.json", &n, &owner); err != nil || !slices.Contains(numbers, n) || owner >= w.parts[topicPartition{topic, n}].owner {
			return nil //nolint:nilerr // not an intent, or not an earlier owner's
		}
		data, err := w.Store.bucket.ReadAll(ctx, o.Key)
		if gcerrors.Code(err) == gcerrors.NotFound {
			return nil
		}
		if err != nil {
			return err
		}
		var left intent
		_ = json.Unmarshal(data, &left) // if it is torn, its writer died before the files were begun
		for _, name := range left.Files {
			if s.Files[name] == nil && s.Removed[name] == nil && dataFile.MatchString(name) {
				if err := w.remove(ctx, table.Key(name)); err != nil {
					return err
				}
			}
		}
		if time.Since(o.ModTime) < lastWords {
			return nil
		}
		return w.remove(ctx, o.Key)
	})
}

// lastWords is how long an owner that lost a partition may go on writing before it finds out.
const lastWords = time.Hour

// remove deletes an object that may be gone.
func (w *writer) remove(ctx context.Context, key string) error {
	if err := w.Store.bucket.Delete(ctx, key); err != nil && gcerrors.Code(err) != gcerrors.NotFound {
		return err
	}
	return nil
}

// failure returns what went wrong in a callback of the client.
func (w *writer) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed
}

// reached reports whether everything before ends is in files or waits for one.
func (w *writer) reached(ends map[topicPartition]stream.Span) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for tp, span := range ends {
		if span.From >= span.To {
			continue
		}
		p := w.parts[tp]
		if p == nil || max(p.committed, p.next) < span.To {
			return false
		}
	}
	return true
}

// take adds what was fetched and writes the files that are due.
func (w *writer) take(ctx context.Context, fetches kgo.Fetches) error {
	for _, e := range fetches.Errors() {
		if !errors.Is(e.Err, context.DeadlineExceeded) && !errors.Is(e.Err, context.Canceled) { // of the poll
			return fmt.Errorf("read topic %s partition %d: %w", e.Topic, e.Partition, e.Err)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for r := range fetches.RecordsAll() {
		tp := topicPartition{r.Topic, r.Partition}
		p := w.parts[tp]
		if p == nil {
			return fmt.Errorf("a record of %s came, which this member does not have", tp.app())
		}
		if err := w.add(tp, p, r); err != nil {
			return err
		}
		if float64(p.bytes)*w.ratio[r.Topic] >= float64(w.Size) {
			if err := w.flush(ctx, tp); err != nil {
				return err
			}
		}
		for w.held > w.Memory {
			if err := w.flush(ctx, w.largest()); err != nil {
				return err
			}
		}
	}
	for tp, p := range w.parts {
		if len(p.rows) > 0 && time.Since(p.since) >= w.MaxAge {
			if err := w.flush(ctx, tp); err != nil {
				return err
			}
		}
	}
	return nil
}

// add takes a record.
func (w *writer) add(tp topicPartition, p *part, r *kgo.Record) error {
	if !p.seen {
		if r.Offset < p.committed {
			return fmt.Errorf("topic %s partition %d: record %d came, but everything before %d is in %s already; was the topic made anew? Write to another folder", r.Topic, r.Partition, r.Offset, p.committed, w.Store.URL())
		}
		p.seen, p.from = true, r.Offset
	}
	p.next = r.Offset + 1
	if r.Attrs.IsControl() {
		return nil
	}
	at, err := w.feeds[tp.topic].place(r)
	if err != nil {
		return err
	}
	if len(p.rows) == 0 {
		p.since = time.Now()
	}
	const overhead = 300 // of a record, beside its bytes
	size := int64(len(r.Key) + len(r.Value) + overhead)
	p.rows = append(p.rows, held{at, r})
	p.bytes += size
	w.held += size
	return nil
}

// largest returns the partition of which most waits.
func (w *writer) largest() (tp topicPartition) {
	most := int64(-1)
	for t, p := range w.parts {
		if p.bytes > most {
			tp, most = t, p.bytes
		}
	}
	return tp
}
