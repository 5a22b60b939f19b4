package engine

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"tailrace.dev/state"
)

// replay reads the changelogs of the task, and the topics that stores follow, from the local positions to the barriers,
// all partitions at once.
func (s *session) replay(ctx context.Context, t *taskRun, stores []*storeRun) error {
	from := map[string]map[int32]kgo.Offset{}
	byTopic := map[string][]*storeRun{}
	left := 0
	for _, st := range stores {
		st.records, st.restoreFrom, st.moved, st.unsettled, st.open = 0, st.position, time.Now(), false, st.position <= st.barrier
		if !st.open {
			continue
		}
		left++
		st.bulk = new(bulk)
		st.view = t.view.store(st.spec.Name)
		st.view.begin(st.position, st.target())
		at := st.position
		for _, other := range byTopic[st.spec.log()] {
			at = min(at, other.position)
		}
		byTopic[st.spec.log()] = append(byTopic[st.spec.log()], st)
		from[st.spec.log()] = map[int32]kgo.Offset{t.id.Partition: kgo.NewOffset().At(at)}
		t.log.Info("restore", zap.String("store", st.spec.Name), zap.Int64("from", st.position), zap.Int64("to", st.barrier))
		if f := s.e.cfg.Events.RestoreStart; f != nil {
			f(t.id, st.spec.Name, st.position, st.target())
		}
	}
	if left == 0 {
		return nil
	}
	opts := append(s.e.baseOpts(), s.e.fetchOpts()...)
	opts = append(opts, kgo.ClientID(s.e.p.App+"-restore"), kgo.ConsumePartitions(from))
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return rebuild("make the restore client: %w", err)
	}
	defer cl.Close()
	began := time.Now()
	var rows []state.Row
	for left > 0 {
		pollCtx, cancel := context.WithTimeout(ctx, followIdle)
		fetches := cl.PollRecords(pollCtx, 0)
		cancel()
		if ctx.Err() != nil {
			return errors.Join(ctx.Err(), s.settleAll(t, stores))
		}
		for i := range fetches {
			for _, ft := range fetches[i].Topics {
				for k := range ft.Partitions {
					if rows, err = s.replayFetched(t, byTopic[ft.Topic], &ft.Partitions[k], rows); err != nil {
						return err
					}
				}
			}
		}
		for _, st := range stores {
			if st.open && st.spec.Source != "" && st.position <= st.barrier && time.Since(st.moved) >= followIdle {
				st.moved = time.Now()
				if err := s.skipGap(ctx, t, st); err != nil {
					return err
				}
			}
			if st.open && st.position > st.barrier {
				if err := s.settle(t, st, st.bulk); err != nil {
					return err
				}
				st.open, st.bulk = false, nil
				left--
				s.restored(t, st, time.Since(began))
			}
		}
		t.noteStall(stores)
	}
	return nil
}

// noteStall tells the session's goroutine that nothing comes, which may be the end of a transaction that a broker lost.
func (t *taskRun) noteStall(stores []*storeRun) {
	t.stalled.Store(slices.ContainsFunc(stores, func(st *storeRun) bool {
		return st.open && time.Since(st.moved) >= followIdle
	}))
}

// settleAll writes what a restore that is broken off has gathered, so that the next one need not read it again. A session
// that ends has no time for that.
func (s *session) settleAll(t *taskRun, stores []*storeRun) error {
	for _, st := range stores {
		if !st.open || s.ctx.Err() != nil {
			continue
		}
		if err := s.settle(t, st, st.bulk); err != nil {
			return err
		}
	}
	return nil
}

// replayFetched applies what was fetched of one partition to the stores that it restores.
func (s *session) replayFetched(
	t *taskRun, stores []*storeRun, fp *kgo.FetchPartition, rows []state.Row,
) ([]state.Row, error) {
	var first *storeRun
	if len(stores) > 0 {
		first = stores[0]
	}
	if fp.Err != nil && !errors.Is(fp.Err, context.DeadlineExceeded) {
		if err := s.replayError(t, first, fp.Err); err != nil {
			return rows, err
		}
	}
	for _, st := range stores {
		if len(fp.Records) == 0 || st.position > st.barrier {
			continue
		}
		records := fp.Records
		if s.e.has(NoBarrier) {
			records = upTo(records, st.barrier)
		}
		var err error
		if rows, err = s.gather(st, st.bulk, records, rows[:0]); err != nil {
			return rows, err
		}
		if st.bulk.size() >= restoreBytes || time.Since(st.since) >= restoreAge {
			if err := s.settle(t, st, st.bulk); err != nil {
				return rows, err
			}
		}
		if err := s.restoring(t, st); err != nil {
			return rows, err
		}
	}
	return rows, nil
}

// replayError judges an error of a changelog fetch; nil: the client goes on by itself.
func (s *session) replayError(t *taskRun, st *storeRun, err error) error {
	var loss *kgo.ErrDataLoss
	switch {
	case st == nil:
		return rebuild("restore of task %s: %w", t.id, err)
	case errors.Is(err, kerr.OffsetOutOfRange) || errors.As(err, &loss):
		return &staleError{st, "the changelog lost the records after the local position"}
	}
	if denied := authError(err, st.spec.log(), "read the changelog"); denied != nil {
		return denied
	}
	return rebuild("restore %s[%d]: %w", st.spec.log(), t.id.Partition, err)
}

// gather takes a run of changelog records into b. The store's position is behind them then; settle makes that durable.
// It returns rows, which is scratch memory.
func (s *session) gather(
	st *storeRun, b *bulk, records []*kgo.Record, rows []state.Row,
) ([]state.Row, error) {
	last := records[len(records)-1]
	followed := st.spec.Source != ""
	records = st.within(records)
	if !followed && len(records) == 0 {
		return rows, nil
	}
	if !followed && st.position == st.restoreFrom && st.has && s.tooOld(st, records[0].Timestamp.UnixMilli()) {
		return rows, &staleError{st, "the local state is older than the changelog keeps deletions"}
	}
	if followed {
		for _, r := range records {
			if !r.Attrs.IsControl() {
				rows = st.rowOf(r, rows)
			}
		}
	} else {
		st.noteAuthor(records)
		var err error
		if rows, err = ChangelogRows(st.id, records, rows); err != nil {
			return rows, err
		}
	}
	for i := range rows {
		b.put(rows[i].Store, rows[i].Key, rows[i].Value)
	}
	st.records += int64(len(rows))
	clear(rows) // keep no fetch alive
	st.moved = time.Now()
	if !st.unsettled {
		st.unsettled, st.since = true, st.moved
	}
	if followed {
		st.position, st.epoch = max(st.position, min(last.Offset, st.barrier)+1), -1
		return rows, nil
	}
	st.position, st.epoch = last.Offset+1, last.LeaderEpoch
	// Only the barrier proves that the rows are those of now.
	st.wall = last.Timestamp.UnixMilli()
	if st.position > st.barrier {
		st.wall = s.e.wallMillis()
	}
	return rows, nil
}

// settle writes what was gathered, and the position after it.
func (s *session) settle(t *taskRun, st *storeRun, b *bulk) error {
	if !st.unsettled {
		return nil
	}
	st.unsettled = false
	pos := state.Position{TopicID: st.topicID, Next: st.position, LeaderEpoch: st.epoch, WallMillis: st.wall}
	err := t.backend.Write(state.Write{Rows: b.sorted(), Positions: map[state.StoreID]state.Position{st.id: pos}})
	b.reset()
	if err != nil {
		return s.stateError(t, err)
	}
	return nil
}

// restoring tells how far a restore has come.
func (s *session) restoring(t *taskRun, st *storeRun) error {
	if err := rebuildUnlessTyped(s.e.at("restore-mid")); err != nil {
		return err
	}
	st.view.moved(st.position, st.records)
	p, ok := st.view.progress(time.Now())
	if !ok {
		return nil
	}
	if st.view.sayable(p.Took) {
		eta, _ := p.ETA()
		t.log.Info("restoring", zap.String("store", p.Store), zap.Int64("left", p.Remaining()),
			zap.Float64("percent", 100*p.Fraction()), zap.Float64("per_second", p.Rate), zap.Duration("eta", eta))
	}
	if f := s.e.cfg.Events.Restoring; f != nil {
		f(p)
	}
	return nil
}

func (s *session) restored(t *taskRun, st *storeRun, took time.Duration) {
	st.view.end()
	t.log.Info("restored", zap.String("store", st.spec.Name), zap.Int64("offsets", st.position-st.restoreFrom),
		zap.Duration("took", took))
	if f := s.e.cfg.Events.RestoreDone; f != nil {
		f(t.id, st.spec.Name, st.records, took)
	}
}
