package state

import (
	"fmt"
	"iter"
	"math"
)

// WindowStore is a window store as one task sees it: its partition's rows, the uncommitted writes of the batch in
// progress included. It belongs to the task and must not be used outside of the calls that the task makes.
//
// A row expires when the store has seen a time that is the spec's retention or more after the start of its window:
// reads do not find it any more, and its slice of time is removed from the disk as a whole later. The store has seen
// the starts of the windows that were put, and what Observe told it. (Kafka Streams: WindowStore.)
//
// Errors of its methods are those of the serdes, which are the caller's to judge, or of the local state, which are best
// returned: the task stops, and its work is done again from the last commit.
type WindowStore[K, V any] struct{ timedStore[K, V] }

// Open returns the store in a task. Processors call it once, in Init:
//
//	s.hourly, err = Hourly.Open(ctx)
func (s *WindowSpec[K, V]) Open(env Env) (*WindowStore[K, V], error) {
	rows, err := env.StoreRows(s)
	if err != nil {
		return nil, err
	}
	if rows.spec != AnySpec(s) {
		return nil, fmt.Errorf("%w: %q", ErrWrongStore, s.name)
	}
	if rows.typed != nil {
		return rows.typed.(*WindowStore[K, V]), nil // the spec's identity has fixed the types
	}
	st := &WindowStore[K, V]{timedStore[K, V]{spec: &s.timedSpec}}
	st.init(env, rows)
	rows.typed = st
	return st, nil
}

// Fetch iterates over the windows of a key with fromMillis <= start < toMillis, in the order of their starts.
func (s *WindowStore[K, V]) Fetch(k K, fromMillis, toMillis int64) iter.Seq2[Entry[Windowed[K], V], error] {
	return s.entries(&k, fromMillis, toMillis, false, nil)
}

// FetchBackward is Fetch from the last window to the first.
func (s *WindowStore[K, V]) FetchBackward(k K, fromMillis, toMillis int64) iter.Seq2[Entry[Windowed[K], V], error] {
	return s.entries(&k, fromMillis, toMillis, true, nil)
}

// FetchAll iterates over the windows of all keys with fromMillis <= start < toMillis, in the order of All.
func (s *WindowStore[K, V]) FetchAll(fromMillis, toMillis int64) iter.Seq2[Entry[Windowed[K], V], error] {
	return s.entries(nil, fromMillis, toMillis, false, nil)
}

// FetchAllBackward is FetchAll from the last window to the first.
func (s *WindowStore[K, V]) FetchAllBackward(fromMillis, toMillis int64) iter.Seq2[Entry[Windowed[K], V], error] {
	return s.entries(nil, fromMillis, toMillis, true, nil)
}

// Spans appends the windows of a key with fromMillis <= start < toMillis to dst, in the order of their starts, with the
// times of their rows and without decoding values. Windows that have just expired, and hidden ones, are among them. It
// is for operators.
func (s *WindowStore[K, V]) Spans(dst []SpanRow, k K, fromMillis, toMillis int64) ([]SpanRow, error) {
	return s.spans(dst, k, fromMillis, toMillis)
}

// SessionStore is a session store as one task sees it: its partition's rows, the uncommitted writes of the batch in
// progress included. It belongs to the task and must not be used outside of the calls that the task makes.
//
// A row expires when the store has seen a time that is the spec's retention or more after the end of its session: reads
// do not find it any more, and its slice of time is removed from the disk as a whole later. The store has seen the ends
// of the sessions that were put, and what Observe told it. (Kafka Streams: SessionStore.)
//
// Errors of its methods are those of the serdes, which are the caller's to judge, or of the local state, which are best
// returned: the task stops, and its work is done again from the last commit.
type SessionStore[K, V any] struct{ timedStore[K, V] }

// Open returns the store in a task. Processors call it once, in Init.
func (s *SessionSpec[K, V]) Open(env Env) (*SessionStore[K, V], error) {
	rows, err := env.StoreRows(s)
	if err != nil {
		return nil, err
	}
	if rows.spec != AnySpec(s) {
		return nil, fmt.Errorf("%w: %q", ErrWrongStore, s.name)
	}
	if rows.typed != nil {
		return rows.typed.(*SessionStore[K, V]), nil // the spec's identity has fixed the types
	}
	st := &SessionStore[K, V]{timedStore[K, V]{spec: &s.timedSpec, sessions: true}}
	st.init(env, rows)
	rows.typed = st
	return st, nil
}

// Find iterates over the sessions of a key that end at earliestEndMillis or later and start at latestStartMillis or
// earlier, in the order of their ends: those that meet the span between the two.
func (s *SessionStore[K, V]) Find(
	k K, earliestEndMillis, latestStartMillis int64,
) iter.Seq2[Entry[Windowed[K], V], error] {
	return s.find(&k, earliestEndMillis, latestStartMillis, false)
}

// FindBackward is Find from the last session to the first.
func (s *SessionStore[K, V]) FindBackward(
	k K, earliestEndMillis, latestStartMillis int64,
) iter.Seq2[Entry[Windowed[K], V], error] {
	return s.find(&k, earliestEndMillis, latestStartMillis, true)
}

// FindAll is Find for all keys, in the order of All.
func (s *SessionStore[K, V]) FindAll(
	earliestEndMillis, latestStartMillis int64,
) iter.Seq2[Entry[Windowed[K], V], error] {
	return s.find(nil, earliestEndMillis, latestStartMillis, false)
}

// FindAllBackward is FindAll from the last session to the first.
func (s *SessionStore[K, V]) FindAllBackward(
	earliestEndMillis, latestStartMillis int64,
) iter.Seq2[Entry[Windowed[K], V], error] {
	return s.find(nil, earliestEndMillis, latestStartMillis, true)
}

func (s *SessionStore[K, V]) find(
	k *K, earliestEnd, latestStart int64, reverse bool,
) iter.Seq2[Entry[Windowed[K], V], error] {
	return s.entries(k, earliestEnd, math.MaxInt64, reverse, func(w Span) bool { return w.StartMillis <= latestStart })
}

// Spans appends the sessions of a key that end at earliestEndMillis or later to dst, in the order of their ends,
// without decoding values. Sessions that have just expired are among them. It is for operators.
func (s *SessionStore[K, V]) Spans(dst []SpanRow, k K, earliestEndMillis int64) ([]SpanRow, error) {
	return s.spans(dst, k, earliestEndMillis, math.MaxInt64)
}
