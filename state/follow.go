package state

import (
	"bytes"
	"errors"
	"fmt"
)

// ErrReadOnly is returned by the writing methods of a store that follows a topic: only the topic's records change it.
var ErrReadOnly = errors.New("state: the store follows a topic and cannot be written to: write to the topic")

// ErrKeyEncoding is the error of a record whose key is not encoded as the store's serde encodes it. Its row could be
// neither found by its key nor deleted.
var ErrKeyEncoding = errors.New("state: the key is encoded otherwise than the store's serde does it")

// A followed store has no changelog: an input topic is. A row is made of nothing but one record of the topic (KindRow and
// the record's key, its time, the bytes of its value), so that reading the topic again gives the same rows as
// processing it did. The functions here make those rows; see processor.FollowTopic for the operator.

// FollowedRow returns the row that a record of the followed topic leaves behind, or a nil row where it deletes. An error
// tells that the record leaves none: it cannot be decoded, or its key is not encoded as the serde does it
// (ErrKeyEncoding). The returned slices are new.
func (s *KeyValueSpec[K, V]) FollowedRow(key, value []byte, timeMillis int64) (rowKey, row []byte, err error) {
	k, err := s.key.Decode(key)
	if err != nil {
		return nil, nil, fmt.Errorf("state: store %q: decode key: %w", s.name, err)
	}
	rowKey, err = s.key.Append([]byte{KindRow}, k)
	if err != nil {
		return nil, nil, fmt.Errorf("state: store %q: encode key: %w", s.name, err)
	}
	if !bytes.Equal(rowKey[1:], key) {
		return nil, nil, fmt.Errorf("%w: store %q", ErrKeyEncoding, s.name)
	}
	if value == nil {
		return rowKey, nil, nil
	}
	if _, err := s.value.Decode(value); err != nil {
		return nil, nil, fmt.Errorf("state: store %q: decode value: %w", s.name, err)
	}
	row = AppendRow(make([]byte, 0, rowFixedBytes+len(value)), RowMeta{TimeMillis: timeMillis})
	return rowKey, append(row, value...), nil
}

// Follow writes the row of a record of the topic that the store follows: k and v are what its key and value, which are
// kept as they are, decode to. A nil value deletes. It is for the operator that keeps the store, and copies what it is
// given. An error is that of the key's serde, or ErrKeyEncoding.
func (s *KeyValueStore[K, V]) Follow(key, value []byte, k K, v V, timeMillis int64) error {
	rowKey, err := s.encodeKey(k)
	if err != nil {
		return err
	}
	if !bytes.Equal(rowKey[1:], key) {
		return fmt.Errorf("%w: store %q", ErrKeyEncoding, s.spec.name)
	}
	if value == nil {
		s.cache.drop(rowKey)
		s.rows.Put(rowKey, nil)
		return nil
	}
	row := AppendRow(s.row[:0], RowMeta{TimeMillis: timeMillis})
	row = append(row, value...)
	s.row = row
	if s.spec.flat {
		s.rows.put(s.cache.put(rowKey, v, timeMillis, len(row)), row, false)
		return nil
	}
	s.cache.drop(rowKey)
	s.rows.Put(rowKey, row)
	return nil
}

// FollowRaw is Follow of a record that was not decoded. An error, as of KeyValueSpec.FollowedRow, tells that the record
// leaves no row.
func (s *KeyValueStore[K, V]) FollowRaw(key, value []byte, timeMillis int64) error {
	rowKey, row, err := s.spec.FollowedRow(key, value, timeMillis)
	if err != nil {
		return err
	}
	s.cache.drop(rowKey)
	s.rows.Put(rowKey, row)
	return nil
}

// SetReadOnly makes the typed store refuse to be written to, but by Follow. It is said once, when the task is made.
func (r *Rows) SetReadOnly() { r.readOnly = true }

// ReadOnly tells whether SetReadOnly was called.
func (r *Rows) ReadOnly() bool { return r.readOnly }
