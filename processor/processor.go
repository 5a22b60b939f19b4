package processor

import (
	"errors"
	"fmt"
	"time"

	"tailrace.dev/state"
)

// Processor handles records one at a time, and may keep state in stores, forward any number of records and schedule
// timers. It is for what a function of one record cannot say.
//
// A new value is made for each task, so its fields belong to one goroutine. What they hold beyond stores is lost when the
// task moves, restarts or takes a batch back. A Processor may also implement Initer and Closer.
//
// The record's key, value and headers are shared with other operators and must not be changed in place.
type Processor[K, V, K2, V2 any] interface {
	// Process handles one record; tombstones and records without a key included. An error ends the processing of
	// the input record, and the application's ErrorPolicy says what comes next.
	Process(c *Context[K2, V2], r Record[K, V]) error
}

// Initer is a Processor that opens its stores and schedules its timers before the first record.
type Initer[K2, V2 any] interface {
	// Init is called once, with the context that Process will get.
	Init(c *Context[K2, V2]) error
}

// Closer is a Processor that has something to release when its task ends.
type Closer interface {
	Close() error
}

// ProcessorFunc is a Processor without state of its own.
type ProcessorFunc[K, V, K2, V2 any] func(c *Context[K2, V2], r Record[K, V]) error

// Process calls f.
func (f ProcessorFunc[K, V, K2, V2]) Process(c *Context[K2, V2], r Record[K, V]) error {
	return f(c, r)
}

// Context is what a Processor has of the task it runs in. It is valid during the calls that the task makes, in the
// goroutine of the call.
type Context[K2, V2 any] struct {
	t    *Task
	at   *node
	next Handler[K2, V2]
}

var _ state.Env = (*Context[string, string])(nil)

// Forward passes a record to what comes after the processor, and returns when all of that is done. (Its error, if any, is
// best returned at once.)
func (c *Context[K2, V2]) Forward(r Record[K2, V2]) error {
	if err := c.next(r); err != nil {
		return err // of whatever came after, which is what errors name
	}
	c.t.at = c.at
	return nil
}

// Schedule calls f at the interval, by stream time or by the wall clock. Inside f, Forward needs a record with a time
// of its own, and a store's Set takes the stream time. An error of f stops the application under any ErrorPolicy,
// because there is no record to leave out.
func (c *Context[K2, V2]) Schedule(kind TimeKind, interval time.Duration, f func(now time.Time) error) (*Timer, error) {
	if interval <= 0 {
		return nil, fmt.Errorf("processor: interval of a timer is %v: it must be positive", interval)
	}
	return c.t.schedule(c.at, kind, interval, f), nil
}

// Task returns the name of the task.
func (c *Context[K2, V2]) Task() TaskID { return c.t.id }

// StreamTime returns the highest record time that the task has seen, and whether it has seen any.
func (c *Context[K2, V2]) StreamTime() (time.Time, bool) { return c.t.StreamTime() }

// WallClock returns the time of the call in progress on the clock of the machine: the task reads it once for many
// records. What is computed from it is not the same at a replay.
func (c *Context[K2, V2]) WallClock() time.Time { return time.UnixMilli(c.t.wall).UTC() }

// Source returns where the input record that is in process came from; ok is false inside a timer, and for a record that a
// timer made and that has waited since.
func (c *Context[K2, V2]) Source() (topic string, partition int32, offset int64, ok bool) {
	if c.t.record == nil || c.t.record.Topic == "" {
		return "", 0, 0, false
	}
	return c.t.record.Topic, c.t.record.Partition, c.t.record.Offset, true
}

// Drop counts a record that the processor leaves out.
func (c *Context[K2, V2]) Drop(reason DropReason) { c.t.Drop(reason) }

// StoreRows implements state.Env: it is how a spec opens its store. Only stores that were named where the processor was
// declared can be opened.
func (c *Context[K2, V2]) StoreRows(spec state.AnySpec) (*state.Rows, error) {
	for _, s := range c.at.stores {
		if s == spec {
			return c.t.StoreRows(spec)
		}
	}
	return nil, fmt.Errorf("processor: store %q is not connected to the %s at %s: name its spec there",
		spec.Name(), c.at.kind, c.at.caller)
}

// RecordTimeMillis implements state.Env.
func (c *Context[K2, V2]) RecordTimeMillis() int64 { return c.t.now }

// ProcessWith adds a Processor to a node. newP is called for each task and must return a new value each time.
func ProcessWith[K, V, K2, V2 any](
	p *Node[K, V], op Operator, newP func() Processor[K, V, K2, V2],
) *Node[K2, V2] {
	if newP == nil {
		p.b.Fail(op.Kind, "the function that makes the processor is nil")
		return newNode[K2, V2](p.b, op, p.meta)
	}
	var n *Node[K2, V2]
	n = Derive(p, op, func(t *Task, next Handler[K2, V2]) (Handler[K, V], error) {
		t.at = n.meta
		proc := newP()
		if proc == nil {
			return nil, fmt.Errorf("processor: the function that makes the processor returned nil")
		}
		c := &Context[K2, V2]{t: t, at: n.meta, next: next}
		if i, ok := proc.(Initer[K2, V2]); ok {
			if err := i.Init(c); err != nil {
				return nil, fmt.Errorf("init: %w", err)
			}
		}
		if cl, ok := proc.(Closer); ok {
			t.OnClose(cl.Close)
		}
		sweeps, err := p.b.sweepers(t, op.Stores)
		if err != nil {
			return nil, err
		}
		if len(sweeps) > 0 {
			return func(r Record[K, V]) error {
				for _, sweep := range sweeps {
					if err := sweep(r.Time.UnixMilli()); err != nil {
						return err
					}
				}
				return proc.Process(c, r)
			}, nil
		}
		return func(r Record[K, V]) error { return proc.Process(c, r) }, nil
	})
	return n
}

// ErrKeyChanged is the error of a record for which a processor that must keep the key forwarded another one.
var ErrKeyChanged = errors.New("processor: a processor of values forwarded a record under another key")

// ProcessKeyed adds a Processor that forwards under the key that it was given; another key is ErrKeyChanged. In timers, where there
// is no key to compare, it is trusted.
func ProcessKeyed[K comparable, V, V2 any](
	p *Node[K, V], op Operator, newP func() Processor[K, V, K, V2],
) *Node[K, V2] {
	if newP == nil {
		p.b.Fail(op.Kind, "the function that makes the processor is nil")
		return newNode[K, V2](p.b, op, p.meta)
	}
	return ProcessWith(p, op, func() Processor[K, V, K, V2] {
		inner := newP()
		if inner == nil {
			return nil
		}
		return &keyedProcessor[K, V, V2]{inner: inner}
	})
}

// keyedProcessor watches over the keys that a processor forwards.
type keyedProcessor[K comparable, V, V2 any] struct {
	inner Processor[K, V, K, V2]
	now   *Record[K, V] // in process; nil inside a timer
}

func (p *keyedProcessor[K, V, V2]) Init(c *Context[K, V2]) error {
	next := c.next
	c.next = func(r Record[K, V2]) error {
		if p.now != nil && (r.Key != p.now.Key || r.NoKey != p.now.NoKey) {
			return ErrKeyChanged
		}
		return next(r)
	}
	if i, ok := p.inner.(Initer[K, V2]); ok {
		return i.Init(c)
	}
	return nil
}

func (p *keyedProcessor[K, V, V2]) Process(c *Context[K, V2], r Record[K, V]) error {
	p.now = &r
	defer func() { p.now = nil }()
	return p.inner.Process(c, r)
}

func (p *keyedProcessor[K, V, V2]) Close() error {
	if cl, ok := p.inner.(Closer); ok {
		return cl.Close()
	}
	return nil
}
