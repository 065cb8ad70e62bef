package snapshots

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"
)

// GoodSession is what a model learns from of a session.
type GoodSession struct {
	SessionID, UserID string
	StartMs, EndMs    int64    // since epoch
	Items             []string // of its views, oldest first
	History           []string // items that the user had engaged with before, oldest first
	HistoryMs         []int64  // when; since epoch
	Good              bool
	Partition         int32 // of sessions.judged
	Offset            int64
}

// goodRow is a GoodSession as parquet-go reads it.
type goodRow struct {
	SessionID string    `parquet:"session_id"`
	UserID    string    `parquet:"user_id"`
	Start     time.Time `parquet:"start,timestamp(microsecond)"`
	End       time.Time `parquet:"end,timestamp(microsecond)"`
	Views     []struct {
		ItemID string `parquet:"item_id"`
	} `parquet:"views,list"`
	History []struct {
		ItemID string    `parquet:"item_id"`
		Time   time.Time `parquet:"time,timestamp(microsecond)"`
	} `parquet:"history,list"`
	Good      bool  `parquet:"good"`
	Partition int32 `parquet:"kafka_partition" since:"2"`
	Offset    int64 `parquet:"kafka_offset" since:"2"`
}

func (r *goodRow) session() GoodSession {
	g := GoodSession{
		SessionID: r.SessionID, UserID: r.UserID, StartMs: r.Start.UnixMilli(), EndMs: r.End.UnixMilli(), Good: r.Good,
		Partition: r.Partition, Offset: r.Offset,
	}
	for _, v := range r.Views {
		g.Items = append(g.Items, v.ItemID)
	}
	for _, h := range r.History {
		g.History, g.HistoryMs = append(g.History, h.ItemID), append(g.HistoryMs, h.Time.UnixMilli())
	}
	return g
}

// readGoodRows reads a file row by row, however its columns are laid out.
func readGoodRows(r io.ReaderAt, size int64, fn func([]GoodSession) error) error {
	return readRows(r, size, func(rows []goodRow) error {
		out := make([]GoodSession, len(rows))
		for i := range rows {
			out[i] = rows[i].session()
		}
		return fn(out)
	})
}

// ReadGood calls fn with the good sessions of each hour, in the order of hours, as [ReadHours] does; before, if not nil,
// leaves out those from an offset of their partition of sessions.judged on.
func ReadGood(ctx context.Context, s *Store, days Range, before map[int32]int64, damaged func(file string, err error) error, fn func([]GoodSession) error) error {
	read := func(r io.ReaderAt, size int64, fn func([]GoodSession) error) error {
		err := readGood(r, size, fn)
		if errors.Is(err, errOtherLayout) {
			return readGoodRows(r, size, fn)
		}
		return err
	}
	return readHours(ctx, s, TableSessions, days, read, damaged, func(rows []GoodSession) error {
		return fn(slices.DeleteFunc(rows, func(g GoodSession) bool { return !g.Good || before != nil && g.Offset >= before[g.Partition] }))
	})
}
