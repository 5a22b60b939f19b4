package state_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/state/memory"
)

// The model of a store is a map of the rows as they are now, the rows as of the last commit, and the rows to which a
// rollback returns.
type modelStore struct {
	rows                 *state.Rows
	id                   state.StoreID
	now, committed, back map[string]string
}

// flaky is a backend whose writes can be made to fail as a full disk would.
type flaky struct {
	*memory.Backend
	full bool
}

func (f *flaky) Write(w state.Write) error {
	if f.full {
		return state.ErrNoSpace
	}
	return f.Backend.Write(w)
}

var storeA = state.KeyValue("a", serde.String, serde.String)
var storeB = state.KeyValue("b", serde.String, serde.String)

type machine struct {
	backend   *flaky
	layers    *state.Layers
	stores    []*modelStore
	recording bool
	flush     *state.Flush
	ran       bool
	commits   int64
	frozen    int64 // the commit that the flush under way contains
	durable   int64 // the commit that the backend contains
}

func newMachine(t *rapid.T) *machine {
	m := &machine{backend: &flaky{Backend: memory.New()}}
	var err error
	if m.layers, err = state.NewLayers(m.backend, []state.AnySpec{storeA, storeB}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		id, err := m.backend.Register(name)
		if err != nil {
			t.Fatal(err)
		}
		m.stores = append(m.stores, &modelStore{
			rows: m.layers.Rows(name), id: id,
			now: map[string]string{}, committed: map[string]string{}, back: map[string]string{},
		})
	}
	return m
}

// genKey makes few different keys, so that writes meet, and some that are prefixes of others.
func genKey(t *rapid.T, label string) []byte {
	letters := rapid.SampledFrom([]byte{0, 'a', 'b', 0xff})
	return append([]byte{state.KindRow}, rapid.SliceOfN(letters, 0, 2).Draw(t, label)...)
}

func (m *machine) store(t *rapid.T) *modelStore { return rapid.SampledFrom(m.stores).Draw(t, "store") }

func (s *modelStore) write(t *rapid.T) {
	key := genKey(t, "key")
	if rapid.Bool().Draw(t, "delete") {
		s.rows.Put(key, nil)
		delete(s.now, string(key))
	} else {
		row := rapid.SliceOfN(rapid.Byte(), 1, 3).Draw(t, "row")
		s.now[string(key)] = string(row)
		s.rows.Put(key, row)
		clear(row)
	}
	clear(key) // the store has to have copied both
}

func (m *machine) Write(t *rapid.T) { m.store(t).write(t) }

func (m *machine) Get(t *rapid.T) {
	s, key := m.store(t), genKey(t, "key")
	row, err := s.rows.Get(key)
	if want, ok := s.now[string(key)]; err != nil || ok != (row != nil) || string(row) != want {
		t.Fatalf("get %q: %q %v, want %q", key, row, err, want)
	}
}

func (m *machine) Scan(t *rapid.T) {
	s := m.store(t)
	var from, to []byte
	if rapid.Bool().Draw(t, "hasFrom") {
		from = genKey(t, "from")
	}
	if rapid.Bool().Draw(t, "hasTo") {
		to = genKey(t, "to")
	}
	reverse := rapid.Bool().Draw(t, "reverse")
	sc := s.rows.Scan(from, to, reverse)
	defer sc.Close()
	var at []byte
	for range 40 { // more than there are keys
		want := s.next(from, to, at, reverse)
		if !sc.Next() {
			if want != nil {
				t.Fatalf("scan [%q, %q) reverse=%t ended behind %q, %q lies ahead", from, to, reverse, at, want)
			}
			if sc.Err() != nil {
				t.Fatal(sc.Err())
			}
			return
		}
		if !bytes.Equal(sc.Key(), want) || string(sc.Row()) != s.now[string(want)] {
			t.Fatalf("scan [%q, %q) reverse=%t behind %q: %q=%q, want %q=%q",
				from, to, reverse, at, sc.Key(), sc.Row(), want, s.now[string(want)])
		}
		at = bytes.Clone(want)
		for range rapid.IntRange(0, 2).Draw(t, "writes") {
			s.write(t)
		}
		if rapid.IntRange(0, 9).Draw(t, "run") == 0 {
			m.Run(t) // by another goroutine
		}
	}
	t.Fatal("the scan does not end")
}

// next returns the key that a scan finds behind at, or nil.
func (s *modelStore) next(from, to, at []byte, reverse bool) []byte {
	keys := slices.Sorted(maps.Keys(s.now))
	if reverse {
		slices.Reverse(keys)
	}
	for _, k := range keys {
		key := []byte(k)
		inside := (from == nil || bytes.Compare(key, from) >= 0) && (to == nil || bytes.Compare(key, to) < 0)
		c := bytes.Compare(key, at)
		if inside && (at == nil || (c > 0 && !reverse) || (c < 0 && reverse)) {
			return key
		}
	}
	return nil
}

func (m *machine) Savepoint(*rapid.T) {
	m.layers.Savepoint()
	m.recording = true
	for _, s := range m.stores {
		s.back = maps.Clone(s.now)
	}
}

func (m *machine) Rollback(t *rapid.T) {
	if !m.recording {
		t.Skip("no savepoint")
	}
	m.layers.Rollback()
	for _, s := range m.stores {
		s.now = maps.Clone(s.back)
	}
}

func (m *machine) Commit(t *rapid.T) {
	changed := make([]map[string]string, len(m.stores))
	for i, s := range m.stores {
		changed[i] = maps.Clone(s.committed)
	}
	m.layers.Changes(func(store int, key, row []byte) {
		if row == nil {
			delete(changed[store], string(key))
		} else {
			changed[store][string(key)] = string(row)
		}
	})
	m.commits++
	positions := make([]state.Position, len(m.stores))
	for i, s := range m.stores {
		if !maps.Equal(changed[i], s.now) {
			t.Fatalf("the changes lead to %q, want %q", changed[i], s.now)
		}
		s.committed, s.back = maps.Clone(s.now), maps.Clone(s.now)
		positions[i] = state.Position{Next: m.commits, LeaderEpoch: -1}
	}
	m.layers.Commit(positions, m.commits)
	if m.layers.Changed() || m.layers.Uncommitted() != 0 {
		t.Fatal("there are changes right after a commit")
	}
}

func (m *machine) Drop(*rapid.T) {
	m.layers.Drop()
	for _, s := range m.stores {
		s.now, s.back = maps.Clone(s.committed), maps.Clone(s.committed)
	}
}

func (m *machine) Freeze(t *rapid.T) {
	f := m.layers.Freeze()
	if m.flush != nil || m.commits == m.frozen {
		if f != nil {
			t.Fatal("there is nothing to freeze")
		}
		return
	}
	if f == nil {
		t.Fatal("there is something to freeze")
	}
	m.flush, m.ran, m.frozen = f, false, m.commits
}

func (m *machine) Run(t *rapid.T) {
	if m.flush == nil {
		return
	}
	m.backend.full = rapid.IntRange(0, 3).Draw(t, "full") == 0
	err := m.flush.Run()
	if m.backend.full {
		if !errors.Is(err, state.ErrNoSpace) {
			t.Fatalf("run on a full disk: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	m.ran = true
}

func (m *machine) Done(*rapid.T) {
	if m.ran {
		m.layers.Done(m.flush)
		m.flush, m.ran, m.durable = nil, false, m.frozen
	}
}

// Check looks at the whole.
func (m *machine) Check(t *rapid.T) {
	for _, s := range m.stores {
		got := map[string]string{}
		sc := s.rows.Scan(nil, nil, false)
		for sc.Next() {
			got[string(sc.Key())] = string(sc.Row())
		}
		sc.Close()
		if !maps.Equal(got, s.now) {
			t.Fatalf("rows %q, want %q", got, s.now)
		}
		if m.flush != nil {
			continue // the backend may be on either side
		}
		p, _, err := m.backend.Position(s.id)
		if err != nil || p.Next != m.durable {
			t.Fatalf("position %d %v, want %d", p.Next, err, m.durable)
		}
	}
	if bytes, since := m.layers.Unflushed(); (since != 0) != (m.commits > m.frozen) || bytes < 0 {
		t.Fatalf("unflushed: %d bytes since %d, %d commits, %d frozen", bytes, since, m.commits, m.frozen)
	}
}

func TestLayersModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(t)
		t.Repeat(map[string]func(*rapid.T){
			"write": m.Write, "write again": m.Write, "get": m.Get, "scan": m.Scan, "savepoint": m.Savepoint,
			"rollback": m.Rollback, "commit": m.Commit, "drop": m.Drop, "freeze": m.Freeze, "run": m.Run,
			"done": m.Done, "": m.Check,
		})
		// In the end, what is flushed is what was committed.
		m.Drop(t)
		for m.flush != nil || m.commits > m.frozen {
			m.Freeze(t)
			m.backend.full = false
			if err := m.flush.Run(); err != nil {
				t.Fatal(err)
			}
			m.ran = true
			m.Done(t)
		}
		for _, s := range m.stores {
			if got := contents(m.backend, s.id); !maps.Equal(got, s.committed) {
				t.Fatalf("the backend holds %q, want %q", got, s.committed)
			}
		}
	})
}

func contents(b state.Backend, id state.StoreID) map[string]string {
	got := map[string]string{}
	c := b.Scan(id, nil, nil, false)
	defer c.Close()
	for c.Next() {
		got[string(c.Key())] = string(c.Value())
	}
	return got
}

// A restore may start anywhere at or below what the local state holds: rows that are newer than where it starts are
// first set back and then caught up.
func TestChangelogSuffixOverNewerRows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(t)
		type change struct {
			store int
			key   string
			row   []byte
		}
		var log []change
		for range rapid.IntRange(1, 12).Draw(t, "commits") {
			for range rapid.IntRange(0, 6).Draw(t, "writes") {
				m.Write(t)
			}
			m.layers.Changes(func(store int, key, row []byte) {
				log = append(log, change{store, string(key), bytes.Clone(row)})
			})
			m.Commit(t)
		}
		have := rapid.IntRange(0, len(log)).Draw(t, "have")
		from := rapid.IntRange(0, have).Draw(t, "from")
		backend := memory.New()
		var ids []state.StoreID
		for _, name := range []string{"a", "b"} {
			id, err := backend.Register(name)
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
		for _, part := range [][]change{log[:have], log[from:]} {
			for _, c := range part {
				err := backend.Write(state.Write{Rows: []state.Row{{Store: ids[c.store], Key: []byte(c.key), Value: c.row}}})
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		for i, s := range m.stores {
			if got := contents(backend, ids[i]); !maps.Equal(got, s.committed) {
				t.Fatalf("restored from %d over %d of %d: %q, want %q", from, have, len(log), got, s.committed)
			}
		}
	})
}

func TestForgetIsUndone(t *testing.T) {
	backend := memory.New()
	layers, err := state.NewLayers(backend, []state.AnySpec{storeA})
	if err != nil {
		t.Fatal(err)
	}
	rows := layers.Rows("a")
	id, err := backend.Register("a")
	if err != nil {
		t.Fatal(err)
	}
	key := func(n int) []byte { return fmt.Appendf([]byte{state.KindRow}, "%d", n) }
	flush := func() {
		t.Helper()
		layers.Commit([]state.Position{{Next: 1}}, 1)
		f := layers.Freeze()
		if err := f.Run(); err != nil {
			t.Fatal(err)
		}
		layers.Done(f)
	}
	for n := range 6 {
		rows.Put(key(n), []byte("row"))
	}
	flush()

	layers.Savepoint()
	rows.Forget(key(5)) // by a record that is skipped
	layers.Rollback()
	flush()
	if got := len(contents(backend, id)); got != 6 {
		t.Fatalf("%d rows are left after a skipped expiry, want 6", got)
	}

	rows.Forget(key(4)) // by a batch that is aborted
	layers.Drop()
	flush()
	if got := len(contents(backend, id)); got != 6 {
		t.Fatalf("%d rows are left after an aborted expiry, want 6", got)
	}

	rows.Forget(key(3)) // uncommitted while a flush runs
	layers.Savepoint()
	layers.Commit([]state.Position{{Next: 2}}, 2)
	rows.Forget(key(5))
	f := layers.Freeze()
	if err := f.Run(); err != nil {
		t.Fatal(err)
	}
	layers.Done(f)
	if got := len(contents(backend, id)); got != 3 {
		t.Fatalf("%d rows are left, want those above the committed bound: 3", got)
	}
}
