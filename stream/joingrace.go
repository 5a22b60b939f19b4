package stream

import (
	"encoding/binary"
	"fmt"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/table"
)

// JoinGrace is Join with a table that keeps history, in which each record of the stream waits for the grace period, in the
// stream time that the join has seen of its records, so that late changes of the table are met too. Records wait in the
// buffer that store declares, and leave in the order of their times, ties in that of their keys and arrival; a record that
// comes later than the grace is joined at once. The table's history must be at least as long as the grace.
//
// Records without a key, and tombstones, are dropped and counted. (Kafka Streams: Joined#withGracePeriod, KIP-923.)
func JoinGrace[K, V, T, W any](
	s *Stream[K, V], t *table.Table[K, T], grace time.Duration, store *state.BufferSpec[K, V],
	f func(k K, v V, row T) W,
) *Stream[K, W] {
	given(s, "join-grace", f != nil)
	return joinGrace(s, t, "join-grace", false, grace, store,
		func(k K, v V, row processor.Opt[T]) W { return f(k, v, row.V) })
}

// LeftJoinGrace is JoinGrace that makes a result also where the table has no row. Records without a key find none, and are
// emitted at once.
func LeftJoinGrace[K, V, T, W any](
	s *Stream[K, V], t *table.Table[K, T], grace time.Duration, store *state.BufferSpec[K, V],
	f func(k K, v V, row processor.Opt[T]) W,
) *Stream[K, W] {
	given(s, "left-join-grace", f != nil)
	return joinGrace(s, t, "left-join-grace", true, grace, store, f)
}

func joinGrace[K, V, T, W any](
	s *Stream[K, V], tb *table.Table[K, T], kind string, left bool, grace time.Duration,
	store *state.BufferSpec[K, V], f func(k K, v V, row processor.Opt[T]) W,
) *Stream[K, W] {
	b := s.node.Builder()
	var owned []state.AnySpec
	switch {
	case tb == nil:
		b.Fail(kind, "the table is nil")
	case tb.AsOf() == nil:
		b.Fail(kind, "the table keeps no history, so waiting would change nothing: read it with table.FromVersioned")
	case tb.History() < grace:
		b.Fail(kind, "the table's history (%v) is shorter than the grace (%v)", tb.History(), grace)
	}
	if grace < 0 {
		b.Fail(kind, "the grace is negative (%v)", grace)
	}
	if store == nil {
		b.Fail(kind, "the store is nil: pass the spec that declares it, as state.Buffer returns it")
	} else {
		owned = append(owned, store)
	}
	if tb == nil || store == nil {
		return New(processor.Derive(s.node, processor.Operator{Kind: kind},
			func(*processor.Task, processor.Handler[K, W]) (processor.Handler[K, V], error) { return nil, nil }))
	}
	op := processor.Operator{Kind: kind, Owned: owned, Stores: tb.Stores(), NeedsKey: true}
	return New(processor.Derive2(s.node, tb.Node(), op,
		func(t *processor.Task, next processor.Handler[K, W]) (
			processor.Handler[K, V], processor.Handler[K, table.Change[T]], error,
		) {
			get, err := lookup(t, tb)
			if err != nil {
				return nil, nil, err
			}
			buf, err := state.OpenBuffer(t, store)
			if err != nil {
				return nil, nil, err
			}
			j := &graceJoiner[K, V, T, W]{
				t: t, buf: buf, seen: buf.Cell("time"), number: buf.Cell("number"), grace: grace.Milliseconds(),
				left: left, key: store.Key(), value: store.Value(), get: get, f: f, next: next,
			}
			onChange := func(processor.Record[K, table.Change[T]]) error { return nil }
			return j.handle, onChange, nil
		}))
}

// graceJoiner is a join with a grace period in a task.
type graceJoiner[K, V, T, W any] struct {
	t            *processor.Task
	buf          *state.BufferStore
	seen, number *state.Cell
	grace        int64
	left         bool
	key          serde.Serde[K]
	value        serde.Serde[V]
	get          table.AsOfGetter[K, T]
	f            func(k K, v V, row processor.Opt[T]) W
	next         processor.Handler[K, W]
}

func (j *graceJoiner[K, V, T, W]) handle(r processor.Record[K, V]) error {
	switch {
	case r.Tombstone:
		j.t.Drop(processor.DropNoValue)
		return nil
	case r.NoKey && j.left:
		return j.next(processor.WithValue(r, j.f(r.Key, r.Value, processor.None[T]())))
	case r.NoKey:
		j.t.Drop(processor.DropNoKey)
		return nil
	}
	at := r.Time.UnixMilli()
	seen, ok, err := j.seen.Load()
	if err != nil {
		return err
	}
	if ok && subMillis(seen, j.grace) > at {
		return j.join(r)
	}
	if !ok || at > seen {
		seen = at
		j.seen.Store(at)
	}
	if err := j.wait(r); err != nil {
		return err
	}
	return j.release(subMillis(seen, j.grace))
}

// wait puts a record into the buffer: under its key and a number, so that records of one key and time are several.
func (j *graceJoiner[K, V, T, W]) wait(r processor.Record[K, V]) error {
	n, _, err := j.number.Load()
	if err != nil {
		return err
	}
	j.number.Store(n + 1)
	key, err := j.key.Append(nil, r.Key)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	value, err := j.value.Append(nil, r.Value)
	if err != nil {
		return fmt.Errorf("encode value: %w", err)
	}
	at := r.Time.UnixMilli()
	return j.buf.Put(state.Waiting{
		ForMillis: at, TimeMillis: at, Key: binary.BigEndian.AppendUint64(key, uint64(n)),
		Payload: alonePayload(r.Headers, value),
	})
}

// release joins the records that have waited for long enough.
func (j *graceJoiner[K, V, T, W]) release(until int64) error {
	for {
		w, ok, err := j.buf.First()
		if err != nil || !ok || w.ForMillis > until {
			return err
		}
		if err := j.buf.Remove(w); err != nil {
			return err
		}
		if len(w.Key) < 8 {
			return fmt.Errorf("%w: waiting record without its number", state.ErrCorrupt)
		}
		r := processor.Record[K, V]{Time: time.UnixMilli(w.TimeMillis).UTC()}
		if r.Key, err = j.key.Decode(w.Key[:len(w.Key)-8]); err != nil {
			return fmt.Errorf("decode key: %w", err)
		}
		var value []byte
		if r.Headers, value, err = splitAlone(w.Payload); err != nil {
			return err
		}
		if r.Value, err = j.value.Decode(value); err != nil {
			return fmt.Errorf("decode value: %w", err)
		}
		if err := j.join(r); err != nil {
			return err
		}
	}
}

func (j *graceJoiner[K, V, T, W]) join(r processor.Record[K, V]) (err error) {
	var row processor.Opt[T]
	if row.V, _, row.OK, err = j.get(r.Key, r.Time.UnixMilli()); err != nil {
		return err
	}
	if !row.OK && !j.left {
		return nil
	}
	return j.next(processor.WithValue(r, j.f(r.Key, r.Value, row)))
}
