package processor

import (
	"errors"

	"tailrace.dev/internal/task"
)

// undoable tells whether what a record does may have to be undone.
func (t *Task) undoable() bool {
	return t.opts.OnDecodeError.kind != policyFail || t.opts.OnProcessError.kind != policyFail
}

// policyFor returns the application's policy for an error.
func (t *Task) policyFor(err error) ErrorPolicy {
	if errors.Is(err, ErrDecode) {
		return t.opts.OnDecodeError
	}
	return t.opts.OnProcessError
}

// mark is what a task was before a record, besides what layers and timers undo themselves.
type mark struct {
	outputs    int
	drops      [dropReasons]int64
	streamTime int64
}

func (t *Task) mark() mark { return mark{len(t.outputs), t.drops, t.streamTime} }

// undo takes back what was done since the savepoint at which the mark was made.
func (t *Task) undo(m mark) {
	clear(t.outputs[m.outputs:])
	t.outputs, t.drops, t.streamTime = t.outputs[:m.outputs], m.drops, m.streamTime
	t.layers.Rollback()
	t.timers.rollback()
}

// leaveOut counts a record that a policy leaves out, and tells of it.
func (t *Task) leaveOut(policy ErrorPolicy, raw *task.Record, e *TaskError) {
	t.drops[DropFailed]++
	e.Policy = policy
	if policy.kind == policyDeadLetter {
		t.outputs = append(t.outputs, deadLetter(policy.topic, raw, e))
	}
	if t.opts.OnSkipped != nil {
		t.opts.OnSkipped(e)
	}
}
