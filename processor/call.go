package processor

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strconv"
	"time"

	"tailrace.dev/state"
)

// ErrCall marks a call that failed at each of its attempts, or for good: what it returned last is the cause.
var ErrCall = errors.New("processor: call failed")

// Permanent marks an error of a call as one that another attempt would not mend, such as a refused request: the record
// goes to the error policy at once.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }

// callError is a call that is given up.
type callError struct {
	attempts int
	err      error
}

func (e *callError) Error() string {
	times := "once"
	if e.attempts > 1 {
		times = strconv.Itoa(e.attempts) + " times"
	}
	return "the call failed, tried " + times + ": " + e.err.Error()
}
func (e *callError) Unwrap() error        { return e.err }
func (e *callError) Is(target error) bool { return target == ErrCall || target == ErrProcess }

// CallOptions are how an operator makes its calls. A zero field means its default.
type CallOptions struct {
	// Timeout ends the context of a call. One that does not heed its context keeps its place, and the records of its
	// key, until it returns. Default: 30 s.
	Timeout time.Duration
	// Concurrency bounds the calls of the operator that are under way in a process, over all its tasks;
	// Config.MaxCalls bounds those of all operators. Default: no bound of its own.
	Concurrency int
	// Attempts is how often a call is made until it succeeds. After that, and after an error that is Permanent, the record
	// goes to OnFailure. A negative number never gives up. Default: 10.
	Attempts int
	// FirstBackoff is how long a record waits, by the wall clock, after its first failed call; each further wait is twice
	// as long, up to MaxBackoff, and less up to a fifth of it, so that many do not come at once. Default: 1 s and 1 min.
	FirstBackoff, MaxBackoff time.Duration
	// Backoff, if set, says instead how long to wait after the given number of failed calls, the last of which returned
	// err: as a server's Retry-After does. It is a pure function.
	Backoff func(failed int, err error) time.Duration
	// OnFailure says what becomes of a record whose call is given up. A dead letter holds the record as it reached the
	// operator, in the encodings of its store. Default: the application's OnProcessError.
	OnFailure Opt[ErrorPolicy]
}

const (
	defaultCallTimeout  = 30 * time.Second
	defaultCallAttempts = 10
	defaultFirstBackoff = time.Second
	defaultMaxBackoff   = time.Minute
)

func (o CallOptions) withDefaults() CallOptions {
	if o.Timeout == 0 {
		o.Timeout = defaultCallTimeout
	}
	if o.Attempts == 0 {
		o.Attempts = defaultCallAttempts
	}
	if o.FirstBackoff == 0 {
		o.FirstBackoff = defaultFirstBackoff
	}
	if o.MaxBackoff == 0 {
		o.MaxBackoff = max(defaultMaxBackoff, o.FirstBackoff)
	}
	return o
}

func (o CallOptions) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("CallOptions."+format, args...)) }
	if o.Timeout < 0 {
		bad("Timeout is negative (%v)", o.Timeout)
	}
	if o.Concurrency < 0 {
		bad("Concurrency is negative (%d)", o.Concurrency)
	}
	if o.FirstBackoff < 0 {
		bad("FirstBackoff is negative (%v)", o.FirstBackoff)
	}
	if full := o.withDefaults(); full.MaxBackoff < full.FirstBackoff {
		bad("MaxBackoff (%v) is shorter than FirstBackoff (%v)", full.MaxBackoff, full.FirstBackoff)
	}
	if err := o.OnFailure.V.validate(); o.OnFailure.OK && err != nil {
		bad("OnFailure: %w", err)
	}
	return errors.Join(errs...)
}

// backoff returns for how many milliseconds a record waits after its call has failed that often. Where there is no
// function that says so, the spread comes of the call's id: a task has no chance of its own.
func (o *CallOptions) backoff(failed int, id string, err error) int64 {
	if o.Backoff != nil {
		return max(0, o.Backoff(failed, err).Milliseconds())
	}
	d := o.FirstBackoff
	for i := 1; i < failed && d < o.MaxBackoff; i++ {
		d *= 2
	}
	d = min(d, o.MaxBackoff)
	h := fnv.New32a()
	fmt.Fprintf(h, "%s/%d", id, failed)
	spread := d / 5 / 1024 * time.Duration(h.Sum32()%1024)
	return (d - spread).Milliseconds()
}

// Calling is an operator at which records wait, for a call or for a time. It is what stream.Async, stream.Gateway and
// stream.Delay are made of.
type Calling[K, V, W any] struct {
	// Pending keeps the records that wait. The operator alone writes it.
	Pending *state.PendingSpec[K, V]
	// Call makes the call for a record; nil where records wait for a time only. It runs in a goroutine of its own, after
	// the commit of the record, and again with the same id until its result is committed.
	Call func(ctx context.Context, id string, k K, v V) (W, error)
	// Pass makes the value of a record that needs no call. It may be nil where Effects and Delay are not set.
	Pass func(v V) W
	// ID, if set, makes the id of a record's call; otherwise it is made of the record's number in its store.
	ID func(k K, v V) string
	// Effects, if set, keeps the ids of calls that succeeded: they are not made again. The operator alone writes it.
	Effects *state.EffectsSpec
	// Delay is how long after its time a record waits, where Call is nil.
	Delay time.Duration
	// Options are how calls are made.
	Options CallOptions
}

// CallWith adds such an operator to a node. Records of one key leave in the order in which they came, tombstones
// included, for which no call is made; those of different keys as they are done.
func CallWith[K, V, W any](p *Node[K, V], op Operator, c Calling[K, V, W]) *Node[K, W] {
	b := p.b
	if c.Pending == nil {
		b.Fail(op.Kind, "the store is nil: pass the spec that declares it, as state.Pending returns it")
	} else {
		op.Owned = append(op.Owned, c.Pending)
	}
	if c.Effects != nil {
		op.Owned = append(op.Owned, c.Effects)
	}
	if err := c.Options.validate(); err != nil {
		b.Fail(op.Kind, "%v", err)
	}
	if c.Delay < 0 {
		b.Fail(op.Kind, "the delay is negative (%v)", c.Delay)
	}
	c.Options = c.Options.withDefaults()
	var n *Node[K, W]
	n = Derive(p, op, func(t *Task, next Handler[K, W]) (Handler[K, V], error) {
		w := &waiting[K, V, W]{t: t, at: n.meta, c: c, next: next}
		if err := w.open(); err != nil {
			return nil, err
		}
		t.waiters = append(t.waiters, w)
		return w.handle, nil
	})
	if f := c.Options.OnFailure; f.OK && f.V.kind == policyDeadLetter {
		n.meta.deadLetter = f.V.topic
	}
	return n
}
