//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/internal/kafkatest"
)

const (
	partitions = 4
	// catchUpLimit is when a run gives up; how soon it must be is an option.
	catchUpLimit = 2 * time.Minute
)

// result is what happened in a run.
type result struct {
	seed    uint64
	members int
	// kills counts the members that were made to end, by SIGTERM or SIGKILL, terms those by SIGTERM; wipes counts the
	// state directories that were removed.
	kills, terms, wipes, bounces int
	records                      int
	caughtUp                     time.Duration // after the last kill
	mended                       int           // markers of commits that members wrote once more
}

// String is the line that a run prints.
func (r result) String() string {
	mended := ""
	if r.mended > 0 {
		mended = fmt.Sprintf(", %d markers written once more", r.mended)
	}
	return fmt.Sprintf("seed %d: %d members, %d killed (%d asked to stop, %d state directories removed), %d times the "+
		"broker, %d records exact, caught up %v after the last kill%s", r.seed, r.members, r.kills, r.terms, r.wipes,
		r.bounces, r.records, r.caughtUp.Round(time.Millisecond), mended)
}

// attempt is a run under way.
type attempt struct {
	o       options
	b       *kafkatest.Cluster
	rng     *rand.Rand
	result  result
	members []*member
	dir     string
	app     string
	in, out string
	cl      *kgo.Client
	adm     *kadm.Client
	last    time.Time // of the last kill
}

// newAttempt prepares a run.
func (o options) newAttempt(b *kafkatest.Cluster, seed uint64) (*attempt, error) {
	a := &attempt{o: o, b: b, rng: rand.New(rand.NewPCG(seed, 0x7a11)), result: result{seed: seed, members: o.members}}
	if a.result.members == 0 {
		a.result.members = 1 + int(seed)%3
	}
	a.app = fmt.Sprintf("killer-%d-%d", seed, time.Now().UnixMilli())
	a.in, a.out, a.dir = a.app+"-in", a.app+"-out", filepath.Join(o.dir, a.app)
	if err := os.MkdirAll(a.dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	a.cl, err = kgo.NewClient(kgo.SeedBrokers(o.brokers...), kgo.MetadataMinAge(100*time.Millisecond),
		kgo.MaxBufferedRecords(4*o.rate), kgo.ProducerLinger(5*time.Millisecond))
	if err != nil {
		return nil, err
	}
	a.adm = kadm.NewClient(a.cl)
	return a, nil
}

// close ends what is left of a run, and removes its traces if it went well.
func (a *attempt) close(well bool) {
	for _, m := range a.members {
		_ = m.end(syscall.SIGKILL) // most have ended
	}
	if well {
		a.tidyUp()
	}
	a.cl.Close()
}

func (a *attempt) makeTopics(ctx context.Context, configs map[string]*string) error {
	resp, err := a.adm.CreateTopics(ctx, partitions, -1, configs, a.in, a.out)
	return errors.Join(err, resp.Error())
}

// run does one run.
func (o options) run(ctx context.Context, b *kafkatest.Cluster, seed uint64) (r result, err error) {
	a, err := o.newAttempt(b, seed)
	if err != nil {
		return result{seed: seed}, err
	}
	defer func() { a.close(err == nil) }()
	if err := a.makeTopics(ctx, nil); err != nil {
		return a.result, err
	}
	if err := a.startMembers(ctx); err != nil {
		return a.result, err
	}
	stop := flow(a.cl, a.in, o.rate, o.keys, rand.New(rand.NewPCG(seed, 1)))
	a.last = time.Now()
	err = a.catchUp(ctx) // at first all goes well
	if err == nil {
		err = a.abuse(ctx)
	}
	if err == nil {
		err = a.catchUp(ctx)
	}
	if err == nil {
		err = a.balanced(ctx)
	}
	if err := errors.Join(err, stop()); err != nil {
		return a.result, err
	}
	return a.result, a.finish(ctx)
}

func (a *attempt) startMembers(ctx context.Context) error {
	for i := range a.result.members {
		m := &member{name: fmt.Sprint(i), state: filepath.Join(a.dir, fmt.Sprint(i)), log: filepath.Join(a.dir, fmt.Sprintf("%d.log", i))}
		args := []string{
			"workload=count", "brokers=" + strings.Join(a.o.brokers, ","), "app=" + a.app, "state=" + m.state, "in=" + a.in,
			"out=" + a.out, "eos=true", "threads=2", "commit=100", "cache=0", fmt.Sprintf("standbys=%d", a.o.standby),
		}
		if a.o.session > 0 {
			args = append(args, fmt.Sprintf("session=%d", a.o.session.Milliseconds()))
		}
		m.start = func() *exec.Cmd {
			if a.o.old != "" && a.one(2) {
				// It knows only the arguments that it has.
				return exec.Command(a.o.old, args...)
			}
			return exec.Command(a.o.bench, append(args, "vitals=5000")...)
		}
		a.members = append(a.members, m)
		if err := m.up(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, catchUpLimit)
	defer cancel()
	for {
		group, err := a.adm.DescribeGroups(ctx, a.app)
		if d := group[a.app]; err == nil && d.Err == nil && d.State == "Stable" && len(d.Members) == len(a.members) {
			return nil
		}
		if err := a.failed(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the group has not got its members: %w", ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// failed returns how a member ended by itself.
func (a *attempt) failed() error {
	var errs []error
	for _, m := range a.members {
		errs = append(errs, m.failed())
	}
	return errors.Join(errs...)
}

// one tells whether something of one in n happens now.
func (a *attempt) one(n int) bool { return n > 0 && a.rng.IntN(n) == 0 }

// abuse kills until there were enough kills.
func (a *attempt) abuse(ctx context.Context) error {
	for a.result.kills < a.o.kills {
		pause := time.Duration(a.rng.Int64N(int64(a.o.every)))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		if err := a.failed(); err != nil {
			return err
		}
		// What comes last is the death of a member: from it the time is taken.
		if a.b != nil && a.o.kills-a.result.kills > 3 && a.one(a.o.bounce) {
			if err := a.bounce(); err != nil {
				return err
			}
			continue
		}
		if err := a.kill(a.members[a.rng.IntN(len(a.members))]); err != nil {
			return err
		}
		// Now and then another dies before the first is back.
		if len(a.members) > 1 && a.one(5) && a.result.kills < a.o.kills {
			if err := a.kill(a.members[a.rng.IntN(len(a.members))]); err != nil {
				return err
			}
		}
	}
	return nil
}

// kill ends a member and starts it again, at once as a supervisor would, or a little later.
func (a *attempt) kill(m *member) error {
	signal := syscall.SIGKILL
	if a.one(4) {
		signal = syscall.SIGTERM
		a.result.terms++
	}
	wipe, later := a.one(a.o.wipe), time.Duration(0)
	if a.one(4) {
		later = time.Duration(a.rng.Int64N(int64(2 * time.Second)))
	}
	a.result.kills++
	a.last = time.Now()
	if err := m.end(signal); err != nil {
		return err
	}
	if signal == syscall.SIGTERM {
		a.last = time.Now() // it was at work until it ended
	}
	if wipe {
		a.result.wipes++
		if err := os.RemoveAll(m.state); err != nil {
			return err
		}
	}
	if a.result.kills < a.o.kills {
		time.Sleep(later)
	}
	return m.up()
}

// bounce kills the broker and starts it again, sometimes with a member that dies meanwhile.
func (a *attempt) bounce() error {
	a.result.bounces++
	if err := a.b.Kill(0); err != nil {
		return err
	}
	if a.one(2) {
		m := a.members[a.rng.IntN(len(a.members))]
		a.result.kills++
		if err := m.end(syscall.SIGKILL); err != nil {
			return err
		}
		if err := m.up(); err != nil {
			return err
		}
	}
	return a.b.Start()
}

// catchUp waits until the members have caught up after the last kill, while input goes on.
func (a *attempt) catchUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, catchUpLimit)
	defer cancel()
	at, err := caughtUp(ctx, a.adm, a.app, a.in, a.failed)
	if err != nil {
		return err
	}
	a.result.caughtUp = at.Sub(a.last)
	time.Sleep(time.Second) // and it stays so
	return nil
}

// balanceLimit is how soon after the last kill the partitions must be spread evenly: moves may have to warm up.
const balanceLimit = 30 * time.Second

// balanced waits until no member has more than one partition more than another.
func (a *attempt) balanced(ctx context.Context) error {
	var counts map[string]int
	for began := time.Now(); time.Since(began) < balanceLimit; time.Sleep(100 * time.Millisecond) {
		group, err := a.adm.DescribeGroups(ctx, a.app)
		if err != nil {
			continue
		}
		counts = map[string]int{}
		least, most := partitions, 0
		for _, m := range group[a.app].Members {
			n := 0
			if assigned, ok := m.Assigned.AsConsumer(); ok {
				for _, t := range assigned.Topics {
					n += len(t.Partitions)
				}
			}
			counts[m.MemberID] = n
			least, most = min(least, n), max(most, n)
		}
		if len(counts) == len(a.members) && most-least <= 1 {
			return nil
		}
	}
	return fmt.Errorf("the partitions are not spread evenly %v after the last kill: %v", balanceLimit, counts)
}

// settle lets the members process what is left, and stops them.
func (a *attempt) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, catchUpLimit)
	defer cancel()
	ends, err := listEnds(ctx, a.adm, a.in)
	if err != nil {
		return err
	}
	for !reached(ctx, a.adm, a.app, ends) {
		if err := errors.Join(ctx.Err(), a.failed()); err != nil {
			return fmt.Errorf("the rest of the input was not processed: %w: %s", err, lags(a.adm, a.app, a.in))
		}
		time.Sleep(20 * time.Millisecond)
	}
	for _, m := range a.members {
		if err := m.end(syscall.SIGTERM); err != nil {
			return err
		}
	}
	return nil
}

// finish lets the members end, and looks at what they made.
func (a *attempt) finish(ctx context.Context) (err error) {
	if err := a.settle(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, catchUpLimit)
	defer cancel()
	if a.result.records, err = verify(ctx, a.o.brokers, a.adm, a.in, a.out); err != nil {
		return err
	}
	if err := complained(a.dir); err != nil {
		return err
	}
	if a.result.mended, err = said(a.dir, "it was written once more"); err != nil {
		return err
	}
	if a.o.within > 0 && a.result.caughtUp > a.o.within {
		return fmt.Errorf("caught up %v after the last kill, want less than %v", a.result.caughtUp, a.o.within)
	}
	return nil
}

// tidyUp removes what a run that went well has left.
func (a *attempt) tidyUp() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if topics, err := a.adm.ListTopics(ctx); err == nil {
		var names []string
		for _, name := range topics.Names() {
			if strings.HasPrefix(name, a.app) {
				names = append(names, name)
			}
		}
		_, _ = a.adm.DeleteTopics(ctx, names...)
	}
	_, _ = a.adm.DeleteGroups(ctx, a.app)
	_ = os.RemoveAll(a.dir)
}
