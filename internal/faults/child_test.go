//go:build unix

package faults

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"tailrace.dev/internal/engine"
	"tailrace.dev/processor"
)

// childEnv holds a childSpec in JSON: the process is then a member, not a test.
const childEnv = "TAILRACE_FAULTS_CHILD"

// childSpec says what a member process runs, and what happens to it.
type childSpec struct {
	Brokers  []string
	App      string
	In, Out  string
	StateDir string
	// Zero durations mean those of memberConfig; Defaults means those of an application that sets nothing.
	Defaults                            bool
	Session, Transaction, Commit, Flush time.Duration
	// Leave makes it leave the group when it is asked to stop. Standbys is that of Config.
	Leave    bool
	Standbys int
	// Snapshot is where the state directory is copied to when the flush begins in the middle of which the process dies.
	Snapshot string
	// MaxDecompress, QueueBytes and StateBytes are those of Config.
	MaxDecompress, QueueBytes int
	StateBytes                int64
	// The process kills itself when it passes KillAt for the KillNth time: a point of the engine; "write:26" or
	// "read:26" for a request of that key that was sent, or answered; "flush-mid" for some time into a flush.
	KillAt  string
	KillNth int
	// FileLimit is the size that no file can grow beyond (RLIMIT_FSIZE): from the start, or from when flushes have
	// begun LimitAt times.
	FileLimit uint64
	LimitAt   int
	// Delay is how long each record takes to process.
	Delay time.Duration
	// First says when the first record is processed.
	First bool
	// Poison runs the topology that meets poison; records that fail go to the topic of this name, "-" skips them.
	Poison string
	Defect engine.Defect
}

// The lines that a member prints: a word, and what belongs to it.
const (
	saysState    = "state"
	saysRebuilt  = "rebuilt"
	saysAborted  = "aborted"
	saysRestored = "restored"
	saysTasks    = "tasks" // how many came and went
	saysFirst    = "first" // record is about to be processed
	saysEnd      = "end"   // with the error, quoted
)

// runChild runs a member until it is told to stop by SIGTERM, or it ends itself. It returns the exit code.
func runChild(text string) int {
	var spec childSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		return fatal(err)
	}
	go func() {
		// The test holds the other end: a member does not outlive it.
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(9)
	}()
	if spec.FileLimit > 0 && spec.LimitAt == 0 {
		if err := limitFiles(spec.FileLimit); err != nil {
			return fatal(err)
		}
	}
	var each func(string, []byte)
	if spec.Delay > 0 {
		each = func(string, []byte) { time.Sleep(spec.Delay) }
	}
	if spec.First {
		var once sync.Once
		each = func(string, []byte) { once.Do(func() { say(saysFirst) }) }
	}
	topology, err := countTopology(spec.In, spec.Out, each)
	if spec.Poison != "" {
		topology, err = poisonTopology(spec.In, spec.Out)
	}
	if err != nil {
		return fatal(err)
	}
	k := &killer{point: spec.KillAt, nth: int64(max(spec.KillNth, 1)), spec: &spec}
	app, err := processor.New(spec.App, topology, spec.config(k))
	if err != nil {
		return fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	err = app.Run(engine.WithSeams(ctx, engine.Seams{At: k.at, Defect: spec.Defect}))
	say(saysEnd, strconv.Quote(fmt.Sprint(err)))
	if err != nil {
		return 1
	}
	return 0
}

func (spec *childSpec) config(k *killer) processor.Config {
	c := memberConfig(spec.Brokers, spec.StateDir)
	if spec.Defaults {
		c = processor.Config{Brokers: spec.Brokers, StateDir: spec.StateDir}
	}
	for _, d := range []struct{ from, to *time.Duration }{
		{&spec.Session, &c.SessionTimeout}, {&spec.Transaction, &c.TransactionTimeout},
		{&spec.Commit, &c.CommitInterval}, {&spec.Flush, &c.FlushInterval},
	} {
		if *d.from > 0 {
			*d.to = *d.from
		}
	}
	c.LeaveOnStop, c.Standbys = spec.Leave, spec.Standbys
	c.MaxDecompressBytes, c.QueueBytes, c.StateBytes = spec.MaxDecompress, spec.QueueBytes, spec.StateBytes
	switch spec.Poison {
	case "":
	case "-":
		c.OnDecodeError, c.OnProcessError = processor.Skip(), processor.Skip()
	default:
		c.OnDecodeError, c.OnProcessError = processor.DeadLetter(spec.Poison), processor.DeadLetter(spec.Poison)
	}
	c.Kafka = []kgo.Opt{kgo.WithHooks(k)}
	c.Log = childLog()
	c.Events = processor.Events{
		State:        func(_, to string) { say(saysState, to) },
		Rebuilt:      func(err error) { say(saysRebuilt, strconv.Quote(err.Error())) },
		Aborted:      func(err error) { say(saysAborted, strconv.Quote(err.Error())) },
		TasksChanged: func(assigned, revoked []processor.TaskID) { say(saysTasks, len(assigned), len(revoked)) },
		RestoreStart: func(id processor.TaskID, store string, from, to int64) {
			say(saysRestored, id, store, from, to)
		},
	}
	return c
}

// limitFiles makes the system refuse to let files grow.
func limitFiles(size uint64) error {
	signal.Ignore(syscall.SIGXFSZ)
	return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: size, Max: size})
}

var sayMu sync.Mutex

func say(word string, about ...any) {
	sayMu.Lock()
	defer sayMu.Unlock()
	fmt.Println(append([]any{word}, about...)...)
}

func fatal(err error) int {
	fmt.Fprintln(os.Stderr, "child:", err)
	return 2
}

// childLog writes warnings to standard error, everything with FAULTS_LOG set.
func childLog() *zap.Logger {
	level := zapcore.WarnLevel
	if os.Getenv("FAULTS_LOG") != "" {
		level = zapcore.DebugLevel
	}
	c := zap.NewDevelopmentEncoderConfig()
	c.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
	return zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(c), zapcore.Lock(os.Stderr), level))
}

// killer ends the process with SIGKILL at a point.
type killer struct {
	point string
	nth   int64
	seen  atomic.Int64

	spec    *childSpec
	flushes atomic.Int64
}

func (k *killer) pass() {
	if k.seen.Add(1) == k.nth {
		kill9()
	}
}

// kill9 does not return.
func kill9() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// at is Seams.At.
func (k *killer) at(point string) error {
	if point == "flush-start" && k.spec.LimitAt > 0 && k.flushes.Add(1) == int64(k.spec.LimitAt) {
		if err := limitFiles(k.spec.FileLimit); err != nil {
			return err
		}
	}
	switch {
	case point == k.point:
		k.pass()
	case point == "flush-start" && k.point == "flush-mid":
		if k.seen.Add(1) == k.nth {
			if k.spec.Snapshot != "" {
				if err := copyState(k.spec.Snapshot, k.spec.StateDir); err != nil {
					return err
				}
			}
			go func() {
				time.Sleep(time.Duration(rand.IntN(4000)) * time.Microsecond)
				kill9()
			}()
		}
	}
	return nil
}

// wire tells whether the point is a request on the wire: its direction and key.
func (k *killer) wire(direction string, key int16) bool {
	d, n, ok := strings.Cut(k.point, ":")
	return ok && d == direction && n == strconv.Itoa(int(key))
}

// OnBrokerWrite implements kgo.HookBrokerWrite.
func (k *killer) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, err error) {
	if err == nil && k.wire("write", key) {
		k.pass()
	}
}

// OnBrokerRead implements kgo.HookBrokerRead.
func (k *killer) OnBrokerRead(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, err error) {
	if err == nil && k.wire("read", key) {
		k.pass()
	}
}

var _ interface {
	kgo.HookBrokerWrite
	kgo.HookBrokerRead
} = (*killer)(nil)
