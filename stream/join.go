package stream

import (
	"tailrace.dev/processor"
	"tailrace.dev/table"
)

// Join joins each record of the stream with the row of the table that has its key, as the table stands when the record is
// processed. Only the stream's records make results; a change of the table does not. Where there is no row, there is no
// result. Records without a key, and tombstones, are dropped and counted.
//
// Both sides must be partitioned alike by equally encoded keys. The time of the result is that of the record. Which state
// of the table a record meets depends on how the two inputs interleave: see Config.MaxTaskIdle. (Kafka Streams:
// KStream#join with a KTable, KStreamKTableJoin.)
func Join[K, V, T, W any](s *Stream[K, V], t *table.Table[K, T], f func(k K, v V, row T) W) *Stream[K, W] {
	given(s, "join", f != nil)
	return joinTable(s, t, "join", false, func(k K, v V, row processor.Opt[T]) W { return f(k, v, row.V) })
}

// LeftJoin is Join that makes a result also where the table has no row. Records without a key find none; tombstones
// are dropped and counted. (Kafka Streams: KStream#leftJoin with a KTable.)
func LeftJoin[K, V, T, W any](
	s *Stream[K, V], t *table.Table[K, T], f func(k K, v V, row processor.Opt[T]) W,
) *Stream[K, W] {
	given(s, "left-join", f != nil)
	return joinTable(s, t, "left-join", true, f)
}

func joinTable[K, V, T, W any](
	s *Stream[K, V], tb *table.Table[K, T], kind string, left bool, f func(k K, v V, row processor.Opt[T]) W,
) *Stream[K, W] {
	if tb == nil {
		s.node.Builder().Fail(kind, "the table is nil")
		return New(processor.Derive(s.node, processor.Operator{Kind: kind},
			func(*processor.Task, processor.Handler[K, W]) (processor.Handler[K, V], error) { return nil, nil }))
	}
	table.RequireStored(tb, kind)
	op := processor.Operator{Kind: kind, Stores: tb.Stores(), NeedsKey: true}
	return New(processor.Derive2(s.node, tb.Node(), op,
		func(t *processor.Task, next processor.Handler[K, W]) (
			processor.Handler[K, V], processor.Handler[K, table.Change[T]], error,
		) {
			get, err := lookup(t, tb)
			if err != nil {
				return nil, nil, err
			}
			onRecord := func(r processor.Record[K, V]) error {
				if r.Tombstone {
					t.Drop(processor.DropNoValue)
					return nil
				}
				if r.NoKey && !left {
					t.Drop(processor.DropNoKey)
					return nil
				}
				var row processor.Opt[T]
				if !r.NoKey {
					if row.V, _, row.OK, err = get(r.Key, r.Time.UnixMilli()); err != nil {
						return err
					}
				}
				if !row.OK && !left {
					return nil
				}
				return next(processor.WithValue(r, f(r.Key, r.Value, row)))
			}
			onChange := func(processor.Record[K, table.Change[T]]) error { return nil }
			return onRecord, onChange, nil
		}))
}

// lookup opens what a record meets in a table: the newest row, or in a table with history that of the record's own time.
func lookup[K, T any](t *processor.Task, tb *table.Table[K, T]) (table.AsOfGetter[K, T], error) {
	if tb.AsOf() != nil {
		return tb.AsOf()(t)
	}
	get, err := tb.View()(t)
	if err != nil {
		return nil, err
	}
	return func(k K, _ int64) (T, int64, bool, error) { return get(k) }, nil
}
