package engine

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestBulk compares a bulk with a map, over keys of all lengths and many common beginnings.
func TestBulk(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	var b bulk
	for round := range 60 {
		want := map[string][]byte{}
		prefix := bytes.Repeat([]byte{'p'}, rng.IntN(12))
		n, span := rng.IntN(5000), 1+rng.IntN(3000)
		for range n {
			key := append(bytes.Clone(prefix), fmt.Sprint(rng.IntN(span))[:1]...)
			switch rng.IntN(3) {
			case 0:
				key = append(key, byte(rng.IntN(4)), 0, byte(rng.IntN(256)))
			case 1:
				key = append(key, make([]byte, rng.IntN(10))...)
			default:
				key = fmt.Appendf(key, "%08d", rng.IntN(span))
			}
			var value []byte
			if rng.IntN(5) > 0 {
				value = make([]byte, 1+rng.IntN(40))
				if rng.IntN(500) == 0 {
					value = make([]byte, bulkChunk/4+rng.IntN(bulkChunk))
				}
				for i := range value {
					value[i] = byte(rng.IntN(256))
				}
			}
			b.put(7, key, value)
			want[string(key)] = bytes.Clone(value)
			for i := range value {
				value[i] = 0xee // the bulk has a copy
			}
			clear(key)
		}
		rows := b.sorted()
		keys := slices.Sorted(maps.Keys(want))
		if len(rows) != len(keys) {
			t.Fatalf("seed %d, round %d: %d rows, want %d", seed, round, len(rows), len(keys))
		}
		for i, row := range rows {
			if row.Store != 7 || string(row.Key) != keys[i] || !bytes.Equal(row.Value, want[keys[i]]) ||
				(row.Value == nil) != (want[keys[i]] == nil) {
				t.Fatalf("seed %d, round %d: row %d is %q, want key %q", seed, round, i, row.Key, keys[i])
			}
		}
		b.reset()
		if b.size() != 0 || len(b.rows) != 0 {
			t.Fatal("not empty after reset")
		}
	}
}

func BenchmarkBulk(b *testing.B) {
	for _, keys := range []int{25_000, 1 << 30} {
		b.Run(fmt.Sprint(keys), func(b *testing.B) {
			var bk bulk
			var key []byte
			value := make([]byte, 16)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				key = fmt.Appendf(key[:0], "\x01key-%08d", i*7919%keys)
				bk.put(1, key, value)
				if bk.size() > restoreBytes {
					bk.sorted()
					bk.reset()
				}
			}
		})
	}
}
