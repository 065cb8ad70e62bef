package sessionizer

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/internal/hugepages"
	"onerec/internal/stream"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

// PartitionKey is the changelog key of a partition's own state. No user id holds a
// zero byte (a rule of ingest), and no addition has a number as great as 'p'.
const PartitionKey = "\x00partition"

// maxTraces bounds the traces that wait for their session.
const maxTraces = 10_000

// Stage is the sessionizer as a stage of the stream: one [Core] a partition,
// its state in the changelog [schemas.TopicSessionState].
type Stage struct {
	cfg  Config
	idle time.Duration
	now  func() time.Time

	cores    map[int32]*Core
	lastSeen map[int32]time.Time        // wall clock of the partition's newest record
	ahead    [][]byte                   // scratch of Process
	traces   map[string]context.Context // by user: that of the newest view that is traced, until its session closes

	views    *prometheus.CounterVec
	sessions prometheus.Counter
	users    prometheus.Gauge
	evicted  prometheus.Counter
}

// NewStage returns the stage. A partition on which nothing came for idle has
// its watermark move with the wall clock, so that its last sessions close. reg
// may be nil.
func NewStage(cfg Config, idle time.Duration, reg prometheus.Registerer) *Stage {
	s := &Stage{
		cfg: cfg, idle: idle, now: time.Now, cores: make(map[int32]*Core), lastSeen: make(map[int32]time.Time), traces: make(map[string]context.Context),
		views: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "onerec_sessionizer_views_total", Help: "Views by outcome: accepted, duplicate or late.",
		}, []string{"outcome"}),
		sessions: prometheus.NewCounter(prometheus.CounterOpts{Name: "onerec_sessionizer_sessions_closed_total", Help: "Sessions closed."}),
		users:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "onerec_sessionizer_users", Help: "Users whose open session or history is in memory."}),
		evicted:  prometheus.NewCounter(prometheus.CounterOpts{Name: "onerec_sessionizer_users_evicted_total", Help: "Users closed and forgotten early because a partition had reached its limit; raise --session-max-users or add partitions."}),
	}
	if reg != nil {
		reg.MustRegister(s.views, s.sessions, s.users, s.evicted)
	}
	return s
}

// Changelog implements [stream.StatefulStage].
func (s *Stage) Changelog() string { return schemas.TopicSessionState }

// Process implements [stream.Stage].
func (s *Stage) Process(_ context.Context, partition int32, records []*kgo.Record, out *stream.Emitter) error {
	core := s.cores[partition]
	if core == nil {
		return fmt.Errorf("records of partition %d before its state was restored", partition)
	}
	now := s.now()
	s.lastSeen[partition] = now
	core.SetCeiling(now.Add(s.cfg.MaxSkew).UnixMilli())
	evicted := core.Evicted()
	var outcomes [Late + 1]int
	for i, r := range records {
		if i%LookAhead == 0 {
			s.ahead = s.ahead[:0]
			for _, next := range records[i:min(i+LookAhead, len(records))] {
				s.ahead = append(s.ahead, next.Key)
			}
			core.Preload(s.ahead)
		}
		if watermark, ok, err := watermarkOf(r); err != nil {
			return err
		} else if ok {
			core.Advance(watermark)
			continue
		}
		outcome, err := core.Add(r.Value)
		if err != nil {
			return fmt.Errorf("%s partition %d offset %d is no View (only ingest may write there): %w", r.Topic, r.Partition, r.Offset, err)
		}
		outcomes[outcome]++
		trace := stream.Trace(r)
		if trace != nil && outcome == Accepted && len(s.traces) < maxTraces {
			s.traces[string(r.Key)] = trace
		}
		if outcome == Late {
			out.Cause(trace)
			out.Emit(&kgo.Record{Topic: schemas.TopicLateViews, Partition: partition, Key: r.Key, Value: r.Value})
		}
	}
	for outcome, label := range [...]string{Accepted: "accepted", Duplicate: "duplicate", Late: "late"} {
		s.views.WithLabelValues(label).Add(float64(outcomes[outcome]))
	}
	out.Event(core.state.MaxEventTimeMs)
	s.evicted.Add(float64(core.Evicted() - evicted))
	return s.emit(partition, core, out)
}

// Tick implements [stream.StatefulStage].
func (s *Stage) Tick(partition int32, now time.Time, out *stream.Emitter) error {
	core := s.cores[partition]
	quiet := now.Sub(s.lastSeen[partition])
	if quiet < s.idle || core.state.MaxEventTimeMs == 0 {
		return nil
	}
	core.Advance(core.state.MaxEventTimeMs + quiet.Milliseconds() - core.lateness)
	if !core.Changed() {
		return nil
	}
	return s.emit(partition, core, out)
}

// emit writes closed sessions and the changes of state.
func (s *Stage) emit(partition int32, core *Core, out *stream.Emitter) error {
	for _, session := range core.TakeClosed() {
		s.sessions.Inc()
		out.Cause(s.traces[string(session.Key)]) // a map without entries costs nothing
		delete(s.traces, string(session.Key))
		out.Emit(&kgo.Record{Topic: schemas.TopicSessions, Partition: partition, Key: session.Key, Value: session.Value})
	}
	out.Cause(context.Background()) // state belongs to no trace
	for _, change := range core.TakeChanges() {
		out.Emit(&kgo.Record{Topic: schemas.TopicSessionState, Partition: partition, Key: change.Key, Value: change.Value})
	}
	users := 0
	for _, c := range s.cores {
		users += c.OpenUsers()
	}
	s.users.Set(float64(users))
	return out.EmitProto(schemas.TopicSessionState, partition, PartitionKey, &core.state)
}

// Restore implements [stream.StatefulStage].
func (s *Stage) Restore(partition int32, newest []*kgo.Record) error {
	core := New(s.cfg)
	users := make([]Keyed, 0, len(newest))
	for _, r := range newest {
		if string(r.Key) == PartitionKey {
			state := new(onerecv1.PartitionState)
			if err := proto.Unmarshal(r.Value, state); err != nil {
				return fmt.Errorf("offset %d is no PartitionState: %w", r.Offset, err)
			}
			core.RestorePartition(state)
			continue
		}
		users = append(users, Keyed{r.Key, r.Value})
	}
	if err := core.Restore(users); err != nil {
		return err
	}
	s.cores[partition] = core
	s.lastSeen[partition] = s.now()
	return nil
}

// Recycle implements [stream.Recycler].
func (s *Stage) Recycle() {
	hugepages.Heap()
	for _, core := range s.cores {
		core.Recycle()
	}
}

// Drop implements [stream.StatefulStage].
func (s *Stage) Drop(partition int32) {
	delete(s.cores, partition)
	delete(s.lastSeen, partition)
	clear(s.traces) // also other partitions', which nobody misses much
}

// watermarkOf reads a control record of the views topic.
func watermarkOf(r *kgo.Record) (ms int64, ok bool, err error) {
	for _, h := range r.Headers {
		if h.Key == schemas.HeaderWatermark {
			ms, err = strconv.ParseInt(string(h.Value), 10, 64)
			if err != nil {
				return 0, false, fmt.Errorf("%s partition %d offset %d: header %s is %q, not milliseconds", r.Topic, r.Partition, r.Offset, h.Key, h.Value)
			}
			return ms, true, nil
		}
	}
	return 0, false, nil
}

// Totals are the counters of every partition since the topics began, as the
// changelog holds them.
func Totals(ctx context.Context, c stream.Cluster) (*onerecv1.PartitionState, error) {
	newest := make(map[int32]*onerecv1.PartitionState)
	err := c.ReadTopic(ctx, schemas.TopicSessionState, func(r *kgo.Record) error {
		if string(r.Key) != PartitionKey {
			return nil
		}
		state := new(onerecv1.PartitionState)
		if err := proto.Unmarshal(r.Value, state); err != nil {
			return fmt.Errorf("%s partition %d offset %d is no PartitionState: %w", r.Topic, r.Partition, r.Offset, err)
		}
		newest[r.Partition] = state
		return nil
	})
	if err != nil {
		return nil, err
	}
	sum := new(onerecv1.PartitionState)
	for _, s := range newest {
		sum.Accepted += s.Accepted
		sum.Duplicates += s.Duplicates
		sum.Late += s.Late
		sum.Closed += s.Closed
	}
	return sum, nil
}
