// Package task holds the plain data and the one interface that lie between the pure machine that computes (a task,
// package processor) and the shell that feeds it and commits what it computed (package internal/engine, or the
// broker-less driver of package processortest).
//
// Nothing here reads a clock, starts a goroutine or does I/O.
package task

import (
	"context"
	"fmt"
	"time"

	"tailrace.dev/state"
)

// ID names a task: one partition of one sub-topology.
type ID struct {
	// Sub is the name of the sub-topology: that of its smallest declared source topic.
	Sub string
	// Partition is the partition that the task owns of each input topic of the sub-topology, and of its changelogs.
	Partition int32
}

// String returns "sub/partition", as used in logs, errors and state directories.
func (id ID) String() string { return fmt.Sprintf("%s/%d", id.Sub, id.Partition) }

// Header is one record header.
type Header struct {
	Key   string
	Value []byte
}

// Record is a record as fetched, before it is decoded. Key and Value are nil when absent; their bytes are immutable
// and are never reused, so a decoder may keep a reference to them.
type Record struct {
	Topic      string
	Partition  int32
	Offset     int64
	TimeMillis int64
	Key, Value []byte
	Headers    []Header
}

// AnyPartition as Output.Partition lets the shell choose the partition by Kafka's default hash of the key.
const AnyPartition int32 = -1

// Output is a record to be produced. Its bytes are owned by the receiver and never written again.
type Output struct {
	Topic     string
	Partition int32
	// Choose, if set, chooses the partition of as many as there are, in place of the hash of the key.
	Choose     func(partitions int) int
	TimeMillis int64
	Key, Value []byte // nil: none
	Headers    []Header
}

// Change is a changelog record: the newest row of a key of a store since the last boundary.
type Change struct {
	// Store is the index of the store in the task's list of stores (the order of the sub-topology's Stores).
	Store int
	// Key is the full row key, kind byte included (state.KindRow, state.KindMeta).
	Key []byte
	// Row is the encoded row, or nil where the row was deleted.
	Row []byte
}

// Offset is the position of a task in one of its input topics: the next offset to process.
type Offset struct {
	Topic string
	Next  int64
}

// Batch is all that a task computed between two boundaries, less the outputs, which Machine.Outputs hands out earlier.
type Batch struct {
	// Changes has one entry for each row that changed, whatever happened in between. The slice is valid until Commit or
	// Abort; the bytes stay valid.
	Changes []Change
	// Offsets has one entry for each input topic of the task that a position is known for, moved or not: each
	// transaction carries them, because they are its generation check.
	Offsets []Offset
	// Metadata goes beside each committed offset: the stream time of the task, of fixed size.
	Metadata string
	// Empty tells that no output was handed out and no row changed since the last boundary: the offsets can be
	// committed without a transaction.
	Empty bool
	// Processed counts the records processed since the last boundary.
	Processed int
}

// Call is a call to something outside that a committed record waits for. The shell makes it, in a goroutine of its own,
// and hands the result to Machine.Complete; a shell that stops first drops it, and the record's next owner makes it again.
type Call struct {
	// Operator names what makes the call, by its store, and Number tells the call from all others of the operator in
	// the task.
	Operator string
	Number   int64
	// ID is the call's idempotency key.
	ID string
	// Limit bounds how many calls of the operator are under way in the process at the same time; 0: no bound of its own.
	Limit int
	// Timeout bounds the call.
	Timeout time.Duration
	// Do makes the call. It may run in any goroutine, and does not panic.
	Do func(ctx context.Context) Result
}

// Result is what came of a Call.
type Result struct {
	Operator string
	Number   int64
	// Value is what the call returned, for the operator to know the type of.
	Value any
	Err   error
}

// DropCounter is a Machine that counts the records which its operators left out.
type DropCounter interface {
	// Drops returns how many were left out since the machine was made, for each reason that the shell has names for, in
	// the same order. The slice is valid until the next call of the machine.
	Drops() []int64
}

// Machine is a task as the shell drives it. It is single-threaded: the caller serialises all calls.
//
// The life of a machine: Start once; then any number of Enqueue, Step and Punctuate; then Boundary, whose batch the
// caller makes durable and answers with Commit or Abort; and again. Close ends it.
type Machine interface {
	// ID returns the task's name.
	ID() ID

	// Start makes the task ready to process: it instantiates the processors of the topology. metadata is what was
	// committed with the offsets by the last owner of the task ("" for none) and restores the stream time.
	Start(committed []Offset, metadata string, wallMillis int64) error

	// Enqueue appends fetched records of one input topic, in offset order. The slice is not kept.
	Enqueue(topic string, records []Record)
	// Position tells that everything of the topic below next has been enqueued, or holds no record (transaction
	// markers, compacted offsets), and that the broker is known to hold records up to end (exclusive).
	Position(topic string, next, end int64)
	// Queued returns how many records of the topic wait, in records and in bytes of key and value.
	Queued(topic string) (records int, bytes int)

	// Step processes up to limit records, each time the one with the lowest timestamp among the heads of the input
	// topics. It returns how many records it processed: fewer than limit when it has to wait for a partition that
	// is empty (retryMillis > 0 tells after how many milliseconds of wall clock it would go on without it; 0: only
	// new input changes that). An error is fatal for the batch: the caller must Abort.
	Step(limit int, wallMillis int64) (n int, retryMillis int64, err error)
	// Punctuate runs the wall-clock timers that are due, and returns the time of the next one (0: none).
	Punctuate(wallMillis int64) (nextMillis int64, err error)
	// Outputs hands out what was forwarded to topics since the last call, in order. The slice is valid until the
	// next Step, Punctuate or Complete; the outputs' bytes stay valid.
	Outputs() []Output

	// Boundary ends the batch. Nothing else but Commit or Abort may follow.
	Boundary() Batch
	// Commit tells that the batch of the last Boundary is durable: its rows join the committed rows. positions has
	// one entry for each store of the task, in order: the changelog position that holds now, or zero where the batch
	// wrote nothing to the store's changelog and the position is as it was.
	Commit(positions []state.Position, wallMillis int64)
	// Abort drops everything computed since the last Commit, the queued records, the timers and the processors'
	// instances; the task starts afresh from the committed rows, as Start does. The caller rewinds the input to the
	// committed offsets that it passes.
	Abort(committed []Offset, metadata string, wallMillis int64) error

	// Calls hands out the calls that committed records wait for, and that were not handed out before. It is called after
	// Commit, before anything else. Each is answered by Complete, or dropped with the machine: Abort does not take
	// it back. An error is that of a read.
	Calls(wallMillis int64) ([]Call, error)
	// Complete processes the results of calls, as Step does records; those of calls that it does not know are ignored. It
	// keeps what it cannot process yet for a later Step or Complete. Results of a batch that is aborted count again.
	Complete(results []Result, wallMillis int64) error

	// Layers returns the rows of the task that are not yet in its backend: see state.Layers for flushing.
	Layers() *state.Layers

	// Close releases the processors. It does not close the backend and loses what is not flushed.
	Close() error
}
