package state

import (
	"bytes"
	"fmt"
	"iter"
	"time"
)

// Replica is a table that every process holds whole: the newest record of each key of a topic, written straight into a
// backend by whoever follows the topic, and read by all tasks. The row of a key is that of a key-value store; where each
// partition of the topic was followed to is a position of its own.
//
// Apply is called by one goroutine at a time; reads by any, also meanwhile.
type Replica struct {
	name    string
	backend Backend
	rows    StoreID
}

// OpenReplica opens the replica with the given name in a backend of its own.
func OpenReplica(name string, backend Backend) (*Replica, error) {
	id, err := backend.Register(name)
	if err != nil {
		return nil, fmt.Errorf("state: open replica %q: %w", name, err)
	}
	return &Replica{name: name, backend: backend, rows: id}, nil
}

// ReplicaRecord is a record of the topic. A nil value deletes.
type ReplicaRecord struct {
	Key, Value []byte
	TimeMillis int64
}

func (r *Replica) partition(p int32) (StoreID, error) {
	return r.backend.Register(fmt.Sprintf("%s/%d", r.name, p))
}

// Position returns how far a partition of the topic has been followed.
func (r *Replica) Position(partition int32) (Position, bool, error) {
	id, err := r.partition(partition)
	if err != nil {
		return Position{}, false, err
	}
	return r.backend.Position(id)
}

// Apply writes records of one partition, in offset order, and where that is followed to then. Records without a key are
// left out.
func (r *Replica) Apply(partition int32, records []ReplicaRecord, at Position) error {
	id, err := r.partition(partition)
	if err != nil {
		return err
	}
	newest := newLayer()
	for _, rec := range records {
		if rec.Key == nil {
			continue
		}
		key := string(append([]byte{KindRow}, rec.Key...))
		var row []byte
		if rec.Value != nil {
			row = append(AppendRow(nil, RowMeta{TimeMillis: rec.TimeMillis}), rec.Value...)
		}
		newest.put(key, row)
	}
	w := Write{Positions: map[StoreID]Position{id: at}}
	for _, e := range newest.inOrder() {
		w.Rows = append(w.Rows, Row{Store: r.rows, Key: bytesOf(e.key), Value: e.row})
	}
	return r.backend.Write(w)
}

// Clear removes everything, for following the topic from its start again.
func (r *Replica) Clear() error {
	for _, id := range r.backend.Stores() {
		if err := r.backend.DropStore(id); err != nil {
			return err
		}
	}
	return nil
}

// ReadOnlyStore is a typed view of a Replica. It is safe for concurrent use.
type ReadOnlyStore[K, V any] struct {
	spec    *KeyValueSpec[K, V]
	replica *Replica
}

// View returns the typed view of a replica of the store that the spec declares.
func (s *KeyValueSpec[K, V]) View(r *Replica) *ReadOnlyStore[K, V] {
	return &ReadOnlyStore[K, V]{s, r}
}

func (s *ReadOnlyStore[K, V]) decode(row []byte) (v V, timeMillis int64, err error) {
	m, b, err := ParseRow(row)
	if err == nil {
		v, err = s.spec.value.Decode(b)
	}
	if err != nil {
		err = fmt.Errorf("state: store %q: decode value: %w", s.spec.name, err)
	}
	return v, m.TimeMillis, err
}

// Lookup returns the value under k and its time in Unix milliseconds; ok is false when there is none. The value is the
// caller's own.
func (s *ReadOnlyStore[K, V]) Lookup(k K) (v V, timeMillis int64, ok bool, err error) {
	key, err := s.spec.key.Append([]byte{KindRow}, k)
	if err != nil {
		return v, 0, false, fmt.Errorf("state: store %q: encode key: %w", s.spec.name, err)
	}
	row, err := s.replica.backend.Get(s.replica.rows, key)
	if err != nil || row == nil {
		return v, 0, false, err
	}
	v, timeMillis, err = s.decode(row)
	return v, timeMillis, err == nil, err
}

// Get returns the value under k; ok is false when there is none.
func (s *ReadOnlyStore[K, V]) Get(k K) (v V, ok bool, err error) {
	v, _, ok, err = s.Lookup(k)
	return v, ok, err
}

// All iterates over all rows in the order of their serialised keys, as of the call. After an error the iteration ends.
func (s *ReadOnlyStore[K, V]) All() iter.Seq2[Entry[K, V], error] {
	return func(yield func(Entry[K, V], error) bool) {
		c := s.replica.backend.Scan(s.replica.rows, []byte{KindRow}, []byte{KindRow + 1}, false)
		defer c.Close()
		for c.Next() {
			var e Entry[K, V]
			var millis int64
			var err error
			if e.Key, err = s.spec.key.Decode(bytes.Clone(c.Key()[1:])); err == nil {
				e.Value, millis, err = s.decode(bytes.Clone(c.Value()))
				e.Time = time.UnixMilli(millis).UTC()
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
		if err := c.Err(); err != nil {
			yield(Entry[K, V]{}, err)
		}
	}
}
