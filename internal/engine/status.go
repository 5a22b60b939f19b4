package engine

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"tailrace.dev/internal/task"
)

// Status is what an engine shows of itself: a copy, which nothing writes to any more.
type Status struct {
	// App is the application id, Instance the static member id.
	App      string `json:"application"`
	Instance string `json:"instance"`
	// State is one of the states of Events.State, or empty before Run; Since is when it was entered, Started when Run was
	// called.
	State   string    `json:"state"`
	Since   time.Time `json:"since"`
	Started time.Time `json:"started"`
	// Error says why Run ended, if it ended with an error.
	Error string `json:"error,omitempty"`

	// Live tells that the run loop moves; Stuck says why it does not count as doing so. Brokers that are away do not make
	// it stuck.
	Live  bool   `json:"live"`
	Stuck string `json:"stuck,omitempty"`
	// Ready tells that the group was joined, that all tasks are restored and run, that the inputs are processed up to
	// Settings.ReadyLag, and that the brokers answer. Missing is what is left, for people.
	Ready   bool     `json:"ready"`
	Missing []string `json:"missing,omitempty"`

	// Joined tells that the group has given this member an assignment, which may be empty. Member and Generation are the
	// group's names for it, empty and -1 while there is none.
	Joined     bool   `json:"joined"`
	Member     string `json:"member"`
	Generation int32  `json:"generation"`
	// Idle is for how long the run loop has been where it is. It moves on every commit interval, and at least every few
	// seconds while it waits for brokers.
	Idle time.Duration `json:"idleNanos"`
	// BrokersSeen is when the brokers last told where the inputs end; zero: not yet.
	BrokersSeen time.Time `json:"brokersSeen"`

	// Tasks are those of this process, ordered by name; a task on its way out is not in it.
	Tasks []TaskStatus `json:"tasks"`
	// Globals are the global tables, ordered by store.
	Globals []GlobalStatus `json:"globals,omitempty"`

	// What was done since Run was called: commits and the input records, outputs and changed rows in them, transactions
	// taken back, and how often all memory was dropped and the client made anew.
	Commits   int64 `json:"commits"`
	Processed int64 `json:"processed"`
	Outputs   int64 `json:"outputs"`
	Changes   int64 `json:"changes"`
	Aborts    int64 `json:"aborts"`
	Rebuilds  int64 `json:"rebuilds"`
	// OffsetMoves counts the input positions that Settings.OnOutOfRange has moved, LostOffsets what it left out by that.
	OffsetMoves int64 `json:"offsetMoves"`
	LostOffsets int64 `json:"lostOffsets"`

	// UncommittedBytes are rows of the batches in progress, UnflushedBytes committed rows that are not on disk yet.
	UncommittedBytes int64 `json:"uncommittedBytes"`
	UnflushedBytes   int64 `json:"unflushedBytes"`
	// Calls are under way, of at most Settings.MaxCalls.
	Calls int `json:"calls"`
}

// Role is what a process does for a task.
type Role int

// The roles.
const (
	// RoleActive processes the task's input.
	RoleActive Role = iota
	// RoleStandby follows the changelogs of a task that another process runs, to take it over.
	RoleStandby
	// RoleWarmup follows them because the task is about to move here.
	RoleWarmup
	roles // their number
)

// String names the role as metrics do.
func (r Role) String() string {
	switch r {
	case RoleActive:
		return "active"
	case RoleStandby:
		return "standby"
	case RoleWarmup:
		return "warmup"
	case roles:
	}
	return fmt.Sprintf("role_%d", int(r))
}

// MarshalText renders the role by its name.
func (r Role) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (r *Role) UnmarshalText(b []byte) error { return byName(r, roles, b) }

// TaskState is how far a task is.
type TaskState int

// The states of a task.
const (
	// TaskWaiting has not all of its inputs yet, or waits for its turn to be restored.
	TaskWaiting TaskState = iota
	// TaskRestoring opens its state and reads what the changelogs have beyond it. A standby is restoring until it has come
	// as far as the changelogs went when it began.
	TaskRestoring
	// TaskRunning processes, or, as a standby, follows.
	TaskRunning
	taskStates // their number
)

// String names the state as metrics do.
func (s TaskState) String() string {
	switch s {
	case TaskWaiting:
		return "waiting"
	case TaskRestoring:
		return "restoring"
	case TaskRunning:
		return "running"
	case taskStates:
	}
	return fmt.Sprintf("state_%d", int(s))
}

// MarshalText renders the state by its name.
func (s TaskState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (s *TaskState) UnmarshalText(b []byte) error { return byName(s, taskStates, b) }

// StandbyEnded is told of a standby that is kept no more, in place of a TaskState.
const StandbyEnded = "ended"

// byName sets v to the value below limit that has a name.
func byName[T interface {
	~int
	String() string
}](v *T, limit T, name []byte) error {
	for i := range limit {
		if i.String() == string(name) {
			*v = i
			return nil
		}
	}
	return fmt.Errorf("engine: %T has no value %q", *v, name)
}

// TaskStatus is a task of this process.
type TaskStatus struct {
	Task  task.ID   `json:"task"`
	Role  Role      `json:"role"`
	State TaskState `json:"state"`
	// Inputs are those of an active task; a standby has none.
	Inputs []InputStatus `json:"inputs,omitempty"`
	// Restores has one entry for each store that is read back from a topic.
	Restores []RestoreProgress `json:"restores,omitempty"`
	// StateBytes is roughly what the task's rows take on disk, as of the last flush.
	StateBytes int64 `json:"stateBytes"`
	// Failure says why a standby does not follow at present; it is tried again for a while.
	Failure string `json:"failure,omitempty"`
}

// InputStatus is an input partition of a task.
type InputStatus struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	// Committed is the first offset whose effects are not committed, End the end of what readers of committed records can
	// see; -1: not known yet.
	Committed int64 `json:"committed"`
	End       int64 `json:"end"`
	// Lag is how many offsets lie between the two, markers of transactions included; -1: not known yet.
	Lag int64 `json:"lag"`
}

// GlobalStatus is a global table of this process.
type GlobalStatus struct {
	Store string `json:"store"`
	Topic string `json:"topic"`
	// Remaining is how many offsets are left to load before the start goes on; 0: loaded.
	Remaining int64 `json:"remaining"`
}

// RestoreProgress is how far a store has come on its way through a changelog, or through the topic that takes its place.
// Offsets count slots of the log, whether there is a record in them or compaction or a transaction's marker has left
// none: From the first, To behind the last, At in between, so that At always comes to To.
type RestoreProgress struct {
	Task  task.ID `json:"task"`
	Store string  `json:"store"`
	Role  Role    `json:"role"`
	From  int64   `json:"from"`
	At    int64   `json:"at"`
	To    int64   `json:"to"`
	// Records is how many rows and deletions were read.
	Records int64 `json:"records"`
	// Rate is offsets per second over the last seconds, or over all of it once it is done; 0: not known.
	Rate float64 `json:"rate"`
	// Took is the time since it began, up to its end.
	Took time.Duration `json:"tookNanos"`
	// Done tells that it is over.
	Done bool `json:"done"`
}

// Remaining returns how many offsets are left.
func (p RestoreProgress) Remaining() int64 { return max(0, p.To-p.At) }

// Fraction returns how much is done, from 0 to 1. What has nothing to read is done.
func (p RestoreProgress) Fraction() float64 {
	if p.To <= p.From || p.At >= p.To {
		return 1
	}
	return float64(max(0, p.At-p.From)) / float64(p.To-p.From)
}

// ETA returns how long the rest will take at the present rate; ok is false while that cannot be said.
func (p RestoreProgress) ETA() (left time.Duration, ok bool) {
	n := p.Remaining()
	switch {
	case n == 0:
		return 0, true
	case p.Rate <= 0:
		return 0, false
	}
	return time.Duration(min(float64(n)/p.Rate, maxETA.Seconds()) * float64(time.Second)), true
}

// maxETA is said of anything longer.
const maxETA = 1000 * time.Hour

// MarshalJSON adds what the methods compute.
func (p RestoreProgress) MarshalJSON() ([]byte, error) {
	type plain RestoreProgress
	out := struct {
		plain
		Remaining int64    `json:"remaining"`
		Fraction  float64  `json:"fraction"`
		ETA       *float64 `json:"etaSeconds,omitempty"`
	}{plain: plain(p), Remaining: p.Remaining(), Fraction: p.Fraction()}
	if eta, ok := p.ETA(); ok {
		seconds := eta.Seconds()
		out.ETA = &seconds
	}
	return json.Marshal(out)
}

// Lag returns the sum over all inputs; ok is false while that of one is not known.
func (s *Status) Lag() (records int64, ok bool) {
	ok = true
	for i := range s.Tasks {
		for _, in := range s.Tasks[i].Inputs {
			if in.Lag < 0 {
				ok = false
				continue
			}
			records += in.Lag
		}
	}
	return records, ok
}

// Status returns a copy of what the engine knows of itself. Any goroutine may call it at any time; it asks no broker.
func (e *Engine) Status() Status {
	b := &e.board
	b.mu.Lock()
	defer b.mu.Unlock()
	state, _ := e.state.Load().(string)
	s := Status{
		App: e.p.App, Instance: e.cfg.InstanceID, State: state, Since: b.since, Started: b.started, Error: b.ended,
		Joined: b.joined, Generation: -1, Idle: e.idle(), BrokersSeen: b.seen,
		Commits: b.commits.Load(), Processed: b.processed.Load(), Outputs: b.outputs.Load(), Changes: b.changes.Load(),
		Aborts: b.aborts.Load(), Rebuilds: b.rebuilds.Load(),
		OffsetMoves: e.outOfRange.Load(), LostOffsets: e.lostOffsets.Load(),
	}
	if b.session != nil {
		s.UncommittedBytes, s.UnflushedBytes = b.session.uncommitted.Load(), b.session.unflushed.Load()
		s.Calls = b.session.calls.inFlight()
	}
	if b.client != nil && b.joined {
		s.Member, s.Generation = b.client.GroupMetadata()
	}
	now := time.Now()
	s.Tasks = make([]TaskStatus, 0, len(b.tasks))
	for v := range b.tasks {
		s.Tasks = append(s.Tasks, v.status(now))
	}
	slices.SortFunc(s.Tasks, func(x, y TaskStatus) int {
		return cmp.Or(cmp.Compare(x.Task.Sub, y.Task.Sub), cmp.Compare(x.Task.Partition, y.Task.Partition),
			cmp.Compare(x.Role, y.Role))
	})
	for _, g := range b.globals {
		s.Globals = append(s.Globals, GlobalStatus{Store: g.store, Topic: g.topic, Remaining: g.remaining.Load()})
	}
	s.Stuck, s.Missing = e.stuck(&s), e.missing(&s)
	s.Live, s.Ready = s.Stuck == "", len(s.Missing) == 0
	return s
}
