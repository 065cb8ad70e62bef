package snapshots

import (
	"context"
	"slices"
	"time"
)

// GoodSession is what a model learns from of a good session.
type GoodSession struct {
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
	Partition int32 `parquet:"kafka_partition"`
	Offset    int64 `parquet:"kafka_offset"`
}

// ReadGood calls fn with the good sessions of each hour, in the order of hours, as [ReadHours] does; before, if not nil,
// leaves out those from an offset of their partition of sessions.judged on.
func ReadGood(ctx context.Context, s *Store, days Range, before map[int32]int64, damaged func(file string, err error) error, fn func([]GoodSession) error) error {
	return ReadHours(ctx, s, TableSessions, days, damaged, func(rows []GoodSession) error {
		return fn(slices.DeleteFunc(rows, func(g GoodSession) bool { return !g.Good || before != nil && g.Offset >= before[g.Partition] }))
	})
}
