package stream

import (
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/state"
	"tailrace.dev/table"
)

// windowFold is the operator that aggregates by windows, in a task.
type windowFold[K, V, A any] struct {
	t       *processor.Task
	store   *state.WindowStore[K, A]
	put     func(w state.Windowed[K], a A, timeMillis int64) error
	step    step[K, V, A]
	wantOld *bool
	pending *pending[K] // nil: emit on update
	next    processor.Handler[state.Windowed[K], table.Change[A]]
}

// windowedTable adds an operator that aggregates by windows. start makes, in each task, what handles a record.
func windowedTable[K, V, A any](
	g *WindowGrouped[K, V], spec *state.WindowSpec[K, A], agg aggregation[K, V, A],
	start func(f *windowFold[K, V, A]) processor.Handler[K, V],
) *table.Table[state.Windowed[K], A] {
	wantOld := new(bool)
	op := processor.Operator{Kind: agg.kind, Owned: []state.AnySpec{spec}, KeyRequired: true}
	n := processor.Derive(g.s.node, op,
		func(t *processor.Task, next processor.Handler[state.Windowed[K], table.Change[A]]) (processor.Handler[K, V], error) {
			st, err := spec.Open(t)
			if err != nil {
				return nil, err
			}
			f := &windowFold[K, V, A]{
				t: t, store: st, put: st.SetAt, step: agg.step(spec.Initial), wantOld: wantOld, next: next,
			}
			if agg.own {
				f.put = st.Give
			}
			if g.w.onClose {
				if f.pending, err = newPending(t, spec, spec.Key()); err != nil {
					return nil, err
				}
			}
			return start(f), nil
		})
	n.OnAskOld(wantOld)
	view := func(t *processor.Task) (table.Getter[state.Windowed[K], A], error) {
		st, err := spec.Open(t)
		if err != nil {
			return nil, err
		}
		return st.Lookup, nil
	}
	return result(n, view, spec, g.w.grace, g.w.kind == sliding, g.w.onClose)
}

// foldWindows aggregates by tumbling and hopping windows, and by an unlimited one.
func foldWindows[K, V, A any](
	g *WindowGrouped[K, V], spec *state.WindowSpec[K, A], agg aggregation[K, V, A],
) *table.Table[state.Windowed[K], A] {
	w := g.w
	return windowedTable(g, spec, agg, func(f *windowFold[K, V, A]) processor.Handler[K, V] {
		return func(r processor.Record[K, V]) error {
			if !agg.accepts(f.t, r.NoKey, r.Tombstone) {
				return nil
			}
			ts := r.Time.UnixMilli()
			now, err := f.store.Observe(ts)
			if err != nil {
				return err
			}
			closed := subMillis(now, w.grace) // windows that end here or before
			for start := w.first(ts); start >= 0 && start <= ts; start += w.advance {
				end := addMillis(start, w.size)
				if end <= closed {
					f.t.Drop(processor.DropLate)
				} else if err := f.update(r, state.Span{StartMillis: start, EndMillis: end}); err != nil {
					return err
				}
				if w.kind == unlimited || start > subMillis(ts, w.advance) {
					break
				}
			}
			if f.pending == nil {
				return nil
			}
			return f.emit(addMillis(subMillis(closed, w.size), 1))
		}
	})
}

// first returns the start of the earliest window that a record with the given time is in, or is behind, or a negative
// number when there is none.
func (w *Windows) first(ts int64) int64 {
	if w.kind == unlimited {
		return w.start
	}
	if ts < 0 {
		return -1
	}
	if w.advance == w.size {
		return ts - ts%w.size
	}
	first := max(0, addMillis(subMillis(ts, w.size), w.advance))
	return first - first%w.advance
}

// update folds a record into one window.
func (f *windowFold[K, V, A]) update(r processor.Record[K, V], span state.Span) error {
	w := state.Windowed[K]{Key: r.Key, Span: span}
	var c table.Change[A]
	var err error
	if *f.wantOld && f.pending == nil {
		// Decoded apart from what step is going to change in place.
		if c.Old.V, c.Old.OK, err = f.store.Get(w); err != nil {
			return err
		}
	}
	var a processor.Opt[A]
	var at int64
	if a.V, at, a.OK, err = f.store.Take(w); err != nil {
		return err
	}
	was := a.OK
	c.New = f.step(a, r)
	if !was || at < r.Time.UnixMilli() {
		at = r.Time.UnixMilli()
	}
	return f.save(r, w, was, c, at)
}

// save writes the new value of a window, and forwards it or queues it until the window closes.
func (f *windowFold[K, V, A]) save(
	r processor.Record[K, V], w state.Windowed[K], was bool, c table.Change[A], at int64,
) error {
	var err error
	if c.New.OK {
		err = f.put(w, c.New.V, at)
	} else {
		err = f.store.Delete(w)
	}
	switch {
	case err != nil:
		return err
	case f.pending == nil:
		return f.next(processor.Record[state.Windowed[K], table.Change[A]]{
			Key: w, Value: c, Time: time.UnixMilli(at).UTC(), Headers: r.Headers,
		})
	case c.New.OK && !was:
		return f.pending.add(w.StartMillis, w.EndMillis, w.Key)
	case !c.New.OK && was:
		return f.pending.remove(w.StartMillis, w.EndMillis, w.Key)
	}
	return nil
}

// emit forwards the windows that start before limit: those that have closed. All are of one size.
func (f *windowFold[K, V, A]) emit(limit int64) error {
	return f.pending.drain(limit, func(start, end int64, k K) error {
		w := state.Windowed[K]{Key: k, Span: state.Span{StartMillis: start, EndMillis: end}}
		v, at, ok, err := f.store.Peek(w)
		if err != nil || !ok {
			return err
		}
		return f.next(processor.Record[state.Windowed[K], table.Change[A]]{
			Key: w, Value: table.Change[A]{New: processor.Some(v)}, Time: time.UnixMilli(at).UTC(),
		})
	})
}
