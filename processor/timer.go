package processor

import (
	"cmp"
	"slices"
	"time"
)

// TimeKind is the clock that a timer follows.
type TimeKind int

const (
	// StreamTime follows the highest record time that the task has seen: it moves with data only, and is the same
	// at each replay. The first call comes with the first record after the timer was scheduled, then with the first
	// at or past each multiple of the interval, counted from 1970; what was missed is made up by one call. (Kafka
	// Streams: PunctuationType.STREAM_TIME.)
	StreamTime TimeKind = iota
	// WallClock follows the clock of the machine, as well as processing permits: the first call comes one interval
	// after it was scheduled.
	WallClock
)

// Timer is a scheduled call of a processor.
type Timer struct {
	kind     TimeKind
	interval int64
	next     int64
	gone     bool
	at       *node
	f        func(now time.Time) error
	owner    *timers
}

// Cancel ends the timer. It may be called from within the timer's own function.
func (tm *Timer) Cancel() {
	if tm.gone {
		return
	}
	tm.gone = true
	if tm.owner.recording {
		tm.owner.cancelled = append(tm.owner.cancelled, tm)
	}
}

// timers are those of one task, and what undoes the changes that a record made to them. They fire between records, so
// that a record can only add and cancel.
type timers struct {
	all []*Timer
	due []*Timer // scratch of fire

	recording bool
	cancelled []*Timer // since the savepoint
	mark      int      // how many there were at the savepoint
}

func (ts *timers) savepoint() {
	ts.compact()
	ts.recording = true
	ts.mark = len(ts.all)
}

// compact lets go of the timers that were cancelled. What they were cancelled by is done and cannot be undone any more.
func (ts *timers) compact() {
	ts.recording = false
	clear(ts.cancelled)
	ts.cancelled = ts.cancelled[:0]
	ts.all = slices.DeleteFunc(ts.all, func(tm *Timer) bool { return tm.gone })
}

func (ts *timers) rollback() {
	for _, tm := range ts.cancelled {
		tm.gone = false
	}
	for _, tm := range ts.all[ts.mark:] {
		tm.gone = true
	}
	ts.compact()
}

func (t *Task) schedule(at *node, kind TimeKind, interval time.Duration, f func(now time.Time) error) *Timer {
	tm := &Timer{kind: kind, interval: max(1, interval.Milliseconds()), at: at, f: f, owner: &t.timers}
	if kind == WallClock {
		tm.next = t.wall + tm.interval
	} // by stream time: 0, so that the first record finds it due
	t.timers.all = append(t.timers.all, tm)
	return tm
}

// fireStreamTimers runs the stream-time timers that are due.
func (t *Task) fireStreamTimers() error {
	if len(t.timers.all) == 0 || t.streamTime < 0 {
		return nil
	}
	return t.fire(StreamTime, t.streamTime)
}

// fire calls what is due, the longest due first. What the called functions schedule in turn waits for the next round,
// so that a round always ends.
func (t *Task) fire(kind TimeKind, now int64) error {
	ts := &t.timers
	ts.compact()
	ts.due = ts.due[:0]
	for _, tm := range ts.all {
		if tm.kind == kind && tm.next <= now {
			ts.due = append(ts.due, tm)
		}
	}
	if len(ts.due) > 1 {
		slices.SortStableFunc(ts.due, func(a, b *Timer) int { return cmp.Compare(a.next, b.next) })
	}
	for i, tm := range ts.due {
		ts.due[i] = nil
		if tm.gone {
			continue // cancelled by another one
		}
		// The grid stays where it was anchored, and ticks that were missed are not made up one by one.
		missed := (now - tm.next) / tm.interval
		tm.next += (missed + 1) * tm.interval
		if err := t.fireOne(tm, now); err != nil {
			return err
		}
	}
	return nil
}

func (t *Task) fireOne(tm *Timer, now int64) error {
	t.now = now
	if t.streamTime >= 0 {
		t.now = t.streamTime
	}
	return t.call("timer", tm.at, func() error {
		if err := tm.f(time.UnixMilli(now).UTC()); err != nil {
			return err
		}
		return t.layers.Err()
	})
}

// Punctuate implements task.Machine.
func (t *Task) Punctuate(wallMillis int64) (nextMillis int64, err error) {
	t.release()
	t.wall = wallMillis
	if err := t.fire(WallClock, wallMillis); err != nil {
		return 0, err
	}
	if err := t.serve(); err != nil {
		return 0, err
	}
	for _, tm := range t.timers.all {
		if !tm.gone && tm.kind == WallClock && (nextMillis == 0 || tm.next < nextMillis) {
			nextMillis = tm.next
		}
	}
	return t.soonest(nextMillis), nil
}
