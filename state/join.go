package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"tailrace.dev/serde"
)

// JoinSpec declares what a join of two streams keeps: the records of both sides for as long as they may find a partner,
// and which of them have found none yet.
type JoinSpec[K, L, R any] struct {
	timedSpec[K, L]
	right serde.Serde[R]
}

// Join declares the store of a join of two streams, with the encodings of their keys and values. Records expire when
// their side has seen a time that is retention or more after their own; stream.JoinWindows.MinRetention says how long a
// join needs.
func Join[K, L, R any](
	name string, key serde.Serde[K], left serde.Serde[L], right serde.Serde[R], retention time.Duration,
) *JoinSpec[K, L, R] {
	s := &JoinSpec[K, L, R]{newTimedSpec(name, key, left, retention), right}
	if s.err == nil && right == nil {
		s.err = fmt.Errorf("store %q: a serde is nil", name)
	}
	return s
}

// Kind implements AnySpec.
func (s *JoinSpec[K, L, R]) Kind() string { return "join" }

// SerdeIDs implements AnySpec.
func (s *JoinSpec[K, L, R]) SerdeIDs() (key, value string) {
	return serde.ID(s.key), serde.ID(s.value) + "," + serde.ID(s.right)
}

// Right returns the serde of the right side's values.
func (s *JoinSpec[K, L, R]) Right() serde.Serde[R] { return s.right }

// Side is a side of a join.
type Side byte

// The sides, in the order in which records of one time that found no partner leave a join.
const (
	RightSide Side = 0
	LeftSide  Side = 1
)

// Other returns the other side.
func (s Side) Other() Side { return 1 - s }

// JoinStore is the store of a stream-stream join as one task sees it: rows of bytes, which the operator that owns it
// encodes. It belongs to the task, as a KeyValueStore does. A record lies under
//
//	KindRow ‖ slice ‖ key ‖ time ‖ side ‖ number
//
// with slice = ⌊time / interval⌋ and a number that the store counts up, so that records of one time keep their order. While a
// record has found no partner and the join will emit it without one, it lies also under
//
//	KindIndex ‖ time ‖ side ‖ key ‖ number
//
// The row says whether it does.
type JoinStore struct {
	rows     *Rows
	interval int64
	seq      *Cell
	width    *Cell    // the interval that the rows were written with
	seen     [2]*Cell // the largest time stored of each side
	earliest *Cell    // no record without a partner has an earlier time

	key, row []byte // scratch
}

// OpenJoin returns the store in a task.
func OpenJoin[K, L, R any](env Env, s *JoinSpec[K, L, R]) (*JoinStore, error) {
	rows, err := env.StoreRows(s)
	if err != nil {
		return nil, err
	}
	if rows.spec != AnySpec(s) {
		return nil, fmt.Errorf("%w: %q", ErrWrongStore, s.name)
	}
	j := &JoinStore{
		rows: rows, interval: s.interval(), seq: rows.Cell("number"), earliest: rows.Cell("earliest"),
		width: rows.Cell("interval"),
		seen:  [2]*Cell{RightSide: rows.Cell("right-time"), LeftSide: rows.Cell("left-time")},
	}
	// The retention may have changed since the rows were written; where they lie has not.
	if width, ok, err := j.width.Load(); err != nil {
		return nil, err
	} else if ok && width > 0 {
		j.interval = width
	}
	return j, nil
}

// Cell returns a number of the operator that owns the store, such as its stream time.
func (j *JoinStore) Cell(name string) *Cell { return j.rows.Cell(name) }

// Joinable is a record of a join's store.
type Joinable struct {
	// Key is the serialised key, Value what the owner put. Both are the store's and immutable.
	Key, Value []byte
	TimeMillis int64
	Side       Side

	number int64
	kept   bool // it lies where partners look
	alone  bool // it lies among those without a partner
}

func (j *JoinStore) slice(t int64) int64 {
	q := t / j.interval
	if t%j.interval < 0 {
		q--
	}
	return q
}

func (j *JoinStore) rowKey(r *Joinable) []byte {
	k := appendTime(append(j.key[:0], KindRow), j.slice(r.TimeMillis))
	k = appendTime(append(k, r.Key...), r.TimeMillis)
	k = append(k, byte(r.Side))
	j.key = binary.BigEndian.AppendUint64(k, uint64(r.number))
	return j.key
}

func (j *JoinStore) aloneKey(r *Joinable) []byte {
	k := appendTime(append(j.key[:0], KindIndex), r.TimeMillis)
	k = append(append(k, byte(r.Side)), r.Key...)
	j.key = binary.BigEndian.AppendUint64(k, uint64(r.number))
	return j.key
}

func (j *JoinStore) write(r *Joinable) {
	j.row = AppendRow(j.row[:0], RowMeta{TimeMillis: r.TimeMillis})
	var alone byte
	if r.alone {
		alone = 1
	}
	j.row = append(append(j.row, alone), r.Value...)
	j.rows.Put(j.rowKey(r), j.row)
}

// Put keeps a record, unless it has expired at its arrival: its time is window or more before the largest of its side. It
// is returned with what Alone needs to know of it.
func (j *JoinStore) Put(r Joinable, window int64) (Joinable, error) {
	n, _, err := j.seq.Load()
	if err != nil {
		return r, err
	}
	r.number = n + 1
	j.seq.Store(r.number)
	j.width.Store(j.interval)
	seen, ok, err := j.seen[r.Side].Load()
	if err != nil {
		return r, err
	}
	if ok && r.TimeMillis <= satSub(seen, window) {
		return r, nil
	}
	r.kept = true
	if !ok || r.TimeMillis > seen {
		j.seen[r.Side].Store(r.TimeMillis)
		if err := j.forget(window); err != nil {
			return r, err
		}
	}
	j.write(&r)
	return r, nil
}

// forget gives up the slices that have expired on both sides.
func (j *JoinStore) forget(window int64) error {
	oldest := int64(math.MaxInt64)
	for _, c := range j.seen {
		t, ok, err := c.Load()
		if err != nil || !ok {
			return err
		}
		oldest = min(oldest, t)
	}
	j.rows.Forget(appendTime([]byte{KindRow}, j.slice(satSub(oldest, window))))
	return nil
}

// Find returns the records of a side with the given key and from <= time <= to that have not expired, by time, then
// in the order of arrival. window is as in Put.
func (j *JoinStore) Find(side Side, key []byte, from, to, window int64) ([]Joinable, error) {
	seen, ok, err := j.seen[side].Load()
	if err != nil || !ok {
		return nil, err
	}
	if oldest := satSub(seen, window); oldest != math.MaxInt64 {
		from = max(from, oldest+1)
	}
	to = min(to, seen)
	var found []Joinable
	for sl := j.slice(from); from <= to && sl <= j.slice(to); sl++ {
		prefix := append(appendTime([]byte{KindRow}, sl), key...)
		lo := appendTime(bytes.Clone(prefix), from)
		var hi []byte
		if to == math.MaxInt64 {
			hi = PrefixEnd(prefix)
		} else {
			hi = appendTime(bytes.Clone(prefix), to+1)
		}
		if found, err = j.find(found, side, key, lo, hi); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// joinSuffix is what follows the key in a row's key: time, side, number.
const joinSuffix = 8 + 1 + 8

func (j *JoinStore) find(found []Joinable, side Side, key, lo, hi []byte) ([]Joinable, error) {
	sc := j.rows.Scan(lo, hi, false)
	defer sc.Close()
	for sc.Next() {
		k := sc.Key()
		if len(k) != keyAt+len(key)+joinSuffix {
			continue // a longer key that starts alike
		}
		rest := k[keyAt+len(key):]
		if Side(rest[8]) != side {
			continue
		}
		m, v, err := ParseRow(sc.Row())
		if err == nil && len(v) == 0 {
			err = fmt.Errorf("%w: record of a join without its mark", ErrCorrupt)
		}
		if err != nil {
			return nil, j.rows.fail(err)
		}
		found = append(found, Joinable{
			Key: key, Value: v[1:], TimeMillis: m.TimeMillis, Side: side,
			number: int64(binary.BigEndian.Uint64(rest[9:])), kept: true, alone: v[0] == 1,
		})
	}
	return found, sc.Err()
}

// Alone notes that a record, which Put returned, has found no partner. payload is what Leaving will give back.
func (j *JoinStore) Alone(r Joinable, payload []byte) error {
	r.alone = true
	if r.kept {
		j.write(&r)
	}
	row := append(AppendRow(j.row[:0], RowMeta{TimeMillis: r.TimeMillis}), payload...)
	j.row = row
	j.rows.Put(j.aloneKey(&r), row)
	first, ok, err := j.earliest.Load()
	if err == nil && (!ok || r.TimeMillis < first) {
		j.earliest.Store(r.TimeMillis)
	}
	return err
}

// Matched notes that a record, which Find returned, has found a partner.
func (j *JoinStore) Matched(r Joinable) {
	if r.alone {
		j.rows.Put(j.aloneKey(&r), nil)
		r.alone = false
		j.write(&r)
	}
}

// Leaving removes and returns the records without a partner that gone is true for, by time, right side first, then by
// key and arrival. gone must be monotonous in the time of each side; soonest is the least time for which it may be
// false on both. The Value of a record is the payload that Alone was given.
func (j *JoinStore) Leaving(soonest int64, gone func(side Side, timeMillis int64) bool) ([]Joinable, error) {
	first, ok, err := j.earliest.Load()
	if err != nil || !ok || first >= soonest {
		return nil, err
	}
	var found []Joinable
	next := int64(math.MaxInt64)
	// What lies before has left, and its deletions would be passed over one by one.
	sc := j.rows.Scan(appendTime([]byte{KindIndex}, first), []byte{KindIndex + 1}, false)
	defer sc.Close()
	for sc.Next() {
		k := sc.Key()
		if len(k) < 1+8+1+8 {
			return nil, j.rows.fail(fmt.Errorf("%w: index of a join", ErrCorrupt))
		}
		r := Joinable{
			TimeMillis: readTime(k[1:]), Side: Side(k[9]), Key: bytes.Clone(k[10 : len(k)-8]),
			number: int64(binary.BigEndian.Uint64(k[len(k)-8:])),
		}
		if !gone(r.Side, r.TimeMillis) {
			next = min(next, r.TimeMillis)
			if r.TimeMillis >= soonest {
				break
			}
			continue
		}
		if _, r.Value, err = ParseRow(sc.Row()); err != nil {
			return nil, j.rows.fail(err)
		}
		j.rows.Put(k, nil)
		found = append(found, r)
	}
	j.earliest.Store(next)
	return found, sc.Err()
}
