package state

import (
	"encoding/binary"
	"fmt"
	"maps"

	"tailrace.dev/serde"
)

// BufferSpec declares a buffer of rows that wait for their time: at most one for each key, ordered by time, then by
// serialised key. Suppression and joins that wait use it.
type BufferSpec[K, V any] struct {
	name  string
	key   serde.Serde[K]
	value serde.Serde[V]
	topic map[string]string
	err   error
}

// Buffer declares a buffer with the given name and encodings.
func Buffer[K, V any](name string, key serde.Serde[K], value serde.Serde[V]) *BufferSpec[K, V] {
	s := &BufferSpec[K, V]{name: name, key: key, value: value, err: CheckName("store", name)}
	if s.err == nil && (key == nil || value == nil) {
		s.err = fmt.Errorf("store %q: a serde is nil", name)
	}
	return s
}

// WithChangelogConfig returns the spec with topic settings for its changelog topic; see
// KeyValueSpec.WithChangelogConfig.
func (s BufferSpec[K, V]) WithChangelogConfig(config map[string]string) *BufferSpec[K, V] {
	s.topic = maps.Clone(config)
	return &s
}

// Name implements AnySpec.
func (s *BufferSpec[K, V]) Name() string { return s.name }

// Kind implements AnySpec.
func (s *BufferSpec[K, V]) Kind() string { return "buffer" }

// Err implements AnySpec.
func (s *BufferSpec[K, V]) Err() error { return s.err }

// SerdeIDs implements AnySpec.
func (s *BufferSpec[K, V]) SerdeIDs() (key, value string) { return serde.ID(s.key), serde.ID(s.value) }

// ChangelogConfig implements AnySpec.
func (s *BufferSpec[K, V]) ChangelogConfig() map[string]string {
	c := map[string]string{"cleanup.policy": "compact"}
	maps.Copy(c, s.topic)
	return c
}

// Key returns the serde of the keys.
func (s *BufferSpec[K, V]) Key() serde.Serde[K] { return s.key }

// Value returns the serde of the values.
func (s *BufferSpec[K, V]) Value() serde.Serde[V] { return s.value }

func (s *BufferSpec[K, V]) types(K, V) {}

// BufferStore is a buffer as one task sees it: rows of bytes, which the operator that owns it lays out. It belongs to the
// task, as a KeyValueStore does.
//
// The row of a key starts with the time that it waits for. An index row, by time and key, orders them.
type BufferStore struct {
	rows  *Rows
	count *Cell
	bytes *Cell
	first *Cell // no row waits for an earlier time

	row []byte // scratch
	key []byte
}

// OpenBuffer returns the buffer in a task.
func OpenBuffer[K, V any](env Env, s *BufferSpec[K, V]) (*BufferStore, error) {
	rows, err := env.StoreRows(s)
	if err != nil {
		return nil, err
	}
	if rows.spec != AnySpec(s) {
		return nil, fmt.Errorf("%w: %q", ErrWrongStore, s.name)
	}
	return &BufferStore{rows: rows, count: rows.Cell("count"), bytes: rows.Cell("bytes"),
		first: rows.Cell("first")}, nil
}

// Cell returns a number of the operator that owns the buffer, such as its stream time.
func (b *BufferStore) Cell(name string) *Cell { return b.rows.Cell(name) }

// Waiting is a row of a buffer.
type Waiting struct {
	// ForMillis is the time that the row waits for.
	ForMillis int64
	// Key is the serialised key, Payload what the owner put. Both are the buffer's and valid until its next change.
	Key, Payload []byte
	// TimeMillis is the event time that the owner gave.
	TimeMillis int64
}

func (b *BufferStore) rowKey(key []byte) []byte {
	b.key = append(append(b.key[:0], KindRow), key...)
	return b.key
}

func bufferIndexKey(forMillis int64, key []byte) []byte {
	k := make([]byte, 0, 9+len(key))
	// Flipping the sign bit orders times before 1970 first.
	k = binary.BigEndian.AppendUint64(append(k, KindIndex), uint64(forMillis)^(1<<63))
	return append(k, key...)
}

// Get returns the row under a serialised key.
func (b *BufferStore) Get(key []byte) (w Waiting, ok bool, err error) {
	row, err := b.rows.Get(b.rowKey(key))
	if err != nil || row == nil {
		return w, false, err
	}
	m, v, err := ParseRow(row)
	if err == nil && len(v) < 8 {
		err = fmt.Errorf("%w: buffer row without its time", ErrCorrupt)
	}
	if err != nil {
		return w, false, fmt.Errorf("state: buffer %q: %w", b.rows.Name(), err)
	}
	return Waiting{int64(binary.BigEndian.Uint64(v)), key, v[8:], m.TimeMillis}, true, nil
}

// Put puts a row, which waits for the given time, under a serialised key. One that waits already is replaced, and goes
// on to wait for its own time.
func (b *BufferStore) Put(w Waiting) error {
	old, ok, err := b.Get(w.Key)
	if err != nil {
		return err
	}
	size := int64(len(w.Key) + len(w.Payload) + 8)
	if ok {
		w.ForMillis = old.ForMillis
		size -= int64(len(old.Key) + len(old.Payload) + 8)
	} else {
		b.rows.Put(bufferIndexKey(w.ForMillis, w.Key), AppendRow(nil, RowMeta{}))
		if err := b.add(b.count, 1); err != nil {
			return err
		}
		first, ok, err := b.first.Load()
		if err != nil {
			return err
		}
		if !ok || w.ForMillis < first {
			b.first.Store(w.ForMillis)
		}
	}
	b.row = AppendRow(b.row[:0], RowMeta{TimeMillis: w.TimeMillis})
	b.row = binary.BigEndian.AppendUint64(b.row, uint64(w.ForMillis))
	b.row = append(b.row, w.Payload...)
	b.rows.Put(b.rowKey(w.Key), b.row)
	return b.add(b.bytes, size)
}

func (b *BufferStore) add(c *Cell, n int64) error {
	v, _, err := c.Load()
	if err != nil {
		return err
	}
	c.Store(v + n)
	return nil
}

// First returns the row that waits for the earliest time; among those, the one with the smallest key.
func (b *BufferStore) First() (w Waiting, ok bool, err error) {
	n, err := b.Len()
	if err != nil || n == 0 {
		return w, false, err
	}
	first, ok, err := b.first.Load()
	if err != nil {
		return w, false, err
	}
	from := []byte{KindIndex}
	if ok {
		from = bufferIndexKey(first, nil) // what lies before has left; its deletions would be passed over one by one
	}
	sc := b.rows.Scan(from, []byte{KindIndex + 1}, false)
	defer sc.Close()
	if !sc.Next() {
		return w, false, sc.Err()
	}
	if w, ok, err = b.Get(append([]byte{}, sc.Key()[9:]...)); ok {
		b.first.Store(w.ForMillis)
	}
	return w, ok, err
}

// Remove removes a row that Get or First returned.
func (b *BufferStore) Remove(w Waiting) error {
	size := int64(len(w.Key) + len(w.Payload) + 8)
	b.rows.Put(bufferIndexKey(w.ForMillis, w.Key), nil)
	b.rows.Put(b.rowKey(w.Key), nil)
	if err := b.add(b.count, -1); err != nil {
		return err
	}
	return b.add(b.bytes, -size)
}

// Len returns how many rows wait.
func (b *BufferStore) Len() (int64, error) {
	n, _, err := b.count.Load()
	return n, err
}

// Bytes returns how many bytes of keys and payloads wait.
func (b *BufferStore) Bytes() (int64, error) {
	n, _, err := b.bytes.Load()
	return n, err
}
