package stream

import (
	"tailrace.dev/processor"
	"tailrace.dev/table"
)

// JoinGlobal joins each record of the stream with the row of a global table whose key the function key finds in it, as the
// table stands when the record is processed. Only the stream's records make results. Where key returns false, or there
// is no row, there is no result; the former is counted. A record need not have a key of its own.
//
// Tombstones are dropped and counted. The time of the result is that of the record. (Kafka Streams: KStream#join with a
// GlobalKTable.)
func JoinGlobal[K, V, GK, T, W any](
	s *Stream[K, V], g *table.GlobalTable[GK, T], key func(k K, v V) (GK, bool), f func(k K, v V, row T) W,
) *Stream[K, W] {
	given(s, "join-global", key != nil && f != nil)
	return joinGlobal(s, g, "join-global", false, key,
		func(k K, v V, row processor.Opt[T]) W { return f(k, v, row.V) })
}

// LeftJoinGlobal is JoinGlobal that makes a result also where key returns false or the table has no row.
func LeftJoinGlobal[K, V, GK, T, W any](
	s *Stream[K, V], g *table.GlobalTable[GK, T], key func(k K, v V) (GK, bool),
	f func(k K, v V, row processor.Opt[T]) W,
) *Stream[K, W] {
	given(s, "left-join-global", key != nil && f != nil)
	return joinGlobal(s, g, "left-join-global", true, key, f)
}

func joinGlobal[K, V, GK, T, W any](
	s *Stream[K, V], g *table.GlobalTable[GK, T], kind string, left bool,
	key func(k K, v V) (GK, bool), f func(k K, v V, row processor.Opt[T]) W,
) *Stream[K, W] {
	if g == nil {
		s.node.Builder().Fail(kind, "the table is nil")
		return New(processor.Derive(s.node, processor.Operator{Kind: kind},
			func(*processor.Task, processor.Handler[K, W]) (processor.Handler[K, V], error) { return nil, nil }))
	}
	return New(processor.Derive(s.node, processor.Operator{Kind: kind},
		func(t *processor.Task, next processor.Handler[K, W]) (processor.Handler[K, V], error) {
			get, err := g.View()(t)
			if err != nil {
				return nil, err
			}
			return func(r processor.Record[K, V]) error {
				if r.Tombstone {
					t.Drop(processor.DropNoValue)
					return nil
				}
				var row processor.Opt[T]
				if gk, ok := key(r.Key, r.Value); ok {
					if row.V, _, row.OK, err = get(gk); err != nil {
						return err
					}
				} else if !left {
					t.Drop(processor.DropNoKey)
					return nil
				}
				if !row.OK && !left {
					return nil
				}
				return next(processor.WithValue(r, f(r.Key, r.Value, row)))
			}, nil
		}))
}
