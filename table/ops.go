package table

import (
	"slices"

	"tailrace.dev/processor"
)

// FilterOption changes how Filter and FilterNot work.
type FilterOption int

// Quiet forwards no deletion for a row that had not passed before. It costs a look at the old value for each change.
// (Kafka Streams does so where the table it filters is materialised by name.)
const Quiet FilterOption = 1

func filter[K, V any](t *Table[K, V], kind string, keep func(k K, v V) bool, opts []FilterOption) *Table[K, V] {
	out := derive(t, kind, func(k K, v V) (V, bool) { return v, keep(k, v) }, true)
	if slices.Contains(opts, Quiet) {
		RequireStored(t, kind)
		out.node.AskOld()
	}
	return out
}

// Filter keeps the rows that keep is true for; the others are absent from the result. keep is not called for deletions.
//
// A row that does not pass is forwarded as a deletion even when it had never passed, unless Quiet is given or something
// below asks for old values, which shows that there is nothing to delete. The time of the result is that of the change. (Kafka
// Streams: KTable#filter, KTableFilter.)
func Filter[K, V any](t *Table[K, V], keep func(k K, v V) bool, opts ...FilterOption) *Table[K, V] {
	given(t, "filter", keep != nil)
	return filter(t, "filter", keep, opts)
}

// FilterNot keeps the rows that drop is false for. It is Filter with the opposite function.
func FilterNot[K, V any](t *Table[K, V], drop func(k K, v V) bool, opts ...FilterOption) *Table[K, V] {
	given(t, "filter-not", drop != nil)
	return filter(t, "filter-not", func(k K, v V) bool { return !drop(k, v) }, opts)
}

// Map makes another value of each row's value. f is not called for deletions, which pass. The result is not stored: it
// is computed again where it is looked up. The time of the result is that of the change. (Kafka Streams:
// KTable#mapValues.)
func Map[K, V, W any](t *Table[K, V], f func(k K, v V) W) *Table[K, W] {
	given(t, "map", f != nil)
	return derive(t, "map", func(k K, v V) (W, bool) { return f(k, v), true }, false)
}

// given reports a function that is nil at the call, which would otherwise panic at the first record.
func given[K, V any](t *Table[K, V], kind string, ok bool) {
	if !ok {
		t.node.Builder().Fail(kind, "the function is nil")
	}
}

// derive makes a table of a pure function of each row; filters tells that the function may leave rows out.
func derive[K, V, W any](t *Table[K, V], kind string, f func(k K, v V) (W, bool), filters bool) *Table[K, W] {
	opt := func(k K, o processor.Opt[V]) (w processor.Opt[W]) {
		if o.OK {
			w.V, w.OK = f(k, o.V)
			if !w.OK {
				w = processor.None[W]()
			}
		}
		return w
	}
	wantOld := new(bool)
	n := processor.Derive(t.node, processor.Operator{Kind: kind},
		func(_ *processor.Task, next processor.Handler[K, Change[W]]) (processor.Handler[K, Change[V]], error) {
			return func(r processor.Record[K, Change[V]]) error {
				c := Change[W]{New: opt(r.Key, r.Value.New), Outdated: r.Value.Outdated}
				if *wantOld {
					c.Old = opt(r.Key, r.Value.Old)
					if filters && !c.Old.OK && !c.New.OK {
						return nil // nothing was there and nothing is
					}
				}
				return next(processor.WithValue(r, c))
			}, nil
		})
	n.OnAskOld(wantOld)
	if t.view == nil {
		return New[K, W](n, nil)
	}
	view := func(tk *processor.Task) (Getter[K, W], error) {
		get, err := t.view(tk)
		if err != nil {
			return nil, err
		}
		return func(k K) (w W, timeMillis int64, ok bool, err error) {
			v, timeMillis, ok, err := get(k)
			if err != nil || !ok {
				return w, 0, false, err
			}
			w, ok = f(k, v)
			return w, timeMillis, ok, nil
		}, nil
	}
	out := New(n, view, t.stores...).WithClosing(t.closing)
	if t.asOf != nil {
		out.history = t.history
		out.asOf = func(tk *processor.Task) (AsOfGetter[K, W], error) {
			get, err := t.asOf(tk)
			if err != nil {
				return nil, err
			}
			return func(k K, at int64) (w W, timeMillis int64, ok bool, err error) {
				v, timeMillis, ok, err := get(k, at)
				if err != nil || !ok {
					return w, 0, false, err
				}
				w, ok = f(k, v)
				return w, timeMillis, ok, nil
			}, nil
		}
	}
	return out
}
