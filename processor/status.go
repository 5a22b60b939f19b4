package processor

import (
	"tailrace.dev/internal/engine"
)

// Status is what an App shows of itself: its state, its tasks with their lag and restores, counters.
type Status = engine.Status

// TaskStatus is a task of this process.
type TaskStatus = engine.TaskStatus

// InputStatus is an input partition of a task.
type InputStatus = engine.InputStatus

// GlobalStatus is a global table of this process.
type GlobalStatus = engine.GlobalStatus

// RestoreProgress is how far a store has come on its way through its changelog, in offsets, with the rate and the time
// that is left.
type RestoreProgress = engine.RestoreProgress

// Role is what a process does for a task.
type Role = engine.Role

// The roles of TaskStatus.
const (
	// RoleActive processes the task's input.
	RoleActive = engine.RoleActive
	// RoleStandby follows the changelogs of a task that another process runs, to take it over.
	RoleStandby = engine.RoleStandby
	// RoleWarmup follows them because the task is about to move here.
	RoleWarmup = engine.RoleWarmup
)

// TaskState is how far a task is.
type TaskState = engine.TaskState

// The states of TaskStatus.
const (
	// TaskWaiting has not all of its inputs yet, or waits for its turn to be restored.
	TaskWaiting = engine.TaskWaiting
	// TaskRestoring reads what the changelogs have beyond the local rows.
	TaskRestoring = engine.TaskRestoring
	// TaskRunning processes, or, as a standby, follows.
	TaskRunning = engine.TaskRunning
)

// Status returns a copy of what the App knows of itself in this process. Any goroutine may call it, before, during and
// after Run, Events included; it asks no broker, and costs microseconds for each task.
func (a *App) Status() Status {
	if e := a.engine.Load(); e != nil {
		return e.Status()
	}
	return Status{
		App: a.id, Instance: a.config.InstanceID, Generation: -1, Live: true, Missing: []string{"it has not been started"},
	}
}

// countSkipped adds a record that a policy left out to the metrics.
func (a *App) countSkipped(te *TaskError) {
	if e := a.engine.Load(); e != nil {
		e.CountSkipped(te.kind(), te.Policy.kind == policyDeadLetter)
	}
}
