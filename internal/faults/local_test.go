//go:build unix

package faults

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"tailrace.dev/internal/engine"
	"tailrace.dev/processor"
)

// local is a member in the test's own process: for faults that the test hands to it, and for its typed errors.
type local struct {
	t      *testing.T
	cancel context.CancelFunc
	done   chan struct{}
	err    error
	logs   *observer.ObservedLogs

	mu      sync.Mutex
	states  []string
	aborted []error
	rebuilt []error
	commits int
	began   time.Time
}

// setup is what a local member runs with.
type setup struct {
	app      string
	topology *processor.Topology
	config   processor.Config
	seams    engine.Seams
}

// setup returns a member that counts, with its state in dir.
func (c *cluster) setup(dir string, each func(key string, value []byte)) setup {
	c.t.Helper()
	topology, err := countTopology(c.in, c.out, each)
	if err != nil {
		c.t.Fatal(err)
	}
	return setup{app: c.app, topology: topology, config: memberConfig(c.addrs, dir)}
}

// run starts a local member. It is stopped at the end of the test.
func (s setup) run(t *testing.T) *local {
	t.Helper()
	return s.runApp(t, nil)
}

// runApp is run; made, if not nil, is given the App before it runs.
func (s setup) runApp(t *testing.T, made func(*processor.App)) *local {
	t.Helper()
	core, logs := observer.New(zapcore.WarnLevel)
	l := &local{t: t, done: make(chan struct{}), logs: logs, began: time.Now()}
	note := func(f func()) { l.mu.Lock(); defer l.mu.Unlock(); f() }
	s.config.Log = zap.New(core)
	s.config.Events.State = func(_, to string) { note(func() { l.states = append(l.states, to) }) }
	s.config.Events.Aborted = func(err error) { note(func() { l.aborted = append(l.aborted, err) }) }
	s.config.Events.Rebuilt = func(err error) { note(func() { l.rebuilt = append(l.rebuilt, err) }) }
	s.config.Events.Committed = func(processor.CommitInfo) { note(func() { l.commits++ }) }
	app, err := newApp(s)
	if err != nil {
		t.Fatal(err)
	}
	if made != nil {
		made(app)
	}
	ctx, cancel := context.WithCancel(engine.WithSeams(context.Background(), s.seams))
	l.cancel = cancel
	go func() {
		defer close(l.done)
		l.err = app.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		if err := l.end(time.Minute); err != nil {
			t.Logf("end: %v", err)
		}
		if t.Failed() {
			for _, e := range logs.All() {
				t.Logf("%s %s %s %v", e.Time.Format("15:04:05.000"), e.Level, e.Message, e.ContextMap())
			}
		}
	})
	return l
}

// end waits for Run to return, and returns its error.
func (l *local) end(limit time.Duration) error {
	l.t.Helper()
	select {
	case <-l.done:
	case <-time.After(limit):
		l.t.Fatalf("Run did not return within %v", limit)
	}
	return l.err
}

// stop ends the member in good order.
func (l *local) stop() {
	l.t.Helper()
	l.cancel()
	if err := l.end(time.Minute); err != nil {
		l.t.Errorf("stop: %v", err)
	}
}

func (l *local) ended() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

func (l *local) state() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.states) == 0 {
		return ""
	}
	return l.states[len(l.states)-1]
}

func (l *local) waitRunning(limit time.Duration) {
	l.t.Helper()
	until(l.t, limit, "the member to run", func() bool {
		if l.ended() {
			l.t.Fatalf("the member ended: %v", l.err)
		}
		return l.state() == "running"
	})
}

// rebuilds returns the reasons of the rebuilds so far.
func (l *local) rebuilds() []error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.rebuilt)
}

// aborts returns the reasons of the aborts so far.
func (l *local) aborts() []error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.aborted)
}

func newApp(s setup) (*processor.App, error) { return processor.New(s.app, s.topology, s.config) }
