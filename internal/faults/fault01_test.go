//go:build unix

package faults

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// killPoints are where a process may die: points of the engine's protocol, and requests on the wire, when they were
// sent and when they were answered: Produce (0), AddOffsetsToTxn (25), EndTxn (26), TxnOffsetCommit (28), JoinGroup
// (11), SyncGroup (14), InitProducerId (22), OffsetFetch (9).
var killPoints = []string{
	"polled", "processed", "before-flush", "after-flush", "before-offsets", "after-offsets", "before-end", "after-end",
	"before-commit-apply", "after-commit-apply", "flush-start", "flush-mid", "flush-end",
	"restore-start", "restore-mid", "restore-end",
	"write:0", "read:0", "write:25", "read:25", "write:28", "read:28", "write:26", "read:26",
	"write:11", "write:14", "read:14", "write:22", "read:9",
}

// atStart tells whether every start passes the point, so that a process killed there would never get any further.
func atStart(point string) bool {
	return strings.HasPrefix(point, "restore") ||
		slices.Contains([]string{"write:11", "write:14", "read:14", "write:22", "read:9", "write:0", "read:0"}, point)
}

// TestFault01KillAtEachPoint kills a process with SIGKILL when it passes a point of the protocol, and starts it again,
// over and over while records flow. Nothing may be lost, repeated or out of order, and no local state wiped.
func TestFault01KillAtEachPoint(t *testing.T) {
	t.Parallel()
	kills := 4
	switch {
	case onKafka():
		kills = 20
	case testing.Short():
		kills = 1
	}
	kills = fromEnv(t, "FAULTS_KILLS", kills)
	for _, point := range killPoints {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 2)
			f := c.feeder(40)
			dir := t.TempDir()
			f.send(200)
			stop := f.flow(400)
			var members []*member
			for i := range kills {
				spec := c.spec(dir)
				spec.KillAt, spec.KillNth = point, 1+rand.IntN(4)
				switch {
				case atStart(point):
					spec.KillNth = 1
				case point == "processed":
					// It is passed in every cycle, also while tasks open: three deaths in a row inside that
					// moment count as a crash loop, which costs a restore.
					spec.KillNth += 15
				}
				m := spawn(t, spec)
				members = append(members, m)
				if end := m.wait(40 * time.Second); end != "" {
					t.Fatalf("the member ended with %s", end)
				}
				if atStart(point) && i%2 == 0 {
					// Some progress in between, killed at any time.
					m := spawn(t, c.spec(dir))
					members = append(members, m)
					m.waitRunning(30 * time.Second)
					time.Sleep(time.Duration(50+rand.IntN(200)) * time.Millisecond)
					m.kill()
				}
			}
			c.mustMatchChangelog(t, dir)
			m := spawn(t, c.spec(dir))
			members = append(members, m)
			m.waitRunning(30 * time.Second)
			stop()
			c.settle(30 * time.Second)
			m.stop()
			c.mustBeExact(f)
			if n := c.mustMatchChangelog(t, dir); n != 2 {
				t.Errorf("state of %d tasks, want 2", n)
			}
			var starts []time.Duration
			for _, m := range members {
				if m.wiped() {
					t.Errorf("local state was wiped:\n%s", m.transcript())
				}
				if d, ok := m.running(); ok {
					starts = append(starts, d)
				}
			}
			slices.Sort(starts)
			t.Logf("%d kills, %d records, start to running: median %v, most %v", kills, f.total,
				starts[len(starts)/2].Round(time.Millisecond), starts[len(starts)-1].Round(time.Millisecond))
		})
	}
}

// killLoop kills one of the members every so often while records flow, and starts it again at once, as a supervisor
// would. It returns how long after the last kill everything was processed.
func killLoop(t *testing.T, c *cluster, members int, every, total time.Duration, rate int, defaults bool) time.Duration {
	t.Helper()
	f := c.feeder(1000)
	dirs := make([]string, members)
	at := make([]*member, members)
	start := func(i int) *member {
		spec := c.spec(dirs[i])
		spec.Defaults = defaults
		return spawn(t, spec)
	}
	for i := range members {
		dirs[i] = filepath.Join(t.TempDir(), fmt.Sprint(i))
		at[i] = start(i)
	}
	for _, m := range at {
		m.waitRunning(60 * time.Second)
	}
	stop := f.flow(rate)
	kills := 0
	var all []*member
	var last time.Time
	for began := time.Now(); time.Since(began) < total; {
		time.Sleep(every)
		i := rand.IntN(members)
		if at[i].ended() {
			t.Fatalf("member %d ended by itself: %s", i, at[i].transcript())
		}
		at[i].kill()
		all = append(all, at[i])
		last = time.Now()
		kills++
		at[i] = start(i)
	}
	stop()
	// It may be that nothing was left to do when the last one was killed: being caught up includes being there again.
	for _, m := range at {
		m.waitRunning(2 * time.Minute)
	}
	c.settle(2 * time.Minute)
	caughtUp := time.Since(last)
	for _, m := range append(all, at...) {
		if m.wiped() {
			t.Errorf("local state was wiped:\n%s", m.transcript())
		}
	}
	for _, m := range at {
		m.stop()
	}
	c.mustBeExact(f)
	tasks := 0
	for _, dir := range dirs {
		tasks += c.mustMatchChangelog(t, dir)
	}
	t.Logf("%d members, %d kills, %d records, %d tasks on disk: caught up %v after the last kill", members, kills,
		f.total, tasks, caughtUp.Round(time.Millisecond))
	return caughtUp
}

// TestFault01KillLoop kills members at any time. After the last kill one member is caught up within ten seconds.
func TestFault01KillLoop(t *testing.T) {
	if !onKafka() {
		t.Parallel()
	}
	every, total, rate := 400*time.Millisecond, seconds(t, 6), 2000
	switch {
	case onKafka():
		every, total, rate = 2*time.Second, seconds(t, 60), 5000
	case testing.Short():
		total = 2 * time.Second
	}
	for _, members := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d members", members), func(t *testing.T) {
			if !onKafka() {
				t.Parallel()
			}
			c := newCluster(t, 4)
			took := killLoop(t, c, members, every, total, rate, onKafka())
			if members == 1 && took > 10*time.Second {
				t.Errorf("caught up %v after the last kill, want less than 10 s", took)
			}
		})
	}
}
