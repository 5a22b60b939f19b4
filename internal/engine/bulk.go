package engine

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"slices"

	"tailrace.dev/state"
)

const (
	// bulkChunk is how much memory for keys and rows is taken at a time.
	bulkChunk = 256 << 10
	// bulkOverhead is what a row takes besides its key and value: itself, its places in the table and in the order.
	bulkOverhead = 96
)

// bulk collects rows of one store out of its changelog, and keeps the newest of each key: however often a row has
// changed, it is written once. What is put is copied, so that its memory is that of its rows, not of all that was read.
// The zero value is ready, and may be used again and again; it is for one goroutine.
type bulk struct {
	rows  []state.Row
	table []int32 // open addressing by hash: 1 + an index of rows, or 0; its length is a power of two
	order []bulkKey
	seed  maphash.Seed

	scratch []state.Row // for who uses the bulk

	chunks [][]byte // the first used are full, but for the last of them
	used   int
	bytes  int64
}

// bulkKey is a part of a row's key that most comparisons can do with.
type bulkKey struct {
	prefix uint64
	row    int32
}

// size returns about how many bytes of memory the rows take.
func (b *bulk) size() int64 { return b.bytes + int64(len(b.rows))*bulkOverhead }

// put adds a row, or takes the place of one with the same key.
func (b *bulk) put(store state.StoreID, key, value []byte) {
	if 2*len(b.rows) >= len(b.table) {
		b.grow()
	}
	for i := b.slot(key); ; i = (i + 1) & (len(b.table) - 1) {
		switch at := b.table[i]; {
		case at == 0:
			b.rows = append(b.rows, state.Row{Store: store, Key: b.copy(key), Value: b.copy(value)})
			b.table[i] = int32(len(b.rows))
			return
		case bytes.Equal(b.rows[at-1].Key, key):
			row := &b.rows[at-1]
			if value != nil && row.Value != nil && len(value) <= cap(row.Value) {
				row.Value = append(row.Value[:0], value...)
			} else {
				row.Value = b.copy(value)
			}
			return
		}
	}
}

func (b *bulk) slot(key []byte) int { return int(maphash.Bytes(b.seed, key)) & (len(b.table) - 1) }

func (b *bulk) grow() {
	if b.table == nil {
		b.seed = maphash.MakeSeed()
	}
	b.table = make([]int32, max(1024, 2*len(b.table)))
	for at := range b.rows {
		i := b.slot(b.rows[at].Key)
		for b.table[i] != 0 {
			i = (i + 1) & (len(b.table) - 1)
		}
		b.table[i] = int32(at + 1)
	}
}

// copy returns a copy of p in memory that is the bulk's own.
func (b *bulk) copy(p []byte) []byte {
	if p == nil {
		return nil
	}
	b.bytes += int64(len(p))
	if len(p) > bulkChunk/4 {
		return bytes.Clone(p)
	}
	if b.used == 0 || cap(b.chunks[b.used-1])-len(b.chunks[b.used-1]) < len(p) {
		if b.used == len(b.chunks) {
			b.chunks = append(b.chunks, make([]byte, 0, bulkChunk))
		}
		b.used++
	}
	chunk := &b.chunks[b.used-1]
	at := len(*chunk)
	*chunk = append(*chunk, p...)
	return (*chunk)[at:len(*chunk):len(*chunk)]
}

// sorted returns the rows, ordered by key. They are valid until reset, and nothing may be put before it.
func (b *bulk) sorted() []state.Row {
	if len(b.rows) < 2 {
		return b.rows
	}
	// Keys of a store often begin with the same bytes; those behind tell more of them apart.
	common := b.rows[0].Key
	for i := range b.rows {
		n, key := 0, b.rows[i].Key
		for n < min(len(common), len(key)) && common[n] == key[n] {
			n++
		}
		common = common[:n]
	}
	b.order = b.order[:0]
	for i := range b.rows {
		var prefix [8]byte
		copy(prefix[:], b.rows[i].Key[len(common):])
		b.order = append(b.order, bulkKey{binary.BigEndian.Uint64(prefix[:]), int32(i)})
	}
	slices.SortFunc(b.order, func(x, y bulkKey) int {
		if x.prefix != y.prefix {
			return cmp.Compare(x.prefix, y.prefix)
		}
		return bytes.Compare(b.rows[x.row].Key, b.rows[y.row].Key)
	})
	b.arrange()
	return b.rows
}

// arrange brings the rows into order, in place: it follows each cycle of moves from its first row.
func (b *bulk) arrange() {
	for i := range b.order {
		if b.order[i].row < 0 {
			continue // moved with an earlier cycle
		}
		first := b.rows[i]
		at := i
		for {
			from := int(b.order[at].row)
			b.order[at].row = -1
			if from == i {
				b.rows[at] = first
				break
			}
			b.rows[at] = b.rows[from]
			at = from
		}
	}
}

// reset forgets the rows and keeps the memory.
func (b *bulk) reset() {
	clear(b.rows)
	clear(b.table)
	b.rows, b.bytes = b.rows[:0], 0
	for i := range b.used {
		b.chunks[i] = b.chunks[i][:0]
	}
	b.used = 0
}
