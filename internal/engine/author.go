package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"tailrace.dev/state"
)

// authorKey marks the record by which a changelog itself says whose it is and what its rows look like. It outlives the
// control topic and every state directory. Like the barrier it is no row: no backend holds it.
var authorKey = []byte{state.KindMeta, '!', 'a', 'u', 't', 'h', 'o', 'r'}

// isMark tells whether the key of a changelog record is that of a mark of the engine's, which is no row.
func isMark(key []byte) bool { return len(key) > 1 && key[0] == state.KindMeta && key[1] == '!' }

// author is what the record says.
type author struct {
	App   string `json:"app"`
	Store string `json:"store"`
	Kind  string `json:"kind"`
	Key   string `json:"key"`
	Value string `json:"value"`
}

const maxAuthor = 64 << 10

func (s *session) author(st *Store) author {
	return author{App: s.e.p.App, Store: st.Name, Kind: st.Kind, Key: st.KeySerde, Value: st.ValueSerde}
}

// noteAuthor remembers the newest author among records that are restored.
func (st *storeRun) noteAuthor(records []*kgo.Record) {
	for _, r := range records {
		if bytes.Equal(r.Key, authorKey) && !r.Attrs.IsControl() {
			st.author, st.authorAt = r.Value, r.Offset
		}
	}
}

// checkAuthors refuses a changelog that another store has written, after its restore. What was read of it goes again.
func (s *session) checkAuthors(t *taskRun) error {
	for _, st := range t.stores {
		if len(st.author) == 0 || len(st.author) > maxAuthor || st.spec.Changelog == "" {
			continue
		}
		var was author
		if err := json.Unmarshal(st.author, &was); err != nil {
			continue // of a later version, which has its own ways to refuse
		}
		is := s.author(st.spec)
		err := s.compareAuthors(t, st, was, is)
		if err == nil {
			continue
		}
		if dropped := t.backend.DropStore(st.id); dropped != nil {
			return s.stateError(t, dropped)
		}
		return err
	}
	return nil
}

func (s *session) compareAuthors(t *taskRun, st *storeRun, was, is author) error {
	if was.App != is.App || was.Store != is.Store {
		return &Error{
			Kind: ErrForeignChangelog, Topic: st.spec.Changelog, Partition: t.id.Partition,
			Detail: fmt.Sprintf("its rows are those of store %q of application %q, as the record at offset %d says", was.Store,
				was.App, st.authorAt),
			Hint: "restore the right topic, or reset the application",
		}
	}
	found := compareStore(t.sub, was.shape(st.spec.Changelog), is.shape(st.spec.Changelog))
	if len(found) == 0 {
		return nil
	}
	if s.e.cfg.AcceptTopologyChange {
		for _, d := range found {
			t.log.Error("a changelog was written by another topology; going on, as was asked for", zap.String("what", d.what))
		}
		return nil
	}
	return refusal(found)
}

func (a author) shape(changelog string) shapeStore {
	return shapeStore{Name: a.Store, Kind: a.Kind, Key: a.Key, Value: a.Value, Changelog: changelog}
}

// writeAuthors writes the marks of the stores, by the client that is in no transaction.
func (s *session) writeAuthors(ctx context.Context, t *taskRun, stores []*storeRun) error {
	var records []*kgo.Record
	for _, st := range stores {
		if st.spec.Changelog == "" {
			continue
		}
		b, err := json.Marshal(s.author(st.spec))
		if err != nil {
			return fmt.Errorf("engine: mark changelog %q: %w", st.spec.Changelog, err)
		}
		if bytes.Equal(b, st.author) {
			continue // it was just read
		}
		records = append(records, &kgo.Record{
			Topic: st.spec.Changelog, Partition: t.id.Partition, Key: authorKey, Value: b, Timestamp: s.e.cfg.Now(),
		})
	}
	if len(records) == 0 {
		return nil
	}
	if err := s.plain.ProduceSync(ctx, records...).FirstErr(); err != nil {
		if denied := authError(err, records[0].Topic, "write the changelog"); denied != nil {
			return denied
		}
		return rebuild("mark the changelogs of task %s: %w", t.id, err)
	}
	return nil
}
