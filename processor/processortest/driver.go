// Package processortest drives a topology in the calling goroutine, without a broker: records are piped in, everything
// that follows from them happens before the call returns, and outputs and stores can be looked at. Time moves only
// when the test says so.
//
//	d := processortest.New(t, topology)
//	in := processortest.Input(d, Events)
//	in.Pipe("alice", Event{To: []string{"bob"}})
//	unread := processortest.Map(processortest.Output(d, Unread))
//
// What it runs is the tasks that the engine runs, over stores in memory and a changelog; Crash throws away all but
// what was committed and restores from that. It has one partition of everything, and so shows neither partitioning nor
// rebalancing. (Kafka Streams: TopologyTestDriver.)
package processortest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/state"
	"tailrace.dev/state/memory"
)

// TB is what a Driver needs of a *testing.T. Examples, which have none, use Panics.
type TB interface {
	// Helper marks the caller as one whose place in the code is not worth telling.
	Helper()
	// Fatalf ends the test with a message.
	Fatalf(format string, args ...any)
}

// Panics is a TB that panics where a test would fail.
var Panics TB = panics{}

type panics struct{}

func (panics) Helper() {}
func (panics) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf(format, args...)) //nolint:forbidigo // an example has nothing else to fail by
}

// Option changes how a Driver works.
type Option func(*Driver)

// Application sets the application id, which internal topics are named by. It is "test" otherwise.
func Application(id string) Option { return func(d *Driver) { d.app = id } }

// StartingAt sets the wall clock at the start. It is 2020-01-01 00:00 UTC otherwise.
func StartingAt(t time.Time) Option { return func(d *Driver) { d.wall = t } }

// OnErrors sets the policies for records that cannot be decoded or processed. Both fail otherwise.
func OnErrors(decode, process processor.ErrorPolicy) Option {
	return func(d *Driver) { d.opts.OnDecodeError, d.opts.OnProcessError = decode, process }
}

// CommitManually leaves commits to Driver.Commit; otherwise there is one after each call of Pipe. Outputs are seen when
// they are committed.
func CommitManually() Option { return func(d *Driver) { d.manual = true } }

// Driver runs a topology. It is used by one goroutine.
type Driver struct {
	t           TB
	topology    *processor.Topology
	app         string
	wall        time.Time
	opts        processor.TaskOptions
	manual      bool
	manualCalls bool

	tasks     []*driven
	readers   map[string][]*driven      // by topic on the broker
	globals   map[string]*state.Replica // by topic
	noKey     int64                     // records of global topics that have no key
	next      map[string]int64          // next offset by topic
	committed map[string][]processor.Output
	pending   []processor.Output // produced since the last commit
	log       []logged           // inputs that are not committed
	calls     []call             // handed out and not made
	skipped   []*processor.TaskError
	failed    error
}

// logged is an input record that was not processed by a committed batch.
type logged struct {
	record processor.RawRecord
	routed bool // an output of the batch in progress, gone with it
}

// driven is one task with what would be its changelogs and committed offsets.
type driven struct {
	id        processor.TaskID
	task      *processor.Task
	sources   []string
	changelog []map[string][]byte // by store: the newest row of each key
	followed  []followed          // stores that have a topic for it
	changes   int64
	offsets   map[string]int64
	metadata  string
}

// New starts a driver. It fails the test when the topology's processors fail to start.
func New(t TB, topology *processor.Topology, opts ...Option) *Driver {
	t.Helper()
	d := &Driver{
		t: t, topology: topology, app: "test", wall: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		readers: make(map[string][]*driven), next: make(map[string]int64),
		committed: make(map[string][]processor.Output),
	}
	for _, o := range opts {
		o(d)
	}
	d.opts.MaxTaskIdle = -1
	d.opts.OnSkipped = func(e *processor.TaskError) { d.skipped = append(d.skipped, e) }
	d.opts.Replicas = make(map[string]*state.Replica)
	d.globals = make(map[string]*state.Replica)
	for store, topic := range topology.Globals() {
		r, err := state.OpenReplica(store, memory.New())
		if err != nil {
			t.Fatalf("processortest: %v", err)
		}
		d.opts.Replicas[store], d.globals[topic] = r, r
	}
	for _, sub := range topology.SubTopologies() {
		dr := &driven{id: processor.TaskID{Sub: sub}, offsets: make(map[string]int64)}
		dr.sources = topology.Sources(d.app, sub)
		for range topology.Stores(sub) {
			dr.changelog = append(dr.changelog, make(map[string][]byte))
		}
		d.findFollowed(dr)
		for _, topic := range dr.sources {
			d.readers[topic] = append(d.readers[topic], dr)
		}
		d.tasks = append(d.tasks, dr)
		if err := d.start(dr); err != nil {
			t.Fatalf("processortest: start task %s: %v", dr.id, err)
		}
	}
	return d
}

// start makes the task over a backend restored from the changelog.
func (d *Driver) start(dr *driven) error {
	backend := memory.New()
	w := state.Write{Positions: make(map[state.StoreID]state.Position)}
	for i, spec := range d.topology.Stores(dr.id.Sub) {
		id, err := backend.Register(spec.Name())
		if err != nil {
			return err
		}
		for _, key := range slices.Sorted(maps.Keys(dr.changelog[i])) {
			w.Rows = append(w.Rows, state.Row{Store: id, Key: []byte(key), Value: dr.changelog[i][key]})
		}
	}
	slices.SortStableFunc(w.Rows, func(a, b state.Row) int { return int(a.Store) - int(b.Store) })
	if err := backend.Write(w); err != nil {
		return err
	}
	task, err := d.topology.NewTask(d.app, dr.id, backend, d.opts)
	if err != nil {
		return err
	}
	dr.task = task
	return task.Start(dr.committedOffsets(), dr.metadata, d.wall.UnixMilli())
}

// AdvanceWallClock moves the wall clock on, and runs the timers that come due on the way. It must not be negative.
func (d *Driver) AdvanceWallClock(by time.Duration) {
	d.t.Helper()
	if by < 0 {
		d.t.Fatalf("processortest: the wall clock cannot go back (%v)", by)
	}
	d.wall = d.wall.Add(by)
	for _, dr := range d.tasks {
		if _, err := dr.task.Punctuate(d.wall.UnixMilli()); err != nil {
			d.fail(err)
			d.t.Fatalf("processortest: %v", err)
		}
		d.route(dr)
	}
	if err := d.settle(0); err != nil {
		d.t.Fatalf("processortest: %v", err)
	}
}

// Now returns the wall clock.
func (d *Driver) Now() time.Time { return d.wall }

// StreamTime returns the stream time of a sub-topology's task, and whether it has seen a record.
func (d *Driver) StreamTime(sub string) (time.Time, bool) {
	d.t.Helper()
	for _, dr := range d.tasks {
		if dr.id.Sub == sub {
			return dr.task.StreamTime()
		}
	}
	d.t.Fatalf("processortest: no sub-topology %q; there are %q", sub, d.topology.SubTopologies())
	return time.Time{}, false
}

// Dropped returns how many records all operators and global tables left out for a reason since the start or the last
// Crash.
func (d *Driver) Dropped(reason processor.DropReason) int64 {
	var n int64
	if reason == processor.DropNoKey {
		n = d.noKey
	}
	for _, dr := range d.tasks {
		n += dr.task.Dropped(reason)
	}
	return n
}

// Skipped returns the errors of the records that a policy left out, in order.
func (d *Driver) Skipped() []*processor.TaskError { return slices.Clone(d.skipped) }

// pipe hands records to the tasks that read their topics and runs everything to rest.
func (d *Driver) pipe(records ...processor.RawRecord) error {
	if d.failed != nil {
		return fmt.Errorf("processortest: the driver has failed; Crash starts it again: %w", d.failed)
	}
	for i := range records {
		r := &records[i]
		global := d.globals[r.Topic]
		if len(d.readers[r.Topic]) == 0 && global == nil {
			return fmt.Errorf("processortest: the topology does not read topic %q", r.Topic)
		}
		r.Offset = d.next[r.Topic]
		d.next[r.Topic]++
		if global != nil {
			if r.Key == nil {
				d.noKey++
			}
			rec := state.ReplicaRecord{Key: r.Key, Value: r.Value, TimeMillis: r.TimeMillis}
			if err := global.Apply(0, []state.ReplicaRecord{rec}, state.Position{Next: r.Offset + 1}); err != nil {
				return err
			}
			continue
		}
		d.log = append(d.log, logged{record: *r})
		d.enqueue(*r)
	}
	if err := d.settle(len(records)); err != nil {
		d.log = slices.DeleteFunc(d.log, func(l logged) bool { // they would fail again
			return slices.ContainsFunc(records, func(r processor.RawRecord) bool {
				return l.record.Topic == r.Topic && l.record.Offset == r.Offset
			})
		})
		return err
	}
	return nil
}

func (d *Driver) enqueue(r processor.RawRecord) {
	for _, dr := range d.readers[r.Topic] {
		dr.task.Enqueue(r.Topic, []processor.RawRecord{r})
	}
}

// maxSteps bounds what one record may lead to.
const maxSteps = 1_000_000

// ErrEndless is the failure of a topology that feeds its own input without end.
var ErrEndless = errors.New("processortest: the records do not come to rest: the topology writes to its own input")

// settle processes until nothing is queued, and commits; then the calls, and what follows from them.
func (d *Driver) settle(records int) error {
	left := maxSteps * max(1, records)
	for {
		if err := d.process(&left); err != nil {
			return err
		}
		if d.manual {
			return nil
		}
		if err := d.commit(); err != nil {
			return err
		}
		if d.manualCalls || len(d.calls) == 0 {
			return nil
		}
		if err := d.makeCalls(&left); err != nil {
			return err
		}
	}
}

// process steps until nothing that can be processed is queued.
func (d *Driver) process(left *int) error {
	for busy := true; busy; {
		busy = false
		for _, dr := range d.tasks {
			n, _, err := dr.task.Step(1, d.wall.UnixMilli())
			if err != nil {
				d.fail(err)
				return err
			}
			d.route(dr)
			busy = busy || n > 0
			if *left -= n; *left < 0 {
				d.fail(ErrEndless)
				return ErrEndless
			}
		}
	}
	return nil
}

func (d *Driver) fail(err error) {
	d.failed = err
	d.pending = nil
}

// route takes a task's outputs and feeds those that the topology reads back.
func (d *Driver) route(dr *driven) {
	for _, out := range dr.task.Outputs() {
		d.pending = append(d.pending, out)
		if len(d.readers[out.Topic]) == 0 {
			continue
		}
		r := processor.RawRecord{
			Topic: out.Topic, Offset: d.next[out.Topic], TimeMillis: out.TimeMillis,
			Key: out.Key, Value: out.Value, Headers: out.Headers,
		}
		d.next[out.Topic]++
		d.log = append(d.log, logged{record: r, routed: true})
		d.enqueue(r)
	}
}

// Commit makes everything since the last commit durable and its outputs visible. It is needed after CommitManually only.
// Calls that the committed records wait for are made, but with CallManually; what follows from them is part of the
// next commit.
func (d *Driver) Commit() {
	d.t.Helper()
	if d.failed != nil {
		d.t.Fatalf("processortest: nothing to commit after a failure: %v", d.failed)
	}
	err := d.commit()
	if err == nil && !d.manualCalls && len(d.calls) > 0 {
		left := maxSteps
		if err = d.makeCalls(&left); err == nil {
			err = d.settle(0)
		}
	}
	if err != nil {
		d.t.Fatalf("processortest: %v", err)
	}
}

func (d *Driver) commit() error {
	for _, dr := range d.tasks {
		b := dr.task.Boundary()
		for _, c := range b.Changes {
			dr.changes++
			if c.Row == nil {
				delete(dr.changelog[c.Store], string(c.Key))
			} else {
				dr.changelog[c.Store][string(c.Key)] = slices.Clone(c.Row)
			}
		}
		for _, o := range b.Offsets {
			d.follow(dr, o.Topic, o.Next)
			dr.offsets[o.Topic] = o.Next
		}
		dr.metadata = b.Metadata
		dr.task.Commit(nil, d.wall.UnixMilli())
	}
	for _, out := range d.pending {
		d.committed[out.Topic] = append(d.committed[out.Topic], out)
	}
	d.pending = nil
	// Records that wait because an operator takes no more are still to come.
	d.log = slices.DeleteFunc(d.log, func(l logged) bool {
		return !slices.ContainsFunc(d.readers[l.record.Topic], func(dr *driven) bool {
			return dr.offsets[l.record.Topic] <= l.record.Offset
		})
	})
	for i := range d.log {
		d.log[i].routed = false
	}
	return d.takeCalls()
}

func (dr *driven) committedOffsets() []processor.Offset {
	var os []processor.Offset
	for _, topic := range dr.sources {
		if next, ok := dr.offsets[topic]; ok {
			os = append(os, processor.Offset{Topic: topic, Next: next})
		}
	}
	return os
}

// Crash throws away everything that is not committed: the processors, the stores, what was queued. Then it restores
// the stores from the changelogs and processes the inputs since the last commit again, as a killed application does when it
// comes back. It also mends a driver that has failed: the records of the call that failed are left out.
func (d *Driver) Crash() {
	d.t.Helper()
	d.pending, d.failed, d.calls, d.noKey = nil, nil, nil, 0
	var replay []processor.RawRecord
	for _, l := range d.log {
		if !l.routed {
			replay = append(replay, l.record)
		}
	}
	d.log = nil
	for _, dr := range d.tasks {
		// No Close: a killed process does not get to call it.
		for _, topic := range dr.sources {
			d.next[topic] = dr.offsets[topic]
		}
		if err := d.start(dr); err != nil {
			d.t.Fatalf("processortest: restart task %s: %v", dr.id, err)
		}
	}
	if err := d.pipe(replay...); err != nil {
		d.t.Fatalf("processortest: after the crash: %v", err)
	}
}

// Close ends the processors. Tests need it only to see their Close called.
func (d *Driver) Close() {
	d.t.Helper()
	for _, dr := range d.tasks {
		if err := dr.task.Close(); err != nil {
			d.t.Fatalf("processortest: close task %s: %v", dr.id, err)
		}
	}
}
