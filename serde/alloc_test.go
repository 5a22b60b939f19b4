package serde_test

import (
	"strconv"
	"testing"
	"time"

	"tailrace.dev/serde"
)

func itoa(n int) string { return strconv.Itoa(n) }

func atoi(s string) (int, bool) {
	n, err := strconv.Atoi(s)
	return n, err == nil
}

// allocs checks how often Append into a large enough buffer allocates, and Decode.
func allocs[T any](t *testing.T, s serde.Serde[T], v T, maxAppend, maxDecode float64) {
	t.Helper()
	dst := make([]byte, 0, 1024)
	var err error
	if n := testing.AllocsPerRun(200, func() { _, err = s.Append(dst, v) }); n > maxAppend || err != nil {
		t.Errorf("%s: Append allocates %v times, want %v; error %v", serde.ID(s), n, maxAppend, err)
	}
	src, err := serde.Encode(s, v)
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(200, func() { _, err = s.Decode(src) }); n > maxDecode || err != nil {
		t.Errorf("%s: Decode allocates %v times, want %v; error %v", serde.ID(s), n, maxDecode, err)
	}
}

func TestAllocations(t *testing.T) {
	allocs(t, serde.String, "a string that is too long for a small buffer on the stack", 0, 1)
	allocs(t, serde.Bytes, []byte("some bytes"), 0, 1)
	allocs(t, serde.Raw, []byte("some bytes"), 0, 0)
	allocs(t, serde.None, struct{}{}, 0, 0)
	allocs(t, serde.Int8, 1, 0, 0)
	allocs(t, serde.Int16, 1, 0, 0)
	allocs(t, serde.Int32, 1, 0, 0)
	allocs(t, serde.Int64, 1, 0, 0)
	allocs(t, serde.Uint8, 1, 0, 0)
	allocs(t, serde.Uint16, 1, 0, 0)
	allocs(t, serde.Uint32, 1, 0, 0)
	allocs(t, serde.Uint64, 1, 0, 0)
	allocs(t, serde.Float32, 1, 0, 0)
	allocs(t, serde.Float64, 1, 0, 0)
	allocs(t, serde.OrderedInt8, 1, 0, 0)
	allocs(t, serde.OrderedInt16, 1, 0, 0)
	allocs(t, serde.OrderedInt32, 1, 0, 0)
	allocs(t, serde.OrderedInt64, 1, 0, 0)
	allocs(t, serde.OrderedFloat64, 1, 0, 0)
	allocs(t, serde.Bool, true, 0, 0)
	allocs(t, serde.UUID, someUUID, 0, 0)
	allocs(t, serde.Time, time.Now(), 0, 0)
	allocs(t, serde.OrderedTime, time.Now(), 0, 0)
	allocs(t, serde.Duration, time.Second, 0, 0)
	allocs(t, userIDs, 1, 0, 0)
	allocs(t, serde.WithLimit(serde.Int64, 8), 1, 0, 0)
	allocs(t, serde.WithID(serde.Int64, "x"), 1, 0, 0)
	allocs(t, serde.Tuple2(serde.Int64, serde.Bool), pair(int64(1), true), 0, 0)
	allocs(t, serde.Tuple2(serde.String, serde.Int64), pair("a\x00b", int64(1)), 0, 3)
	// Not 0, because a pool may be emptied at any time, and is at random under the race detector.
	allocs(t, serde.JSON[doc](), doc{Name: "name"}, 2, 8)
}

func benchmark[T any](b *testing.B, s serde.Serde[T], v T) {
	src, err := serde.Encode(s, v)
	if err != nil {
		b.Fatal(err)
	}
	dst := make([]byte, 0, 2*len(src))
	b.Run("append", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(src)))
		for b.Loop() {
			if _, err := s.Append(dst, v); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(src)))
		for b.Loop() {
			if _, err := s.Decode(src); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkString(b *testing.B) { benchmark(b, serde.String, "user-0123456789") }
func BenchmarkInt64(b *testing.B)  { benchmark(b, serde.Int64, 1<<40) }
func BenchmarkUUID(b *testing.B)   { benchmark(b, serde.UUID, someUUID) }
func BenchmarkTime(b *testing.B)   { benchmark(b, serde.Time, time.Now()) }
func BenchmarkJSON(b *testing.B) {
	benchmark(b, serde.JSON[doc](), doc{Name: "a name of usual length"})
}
func BenchmarkConvert(b *testing.B) { benchmark(b, userIDs, 1<<40) }
func BenchmarkPair(b *testing.B) {
	benchmark(b, serde.Tuple2(serde.String, serde.OrderedInt64), pair("user-0123456789", int64(1)))
}
func BenchmarkPairEscaped(b *testing.B) {
	benchmark(b, serde.Tuple2(serde.String, serde.OrderedInt64), pair("user\x0001234\x0056789", int64(1)))
}
func BenchmarkPairFixed(b *testing.B) {
	benchmark(b, serde.Tuple2(serde.Uint64, serde.OrderedInt64), pair(uint64(1), int64(1)))
}
