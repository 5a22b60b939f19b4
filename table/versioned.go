package table

import (
	"tailrace.dev/processor"
	"tailrace.dev/state"
)

// FromVersioned reads a topic as a table that keeps history: the value of a key is the record with the latest time, not the last
// in the log. A record that comes late goes to its place in the history; its change is marked Outdated, which joins and
// groupings leave out and count. One that is older than the history is dropped and counted.
//
// A stream that joins the table meets the row as of the record's own time, so that the result does not depend on how the two
// interleave. (Kafka Streams: StreamsBuilder#table with a versioned store, KIP-889, KIP-914.)
func FromVersioned[K, V any](
	b *processor.Builder, topic *processor.Topic[K, V], store *state.VersionedSpec[K, V],
) *Table[K, V] {
	return MaterializeVersioned(processor.FromTopic(b, topic), "versioned-table", store)
}

// MaterializeVersioned makes a table with history of records. kind names the operator.
func MaterializeVersioned[K, V any](
	records *processor.Node[K, V], kind string, store *state.VersionedSpec[K, V],
) *Table[K, V] {
	var owned []state.AnySpec
	if store == nil {
		records.Builder().Fail(kind, "the store is nil: pass the spec that declares it, as state.Versioned returns it")
	} else {
		owned = append(owned, store)
	}
	n := processor.Derive(records, processor.Operator{Kind: kind, Owned: owned, NeedsKey: true},
		func(t *processor.Task, next processor.Handler[K, Change[V]]) (processor.Handler[K, V], error) {
			s, err := store.Open(t)
			if err != nil {
				return nil, err
			}
			return func(r processor.Record[K, V]) error {
				if r.NoKey {
					t.Drop(processor.DropNoKey)
					return nil
				}
				// The old value is that of the newest version, which is what a later one replaces.
				old, ok, err := s.Get(r.Key)
				if err != nil {
					return err
				}
				var c Change[V]
				c.Old.V, c.Old.OK = old.Value, ok
				var until int64
				if r.Tombstone {
					_, _, until, err = s.Delete(r.Key, r.Time.UnixMilli())
				} else {
					c.New = processor.Some(r.Value)
					until, err = s.Put(r.Key, r.Value, r.Time.UnixMilli())
				}
				if err != nil {
					return err
				}
				if until == state.Refused {
					t.Drop(processor.DropLate)
					return nil
				}
				c.Outdated = until != state.Latest
				return next(processor.WithValue(r, c))
			}, nil
		})
	n.OnAskOld(new(bool)) // old values are always told
	if store == nil {
		return New[K, V](n, nil)
	}
	out := New(n, func(t *processor.Task) (Getter[K, V], error) {
		s, err := store.Open(t)
		if err != nil {
			return nil, err
		}
		return func(k K) (v V, timeMillis int64, ok bool, err error) {
			ver, ok, err := s.Get(k)
			return ver.Value, ver.TimeMillis, ok, err
		}, nil
	}, store)
	out.history = store.History()
	out.asOf = func(t *processor.Task) (AsOfGetter[K, V], error) {
		s, err := store.Open(t)
		if err != nil {
			return nil, err
		}
		return func(k K, at int64) (v V, timeMillis int64, ok bool, err error) {
			ver, ok, err := s.GetAsOf(k, at)
			return ver.Value, ver.TimeMillis, ok, err
		}, nil
	}
	return out
}
