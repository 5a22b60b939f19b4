// Command bench runs one workload of the end-to-end benchmark until it is told to stop, or measures workloads against a
// broker.
//
//	bench workload=count brokers=127.0.0.1:9092 app=A state=DIR in=events out=OUT [table=T] [eos=true] [threads=2] [commit=100]
//	      [instance=ID] [standbys=0] [session=45000] [leave=false] [flush=10000] [vitals=0]
//	bench run=map,count brokers=127.0.0.1:9092 [events=2000000] [keys=100000] [eos=false,true] [repeat=1] [check=true]
//
// The first form is what any driver starts: it joins the consumer group app, commits the offsets of what it has processed
// to it, and stops cleanly on SIGTERM. The second is a driver: it fills the input topic, starts this program in the
// first form, waits until the group has committed the whole input, and prints one line of JSON for each run.
//
// BENCH_CPUPROFILE, BENCH_MEMPROFILE and BENCH_TRACE name files that the first form writes profiles to.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"tailrace.dev/processor"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	a, err := parseArgs(args)
	if err != nil {
		return err
	}
	if a.has("run") {
		return measure(ctx, a)
	}
	return work(ctx, a)
}

// work runs one workload until ctx is cancelled.
func work(ctx context.Context, a *arguments) (err error) {
	c := workConfig{
		workload: a.text("workload", ""), brokers: a.list("brokers", "127.0.0.1:9092"), app: a.text("app", ""),
		state: a.text("state", ""), in: a.text("in", "events"), table: a.text("table", "table"),
		out: a.text("out", ""), exactlyOnce: a.flag("eos", true), workers: a.number("threads", 0),
		commit: a.millis("commit", 100), instance: a.text("instance", ""), standbys: a.number("standbys", 0),
		session: a.millis("session", 0), leave: a.flag("leave", false), flush: a.millis("flush", 0),
	}
	vitals := a.millis("vitals", 0)
	if n := a.number("cache", 0); n != 0 {
		a.fail("cache=%d: only 0 is supported, every update is emitted downstream", n)
	}
	if err := a.finish(); err != nil {
		return err
	}
	topology, err := buildWorkload(c)
	if err != nil {
		return err
	}
	log, err := logger()
	if err != nil {
		return err
	}
	endProfile, err := startProfile()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, endProfile()) }()
	if vitals > 0 {
		go showVitals(ctx, log, vitals)
	}
	var n tally
	app, err := processor.New(c.app, topology, processor.Config{
		Brokers: c.brokers, StateDir: c.state, AtLeastOnce: !c.exactlyOnce, Workers: c.workers,
		CommitInterval: c.commit, InstanceID: c.instance, Standbys: c.standbys, SessionTimeout: c.session,
		LeaveOnStop: c.leave, FlushInterval: c.flush, Log: log, Events: n.events(log),
	})
	if err != nil {
		return err
	}
	err = app.Run(ctx)
	n.log(log)
	return err
}

// showVitals logs from time to time what cannot be seen from outside.
func showVitals(ctx context.Context, log *zap.Logger, every time.Duration) {
	for tick := time.Tick(every); ctx.Err() == nil; <-tick {
		log.Info("vitals", zap.Int("goroutines", runtime.NumGoroutine()))
	}
}

// logger writes to standard error.
func logger() (*zap.Logger, error) {
	c := zap.NewProductionConfig()
	c.Sampling = nil
	log, err := c.Build()
	if err != nil {
		return nil, fmt.Errorf("bench: logger: %w", err)
	}
	return log, nil
}

// tally sums what the App's commits report, so that a run's log tells what its time went into.
type tally struct {
	commits, processed, outputs, changes, nanos, aborts atomic.Int64
}

func (n *tally) events(log *zap.Logger) processor.Events {
	return processor.Events{
		State:   func(from, to string) { log.Info("state", zap.String("from", from), zap.String("to", to)) },
		Rebuilt: func(reason error) { log.Warn("rebuilt", zap.Error(reason)) },
		Committed: func(c processor.CommitInfo) {
			n.commits.Add(1)
			n.processed.Add(int64(c.Processed))
			n.outputs.Add(int64(c.Outputs))
			n.changes.Add(int64(c.Changes))
			n.nanos.Add(int64(c.Took))
		},
		Aborted: func(reason error) {
			n.aborts.Add(1)
			log.Warn("aborted", zap.Error(reason))
		},
		Flushed: func(id processor.TaskID, rows int, took time.Duration) {
			log.Info("flushed", zap.Stringer("task", id), zap.Int("rows", rows), zap.Duration("took", took))
		},
	}
}

func (n *tally) log(log *zap.Logger) {
	log.Info("sums", zap.Int64("commits", n.commits.Load()), zap.Int64("aborts", n.aborts.Load()),
		zap.Int64("processed", n.processed.Load()), zap.Int64("outputs", n.outputs.Load()),
		zap.Int64("changes", n.changes.Load()), zap.Duration("committing", time.Duration(n.nanos.Load())))
}

// arguments are name=value pairs; mistakes are collected until finish.
type arguments struct {
	values map[string]string
	asked  map[string]bool
	errs   []error
}

func parseArgs(args []string) (*arguments, error) {
	a := &arguments{values: make(map[string]string), asked: make(map[string]bool)}
	for _, arg := range args {
		name, value, ok := strings.Cut(arg, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("bench: argument %q is not name=value", arg)
		}
		a.values[name] = value
	}
	return a, nil
}

func (a *arguments) has(name string) bool {
	_, ok := a.values[name]
	return ok
}

func (a *arguments) fail(format string, args ...any) {
	a.errs = append(a.errs, fmt.Errorf("bench: "+format, args...))
}

func (a *arguments) text(name, otherwise string) string {
	a.asked[name] = true
	if v, ok := a.values[name]; ok {
		return v
	}
	return otherwise
}

func (a *arguments) list(name, otherwise string) []string {
	return strings.Split(a.text(name, otherwise), ",")
}

func (a *arguments) number(name string, otherwise int) int {
	v := a.text(name, strconv.Itoa(otherwise))
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 {
		a.fail("%s=%s: want a number that is not negative", name, v)
	}
	return n
}

// millis is a duration that is given in milliseconds.
func (a *arguments) millis(name string, otherwise int) time.Duration {
	return time.Duration(a.number(name, otherwise)) * time.Millisecond
}

func (a *arguments) flag(name string, otherwise bool) bool {
	v := a.text(name, strconv.FormatBool(otherwise))
	b, err := strconv.ParseBool(v)
	if err != nil {
		a.fail("%s=%s: want true or false", name, v)
	}
	return b
}

// finish returns the mistakes, of which an argument that nobody asked for is one.
func (a *arguments) finish() error {
	for name := range a.values {
		if !a.asked[name] {
			a.fail("argument %q is not known", name)
		}
	}
	return errors.Join(a.errs...)
}
