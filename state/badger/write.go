package badger

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"

	bdg "github.com/dgraph-io/badger/v4"

	"tailrace.dev/state"
)

const (
	// Badger counts, besides what is set, the mark at the end of a transaction; the link comes on top.
	reservedEntries = 4
	reservedBytes   = 512
	entryOverhead   = 32

	// maxPruned bounds how many old links one write removes; on average there is one per write.
	maxPruned = 256

	// The value log is collected every so many writes, one or a few files at a time, if large rows were written.
	writesPerCollection = 64
	filesPerCollection  = 4
	garbageRatio        = 0.5
)

// chunk is a part of a write that Badger takes in one transaction. When it is full it commits itself and goes on as the
// next one. The caller holds writing.
type chunk struct {
	b     *Backend
	txn   *bdg.Txn
	count int64
	size  int64
	// arena holds the keys, which Badger keeps until the commit.
	arena []byte
}

func (b *Backend) newChunk() *chunk {
	return &chunk{b: b, txn: b.db.NewTransaction(true)}
}

// set adds a row; key and value have to stay as they are until the commit.
func (c *chunk) set(key, value []byte) error {
	if err := c.room(key, value); err != nil {
		return err
	}
	return c.failure(c.txn.SetEntry(bdg.NewEntry(key, value)))
}

// delete adds the deletion of a key, which has to stay as it is until the commit.
func (c *chunk) delete(key []byte) error {
	if err := c.room(key, nil); err != nil {
		return err
	}
	return c.failure(c.txn.Delete(key))
}

// rowKey returns the key of a row, for use in this chunk.
func (c *chunk) rowKey(id state.StoreID, key []byte) []byte {
	if need := storePrefixBytes + len(key); cap(c.arena)-len(c.arena) < need {
		c.arena = make([]byte, 0, max(need, 64<<10))
	}
	start := len(c.arena)
	c.arena = appendRowKey(c.arena, id, key)
	return c.arena[start:len(c.arena):len(c.arena)]
}

// room commits what there is when the entry does not fit any more.
func (c *chunk) room(key, value []byte) error {
	size := int64(len(key) + entryOverhead)
	if len(value) < valueThreshold {
		size += int64(len(value))
	}
	full := c.count+reservedEntries >= c.b.db.MaxBatchCount() || c.size+size+reservedBytes >= c.b.db.MaxBatchSize()
	if full && c.count > 0 {
		if err := c.commit(); err != nil {
			return err
		}
		c.txn = c.b.db.NewTransaction(true)
	}
	c.count++
	c.size += size
	return nil
}

func (c *chunk) failure(err error) error {
	if err == nil {
		return nil
	}
	return ioError("write to "+c.b.dir.path, err)
}

// commit makes what was added durable, with the next link.
//
// Commits are not overlapped: if one fails, the next would leave a gap, or meet a database that cannot make a new
// memtable, for which Badger ends the process.
func (c *chunk) commit() (err error) {
	b := c.b
	next := b.last + 1
	key := linkKey(next)
	defer func() {
		if err != nil {
			err = b.fail(ioError("write to "+b.dir.path, err))
		}
	}()
	defer recovered(&err)
	if err := c.txn.SetEntry(bdg.NewEntry(key, []byte{1})); err != nil {
		return err
	}
	if err := c.txn.Commit(); err != nil {
		return err
	}
	c.count, c.size, c.arena = 0, 0, nil
	b.last = next

	read := b.db.NewTransaction(false)
	defer read.Discard()
	item, err := read.Get(key)
	if err != nil {
		return err
	}
	b.links = append(b.links, link{number: next, version: item.Version()})
	return nil
}

func (c *chunk) discard() { c.txn.Discard() }

// pruneLinks removes links that the guard file, as it is on disk, needs no more.
func (c *chunk) pruneLinks() error {
	b := c.b
	end := min(b.guard.inTables, b.pruned+maxPruned)
	for number := b.pruned + 1; number <= end; number++ {
		if err := c.delete(linkKey(number)); err != nil {
			return err
		}
	}
	b.pruned = max(b.pruned, end)
	return nil
}

// Write applies w durably: rows in order, and the positions in the last transaction. It returns an error that wraps
// state.ErrNoSpace, before anything is written, when the disk would have less than Options.MinFreeBytes left; a later
// Write may succeed. After any other error the backend has to be closed and opened again; it then holds the rows up to
// some point, and the positions only with all of them.
func (b *Backend) Write(w state.Write) error {
	b.writing.Lock()
	defer b.writing.Unlock()
	err := b.write(w)
	b.full = errors.Is(err, state.ErrNoSpace)
	return err
}

func (b *Backend) write(w state.Write) error {
	size, large, err := b.checkWrite(w)
	if err != nil {
		return err
	}
	if len(w.Rows)+len(w.Positions) == 0 {
		return nil
	}
	// What is written goes to the log, and to a table later.
	if err := b.opts.checkSpace(b.dir.path, b.opts.MinFreeBytes+2*size); err != nil {
		return err
	}
	b.largeRows = b.largeRows || large
	c := b.newChunk()
	defer c.discard()
	if err := c.pruneLinks(); err != nil {
		return err
	}
	for _, row := range w.Rows {
		key := c.rowKey(row.Store, row.Key)
		if row.Value == nil {
			err = c.delete(key)
		} else {
			err = c.set(key, row.Value)
		}
		if err != nil {
			return err
		}
	}
	if err := c.setPositions(w.Positions); err != nil {
		return err
	}
	if err := c.commit(); err != nil {
		return err
	}
	if err := b.collect(); err != nil {
		return err
	}
	return b.finish("write to " + b.dir.path)
}

// setPositions adds all positions to one and the same transaction.
func (c *chunk) setPositions(positions map[state.StoreID]state.Position) error {
	need := int64(len(positions))
	if c.count+need+reservedEntries >= c.b.db.MaxBatchCount() ||
		c.size+need*(positionBytes+entryOverhead+8)+reservedBytes >= c.b.db.MaxBatchSize() {
		if err := c.commit(); err != nil {
			return err
		}
		c.txn = c.b.db.NewTransaction(true)
	}
	for _, id := range slices.Sorted(maps.Keys(positions)) {
		if err := c.set(positionKey(id), encodePosition(positions[id])); err != nil {
			return err
		}
	}
	return nil
}

// checkWrite refuses what Badger could not store, before anything is written. It returns how many bytes there are, and
// whether some row belongs into the value log.
func (b *Backend) checkWrite(w state.Write) (size uint64, large bool, err error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if err := b.usable(); err != nil {
		return 0, false, err
	}
	for i := range w.Rows {
		row := &w.Rows[i]
		if i == 0 || row.Store != w.Rows[i-1].Store {
			if err := b.known(row.Store); err != nil {
				return 0, false, err
			}
		}
		switch {
		case len(row.Key) > maxKeyBytes:
			return 0, false, fmt.Errorf("badger: a key of store %s has %d bytes, over the limit of %d",
				b.ids[row.Store], len(row.Key), maxKeyBytes)
		case len(row.Value) > maxValueBytes:
			return 0, false, fmt.Errorf("badger: a row of store %s has %d bytes, over the limit of %d",
				b.ids[row.Store], len(row.Value), maxValueBytes)
		case row.Value != nil && len(row.Value) == 0:
			return 0, false, fmt.Errorf("badger: a row of store %s is empty", b.ids[row.Store])
		}
		large = large || len(row.Value) >= valueThreshold
		size += uint64(len(row.Key) + len(row.Value) + entryOverhead)
	}
	for id := range w.Positions {
		if err := b.known(id); err != nil {
			return 0, false, err
		}
	}
	return size, large, nil
}

// finish ends a change: readers see it, and the guard file knows it.
func (b *Backend) finish(op string) error {
	b.publish()
	if err := b.record(); err != nil {
		return ioError(op, err)
	}
	return nil
}

// collect lets Badger rewrite files of the value log that are mostly garbage, now and then.
func (b *Backend) collect() error {
	b.writes++
	if !b.largeRows && b.guard.valueLog <= 1 || b.writes%writesPerCollection != 0 {
		return nil
	}
	b.largeRows = false
	moved := false
	for range filesPerCollection {
		err := b.db.RunValueLogGC(garbageRatio)
		if errors.Is(err, bdg.ErrNoRewrite) || errors.Is(err, bdg.ErrRejected) {
			break
		}
		if err != nil {
			return b.fail(ioError("collect the value log of "+b.dir.path, err))
		}
		moved = true
	}
	if !moved {
		return nil
	}
	// The rows that were moved went through the log without a link.
	c := b.newChunk()
	defer c.discard()
	return c.commit()
}

// Register returns the id of the store with the given name, making one when it is new.
func (b *Backend) Register(name string) (state.StoreID, error) {
	b.writing.Lock()
	defer b.writing.Unlock()
	b.mu.RLock()
	err := b.usable()
	r, ok := b.stores[name]
	next := state.StoreID(len(b.stores) + 1)
	b.mu.RUnlock()
	switch {
	case err != nil:
		return 0, err
	case ok && !r.dropped:
		return r.id, nil
	case !ok && next > maxStoreID:
		return 0, fmt.Errorf("badger: %s has %d stores already", b.dir.path, maxStoreID)
	case !ok && len(name) > maxKeyBytes:
		return 0, fmt.Errorf("badger: the name of a store has %d bytes, over the limit of %d", len(name), maxKeyBytes)
	case !ok:
		r.id = next
	}
	r.dropped = false
	c := b.newChunk()
	defer c.discard()
	if err := b.setStore(c, name, r); err != nil {
		return 0, err
	}
	return r.id, b.finish("register a store in " + b.dir.path)
}

// setStore commits the name of a store with what else is in c.
func (b *Backend) setStore(c *chunk, name string, r registered) error {
	if err := c.set(storeKey(r.id), encodeStore(name, r)); err != nil {
		return err
	}
	if err := c.commit(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stores[name] = r
	b.ids[r.id] = name
	return nil
}

// Stores returns the names of all stores that were registered and not dropped. The map belongs to the caller.
func (b *Backend) Stores() map[string]state.StoreID {
	b.mu.RLock()
	defer b.mu.RUnlock()
	names := make(map[string]state.StoreID, len(b.stores))
	for name, r := range b.stores {
		if !r.dropped {
			names[name] = r.id
		}
	}
	return names
}

// DropStore removes all rows and the position of a store; its id stays registered. The position goes first, so that
// it is never there without the rows below it.
//
// Rows are deleted one by one: Badger's own way to drop a prefix refuses all writes meanwhile.
func (b *Backend) DropStore(id state.StoreID) error {
	b.writing.Lock()
	defer b.writing.Unlock()
	b.mu.RLock()
	err := b.known(id)
	name := b.ids[id]
	b.mu.RUnlock()
	if err != nil {
		return err
	}
	if err := b.opts.checkSpace(b.dir.path, b.opts.MinFreeBytes); err != nil {
		return err
	}
	c := b.newChunk()
	defer c.discard()
	if err := c.delete(positionKey(id)); err != nil {
		return err
	}
	if err := b.setStore(c, name, registered{id: id, dropped: true}); err != nil {
		return err
	}
	if err := b.deleteRows(id, appendPrefix(nil, id), afterStore(id)); err != nil {
		return err
	}
	return b.finish("drop a store in " + b.dir.path)
}

// DeleteRange removes the rows with from <= key < to of a store; a nil bound is open. A crash may leave some of them.
func (b *Backend) DeleteRange(id state.StoreID, from, to []byte) error {
	b.writing.Lock()
	defer b.writing.Unlock()
	b.mu.RLock()
	err := b.known(id)
	b.mu.RUnlock()
	if err != nil {
		return err
	}
	end := afterStore(id)
	if to != nil {
		end = appendRowKey(nil, id, to)
	}
	if err := b.opts.checkSpace(b.dir.path, b.opts.MinFreeBytes); err != nil {
		return err
	}
	before := b.last
	if err := b.deleteRows(id, appendRowKey(nil, id, from), end); err != nil {
		return err
	}
	if b.last == before {
		return nil
	}
	return b.finish("delete rows in " + b.dir.path)
}

// deleteRows deletes the rows with from <= key < to, given as keys in Badger.
func (b *Backend) deleteRows(id state.StoreID, from, to []byte) error {
	txn := b.db.NewTransaction(false)
	defer txn.Discard()
	it := txn.NewIterator(bdg.IteratorOptions{Prefix: appendPrefix(nil, id)})
	defer it.Close()
	c := b.newChunk()
	defer c.discard()
	for it.Seek(from); it.Valid(); it.Next() {
		key := it.Item().Key()
		if bytes.Compare(key, to) >= 0 {
			break
		}
		if err := c.delete(c.rowKey(id, key[storePrefixBytes:])); err != nil {
			return err
		}
	}
	if c.count == 0 {
		return nil
	}
	return c.commit()
}
