package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Limits of a loop that no deployment has had a reason to change.
const (
	maxPollRecords = 10_000           // records that a stage is given at once, at most
	maxTxnRecords  = 100_000          // records after which a transaction ends before its time
	commitTimeout  = 30 * time.Second // for a commit while shutting down
	txnTimeout     = 60 * time.Second // of Config.TxnTimeout
)

// Stage turns records into records. Its methods are never called at the same
// time.
type Stage interface {
	// Process handles records of one partition in their order and emits what
	// follows from them. An error stops the loop: what can be refused should be
	// emitted to a dead-letter topic instead.
	Process(ctx context.Context, partition int32, records []*kgo.Record, out *Emitter) error
}

// StatefulStage is a Stage with memory for each input partition, kept in
// partition p of a changelog topic for partition p of the input.
type StatefulStage interface {
	Stage
	// Changelog names the compacted topic.
	Changelog() string
	// Restore begins partition p with empty memory and hands over the newest
	// record of each key, in no certain order, tombstones left out.
	Restore(partition int32, newest []*kgo.Record) error
	// Drop forgets partition p.
	Drop(partition int32)
	// Tick lets time pass on a partition; it is called about once a second.
	Tick(partition int32, now time.Time, out *Emitter) error
}

// Recycler is a Stage that writes the records it emits into memory of its own.
type Recycler interface {
	Stage
	// Recycle says that nobody reads what was emitted so far any more: its
	// transaction is committed.
	Recycle()
}

// Config says where a loop reads and who it is.
type Config struct {
	Cluster    Cluster
	Group      string // consumer group; the service's name
	Topic      string // input
	InstanceID string // makes the transactional id; stable across restarts if set, so that a restart fences its former self at once
	Metrics    *Metrics
	Log        *slog.Logger
	OnReady    func()     // called once partitions were assigned; may be nil
	Hooks      []kgo.Hook // of the loop's client, e.g. metrics and traces
	// Static makes the instance a static member of its group (KIP-345): within the
	// session's timeout a restarted instance gets its partitions back at once and
	// nobody else's move. It does not leave the group when it ends.
	Static bool
	// CommitInterval is how long a transaction takes up records before it is committed.
	// A commit takes several round trips whatever it holds, so that a longer interval
	// gives more records a second, and lets readers wait longer. 0: one poll, one commit.
	CommitInterval time.Duration
	// TxnTimeout is how long a dead instance's open transaction may hold readers up
	// unless the instance comes back before; 0 means 60 s.
	TxnTimeout time.Duration
}

// Loop runs a stage.
type Loop struct {
	cfg   Config
	stage Stage
	state StatefulStage // nil if the stage has no memory

	mu      sync.Mutex
	revoked map[int32]bool // noted by the group's callbacks, acted on by Run
	owned   map[int32]bool

	restored map[int32]bool // only touched by Run
}

// NewLoop returns a loop that has not joined its group yet.
func NewLoop(cfg Config, stage Stage) *Loop {
	l := &Loop{
		cfg: cfg, stage: stage,
		revoked: make(map[int32]bool), owned: make(map[int32]bool), restored: make(map[int32]bool),
	}
	l.state, _ = stage.(StatefulStage)
	return l
}

// Run joins the group and works until ctx ends; then it finishes the
// transaction at hand, leaves the group and returns nil. Any other end is an
// error.
func (l *Loop) Run(ctx context.Context) (err error) {
	sess, err := l.join()
	if err != nil {
		return fmt.Errorf("%s: join group %q on %v: %w", l.cfg.Group, l.cfg.Group, l.cfg.Cluster.Brokers, err)
	}
	defer sess.Close()
	counts, err := partitionCounts(ctx, sess.Client())
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("%s: %w", l.cfg.Group, err)
	}
	out := &Emitter{sess: sess, partitions: counts, partitioner: kgo.StickyKeyPartitioner(nil).ForTopic(l.cfg.Topic)}
	lastTick := time.Now()
	for {
		pollCtx, cancel := context.WithTimeout(ctx, time.Second)
		fetches := sess.PollRecords(pollCtx, maxPollRecords)
		cancel()
		if ctx.Err() != nil || fetches.IsClientClosed() {
			return nil // records polled but not processed are read again: their offsets are not committed
		}
		if err := l.readError(fetches); err != nil {
			return fmt.Errorf("%s: %w", l.cfg.Group, err)
		}
		if err := l.reconcile(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("%s: %w", l.cfg.Group, err)
		}
		now := time.Now()
		tick := l.state != nil && now.Sub(lastTick) >= time.Second
		if fetches.Empty() && !tick {
			continue
		}
		if tick {
			lastTick = now
		}
		if err := l.transaction(ctx, sess, fetches, tick, now, out); err != nil {
			return fmt.Errorf("%s: %w", l.cfg.Group, err)
		}
	}
}

// transaction processes a poll, and what more comes within the commit interval. It
// returns nil for an abort that a later poll will make good.
func (l *Loop) transaction(ctx context.Context, sess *kgo.GroupTransactSession, fetches kgo.Fetches, tick bool, now time.Time, out *Emitter) error {
	if err := sess.Begin(); err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	out.reset(ctx)
	var stageErr error
	var seen progress
	complete := true // everything polled was processed, so that its offsets may be committed
	process := func(p kgo.FetchTopicPartition) {
		seen.note(p)
		// Control records are kept (see join) only so that offsets move past them.
		data := slices.DeleteFunc(slices.Clone(p.Records), func(r *kgo.Record) bool { return r.Attrs.IsControl() })
		if len(data) == 0 || stageErr != nil {
			return
		}
		if l.state != nil && !l.restored[p.Partition] {
			complete = false // assigned while the transaction was under way
			return
		}
		if slices.ContainsFunc(data, func(r *kgo.Record) bool { return errors.Is(FrameError(r), ErrInterrupted) }) {
			complete = false
			return
		}
		seen.records += len(data)
		stageErr = l.stage.Process(ctx, p.Partition, data, out)
	}
	fetches.EachPartition(process)
	if tick && stageErr == nil {
		for _, p := range slices.Sorted(maps.Keys(l.restored)) {
			if stageErr = l.state.Tick(p, now, out); stageErr != nil {
				break
			}
		}
	}
	var readErr error
	for end := now.Add(l.cfg.CommitInterval); ; {
		if stageErr != nil || readErr != nil || !complete || seen.records >= maxTxnRecords || l.moved() || ctx.Err() != nil || !time.Now().Before(end) {
			break
		}
		pollCtx, cancel := context.WithDeadline(ctx, end)
		more := sess.PollRecords(pollCtx, maxPollRecords)
		cancel()
		more.EachPartition(process) // what was polled must be processed or not committed, whatever else happened
		readErr = l.readError(more)
	}
	// Ending must not be cut short by a shutdown: the outcome would be unknown.
	endCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	flushErr := sess.Client().Flush(endCtx)
	produceErr := errors.Join(out.failure(), flushErr)
	committed, err := sess.End(endCtx, kgo.TransactionEndTry(stageErr == nil && readErr == nil && produceErr == nil && complete))
	l.cfg.Metrics.transaction(committed, seen.records, out.count)
	if committed {
		if r, ok := l.stage.(Recycler); ok {
			r.Recycle()
		}
		l.cfg.Metrics.progress(&seen, out.newestEvent, time.Now())
	}
	switch {
	case stageErr != nil:
		return stageErr
	case readErr != nil:
		return readErr
	case produceErr != nil && ctx.Err() == nil:
		return fmt.Errorf("produce: %w", produceErr)
	case err != nil:
		return fmt.Errorf("end transaction: %w", err)
	case !committed:
		l.cfg.Log.Info("transaction aborted, reading again", "records", seen.records)
		l.forget()
	}
	return nil
}

// readError returns why a poll failed, nil if it only ran out of time.
func (l *Loop) readError(fetches kgo.Fetches) error {
	for _, e := range fetches.Errors() {
		if !errors.Is(e.Err, context.DeadlineExceeded) && !errors.Is(e.Err, context.Canceled) {
			return fmt.Errorf("read %s partition %d: %w", e.Topic, e.Partition, e.Err)
		}
	}
	return nil
}

// moved reports whether the group has changed the assignment since reconcile.
func (l *Loop) moved() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.revoked) > 0 {
		return true
	}
	for p := range l.owned {
		if l.state != nil && !l.restored[p] {
			return true
		}
	}
	return false
}

// forget throws the memory of every partition away; reconcile restores it.
func (l *Loop) forget() {
	for p := range l.restored {
		l.state.Drop(p)
	}
	clear(l.restored)
}

// reconcile makes the stage's memory follow the group's assignment.
func (l *Loop) reconcile(ctx context.Context) error {
	l.mu.Lock()
	revoked := slices.Sorted(maps.Keys(l.revoked))
	owned := slices.Sorted(maps.Keys(l.owned))
	clear(l.revoked)
	l.mu.Unlock()
	if l.state == nil {
		for _, p := range revoked {
			l.cfg.Metrics.forget(p)
		}
		return nil
	}
	for _, p := range revoked {
		l.cfg.Metrics.forget(p)
		if l.restored[p] {
			l.state.Drop(p)
			delete(l.restored, p)
		}
	}
	for _, p := range owned {
		if l.restored[p] {
			continue
		}
		start := time.Now()
		newest, err := l.cfg.Cluster.readNewest(ctx, l.state.Changelog(), p)
		if err != nil {
			return fmt.Errorf("restore partition %d from %s: %w", p, l.state.Changelog(), err)
		}
		if err := l.state.Restore(p, newest); err != nil {
			return fmt.Errorf("restore partition %d from %s: %w", p, l.state.Changelog(), err)
		}
		l.restored[p] = true
		l.cfg.Metrics.restore(time.Since(start))
		l.cfg.Log.Debug("restored", "partition", p, "keys", len(newest))
	}
	return nil
}

func (l *Loop) join() (*kgo.GroupTransactSession, error) {
	note := func(set bool) func(context.Context, *kgo.Client, map[string][]int32) {
		return func(_ context.Context, _ *kgo.Client, parts map[string][]int32) {
			l.mu.Lock()
			defer l.mu.Unlock()
			for _, p := range parts[l.cfg.Topic] {
				if set {
					l.owned[p] = true
				} else {
					delete(l.owned, p)
					l.revoked[p] = true
				}
			}
		}
	}
	assigned := note(true)
	opts := l.cfg.Cluster.options(
		kgo.ConsumerGroup(l.cfg.Group),
		kgo.ConsumeTopics(l.cfg.Topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// Without control records the committed offset would stay before a
		// trailing transaction marker and lag would never be zero.
		kgo.KeepControlRecords(),
		// More buffers more and gains nothing: docs/benchmarks.md.
		kgo.FetchMaxBytes(2<<20),
		kgo.TransactionalID(l.cfg.Group+"-"+l.cfg.InstanceID),
		kgo.TransactionTimeout(cmp.Or(l.cfg.TxnTimeout, txnTimeout)),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.OnPartitionsAssigned(func(ctx context.Context, cl *kgo.Client, parts map[string][]int32) {
			assigned(ctx, cl, parts)
			if l.cfg.OnReady != nil {
				l.cfg.OnReady()
			}
		}),
		kgo.OnPartitionsRevoked(note(false)),
		kgo.OnPartitionsLost(note(false)),
	)
	if len(l.cfg.Hooks) > 0 {
		opts = append(opts, kgo.WithHooks(l.cfg.Hooks...))
	}
	if l.cfg.Static {
		opts = append(opts, kgo.InstanceID(l.cfg.Group+"-"+l.cfg.InstanceID))
	}
	return kgo.NewGroupTransactSession(opts...)
}

// WaitCaughtUp returns once the group has committed everything that the topic
// held when it was called.
func WaitCaughtUp(ctx context.Context, cl *kgo.Client, group, topic string) error {
	adm := kadm.NewClient(cl)
	ends, err := adm.ListEndOffsets(ctx, topic)
	if err != nil {
		return fmt.Errorf("wait for %s on %s: %w", group, topic, err)
	}
	for {
		committed, err := adm.FetchOffsets(ctx, group)
		if err != nil && !errors.Is(err, kerr.GroupIDNotFound) { // it may not have joined yet
			return fmt.Errorf("wait for %s on %s: %w", group, topic, err)
		}
		behind := int64(0)
		ends.Each(func(e kadm.ListedOffset) {
			at, ok := committed.Lookup(topic, e.Partition)
			if !ok {
				behind += e.Offset
			} else if at.At < e.Offset {
				behind += e.Offset - at.At
			}
		})
		if behind == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s on %s, %d records behind: %w", group, topic, behind, context.Cause(ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
}
