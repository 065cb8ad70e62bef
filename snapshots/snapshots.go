// Package snapshots writes what the pipeline has seen as tables of Parquet files, for analysts and for training
// from history: sessions with their views and the filters' verdict, and dead letters.
//
// # Layout
//
// A table is a Delta Lake table in a folder or a bucket (package [onerec/snapshots/delta]):
//
//	sessions/date=2026-01-01/hour=05/p0003-00000000000000000120-00000000000000000450-5KQ….parquet
//	sessions/_delta_log/00000000000000000007.json
//
// The file holds sessions that ended in that hour, from offsets 120 to 449 of partition 3 of sessions.judged.
// The log says which files are the table. Engines that know Delta Lake read it; others are told by
// "onerec snapshot sql", or read the folders as they are, as long as nothing was compacted.
//
// # Exactly once
//
// The files of a flush, one or more for each hour, become part of the table by one commit, which also says where
// to read on. A commit is one object that nobody else can write, so a crash between any two steps neither loses
// a session nor has it twice. Who takes a partition over says so in the log first; whoever had it before can't
// commit any more, however late it wakes up. The files that it had begun are then removed (an intent, written
// before them, names them), so that readers of the folders don't find their rows twice either.
package snapshots
