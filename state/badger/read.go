package badger

import (
	"bytes"
	"errors"

	bdg "github.com/dgraph-io/badger/v4"

	"tailrace.dev/state"
)

// Get returns the row under key, or nil when there is none. The row belongs to the caller.
func (b *Backend) Get(id state.StoreID, key []byte) (row []byte, err error) {
	row, err = b.getOf(id, key)
	return row, b.explain(err)
}

func (b *Backend) getOf(id state.StoreID, key []byte) (row []byte, err error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if err := b.known(id); err != nil {
		return nil, err
	}
	if len(key) > maxKeyBytes {
		return nil, nil
	}
	var buf [128]byte
	return b.get(appendRowKey(buf[:0], id, key))
}

// get reads the snapshot; the caller holds mu.
func (b *Backend) get(key []byte) (row []byte, err error) {
	defer recoveredRead(&err)
	row, err = getRow(b.snap.txn, key)
	if err != nil && !errors.Is(err, state.ErrCorrupt) {
		err = ioError("read "+b.dir.path, err)
	}
	return row, err
}

func getRow(txn *bdg.Txn, key []byte) ([]byte, error) {
	item, err := txn.Get(key)
	if errors.Is(err, bdg.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	row, err := item.ValueCopy(nil)
	if err != nil {
		return nil, err
	}
	return row, checkValue(row)
}

// errReadPanic stands for a panic of Badger's in a read, until explain has found out what it means.
var errReadPanic = errors.New("reading failed with a panic")

func recoveredRead(err *error) {
	if recover() != nil {
		*err = errReadPanic
	}
}

// explain says what a panic in a read comes from. A write that fails because the disk is full leaves Badger without a
// table in memory, over which reads then stumble, at once, before the write has returned and told: it is waited for.
// Anything else is damage. The caller holds no lock.
func (b *Backend) explain(err error) error {
	if err == nil || !errors.Is(err, errReadPanic) {
		return err
	}
	if b.failed.Load() == nil {
		b.writing.Lock()
		defer b.writing.Unlock()
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	if why := b.usable(); why != nil {
		return why
	}
	return corrupt("a read ended in a panic")
}

// checkValue tells damage of the value log, which Badger reports as an empty value. Nothing stored is empty.
func checkValue(row []byte) error {
	if len(row) == 0 {
		return corrupt("a value in the value log is damaged or missing")
	}
	return nil
}

// Position returns the changelog position of a store; ok is false when none was written yet.
func (b *Backend) Position(id state.StoreID) (p state.Position, ok bool, err error) {
	p, ok, err = b.positionOf(id)
	return p, ok, b.explain(err)
}

func (b *Backend) positionOf(id state.StoreID) (p state.Position, ok bool, err error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if err := b.known(id); err != nil {
		return p, false, err
	}
	record, err := b.get(positionKey(id))
	if err != nil || record == nil {
		return p, false, err
	}
	p, err = decodePosition(record)
	return p, err == nil, err
}

// Scan opens a cursor over the rows with from <= key < to, in key order, or backwards from to. The cursor sees the
// backend as after the last Write that has ended. It belongs to one goroutine, keeps what it sees on disk until it is
// closed, and ends with an error when the backend is closed.
func (b *Backend) Scan(id state.StoreID, from, to []byte, reverse bool) state.Cursor {
	b.mu.RLock()
	defer b.mu.RUnlock()
	c := &cursor{b: b, reverse: reverse}
	if err := b.known(id); err != nil {
		c.err, c.done = err, true
		return c
	}
	if to != nil && (len(to) == 0 || bytes.Compare(from, to) >= 0) {
		c.done = true
		return c
	}
	c.from = appendRowKey(nil, id, from)
	c.to = afterStore(id)
	if to != nil {
		c.to = appendRowKey(nil, id, to)
	}
	c.prefix = appendPrefix(nil, id)
	c.snap = b.snap
	c.snap.refs.Add(1)
	b.track(c)
	return c
}

func (b *Backend) track(c *cursor) {
	b.cursorMu.Lock()
	defer b.cursorMu.Unlock()
	b.cursors[c] = struct{}{}
}

func (b *Backend) untrack(c *cursor) {
	b.cursorMu.Lock()
	defer b.cursorMu.Unlock()
	delete(b.cursors, c)
}

// cursor iterates over a snapshot. Its own fields are changed by its goroutine, which holds Backend.mu for reading, or
// by Close of the backend, which holds it for writing.
type cursor struct {
	b        *Backend
	snap     *snapshot
	it       *bdg.Iterator // nil until the first Next
	prefix   []byte
	from, to []byte
	reverse  bool
	done     bool
	key      []byte // with the store number
	value    []byte
	err      error
}

// Next advances to the next row and tells whether there is one.
func (c *cursor) Next() bool {
	ok, err := c.advance()
	if errors.Is(err, errReadPanic) {
		err = c.b.explain(err)
		c.b.mu.RLock()
		defer c.b.mu.RUnlock()
		c.err = err
	}
	return ok
}

func (c *cursor) advance() (ok bool, err error) {
	c.b.mu.RLock()
	defer c.b.mu.RUnlock()
	if c.done {
		return false, nil
	}
	if ok, err = c.next(); ok && err == nil {
		return true, nil
	}
	c.release(err)
	c.b.untrack(c)
	return false, err
}

func (c *cursor) next() (ok bool, err error) {
	if err := c.b.usable(); err != nil {
		return false, err
	}
	defer recoveredRead(&err)
	if c.it == nil {
		// Values are taken one by one: prefetching costs a goroutine for each.
		c.it = c.snap.txn.NewIterator(bdg.IteratorOptions{Prefix: c.prefix, Reverse: c.reverse})
		if c.reverse {
			c.it.Seek(c.to)
			if c.it.Valid() && bytes.Equal(c.it.Item().Key(), c.to) {
				c.it.Next()
			}
		} else {
			c.it.Seek(c.from)
		}
	} else {
		c.it.Next()
	}
	if !c.it.Valid() {
		return false, nil
	}
	item := c.it.Item()
	key := item.Key()
	if bytes.Compare(key, c.from) < 0 || bytes.Compare(key, c.to) >= 0 {
		return false, nil
	}
	c.key = append(c.key[:0], key...)
	err = item.Value(func(value []byte) error {
		c.value = append(c.value[:0], value...)
		return checkValue(value)
	})
	return err == nil, err
}

// Key returns the current key.
func (c *cursor) Key() []byte {
	if len(c.key) < storePrefixBytes {
		return nil
	}
	return c.key[storePrefixBytes:]
}

// Value returns the current row.
func (c *cursor) Value() []byte { return c.value }

// Err returns the error that ended the iteration early, if any.
func (c *cursor) Err() error {
	c.b.mu.RLock()
	defer c.b.mu.RUnlock()
	return c.err
}

// Close releases the cursor.
func (c *cursor) Close() {
	c.b.mu.RLock()
	defer c.b.mu.RUnlock()
	if c.snap != nil {
		c.release(nil)
		c.b.untrack(c)
	}
	c.done = true
}

// release gives back what the cursor holds in Badger. The current row stays readable.
func (c *cursor) release(err error) {
	c.done = true
	c.err = err
	if c.it != nil {
		c.it.Close()
		c.it = nil
	}
	if c.snap != nil {
		c.snap.release()
		c.snap = nil
	}
}
