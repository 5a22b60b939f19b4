package engine

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"tailrace.dev/internal/task"
	"tailrace.dev/state"
)

// pending is the batch of a task on its way through a commit.
type pending struct {
	t     *taskRun
	batch task.Batch
}

// commitTimeout bounds each step of a commit. Past the transaction timeout the broker has aborted it anyway.
func (s *session) commitTimeout() time.Duration {
	return max(s.e.cfg.TransactionTimeout, 10*time.Second)
}

// begin opens a transaction. It sends nothing: a transaction that nothing is produced in costs nothing.
func (s *session) begin() error {
	if err := s.cl.BeginTransaction(); err != nil {
		return rebuild("begin a transaction: %w", err)
	}
	s.inTxn = true
	return nil
}

// commit makes everything durable that the tasks computed since the last one. The workers must be paused.
//
// When it returns nil, all of it is committed, or (after a definite abort) all of it is undone and will be computed
// again; nothing is in between.
func (s *session) commit() error {
	began := time.Now()
	if err := rebuildUnlessTyped(s.e.at("processed")); err != nil {
		return err
	}
	if err := s.failed(); err != nil {
		return err
	}
	batches, empty, moved := s.boundaries()
	if len(batches) == 0 {
		return nil
	}
	info := CommitInfo{Transactional: s.e.cfg.ExactlyOnce && !empty, Outputs: int(s.produced.Load())}
	for _, b := range batches {
		info.Processed += b.batch.Processed
		info.Changes += len(b.batch.Changes)
	}
	var err error
	switch {
	case empty && !moved:
	case empty:
		err = s.commitOffsets(batches)
	case s.e.cfg.ExactlyOnce:
		err = s.commitTransaction(batches)
	default:
		err = s.commitAtLeastOnce(batches)
	}
	var undo *abortError
	if errors.As(err, &undo) {
		return s.undo(undo.cause)
	}
	if err != nil {
		return err
	}
	if err := rebuildUnlessTyped(s.e.at("before-commit-apply")); err != nil {
		return err
	}
	if !s.e.has(ApplyFirst) || empty {
		s.applyCommit(batches)
	}
	if err := rebuildUnlessTyped(s.e.at("after-commit-apply")); err != nil {
		return err
	}
	s.produced.Store(0)
	s.aborts = 0
	if empty && !moved {
		return nil
	}
	s.commits++
	s.counted(&info, began)
	if f := s.e.cfg.Events.Committed; f != nil {
		for _, t := range s.tasks {
			if !t.running {
				continue // its start goroutine owns it
			}
			for _, in := range t.inputs {
				info.Lag += max(0, in.end-in.committed)
			}
		}
		f(info)
	}
	return nil
}

// boundaries ends the batch of every task that did anything. It tells whether none wrote anything, and whether any
// offset moved.
func (s *session) boundaries() (batches []pending, empty, moved bool) {
	for _, t := range s.tasks {
		if t.running && t.dirty {
			batches = append(batches, pending{t: t})
		}
	}
	s.spread(len(batches), func(i int) { batches[i].batch = batches[i].t.machine.Boundary() })
	empty = true
	for _, b := range batches {
		empty = empty && b.batch.Empty
		for _, o := range b.batch.Offsets {
			if in := b.t.input(o.Topic); in != nil && o.Next != in.committed {
				moved = true
			}
		}
	}
	return batches, empty, moved
}

// spread calls f for 0 to n-1 on as many goroutines as there are workers, which must be paused, and waits for all.
func (s *session) spread(n int, f func(i int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(n, s.e.cfg.Workers) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	wg.Wait()
}

func (t *taskRun) input(topic string) *input {
	for _, in := range t.inputs {
		if in.topic == topic {
			return in
		}
	}
	return nil
}

// applyCommit tells the tasks that their batches are durable.
func (s *session) applyCommit(batches []pending) {
	wall := s.e.wallMillis()
	s.spread(len(batches), func(i int) { batches[i].apply(wall) })
	s.makeCalls(batches, wall)
}

func (b *pending) apply(wall int64) {
	t := b.t
	for _, o := range b.batch.Offsets {
		if in := t.input(o.Topic); in != nil {
			in.committed = o.Next
			in.view.committed.Store(o.Next)
		}
	}
	positions := make([]state.Position, len(t.stores))
	for i, st := range t.stores {
		if st.spec.Source != "" {
			positions[i] = st.follow(t, wall)
			continue
		}
		if st.sent == 0 {
			continue // zero: as it was
		}
		st.position = st.produced + 1
		positions[i] = state.Position{TopicID: st.topicID, Next: st.position, LeaderEpoch: -1, WallMillis: wall}
		st.sent = 0
	}
	t.metadata = b.batch.Metadata
	t.machine.Commit(positions, wall)
	t.countDrops(true)
	t.dirty = false
	t.s.uncommitted.Add(-t.held)
	t.held = 0
	t.countUnflushed()
}

// commitTransaction runs one transaction to its end: changelog rows, flush, offsets, end.
func (s *session) commitTransaction(batches []pending) error {
	if !s.inTxn {
		return rebuild("no transaction is open")
	}
	ctx, cancel := context.WithTimeout(s.patience, 2*s.commitTimeout())
	defer cancel()
	if err := s.flushProducer(ctx, batches); err != nil {
		return err
	}
	if err := rebuildUnlessTyped(s.e.at("before-offsets")); err != nil {
		return err
	}
	if s.e.has(ApplyFirst) {
		if err := s.applyFirst(batches); err != nil {
			return err
		}
	}
	if err := s.addOffsets(ctx, batches); err != nil {
		return err
	}
	if err := rebuildUnlessTyped(s.e.at("after-offsets")); err != nil {
		return err
	}
	if err := rebuildUnlessTyped(s.e.at("before-end")); err != nil {
		return err
	}
	s.inTxn = false
	if err := s.cl.EndTransaction(ctx, kgo.TryCommit); err != nil {
		if JudgeEndError(err) == RefusalAbort {
			s.inTxn = true
			return &abortError{fmt.Errorf("engine: the commit was not attempted: %w", err)}
		}
		// The commit may have happened. Only a restore can tell.
		return rebuild("end the transaction: %w", err)
	}
	s.lastTxn = time.Now()
	if err := rebuildUnlessTyped(s.e.at("after-end")); err != nil {
		return err
	}
	return s.begin()
}

// flushProducer adds the changelog records of the batches to what the tasks have produced already, and waits until the
// brokers have acknowledged all of it.
func (s *session) flushProducer(ctx context.Context, batches []pending) error {
	s.produceChanges(batches)
	if err := rebuildUnlessTyped(s.e.at("before-flush")); err != nil {
		return err
	}
	if err := s.cl.Flush(ctx); err != nil {
		return rebuild("flush the producer: %w", err)
	}
	if err := rebuildUnlessTyped(s.e.at("after-flush")); err != nil {
		return err
	}
	if f := s.sendError.Load(); f != nil && !s.e.has(IgnoreSendErrors) {
		return s.sendFailed(f)
	}
	return nil
}

// produceChanges produces the changelog records of the batches. A record's time is the wall clock of its commit:
// retention must not go by event time.
func (s *session) produceChanges(batches []pending) {
	now := s.e.cfg.Now()
	s.spread(len(batches), func(i int) { batches[i].produceChanges(now) })
}

func (b *pending) produceChanges(now time.Time) {
	t := b.t
	for i := range b.batch.Changes {
		c := &b.batch.Changes[i]
		st := t.stores[c.Store]
		if st.spec.Changelog == "" {
			continue
		}
		st.sent++
		r := st.sender.next(t.s, st)
		r.Topic, r.Partition, r.Key, r.Value, r.Timestamp = st.spec.Changelog, t.id.Partition, c.Key, c.Row, now
		st.sender.send()
	}
}

// sendFailed judges a record that could not be produced.
func (s *session) sendFailed(f *sendFailure) error {
	if errors.Is(f.err, kerr.MessageTooLarge) || errors.Is(f.err, kerr.RecordListTooLarge) {
		h := fnv.New64a()
		_, _ = h.Write(f.key) // never fails
		return &Error{
			Kind: ErrRecordTooLarge, Topic: f.topic, Partition: -1,
			Detail: fmt.Sprintf("a record of %d bytes (key of %d bytes, FNV-1a %016x)", f.size, len(f.key), h.Sum64()),
			Hint: "raise max.message.bytes of the topic and the limit of this application, or make the record smaller; " +
				"its input is not committed",
			Err: f.err,
		}
	}
	if denied := authError(f.err, f.topic, "write the topic"); denied != nil {
		return denied
	}
	err := fmt.Errorf("engine: produce to %s: %w", f.topic, f.err)
	if !s.e.cfg.ExactlyOnce || JudgeSendError(f.err) == RefusalRebuild {
		return &rebuildError{err}
	}
	return &abortError{err}
}

// fatalToProducer tells whether the producer cannot go on after the error.
func fatalToProducer(err error) bool {
	for _, fatal := range []*kerr.Error{
		kerr.InvalidTxnState, kerr.ProducerFenced, kerr.InvalidProducerEpoch, kerr.InvalidProducerIDMapping,
		kerr.TransactionCoordinatorFenced, kerr.UnknownProducerID, kerr.OutOfOrderSequenceNumber,
	} {
		if errors.Is(err, fatal) {
			return true
		}
	}
	return errors.Is(err, kgo.ErrClientClosed)
}

// commitAtLeastOnce makes outputs and changelogs durable first, and the offsets after them.
func (s *session) commitAtLeastOnce(batches []pending) error {
	ctx, cancel := context.WithTimeout(s.patience, 2*s.commitTimeout())
	defer cancel()
	if err := s.flushProducer(ctx, batches); err != nil {
		return err
	}
	return s.commitOffsets(batches)
}

// abortError is a definite refusal before the end of the transaction: it can be undone in place.
type abortError struct{ cause error }

func (e *abortError) Error() string { return e.cause.Error() }
func (e *abortError) Unwrap() error { return e.cause }

// abortTransaction aborts what is open. A nil error is definite: none of it will ever be visible.
func (s *session) abortTransaction(ctx context.Context) error {
	if err := s.cl.AbortBufferedRecords(ctx); err != nil {
		return fmt.Errorf("engine: abort buffered records: %w", err)
	}
	s.inTxn = false
	if err := s.cl.EndTransaction(ctx, kgo.TryAbort); err != nil {
		return fmt.Errorf("engine: abort the transaction: %w", err)
	}
	return nil
}

// undo aborts the transaction and takes all tasks back to what is committed. Their state needs no repair: what they
// computed was only ever in memory.
func (s *session) undo(cause error) error {
	if s.aborts++; s.aborts > maxAbortsInPlace {
		return rebuild("%d aborts in a row: %w", s.aborts, cause)
	}
	s.log.Warn("transaction aborted, processing again from the committed offsets", zap.Error(cause))
	ctx, cancel := context.WithTimeout(s.patience, s.commitTimeout())
	defer cancel()
	if err := s.abortTransaction(ctx); err != nil {
		return &rebuildError{errors.Join(cause, err)}
	}
	wall := s.e.wallMillis()
	rewind := map[string]map[int32]kgo.EpochOffset{}
	for _, t := range s.tasks {
		if !t.running {
			continue
		}
		if err := s.undoTask(t, wall, rewind); err != nil {
			return err
		}
	}
	s.cl.SetOffsets(rewind)
	s.sendError.Store(nil)
	s.produced.Store(0)
	if err := s.begin(); err != nil {
		return err
	}
	s.e.board.aborts.Add(1)
	if f := s.e.cfg.Events.Aborted; f != nil {
		f(cause)
	}
	return nil
}

func (s *session) undoTask(t *taskRun, wall int64, rewind map[string]map[int32]kgo.EpochOffset) error {
	offsets := make([]task.Offset, 0, len(t.inputs))
	for _, in := range t.inputs {
		in.mu.Lock()
		in.inbox = nil
		in.records.Store(0)
		in.bytes.Store(0)
		in.mu.Unlock()
		in.next = in.committed
		offsets = append(offsets, task.Offset{Topic: in.topic, Next: in.committed})
		if rewind[in.topic] == nil {
			rewind[in.topic] = map[int32]kgo.EpochOffset{}
		}
		rewind[in.topic][in.partition] = kgo.EpochOffset{Epoch: -1, Offset: in.committed}
	}
	for _, st := range t.stores {
		st.sent = 0
	}
	if err := t.machine.Abort(offsets, t.metadata, wall); err != nil {
		return s.stepError(t, err)
	}
	for _, in := range t.inputs {
		t.machine.Position(in.topic, in.committed, in.end)
	}
	t.countDrops(false)
	t.dirty = false
	s.uncommitted.Add(-t.held)
	t.held = 0
	s.schedule(t)
	return nil
}
