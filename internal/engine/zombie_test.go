package engine

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace.dev/internal/task"
)

// TestCoordinatorMoves moves the coordinators of the group and of the transactions from broker to broker while records
// flow. What was asked at the wrong one is asked again.
func TestCoordinatorMoves(t *testing.T) {
	t.Parallel()
	c := newCluster(t, kfake.NumBrokers(3))
	c.topic("in", 4)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("moves"))
	p := r.start(t)
	total := 0
	for range 10 {
		c.feed("in", total, 200, 20)
		total += 200
		c.fake.RehashCoordinators()
		c.fake.ShufflePartitionLeaders()
		time.Sleep(30 * time.Millisecond)
	}
	c.verifyCounts("out", total)
	p.stop()
}

// TestAbortedRecordsAreInvisible makes many commits fail after everything was produced: the outputs and the changelog
// hold records of aborted transactions, and neither readers nor a restore may see them.
func TestAbortedRecordsAreInvisible(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 2)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("aborted"))
	var n atomic.Int64
	r.settings.Seams.At = func(point string) error {
		if point == "before-offsets" && n.Add(1)%3 == 0 {
			return fmt.Errorf("on purpose %d", n.Load())
		}
		return nil
	}
	p := r.start(t)
	total := 0
	for range 5 {
		c.feed("in", total, 200, 20)
		total += 200
		c.verifyCounts("out", total)
	}
	p.stop()
	if len(r.rebuilt) == 0 {
		t.Fatal("no commit failed")
	}
	aborted := 0
	for _, topic := range []string{"out", "aborted-counts-changelog"} {
		all, committed := c.countAll(topic), len(c.read(topic, 1))
		if all > committed {
			aborted++
		}
		t.Logf("%s: %d records, %d of them committed", topic, all, committed)
	}
	if aborted != 2 {
		t.Error("nothing aborted is in the topics; the test shows nothing")
	}
	r.settings.Seams.At = nil
	r.disk, r.settings.StateDir = &disk{}, t.TempDir()
	r.program.OpenState = r.disk.open
	p = r.start(t)
	c.feed("in", total, 200, 20)
	c.verifyCounts("out", total+200)
	p.stop()
}

// countAll counts the records of a topic, those of aborted transactions included.
func (c *cluster) countAll(topic string) int {
	c.t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.addrs...), kgo.ConsumeTopics(c.ns+topic),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadUncommitted()))
	if err != nil {
		c.t.Fatal(err)
	}
	defer cl.Close()
	n := 0
	for {
		ctx, cancel := context.WithTimeout(c.t.Context(), 300*time.Millisecond)
		fetches := cl.PollFetches(ctx)
		cancel()
		if len(fetches.Records()) == 0 && n > 0 {
			return n
		}
		n += len(fetches.Records())
	}
}

// TestRebalanceDuringCommit lets a member join at each point of a commit: what is being committed is, or is undone, and
// nothing is counted twice.
func TestRebalanceDuringCommit(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"before-flush", "after-flush", "before-offsets", "after-offsets", "before-end", "after-end",
		"before-commit-apply", "after-commit-apply"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			c.topic("in", 4)
			c.topic("out", 1)
			r := newRig(t, c, countProgram("during"))
			r.settings.WarmupLag = 1 << 40
			reached, goOn := make(chan struct{}), make(chan struct{})
			var armed atomic.Bool
			r.settings.Seams.At = func(at string) error {
				if at == point && armed.CompareAndSwap(true, false) {
					close(reached)
					<-goOn
				}
				return nil
			}
			one := r.start(t, r.member(1))
			c.feed("in", 0, 200, 20)
			c.verifyCounts("out", 200)
			armed.Store(true)
			c.feed("in", 200, 200, 20)
			<-reached
			r2 := newRig(t, c, countProgram("during"))
			r2.settings.WarmupLag = 1 << 40
			two := r2.start(t, r2.member(2))
			until(t, "the other member to ask for its share", func() bool {
				groups, err := c.adm.DescribeGroups(t.Context(), c.ns+"during")
				return err == nil && groups[c.ns+"during"].State == "PreparingRebalance"
			})
			close(goOn)
			until(t, "both to share the tasks", func() bool { return len(one.tasksOf()) == 2 && len(two.tasksOf()) == 2 })
			c.feed("in", 400, 200, 20)
			c.verifyCounts("out", 600)
			two.stop()
			one.stop()
		})
	}
}

// TestZombieCannotCommit holds a member in the middle of a commit until its tasks have gone to another one and were
// processed there. What it then tries to commit is refused.
func TestZombieCannotCommit(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"before-flush", "before-offsets", "before-end"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, kfake.GroupMinSessionTimeout(time.Second))
			c.topic("in", 2)
			c.topic("out", 1)
			r := newRig(t, c, countProgram("zombie"))
			r.settings.TransactionTimeout = 3 * time.Second
			r.settings.SessionTimeout = 2 * time.Second
			reached, goOn := make(chan struct{}), make(chan struct{})
			var armed, mute atomic.Bool
			r.settings.Seams.At = func(at string) error {
				if at == point && armed.CompareAndSwap(true, false) {
					mute.Store(true)
					close(reached)
					<-goOn
				}
				return nil
			}
			// The member is cut off as a whole: its heartbeats are not answered either.
			c.fake.ControlKey(int16(kmsg.Heartbeat), func(req kmsg.Request) (kmsg.Response, error, bool) {
				c.fake.KeepControl()
				hb, ok := req.(*kmsg.HeartbeatRequest)
				if !ok || !mute.Load() || hb.InstanceID == nil || *hb.InstanceID != c.ns+"zombie-1" {
					return nil, nil, false
				}
				return nil, fmt.Errorf("cut off"), true
			})
			one := r.start(t, r.member(1))
			c.feed("in", 0, 200, 20)
			c.verifyCounts("out", 200)
			armed.Store(true)
			c.feed("in", 200, 200, 20)
			<-reached
			r2 := newRig(t, c, countProgram("zombie"))
			r2.settings.TransactionTimeout, r2.settings.SessionTimeout = 3*time.Second, 2*time.Second
			two := r2.start(t, r2.member(2))
			until(t, "the other member to have all tasks", func() bool {
				ids := two.tasksOf()
				return len(ids) == 2 && !slices.Contains(ids, task.ID{})
			})
			c.feed("in", 400, 200, 20)
			c.verifyCounts("out", 600)
			mute.Store(false)
			close(goOn)
			c.feed("in", 600, 200, 20)
			c.verifyCounts("out", 800)
			two.stop()
			one.cancel()
			_ = one.wait() // it may have nothing any more that it could commit
			c.verifyCounts("out", 800)
		})
	}
}
