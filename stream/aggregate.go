package stream

import (
	"reflect"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/state"
	"tailrace.dev/table"
)

// Grouping is a stream whose records are on the partition of their key, ready to be aggregated into a table with keys
// RK: the stream's own keys after Group, state.Windowed keys after WindowBy and SessionBy. The store's spec is of the
// kind that fits: state.KeyValue, state.Window, state.Session.
type Grouping[K, V, RK any] interface {
	grouping(K, V, RK)
	source() *Stream[K, V]
}

// Grouped is a stream grouped by its key.
type Grouped[K, V any] struct {
	s *Stream[K, V]
}

func (g *Grouped[K, V]) grouping(K, V, K)      {}
func (g *Grouped[K, V]) source() *Stream[K, V] { return g.s }

// Group makes a stream ready to be aggregated by its key. If the key was changed, a Repartition must come first: Build
// reports it otherwise.
func Group[K, V any](s *Stream[K, V]) *Grouped[K, V] {
	s.node.RequireKey("group")
	return &Grouped[K, V]{s}
}

// Count counts the records of each key, or of each key and window. Records without a key, and tombstones, are dropped
// and counted. Each record updates the table; the time of a row is the largest of its records', and for sessions the
// end. (Kafka Streams: count of KGroupedStream, TimeWindowedKStream and SessionWindowedKStream. By windows, Kafka
// Streams counts records without a value, too: that is CountRecord.)
func Count[K, V, RK any](g Grouping[K, V, RK], store state.Spec[RK, int64]) *table.Table[RK, int64] {
	return fold(g, store, counting[K, V]())
}

// CountRecord is Count that counts tombstones, too, except on sliding windows.
func CountRecord[K, V, RK any](g Grouping[K, V, RK], store state.Spec[RK, int64]) *table.Table[RK, int64] {
	agg := counting[K, V]()
	agg.kind, agg.records = "count-record", true
	return fold(g, store, agg)
}

func counting[K, V any]() aggregation[K, V, int64] {
	return aggregation[K, V, int64]{
		kind: "count", own: true,
		step: func(func() int64) step[K, V, int64] {
			return func(n processor.Opt[int64], _ processor.Record[K, V]) processor.Opt[int64] {
				return processor.Some(n.V + 1)
			}
		},
		merge: func(func() int64) merge[K, int64] {
			return func(_ K, a, b processor.Opt[int64]) processor.Opt[int64] { return processor.Some(a.V + b.V) }
		},
	}
}

// Aggregate folds the records of each key, or of each key and window, into a value: f makes the next value of the last
// one, the key and the record's value. It starts at the zero value, or at what the store's spec says by Initially. f
// owns its first argument and may change it in place and return it; it must not change the others, nor what it has put
// of them into the first: other operators hold them too.
//
// Records without a key, and tombstones, are dropped and counted. The time of a row is the largest of its records'.
// Sessions need a function that merges two: see AggregateSessions. (Kafka Streams: KGroupedStream#aggregate and
// TimeWindowedKStream#aggregate; KStreamAggregate, KStreamWindowAggregate, KStreamSlidingWindowAggregate.)
func Aggregate[K, V, RK, A any](
	g Grouping[K, V, RK], store state.Spec[RK, A], f func(a A, k K, v V) A,
) *table.Table[RK, A] {
	given(g.source(), "aggregate", f != nil)
	return fold(g, store, aggregation[K, V, A]{kind: "aggregate", own: true,
		step: func(initial func() A) step[K, V, A] {
			return func(a processor.Opt[A], r processor.Record[K, V]) processor.Opt[A] {
				if !a.OK {
					a.V = initial()
				}
				return processor.Some(f(a.V, r.Key, r.Value))
			}
		}})
}

// AggregateRecord is Aggregate with a function that sees the whole record: its time, its headers, and tombstones, which
// are not dropped, except by sliding windows. (In Kafka Streams, the aggregator of a windowed stream is called for
// records without a value.)
func AggregateRecord[K, V, RK, A any](
	g Grouping[K, V, RK], store state.Spec[RK, A], f func(a A, r processor.Record[K, V]) A,
) *table.Table[RK, A] {
	given(g.source(), "aggregate-record", f != nil)
	return fold(g, store, aggregation[K, V, A]{kind: "aggregate-record", own: true, records: true,
		step: func(initial func() A) step[K, V, A] {
			return func(a processor.Opt[A], r processor.Record[K, V]) processor.Opt[A] {
				if !a.OK {
					a.V = initial()
				}
				return processor.Some(f(a.V, r))
			}
		}})
}

// Reduce combines the values of each key, or of each key and window: the first is stored as it is, and f makes the
// next value of the last one and the record's; it also makes one value of those of two sessions that merge, the
// earlier first. f owns its first argument.
//
// The rest is as in Aggregate. (Kafka Streams: reduce of KGroupedStream, TimeWindowedKStream and
// SessionWindowedKStream.)
func Reduce[K, V, RK any](g Grouping[K, V, RK], store state.Spec[RK, V], f func(a, v V) V) *table.Table[RK, V] {
	given(g.source(), "reduce", f != nil)
	combine := func(a, b processor.Opt[V]) processor.Opt[V] {
		if a.OK && b.OK {
			return processor.Some(f(a.V, b.V))
		}
		if a.OK {
			return a
		}
		return b
	}
	return fold(g, store, aggregation[K, V, V]{kind: "reduce",
		step: func(func() V) step[K, V, V] {
			return func(a processor.Opt[V], r processor.Record[K, V]) processor.Opt[V] {
				return combine(a, processor.Some(r.Value))
			}
		},
		merge: func(func() V) merge[K, V] {
			return func(_ K, a, b processor.Opt[V]) processor.Opt[V] { return combine(a, b) }
		}})
}

// Fold is Aggregate with a function that can tell an absent value from a zero one, and can delete: when it returns an
// absent value the row goes, and the table forwards a deletion. After that the next record finds an absent value.
// (Kafka Streams: an Aggregator that returns null.)
func Fold[K, V, RK, A any](
	g Grouping[K, V, RK], store state.Spec[RK, A], f func(a processor.Opt[A], k K, v V) processor.Opt[A],
) *table.Table[RK, A] {
	given(g.source(), "fold", f != nil)
	return fold(g, store, aggregation[K, V, A]{kind: "fold", own: true,
		step: func(func() A) step[K, V, A] {
			return func(a processor.Opt[A], r processor.Record[K, V]) processor.Opt[A] { return f(a, r.Key, r.Value) }
		}})
}

// FoldRecord is Fold with a function that sees the whole record: its time, its headers, and tombstones, which are not
// dropped, except by sliding windows.
func FoldRecord[K, V, RK, A any](
	g Grouping[K, V, RK], store state.Spec[RK, A],
	f func(a processor.Opt[A], r processor.Record[K, V]) processor.Opt[A],
) *table.Table[RK, A] {
	given(g.source(), "fold-record", f != nil)
	return fold(g, store, aggregation[K, V, A]{kind: "fold-record", own: true, records: true,
		step: func(func() A) step[K, V, A] { return f }})
}

// step makes the next value of an aggregation. It owns its first argument.
type step[K, V, A any] = func(a processor.Opt[A], r processor.Record[K, V]) processor.Opt[A]

// merge makes one value of those of two sessions; the first is absent where there is nothing to merge with yet. It owns
// both.
type merge[K, A any] = func(k K, a, b processor.Opt[A]) processor.Opt[A]

// aggregation is what an operator that aggregates does.
type aggregation[K, V, A any] struct {
	kind string
	// own tells that the values which step returns are its own, and not those of records that others hold too.
	own bool
	// records tells that step is called for tombstones.
	records bool
	// step and merge are made in each task. merge is nil where sessions cannot be merged.
	step  func(initial func() A) step[K, V, A]
	merge func(initial func() A) merge[K, A]
}

// accepts tells whether a record takes part in the aggregation, and counts it otherwise.
func (agg *aggregation[K, V, A]) accepts(t *processor.Task, noKey, tombstone bool) bool {
	switch {
	case noKey:
		t.Drop(processor.DropNoKey)
	case tombstone && !agg.records:
		t.Drop(processor.DropNoValue)
	default:
		return true
	}
	return false
}

// fold is what the aggregations share: it finds the kind of the grouping and of its store. The type system cannot say
// that the kind fixes RK, so the assertions here do; only types of this package are Groupings.
func fold[K, V, RK, A any](
	g Grouping[K, V, RK], store state.Spec[RK, A], agg aggregation[K, V, A],
) *table.Table[RK, A] {
	b := g.source().node.Builder()
	// Else the step may return the record's value itself.
	agg.own = agg.own && reflect.TypeFor[A]() != reflect.TypeFor[V]()
	var result any
	switch g := any(g).(type) {
	case *Grouped[K, V]:
		spec, ok := any(store).(*state.KeyValueSpec[K, A])
		if !ok || spec == nil {
			b.Fail(agg.kind, "the store must be declared by state.KeyValue with the stream's key type")
			spec = state.KeyValue[K, A]("", nil, nil)
		}
		result = foldKeys(g.s, spec, agg)
	case *WindowGrouped[K, V]:
		spec, ok := any(store).(*state.WindowSpec[K, A])
		if !ok || spec == nil {
			b.Fail(agg.kind, "the store must be declared by state.Window with the stream's key type")
			spec = state.Window[K, A]("", nil, nil, state.Forever)
		}
		checkRetention(b, agg.kind, spec.Name(), spec.Retention(), g.w.MinRetention())
		if g.w.kind == sliding {
			result = foldSliding(g, spec, agg)
		} else {
			result = foldWindows(g, spec, agg)
		}
	case *SessionGrouped[K, V]:
		spec, ok := any(store).(*state.SessionSpec[K, A])
		if !ok || spec == nil {
			b.Fail(agg.kind, "the store must be declared by state.Session with the stream's key type")
			spec = state.Session[K, A]("", nil, nil, state.Forever)
		}
		checkRetention(b, agg.kind, spec.Name(), spec.Retention(), g.w.MinRetention())
		if agg.merge == nil {
			b.Fail(agg.kind, "sessions that meet have to be merged: use stream.AggregateSessions or its kin")
			agg.merge = func(func() A) merge[K, A] {
				return func(_ K, _, b processor.Opt[A]) processor.Opt[A] { return b }
			}
		}
		result = foldSessions(g, spec, agg)
	}
	return result.(*table.Table[RK, A])
}

// foldKeys aggregates by key.
func foldKeys[K, V, A any](
	s *Stream[K, V], spec *state.KeyValueSpec[K, A], agg aggregation[K, V, A],
) *table.Table[K, A] {
	wantOld := new(bool)
	op := processor.Operator{Kind: agg.kind, Owned: []state.AnySpec{spec}, KeyRequired: true, Expires: true}
	n := processor.Derive(s.node, op,
		func(t *processor.Task, next processor.Handler[K, table.Change[A]]) (processor.Handler[K, V], error) {
			st, err := spec.Open(t)
			if err != nil {
				return nil, err
			}
			put := st.SetAt
			if agg.own {
				put = st.Give
			}
			step := agg.step(spec.Initial)
			expire := processor.ExpireRows(spec, st, table.Deleted[A](wantOld), next)
			return func(r processor.Record[K, V]) error {
				if !agg.accepts(t, r.NoKey, r.Tombstone) {
					return nil
				}
				if expire != nil {
					if err := expire(r.Key, r.Time); err != nil {
						return err
					}
				}
				var c table.Change[A]
				if *wantOld {
					// Decoded apart from what step is going to change in place.
					if c.Old.V, c.Old.OK, err = st.Get(r.Key); err != nil {
						return err
					}
				}
				var a processor.Opt[A]
				var at int64
				if a.V, at, a.OK, err = st.Take(r.Key); err != nil {
					return err
				}
				c.New = step(a, r)
				if a.OK && at > r.Time.UnixMilli() {
					r.Time = time.UnixMilli(at).UTC()
				}
				if c.New.OK {
					err = put(r.Key, c.New.V, r.Time.UnixMilli())
				} else {
					err = st.Delete(r.Key)
				}
				if err != nil {
					return err
				}
				out := processor.WithValue(r, c)
				return next(out)
			}, nil
		})
	n.OnAskOld(wantOld)
	return table.New(n, table.StoreView(spec), spec)
}
