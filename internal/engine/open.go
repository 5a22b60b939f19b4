package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.uber.org/zap"

	"tailrace.dev/internal/task"
	"tailrace.dev/state"
)

// openTask opens the state of a task, restores it to everything that was ever committed, and makes its machine. What
// it has opened is in t, for retire to close, also when it returns an error.
//
// The order matters. The committed input offsets are known by now, from a fetch that waited for pending transactions.
// The barrier comes after that, so that nothing which those offsets imply can hide behind it.
func (s *session) openTask(ctx context.Context, t *taskRun) error {
	if t.backend = s.standbys.take(ctx, t.id); t.backend == nil {
		if err := s.openState(ctx, t); err != nil {
			return err
		}
	}
	if err := s.registerStores(t); err != nil {
		return err
	}
	written, err := s.checkManifest(t)
	if err != nil {
		return err
	}
	if err := rebuildUnlessTyped(s.e.at("restore-start")); err != nil {
		return err
	}
	if err := s.restore(ctx, t); err != nil {
		return err
	}
	if err := s.checkAuthors(t); err != nil {
		return err
	}
	if err := s.writeManifest(ctx, t, written); err != nil {
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

// registerStores makes the stores of a task over its opened backend.
func (s *session) registerStores(t *taskRun) error {
	for i := range t.sub.Stores {
		st := &storeRun{spec: &t.sub.Stores[i], produced: -1}
		id, err := t.backend.Register(st.spec.Name)
		if err != nil {
			return s.stateError(t, err)
		}
		st.id = id
		t.stores = append(t.stores, st)
	}
	return nil
}

// logged returns the stores of a task that are restored from a topic.
func (t *taskRun) logged() []*storeRun {
	return slices.DeleteFunc(slices.Clone(t.stores), func(st *storeRun) bool { return st.spec.log() == "" })
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
		case errors.Is(err, state.ErrNoSpace):
			return noSpaceError(t, err)
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

// checkCommitted refuses to process all input again on top of state that already has its effects, which is what would
// follow when the group's offsets were deleted or have expired.
func (s *session) checkCommitted(t *taskRun) error {
	var names []string
	together := true // all inputs that have offsets were committed together with those that have none
	for _, in := range t.inputs {
		if in.fresh {
			names = append(names, in.topic)
			continue
		}
		together = together && in.mark.ours && in.mark.inputs == inputsOf(t.sub)
	}
	if len(names) == 0 || len(names) < len(t.inputs) && !together {
		s.warnIfEmpty(t) // an input without an offset may be new in the topology
		return nil
	}
	for _, st := range t.stores {
		if st.spec.Changelog == "" || st.spec.Outlives {
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
