package processor

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strconv"
	"time"

	"tailrace.dev/internal/task"
	"tailrace.dev/state"
)

// waiting is an operator of records that wait, in a task. What waits is in the rows of its store; its schedule only
// says where to look, and may name records that are gone.
type waiting[K, V, W any] struct {
	t       *Task
	at      *node
	c       Calling[K, V, W]
	rows    *state.PendingStore
	born    *state.Cell // wall clock of the store's first record, which keeps ids of one life of it from those of another
	effects *state.EffectStore
	next    Handler[K, W]
	above   map[*node]bool // what may lead here
	under   *underway
	due     schedule
}

func (w *waiting[K, V, W]) open() (err error) {
	if w.rows, err = state.OpenPending(w.t, w.c.Pending); err != nil {
		return err
	}
	w.born = w.rows.Cell("born")
	if w.c.Effects != nil {
		if w.effects, err = w.c.Effects.Open(w.t); err != nil {
			return err
		}
	}
	w.above = make(map[*node]bool)
	var up func(n *node)
	up = func(n *node) {
		for _, p := range n.parents {
			if !w.above[p] {
				w.above[p] = true
				up(p)
			}
		}
	}
	up(w.at)
	w.under = w.t.underwayOf(w.c.Pending.Name())
	for lane, r := range w.rows.Heads() {
		w.due.add(scheduled{r.DueMillis, r.Number, string(lane)}, w.t.wall)
	}
	return w.rows.Err()
}

// handle takes a record in.
func (w *waiting[K, V, W]) handle(r Record[K, V]) error {
	n, err := w.rows.Next()
	if err != nil {
		return err
	}
	p := state.PendingRecord{
		Number: n, DueMillis: w.t.wall, TimeMillis: r.Time.UnixMilli(), Tombstone: r.Tombstone,
	}
	lane := state.LoneLane(n)
	if !r.NoKey {
		key, err := w.c.Pending.Key().Append(nil, r.Key)
		if err != nil {
			return fmt.Errorf("encode key: %w", err)
		}
		lane = state.KeyLane(key)
	}
	switch {
	case w.c.Call == nil:
		p.DueMillis = addMillis(p.TimeMillis, w.c.Delay.Milliseconds())
	case r.Tombstone:
	case w.c.ID != nil:
		if p.ID = w.c.ID(r.Key, r.Value); p.ID == "" {
			return errors.New("the effect has an empty id")
		}
	default:
		if p.ID, err = w.numberedID(n); err != nil {
			return err
		}
	}
	if _, busy, err := w.rows.Head(lane); err != nil {
		return err
	} else if !busy {
		passes, err := w.passes(&p)
		if err != nil {
			return err
		}
		if passes {
			return w.pass(r, p.ID)
		}
	}
	if !r.Tombstone {
		if p.Value, err = w.c.Pending.Value().Append(nil, r.Value); err != nil {
			return fmt.Errorf("encode value: %w", err)
		}
	}
	p.Headers = AppendHeaders(nil, r.Headers)
	if from := w.t.record; from != nil {
		p.Topic, p.Partition, p.Offset = from.Topic, from.Partition, from.Offset
	}
	head, err := w.rows.Add(lane, p)
	if err == nil && head {
		w.due.add(scheduled{p.DueMillis, n, string(lane)}, w.t.wall)
	}
	return err
}

func addMillis(t, d int64) int64 {
	if sum := t + d; sum >= t {
		return sum
	}
	return 1<<63 - 1
}

// numberedID makes an id of a record's number. The application, the store, the partition and the store's birth make it
// another one than any that this or another application has used.
func (w *waiting[K, V, W]) numberedID(n int64) (string, error) {
	born, ok, err := w.born.Load()
	if err != nil {
		return "", err
	}
	if !ok {
		born = w.t.wall
		w.born.Store(born)
	}
	b := make([]byte, 0, 64)
	b = append(append(b, w.t.app...), '-')
	b = append(append(b, w.c.Pending.Name()...), '-')
	b = append(strconv.AppendInt(b, int64(w.t.id.Partition), 10), '-')
	b = append(strconv.AppendInt(b, born, 36), '-')
	return string(strconv.AppendInt(b, n, 10)), nil
}

// passes tells whether a record whose turn it is goes on without a call, now.
func (w *waiting[K, V, W]) passes(p *state.PendingRecord) (bool, error) {
	switch {
	case w.c.Call == nil:
		return p.DueMillis <= w.t.wall, nil
	case p.Tombstone:
		return true, nil
	default:
		return w.isDone(p.ID)
	}
}

// isDone tells whether a call with the id is not to be made, because it was, or because calls are silent.
func (w *waiting[K, V, W]) isDone(id string) (bool, error) {
	if w.effects == nil {
		return false, nil
	}
	if w.t.opts.SilentEffects {
		return true, nil
	}
	_, ok, err := w.effects.Done(id)
	return ok, err
}

// pass sends a record on without a call.
func (w *waiting[K, V, W]) pass(r Record[K, V], id string) error {
	if r.Tombstone {
		return w.next(WithoutValue[W](r))
	}
	if w.effects != nil {
		if err := w.effects.Mark(id, w.t.wall); err != nil {
			return err
		}
	}
	return w.next(WithValue(r, w.c.Pass(r.Value)))
}

func (w *waiting[K, V, W]) name() string           { return w.c.Pending.Name() }
func (w *waiting[K, V, W]) node() *node            { return w.at }
func (w *waiting[K, V, W]) leadsHere(n *node) bool { return w.above[n] }

// full tells whether no more records may come. A failed read is kept by the layers, and fails the next record.
func (w *waiting[K, V, W]) full() bool {
	n, err := w.rows.Len()
	return err == nil && n >= int64(w.c.Pending.Limit())
}

// nextMillis returns when the next record's time comes, 0 for none: one whose time has come needs no waking, because
// what it waits for is a commit or a result.
func (w *waiting[K, V, W]) nextMillis(wall int64) int64 {
	w.due.advance(wall)
	return w.due.next()
}

// decode makes a record of one that waited.
func (w *waiting[K, V, W]) decode(lane []byte, p *state.PendingRecord) (r Record[K, V], err error) {
	r = Record[K, V]{Time: time.UnixMilli(p.TimeMillis).UTC(), Tombstone: p.Tombstone}
	if key := state.LaneKey(lane); key == nil {
		r.NoKey = true
	} else if r.Key, err = w.c.Pending.Key().Decode(key); err != nil {
		return r, &decodeError{"key", err}
	}
	if !p.Tombstone {
		if r.Value, err = w.c.Pending.Value().Decode(p.Value); err != nil {
			return r, &decodeError{"value", err}
		}
	}
	if r.Headers, err = ParseHeaders(p.Headers); err != nil {
		return r, &decodeError{"headers", err}
	}
	return r, nil
}

// raw is the record as error policies see it.
func (w *waiting[K, V, W]) raw(lane []byte, p *state.PendingRecord) *task.Record {
	raw := &task.Record{
		Topic: p.Topic, Partition: p.Partition, Offset: p.Offset, TimeMillis: p.TimeMillis,
		Key: state.LaneKey(lane), Value: p.Value,
	}
	if p.Tombstone {
		raw.Value = nil
	}
	if hs, err := ParseHeaders(p.Headers); err == nil {
		raw.Headers = hs
	}
	return raw
}

// calls adds the calls whose time has come.
func (w *waiting[K, V, W]) calls(wall int64, to []task.Call) ([]task.Call, error) {
	if w.c.Call == nil {
		return to, nil
	}
	w.due.advance(wall)
	var waits, fresh []scheduled
	for _, e := range w.due.ready {
		if w.under.has(e.number) {
			continue // its result will schedule what comes next
		}
		lane := []byte(e.lane)
		p, ok, err := w.rows.Head(lane)
		switch {
		case err != nil:
			return to, err
		case !ok || p.Number != e.number || p.DueMillis != e.due:
			continue
		case p.Tombstone:
			fresh = append(fresh, e) // release could not, for what comes after is full
			continue
		case w.c.ID != nil && w.under.hasID(p.ID):
			waits = append(waits, e) // the same effect is being made for another record
			continue
		}
		call, err := w.call(lane, &p)
		if err != nil {
			return to, err
		}
		w.under.add(e.number, e.lane, p.ID)
		to = append(to, call)
	}
	w.due.keep(append(waits, fresh...), len(waits))
	return to, nil
}

// call makes the call of a record. What can go wrong before it is part of its result, so that the error policy sees it.
func (w *waiting[K, V, W]) call(lane []byte, p *state.PendingRecord) (task.Call, error) {
	c := task.Call{
		Operator: w.name(), Number: p.Number, ID: p.ID,
		Limit: w.c.Options.Concurrency, Timeout: w.c.Options.Timeout,
	}
	result := task.Result{Operator: c.Operator, Number: c.Number}
	done, err := w.isDone(p.ID)
	if err != nil {
		return c, err
	}
	r, err := w.decode(lane, p)
	switch {
	case err != nil:
		result.Err = Permanent(err)
		c.Do = func(context.Context) task.Result { return result }
	case done:
		// While it waited behind its key's others, the effect was made for a record of another key.
		result.Value = w.c.Pass(r.Value)
		c.Do = func(context.Context) task.Result { return result }
	default:
		f := w.c.Call
		c.Do = func(ctx context.Context) (res task.Result) {
			res = result
			defer func() {
				if v := recover(); v != nil {
					res.Value, res.Err = nil, &panicError{v, debug.Stack()}
				}
			}()
			res.Value, res.Err = f(ctx, c.ID, r.Key, r.Value)
			return res
		}
	}
	return c, nil
}

// answer processes the result of a call.
func (w *waiting[K, V, W]) answer(res task.Result) error {
	f, ok := w.under.byNumber[res.Number]
	if !ok {
		return nil
	}
	lane := []byte(f.lane)
	p, ok, err := w.rows.Head(lane)
	if err != nil || !ok || p.Number != res.Number {
		return err
	}
	raw := w.raw(lane, &p)
	if res.Err == nil {
		value, _ := res.Value.(W) // a W that is an interface may be nil
		return w.t.turn(w.at, raw, func() error {
			r, err := w.decode(lane, &p)
			if err != nil {
				return err
			}
			if w.effects != nil {
				if err := w.effects.Mark(p.ID, w.t.wall); err != nil {
					return err
				}
			}
			if err := w.next(WithValue(r, value)); err != nil {
				return err
			}
			return w.leave(lane)
		}, func() error { return w.leave(lane) })
	}
	p.Attempts++
	var permanent *permanentError
	if !errors.As(res.Err, &permanent) && (w.c.Options.Attempts < 0 || p.Attempts < w.c.Options.Attempts) {
		p.DueMillis = addMillis(w.t.wall, w.c.Options.backoff(p.Attempts, p.ID, res.Err))
		w.rows.Replace(lane, p)
		w.due.add(scheduled{p.DueMillis, p.Number, f.lane}, w.t.wall)
		return nil
	}
	return w.t.giveUp(w.at, raw, &callError{p.Attempts, res.Err}, w.c.Options.OnFailure,
		func() error { return w.leave(lane) })
}

// leave takes the head of a lane out, and schedules the next.
func (w *waiting[K, V, W]) leave(lane []byte) error {
	p, ok, err := w.rows.Remove(lane)
	if err != nil || !ok {
		return err
	}
	w.due.add(scheduled{p.DueMillis, p.Number, string(lane)}, w.t.wall)
	return nil
}

// release sends on the heads that need no call. It tells whether there were any.
func (w *waiting[K, V, W]) release() (bool, error) {
	w.due.advance(w.t.wall)
	some := false
	for ; w.due.seen < len(w.due.ready); w.due.seen++ {
		e := w.due.ready[w.due.seen]
		if w.under.has(e.number) {
			continue
		}
		lane := []byte(e.lane)
		p, ok, err := w.rows.Head(lane)
		if err != nil {
			return some, err
		}
		if !ok || p.Number != e.number || p.DueMillis != e.due {
			continue
		}
		passes, err := w.passes(&p)
		if err != nil {
			return some, err
		}
		if !passes {
			continue
		}
		if w.t.blocked(w.at) {
			break
		}
		some = true
		// What takes its place joins the end of the list that is being gone through.
		err = w.t.turn(w.at, w.raw(lane, &p), func() error {
			r, err := w.decode(lane, &p)
			if err != nil {
				return err
			}
			if err := w.pass(r, p.ID); err != nil {
				return err
			}
			return w.leave(lane)
		}, func() error { return w.leave(lane) })
		if err != nil {
			return some, err
		}
	}
	if w.c.Call == nil {
		w.due.keep(append([]scheduled(nil), w.due.ready[w.due.seen:]...), 0)
	}
	return some, nil
}
