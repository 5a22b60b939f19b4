package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"tailrace.dev/state"
)

// replay reads the changelogs of the task from the local positions to the barriers, all partitions at once.
func (s *session) replay(ctx context.Context, t *taskRun, stores []*storeRun) error {
	from := map[string]map[int32]kgo.Offset{}
	byTopic := map[string]*storeRun{}
	left := 0
	for _, st := range stores {
		byTopic[st.spec.Changelog] = st
		from[st.spec.Changelog] = map[int32]kgo.Offset{t.id.Partition: kgo.NewOffset().At(st.position)}
		st.records, st.restoreFrom = 0, st.position
		if st.position <= st.barrier {
			left++
		}
		t.log.Info("restore", zap.String("store", st.spec.Name), zap.Int64("from", st.position), zap.Int64("to", st.barrier))
		if f := s.e.cfg.Events.RestoreStart; f != nil {
			f(t.id, st.spec.Name, st.position, st.barrier)
		}
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
		fetches := cl.PollRecords(ctx, 0)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		for i := range fetches {
			for _, ft := range fetches[i].Topics {
				st := byTopic[ft.Topic]
				for k := range ft.Partitions {
					fp := &ft.Partitions[k]
					if fp.Err != nil {
						if err := s.replayError(t, st, fp.Err); err != nil {
							return err
						}
					}
					if st == nil || len(fp.Records) == 0 || st.position > st.barrier {
						continue
					}
					if s.e.has(NoBarrier) {
						fp.Records = upTo(fp.Records, st.barrier)
					}
					if rows, err = s.apply(t, st, fp.Records, rows[:0]); err != nil {
						return err
					}
					if st.position > st.barrier {
						left--
						s.restored(t, st, time.Since(began))
					}
				}
			}
		}
	}
	return nil
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
	if denied := authError(err, st.spec.Changelog, "read the changelog"); denied != nil {
		return denied
	}
	return rebuild("restore %s[%d]: %w", st.spec.Changelog, t.id.Partition, err)
}

// apply writes a run of changelog records to the backend, with the position after them.
func (s *session) apply(t *taskRun, st *storeRun, records []*kgo.Record, rows []state.Row) ([]state.Row, error) {
	if st.records == 0 && st.has && s.tooOld(st, records[0].Timestamp.UnixMilli()) {
		return rows, &staleError{st, "the local state is older than the changelog keeps deletions"}
	}
	for _, r := range records {
		if r.Attrs.IsControl() || bytes.Equal(r.Key, barrierKey) {
			continue
		}
		if len(r.Key) == 0 || r.Key[0] > state.KindIndex {
			return rows, &Error{
				Kind: ErrForeignChangelog, Topic: r.Topic, Partition: r.Partition,
				Detail: fmt.Sprintf("the record at offset %d has no row key", r.Offset),
				Hint:   "another program writes to this topic; use another application id or reset the application",
			}
		}
		rows = append(rows, state.Row{Store: st.id, Key: r.Key, Value: r.Value})
	}
	rows = newestInOrder(rows)
	last := records[len(records)-1]
	pos := state.Position{
		TopicID: st.topicID, Next: last.Offset + 1, LeaderEpoch: last.LeaderEpoch,
		// Only the barrier proves that the rows are those of now.
		WallMillis: last.Timestamp.UnixMilli(),
	}
	if pos.Next > st.barrier {
		pos.WallMillis = s.e.wallMillis()
	}
	err := t.backend.Write(state.Write{Rows: rows, Positions: map[state.StoreID]state.Position{st.id: pos}})
	if err != nil {
		return rows, s.stateError(t, err)
	}
	st.records += int64(len(records))
	st.position = pos.Next
	if err := rebuildUnlessTyped(s.e.at("restore-mid")); err != nil {
		return rows, err
	}
	if f := s.e.cfg.Events.Restoring; f != nil {
		f(t.id, st.spec.Name, min(pos.Next, st.barrier), st.barrier)
	}
	return rows, nil
}

// newestInOrder sorts rows by key and keeps the last of each.
func newestInOrder(rows []state.Row) []state.Row {
	slices.SortStableFunc(rows, func(a, b state.Row) int { return bytes.Compare(a.Key, b.Key) })
	out := rows[:0]
	for i := range rows {
		if i+1 < len(rows) && bytes.Equal(rows[i].Key, rows[i+1].Key) {
			continue
		}
		out = append(out, rows[i])
	}
	return out
}

func (s *session) restored(t *taskRun, st *storeRun, took time.Duration) {
	t.log.Info("restored", zap.String("store", st.spec.Name), zap.Int64("offsets", st.position-st.restoreFrom),
		zap.Duration("took", took))
	if f := s.e.cfg.Events.RestoreDone; f != nil {
		f(t.id, st.spec.Name, st.records, took)
	}
}
