package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"time"
)

// expiry is the time to live of a key-value store's rows, in a task.
//
// An index row stands for each row, under the time that the row had when it was written first or was looked at last:
//
//	KindIndex ‖ time ‖ key
//
// with the time as a big-endian int64 with the sign bit turned over. A row that is written again with a later time keeps
// its index row: when that comes up, it moves to where the row is by then. So a row that is written often costs two
// writes more in its whole life, not at each write. An index row without a row, or with another one for the same row, does
// no harm: it goes when it comes up.
type expiry struct {
	rows *Rows
	ttl  int64
	// grain is the step of the time by which rows are removed: many at a time, as looking costs more than removing.
	grain int64
	clock *Cell
	// indexed is stored when every row has an index row: the store may have rows from before it had a time to live.
	indexed *Cell
	// next is no larger than the first time in the index.
	next int64
	due  [][]byte // scratch of sweep
	key  []byte   // scratch
}

const (
	// SweepLimit is how many index rows a record makes a store look at: it bounds the rows that are removed by it.
	SweepLimit = 16
	// grains is into how many steps the time to live is divided.
	grains = 1000
)

// cursorKey is the row that tells how far rows from before the time to live have got index rows.
var cursorKey = []byte{KindMeta, 'i'}

// WithTTL returns the spec with a time to live: a row that has not been written for that long is removed. Time is the
// stream time of the operator that owns the store, the largest time of the records that reached it; the row's is that of
// its last write. So rows go as records come, the same at each replay, and stay while none do. A row that is read is not
// kept by it, and one that is written with an old time goes earlier.
//
// Reads do not see a row from the record on that has brought the time. The row is removed, with a tombstone in
// the changelog, so that no restore brings it back, by the records that come after the time has passed the next
// thousandth of the time to live: at most SweepLimit rows by one record. The operators of tables then forward its deletion,
// with the time at which it expired, before they handle the record; in a store of Processors rows go silently.
//
// The time to live may be changed between runs, and given to a store that has rows already. (Taken away and given again,
// it hides the rows that were new in between when their time has come, but does not remove them.) It is at least a
// millisecond. Topics that are followed, and global tables, cannot have one.
func (s KeyValueSpec[K, V]) WithTTL(d time.Duration) *KeyValueSpec[K, V] {
	s.ttl = d
	if s.err == nil && d < time.Millisecond {
		s.err = fmt.Errorf("store %q: a time to live of %v: give a millisecond at least", s.name, d)
	}
	return &s
}

// TTL returns the time to live of the rows, or 0.
func (s *KeyValueSpec[K, V]) TTL() time.Duration { return s.ttl }

// OpenSweep returns what a task calls with the time of each record that reaches a store which no operator owns, or nil
// where rows have no time to live.
func (s *KeyValueSpec[K, V]) OpenSweep(env Env) (func(timeMillis int64) error, error) {
	st, err := s.Open(env)
	if err != nil || st.exp == nil {
		return nil, err
	}
	return func(at int64) error { return st.Sweep(at, nil) }, nil
}

func newExpiry(rows *Rows, ttl time.Duration) *expiry {
	ms := ttl.Milliseconds()
	return &expiry{
		rows: rows, ttl: ms, grain: max(1, ms/grains), clock: rows.Cell("ttl-clock"), indexed: rows.Cell("ttl-indexed"),
		next: math.MinInt64,
	}
}

// undone is told of keys whose newest write was undone: rows of the index may be back.
func (x *expiry) undone(key string) {
	if key[0] == KindIndex {
		x.next = math.MinInt64
	}
}

// past tells whether a row of the time has expired. An error of reading the clock stops the task anyhow.
func (x *expiry) past(timeMillis int64) bool {
	now, ok, err := x.clock.Load()
	return err == nil && ok && now >= math.MinInt64+x.ttl && timeMillis <= now-x.ttl
}

// horizon returns the time up to which rows are to be removed.
func (x *expiry) horizon() (int64, error) {
	now, ok, err := x.clock.Load()
	if err != nil || !ok || now < 0 {
		return math.MinInt64, err
	}
	return now - now%x.grain - x.ttl, nil
}

func (x *expiry) indexKey(timeMillis int64, key []byte) []byte {
	x.key = append(x.key[:0], KindIndex)
	x.key = binary.BigEndian.AppendUint64(x.key, uint64(timeMillis)^1<<63)
	x.key = append(x.key, key[1:]...)
	return x.key
}

const indexKeyAt = 1 + 8

// indexRow says nothing that its key does not.
var indexRow = AppendRow(nil, RowMeta{})

func indexTime(index []byte) int64 { return int64(binary.BigEndian.Uint64(index[1:]) ^ 1<<63) }

// add puts a row, by its key with the kind byte, into the index.
func (x *expiry) add(timeMillis int64, key []byte) {
	x.rows.Put(x.indexKey(timeMillis, key), indexRow)
	x.next = min(x.next, timeMillis)
}

// written keeps the index when a row is written with a time; was tells of the row before, if it exists.
func (x *expiry) written(key []byte, timeMillis, was int64, exists bool) {
	if !exists || timeMillis < was {
		x.add(timeMillis, key)
	}
}

// removed keeps the index when a row of the time is removed.
func (x *expiry) removed(key []byte, was int64) error {
	index := x.indexKey(was, key)
	row, err := x.rows.Get(index)
	if err == nil && row != nil {
		x.rows.Put(index, nil)
	}
	return err
}

// rowTime returns the time of the row under key, kind byte included.
func (s *KeyValueStore[K, V]) rowTime(key []byte) (timeMillis int64, exists bool, err error) {
	if o := s.cache.find(key); o != nil {
		return o.timeMillis, true, nil
	}
	row, err := s.rows.Get(key)
	if err != nil || row == nil {
		return 0, false, err
	}
	m, _, err := ParseRow(row)
	if err != nil {
		return 0, false, s.rows.fail(err)
	}
	return m.TimeMillis, true, nil
}

// Sweep moves the time of a store with a time to live on to that of a record, and removes rows that have expired, as
// WithTTL says; roughly the oldest first. expired, unless it is nil, is called for each after it was removed; its error ends the
// sweep. Operators that own the store call it before they handle the record, and SweepKey after it. Without a time to
// live it does nothing.
func (s *KeyValueStore[K, V]) Sweep(timeMillis int64, expired func(e Entry[K, V]) error) error {
	x := s.exp
	if x == nil {
		return nil
	}
	now, ok, err := x.clock.Load()
	if err != nil {
		return err
	}
	if !ok || timeMillis > now {
		x.clock.Store(timeMillis)
	}
	if _, ok, err := x.indexed.Load(); err != nil {
		return err
	} else if !ok {
		if err := x.index(); err != nil {
			return err
		}
	}
	horizon, err := x.horizon()
	if err != nil || x.next > horizon {
		return err
	}
	if err := x.collect(horizon); err != nil {
		return err
	}
	for _, index := range x.due {
		if err := s.comeUp(index, horizon, expired); err != nil {
			return err
		}
	}
	return nil
}

// collect finds what is due in the index. What is to be done about it writes to the rows, and so comes after.
func (x *expiry) collect(horizon int64) error {
	x.due = x.due[:0]
	from := []byte{KindIndex}
	if x.next > math.MinInt64 {
		from = binary.BigEndian.AppendUint64(from, uint64(x.next)^1<<63)
	}
	sc := x.rows.Scan(from, []byte{KindIndex + 1}, false)
	defer sc.Close()
	x.next = math.MaxInt64
	for sc.Next() {
		if len(sc.Key()) < indexKeyAt {
			return x.rows.fail(fmt.Errorf("%w: index key of %d bytes", ErrCorrupt, len(sc.Key())))
		}
		at := indexTime(sc.Key())
		if at > horizon || len(x.due) == SweepLimit {
			x.next = at
			break
		}
		x.due = append(x.due, bytes.Clone(sc.Key()))
	}
	return sc.Err()
}

// comeUp deals with an index row that is due.
func (s *KeyValueStore[K, V]) comeUp(index []byte, horizon int64, expired func(e Entry[K, V]) error) error {
	s.exp.rows.Put(index, nil)
	key := append([]byte{KindRow}, index[indexKeyAt:]...)
	at, exists, err := s.rowTime(key)
	switch {
	case err != nil || !exists:
		return err
	case at > horizon:
		s.exp.add(at, key)
		return nil
	}
	return s.expire(key, expired)
}

// expire removes the row under key, kind byte included, and tells of it.
func (s *KeyValueStore[K, V]) expire(key []byte, expired func(e Entry[K, V]) error) error {
	var e Entry[K, V]
	if expired != nil {
		row, err := s.rows.Get(key)
		if err != nil || row == nil {
			return err
		}
		if e.Key, err = s.spec.key.Decode(bytes.Clone(key)[1:]); err != nil {
			return fmt.Errorf("state: store %q: decode key: %w", s.spec.name, err)
		}
		var at int64
		if e.Value, at, err = s.decode(row, !s.spec.flat); err != nil {
			return err
		}
		e.Time = time.UnixMilli(at).UTC()
	}
	s.cache.drop(key)
	s.rows.Put(key, nil)
	if expired == nil {
		return nil
	}
	return expired(e)
}

// SweepKey removes the row under k at once if it has expired, as Sweep would in its time: so that what follows starts
// afresh.
func (s *KeyValueStore[K, V]) SweepKey(k K, expired func(e Entry[K, V]) error) error {
	if s.exp == nil {
		return nil
	}
	key, err := s.encodeKey(k)
	if err != nil {
		return err
	}
	at, exists, err := s.rowTime(key)
	if err != nil || !exists || !s.exp.past(at) {
		return err
	}
	if err := s.exp.removed(key, at); err != nil {
		return err
	}
	return s.expire(bytes.Clone(key), expired)
}

// index puts the next rows from before the time to live into the index.
func (x *expiry) index() error {
	from := []byte{KindRow}
	cursor, err := x.rows.Get(cursorKey)
	if err != nil {
		return err
	}
	if cursor != nil {
		_, last, err := ParseRow(cursor)
		if err != nil {
			return x.rows.fail(err)
		}
		from = append(bytes.Clone(last), 0)
	}
	found, err := x.indexFrom(from)
	if err != nil {
		return err
	}
	if found == nil {
		if cursor != nil {
			x.rows.Put(cursorKey, nil)
		}
		x.indexed.Store(1)
		return nil
	}
	x.rows.Put(cursorKey, append(AppendRow(nil, RowMeta{}), found...))
	return nil
}

// indexFrom puts up to SweepLimit rows into the index, and returns the key of the last, or nil after the last row.
func (x *expiry) indexFrom(from []byte) (last []byte, err error) {
	sc := x.rows.Scan(from, []byte{KindRow + 1}, false)
	defer sc.Close()
	for n := 0; n < SweepLimit && sc.Next(); n++ {
		m, _, err := ParseRow(sc.Row())
		if err != nil {
			return nil, x.rows.fail(err)
		}
		last = append(last[:0], sc.Key()...)
		x.add(m.TimeMillis, last)
	}
	return last, sc.Err()
}
