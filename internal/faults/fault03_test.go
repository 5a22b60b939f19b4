//go:build unix

package faults

import (
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestFault03Zombie stops a process for longer than its session lasts, so that another takes its tasks over, and lets it
// go on where it was: in the middle of anything. It must notice, rejoin or end within seconds, and harm nothing.
func TestFault03Zombie(t *testing.T) {
	t.Parallel()
	pauses, session := 2, 2*time.Second
	switch {
	case onKafka():
		pauses, session = 20, 6*time.Second
	case testing.Short():
		pauses = 1
	}
	c := newCluster(t, 4)
	f := c.feeder(100)
	dirs := []string{filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")}
	start := func(i int) *member {
		spec := c.spec(dirs[i])
		spec.Session = session
		return spawn(t, spec)
	}
	at := []*member{start(0), start(1)}
	for _, m := range at {
		m.waitRunning(30 * time.Second)
	}
	stop := f.flow(1000)
	ends := 0
	var slowest time.Duration
	for n := range pauses {
		time.Sleep(time.Duration(500+rand.IntN(500)) * time.Millisecond)
		z := n % 2
		at[z].signal(syscall.SIGSTOP)
		time.Sleep(session * 3 / 2)
		// The other must have the tasks by now, and process them, or be about to.
		c.progress(2*session + 20*time.Second)
		said := len(at[z].said(saysTasks))
		at[z].signal(syscall.SIGCONT)
		woke := time.Now()
		until(t, 30*time.Second, "the zombie to rejoin or end", func() bool {
			return at[z].ended() || len(at[z].said(saysTasks)) > said
		})
		slowest = max(slowest, time.Since(woke))
		if at[z].ended() {
			ends++
			t.Logf("the zombie ended: %s", at[z].wait(0))
			at[z] = start(z)
		}
		c.progress(20 * time.Second)
	}
	stop()
	c.settle(60 * time.Second)
	for _, m := range at {
		m.stop()
		if m.wiped() {
			t.Error("local state was wiped")
		}
	}
	c.mustBeExact(f)
	for _, dir := range dirs {
		c.mustMatchChangelog(t, dir)
	}
	t.Logf("%d pauses of %v, %d records, the zombie ended %d times; back after at most %v", pauses, session*3/2, f.total,
		ends, slowest.Round(time.Millisecond))
	if slowest > 10*time.Second {
		t.Errorf("a zombie took %v to rejoin or end", slowest)
	}
}
