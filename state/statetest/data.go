package statetest

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"tailrace.dev/state"
)

func testPositions(t *testing.T, s *subject) {
	a, b := s.register(t, "a"), s.register(t, "b")
	s.wantPosition(t, a, nil)
	pa := state.Position{TopicID: [16]byte{1, 2, 255}, Next: 1 << 40, LeaderEpoch: 7, WallMillis: 1_700_000_000_000}
	pb := state.Position{TopicID: [16]byte{15: 9}, Next: 0, LeaderEpoch: -1, WallMillis: 0}
	s.write(t, state.Write{Positions: map[state.StoreID]state.Position{a: pa, b: pb}})
	s.wantPosition(t, a, &pa)
	s.wantPosition(t, b, &pb)
	pa.Next, pa.LeaderEpoch = 3, 8
	s.write(t, state.Write{
		Rows:      []state.Row{{Store: a, Key: []byte("k"), Value: []byte("v")}},
		Positions: map[state.StoreID]state.Position{a: pa},
	})
	s.wantPosition(t, a, &pa)
	s.wantPosition(t, b, &pb)
	// Positions are no rows.
	s.wantScan(t, a, nil, nil, "k=v")
	s.wantScan(t, b, nil, nil)
	s.reopen()
	s.wantPosition(t, a, &pa)
	s.wantPosition(t, b, &pb)
}

func (s *subject) wantPosition(t tester, id state.StoreID, want *state.Position) {
	t.Helper()
	got, ok, err := s.Position(id)
	switch {
	case err != nil:
		t.Fatalf("Position(%d): %v", id, err)
	case want == nil && ok:
		t.Fatalf("Position(%d) = %v, want none", id, got)
	case want != nil && (!ok || got != *want):
		t.Fatalf("Position(%d) = %+v, %v, want %+v", id, got, ok, *want)
	}
}

func testDropStore(t *testing.T, s *subject) {
	a, b := s.register(t, "a"), s.register(t, "b")
	p := state.Position{Next: 5}
	s.put(t, a, "", "1", "k", "2", "\xff", "3")
	s.put(t, b, "", "1", "k", "2", "\xff", "3")
	s.write(t, state.Write{Positions: map[state.StoreID]state.Position{a: p, b: p}})
	if err := s.DropStore(a); err != nil {
		t.Fatalf("DropStore: %v", err)
	}
	for range 2 {
		s.wantScan(t, a, nil, nil)
		s.wantRow(t, a, "k", "")
		s.wantPosition(t, a, nil)
		s.wantScan(t, b, nil, nil, "=1", "k=2", "\xff=3")
		s.wantPosition(t, b, &p)
		if names := s.Stores(); len(names) != 1 || names["b"] != b {
			t.Fatalf("Stores() = %v after a was dropped", names)
		}
		s.reopen()
	}
	if err := s.DropStore(a); err != nil {
		t.Fatalf("DropStore again: %v", err)
	}
	if id := s.register(t, "a"); id != a {
		t.Fatalf("a dropped store had the id %d, has %d when it is registered again", a, id)
	}
	s.put(t, a, "new", "4")
	s.wantScan(t, a, nil, nil, "new=4")
	if names := s.Stores(); len(names) != 2 {
		t.Fatalf("Stores() = %v", names)
	}
}

func testDeleteRange(t *testing.T, s *subject) {
	a, b := s.register(t, "a"), s.register(t, "b")
	for _, key := range oddKeys {
		s.put(t, a, key, "v")
		s.put(t, b, key, "v")
	}
	p := state.Position{Next: 5}
	s.write(t, state.Write{Positions: map[state.StoreID]state.Position{a: p}})
	for _, test := range []struct {
		from, to string // "-" is nil
		left     int
	}{
		{"a", "a", 20},
		{"b", "a", 20},
		{"-", "", 20},
		{"a", "b", 15},
		{"a", "b", 15},
		{"\xff\xff", "-", 12},
		{"-", "\x00\x01", 9},
		{"", "-", 0},
		{"-", "-", 0},
	} {
		if err := s.DeleteRange(a, bound(test.from), bound(test.to)); err != nil {
			t.Fatalf("DeleteRange(%q, %q): %v", test.from, test.to, err)
		}
		if got := len(s.scan(t, a, nil, nil, false)); got != test.left {
			t.Fatalf("DeleteRange(%q, %q) left %d rows, not %d", test.from, test.to, got, test.left)
		}
	}
	s.reopen()
	s.wantScan(t, a, nil, nil)
	s.wantPosition(t, a, &p)
	if got := len(s.scan(t, b, nil, nil, false)); got != len(oddKeys) {
		t.Fatalf("%d rows of another store are left of %d", got, len(oddKeys))
	}
}

func testDropLargeStore(t *testing.T, s *subject) {
	a, b := s.register(t, "a"), s.register(t, "b")
	const n = 30_000
	s.write(t, manyRows(a, n, "v"))
	s.put(t, b, "k", "v")
	if err := s.DropStore(a); err != nil {
		t.Fatalf("DropStore: %v", err)
	}
	s.wantScan(t, a, nil, nil)
	s.wantScan(t, b, nil, nil, "k=v")
}

func manyRows(id state.StoreID, n int, value string) state.Write {
	w := state.Write{Rows: make([]state.Row, n)}
	for i := range w.Rows {
		w.Rows[i] = state.Row{Store: id, Key: binary.BigEndian.AppendUint32(nil, uint32(i)), Value: []byte(value)}
	}
	return w
}

// testLargeWrite writes more at once than a backend is likely to take in one transaction, by count and by size.
func testLargeWrite(t *testing.T, s *subject) {
	byCount, bySize := s.register(t, "count"), s.register(t, "size")
	const n, m = 60_000, 300
	long := strings.Repeat("0123456789abcdef", 2048)
	w := manyRows(byCount, n, "v1")
	w.Rows = append(w.Rows, manyRows(bySize, m, long).Rows...)
	pos := state.Position{Next: n + m}
	w.Positions = map[state.StoreID]state.Position{byCount: pos, bySize: pos}
	s.write(t, w)
	for range 2 {
		if got := len(s.scan(t, byCount, nil, nil, false)); got != n {
			t.Fatalf("%d rows of %d", got, n)
		}
		c := s.Scan(bySize, nil, nil, true)
		i := m
		for c.Next() {
			i--
			if binary.BigEndian.Uint32(c.Key()) != uint32(i) || string(c.Value()) != long {
				t.Fatalf("row %d is %x=%s", i, c.Key(), clip(string(c.Value())))
			}
		}
		c.Close()
		if err := c.Err(); err != nil || i != 0 {
			t.Fatalf("a scan ended at %d: %v", i, err)
		}
		s.wantPosition(t, byCount, &pos)
		s.wantPosition(t, bySize, &pos)
		s.reopen()
	}
}

func testLargeRows(t *testing.T, s *subject) {
	id := s.register(t, "store")
	rng := rand.New(rand.NewPCG(1, 2))
	var want []string
	for i, size := range []int{1 << 10, 1 << 16, 1<<20 - 1, 1 << 20, 3 << 20} {
		key := fmt.Sprintf("%d%s", i, strings.Repeat("k", 1000*i))
		value := make([]byte, size)
		for j := range value {
			value[j] = byte(rng.Uint32())
		}
		s.put(t, id, key, string(value))
		want = append(want, key+"="+string(value))
	}
	for range 2 {
		got := s.scan(t, id, nil, nil, false)
		if !slices.Equal(got, want) {
			t.Fatalf("%d large rows of %d came back, or changed", len(got), len(want))
		}
		for _, row := range want {
			key, value, _ := strings.Cut(row, "=")
			s.wantRow(t, id, key, value)
		}
		s.reopen()
	}
}

func testSnapshot(t *testing.T, s *subject) {
	id := s.register(t, "store")
	s.put(t, id, "a", "1", "b", "1", "c", "1")
	forward, backward := s.Scan(id, nil, nil, false), s.Scan(id, nil, nil, true)
	if !forward.Next() {
		t.Fatal("no row")
	}
	s.write(t, state.Write{Rows: []state.Row{
		{Store: id, Key: []byte("a"), Value: []byte("2")},
		{Store: id, Key: []byte("b")},
		{Store: id, Key: []byte("c"), Value: []byte("2")},
		{Store: id, Key: []byte("d"), Value: []byte("2")},
	}})
	if got := drain(t, forward); !slices.Equal(got, []string{"b=1", "c=1"}) {
		t.Fatalf("a cursor went on with %q", got)
	}
	if got := drain(t, backward); !slices.Equal(got, []string{"c=1", "b=1", "a=1"}) {
		t.Fatalf("a cursor saw %q", got)
	}
	s.wantScan(t, id, nil, nil, "a=2", "c=2", "d=2")
}

// testConcurrency writes rounds of rows, each round the same value under all keys, while readers check that a scan is
// complete and of rounds that exist, and that what they see never goes backwards.
func testConcurrency(t *testing.T, s *subject) {
	id := s.register(t, "store")
	const keys, rounds = 50, 30
	round := func(n int) state.Write {
		w := manyRows(id, keys, fmt.Sprintf("%06d", n))
		w.Positions = map[state.StoreID]state.Position{id: {Next: int64(n)}}
		return w
	}
	s.write(t, round(0))
	var stop atomic.Bool
	var wg sync.WaitGroup
	for r := range 4 {
		wg.Go(func() {
			var last, lastPos string
			for !stop.Load() {
				c := s.Scan(id, nil, nil, r%2 == 0)
				n := 0
				var seen string
				for c.Next() {
					seen = max(seen, string(c.Value()))
					n++
				}
				c.Close()
				if err := c.Err(); err != nil || n != keys || seen < last {
					t.Errorf("a scan saw %d rows of %d, up to round %q after %q: %v", n, keys, seen, last, err)
					return
				}
				last = seen
				p, ok, err := s.Position(id)
				pos := fmt.Sprintf("%06d", p.Next)
				if err != nil || !ok || pos < lastPos {
					t.Errorf("Position = %v, %v, %v after %q", p, ok, err, lastPos)
					return
				}
				lastPos = pos
				row, err := s.Get(id, binary.BigEndian.AppendUint32(nil, uint32(r)))
				if err != nil || string(row) < pos {
					t.Errorf("Get = %q, %v, though the position is %s", row, err, pos)
					return
				}
			}
		})
	}
	for n := 1; n <= rounds; n++ {
		if err := s.Write(round(n)); err != nil {
			t.Errorf("Write: %v", err)
			break
		}
	}
	stop.Store(true)
	wg.Wait()
}

func testReopen(t *testing.T, s *subject) {
	if s.reopenFn == nil {
		t.Skip("the backend keeps nothing")
	}
	id := s.register(t, "store")
	want := map[string]string{}
	for n := range 5 {
		key := fmt.Sprintf("key%d", n%3)
		want[key] = fmt.Sprint("value", n)
		s.put(t, id, key, want[key])
		s.reopen()
		if got := s.Stores()["store"]; got != id {
			t.Fatalf("the store has the id %d, had %d", got, id)
		}
		for key, value := range want {
			s.wantRow(t, id, key, value)
		}
	}
}

func testSize(t *testing.T, s *subject) {
	id := s.register(t, "store")
	before := s.Size()
	const n, size = 512, 4096
	// Values that do not compress.
	rng := rand.New(rand.NewPCG(3, 4))
	w := manyRows(id, n, "")
	for i := range w.Rows {
		w.Rows[i].Value = make([]byte, size)
		for j := range w.Rows[i].Value {
			w.Rows[i].Value[j] = byte(rng.Uint32())
		}
	}
	s.write(t, w)
	if grown := s.Size() - before; grown < n*size/2 || grown > 8*n*size {
		t.Errorf("Size grew by %d when %d bytes were written", grown, n*size)
	}
}
