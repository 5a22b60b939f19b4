package state

import (
	"cmp"
	"fmt"
	"slices"
)

// spanLists keeps, for keys that were asked about, which windows they have, so that an operator which looks around
// each record's time need not scan. Like the object cache it holds nothing of its own: a list goes when a write of its
// key is undone.
type spanLists struct {
	objectCache[*spanList]
	used bool
}

// spanList has the windows of a key whose anchors are from or more, in the order of anchor and other end.
type spanList struct {
	from int64
	rows []anchoredSpan
}

type anchoredSpan struct {
	anchor int64
	SpanRow
}

const anchoredSpanBytes = 32

// keyOf returns the part of a row's key that is the key's encoding.
func keyOf(rowKey []byte) []byte { return rowKey[keyAt : len(rowKey)-spanBytes] }

// evict forgets the list of a key of which a write was undone.
func (l *spanLists) evict(rowKey string) {
	if l.used && rowKey[0] == KindRow && len(rowKey) >= keyAt+spanBytes {
		l.drop(keyOf(bytesOf(rowKey)))
	}
}

// note tells that a row was put or deleted.
func (l *spanLists) note(rowKey []byte, anchor int64, row SpanRow, put bool) {
	if !l.used {
		return
	}
	o := l.get(keyOf(rowKey))
	if o == nil || anchor < o.value.from {
		return
	}
	list := o.value
	at, found := slices.BinarySearchFunc(list.rows, anchoredSpan{anchor, row}, compareAnchored)
	switch {
	case found && put:
		list.rows[at].TimeMillis = row.TimeMillis
	case found:
		list.rows = slices.Delete(list.rows, at, at+1)
	case put:
		list.rows = slices.Insert(list.rows, at, anchoredSpan{anchor, row})
		if n := len(list.rows); n&(n-1) == 0 { // the size is kept roughly
			l.put(keyOf(rowKey), list, 0, anchoredSpanBytes*2*n)
		}
	}
}

func compareAnchor(r anchoredSpan, anchor int64) int { return cmp.Compare(r.anchor, anchor) }

func compareAnchored(a, b anchoredSpan) int {
	if c := cmp.Compare(a.anchor, b.anchor); c != 0 {
		return c
	}
	// One of the two ends is the anchor.
	if c := cmp.Compare(a.StartMillis, b.StartMillis); c != 0 {
		return c
	}
	return cmp.Compare(a.EndMillis, b.EndMillis)
}

// spans appends the windows of a key with from <= anchor < to, and the times of their rows, in the order of their
// anchors; with those that have expired, as far as their slice is there, and those that are hidden.
func (s *timedStore[K, V]) spans(dst []SpanRow, k K, from, to int64) ([]SpanRow, error) {
	lo, hi, ok, err := s.bounds(from, to, true)
	if err != nil || !ok {
		return dst, err
	}
	key, err := s.spec.key.Append(append(s.list[:0], 0), k)
	if err != nil {
		return dst, fmt.Errorf("state: store %q: encode key: %w", s.spec.name, err)
	}
	s.list, key = key, key[1:] // not nil, even if it is empty
	var list *spanList
	if o := s.lists.get(key); o != nil && o.value.from <= lo {
		list = o.value
		s.trim(list)
	} else if list, err = s.readList(key, lo); err != nil {
		return dst, err
	}
	at, _ := slices.BinarySearchFunc(list.rows, lo, compareAnchor)
	for _, r := range list.rows[at:] {
		if r.anchor >= hi {
			break
		}
		dst = append(dst, r.SpanRow)
	}
	return dst, nil
}

// readList scans for all windows of a key that are anchored at from or later.
func (s *timedStore[K, V]) readList(key []byte, from int64) (*spanList, error) {
	list := &spanList{from: from}
	var bad error
	err := s.scan(key, from, satAdd(s.clock, 1), false, func(rowKey, row []byte) bool {
		m, _, err := ParseRow(row)
		if err != nil {
			bad = s.rows.fail(err)
			return false
		}
		span := s.span(rowKey)
		anchor, _ := s.anchor(span)
		list.rows = append(list.rows, anchoredSpan{anchor, SpanRow{span, m.TimeMillis}})
		return true
	})
	if err == nil {
		err = bad
	}
	if err != nil {
		return nil, err
	}
	s.lists.used = true
	s.lists.put(key, list, 0, anchoredSpanBytes*2*len(list.rows))
	return list, nil
}

// trim lets go of windows that have expired, when they are many.
func (s *timedStore[K, V]) trim(list *spanList) {
	const few = 16
	e := s.expiry()
	if len(list.rows) < few || list.rows[len(list.rows)/2].anchor >= e {
		return
	}
	at, _ := slices.BinarySearchFunc(list.rows, e, compareAnchor)
	list.rows = slices.Delete(list.rows, 0, at)
	list.from = max(list.from, e)
}
