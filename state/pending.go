package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"
	"maps"

	"tailrace.dev/serde"
)

// defaultPendingLimit is how many records wait in a pending store whose spec does not say.
const defaultPendingLimit = 1000

// PendingSpec declares a store of records that wait for something outside of their task, such as the answer of a
// service or a time of day: in order for each key, over restarts. Operators that make calls, and stream.Delay, use it.
type PendingSpec[K, V any] struct {
	name  string
	key   serde.Serde[K]
	value serde.Serde[V]
	limit int
	topic map[string]string
	err   error
}

// Pending declares a store of waiting records with the given name and encodings, for 1000 records in each task: see
// PendingSpec.WithLimit.
//
//	var Lookups = state.Pending("lookups", serde.String, serde.JSON[Order]())
func Pending[K, V any](name string, key serde.Serde[K], value serde.Serde[V]) *PendingSpec[K, V] {
	s := &PendingSpec[K, V]{name: name, key: key, value: value, limit: defaultPendingLimit, err: CheckName("store", name)}
	if s.err == nil && (key == nil || value == nil) {
		s.err = fmt.Errorf("store %q: a serde is nil", name)
	}
	return s
}

// WithLimit returns the spec with another bound of the records that wait in each task, at least 1. When so many do, the
// task takes no more from the partitions that lead to the store. Single input records that become several before they
// get there may exceed it.
func (s PendingSpec[K, V]) WithLimit(records int) *PendingSpec[K, V] {
	s.limit = records
	if s.err == nil && records < 1 {
		s.err = fmt.Errorf("store %q: a limit of %d records lets nothing pass: give at least 1", s.name, records)
	}
	return &s
}

// WithChangelogConfig returns the spec with topic settings for its changelog topic; see
// KeyValueSpec.WithChangelogConfig.
func (s PendingSpec[K, V]) WithChangelogConfig(config map[string]string) *PendingSpec[K, V] {
	s.topic = maps.Clone(config)
	return &s
}

// Name implements AnySpec.
func (s *PendingSpec[K, V]) Name() string { return s.name }

// Kind implements AnySpec.
func (s *PendingSpec[K, V]) Kind() string { return "pending" }

// Err implements AnySpec.
func (s *PendingSpec[K, V]) Err() error { return s.err }

// SerdeIDs implements AnySpec.
func (s *PendingSpec[K, V]) SerdeIDs() (key, value string) { return serde.ID(s.key), serde.ID(s.value) }

// ChangelogConfig implements AnySpec.
func (s *PendingSpec[K, V]) ChangelogConfig() map[string]string {
	c := map[string]string{"cleanup.policy": "compact"}
	maps.Copy(c, s.topic)
	return c
}

// Key returns the serde of the keys.
func (s *PendingSpec[K, V]) Key() serde.Serde[K] { return s.key }

// Value returns the serde of the values.
func (s *PendingSpec[K, V]) Value() serde.Serde[V] { return s.value }

// Limit returns how many records may wait in a task.
func (s *PendingSpec[K, V]) Limit() int { return s.limit }

func (s *PendingSpec[K, V]) types(K, V) {}

// PendingStore is a pending store as one task sees it: rows of bytes, which the operator that owns it fills. It belongs
// to the task, as a KeyValueStore does.
//
// Records of one lane leave in the order in which they came: the first is the head, the others wait behind it. What a
// lane is the owner decides; KeyLane and LoneLane make those of records with and without a key.
type PendingStore struct {
	rows   *Rows
	number *Cell // of the next record
	count  *Cell // records in the store
	behind *Cell // of those, the ones that are no heads
	key    []byte
	row    []byte
}

// OpenPending returns the store in a task.
func OpenPending[K, V any](env Env, s *PendingSpec[K, V]) (*PendingStore, error) {
	rows, err := env.StoreRows(s)
	if err != nil {
		return nil, err
	}
	if rows.spec != AnySpec(s) {
		return nil, fmt.Errorf("%w: %q", ErrWrongStore, s.name)
	}
	return &PendingStore{
		rows: rows, number: rows.Cell("number"), count: rows.Cell("count"), behind: rows.Cell("behind"),
	}, nil
}

// PendingRecord is a record that waits. Its slices are the store's and must not be changed; they stay valid.
type PendingRecord struct {
	// Number is the record's own in its store, rising in the order of arrival, as PendingStore.Next gave it.
	Number int64
	// DueMillis is the wall-clock time until which the record waits, in Unix milliseconds.
	DueMillis int64
	// Attempts counts the calls that failed.
	Attempts int
	// ID is the idempotency key of the record's calls; empty where none are made.
	ID string
	// Topic, Partition and Offset name the input record that it came of; Topic is empty for one that a timer made.
	Topic     string
	Partition int32
	Offset    int64
	// TimeMillis is the event time.
	TimeMillis int64
	// Headers is the encoded block of headers, empty for none.
	Headers []byte
	// Tombstone tells that there is no value.
	Tombstone bool
	// Value is the encoded value.
	Value []byte
}

// The first byte of a lane.
const (
	loneLane = 0
	keyLane  = 1
)

// KeyLane returns the lane of the records with the given serialised key.
func KeyLane(key []byte) []byte { return append([]byte{keyLane}, key...) }

// LoneLane returns the lane of a record without a key, which nothing waits behind.
func LoneLane(number int64) []byte {
	return binary.BigEndian.AppendUint64([]byte{loneLane}, uint64(number))
}

// LaneKey returns the serialised key of a lane's records, or nil when they have none.
func LaneKey(lane []byte) []byte {
	if len(lane) == 0 || lane[0] != keyLane {
		return nil
	}
	return lane[1:]
}

// Cell returns a number of the operator that owns the store.
func (p *PendingStore) Cell(name string) *Cell { return p.rows.Cell(name) }

// Next returns a number for a record: each one once, rising.
func (p *PendingStore) Next() (int64, error) {
	n, _, err := p.number.Load()
	if err == nil {
		p.number.Store(n + 1)
	}
	return n, err
}

// Len returns how many records wait.
func (p *PendingStore) Len() (int64, error) {
	n, _, err := p.count.Load()
	return n, err
}

func (p *PendingStore) headKey(lane []byte) []byte {
	p.key = append(append(p.key[:0], KindRow), lane...)
	return p.key
}

// behindKey returns the key of a record behind its lane's head. The length keeps lanes apart of which one begins like
// the other.
func behindKey(dst, lane []byte) []byte {
	dst = binary.BigEndian.AppendUint32(append(dst, KindIndex), uint32(len(lane)))
	return append(dst, lane...)
}

func (p *PendingStore) add(c *Cell, n int64) error {
	v, _, err := c.Load()
	if err != nil {
		return err
	}
	c.Store(v + n)
	return nil
}

// Head returns the first record of a lane.
func (p *PendingStore) Head(lane []byte) (r PendingRecord, ok bool, err error) {
	row, err := p.rows.Get(p.headKey(lane))
	if err != nil || row == nil {
		return r, false, err
	}
	r, err = p.parse(row)
	return r, err == nil, err
}

// Add puts a record at the end of a lane and tells whether it is the head now.
func (p *PendingStore) Add(lane []byte, r PendingRecord) (head bool, err error) {
	row, err := p.rows.Get(p.headKey(lane))
	if err != nil {
		return false, err
	}
	if err := p.add(p.count, 1); err != nil {
		return false, err
	}
	if row == nil {
		p.rows.Put(p.key, p.encode(&r))
		return true, nil
	}
	if err := p.add(p.behind, 1); err != nil {
		return false, err
	}
	p.key = binary.BigEndian.AppendUint64(behindKey(p.key[:0], lane), uint64(r.Number))
	p.rows.Put(p.key, p.encode(&r))
	return false, nil
}

// Replace puts another state of a lane's head in its place.
func (p *PendingStore) Replace(lane []byte, r PendingRecord) {
	p.rows.Put(p.headKey(lane), p.encode(&r))
}

// Remove takes out the head of a lane, which must be there, and returns the one that takes its place, if any.
func (p *PendingStore) Remove(lane []byte) (next PendingRecord, ok bool, err error) {
	if err := p.add(p.count, -1); err != nil {
		return next, false, err
	}
	behind, _, err := p.behind.Load()
	if err != nil {
		return next, false, err
	}
	if behind == 0 || len(lane) == 0 || lane[0] == loneLane {
		p.rows.Put(p.headKey(lane), nil)
		return next, false, nil
	}
	from := behindKey(nil, lane)
	sc := p.rows.Scan(from, PrefixEnd(from), false)
	defer sc.Close()
	if !sc.Next() {
		p.rows.Put(p.headKey(lane), nil)
		return next, false, sc.Err()
	}
	row := bytes.Clone(sc.Row())
	if next, err = p.parse(row); err != nil {
		return next, false, err
	}
	p.rows.Put(sc.Key(), nil)
	p.rows.Put(p.headKey(lane), row)
	return next, true, p.add(p.behind, -1)
}

// Heads iterates over the heads of all lanes. The lanes are copies. An error ends the iteration: see Err.
func (p *PendingStore) Heads() iter.Seq2[[]byte, PendingRecord] {
	return func(yield func([]byte, PendingRecord) bool) {
		sc := p.rows.Scan([]byte{KindRow}, []byte{KindRow + 1}, false)
		defer sc.Close()
		for sc.Next() {
			r, err := p.parse(sc.Row())
			if err != nil || !yield(bytes.Clone(sc.Key()[1:]), r) {
				return
			}
		}
		_ = sc.Err() // which notes it for Err
	}
}

// Err returns the error of the first read that failed since the last commit or abort.
func (p *PendingStore) Err() error { return p.rows.layers.Err() }

const (
	pendingTombstone  = 1 << 0
	pendingFlags      = pendingTombstone
	pendingFixedBytes = 8 + 8 + 4 + 1 + 4 + 8 + 2
)

// encode renders a record as the row that ADR 0006 describes. The result is valid until the next call.
func (p *PendingStore) encode(r *PendingRecord) []byte {
	m := RowMeta{TimeMillis: r.TimeMillis}
	if len(r.Headers) > 0 {
		m.Headers = r.Headers
	}
	b := AppendRow(p.row[:0], m)
	b = binary.BigEndian.AppendUint64(b, uint64(r.Number))
	b = binary.BigEndian.AppendUint64(b, uint64(r.DueMillis))
	b = binary.BigEndian.AppendUint32(b, uint32(r.Attempts))
	var flags byte
	if r.Tombstone {
		flags |= pendingTombstone
	}
	b = append(b, flags)
	b = binary.BigEndian.AppendUint32(b, uint32(r.Partition))
	b = binary.BigEndian.AppendUint64(b, uint64(r.Offset))
	b = binary.BigEndian.AppendUint16(b, uint16(len(r.Topic)))
	b = append(b, r.Topic...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.ID)))
	b = append(b, r.ID...)
	b = append(b, r.Value...)
	p.row = b
	return b
}

func (p *PendingStore) parse(row []byte) (PendingRecord, error) {
	r, err := parsePending(row)
	if err != nil {
		return r, p.rows.fail(err)
	}
	return r, nil
}

// parsePending reads a row of a pending store. The slices refer to row.
func parsePending(row []byte) (r PendingRecord, err error) {
	m, b, err := ParseRow(row)
	if err != nil {
		return r, err
	}
	if len(b) < pendingFixedBytes+4 {
		return r, fmt.Errorf("%w: pending row of %d bytes", ErrCorrupt, len(b))
	}
	r.TimeMillis, r.Headers = m.TimeMillis, m.Headers
	r.Number = int64(binary.BigEndian.Uint64(b))
	r.DueMillis = int64(binary.BigEndian.Uint64(b[8:]))
	r.Attempts = int(binary.BigEndian.Uint32(b[16:]))
	if b[20]&^pendingFlags != 0 {
		return r, fmt.Errorf("%w: unknown flags %#x of a pending row", ErrCorrupt, b[20])
	}
	r.Tombstone = b[20]&pendingTombstone != 0
	r.Partition = int32(binary.BigEndian.Uint32(b[21:]))
	r.Offset = int64(binary.BigEndian.Uint64(b[25:]))
	n := int(binary.BigEndian.Uint16(b[33:]))
	b = b[pendingFixedBytes:]
	if len(b) < n+4 {
		return r, fmt.Errorf("%w: pending row ends in its topic", ErrCorrupt)
	}
	r.Topic, b = string(b[:n]), b[n:]
	id := binary.BigEndian.Uint32(b)
	if b = b[4:]; uint64(len(b)) < uint64(id) {
		return r, fmt.Errorf("%w: pending row ends in its id", ErrCorrupt)
	}
	r.ID, r.Value = string(b[:id]), b[id:len(b):len(b)]
	return r, nil
}
