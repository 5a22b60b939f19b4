package state

import (
	"cmp"
	"slices"
	"unsafe"

	"github.com/tidwall/btree"
)

// layerEntryOverhead is what an entry costs beyond its key and row: map slot, slice headers.
const layerEntryOverhead = 64

// entry is a row of a layer; a nil row is a deletion.
type entry struct {
	key string
	row []byte
}

// layer is a set of rows in memory, newest write only, that covers what lies below it.
type layer struct {
	index   map[string]int32
	entries []entry
	// sorted mirrors the keys in order. It is made by the first scan: a store that is never scanned does not pay.
	sorted *btree.Set[string]
}

func newLayer() *layer { return &layer{index: make(map[string]int32)} }

func (l *layer) len() int { return len(l.entries) }

// get returns the row, and whether the layer knows the key; a known nil row is a deletion.
func (l *layer) get(key []byte) (row []byte, known bool) {
	i, ok := l.index[string(key)]
	if !ok {
		return nil, false
	}
	return l.entries[i].row, true
}

// put adds a row under a key that the layer may keep.
func (l *layer) put(key string, row []byte) {
	if i, ok := l.index[key]; ok {
		l.entries[i].row = row
		return
	}
	l.add(key, row)
}

func (l *layer) add(key string, row []byte) {
	l.index[key] = int32(len(l.entries))
	l.entries = append(l.entries, entry{key, row})
	if l.sorted != nil {
		l.sorted.Insert(key)
	}
}

// dropLast forgets the newest entry; it undoes add.
func (l *layer) dropLast() {
	last := len(l.entries) - 1
	key := l.entries[last].key
	delete(l.index, key)
	if l.sorted != nil {
		l.sorted.Delete(key)
	}
	l.entries[last] = entry{}
	l.entries = l.entries[:last]
}

// clear empties the layer and keeps its memory, unless that has grown far beyond what was used.
func (l *layer) clear() {
	if len(l.index) == 0 {
		return
	}
	if cap(l.entries) > 1<<16 && len(l.entries) < cap(l.entries)/8 {
		*l = *newLayer()
		return
	}
	clear(l.index)
	clear(l.entries)
	l.entries = l.entries[:0]
	if l.sorted != nil {
		l.sorted = new(btree.Set[string]) // a store that was scanned will be again
	}
}

// order returns the keys in order.
func (l *layer) order() *btree.Set[string] {
	if l.sorted == nil {
		l.sorted = new(btree.Set[string])
		for i := range l.entries {
			l.sorted.Insert(l.entries[i].key)
		}
	}
	return l.sorted
}

// inOrder returns the entries by key. It reads nothing but entries, so that a flush may run beside readers.
func (l *layer) inOrder() []entry {
	es := slices.Clone(l.entries)
	slices.SortFunc(es, func(a, b entry) int { return cmp.Compare(a.key, b.key) })
	return es
}

// bytesOf views an immutable string as bytes, which the receiver must not write to.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// stringOf views bytes as a string, for as long as they do not change.
func stringOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// arena hands out byte slices cut from larger chunks, so that a small row costs no allocation of its own. What was
// handed out stays valid for as long as it is referred to.
//
// A chunk is in memory until the last of its rows is overwritten. Rows of random keys are overwritten at random times,
// so chunks of n rows take about ln(n) times the memory of the rows that are still in use: chunks are small.
type arena struct {
	chunk []byte
}

const arenaChunkBytes = 1 << 10

// copy returns a copy of b with no spare capacity.
func (a *arena) copy(b []byte) []byte {
	n := len(b)
	if n > cap(a.chunk)-len(a.chunk) {
		if n > arenaChunkBytes/8 {
			return append(make([]byte, 0, n), b...)
		}
		a.chunk = make([]byte, 0, arenaChunkBytes)
	}
	at := len(a.chunk)
	a.chunk = append(a.chunk, b...)
	return a.chunk[at : at+n : at+n]
}
