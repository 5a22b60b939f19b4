package state

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// Layers holds the rows of one task that are not in its backend yet, over the backend:
//
//	computing    written by the batch in progress; undone record by record under a Skip policy
//	committed    in the changelog by a committed transaction; grows until it is frozen
//	flushing     frozen, on its way into the backend; immutable
//	backend      on disk
//
// A read takes the first layer that knows the key. Nothing uncommitted ever reaches the backend, so that state may lag
// its changelog and never leads it.
//
// Layers belongs to the task's goroutine; only Flush.Run may be called by another.
type Layers struct {
	backend Backend
	stores  []*Rows
	arena   arena

	undo      []undoEntry
	recording bool

	computingBytes int64
	committedBytes int64
	sinceMillis    int64
	positions      map[StoreID]Position // of the committed layer, newest
	flushing       *Flush
	err            error // of the first read that failed since the last Drop

	// The first row since the last Savepoint or Drop that exceeds its store's limit, and its size.
	oversized      *Rows
	oversizedBytes int
}

// undoEntry restores one row of a computing layer.
type undoEntry struct {
	rows  *Rows
	index int32
	prev  []byte
	fresh bool
}

// Rows is one store of a task as rows of bytes: what every kind of store is made of. Keys include the kind byte.
type Rows struct {
	layers *Layers
	index  int
	id     StoreID
	spec   AnySpec

	computing *layer
	committed *layer
	flushing  *layer // nil when no flush is under way

	// floor is the end of the rows that have expired: nothing reads below it. committedFloor is what it was at the last
	// commit: a flush removes what is below that. savedFloor is what it was at the savepoint.
	floor, savedFloor, committedFloor []byte
	floorMoved                        bool // committedFloor has, since the last flush
	cells                             map[string]*Cell

	// evict is told of keys whose newest write was undone, so that decoded copies of it go.
	evict func(key string)
	// typed is the typed store over these rows; one for a task, so that all users share one object cache.
	typed any
	// readOnly makes the typed store refuse to be written to: its topic is its changelog.
	readOnly bool
	// limit is how large a row may be with its key; 0: any size.
	limit int
}

// NewLayers opens the stores of a task over its backend, in the given order.
func NewLayers(backend Backend, specs []AnySpec) (*Layers, error) {
	l := &Layers{backend: backend, positions: make(map[StoreID]Position)}
	for i, spec := range specs {
		id, err := backend.Register(spec.Name())
		if err != nil {
			return nil, fmt.Errorf("state: open store %q: %w", spec.Name(), err)
		}
		l.stores = append(l.stores, &Rows{
			layers: l, index: i, id: id, spec: spec, computing: newLayer(), committed: newLayer(),
		})
	}
	return l, nil
}

// Rows returns the rows of the store with the given name, or nil.
func (l *Layers) Rows(store string) *Rows {
	i := slices.IndexFunc(l.stores, func(r *Rows) bool { return r.spec.Name() == store })
	if i < 0 {
		return nil
	}
	return l.stores[i]
}

// Savepoint starts to record what Rollback undoes. It replaces an earlier savepoint.
func (l *Layers) Savepoint() {
	l.undo = l.undo[:0]
	l.recording = true
	l.oversized, l.oversizedBytes = nil, 0
	for _, r := range l.stores {
		r.savedFloor = r.floor
	}
}

// Rollback undoes all writes since the Savepoint.
func (l *Layers) Rollback() {
	for _, u := range slices.Backward(l.undo) {
		e := u.rows.computing.entries[u.index]
		u.rows.undone(e.key)
		if u.fresh {
			u.rows.computing.dropLast()
		} else {
			u.rows.computing.entries[u.index].row = u.prev
		}
	}
	l.undo = l.undo[:0]
	for _, r := range l.stores {
		r.floor = r.savedFloor
	}
}

// Changed reports whether any row was written since the last Commit or Drop.
func (l *Layers) Changed() bool {
	for _, r := range l.stores {
		if r.computing.len() > 0 {
			return true
		}
	}
	return false
}

// Changes calls yield for the newest write of every row of the batch in progress. The slices are immutable and stay
// valid.
func (l *Layers) Changes(yield func(store int, key, row []byte)) {
	for i, r := range l.stores {
		for j := range r.computing.entries {
			e := &r.computing.entries[j]
			yield(i, bytesOf(e.key), e.row)
		}
	}
}

// Commit moves the rows of the batch to the committed layer. positions has one entry a store, in order; a zero
// Position leaves the store's as it was.
func (l *Layers) Commit(positions []Position, wallMillis int64) {
	for i, r := range l.stores {
		if len(positions) > i && positions[i] != (Position{}) {
			l.positions[r.id] = positions[i]
			if l.sinceMillis == 0 {
				l.sinceMillis = wallMillis
			}
		}
		if len(r.floor) > 0 && !bytes.Equal(r.floor, r.committedFloor) {
			r.committedFloor, r.floorMoved = r.floor, true
		}
		if r.computing.len() == 0 {
			continue
		}
		if l.sinceMillis == 0 {
			l.sinceMillis = wallMillis
		}
		if r.committed.len() == 0 {
			r.computing, r.committed = r.committed, r.computing
			continue
		}
		for _, e := range r.computing.entries {
			r.committed.put(e.key, e.row)
		}
		r.computing.clear()
	}
	l.committedBytes += l.computingBytes
	l.computingBytes = 0
	l.undo = l.undo[:0]
}

// Drop forgets the batch in progress.
func (l *Layers) Drop() {
	for _, r := range l.stores {
		for i := range r.computing.entries {
			r.undone(r.computing.entries[i].key)
		}
		r.computing.clear()
		r.floor = r.committedFloor
		r.savedFloor = r.floor
	}
	l.computingBytes = 0
	l.undo = l.undo[:0]
	l.err = nil
	l.oversized, l.oversizedBytes = nil, 0
}

// Err returns the error of the first read of the backend that failed since the last Drop, whether or not whoever read
// has passed it on. The batch in progress is not to be trusted then.
func (l *Layers) Err() error { return l.err }

// Oversized returns the store and the size, in bytes of key and row, of the first write since the last Savepoint or Drop
// that exceeds the limit of LimitBytes, or "" and 0.
func (l *Layers) Oversized() (store string, bytes int) {
	if l.oversized == nil {
		return "", 0
	}
	return l.oversized.Name(), l.oversizedBytes
}

// fail notes an error of the backend, or of a row that it damaged.
func (r *Rows) fail(err error) error {
	err = fmt.Errorf("state: store %q: %w", r.spec.Name(), err)
	if r.layers.err == nil {
		r.layers.err = err
	}
	return err
}

// undone tells those that keep decoded copies that the newest write of a key is gone.
func (r *Rows) undone(key string) {
	if c := r.cells[key]; c != nil {
		c.cached = false
		return
	}
	if r.evict != nil {
		r.evict(key)
	}
}

// Uncommitted returns how many bytes the rows of the batch in progress take.
func (l *Layers) Uncommitted() int64 { return l.computingBytes }

// Unflushed returns how many bytes of committed rows are not yet durable in the backend, those of a flush under way
// included, and since when the oldest that is not in a flush waits (Unix milliseconds; 0: none does).
func (l *Layers) Unflushed() (bytes int64, sinceMillis int64) {
	bytes = l.committedBytes
	if l.flushing != nil {
		bytes += l.flushing.bytes
	}
	return bytes, l.sinceMillis
}

// Freeze sets the committed rows and positions aside as an immutable flush. It returns nil when there is nothing to
// flush, or while a flush is under way. The task's goroutine calls Freeze and Done; any goroutine may call Flush.Run
// in between.
func (l *Layers) Freeze() *Flush {
	if l.flushing != nil || l.sinceMillis == 0 {
		return nil
	}
	f := &Flush{backend: l.backend, bytes: l.committedBytes, positions: l.positions}
	for _, r := range l.stores {
		if r.committed.len() > 0 {
			f.parts = append(f.parts, flushPart{r.id, r.committed, r.committedFloor})
			r.flushing, r.committed = r.committed, newLayer()
			f.rows += r.flushing.len()
		}
		if r.floorMoved {
			f.expired = append(f.expired, expiredRange{r.id, r.committedFloor})
			r.floorMoved = false
		}
	}
	slices.SortFunc(f.parts, func(a, b flushPart) int { return int(a.store) - int(b.store) })
	l.positions = make(map[StoreID]Position)
	l.committedBytes, l.sinceMillis = 0, 0
	l.flushing = f
	return f
}

// Done lets go of the rows of a flush whose Run has returned nil. After an error of Run the rows stay readable here, and
// Run may be called again.
func (l *Layers) Done(f *Flush) {
	if f == nil || f != l.flushing {
		return
	}
	for _, r := range l.stores {
		r.flushing = nil
	}
	l.flushing = nil
}

// Flush is a set of committed rows on its way into the backend.
type Flush struct {
	backend   Backend
	parts     []flushPart
	positions map[StoreID]Position
	expired   []expiredRange
	bytes     int64
	rows      int
}

type flushPart struct {
	store StoreID
	rows  *layer
	floor []byte
}

type expiredRange struct {
	store StoreID
	to    []byte
}

// Run writes the rows to the backend in key order, and the changelog positions last.
func (f *Flush) Run() error {
	w := Write{Positions: f.positions, Rows: make([]Row, 0, f.rows)}
	for _, p := range f.parts {
		for _, e := range p.rows.inOrder() {
			if e.key[0] == KindRow && e.key < string(p.floor) {
				continue
			}
			w.Rows = append(w.Rows, Row{Store: p.store, Key: bytesOf(e.key), Value: e.row})
		}
	}
	if err := f.backend.Write(w); err != nil {
		return err
	}
	for _, x := range f.expired {
		if err := f.backend.DeleteRange(x.store, []byte{KindRow}, x.to); err != nil {
			return err
		}
	}
	return nil
}

// Bytes returns the size of the flush, and Rows how many rows it writes.
func (f *Flush) Bytes() int64 { return f.bytes }

// Rows returns how many rows the flush writes.
func (f *Flush) Rows() int { return f.rows }

// Name returns the store's name.
func (r *Rows) Name() string { return r.spec.Name() }

// Spec returns the spec that the store was opened by.
func (r *Rows) Spec() AnySpec { return r.spec }

// Get returns the row under key, or nil. The row is immutable.
func (r *Rows) Get(key []byte) ([]byte, error) {
	if row, known := r.computing.get(key); known {
		return row, nil
	}
	if r.committed.len() > 0 {
		if row, known := r.committed.get(key); known {
			return row, nil
		}
	}
	if r.flushing != nil {
		if row, known := r.flushing.get(key); known {
			return row, nil
		}
	}
	row, err := r.layers.backend.Get(r.id, key)
	if err != nil {
		return nil, r.fail(err)
	}
	return row, nil
}

// LimitBytes bounds what Layers.Oversized lets pass, in bytes of key and row; 0 is no bound. It refuses no write.
func (r *Rows) LimitBytes(n int) { r.limit = n }

// Put writes a row, or deletes it when row is nil. Both slices are copied.
func (r *Rows) Put(key, row []byte) { r.put(stringOf(key), row, true) }

// put is Put for a key that is immutable, unless it is to be copied where it is kept.
func (r *Rows) put(key string, row []byte, copyKey bool) {
	l := r.layers
	if n := len(key) + len(row); n > r.limit && r.limit > 0 && l.oversized == nil {
		l.oversized, l.oversizedBytes = r, n
	}
	if row != nil {
		row = l.arena.copy(row)
	}
	c := r.computing
	if i, ok := c.index[key]; ok {
		if l.recording {
			l.undo = append(l.undo, undoEntry{rows: r, index: i, prev: c.entries[i].row})
		}
		c.entries[i].row = row
		l.computingBytes += int64(len(row))
		return
	}
	if l.recording {
		l.undo = append(l.undo, undoEntry{rows: r, index: int32(c.len()), fresh: true})
	}
	if copyKey {
		key = strings.Clone(key)
	}
	c.add(key, row)
	l.computingBytes += int64(len(key) + len(row) + layerEntryOverhead)
}

// Forget tells that no one reads rows (of KindRow) below the key any more: they are removed from the backend with the
// next flush, without a write to the changelog, whose retention lets go of them. The bound only ever rises, but for what
// Rollback and Drop undo; it is not kept, so the owner says it again after a restart.
func (r *Rows) Forget(below []byte) {
	if string(below) > string(r.floor) {
		r.floor = append([]byte(nil), below...)
	}
}

// Cell is a number that belongs to an operator, such as its stream time: a meta row of one of the operator's stores, and
// so committed, undone and restored with them.
type Cell struct {
	rows   *Rows
	key    []byte
	value  int64
	ok     bool
	cached bool
	buf    [rowFixedBytes]byte // scratch
}

// Cell returns the number with the given name. Names are for life, as the row is kept in the changelog.
func (r *Rows) Cell(name string) *Cell {
	key := append([]byte{KindMeta, 'n'}, name...)
	if c := r.cells[string(key)]; c != nil {
		return c
	}
	if r.cells == nil {
		r.cells = make(map[string]*Cell)
	}
	c := &Cell{rows: r, key: key}
	r.cells[string(key)] = c
	return c
}

// Load returns the number; ok is false when it was never stored.
func (c *Cell) Load() (v int64, ok bool, err error) {
	if !c.cached {
		row, err := c.rows.Get(c.key)
		if err != nil {
			return 0, false, err
		}
		c.value, c.ok = 0, row != nil
		if row != nil {
			m, _, err := ParseRow(row)
			if err != nil {
				return 0, false, c.rows.fail(err)
			}
			c.value = m.TimeMillis
		}
		c.cached = true
	}
	return c.value, c.ok, nil
}

// Store changes the number.
func (c *Cell) Store(v int64) {
	if c.cached && c.ok && c.value == v {
		return
	}
	c.rows.Put(c.key, AppendRow(c.buf[:0], RowMeta{TimeMillis: v}))
	c.value, c.ok, c.cached = v, true, true
}
