package sim

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/internal/engine"
	"tailrace.dev/internal/task"
	"tailrace.dev/state"
)

// process is a member's machine: what outlives a crash.
type process struct {
	s              *sim
	name           string // of the machine, for the trace
	instance, txID string // identity; instance is "" for a dynamic member
	disk           *disk
	sess           *session // nil while the process does not run
	paused         bool
	stopping       bool
	fenced         bool // it ended because another has its identity
	startAt        int64
}

// session is one life of the process as a group member: all that is lost in a crash. It mirrors the engine's session: what
// that does in one goroutine is the plan here, a list of steps of which the scheduler takes one at a time; its other
// goroutines are actors of their own.
type session struct {
	p     *process
	s     *sim
	group groupThread

	epoch   int16
	inited  bool
	inTxn   bool
	touched bool // the broker knows of the transaction

	memberID string // that all present tasks were assigned to
	tasks    []*taskRun
	closing  []*closer
	copies   []*standby
	wanted   []task.ID // copies to keep
	posted   []func() error
	plan     []step
	batches  []pending

	sendq   []*message
	sendErr error
	aborts  int
	nextRun int64 // when the next commit is due
}

// step is a step of the session's plan. Its name is the point of the engine's protocol that it begins at.
type step struct {
	name string
	f    func() error
}

// taskRun is a task of the session.
type taskRun struct {
	c        *session
	id       task.ID
	sub      *sub
	inputs   []*taskInput
	stores   []*storeRun
	start    *starter // nil: not started
	running  bool
	backend  *backend
	machine  task.Machine
	dirty    bool
	metadata string
	flush    *state.Flush // under way
	since    int64        // when the flush was begun
}

type taskInput struct {
	topic     string
	at        tp
	owned     bool
	located   bool
	start     int64
	next      int64 // first offset that was not fetched
	committed int64
	end       int64
	inbox     []inbound
	again     *inbound // a fetch that arrives twice
}

type inbound struct {
	records   []*kgo.Record
	next, end int64
}

// storeRun is a store of a task.
type storeRun struct {
	spec     store
	id       state.StoreID
	position int64
	topicID  [16]byte
	wall     int64
	barrier  int64
	early    int64 // the last stable offset when the task was made, for the defect NoBarrier
	open     bool
	has      bool
	sent     int
	produced int64
}

func (st *storeRun) log() string {
	if st.spec.source != "" {
		return st.spec.source
	}
	return st.spec.changelog
}

type pending struct {
	t     *taskRun
	batch task.Batch
}

// The errors of steps. errAgain keeps the step for another try.
var errAgain = errors.New("sim: not yet")

type abortError struct{ cause error }

func (e *abortError) Error() string { return e.cause.Error() }

type rebuildError struct{ cause error }

func (e *rebuildError) Error() string { return e.cause.Error() }

type fencedError struct{ cause error }

func (e *fencedError) Error() string { return e.cause.Error() }

func rebuild(format string, args ...any) error { return &rebuildError{fmt.Errorf(format, args...)} }

// errLost is what a client sees of a request whose answer does not come.
var errLost = errors.New("connection lost")

// request sends a request, which may fail on its way there, with no effect, or on the way back, with all of it.
func (c *session) request(f func() error) error {
	switch c.s.mishap() {
	case lostRequest:
		c.s.say("%s: the request is lost", c.p.name)
		return errLost
	case lostAnswer:
		err := f()
		c.s.say("%s: the answer is lost (%v)", c.p.name, err)
		return errLost
	case refusedByCoordinator:
		return kerr.NotCoordinator
	case noMishap:
	}
	return f()
}

// coordinate is request for those that are repeated while what is wrong passes by itself.
func (c *session) coordinate(f func() error) error {
	err := c.request(f)
	if err != nil && engine.Passes(err) && !c.s.impatient() {
		c.s.say("%s: trying again after %v", c.p.name, err)
		return errAgain
	}
	return err
}

func newSession(p *process) *session {
	c := &session{p: p, s: p.s}
	c.group = groupThread{c: c, generation: -1}
	c.plan = []step{{"init", c.initProducer}}
	return c
}

// judged is what follows from an engine's verdict.
func judged(what string, err error) error {
	err = fmt.Errorf("%s: %w", what, err)
	switch engine.JudgeRefusal(err) {
	case engine.RefusalFenced:
		return &fencedError{err}
	case engine.RefusalAbort:
		return &abortError{err}
	case engine.RefusalRebuild:
	}
	return &rebuildError{err}
}

func (c *session) initProducer() error {
	err := c.request(func() error {
		_, epoch, err := c.s.b.initProducer(c.p.txID, c.s.txnTimeout)
		c.epoch = epoch
		return err
	})
	if errors.Is(err, kerr.ConcurrentTransactions) {
		return errAgain
	}
	if err != nil {
		return rebuild("get a producer id: %w", err)
	}
	c.inited, c.inTxn = true, true
	return nil
}

// run takes the next step of the session's goroutine.
func (c *session) run() {
	if len(c.plan) > 0 {
		st := c.plan[0]
		if c.s.hold(c, st.name) {
			return
		}
		c.s.say("%s: %s", c.p.name, st.name)
		c.plan = c.plan[1:]
		err := st.f()
		if errors.Is(err, errAgain) {
			c.plan = append([]step{st}, c.plan...)
			return
		}
		c.fail(err)
		return
	}
	if len(c.posted) > 0 {
		c.fail(c.runPosted())
		return
	}
	if c.p.stopping {
		c.plan = append(c.commit(), step{"stop", c.stop})
		return
	}
	if c.s.b.now >= c.nextRun && c.s.r.IntN(3) == 0 {
		c.nextRun = c.s.b.now + c.s.r.Int64N(200)
		c.plan = append(c.commit(), step{"allow-rebalance", c.allowRebalance}, step{"flush-due", c.flushDue})
		return
	}
	c.fail(c.poll())
}

// fail acts on the error of a step.
func (c *session) fail(err error) {
	var abort *abortError
	var fenced *fencedError
	switch {
	case err == nil || c.p.sess != c:
	case errors.As(err, &abort):
		c.undo(abort.cause)
	case errors.As(err, &fenced):
		c.s.say("%s: ends, fenced: %v", c.p.name, err)
		c.p.fenced = true
		c.end(true)
		c.p.sess = nil
	default:
		c.rebuild(err)
	}
}

// rebuild is the answer to everything of unknown outcome: a new session.
func (c *session) rebuild(err error) {
	c.s.say("%s: rebuild: %v", c.p.name, err)
	c.s.rebuilds++
	c.end(false)
	c.p.sess = nil
	c.p.startAt = c.s.b.now + c.s.r.Int64N(300)
}

// end closes what the session has, in a process that lives on. What is under way on disk is finished; the rest of the
// committed rows is written if the session ends in good order.
func (c *session) end(flush bool) {
	for _, t := range slices.Clone(c.tasks) {
		c.retire(t, flush)
	}
	for len(c.closing) > 0 {
		c.closing[0].finish()
	}
	if c.p.instance == "" && c.group.memberID != "" && !c.s.lost() {
		c.s.b.group.leave(c.group.memberID)
	}
}

func (c *session) stop() error {
	if c.aborts > 0 {
		return rebuild("the last commit was refused")
	}
	c.end(true)
	if c.p.instance != "" && c.s.r.IntN(2) == 0 {
		c.s.b.group.leave(c.group.memberID)
	}
	c.s.say("%s: stopped", c.p.name)
	c.p.sess, c.p.stopping = nil, false
	c.p.startAt = c.s.b.now + c.s.r.Int64N(3000)
	return nil
}

func (c *session) post(f func() error) { c.posted = append(c.posted, f) }

func (c *session) runPosted() error {
	for len(c.posted) > 0 {
		f := c.posted[0]
		c.posted = c.posted[1:]
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// poll fetches for one input.
func (c *session) poll() error {
	var open []*taskInput
	for _, t := range c.tasks {
		if !t.running {
			continue
		}
		for _, in := range t.inputs {
			if queued, _ := t.machine.Queued(in.topic); queued+len(in.inbox) < 20 {
				open = append(open, in)
			}
		}
	}
	if len(open) == 0 {
		return nil
	}
	first := c.s.r.IntN(len(open))
	for i := range open {
		if any, err := c.fetch(open[(first+i)%len(open)]); any || err != nil {
			return err
		}
	}
	return nil
}

// fetch fetches for an input. It tells whether that brought anything.
func (c *session) fetch(in *taskInput) (bool, error) {
	records, lso, err := c.s.b.fetch(in.at, in.next, 1+c.s.r.IntN(8))
	if err != nil {
		return false, &rebuildError{err} // another may have processed and purged it; if not, the next start fails
	}
	if in.again != nil && c.s.r.IntN(2) == 0 { // it arrives late, and for the second time
		c.deliver(in, *in.again)
		in.again = nil
	}
	if len(records) == 0 {
		return false, nil
	}
	next := records[len(records)-1].Offset + 1
	b := inbound{records, next, max(next, lso)}
	if c.s.r.IntN(20) == 0 {
		in.again = &b
	}
	c.s.say("%s: polled %s[%d] %d to %d", c.p.name, in.topic, in.at.partition, records[0].Offset, next)
	c.deliver(in, b)
	return true, nil
}

// deliver puts what was fetched into the input's inbox.
func (c *session) deliver(in *taskInput, b inbound) {
	for len(b.records) > 0 && b.records[0].Offset < in.next {
		b.records = b.records[1:]
	}
	if len(b.records) == 0 {
		return
	}
	in.next = b.next
	in.end = max(in.end, b.end)
	in.inbox = append(in.inbox, b)
}

// work lets a task process what it has.
func (c *session) work(t *taskRun) {
	for _, in := range t.inputs {
		for _, b := range in.inbox {
			records := make([]task.Record, 0, len(b.records))
			for _, r := range b.records {
				if r.Attrs.IsControl() {
					continue
				}
				records = append(records, recordOf(r))
			}
			t.machine.Enqueue(in.topic, records)
			t.machine.Position(in.topic, b.next, b.end)
		}
		in.inbox = nil
	}
	t.dirty = true
	n, _, err := t.machine.Step(1+c.s.r.IntN(6), c.s.b.now)
	if err == nil {
		c.send(t.machine.Outputs())
		_, err = t.machine.Punctuate(c.s.b.now)
	}
	if err != nil {
		c.s.violate("%s: task %s: %v", c.p.name, t.id, err)
		return
	}
	c.send(t.machine.Outputs())
	if n > 0 {
		c.s.say("%s: %s processed %d", c.p.name, t.id, n)
	}
}

func recordOf(r *kgo.Record) task.Record {
	rec := task.Record{
		Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, TimeMillis: r.Timestamp.UnixMilli(),
		Key: r.Key, Value: r.Value,
	}
	for _, h := range r.Headers {
		rec.Headers = append(rec.Headers, task.Header(h))
	}
	return rec
}

// send hands outputs to the producer, which sends them when it likes.
func (c *session) send(outputs []task.Output) {
	for _, o := range outputs {
		m := &message{tp: tp{o.Topic, o.Partition}, key: o.Key, value: o.Value, time: o.TimeMillis}
		m.headers = append(m.headers, o.Headers...)
		n := len(c.s.b.byName[o.Topic].parts)
		switch {
		case o.Choose != nil:
			m.tp.partition = int32(o.Choose(n))
		case o.Partition == task.AnyPartition:
			m.tp.partition = c.s.partitionOf(o.Topic, o.Key)
		}
		c.sendq = append(c.sendq, m)
	}
}

// sendSome lets the producer send some of what it has.
func (c *session) sendSome() {
	for range min(len(c.sendq), 1+c.s.r.IntN(6)) {
		m := c.sendq[0]
		c.sendq = c.sendq[1:]
		var offset int64
		err := error(nil)
		switch c.s.mishap() {
		case lostRequest, lostAnswer: // sent again by the client; the broker knows the sequence number
			offset, err = c.s.b.produce(c.p.txID, c.epoch, m)
		case refusedByCoordinator:
			err = kerr.InvalidRecord
			c.s.say("%s: a record for %s is refused", c.p.name, m.tp.topic)
		case noMishap:
			offset, err = c.s.b.produce(c.p.txID, c.epoch, m)
		}
		c.touched = true
		if err == nil {
			if m.acked != nil {
				m.acked(offset)
			}
			continue
		}
		if errors.Is(err, kerr.ConcurrentTransactions) {
			c.sendq = append([]*message{m}, c.sendq...)
			return
		}
		if c.sendErr == nil {
			c.sendErr = fmt.Errorf("produce to %s: %w", m.tp.topic, err)
		}
	}
}

// task returns the task of an id, or nil.
func (c *session) task(id task.ID) *taskRun {
	i := slices.IndexFunc(c.tasks, func(t *taskRun) bool { return t.id == id })
	if i < 0 {
		return nil
	}
	return c.tasks[i]
}

func compareIDs(a, b task.ID) int {
	if n := strings.Compare(a.Sub, b.Sub); n != 0 {
		return n
	}
	return int(a.Partition - b.Partition)
}
