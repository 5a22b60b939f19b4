package state

import (
	"bytes"

	"github.com/tidwall/btree"
)

// Scan iterates over the rows with from <= key < to in key order, or backwards, newest version of each, without
// deletions. A nil bound is open. Rows that are written while the scan is open are seen where they lie ahead of it.
// The scanner must be closed.
func (r *Rows) Scan(from, to []byte, reverse bool) *Scanner {
	s := &Scanner{rows: r, from: from, to: to, reverse: reverse}
	// Newest first: the first source that has the smallest key wins.
	s.sources[0] = &layerCursor{rows: r, pick: computingLayer, scan: s}
	s.sources[1] = &layerCursor{rows: r, pick: committedLayer, scan: s}
	s.sources[2] = &layerCursor{rows: r, pick: flushingLayer, scan: s}
	s.disk = r.layers.backend.Scan(r.id, from, to, reverse)
	s.diskOK = s.disk.Next()
	return s
}

type layerChoice int

const (
	computingLayer layerChoice = iota
	committedLayer
	flushingLayer
)

func (r *Rows) layer(c layerChoice) *layer {
	switch c {
	case computingLayer:
		return r.computing
	case committedLayer:
		return r.committed
	case flushingLayer:
		return r.flushing
	}
	return nil
}

// layerCursor finds the next key of one layer. It seeks anew at each step, because the layer may have changed since.
type layerCursor struct {
	rows *Rows
	pick layerChoice
	scan *Scanner
}

// peek returns the first key after the scanner's position in the layer.
func (c *layerCursor) peek() (key string, row []byte, ok bool) {
	l := c.rows.layer(c.pick)
	if l == nil || l.len() == 0 {
		return "", nil, false
	}
	it := l.order().Iter()
	if !c.scan.reverse {
		ok = c.seekForward(&it)
	} else {
		ok = c.seekBackward(&it)
	}
	if !ok {
		return "", nil, false
	}
	key = it.Key()
	return key, l.entries[l.index[key]].row, true
}

func (c *layerCursor) seekForward(it *btree.SetIter[string]) bool {
	s := c.scan
	var ok bool
	switch {
	case s.started:
		ok = it.Seek(string(s.key))
		if ok && it.Key() == string(s.key) {
			ok = it.Next()
		}
	case s.from != nil:
		ok = it.Seek(string(s.from))
	default:
		ok = it.First()
	}
	return ok && (s.to == nil || it.Key() < string(s.to))
}

func (c *layerCursor) seekBackward(it *btree.SetIter[string]) bool {
	s := c.scan
	bound := s.to
	if s.started {
		bound = s.key
	}
	var ok bool
	switch {
	case bound == nil:
		ok = it.Last()
	case it.Seek(string(bound)):
		ok = it.Prev()
	default:
		ok = it.Last() // every key lies below the bound
	}
	return ok && (s.from == nil || it.Key() >= string(s.from))
}

// Scanner is an open scan over the layers and the backend. It belongs to the task's goroutine.
type Scanner struct {
	from, to []byte
	reverse  bool
	sources  [3]*layerCursor
	rows     *Rows
	disk     Cursor
	diskOK   bool

	started bool
	key     []byte
	row     []byte
}

// Next advances to the next row and tells whether there is one.
func (s *Scanner) Next() bool {
	for {
		key, row, ok := s.smallest()
		if !ok {
			return false
		}
		s.key = append(s.key[:0], key...)
		s.row = row
		s.started = true
		if s.row != nil {
			return true
		}
	}
}

// smallest returns the next key of all sources and its newest row, and moves the disk cursor past it.
func (s *Scanner) smallest() (key, row []byte, ok bool) {
	for s.diskOK && s.started && !s.ahead(s.disk.Key()) {
		s.diskOK = s.disk.Next()
	}
	for _, src := range s.sources {
		k, r, found := src.peek()
		if found && (!ok || s.less(bytesOf(k), key)) {
			key, row, ok = bytesOf(k), r, true
		}
	}
	if s.diskOK {
		k := s.disk.Key()
		if !ok || s.less(k, key) {
			return k, bytes.Clone(s.disk.Value()), true
		}
	}
	return key, row, ok
}

// ahead tells whether key lies beyond the scanner's position.
func (s *Scanner) ahead(key []byte) bool { return s.less(s.key, key) }

func (s *Scanner) less(a, b []byte) bool {
	if s.reverse {
		return bytes.Compare(a, b) > 0
	}
	return bytes.Compare(a, b) < 0
}

// Key returns the current key; it is valid until the next call of Next.
func (s *Scanner) Key() []byte { return s.key }

// Row returns the current row; it is immutable.
func (s *Scanner) Row() []byte { return s.row }

// Err returns the error that ended the scan early, if any.
func (s *Scanner) Err() error {
	if err := s.disk.Err(); err != nil {
		return s.rows.fail(err)
	}
	return nil
}

// Close releases the scanner.
func (s *Scanner) Close() { s.disk.Close() }
