// Package stream is the one consume, transform, produce loop that every stage
// of the pipeline runs in.
//
// A [Stage] gets records and emits records; a Kafka transaction holds what it
// emitted together with the offsets of what it read, so a crash between any two
// instructions either leaves both or neither. A stage with memory (a
// [StatefulStage]) emits its state's changes to a compacted changelog topic in
// that same transaction. When a transaction does not commit, because of a
// rebalance, a broker error or a crash, the memory is thrown away and read back
// from the changelog: memory never knows more than the log.
//
// # If you debug a rebalance
//
// The group's callbacks only note what changed; [Loop.Run] acts on the notes
// between a poll and the transaction that follows it, so a stage is never called
// from two goroutines. A partition that went away and came back between two
// polls is dropped and restored, since another instance may have moved on with
// it. Records polled before a revocation may still be processed after it; the
// transaction then aborts, which GroupTransactSession guarantees.
//
// # Restoring
//
// A restore reads the changelog partition with read_committed up to the high
// watermark that it had at the start, control records included. The offsets that
// the group hands out are stable (KIP-447), so the previous owner's transaction
// is decided; waiting for the high watermark also waits until its markers are
// written.
package stream
