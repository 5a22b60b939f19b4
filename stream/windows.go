package stream

import (
	"fmt"
	"math"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/state"
	"tailrace.dev/table"
)

// Windows says which windows a record belongs to, and for how long they take records: one of Tumbling, Hopping, Sliding
// and Unlimited, and its options. It is a value; options return another one.
//
// Windows live by stream time: the largest time of the records that have reached the operator. It moves with records
// only, never with the clock on the wall, and is kept in the operator's store, so that it survives restarts.
type Windows struct {
	kind    windowKind
	size    int64 // sliding: the largest difference of times
	advance int64
	start   int64 // unlimited
	grace   int64
	onClose bool
	err     error
}

type windowKind int

const (
	noWindows windowKind = iota
	hopping              // tumbling, too
	sliding
	unlimited
)

// millis returns a duration in milliseconds, and an error unless it is a whole number of them, at least least.
func millis(what string, d time.Duration, least int64) (int64, error) {
	if d == math.MaxInt64 {
		return math.MaxInt64, nil
	}
	if d%time.Millisecond != 0 || d.Milliseconds() < least {
		return max(d.Milliseconds(), least),
			fmt.Errorf("the %s is %v: it must be a whole number of milliseconds, %d at least", what, d, least)
	}
	return d.Milliseconds(), nil
}

// Tumbling returns windows of a fixed size that follow each other without a gap: each record belongs to one. They are
// aligned to the epoch; the start belongs to the window, the end to the next. (Kafka Streams: TimeWindows.)
func Tumbling(size time.Duration) Windows { return Hopping(size, size) }

// Hopping returns windows of a fixed size that start at each multiple of advance since the epoch, so that a record
// belongs to several when advance is smaller than size. The start belongs to the window, the end does not. (Kafka
// Streams: TimeWindows#advanceBy.)
func Hopping(size, advance time.Duration) Windows {
	w := Windows{kind: hopping}
	w.size, w.err = millis("size of the windows", size, 1)
	var err error
	if w.advance, err = millis("advance of the windows", advance, 1); w.err == nil {
		w.err = err
	}
	if w.err == nil && w.advance > w.size {
		w.err = fmt.Errorf("the windows advance by %v, more than their size %v: some records would be in none", advance, size)
	}
	return w
}

// Sliding returns windows that move over the records continuously: two records of a key are in a window together when
// their times differ by difference or less. There is a window for each different content: one that ends at each
// record's time, and one that starts a millisecond after it, if there are later records for it. Both ends belong to
// the window. Records less than difference after the epoch share the window that starts there. (Kafka Streams:
// SlidingWindows.)
func Sliding(difference time.Duration) Windows {
	w := Windows{kind: sliding}
	w.size, w.err = millis("difference of times", difference, 0)
	return w
}

// Unlimited returns a single window that starts at a time and never ends; earlier records are in none. Its store keeps
// rows by state.Forever. (Kafka Streams: UnlimitedWindows.)
func Unlimited(start time.Time) Windows {
	w := Windows{kind: unlimited, size: math.MaxInt64, start: start.UnixMilli()}
	if w.start < 0 {
		w.err = fmt.Errorf("the window starts at %v, before the epoch", start)
	}
	return w
}

// Grace returns the windows with a grace period: for how long after the end of a window, in stream time, late records
// are still taken for it. Without it that is 0. A record that is too late for a window is dropped and counted, for each
// such window once.
func (w Windows) Grace(d time.Duration) Windows {
	var err error
	if w.grace, err = millis("grace period", d, 0); w.err == nil {
		w.err = err
	}
	return w
}

// EmitOnClose returns the windows with one result for each, when the window and its grace period have passed, in place
// of one for each record. Windows that a record closes come out after it was counted itself, in the order of their
// starts and then of the serialised keys, however many there are and however far the time has jumped. Their records
// have the time of the window's row and no headers. (Kafka Streams: EmitStrategy.onWindowClose, which loses windows
// when the time jumps.)
func (w Windows) EmitOnClose() Windows {
	w.onClose = true
	if w.kind == unlimited && w.err == nil {
		w.err = fmt.Errorf("a window without an end never closes: EmitOnClose would give no result")
	}
	return w
}

// MinRetention returns the shortest retention that a window store for these windows may have: what the operator has to
// look back at. It is size + grace, 3 × difference + grace for sliding windows and state.Forever for unlimited ones.
func (w Windows) MinRetention() time.Duration {
	n := w.size
	if w.kind == sliding {
		n = addMillis(addMillis(n, n), n)
	}
	return duration(max(1, addMillis(n, w.grace)))
}

// SessionWindows says which records make a session, and for how long sessions take records: see Sessions. It is a
// value; options return another one.
type SessionWindows struct {
	gap, grace int64
	onClose    bool
	err        error
}

// Sessions returns windows of activity: records of a key are in a session together as long as the next is no more than
// gap after the one before. A session starts with its first record and ends with its last, which both belong to it; a
// record that lies between two merges them. (Kafka Streams: SessionWindows.)
func Sessions(gap time.Duration) SessionWindows {
	var w SessionWindows
	w.gap, w.err = millis("gap of the sessions", gap, 1)
	return w
}

// Grace returns the sessions with a grace period: for how long after the end of a session and its gap, in stream time,
// late records are still taken for it. Without it that is 0. Later ones are dropped and counted.
func (w SessionWindows) Grace(d time.Duration) SessionWindows {
	var err error
	if w.grace, err = millis("grace period", d, 0); w.err == nil {
		w.err = err
	}
	return w
}

// EmitOnClose returns the sessions with one result for each, when the session, its gap and its grace period have
// passed, in place of one for each record. Sessions that a record closes come out after it was counted itself, in the
// order of their ends, then of their starts and then of the serialised keys.
func (w SessionWindows) EmitOnClose() SessionWindows {
	w.onClose = true
	return w
}

// MinRetention returns the shortest retention that a session store for these sessions may have: gap + grace.
func (w SessionWindows) MinRetention() time.Duration { return duration(addMillis(w.gap, w.grace)) }

// duration returns milliseconds as a duration, or the longest.
func duration(millis int64) time.Duration {
	if millis > math.MaxInt64/int64(time.Millisecond) {
		return state.Forever
	}
	return time.Duration(millis) * time.Millisecond
}

// addMillis and subMillis stay at the ends of the int64 range.
func addMillis(a, b int64) int64 {
	if s := a + b; (a < 0) != (b < 0) || (s < 0) == (a < 0) {
		return s
	}
	if a < 0 {
		return math.MinInt64
	}
	return math.MaxInt64
}

func subMillis(a, b int64) int64 { return addMillis(a, -b) } // b is never the smallest number

// WindowGrouped is a stream grouped by its key and by windows.
type WindowGrouped[K, V any] struct {
	s *Stream[K, V]
	w Windows
}

func (g *WindowGrouped[K, V]) grouping(K, V, state.Windowed[K]) {}
func (g *WindowGrouped[K, V]) source() *Stream[K, V]            { return g.s }

// WindowBy makes a grouped stream ready to be aggregated by windows: the functions that aggregate give a table whose
// keys are the stream's keys with a window. Its store is declared by state.Window, with a retention of
// Windows.MinRetention or more.
//
//	perHour := stream.WindowBy(stream.Group(clicks), stream.Tumbling(time.Hour).Grace(time.Minute))
//	counts := stream.Count(perHour, Hourly)
//
// (Kafka Streams: KGroupedStream#windowedBy.)
func WindowBy[K, V any](g *Grouped[K, V], w Windows) *WindowGrouped[K, V] {
	if w.kind == noWindows && w.err == nil {
		w.err = fmt.Errorf("the windows are not set: use Tumbling, Hopping, Sliding or Unlimited")
	}
	if w.err != nil {
		g.s.node.Builder().Fail("window-by", "%v", w.err)
	}
	return &WindowGrouped[K, V]{g.s, w}
}

// SessionGrouped is a stream grouped by its key and by sessions.
type SessionGrouped[K, V any] struct {
	s *Stream[K, V]
	w SessionWindows
}

func (g *SessionGrouped[K, V]) grouping(K, V, state.Windowed[K]) {}
func (g *SessionGrouped[K, V]) source() *Stream[K, V]            { return g.s }

// SessionBy makes a grouped stream ready to be aggregated by sessions: by Count, CountRecord, Reduce, and by those of
// the functions whose name says Sessions. Its store is declared by state.Session, with a retention of
// SessionWindows.MinRetention or more. (Kafka Streams: KGroupedStream#windowedBy.)
func SessionBy[K, V any](g *Grouped[K, V], w SessionWindows) *SessionGrouped[K, V] {
	if w.gap == 0 && w.err == nil {
		w.err = fmt.Errorf("the sessions are not set: use Sessions")
	}
	if w.err != nil {
		g.s.node.Builder().Fail("session-by", "%v", w.err)
	}
	return &SessionGrouped[K, V]{g.s, w}
}

// result makes the table of an aggregation by windows.
func result[K, A any](
	n *processor.Node[state.Windowed[K], table.Change[A]], view table.View[state.Windowed[K], A], store state.AnySpec,
	graceMillis int64, inclusive, final bool,
) *table.Table[state.Windowed[K], A] {
	return table.New(n, view, store).WithClosing(&table.Closing[state.Windowed[K]]{
		Span:        func(k state.Windowed[K]) state.Span { return k.Span },
		GraceMillis: graceMillis, Inclusive: inclusive, Final: final,
	})
}

// checkRetention reports a store that would forget rows which the operator has to look back at.
func checkRetention(b *processor.Builder, kind, store string, have, need time.Duration) {
	if have < need {
		b.Fail(kind, "store %q keeps rows for %v, but the windows and their grace period need %v: declare it with "+
			"their MinRetention or more", store, have, need)
	}
}
