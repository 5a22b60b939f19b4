package engine

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/internal/task"
)

// board is where the parts of a running engine write what Status and the metrics read. Nothing is written to it for a
// single record: counters move by commit, positions by fetch and by commit.
type board struct {
	events  *Events
	mu      sync.Mutex
	started time.Time
	since   time.Time // of the state
	ended   string    // the error of Run
	joined  bool
	seen    time.Time   // when brokers last told where the inputs end
	client  *kgo.Client // the member
	session *session
	tasks   map[*taskView]struct{}
	globals []*globalView

	// beat is when the run loop last moved, in nanoseconds since birth: the wall clock may be set meanwhile.
	beat atomic.Int64

	commits, processed, outputs, changes atomic.Int64
	aborts, rebuilds                     atomic.Int64
}

// birth is what beats are counted from.
var birth = time.Now()

// beat tells that the run loop moves.
func (e *Engine) beat() { e.board.beat.Store(int64(time.Since(birth))) }

// idle returns for how long the run loop has not moved.
func (e *Engine) idle() time.Duration {
	at := e.board.beat.Load()
	if at == 0 {
		return 0
	}
	return time.Since(birth) - time.Duration(at)
}

// began notes that Run was called.
func (b *board) began() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.started = time.Now()
	b.since = b.started
}

// entered notes that the state changed.
func (b *board) entered() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.since = time.Now()
}

// finished notes how Run ended.
func (b *board) finished(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.ended = err.Error()
	}
	b.joined, b.client, b.session, b.tasks = false, nil, nil, nil
}

// live begins the view of a session; nil ends it.
func (b *board) live(s *session) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.joined, b.client, b.session, b.tasks = false, nil, s, nil
}

// member notes the group member, once it is made.
func (b *board) member(cl *kgo.Client) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.client = cl
}

// hasJoined notes that the group assigned something, or nothing.
func (b *board) hasJoined() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.joined = true
}

// sawBrokers notes that the ends of all inputs are known as of a time.
func (b *board) sawBrokers(at time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.seen = at
}

// show adds a task of the present session. Its owner writes to what show returns, and calls hide in the end.
func (b *board) show(id task.ID, role Role, sub *Sub) *taskView {
	v := &taskView{id: id}
	v.role.Store(int32(role))
	v.state.Store(-1)
	if role != RoleActive && b.events != nil {
		v.tell = b.events.Standby
	}
	if role == RoleActive {
		for _, src := range sub.Sources {
			in := &inputView{topic: src.Topic, partition: id.Partition}
			in.committed.Store(-1)
			in.end.Store(-1)
			v.inputs = append(v.inputs, in)
		}
	}
	for i := range sub.Stores {
		if sub.Stores[i].log() != "" {
			v.stores = append(v.stores, &storeView{task: v, name: sub.Stores[i].Name})
		}
	}
	b.mu.Lock()
	if b.tasks == nil {
		b.tasks = make(map[*taskView]struct{})
	}
	b.tasks[v] = struct{}{}
	b.mu.Unlock()
	v.setState(TaskWaiting)
	return v
}

// hide takes a task off the board.
func (b *board) hide(v *taskView) {
	b.mu.Lock()
	_, there := b.tasks[v]
	delete(b.tasks, v)
	b.mu.Unlock()
	if there && v.tell != nil {
		v.tell(v.id, StandbyEnded)
	}
}

// ordered notes which of the copies are kept because their tasks are about to move here.
func (b *board) ordered(warmup map[task.ID]bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for v := range b.tasks {
		switch {
		case Role(v.role.Load()) == RoleActive:
		case warmup[v.id]:
			v.role.Store(int32(RoleWarmup))
		default:
			v.role.Store(int32(RoleStandby))
		}
	}
}

// follow puts a global table on the board.
func (b *board) follow(g Global) *globalView {
	v := &globalView{store: g.Store, topic: g.Topic}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.globals = append(b.globals, v)
	slices.SortFunc(b.globals, func(x, y *globalView) int { return cmp.Compare(x.store, y.store) })
	return v
}

// globalView is what a global table shows.
type globalView struct {
	store, topic string
	remaining    atomic.Int64
}

// taskView is what a task shows. One goroutine at a time writes, any reads.
type taskView struct {
	id     task.ID
	role   atomic.Int32
	state  atomic.Int32
	bytes  atomic.Int64
	failed atomic.Pointer[string]         // nil: nothing
	inputs []*inputView                   // in the order of Sub.Sources
	stores []*storeView                   // those that are read back from a topic, in the order of Sub.Stores
	tell   func(id task.ID, state string) // of a standby; nil: nobody listens
}

// setState changes the state. It calls who listens to standbys, and so is called with no lock of the board held.
func (v *taskView) setState(s TaskState) {
	if v.state.Swap(int32(s)) != int32(s) && v.tell != nil {
		v.tell(v.id, s.String())
	}
}

// setFailure notes why a standby does not follow; nil: it does.
func (v *taskView) setFailure(err error) {
	if err == nil {
		v.failed.Store(nil)
		return
	}
	text := err.Error()
	v.failed.Store(&text)
}

// store returns the view of a store, or nil where it is not read back from a topic.
func (v *taskView) store(name string) *storeView {
	for _, st := range v.stores {
		if st.name == name {
			return st
		}
	}
	return nil
}

func (v *taskView) status(now time.Time) TaskStatus {
	t := TaskStatus{
		Task: v.id, Role: Role(v.role.Load()), State: max(TaskWaiting, TaskState(v.state.Load())), StateBytes: v.bytes.Load(),
	}
	if text := v.failed.Load(); text != nil {
		t.Failure = *text
	}
	for _, in := range v.inputs {
		t.Inputs = append(t.Inputs, in.status())
	}
	for _, st := range v.stores {
		if p, ok := st.progress(now); ok {
			t.Restores = append(t.Restores, p)
		}
	}
	return t
}

// inputView is what an input shows. Both offsets are -1 until they are known.
type inputView struct {
	topic          string
	partition      int32
	committed, end atomic.Int64
}

// sawEnd notes that the broker has records up to an offset. Ends come from fetches and from questions, in any order.
func (v *inputView) sawEnd(end int64) {
	for {
		old := v.end.Load()
		if end <= old || v.end.CompareAndSwap(old, end) {
			return
		}
	}
}

func (v *inputView) status() InputStatus {
	s := InputStatus{
		Topic: v.topic, Partition: v.partition, Committed: v.committed.Load(), End: v.end.Load(), Lag: -1,
	}
	if s.Committed >= 0 && s.End >= 0 {
		s.Lag = max(0, s.End-s.Committed)
	}
	return s
}

const (
	// rateWindow is how far back the rate of a restore looks, in steps of rateStep.
	rateWindow = 10 * time.Second
	rateStep   = 250 * time.Millisecond
	// sayInterval is how often the log hears of a restore.
	sayInterval = 5 * time.Second
)

// storeView is how far the rows of a store have come, in a restore or behind a standby.
type storeView struct {
	task *taskView
	name string

	mu           sync.Mutex
	open, done   bool
	from, at, to int64
	endedAt      int64 // at, when it ended
	records      int64
	said         time.Duration // when the log was told last, since it began
	began, ended time.Time
	marks        []rateMark // the oldest first, within the window
}

type rateMark struct {
	when time.Time
	at   int64
}

// begin starts to count from an offset up to, but not including, another one.
func (v *storeView) begin(from, to int64) {
	now := time.Now()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.open, v.done = true, false
	v.from, v.at, v.to, v.records = from, from, max(from, to), 0
	v.began, v.said = now, 0
	v.marks = append(v.marks[:0], rateMark{now, from})
}

// aim sets another end: that of a standby moves away from it all the time.
func (v *storeView) aim(to int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.to = max(v.at, to)
}

// moved tells that everything below an offset is done, and how many rows that were in all.
func (v *storeView) moved(at, records int64) {
	now := time.Now()
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.open {
		return
	}
	v.at, v.records = max(v.at, min(at, v.to)), records
	if last := v.marks[len(v.marks)-1]; now.Sub(last.when) < rateStep {
		return
	}
	keep := 0
	for keep < len(v.marks)-1 && now.Sub(v.marks[keep].when) > rateWindow {
		keep++
	}
	v.marks = append(v.marks[:copy(v.marks, v.marks[keep:])], rateMark{now, v.at})
}

// sayable tells whether the log should hear of a restore that has taken so long: now and then.
func (v *storeView) sayable(took time.Duration) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if took-v.said < sayInterval {
		return false
	}
	v.said = took
	return true
}

// end tells that all of it is done.
func (v *storeView) end() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.at, v.done, v.ended = v.to, true, time.Now()
	v.endedAt = v.at
}

// progress returns how far it is; ok is false when nothing was begun.
func (v *storeView) progress(now time.Time) (p RestoreProgress, ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.open {
		return p, false
	}
	p = RestoreProgress{
		Task: v.task.id, Store: v.name, Role: Role(v.task.role.Load()), From: v.from, At: v.at, To: v.to,
		Records: v.records, Done: v.done,
	}
	since, at := v.marks[0], v.at
	if v.done {
		now, since, at = v.ended, rateMark{v.began, v.from}, v.endedAt
	}
	p.Took = now.Sub(v.began)
	if took := now.Sub(since.when); took > 0 {
		p.Rate = float64(at-since.at) / took.Seconds()
	}
	return p, true
}
