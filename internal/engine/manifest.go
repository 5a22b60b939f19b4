package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"go.uber.org/zap"

	"tailrace.dev/state"
)

// manifestStore is the store in each task's backend that says what the rows of the others look like. Its name is none
// that a program can give.
const manifestStore = "@shape"

func manifestKey(store string) []byte { return append([]byte{state.KindMeta}, store...) }

// manifest is what a task's backend says of its stores.
type manifest struct {
	id      state.StoreID
	written map[string]shapeStore
}

// checkManifest refuses local rows that another topology has written into the same changelogs: neither the rows nor
// what a restore would bring can be read. Rows of another changelog are dropped later, by the ids of the topics. It does
// not depend on the control topic, which may have been deleted.
func (s *session) checkManifest(t *taskRun) (*manifest, error) {
	m := &manifest{written: map[string]shapeStore{}}
	var err error
	if m.id, err = t.backend.Register(manifestStore); err != nil {
		return nil, s.stateError(t, err)
	}
	var found []difference
	for _, st := range t.stores {
		b, err := t.backend.Get(m.id, manifestKey(st.spec.Name))
		if err != nil {
			return nil, s.stateError(t, err)
		}
		if b == nil {
			continue
		}
		var was shapeStore
		if err := json.Unmarshal(b, &was); err != nil {
			return nil, s.stateError(t, fmt.Errorf("%w: what store %q looks like: %w", state.ErrCorrupt, st.spec.Name, err))
		}
		m.written[was.Name] = was
		is := st.spec.shape()
		is.TopicID = was.TopicID
		switch {
		case was == is:
		case st.spec.Source != "":
			if err := s.wipeStore(t, st, "it was written by another topology; its topic has it all"); err != nil {
				return nil, err
			}
		case was.TopicID == idText(s.layout.ids[is.Changelog]):
			found = append(found, compareStore(t.sub, was, is)...)
		}
		// The rows of another changelog are the restore's matter, which knows what is lost with them.
	}
	if len(found) == 0 {
		return m, nil
	}
	if !s.e.cfg.AcceptTopologyChange {
		return nil, refusal(found)
	}
	for _, d := range found {
		t.log.Error("local rows were written by another topology; going on, as was asked for", zap.String("what", d.what))
	}
	return m, nil
}

// compareStore compares what two programs make of one store.
func compareStore(sub *Sub, was, is shapeStore) []difference {
	with := func(st shapeStore) *shape {
		return &shape{Subs: []shapeSub{{
			Name: sub.Name, Sources: []shapeSource{{Topic: sub.Sources[0].Topic}}, Stores: []shapeStore{st},
		}}}
	}
	return compareShapes(with(was), with(is), func(string, string) bool { return true })
}

// writeManifest notes what the restored rows of the task look like, here and in the changelogs, unless that is noted
// already.
func (s *session) writeManifest(ctx context.Context, t *taskRun, m *manifest) error {
	w, changed, err := s.changedManifest(t, m)
	if err != nil || len(changed) == 0 {
		return err
	}
	if err := s.writeAuthors(ctx, t, changed); err != nil {
		return err
	}
	if err := t.backend.Write(w); err != nil {
		return s.stateError(t, err)
	}
	return nil
}

// changedManifest returns what has to be written into the task's backend, and the stores that it is about.
func (s *session) changedManifest(t *taskRun, m *manifest) (w state.Write, changed []*storeRun, err error) {
	for _, st := range t.stores {
		is := st.spec.shape()
		is.TopicID = idText(s.layout.ids[is.Changelog])
		if was, ok := m.written[is.Name]; ok && was == is {
			continue
		}
		changed = append(changed, st)
		b, err := json.Marshal(is)
		if err != nil {
			return w, nil, fmt.Errorf("engine: note what store %q looks like: %w", is.Name, err)
		}
		w.Rows = append(w.Rows, state.Row{Store: m.id, Key: manifestKey(is.Name), Value: b})
	}
	slices.SortFunc(w.Rows, func(a, b state.Row) int { return bytes.Compare(a.Key, b.Key) })
	return w, changed, nil
}
