// Package statetest holds the tests that every state.Backend has to pass.
//
//	func TestConformance(t *testing.T) {
//		statetest.Run(t, func(t testing.TB) (state.Backend, func() state.Backend) {
//			return memory.New(), nil
//		})
//	}
package statetest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"tailrace.dev/state"
)

// Open makes an empty backend. The suite closes it, and what reopen returns; closing has to be idempotent. Reopen
// closes the newest backend and opens its files again; it is nil for a backend that keeps nothing.
type Open func(t testing.TB) (b state.Backend, reopen func() state.Backend)

// Run runs the whole suite on backends that open makes. It is meant to be run under the race detector too.
func Run(t *testing.T, open func(t testing.TB) (b state.Backend, reopen func() state.Backend)) {
	t.Helper()
	for _, test := range []struct {
		name string
		run  func(*testing.T, *subject)
	}{
		{"register", testRegister},
		{"get and put", testGetPut},
		{"odd keys", testOddKeys},
		{"caller owns slices", testOwnership},
		{"scan bounds", testScanBounds},
		{"scan odd bounds", testScanOddBounds},
		{"stores are apart", testStoresApart},
		{"cursor", testCursor},
		{"positions", testPositions},
		{"drop store", testDropStore},
		{"delete range", testDeleteRange},
		{"drop large store", testDropLargeStore},
		{"large write", testLargeWrite},
		{"large rows", testLargeRows},
		{"scan sees the past", testSnapshot},
		{"readers during writes", testConcurrency},
		{"reopen", testReopen},
		{"unknown store", testUnknownStore},
		{"size", testSize},
		{"closed", testClosed},
		{"model", testModel},
	} {
		t.Run(test.name, func(t *testing.T) {
			b, reopen := open(t)
			s := &subject{Backend: b, reopenFn: reopen}
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
			test.run(t, s)
		})
	}
}

// subject is the backend under test.
type subject struct {
	state.Backend
	reopenFn func() state.Backend
}

// reopen closes and opens the backend, if it keeps anything.
func (s *subject) reopen() {
	if s.reopenFn != nil {
		s.Backend = s.reopenFn()
	}
}

// tester is what *testing.T and *rapid.T have in common.
type tester interface {
	Helper()
	Fatalf(format string, args ...any)
}

func (s *subject) register(t tester, name string) state.StoreID {
	t.Helper()
	id, err := s.Register(name)
	if err != nil {
		t.Fatalf("Register(%q): %v", name, err)
	}
	return id
}

func (s *subject) write(t tester, w state.Write) {
	t.Helper()
	slices.SortStableFunc(w.Rows, compareRows)
	if err := s.Write(w); err != nil {
		t.Fatalf("Write: %v", err)
	}
}

// put writes rows given as key, value, key, value.
func (s *subject) put(t tester, id state.StoreID, pairs ...string) {
	t.Helper()
	var w state.Write
	for i := 0; i < len(pairs); i += 2 {
		w.Rows = append(w.Rows, state.Row{Store: id, Key: []byte(pairs[i]), Value: []byte(pairs[i+1])})
	}
	s.write(t, w)
}

func (s *subject) wantRow(t tester, id state.StoreID, key, want string) {
	t.Helper()
	got, err := s.Get(id, []byte(key))
	if err != nil {
		t.Fatalf("Get(%d, %q): %v", id, key, err)
	}
	if string(got) != want || (want != "") != (got != nil) {
		t.Fatalf("Get(%d, %q) = %q, want %q", id, key, clip(string(got)), clip(want))
	}
}

// scan returns the rows of a scan as "key=value" strings.
func (s *subject) scan(t tester, id state.StoreID, from, to []byte, reverse bool) []string {
	t.Helper()
	return drain(t, s.Scan(id, from, to, reverse))
}

func drain(t tester, c state.Cursor) []string {
	t.Helper()
	defer c.Close()
	var got []string
	for c.Next() {
		got = append(got, string(c.Key())+"="+string(c.Value()))
	}
	if err := c.Err(); err != nil {
		t.Fatalf("Cursor.Err: %v", err)
	}
	return got
}

func (s *subject) wantScan(t tester, id state.StoreID, from, to []byte, want ...string) {
	t.Helper()
	if got := s.scan(t, id, from, to, false); !slices.Equal(got, want) {
		t.Fatalf("Scan(%q, %q) = %q, want %q", from, to, got, want)
	}
	backwards := slices.Clone(want)
	slices.Reverse(backwards)
	if got := s.scan(t, id, from, to, true); !slices.Equal(got, backwards) {
		t.Fatalf("Scan(%q, %q, reverse) = %q, want %q", from, to, got, backwards)
	}
}

func compareRows(a, b state.Row) int {
	if a.Store != b.Store {
		if a.Store < b.Store {
			return -1
		}
		return 1
	}
	return bytes.Compare(a.Key, b.Key)
}

// clip keeps long values out of failure messages.
func clip(s string) string {
	if len(s) > 64 {
		return fmt.Sprintf("%s… (%d bytes)", s[:64], len(s))
	}
	return s
}

func testRegister(t *testing.T, s *subject) {
	a := s.register(t, "a")
	b := s.register(t, "b")
	if a == b {
		t.Fatalf("stores a and b share the id %d", a)
	}
	if again := s.register(t, "a"); again != a {
		t.Fatalf("Register(a) = %d, then %d", a, again)
	}
	s.reopen()
	if again := s.register(t, "b"); again != b {
		t.Fatalf("Register(b) = %d, after reopening %d", b, again)
	}
	names := s.Stores()
	if len(names) != 2 || names["a"] != a || names["b"] != b {
		t.Fatalf("Stores() = %v", names)
	}
	clear(names)
	if len(s.Stores()) != 2 {
		t.Fatal("Stores() gave out its own map")
	}
}

func testGetPut(t *testing.T, s *subject) {
	id := s.register(t, "store")
	s.wantRow(t, id, "a", "")
	s.put(t, id, "a", "1", "b", "2")
	s.wantRow(t, id, "a", "1")
	s.wantRow(t, id, "b", "2")
	s.put(t, id, "a", "3")
	s.wantRow(t, id, "a", "3")
	s.write(t, state.Write{Rows: []state.Row{{Store: id, Key: []byte("a")}, {Store: id, Key: []byte("never")}}})
	s.wantRow(t, id, "a", "")
	s.wantRow(t, id, "never", "")
	s.wantRow(t, id, "b", "2")
	s.write(t, state.Write{})
	s.wantScan(t, id, nil, nil, "b=2")
	s.put(t, id, "a", "4")
	s.wantScan(t, id, nil, nil, "a=4", "b=2")
}

// oddKeys has keys at the edges of orders and encodings, in key order.
var oddKeys = []string{
	"", "\x00", "\x00\x00", "\x00\x01", "\x00\xff", "\x01", "a", "a\x00", "a\x00b", "aa", "a\xff", "b",
	"\x7f\xff", "\xfe", "\xff", "\xff\x00", "\xff\xfe", "\xff\xff", "\xff\xff\x00", strings.Repeat("\xff", 300),
}

func testOddKeys(t *testing.T, s *subject) {
	id := s.register(t, "store")
	var want []string
	for i, key := range oddKeys {
		value := fmt.Sprintf("%d\x00\xff", i)
		s.put(t, id, key, value)
		want = append(want, key+"="+value)
	}
	for i, key := range oddKeys {
		s.wantRow(t, id, key, fmt.Sprintf("%d\x00\xff", i))
	}
	s.wantScan(t, id, nil, nil, want...)
	s.reopen()
	s.wantScan(t, id, nil, nil, want...)
	s.write(t, state.Write{Rows: []state.Row{{Store: id, Key: []byte{}}}})
	s.wantScan(t, id, nil, nil, want[1:]...)
}

func testOwnership(t *testing.T, s *subject) {
	id := s.register(t, "store")
	key, value := []byte("key"), []byte("value")
	if err := s.Write(state.Write{Rows: []state.Row{{Store: id, Key: key, Value: value}}}); err != nil {
		t.Fatalf("Write: %v", err)
	}
	copy(key, "xxx")
	copy(value, "xxxxx")
	s.wantRow(t, id, "key", "value")
	got, err := s.Get(id, []byte("key"))
	if err != nil {
		t.Fatalf("Get: %v", err)
	}
	copy(got, "yyyyy")
	s.wantRow(t, id, "key", "value")
	from, to := []byte("a"), []byte("z")
	c := s.Scan(id, from, to, false)
	defer c.Close()
	copy(from, "z")
	copy(to, "a")
	if !c.Next() || string(c.Key()) != "key" {
		t.Fatalf("a cursor kept a bound of the caller: %v", c.Err())
	}
	copy(c.Key(), "zzz")
	copy(c.Value(), "zzzzz")
	s.wantScan(t, id, nil, nil, "key=value")
}

func testScanBounds(t *testing.T, s *subject) {
	id := s.register(t, "store")
	s.wantScan(t, id, nil, nil)
	s.put(t, id, "b", "1", "d", "2", "f", "3")
	for _, test := range []struct {
		from, to string // "-" is nil
		want     []string
	}{
		{"-", "-", []string{"b=1", "d=2", "f=3"}},
		{"a", "-", []string{"b=1", "d=2", "f=3"}},
		{"b", "-", []string{"b=1", "d=2", "f=3"}},
		{"b\x00", "-", []string{"d=2", "f=3"}},
		{"f", "-", []string{"f=3"}},
		{"g", "-", nil},
		{"-", "g", []string{"b=1", "d=2", "f=3"}},
		{"-", "f", []string{"b=1", "d=2"}},
		{"-", "e", []string{"b=1", "d=2"}},
		{"-", "f\x00", []string{"b=1", "d=2", "f=3"}},
		{"-", "b", nil},
		{"-", "", nil},
		{"", "-", []string{"b=1", "d=2", "f=3"}},
		{"b", "f", []string{"b=1", "d=2"}},
		{"c", "e", []string{"d=2"}},
		{"d", "d", nil},
		{"d", "d\x00", []string{"d=2"}},
		{"f", "b", nil},
	} {
		s.wantScan(t, id, bound(test.from), bound(test.to), test.want...)
	}
}

func testScanOddBounds(t *testing.T, s *subject) {
	id := s.register(t, "store")
	next := s.register(t, "next")
	for _, key := range oddKeys {
		s.put(t, id, key, "v")
		s.put(t, next, key, "other")
	}
	for i, from := range oddKeys {
		for j, to := range oddKeys {
			var want []string
			for _, key := range oddKeys[min(i, j):j] {
				want = append(want, key+"=v")
			}
			s.wantScan(t, id, []byte(from), []byte(to), want...)
		}
	}
}

func bound(s string) []byte {
	if s == "-" {
		return nil
	}
	return []byte(s)
}

func testStoresApart(t *testing.T, s *subject) {
	var ids []state.StoreID
	for i := range 5 {
		ids = append(ids, s.register(t, fmt.Sprintf("store%d", i)))
	}
	s.put(t, ids[1], "", "1", "k", "1", "\xff\xff\xff", "1")
	s.put(t, ids[3], "", "3", "k", "3", "\xff\xff\xff", "3")
	s.wantRow(t, ids[0], "k", "")
	s.wantRow(t, ids[1], "k", "1")
	s.wantRow(t, ids[3], "k", "3")
	for i, id := range ids {
		var want []string
		if i == 1 || i == 3 {
			v := fmt.Sprint(i)
			want = []string{"=" + v, "k=" + v, "\xff\xff\xff=" + v}
		}
		s.wantScan(t, id, nil, nil, want...)
	}
	s.write(t, state.Write{Rows: []state.Row{{Store: ids[1], Key: []byte("k")}}})
	s.wantRow(t, ids[3], "k", "3")
}

func testCursor(t *testing.T, s *subject) {
	id := s.register(t, "store")
	s.put(t, id, "a", "1", "b", "2", "c", "3")
	c := s.Scan(id, nil, nil, false)
	if !c.Next() || string(c.Key()) != "a" {
		t.Fatalf("the first row is %q", c.Key())
	}
	c.Close()
	if c.Next() {
		t.Fatal("a closed cursor went on")
	}
	c.Close()
	if err := c.Err(); err != nil {
		t.Fatalf("Err after an early Close: %v", err)
	}
	c = s.Scan(id, []byte("b"), nil, false)
	for c.Next() {
	}
	if c.Next() {
		t.Fatal("a cursor went on after its end")
	}
	c.Close()
	unused := s.Scan(id, nil, nil, true)
	unused.Close()
}

func testUnknownStore(t *testing.T, s *subject) {
	s.register(t, "store")
	const unknown = 77
	if _, err := s.Get(unknown, []byte("k")); err == nil {
		t.Error("Get of an unknown store succeeded")
	}
	c := s.Scan(unknown, nil, nil, false)
	if c.Next() || c.Err() == nil {
		t.Error("Scan of an unknown store gave no error")
	}
	c.Close()
	row := state.Row{Store: unknown, Key: []byte("k"), Value: []byte("v")}
	if err := s.Write(state.Write{Rows: []state.Row{row}}); err == nil {
		t.Error("Write to an unknown store succeeded")
	}
	if err := s.Write(state.Write{Positions: map[state.StoreID]state.Position{unknown: {Next: 1}}}); err == nil {
		t.Error("Write of a position of an unknown store succeeded")
	}
	if _, _, err := s.Position(0); err == nil {
		t.Error("Position of the store 0 succeeded")
	}
	if err := s.DeleteRange(unknown, nil, nil); err == nil {
		t.Error("DeleteRange of an unknown store succeeded")
	}
	if err := s.DropStore(unknown); err == nil {
		t.Error("DropStore of an unknown store succeeded")
	}
}

func testClosed(t *testing.T, s *subject) {
	id := s.register(t, "store")
	s.put(t, id, "a", "1", "b", "2")
	c := s.Scan(id, nil, nil, false)
	if !c.Next() {
		t.Fatal("no row")
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
	}
	// A cursor that outlives its backend may end early, with an error, or go on; it must not crash.
	if key, value := string(c.Key()), string(c.Value()); key != "a" || value != "1" {
		t.Errorf("Close changed the current row of a cursor to %q=%q", key, value)
	}
	for c.Next() {
	}
	c.Close()
	_, err := s.Register("other")
	_, getErr := s.Get(id, []byte("a"))
	_, _, posErr := s.Position(id)
	late := s.Scan(id, nil, nil, false)
	late.Next()
	late.Close()
	for i, err := range []error{err, getErr, posErr, late.Err(), s.Write(state.Write{}), s.DropStore(id)} {
		// A write of nothing may succeed.
		if err == nil && i != 4 {
			t.Errorf("call %d on a closed backend succeeded", i)
		}
		if errors.Is(err, state.ErrCorrupt) {
			t.Errorf("call %d on a closed backend: %v", i, err)
		}
	}
}
