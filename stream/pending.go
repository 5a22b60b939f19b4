package stream

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"

	"tailrace.dev/serde"
	"tailrace.dev/state"
)

// pending is the queue of the windows that have not closed yet, of an operator that emits them on close. It lives in
// index rows of the operator's store, ordered as the windows come out:
//
//	KindIndex ‖ 'e' ‖ first ‖ second ‖ key
//
// with the start and the end of windows, the end and the start of sessions, as big-endian int64 with the sign bit
// turned over. A window stays in it until it has been emitted, whatever has become of the stream time.
type pending[K any] struct {
	rows *state.Rows
	key  serde.Serde[K]
	// next is no larger than the first time of the head of the queue, so that most records need not look at it.
	next *state.Cell
	buf  []byte
}

var pendingPrefix = []byte{state.KindIndex, 'e'}

func newPending[K any](env state.Env, spec state.AnySpec, key serde.Serde[K]) (*pending[K], error) {
	rows, err := env.StoreRows(spec)
	if err != nil {
		return nil, err
	}
	return &pending[K]{rows: rows, key: key, next: rows.Cell("next-close")}, nil
}

func (p *pending[K]) encode(first, second int64, k K) ([]byte, error) {
	b := p.buf[:0]
	b = append(b, pendingPrefix...)
	b = binary.BigEndian.AppendUint64(b, uint64(first)^1<<63)
	b = binary.BigEndian.AppendUint64(b, uint64(second)^1<<63)
	b, err := p.key.Append(b, k)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	p.buf = b
	return b, nil
}

// add puts a window into the queue.
func (p *pending[K]) add(first, second int64, k K) error {
	b, err := p.encode(first, second, k)
	if err != nil {
		return err
	}
	var row [16]byte
	p.rows.Put(b, state.AppendRow(row[:0], state.RowMeta{}))
	next, ok, err := p.next.Load()
	if err == nil && (!ok || first < next) {
		p.next.Store(first)
	}
	return err
}

// remove takes a window out of the queue.
func (p *pending[K]) remove(first, second int64, k K) error {
	b, err := p.encode(first, second, k)
	if err == nil {
		p.rows.Put(b, nil)
	}
	return err
}

// drain calls emit for each window whose first time is below limit, in order, and takes it out of the queue.
func (p *pending[K]) drain(limit int64, emit func(first, second int64, k K) error) error {
	next, ok, err := p.next.Load()
	if err != nil || (ok && next >= limit) {
		return err
	}
	from := pendingPrefix
	if ok { // what lies before has left the queue, and its deletions would be passed over one by one
		from = binary.BigEndian.AppendUint64(bytes.Clone(pendingPrefix), uint64(next)^1<<63)
	}
	sc := p.rows.Scan(from, state.PrefixEnd(pendingPrefix), false)
	defer sc.Close()
	next = math.MaxInt64
	const timesAt, keyAt = 2, 2 + 16
	for sc.Next() {
		b := sc.Key()
		if len(b) < keyAt {
			return fmt.Errorf("%w: index key of %d bytes", state.ErrCorrupt, len(b))
		}
		first := int64(binary.BigEndian.Uint64(b[timesAt:]) ^ 1<<63)
		if first >= limit {
			next = first
			break
		}
		second := int64(binary.BigEndian.Uint64(b[timesAt+8:]) ^ 1<<63)
		k, err := p.key.Decode(bytes.Clone(b[keyAt:]))
		if err != nil {
			return fmt.Errorf("decode key: %w", err)
		}
		p.rows.Put(b, nil)
		if err := emit(first, second, k); err != nil {
			return err
		}
	}
	if err := sc.Err(); err != nil {
		return err
	}
	p.next.Store(next)
	return nil
}
