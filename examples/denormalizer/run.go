package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"go.uber.org/zap"

	"tailrace.dev/processor"
)

// run is the whole program after the command line, until ctx is cancelled or, with -once, the result is there.
func run(ctx context.Context, o options, out *console, log *zap.Logger) (err error) {
	brokers, closeBroker, err := broker(o, out, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeBroker()) }()
	stateDir, removeState, err := o.stateDir()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, removeState()) }()
	if err := processor.EnsureTopics(ctx, brokers, nil, topics()...); err != nil {
		return fmt.Errorf("brokers %v: %w", brokers, err)
	}

	progress, tally := newProgress(), newTally()
	app, err := newApp(processor.Config{
		Brokers: brokers, StateDir: stateDir, SessionTimeout: o.session, LeaveOnStop: true,
		OnDecodeError: processor.DeadLetter(DeadLetters), OnProcessError: processor.DeadLetter(DeadLetters),
		Log: log, Events: progress.events(out),
	})
	if err != nil {
		return err
	}
	v, err := openView(ctx, brokers, Denormalized.Name(), log)
	if err != nil {
		return err
	}
	defer v.close()
	v.onItem = tally.wrote
	news, err := openLog(brokers)
	if err != nil {
		return err
	}
	defer news.close()
	l, err := listen(o.http, o.httpFree || o.member)
	if err != nil {
		return err
	}

	out.printf("page      http://%s/\n", l.Addr())
	if loopbackListener(l) {
		out.printf("health    http://%s/tailrace/readyz\n", l.Addr())
	}
	out.printf("state     %s\n", describeState(app.Config().StateDir, o))
	if !o.member {
		out.printf("\nThe monolog has one partition, so one member does the work; a second one is a hot spare, with a "+
			"page of\nits own. Start it in another terminal by\n\n  %s\n\n", memberLine(brokers, o))
	}

	p := start(ctx)
	handler, err := newServer(v, news, p.ctx.Done(), log).handler(loopbackListener(l), app.Handler())
	if err != nil {
		return errors.Join(err, l.Close())
	}
	p.goes("page", func(ctx context.Context) error { return serve(ctx, l, handler, log) })
	p.goes("view", v.follow)
	p.goes("application", app.Run)
	p.goes("progress", func(ctx context.Context) error { return progress.print(ctx, out, tally, v, o.session) })
	if !o.member {
		p.goes("load", func(ctx context.Context) error {
			return demo(ctx, demoParts{o, out, brokers, v, news, progress, tally, p.end})
		})
	}
	return p.wait()
}

// broker starts the broker in this process, if none is named.
func broker(o options, out *console, log *zap.Logger) (addrs []string, stop func() error, err error) {
	if len(o.brokers) > 0 {
		return o.brokers, func() error { return nil }, nil
	}
	b, err := processor.StartEmbedded(processor.EmbeddedConfig{Dir: o.data, Port: brokerPort}, log)
	if err != nil {
		var again error
		// The port may be taken by another run. Whatever else is wrong is wrong the second time as well.
		if b, again = processor.StartEmbedded(processor.EmbeddedConfig{Dir: o.data}, log); again != nil {
			return nil, nil, errors.Join(err, again)
		}
	}
	where := "in memory: gone when this process ends"
	if o.data != "" {
		where = "kept in " + o.data
	}
	out.printf("broker    %s in this process, its data %s\n", b.Addrs()[0], where)
	return b.Addrs(), b.Close, nil
}

func describeState(dir string, o options) string {
	if o.state == "" && o.data == "" && (len(o.brokers) == 0 || o.member) {
		return dir + " (temporary; it can always be made again from the log)"
	}
	return dir
}

func loopbackListener(l net.Listener) bool {
	host, _, err := net.SplitHostPort(l.Addr().String())
	return err == nil && isLoopback(host)
}

// parts are the goroutines of the program. The first that fails, or a call of end, stops all.
type parts struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	mu   sync.Mutex
	late []error // of parts that did not stop cleanly
}

// errEnd is the cause of an end that is not a failure.
var errEnd = errors.New("the end")

func start(ctx context.Context) *parts {
	p := new(parts)
	p.ctx, p.cancel = context.WithCancelCause(ctx)
	return p
}

func (p *parts) goes(what string, f func(context.Context) error) {
	p.wg.Go(func() {
		err := f(p.ctx)
		switch {
		case err == nil:
		case p.ctx.Err() == nil:
			p.cancel(fmt.Errorf("%s: %w", what, err))
		case !errors.Is(err, context.Canceled):
			p.mu.Lock()
			p.late = append(p.late, fmt.Errorf("%s, while stopping: %w", what, err))
			p.mu.Unlock()
		}
	})
}

func (p *parts) end() { p.cancel(errEnd) }

// wait returns the failure that stopped the program, or nil.
func (p *parts) wait() error {
	<-p.ctx.Done()
	p.wg.Wait()
	err := context.Cause(p.ctx)
	if errors.Is(err, errEnd) || errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, errors.Join(p.late...))
}

// demoParts is what the demonstration needs.
type demoParts struct {
	o        options
	out      *console
	brokers  []string
	view     *view
	news     *newsLog
	progress *progress
	tally    *tally
	end      func()
}

// demo appends what the newsroom does, waits until everything is processed, and shows and checks the result.
func demo(ctx context.Context, d demoParts) error {
	// What there is already, of an earlier run, is where the newsroom goes on.
	a, err := readLog(ctx, d.brokers, Monolog.Name())
	if err != nil {
		return err
	}
	if a.records > 0 {
		d.out.printf("%s the monolog has %d records of %d assets already; the newsroom goes on from there\n",
			d.progress.clock(), a.records, len(a.assets))
	}
	if err := d.feed(ctx, newNewsroom(d.o.seed, a.assets)); err != nil {
		return err
	}
	d.out.printf("%s the newsroom has closed; waiting for the rest\n", d.progress.clock())
	if err := result(ctx, d.brokers, d.tally, d.view, d.out); err != nil {
		return err
	}
	if d.o.once {
		d.end()
		return nil
	}
	d.out.printf("\nThe page is still served, and changes what you change there; Ctrl-C ends.\n")
	return nil
}

// feed appends stories at the rate that was asked for, evenly over the second.
func (d demoParts) feed(ctx context.Context, n *newsroom) error {
	failures := make(chan error, 1)
	failed := func(err error) {
		select {
		case failures <- err:
		default: // the first one is told
		}
	}
	begin := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for done := 0; d.o.events == 0 || done < d.o.events; {
		due := int(time.Since(begin).Seconds()*float64(d.o.rate)) + 1
		if d.o.events > 0 {
			due = min(due, d.o.events)
		}
		for ; done < due; done++ {
			s := n.story()
			s.time = time.Now()
			d.tally.appended(s, s.time)
			if err := d.news.appendLater(ctx, s.change, failed); err != nil {
				return err
			}
			d.progress.appended.Add(1)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-failures:
			return err
		case <-tick.C:
		}
	}
	if err := d.news.flush(ctx); err != nil {
		return err
	}
	select {
	case err := <-failures:
		return err
	default:
		return nil
	}
}
