package engine

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"tailrace.dev/state"
)

// flushJob is the writing of a task's committed rows to its backend, on its way.
type flushJob struct {
	f    *state.Flush
	done chan struct{} // closed when err is set
	err  error
}

const (
	maxFlushTries = 3
	// refreshInterval is how often an idle task's positions are written again: they prove that its state is of today.
	refreshInterval = time.Hour
)

// countUnflushed updates what the task counts for in the budget.
func (t *taskRun) countUnflushed() {
	n, _ := t.machine.Layers().Unflushed()
	t.s.unflushed.Add(n - t.unflushed)
	t.unflushed = n
}

// flushDue starts the flushes that size, age or the budget ask for. At the whole budget it waits for one to end: the
// tasks stay paused. The workers must be paused.
func (s *session) flushDue() error {
	now := s.e.wallMillis()
	var waiting []*taskRun
	for _, t := range s.tasks {
		if !t.running || t.flush != nil {
			continue
		}
		size, since := t.machine.Layers().Unflushed()
		if since == 0 {
			s.refresh(t, now)
			continue
		}
		if size >= s.e.cfg.FlushBytes || now-since >= s.e.cfg.FlushInterval.Milliseconds() {
			s.startFlush(t)
			continue
		}
		waiting = append(waiting, t)
	}
	s.flushOldest(waiting)
	for s.unflushed.Load() >= s.e.cfg.StateBytes {
		if !s.waitFlush() {
			return nil
		}
		if err := s.callPosted(); err != nil {
			return err
		}
	}
	return nil
}

// flushOldest starts flushes, the oldest rows first, until those under way bring the total below half of the budget.
func (s *session) flushOldest(waiting []*taskRun) {
	left := s.unflushed.Load()
	for _, t := range s.tasks {
		if t.flush != nil {
			left -= t.flush.f.Bytes()
		}
	}
	if left <= s.e.cfg.StateBytes/2 {
		return
	}
	since := func(t *taskRun) int64 { _, ms := t.machine.Layers().Unflushed(); return ms }
	slices.SortFunc(waiting, func(a, b *taskRun) int { return cmp.Compare(since(a), since(b)) })
	for _, t := range waiting {
		if left <= s.e.cfg.StateBytes/2 {
			return
		}
		left -= t.unflushed
		s.startFlush(t)
	}
}

// waitFlush waits until some flush ends; false when none is under way or a stop is due.
func (s *session) waitFlush() bool {
	for _, t := range s.tasks {
		if t.flush == nil {
			continue
		}
		select {
		case <-t.flush.done:
			return s.failed() == nil
		case <-s.ctx.Done():
			return false
		}
	}
	return false
}

// startFlush writes the committed rows of a task in the background.
func (s *session) startFlush(t *taskRun) {
	f := t.machine.Layers().Freeze()
	if f == nil {
		return
	}
	t.flush = &flushJob{f: f, done: make(chan struct{})}
	s.async.Add(1)
	go s.runFlush(t, t.flush)
}

func (s *session) runFlush(t *taskRun, job *flushJob) {
	defer s.async.Done()
	s.flushes <- struct{}{}
	defer func() { <-s.flushes }()
	began := time.Now()
	job.err = s.writeFlush(t, job.f)
	took := time.Since(began)
	// Posted before done is closed: who waits for done finds it.
	s.post(func() error { return s.flushed(t, job, took) })
	close(job.done)
}

// writeFlush runs a flush, some errors a few times over.
func (s *session) writeFlush(t *taskRun, f *state.Flush) error {
	if err := s.e.at("flush-start"); err != nil {
		return err
	}
	for try := 1; ; try++ {
		err := f.Run()
		switch {
		case err == nil:
			return s.e.at("flush-end")
		case errors.Is(err, state.ErrNoSpace):
			return noSpaceError(t, err)
		case errors.Is(err, state.ErrCorrupt):
			s.e.wipeLater(t.id)
			return fmt.Errorf("engine: flush task %s: %w", t.id, err)
		case try == maxFlushTries:
			return fmt.Errorf("engine: flush task %s: %w", t.id, err)
		}
		t.log.Warn("flush failed, trying again", zap.Error(err))
		if !sleep(s.ctx, time.Duration(try)*100*time.Millisecond) {
			return fmt.Errorf("engine: flush task %s: %w", t.id, err)
		}
	}
}

func noSpaceError(t *taskRun, err error) error {
	return &Error{
		Kind: ErrNoSpace, Partition: -1, Detail: "task " + t.id.String(), Err: err,
		Hint: "free space in the state directory and start again; what is committed is in the changelogs",
	}
}

// flushed ends a flush on the session's goroutine. A retired task has ended its own.
func (s *session) flushed(t *taskRun, job *flushJob, took time.Duration) error {
	if s.tasks[t.id] != t || t.flush != job {
		return nil
	}
	t.flush = nil
	if job.err != nil {
		return rebuildUnlessTyped(job.err)
	}
	t.machine.Layers().Done(job.f)
	t.refreshed = s.e.wallMillis()
	t.countUnflushed()
	s.countFlush(t, job.f.Rows(), took)
	if f := s.e.cfg.Events.Flushed; f != nil {
		f(t.id, job.f.Rows(), took)
	}
	return nil
}

// flushAll brings all committed rows of a retired task to its backend, and its positions up to date.
func (s *session) flushAll(t *taskRun) error {
	l := t.machine.Layers()
	if t.flush != nil {
		<-t.flush.done
		if t.flush.err != nil {
			return t.flush.err
		}
		l.Done(t.flush.f)
		t.flush = nil
	}
	if f := l.Freeze(); f != nil {
		began := time.Now()
		if err := s.writeFlush(t, f); err != nil {
			return err
		}
		l.Done(f)
		s.countFlush(t, f.Rows(), time.Since(began))
		if ev := s.e.cfg.Events.Flushed; ev != nil {
			ev(t.id, f.Rows(), time.Since(began))
		}
	}
	return s.writePositions(t, s.e.wallMillis())
}

// refresh writes the positions of an idle task again now and then. Nothing of it may wait for a flush.
func (s *session) refresh(t *taskRun, now int64) {
	if now-t.refreshed < refreshInterval.Milliseconds() {
		return
	}
	t.refreshed = now
	if err := s.writePositions(t, now); err != nil {
		t.log.Warn("cannot refresh the positions of local state", zap.Error(err))
	}
}

// writePositions writes the committed positions as true now: the task owns its changelogs, so nobody wrote past them.
func (s *session) writePositions(t *taskRun, wall int64) error {
	positions := map[state.StoreID]state.Position{}
	for _, st := range t.stores {
		if st.spec.Source != "" {
			st.follow(t, wall)
			positions[st.id] = state.Position{
				TopicID: st.topicID, Next: st.position, LeaderEpoch: -1, WallMillis: st.wall,
			}
		}
		if st.spec.Changelog != "" {
			positions[st.id] = state.Position{
				TopicID: st.topicID, Next: st.position, LeaderEpoch: -1, WallMillis: wall,
			}
		}
	}
	if len(positions) == 0 {
		return nil
	}
	if err := t.backend.Write(state.Write{Positions: positions}); err != nil {
		return fmt.Errorf("engine: write positions of task %s: %w", t.id, err)
	}
	return nil
}
