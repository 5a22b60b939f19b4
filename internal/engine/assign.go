package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/zap"

	"tailrace.dev/internal/task"
	"tailrace.dev/state"
)

// The callbacks of the group run on the client's goroutines, and must not wait for the session: they only post.

// onAssigned pauses what is new until its task is restored. The client fetches nothing before this returns.
func (s *session) onAssigned(_ context.Context, cl *kgo.Client, partitions map[string][]int32) {
	if len(partitions) > 0 {
		cl.PauseFetchPartitions(partitions)
	}
	member, _ := cl.GroupMetadata()
	s.post(func() error { return s.assigned(partitions, member) })
}

func (s *session) onRevoked(_ context.Context, _ *kgo.Client, partitions map[string][]int32) {
	s.post(func() error { return s.revoked(partitions, "revoked") })
}

func (s *session) onLost(_ context.Context, _ *kgo.Client, partitions map[string][]int32) {
	s.post(func() error { return s.revoked(partitions, "lost") })
}

// location is where the processing of a partition starts.
type location struct {
	offset   int64
	fresh    bool // not committed: by the start policy
	metadata string
	mark     mark
}

// onOffsets sees the committed offsets with their metadata, which the client drops.
func (s *session) onOffsets(_ context.Context, _ *kgo.Client, resp *kmsg.OffsetFetchResponse) error {
	names := make(map[kadm.TopicID]string, len(s.layout.ids))
	for name, id := range s.layout.ids {
		names[id] = name
	}
	s.fetchedMu.Lock()
	defer s.fetchedMu.Unlock()
	for _, g := range resp.Groups {
		for _, t := range g.Topics {
			topic := t.Topic
			if topic == "" {
				topic = names[t.TopicID]
			}
			for _, p := range t.Partitions {
				if p.ErrorCode != 0 || p.Metadata == nil {
					continue
				}
				s.fetchedMeta[topicPartition{topic, p.Partition}] = *p.Metadata
			}
		}
	}
	return nil
}

type topicPartition struct {
	topic     string
	partition int32
}

// adjustOffsets turns "from the start" and "from the end" into numbers before the client begins to fetch, so that the
// position of every partition is known even while nothing was read or committed.
func (s *session) adjustOffsets(
	ctx context.Context, offsets map[string]map[int32]kgo.Offset,
) (map[string]map[int32]kgo.Offset, error) {
	located, committed := map[topicPartition]location{}, map[topicPartition]location{}
	for topic, partitions := range offsets {
		src := s.source(topic)
		if src == nil {
			continue
		}
		var listed kadm.ListedOffsets
		for p, o := range partitions {
			s.fetchedMu.Lock()
			meta := s.fetchedMeta[topicPartition{topic, p}]
			delete(s.fetchedMeta, topicPartition{topic, p})
			s.fetchedMu.Unlock()
			if at := o.EpochOffset().Offset; at >= 0 {
				meta, m := cutMark(meta)
				err := s.checkTopicID(topic, p, m)
				if err == nil {
					committed[topicPartition{topic, p}] = location{offset: at, metadata: meta, mark: m}
					continue
				}
				if !s.e.cfg.AcceptTopologyChange {
					s.fail(err)
					return nil, err
				}
				s.log.Error("a committed offset is of another topic and does not count, as was asked for", zap.Error(err))
			}
			if src.Start == StartFail {
				err := &Error{
					Kind: ErrNoCommittedOffset, Topic: topic, Partition: p,
					Hint: "its start policy is to fail: set the offset with the reset tool, or choose earliest or latest",
				}
				s.fail(err)
				return nil, err
			}
			if listed == nil {
				var err error
				if listed, err = s.startOffsets(ctx, src); err != nil {
					return nil, err
				}
			}
			at, ok := listed.Lookup(topic, p)
			if !ok || at.Err != nil {
				return nil, fmt.Errorf("engine: find the start of %s[%d]: %w", topic, p,
					errors.Join(at.Err, errors.New("no offset listed")))
			}
			partitions[p] = kgo.NewOffset().At(at.Offset)
			located[topicPartition{topic, p}] = location{offset: at.Offset, fresh: true}
		}
	}
	if err := s.inRange(ctx, committed); err != nil {
		var typed *Error
		if errors.As(err, &typed) {
			s.fail(err)
		}
		return nil, err
	}
	for tp, at := range committed {
		if o := offsets[tp.topic][tp.partition]; o.EpochOffset().Offset != at.offset {
			offsets[tp.topic][tp.partition] = kgo.NewOffset().At(at.offset)
		}
		located[tp] = at
	}
	s.post(func() error { s.locate(located); return nil })
	return offsets, nil
}

func (s *session) startOffsets(ctx context.Context, src *Source) (kadm.ListedOffsets, error) {
	list := s.adm.ListStartOffsets
	if src.Start == StartLatest {
		list = s.adm.ListCommittedOffsets
	}
	listed, err := list(ctx, src.Topic)
	if err != nil {
		return nil, fmt.Errorf("engine: find where to start in %q: %w", src.Topic, err)
	}
	return listed, nil
}

func (s *session) source(topic string) *Source {
	for i := range s.e.p.Subs {
		sub := &s.e.p.Subs[i]
		for j := range sub.Sources {
			if sub.Sources[j].Topic == topic {
				return &sub.Sources[j]
			}
		}
	}
	return nil
}

// assigned takes partitions over. A task starts when it owns all of its inputs and knows where to start in them.
func (s *session) assigned(partitions map[string][]int32, member string) error {
	if s.memberID != "" && member != s.memberID {
		// We were expelled and let in again under another name: between the two, another member may have processed
		// what our tasks hold, or the application may have been reset, which the start of a session looks at.
		return rebuild("the group let this member in anew, with another id")
	}
	s.memberID = member
	s.log.Info("assigned", zap.Any("partitions", partitions), zap.String("member", member))
	foreign := false
	for topic, ps := range partitions {
		if _, known := s.inputs[topic]; !known {
			foreign = true // of the version that had this member's place before
			continue
		}
		for _, p := range ps {
			in := s.own(topic, p)
			if in == nil {
				return rebuild("the group assigned %s[%d], which this member does not know", topic, p)
			}
			in.owned = true
			s.group.moved = true
		}
	}
	s.startReady()
	if !s.joined {
		s.joined = true
		s.e.board.hasJoined()
		s.forceRebalanceIfChanged(foreign)
	} else if s.announcing {
		s.announcing = false
		if err := s.e.rememberJoin(s.e.joinMark()); err != nil {
			s.log.Warn("cannot remember the topology in the state directory", zap.Error(err))
		}
	}
	s.updateState()
	return nil
}

// forceRebalanceIfChanged asks for a new assignment after a static member came back with another topology: the
// coordinator gives it what it had before, whatever it subscribes to now. That it did so is remembered when the new one
// is there, so that a member that is killed in between asks again. foreign tells that it was given what it does not know.
func (s *session) forceRebalanceIfChanged(foreign bool) {
	if s.e.cfg.InstanceID == "" || !foreign && s.e.joinedAs(s.e.joinMark()) {
		return
	}
	s.log.Info("first join with this topology: asking for a rebalance", zap.String("fingerprint", s.e.p.Fingerprint))
	s.announcing = true
	s.cl.ForceRebalance()
}

// own returns the input of a partition, making its task where that is new.
func (s *session) own(topic string, p int32) *input {
	parts := s.inputs[topic]
	if int(p) >= len(parts) || p < 0 {
		return nil
	}
	if parts[p] == nil {
		for i := range s.e.p.Subs {
			sub := &s.e.p.Subs[i]
			if slices.ContainsFunc(sub.Sources, func(src Source) bool { return src.Topic == topic }) {
				s.newTask(sub, p)
			}
		}
	}
	return parts[p]
}

// newTask makes a task that owns nothing yet.
func (s *session) newTask(sub *Sub, p int32) *taskRun {
	id := task.ID{Sub: sub.Name, Partition: p}
	t := &taskRun{s: s, id: id, sub: sub, log: s.log.With(zap.Stringer("task", id))}
	t.view = s.e.board.show(id, RoleActive, sub)
	for i, src := range sub.Sources {
		in := &input{t: t, topic: src.Topic, partition: p, view: t.view.inputs[i]}
		t.inputs = append(t.inputs, in)
		s.inputs[src.Topic][p] = in
	}
	s.tasks[id] = t
	if s.e.has(NoBarrier) {
		t.earlyEnds = s.changelogEnds(t)
	}
	return t
}

// locate notes where partitions start, and starts the tasks that waited for it.
func (s *session) locate(located map[topicPartition]location) {
	for tp, at := range located {
		parts := s.inputs[tp.topic]
		if int(tp.partition) >= len(parts) || parts[tp.partition] == nil {
			continue // revoked meanwhile
		}
		in := parts[tp.partition]
		if in.t.startDone != nil {
			continue
		}
		in.located, in.start, in.fresh, in.mark = true, at.offset, at.fresh, at.mark
		in.view.committed.Store(at.offset)
		if at.metadata != "" {
			in.t.metadata = at.metadata
		}
	}
	s.startReady()
	s.updateState()
}

// startReady starts the tasks that have all they need.
func (s *session) startReady() {
	var ids []task.ID
	for _, t := range s.tasks {
		if t.startDone != nil ||
			slices.ContainsFunc(t.inputs, func(in *input) bool { return !in.owned || !in.located }) {
			continue
		}
		t.startDone = make(chan struct{})
		t.life, t.cancel = context.WithCancel(s.ctx)
		ids = append(ids, t.id)
		s.async.Add(1)
		go s.start(t.life, t, s.closing[t.id])
	}
	if len(ids) > 0 && s.e.cfg.Events.TasksChanged != nil {
		s.e.cfg.Events.TasksChanged(ids, nil)
	}
}

// start opens and restores a task, then lets it run.
func (s *session) start(ctx context.Context, t *taskRun, formerClosed <-chan struct{}) {
	defer s.async.Done()
	err := func() error {
		defer close(t.startDone)
		if formerClosed != nil {
			select {
			case <-formerClosed:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		select {
		case s.starts <- struct{}{}:
			defer func() { <-s.starts }()
		case <-ctx.Done():
			return ctx.Err()
		}
		t.view.setState(TaskRestoring)
		return s.openTask(ctx, t)
	}()
	switch {
	case ctx.Err() != nil: // revoked, or the session ended
	case err != nil:
		s.fail(err)
	default:
		s.post(func() error { s.ready(t); return nil })
	}
}

// ready lets a restored task process.
func (s *session) ready(t *taskRun) {
	if s.tasks[t.id] != t {
		return // revoked meanwhile
	}
	t.running = true
	t.view.setState(TaskRunning)
	s.nextLag = time.Time{} // a task that runs should soon know its lag
	resume := map[string][]int32{}
	rewind := map[string]map[int32]kgo.EpochOffset{}
	for _, in := range t.inputs {
		in.committed, in.next = in.start, in.start
		resume[in.topic] = []int32{in.partition}
		if in.dropped {
			in.dropped = false
			rewind[in.topic] = map[int32]kgo.EpochOffset{in.partition: {Epoch: -1, Offset: in.start}}
		}
	}
	s.cl.SetOffsets(rewind)
	s.cl.ResumeFetchPartitions(resume)
	t.log.Info("task runs")
	s.schedule(t)
	s.updateState()
}

// revoked gives partitions up. Everything was committed before the group could ask for this.
func (s *session) revoked(partitions map[string][]int32, how string) error {
	gone := map[task.ID]*taskRun{}
	for topic, ps := range partitions {
		for _, p := range ps {
			parts := s.inputs[topic]
			if int(p) >= len(parts) || parts[p] == nil {
				continue
			}
			parts[p].owned = false
			gone[parts[p].t.id] = parts[p].t
		}
	}
	if len(gone) == 0 {
		return nil
	}
	s.log.Info(how, zap.Any("partitions", partitions))
	var ids []task.ID
	for id, t := range gone {
		if t.dirty {
			return rebuild("task %s was %s with uncommitted work", id, how)
		}
		ids = append(ids, id)
		s.retire(t, true)
		s.keepOwned(t)
	}
	if f := s.e.cfg.Events.TasksChanged; f != nil {
		f(nil, ids)
	}
	s.updateState()
	return nil
}

// keepOwned makes a waiting task of the partitions that a retired one still owns. They stay paused.
func (s *session) keepOwned(old *taskRun) {
	if !slices.ContainsFunc(old.inputs, func(in *input) bool { return in.owned }) {
		return
	}
	t := s.newTask(old.sub, old.id.Partition)
	t.metadata = old.metadata
	for i, in := range old.inputs {
		if !in.owned {
			continue
		}
		kept := t.inputs[i]
		kept.owned, kept.located, kept.fresh, kept.mark = true, in.located, in.fresh, in.mark
		kept.start, kept.dropped = in.start, old.running
		if old.running {
			kept.start = in.committed
		}
		if in.located {
			kept.view.committed.Store(kept.start)
		}
		s.cl.PauseFetchPartitions(map[string][]int32{in.topic: {in.partition}})
	}
}

// retire takes a task out of the session and closes it, its committed rows flushed first if asked. The workers must be
// paused or gone.
func (s *session) retire(t *taskRun, flush bool) {
	delete(s.tasks, t.id)
	s.e.board.hide(t.view)
	for _, in := range t.inputs {
		s.inputs[in.topic][in.partition] = nil
	}
	wasRunning := t.running
	t.running = false
	s.uncommitted.Add(-t.held)
	s.unflushed.Add(-t.unflushed)
	if t.cancel != nil {
		t.cancel()
	}
	if t.startDone == nil {
		return
	}
	done := make(chan struct{})
	s.closing[t.id] = done
	s.async.Add(1)
	go func() {
		defer s.async.Done()
		defer close(done)
		<-t.startDone
		healthy := flush
		if flush && wasRunning {
			if err := s.flushAll(t); err != nil {
				healthy = false
				t.log.Warn("flush at the task's end failed; the changelog has it all", zap.Error(err))
			}
		} else if t.flush != nil {
			<-t.flush.done
		}
		var errs []error
		if t.machine != nil {
			errs = append(errs, t.machine.Close())
		}
		errs = append(errs, s.standbys.release(t.id, t.backend, healthy))
		if err := errors.Join(errs...); err != nil {
			t.log.Warn("task closed with an error", zap.Error(err))
			return
		}
		t.log.Info("task closed")
	}()
}

// stepError judges an error of a machine. Damaged state is wiped and restored; what else a task returns is the user's.
func (s *session) stepError(t *taskRun, err error) error {
	if errors.Is(err, state.ErrCorrupt) {
		if err := s.e.relapsed(t.id, err); err != nil {
			return err
		}
		s.e.wipeLater(t.id)
		return &rebuildError{fmt.Errorf("engine: task %s: %w", t.id, err)}
	}
	if errors.Is(err, state.ErrNoSpace) {
		return noSpaceError(t, err)
	}
	return err
}

// updateState tells the world whether all tasks run.
func (s *session) updateState() {
	if !s.joined {
		return
	}
	for _, t := range s.tasks {
		if !t.running && !slices.ContainsFunc(t.inputs, func(in *input) bool { return !in.owned }) {
			s.e.setState(StateRestoring)
			return
		}
	}
	s.e.setState(StateRunning)
}
