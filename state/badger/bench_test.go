package badger

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"tailrace.dev/state"
)

// benchRow is a row of about 100 bytes, like a small JSON document behind a row header.
func benchRow(n int) []byte {
	return fmt.Appendf(nil, "\x01\x00\x00\x01\x8b\xcf\xe5h\x00"+
		`{"id":%08d,"user":"u%06x","unread":%d,"subject":"hello %d","flags":["new"]}`, n, n*7919%999_983, n%17, n)
}

func benchKey(n int) []byte {
	return binary.BigEndian.AppendUint64([]byte{state.KindRow}, uint64(n))
}

func benchWrite(id state.StoreID, from, n int) state.Write {
	w := state.Write{
		Rows:      make([]state.Row, n),
		Positions: map[state.StoreID]state.Position{id: {Next: int64(from + n)}},
	}
	for i := range w.Rows {
		w.Rows[i] = state.Row{Store: id, Key: benchKey(from + i), Value: benchRow(from + i)}
	}
	return w
}

func benchBackend(b *testing.B, rows int) (*Backend, state.StoreID, string) {
	dir := b.TempDir()
	s := mustOpen(b, dir, Options{})
	id, err := s.Register("store")
	if err != nil {
		b.Fatal(err)
	}
	for from := 0; from < rows; from += 10_000 {
		if err := s.Write(benchWrite(id, from, 10_000)); err != nil {
			b.Fatal(err)
		}
	}
	return s, id, dir
}

func BenchmarkOpenEmpty(b *testing.B) {
	for b.Loop() {
		s := mustOpen(b, b.TempDir(), Options{})
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReopen(b *testing.B) {
	for _, rows := range []int{10_000, 500_000} {
		b.Run(fmt.Sprint(rows), func(b *testing.B) {
			s, _, dir := benchBackend(b, rows)
			for b.Loop() {
				b.StopTimer()
				if err := s.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				s = mustOpen(b, dir, Options{})
			}
			b.ReportMetric(float64(s.Size())/float64(rows), "bytes/row")
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

func BenchmarkWrite(b *testing.B) {
	for _, rows := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprint(rows), func(b *testing.B) {
			s, id, _ := benchBackend(b, 0)
			n := 0
			for b.Loop() {
				if err := s.Write(benchWrite(id, n, rows)); err != nil {
					b.Fatal(err)
				}
				n += rows
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "rows/s")
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

func BenchmarkGet(b *testing.B) {
	const rows = 500_000
	s, id, _ := benchBackend(b, rows)
	defer s.Close()
	rng := rand.New(rand.NewPCG(1, 1))
	for _, bench := range []struct {
		name string
		base int
	}{{"hit", 0}, {"miss", 1 << 40}} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				row, err := s.Get(id, benchKey(bench.base+rng.IntN(rows)))
				if err != nil || (row != nil) != (bench.base == 0) {
					b.Fatal(row, err)
				}
			}
		})
	}
}

func BenchmarkScan(b *testing.B) {
	const rows = 100_000
	s, id, _ := benchBackend(b, rows)
	defer s.Close()
	for _, reverse := range []bool{false, true} {
		b.Run(fmt.Sprintf("reverse=%v", reverse), func(b *testing.B) {
			n := 0
			for b.Loop() {
				c := s.Scan(id, nil, nil, reverse)
				for c.Next() {
					n++
				}
				c.Close()
				if c.Err() != nil {
					b.Fatal(c.Err())
				}
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "rows/s")
		})
	}
	b.Run("prefix of 10", func(b *testing.B) {
		i := 0
		for b.Loop() {
			i = (i + 7919) % (rows - 10)
			c := s.Scan(id, benchKey(i), benchKey(i+10), false)
			for c.Next() {
			}
			c.Close()
		}
	})
}
