package sim

import (
	"errors"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"

	"tailrace.dev/internal/engine"
	"tailrace.dev/internal/task"
	"tailrace.dev/state"
)

// commit returns the steps that make everything durable that the tasks computed since the last one.
func (c *session) commit() []step { return []step{{"processed", c.boundaries}} }

// then puts steps before the rest of the plan.
func (c *session) then(steps ...step) { c.plan = append(steps, c.plan...) }

// boundaries ends the batches and decides how they are to be committed.
func (c *session) boundaries() error {
	c.batches = nil
	empty, moved := true, false
	for _, t := range c.tasks {
		if !t.running || !t.dirty {
			continue
		}
		b := pending{t: t, batch: t.machine.Boundary()}
		c.batches = append(c.batches, b)
		empty = empty && b.batch.Empty
		for _, o := range b.batch.Offsets {
			if in := t.input(o.Topic); in != nil && o.Next != in.committed {
				moved = true
			}
		}
	}
	switch {
	case len(c.batches) == 0:
	case empty && !moved:
		c.then(step{"before-commit-apply", c.apply})
	case empty:
		c.then(step{"offsets", c.commitOffsets}, step{"before-commit-apply", c.apply})
	default:
		c.produceChanges()
		c.then(
			step{"before-flush", c.flushProducer},
			step{"before-offsets", c.addOffsets}, step{"txn-offset-commit", c.commitInTxn},
			step{"before-end", c.endTxn}, step{"after-end", func() error { return nil }},
			step{"before-commit-apply", c.apply}, step{"after-commit-apply", func() error { return nil }},
		)
	}
	return nil
}

func (t *taskRun) input(topic string) *taskInput {
	for _, in := range t.inputs {
		if in.topic == topic {
			return in
		}
	}
	return nil
}

// produceChanges adds the changelog records of the batches to what the tasks have produced.
func (c *session) produceChanges() {
	for _, b := range c.batches {
		for _, ch := range b.batch.Changes {
			st := b.t.stores[ch.Store]
			if st.spec.changelog == "" {
				continue
			}
			st.sent++
			c.sendq = append(c.sendq, &message{
				tp: tp{st.spec.changelog, b.t.id.Partition}, key: ch.Key, value: ch.Row, time: c.s.b.now,
				acked: func(offset int64) { st.produced = offset },
			})
		}
	}
}

func (c *session) flushProducer() error {
	c.sendSome()
	if len(c.sendq) > 0 {
		return errAgain
	}
	if err := c.sendErr; err != nil && c.s.defect != IgnoreSendErrors {
		if engine.JudgeSendError(err) == engine.RefusalRebuild {
			return &rebuildError{err}
		}
		return &abortError{err}
	}
	if c.s.defect == ApplyFirst {
		c.applyFirst()
	}
	return nil
}

// offsets collects the offsets of the batches. Those that did not move are in it too: they make the commit fail when a
// task is not ours any more.
func (c *session) offsets() []pendingOffset {
	var all []pendingOffset
	for _, b := range c.batches {
		for _, o := range b.batch.Offsets {
			next := o.Next
			if c.s.defect == CommitPolled {
				next = b.t.input(o.Topic).next
			}
			all = append(all, pendingOffset{tp{o.Topic, b.t.id.Partition}, groupOffset{next: next, metadata: b.batch.Metadata}})
		}
	}
	return all
}

// as is who commits. Another member id than the one that the tasks were assigned to means that we were expelled.
func (c *session) as() (membership, error) {
	if c.group.memberID != c.memberID {
		return membership{}, rebuild("the group let this member in anew")
	}
	return membership{c.memberID, c.p.instance, c.group.generation}, nil
}

func (c *session) addOffsets() error {
	err := c.coordinate(func() error {
		c.touched = true
		return c.s.b.addOffsets(c.p.txID, c.epoch)
	})
	if err != nil && !errors.Is(err, errAgain) {
		return judged("add the offsets to the transaction", err)
	}
	return err
}

func (c *session) commitInTxn() error {
	err := c.coordinate(func() error {
		who, err := c.as()
		if err != nil {
			return err
		}
		return c.s.b.commitInTxn(c.p.txID, c.epoch, who, c.offsets())
	})
	if err != nil && !errors.Is(err, errAgain) {
		return judged("commit the offsets in the transaction", err)
	}
	return err
}

func (c *session) commitOffsets() error {
	err := c.coordinate(func() error {
		who, err := c.as()
		if err != nil {
			return err
		}
		return c.s.b.commitPlain(who, c.offsets())
	})
	switch {
	case err == nil || errors.Is(err, errAgain):
		return err
	case errors.Is(err, kerr.FencedInstanceID):
		return &fencedError{err}
	}
	return rebuild("commit the offsets: %w", err)
}

func (c *session) endTxn() error {
	c.inTxn = false
	err := c.request(func() error {
		epoch, err := c.s.b.endTxn(c.p.txID, c.epoch, true)
		c.epoch = epoch
		return err
	})
	if err != nil {
		if engine.JudgeEndError(err) == engine.RefusalAbort {
			return &abortError{err}
		}
		return rebuild("end the transaction: %w", err)
	}
	c.inTxn, c.touched, c.sendErr = true, false, nil
	return nil
}

// apply tells the tasks that their batches are durable.
func (c *session) apply() error {
	for _, b := range c.batches {
		if c.s.defect == ApplyFirst && !b.batch.Empty {
			b.t.dirty = false
			continue // it was applied before
		}
		c.applyOne(b)
	}
	c.batches, c.aborts = nil, 0
	return nil
}

func (c *session) applyOne(b pending) {
	t := b.t
	for _, o := range b.batch.Offsets {
		if in := t.input(o.Topic); in != nil {
			in.committed = o.Next
		}
	}
	positions := make([]state.Position, len(t.stores))
	for i, st := range t.stores {
		if st.spec.source != "" {
			if in := t.input(st.spec.source); in.committed != st.position {
				st.position = in.committed
				positions[i] = state.Position{TopicID: st.topicID, Next: st.position, LeaderEpoch: -1, WallMillis: c.s.b.now}
			}
			continue
		}
		if st.sent == 0 {
			continue
		}
		st.position = st.produced + 1
		positions[i] = state.Position{TopicID: st.topicID, Next: st.position, LeaderEpoch: -1, WallMillis: c.s.b.now}
		st.sent = 0
	}
	t.metadata = b.batch.Metadata
	t.machine.Commit(positions, c.s.b.now)
	t.dirty = false
}

// applyFirst is the defect ApplyFirst: rows go to disk before their transaction ends.
func (c *session) applyFirst() {
	for _, b := range c.batches {
		if b.batch.Empty {
			continue
		}
		c.applyOne(b)
		b.t.dirty = true
		layers := b.t.machine.Layers()
		if f := layers.Freeze(); f != nil {
			if err := f.Run(); err != nil {
				c.s.violate("flush: %v", err)
			}
			layers.Done(f)
		}
	}
}

// undo plans the abort of the transaction, and takes all tasks back to what is committed.
func (c *session) undo(cause error) {
	c.s.say("%s: abort: %v", c.p.name, cause)
	c.s.aborts++
	if c.aborts++; c.aborts > 3 {
		c.rebuild(fmt.Errorf("aborts in a row: %w", cause))
		return
	}
	// What was about to happen is dropped with the batches; a cycle goes on with its rest.
	c.plan = slices.DeleteFunc(c.plan, func(st step) bool {
		return st.name != "allow-rebalance" && st.name != "flush-due" && st.name != "stop"
	})
	c.then(step{"abort", c.abort})
}

func (c *session) abort() error {
	c.sendq = nil // of what was never sent
	if c.touched {
		err := c.request(func() error {
			epoch, err := c.s.b.endTxn(c.p.txID, c.epoch, false)
			c.epoch = epoch
			return err
		})
		if err != nil {
			return rebuild("abort the transaction: %w", err)
		}
	}
	c.inTxn, c.touched, c.sendErr, c.batches = true, false, nil, nil
	for _, t := range c.tasks {
		if !t.running {
			continue
		}
		offsets := make([]task.Offset, 0, len(t.inputs))
		for _, in := range t.inputs {
			in.inbox, in.again, in.next = nil, nil, in.committed
			offsets = append(offsets, task.Offset{Topic: in.topic, Next: in.committed})
		}
		for _, st := range t.stores {
			st.sent = 0
		}
		if err := t.machine.Abort(offsets, t.metadata, c.s.b.now); err != nil {
			c.s.violate("abort of task %s: %v", t.id, err)
			return nil
		}
		for _, in := range t.inputs {
			t.machine.Position(in.topic, in.committed, in.end)
		}
		t.dirty = false
	}
	return nil
}

// flushDue begins to write the committed rows of tasks to disk.
func (c *session) flushDue() error {
	for _, t := range c.tasks {
		if !t.running || t.flush != nil || c.s.r.IntN(3) != 0 {
			continue
		}
		if t.flush = t.machine.Layers().Freeze(); t.flush != nil {
			t.since = c.s.b.now
			c.s.say("%s: freeze %s, %d rows", c.p.name, t.id, t.flush.Rows())
		}
	}
	return nil
}

// runFlush is a step of the flush of a task.
func (c *session) runFlush(t *taskRun) {
	f := t.flush
	if err := f.Run(); err != nil {
		c.s.violate("flush of task %s: %v", t.id, err)
		return
	}
	c.s.say("%s: flushed %s", c.p.name, t.id)
	t.machine.Layers().Done(f)
	t.flush = nil
}

// tear writes a part of a flush, as a crash leaves it behind.
func (t *taskRun) tear(rows int) {
	t.backend.tear = rows
	if err := t.flush.Run(); !errors.Is(err, errTorn) {
		t.c.s.violate("torn flush of task %s: %v", t.id, err)
	}
	t.backend.tear = -1
}

// closer ends a task that was given up, its committed rows written to disk if it ends in good order.
type closer struct {
	t     *taskRun
	flush bool
}

// finish takes all steps of the closing at once.
func (k *closer) finish() {
	t, c := k.t, k.t.c
	if t.flush != nil {
		c.runFlush(t)
	}
	if k.flush && t.running {
		if t.flush = t.machine.Layers().Freeze(); t.flush != nil {
			c.runFlush(t)
		}
		c.writePositions(t)
	}
	t.running = false
	if t.machine != nil {
		if err := t.machine.Close(); err != nil {
			c.s.violate("close of task %s: %v", t.id, err)
		}
	}
	c.closing = slices.DeleteFunc(c.closing, func(o *closer) bool { return o == k })
	c.s.say("%s: closed %s", c.p.name, t.id)
	c.setCopies(c.wanted)
}

// writePositions writes the committed positions as true now: the task owned its changelogs until here.
func (c *session) writePositions(t *taskRun) {
	w := state.Write{Positions: map[state.StoreID]state.Position{}}
	for _, st := range t.stores {
		w.Positions[st.id] = state.Position{TopicID: st.topicID, Next: st.position, LeaderEpoch: -1, WallMillis: c.s.b.now}
	}
	if err := t.backend.Write(w); err != nil {
		c.s.violate("write positions of task %s: %v", t.id, err)
	}
}
