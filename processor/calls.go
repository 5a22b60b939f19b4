package processor

import (
	"errors"
	"runtime/debug"

	"tailrace.dev/internal/task"
)

// waiter is an operator of records that wait, without its types.
type waiter interface {
	// name is that of its store.
	name() string
	node() *node
	// leadsHere tells whether records of a node may reach the operator.
	leadsHere(n *node) bool
	// full tells whether no more records may come.
	full() bool
	// nextMillis returns the next time of the wall clock that something waits for, 0 for none.
	nextMillis(wall int64) int64
	// calls adds the calls whose time has come.
	calls(wall int64, to []task.Call) ([]task.Call, error)
	// answer processes the result of a call.
	answer(r task.Result) error
	// release sends on what needs no call, and tells whether there was any.
	release() (bool, error)
}

// underway are the calls of an operator that were handed out and whose results are not committed. They outlive an
// abort, because the calls do.
type underway struct {
	byNumber map[int64]flight
	byID     map[string]bool
}

type flight struct{ lane, id string }

func (u *underway) has(number int64) bool { _, ok := u.byNumber[number]; return ok }

func (u *underway) hasID(id string) bool { return u.byID[id] }

func (u *underway) add(number int64, lane, id string) {
	u.byNumber[number] = flight{lane, id}
	u.byID[id] = true
}

func (u *underway) remove(number int64) {
	delete(u.byID, u.byNumber[number].id)
	delete(u.byNumber, number)
}

func (t *Task) underwayOf(store string) *underway {
	u := t.underway[store]
	if u == nil {
		u = &underway{make(map[int64]flight), make(map[string]bool)}
		if t.underway == nil {
			t.underway = make(map[string]*underway)
		}
		t.underway[store] = u
	}
	return u
}

// Calls implements task.Machine.
func (t *Task) Calls(wallMillis int64) ([]task.Call, error) {
	if len(t.waiters) == 0 {
		return nil, nil
	}
	t.wall = wallMillis
	var calls []task.Call
	for _, w := range t.waiters {
		var err error
		if calls, err = w.calls(wallMillis, calls); err != nil {
			return calls, t.fail("calls", err)
		}
	}
	return calls, nil
}

// Complete implements task.Machine.
func (t *Task) Complete(results []task.Result, wallMillis int64) error {
	t.release()
	t.wall = wallMillis
	t.answers = append(t.answers, results...)
	return t.serve()
}

// serve processes the results of calls, and what has waited for its time, as far as what comes after takes them.
func (t *Task) serve() (err error) {
	if len(t.waiters) == 0 {
		t.answers = nil
		return nil
	}
	defer func() {
		if p := recover(); p != nil {
			err = &panicError{p, debug.Stack()}
		}
		var known *TaskError
		if err != nil && !errors.As(err, &known) {
			err = t.fail("", err)
		}
		t.record = nil
	}()
	for moved := true; moved; {
		moved = false
		for _, w := range t.waiters {
			some, err := w.release()
			if err != nil {
				t.at = w.node()
				return err
			}
			moved = moved || some
		}
		kept := t.answers[:0]
		for i, r := range t.answers {
			w := t.waiterOf(r.Operator)
			if w == nil {
				continue
			}
			if t.blocked(w.node()) {
				kept = append(kept, r)
				continue
			}
			moved = true
			t.applied = append(t.applied, r)
			if err := w.answer(r); err != nil {
				t.at = w.node()
				t.answers = append(kept, t.answers[i+1:]...)
				return err
			}
		}
		clear(t.answers[len(kept):])
		t.answers = kept
	}
	return nil
}

func (t *Task) waiterOf(store string) waiter {
	for _, w := range t.waiters {
		if w.name() == store {
			return w
		}
	}
	return nil
}

// blocked tells whether what comes out of a node may reach an operator that takes no more.
func (t *Task) blocked(n *node) bool {
	for _, w := range t.waiters {
		if w.leadsHere(n) && w.full() {
			return true
		}
	}
	return false
}

// endCalls lets go of the calls whose results are committed.
func (t *Task) endCalls() {
	for _, r := range t.applied {
		t.underwayOf(r.Operator).remove(r.Number)
	}
	clear(t.applied)
	t.applied = t.applied[:0]
}

// undoCalls takes the results of an aborted batch back into the queue. (The rows that they answer are there again.)
func (t *Task) undoCalls() {
	if len(t.applied) > 0 {
		t.answers = append(append([]task.Result(nil), t.applied...), t.answers...)
		t.applied = nil
	}
	t.waiters = nil
}

// soonest returns the earlier one of a time and what operators wait for, 0 for none.
func (t *Task) soonest(next int64) int64 {
	for _, w := range t.waiters {
		if at := w.nextMillis(t.wall); at > 0 && (next == 0 || at < next) {
			next = at
		}
	}
	return next
}

// turn lets a record go on that has waited: f does all of that, and leave only takes the record out, which is what
// happens when f fails and the application's policy leaves the record out.
func (t *Task) turn(at *node, raw *task.Record, f, leave func() error) error {
	undoable := t.undoable()
	m := t.mark()
	if undoable {
		t.layers.Savepoint()
		t.timers.savepoint()
	}
	t.record, t.now, t.at = raw, raw.TimeMillis, at
	err := catch(f)
	if err == nil {
		err = t.layers.Err()
	}
	if err == nil {
		err = t.oversized(m)
	}
	if err == nil {
		t.record = nil
		return nil
	}
	e := t.fail("", err)
	t.record = nil
	policy := t.policyFor(err)
	if policy.kind == policyFail || t.layers.Err() != nil {
		return e
	}
	t.undo(m)
	t.leaveOut(policy, raw, e)
	return leave()
}

// giveUp leaves out a record whose call has failed for good, as the operator's own policy says, or the application's.
func (t *Task) giveUp(at *node, raw *task.Record, err error, own Opt[ErrorPolicy], leave func() error) error {
	t.record, t.at = raw, at
	e := t.fail("", err)
	t.record = nil
	policy := own.Or(t.policyFor(err))
	if policy.kind == policyFail {
		return e
	}
	t.leaveOut(policy, raw, e)
	return leave()
}

// catch turns a panic of f into an error.
func catch(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &panicError{p, debug.Stack()}
		}
	}()
	return f()
}
