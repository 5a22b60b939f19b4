package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"time"

	"tailrace.dev/serde"
)

// VersionedSpec declares a store that keeps the older values of each key too.
type VersionedSpec[K, V any] struct {
	name    string
	key     serde.Serde[K]
	value   serde.Serde[V]
	history int64
	topic   map[string]string
	err     error
}

// Versioned declares a store that can be asked for the value of a key as of a time, up to history back from the newest
// time it has seen. That is also how late an update may come: older ones are refused. (Kafka Streams:
// VersionedKeyValueStore, KIP-889.)
func Versioned[K, V any](
	name string, key serde.Serde[K], value serde.Serde[V], history time.Duration,
) *VersionedSpec[K, V] {
	s := &VersionedSpec[K, V]{name: name, key: key, value: value, history: history.Milliseconds()}
	s.err = CheckName("store", name)
	switch {
	case s.err != nil:
	case key == nil || value == nil:
		s.err = fmt.Errorf("store %q: a serde is nil", name)
	case history < 0:
		s.err = fmt.Errorf("store %q: history is negative (%v)", name, history)
	}
	return s
}

// WithChangelogConfig returns the spec with topic settings for its changelog topic; see
// KeyValueSpec.WithChangelogConfig.
func (s VersionedSpec[K, V]) WithChangelogConfig(config map[string]string) *VersionedSpec[K, V] {
	s.topic = maps.Clone(config)
	return &s
}

// Name implements AnySpec.
func (s *VersionedSpec[K, V]) Name() string { return s.name }

// Kind implements AnySpec.
func (s *VersionedSpec[K, V]) Kind() string { return "versioned" }

// Err implements AnySpec.
func (s *VersionedSpec[K, V]) Err() error { return s.err }

// SerdeIDs implements AnySpec.
func (s *VersionedSpec[K, V]) SerdeIDs() (key, value string) {
	return serde.ID(s.key), serde.ID(s.value)
}

// ChangelogConfig implements AnySpec.
func (s *VersionedSpec[K, V]) ChangelogConfig() map[string]string {
	c := map[string]string{"cleanup.policy": "compact"}
	maps.Copy(c, s.topic)
	return c
}

// History returns how far back the store can be asked.
func (s *VersionedSpec[K, V]) History() time.Duration {
	return time.Duration(s.history) * time.Millisecond
}

func (s *VersionedSpec[K, V]) types(K, V) {}

// Version is a value of a key and since when it holds.
type Version[V any] struct {
	Value V
	// TimeMillis is the time of the record that wrote it, in Unix milliseconds.
	TimeMillis int64
}

// What VersionedStore.Put returns besides the time from which a newer version holds.
const (
	// Latest tells that the version is the newest of its key.
	Latest int64 = -1
	// Refused tells that the version is older than the history, and was not put.
	Refused int64 = math.MinInt64
)

// VersionedStore is a versioned store as one task sees it. It belongs to the task, as a KeyValueStore does.
//
// The newest version of a key is the row under the key; an older one is an index row under the key and the time at which it
// ended. A deletion is a version without a value.
type VersionedStore[K, V any] struct {
	spec *VersionedSpec[K, V]
	env  Env
	rows *Rows
	seen *Cell // the newest time put

	key []byte // scratch: KindRow ‖ key
	row []byte
	// Neither is kept across restarts, as neither matters.
	sweep []byte // where the next sweep starts
	puts  int
}

// Open returns the store in a task.
func (s *VersionedSpec[K, V]) Open(env Env) (*VersionedStore[K, V], error) {
	rows, err := env.StoreRows(s)
	if err != nil {
		return nil, err
	}
	if rows.spec != AnySpec(s) {
		return nil, fmt.Errorf("%w: %q", ErrWrongStore, s.name)
	}
	if rows.typed != nil {
		return rows.typed.(*VersionedStore[K, V]), nil //nolint:forcetypeassert // the spec's identity has fixed the types
	}
	st := &VersionedStore[K, V]{spec: s, env: env, rows: rows, seen: rows.Cell("time")}
	rows.typed = st
	return st, nil
}

// version is a decoded row.
type version struct {
	from  int64
	value []byte // nil: a deletion
	// over tells of a value that a deletion was put under: one of the same time, or one that was put later and lasts until
	// the value. The key is then known to end at that time when the value is taken back.
	over bool
}

// How the value of a row starts.
const (
	markDeletion = iota
	markValue
	markOver
)

func parseVersion(row []byte) (version, error) {
	m, b, err := ParseRow(row)
	if err != nil {
		return version{}, err
	}
	if len(b) == 0 || b[0] > markOver {
		return version{}, fmt.Errorf("%w: version without its mark", ErrCorrupt)
	}
	v := version{from: m.TimeMillis, over: b[0] == markOver}
	if b[0] != markDeletion {
		v.value = b[1:]
	}
	return v, nil
}

func (s *VersionedStore[K, V]) appendVersion(dst []byte, v version) []byte {
	dst = AppendRow(dst, RowMeta{TimeMillis: v.from})
	mark := byte(markValue)
	switch {
	case v.value == nil:
		return append(dst, markDeletion)
	case v.over:
		mark = markOver
	}
	return append(append(dst, mark), v.value...)
}

func (s *VersionedStore[K, V]) encodeKey(k K) ([]byte, error) {
	b, err := s.spec.key.Append(append(s.key[:0], KindRow), k)
	if err != nil {
		return nil, fmt.Errorf("state: store %q: encode key: %w", s.spec.name, err)
	}
	s.key = b
	return b, nil
}

// historyKey returns the key of the version of row key that ended at a time.
func historyKey(key []byte, end int64) []byte {
	b := append(make([]byte, 0, len(key)+8), key...)
	b[0] = KindIndex
	return binary.BigEndian.AppendUint64(b, uint64(end))
}

func (s *VersionedStore[K, V]) latest(key []byte) (v version, ok bool, err error) {
	row, err := s.rows.Get(key)
	if err != nil || row == nil {
		return v, false, err
	}
	v, err = parseVersion(row)
	return v, err == nil, err
}

// after returns the oldest version of a key that ended later than a time, with its end.
func (s *VersionedStore[K, V]) after(key []byte, at int64) (v version, end int64, ok bool, err error) {
	if at == math.MaxInt64 {
		return v, 0, false, nil
	}
	sc := s.rows.Scan(historyKey(key, at+1), append(historyKey(key, math.MaxInt64), 0), false)
	defer sc.Close()
	for sc.Next() {
		k := sc.Key()
		if len(k) != len(key)+8 || !bytes.Equal(k[1:len(key)], key[1:]) {
			continue // a longer key that starts alike
		}
		v, err = parseVersion(sc.Row())
		return v, int64(binary.BigEndian.Uint64(k[len(key):])), err == nil, err
	}
	return v, 0, false, sc.Err()
}

func (s *VersionedStore[K, V]) oldest() (int64, error) {
	seen, ok, err := s.seen.Load()
	if err != nil || !ok {
		return math.MinInt64, err
	}
	if seen < math.MinInt64+s.spec.history {
		return math.MinInt64, nil
	}
	return seen - s.spec.history, nil
}

func (s *VersionedStore[K, V]) decode(v version) (Version[V], bool, error) {
	if v.value == nil {
		return Version[V]{}, false, nil
	}
	value, err := s.spec.value.Decode(append([]byte{}, v.value...))
	if err != nil {
		return Version[V]{}, false, fmt.Errorf("state: store %q: decode value: %w", s.spec.name, err)
	}
	return Version[V]{value, v.from}, true, nil
}

// Get returns the newest version of k; ok is false when there is none, or it is a deletion. The value is the caller's own.
func (s *VersionedStore[K, V]) Get(k K) (v Version[V], ok bool, err error) {
	key, err := s.encodeKey(k)
	if err != nil {
		return v, false, err
	}
	l, ok, err := s.latest(key)
	if err != nil || !ok {
		return v, false, err
	}
	return s.decode(l)
}

// GetAsOf returns the version of k that held at a time, in Unix milliseconds. Times before the history have no
// version, unless the newest version of the key is that old.
func (s *VersionedStore[K, V]) GetAsOf(k K, atMillis int64) (v Version[V], ok bool, err error) {
	key, err := s.encodeKey(k)
	if err != nil {
		return v, false, err
	}
	l, ok, err := s.latest(key)
	if err != nil || !ok {
		return v, false, err
	}
	if l.from <= atMillis {
		return s.decode(l)
	}
	oldest, err := s.oldest()
	if err != nil || atMillis < oldest {
		return v, false, err
	}
	h, _, ok, err := s.after(key, atMillis)
	if err != nil || !ok || h.from > atMillis {
		return v, false, err
	}
	return s.decode(h)
}

// Put puts a version of k that holds from a time on, until the next version. It returns when that is: Latest if there is none,
// Refused if the time is older than the history. A version of the same time is replaced.
func (s *VersionedStore[K, V]) Put(k K, value V, atMillis int64) (until int64, err error) {
	key, err := s.encodeKey(k)
	if err != nil {
		return 0, err
	}
	b, err := s.spec.value.Append([]byte{}, value)
	if err != nil {
		return 0, fmt.Errorf("state: store %q: encode value: %w", s.spec.name, err)
	}
	if b == nil {
		b = []byte{}
	}
	return s.put(key, version{from: atMillis, value: b})
}

// Delete puts a version of k without a value, and returns as Put does. It returns also what held at that time before, if it
// was not refused. To delete the newest version at its own time takes it back: if nothing held before it, the store knows
// nothing of that time any more, and an older version that comes later is the newest.
func (s *VersionedStore[K, V]) Delete(k K, atMillis int64) (was Version[V], ok bool, until int64, err error) {
	was, ok, err = s.GetAsOf(k, atMillis)
	if err != nil {
		return was, ok, 0, err
	}
	defer func() {
		if until == Refused {
			was, ok = Version[V]{}, false
		}
	}()
	key, err := s.encodeKey(k)
	if err != nil {
		return was, ok, 0, err
	}
	until, err = s.put(key, version{from: atMillis})
	return was, ok, until, err
}

func (s *VersionedStore[K, V]) put(key []byte, v version) (until int64, err error) {
	oldest, err := s.oldest()
	if err != nil {
		return 0, err
	}
	if v.from < oldest {
		return Refused, nil
	}
	if seen, ok, err := s.seen.Load(); err != nil {
		return 0, err
	} else if !ok || v.from > seen {
		s.seen.Store(v.from)
	}
	until, err = s.place(key, v)
	if err != nil {
		return 0, err
	}
	return until, s.sweepSome()
}

func (s *VersionedStore[K, V]) write(key []byte, v version) {
	s.row = s.appendVersion(s.row[:0], v)
	s.rows.Put(key, s.row)
}

func (s *VersionedStore[K, V]) place(key []byte, v version) (until int64, err error) {
	l, ok, err := s.latest(key)
	if err != nil {
		return 0, err
	}
	if !ok || l.from <= v.from {
		if ok && l.from < v.from {
			s.write(historyKey(key, v.from), version{from: l.from, value: l.value})
		}
		if ok && l.from == v.from {
			if v.value == nil && l.value != nil && !l.over {
				return Latest, s.takeBack(key, v)
			}
			v.over = v.value != nil && (l.value == nil || l.over)
		}
		s.write(key, v)
		return Latest, nil
	}
	h, end, ok, err := s.after(key, v.from)
	switch {
	case err != nil:
		return 0, err
	case !ok:
		end = l.from
	case h.from > v.from: // v comes before all that is known
		end = h.from
	case h.from < v.from: // v ends h
		s.write(historyKey(key, v.from), h)
	}
	s.write(historyKey(key, end), v)
	if end == l.from && v.value == nil && l.value != nil && !l.over {
		l.over = true
		s.write(key, l)
	}
	return end, nil
}

// takeBack deletes the newest version at its own time, so that it never held. A value before it ends there, by a deletion as
// any other; but where nothing held before it, nothing has changed, and the key is as it was without the version. (A version
// that is over a deletion is not taken back: see version.)
func (s *VersionedStore[K, V]) takeBack(key []byte, v version) error {
	before := historyKey(key, v.from)
	row, err := s.rows.Get(before)
	if err != nil {
		return err
	}
	if row == nil {
		s.rows.Put(key, nil)
		return nil
	}
	h, err := parseVersion(row)
	if err != nil {
		return err
	}
	if h.value != nil {
		s.write(key, v)
		return nil
	}
	s.write(key, h)
	s.rows.Put(before, nil)
	return nil
}

// A sweep looks at some rows for having fallen out of the history, so that keys which are never put again do not keep
// theirs for ever, and no put takes long.
const (
	sweepEvery = 64  // puts
	sweepRows  = 128 // rows a sweep
)

func (s *VersionedStore[K, V]) sweepSome() error {
	if s.puts++; s.puts%sweepEvery != 0 {
		return nil
	}
	oldest, err := s.oldest()
	if err != nil {
		return err
	}
	from := s.sweep
	if from == nil {
		from = []byte{KindRow}
	}
	sc := s.rows.Scan(from, []byte{KindIndex + 1}, false)
	defer sc.Close()
	for range sweepRows {
		if !sc.Next() {
			s.sweep = nil
			return sc.Err()
		}
		k := sc.Key()
		s.sweep = append(append(s.sweep[:0], k...), 0)
		if k[0] == KindIndex {
			if end := int64(binary.BigEndian.Uint64(k[len(k)-8:])); end < oldest {
				s.rows.Put(k, nil)
			}
			continue
		}
		// A deletion that is older than the history covers nothing any more.
		v, err := parseVersion(sc.Row())
		if err != nil {
			return err
		}
		if v.value == nil && v.from < oldest {
			s.rows.Put(k, nil)
		}
	}
	return nil
}
