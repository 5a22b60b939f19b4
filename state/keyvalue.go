package state

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"time"
)

// ErrWrongStore is returned when a store is opened by a spec that is not the one it was declared by.
var ErrWrongStore = errors.New("state: store was declared by another spec")

// Entry is a row of a store, decoded.
type Entry[K, V any] struct {
	Key   K
	Value V
	// Time is the event time of the row: that of the record which wrote it, unless its writer said otherwise.
	Time time.Time
}

// KeyValueStore is a key-value store as one task sees it: its partition's rows, the uncommitted writes of the batch
// in progress included. It belongs to the task and must not be used outside of the calls that the task makes.
//
// Errors of its methods are those of the serdes, which are the caller's to judge, or of the local state, which are
// best returned: the task stops, and its work is done again from the last commit.
type KeyValueStore[K, V any] struct {
	spec  *KeyValueSpec[K, V]
	env   Env
	rows  *Rows
	cache objectCache[V]
	exp   *expiry // nil: rows stay until they are deleted

	key []byte // scratch
	row []byte // scratch
}

// Open returns the store in a task. Processors call it once, in Init:
//
//	s.latest, err = Latest.Open(ctx)
func (s *KeyValueSpec[K, V]) Open(env Env) (*KeyValueStore[K, V], error) {
	rows, err := env.StoreRows(s)
	if err != nil {
		return nil, err
	}
	if rows.spec != AnySpec(s) {
		return nil, fmt.Errorf("%w: %q", ErrWrongStore, s.name)
	}
	if rows.typed != nil {
		return rows.typed.(*KeyValueStore[K, V]), nil // the spec's identity has fixed the types
	}
	st := &KeyValueStore[K, V]{spec: s, env: env, rows: rows}
	st.cache.limit = defaultCacheBytes
	rows.typed = st
	rows.evict = st.cache.evict
	if s.ttl > 0 {
		st.exp = newExpiry(rows, s.ttl)
		rows.evict = func(key string) {
			st.cache.evict(key)
			st.exp.undone(key)
		}
	}
	return st, nil
}

func (s *KeyValueStore[K, V]) encodeKey(k K) ([]byte, error) {
	b, err := s.spec.key.Append(append(s.key[:0], KindRow), k)
	if err != nil {
		return nil, fmt.Errorf("state: store %q: encode key: %w", s.spec.name, err)
	}
	s.key = b
	return b, nil
}

func (s *KeyValueStore[K, V]) decode(row []byte, private bool) (V, int64, error) {
	var zero V
	m, b, err := ParseRow(row)
	if err != nil {
		return zero, 0, s.rows.fail(err)
	}
	if private {
		b = bytes.Clone(b) // the value may refer to its bytes, and its new owner may write to it
	}
	v, err := s.spec.value.Decode(b)
	if err != nil {
		return zero, 0, fmt.Errorf("state: store %q: decode value: %w", s.spec.name, err)
	}
	return v, m.TimeMillis, nil
}

// Get returns the value under k; ok is false when there is none. The value is the caller's own: changing it in place
// changes nothing in the store.
func (s *KeyValueStore[K, V]) Get(k K) (v V, ok bool, err error) {
	v, _, ok, err = s.Lookup(k)
	return v, ok, err
}

// Lookup is Get with the time of the row, in Unix milliseconds.
func (s *KeyValueStore[K, V]) Lookup(k K) (v V, timeMillis int64, ok bool, err error) {
	key, err := s.encodeKey(k)
	if err != nil {
		return v, 0, false, err
	}
	if s.spec.flat {
		if o := s.cache.get(key); o != nil {
			return s.unexpired(o.value, o.timeMillis)
		}
	}
	row, err := s.rows.Get(key)
	if err != nil || row == nil {
		return v, 0, false, err
	}
	v, timeMillis, err = s.decode(row, !s.spec.flat)
	if err != nil {
		return v, 0, false, err
	}
	if s.spec.flat {
		s.cache.put(key, v, timeMillis, len(row))
	}
	return s.unexpired(v, timeMillis)
}

// unexpired returns a row that was found, or none if it has expired.
func (s *KeyValueStore[K, V]) unexpired(v V, timeMillis int64) (V, int64, bool, error) {
	if s.exp != nil && s.exp.past(timeMillis) {
		var zero V
		return zero, 0, false, nil
	}
	return v, timeMillis, true, nil
}

// Take is Lookup for a caller that is going to change the value in place and then Give it back (or Delete it): the
// store forgets its decoded copy. It is cheap for large values, which Get would decode at each call.
func (s *KeyValueStore[K, V]) Take(k K) (v V, timeMillis int64, ok bool, err error) {
	if s.spec.flat {
		return s.Lookup(k)
	}
	key, err := s.encodeKey(k)
	if err != nil {
		return v, 0, false, err
	}
	if v, timeMillis, ok = s.cache.take(key); ok {
		return s.unexpired(v, timeMillis)
	}
	row, err := s.rows.Get(key)
	if err != nil || row == nil {
		return v, 0, false, err
	}
	if v, timeMillis, err = s.decode(row, true); err != nil {
		return v, timeMillis, false, err
	}
	return s.unexpired(v, timeMillis)
}

// Set puts v under k, with the time of the record in process. It copies v by encoding it; v stays the caller's.
func (s *KeyValueStore[K, V]) Set(k K, v V) error {
	return s.SetAt(k, v, s.env.RecordTimeMillis())
}

// SetAt is Set with a time of the caller's choice, in Unix milliseconds.
func (s *KeyValueStore[K, V]) SetAt(k K, v V, timeMillis int64) error {
	return s.set(k, v, timeMillis, s.spec.flat)
}

// Give is SetAt for a caller that hands v over: neither it nor anything that v refers to may be changed afterwards,
// other than by the owner that a later Take makes.
func (s *KeyValueStore[K, V]) Give(k K, v V, timeMillis int64) error {
	return s.set(k, v, timeMillis, true)
}

func (s *KeyValueStore[K, V]) set(k K, v V, timeMillis int64, keep bool) error {
	if s.rows.readOnly {
		return fmt.Errorf("%w: store %q", ErrReadOnly, s.spec.name)
	}
	key, err := s.encodeKey(k)
	if err != nil {
		return err
	}
	row := AppendRow(s.row[:0], RowMeta{TimeMillis: timeMillis})
	row, err = s.spec.value.Append(row, v)
	if err != nil {
		return fmt.Errorf("state: store %q: encode value: %w", s.spec.name, err)
	}
	s.row = row
	if s.exp != nil {
		was, exists, err := s.rowTime(key)
		if err != nil {
			return err
		}
		s.exp.written(key, timeMillis, was, exists)
	}
	if keep {
		s.rows.put(s.cache.put(key, v, timeMillis, len(row)), row, false)
	} else {
		s.rows.Put(key, row)
		s.cache.drop(key)
	}
	return nil
}

// Delete removes the value under k, if there is one.
func (s *KeyValueStore[K, V]) Delete(k K) error {
	if s.rows.readOnly {
		return fmt.Errorf("%w: store %q", ErrReadOnly, s.spec.name)
	}
	key, err := s.encodeKey(k)
	if err != nil {
		return err
	}
	if s.exp != nil {
		was, exists, err := s.rowTime(key)
		if err == nil && exists {
			err = s.exp.removed(key, was)
		}
		if err != nil {
			return err
		}
	}
	s.cache.drop(key)
	s.rows.Put(key, nil)
	return nil
}

// All iterates over all rows in the order of their serialised keys. Rows written during the iteration are seen where
// they lie ahead of it. After an error the iteration ends.
func (s *KeyValueStore[K, V]) All() iter.Seq2[Entry[K, V], error] {
	return s.scan([]byte{KindRow}, []byte{KindRow + 1}, false)
}

// AllBackward is All from the last key to the first.
func (s *KeyValueStore[K, V]) AllBackward() iter.Seq2[Entry[K, V], error] {
	return s.scan([]byte{KindRow}, []byte{KindRow + 1}, true)
}

// Range iterates over the rows with from <= key < to, in the order of their serialised keys.
func (s *KeyValueStore[K, V]) Range(from, to K) iter.Seq2[Entry[K, V], error] {
	return s.between(from, to, false)
}

// RangeBackward is Range from the last key to the first.
func (s *KeyValueStore[K, V]) RangeBackward(from, to K) iter.Seq2[Entry[K, V], error] {
	return s.between(from, to, true)
}

func (s *KeyValueStore[K, V]) between(from, to K, reverse bool) iter.Seq2[Entry[K, V], error] {
	lo, err := s.encodeKey(from)
	lo = bytes.Clone(lo)
	var hi []byte
	if err == nil {
		hi, err = s.encodeKey(to)
		hi = bytes.Clone(hi)
	}
	if err != nil {
		return func(yield func(Entry[K, V], error) bool) { yield(Entry[K, V]{}, err) }
	}
	return s.scan(lo, hi, reverse)
}

// Prefix iterates over the rows whose serialised key starts with p, in the order of their serialised keys.
func (s *KeyValueStore[K, V]) Prefix(p []byte) iter.Seq2[Entry[K, V], error] {
	return s.prefix(p, false)
}

// PrefixBackward is Prefix from the last key to the first.
func (s *KeyValueStore[K, V]) PrefixBackward(p []byte) iter.Seq2[Entry[K, V], error] {
	return s.prefix(p, true)
}

func (s *KeyValueStore[K, V]) prefix(p []byte, reverse bool) iter.Seq2[Entry[K, V], error] {
	lo := append([]byte{KindRow}, p...)
	return s.scan(lo, PrefixEnd(lo), reverse)
}

// PrefixEnd returns the smallest key that is larger than every key with the prefix p, or nil when there is none.
func PrefixEnd(p []byte) []byte {
	end := bytes.Clone(p)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

func (s *KeyValueStore[K, V]) scan(from, to []byte, reverse bool) iter.Seq2[Entry[K, V], error] {
	return func(yield func(Entry[K, V], error) bool) {
		sc := s.rows.Scan(from, to, reverse)
		defer sc.Close()
		for sc.Next() {
			var e Entry[K, V]
			var err error
			e.Key, err = s.spec.key.Decode(bytes.Clone(sc.Key())[1:])
			if err != nil {
				err = fmt.Errorf("state: store %q: decode key: %w", s.spec.name, err)
			} else {
				var millis int64
				e.Value, millis, err = s.decode(sc.Row(), !s.spec.flat)
				e.Time = time.UnixMilli(millis).UTC()
				if err == nil && s.exp != nil && s.exp.past(millis) {
					continue
				}
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
		if err := sc.Err(); err != nil {
			yield(Entry[K, V]{}, err)
		}
	}
}
