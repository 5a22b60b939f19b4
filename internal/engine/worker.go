package engine

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"tailrace.dev/internal/task"
	"tailrace.dev/state"
)

// taskRun is a task of this process.
type taskRun struct {
	s      *session
	id     task.ID
	sub    *Sub
	inputs []*input // in the order of sub.Sources
	stores []*storeRun
	log    *zap.Logger
	view   *taskView
	pace   int // how many records a step may process; 0: not measured yet

	life      context.Context    // ends when the task goes
	cancel    context.CancelFunc // of life
	startDone chan struct{}      // closed when its start is over; nil: not started
	running   bool               // its machine exists and may be run by workers

	backend state.Backend // of the start, until startDone is closed
	machine task.Machine

	scheduled atomic.Bool  // shared: in the run queue, or being run
	stalled   atomic.Bool  // shared: its restore goes on, and reads nothing
	nextWall  atomic.Int64 // shared: wall-clock milliseconds to run it at, input or not; 0: none

	// Written by the worker that runs it, read by the session with the workers paused.
	dirty     bool
	sender    sender // of outputs
	nextTimer int64  // of Punctuate
	held      int64  // bytes it counts for in session.uncommitted

	answersMu sync.Mutex
	answers   []task.Result // shared: results of calls, from their goroutines to the worker

	flush     *flushJob // under way, or nil
	unflushed int64     // bytes it counts for in session.unflushed
	refreshed int64     // when its positions were last written, Unix milliseconds
	metadata  string    // committed last
	drops     []int64   // of its machine, as of the last boundary

	earlyEnds map[string]int64 // of its changelogs, for the defect NoBarrier
}

// input is one partition of an input topic, of one task.
type input struct {
	t         *taskRun
	topic     string
	partition int32

	mu    sync.Mutex
	inbox []inbound // shared: from the session to the worker
	spare []inbound

	records, bytes atomic.Int64 // shared: queued here and in the machine

	// Owned by the session.
	owned     bool
	paused    bool
	located   bool  // start is known
	start     int64 // where processing starts
	fresh     bool  // nothing was committed yet
	mark      mark  // of the committed offset
	moving    bool  // to where its topic has records
	next      int64 // first offset that was not delivered
	committed int64
	dropped   bool // records came before the task ran: they have to be fetched again
	end       int64
	view      *inputView
}

// inbound is what a fetch brought for an input.
type inbound struct {
	records   []*kgo.Record
	bytes     int64
	next, end int64
}

const (
	stepLimit    = 256
	stepsASlice  = 16 // steps before a worker looks for another task
	scratchBatch = 512
)

// deliver puts a fetched partition into its task's inbox. It returns the task, which the caller has to schedule, or nil.
func (s *session) deliver(topic string, p *kgo.FetchPartition) *taskRun {
	parts := s.inputs[topic]
	if int(p.Partition) >= len(parts) || parts[p.Partition] == nil {
		return nil // revoked meanwhile
	}
	in := parts[p.Partition]
	if !in.t.running {
		in.dropped = true
		return nil
	}
	records := p.Records
	for len(records) > 0 && records[0].Offset < in.next {
		records = records[1:]
	}
	if len(records) == 0 {
		return nil
	}
	in.next = records[len(records)-1].Offset + 1
	in.end = max(in.next, p.LastStableOffset, in.end)
	in.view.sawEnd(in.end)
	var size int64
	for _, r := range records {
		size += int64(len(r.Key) + len(r.Value))
	}
	in.mu.Lock()
	in.records.Add(int64(len(records)))
	in.bytes.Add(size)
	in.inbox = append(in.inbox, inbound{records, size, in.next, in.end})
	in.mu.Unlock()
	return in.t
}

// schedule puts a task into the run queue, once. The queue has room for all tasks.
func (s *session) schedule(t *taskRun) {
	if t.scheduled.CompareAndSwap(false, true) {
		s.runq <- t
	}
}

// over reports whether the input holds more than it may.
func (in *input) over(cfg *Settings) bool {
	return in.records.Load() >= int64(cfg.QueueRecords) || in.bytes.Load() >= int64(cfg.QueueBytes)
}

// low reports whether the input would like to have more.
func (in *input) low(cfg *Settings) bool {
	return in.records.Load() <= int64(cfg.QueueRecords)/2 && in.bytes.Load() <= int64(cfg.QueueBytes)/2
}

// full reports whether polling should wait for the workers: some input is over its bound and none runs low. Polling on
// would only make the client drop what it fetched for the full ones.
func (s *session) full() bool {
	over := false
	for _, t := range s.tasks {
		if !t.running {
			continue
		}
		for _, in := range t.inputs {
			if in.over(s.e.cfg) {
				over = true
			} else if in.low(s.e.cfg) && !in.paused {
				return false
			}
		}
	}
	return over
}

// balanceFetch pauses the inputs that are over their bound, so that others can be polled for, and resumes those that
// have come down to half of it.
func (s *session) balanceFetch() {
	for _, t := range s.tasks {
		if !t.running {
			continue
		}
		for _, in := range t.inputs {
			switch {
			case !in.paused && in.over(s.e.cfg):
				in.paused = true
				s.cl.PauseFetchPartitions(map[string][]int32{in.topic: {in.partition}})
			case in.paused && in.low(s.e.cfg):
				in.paused = false
				s.cl.ResumeFetchPartitions(map[string][]int32{in.topic: {in.partition}})
			}
		}
	}
}

// runTimers schedules the tasks whose time has come and returns when the loop has to look again.
func (s *session) runTimers(until time.Time) time.Time {
	wall := s.e.wallMillis()
	for _, t := range s.tasks {
		at := t.nextWall.Load()
		if at == 0 || !t.running {
			continue
		}
		if at <= wall {
			s.schedule(t)
			continue
		}
		if in := time.Now().Add(time.Duration(at-wall) * time.Millisecond); in.Before(until) {
			until = in
		}
	}
	return until
}

// work is a worker: it runs one scheduled task at a time, for a slice.
func (s *session) work() {
	defer s.workers.Done()
	scratch := make([]task.Record, 0, scratchBatch)
	for {
		var t *taskRun
		select {
		case t = <-s.runq:
		case <-s.ctx.Done():
			return
		}
		select {
		case s.tokens <- struct{}{}:
		case <-s.ctx.Done():
			return
		}
		more := false
		if t.running && s.failure.Load() == nil {
			var err error
			if more, err = s.runSlice(t, &scratch); err != nil {
				s.fail(s.stepError(t, err))
			}
		}
		t.scheduled.Store(false)
		more = more || t.hasInbox()
		<-s.tokens
		if more && s.failure.Load() == nil {
			s.schedule(t)
		}
	}
}

func (t *taskRun) hasInbox() bool {
	if !t.running {
		return false
	}
	if t.hasAnswers() {
		return true
	}
	for _, in := range t.inputs {
		in.mu.Lock()
		n := len(in.inbox)
		in.mu.Unlock()
		if n > 0 {
			return true
		}
	}
	return false
}

// runSlice runs a task for a while. It reports whether there is more to do at once.
func (s *session) runSlice(t *taskRun, scratch *[]task.Record) (more bool, err error) {
	wall := s.e.wallMillis()
	t.takeInbox(scratch)
	t.dirty = true
	if err := t.complete(wall); err != nil {
		return false, err
	}
	for step := 0; ; step++ {
		limit := t.stepLimit()
		began := time.Now()
		n, retry, err := t.machine.Step(limit, wall)
		if err != nil {
			return false, err
		}
		t.paceSteps(time.Since(began))
		s.send(t, t.machine.Outputs())
		if n < limit {
			t.nextWall.Store(0)
			if retry > 0 {
				t.nextWall.Store(wall + retry)
			}
			break
		}
		if step == stepsASlice || s.pausing.Load() {
			more = true
			break
		}
	}
	if t.nextTimer, err = t.machine.Punctuate(wall); err != nil {
		return false, err
	}
	s.send(t, t.machine.Outputs())
	if t.nextTimer > 0 {
		if at := t.nextWall.Load(); at == 0 || t.nextTimer < at {
			t.nextWall.Store(t.nextTimer)
		}
	}
	t.publish()
	return more, nil
}

// A commit waits for the steps under way, so none may take long: the number of records that a step may process falls
// where they are slow, and comes back where they are not.
const (
	slowStep = 20 * time.Millisecond
	fastStep = 5 * time.Millisecond
)

func (t *taskRun) stepLimit() int {
	if t.pace == 0 {
		t.pace = stepLimit
	}
	return t.pace
}

func (t *taskRun) paceSteps(took time.Duration) {
	switch {
	case took > slowStep:
		t.pace = max(1, t.pace/4)
	case took < fastStep && t.pace < stepLimit:
		t.pace = min(stepLimit, 2*t.pace)
	}
}

// takeInbox moves what was fetched into the machine.
func (t *taskRun) takeInbox(scratch *[]task.Record) {
	for _, in := range t.inputs {
		in.mu.Lock()
		batch := in.inbox
		in.inbox = in.spare[:0]
		in.mu.Unlock()
		for i := range batch {
			t.enqueue(in, &batch[i], scratch)
			batch[i] = inbound{}
		}
		in.spare = batch
	}
}

func (t *taskRun) enqueue(in *input, b *inbound, scratch *[]task.Record) {
	out := (*scratch)[:0]
	used := min(len(b.records), cap(out))
	for _, r := range b.records {
		if r.Attrs.IsControl() {
			continue
		}
		rec := task.Record{
			Topic: in.topic, Partition: in.partition, Offset: r.Offset,
			TimeMillis: r.Timestamp.UnixMilli(), Key: r.Key, Value: r.Value,
		}
		if len(r.Headers) > 0 {
			rec.Headers = make([]task.Header, len(r.Headers))
			for i, h := range r.Headers {
				rec.Headers[i] = task.Header(h)
			}
		}
		out = append(out, rec)
		if len(out) == cap(out) {
			t.machine.Enqueue(in.topic, out)
			out = out[:0]
		}
	}
	if len(out) > 0 {
		t.machine.Enqueue(in.topic, out)
	}
	clear((*scratch)[:used]) // keep no record alive
	t.machine.Position(in.topic, b.next, b.end)
}

// publish tells the session how much the task holds.
func (t *taskRun) publish() {
	s := t.s
	room := false
	for _, in := range t.inputs {
		n, b := t.machine.Queued(in.topic)
		records, size := int64(n), int64(b)
		in.mu.Lock() // against deliver, which adds to both the inbox and the counts
		for i := range in.inbox {
			records += int64(len(in.inbox[i].records))
			size += in.inbox[i].bytes
		}
		wasLow := in.low(s.e.cfg)
		in.records.Store(records)
		in.bytes.Store(size)
		room = room || !wasLow && in.low(s.e.cfg)
		in.mu.Unlock()
	}
	held := t.machine.Layers().Uncommitted()
	total := s.uncommitted.Add(held - t.held)
	t.held = held
	if total+s.unflushed.Load() > s.e.cfg.StateBytes/2 && total > s.e.cfg.StateBytes/4 {
		s.requestCommit()
	}
	if room {
		s.wake()
	}
}

// send produces outputs at once; they are part of the transaction that is open. It blocks while the producer is full.
func (s *session) send(t *taskRun, outputs []task.Output) {
	if len(outputs) == 0 {
		return
	}
	s.produced.Add(int64(len(outputs)))
	for i := range outputs {
		o, r := &outputs[i], t.sender.next(s, nil)
		r.Topic, r.Partition, r.Key, r.Value = o.Topic, o.Partition, o.Key, o.Value
		r.Timestamp = time.UnixMilli(o.TimeMillis)
		if o.Choose != nil {
			r.Context = context.WithValue(context.Background(), chooserKey{}, o.Choose)
		}
		if len(o.Headers) > 0 {
			r.Headers = make([]kgo.RecordHeader, len(o.Headers))
			for j, h := range o.Headers {
				r.Headers[j] = kgo.RecordHeader(h)
			}
		}
		t.sender.send()
	}
}

// onSent notes the first record that could not be produced: a transaction with a failed record must not commit, though
// the client would.
func (s *session) onSent(r *kgo.Record, err error) {
	s.sendError.CompareAndSwap(nil, &sendFailure{err, r.Topic, r.Key, len(r.Key) + len(r.Value)})
}
