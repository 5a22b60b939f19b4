package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"tailrace.dev/internal/task"
	"tailrace.dev/state"
)

// barrierKey marks the record that a restore reads up to. Its kind byte keeps it apart from every row.
var barrierKey = []byte{state.KindMeta, '!', 'b', 'a', 'r', 'r', 'i', 'e', 'r'}

// storeRun is a store of a task of this process.
type storeRun struct {
	spec      *Store
	id        state.StoreID
	topicID   [16]byte
	position  int64 // next offset of the changelog that the committed rows follow
	retention time.Duration

	// While restoring.
	has         bool  // the backend knew a position
	wall        int64 // when that position was true
	start, end  int64 // of the changelog partition
	barrier     int64
	records     int64
	restoreFrom int64

	// While committing.
	sender   sender
	sent     int   // changelog records of the batch
	produced int64 // offset of the last of them; written by the producer, read after its flush
}

const (
	lockTries   = 5
	lockBackoff = 100 * time.Millisecond
	// staleMargin is kept from a changelog's delete.retention.ms: state older than that may have missed deletions.
	staleMargin = time.Hour
	// maxRestoreTries bounds how often a restore starts over because a look at the changelog condemned the local state.
	maxRestoreTries = 3
)

// wipeLater marks a task whose local state is damaged; its next start removes it first.
func (e *Engine) wipeLater(id task.ID) {
	e.wipeMu.Lock()
	defer e.wipeMu.Unlock()
	if e.wipe == nil {
		e.wipe = map[task.ID]bool{}
	}
	e.wipe[id] = true
}

func (e *Engine) takeWipe(id task.ID) bool {
	e.wipeMu.Lock()
	defer e.wipeMu.Unlock()
	marked := e.wipe[id]
	delete(e.wipe, id)
	return marked
}

// openTask opens the state of a task, restores it to everything that was ever committed, and makes its machine. What
// it has opened is in t, for retire to close, also when it returns an error.
//
// The order matters. The committed input offsets are known by now, from a fetch that waited for pending transactions.
// The barrier comes after that, so that nothing which those offsets imply can hide behind it.
func (s *session) openTask(ctx context.Context, t *taskRun) error {
	if err := s.openState(ctx, t); err != nil {
		return err
	}
	for i := range t.sub.Stores {
		st := &storeRun{spec: &t.sub.Stores[i], produced: -1}
		id, err := t.backend.Register(st.spec.Name)
		if err != nil {
			return s.stateError(t, err)
		}
		st.id = id
		t.stores = append(t.stores, st)
	}
	if err := rebuildUnlessTyped(s.e.at("restore-start")); err != nil {
		return err
	}
	if err := s.restore(ctx, t); err != nil {
		return err
	}
	if err := s.checkCommitted(t); err != nil {
		return err
	}
	if err := rebuildUnlessTyped(s.e.at("restore-end")); err != nil {
		return err
	}
	return s.startMachine(ctx, t)
}

// openState opens the backend. Damaged files are removed: they are a copy of what the changelogs hold.
func (s *session) openState(ctx context.Context, t *taskRun) error {
	if s.e.takeWipe(t.id) {
		if err := s.e.wipeTaskDir(t.id); err != nil {
			return err
		}
	}
	wiped := false
	for try := 1; ; try++ {
		dir, err := s.e.taskDir(t.id)
		if err != nil {
			return err
		}
		b, err := s.e.p.OpenState(t.id, dir)
		switch {
		case err == nil:
			t.backend = b
			return nil
		case errors.Is(err, state.ErrCorrupt) && !wiped:
			wiped = true
			t.log.Error("local state is damaged: removing it and restoring from the changelogs", zap.Error(err))
			if err := s.e.wipeTaskDir(t.id); err != nil {
				return err
			}
		case errors.Is(err, state.ErrLocked) && try < lockTries:
			if !sleep(ctx, lockBackoff) {
				return ctx.Err()
			}
		case errors.Is(err, state.ErrLocked):
			return &Error{Kind: ErrStateLocked, Partition: -1, Detail: dir, Err: err,
				Hint: "stop the process that uses it"}
		default:
			return &Error{Kind: ErrStateDir, Partition: -1, Detail: "open the state of task " + t.id.String(), Err: err}
		}
	}
}

func (s *session) stateError(t *taskRun, err error) error {
	if errors.Is(err, state.ErrNoSpace) {
		return noSpaceError(t, err)
	}
	if errors.Is(err, state.ErrCorrupt) {
		s.e.wipeLater(t.id)
	}
	return &rebuildError{fmt.Errorf("engine: state of task %s: %w", t.id, err)}
}

// restore brings every store of the task up to its changelog's barrier.
func (s *session) restore(ctx context.Context, t *taskRun) error {
	logged := slices.DeleteFunc(slices.Clone(t.stores), func(st *storeRun) bool { return st.spec.Changelog == "" })
	if len(logged) == 0 {
		return nil
	}
	for try := 0; ; try++ {
		if err := s.inspect(ctx, t, logged); err != nil {
			return err
		}
		if err := s.barrier(ctx, t, logged); err != nil {
			return err
		}
		err := s.replay(ctx, t, logged)
		var stale *staleError
		if !errors.As(err, &stale) || try == maxRestoreTries {
			return err
		}
		if err := s.wipeStore(t, stale.st, stale.why); err != nil {
			return err
		}
	}
}

// staleError says that the local rows of a store cannot be built on.
type staleError struct {
	st  *storeRun
	why string
}

func (e *staleError) Error() string { return e.why }

// inspect compares the local positions with the changelogs, and drops local rows that cannot be built on.
func (s *session) inspect(ctx context.Context, t *taskRun, stores []*storeRun) error {
	names := make([]string, len(stores))
	for i, st := range stores {
		names[i] = st.spec.Changelog
	}
	meta, err := s.adm.Metadata(ctx, names...)
	if err != nil {
		return rebuild("ask for changelogs: %w", err)
	}
	starts, err := s.adm.ListStartOffsets(ctx, names...)
	if err != nil {
		return rebuild("list changelog starts: %w", err)
	}
	ends, err := s.adm.ListEndOffsets(ctx, names...)
	if err != nil {
		return rebuild("list changelog ends: %w", err)
	}
	p := t.id.Partition
	for _, st := range stores {
		d := meta.Topics[st.spec.Changelog]
		start, okS := starts.Lookup(st.spec.Changelog, p)
		end, okE := ends.Lookup(st.spec.Changelog, p)
		if err := errors.Join(d.Err, start.Err, end.Err); err != nil || !okS || !okE {
			if denied := authError(err, st.spec.Changelog, "read the changelog"); denied != nil {
				return denied
			}
			return rebuild("changelog %s[%d]: %w", st.spec.Changelog, p, errors.Join(err, errors.New("not listed")))
		}
		st.topicID, st.start, st.end = d.ID, start.Offset, end.Offset
		st.retention = s.layout.retention[st.spec.Changelog]
		if err := s.judge(t, st); err != nil {
			return err
		}
	}
	return nil
}

// judge decides what the local rows of a store are worth.
func (s *session) judge(t *taskRun, st *storeRun) error {
	pos, ok, err := t.backend.Position(st.id)
	if err != nil {
		return s.stateError(t, err)
	}
	st.has, st.position, st.wall = ok, pos.Next, pos.WallMillis
	why := ""
	switch {
	case !ok:
		if nonEmpty, err := hasRows(t.backend, st.id); err != nil {
			return s.stateError(t, err)
		} else if nonEmpty {
			why = "rows without a position: a restore was cut short"
		}
	case pos.TopicID != st.topicID:
		nonEmpty, err := hasRows(t.backend, st.id)
		if err != nil {
			return s.stateError(t, err)
		}
		if nonEmpty && st.end == st.start && !s.e.cfg.AcceptStateLoss {
			return &Error{
				Kind: ErrStateLoss, Topic: st.spec.Changelog, Partition: t.id.Partition,
				Detail: fmt.Sprintf("it was recreated and is empty, while the local state of store %q is not", st.spec.Name),
				Hint: "the local state is now the only copy: restore the topic, or start with AcceptStateLoss to " +
					"begin with an empty store",
			}
		}
		why = "the changelog topic was recreated"
	case pos.Next > st.end:
		why = fmt.Sprintf("local position %d is past the changelog's end %d: the changelog was truncated", pos.Next, st.end)
	case pos.Next < st.start:
		why = fmt.Sprintf("local position %d is before the changelog's start %d", pos.Next, st.start)
	case s.tooOld(st, s.e.wallMillis()):
		why = "the local state is older than the changelog keeps deletions"
	}
	if why != "" {
		if err := s.wipeStore(t, st, why); err != nil {
			return err
		}
	}
	if !st.has {
		st.position = st.start
	}
	return nil
}

// tooOld tells whether deletions may be missing between the local position and a time.
func (s *session) tooOld(st *storeRun, wallMillis int64) bool {
	if st.wall == 0 {
		return false
	}
	limit := st.retention - min(staleMargin, st.retention/2)
	return wallMillis-st.wall > limit.Milliseconds()
}

func hasRows(b state.Backend, id state.StoreID) (bool, error) {
	c := b.Scan(id, nil, nil, false)
	defer c.Close()
	has := c.Next()
	return has, c.Err()
}

func (s *session) wipeStore(t *taskRun, st *storeRun, why string) error {
	t.log.Warn("dropping the local rows of a store; restoring them from the changelog",
		zap.String("store", st.spec.Name), zap.String("topic", st.spec.Changelog), zap.String("reason", why))
	if err := t.backend.DropStore(st.id); err != nil {
		return s.stateError(t, err)
	}
	st.has, st.position, st.wall = false, st.start, 0
	return nil
}

// barrier writes a record into each changelog partition through the client that is in no transaction. It becomes
// readable when every transaction before it is decided: then nothing that was under way can appear any more.
func (s *session) barrier(ctx context.Context, t *taskRun, stores []*storeRun) error {
	records := make([]*kgo.Record, len(stores))
	for i, st := range stores {
		records[i] = &kgo.Record{
			Topic: st.spec.Changelog, Partition: t.id.Partition, Key: barrierKey, Timestamp: s.e.cfg.Now(),
		}
	}
	results := s.plain.ProduceSync(ctx, records...)
	if err := results.FirstErr(); err != nil {
		if denied := authError(err, stores[0].spec.Changelog, "write the changelog"); denied != nil {
			return denied
		}
		return rebuild("write the barrier of task %s: %w", t.id, err)
	}
	for i, st := range stores {
		st.barrier = records[i].Offset
	}
	return nil
}

// replay reads the changelogs of the task from the local positions to the barriers, all partitions at once.
func (s *session) replay(ctx context.Context, t *taskRun, stores []*storeRun) error {
	from := map[string]map[int32]kgo.Offset{}
	byTopic := map[string]*storeRun{}
	for _, st := range stores {
		byTopic[st.spec.Changelog] = st
		from[st.spec.Changelog] = map[int32]kgo.Offset{t.id.Partition: kgo.NewOffset().At(st.position)}
		st.records, st.restoreFrom = 0, st.position
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
	for left := len(stores); left > 0; {
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

// checkCommitted refuses to process all input again on top of state that already has its effects, which is what would
// follow when the group's offsets were deleted or have expired.
func (s *session) checkCommitted(t *taskRun) error {
	var names []string
	for _, in := range t.inputs {
		if !in.fresh {
			s.warnIfEmpty(t)
			return nil
		}
		names = append(names, in.topic)
	}
	for _, st := range t.stores {
		if st.spec.Changelog == "" {
			continue
		}
		has, err := hasRows(t.backend, st.id)
		if err != nil {
			return s.stateError(t, err)
		}
		if has {
			return &Error{
				Kind: ErrNoCommittedOffset, Topic: names[0], Partition: t.id.Partition,
				Detail: fmt.Sprintf("no offset is committed for %s, but store %q holds rows",
					strings.Join(names, ", "), st.spec.Name),
				Hint: "processing the input again would count it twice; reset the application, or set the offsets that " +
					"the state belongs to",
			}
		}
	}
	return nil
}

// warnIfEmpty tells of a store whose changelog had to be made though input was processed before. That is right for a
// store that is new in the topology, and a loss for any other; nothing here can tell which.
func (s *session) warnIfEmpty(t *taskRun) {
	if !slices.ContainsFunc(t.inputs, func(in *input) bool { return !in.fresh && in.start > 0 }) {
		return
	}
	for _, st := range t.stores {
		if !s.layout.created[st.spec.Changelog] {
			continue
		}
		if has, err := hasRows(t.backend, st.id); err == nil && !has {
			t.log.Warn("a store starts empty though input was processed before: it is new, or its changelog was deleted",
				zap.String("store", st.spec.Name), zap.String("topic", st.spec.Changelog))
		}
	}
}

// startMachine makes the machine over the restored rows.
func (s *session) startMachine(ctx context.Context, t *taskRun) error {
	names := make([]string, len(t.inputs))
	for i, in := range t.inputs {
		names[i] = in.topic
	}
	ends, err := s.adm.ListCommittedOffsets(ctx, names...)
	if err != nil {
		return rebuild("list input ends: %w", err)
	}
	m, err := s.e.p.NewTask(t.id, t.backend)
	if err != nil {
		return s.stepError(t, err)
	}
	t.machine = m
	offsets := make([]task.Offset, len(t.inputs))
	for i, in := range t.inputs {
		offsets[i] = task.Offset{Topic: in.topic, Next: in.start}
	}
	t.refreshed = s.e.wallMillis()
	if err := m.Start(offsets, t.metadata, s.e.wallMillis()); err != nil {
		return s.stepError(t, err)
	}
	for _, in := range t.inputs {
		in.end = in.start
		if end, ok := ends.Lookup(in.topic, in.partition); ok && end.Err == nil {
			in.end = max(in.start, end.Offset)
		}
		m.Position(in.topic, in.start, in.end)
	}
	return nil
}
