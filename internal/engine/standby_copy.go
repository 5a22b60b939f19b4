package engine

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"tailrace.dev/internal/task"
	"tailrace.dev/state"
)

const (
	// A copy writes what it received when there is this much of it, or when the oldest has waited this long: many
	// changes of one row in between cost one write.
	standbyWriteBytes = 4 << 20
	standbyWriteAge   = time.Second

	standbyBackoffFirst = 200 * time.Millisecond
	standbyBackoffLimit = time.Minute
	// maxStandbyTries is how often in a row, without having written anything, a copy is started again. After that it is
	// given up until the next session or assignment.
	maxStandbyTries = 12
)

// standby is a copy of a task: it writes what is committed in the task's changelogs to a backend of its own. The same
// holds as for an active task's state: the backend has exactly the committed records below its positions.
type standby struct {
	b      *standbys
	t      *taskRun // without a machine; its inputs are those that stores follow; of the copy's goroutine until done
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{} // closed when the goroutine is over
	wake   chan struct{} // something was received, or the tailer wants room
	linger *time.Timer   // of standbys, under its lock: runs while nobody wants the copy

	written bool // since the last start
	warmed  bool // told
	caught  bool // since the last start: it has come to where the changelogs ended then
	view    *taskView
	over    atomic.Bool // shared: given up

	mu      sync.Mutex
	tails   []*tail // nil while it does not follow
	failure error
}

func newStandby(b *standbys, id task.ID, sub *Sub, backend state.Backend) *standby {
	t := &taskRun{
		s: b.s, id: id, sub: sub, backend: backend, log: b.s.log.With(zap.Stringer("standby", id)),
	}
	for _, src := range sub.Sources {
		for i := range sub.Stores {
			if sub.Stores[i].Source == src.Topic && t.input(src.Topic) == nil {
				t.inputs = append(t.inputs, &input{t: t, topic: src.Topic, partition: id.Partition})
			}
		}
	}
	c := &standby{b: b, t: t, done: make(chan struct{}), wake: make(chan struct{}, 1)}
	c.ctx, c.cancel = context.WithCancel(b.s.ctx)
	c.view = b.s.e.board.show(id, RoleStandby, sub)
	return c
}

// run follows until the copy's context ends, and starts over after errors. formerClosed, if not nil, is closed when the
// directory is free.
func (c *standby) run(formerClosed <-chan struct{}) {
	defer close(c.done)
	if formerClosed != nil {
		select {
		case <-formerClosed:
		case <-c.ctx.Done():
			return
		}
	}
	backoff := standbyBackoffFirst
	for tries := 1; ; tries++ {
		c.written = false
		err := c.keep()
		c.unfollow(err)
		if errors.Is(err, ErrCrash) {
			c.b.s.fail(err)
			return
		}
		if c.ctx.Err() != nil {
			if err != nil && !errors.Is(err, context.Canceled) {
				c.t.log.Warn("standby ended with an error", zap.Error(err))
				c.closeBackend() // nobody should go on with it as it is
			}
			return
		}
		if c.written {
			tries, backoff = 1, standbyBackoffFirst
		}
		if c.repair(err) && tries < maxStandbyTries {
			continue
		}
		c.closeBackend()
		if tries >= maxStandbyTries {
			c.t.log.Error("standby given up: the task would restore from its changelogs", zap.Error(err))
			c.over.Store(true)
			return
		}
		c.t.log.Warn("standby failed, starting it again", zap.Error(err), zap.Duration("backoff", backoff))
		if !sleep(c.ctx, time.Duration(float64(backoff)*(0.8+0.4*rand.Float64()))) {
			return
		}
		backoff = min(2*backoff, standbyBackoffLimit)
	}
}

// repair drops the rows of a store that cannot be built on. It tells whether that was it, and all is well now.
func (c *standby) repair(err error) bool {
	var stale *staleError
	return errors.As(err, &stale) && c.b.s.wipeStore(c.t, stale.st, stale.why) == nil
}

// keep opens the state, unless it is open, and follows the changelogs from there until an error, or until the copy's
// context ends.
func (c *standby) keep() error {
	if err := c.open(); err != nil {
		return err
	}
	if err := c.follow(); err != nil {
		return err
	}
	c.t.log.Info("standby follows", zap.Int64("lag", c.status().Lag))
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-c.ctx.Done():
			if c.b.s.ctx.Err() != nil && c.b.s.crashed {
				return c.ctx.Err()
			}
			_, err := c.write(true)
			return err
		case <-c.wake:
		case <-timer.C:
		}
		next, err := c.write(false)
		if err != nil {
			return err
		}
		timer.Reset(next)
		c.show()
		c.tellWarm()
	}
}

// open opens the state and compares it with the changelogs.
func (c *standby) open() error {
	select {
	case c.b.opens <- struct{}{}:
		defer func() { <-c.b.opens }()
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
	s, t := c.b.s, c.t
	c.view.setState(TaskRestoring)
	if t.backend == nil {
		if err := s.openState(c.ctx, t); err != nil {
			return err
		}
	}
	t.stores = nil
	if err := s.registerStores(t); err != nil {
		return err
	}
	written, err := s.checkManifest(t)
	if err != nil {
		return err
	}
	if err := c.committed(); err != nil {
		return err
	}
	if err := s.inspectPatiently(c.ctx, t, t.logged()); err != nil {
		return err
	}
	// The task's owner has noted in the changelogs whose they are.
	w, changed, err := s.changedManifest(t, written)
	if err != nil || len(changed) == 0 {
		return err
	}
	if err := t.backend.Write(w); err != nil {
		return s.stateError(t, err)
	}
	return nil
}

// committed asks for the committed offsets of the inputs that stores follow: these are no copy's to be read past.
func (c *standby) committed() error {
	if len(c.t.inputs) == 0 {
		return nil
	}
	topics := make([]string, len(c.t.inputs))
	for i, in := range c.t.inputs {
		topics[i] = in.topic
	}
	offsets, err := c.b.s.committedOffsets(c.ctx, topics)
	if err != nil {
		return err
	}
	for _, in := range c.t.inputs {
		in.start = 0
		if o, ok := offsets.Lookup(in.topic, in.partition); ok && o.At >= 0 {
			in.start = o.At
			continue
		}
		for _, st := range c.t.stores {
			if _, ok, err := c.t.backend.Position(st.id); err != nil {
				return c.b.s.stateError(c.t, err)
			} else if ok && st.spec.Source == in.topic {
				return fmt.Errorf("engine: no offset is committed for %s[%d], which store %s follows", in.topic,
					in.partition, st.spec.Name)
			}
		}
	}
	return nil
}

// committedOffsets returns the offsets of the group, once no transaction is about to change them: an older one would
// condemn state that is ahead of it.
func (s *session) committedOffsets(ctx context.Context, topics []string) (kadm.OffsetResponses, error) {
	offsets, err := s.adm.FetchOffsetsForTopics(kadm.RequireStable(ctx), s.e.p.App, topics...)
	if err == nil {
		err = offsets.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("engine: ask for committed offsets: %w", err)
	}
	return offsets, nil
}

// follow makes the tailer fetch for the copy, from the positions in its backend.
func (c *standby) follow() error {
	byTopic := map[string]*tail{}
	var tails []*tail
	for _, st := range c.t.logged() {
		st.records, st.restoreFrom, st.unsettled, st.barrier = 0, st.position, false, math.MaxInt64
		st.view = c.view.store(st.spec.Name)
		st.view.begin(st.position, st.end)
		limit := int64(math.MaxInt64)
		if st.spec.Source != "" {
			limit = c.t.input(st.spec.Source).start
		}
		tl := byTopic[st.spec.log()]
		if tl == nil {
			tl = &tail{
				c: c, topic: st.spec.log(), partition: c.t.id.Partition, next: st.position, end: st.end, limit: limit,
				followed: st.spec.Source != "",
			}
			byTopic[tl.topic] = tl
			tails = append(tails, tl)
		}
		tl.next = min(tl.next, st.position)
		tl.stores = append(tl.stores, st)
	}
	c.caught = false
	if err := c.b.tailer.add(tails); err != nil {
		return err
	}
	c.mu.Lock()
	c.tails, c.failure = tails, nil
	c.mu.Unlock()
	c.view.setFailure(nil)
	return nil
}

// unfollow undoes follow, and drops what was received and not written.
func (c *standby) unfollow(why error) {
	c.mu.Lock()
	tails := c.tails
	c.tails, c.failure = nil, why
	c.mu.Unlock()
	if c.ctx.Err() == nil {
		c.view.setFailure(why)
	}
	c.b.tailer.remove(tails)
}

// write writes what is due, or all of it, and returns after how long to look again.
func (c *standby) write(all bool) (time.Duration, error) {
	next := refreshInterval
	for _, tl := range c.tails {
		got, wait := c.b.tailer.take(tl, all)
		next = min(next, wait)
		if got.err != nil {
			return 0, c.b.s.replayError(c.t, tl.stores[0], got.err)
		}
		err := c.apply(tl, got.records)
		c.b.tailer.release(got.bytes)
		if err != nil {
			return 0, err
		}
		if got.trueAt > 0 {
			if err := c.refresh(tl, got.trueAt); err != nil {
				return 0, err
			}
		}
	}
	return next, nil
}

// apply writes a run of records to the stores that follow them.
func (c *standby) apply(tl *tail, records []*kgo.Record) error {
	if len(records) == 0 {
		return nil
	}
	b := <-c.b.writes // the others take no longer than a write
	defer func() { c.b.writes <- b }()
	s := c.b.s
	if err := s.e.at("standby-write"); err != nil {
		return err
	}
	for _, st := range tl.stores {
		var err error
		b.reset() // of what an error has left
		if b.scratch, err = s.gather(st, b, records, b.scratch[:0]); err != nil {
			return err
		}
		if err := s.settle(c.t, st, b); err != nil {
			return err
		}
		if len(st.author) > 0 {
			if err := s.checkAuthors(c.t); err != nil {
				return err
			}
			st.author = nil // it is looked at once
		}
	}
	c.written = true
	return s.e.at("standby-written")
}

// show tells the board how far the copy is.
func (c *standby) show() {
	caught := true
	for _, tl := range c.tails {
		_, end, _ := c.b.tailer.progress([]*tail{tl})
		for _, st := range tl.stores {
			st.view.aim(end)
			st.view.moved(st.position, st.records)
			caught = caught && st.position >= min(st.end, end)
		}
	}
	if !caught || c.caught {
		return
	}
	c.caught = true
	for _, tl := range c.tails {
		for _, st := range tl.stores {
			st.view.end()
		}
	}
	c.view.setState(TaskRunning)
}

// refresh notes that the stores hold all that was committed at a time, and writes that down now and then: nothing that
// was deleted since can have been missed.
func (c *standby) refresh(tl *tail, wall int64) error {
	due := wall-tl.refreshed >= refreshInterval.Milliseconds()
	for _, st := range tl.stores {
		st.wall = wall
		if !due {
			continue
		}
		pos := state.Position{TopicID: st.topicID, Next: st.position, LeaderEpoch: -1, WallMillis: wall}
		err := c.t.backend.Write(state.Write{Positions: map[state.StoreID]state.Position{st.id: pos}})
		if err != nil {
			return c.b.s.stateError(c.t, err)
		}
	}
	if due {
		tl.refreshed = wall
	}
	return nil
}

// tellWarm tells once that the copy is as far as a task may be that moves here.
func (c *standby) tellWarm() {
	if c.warmed {
		return
	}
	if lag := c.status().Lag; lag < 0 || lag > c.b.s.e.cfg.WarmupLag {
		return
	}
	c.warmed = true
	id := c.t.id
	c.t.log.Info("standby is warm")
	c.b.s.post(func() error { c.b.s.warm(id); return nil })
}

// status describes the copy.
func (c *standby) status() StandbyStatus {
	c.mu.Lock()
	tails := c.tails
	st := StandbyStatus{ID: c.t.id, Position: -1, End: -1, Lag: -1, Failure: c.failure}
	c.mu.Unlock()
	if len(tails) > 0 {
		st.Position, st.End, st.Lag = c.b.tailer.progress(tails)
	}
	return st
}

// wakeUp makes the copy look at what there is to do.
func (c *standby) wakeUp() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}
