package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace.dev/internal/task"
)

// roster is several rigs of one application, each with its own identity and disk.
func roster(t *testing.T, c *cluster, program Program, n int) []*rig {
	t.Helper()
	rigs := make([]*rig, n)
	for i := range rigs {
		rigs[i] = newRig(t, c, program)
	}
	for _, r := range rigs[1:] {
		r.settings.StateDir = rigs[0].settings.StateDir
	}
	return rigs
}

// inGroup returns the instance ids of the members that the coordinator knows.
func (c *cluster) inGroup(group string) []string {
	c.t.Helper()
	described, err := c.adm.DescribeGroups(c.t.Context(), c.ns+group)
	if err != nil {
		return nil
	}
	var ids []string
	for _, m := range described[c.ns+group].Members {
		if m.InstanceID != nil {
			ids = append(ids, *m.InstanceID)
		}
	}
	slices.Sort(ids)
	return ids
}

// TestTakeoverFencesOpenTransaction kills a member between the commit of its offsets and the end of the transaction, for
// good. Nobody may read those offsets until the transaction is decided, which would be after a minute by itself.
func TestTakeoverFencesOpenTransaction(t *testing.T) {
	t.Parallel()
	for name, stateful := range map[string]bool{"stateful": true, "stateless": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			c.topic("in", 4)
			c.topic("out", 1)
			program := countProgram("fencing")
			if !stateful {
				program.Subs[0].Stores = nil
			}
			rigs := roster(t, c, program, 2)
			long := func(s *Settings) { s.TransactionTimeout = time.Minute }
			total := 0
			feed := func(n int) { c.feed("in", total, n, 40); total += n }
			feed(200)
			one := rigs[0].start(t, rigs[0].member(1), long, func(s *Settings) {
				seam := crashAt("before-end", 1)
				s.Seams.At = func(at string) error {
					if len(rigs[1].tasks()) == 0 {
						return nil // not before the other one has its part
					}
					return seam(at)
				}
			})
			two := rigs[1].start(t, rigs[1].member(2), long)
			for crashed := false; !crashed; {
				select {
				case <-one.done:
					crashed = true
				case <-time.After(10 * time.Millisecond):
					feed(40)
				}
			}
			died := time.Now()
			if !errors.Is(one.err, ErrCrash) {
				t.Fatal(one.err)
			}
			feed(200)
			until(t, "all tasks to run at the other member", func() bool { return c.committed("fencing", "in") == int64(total) })
			took := time.Since(died)
			t.Logf("all input was processed %v after the end of the other member", took)
			// A second is the aim; what is more is for machines under load.
			if limit := two.e.cfg.SessionTimeout + 4*time.Second; took > limit {
				t.Errorf("it took %v, want at most %v", took, limit)
			}
			if stateful {
				c.verifyCounts("out", total)
			} else if n := len(c.read("out", total)); n != total {
				t.Errorf("%d outputs of %d", n, total)
			}
			two.stop()
			if len(rigs[1].rebuilt) > 0 {
				t.Errorf("rebuilt: %v", rigs[1].rebuilt)
			}
		})
	}
}

// tasks returns what was assigned to the rig's process so far.
func (r *rig) tasks() []task.ID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.assigned)
}

// TestFencingSparesOthers leaves open transactions of strangers, of members, and of one that only looks like ours, and
// finds what is fenced.
func TestFencingSparesOthers(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 1)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("spare"))
	p := r.start(t)
	c.feed("in", 0, 10, 5)
	c.verifyCounts("out", 10)
	app := r.program.App
	open := map[string]string{ // by id: the topic that it wrote to
		app + "-0123456789abcdef":   c.ns + "out", // the default identity of a member
		"gone":                      r.program.Subs[0].Stores[0].Changelog,
		app + "-2-0123456789abcdef": c.ns + "out", // another application
		"stranger":                  c.ns + "out",
		app + "-alive":              r.program.Subs[0].Stores[0].Changelog, // of a member
	}
	for id, topic := range open {
		cl, err := kgo.NewClient(kgo.SeedBrokers(c.addrs...), kgo.TransactionalID(id), kgo.TransactionTimeout(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(cl.Close)
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		record := &kgo.Record{Topic: topic, Key: barrierKey}
		if err := cl.ProduceSync(t.Context(), record).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	s := p.session()
	round := s.group.round.Load()
	live := []string{app + "-alive", r.settings.TransactionalID}
	if err := s.fence(t.Context(), live, round-1); err != nil {
		t.Fatal(err)
	}
	stillOpen := func() []string {
		listed, err := c.adm.ListTransactions(t.Context(), nil, []string{"Ongoing"})
		if err != nil {
			t.Fatal(err)
		}
		return slices.DeleteFunc(listed.TransactionalIDs(), func(id string) bool { return open[id] == "" })
	}
	if got := stillOpen(); len(got) != len(open) {
		t.Errorf("an assignment that is over fenced: still open are %v", got)
	}
	if err := s.fence(t.Context(), live, round); err != nil {
		t.Fatal(err)
	}
	want := []string{app + "-2-0123456789abcdef", app + "-alive", "stranger"}
	slices.Sort(want)
	if got := stillOpen(); !slices.Equal(got, want) {
		t.Errorf("still open: %v, want %v", got, want)
	}
	p.stop()
}

// TestFencingAsksForTheGeneration does not let a member fence that the group has moved on from.
func TestFencingAsksForTheGeneration(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.onlyFake()
	c.topic("in", 1)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("stale"))
	p := r.start(t)
	c.feed("in", 0, 10, 5)
	c.verifyCounts("out", 10)
	s := p.session()
	if err := s.stillMember(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.fake.ControlKey(int16(kmsg.Heartbeat), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		resp, _ := req.ResponseKind().(*kmsg.HeartbeatResponse)
		resp.ErrorCode = 22 // ILLEGAL_GENERATION
		return resp, nil, true
	})
	if err := s.stillMember(t.Context()); err == nil {
		t.Error("a member of an old generation thinks it is in the group")
	}
}

func TestDefaultIdentity(t *testing.T) {
	t.Parallel()
	for id, want := range map[string]bool{
		"app-0123456789abcdef": true, "app-0123456789abcdeg": false, "app-0123456789abcde": false, "app-": false,
		"app-2-0123456789abcdef": false, "application-0123456789abcdef": false, "0123456789abcdef": false,
	} {
		if got := defaultIdentity("app", id); got != want {
			t.Errorf("%s: %v", id, got)
		}
	}
}

// TestIdentityOutlivesItsDirectory kills a member and removes its state directory: the next start has its place in the
// group again, without waiting for the session of the dead one.
func TestIdentityOutlivesItsDirectory(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 2)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("wiped"))
	r.settings.SessionTimeout = 45 * time.Second
	c.feed("in", 0, 500, 20)
	p := r.start(t, func(s *Settings) { s.Seams.At = crashAt("before-end", 2) })
	total := 500
	for crashed := false; !crashed; {
		select {
		case <-p.done:
			crashed = true
		case <-time.After(10 * time.Millisecond):
			c.feed("in", total, 20, 20)
			total += 20
		}
	}
	if err := os.RemoveAll(r.settings.StateDir); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	p = r.start(t)
	c.verifyCounts("out", total)
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("it took %v", took)
	}
	if got := c.inGroup("wiped"); !slices.Equal(got, []string{r.settings.InstanceID}) {
		t.Errorf("members %v", got)
	}
	p.stop()
}

// TestTheOlderProcessStops starts processes of one identity on top of each other: each time the older one says what is
// wrong and stays away, and the newer one goes on.
func TestTheOlderProcessStops(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 2)
	c.topic("out", 1)
	first := newRig(t, c, countProgram("twins"))
	total := 0
	feed := func(n int) { c.feed("in", total, n, 10); total += n }
	feed(100)
	older := first.start(t)
	c.verifyCounts("out", total)
	for range 4 {
		newer := newRig(t, c, countProgram("twins")).start(t)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			<-older.done
		}()
		for over := false; !over; {
			select {
			case <-ended:
				over = true
			case <-newer.done:
				t.Fatalf("the newer process ended with %v", newer.err)
			case <-time.After(5 * time.Millisecond):
				feed(10) // the producers meet each other, not only the members
			}
		}
		err := isKind(t, older.err, ErrFenced)
		if text := err.Error(); !strings.Contains(text, first.settings.InstanceID) ||
			!strings.Contains(text, "another process runs with this identity") {
			t.Errorf("the message: %s", text)
		}
		older = newer
	}
	c.verifyCounts("out", total)
	older.stop()
}

// TestStayAndLeave stops a member in all ways there are: it keeps its place, or gives it up at once.
func TestStayAndLeave(t *testing.T) {
	t.Parallel()
	interrupt := func() (context.Context, func()) {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		return ctx, func() {
			if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
				t.Error(err)
			}
			<-ctx.Done()
			stop()
		}
	}
	caused := func(cause error) func() (context.Context, func()) {
		return func() (context.Context, func()) {
			ctx, cancel := context.WithCancelCause(context.Background())
			return ctx, func() { cancel(cause) }
		}
	}
	for _, tc := range []struct {
		name  string
		end   func() (context.Context, func())
		leave bool // by the setting
		gone  bool
	}{
		{"stop", caused(nil), false, false},
		{"terminate", caused(errors.New("terminated signal received")), false, false},
		{"setting", caused(nil), true, true},
		{"cause", caused(fmt.Errorf("scaled in: %w", ErrLeave)), false, true},
		{"interrupt", interrupt, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			c.topic("in", 2)
			c.topic("out", 1)
			rigs := roster(t, c, countProgram("leave"), 2)
			for _, r := range rigs {
				r.settings.SessionTimeout = 45 * time.Second
			}
			one := rigs[0].start(t, rigs[0].member(1))
			c.feed("in", 0, 100, 10)
			until(t, "the first member's tasks", func() bool { return len(rigs[0].tasks()) == 2 })
			settings := rigs[1].settings
			rigs[1].member(2)(&settings)
			settings.LeaveOnStop = tc.leave
			e, err := New(rigs[1].program, settings)
			if err != nil {
				t.Fatal(err)
			}
			ctx, end := tc.end()
			done := make(chan error, 1)
			go func() { done <- e.Run(ctx) }()
			until(t, "the second member's task", func() bool { return len(rigs[1].tasks()) == 1 })
			c.feed("in", 100, 100, 10)
			c.verifyCounts("out", 200)
			end()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if got := len(c.inGroup("leave")); (got == 1) != tc.gone {
				t.Errorf("%d members are left", got)
			}
			if tc.gone {
				until(t, "the task to come back", func() bool { return len(rigs[0].tasks()) == 3 })
				c.feed("in", 200, 100, 10)
				c.verifyCounts("out", 300)
			}
			one.stop()
		})
	}
}

// TestChangedStandbysAreNoticed restarts a static member, which the coordinator would let in without a rebalance, with
// another number of standbys.
func TestChangedStandbysAreNoticed(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 2)
	c.topic("out", 1)
	rigs := roster(t, c, countProgram("more-standbys"), 2)
	c.feed("in", 0, 100, 10)
	one := rigs[0].start(t, rigs[0].member(1))
	two := rigs[1].start(t, rigs[1].member(2))
	until(t, "both members' tasks", func() bool { return len(one.tasksOf()) == 1 && len(two.tasksOf()) == 1 })
	two.stop()
	two = rigs[1].start(t, rigs[1].member(2), func(s *Settings) { s.Standbys = 1 })
	until(t, "standbys at both", func() bool { return len(one.copies()) == 1 && len(two.copies()) == 1 })
	one.stop()
	two.stop()
}

// copies returns the tasks that the process keeps copies of.
func (p *process) copies() []task.ID {
	s := p.session()
	if s == nil {
		return nil
	}
	var ids []task.ID
	for _, st := range s.standbys.snapshot() {
		ids = append(ids, st.ID)
	}
	return ids
}

// TestTasksWarmUpBeforeTheyMove lets a member join one that has a lot of state: it gets the tasks when its copies are
// near, so that it restores next to nothing.
func TestTasksWarmUpBeforeTheyMove(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 4)
	c.topic("out", 1)
	rigs := roster(t, c, countProgram("warm"), 2)
	for _, r := range rigs {
		r.settings.WarmupLag, r.settings.MaxWarmups = 20, 1
	}
	one := rigs[0].start(t, rigs[0].member(1))
	total := 0
	for range 8 { // several commits, or the changelog is small
		c.feed("in", total, 400, 400)
		total += 400
		c.verifyCounts("out", total)
	}
	two := rigs[1].start(t, rigs[1].member(2))
	warming := 0
	until(t, "half of the tasks", func() bool {
		s := two.session()
		if s != nil {
			warming = max(warming, len(two.copies()))
		}
		return len(two.tasksOf()) == 2 && len(one.tasksOf()) == 2
	})
	if warming == 0 {
		t.Error("nothing warmed up")
	}
	rows, _ := rigs[1].restoredRows(two.tasksOf()...)
	if rows > 100 {
		t.Errorf("restored %d rows", rows)
	}
	c.feed("in", total, 400, 400)
	total += 400
	c.verifyCounts("out", total)
	one.stop()
	two.stop()
}

// pulse watches the committed offsets while members come and go, and finds the pauses of each input partition. (Readers
// of the output are no measure: a transaction that a dead member left open holds them up in every partition it wrote to.)
type pulse struct {
	mu     sync.Mutex
	at     map[int32]int64
	last   map[int32]time.Time
	moves  map[int32][]time.Time
	pauses []pause
}

type pause struct {
	partition int32
	from, to  time.Time
}

// moved notes that something happened to partitions that may stop them.
func (p *pulse) moved(ids ...task.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range ids {
		p.moves[id.Partition] = append(p.moves[id.Partition], time.Now())
	}
}

func (p *pulse) seen(part int32, offset int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if offset == p.at[part] {
		return
	}
	p.at[part] = offset
	now := time.Now()
	if last, ok := p.last[part]; ok && now.Sub(last) > 300*time.Millisecond {
		p.pauses = append(p.pauses, pause{part, last, now})
	}
	p.last[part] = now
}

// untouched returns the longest pause of a partition to which nothing had happened.
func (p *pulse) untouched() (longest time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pause := range p.pauses {
		touched := slices.ContainsFunc(p.moves[pause.partition], func(at time.Time) bool {
			return at.After(pause.from.Add(-500*time.Millisecond)) && at.Before(pause.to.Add(500*time.Millisecond))
		})
		if !touched {
			longest = max(longest, pause.to.Sub(pause.from))
		}
	}
	return longest
}

// TestUntouchedTasksNeverStop lets members join, leave, crash and come back, while every partition has input all the
// time: those that do not move go on.
func TestUntouchedTasksNeverStop(t *testing.T) {
	t.Parallel()
	const partitions = 6
	c := newCluster(t)
	c.topic("in", partitions)
	c.topic("out", 1)
	rigs := roster(t, c, countProgram("steady"), 3)
	p := &pulse{at: map[int32]int64{}, last: map[int32]time.Time{}, moves: map[int32][]time.Time{}}
	for _, r := range rigs {
		r.settings.Events.TasksChanged = func(in, out []task.ID) {
			r.note(func() { r.assigned = append(r.assigned, in...) })
			p.moved(in...)
			p.moved(out...)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	total := feedEvenly(ctx, t, c, &wg, partitions)
	watchCommits(ctx, c, "steady", p, &wg)
	stalls := watchStalls(ctx, &wg)

	one := rigs[0].start(t, rigs[0].member(1))
	until(t, "the first member's tasks", func() bool { return len(one.tasksOf()) == partitions })
	leave := func(s *Settings) { s.LeaveOnStop = true }
	for round := range 3 {
		two := rigs[1].start(t, rigs[1].member(2), leave)
		until(t, "the second member's tasks", func() bool { return len(two.tasksOf()) == partitions/2 })
		three := rigs[2].start(t, rigs[2].member(3), leave)
		until(t, "the third member's tasks", func() bool { return len(three.tasksOf()) == partitions/3 })
		if round == 1 {
			p.moved(three.tasksOf()...)
			s := three.session()
			s.post(func() error { return fmt.Errorf("%w: killed", ErrCrash) })
			if err := three.wait(); !errors.Is(err, ErrCrash) {
				t.Fatal(err)
			}
			until(t, "the tasks of the dead member", func() bool {
				return len(one.tasksOf())+len(two.tasksOf()) == partitions
			})
		} else {
			three.stop()
		}
		two.stop()
		until(t, "the tasks to come back", func() bool { return len(one.tasksOf()) == partitions })
	}
	cancel()
	wg.Wait()
	c.verifyCounts("out", *total)
	one.stop()
	limit := time.Second + 3*time.Duration(stalls.Load())
	t.Logf("%d pauses over 300 ms in all; the longest of a partition that was not touched: %v; the machine stalled for %v",
		len(p.pauses), p.untouched(), time.Duration(stalls.Load()))
	if got := p.untouched(); got > limit {
		t.Errorf("a partition that was not touched stood still for %v, limit %v", got, limit)
	}
	for _, r := range rigs {
		if len(r.rebuilt) > 0 {
			t.Errorf("rebuilt: %v", r.rebuilt)
		}
	}
}

// feedEvenly produces to every partition all the time, and returns how many records it was, to read after wg.
func feedEvenly(ctx context.Context, t *testing.T, c *cluster, wg *sync.WaitGroup, partitions int32) *int {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.addrs...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	total := new(int)
	wg.Add(1)
	go func() {
		defer wg.Done()
		defer cl.Close()
		for ctx.Err() == nil {
			records := make([]*kgo.Record, partitions)
			for part := range partitions {
				records[part] = &kgo.Record{Topic: c.ns + "in", Partition: part, Key: []byte("key-" + strconv.Itoa(int(part)))}
			}
			if err := cl.ProduceSync(context.Background(), records...).FirstErr(); err != nil {
				t.Error(err)
				return
			}
			*total += len(records)
			time.Sleep(20 * time.Millisecond)
		}
	}()
	return total
}

// watchCommits asks for the committed offsets until ctx ends.
func watchCommits(ctx context.Context, c *cluster, group string, p *pulse, wg *sync.WaitGroup) {
	wg.Add(1)
	go func() {
		defer wg.Done()
		for ctx.Err() == nil {
			offsets, err := c.adm.FetchOffsets(ctx, c.ns+group)
			if err != nil {
				continue
			}
			for part, o := range offsets[c.ns+"in"] {
				p.seen(part, o.At)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
}

// watchStalls measures how long this machine lets a goroutine wait that only sleeps.
func watchStalls(ctx context.Context, wg *sync.WaitGroup) *atomic.Int64 {
	longest := new(atomic.Int64)
	wg.Add(1)
	go func() {
		defer wg.Done()
		for ctx.Err() == nil {
			began := time.Now()
			time.Sleep(10 * time.Millisecond)
			longest.Store(max(longest.Load(), int64(time.Since(began)-10*time.Millisecond)))
		}
	}()
	return longest
}

// TestForeignTopicsAreLeftAlone gives a member a topic that it does not read, as a coordinator does that remembers the
// version of the program which had its place before.
func TestForeignTopicsAreLeftAlone(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 2)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("foreign"))
	p := r.start(t)
	c.feed("in", 0, 100, 10)
	c.verifyCounts("out", 100)
	s := p.session()
	done := make(chan error, 1)
	s.post(func() error {
		done <- s.assigned(map[string][]int32{c.ns + "of-another-version": {0, 1}}, s.memberID)
		return nil
	})
	if err := <-done; err != nil {
		t.Errorf("the member starts over: %v", err)
	}
	c.feed("in", 100, 100, 10)
	c.verifyCounts("out", 200)
	p.stop()
}

// TestRollingUpgrade replaces the members of a group, one by one, with a version that has one sub-topology more, and
// then with the one before again. Each has its work all the time.
func TestRollingUpgrade(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	for topic, n := range map[string]int32{"in": 4, "out": 1, "more": 3, "more-out": 1} {
		c.topic(topic, n)
	}
	older := countProgram("rolling")
	newer := countProgram("rolling")
	newer.Fingerprint = "f2"
	newer.Subs = append(newer.Subs, Sub{
		Name: "more", Sources: []Source{{Topic: "more"}}, Sinks: []string{"more-out"},
	})
	before, after := roster(t, c, older, 2), roster(t, c, newer, 2)
	for i := range after {
		after[i].settings.StateDir = before[0].settings.StateDir
		after[i].disk = before[i].disk
		after[i].program.OpenState = before[i].disk.open
	}
	total, more := 0, 0
	feed := func() {
		c.feed("in", total, 300, 30)
		c.feed("more", more, 300, 30)
		total, more = total+300, more+300
	}
	passed := func() {
		t.Helper()
		if got := len(c.read("more-out", more)); got != more {
			t.Errorf("%d records passed, want %d", got, more)
		}
	}
	has := func(p *process, sub string) (n int) {
		for _, id := range p.tasksOf() {
			if id.Sub == sub {
				n++
			}
		}
		return n
	}
	feed()
	one := before[0].start(t, before[0].member(1))
	two := before[1].start(t, before[1].member(2))
	until(t, "the tasks of both", func() bool { return has(one, "in") == 2 && has(two, "in") == 2 })
	c.verifyCounts("out", total)

	one.stop()
	one = after[0].start(t, after[0].member(1))
	until(t, "the new sub-topology", func() bool { return has(one, "more") == 3 })
	feed()
	c.verifyCounts("out", total)
	passed()
	if n := has(two, "in"); n < 2 {
		t.Errorf("the member of the version before has %d tasks", n)
	}

	two.stop()
	two = after[1].start(t, after[1].member(2))
	until(t, "an even share", func() bool {
		select {
		case <-two.done:
			t.Fatal(two.err)
		default:
		}
		return has(one, "more")+has(two, "more") == 3 && has(one, "in")+has(two, "in") == 4 &&
			max(len(one.tasksOf()), len(two.tasksOf())) == 4
	})
	feed()
	c.verifyCounts("out", total)
	passed()

	two.stop()
	two = before[1].start(t, before[1].member(2), func(s *Settings) { s.AcceptTopologyChange = true })
	until(t, "all of the new sub-topology at who has it", func() bool { return has(one, "more") == 3 && has(two, "in") >= 2 })
	feed()
	c.verifyCounts("out", total)
	passed()
	one.stop()
	two.stop()
}
