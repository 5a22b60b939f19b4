//go:build unix

package faults

import (
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace.dev/internal/engine"
)

// The tests of this file show that the harness is worth something: each breaks a rule of the protocol in the engine, runs
// a scenario that depends on that rule, and requires that the harness finds something wrong. The same scenario with the
// rule in place must be exact.

// withAndWithout runs a scenario with a defect, which the harness has to find, and without.
func withAndWithout(t *testing.T, d engine.Defect, scenario func(t *testing.T, d engine.Defect) (found []string)) {
	t.Helper()
	t.Parallel()
	t.Run("defect", func(t *testing.T) {
		t.Parallel()
		found := scenario(t, d)
		if len(found) == 0 {
			t.Fatal("the harness did not find the defect")
		}
		t.Log(found)
	})
	t.Run("none", func(t *testing.T) {
		t.Parallel()
		if found := scenario(t, engine.NoDefect); len(found) != 0 {
			t.Errorf("without the defect: %v", found)
		}
	})
}

// findings audits output and state.
func findings(c *cluster, f *feeder, dirs ...string) []string {
	var found []string
	if r := c.audit(f); !r.exact() {
		found = append(found, r.String())
	}
	for _, dir := range dirs {
		found = append(found, c.auditState(dir).ahead...)
	}
	return found[:min(len(found), 5)]
}

// TestHarnessCatchesApplyFirst writes rows to disk before their transaction commits, and kills in between.
func TestHarnessCatchesApplyFirst(t *testing.T) {
	withAndWithout(t, engine.ApplyFirst, func(t *testing.T, d engine.Defect) []string {
		c := newCluster(t, 2)
		f := c.feeder(20)
		dir := t.TempDir()
		f.send(200)
		stop := f.flow(400)
		for range 2 {
			spec := c.spec(dir)
			spec.Defect, spec.Flush = d, time.Hour
			spec.KillAt, spec.KillNth = "before-end", 3
			if end := spawn(t, spec).wait(30 * time.Second); end != "" {
				t.Fatalf("the member ended with %s", end)
			}
		}
		found := c.auditState(dir).ahead
		stop()
		m := spawn(t, c.spec(dir))
		c.settle(30 * time.Second)
		m.stop()
		return append(found[:min(len(found), 3)], findings(c, f, dir)...)
	})
}

// TestHarnessCatchesNoBarrier lets a member lose its tasks between the last request of a transaction and its end, and end
// it when the new owner is under way.
func TestHarnessCatchesNoBarrier(t *testing.T) {
	withAndWithout(t, engine.NoBarrier, func(t *testing.T, d engine.Defect) []string {
		c := newFake(t, 1)
		f := c.feeder(20)
		dirs := []string{filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")}

		zombie := c.setup(dirs[0], nil)
		zombie.config.SessionTimeout = 2 * time.Second
		var armed atomic.Bool
		var once sync.Once
		held, release := make(chan struct{}), make(chan struct{})
		zombie.seams.At = func(point string) error {
			if point == "before-end" && armed.Load() {
				once.Do(func() { close(held); <-release })
			}
			return nil
		}
		a := zombie.run(t)
		f.send(100)
		c.settle(15 * time.Second)
		armed.Store(true)
		f.send(100)
		<-held

		// The group gives the task away while the transaction is open, with everything in it but its end. The heir would fence
		// the one that is gone, which makes the transaction harmless: it must not be able to tell which that is.
		blind := c.broker.Cluster().Fault(kfake.Fault{
			Keys: []kmsg.Key{kmsg.ListTransactions}, Err: kerr.CoordinatorNotAvailable, Count: -1,
		})
		defer blind.Remove()
		heir := c.setup(dirs[1], nil)
		heir.config.SessionTimeout = 2 * time.Second
		heir.seams.Defect = d
		b := heir.run(t)
		expel := c.broker.Cluster().Fault(kfake.Fault{
			Keys: []kmsg.Key{kmsg.Heartbeat}, Err: kerr.UnknownMemberID, Count: -1,
			When: func(r kmsg.Request) bool {
				hb, ok := r.(*kmsg.HeartbeatRequest)
				return ok && hb.InstanceID != nil && *hb.InstanceID == instanceOf(t, zombie)
			},
		})
		time.Sleep(6 * time.Second)
		close(release)
		expel.Remove()
		until(t, 30*time.Second, "both members", func() bool { return !a.ended() && b.state() == "running" })
		f.send(200)
		c.settle(30 * time.Second)
		a.stop()
		b.stop()
		return findings(c, f, dirs...)
	})
}

// instanceOf returns the instance id that a member joins with.
func instanceOf(t *testing.T, s setup) string {
	t.Helper()
	app, err := newApp(s)
	if err != nil {
		t.Fatal(err)
	}
	return app.Config().InstanceID
}

// TestHarnessCatchesIgnoredSendErrors commits although a record was refused.
func TestHarnessCatchesIgnoredSendErrors(t *testing.T) {
	withAndWithout(t, engine.IgnoreSendErrors, func(t *testing.T, d engine.Defect) []string {
		c := newFake(t, 2)
		f := c.feeder(20)
		dir := t.TempDir()
		s := c.setup(dir, nil)
		s.seams.Defect = d
		l := s.run(t)
		f.send(100)
		c.settle(15 * time.Second)
		refuse := c.broker.Cluster().Fault(kfake.Fault{
			Keys: []kmsg.Key{kmsg.Produce}, Topic: c.out, Partitions: []int32{0}, Err: kerr.InvalidRecord,
		})
		f.send(100)
		until(t, 10*time.Second, "the refusal", func() bool { return refuse.Hits() > 0 })
		f.send(100)
		c.settle(15 * time.Second)
		l.stop()
		return findings(c, f, dir)
	})
}

// TestHarnessCatchesPolledOffsets commits the offsets of what was fetched, and dies while some of it still waits.
func TestHarnessCatchesPolledOffsets(t *testing.T) {
	withAndWithout(t, engine.CommitPolled, func(t *testing.T, d engine.Defect) []string {
		c := newCluster(t, 1)
		f := c.feeder(20)
		dir := t.TempDir()
		s := c.setup(dir, func(string, []byte) { time.Sleep(2 * time.Millisecond) })
		var commits atomic.Int64
		s.seams = engine.Seams{Defect: d, At: func(point string) error {
			if point == "after-commit-apply" && commits.Add(1) == 3 {
				return engine.ErrCrash
			}
			return nil
		}}
		f.send(3000)
		if err := s.run(t).end(30 * time.Second); !errors.Is(err, engine.ErrCrash) {
			t.Fatal(err)
		}
		l := c.setup(dir, nil).run(t)
		c.settle(15 * time.Second)
		l.stop()
		return findings(c, f, dir)
	})
}
