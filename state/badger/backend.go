package badger

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	bdg "github.com/dgraph-io/badger/v4"
	"go.uber.org/zap"

	"tailrace.dev/state"
)

// Backend keeps rows in a Badger database. It is safe for use by many goroutines; reads go on while Write, DropStore
// and Register run, which take turns.
type Backend struct {
	opts Options
	dir  *directory
	db   *bdg.DB
	size atomic.Int64
	// failed is set when Badger could not commit. What its logs hold then is unknown until they are read again, so
	// nothing works any more but Close.
	failed atomic.Pointer[error]

	// writing is held by those that change the backend. It is taken before mu.
	writing sync.Mutex
	// The fields up to mu are guarded by writing.
	guard     guard
	last      uint64 // number of the newest link
	pruned    uint64 // number of the newest link that was removed
	links     []link // links that are not known to be in tables, oldest first
	largeRows bool   // rows may have gone to the value log since it was last collected
	writes    int
	full      bool // the last Write found no space
	closeErr  error

	mu     sync.RWMutex // guards what follows; readers hold it while they use Badger
	closed bool
	stores map[string]registered
	ids    map[state.StoreID]string
	snap   *snapshot

	cursorMu sync.Mutex // guards cursors, which readers change; it is taken after mu
	cursors  map[*cursor]struct{}
}

var _ state.Backend = (*Backend)(nil)

// link is one of the gapless series of numbers, and the version that Badger gave its transaction.
type link struct {
	number  uint64
	version uint64
}

// snapshot is a state of the database that readers share. It holds a read transaction, which may be used by many
// goroutines since it is not written to.
type snapshot struct {
	txn  *bdg.Txn
	refs atomic.Int32
}

func (s *snapshot) release() {
	if s.refs.Add(-1) == 0 {
		s.txn.Discard()
	}
}

// Open opens the backend in a directory, which is made when it is not there. It returns an error that wraps
//
//   - state.ErrLocked when a process, maybe this one, has the directory open; the error names it;
//   - state.ErrCorrupt when files are damaged or missing: Destroy the directory and restore from the changelog;
//   - state.ErrNoSpace when the disk has no room for a memtable.
func Open(dir string, opts Options) (*Backend, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	d, err := openDirectory(dir, true, opts.NoSync)
	if err != nil {
		return nil, err
	}
	b := &Backend{
		opts:    opts,
		dir:     d,
		stores:  make(map[string]registered),
		ids:     make(map[state.StoreID]string),
		cursors: make(map[*cursor]struct{}),
	}
	if err := b.open(); err != nil {
		b.abandon()
		return nil, openError(dir, err)
	}
	return b, nil
}

// open verifies the files, lets Badger open them, and verifies what it found.
func (b *Backend) open() error {
	g, marker, err := b.before()
	if err != nil {
		return err
	}
	if err := b.dir.replace(openingFile, marker.encode()); err != nil {
		return err
	}
	if g != nil {
		// From here on the files change, so that they may be compared strictly no more.
		g.clean = false
		if err := b.dir.replace(guardFile, g.encode()); err != nil {
			return err
		}
		b.guard = *g
	}
	err = b.openBadger()
	if err == nil {
		err = b.after()
	}
	if err != nil && marker.fresh {
		return err // the marker stays, and says that there is nothing to lose
	}
	return errors.Join(err, b.dir.remove(openingFile))
}

// before verifies the files while they are at rest. It returns the guard, or nil when the directory is new.
func (b *Backend) before() (*guard, opening, error) {
	if err := b.opts.checkSpace(b.dir.path, uint64(b.opts.MemTableBytes)); err != nil {
		return nil, opening{}, err
	}
	content, err := b.dir.read(guardFile)
	if err != nil {
		return nil, opening{}, err
	}
	var marker opening
	left, err := b.dir.read(openingFile)
	if err != nil {
		return nil, marker, err
	}
	if left != nil {
		if marker, err = decodeOpening(left); err != nil {
			return nil, marker, corrupt("%s: %w", b.dir.path, err)
		}
	}
	if content == nil {
		data, err := b.dir.hasData()
		switch {
		case err != nil:
			return nil, marker, err
		case data && !marker.fresh:
			return nil, marker, corrupt("%s: %s is missing", b.dir.path, guardFile)
		case data:
			if err := b.dir.wipe(); err != nil {
				return nil, marker, err
			}
		}
		return nil, opening{attempt: 1, fresh: true}, nil
	}
	g, err := decodeGuard(content)
	if err != nil {
		return nil, marker, corrupt("%s: %w", b.dir.path, err)
	}
	if marker.attempt >= maxOpenings {
		return nil, marker, corrupt("%s: the last %d attempts to open it ended the process", b.dir.path, marker.attempt)
	}
	if err := b.dir.verifyFiles(g, b.opts); err != nil {
		return nil, marker, err
	}
	return g, opening{attempt: marker.attempt + 1}, b.dir.tidyFiles()
}

func (b *Backend) openBadger() (err error) {
	inv, err := b.dir.list()
	if err != nil {
		return err
	}
	memTableBytes := b.opts.MemTableBytes
	if inv.logFiles() {
		// Badger ends the process when a log does not fit into the table that it is read into.
		memTableBytes = max(memTableBytes, b.guard.memTableBytes)
	}
	b.guard.memTableBytes = memTableBytes
	defer recovered(&err)
	db, err := bdg.Open(b.opts.badger(b.dir.path, memTableBytes))
	if err != nil {
		return err // with some errors comes a database that has been closed in part
	}
	b.db = db
	return nil
}

// after verifies what Badger has opened, and reads what the backend keeps for itself.
func (b *Backend) after() error {
	txn := b.db.NewTransaction(false)
	defer txn.Discard()
	if err := b.readLinks(txn); err != nil {
		return err
	}
	if b.last == 0 {
		return b.initialise()
	}
	version, err := getRow(txn, formatKey())
	switch {
	case err != nil:
		return err
	case len(version) != 1:
		return corrupt("%s: the version of the format is missing", b.dir.path)
	case version[0] != formatVersion:
		return corrupt("%s: the format is %d, and not %d", b.dir.path, version[0], formatVersion)
	}
	if err := b.readStores(txn); err != nil {
		return err
	}
	b.publish()
	return b.record()
}

// initialise writes the first transaction of a new database.
func (b *Backend) initialise() error {
	c := b.newChunk()
	defer c.discard()
	if err := c.set(formatKey(), []byte{formatVersion}); err != nil {
		return err
	}
	if err := c.commit(); err != nil {
		return err
	}
	b.publish()
	return b.record()
}

// readLinks requires that all links are there which tables do not vouch for.
func (b *Backend) readLinks(txn *bdg.Txn) error {
	it := txn.NewIterator(bdg.IteratorOptions{Prefix: linkPrefix()})
	defer it.Close()
	b.last = b.guard.inTables
	first := true
	for it.Rewind(); it.Valid(); it.Next() {
		number, err := decodeLink(it.Item().Key())
		if err != nil {
			return corrupt("%s: %w", b.dir.path, err)
		}
		if first {
			first = false
			b.pruned = number - 1
		}
		if number <= b.guard.inTables {
			continue
		}
		if number != b.last+1 {
			return corrupt("%s: the transactions %d to %d are missing", b.dir.path, b.last+1, number-1)
		}
		b.last = number
		b.links = append(b.links, link{number: number, version: it.Item().Version()})
	}
	if first {
		b.pruned = b.guard.inTables
	}
	if b.last < b.guard.last {
		return corrupt("%s: the transactions %d to %d are missing", b.dir.path, b.last+1, b.guard.last)
	}
	return nil
}

func (b *Backend) readStores(txn *bdg.Txn) error {
	it := txn.NewIterator(bdg.IteratorOptions{Prefix: []byte{0, 0, metaStore}})
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		value, err := it.Item().ValueCopy(nil)
		if err != nil {
			return err
		}
		name, r, err := decodeStore(it.Item().Key(), value)
		if err != nil {
			return err
		}
		b.stores[name] = r
		b.ids[r.id] = name
	}
	return nil
}

// record replaces the guard file by what is true now. The caller holds writing.
func (b *Backend) record() error {
	// The order counts: the manifest, read later, names all tables that are seen here.
	var inTables uint64
	for _, t := range b.db.Tables() {
		inTables = max(inTables, t.MaxVersion)
	}
	known := 0
	for known < len(b.links) && b.links[known].version <= inTables {
		// Badger writes memtables to tables in order, each as a whole.
		b.guard.inTables = b.links[known].number
		known++
	}
	b.links = append(b.links[:0], b.links[known:]...)
	return b.recordFiles()
}

func (b *Backend) recordFiles() (err error) {
	g := b.guard
	g.last = b.last
	if g.manifest, err = b.dir.digest(manifestFile, -1); err != nil {
		return err
	}
	if g.registry, err = b.dir.digest(registryFile, -1); err != nil {
		return err
	}
	inv, err := b.dir.list()
	if err != nil {
		return err
	}
	g.valueLog, g.files = inv.valueLog, inv.sum()
	b.size.Store(inv.allocated)
	if err := b.dir.replace(guardFile, g.encode()); err != nil {
		return err
	}
	b.guard = g
	return nil
}

// publish makes what was committed visible to readers. The caller holds writing.
func (b *Backend) publish() {
	s := &snapshot{txn: b.db.NewTransaction(false)}
	s.refs.Store(1)
	b.mu.Lock()
	old := b.snap
	b.snap = s
	b.mu.Unlock()
	if old != nil {
		old.release()
	}
}

// abandon lets go of what a failed Open holds. The files stay as they are.
func (b *Backend) abandon() {
	if b.db == nil {
		b.dir.close()
		return
	}
	if b.snap != nil {
		b.snap.release()
	}
	if err := b.closeBadger(); err != nil {
		b.opts.Logger.Warn("badger: close after a failed open", zap.Error(err))
	}
}

// Close ends all cursors, writes what is in memory into tables, and marks the directory as cleanly closed. It is
// idempotent. When the disk takes no more it gives up after a while: then the directory stays locked until Badger, in
// the background, has finished, or the process has ended; nothing that was written is lost.
func (b *Backend) Close() error {
	b.writing.Lock()
	defer b.writing.Unlock()
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return b.closeErr
	}
	b.closed = true
	for c := range b.cursors {
		c.release(errClosed)
	}
	b.mu.Unlock()
	b.snap.release()
	b.closeErr = b.closeBadger()
	return b.closeErr
}

// fullDiskPatience is how long Close waits for Badger after a write has failed for want of space.
const fullDiskPatience = 3 * time.Second

// closeBadger closes the database and, if nothing went wrong, marks the directory as clean.
func (b *Backend) closeBadger() error {
	closing := b.snap != nil && b.failed.Load() == nil // else the links in the database are not known to be whole
	done := make(chan error, 1)
	go func() {
		err := b.db.Close()
		if err != nil {
			err = ioError("close "+b.dir.path, err)
		} else if closing {
			err = b.markClean()
		}
		b.dir.close()
		done <- err
	}()
	limit := b.opts.closeTimeout
	if b.full {
		limit = min(limit, fullDiskPatience) // most likely it cannot write now either, and tries for ever
	}
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	select {
	case err := <-done:
		return err
	case <-timeout.C:
		return fmt.Errorf("badger: close %s: not finished after %v; is the disk full?", b.dir.path, limit)
	}
}

// markClean records that the files at rest are complete.
func (b *Backend) markClean() error {
	b.guard.clean = true
	b.guard.inTables = b.last // Badger has written all memtables
	if err := b.recordFiles(); err != nil {
		return fmt.Errorf("badger: close %s: %w", b.dir.path, redacted{err})
	}
	if err := b.dir.remove(lockFile); err != nil {
		return fmt.Errorf("badger: close %s: %w", b.dir.path, err)
	}
	return nil
}

// fail makes err the answer to all further calls.
func (b *Backend) fail(err error) error {
	err = fmt.Errorf("%w (close the backend and open it again)", err)
	b.failed.CompareAndSwap(nil, &err)
	return err
}

// usable returns why the backend cannot be used, if so. The caller holds mu.
func (b *Backend) usable() error {
	if b.closed {
		return errClosed
	}
	if err := b.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// known is usable for a store.
func (b *Backend) known(id state.StoreID) error {
	if err := b.usable(); err != nil {
		return err
	}
	if _, ok := b.ids[id]; !ok {
		return fmt.Errorf("badger: store %d is not registered", id)
	}
	return nil
}

// Size tells roughly how many bytes the files take on disk, as of the last write.
func (b *Backend) Size() int64 { return b.size.Load() }
