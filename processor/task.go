package processor

import (
	"encoding/hex"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"tailrace.dev/internal/task"
	"tailrace.dev/state"
)

// Task is one partition of a sub-topology at work: a single-threaded machine. Records go in by Enqueue, Step processes
// them, Outputs and Boundary hand out what came of it, and Commit or Abort say whether that became durable. It reads
// no clock, starts no goroutine and does no I/O but reads of its backend: the same calls give the same results.
//
// App and processortest drive tasks; programs have no need to.
type Task struct {
	id     TaskID
	app    string
	sub    *subTopology
	opts   TaskOptions
	layers *state.Layers

	inputs     []*input
	byTopic    map[string]*input
	processed  int
	outputs    []task.Output
	taken      bool          // outputs were handed out, and go with the next call
	emitted    bool          // an output was handed out since the last boundary
	changes    []task.Change // of the last boundary; kept for its memory
	arena      arena
	streamTime int64 // Unix milliseconds, -1 before the first record
	timers     timers
	closers    []closer

	waiters  []waiter             // operators of records that wait
	underway map[string]*underway // by store
	answers  []task.Result        // of calls, to be processed
	applied  []task.Result        // processed since the last boundary

	memo   map[any]any
	at     *node
	record *task.Record // in process; nil inside a timer
	now    int64        // time for writes: the record's, or the timer's
	wall   int64        // wall clock of the call in progress

	unlogged []bool // by store: it follows a topic and so has no changelog; nil: none does

	drops [dropReasons]int64
}

var _ task.Machine = (*Task)(nil)

// TaskOptions is how a task treats its input.
type TaskOptions struct {
	// OnDecodeError and OnProcessError say what becomes of bad records.
	OnDecodeError, OnProcessError ErrorPolicy
	// MaxTaskIdle is how long to wait for an input partition that is empty, so that records of all inputs come in
	// the order of their times: 0 waits only for what the broker is known to have, a negative value never waits.
	// (Kafka Streams: max.task.idle.ms, KIP-353, KIP-695.)
	MaxTaskIdle time.Duration
	// Wrapper runs around every operator; it may be nil.
	Wrapper Wrapper
	// SilentEffects makes no calls for stream.Gateway: their effects count as made.
	SilentEffects bool
	// Replicas are the topology's global tables, by the names of their stores.
	Replicas map[string]*state.Replica
	// MaxRecordBytes bounds what can be produced, as Config.MaxRecordBytes; 0 is no bound.
	MaxRecordBytes int
	// OnSkipped is called for each record that a policy left out; it may be nil.
	OnSkipped func(*TaskError)
}

// The bounds of waiting for an input that is empty though it should not be: one of which nothing is known yet, and one
// of which the broker is known to have more. Beyond them the task goes on without it.
const (
	unknownInputWaitMillis = 1_000
	laggingInputWaitMillis = 10_000
)

// lack says why an input has no record to process. The task waits for each anew.
type lack int

const (
	lackNothing lack = iota // records are queued
	lackUnknown             // what the broker has is not known yet
	lackFetched             // the broker has more than was fetched
	lackMore                // everything that the broker has was processed
)

// closer is what an operator registered to be called at the end.
type closer struct {
	at *node
	f  func() error
}

// input is one input topic of a task.
type input struct {
	topic   string // on the broker
	node    *node
	source  *source
	queue   []task.Record
	head    int
	bytes   int
	next    int64 // next offset to process; -1 unknown
	fetched int64 // everything below is enqueued; -1 unknown
	end     int64 // the broker is known to have records up to here; -1 unknown
	seen    int64 // the largest time of its records; -1 none
	timed   bool  // the time of the head has been found
	headErr error // what went wrong in finding it
	skip    bool  // the head is to be left out, for want of a time
	lack    lack  // why it was empty when it was last looked at
	since   int64 // the wall clock when that began
}

func (in *input) queued() int { return len(in.queue) - in.head }

func (in *input) lacks() lack {
	switch {
	case in.queued() > 0:
		return lackNothing
	case in.end < 0 || in.fetched < 0:
		return lackUnknown
	case in.fetched < in.end:
		return lackFetched
	default:
		return lackMore
	}
}

// NewTask makes a task of the application app over a backend whose rows are restored. id.Sub must name a sub-topology of
// t. The task is not usable before Start.
func (t *Topology) NewTask(app string, id TaskID, backend state.Backend, opts TaskOptions) (*Task, error) {
	sub := t.sub(id.Sub)
	if sub == nil {
		return nil, fmt.Errorf("processor: the topology has no sub-topology %q", id.Sub)
	}
	layers, err := state.NewLayers(backend, sub.stores)
	if err != nil {
		return nil, err
	}
	tk := &Task{id: id, app: app, sub: sub, opts: opts, layers: layers, byTopic: make(map[string]*input)}
	for _, src := range sub.sources {
		in := &input{topic: src.brokerTopic(app), node: src, next: -1, fetched: -1, end: -1}
		tk.inputs = append(tk.inputs, in)
		tk.byTopic[in.topic] = in
	}
	tk.followStores()
	tk.limitRows()
	return tk, nil
}

// ID implements task.Machine.
func (t *Task) ID() TaskID { return t.id }

// Layers implements task.Machine.
func (t *Task) Layers() *state.Layers { return t.layers }

// StreamTime returns the highest record time that the task has seen, and whether it has seen any.
func (t *Task) StreamTime() (time.Time, bool) {
	return time.UnixMilli(t.streamTime).UTC(), t.streamTime >= 0
}

// Dropped returns how many records operators left out for a reason since the task was made.
func (t *Task) Dropped(reason DropReason) int64 { return t.drops[reason] }

// Drops implements task.DropCounter, in the order of the reasons.
func (t *Task) Drops() []int64 { return t.drops[:] }

// Drop counts a record that an operator leaves out.
func (t *Task) Drop(reason DropReason) { t.drops[reason]++ }

// Start implements task.Machine: it makes the processors.
func (t *Task) Start(committed []task.Offset, metadata string, wallMillis int64) error {
	t.streamTime = parseMetadata(metadata)
	t.wall = wallMillis
	t.memo = make(map[any]any)
	t.timers = timers{}
	t.closers, t.waiters = nil, nil
	for _, in := range t.inputs {
		in.queue, in.head, in.bytes = nil, 0, 0
		in.next, in.fetched, in.end = -1, -1, -1
		in.lack, in.since = lackNothing, 0
		in.seen, in.timed = t.streamTime, false
	}
	for _, o := range committed {
		if in := t.byTopic[o.Topic]; in != nil {
			in.next, in.fetched = o.Next, o.Next
		}
	}
	return t.call("start", nil, func() error {
		for _, in := range t.inputs {
			s, err := in.node.open(t)
			if err != nil {
				return err
			}
			in.source = s
		}
		return nil
	})
}

// call runs a user's code outside of a record, and turns a panic into an error. what names the call.
func (t *Task) call(what string, at *node, f func() error) (err error) {
	t.at = at
	defer func() {
		if p := recover(); p != nil {
			err = &panicError{p, debug.Stack()}
		}
		if err != nil {
			err = t.fail(what, err)
		}
	}()
	return f()
}

// fail says where a failure happened. what names the call, if it was not that of a record.
func (t *Task) fail(what string, err error) *TaskError {
	e := &TaskError{Task: t.id, Operator: what, Err: err}
	if t.record != nil {
		e.Topic, e.Partition, e.Offset = t.record.Topic, t.record.Partition, t.record.Offset
	}
	if t.at != nil {
		if what != "" {
			e.Operator += " of "
		}
		e.Operator += t.at.label + " (" + t.at.caller + ")"
	}
	if !errors.Is(err, ErrDecode) && !errors.Is(err, ErrProcess) {
		e.Err = &processError{err}
	}
	return e
}

// Enqueue implements task.Machine.
func (t *Task) Enqueue(topic string, records []task.Record) {
	in := t.byTopic[topic]
	if in == nil || len(records) == 0 {
		return
	}
	if in.head > 0 && len(in.queue)+len(records) > cap(in.queue) {
		n := copy(in.queue, in.queue[in.head:])
		clear(in.queue[n:])
		in.queue, in.head = in.queue[:n], 0
	}
	in.queue = append(in.queue, records...)
	for i := range records {
		in.bytes += len(records[i].Key) + len(records[i].Value)
	}
	in.fetched = max(in.fetched, records[len(records)-1].Offset+1)
	in.end = max(in.end, in.fetched)
}

// Position implements task.Machine.
func (t *Task) Position(topic string, next, end int64) {
	if in := t.byTopic[topic]; in != nil {
		in.fetched = max(in.fetched, next)
		in.end = max(in.end, end)
	}
}

// Queued implements task.Machine.
func (t *Task) Queued(topic string) (records, bytes int) {
	in := t.byTopic[topic]
	if in == nil {
		return 0, 0
	}
	return in.queued(), in.bytes
}

// Step implements task.Machine.
func (t *Task) Step(limit int, wallMillis int64) (n int, retryMillis int64, err error) {
	t.release()
	t.wall = wallMillis
	if err := t.serve(); err != nil {
		return 0, 0, err
	}
	for n < limit {
		in, retry := t.choose(wallMillis)
		if in == nil || len(t.waiters) > 0 && t.blocked(in.node) {
			return n, retry, nil
		}
		raw := &in.queue[in.head]
		if err := t.process(in, raw); err != nil {
			return n, 0, err
		}
		in.seen, in.timed = max(in.seen, raw.TimeMillis), false
		in.next = raw.Offset + 1
		in.bytes -= len(raw.Key) + len(raw.Value)
		*raw = task.Record{}
		in.head++
		if in.head == len(in.queue) {
			in.queue, in.head = in.queue[:0], 0
		}
		t.processed++
		n++
	}
	return n, 0, nil
}

// choose returns the input whose head has the lowest time, or nil when there is none or another input has to be
// waited for; retry tells for how long at most. (Kafka Streams: PartitionGroup, KIP-695.)
func (t *Task) choose(wall int64) (best *input, retry int64) {
	if len(t.inputs) == 1 {
		if in := t.inputs[0]; in.queued() > 0 {
			t.timeHead(in)
			return in, 0
		}
		return nil, 0
	}
	for _, in := range t.inputs {
		// An input that has been empty for long is not waited for again when another gets a record.
		if l := in.lacks(); l != in.lack {
			in.lack, in.since = l, wall
		}
		if in.lack == lackNothing {
			t.timeHead(in)
			if best == nil || in.queue[in.head].TimeMillis < best.queue[best.head].TimeMillis {
				best = in
			}
			continue
		}
		retry = max(retry, in.since+t.patience(in.lack)-wall)
	}
	if best == nil {
		return nil, 0
	}
	if retry > 0 {
		return nil, retry
	}
	return best, 0
}

// timeHead finds the time of the next record of an input, if it is not that of the broker.
func (t *Task) timeHead(in *input) {
	if in.timed {
		return
	}
	in.timed, in.headErr, in.skip = true, nil, false
	raw := &in.queue[in.head]
	if in.source.time == nil {
		if raw.TimeMillis < 0 {
			in.headErr = fmt.Errorf("%w: %d", ErrInvalidTime, raw.TimeMillis)
		}
		return
	}
	defer func() {
		if p := recover(); p != nil {
			in.headErr = &panicError{p, debug.Stack()}
		}
	}()
	millis, ok, err := in.source.time(raw, in.seen, t.wall)
	if err != nil {
		in.headErr = err
		return
	}
	in.skip = !ok
	if ok {
		raw.TimeMillis = millis
	}
}

// patience returns for how long an empty input is worth waiting, in milliseconds.
func (t *Task) patience(l lack) int64 {
	idle := t.opts.MaxTaskIdle.Milliseconds()
	switch {
	case t.opts.MaxTaskIdle < 0 || l == lackNothing:
		return 0
	case l == lackUnknown:
		return max(idle, unknownInputWaitMillis)
	case l == lackFetched:
		return max(idle, laggingInputWaitMillis)
	default:
		return idle
	}
}

// process runs one record through the topology, under the application's policies.
func (t *Task) process(in *input, raw *task.Record) error {
	undoable := t.undoable()
	m := t.mark()
	if undoable {
		t.layers.Savepoint()
		t.timers.savepoint()
	}
	t.record, t.now = raw, raw.TimeMillis
	t.streamTime = max(t.streamTime, raw.TimeMillis)
	err := in.headErr
	switch {
	case in.skip:
		t.Drop(DropNoTime)
	case err == nil:
		err = t.feed(in, raw)
	}
	if err == nil {
		err = t.layers.Err() // that a Processor may have kept to itself
	}
	if err == nil {
		err = t.oversized(m)
	}
	if err == nil {
		t.record = nil
		// A failing timer is not the record's fault: left to the policy, it would fail at each record and so drop
		// them all.
		return t.fireStreamTimers()
	}
	e := t.fail("", err)
	t.record = nil
	policy := t.policyFor(err)
	if policy.kind == policyFail || t.layers.Err() != nil {
		return e // nor is it the record's fault that the disk cannot be read
	}
	defer t.followLeftOut(in.node, raw) // after all has been undone
	t.undo(m)
	t.leaveOut(policy, raw, e)
	return nil
}

func (t *Task) feed(in *input, raw *task.Record) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &panicError{p, debug.Stack()}
		}
	}()
	t.at = in.node
	return in.source.feed(raw)
}

// release lets go of the outputs that were handed out.
func (t *Task) release() {
	if t.taken {
		clear(t.outputs)
		t.outputs, t.taken = t.outputs[:0], false
	}
}

// Outputs implements task.Machine.
func (t *Task) Outputs() []task.Output {
	if t.taken {
		return nil
	}
	t.taken = true
	t.emitted = t.emitted || len(t.outputs) > 0
	return t.outputs
}

// Boundary implements task.Machine.
func (t *Task) Boundary() task.Batch {
	b := task.Batch{Processed: t.processed, Metadata: formatMetadata(t.streamTime), Changes: t.changes[:0]}
	t.layers.Changes(func(store int, key, row []byte) {
		if len(t.unlogged) > 0 && t.unlogged[store] {
			return
		}
		b.Changes = append(b.Changes, task.Change{Store: store, Key: key, Row: row})
	})
	t.changes = b.Changes
	for _, in := range t.inputs {
		// Offsets without a record, such as transaction markers, are passed over when nothing waits before them.
		if in.queued() == 0 {
			in.next = max(in.next, in.fetched)
		}
		if in.next >= 0 {
			b.Offsets = append(b.Offsets, task.Offset{Topic: in.topic, Next: in.next})
		}
	}
	b.Empty = len(b.Changes) == 0 && !t.emitted && (t.taken || len(t.outputs) == 0)
	return b
}

// Commit implements task.Machine.
func (t *Task) Commit(positions []state.Position, wallMillis int64) {
	t.release()
	t.layers.Commit(positions, wallMillis)
	t.endCalls()
	t.endBatch()
}

// endBatch forgets the last boundary's batch. The memory of its list is kept, unless that has grown far beyond use.
func (t *Task) endBatch() {
	t.processed, t.emitted = 0, false
	if cap(t.changes) > 1<<16 && len(t.changes) < cap(t.changes)/8 {
		t.changes = nil
		return
	}
	clear(t.changes)
}

// Abort implements task.Machine.
func (t *Task) Abort(committed []task.Offset, metadata string, wallMillis int64) error {
	t.layers.Drop()
	t.undoCalls()
	err := t.Close()
	clear(t.outputs)
	t.outputs, t.taken = t.outputs[:0], false
	t.endBatch()
	return errors.Join(err, t.Start(committed, metadata, wallMillis))
}

// Close implements task.Machine.
func (t *Task) Close() error {
	closers := t.closers
	t.closers = nil
	var errs []error
	for _, c := range closers {
		if err := t.call("close", c.at, c.f); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// StoreRows implements state.Env, for any operator of the task.
func (t *Task) StoreRows(spec state.AnySpec) (*state.Rows, error) {
	rows := t.layers.Rows(spec.Name())
	if rows == nil || rows.Spec() != spec {
		return nil, fmt.Errorf("store %q is not connected to this part of the topology: name its spec where the "+
			"operator is declared", spec.Name())
	}
	return rows, nil
}

// RecordTimeMillis implements state.Env.
func (t *Task) RecordTimeMillis() int64 { return t.now }

// OnClose registers what is to be called when the task ends or starts afresh.
func (t *Task) OnClose(f func() error) { t.closers = append(t.closers, closer{t.at, f}) }

// metadataFormat is the first character of what is committed beside an offset.
const metadataFormat = "1"

// formatMetadata renders the stream time for the offset's metadata: of fixed size, so that it never fails to fit.
func formatMetadata(streamTime int64) string {
	var b [8]byte
	for i := range b {
		b[i] = byte(streamTime >> (56 - 8*i))
	}
	return metadataFormat + hex.EncodeToString(b[:])
}

// parseMetadata returns the stream time, or -1 when the metadata is not ours.
func parseMetadata(s string) int64 {
	if len(s) != 17 || s[:1] != metadataFormat {
		return -1
	}
	b, err := hex.DecodeString(s[1:])
	if err != nil {
		return -1
	}
	var v uint64
	for _, x := range b {
		v = v<<8 | uint64(x)
	}
	return int64(v)
}
