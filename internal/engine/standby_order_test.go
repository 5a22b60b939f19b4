package engine

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"tailrace.dev/internal/task"
	"tailrace.dev/state"
	"tailrace.dev/state/badger"
)

// onBadger gives the rig's processes real databases.
func (r *rig) onBadger() {
	r.program.OpenState = func(_ task.ID, dir string) (state.Backend, error) {
		return badger.Open(dir, badger.Options{NoSync: true})
	}
}

// standbysCaughtUp waits until the leader has given the process copies of tasks, and these have all that is committed.
func (p *process) standbysCaughtUp(c *cluster, changelog string, n int) {
	p.t.Helper()
	var ids []task.ID
	until(p.t, fmt.Sprintf("%d copies", n), func() bool {
		ids = ids[:0]
		if s := p.session(); s != nil {
			for _, st := range s.standbys.snapshot() {
				ids = append(ids, st.ID)
			}
		}
		return len(ids) == n
	})
	p.caughtUp(c, changelog, ids...)
}

// TestStandbysAreOrdered runs members that are to keep a copy of each task, with databases on disk. One dies and never
// comes back, and then another one with its disk does.
func TestStandbysAreOrdered(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 4)
	c.topic("out", 1)
	const changelog = "ordered-counts-changelog"
	rigs := roster(t, c, countProgram("ordered"), 2)
	m := &members{c: c}
	var of [2]*process
	start := func(i int) {
		of[i] = rigs[i].start(t, rigs[i].member(i+1), func(s *Settings) { s.Standbys, s.WarmupLag, s.MaxWarmups = 1, 100, 2 })
	}
	for i, r := range rigs {
		r.onBadger()
		start(i)
	}
	until(t, "tasks at both", func() bool { return len(of[0].tasksOf()) == 2 && len(of[1].tasksOf()) == 2 })
	m.feed(1000)
	c.verifyCounts("out", m.total)
	for _, p := range of {
		p.standbysCaughtUp(c, changelog, 2)
	}
	lost := of[0].tasksOf()
	rigs[1].forget()
	of[0].session().post(func() error { return fmt.Errorf("%w: killed", ErrCrash) })
	if err := of[0].wait(); !errors.Is(err, ErrCrash) {
		t.Fatal(err)
	}
	died := time.Now()
	m.feed(500)
	until(t, "the takeover", func() bool { return len(of[1].tasksOf()) == 4 })
	t.Logf("the tasks resumed after %v, with a session timeout of %v", time.Since(died), of[1].e.cfg.SessionTimeout)
	if rows, all := rigs[1].restoredRows(lost...); rows != 0 || !all {
		t.Errorf("restored %d rows, all tasks: %v", rows, all)
	}
	m.feed(500)
	c.verifyCounts("out", m.total)

	// The dead member comes back with its old rows. What moves to it is warm: it reads a few rows at most.
	rigs[0].forget()
	start(0)
	until(t, "tasks to move back", func() bool {
		m.feed(20)
		return len(of[0].tasksOf()) == 2 && len(of[1].tasksOf()) == 2
	})
	back := of[0].tasksOf()
	if rows, all := rigs[0].restoredRows(back...); rows > 200 || !all {
		t.Errorf("restored %d rows, all tasks: %v", rows, all)
	}
	for _, p := range of {
		p.standbysCaughtUp(c, changelog, 2)
	}
	m.feed(500)
	c.verifyCounts("out", m.total)
	for i, p := range of {
		p.stop()
		if len(rigs[i].rebuilt) > 0 {
			t.Errorf("rebuilt: %v", rigs[i].rebuilt)
		}
	}
}

// TestStandbyStaysYoung keeps a copy of a task that has nothing to do for longer than the changelog keeps deletions: the
// copy is not too old for that, because it knows that it misses nothing.
func TestStandbyStaysYoung(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	var ahead atomic.Int64
	m := newMembers(t, c, "young", 2, func(s *Settings) {
		s.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	id := m.tasks[0][0]
	m.of[1].follow(id)
	m.feed(200)
	c.verifyCounts("out", m.total)
	m.of[1].caughtUp(c, "young-counts-changelog", id)
	ahead.Store(int64(48 * time.Hour))
	wall := func() int64 {
		b := m.rigs[1].disk.backend(id)
		if b == nil {
			return 0
		}
		store, err := b.Register(countStore)
		if err != nil {
			t.Fatal(err)
		}
		pos, _, err := b.Position(store)
		if err != nil {
			t.Fatal(err)
		}
		return pos.WallMillis
	}
	until(t, "the copy to say that it is of today", func() bool {
		return wall() > time.Now().Add(47*time.Hour).UnixMilli()
	})
	for _, p := range m.of {
		p.stop()
	}
}
