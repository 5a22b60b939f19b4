// Package memory is a state.Backend that keeps rows in ordered trees in memory. Nothing survives the process: it serves
// tests, and tasks whose state is cheap to restore from the changelog.
package memory

import (
	"errors"
	"fmt"
	"maps"
	"sync"

	"github.com/tidwall/btree"

	"tailrace.dev/state"
)

var errClosed = errors.New("memory: backend is closed")

// rowOverhead is roughly what a tree spends on a row besides its bytes: a string header and a slice header.
const rowOverhead = 40

// tree maps row keys to rows. A published tree is never changed: a write changes a copy, which shares all untouched
// nodes, and publishes that.
type tree = btree.Map[string, []byte]

// store is one registered store.
type store struct {
	name    string
	dropped bool
	rows    *tree
	pos     state.Position
	hasPos  bool
}

// Backend keeps all rows in memory. It is safe for use by many goroutines; readers never wait for a write, and see
// each write as a whole.
type Backend struct {
	// writing serialises those that change the backend. It is taken before mu.
	writing sync.Mutex

	mu     sync.RWMutex // guards all below
	stores []*store     // by id, from 1
	ids    map[string]state.StoreID
	size   int64
	closed bool
}

var _ state.Backend = (*Backend)(nil)

// New returns an empty backend.
func New() *Backend {
	return &Backend{ids: make(map[string]state.StoreID)}
}

// Register returns the id of the store with the given name, making one when it is new.
func (b *Backend) Register(name string) (state.StoreID, error) {
	b.writing.Lock()
	defer b.writing.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, errClosed
	}
	if id, ok := b.ids[name]; ok {
		b.stores[id-1].dropped = false
		return id, nil
	}
	b.stores = append(b.stores, &store{name: name, rows: new(tree)})
	id := state.StoreID(len(b.stores))
	b.ids[name] = id
	return id, nil
}

// Stores returns the names of all stores that were registered and not dropped. The map belongs to the caller.
func (b *Backend) Stores() map[string]state.StoreID {
	b.mu.RLock()
	defer b.mu.RUnlock()
	names := maps.Clone(b.ids)
	maps.DeleteFunc(names, func(_ string, id state.StoreID) bool { return b.stores[id-1].dropped })
	return names
}

// store finds a store; the caller holds mu.
func (b *Backend) store(id state.StoreID) (*store, error) {
	if b.closed {
		return nil, errClosed
	}
	if id == 0 || int64(id) > int64(len(b.stores)) {
		return nil, fmt.Errorf("memory: store %d is not registered", id)
	}
	return b.stores[id-1], nil
}

// Get returns a copy of the row under key, or nil when there is none.
func (b *Backend) Get(id state.StoreID, key []byte) ([]byte, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	s, err := b.store(id)
	if err != nil {
		return nil, err
	}
	row, ok := s.rows.Get(string(key))
	if !ok {
		return nil, nil
	}
	return append(make([]byte, 0, len(row)), row...), nil
}

// Scan opens a cursor over the rows with from <= key < to, in key order, or backwards from to. The cursor goes on to
// see the backend as of the call, also after Close of the backend.
func (b *Backend) Scan(id state.StoreID, from, to []byte, reverse bool) state.Cursor {
	b.mu.RLock()
	defer b.mu.RUnlock()
	s, err := b.store(id)
	if err != nil {
		return &cursor{err: err, done: true}
	}
	return newCursor(s.rows, from, to, reverse)
}

// Write applies w as a whole: no reader sees a part of it.
func (b *Backend) Write(w state.Write) error {
	b.writing.Lock()
	defer b.writing.Unlock()

	// Nothing but a holder of b.writing changes what is read here, so that the lock is needed only for publishing.
	b.mu.RLock()
	changed := make(map[state.StoreID]*tree)
	size := b.size
	for id := range w.Positions {
		if _, err := b.store(id); err != nil {
			b.mu.RUnlock()
			return err
		}
	}
	for _, row := range w.Rows {
		if changed[row.Store] != nil {
			continue
		}
		s, err := b.store(row.Store)
		if err != nil {
			b.mu.RUnlock()
			return err
		}
		changed[row.Store] = s.rows
	}
	b.mu.RUnlock()
	for id, rows := range changed {
		changed[id] = b.copyTree(rows)
	}

	for _, row := range w.Rows {
		rows := changed[row.Store]
		key := string(row.Key)
		if row.Value == nil {
			if old, ok := rows.Delete(key); ok {
				size -= rowSize(key, old)
			}
			continue
		}
		value := append(make([]byte, 0, len(row.Value)), row.Value...)
		if old, ok := rows.Set(key, value); ok {
			size -= rowSize(key, old)
		}
		size += rowSize(key, value)
	}

	b.mu.Lock()
	defer b.mu.Unlock()
	for id, rows := range changed {
		b.stores[id-1].rows = rows
	}
	for id, p := range w.Positions {
		s := b.stores[id-1]
		s.pos, s.hasPos = p, true
	}
	b.size = size
	return nil
}

// copyTree returns a copy that may be changed while rows is read. Copying marks the tree itself, which readers must not
// see half done.
func (b *Backend) copyTree(rows *tree) *tree {
	b.mu.Lock()
	defer b.mu.Unlock()
	return rows.Copy()
}

func rowSize(key string, row []byte) int64 { return int64(len(key) + len(row) + rowOverhead) }

// Position returns the changelog position of a store; ok is false when none was written yet.
func (b *Backend) Position(id state.StoreID) (p state.Position, ok bool, err error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	s, err := b.store(id)
	if err != nil {
		return state.Position{}, false, err
	}
	return s.pos, s.hasPos, nil
}

// DropStore removes all rows and the position of a store; its id stays registered.
func (b *Backend) DropStore(id state.StoreID) error {
	b.writing.Lock()
	defer b.writing.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	s, err := b.store(id)
	if err != nil {
		return err
	}
	s.rows.Scan(func(key string, row []byte) bool {
		b.size -= rowSize(key, row)
		return true
	})
	s.rows, s.pos, s.hasPos, s.dropped = new(tree), state.Position{}, false, true
	return nil
}

// Size tells roughly how many bytes of memory the rows take.
func (b *Backend) Size() int64 {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.size
}

// Close lets the rows go. It is idempotent; all other calls fail afterwards.
func (b *Backend) Close() error {
	b.writing.Lock()
	defer b.writing.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.stores, b.ids, b.size = nil, map[string]state.StoreID{}, 0
	return nil
}
