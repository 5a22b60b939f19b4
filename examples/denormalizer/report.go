package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tailrace.dev/processor"
)

// console is where the program tells what happens. It is safe for concurrent use.
type console struct {
	mu    sync.Mutex
	w     io.Writer
	quiet bool
}

// printf prints unless the console is quiet.
func (c *console) printf(format string, args ...any) {
	if !c.quiet {
		c.always(format, args...)
	}
}

// always prints the result, which is wanted from a quiet console too.
func (c *console) always(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = fmt.Fprintf(c.w, format, args...) // there is nowhere to complain
}

// progress collects what the application tells by its events.
type progress struct {
	begin     time.Time
	appended  atomic.Int64
	processed atomic.Int64
	lag       atomic.Int64
	running   atomic.Bool

	mu    sync.Mutex
	tasks map[processor.TaskID]bool
}

func newProgress() *progress {
	return &progress{begin: time.Now(), tasks: make(map[processor.TaskID]bool)}
}

// events returns the functions that the application calls.
func (p *progress) events(out *console) processor.Events {
	return processor.Events{
		State: func(_, to string) {
			p.running.Store(to == "running")
			out.printf("%s application %s\n", p.clock(), to)
		},
		TasksChanged: func(assigned, revoked []processor.TaskID) {
			out.printf("%s tasks of this member: %s\n", p.clock(), p.change(assigned, revoked))
		},
		RestoreDone: func(id processor.TaskID, store string, records int64, took time.Duration) {
			if records > 1 { // the first is the mark up to which the store is read
				out.printf("%s restored %s of %v: %d rows in %v\n",
					p.clock(), store, id, records-1, took.Round(time.Millisecond))
			}
		},
		Committed: func(c processor.CommitInfo) {
			p.processed.Add(int64(c.Processed))
			p.lag.Store(c.Lag)
		},
		Aborted: func(reason error) { out.printf("%s taken back, and processed again: %v\n", p.clock(), reason) },
		Rebuilt: func(reason error) { out.printf("%s starting over with a new client: %v\n", p.clock(), reason) },
		Skipped: func(e *processor.TaskError) { out.printf("%s left out: %v\n", p.clock(), e) },
	}
}

func (p *progress) clock() string { return fmt.Sprintf("%4.0fs ", time.Since(p.begin).Seconds()) }

// change notes which tasks came and went, and describes those that are here now.
func (p *progress) change(assigned, revoked []processor.TaskID) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range revoked {
		delete(p.tasks, id)
	}
	for _, id := range assigned {
		p.tasks[id] = true
	}
	if len(p.tasks) == 0 {
		return "none"
	}
	var names []string
	for id := range p.tasks {
		names = append(names, id.String())
	}
	slices.Sort(names)
	return fmt.Sprintf("%d (%s)", len(names), strings.Join(names, ", "))
}

func (p *progress) idle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running.Load() && len(p.tasks) == 0
}

// spareAfter is how long a member has no task before it says what it is good for.
const spareAfter = 2 * time.Second

// print prints a line a second while something happens, and what came of notable things as soon as it is known, until
// ctx is cancelled.
func (p *progress) print(ctx context.Context, out *console, t *tally, v *view, session time.Duration) error {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	var shown time.Time
	var written, appended int64
	idleSince := time.Now()
	told := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := time.Now()
		for _, line := range t.done(now) {
			out.printf("%s   %s\n", p.clock(), line)
		}
		if !p.idle() {
			idleSince, told = now, false
		} else if !told && now.Sub(idleSince) > spareAfter {
			told = true
			out.printf("%s no task for this member: the monolog has one partition, and another member has it.\n"+
				"       This one is a hot spare: it takes over %v after the other one fell silent, or at once when that\n"+
				"       leaves. Its view and its page work as those of the other one do.\n", p.clock(), session)
		}
		newest, n := t.last()
		if now.Sub(shown) < time.Second || (n == written && p.appended.Load() == appended) {
			continue
		}
		line := fmt.Sprintf("%s monolog +%d  processed %d  lag %d  documents written %d (+%d)  articles out %d", p.clock(),
			p.appended.Load(), p.processed.Load(), p.lag.Load(), n, n-written, len(v.all()))
		if n > 0 {
			line += "  latest: " + newest.ID + " because of " + newest.Cause
		}
		out.printf("%s\n", line)
		shown, written, appended = now, n, p.appended.Load()
	}
}

// settleTimeout is how long the view may differ from the monolog once nothing is appended any more.
const settleTimeout = time.Minute

// errDiffers is returned when the view is not what the monolog says, or was not written exactly once.
var errDiffers = errors.New("the view is not as it must be")

// result waits until the view equals a computation from scratch, of the whole monolog, and tells.
func result(ctx context.Context, brokers []string, t *tally, v *view, out *console) error {
	begin := time.Now()
	for {
		a, err := readLog(ctx, brokers, Monolog.Name())
		if err != nil {
			return err
		}
		want, err := a.documents()
		if err != nil {
			return err
		}
		wrong := v.differences(want)
		if len(wrong) > 0 && time.Since(begin) < settleTimeout {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(200 * time.Millisecond):
				continue
			}
		}
		out.always("\n%s\n", t.table())
		out.always("monolog: %d records of %d assets\n", a.records, len(a.assets))
		out.always("check: computed again from the whole monolog, %d of %d published articles are equal to the view's\n",
			len(want)-min(len(want), len(wrong)), len(want))
		records, repeats := v.repeated()
		out.always("check: of the %d records of the denormalised topic, %d say nothing new\n", records, repeats)
		if repeats > 0 {
			wrong = append(wrong, fmt.Sprintf("%d documents were written again without a change", repeats))
		}
		if len(wrong) > 0 {
			return fmt.Errorf("%w:\n  %s", errDiffers, strings.Join(wrong[:min(len(wrong), 10)], "\n  "))
		}
		return nil
	}
}

// repeated returns how many records the view has read, and how many of them only repeat the one before of their article.
// The denormaliser writes none of these, so that they would be work that was done twice.
func (v *view) repeated() (records, repeats int64) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.records, v.repeats
}

// differences returns what is wrong with the view if documents are all that is published.
func (v *view) differences(documents map[string][]byte) []string {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var wrong []string
	for _, id := range slices.Sorted(maps.Keys(documents)) {
		a, ok := v.articles[id]
		switch {
		case !ok:
			wrong = append(wrong, id+" is missing")
		case !bytes.Equal(a.json, documents[id]):
			wrong = append(wrong, fmt.Sprintf("%s is\n    %s\n  and not\n    %s", id, a.json, documents[id]))
		}
	}
	for id := range v.articles {
		if _, ok := documents[id]; !ok {
			wrong = append(wrong, id+" is published and must not be")
		}
	}
	return wrong
}
