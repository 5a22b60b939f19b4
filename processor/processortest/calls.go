package processortest

import (
	"context"
	"fmt"
	"slices"

	"tailrace.dev/internal/task"
	"tailrace.dev/processor"
	"tailrace.dev/state"
)

// CallManually leaves the calls of operators such as stream.Async to Driver.MakeCalls and its like. Otherwise they are
// made in the calling goroutine, one by one in the order of their records, right after the commit of those.
func CallManually() Option { return func(d *Driver) { d.manualCalls = true } }

// SilentEffects is Config.SilentEffects.
func SilentEffects() Option { return func(d *Driver) { d.opts.SilentEffects = true } }

// Call is a call that an operator asked for, and that was not made.
type Call struct {
	Task processor.TaskID
	// Operator is the name of the operator's store.
	Operator string
	// ID is the call's idempotency key.
	ID string
}

// call is a Call with what it takes to make it.
type call struct {
	dr   *driven
	call task.Call
}

func (d *Driver) takeCalls() error {
	for _, dr := range d.tasks {
		calls, err := dr.task.Calls(d.wall.UnixMilli())
		if err != nil {
			d.fail(err)
			return err
		}
		for _, c := range calls {
			d.calls = append(d.calls, call{dr, c})
		}
	}
	return nil
}

// makeCalls makes the calls that were handed out.
func (d *Driver) makeCalls(left *int) error {
	calls := d.calls
	d.calls = nil
	for _, c := range calls {
		if *left--; *left < 0 {
			d.fail(ErrEndless)
			return ErrEndless
		}
		if err := d.complete(c, c.call.Do(context.Background())); err != nil {
			return err
		}
	}
	return nil
}

func (d *Driver) complete(c call, r task.Result) error {
	if err := c.dr.task.Complete([]task.Result{r}, d.wall.UnixMilli()); err != nil {
		d.fail(err)
		return err
	}
	d.route(c.dr)
	return nil
}

// Calls returns the calls that are waited for, in the order in which they were asked for. There are some after a commit
// with CallManually; a Crash drops them, and the commit after it asks again.
func (d *Driver) Calls() []Call {
	calls := make([]Call, 0, len(d.calls))
	for _, c := range d.calls {
		calls = append(calls, Call{c.dr.id, c.call.Operator, c.call.ID})
	}
	return calls
}

// MakeCalls makes the calls that Calls returns, in order, and then processes all that follows, as Pipe does. It fails
// the test when that fails. Calls that are asked for in turn are left for the next time.
func (d *Driver) MakeCalls() {
	d.t.Helper()
	left := maxSteps
	err := d.makeCalls(&left)
	if err == nil {
		err = d.settle(0)
	}
	if err != nil {
		d.t.Fatalf("processortest: %v", err)
	}
}

// MakeCall makes the i-th of the calls that Calls returns, and then processes all that follows. It returns the failure of
// that, after which Crash makes the driver usable again. The failure of the call itself is the operator's affair.
func (d *Driver) MakeCall(i int) error {
	c, err := d.takeCall(i)
	if err != nil {
		return err
	}
	return d.finish(c, c.call.Do(context.Background()))
}

// FailCall is MakeCall that does not make the call, but lets it return the given error.
func (d *Driver) FailCall(i int, failure error) error {
	c, err := d.takeCall(i)
	if err != nil {
		return err
	}
	return d.finish(c, task.Result{Operator: c.call.Operator, Number: c.call.Number, Err: failure})
}

func (d *Driver) takeCall(i int) (call, error) {
	if d.failed != nil {
		return call{}, fmt.Errorf("processortest: the driver has failed; Crash starts it again: %w", d.failed)
	}
	if i < 0 || i >= len(d.calls) {
		return call{}, fmt.Errorf("processortest: there is no call %d; %d are waited for", i, len(d.calls))
	}
	c := d.calls[i]
	d.calls = slices.Delete(d.calls, i, i+1)
	return c, nil
}

func (d *Driver) finish(c call, r task.Result) error {
	if err := d.complete(c, r); err != nil {
		return err
	}
	return d.settle(0)
}

// Effects returns a store of effects. It fails the test when the topology does not have it.
func Effects(d *Driver, spec *state.EffectsSpec) *state.EffectStore {
	d.t.Helper()
	return opened(d, spec, spec.Open)
}
