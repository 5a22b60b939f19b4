package stream

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
)

// JoinWindows says which records of two streams are close enough in time to be joined: those of the right side whose time
// is at most before earlier, and at most after later, than that of the left side, bounds included. It is a value; its
// methods return a changed copy. (Kafka Streams: JoinWindows.)
type JoinWindows struct {
	before, after, grace int64
	err                  error
}

// Within joins records that are at most d apart.
func Within(d time.Duration) JoinWindows {
	return JoinWindows{}.Before(d).After(d)
}

// Before sets by how much a record of the right side may be earlier than that of the left side. Together with After it
// must leave a span: -before must not be larger than after.
func (w JoinWindows) Before(d time.Duration) JoinWindows {
	w.before = d.Milliseconds()
	return w
}

// After sets by how much a record of the right side may be later than that of the left side.
func (w JoinWindows) After(d time.Duration) JoinWindows {
	w.after = d.Milliseconds()
	return w
}

// Grace sets for how long after the end of its window a record may still find a partner, in stream time: what late
// records need. Left and outer joins emit a record without a partner only after that.
func (w JoinWindows) Grace(d time.Duration) JoinWindows {
	w.grace, w.err = millis("the grace period", d, 0)
	return w
}

// size is for how long a record is found by the other side, in milliseconds.
func (w JoinWindows) size() int64 { return addMillis(addMillis(w.before, w.after), w.grace) }

// MinRetention returns the least retention that a store of a join by these windows must have.
func (w JoinWindows) MinRetention() time.Duration { return duration(max(1, w.size())) }

// JoinWindow joins each record of either stream with those of the other that have its key and are close enough in time. Each
// pair makes one result, as soon as its second record is there, with the larger of their times.
//
// Records without a key, and tombstones, are dropped and counted. Both sides must be partitioned alike by equally
// encoded keys. (Kafka Streams: KStream#join with a KStream, KStreamKStreamJoin.)
func JoinWindow[K, L, R, W any](
	left *Stream[K, L], right *Stream[K, R], within JoinWindows, store *state.JoinSpec[K, L, R],
	f func(k K, l L, r R) W,
) *Stream[K, W] {
	given(left, "join-window", f != nil)
	return joinWindow(left, right, "join-window", within, store, [2]bool{},
		func(k K, l processor.Opt[L], r processor.Opt[R]) W { return f(k, l.V, r.V) })
}

// LeftJoinWindow is JoinWindow that makes a result also of a record of the left side that finds no partner: once its window
// and grace have passed in the stream time that the join has seen, before the results of the record that moved the time
// on, with the record's own time. A record that arrives when its window has already passed is emitted at once, even within the
// grace period, and may find a partner afterwards all the same.
//
// A record of the left side without a key finds no partner and is emitted at once. (Kafka Streams: KStream#leftJoin with a
// KStream, KIP-962.)
func LeftJoinWindow[K, L, R, W any](
	left *Stream[K, L], right *Stream[K, R], within JoinWindows, store *state.JoinSpec[K, L, R],
	f func(k K, l L, r processor.Opt[R]) W,
) *Stream[K, W] {
	given(left, "left-join-window", f != nil)
	return joinWindow(left, right, "left-join-window", within, store, [2]bool{state.LeftSide: true},
		func(k K, l processor.Opt[L], r processor.Opt[R]) W { return f(k, l.V, r) })
}

// OuterJoinWindow is LeftJoinWindow for both sides. Records without a partner leave in the order of their times, those of the
// right side first, then in that of their keys. (Kafka Streams: KStream#outerJoin.)
func OuterJoinWindow[K, L, R, W any](
	left *Stream[K, L], right *Stream[K, R], within JoinWindows, store *state.JoinSpec[K, L, R],
	f func(k K, l processor.Opt[L], r processor.Opt[R]) W,
) *Stream[K, W] {
	given(left, "outer-join-window", f != nil)
	return joinWindow(left, right, "outer-join-window", within, store, [2]bool{true, true}, f)
}

// SelfJoinWindow joins each record of a stream with the records of the same stream that have its key and are close enough
// in time, itself included. Each pair makes two results, one with either record on the left: first those with the new
// record on the left, then those with it on the right and the one of itself, each in the order of time.
//
// It keeps records once, where JoinWindow of a stream with itself keeps them twice, and makes the same results in
// another order. (Kafka Streams: KStreamKStreamSelfJoin, KIP-862.)
func SelfJoinWindow[K, V, W any](
	s *Stream[K, V], within JoinWindows, store *state.JoinSpec[K, V, V], f func(k K, l, r V) W,
) *Stream[K, W] {
	const kind = "self-join-window"
	given(s, kind, f != nil)
	owned := joinStore(s.node.Builder(), kind, within, store)
	op := processor.Operator{Kind: kind, Owned: owned, NeedsKey: true}
	return New(processor.Derive(s.node, op,
		func(t *processor.Task, next processor.Handler[K, W]) (processor.Handler[K, V], error) {
			st, err := state.OpenJoin(t, store)
			if err != nil {
				return nil, err
			}
			j := &selfJoiner[K, V, W]{t, st, st.Cell("time"), within, f, next, store.Key(), store.Value()}
			return j.handle, nil
		}))
}

// selfJoiner is a self join in a task.
type selfJoiner[K, V, W any] struct {
	t     *processor.Task
	st    *state.JoinStore
	seen  *state.Cell
	w     JoinWindows
	f     func(k K, l, r V) W
	next  processor.Handler[K, W]
	key   serde.Serde[K]
	value serde.Serde[V]
}

func (j *selfJoiner[K, V, W]) handle(r processor.Record[K, V]) error {
	switch {
	case r.NoKey:
		j.t.Drop(processor.DropNoKey)
		return nil
	case r.Tombstone:
		j.t.Drop(processor.DropNoValue)
		return nil
	}
	at, window := r.Time.UnixMilli(), j.w.size()
	now, err := observe(j.seen, at)
	if err != nil {
		return err
	}
	key, err := j.key.Append(nil, r.Key)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	value, err := j.value.Append([]byte{}, r.Value)
	if err != nil {
		return fmt.Errorf("encode value: %w", err)
	}
	emit := func(l, v V, at int64) error {
		out := processor.WithValue(r, j.f(r.Key, l, v))
		if at > r.Time.UnixMilli() {
			out.Time = time.UnixMilli(at).UTC()
		}
		return j.next(out)
	}
	each := func(before, after int64, f func(other V, otherAt int64) error) error {
		found, err := j.st.Find(state.LeftSide, key, max(0, subMillis(at, before)), max(0, addMillis(at, after)), window)
		if err != nil {
			return err
		}
		for _, o := range found {
			v, err := j.value.Decode(o.Value)
			if err != nil {
				return fmt.Errorf("decode value: %w", err)
			}
			if err := f(v, o.TimeMillis); err != nil {
				return err
			}
		}
		return nil
	}
	err = each(j.w.before, j.w.after, func(o V, otherAt int64) error { return emit(r.Value, o, otherAt) })
	if err != nil {
		return err
	}
	withItself := at > addMillis(subMillis(now, window), 1)
	self := func() error {
		if !withItself {
			return nil
		}
		withItself = false
		return emit(r.Value, r.Value, at)
	}
	err = each(j.w.after, j.w.before, func(o V, otherAt int64) error {
		if otherAt > at {
			if err := self(); err != nil {
				return err
			}
		}
		return emit(o, r.Value, otherAt)
	})
	if err != nil {
		return err
	}
	if err := self(); err != nil {
		return err
	}
	_, err = j.st.Put(state.Joinable{Key: key, Value: value, TimeMillis: at, Side: state.LeftSide}, window)
	return err
}

// joinStore checks what a join is declared with, and returns the store to be owned.
func joinStore[K, L, R any](
	b *processor.Builder, kind string, within JoinWindows, store *state.JoinSpec[K, L, R],
) []state.AnySpec {
	switch {
	case store == nil:
		b.Fail(kind, "the store is nil: pass the spec that declares it, as state.Join returns it")
		return nil
	case within.err != nil:
		b.Fail(kind, "%v", within.err)
	case within.before+within.after < 0:
		b.Fail(kind, "the windows are empty: before (%d ms) and after (%d ms) must add up to 0 or more",
			within.before, within.after)
	default:
		checkRetention(b, kind, store.Name(), store.Retention(), within.MinRetention())
	}
	return []state.AnySpec{store}
}

func joinWindow[K, L, R, W any](
	left *Stream[K, L], right *Stream[K, R], kind string, within JoinWindows, store *state.JoinSpec[K, L, R],
	outer [2]bool, f func(k K, l processor.Opt[L], r processor.Opt[R]) W,
) *Stream[K, W] {
	b := left.node.Builder()
	if right == nil {
		b.Fail(kind, "the right stream is nil")
		return New(processor.Derive(left.node, processor.Operator{Kind: kind},
			func(*processor.Task, processor.Handler[K, W]) (processor.Handler[K, L], error) { return nil, nil }))
	}
	owned := joinStore(b, kind, within, store)
	op := processor.Operator{Kind: kind, Owned: owned, NeedsKey: true}
	return New(processor.Derive2(left.node, right.node, op,
		func(t *processor.Task, next processor.Handler[K, W]) (
			processor.Handler[K, L], processor.Handler[K, R], error,
		) {
			st, err := state.OpenJoin(t, store)
			if err != nil {
				return nil, nil, err
			}
			j := &joiner[K, L, R, W]{
				t: t, st: st, seen: st.Cell("time"), w: within, outer: outer, f: f, next: next,
				key: store.Key(), left: store.Value(), right: store.Right(),
			}
			l := side[K, L, R, L, W]{j, state.LeftSide, within.before, within.after, store.Value(),
				func(k K, v L) W { return f(k, processor.Some(v), processor.None[R]()) },
				func(k K, v L, other []byte) (w W, err error) {
					r, err := j.right.Decode(other)
					if err != nil {
						return w, err
					}
					return f(k, processor.Some(v), processor.Some(r)), nil
				}}
			r := side[K, L, R, R, W]{j, state.RightSide, within.after, within.before, store.Right(),
				func(k K, v R) W { return f(k, processor.None[L](), processor.Some(v)) },
				func(k K, v R, other []byte) (w W, err error) {
					l, err := j.left.Decode(other)
					if err != nil {
						return w, err
					}
					return f(k, processor.Some(l), processor.Some(v)), nil
				}}
			return l.handle, r.handle, nil
		}))
}

// joiner is a stream-stream join in a task: what both sides share.
type joiner[K, L, R, W any] struct {
	t     *processor.Task
	st    *state.JoinStore
	seen  *state.Cell // the largest time of any record that reached the join
	w     JoinWindows
	outer [2]bool
	f     func(k K, l processor.Opt[L], r processor.Opt[R]) W
	next  processor.Handler[K, W]
	key   serde.Serde[K]
	left  serde.Serde[L]
	right serde.Serde[R]
}

// observe moves an operator's time on and returns it.
func observe(c *state.Cell, at int64) (int64, error) {
	seen, ok, err := c.Load()
	if err != nil {
		return 0, err
	}
	if ok && seen >= at {
		return seen, nil
	}
	c.Store(at)
	return at, nil
}

// emitAlone emits the records whose window and grace have passed without a partner.
func (j *joiner[K, L, R, W]) emitAlone(now int64) error {
	if !j.outer[state.LeftSide] && !j.outer[state.RightSide] {
		return nil
	}
	look := [2]int64{state.LeftSide: j.w.after, state.RightSide: j.w.before}
	gone := func(s state.Side, at int64) bool { return addMillis(addMillis(at, look[s]), j.w.grace) < now }
	soonest := subMillis(subMillis(now, min(look[0], look[1])), j.w.grace)
	alone, err := j.st.Leaving(soonest, gone)
	if err != nil {
		return err
	}
	for _, a := range alone {
		r := processor.Record[K, W]{Time: time.UnixMilli(a.TimeMillis).UTC()}
		if r.Key, err = j.key.Decode(a.Key); err != nil {
			return fmt.Errorf("decode key: %w", err)
		}
		var value []byte
		if r.Headers, value, err = splitAlone(a.Value); err != nil {
			return err
		}
		if a.Side == state.LeftSide {
			l, err := j.left.Decode(value)
			if err != nil {
				return fmt.Errorf("decode value: %w", err)
			}
			r.Value = j.f(r.Key, processor.Some(l), processor.None[R]())
		} else {
			v, err := j.right.Decode(value)
			if err != nil {
				return fmt.Errorf("decode value: %w", err)
			}
			r.Value = j.f(r.Key, processor.None[L](), processor.Some(v))
		}
		if err := j.next(r); err != nil {
			return err
		}
	}
	return nil
}

// alonePayload keeps a record's headers before its value.
func alonePayload(headers []processor.Header, value []byte) []byte {
	p := processor.AppendHeaders([]byte{0, 0, 0, 0}, headers)
	binary.BigEndian.PutUint32(p, uint32(len(p)-4))
	return append(p, value...)
}

func splitAlone(p []byte) ([]processor.Header, []byte, error) {
	if len(p) < 4 || uint64(binary.BigEndian.Uint32(p)) > uint64(len(p)-4) {
		return nil, nil, fmt.Errorf("%w: record without a partner, of %d bytes", state.ErrCorrupt, len(p))
	}
	n := 4 + binary.BigEndian.Uint32(p)
	hs, err := processor.ParseHeaders(p[4:n])
	return hs, p[n:], err
}

// side is one side of a join in a task: it takes values V, and finds partners from before its own time until after it.
type side[K, L, R, V, W any] struct {
	j             *joiner[K, L, R, W]
	side          state.Side
	before, after int64
	value         serde.Serde[V]
	alone         func(k K, v V) W
	pair          func(k K, v V, other []byte) (W, error)
}

func (s side[K, L, R, V, W]) handle(r processor.Record[K, V]) error {
	j := s.j
	at := r.Time.UnixMilli()
	now, err := observe(j.seen, at)
	if err != nil {
		return err
	}
	if r.Tombstone {
		j.t.Drop(processor.DropNoValue)
		return nil
	}
	if r.NoKey {
		if j.outer[s.side] {
			return j.next(processor.WithValue(r, s.alone(r.Key, r.Value)))
		}
		j.t.Drop(processor.DropNoKey)
		return nil
	}
	key, err := j.key.Append(nil, r.Key)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	value, err := s.value.Append([]byte{}, r.Value)
	if err != nil {
		return fmt.Errorf("encode value: %w", err)
	}
	window := j.w.size()
	own, err := j.st.Put(state.Joinable{Key: key, Value: value, TimeMillis: at, Side: s.side}, window)
	if err != nil {
		return err
	}
	if at == now {
		if err := j.emitAlone(now); err != nil {
			return err
		}
	}
	from, to := max(0, subMillis(at, s.before)), max(0, addMillis(at, s.after))
	found, err := j.st.Find(s.side.Other(), key, from, to, window)
	if err != nil {
		return err
	}
	for _, other := range found {
		j.st.Matched(other)
		out := processor.WithValue(r, *new(W))
		if out.Value, err = s.pair(r.Key, r.Value, other.Value); err != nil {
			return fmt.Errorf("decode value: %w", err)
		}
		if other.TimeMillis > at {
			out.Time = time.UnixMilli(other.TimeMillis).UTC()
		}
		if err := j.next(out); err != nil {
			return err
		}
	}
	if len(found) > 0 || !j.outer[s.side] {
		return nil
	}
	if to < now || to == math.MaxInt64 {
		return j.next(processor.WithValue(r, s.alone(r.Key, r.Value)))
	}
	return j.st.Alone(own, alonePayload(r.Headers, value))
}
