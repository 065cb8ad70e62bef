package snapshots

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"onerec/snapshots/delta"
)

// flushAll writes what waits, while the partitions are still ours.
func (w *writer) flushAll(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for tp := range w.parts {
		if err := w.flush(ctx, tp); err != nil {
			return err
		}
	}
	return nil
}

// lastFlush is the time for what waits when the service is asked to stop: after a backfill of weeks it is hundreds of files. A
// process that is killed before loses nothing, the next one reads it again.
const lastFlush = 2 * time.Minute

// parallel is how many files are written at a time: a bucket answers slowly.
const parallel = 4

// flush writes what waits of a partition as files, one or more for each hour, and commits all of them together
// with where to read on.
func (w *writer) flush(ctx context.Context, tp topicPartition) (err error) {
	p := w.parts[tp]
	if p == nil || len(p.rows) == 0 {
		return nil
	}
	if w.failed != nil {
		return w.failed
	}
	defer func() { w.failed = err }()
	f := w.feeds[tp.topic]
	slices.SortFunc(p.rows, inOrder)
	files := w.split(tp, p)
	left := intent{}
	for _, file := range files {
		left.Files = append(left.Files, file.name)
	}
	text, err := json.Marshal(left)
	if err != nil {
		return err
	}
	if err := w.Store.bucket.WriteAll(ctx, path.Join(f.table, intentKey(tp.partition, p.owner)), text, nil); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	from := span{tp.topic, tp.partition, p.from, p.next}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, file := range files {
		g.Go(func() (err error) {
			file.size, err = f.write(gctx, w.Store, file.name, from, file.rows)
			return err
		})
	}
	err = g.Wait()
	keys := make([]string, len(files))
	size := int64(0)
	for i, file := range files {
		keys[i] = path.Join(f.table, file.name)
		size += file.size
	}
	if err == nil {
		err = w.Store.bucket.Sync(keys...)
	}
	committed := false
	if err == nil {
		err = w.commit(ctx, tp, p, files)
		committed = !errors.Is(err, errFenced) // or nobody knows
	}
	if err != nil {
		for _, key := range keys {
			if !committed {
				_ = w.remove(context.WithoutCancel(ctx), key) // else the next owner does it
			}
		}
		return fmt.Errorf("write snapshot: %w", err)
	}
	w.Metrics.wrote(f.table, len(files), len(p.rows), size)
	w.Log.Debug("wrote snapshot", "partition", tp.app(), "from", p.from, "next", p.next, "files", len(files), "rows", len(p.rows), "bytes", size)
	// A file of few rows is mostly what every file has.
	const enough = 1 << 20
	if p.bytes >= enough {
		w.ratio[tp.topic] = float64(size) / float64(p.bytes)
	}
	w.held -= p.bytes
	clear(p.rows)
	p.rows, p.bytes, p.from, p.committed = p.rows[:0], 0, p.next, p.next
	return nil
}

// file is one that is about to be written.
type file struct {
	name   string
	values map[string]string // of the folder
	rows   []held
	size   int64
}

// split divides sorted rows into files: by hour, and where an hour has too many for the size.
func (w *writer) split(tp topicPartition, p *part) (out []*file) {
	rows := p.rows
	for len(rows) > 0 {
		n, bytes := 0, 0
		for n < len(rows) && rows[n].hour == rows[0].hour && float64(bytes)*w.ratio[tp.topic] < float64(w.Size) {
			bytes += len(rows[n].Value)
			n++
		}
		dir, values := folder(rows[0].hour)
		out = append(out, &file{name: span{tp.topic, tp.partition, p.from, p.next}.file(dir), values: values, rows: rows[:n]})
		rows = rows[n:]
	}
	return out
}

// commit makes files part of the table, and everything before p.next done.
func (w *writer) commit(ctx context.Context, tp topicPartition, p *part, files []*file) error {
	now := time.Now()
	return w.tables[tp.topic].Commit(ctx, "STREAMING UPDATE", func(s *delta.State) ([]delta.Action, error) {
		if s.Apps[tp.owner()] != p.owner {
			return nil, fmt.Errorf("%w: %s", errFenced, tp.app())
		}
		actions, err := w.feeds[tp.topic].create(s, now)
		if err != nil {
			return nil, err
		}
		actions = append(actions, delta.Action{Txn: &delta.Txn{AppID: tp.app(), Version: p.next, LastUpdated: now.UnixMilli()}})
		for _, file := range files {
			stats, err := json.Marshal(statsOf(file.rows))
			if err != nil {
				return nil, err
			}
			actions = append(actions, delta.Action{Add: &delta.Add{
				Path: file.name, PartitionValues: file.values, Size: file.size, ModificationTime: now.UnixMilli(), DataChange: true, Stats: string(stats),
			}})
		}
		return actions, nil
	})
}

// statsOf lets engines pass over files that hold nothing of what is asked for.
func statsOf(rows []held) delta.Stats {
	first, last := rows[0].start, rows[0].start
	for _, r := range rows {
		first, last = min(first, r.start), max(last, r.start)
	}
	const layout = "2006-01-02T15:04:05.000Z"
	column, users := "start", [2]string{rows[0].user, rows[len(rows)-1].user}
	s := delta.Stats{NumRecords: int64(len(rows)), MinValues: map[string]any{}, MaxValues: map[string]any{}, NullCount: map[string]int64{}}
	if users == [2]string{} { // dead letters are of nobody
		column = "time"
	} else if strings.ToValidUTF8(users[0]+users[1], "") == users[0]+users[1] {
		s.MinValues["user_id"], s.MaxValues["user_id"], s.NullCount["user_id"] = users[0], users[1], 0
	}
	s.MinValues[column], s.MaxValues[column], s.NullCount[column] = ms(first).Format(layout), ms(last).Format(layout), 0
	return s
}
