package table

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
)

// ErrBufferFull is the error of a record that finds the buffer of a suppression full, where that is to fail.
var ErrBufferFull = errors.New("table: the buffer of a suppression is full")

// Limits bounds the buffer of a suppression. The zero value does not.
type Limits struct {
	// MaxRecords and MaxBytes bound the buffer; 0 does not.
	MaxRecords, MaxBytes int64
	// FailWhenFull makes a record that overflows the buffer an error, ErrBufferFull, under the application's
	// ErrorPolicy. Otherwise what waits for longest is emitted early.
	FailWhenFull bool
}

// Suppress holds the changes of each row back until wait has passed, in stream time, since the first of them, and then
// emits only the newest: a row that changes often is emitted at most once in that time. Rows leave in the order of
// the times of their first change, ties in the order of their serialised keys. They wait in the buffer that store
// declares.
//
// The time that counts is the largest of the changes which the suppression itself has seen; it is kept with the buffer.
// Operators below see the table as it was emitted. The time of a result is that of its change. (Kafka Streams:
// KTable#suppress with Suppressed.untilTimeLimit, KTableSuppressProcessorSupplier.)
func Suppress[K, V any](
	t *Table[K, V], store *state.BufferSpec[K, V], wait time.Duration, limits Limits,
) *Table[K, V] {
	if wait < 0 {
		t.node.Builder().Fail("suppress", "the time to wait is negative (%v)", wait)
	}
	return suppress(t, store, "suppress", wait.Milliseconds(), limits, false,
		func(r processor.Record[K, Change[V]]) int64 { return r.Time.UnixMilli() })
}

// SuppressUntilClose holds the changes of each window back until the window is closed, and then emits its final result:
// when the stream time that the suppression has seen reaches the end of the window and its grace; for sessions, the
// gap in addition. Windows leave in the order of their ends, ties in that of their serialised keys. Deletions of
// windows that were never emitted, as sessions make when they merge, are not.
//
// The end of a sliding window or a session belongs to it, so that a record right at that end may let one out a second
// time; EmitOnClose of the windows themselves does not. The buffer cannot emit early, so Limits.FailWhenFull must be
// set with any limit. The rest is as in Suppress. (Kafka Streams: Suppressed.untilWindowCloses.)
func SuppressUntilClose[K, V any](t *Table[K, V], store *state.BufferSpec[K, V], limits Limits) *Table[K, V] {
	const kind = "suppress-until-close"
	c := t.closing
	if c == nil {
		t.node.Builder().Fail(kind, "the table is not the result of an aggregation by windows, so there is no close to wait for")
		c = &Closing[K]{Span: func(K) state.Span { return state.Span{} }}
	}
	if limits != (Limits{}) && !limits.FailWhenFull {
		t.node.Builder().Fail(kind, "emitting early would not be a final result: set Limits.FailWhenFull")
	}
	return suppress(t, store, kind, c.GraceMillis, limits, true,
		func(r processor.Record[K, Change[V]]) int64 { return c.Span(r.Key).EndMillis })
}

func suppress[K, V any](
	t *Table[K, V], store *state.BufferSpec[K, V], kind string, wait int64, limits Limits, final bool,
	waitsFrom func(r processor.Record[K, Change[V]]) int64,
) *Table[K, V] {
	RequireStored(t, kind)
	t.node.AskOld()
	var owned []state.AnySpec
	if store == nil {
		t.node.Builder().Fail(kind, "the store is nil: pass the spec that declares it, as state.Buffer returns it")
	} else {
		owned = append(owned, store)
	}
	op := processor.Operator{Kind: kind, Owned: owned, Stores: t.stores, NeedsKey: true}
	n := processor.Derive(t.node, op,
		func(tk *processor.Task, next processor.Handler[K, Change[V]]) (processor.Handler[K, Change[V]], error) {
			buf, err := state.OpenBuffer(tk, store)
			if err != nil {
				return nil, err
			}
			s := &suppression[K, V]{
				buf: buf, seen: buf.Cell("time"), payload: waitingSerde[V]{store.Value()}, key: store.Key(),
				wait: wait, limits: limits, final: final, waitsFrom: waitsFrom, next: next,
			}
			return s.handle, nil
		})
	n.OnAskOld(new(bool)) // old values are always told
	if store == nil {
		return New[K, V](n, nil)
	}
	view := func(tk *processor.Task) (Getter[K, V], error) {
		buf, err := state.OpenBuffer(tk, store)
		if err != nil {
			return nil, err
		}
		get, err := t.view(tk)
		if err != nil {
			return nil, err
		}
		payload := waitingSerde[V]{store.Value()}
		return func(k K) (v V, timeMillis int64, ok bool, err error) {
			key, err := store.Key().Append(nil, k)
			if err != nil {
				return v, 0, false, err
			}
			w, waits, err := buf.Get(key)
			if err != nil || !waits {
				if err != nil {
					return v, 0, false, err
				}
				return get(k)
			}
			p, err := payload.decode(w.Payload)
			// The time of what was emitted last is not known any more.
			return p.prior.V, math.MinInt64, p.prior.OK, err
		}, nil
	}
	return New(n, view, append([]state.AnySpec{store}, t.stores...)...).WithClosing(t.closing)
}

// suppression is the operator in a task.
type suppression[K, V any] struct {
	buf       *state.BufferStore
	seen      *state.Cell
	key       serde.Serde[K]
	payload   waitingSerde[V]
	wait      int64
	limits    Limits
	final     bool
	waitsFrom func(r processor.Record[K, Change[V]]) int64
	next      processor.Handler[K, Change[V]]
}

func (s *suppression[K, V]) handle(r processor.Record[K, Change[V]]) error {
	now := r.Time.UnixMilli()
	if seen, ok, err := s.seen.Load(); err != nil {
		return err
	} else if ok && seen > now {
		now = seen
	} else {
		s.seen.Store(now)
	}
	if err := s.hold(r); err != nil {
		return err
	}
	return s.release(r, now)
}

func (s *suppression[K, V]) hold(r processor.Record[K, Change[V]]) error {
	key, err := s.key.Append(nil, r.Key)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	p := waitingRow[V]{prior: r.Value.Old, now: r.Value.New, headers: r.Headers}
	old, waits, err := s.buf.Get(key)
	if err != nil {
		return err
	}
	if waits {
		was, err := s.payload.decode(old.Payload)
		if err != nil {
			return err
		}
		p.prior = was.prior
	}
	payload, err := s.payload.append(nil, p)
	if err != nil {
		return fmt.Errorf("encode value: %w", err)
	}
	return s.buf.Put(state.Waiting{
		ForMillis: s.waitsFrom(r), Key: key, Payload: payload, TimeMillis: r.Time.UnixMilli(),
	})
}

// release emits what has waited for long enough, and what the buffer has no room for.
func (s *suppression[K, V]) release(r processor.Record[K, Change[V]], now int64) error {
	for {
		w, ok, err := s.buf.First()
		if err != nil || !ok {
			return err
		}
		due := now
		if now >= math.MinInt64+s.wait {
			due = now - s.wait
		}
		if w.ForMillis > due {
			full, err := s.full()
			if err != nil || !full {
				return err
			}
			if s.limits.FailWhenFull {
				return fmt.Errorf("%w: the limits are %d records and %d bytes; raise them, or let it emit early",
					ErrBufferFull, s.limits.MaxRecords, s.limits.MaxBytes)
			}
		}
		if err := s.emit(r, w); err != nil {
			return err
		}
	}
}

func (s *suppression[K, V]) full() (bool, error) {
	if s.limits.MaxRecords > 0 {
		n, err := s.buf.Len()
		if err != nil || n > s.limits.MaxRecords {
			return err == nil, err
		}
	}
	if s.limits.MaxBytes > 0 {
		n, err := s.buf.Bytes()
		return err == nil && n > s.limits.MaxBytes, err
	}
	return false, nil
}

func (s *suppression[K, V]) emit(r processor.Record[K, Change[V]], w state.Waiting) error {
	p, err := s.payload.decode(w.Payload)
	if err != nil {
		return err
	}
	k, err := s.key.Decode(w.Key)
	if err != nil {
		return fmt.Errorf("decode key: %w", err)
	}
	if err := s.buf.Remove(w); err != nil {
		return err
	}
	if s.final && !p.now.OK {
		return nil
	}
	r.Key, r.Time, r.Headers = k, time.UnixMilli(w.TimeMillis).UTC(), p.headers
	r.Value = Change[V]{Old: p.prior, New: p.now}
	return s.next(r)
}

// waitingRow is what a suppression keeps of a row: what was emitted last, what is to be emitted, and the headers of the
// latter.
type waitingRow[V any] struct {
	prior, now processor.Opt[V]
	headers    []processor.Header
}

// waitingSerde lays a waitingRow out: a Change of prior and now with its length before it, then the headers.
type waitingSerde[V any] struct{ value serde.Serde[V] }

func (s waitingSerde[V]) append(dst []byte, p waitingRow[V]) ([]byte, error) {
	at := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	dst, err := changeSerde[V](s).Append(dst, Change[V]{Old: p.prior, New: p.now})
	if err != nil {
		return nil, err
	}
	binary.BigEndian.PutUint32(dst[at:], uint32(len(dst)-at-4))
	return processor.AppendHeaders(dst, p.headers), nil
}

func (s waitingSerde[V]) decode(src []byte) (p waitingRow[V], err error) {
	if len(src) < 4 || uint64(binary.BigEndian.Uint32(src)) > uint64(len(src)-4) {
		return p, fmt.Errorf("%w: waiting row of %d bytes", state.ErrCorrupt, len(src))
	}
	n := binary.BigEndian.Uint32(src)
	c, err := changeSerde[V](s).Decode(append([]byte{}, src[4:4+n]...))
	if err != nil {
		return p, err
	}
	p.prior, p.now = c.Old, c.New
	p.headers, err = processor.ParseHeaders(src[4+n:])
	return p, err
}
