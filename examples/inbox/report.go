package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

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
	member    bool // appends nothing
	appended  atomic.Int64
	processed atomic.Int64
	outputs   atomic.Int64
	lag       atomic.Int64

	mu    sync.Mutex
	tasks map[processor.TaskID]bool
}

func newProgress(member bool) *progress {
	return &progress{begin: time.Now(), member: member, tasks: make(map[processor.TaskID]bool)}
}

// events returns the functions that the application calls.
func (p *progress) events(out *console) processor.Events {
	return processor.Events{
		State: func(_, to string) { out.printf("%s application %s\n", p.clock(), to) },
		TasksChanged: func(assigned, revoked []processor.TaskID) {
			out.printf("%s tasks of this member: %s\n", p.clock(), p.change(assigned, revoked))
		},
		RestoreDone: func(id processor.TaskID, store string, records int64, took time.Duration) {
			if records > 1 { // the first is the mark up to which it is restored
				out.printf("%s restored %s of %v: %d records in %v\n",
					p.clock(), store, id, records-1, took.Round(time.Millisecond))
			}
		},
		Committed: func(c processor.CommitInfo) {
			p.processed.Add(int64(c.Processed))
			p.outputs.Add(int64(c.Outputs))
			p.lag.Store(c.Lag)
		},
		Aborted: func(reason error) {
			out.printf("%s taken back, and processed again: %v\n", p.clock(), reason)
		},
		Rebuilt: func(reason error) { out.printf("%s starting over with a new client: %v\n", p.clock(), reason) },
	}
}

func (p *progress) clock() string { return fmt.Sprintf("%4.0fs ", time.Since(p.begin).Seconds()) }

// change notes which tasks came and went, and describes those that are here now.
func (p *progress) change(assigned, revoked []processor.TaskID) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range assigned {
		p.tasks[id] = true
	}
	for _, id := range revoked {
		delete(p.tasks, id)
	}
	names := make([]string, 0, len(p.tasks))
	for id := range p.tasks {
		names = append(names, id.String())
	}
	if len(names) == 0 {
		return "none"
	}
	slices.Sort(names)
	return fmt.Sprintf("%d (%s)", len(names), strings.Join(names, ", "))
}

// print prints a line a second while something happens, until ctx is cancelled.
func (p *progress) print(ctx context.Context, out *console, v *view) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var before int64
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		in := p.processed.Load()
		if in == before {
			continue
		}
		line := p.clock()
		if !p.member {
			line += fmt.Sprintf(" log +%d ", p.appended.Load())
		}
		line += fmt.Sprintf(" processed %d (%d/s)  results %d  lag %d", in, in-before, p.outputs.Load(), p.lag.Load())
		before = in
		if r := v.last(); r != nil {
			line += fmt.Sprintf("  latest: %s now has %d unread of %d", r.user, r.unread, len(r.inbox.Messages))
		}
		out.printf("%s\n", line)
	}
}

// settleTimeout is how long the application may make no progress before waiting for it is given up.
const settleTimeout = time.Minute

// settled waits until the application has processed all of the log, and the view has seen all of what came of it.
func settled(ctx context.Context, brokers []string, v *view) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		return fmt.Errorf("settle: %w", err)
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	best, since := int64(-1), time.Now()
	for {
		left, err := lag(ctx, adm)
		if err == nil && left == 0 {
			left, err = v.behind(ctx)
			if err == nil && left == 0 {
				return nil
			}
		}
		if err == nil && (best < 0 || left < best) {
			best, since = left, time.Now()
		}
		if time.Since(since) > settleTimeout {
			return errors.Join(fmt.Errorf("settle: no progress for %v, %d offsets left", settleTimeout, best), err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// lag returns how many offsets of its inputs the application has not processed, over all members.
func lag(ctx context.Context, adm *kadm.Client) (int64, error) {
	internal := processor.RepartitionTopic(application, ByRecipient.Name())
	// First the offsets, and then the ends, those of records that are not yet decided included: a commit shows in the
	// offsets before it does in the topics, or the other way round.
	done, err := adm.FetchOffsets(ctx, application)
	if err != nil {
		return 0, fmt.Errorf("lag: find the offsets of group %s: %w", application, err)
	}
	ends, err := adm.ListEndOffsets(ctx, Events.Name(), internal)
	if err != nil {
		return 0, fmt.Errorf("lag: find the ends: %w", err)
	}
	if err := ends.Error(); err != nil {
		return 0, fmt.Errorf("lag: find the ends: %w", err)
	}
	var n int64
	ends.Each(func(end kadm.ListedOffset) {
		at := int64(0)
		if o, ok := done.Lookup(end.Topic, end.Partition); ok {
			at = max(0, o.At)
		}
		left := end.Offset - at
		// What the application itself writes ends with the end of a transaction, which is an offset but no record.
		if end.Topic == internal && left == 1 {
			left = 0
		}
		n += max(0, left)
	})
	return n, nil
}

// errDisagree is returned when a counter is not what it must be.
var errDisagree = errors.New("counters disagree")

// result prints the top mailboxes, and checks every counter in two ways: against the inbox that came of the same fold
// by another topic, and against a count of all that is in the log.
func result(ctx context.Context, brokers []string, v *view, out *console) error {
	c, err := recountLog(ctx, brokers)
	if err != nil {
		return err
	}
	rows := v.all()
	out.always("\n%s", table10(rows))
	var unread int64
	same := 0
	var wrong []string
	for _, r := range rows {
		unread += r.unread
		if n := r.inbox.unread(); n == r.unread && r.unread >= 0 {
			same++
		} else {
			wrong = append(wrong, fmt.Sprintf("%s: counter %d, %d unread in the inbox", r.user, r.unread, n))
		}
	}
	out.always("\n%d mailboxes, %d unread messages\n", len(rows), unread)
	out.always("check 1: the counter is the number of unread messages in the inbox: %d of %d\n", same, len(rows))

	counts := c.unread()
	compared, agreed := 0, 0
	for _, user := range slices.Sorted(maps.Keys(counts)) {
		if c.boxes[user] > maxMessages {
			continue // such a box may have pushed messages out, which the recount knows nothing of
		}
		compared++
		if n := v.row(user).unread; n == counts[user] {
			agreed++
		} else {
			wrong = append(wrong, fmt.Sprintf("%s: counter %d, counted from the log %d", user, n, counts[user]))
		}
	}
	out.always("check 2: the counter is what a recount of the log's %d events gives: %d of %d\n",
		c.events, agreed, compared)
	if n := len(wrong); n > 0 {
		return fmt.Errorf("%w: %d times\n  %s", errDisagree, n, strings.Join(wrong[:min(n, 10)], "\n  "))
	}
	return nil
}

// table10 renders the ten mailboxes with the most unread messages.
func table10(rows []*row) string {
	var sb strings.Builder
	w := tabwriter.NewWriter(&sb, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "user\tunread\tin the box\tnewest message")
	for _, r := range rows[:min(10, len(rows))] {
		newest := ""
		if len(r.inbox.Messages) > 0 {
			m := r.inbox.Messages[0]
			newest = fmt.Sprintf("%q from %s", m.Subject, m.From)
		}
		fmt.Fprintf(w, "%s\t%6d\t%10d\t%s\n", r.user, r.unread, len(r.inbox.Messages), newest)
	}
	_ = w.Flush() // into memory
	return sb.String()
}
