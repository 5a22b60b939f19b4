package engine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/internal/task"
	"tailrace.dev/state"
)

// session returns the present session of a process, or nil.
func (p *process) session() *session {
	p.e.board.mu.Lock()
	defer p.e.board.mu.Unlock()
	return p.e.board.session
}

// follow makes the process keep copies of tasks, whatever the assignment says.
func (p *process) follow(ids ...task.ID) {
	p.t.Helper()
	until(p.t, "a session", func() bool { return p.session() != nil })
	s := p.session()
	s.post(func() error { s.standbys.set(ids); return nil })
}

// caughtUp waits until the process has received all that is committed for the tasks.
func (p *process) caughtUp(c *cluster, changelog string, ids ...task.ID) {
	p.t.Helper()
	ends, err := c.adm.ListCommittedOffsets(p.t.Context(), c.ns+changelog)
	if err != nil {
		p.t.Fatal(err)
	}
	for _, id := range ids {
		end, _ := ends.Lookup(c.ns+changelog, id.Partition)
		until(p.t, fmt.Sprintf("the standby of %s to come to %d", id, end.Offset), func() bool {
			s := p.session()
			if s == nil {
				return false
			}
			for _, st := range s.standbys.snapshot() {
				if st.ID == id && st.Position >= end.Offset {
					return true
				}
			}
			return false
		})
	}
}

// tasksOf returns the tasks that a process runs now.
func (p *process) tasksOf() []task.ID {
	var ids []task.ID
	for _, t := range p.e.Status().Tasks {
		if t.Role == RoleActive && t.State == TaskRunning {
			ids = append(ids, t.Task)
		}
	}
	return ids
}

// members are two processes that share the tasks of an application.
type members struct {
	c     *cluster
	rigs  [2]*rig
	of    [2]*process
	tasks [2][]task.ID
	total int
}

func (m *members) feed(n int) {
	m.c.feed("in", m.total, n, 40)
	m.total += n
}

// newMembers runs two members until they have half of the tasks each.
func newMembers(t *testing.T, c *cluster, app string, partitions int32, change ...func(*Settings)) *members {
	t.Helper()
	c.topic("in", partitions)
	c.topic("out", 1)
	m := &members{c: c}
	for i := range m.rigs {
		m.rigs[i] = newRig(t, c, countProgram(app))
		m.rigs[i].settings.StateDir = t.TempDir() + "/" + app
		m.rigs[i].settings.Standbys = 1 // so that no late rebalance ends what follow began
		for _, f := range change {
			f(&m.rigs[i].settings)
		}
		m.of[i] = m.rigs[i].start(t, m.rigs[i].member(i+1))
		if i == 0 {
			until(t, "the first member's tasks", func() bool { return len(m.of[0].tasksOf()) == int(partitions) })
			m.feed(400)
		}
	}
	until(t, "both members' tasks", func() bool {
		return len(m.of[0].tasksOf()) == int(partitions)/2 && len(m.of[1].tasksOf()) == int(partitions)/2
	})
	for i, p := range m.of {
		m.tasks[i] = p.tasksOf()
	}
	return m
}

// forget drops what was noted of restores.
func (r *rig) forget() { r.note(func() { clear(r.restored) }) }

func (r *rig) restoredRows(ids ...task.ID) (n int64, all bool) {
	all = true
	r.note(func() {
		for _, id := range ids {
			rows, ok := r.restored[id]
			n += rows
			all = all && ok
		}
	})
	return n, all
}

// TestStandbyTakesOver kills a member for good: the other one goes on with its copies, without restoring them, as soon as
// the session of the dead one is over.
func TestStandbyTakesOver(t *testing.T) {
	t.Parallel()
	for _, memory := range []bool{false, true} {
		t.Run(map[bool]string{false: "on disk", true: "in memory"}[memory], func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			m := newMembers(t, c, "takeover", 4, func(s *Settings) { s.InMemory = memory })
			m.feed(600)
			m.of[1].follow(m.tasks[0]...)
			m.feed(600)
			c.verifyCounts("out", m.total)
			m.of[1].caughtUp(c, "takeover-counts-changelog", m.tasks[0]...)
			m.rigs[1].forget()

			s := m.of[0].session()
			s.post(func() error { return fmt.Errorf("%w: killed", ErrCrash) })
			if err := m.of[0].wait(); !errors.Is(err, ErrCrash) {
				t.Fatal(err)
			}
			died := time.Now()
			m.feed(400)
			until(t, "the takeover", func() bool { return len(m.of[1].tasksOf()) == 4 })
			took := time.Since(died)
			c.verifyCounts("out", m.total)
			if rows, all := m.rigs[1].restoredRows(m.tasks[0]...); rows != 0 || !all {
				t.Errorf("restored %d rows, all tasks: %v", rows, all)
			}
			t.Logf("the tasks resumed after %v, with a session timeout of %v", took, m.rigs[1].settings.SessionTimeout)
			if limit := m.rigs[1].settings.SessionTimeout + 4*time.Second; took > limit { // the machine may be loaded
				t.Errorf("the tasks resumed after %v, want less than %v", took, limit)
			}
			m.of[1].stop()
			if len(m.rigs[1].rebuilt) > 0 {
				t.Errorf("rebuilt: %v", m.rigs[1].rebuilt)
			}
		})
	}
}

// TestStandbyOfFormerActive gives tasks up that stay as copies, and back again: neither way reads more than the tail.
func TestStandbyOfFormerActive(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 4)
	c.topic("out", 1)
	r, other := newRig(t, c, countProgram("demote")), newRig(t, c, countProgram("demote"))
	m := &members{c: c}
	one := r.start(t, r.member(1))
	m.feed(1000)
	until(t, "the first member's tasks", func() bool { return len(one.tasksOf()) == 4 })
	c.verifyCounts("out", m.total)
	all := one.tasksOf()
	leave := func(s *Settings) { s.LeaveOnStop = true }
	two := other.start(t, other.member(2), leave)
	until(t, "the second member's tasks", func() bool {
		one.follow(all...) // what is active is left alone until it is given up
		return len(two.tasksOf()) == 2 && len(one.tasksOf()) == 2
	})
	moved := two.tasksOf()
	one.follow(moved...)
	m.feed(1000)
	c.verifyCounts("out", m.total)
	one.caughtUp(c, "demote-counts-changelog", moved...)
	r.forget()
	two.stop()
	until(t, "the tasks to come back", func() bool { return len(one.tasksOf()) == 4 })
	if rows, restored := r.restoredRows(moved...); rows != 0 || !restored {
		t.Errorf("restored %d rows, all tasks: %v", rows, restored)
	}
	m.feed(500)
	c.verifyCounts("out", m.total)
	one.stop()
	if len(r.rebuilt)+len(other.rebuilt) > 0 {
		t.Errorf("rebuilt: %v %v", r.rebuilt, other.rebuilt)
	}
}

// rowsOf returns the rows of a store as a map.
func rowsOf(t *testing.T, b state.Backend) map[string]string {
	t.Helper()
	id, err := b.Register(countStore)
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	cur := b.Scan(id, nil, nil, false)
	defer cur.Close()
	for cur.Next() {
		rows[string(cur.Key())] = string(cur.Value())
	}
	if err := cur.Err(); err != nil {
		t.Fatal(err)
	}
	return rows
}

// fold returns what a changelog partition says that the rows are, and the offset up to which.
func (c *cluster) fold(changelog string, partition int32) (rows map[string]string, end int64) {
	c.t.Helper()
	ends, err := c.adm.ListCommittedOffsets(c.t.Context(), c.ns+changelog)
	if err != nil {
		c.t.Fatal(err)
	}
	o, _ := ends.Lookup(c.ns+changelog, partition)
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.addrs...), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{
			c.ns + changelog: {partition: kgo.NewOffset().AtStart()},
		}))
	if err != nil {
		c.t.Fatal(err)
	}
	defer cl.Close()
	rows = map[string]string{}
	for next := int64(0); next < o.Offset; {
		for _, r := range cl.PollFetches(c.t.Context()).Records() {
			next = r.Offset + 1
			switch {
			case r.Offset >= o.Offset || r.Attrs.IsControl() || isMark(r.Key):
			case r.Value == nil:
				delete(rows, string(r.Key))
			default:
				rows[string(r.Key)] = string(r.Value)
			}
		}
	}
	return rows, o.Offset
}

// TestStandbyLeavesOutAborted follows a changelog with aborted transactions, an undecided one, and barriers in it.
func TestStandbyLeavesOutAborted(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	m := newMembers(t, c, "aborts", 2)
	id := m.tasks[0][0]
	const changelog = "aborts-counts-changelog"
	m.of[1].follow(id)
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.addrs...), kgo.TransactionalID("intruder"),
		kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	write := func(key, value string) {
		r := &kgo.Record{Topic: c.ns + changelog, Partition: id.Partition, Key: []byte("\x01" + key), Value: []byte(value)}
		if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	begin := func() {
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 20 {
		begin()
		write("aborted", "rubbish")
		write(fmt.Sprint("aborted-", i), "rubbish")
		if err := cl.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
			t.Fatal(err)
		}
		m.feed(20)
	}
	c.verifyCounts("out", m.total)
	begin()
	write("undecided", "rubbish")
	m.of[1].caughtUp(c, changelog, id)
	rows, end := c.fold(changelog, id.Partition)
	// Whoever takes the backend has all that was received.
	s := m.of[1].session()
	got := s.standbys.take(t.Context(), id)
	if got == nil {
		t.Fatal("no backend")
	}
	if have := rowsOf(t, got); fmt.Sprint(have) != fmt.Sprint(rows) {
		t.Errorf("rows %q, want %q", have, rows)
	}
	// The rows say what wrote them, as those of an active task do.
	shapes, err := got.Register(manifestStore)
	if err != nil {
		t.Fatal(err)
	}
	if shape, err := got.Get(shapes, manifestKey(countStore)); err != nil || shape == nil {
		t.Errorf("no manifest: %v", err)
	}
	store, err := got.Register(countStore)
	if err != nil {
		t.Fatal(err)
	}
	if pos, ok, err := got.Position(store); err != nil || !ok || pos.Next != end {
		t.Errorf("position %v, %v, %v, want %d", pos, ok, err, end)
	}
	if err := s.standbys.release(id, got, true); err != nil {
		t.Fatal(err)
	}
	if err := cl.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
		t.Fatal(err)
	}
	m.feed(100)
	c.verifyCounts("out", m.total)
	m.of[1].caughtUp(c, changelog, id)
	for _, p := range m.of {
		p.stop()
	}
}

// TestStandbyHeals breaks copies in every way there is: each comes back by itself, and no active task notices.
func TestStandbyHeals(t *testing.T) {
	t.Parallel()
	const changelog = "heals-counts-changelog"
	broken := map[string]func(t *testing.T, c *cluster, m *members, id task.ID){
		"directory wiped": func(t *testing.T, _ *cluster, m *members, id task.ID) {
			s := m.of[1].session()
			backend := s.standbys.take(t.Context(), id)
			dir := m.rigs[1].settings.StateDir + "-2/" + taskPath(id)
			if err := errors.Join(backend.Close(), os.RemoveAll(dir)); err != nil {
				t.Fatal(err)
			}
			if err := s.standbys.release(id, nil, false); err != nil {
				t.Fatal(err)
			}
		},
		"state damaged": func(t *testing.T, _ *cluster, m *members, id task.ID) { m.hurt(1, id, state.ErrCorrupt) },
		"disk full":     func(t *testing.T, _ *cluster, m *members, id task.ID) { m.hurt(1, id, state.ErrNoSpace) },
		"other error":   func(t *testing.T, _ *cluster, m *members, id task.ID) { m.hurt(1, id, errors.New("injected")) },
		"records deleted": func(t *testing.T, c *cluster, m *members, id task.ID) {
			// Deleted behind the back of a copy that was away meanwhile.
			s := m.of[1].session()
			backend := s.standbys.take(t.Context(), id)
			m.feed(200)
			c.verifyCounts("out", m.total)
			_, end := c.fold(changelog, id.Partition)
			if _, err := c.adm.DeleteRecords(t.Context(), kadm.Offsets{c.ns + changelog: {id.Partition: kadm.Offset{
				Topic: c.ns + changelog, Partition: id.Partition, At: end,
			}}}); err != nil {
				t.Fatal(err)
			}
			if err := s.standbys.release(id, backend, true); err != nil {
				t.Fatal(err)
			}
		},
	}
	for what, hurt := range broken {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			m := newMembers(t, c, "heals", 2)
			id := m.tasks[0][0]
			m.of[1].follow(id)
			m.feed(200)
			c.verifyCounts("out", m.total)
			m.of[1].caughtUp(c, changelog, id)
			hurt(t, c, m, id)
			m.feed(200)
			c.verifyCounts("out", m.total)
			until(t, "the errors", func() bool { return m.rigs[1].disk.healthy(id) })
			m.of[1].caughtUp(c, changelog, id)
			if what != "records deleted" {
				rows, _ := c.fold(changelog, id.Partition)
				got := m.of[1].session().standbys.take(t.Context(), id)
				if got == nil {
					t.Fatal("no backend")
				}
				if have := rowsOf(t, got); fmt.Sprint(have) != fmt.Sprint(rows) {
					t.Errorf("rows %q, want %q", have, rows)
				}
				if err := m.of[1].session().standbys.release(id, got, true); err != nil {
					t.Fatal(err)
				}
			}
			for i, p := range m.of {
				p.stop()
				if len(m.rigs[i].rebuilt) > 0 {
					t.Errorf("rebuilt: %v", m.rigs[i].rebuilt)
				}
			}
		})
	}
}

// hurt makes the next writes of a member's copy fail.
func (m *members) hurt(member int, id task.ID, err error) {
	m.rigs[member].disk.mu.Lock()
	defer m.rigs[member].disk.mu.Unlock()
	m.rigs[member].disk.failing = map[task.ID][]error{id: {err, err}}
}

// TestStandbyCrashes kills two members that stand by for each other at random points, again and again.
func TestStandbyCrashes(t *testing.T) {
	t.Parallel()
	points := []string{
		"standby-write", "standby-written", "restore-mid", "restore-end", "before-end", "after-end", "flush-end", "polled",
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	c := newCluster(t)
	m := newMembers(t, c, "chaos", 4)
	all := append(append([]task.ID{}, m.tasks[0]...), m.tasks[1]...)
	for i := range m.of {
		m.of[i].stop()
	}
	var ends [2]time.Time // when a member is killed that has not come to its point
	live := func(i int, point string, nth int) {
		ends[i] = time.Now().Add(time.Duration(300+rng.IntN(1500)) * time.Millisecond)
		m.of[i] = m.rigs[i].start(t, m.rigs[i].member(i+1), func(s *Settings) {
			if point != "" {
				s.Seams.At = crashAt(point, nth)
			}
		})
	}
	for i := range m.of {
		live(i, points[rng.IntN(len(points))], 1+rng.IntN(10))
	}
	crashes := 0
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	for began := time.Now(); crashes < rounds && time.Since(began) < 40*time.Second; {
		for i, p := range m.of {
			select {
			case <-p.done:
				if !errors.Is(p.err, ErrCrash) {
					t.Fatal(p.err)
				}
				crashes++
				live(i, points[rng.IntN(len(points))], 1+rng.IntN(20))
			default:
				s := p.session()
				if s == nil {
					continue
				}
				p.follow(all...)
				if time.Now().After(ends[i]) {
					s.post(func() error { return fmt.Errorf("%w: killed", ErrCrash) })
				}
			}
		}
		m.feed(20)
		time.Sleep(10 * time.Millisecond)
	}
	for i, p := range m.of {
		p.cancel()
		if err := p.wait(); err != nil && !errors.Is(err, ErrCrash) {
			t.Fatal(err)
		}
		live(i, "", 0)
	}
	m.feed(100)
	c.verifyCounts("out", m.total)
	for _, p := range m.of {
		p.follow(all...)
	}
	for i, p := range m.of {
		var copies []task.ID
		until(t, "the tasks", func() bool { return len(m.of[0].tasksOf())+len(m.of[1].tasksOf()) == 4 })
		mine := map[task.ID]bool{}
		for _, id := range p.tasksOf() {
			mine[id] = true
		}
		for _, id := range all {
			if !mine[id] {
				copies = append(copies, id)
			}
		}
		p.caughtUp(c, "chaos-counts-changelog", copies...)
		for _, id := range copies {
			rows, _ := c.fold("chaos-counts-changelog", id.Partition)
			b := p.session().standbys.take(t.Context(), id)
			if b == nil {
				t.Fatalf("member %d has no copy of %s", i, id)
			}
			if have := rowsOf(t, b); fmt.Sprint(have) != fmt.Sprint(rows) {
				t.Errorf("member %d, task %s: rows %q, want %q", i, id, have, rows)
			}
			if err := p.session().standbys.release(id, b, true); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("%d crashes, %d records", crashes, m.total)
	for _, p := range m.of {
		p.stop()
	}
}

// TestRestoreGoesOn takes a task away in the middle of its restore and gives it back: it goes on where it was.
func TestRestoreGoesOn(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 2)
	c.topic("out", 1)
	const rows = 60_000
	r := newRig(t, c, countProgram("goeson"))
	p := r.start(t)
	c.feed("in", 0, rows, rows)
	c.verifyCounts("out", rows)
	p.stop()
	r.disk.clear()

	// Small fetches, and a long wait after the first of them: the restore is in its middle when a member comes.
	slow := make(chan struct{})
	first := make(chan struct{}, 100)
	other := newRig(t, c, countProgram("goeson"))
	p = r.start(t, r.member(1), func(s *Settings) {
		s.FetchMaxPartitionBytes, s.FetchMaxBytes = 64<<10, 64<<10
		s.Seams.At = func(at string) error {
			if at == "restore-mid" {
				select {
				case first <- struct{}{}:
				default:
				}
				<-slow
			}
			return nil
		}
	})
	<-first
	two := other.start(t, r.member(2), func(s *Settings) { s.LeaveOnStop = true })
	until(t, "the second member's task", func() bool {
		s := p.session()
		return s != nil && len(two.e.Status().Tasks) == 1
	})
	close(slow)
	until(t, "both tasks", func() bool { return len(p.tasksOf()) == 1 && len(two.tasksOf()) == 1 })
	moved := two.tasksOf()[0]
	before := r.disk.position(t, moved)
	if before <= 0 {
		t.Fatalf("the restore that was broken off left position %d", before)
	}
	ends, err := c.adm.ListEndOffsets(t.Context(), r.program.Subs[0].Stores[0].Changelog)
	if err != nil {
		t.Fatal(err)
	}
	end, _ := ends.Lookup(r.program.Subs[0].Stores[0].Changelog, moved.Partition)
	if before >= end.Offset {
		t.Fatalf("the restore was not broken off: position %d of %d", before, end.Offset)
	}
	r.forget()
	two.stop()
	until(t, "the task to come back", func() bool { return len(p.tasksOf()) == 2 })
	if n, _ := r.restoredRows(moved); n == 0 || n > end.Offset-before {
		t.Errorf("restored %d rows, want those from %d to %d", n, before, end.Offset)
	}
	c.feed("in", rows, 1000, rows)
	c.verifyCounts("out", rows+1000)
	p.stop()
}

// TestOthersRunWhileOneRestores holds up one restore, and finds that the other task processes meanwhile.
func TestOthersRunWhileOneRestores(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 2)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("meanwhile"))
	p := r.start(t)
	c.feed("in", 0, 1000, 40)
	c.verifyCounts("out", 1000)
	p.stop()
	r.disk.clear()
	hold, once := make(chan struct{}), make(chan struct{}, 1)
	once <- struct{}{}
	p = r.start(t, func(s *Settings) {
		s.Seams.At = func(at string) error {
			if at == "restore-mid" {
				select {
				case <-once:
					<-hold
				default:
				}
			}
			return nil
		}
	})
	until(t, "one of two tasks", func() bool { return len(p.tasksOf()) == 1 })
	before := c.committed("meanwhile", "in")
	c.feed("in", 1000, 400, 40)
	until(t, "its records to be processed", func() bool { return c.committed("meanwhile", "in") > before })
	if n := len(p.tasksOf()); n != 1 {
		t.Errorf("%d tasks run", n)
	}
	close(hold)
	c.verifyCounts("out", 1400)
	p.stop()
}
