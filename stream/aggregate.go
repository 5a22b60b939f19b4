package stream

import (
	"reflect"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/state"
	"tailrace.dev/table"
)

// Grouping is a stream whose records are on the partition of their key, ready to be aggregated into a table with keys
// RK: the stream's own keys after Group.
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

// Count counts the records of each key. Records without a key, and tombstones, are dropped and counted. Each record
// updates the table; the time of a row is the largest of its records'. (Kafka Streams: KGroupedStream#count.)
func Count[K, V, RK any](g Grouping[K, V, RK], store state.Spec[RK, int64]) *table.Table[RK, int64] {
	return Aggregate(g, store, func(n int64, _ K, _ V) int64 { return n + 1 })
}

// Aggregate folds the records of each key into a value: f makes the next value of the last one, the key and the record's
// value. It starts at the zero value, or at what the store's spec says by Initially. f owns its first argument and may
// change it in place and return it; it must not change the others, nor what it has put of them into the first: other
// operators hold them too.
//
// Records without a key, and tombstones, are dropped and counted. The time of a row is the largest of its records'.
// (Kafka Streams: KGroupedStream#aggregate, KStreamAggregate.)
func Aggregate[K, V, RK, A any](
	g Grouping[K, V, RK], store state.Spec[RK, A], f func(a A, k K, v V) A,
) *table.Table[RK, A] {
	given(g.source(), "aggregate", f != nil)
	return fold(g, store, "aggregate", true, func(initial func() A) step[K, V, A] {
		return func(a processor.Opt[A], k K, v V) processor.Opt[A] {
			if !a.OK {
				a.V = initial()
			}
			return processor.Some(f(a.V, k, v))
		}
	})
}

// Reduce combines the values of each key: the first is stored as it is, and f makes the next value of the last one and
// the record's. f owns its first argument.
//
// The rest is as in Aggregate. (Kafka Streams: KGroupedStream#reduce.)
func Reduce[K, V, RK any](g Grouping[K, V, RK], store state.Spec[RK, V], f func(a, v V) V) *table.Table[RK, V] {
	given(g.source(), "reduce", f != nil)
	return fold(g, store, "reduce", false, func(func() V) step[K, V, V] {
		return func(a processor.Opt[V], _ K, v V) processor.Opt[V] {
			if !a.OK {
				return processor.Some(v)
			}
			return processor.Some(f(a.V, v))
		}
	})
}

// Fold is Aggregate with a function that can tell an absent value from a zero one, and can delete: when it returns an
// absent value the row goes, and the table forwards a deletion. After that the next record finds an absent value.
// (Kafka Streams: an Aggregator that returns null.)
func Fold[K, V, RK, A any](
	g Grouping[K, V, RK], store state.Spec[RK, A], f func(a processor.Opt[A], k K, v V) processor.Opt[A],
) *table.Table[RK, A] {
	given(g.source(), "fold", f != nil)
	return fold(g, store, "fold", true, func(func() A) step[K, V, A] { return f })
}

// step makes the next value of an aggregation.
type step[K, V, A any] func(a processor.Opt[A], k K, v V) processor.Opt[A]

// fold is what the aggregations share. own tells that the values which the step returns are its own, and not those of
// records that others hold too.
func fold[K, V, RK, A any](
	g Grouping[K, V, RK], store state.Spec[RK, A], kind string, own bool, newStep func(initial func() A) step[K, V, A],
) *table.Table[RK, A] {
	s := g.source()
	own = own && reflect.TypeFor[A]() != reflect.TypeFor[V]() // else the step may return the record's value itself
	// A Grouping of this kind has RK = K, which the type system cannot say of one method in general.
	spec, ok := any(store).(*state.KeyValueSpec[K, A])
	if !ok || spec == nil {
		s.node.Builder().Fail(kind, "the store must be declared by state.KeyValue with the stream's key type")
		spec = state.KeyValue[K, A]("", nil, nil)
	}
	wantOld := new(bool)
	n := processor.Derive(s.node, processor.Operator{Kind: kind, Owned: []state.AnySpec{spec}, KeyRequired: true},
		func(t *processor.Task, next processor.Handler[K, table.Change[A]]) (processor.Handler[K, V], error) {
			st, err := spec.Open(t)
			if err != nil {
				return nil, err
			}
			put := st.SetAt
			if own {
				put = st.Give
			}
			step := newStep(spec.Initial)
			return func(r processor.Record[K, V]) error {
				if r.NoKey {
					t.Drop(processor.DropNoKey)
					return nil
				}
				if r.Tombstone {
					t.Drop(processor.DropNoValue)
					return nil
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
				if a.OK && at > r.Time.UnixMilli() {
					r.Time = time.UnixMilli(at).UTC()
				}
				c.New = step(a, r.Key, r.Value)
				if c.New.OK {
					err = put(r.Key, c.New.V, r.Time.UnixMilli())
				} else {
					err = st.Delete(r.Key)
				}
				if err != nil {
					return err
				}
				return next(processor.WithValue(r, c))
			}, nil
		})
	n.OnAskOld(wantOld)
	return any(table.New(n, table.StoreView(spec), spec)).(*table.Table[RK, A])
}
