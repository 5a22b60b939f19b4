package engine

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"tailrace.dev/internal/task"
	"tailrace.dev/state"
)

// Program is what the engine runs: the shape of a topology in plain data, and how to make its tasks. Package processor
// makes it out of a typed topology.
type Program struct {
	// App is the application id: the group, and the prefix of internal topics. Validated by the caller.
	App string
	// Fingerprint identifies the shape of the topology (sub-topologies, their topics and stores).
	Fingerprint string
	// Description says what the topology looks like, for people. It is recorded in the control topic.
	Description Description
	// Subs are the sub-topologies, in a fixed order.
	Subs []Sub
	// NewTask makes the machine of a task over an opened backend whose rows are restored. The caller then calls
	// Machine.Start.
	NewTask func(id task.ID, backend state.Backend) (task.Machine, error)
	// Globals are the topics that every member holds whole. OpenGlobal opens the backend of one, in a directory as that
	// of OpenState; SetReplicas is told of all, loaded, before the first NewTask.
	Globals     []Global
	OpenGlobal  func(store, dir string) (state.Backend, error)
	SetReplicas func(byStore map[string]*state.Replica)
	// DropReasons names what task.DropCounter counts, in its order.
	DropReasons []string
	// OpenState opens the task's backend in dir, which exists with mode 0700 and is the task's own.
	OpenState func(id task.ID, dir string) (state.Backend, error)
	// DestroyState removes a directory of OpenState with all that is in it. It returns an error that wraps
	// state.ErrLocked when a backend is open there. Nil: the engine removes it without asking.
	DestroyState func(dir string) error
}

// Sub is a sub-topology: what a task runs.
type Sub struct {
	Name    string
	Sources []Source
	// Stores in the order of task.Change.Store.
	Stores []Store
	// Sinks are the user's topics that the sub-topology writes to; they must exist.
	Sinks []string
}

// Source is an input topic of a sub-topology.
type Source struct {
	// Topic is the name on the broker.
	Topic string
	// Internal marks a repartition topic, which the engine creates and purges. Its partition count is Partitions,
	// or, if that is 0, the largest count of the other sources of this sub-topology, or else of the topics that feed it.
	Internal   bool
	Partitions int32
	// Feeds lists the sub-topologies whose tasks write an Internal topic.
	FedBy []string
	// KeySerde and ValueSerde identify how the records of an Internal topic are encoded.
	KeySerde, ValueSerde string
	// Start says where a task without a committed offset starts to read.
	Start StartAt
}

// StartAt is a start policy.
type StartAt int

// The start policies.
const (
	StartEarliest StartAt = iota
	StartLatest
	StartFail // without a committed offset the engine stops, saying so
)

// OutOfRange is what happens when the committed offset of an input is not in the topic any more.
type OutOfRange int

// The choices for an offset that is out of range.
const (
	OutOfRangeFail OutOfRange = iota
	OutOfRangeEarliest
	OutOfRangeLatest
)

// Valid tells whether o is one of the choices.
func (o OutOfRange) Valid() bool { return o >= OutOfRangeFail && o <= OutOfRangeLatest }

// String returns the choice as a word.
func (o OutOfRange) String() string {
	switch o {
	case OutOfRangeFail:
		return "fail"
	case OutOfRangeEarliest:
		return "earliest"
	case OutOfRangeLatest:
		return "latest"
	}
	return fmt.Sprintf("OutOfRange(%d)", int(o))
}

// Store is a store of a sub-topology.
type Store struct {
	Name string
	// Kind, KeySerde and ValueSerde identify what the rows look like: another program must have the same.
	Kind, KeySerde, ValueSerde string
	// Changelog is the name of its changelog topic on the broker, which the engine creates.
	Changelog string
	// Outlives tells that the rows are meant to survive a reset, so that they say nothing of what was processed.
	Outlives bool
	// Config holds the changelog's topic configuration, cleanup.policy included.
	Config map[string]string
	// Source is the input topic that takes the place of the changelog, which is empty then: the rows are those that Row
	// makes of its records below the committed offset. The topic must be compacted.
	Source string
	// Row returns the row that a record of Source leaves behind, nil where it deletes; ok is false when it leaves none. It
	// is called by any goroutine.
	Row func(r *task.Record) (key, row []byte, ok bool)
}

// log returns the topic that the store's rows are restored from, or "".
func (s *Store) log() string {
	if s.Source != "" {
		return s.Source
	}
	return s.Changelog
}

// Settings is the configuration of the engine, complete and validated: package processor fills in the defaults.
type Settings struct {
	Brokers []string
	// Kafka holds the user's own client options (SASL, TLS, dialer); they come before the engine's own.
	Kafka []kgo.Opt
	// InstanceID is the static member id; TransactionalID that of the producer. Both outlive a restart.
	InstanceID, TransactionalID string
	// StateDir is the application's own state directory (…/<app>), an absolute path.
	StateDir string
	// InMemory keeps no state directory: OpenState gets an empty dir, and every start restores from the changelogs.
	InMemory bool

	ExactlyOnce        bool
	Workers            int
	CommitInterval     time.Duration
	TransactionTimeout time.Duration
	SessionTimeout     time.Duration
	HeartbeatInterval  time.Duration
	RebalanceTimeout   time.Duration
	// LeaveOnStop leaves the group on a clean stop; else the member's place is kept for its restart until the session times out.
	LeaveOnStop bool
	// MaxTaskIdle is interpreted by the tasks; the engine only wakes them.

	// MaxCalls bounds the calls that are under way at the same time; below 1 it is 1.
	MaxCalls int

	// QueueRecords and QueueBytes bound what is queued per input partition before its fetching pauses.
	QueueRecords int
	QueueBytes   int
	// FetchMaxBytes, FetchMaxPartitionBytes, MaxDecompressBytes, MaxRecordBytes bound messages.
	FetchMaxBytes, FetchMaxPartitionBytes int32
	MaxDecompressBytes                    int
	MaxRecordBytes                        int32

	// StateBytes is the budget of uncommitted and unflushed rows over all tasks: half of it used makes the oldest
	// flush start, all of it pauses processing until a flush ends. FlushBytes and FlushInterval are per task.
	StateBytes    int64
	FlushBytes    int64
	FlushInterval time.Duration

	ReplicationFactor int16 // of internal topics; -1: the broker's default
	PurgeInterval     time.Duration
	TopicCheck        time.Duration // how often the input topics are checked while running

	// Standbys is how many copies of each stateful task other members keep; WarmupLag how far behind a copy may be for
	// the task to move there; MaxWarmups how many tasks warm up at the same time for a move.
	Standbys   int
	WarmupLag  int64
	MaxWarmups int
	// CleanupDelay is after how long the directory of a task that this process does not hold is removed; negative: never.
	CleanupDelay time.Duration
	// OnOutOfRange says what happens when an input's committed offset is not in the topic any more.
	OnOutOfRange OutOfRange
	// AcceptTopologyChange starts although the recorded shape of the topology does not go with the present one.
	AcceptTopologyChange bool
	// Metrics is where metrics are registered, or nil. ReadyLag is the lag of all inputs below which the process is ready;
	// negative: any.
	Metrics  prometheus.Registerer
	ReadyLag int64

	// AcceptStateLoss starts although a changelog vanished that local state says existed.
	AcceptStateLoss bool

	Log    *zap.Logger
	Events Events
	// Now is the wall clock; time.Now outside tests.
	Now func() time.Time
	// Seams are for fault tests.
	Seams Seams
}

// Events are the callbacks of the engine; nil ones are skipped. They are called synchronously and must not block.
type Events struct {
	State        func(from, to string)
	TasksChanged func(assigned, revoked []task.ID)
	RestoreStart func(id task.ID, store string, from, to int64)
	RestoreDone  func(id task.ID, store string, records int64, took time.Duration)
	Restoring    func(p RestoreProgress)
	Standby      func(id task.ID, state string)
	Committed    func(c CommitInfo)
	Aborted      func(reason error)
	Rebuilt      func(reason error)
	Flushed      func(id task.ID, rows int, took time.Duration)
	// OutOfRange is called when an input's position is moved by Settings.OnOutOfRange, and Cleaned when the directory of
	// a task that is not here any more was removed.
	OutOfRange func(m OffsetMove)
	Cleaned    func(id task.ID)
}

// CommitInfo describes a commit of this process.
type CommitInfo struct {
	// Processed counts input records, Outputs records written to topics, Changes rows written to changelogs.
	Processed int
	Outputs   int
	Changes   int
	// Transactional tells that it was a transaction. A commit that wrote nothing commits only offsets.
	Transactional bool
	Took          time.Duration
	// Lag is how many offsets the inputs of this process are behind what it knows of their ends. Other members of the
	// group have their own: it says nothing of their partitions.
	Lag int64
}
