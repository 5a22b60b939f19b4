package engine

import (
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
	barrier     int64 // offset of the last record to read
	open        bool  // not there yet
	moved       time.Time
	bulk        *bulk     // gathered and not written
	unsettled   bool      // something is gathered
	since       time.Time // when the first of it came
	epoch       int32     // of the record before position
	records     int64
	restoreFrom int64
	author      []byte // the newest mark of the changelog that was read, and its offset
	authorAt    int64
	view        *storeView

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
	// A restore writes what it has gathered of a store when there is this much of it, or when the oldest has waited this
	// long.
	restoreBytes = 16 << 20
	restoreAge   = time.Second
	// maxRestoreTries bounds how often a restore starts over because a look at the changelog condemned the local state.
	maxRestoreTries = 3
)

// restore brings every store of the task up to its changelog's barrier, or, where it follows a topic, to the committed
// offset.
func (s *session) restore(ctx context.Context, t *taskRun) error {
	logged := t.logged()
	ours := slices.DeleteFunc(slices.Clone(logged), func(st *storeRun) bool { return st.spec.Changelog == "" })
	if len(logged) == 0 {
		return nil
	}
	for try := 0; ; try++ {
		if err := s.inspectPatiently(ctx, t, logged); err != nil {
			return err
		}
		if err := s.barrier(ctx, t, ours); err != nil {
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

// inspectPatiently asks again while the brokers are still finding out who leads a changelog that was made just now.
func (s *session) inspectPatiently(ctx context.Context, t *taskRun, stores []*storeRun) error {
	for try := 1; ; try++ {
		err := s.inspect(ctx, t, stores)
		if err == nil || !kerr.IsRetriable(err) || try == missingTries || !sleep(ctx, missingPause) {
			return err
		}
	}
}

// inspect compares the local positions with the changelogs, and drops local rows that cannot be built on.
func (s *session) inspect(ctx context.Context, t *taskRun, stores []*storeRun) error {
	names := make([]string, len(stores))
	for i, st := range stores {
		names[i] = st.spec.log()
	}
	slices.Sort(names)
	names = slices.Compact(names)
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
		d := meta.Topics[st.spec.log()]
		start, okS := starts.Lookup(st.spec.log(), p)
		end, okE := ends.Lookup(st.spec.log(), p)
		if err := errors.Join(d.Err, start.Err, end.Err); err != nil || !okS || !okE {
			if denied := authError(err, st.spec.log(), "read the changelog"); denied != nil {
				return denied
			}
			return rebuild("changelog %s[%d]: %w", st.spec.log(), p, errors.Join(err, errors.New("not listed")))
		}
		st.topicID, st.start, st.end = d.ID, start.Offset, end.Offset
		st.retention = s.layout.retention[st.spec.log()]
		if st.spec.Source != "" {
			st.barrier = min(t.input(st.spec.Source).start, st.end) - 1
		}
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
	why, onlyCopy, err := JudgeLocalState(LocalState{
		Position: pos, HasPosition: ok, HasRows: func() (bool, error) { return hasRows(t.backend, st.id) },
		TopicID: st.topicID, Start: st.start, End: st.end, Follows: st.spec.Source != "", Limit: st.barrier + 1,
		TooOld: ok && s.tooOld(st, s.e.wallMillis()),
	})
	if err != nil {
		return s.stateError(t, err)
	}
	if onlyCopy && !s.e.cfg.AcceptStateLoss && !s.layout.discarded[pos.TopicID] {
		return &Error{
			Kind: ErrStateLoss, Topic: st.spec.Changelog, Partition: t.id.Partition,
			Detail: fmt.Sprintf("it was recreated and is empty, while the local state of store %q is not", st.spec.Name),
			Hint: "the local state is now the only copy: restore the topic, or start with AcceptStateLoss to " +
				"begin with an empty store",
		}
	}
	if why != "" {
		if err := s.wipeStore(t, st, why); err != nil {
			return err
		}
	}
	if !st.has {
		st.position = st.start
		if st.spec.Source != "" {
			st.wall = s.e.wallMillis() // what is read from now on is of now
		}
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
		zap.String("store", st.spec.Name), zap.String("topic", st.spec.log()), zap.String("reason", why))
	if err := t.backend.DropStore(st.id); err != nil {
		return s.stateError(t, err)
	}
	st.has, st.position, st.wall = false, st.start, 0
	return nil
}

// barrier writes a record into each changelog partition through the client that is in no transaction. It becomes
// readable when every transaction before it is decided: then nothing that was under way can appear any more.
func (s *session) barrier(ctx context.Context, t *taskRun, stores []*storeRun) error {
	if len(stores) == 0 {
		return nil
	}
	if s.e.has(NoBarrier) {
		return s.noBarrier(t, stores)
	}
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
