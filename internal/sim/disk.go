package sim

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"tailrace.dev/internal/task"
	"tailrace.dev/state"
	"tailrace.dev/state/memory"
)

// disk is what a process keeps over its crashes: a backend for each task, written as a whole or torn.
type disk struct {
	s     *sim
	tasks map[task.ID]*backend
}

func (d *disk) open(id task.ID) *backend {
	b := d.tasks[id]
	if b == nil {
		b = &backend{Backend: memory.New(), s: d.s, id: id, logs: map[state.StoreID]store{}, tear: -1}
		d.tasks[id] = b
	}
	return b
}

func (d *disk) wipe() { d.tasks = map[task.ID]*backend{} }

// errTorn ends a write that a crash cuts short.
var errTorn = errors.New("sim: the write was torn")

// backend is a state.Backend over memory that outlives its process. It checks at each write that it gets nothing but what
// is committed, and everything that its position says.
type backend struct {
	*memory.Backend
	s    *sim
	id   task.ID
	logs map[state.StoreID]store
	tear int // how many rows the next write gets to write before the process dies; negative: all
}

// Close keeps the rows: they are on disk.
func (b *backend) Close() error { return nil }

// Write implements state.Backend.
func (b *backend) Write(w state.Write) error {
	if b.tear >= 0 {
		n := min(b.tear, len(w.Rows))
		w = state.Write{Rows: w.Rows[:n]}
	}
	if err := b.Backend.Write(w); err != nil {
		return err
	}
	b.check(w)
	if b.tear >= 0 {
		return errTorn
	}
	return nil
}

// DeleteRange implements state.Backend.
func (b *backend) DeleteRange(id state.StoreID, from, to []byte) error {
	if b.tear >= 0 {
		return errTorn
	}
	return b.Backend.DeleteRange(id, from, to)
}

// check compares what was written with the changelogs.
func (b *backend) check(w state.Write) {
	for _, r := range w.Rows {
		log, ok := b.logs[r.Store]
		if !ok || log.changelog == "" {
			continue
		}
		if !b.s.b.part(tp{log.changelog, b.id.Partition}).holds(r.Key, r.Value) {
			b.s.violate("task %s: the row of key %q of store %s was written to disk, and is in no committed record",
				b.id, r.Key, log.name)
		}
	}
	for _, id := range b.ids() {
		if pos, ok := w.Positions[id]; ok {
			b.checkStore(id, pos)
		}
	}
}

func (b *backend) ids() []state.StoreID {
	ids := make([]state.StoreID, len(b.logs))
	for i := range ids {
		ids[i] = state.StoreID(i + 1)
	}
	return ids
}

// checkStore checks that a store holds all committed records below its position, and maybe some after it.
func (b *backend) checkStore(id state.StoreID, pos state.Position) {
	log := b.logs[id]
	if log.changelog == "" {
		at := tp{log.source, b.id.Partition}
		if limit := b.s.b.everCommitted(at); pos.Next > limit {
			b.s.violate("task %s: store %s follows %s up to %d, and only %d is committed", b.id, log.name, log.source,
				pos.Next, limit)
		}
		return
	}
	t := b.s.b.byName[log.changelog]
	p := t.parts[b.id.Partition]
	if pos.TopicID != t.id {
		b.s.violate("task %s: store %s has a position in another topic", b.id, log.name)
		return
	}
	for _, key := range p.keys {
		want, newer := p.rowAt(key, pos.Next)
		if want != nil && want.superseded {
			continue // whoever reads on finds the row that made compaction remove this one
		}
		got, err := b.Get(id, []byte(key))
		if err != nil {
			b.s.violate("read disk: %v", err)
			return
		}
		if same(got, want.row()) || newer(got) || log.expires && b.s.expired(key, b.id.Partition) {
			continue
		}
		b.s.violate("task %s: store %s at position %d: row %q is %x, want %x", b.id, log.name, pos.Next, key, got, want.row())
	}
}

func same(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }

// holds tells whether a committed record has just this key and value.
func (p *partition) holds(key, value []byte) bool {
	for _, e := range p.byKey[string(key)] {
		if e.visible() && same(e.value, value) {
			return true
		}
	}
	return false
}

// rowAt folds the committed records of a key below an offset, and tells which rows the later ones would leave.
func (p *partition) rowAt(key string, next int64) (last *entry, newer func([]byte) bool) {
	all := p.byKey[key]
	for _, e := range all {
		if e.visible() && e.offset < next {
			last = e
		}
	}
	return last, func(got []byte) bool {
		for _, e := range all {
			if e.visible() && e.offset >= next && same(e.value, got) {
				return true
			}
		}
		return false
	}
}

// row is what a record leaves behind; no record leaves no row.
func (e *entry) row() []byte {
	if e == nil {
		return nil
	}
	return e.value
}

// expired tells whether a row of the window store may have expired: what lies on disk of it then, nobody reads.
func (s *sim) expired(key string, partition int32) bool {
	if len(key) < 16 {
		return false
	}
	start := int64(binary.BigEndian.Uint64([]byte(key[len(key)-16:])) ^ 1<<63)
	now := int64(0)
	for _, e := range s.b.part(tp{s.w.inputs[0], partition}).history {
		if e.visible() {
			now = max(now, e.time)
		}
	}
	return start < now-windowRetention.Milliseconds()
}

// checkDecided is called when a transaction is decided to be committed. No disk may have passed its records by: whoever
// wrote a position behind them has missed them for ever.
func (s *sim) checkDecided(t *txn) {
	for _, part := range t.parts {
		for _, p := range s.procs {
			for _, id := range p.disk.ids() {
				b := p.disk.tasks[id]
				for _, store := range b.ids() {
					if b.logs[store].changelog != part.tp.topic || id.Partition != part.tp.partition {
						continue
					}
					if pos, ok, err := b.Position(store); err == nil && ok && pos.TopicID == s.b.byName[part.tp.topic].id {
						b.checkStore(store, pos)
					}
				}
			}
		}
	}
}

// everCommitted returns the largest offset that was ever decided to be committed for a partition.
func (b *broker) everCommitted(at tp) int64 {
	limit := b.group.offsets[at].next
	for _, t := range b.deciding {
		if t.decision != committed {
			continue
		}
		for _, o := range t.pending {
			if o.tp == at {
				limit = max(limit, o.offset.next)
			}
		}
	}
	return limit
}

// violate ends the run with a finding.
func (s *sim) violate(format string, args ...any) {
	if len(s.findings) < maxFindings {
		s.findings = append(s.findings, fmt.Sprintf(format, args...))
		s.say("VIOLATION: %s", s.findings[len(s.findings)-1])
	}
}
