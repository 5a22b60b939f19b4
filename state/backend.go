package state

import (
	"errors"
	"fmt"
)

// The first byte of every row key, in a backend and in a changelog alike. It keeps what the library itself stores from
// ever meeting a user's key.
const (
	// KindMeta marks the library's own rows: the barrier of a restore, operator times.
	KindMeta byte = 0
	// KindRow marks a row of the user's.
	KindRow byte = 1
	// KindIndex marks a row that orders or repeats rows for a store's own use: what is to be emitted when, older
	// versions. It is in the changelog like any row.
	KindIndex byte = 2
)

// ErrCorrupt is returned by a backend, when it is opened or read, that found its files damaged. The cure is to remove
// the task's directory and restore it from the changelog, which the engine does by itself.
var ErrCorrupt = errors.New("state: local state is damaged")

// ErrLocked is returned when the directory of a backend is in use by another process.
var ErrLocked = errors.New("state: directory is in use by another process")

// ErrNoSpace is returned by Backend.Write when writing on would risk filling the disk. Nothing was written.
var ErrNoSpace = errors.New("state: too little free disk space")

// StoreID names a store inside one backend. It is given by Backend.Register and is stable for the life of the
// backend's files.
type StoreID uint32

// Position says how far a store in a backend has followed its changelog partition: it holds exactly the committed
// records below Next.
type Position struct {
	// TopicID identifies the changelog topic: a topic that was deleted and made again has another one.
	TopicID [16]byte
	// Next is the first offset that is not contained.
	Next int64
	// LeaderEpoch is that of the record before Next, or -1.
	LeaderEpoch int32
	// WallMillis is when the position was true, in Unix milliseconds. Older than the changelog's delete.retention.ms
	// means that deletions may have been missed.
	WallMillis int64
}

// String renders a position for logs.
func (p Position) String() string { return fmt.Sprintf("%x@%d", p.TopicID[:4], p.Next) }

// Row is one write of a Batch: the row under a key of a store, or its deletion when Value is nil. An empty row does not
// occur: every row has at least its format byte.
type Row struct {
	Store StoreID
	Key   []byte
	Value []byte
}

// Write is a set of writes that a Backend applies. Rows are ordered by store, then key, without repeats. Positions are
// written after all rows, in the last atomic part of the write: a backend may be torn between rows by a crash, but
// never holds a position without all rows below it.
type Write struct {
	Rows      []Row
	Positions map[StoreID]Position
}

// Backend keeps the committed rows of all stores of one task on a local medium. It is a cache of the changelog topics:
// it may lag behind them, and never leads.
//
// Get, Scan and Position may be called by any goroutine, also while Write runs; Write by one at a time. All byte slices
// given to a backend belong to the caller and may be reused after the call returns; all that it returns belong to the
// caller and are never written again, except where said otherwise.
//
// Package statetest holds the tests that every implementation has to pass.
type Backend interface {
	// Register returns the id of the store with the given name, making one when it is new.
	Register(store string) (StoreID, error)
	// Stores returns the names of all stores that were ever registered and not dropped.
	Stores() map[string]StoreID

	// Get returns the row under key, or nil when there is none.
	Get(store StoreID, key []byte) ([]byte, error)
	// Scan opens a cursor over the rows with from <= key < to, in key order, or backwards from to. A nil bound is
	// open. The cursor sees the backend as of the call.
	Scan(store StoreID, from, to []byte, reverse bool) Cursor

	// Write applies w durably: when it returns nil, the rows and positions survive the loss of power.
	Write(w Write) error
	// Position returns the changelog position of a store; ok is false when none was written yet.
	Position(store StoreID) (p Position, ok bool, err error)
	// DropStore removes all rows and the position of a store; its id stays registered.
	DropStore(store StoreID) error

	// DeleteRange removes the rows with from <= key < to of a store, as far as they are durable; it may be torn by a
	// crash. It is for rows that nothing reads any more.
	DeleteRange(store StoreID, from, to []byte) error

	// Size tells roughly how many bytes the backend holds on its medium.
	Size() int64
	// Close releases the backend; it marks the files as cleanly closed.
	Close() error
}

// Cursor iterates over rows. It starts before the first row; Close must be called, and is idempotent.
//
//	c := b.Scan(id, nil, nil, false)
//	defer c.Close()
//	for c.Next() {
//		use(c.Key(), c.Value())
//	}
//	err := c.Err()
type Cursor interface {
	// Next advances to the next row and tells whether there is one.
	Next() bool
	// Key returns the current key; it is valid until the next call of Next or Close.
	Key() []byte
	// Value returns the current row; it is valid until the next call of Next or Close.
	Value() []byte
	// Err returns the error that ended the iteration early, if any.
	Err() error
	// Close releases the cursor.
	Close()
}
