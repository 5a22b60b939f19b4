package engine

import (
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"

	"tailrace.dev/internal/task"
)

// deleteBelow removes the records of a partition below an offset.
func (c *cluster) deleteBelow(topic string, offset int64) {
	c.t.Helper()
	o := kadm.Offsets{}
	o.Add(kadm.Offset{Topic: c.ns + topic, Partition: 0, At: offset, LeaderEpoch: -1})
	resp, err := c.adm.DeleteRecords(c.t.Context(), o)
	if err == nil {
		err = resp.Error()
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// TestExpiredWhileStopped deletes records that were not processed, while nothing runs. Without a policy the start is
// refused; with one it goes on where it says, says so, and counts what is lost.
func TestExpiredWhileStopped(t *testing.T) {
	t.Parallel()
	for _, policy := range []OutOfRange{OutOfRangeFail, OutOfRangeEarliest, OutOfRangeLatest} {
		t.Run(policy.String(), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			c.topic("in", 1)
			c.topic("out", 1)
			r := newRig(t, c, countProgram("expired"))
			p := r.start(t)
			c.feed("in", 0, 100, 1)
			c.verifyCounts("out", 100)
			p.stop()
			c.feed("in", 100, 100, 1)
			c.deleteBelow("in", 150)
			typed := isKind(t, r.start(t).wait(), ErrOffsetOutOfRange)
			if typed.Partition != 0 || typed.Topic != c.ns+"in" {
				t.Errorf("error: %v", typed)
			}
			if policy == OutOfRangeFail {
				_ = isKind(t, r.start(t).wait(), ErrOffsetOutOfRange)
				return
			}
			var moves []OffsetMove
			r.settings.Events.OutOfRange = func(m OffsetMove) { r.note(func() { moves = append(moves, m) }) }
			r.settings.OnOutOfRange = policy
			p = r.start(t)
			until(t, "the move", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(moves) > 0 })
			// Only once the task runs, so that the end that "latest" means is the one before.
			until(t, "the task to run", func() bool {
				r.mu.Lock()
				defer r.mu.Unlock()
				return r.states[len(r.states)-1] == StateRunning
			})
			c.feed("in", 200, 10, 1)
			want, to := 160, int64(150)
			if policy == OutOfRangeLatest {
				want, to = 110, 200
			}
			c.verifyCounts("out", want) // the counts go on from the state: what was deleted is missing from them
			p.stop()
			if len(moves) != 1 || moves[0].From != 100 || moves[0].To != to || moves[0].Start != 150 || moves[0].End != 200 {
				t.Errorf("moves: %+v", moves)
			}
			c.feed("in", 210, 10, 1)
			p = r.start(t)
			c.verifyCounts("out", want+10)
			p.stop()
			if len(moves) != 1 {
				t.Errorf("moved again: %+v", moves)
			}
		})
	}
}

// TestExpiredWhileRunning deletes records in front of a task that is held back by a full queue. What it has fetched
// counts; then it fails, or leaves out what is gone.
func TestExpiredWhileRunning(t *testing.T) {
	t.Parallel()
	for _, policy := range []OutOfRange{OutOfRangeFail, OutOfRangeEarliest} {
		t.Run(policy.String(), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			c.topic("in", 1)
			c.topic("out", 1)
			r := newRig(t, c, countProgram("live"))
			var moved atomic.Int64
			r.settings.Events.OutOfRange = func(OffsetMove) { moved.Add(1) }
			r.settings.OnOutOfRange = policy
			r.settings.QueueRecords = 100
			r.settings.FetchMaxPartitionBytes = 2000
			hold := make(chan struct{})
			var seen atomic.Int64
			r.perStep = func(rec task.Record) error {
				if seen.Add(1) == 10 {
					<-hold
				}
				return nil
			}
			p := r.start(t)
			for i := range 40 {
				c.feed("in", 100*i, 100, 1) // batches that a fetch takes one or two of
			}
			until(t, "the task to hold", func() bool { return seen.Load() == 10 })
			c.deleteBelow("in", 3950)
			close(hold)
			if policy == OutOfRangeFail {
				_ = isKind(t, p.wait(), ErrOffsetOutOfRange)
				return
			}
			until(t, "the end of the input", func() bool { return c.committed("live", "in") == 4000 })
			got := c.read("out", 50)
			for i, rec := range got {
				if string(rec.Value) != strconv.Itoa(i+1) {
					t.Fatalf("output %d is %s", i, rec.Value)
				}
			}
			if len(got) <= 50 || len(got) >= 3950 || moved.Load() != 1 {
				t.Errorf("%d outputs, %d moves", len(got), moved.Load())
			}
			p.stop()
		})
	}
}

// TestOneInputsOffsetsGone deletes the offsets of one of two inputs. They were committed together, so that the state
// holds what would be read again. An input that is new has none either, and starts.
func TestOneInputsOffsetsGone(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 1)
	c.topic("other", 1)
	c.topic("third", 1)
	c.topic("out", 1)
	two := func(topics ...string) Program {
		p := countProgram("onegone")
		for _, topic := range topics {
			p.Subs[0].Sources = append(p.Subs[0].Sources, Source{Topic: topic})
		}
		return p
	}
	r := newRig(t, c, two("other"))
	p := r.start(t, func(s *Settings) { s.LeaveOnStop = true })
	c.feed("in", 0, 50, 5)
	c.feed("other", 50, 50, 5)
	c.verifyCounts("out", 100)
	p.stop()
	r2 := r.again(t, two("other", "third"))
	p = r2.start(t, func(s *Settings) { s.LeaveOnStop = true })
	c.feed("third", 100, 50, 5)
	c.verifyCounts("out", 150)
	p.stop()
	gone := kadm.TopicsSet{}
	gone.Add(c.ns+"other", 0)
	until(t, "the offsets to be deleted", func() bool {
		resp, err := c.adm.DeleteOffsets(t.Context(), c.ns+"onegone", gone)
		return err == nil && resp.Error() == nil
	})
	e := isKind(t, r2.start(t).wait(), ErrNoCommittedOffset)
	if e.Topic != c.ns+"other" {
		t.Errorf("error: %v", e)
	}
}
