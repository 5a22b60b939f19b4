package table

import (
	"slices"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/state"
)

// Join joins two tables by key: a row of the result is there while both sides have one. A change of either side looks
// up the other and updates the result; a deletion of either side, with the other present, forwards a deletion.
//
// Both sides must be partitioned alike by equally encoded keys, which is checked when the topology is built and when
// the application starts. The time of the result is the larger of the two rows'; it may go back, because tables are
// ordered by offset. (Kafka Streams: KTable#join, KTableKTableInnerJoin.)
func Join[K, L, R, W any](left *Table[K, L], right *Table[K, R], f func(k K, l L, r R) W) *Table[K, W] {
	given(left, "join", f != nil)
	return join(left, right, "join", needs{left: true, right: true}, func(k K, l processor.Opt[L], r processor.Opt[R]) (W, bool) {
		if !l.OK || !r.OK {
			var none W
			return none, false
		}
		return f(k, l.V, r.V), true
	})
}

// LeftJoin joins two tables by key: a row of the result is there while the left side has one, with what the right side
// has or lacks.
//
// The rest is as in Join. (Kafka Streams: KTable#leftJoin, KTableKTableLeftJoin.)
func LeftJoin[K, L, R, W any](
	left *Table[K, L], right *Table[K, R], f func(k K, l L, r processor.Opt[R]) W,
) *Table[K, W] {
	given(left, "left-join", f != nil)
	return join(left, right, "left-join", needs{left: true}, func(k K, l processor.Opt[L], r processor.Opt[R]) (W, bool) {
		if !l.OK {
			var none W
			return none, false
		}
		return f(k, l.V, r), true
	})
}

// OuterJoin joins two tables by key: a row of the result is there while at least one side has one.
//
// The rest is as in Join. (Kafka Streams: KTable#outerJoin, KTableKTableOuterJoin.)
func OuterJoin[K, L, R, W any](
	left *Table[K, L], right *Table[K, R], f func(k K, l processor.Opt[L], r processor.Opt[R]) W,
) *Table[K, W] {
	given(left, "outer-join", f != nil)
	return join(left, right, "outer-join", needs{}, func(k K, l processor.Opt[L], r processor.Opt[R]) (W, bool) {
		if !l.OK && !r.OK {
			var none W
			return none, false
		}
		return f(k, l, r), true
	})
}

// needs tells which sides a result cannot do without.
type needs struct{ left, right bool }

// combiner makes a row of the result, or tells that there is none.
type combiner[K, L, R, W any] func(k K, l processor.Opt[L], r processor.Opt[R]) (W, bool)

// join is what the joins by key share. A change of one side is of no consequence while the other lacks a row that the
// result needs. An outdated change, which only a versioned table has, is dropped and counted (KIP-914).
func join[K, L, R, W any](
	left *Table[K, L], right *Table[K, R], kind string, need needs, combine combiner[K, L, R, W],
) *Table[K, W] {
	if right == nil {
		left.node.Builder().Fail(kind, "the right table is nil")
		right = &Table[K, R]{node: processor.Derive(left.node, processor.Operator{Kind: kind},
			func(*processor.Task, processor.Handler[K, Change[R]]) (processor.Handler[K, Change[L]], error) {
				return nil, nil
			})}
		right.view = func(*processor.Task) (Getter[K, R], error) { return nil, nil } // the one mistake will do
	}
	RequireStored(left, kind)
	RequireStored(right, kind)
	wantOld := new(bool)
	// Where one side is enough, old values are what tells a deletion of something from one of nothing.
	if !need.right {
		left.node.AskOld()
	}
	if !need.left {
		right.node.AskOld()
	}
	stores := union(left.stores, right.stores)
	op := processor.Operator{Kind: kind, Stores: stores, NeedsKey: true}
	type next = processor.Handler[K, Change[W]]
	result := func(k K, l processor.Opt[L], r processor.Opt[R]) (w processor.Opt[W]) {
		if v, ok := combine(k, l, r); ok {
			return processor.Some(v)
		}
		return w
	}
	n := processor.Derive2(left.node, right.node, op,
		func(t *processor.Task, next next) (
			processor.Handler[K, Change[L]], processor.Handler[K, Change[R]], error,
		) {
			getLeft, err := left.view(t)
			if err != nil {
				return nil, nil, err
			}
			getRight, err := right.view(t)
			if err != nil {
				return nil, nil, err
			}
			onLeft := func(r processor.Record[K, Change[L]]) error {
				if r.Value.Outdated {
					t.Drop(processor.DropOutdated)
					return nil
				}
				other, at, err := lookup(getRight, r.Key)
				if err != nil || (need.right && !other.OK) {
					return err
				}
				if !other.OK && !r.Value.New.OK && !r.Value.Old.OK {
					return nil // there was no row, and there is none
				}
				c := Change[W]{New: result(r.Key, r.Value.New, other)}
				if *wantOld {
					c.Old = result(r.Key, r.Value.Old, other)
				}
				return next(later(processor.WithValue(r, c), other.OK, at))
			}
			onRight := func(r processor.Record[K, Change[R]]) error {
				if r.Value.Outdated {
					t.Drop(processor.DropOutdated)
					return nil
				}
				other, at, err := lookup(getLeft, r.Key)
				if err != nil || (need.left && !other.OK) {
					return err
				}
				if !other.OK && !r.Value.New.OK && !r.Value.Old.OK {
					return nil
				}
				c := Change[W]{New: result(r.Key, other, r.Value.New)}
				if *wantOld {
					c.Old = result(r.Key, other, r.Value.Old)
				}
				return next(later(processor.WithValue(r, c), other.OK, at))
			}
			return onLeft, onRight, nil
		})
	n.OnAskOld(wantOld)
	view := func(t *processor.Task) (Getter[K, W], error) {
		getLeft, err := left.view(t)
		if err != nil {
			return nil, err
		}
		getRight, err := right.view(t)
		if err != nil {
			return nil, err
		}
		return func(k K) (w W, timeMillis int64, ok bool, err error) {
			l, leftAt, err := lookup(getLeft, k)
			if err != nil {
				return w, 0, false, err
			}
			r, rightAt, err := lookup(getRight, k)
			if err != nil {
				return w, 0, false, err
			}
			w, ok = combine(k, l, r)
			return w, max(leftAt, rightAt), ok, nil
		}, nil
	}
	return New(n, view, stores...)
}

func lookup[K, V any](get Getter[K, V], k K) (o processor.Opt[V], timeMillis int64, err error) {
	o.V, timeMillis, o.OK, err = get(k)
	return o, timeMillis, err
}

// later gives a record the time of the other side, if that is later.
func later[K, V any](r processor.Record[K, V], other bool, timeMillis int64) processor.Record[K, V] {
	if other && timeMillis > r.Time.UnixMilli() {
		r.Time = time.UnixMilli(timeMillis).UTC()
	}
	return r
}

// union returns the stores of both lists, each once.
func union(a, b []state.AnySpec) []state.AnySpec {
	all := slices.Clone(a)
	for _, s := range b {
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all
}
