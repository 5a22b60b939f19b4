package processor

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"tailrace.dev/internal/engine"
	"tailrace.dev/state"
)

// Config is how an App runs. The zero value works: an embedded broker, exactly once, state kept in the user's state
// directory. A zero field means its default.
type Config struct {
	// Brokers are the seed brokers, host:port. Empty starts an embedded broker in the process, for trying things
	// out; it is never a replacement for brokers that cannot be reached.
	Brokers []string
	// Embedded configures the embedded broker.
	Embedded EmbeddedConfig
	// Kafka are further options of the Kafka client: SASL, TLS, a dialer, compression (by default there is none).
	// They come before the App's own, which win where they meet. They are never logged.
	Kafka []kgo.Opt

	// StateDir is where local state is kept: <StateDir>/<application>/<sub-topology>/<partition>, with mode 0700.
	// The default is tailrace in $XDG_STATE_HOME or else ~/.local/state. Two processes need two directories.
	StateDir string
	// InMemory keeps state in memory only; each start restores all of it from the changelogs.
	InMemory bool
	// InstanceID is the process's name in the consumer group, TransactionalID that of its producer. Both must outlive
	// a restart, and be different for any two processes. The default is a hash of the application, the host's name and
	// the state directory.
	InstanceID, TransactionalID string

	// AtLeastOnce gives up exactly-once: after a crash, records may be processed twice and count twice.
	AtLeastOnce bool
	// OnDecodeError and OnProcessError say what becomes of records that cannot be decoded or processed. The default
	// is Fail.
	OnDecodeError, OnProcessError ErrorPolicy
	// MaxTaskIdle is how long a task waits for an empty one of its input partitions, so that records of several
	// topics come in the order of their times. 0 waits only for records that the broker is known to have; a negative
	// value never waits.
	MaxTaskIdle time.Duration

	// Wrapper runs around every operator; the default is none.
	Wrapper Wrapper
	// MaxCalls bounds the calls of stream.Async and stream.Gateway that are under way at the same time. Default: 64.
	MaxCalls int
	// SilentEffects makes no effects at stream.Gateway, which count as made: for processing old input again whose effects
	// are known to the world. It is no part of what is stored.
	SilentEffects bool

	// Workers is how many tasks are processed at the same time. Default: GOMAXPROCS.
	Workers int
	// CommitInterval is how often results become visible and durable. Default: 100 ms.
	CommitInterval time.Duration
	// SessionTimeout is how long the group waits for a member that went silent. Default: 45 s, for members keep their
	// place and come back.
	SessionTimeout time.Duration
	// RebalanceTimeout bounds how long a member may take to give up partitions. Default: 60 s.
	RebalanceTimeout time.Duration
	// TransactionTimeout is after how long the broker aborts a transaction of a process that died. Default: 10 s.
	TransactionTimeout time.Duration
	// LeaveOnStop gives up the member's place on a clean stop, so that others take over at once. Otherwise the place
	// is kept for the session timeout: a stop is expected to be a restart. A context that ends with ErrLeave as its
	// cause, or by an interrupt (SIGINT) through signal.NotifyContext, gives the place up too.
	LeaveOnStop bool

	// QueueRecords and QueueBytes bound what waits for processing per input partition. Default: 20 000 and 16 MiB.
	QueueRecords, QueueBytes int
	// FetchMaxBytes bounds a fetch, FetchMaxPartitionBytes what of it is of one partition. Default: 32 MiB and 1 MiB.
	FetchMaxBytes, FetchMaxPartitionBytes int
	// MaxDecompressBytes bounds a batch after decompression. Default: 64 MiB.
	MaxDecompressBytes int
	// MaxRecordBytes bounds a produced batch, and so a record; the topic's max.message.bytes must allow it.
	// Default: 1 MiB, which is Kafka's.
	MaxRecordBytes int

	// StateBytes bounds the memory of rows that are not on disk yet, over all tasks. At half of it the oldest are
	// written, at all of it processing waits. Default: 512 MiB.
	StateBytes int64
	// FlushBytes and FlushInterval say when a task writes its rows to disk; what a crash makes it read again
	// from the changelog is at most that. Default: 64 MiB and 10 s.
	FlushBytes    int64
	FlushInterval time.Duration

	// Standbys is how many other members keep a copy of each stateful task's rows, to take over at once. Default: none.
	Standbys int
	// WarmupLag is how many changelog records a member's copy of a task may be behind for the task to move there; until
	// it is that near, the task stays where it is and the member warms up. Default: 10 000.
	WarmupLag int64
	// MaxWarmups bounds how many tasks a group warms up at the same time, beyond the standbys. Default: 2.
	MaxWarmups int
	// StateCleanupDelay is after how long the local rows of a task that has left this process are removed. A negative
	// value keeps them. Default: 10 min.
	StateCleanupDelay time.Duration

	// OnOutOfRange says what happens when the committed offset of an input is not in the topic any more, because its
	// records expired or were deleted. Default: OutOfRangeFail.
	OnOutOfRange OutOfRange
	// AcceptTopologyChange starts although the topology differs from the one that wrote the state in a way that would
	// orphan or misread some of it.
	AcceptTopologyChange bool

	// ReplicationFactor is that of internal topics. Default: the broker's.
	ReplicationFactor int
	// PurgeInterval is how often processed records of repartition topics are deleted. Default: 30 s.
	PurgeInterval time.Duration
	// TopicCheckInterval is how often input topics are checked for having been recreated or extended. Default: 30 s.
	TopicCheckInterval time.Duration
	// AcceptStateLoss starts although a changelog has vanished of which local state is now the only copy.
	AcceptStateLoss bool

	// Metrics is where the App registers its Prometheus metrics. Default: nowhere; App.Handler serves them all the same.
	Metrics prometheus.Registerer
	// ReadyLag is how many records the inputs of this process may be behind for it to be ready. A negative value does not
	// look at lag. Default: 10 000.
	ReadyLag int64
	// Log receives what happens. Default: nothing.
	Log *zap.Logger
	// Events are called as things happen.
	Events Events
}

// OutOfRange is what happens when the committed offset of an input is not in the topic any more.
type OutOfRange = engine.OutOfRange

// The choices of Config.OnOutOfRange.
const (
	// OutOfRangeFail ends Run with ErrOffsetOutOfRange.
	OutOfRangeFail = engine.OutOfRangeFail
	// OutOfRangeEarliest goes on with the first record that the topic still has. What was deleted before it was processed
	// is missing from all results, which is logged.
	OutOfRangeEarliest = engine.OutOfRangeEarliest
	// OutOfRangeLatest goes on with what comes after now, and leaves out all before it.
	OutOfRangeLatest = engine.OutOfRangeLatest
)

// EmbeddedConfig configures the broker that an App without Brokers starts.
type EmbeddedConfig struct {
	// Dir keeps the broker's data; empty keeps it in memory.
	Dir string
	// Port is the port on the loopback interface; 0 takes a free one.
	Port int
	// Partitions is how many partitions the topology's topics get when they are created. Default: 4.
	Partitions int
}

// withDefaults returns the configuration with its zero fields filled in.
func (c Config) withDefaults(app string) (Config, error) {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	num := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	big := func(n *int64, v int64) {
		if *n == 0 {
			*n = v
		}
	}
	num(&c.Workers, runtime.GOMAXPROCS(0))
	num(&c.MaxCalls, 64)
	def(&c.CommitInterval, 100*time.Millisecond)
	def(&c.SessionTimeout, 45*time.Second)
	def(&c.RebalanceTimeout, time.Minute)
	def(&c.TransactionTimeout, 10*time.Second)
	num(&c.QueueRecords, 20_000)
	num(&c.QueueBytes, 16<<20)
	num(&c.FetchMaxBytes, 32<<20)
	num(&c.FetchMaxPartitionBytes, 1<<20)
	num(&c.MaxDecompressBytes, 64<<20)
	num(&c.MaxRecordBytes, 1<<20)
	big(&c.StateBytes, 512<<20)
	big(&c.FlushBytes, 64<<20)
	def(&c.FlushInterval, 10*time.Second)
	if c.ReplicationFactor == 0 {
		c.ReplicationFactor = -1
	}
	def(&c.PurgeInterval, 30*time.Second)
	def(&c.TopicCheckInterval, 30*time.Second)
	big(&c.WarmupLag, 10_000)
	num(&c.MaxWarmups, 2)
	def(&c.StateCleanupDelay, 10*time.Minute)
	big(&c.ReadyLag, 10_000)
	num(&c.Embedded.Partitions, 4)
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	if c.StateDir == "" && !c.InMemory {
		dir, err := defaultStateDir()
		if err != nil {
			return c, err
		}
		c.StateDir = dir
	}
	if c.StateDir != "" {
		abs, err := filepath.Abs(c.StateDir)
		if err != nil {
			return c, fmt.Errorf("processor: StateDir: %w", err)
		}
		c.StateDir = abs
	}
	if c.InstanceID == "" {
		c.InstanceID = identity(app, c.StateDir)
	}
	if c.TransactionalID == "" {
		c.TransactionalID = app + "-" + c.InstanceID
	}
	return c, nil
}

func defaultStateDir() (string, error) {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "tailrace"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("processor: no default for StateDir, set it: %w", err)
	}
	return filepath.Join(home, ".local", "state", "tailrace"), nil
}

// identity makes a name that is the same at each start of a process on one host with one state directory, also when
// the directory was emptied in between.
func identity(app, stateDir string) string {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	sum := sha256.Sum256([]byte(app + "\x00" + host + "\x00" + stateDir))
	return hex.EncodeToString(sum[:8])
}

// Validate returns everything that is wrong with the configuration, joined. New calls it.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("Config."+format, args...)) }
	for _, b := range c.Brokers {
		if b == "" || strings.ContainsAny(b, " \t\n/") {
			bad("Brokers: %q is not host:port", b)
		}
	}
	durations := []struct {
		name string
		d    time.Duration
	}{
		{"CommitInterval", c.CommitInterval}, {"SessionTimeout", c.SessionTimeout},
		{"RebalanceTimeout", c.RebalanceTimeout}, {"TransactionTimeout", c.TransactionTimeout},
		{"FlushInterval", c.FlushInterval}, {"PurgeInterval", c.PurgeInterval},
		{"TopicCheckInterval", c.TopicCheckInterval},
	}
	for _, d := range durations {
		if d.d < 0 {
			bad("%s is negative (%v)", d.name, d.d)
		}
	}
	numbers := []struct {
		name string
		n    int64
	}{
		{"Workers", int64(c.Workers)}, {"MaxCalls", int64(c.MaxCalls)}, {"QueueRecords", int64(c.QueueRecords)}, {"QueueBytes", int64(c.QueueBytes)},
		{"FetchMaxBytes", int64(c.FetchMaxBytes)}, {"FetchMaxPartitionBytes", int64(c.FetchMaxPartitionBytes)},
		{"MaxDecompressBytes", int64(c.MaxDecompressBytes)}, {"MaxRecordBytes", int64(c.MaxRecordBytes)},
		{"Standbys", int64(c.Standbys)}, {"WarmupLag", c.WarmupLag},
		{"MaxWarmups", int64(c.MaxWarmups)}, {"StateBytes", c.StateBytes}, {"FlushBytes", c.FlushBytes}, {"Embedded.Partitions", int64(c.Embedded.Partitions)},
	}
	for _, n := range numbers {
		if n.n < 0 {
			bad("%s is negative (%d)", n.name, n.n)
		}
		if n.n > 1<<31-1 && n.name != "StateBytes" && n.name != "FlushBytes" && n.name != "WarmupLag" {
			bad("%s is too large (%d)", n.name, n.n)
		}
	}
	if c.CommitInterval != 0 && c.TransactionTimeout != 0 && c.CommitInterval >= c.TransactionTimeout {
		bad("CommitInterval (%v) must be shorter than TransactionTimeout (%v), or every transaction times out",
			c.CommitInterval, c.TransactionTimeout)
	}
	for name, id := range map[string]string{"InstanceID": c.InstanceID, "TransactionalID": c.TransactionalID} {
		if id == "" {
			continue
		}
		if err := state.CheckName(name, id); err != nil {
			bad("%s: %w", name, err)
		}
	}
	if err := c.OnDecodeError.validate(); err != nil {
		bad("OnDecodeError: %w", err)
	}
	if err := c.OnProcessError.validate(); err != nil {
		bad("OnProcessError: %w", err)
	}
	if !c.OnOutOfRange.Valid() {
		bad("OnOutOfRange is %d: give OutOfRangeFail, OutOfRangeEarliest or OutOfRangeLatest", c.OnOutOfRange)
	}
	if c.Embedded.Port < 0 || c.Embedded.Port > 65535 {
		bad("Embedded.Port is %d: give 0 to 65535", c.Embedded.Port)
	}
	return errors.Join(errs...)
}

// String renders the configuration for logs, without what Kafka holds, which may be secret.
func (c Config) String() string {
	brokers := strings.Join(c.Brokers, ",")
	if brokers == "" {
		brokers = "embedded"
	}
	return fmt.Sprintf("brokers=%s kafka=[%d options, not shown] state=%s in-memory=%v instance=%s transactional=%s "+
		"at-least-once=%v on-decode-error=%v on-process-error=%v max-task-idle=%v max-calls=%d silent-effects=%v workers=%d commit=%v session=%v "+
		"rebalance=%v transaction=%v leave-on-stop=%v queue=%d/%dB fetch=%dB/%dB decompress=%dB record=%dB "+
		"state-bytes=%d flush=%dB/%v replication=%d purge=%v topic-check=%v accept-state-loss=%v standbys=%d "+
		"warmup=%d/%d cleanup=%v out-of-range=%v accept-topology-change=%v ready-lag=%d",
		brokers, len(c.Kafka), c.StateDir, c.InMemory, c.InstanceID, c.TransactionalID, c.AtLeastOnce,
		c.OnDecodeError, c.OnProcessError, c.MaxTaskIdle, c.MaxCalls, c.SilentEffects, c.Workers, c.CommitInterval, c.SessionTimeout,
		c.RebalanceTimeout, c.TransactionTimeout, c.LeaveOnStop, c.QueueRecords, c.QueueBytes, c.FetchMaxBytes,
		c.FetchMaxPartitionBytes, c.MaxDecompressBytes, c.MaxRecordBytes, c.StateBytes, c.FlushBytes, c.FlushInterval,
		c.ReplicationFactor, c.PurgeInterval, c.TopicCheckInterval, c.AcceptStateLoss, c.Standbys,
		c.MaxWarmups, c.WarmupLag, c.StateCleanupDelay, c.OnOutOfRange, c.AcceptTopologyChange, c.ReadyLag)
}
