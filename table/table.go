// Package table holds the operators on tables: streams of changes to one value for each key, together with the newest
// values themselves.
//
// All operators are functions, so that a table can lead to one of other types. A lambda is a pure function of what
// it is given; what may fail, wait or keep state of its own is a processor.Processor on stream.Changes.
package table

import (
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/state"
)

// Table is a table under construction: for each key the newest value, and the changes that lead from one to the next.
// A Table is made by From, by the other functions of this package, or by aggregating a stream.
type Table[K, V any] struct {
	node    *processor.Node[K, Change[V]]
	view    View[K, V]     // nil: the table is computed and not kept
	asOf    AsOfView[K, V] // nil: the table keeps no history
	history time.Duration
	stores  []state.AnySpec
	// closing says when the rows' windows close, where the keys are windowed.
	closing *Closing[K]
}

// Change is a step of a table: what the value under the record's key was, and what it is now.
type Change[V any] struct {
	// Old is what the value was; it is absent when there was none, and also when nothing below asked for it.
	Old processor.Opt[V]
	// New is what the value is now; absent when it was deleted.
	New processor.Opt[V]
	// Outdated tells that the change came too late to be the newest: a versioned table put it into its history, and
	// what the table holds now is another value. Tables of other kinds have no such changes.
	Outdated bool
}

// Deleted returns the function that makes the change of a row that is gone. It tells the old value if wantOld is set. It
// is for writing operators.
func Deleted[V any](wantOld *bool) func(old V) Change[V] {
	return func(old V) (c Change[V]) {
		if *wantOld {
			c.Old = processor.Some(old)
		}
		return c
	}
}

// Getter returns the newest value of a table under a key, as processing stands, and its time in Unix milliseconds.
type Getter[K, V any] func(k K) (v V, timeMillis int64, ok bool, err error)

// View opens a Getter in a task.
type View[K, V any] func(t *processor.Task) (Getter[K, V], error)

// AsOfGetter returns the value of a table under a key as it was at a time, in Unix milliseconds.
type AsOfGetter[K, V any] func(k K, atMillis int64) (v V, timeMillis int64, ok bool, err error)

// AsOfView opens an AsOfGetter in a task.
type AsOfView[K, V any] func(t *processor.Task) (AsOfGetter[K, V], error)

// AsOf returns how to look up what the table was, or nil if it keeps no history. It is for writing operators.
func (t *Table[K, V]) AsOf() AsOfView[K, V] { return t.asOf }

// History returns how far back AsOf can look.
func (t *Table[K, V]) History() time.Duration { return t.history }

// New makes a table of a node of changes and a view of the newest values, which reads the given stores. It is for
// writing operators; see processor.Derive.
func New[K, V any](node *processor.Node[K, Change[V]], view View[K, V], stores ...state.AnySpec) *Table[K, V] {
	return &Table[K, V]{node: node, view: view, stores: stores}
}

// Node returns the node at which the table's changes come out. It is for writing operators.
func (t *Table[K, V]) Node() *processor.Node[K, Change[V]] { return t.node }

// View returns how to look up the table's newest values. It is for writing operators.
func (t *Table[K, V]) View() View[K, V] { return t.view }

// Stores returns the stores that the view reads: an operator that uses the view declares them.
func (t *Table[K, V]) Stores() []state.AnySpec { return t.stores }

// StoreView returns the view of a key-value store.
func StoreView[K, V any](spec *state.KeyValueSpec[K, V]) View[K, V] {
	return func(t *processor.Task) (Getter[K, V], error) {
		s, err := spec.Open(t)
		if err != nil {
			return nil, err
		}
		return s.Lookup, nil
	}
}

// From reads a topic as a table, kept in the given store: the newest record of a key is its value, and a tombstone
// deletes it. Newest means the last in the log, whatever the records' times are.
//
// Records without a key are dropped and counted. (Kafka Streams: StreamsBuilder#table, KTableSource.)
func From[K, V any](
	b *processor.Builder, topic *processor.Topic[K, V], store *state.KeyValueSpec[K, V],
) *Table[K, V] {
	return Materialize(processor.FromTopic(b, topic), "table", store)
}

// Materialize makes a table of records: the newest value of each key, kept in the given store. kind names the
// operator. It is what From and stream.ToTable share.
func Materialize[K, V any](
	records *processor.Node[K, V], kind string, store *state.KeyValueSpec[K, V],
) *Table[K, V] {
	wantOld := new(bool)
	op := processor.Operator{Kind: kind, Owned: []state.AnySpec{spec(store)}, NeedsKey: true, Expires: true}
	n := processor.Derive(records, op,
		func(t *processor.Task, next processor.Handler[K, Change[V]]) (processor.Handler[K, V], error) {
			s, err := store.Open(t)
			if err != nil {
				return nil, err
			}
			expire := processor.ExpireRows(store, s, Deleted[V](wantOld), next)
			return func(r processor.Record[K, V]) error {
				if r.NoKey {
					t.Drop(processor.DropNoKey)
					return nil
				}
				if expire != nil {
					if err := expire(r.Key, r.Time); err != nil {
						return err
					}
				}
				var c Change[V]
				if *wantOld {
					if c.Old.V, c.Old.OK, err = s.Get(r.Key); err != nil {
						return err
					}
				}
				if r.Tombstone {
					err = s.Delete(r.Key)
				} else {
					c.New = processor.Some(r.Value)
					err = s.SetAt(r.Key, r.Value, r.Time.UnixMilli())
				}
				if err != nil {
					return err
				}
				return next(processor.WithValue(r, c))
			}, nil
		})
	n.OnAskOld(wantOld)
	return New(n, StoreView(store), spec(store))
}

// spec turns a nil pointer into a nil interface, which the builder reports.
func spec[K, V any](s *state.KeyValueSpec[K, V]) state.AnySpec {
	if s == nil {
		return nil
	}
	return s
}

// To writes the table to a topic: each change's new value, or a tombstone where it was deleted.
func To[K, V any](t *Table[K, V], topic *processor.Topic[K, V]) {
	processor.ToTopic(Values(t), topic)
}

// Values turns the table's changes into records: the new value, or a tombstone. stream.Changes is its public face.
func Values[K, V any](t *Table[K, V]) *processor.Node[K, V] {
	return processor.Derive(t.node, processor.Operator{Kind: "changes"},
		func(_ *processor.Task, next processor.Handler[K, V]) (processor.Handler[K, Change[V]], error) {
			return func(r processor.Record[K, Change[V]]) error {
				if !r.Value.New.OK {
					return next(processor.WithoutValue[V](r))
				}
				return next(processor.WithValue(r, r.Value.New.V))
			}, nil
		})
}
