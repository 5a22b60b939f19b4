package processor

import (
	"math"
	"time"
)

// TimeKind is the clock that a timer follows.
type TimeKind int

const (
	// StreamTime follows the highest record time that the task has seen: it moves with data only, and is the same
	// at each replay. The first call comes with the first record, then at each multiple of the interval after it;
	// what was missed is made up by one call. (Kafka Streams: PunctuationType.STREAM_TIME.)
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
	if !tm.gone {
		tm.owner.note(tm)
		tm.gone = true
	}
}

// timers are those of one task, and what undoes changes to them since a savepoint.
type timers struct {
	all  []*Timer
	undo []timerUndo
	mark int
}

type timerUndo struct {
	timer *Timer
	next  int64
	gone  bool
}

func (ts *timers) savepoint() {
	ts.undo = ts.undo[:0]
	live := ts.all[:0]
	for _, tm := range ts.all {
		if !tm.gone {
			live = append(live, tm)
		}
	}
	clear(ts.all[len(live):])
	ts.all = live
	ts.mark = len(ts.all)
}

func (ts *timers) note(tm *Timer) {
	ts.undo = append(ts.undo, timerUndo{tm, tm.next, tm.gone})
}

func (ts *timers) rollback() {
	for i := len(ts.undo) - 1; i >= 0; i-- {
		u := ts.undo[i]
		u.timer.next, u.timer.gone = u.next, u.gone
	}
	ts.undo = ts.undo[:0]
	for _, tm := range ts.all[ts.mark:] {
		tm.gone = true
	}
	ts.all = ts.all[:ts.mark]
}

// unscheduled is the next time of a stream-time timer before the first record.
const unscheduled = math.MinInt64

func (t *Task) schedule(at *node, kind TimeKind, interval time.Duration, f func(now time.Time) error) *Timer {
	tm := &Timer{kind: kind, interval: max(1, interval.Milliseconds()), at: at, f: f, owner: &t.timers}
	if kind == WallClock {
		tm.next = t.wall + tm.interval
	} else {
		tm.next = unscheduled
	}
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

func (t *Task) fire(kind TimeKind, now int64) error {
	for i := 0; i < len(t.timers.all); i++ { // a timer may schedule others
		tm := t.timers.all[i]
		if tm.gone || tm.kind != kind || tm.next > now {
			continue
		}
		t.timers.note(tm)
		if tm.next == unscheduled {
			tm.next = now
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
	record, was := t.record, t.now
	t.record, t.now, t.at = nil, now, tm.at
	if t.streamTime >= 0 {
		t.now = t.streamTime
	}
	err := t.call(func() error { return tm.f(time.UnixMilli(now).UTC()) })
	t.record, t.now = record, was
	return err
}

// Punctuate implements task.Machine.
func (t *Task) Punctuate(wallMillis int64) (nextMillis int64, err error) {
	t.release()
	t.wall = wallMillis
	if err := t.fire(WallClock, wallMillis); err != nil {
		return 0, err
	}
	for _, tm := range t.timers.all {
		if !tm.gone && tm.kind == WallClock && (nextMillis == 0 || tm.next < nextMillis) {
			nextMillis = tm.next
		}
	}
	return nextMillis, nil
}
