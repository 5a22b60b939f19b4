package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"
	"math"
	"time"
)

// timedStore is what window and session stores share: rows by key and window, kept in slices of time that expire as a
// whole. The anchor of a row is the time that it is sliced, ordered and expired by: the start of a window, the end of a
// session. A row lies under
//
//	KindRow ‖ slice ‖ key ‖ anchor ‖ other end of the window
//
// with slice = ⌊anchor / interval⌋ and the times as big-endian int64 with the sign bit turned over, so that bytes sort
// as numbers do. The largest time that the store has seen, and the interval that its rows were written with, are a row
// of the library's own, which is written again whenever the time moves, so that no retention outruns it.
type timedStore[K, V any] struct {
	spec     *timedSpec[K, V]
	sessions bool
	env      Env
	rows     *Rows
	cache    objectCache[V]
	lists    spanLists

	retention int64
	known     bool  // clock and interval have been read
	clock     int64 // the largest time seen; noTime before the first
	interval  int64
	forgotten int64 // the slice below which rows were given up

	key, row, lo, list []byte // scratch
}

const noTime = math.MinInt64

var clockKey = []byte{KindMeta, 't'}

const (
	sliceBytes = 8
	spanBytes  = 16
	keyAt      = 1 + sliceBytes // where the key begins in a row's key
)

func appendTime(dst []byte, t int64) []byte {
	return binary.BigEndian.AppendUint64(dst, uint64(t)^1<<63)
}

func readTime(src []byte) int64 { return int64(binary.BigEndian.Uint64(src) ^ 1<<63) }

// init makes the store over its rows; it is called once a task.
func (s *timedStore[K, V]) init(env Env, rows *Rows) {
	s.env, s.rows, s.retention = env, rows, millisOf(s.spec.retention)
	s.cache.limit = defaultCacheBytes
	s.lists.limit = defaultCacheBytes
	rows.evict = func(key string) {
		if key[0] == KindMeta {
			s.known = false // the row of the clock was undone
			return
		}
		s.cache.evict(key)
		s.lists.evict(key)
	}
}

// load reads the clock.
func (s *timedStore[K, V]) load() error {
	row, err := s.rows.Get(clockKey)
	if err != nil {
		return err
	}
	s.clock, s.interval = noTime, s.spec.interval()
	if row != nil {
		m, v, err := ParseRow(row)
		if err == nil && len(v) != 8 {
			err = fmt.Errorf("%w: clock of %d bytes", ErrCorrupt, len(v))
		}
		if err != nil {
			return s.rows.fail(err)
		}
		s.clock = m.TimeMillis
		if s.interval = int64(binary.BigEndian.Uint64(v)); s.interval <= 0 {
			return s.rows.fail(fmt.Errorf("%w: slices of %d ms", ErrCorrupt, s.interval))
		}
	}
	s.known, s.forgotten = true, noTime
	s.forget()
	return nil
}

// Observe tells the store a time, in Unix milliseconds, and returns the largest that it was ever told, by writes or by
// Observe. It is committed, undone and restored with the rows.
func (s *timedStore[K, V]) Observe(timeMillis int64) (streamTimeMillis int64, err error) {
	if !s.known {
		if err := s.load(); err != nil {
			return 0, err
		}
	}
	if timeMillis > s.clock {
		s.clock = timeMillis
		s.row = AppendRow(s.row[:0], RowMeta{TimeMillis: timeMillis})
		s.row = binary.BigEndian.AppendUint64(s.row, uint64(s.interval))
		s.rows.Put(clockKey, s.row)
		s.forget()
	}
	return s.clock, nil
}

// StreamTime returns the largest time that the store has seen, in Unix milliseconds; ok is false when it has seen none.
func (s *timedStore[K, V]) StreamTime() (millis int64, ok bool, err error) {
	if !s.known {
		if err := s.load(); err != nil {
			return 0, false, err
		}
	}
	return s.clock, s.clock != noTime, nil
}

// expiry returns the largest anchor that has expired, or noTime.
func (s *timedStore[K, V]) expiry() int64 {
	if s.clock == noTime || s.retention == math.MaxInt64 {
		return noTime
	}
	return satSub(s.clock, s.retention)
}

// forget gives up the slices that have expired as a whole. The last anchor that has expired still counts as alive here:
// an operator whose windows close at that very time has yet to read it.
func (s *timedStore[K, V]) forget() {
	e := s.expiry()
	if e == noTime {
		return
	}
	if slice := s.slice(e); slice > s.forgotten {
		s.forgotten = slice
		s.lo = appendTime(append(s.lo[:0], KindRow), slice)
		s.rows.Forget(s.lo)
	}
}

func (s *timedStore[K, V]) slice(anchor int64) int64 {
	q := anchor / s.interval
	if anchor%s.interval < 0 {
		q--
	}
	return q
}

func (s *timedStore[K, V]) anchor(w Span) (anchor, other int64) {
	if s.sessions {
		return w.EndMillis, w.StartMillis
	}
	return w.StartMillis, w.EndMillis
}

// rowKey encodes a row's key into the store's scratch.
func (s *timedStore[K, V]) rowKey(w Windowed[K]) ([]byte, error) {
	if !s.known {
		if err := s.load(); err != nil {
			return nil, err
		}
	}
	anchor, other := s.anchor(w.Span)
	b := appendTime(append(s.key[:0], KindRow), s.slice(anchor))
	b, err := s.spec.key.Append(b, w.Key)
	if err != nil {
		return nil, fmt.Errorf("state: store %q: encode key: %w", s.spec.name, err)
	}
	b = appendTime(appendTime(b, anchor), other)
	s.key = b
	return b, nil
}

// parseKey takes a row's key apart; the key's bytes are decoded from a copy.
func (s *timedStore[K, V]) parseKey(key []byte) (w Windowed[K], err error) {
	n := len(key) - spanBytes
	if n < keyAt {
		return w, s.rows.fail(fmt.Errorf("%w: row key of %d bytes", ErrCorrupt, len(key)))
	}
	w.Span = s.span(key)
	if w.Key, err = s.spec.key.Decode(bytes.Clone(key[keyAt:n])); err != nil {
		return w, fmt.Errorf("state: store %q: decode key: %w", s.spec.name, err)
	}
	return w, nil
}

func (s *timedStore[K, V]) span(key []byte) Span {
	n := len(key) - spanBytes
	anchor, other := readTime(key[n:]), readTime(key[n+8:])
	if s.sessions {
		return Span{other, anchor}
	}
	return Span{anchor, other}
}

func (s *timedStore[K, V]) decode(row []byte) (v V, timeMillis int64, err error) {
	m, b, err := ParseRow(row)
	if err != nil {
		return v, 0, s.rows.fail(err)
	}
	if !s.spec.flat {
		b = bytes.Clone(b) // the value may refer to its bytes, and its owner may write to it
	}
	if v, err = s.spec.value.Decode(b); err != nil {
		return v, 0, fmt.Errorf("state: store %q: decode value: %w", s.spec.name, err)
	}
	return v, m.TimeMillis, nil
}

// Get returns the value under a key and window; ok is false when there is none, or it has expired. The value is the
// caller's own: changing it in place changes nothing in the store.
func (s *timedStore[K, V]) Get(w Windowed[K]) (v V, ok bool, err error) {
	v, _, ok, err = s.Lookup(w)
	return v, ok, err
}

// Lookup is Get with the time of the row, in Unix milliseconds.
func (s *timedStore[K, V]) Lookup(w Windowed[K]) (v V, timeMillis int64, ok bool, err error) {
	if !s.known {
		if err := s.load(); err != nil {
			return v, 0, false, err
		}
	}
	if a, _ := s.anchor(w.Span); a <= s.expiry() {
		return v, 0, false, nil
	}
	return s.Peek(w)
}

// Peek is Lookup that also returns a row that has expired, as long as the last time that expired it was not committed.
// It is for operators.
func (s *timedStore[K, V]) Peek(w Windowed[K]) (v V, timeMillis int64, ok bool, err error) {
	key, err := s.rowKey(w)
	if err != nil {
		return v, 0, false, err
	}
	if s.spec.flat {
		if o := s.cache.get(key); o != nil {
			return o.value, o.timeMillis, true, nil
		}
	}
	row, err := s.rows.Get(key)
	if err != nil || row == nil {
		return v, 0, false, err
	}
	if v, timeMillis, err = s.decode(row); err != nil {
		return v, 0, false, err
	}
	if s.spec.flat {
		s.cache.put(key, v, timeMillis, len(row))
	}
	return v, timeMillis, true, nil
}

// Take is Peek for a caller that is going to change the value in place and then Give it back (or Delete it): the store
// forgets its decoded copy. It is cheap for large values, which Get would decode at each call. It is for operators.
func (s *timedStore[K, V]) Take(w Windowed[K]) (v V, timeMillis int64, ok bool, err error) {
	if s.spec.flat {
		return s.Peek(w)
	}
	key, err := s.rowKey(w)
	if err != nil {
		return v, 0, false, err
	}
	if v, timeMillis, ok = s.cache.take(key); ok {
		return v, timeMillis, true, nil
	}
	row, err := s.rows.Get(key)
	if err != nil || row == nil {
		return v, 0, false, err
	}
	v, timeMillis, err = s.decode(row)
	return v, timeMillis, err == nil, err
}

// Set puts v under a key and window, with the time of the record in process. It copies v by encoding it; v stays the
// caller's. The store has then seen the start of the window, or the end of the session; a row that is expired when it
// is put is not found again.
func (s *timedStore[K, V]) Set(w Windowed[K], v V) error {
	return s.SetAt(w, v, s.env.RecordTimeMillis())
}

// SetAt is Set with a time of the caller's choice for the row, in Unix milliseconds.
func (s *timedStore[K, V]) SetAt(w Windowed[K], v V, timeMillis int64) error {
	return s.set(w, v, timeMillis, s.spec.flat)
}

// Give is SetAt for a caller that hands v over: neither it nor anything that v refers to may be changed afterwards,
// other than by the owner that a later Take makes.
func (s *timedStore[K, V]) Give(w Windowed[K], v V, timeMillis int64) error {
	return s.set(w, v, timeMillis, true)
}

func (s *timedStore[K, V]) set(w Windowed[K], v V, timeMillis int64, keep bool) error {
	anchor, _ := s.anchor(w.Span)
	if _, err := s.Observe(anchor); err != nil {
		return err
	}
	key, err := s.rowKey(w)
	if err != nil {
		return err
	}
	row := AppendRow(s.row[:0], RowMeta{TimeMillis: timeMillis})
	row, err = s.spec.value.Append(row, v)
	if err != nil {
		return fmt.Errorf("state: store %q: encode value: %w", s.spec.name, err)
	}
	s.row = row
	s.lists.note(key, anchor, SpanRow{w.Span, timeMillis}, true)
	if keep {
		s.rows.put(s.cache.put(key, v, timeMillis, len(row)), row, false)
	} else {
		s.rows.Put(key, row)
		s.cache.drop(key)
	}
	return nil
}

// Delete removes the value under a key and window, if there is one.
func (s *timedStore[K, V]) Delete(w Windowed[K]) error {
	key, err := s.rowKey(w)
	if err != nil {
		return err
	}
	s.cache.drop(key)
	s.rows.Put(key, nil)
	anchor, _ := s.anchor(w.Span)
	s.lists.note(key, anchor, SpanRow{Span: w.Span}, false)
	return nil
}

// bounds narrows a range of anchors, from <= anchor < to, to what can be there. ok is false when that is nothing.
func (s *timedStore[K, V]) bounds(from, to int64, expired bool) (lo, hi int64, ok bool, err error) {
	if !s.known {
		if err := s.load(); err != nil {
			return 0, 0, false, err
		}
	}
	if s.clock == noTime {
		return 0, 0, false, nil
	}
	first := s.expiry()
	if !expired {
		first = satAdd(first, 1)
	}
	lo, hi = max(from, first), min(to, satAdd(s.clock, 1))
	return lo, hi, lo < hi, nil
}

// scan calls yield for the rows with lo <= anchor < hi, of one key when its encoding is given and of all when key is
// nil, until it returns false. The slices are valid during the call.
func (s *timedStore[K, V]) scan(key []byte, lo, hi int64, reverse bool, yield func(key, row []byte) bool) error {
	first, last := s.slice(lo), s.slice(hi-1)
	if key == nil {
		_, err := s.scanRange(appendTime([]byte{KindRow}, first), appendTime([]byte{KindRow}, last+1), reverse,
			func(k, row []byte) bool {
				if n := len(k) - spanBytes; n >= keyAt {
					if a := readTime(k[n:]); a < lo || a >= hi {
						return true
					}
				}
				return yield(k, row)
			})
		return err
	}
	for i := range last - first + 1 {
		slice := first + i
		if reverse {
			slice = last - i
		}
		prefix := append(appendTime([]byte{KindRow}, slice), key...)
		from, to := appendTime(bytes.Clone(prefix), lo), appendTime(bytes.Clone(prefix), hi)
		more, err := s.scanRange(from, to, reverse, func(k, row []byte) bool {
			if len(k) != len(prefix)+spanBytes || !bytes.HasPrefix(k, prefix) {
				return true // a longer key, whose bytes go on like a time
			}
			return yield(k, row)
		})
		if err != nil || !more {
			return err
		}
	}
	return nil
}

func (s *timedStore[K, V]) scanRange(
	from, to []byte, reverse bool, yield func(key, row []byte) bool,
) (more bool, err error) {
	sc := s.rows.Scan(from, to, reverse)
	defer sc.Close()
	for sc.Next() {
		if !yield(sc.Key(), sc.Row()) {
			return false, nil
		}
	}
	return true, sc.Err()
}

// entries iterates over the rows of one key, or of all keys, with from <= anchor < to, as far as want accepts their
// windows. Hidden rows are left out.
func (s *timedStore[K, V]) entries(
	k *K, from, to int64, reverse bool, want func(Span) bool,
) iter.Seq2[Entry[Windowed[K], V], error] {
	return func(yield func(Entry[Windowed[K], V], error) bool) {
		var none Entry[Windowed[K], V]
		lo, hi, ok, err := s.bounds(from, to, false)
		var key []byte
		if err == nil && k != nil {
			key, err = s.encode(*k)
		}
		if err == nil && ok {
			err = s.scan(key, lo, hi, reverse, func(rowKey, row []byte) bool {
				if len(rowKey) >= keyAt+spanBytes {
					if w := s.span(rowKey); w.IsHidden() || (want != nil && !want(w)) {
						return true
					}
				}
				e, err := s.entry(rowKey, row)
				return yield(e, err) && err == nil
			})
		}
		if err != nil {
			yield(none, err)
		}
	}
}

func (s *timedStore[K, V]) entry(rowKey, row []byte) (e Entry[Windowed[K], V], err error) {
	if e.Key, err = s.parseKey(rowKey); err != nil {
		return e, err
	}
	var millis int64
	e.Value, millis, err = s.decode(row)
	e.Time = time.UnixMilli(millis).UTC()
	return e, err
}

// encode returns the encoding of a key; never nil.
func (s *timedStore[K, V]) encode(k K) ([]byte, error) {
	b, err := s.spec.key.Append([]byte{}, k)
	if err != nil {
		return nil, fmt.Errorf("state: store %q: encode key: %w", s.spec.name, err)
	}
	return b, nil
}

// All iterates over all rows that have not expired: by slices of time, within those in the order of the serialised keys
// (as far as no key is the beginning of another), and the rows of a key in the order of time. Rows written during the
// iteration are seen where they lie ahead of it. After an error the iteration ends.
func (s *timedStore[K, V]) All() iter.Seq2[Entry[Windowed[K], V], error] {
	return s.entries(nil, math.MinInt64, math.MaxInt64, false, nil)
}

// AllBackward is All from the last row to the first.
func (s *timedStore[K, V]) AllBackward() iter.Seq2[Entry[Windowed[K], V], error] {
	return s.entries(nil, math.MinInt64, math.MaxInt64, true, nil)
}
