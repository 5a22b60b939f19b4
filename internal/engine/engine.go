// Package engine runs a topology on Kafka: it joins the consumer group, assigns partitions to tasks, restores their
// state, feeds them, and commits what they computed in transactions.
//
// The protocol rests on one rule: local state may lag behind the log, and never leads it. Rows of a task wait in memory
// until the Kafka transaction that carries them (outputs, changelog records and input offsets together) has committed,
// and only then become eligible for the local disk. Wherever the process dies, the broker knows which inputs count as
// done, the changelog knows the state that goes with them, and the disk holds some older part of that state.
//
// Whatever has an outcome that is unknown is answered in one way: close the client, drop all memory, join again and
// restore. That is the same path as after a kill -9, and so is tested as one.
package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"tailrace.dev/internal/task"
)

// The states that Events.State tells of.
const (
	StateStarting   = "starting"   // checking topics, joining the group
	StateRestoring  = "restoring"  // at least one task restores its state; the others process
	StateRunning    = "running"    // all assigned tasks process
	StateRebuilding = "rebuilding" // everything in memory was dropped; about to start again
	StateStopping   = "stopping"   // the last commit and flushes are under way
	StateStopped    = "stopped"
)

// Backoff between rebuilds: doubling, and reset by a session that committed something.
const (
	rebuildBackoffFirst = 100 * time.Millisecond
	rebuildBackoffLimit = 10 * time.Second
)

// Engine runs a Program. Make one with New; it runs once.
type Engine struct {
	p   *Program
	cfg *Settings
	log *zap.Logger

	started atomic.Bool
	state   atomic.Value // string
	root    *os.Root     // of StateDir; nil when InMemory

	weakTxnLogged bool
	// openCredentials tells that they were warned of.
	openCredentials bool
	outOfRange      atomic.Int64 // positions moved by OnOutOfRange
	lostOffsets     atomic.Int64 // offsets that were left out by that
	accepted        *shape       // the recorded shape that this process was let in by; nil before

	board   board
	metrics *metrics

	met     metMembers
	unstuck time.Time // of the session's goroutine: when it was last looked for the reason of offsets that do not come

	relapses relapses

	wipeMu sync.Mutex
	wipe   map[task.ID]bool // tasks whose local state is removed before it is opened again
}

// New returns an engine that runs program. It checks what can be checked without a broker.
func New(program Program, settings Settings) (*Engine, error) {
	if settings.Now == nil {
		settings.Now = settings.Seams.Now
	}
	if settings.Now == nil {
		settings.Now = time.Now
	}
	if settings.Log == nil {
		settings.Log = zap.NewNop()
	}
	e := &Engine{p: &program, cfg: &settings, log: settings.Log}
	e.state.Store("")
	if err := errors.Join(program.validate(), settings.validate()); err != nil {
		return nil, fmt.Errorf("engine: %w", err)
	}
	e.metrics = newMetrics(e)
	e.board.events = &e.cfg.Events
	return e, nil
}

func (p *Program) validate() error {
	var errs []error
	if p.App == "" {
		errs = append(errs, errors.New("no application id"))
	}
	if len(p.Subs) == 0 {
		errs = append(errs, errors.New("no sub-topologies"))
	}
	if p.NewTask == nil || p.OpenState == nil {
		errs = append(errs, errors.New("NewTask and OpenState must be set"))
	}
	names, topics := map[string]bool{}, map[string]string{}
	for _, sub := range p.Subs {
		if names[sub.Name] {
			errs = append(errs, fmt.Errorf("two sub-topologies are named %q", sub.Name))
		}
		names[sub.Name] = true
		if len(sub.Sources) == 0 {
			errs = append(errs, fmt.Errorf("sub-topology %q has no source", sub.Name))
		}
		for _, src := range sub.Sources {
			if other, taken := topics[src.Topic]; taken {
				errs = append(errs, fmt.Errorf("topic %q is a source of both %q and %q: they are one sub-topology",
					src.Topic, other, sub.Name))
			}
			topics[src.Topic] = sub.Name
		}
	}
	return errors.Join(errs...)
}

func (s *Settings) validate() error {
	var errs []error
	bad := func(ok bool, what string) {
		if !ok {
			errs = append(errs, errors.New(what))
		}
	}
	bad(len(s.Brokers) > 0, "no brokers")
	bad(s.Workers > 0, "Workers must be positive")
	bad(s.CommitInterval > 0, "CommitInterval must be positive")
	bad(s.QueueRecords > 0 && s.QueueBytes > 0, "QueueRecords and QueueBytes must be positive")
	bad(s.StateBytes > 0 && s.FlushBytes > 0 && s.FlushInterval > 0,
		"StateBytes, FlushBytes and FlushInterval must be positive")
	bad(s.InMemory || filepath.IsAbs(s.StateDir), "StateDir must be an absolute path")
	if s.ExactlyOnce {
		bad(s.TransactionalID != "", "exactly-once needs a TransactionalID")
		bad(s.TransactionTimeout > s.CommitInterval, "TransactionTimeout must be longer than CommitInterval")
	}
	return errors.Join(errs...)
}

// sourceTopics returns the names of all input topics, sorted.
func (p *Program) sourceTopics() []string {
	var topics []string
	for _, sub := range p.Subs {
		for _, src := range sub.Sources {
			topics = append(topics, src.Topic)
		}
	}
	slices.Sort(topics)
	return topics
}

// Run runs the program until ctx is cancelled, and then stops cleanly: it commits, flushes all state, and closes. It
// returns nil after a clean stop, and else the error that ended it: an *Error, or an error of a task as the task
// returned it. A broker that cannot be reached does not end it. Run may be called once.
func (e *Engine) Run(ctx context.Context) (err error) {
	if e.started.Swap(true) {
		return errors.New("engine: Run was called twice")
	}
	unregister, err := e.metrics.register()
	if err != nil {
		return err
	}
	defer unregister()
	e.board.began()
	e.beat()
	defer func() { e.board.finished(err) }()
	unlock, err := e.openStateDir()
	if err != nil {
		return err
	}
	defer unlock()
	defer e.setState(StateStopped)

	e.setState(StateStarting)
	globals, err := e.openGlobals(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer func() {
		if err := globals.close(); err != nil {
			e.log.Warn("closing global tables failed", zap.Error(err))
		}
	}()

	backoff := rebuildBackoffFirst
	for {
		e.setState(StateStarting)
		s := newSession(e)
		err := s.run(ctx)
		var again *rebuildError
		if !errors.As(err, &again) || errors.Is(err, ErrCrash) {
			return err
		}
		if ctx.Err() != nil {
			return &Error{Kind: ErrUncommitted, Partition: -1, Err: again.cause,
				Hint: "nothing is lost: what was not committed will be processed again"}
		}
		if s.commits > 0 {
			backoff = rebuildBackoffFirst
		}
		e.setState(StateRebuilding)
		e.log.Warn("rebuilding: all memory is dropped, joining again", zap.Error(again.cause),
			zap.Duration("backoff", backoff))
		e.board.rebuilds.Add(1)
		if f := e.cfg.Events.Rebuilt; f != nil {
			f(again.cause)
		}
		if !sleep(ctx, time.Duration(float64(backoff)*(0.8+0.4*rand.Float64()))) {
			return nil
		}
		backoff = min(2*backoff, rebuildBackoffLimit)
	}
}

// at runs the seam of a named point.
func (e *Engine) at(point string) error {
	if e.cfg.Seams.At == nil {
		return nil
	}
	err := e.cfg.Seams.At(point)
	if err == nil || errors.Is(err, ErrCrash) {
		return err
	}
	return fmt.Errorf("engine: injected at %s: %w", point, err)
}

func (e *Engine) setState(to string) {
	from, _ := e.state.Swap(to).(string)
	e.beat()
	if from == to {
		return
	}
	e.board.entered()
	e.log.Info("state", zap.String("from", from), zap.String("to", to))
	if f := e.cfg.Events.State; f != nil {
		f(from, to)
	}
}

func (e *Engine) wallMillis() int64 { return e.cfg.Now().UnixMilli() }

// sleep waits, and reports false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
