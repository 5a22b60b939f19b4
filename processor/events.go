package processor

import (
	"time"

	"tailrace.dev/internal/engine"
)

// Events are functions that an App calls as things happen; nil ones are not called. They run in the App's own
// goroutines, must not block, and must not call the App.
type Events struct {
	// Embedded is called when the embedded broker is up, with its addresses.
	Embedded func(addrs []string)
	// State is called when the App goes from one state to another: "starting", "restoring", "running",
	// "rebuilding", "stopping", "stopped".
	State func(from, to string)
	// TasksChanged is called when tasks came or went.
	TasksChanged func(assigned, revoked []TaskID)
	// RestoreStart is called when a store of a task starts to be restored from its changelog, with the offsets from and
	// up to (but not including) which it will read; Restoring each time that something was read, with how far it is, how
	// fast and for how long yet; RestoreDone at the end, with how many rows and deletions were read. They are called for
	// active tasks only: standbys never end to follow, and are seen in App.Status.
	RestoreStart func(id TaskID, store string, from, to int64)
	Restoring    func(p RestoreProgress)
	RestoreDone  func(id TaskID, store string, records int64, took time.Duration)
	// Standby is called when what this process keeps of a task that another one runs changes: "waiting" when it begins to
	// keep a copy, "restoring", "running" when that has caught up and follows, "ended". How far it is behind is in
	// App.Status.
	Standby func(id TaskID, state string)
	// Committed is called after each commit of this process. What it tells of lag is of this process's partitions only.
	Committed func(c CommitInfo)
	// Aborted is called after a transaction was taken back; its records are processed again.
	Aborted func(reason error)
	// Rebuilt is called before the client is thrown away and made anew, because the outcome of something is unknown
	// or this process was fenced off.
	Rebuilt func(reason error)
	// Flushed is called after a task's rows were written to disk.
	Flushed func(id TaskID, rows int, took time.Duration)
	// OutOfRange is called when the position of an input was not in its topic any more and was moved, as
	// Config.OnOutOfRange says.
	OutOfRange func(m OffsetMove)
	// Cleaned is called after the local rows of a task that left this process were removed: see Config.StateCleanupDelay.
	Cleaned func(id TaskID)
	// Skipped is called for each record that an ErrorPolicy left out. It may be called again for the same record,
	// when that is processed again.
	Skipped func(e *TaskError)
}

// CommitInfo describes a commit.
type CommitInfo = engine.CommitInfo

// OffsetMove describes a position that was moved because its topic does not have it any more.
type OffsetMove = engine.OffsetMove

func (e Events) engine() engine.Events {
	return engine.Events{
		State: e.State, TasksChanged: e.TasksChanged,
		RestoreStart: e.RestoreStart, Restoring: e.Restoring, Standby: e.Standby, RestoreDone: e.RestoreDone,
		Committed: e.Committed, Aborted: e.Aborted, Rebuilt: e.Rebuilt, Flushed: e.Flushed,
		OutOfRange: e.OutOfRange, Cleaned: e.Cleaned,
	}
}
