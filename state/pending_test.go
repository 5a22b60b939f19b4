package state_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"tailrace.dev/serde"
	"tailrace.dev/state"
)

// changed returns the changelog records of a batch in the order of their keys, and commits it.
func changed(t *testing.T, e *env) string {
	t.Helper()
	var out []string
	e.layers.Changes(func(_ int, key, row []byte) {
		out = append(out, strings.TrimRight(hex.EncodeToString(key)+" "+hex.EncodeToString(row), " "))
	})
	slices.Sort(out)
	e.layers.Commit(nil, 1)
	return "\n" + strings.Join(out, "\n")
}

// TestPendingBytes fixes what is in the changelog of a store of waiting records.
func TestPendingBytes(t *testing.T) {
	spec := state.Pending("p", serde.String, serde.String)
	e := newEnv(t, spec)
	st, err := state.OpenPending(e, spec)
	if err != nil {
		t.Fatal(err)
	}
	add := func(lane []byte, r state.PendingRecord, head bool) {
		t.Helper()
		var err error
		if r.Number, err = st.Next(); err != nil {
			t.Fatal(err)
		}
		if got, err := st.Add(lane, r); got != head || err != nil {
			t.Errorf("head %t, %v", got, err)
		}
	}
	ab := state.KeyLane([]byte("ab"))
	first := state.PendingRecord{
		DueMillis: 1000, Attempts: 2, ID: "id", Topic: "in", Partition: 3, Offset: 4, TimeMillis: 5, Headers: []byte("h"),
		Value: []byte("v"),
	}
	add(ab, first, true)
	add(ab, state.PendingRecord{Tombstone: true, TimeMillis: -1, DueMillis: -1}, false)
	add(state.LoneLane(2), state.PendingRecord{Value: []byte{}}, true)
	if n, err := st.Len(); n != 3 || err != nil {
		t.Errorf("%d wait, %v", n, err)
	}
	for _, c := range []struct {
		what string
		do   func() error
		want string
	}{
		{"numbers; the first of a key; one without a key; one behind the first", func() error { return nil }, `
006e626568696e64 01000000000000000001
006e636f756e74 01000000000000000003
006e6e756d626572 01000000000000000003
01000000000000000002 01000000000000000000000000000000000200000000000000000000000000000000000000000000000000000000000000
01016162 010100000000000000050000000168000000000000000000000000000003e80000000200000000030000000000000004` +
			`0002696e00000002696476
02000000030161620000000000000001 0100ffffffffffffffff0000000000000001ffffffffffffffff0000000001000000000000000000000000` +
			`000000000000`},
		{"the head, tried again", func() error {
			first.Attempts, first.DueMillis = 3, 2000
			st.Replace(ab, first)
			return nil
		}, `
01016162 010100000000000000050000000168000000000000000000000000000007d00000000300000000030000000000000004` +
			`0002696e00000002696476`},
		{"the one behind it takes its place", func() error {
			next, ok, err := st.Remove(ab)
			if !ok || next.Number != 1 || !next.Tombstone || next.TimeMillis != -1 {
				err = errors.Join(err, fmt.Errorf("next is %+v", next))
			}
			return err
		}, `
006e626568696e64 01000000000000000000
006e636f756e74 01000000000000000002
01016162 0100ffffffffffffffff0000000000000001ffffffffffffffff0000000001000000000000000000000000000000000000
02000000030161620000000000000001`},
		{"and goes", func() error { _, _, err := st.Remove(ab); return err }, `
006e636f756e74 01000000000000000001
01016162`},
	} {
		if err := c.do(); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
		if got := changed(t, e); got != c.want {
			t.Errorf("%s: got%s", c.what, got)
		}
	}
	for lane, r := range st.Heads() {
		if state.LaneKey(lane) != nil || r.Number != 2 || r.Tombstone || r.Value == nil {
			t.Errorf("left %x: %+v", lane, r)
		}
	}
	if string(state.LaneKey(ab)) != "ab" || st.Err() != nil {
		t.Error(state.LaneKey(ab), st.Err())
	}
}

// A key that begins like another one does not see what waits behind that.
func TestPendingLanesAreApart(t *testing.T) {
	spec := state.Pending("p", serde.Bytes, serde.Bytes)
	e := newEnv(t, spec)
	st, err := state.OpenPending(e, spec)
	if err != nil {
		t.Fatal(err)
	}
	keys := []string{"", "a", "a\x00", "a\x00\x00\x00\x00\x00\x00\x00\x00\x01", "ab", "\xff"}
	for i := range 3 {
		for _, k := range keys {
			n, err := st.Next()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := st.Add(state.KeyLane([]byte(k)), state.PendingRecord{Number: n, Value: fmt.Append(nil, k, i)}); err != nil {
				t.Fatal(err)
			}
		}
		e.layers.Commit(nil, 1)
	}
	for _, k := range keys {
		lane := state.KeyLane([]byte(k))
		for i := range 3 {
			r, ok, err := st.Head(lane)
			if want := fmt.Sprint(k, i); !ok || err != nil || string(r.Value) != want {
				t.Fatalf("%q: head is %q, %v, want %q", k, r.Value, err, want)
			}
			if _, more, err := st.Remove(lane); more != (i < 2) || err != nil {
				t.Fatalf("%q: more %t, %v", k, more, err)
			}
		}
	}
	if n, err := st.Len(); n != 0 || err != nil {
		t.Errorf("%d left, %v", n, err)
	}
}

// TestEffectsBytes fixes what is in the topic of a store of effects.
func TestEffectsBytes(t *testing.T) {
	forever := state.Effects("e")
	e := newEnv(t, forever)
	st, err := forever.Open(e)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(st.Mark("ab", 1000), st.Mark("ab", 2000)); err != nil {
		t.Fatal(err)
	}
	if got, want := changed(t, e), "\n016162 010000000000000003e8"; got != want {
		t.Errorf("got%s", got)
	}
	if at, ok, err := st.Done("ab"); at != 1000 || !ok || err != nil {
		t.Error(at, ok, err)
	}

	while := state.Effects("e").KeptFor(time.Second)
	e = newEnv(t, while)
	if st, err = while.Open(e); err != nil {
		t.Fatal(err)
	}
	if err := st.Mark("ab", 1000); err != nil {
		t.Fatal(err)
	}
	if got, want := changed(t, e), `
006e6f6c64657374 010000000000000003e8
016162 010000000000000003e8
0280000000000003e86162 010000000000000003e8`; got != want {
		t.Errorf("got%s", got)
	}
	if err := st.Mark("c", 2000); err != nil {
		t.Fatal(err)
	}
	if got, want := changed(t, e), `
006e6f6c64657374 010000000000000007d0
016162
0163 010000000000000007d0
0280000000000003e86162
0280000000000007d063 010000000000000007d0`; got != want {
		t.Errorf("got%s", got)
	}
	if err := state.Effects("e").KeptFor(0).Err(); err == nil {
		t.Error("effects that are not kept")
	}
}

func FuzzParsePending(f *testing.F) {
	spec := state.Pending("p", serde.Bytes, serde.Bytes)
	f.Add([]byte{})
	f.Add(make([]byte, 10))
	row, err := hex.DecodeString("010100000000000000050000000168000000000000000000000000000007d0000000030000000003" +
		"00000000000000040002696e00000002696476")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(row)
	lane := state.KeyLane([]byte("k"))
	f.Fuzz(func(t *testing.T, row []byte) {
		e := newEnv(t, spec)
		rows, err := e.StoreRows(spec)
		if err != nil {
			t.Fatal(err)
		}
		st, err := state.OpenPending(e, spec)
		if err != nil {
			t.Fatal(err)
		}
		if len(row) == 0 {
			return // which stands for a deletion
		}
		rows.Put(append([]byte{state.KindRow}, lane...), row)
		r, ok, err := st.Head(lane)
		if err != nil {
			if !errors.Is(err, state.ErrCorrupt) {
				t.Fatalf("%v is not ErrCorrupt", err)
			}
			return
		}
		if !ok {
			t.Fatal("not there")
		}
		st.Replace(lane, r)
		again, _, err := st.Head(lane)
		if err != nil || fmt.Sprint(again) != fmt.Sprint(r) {
			t.Fatalf("%+v, written and read: %+v, %v", r, again, err)
		}
	})
}
