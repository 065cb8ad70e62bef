// Package snapshots writes sessions as Parquet for analysts: one row a session,
// its views nested, with the filters' verdict.
//
// # Exactly once
//
// A file's name says which records of sessions.judged it holds:
//
//	sessions/partition=0003/00000000000000000120-00000000000000000450.parquet
//
// is offsets 120 to 449 of partition 3. A file appears whole (it is written under
// a temporary name, synced, and renamed), and where to read on is what the names
// of the files say, not what the consumer group has committed. A crash between
// any two steps therefore neither loses a session nor writes it twice.
package snapshots

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/parquet-go/parquet-go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/internal/stream"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

// Group is the consumer group of the snapshot service.
const Group = "snapshot"

// Session is a row. The tags doc, unit and example are what docs/snapshots.md says of each column.
type Session struct {
	SessionID    string        `parquet:"session_id" doc:"from the user and the first view; the same however often it is computed" example:"fdee204a4f5fb030551938d8552932b5"`
	UserID       string        `parquet:"user_id,dict" doc:"the user, or the user's pseudonym; rows of a file are in its order, and it has a bloom filter" example:"u00042"`
	Start        time.Time     `parquet:"start,timestamp(millisecond)" unit:"UTC" doc:"time of the first view" example:"2026-01-01 00:00:00"`
	End          time.Time     `parquet:"end,timestamp(millisecond)" unit:"UTC" doc:"time of the last view" example:"2026-01-01 00:12:30"`
	Views        []View        `parquet:"views,list" doc:"the views, oldest first"`
	TotalWatchMs int64         `parquet:"total_watch_ms" unit:"ms" doc:"watch time of all views" example:"310500"`
	Likes        int32         `parquet:"likes" unit:"views" doc:"views that were liked" example:"2"`
	Follows      int32         `parquet:"follows" unit:"views" doc:"views after which the author was followed" example:"0"`
	Comments     int32         `parquet:"comments" unit:"views" doc:"views that were commented on" example:"0"`
	Shares       int32         `parquet:"shares" unit:"views" doc:"views that were shared" example:"1"`
	Dislikes     int32         `parquet:"dislikes" unit:"views" doc:"views that were disliked" example:"0"`
	ClosedBy     string        `parquet:"closed_by,dict" doc:"why the session ended: gap, size, age or limit" example:"gap"`
	History      []HistoryItem `parquet:"history,list" doc:"items that the user had engaged with before the start, oldest first"`
	Good         bool          `parquet:"good" doc:"whether every rule was passed" example:"true"`
	FailedRules  []string      `parquet:"failed_rules,list" doc:"rules that were not passed" example:"[min_views]"`
	RulesVersion string        `parquet:"rules_version,dict" doc:"version of the rules that judged" example:"default-1"`
}

// View is one view of a session.
type View struct {
	EventID           string    `parquet:"event_id" doc:"the view event's id, unique within its user" example:"e-7f3a"`
	ItemID            string    `parquet:"item_id,dict" doc:"the video; it has a bloom filter" example:"i00815"`
	Time              time.Time `parquet:"time,timestamp(millisecond)" unit:"UTC" doc:"when the view began" example:"2026-01-01 00:00:00"`
	WatchMs           int64     `parquet:"watch_ms" unit:"ms" doc:"how long it was watched; more than the duration if it ran again" example:"15200"`
	DurationMs        int64     `parquet:"duration_ms" unit:"ms" doc:"length of the video; 0: unknown" example:"21000"`
	Like              bool      `parquet:"like" doc:"liked" example:"true"`
	Follow            bool      `parquet:"follow" doc:"the author was followed" example:"false"`
	Comment           bool      `parquet:"comment" doc:"commented on" example:"false"`
	Share             bool      `parquet:"share" doc:"shared" example:"false"`
	Dislike           bool      `parquet:"dislike" doc:"disliked" example:"false"`
	Surface           string    `parquet:"surface,dict" doc:"where it was shown; empty: not said" example:"feed"`
	RecommendationID  string    `parquet:"recommendation_id" doc:"the recommender's answer that led to it; empty: none" example:"K7Q2..."`
	CheckpointVersion string    `parquet:"checkpoint_version,dict" doc:"the checkpoint that recommended it; empty: none" example:"000007-9f3ac1d2"`
}

// HistoryItem is an item that the user engaged with before the session.
type HistoryItem struct {
	ItemID string    `parquet:"item_id,dict" doc:"the video" example:"i00042"`
	Time   time.Time `parquet:"time,timestamp(millisecond)" unit:"UTC" doc:"when the engaging view began" example:"2025-12-31 20:00:00"`
}

func row(j *onerecv1.JudgedSession) Session {
	s := j.Session
	r := Session{
		SessionID: s.SessionId, UserID: s.UserId, Start: ms(s.StartMs), End: ms(s.EndMs), TotalWatchMs: s.TotalWatchMs,
		Likes: s.Likes, Follows: s.Follows, Comments: s.Comments, Shares: s.Shares, Dislikes: s.Dislikes,
		ClosedBy: strings.ToLower(strings.TrimPrefix(s.ClosedBy.String(), "CLOSED_BY_")),
		Good:     j.Verdict.GetGood(), FailedRules: j.Verdict.GetFailedRules(), RulesVersion: j.Verdict.GetRulesVersion(),
	}
	for _, v := range s.Views {
		r.Views = append(r.Views, View{
			EventID: v.EventId, ItemID: v.ItemId, Time: ms(v.EventTimeMs), WatchMs: v.WatchMs, DurationMs: v.DurationMs,
			Like: v.Like, Follow: v.Follow, Comment: v.Comment, Share: v.Share, Dislike: v.Dislike,
			Surface: v.Surface, RecommendationID: v.RecommendationId, CheckpointVersion: v.CheckpointVersion,
		})
	}
	for _, h := range s.History {
		r.History = append(r.History, HistoryItem{h.ItemId, ms(h.EventTimeMs)})
	}
	return r
}

func ms(t int64) time.Time { return time.UnixMilli(t).UTC() }

// Service writes what comes on sessions.judged.
type Service struct {
	Cluster stream.Cluster
	Dir     string
	MaxRows int           // a file has at most so many rows; also the limit of what waits in memory, by partition
	MaxAge  time.Duration // a row waits at most this long for its file
	Static  string        // name of a static member of the group (KIP-345); empty: a dynamic one
	Once    bool          // end when the sessions that there are now are written
	Log     *slog.Logger
	Metrics *Metrics
	OnReady func()

	write func(name string, rows []Session) error // writeFile, but for tests of crashes

	mu      sync.Mutex
	resumed map[int32]int64 // where each assigned partition is read from; set by the client's goroutine
}

// part is what waits for the next file of a partition.
type part struct {
	rows       []Session
	from, next int64 // offsets
	since      time.Time
}

// Run works until ctx ends, then writes what waits.
func (s *Service) Run(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Join(s.Dir, "sessions"), 0o755); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	if s.write == nil {
		s.write = writeFile
	}
	s.resumed = make(map[int32]int64)
	parts := make(map[int32]*part)
	var ends map[int32]stream.Span
	if s.Once {
		var err error
		if ends, err = s.Cluster.Spans(ctx, schemas.TopicJudgedSessions); err != nil {
			return fmt.Errorf("snapshot: %w", err)
		}
	}
	opts := []kgo.Opt{
		kgo.ConsumerGroup(Group),
		kgo.ConsumeTopics(schemas.TopicJudgedSessions),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(),
		kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(), // a partition never leaves between a poll and what is done with it
		kgo.AdjustFetchOffsetsFn(s.resume),
		kgo.OnPartitionsAssigned(func(context.Context, *kgo.Client, map[string][]int32) { s.OnReady() }),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, gone map[string][]int32) {
			for _, p := range gone[schemas.TopicJudgedSessions] {
				if err := s.flush(p, parts); err != nil {
					s.Log.Error("could not write a snapshot before giving its partition up; the next owner reads it again", "partition", p, "error", err)
				}
				delete(parts, p)
			}
		}),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, gone map[string][]int32) {
			for _, p := range gone[schemas.TopicJudgedSessions] {
				delete(parts, p) // another owner may be writing them already
			}
		}),
	}
	if s.Static != "" {
		opts = append(opts, kgo.InstanceID(s.Static))
	}
	cl, err := s.Cluster.Client(opts...)
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	defer cl.CloseAllowingRebalance()
	for {
		poll, cancel := context.WithTimeout(ctx, min(time.Second, s.MaxAge))
		fetches := cl.PollRecords(poll, 10_000)
		cancel()
		if ctx.Err() != nil {
			return s.flushAll(parts)
		}
		if err := s.take(ctx, cl, fetches, parts); err != nil {
			return fmt.Errorf("snapshot: %w", err)
		}
		if s.Once && s.reached(parts, ends) {
			return s.flushAll(parts)
		}
		cl.AllowRebalance()
	}
}

// flushAll writes what waits, while the partitions are still ours.
func (s *Service) flushAll(parts map[int32]*part) error {
	for _, n := range slices.Sorted(maps.Keys(parts)) {
		if err := s.flush(n, parts); err != nil {
			return fmt.Errorf("snapshot: %w", err)
		}
	}
	return nil
}

// reached reports whether everything before ends is in files or waits for one.
func (s *Service) reached(parts map[int32]*part, ends map[int32]stream.Span) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, span := range ends {
		at, ok := s.resumed[p]
		if parts[p] != nil {
			at, ok = parts[p].next, true
		}
		if span.From < span.To && (!ok || at < span.To) {
			return false
		}
	}
	return true
}

// take adds what was fetched and writes the files that are due.
func (s *Service) take(ctx context.Context, cl *kgo.Client, fetches kgo.Fetches, parts map[int32]*part) error {
	for _, e := range fetches.Errors() {
		if !errors.Is(e.Err, context.DeadlineExceeded) && !errors.Is(e.Err, context.Canceled) { // of the poll
			return fmt.Errorf("read topic %s partition %d: %w", e.Topic, e.Partition, e.Err)
		}
	}
	for r := range fetches.RecordsAll() {
		p := parts[r.Partition]
		if p == nil {
			p = &part{from: r.Offset}
			parts[r.Partition] = p
		}
		p.next = r.Offset + 1
		if r.Attrs.IsControl() {
			continue
		}
		j := new(onerecv1.JudgedSession)
		if err := proto.Unmarshal(r.Value, j); err != nil || j.Session == nil {
			return fmt.Errorf("topic %s partition %d offset %d is no JudgedSession (only filter may write there): %w", r.Topic, r.Partition, r.Offset, err)
		}
		if len(p.rows) == 0 {
			p.since = time.Now()
		}
		p.rows = append(p.rows, row(j))
		if len(p.rows) >= s.MaxRows {
			if err := s.flush(r.Partition, parts); err != nil {
				return err
			}
		}
	}
	for _, n := range slices.Sorted(maps.Keys(parts)) {
		if p := parts[n]; len(p.rows) > 0 && time.Since(p.since) >= s.MaxAge {
			if err := s.flush(n, parts); err != nil {
				return err
			}
		}
	}
	// For lag only; see the package comment.
	if err := cl.CommitUncommittedOffsets(ctx); err != nil && ctx.Err() == nil {
		s.Log.Warn("could not commit offsets; lag will look larger than it is", "error", err)
	}
	return nil
}

// flush writes what waits for partition n as a file.
func (s *Service) flush(n int32, parts map[int32]*part) error {
	p := parts[n]
	if p == nil || len(p.rows) == 0 {
		return nil
	}
	dir := filepath.Join(s.Dir, "sessions", fmt.Sprintf("partition=%04d", n))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	name := filepath.Join(dir, fmt.Sprintf("%020d-%020d.parquet", p.from, p.next))
	if err := s.write(name, p.rows); err != nil {
		return err
	}
	s.Metrics.file(len(p.rows))
	s.Log.Debug("wrote snapshot", "file", name, "sessions", len(p.rows))
	p.rows, p.from = p.rows[:0], p.next
	return nil
}

// tmpPrefix begins the names of files that are not whole yet.
const tmpPrefix = ".tmp-"

// writeFile makes a file appear whole or not at all.
func writeFile(name string, rows []Session) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), tmpPrefix+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write snapshot %s: %w", name, errors.Join(err, f.Close(), os.Remove(f.Name())))
		}
	}()
	slices.SortStableFunc(rows, func(a, b Session) int {
		return cmp.Or(cmp.Compare(a.UserID, b.UserID), a.Start.Compare(b.Start))
	})
	const bits = 10 // of a bloom filter, for each value: 1 in 100 is there in vain
	w := parquet.NewGenericWriter[Session](f, parquet.Compression(&parquet.Zstd), parquet.CreatedBy("onerec", "1", ""),
		parquet.SortingWriterConfig(parquet.SortingColumns(parquet.Ascending("user_id"), parquet.Ascending("start"))),
		parquet.BloomFilters(parquet.SplitBlockFilter(bits, "user_id"), parquet.SplitBlockFilter(bits, "views", "list", "element", "item_id")))
	if _, err := w.Write(rows); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	return f.Close()
}

// abandoned reports whether a file is what a process that was killed was writing. One that still writes
// is done long before.
func (s *Service) abandoned(f fs.DirEntry) bool {
	info, err := f.Info()
	return err == nil && strings.HasPrefix(f.Name(), tmpPrefix) && time.Since(info.ModTime()) > time.Hour
}

// resume sets where each assigned partition is read from: behind its last file.
func (s *Service) resume(_ context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	for n := range offsets[schemas.TopicJudgedSessions] {
		dir := filepath.Join(s.Dir, "sessions", fmt.Sprintf("partition=%04d", n))
		files, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		at := kgo.NewOffset().AtStart()
		var next int64
		for _, f := range files {
			if s.abandoned(f) {
				if err := os.Remove(filepath.Join(dir, f.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return nil, err
				}
			}
			var from, to int64
			if _, err := fmt.Sscanf(f.Name(), "%d-%d.parquet", &from, &to); err == nil && to > next {
				next = to
				at = kgo.NewOffset().At(to)
			}
		}
		offsets[schemas.TopicJudgedSessions][n] = at
		s.mu.Lock()
		s.resumed[n] = next
		s.mu.Unlock()
	}
	return offsets, nil
}

// ReadAll calls fn with every session of the snapshots in dir, file after file,
// and returns fn's first error.
func ReadAll(dir string, fn func(Session) error) error {
	return filepath.WalkDir(filepath.Join(dir, "sessions"), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() || !strings.HasSuffix(path, ".parquet") {
			return nil
		}
		if err := readFile(path, fn); err != nil {
			return fmt.Errorf("read snapshot %s: %w", path, err)
		}
		return nil
	})
}

func readFile(path string, fn func(Session) error) (err error) {
	defer func() { // parquet-go panics on some malformed files
		if p := recover(); p != nil {
			err = fmt.Errorf("malformed Parquet: %v", p)
		}
	}()
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	r := parquet.NewGenericReader[Session](f)
	defer r.Close()
	rows := make([]Session, 256)
	for {
		clear(rows)
		n, err := r.Read(rows)
		for _, s := range rows[:n] {
			if err := fn(s); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Metrics are the service's Prometheus metrics. A nil *Metrics counts nothing.
type Metrics struct{ files, sessions prometheus.Counter }

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		files:    prometheus.NewCounter(prometheus.CounterOpts{Name: "onerec_snapshot_files_total", Help: "Parquet files written."}),
		sessions: prometheus.NewCounter(prometheus.CounterOpts{Name: "onerec_snapshot_sessions_total", Help: "Sessions written."}),
	}
	reg.MustRegister(m.files, m.sessions)
	return m
}

func (m *Metrics) file(rows int) {
	if m != nil {
		m.files.Inc()
		m.sessions.Add(float64(rows))
	}
}
