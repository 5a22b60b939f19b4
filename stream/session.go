package stream

import (
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/state"
	"tailrace.dev/table"
)

// AggregateSessions folds the records of each session into a value, as Aggregate does; when a record makes sessions
// meet, mergeTwo makes one value of theirs, the earlier first. A session starts at the initial value: the values of the
// sessions that a record meets are merged into it one by one, and then the record is folded in. Both functions own the
// values that they are given.
//
// A record that changes the bounds of a session, or merges some, deletes their rows, each with a change of its own,
// and then forwards the row of the new session. The time of a row is the end of its session. A session that has
// closed, gap and grace period included, is not met any more. (Kafka Streams: SessionWindowedKStream#aggregate,
// KStreamSessionWindowAggregate.)
func AggregateSessions[K, V, A any](
	g *SessionGrouped[K, V], store *state.SessionSpec[K, A], f func(a A, k K, v V) A, mergeTwo func(k K, a, b A) A,
) *table.Table[state.Windowed[K], A] {
	given(g.s, "aggregate-sessions", f != nil && mergeTwo != nil)
	return fold(g, store, aggregation[K, V, A]{kind: "aggregate-sessions", own: true,
		step: func(initial func() A) step[K, V, A] {
			return func(a processor.Opt[A], r processor.Record[K, V]) processor.Opt[A] {
				if !a.OK {
					a.V = initial()
				}
				return processor.Some(f(a.V, r.Key, r.Value))
			}
		},
		merge: merging(mergeTwo)})
}

// AggregateSessionsRecord is AggregateSessions with a function that sees the whole record: its time, its headers, and
// tombstones, which are not dropped. (In Kafka Streams, the aggregator of sessions is called for records without a
// value.)
func AggregateSessionsRecord[K, V, A any](
	g *SessionGrouped[K, V], store *state.SessionSpec[K, A],
	f func(a A, r processor.Record[K, V]) A, mergeTwo func(k K, a, b A) A,
) *table.Table[state.Windowed[K], A] {
	given(g.s, "aggregate-sessions-record", f != nil && mergeTwo != nil)
	return fold(g, store, aggregation[K, V, A]{kind: "aggregate-sessions-record", own: true, records: true,
		step: func(initial func() A) step[K, V, A] {
			return func(a processor.Opt[A], r processor.Record[K, V]) processor.Opt[A] {
				if !a.OK {
					a.V = initial()
				}
				return processor.Some(f(a.V, r))
			}
		},
		merge: merging(mergeTwo)})
}

// FoldSessionsRecord is AggregateSessionsRecord with a function that can tell an absent value from a zero one, and can
// delete: when it returns an absent value there is no such session any more, and the table forwards a deletion. A
// session starts absent, and what the first of the merged sessions had is taken as it is.
func FoldSessionsRecord[K, V, A any](
	g *SessionGrouped[K, V], store *state.SessionSpec[K, A],
	f func(a processor.Opt[A], r processor.Record[K, V]) processor.Opt[A], mergeTwo func(k K, a, b A) A,
) *table.Table[state.Windowed[K], A] {
	given(g.s, "fold-sessions-record", f != nil && mergeTwo != nil)
	return fold(g, store, aggregation[K, V, A]{kind: "fold-sessions-record", own: true, records: true,
		step: func(func() A) step[K, V, A] { return f },
		merge: func(func() A) merge[K, A] {
			return func(k K, a, b processor.Opt[A]) processor.Opt[A] {
				if !a.OK {
					return b
				}
				return processor.Some(mergeTwo(k, a.V, b.V))
			}
		}})
}

// merging merges from the initial value on.
func merging[K, A any](mergeTwo func(k K, a, b A) A) func(initial func() A) merge[K, A] {
	return func(initial func() A) merge[K, A] {
		return func(k K, a, b processor.Opt[A]) processor.Opt[A] {
			if !a.OK {
				a.V = initial()
			}
			return processor.Some(mergeTwo(k, a.V, b.V))
		}
	}
}

// sessionFold is the operator that aggregates by sessions, in a task.
type sessionFold[K, V, A any] struct {
	t       *processor.Task
	w       SessionWindows
	store   *state.SessionStore[K, A]
	step    step[K, V, A]
	merge   merge[K, A]
	wantOld *bool
	pending *pending[K] // nil: emit on update
	next    processor.Handler[state.Windowed[K], table.Change[A]]
	spans   []state.SpanRow
	found   []foundSession[A]
}

// foundSession is a session that a record meets.
type foundSession[A any] struct {
	span state.Span
	old  processor.Opt[A] // where it is wanted
}

// foldSessions aggregates by sessions.
func foldSessions[K, V, A any](
	g *SessionGrouped[K, V], spec *state.SessionSpec[K, A], agg aggregation[K, V, A],
) *table.Table[state.Windowed[K], A] {
	wantOld := new(bool)
	op := processor.Operator{Kind: agg.kind, Owned: []state.AnySpec{spec}, KeyRequired: true}
	n := processor.Derive(g.s.node, op,
		func(t *processor.Task, next processor.Handler[state.Windowed[K], table.Change[A]]) (processor.Handler[K, V], error) {
			st, err := spec.Open(t)
			if err != nil {
				return nil, err
			}
			f := &sessionFold[K, V, A]{
				t: t, w: g.w, store: st, step: agg.step(spec.Initial), merge: agg.merge(spec.Initial), wantOld: wantOld,
				next: next,
			}
			if g.w.onClose {
				if f.pending, err = newPending(t, spec, spec.Key()); err != nil {
					return nil, err
				}
			}
			return func(r processor.Record[K, V]) error {
				if !agg.accepts(t, r.NoKey, r.Tombstone) {
					return nil
				}
				return f.process(r)
			}, nil
		})
	n.OnAskOld(wantOld)
	view := func(t *processor.Task) (table.Getter[state.Windowed[K], A], error) {
		st, err := spec.Open(t)
		if err != nil {
			return nil, err
		}
		return st.Lookup, nil
	}
	return result(n, view, spec, addMillis(g.w.gap, g.w.grace), true, g.w.onClose)
}

func (f *sessionFold[K, V, A]) process(r processor.Record[K, V]) error {
	ts := r.Time.UnixMilli()
	before, _, err := f.store.StreamTime()
	if err != nil {
		return err
	}
	now := max(before, ts)
	patience := addMillis(f.w.gap, f.w.grace)
	closed := subMillis(now, patience) // sessions that end before this have closed
	// Sessions are met as they were alive before this record.
	agg, merged, err := f.meet(r.Key, ts, addMillis(subMillis(before, patience), 1))
	if err != nil {
		return err
	}
	if merged.EndMillis < closed {
		f.t.Drop(processor.DropLate)
		return nil // and the stream time has not moved
	}
	if _, err := f.store.Observe(ts); err != nil {
		return err
	}
	w := state.Windowed[K]{Key: r.Key, Span: merged}
	var old processor.Opt[A]
	if point := (state.Span{StartMillis: ts, EndMillis: ts}); merged != point {
		for _, s := range f.found {
			if err := f.remove(r.Key, s); err != nil {
				return err
			}
		}
	} else if *f.wantOld && f.pending == nil {
		if old.V, _, old.OK, err = f.store.Peek(w); err != nil {
			return err
		}
	}
	if err := f.save(w, table.Change[A]{Old: old, New: f.step(agg, r)}); err != nil {
		return err
	}
	if f.pending == nil {
		return nil
	}
	return f.pending.drain(closed, func(end, start int64, k K) error {
		w := state.Windowed[K]{Key: k, Span: state.Span{StartMillis: start, EndMillis: end}}
		v, at, ok, err := f.store.Peek(w)
		if err != nil || !ok {
			return err
		}
		return f.forward(w, table.Change[A]{New: processor.Some(v)}, at)
	})
}

// meet finds the sessions no further than the gap from a time that end at alive or later, and merges their values.
func (f *sessionFold[K, V, A]) meet(k K, ts, alive int64) (a processor.Opt[A], merged state.Span, err error) {
	merged = state.Span{StartMillis: ts, EndMillis: ts}
	f.found = f.found[:0]
	f.spans, err = f.store.Spans(f.spans[:0], k, max(alive, subMillis(ts, f.w.gap)))
	if err != nil {
		return a, merged, err
	}
	latest := addMillis(ts, f.w.gap)
	for _, s := range f.spans {
		if s.StartMillis > latest {
			continue
		}
		v, _, ok, err := f.store.Peek(state.Windowed[K]{Key: k, Span: s.Span})
		if err != nil {
			return a, merged, err
		}
		if !ok {
			continue
		}
		found := foundSession[A]{span: s.Span}
		if *f.wantOld && f.pending == nil {
			// Decoded apart from what merge may change in place.
			w := state.Windowed[K]{Key: k, Span: s.Span}
			if found.old.V, _, found.old.OK, err = f.store.Peek(w); err != nil {
				return a, merged, err
			}
		}
		f.found = append(f.found, found)
		a = f.merge(k, a, processor.Some(v))
		merged.StartMillis = min(merged.StartMillis, s.StartMillis)
		merged.EndMillis = max(merged.EndMillis, s.EndMillis)
	}
	return a, merged, nil
}

// remove deletes a session that has become part of another.
func (f *sessionFold[K, V, A]) remove(k K, s foundSession[A]) error {
	w := state.Windowed[K]{Key: k, Span: s.span}
	if err := f.store.Delete(w); err != nil {
		return err
	}
	if f.pending != nil {
		return f.pending.remove(w.EndMillis, w.StartMillis, k)
	}
	return f.forward(w, table.Change[A]{Old: s.old}, w.EndMillis)
}

// save writes a session, and forwards it or queues it until it closes.
func (f *sessionFold[K, V, A]) save(w state.Windowed[K], c table.Change[A]) error {
	if !c.New.OK {
		if err := f.store.Delete(w); err != nil {
			return err
		}
		if f.pending != nil {
			return f.pending.remove(w.EndMillis, w.StartMillis, w.Key)
		}
		return f.forward(w, c, w.EndMillis)
	}
	if err := f.store.SetAt(w, c.New.V, w.EndMillis); err != nil {
		return err
	}
	if f.pending != nil {
		return f.pending.add(w.EndMillis, w.StartMillis, w.Key)
	}
	return f.forward(w, c, w.EndMillis)
}

func (f *sessionFold[K, V, A]) forward(w state.Windowed[K], c table.Change[A], at int64) error {
	return f.next(processor.Record[state.Windowed[K], table.Change[A]]{Key: w, Value: c, Time: time.UnixMilli(at).UTC()})
}
