//go:build unix

// Command killer runs the count workload of the benchmark program, exactly once, and breaks it for as long as it is
// asked to: members die by SIGKILL and SIGTERM, state directories vanish, the broker is killed, all while input flows.
// After each run the output, read committed, must be 1, 2, 3 … n for each key, in order, n being what went in.
//
//	killer -runs 10 -seed 1 -members 3 -kills 20                on the brokers of TAILRACE_KAFKA, which stay up
//	killer -runs 10 -seed 1 -kills 20 -kafka DIR                on a broker of its own, which is killed, too
//
//	killer -soak 30m -kafka DIR                                 one long run; nothing may grow
//
// What is done, and when, follows from the seed; what that meets does not. Each run prints a line; the last line sums.
// The exit code is 1 if any run failed, whose topics, state and logs then stay.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"tailrace.dev/internal/kafkatest"
)

// options say what is done.
type options struct {
	runs    int
	seed    uint64
	members int // 0: one to three, by the seed
	kills   int
	rate    int // records a second
	keys    int
	// every is the longest pause between two blows, minutes of quiet find nothing.
	every   time.Duration
	bounce  int // one blow of so many hits the broker; 0: none
	wipe    int // one death of so many takes the state directory along; 0: none
	standby int
	session time.Duration
	// within is how soon after the last kill a run must be caught up.
	within   time.Duration
	brokers  []string
	kafkaDir string
	bench    string
	// old is the benchmark program of another version, which half of the starts take.
	old      string
	dir      string
	soakTime time.Duration
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := start(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func start(ctx context.Context, args []string) (err error) {
	o := options{}
	f := flag.NewFlagSet("killer", flag.ContinueOnError)
	f.IntVar(&o.runs, "runs", 1, "how many runs, each with topics, members and a seed of its own")
	f.Uint64Var(&o.seed, "seed", 1, "seed of the first run; the next has the next")
	f.IntVar(&o.members, "members", 0, "members of the group; 0: one to three, by the seed")
	f.IntVar(&o.kills, "kills", 20, "members killed in a run")
	f.IntVar(&o.rate, "rate", 5000, "records a second that flow in")
	f.IntVar(&o.keys, "keys", 2000, "different keys")
	f.DurationVar(&o.every, "every", 2*time.Second, "longest pause between two blows")
	f.IntVar(&o.bounce, "bounce", 8, "one blow of so many hits the broker, if it is our own; 0: none")
	f.IntVar(&o.wipe, "wipe", 6, "one death of so many takes the state directory along; 0: none")
	f.IntVar(&o.standby, "standbys", 0, "copies of each task's rows on other members")
	f.DurationVar(&o.session, "session", 0, "session timeout of the members; 0: the library's default")
	f.DurationVar(&o.within, "within", 5*time.Second, "how soon after the last kill everything must be processed")
	f.StringVar(&o.kafkaDir, "kafka", "", "empty directory for a broker that this program starts, kills and stops")
	f.StringVar(&o.bench, "bench", "", "the benchmark program; empty: it is built from ./bench")
	f.StringVar(&o.old, "old", "", "the benchmark program of another version: members go from one to the other and back")
	f.DurationVar(&o.soakTime, "soak", 0, "one long run instead, in which a member that nothing is done to must not grow")
	f.StringVar(&o.dir, "dir", "", "where state and logs go; empty: a temporary directory")
	if err := f.Parse(args); err != nil {
		return err
	}
	o.brokers = strings.FieldsFunc(os.Getenv("TAILRACE_KAFKA"), func(r rune) bool { return r == ',' || r == ' ' })
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "tailrace-killer"); err != nil {
			return err
		}
	}
	if o.bench == "" {
		o.bench = filepath.Join(o.dir, "bench")
		cmd := exec.CommandContext(ctx, "go", "build", "-o", o.bench, "./bench")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("killer: build the benchmark program: %w: %s", err, out)
		}
	}
	_, err = o.execute(ctx, func(line string) { fmt.Println(line) })
	return err
}

// execute does all runs and returns what they were, of those that went well. An error of the runs themselves does not
// keep the next from being done.
func (o options) execute(ctx context.Context, say func(string)) (results []result, err error) {
	var b *kafkatest.Cluster
	if o.kafkaDir != "" {
		if b, err = kafkatest.StartCluster(o.kafkaDir, 1); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, b.Stop(0)) }()
		o.brokers = b.Addrs()
	}
	if len(o.brokers) == 0 {
		return nil, errors.New("killer: no broker: set TAILRACE_KAFKA, or give -kafka DIR to have one started")
	}
	if o.soakTime > 0 {
		return nil, o.soak(ctx, b, say)
	}
	var errs []error
	for i := range o.runs {
		if ctx.Err() != nil {
			break
		}
		seed := o.seed + uint64(i)
		r, err := o.run(ctx, b, seed)
		if err != nil {
			err = fmt.Errorf("run with seed %d: %w (%s)", seed, err, r)
			say("FAIL " + err.Error())
			errs = append(errs, err)
			if b != nil && b.Start() != nil {
				break
			}
			continue
		}
		results = append(results, r)
		say(r.String())
	}
	say(summary(results, len(errs)))
	if len(errs) > 0 {
		return results, fmt.Errorf("killer: %d of %d runs failed", len(errs), o.runs)
	}
	return results, nil
}

// summary sums the runs.
func summary(results []result, failed int) string {
	var kills, terms, wipes, bounces, records int
	caught := map[int][]time.Duration{}
	for _, r := range results {
		kills, terms, wipes, bounces = kills+r.kills, terms+r.terms, wipes+r.wipes, bounces+r.bounces
		records += r.records
		caught[r.members] = append(caught[r.members], r.caughtUp)
	}
	s := fmt.Sprintf("%d runs failed, %d went well: %d members killed (%d of them asked to stop, %d state directories "+
		"removed), %d times the broker, %d records exact", failed, len(results), kills, terms, wipes, bounces, records)
	for _, n := range []int{1, 2, 3} {
		if d := caught[n]; len(d) > 0 {
			slices.Sort(d)
			s += fmt.Sprintf("; caught up with %d members: median %v, most %v", n, d[len(d)/2].Round(time.Millisecond),
				d[len(d)-1].Round(time.Millisecond))
		}
	}
	return s
}
