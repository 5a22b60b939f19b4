package memory

import (
	"github.com/tidwall/btree"
)

// cursor iterates over a tree that nobody changes any more.
type cursor struct {
	iter       btree.MapIter[string, []byte]
	from, to   string
	hasTo      bool
	reverse    bool
	started    bool
	done       bool
	key, value []byte
	err        error
}

func newCursor(rows *tree, from, to []byte, reverse bool) *cursor {
	return &cursor{
		iter: rows.Iter(), from: string(from), to: string(to), hasTo: to != nil, reverse: reverse,
	}
}

// Next advances to the next row and tells whether there is one.
func (c *cursor) Next() bool {
	if c.done {
		return false
	}
	if !c.advance() || !c.inside(c.iter.Key()) {
		c.Close()
		return false
	}
	// The caller may write into what it gets; the tree is shared.
	c.key = append(c.key[:0], c.iter.Key()...)
	c.value = append(c.value[:0], c.iter.Value()...)
	return true
}

func (c *cursor) advance() bool {
	switch {
	case c.started && c.reverse:
		return c.iter.Prev()
	case c.started:
		return c.iter.Next()
	}
	c.started = true
	if !c.reverse {
		return c.iter.Seek(c.from)
	}
	if !c.hasTo || !c.iter.Seek(c.to) {
		// All keys are below to.
		return c.iter.Last()
	}
	return c.iter.Prev()
}

func (c *cursor) inside(key string) bool {
	return key >= c.from && (!c.hasTo || key < c.to)
}

// Key returns the current key.
func (c *cursor) Key() []byte { return c.key }

// Value returns the current row.
func (c *cursor) Value() []byte { return c.value }

// Err returns the error that ended the iteration early, if any.
func (c *cursor) Err() error { return c.err }

// Close releases the cursor.
func (c *cursor) Close() {
	c.done = true
	c.key, c.value = nil, nil
	c.iter = btree.MapIter[string, []byte]{}
}
