package state_test

import (
	"errors"
	"testing"
	"time"

	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/state/memory"
)

// TestBufferBytes fixes what is in the changelog of a buffer.
func TestBufferBytes(t *testing.T) {
	spec := state.Buffer("b", serde.String, serde.String)
	e := newEnv(t, spec)
	b, err := state.OpenBuffer(e, spec)
	if err != nil {
		t.Fatal(err)
	}
	put := func(key, payload string, until, at int64) {
		t.Helper()
		if err := b.Put(state.Waiting{ForMillis: until, Key: []byte(key), Payload: []byte(payload), TimeMillis: at}); err != nil {
			t.Fatal(err)
		}
	}
	put("k", "p", 16, 32)
	put("", "", -1, 0)
	check(t, "two rows", changed(t, e), `
006e6279746573 01000000000000000012
006e636f756e74 01000000000000000002
006e6669727374 0100ffffffffffffffff
01 01000000000000000000ffffffffffffffff
016b 01000000000000000020000000000000001070
027fffffffffffffff 01000000000000000000
0280000000000000106b 01000000000000000000`)
	put("k", "new", 17, 33) // waits for its first time
	check(t, "one is replaced", changed(t, e), `
006e6279746573 01000000000000000014
016b 0100000000000000002100000000000000106e6577`)
	w, ok, err := b.First()
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if err := b.Remove(w); err != nil {
		t.Fatal(err)
	}
	check(t, "the first leaves", changed(t, e), `
006e6279746573 0100000000000000000c
006e636f756e74 01000000000000000001
01
027fffffffffffffff`)
}

// TestJoinBytes fixes what is in the changelog of a join of two streams.
func TestJoinBytes(t *testing.T) {
	spec := state.Join("j", serde.String, serde.String, serde.String, time.Hour)
	e := newEnv(t, spec)
	j, err := state.OpenJoin(e, spec)
	if err != nil {
		t.Fatal(err)
	}
	left, err := j.Put(state.Joinable{Key: []byte("k"), Value: []byte("v"), TimeMillis: 16, Side: state.LeftSide}, 3_600_000)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Alone(left, []byte("payload")); err != nil {
		t.Fatal(err)
	}
	check(t, "a record without a partner", changed(t, e), `
006e6561726c69657374 01000000000000000010
006e696e74657276616c 010000000000001b7740
006e6c6566742d74696d65 01000000000000000010
006e6e756d626572 01000000000000000001
0180000000000000006b8000000000000010010000000000000001 010000000000000000100176
028000000000000010016b0000000000000001 010000000000000000107061796c6f6164`)
	found, err := j.Find(state.LeftSide, []byte("k"), 0, 100, 3_600_000)
	if err != nil || len(found) != 1 {
		t.Fatal(found, err)
	}
	j.Matched(found[0])
	if _, err := j.Put(state.Joinable{Key: []byte("k"), TimeMillis: -1, Side: state.RightSide}, 3_600_000); err != nil {
		t.Fatal(err)
	}
	check(t, "its partner", changed(t, e), `
006e6e756d626572 01000000000000000002
006e72696768742d74696d65 0100ffffffffffffffff
017fffffffffffffff6b7fffffffffffffff000000000000000002 0100ffffffffffffffff00
0180000000000000006b8000000000000010010000000000000001 010000000000000000100076
028000000000000010016b0000000000000001`)
}

// FuzzBufferAndJoinRows reads rows that no store has written. It must tell, or give back what they hold.
func FuzzBufferAndJoinRows(f *testing.F) {
	f.Add([]byte{}, []byte{})
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x00\x00\x00\x20\x00\x00\x00\x00\x00\x00\x00\x10p"), []byte("\x80"))
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x00\x00\x00\x10\x01v"), []byte("\x80\x00\x00\x00\x00\x00\x00\x10\x01k\x00\x00\x00\x00\x00\x00\x00\x01"))
	buffers := state.Buffer("b", serde.String, serde.String)
	joins := state.Join("j", serde.String, serde.String, serde.String, time.Hour)
	f.Fuzz(func(t *testing.T, row, index []byte) {
		layers, err := state.NewLayers(memory.New(), []state.AnySpec{buffers, joins})
		if err != nil {
			t.Fatal(err)
		}
		e := &env{layers: layers}
		b, err := state.OpenBuffer(e, buffers)
		if err != nil {
			t.Fatal(err)
		}
		layers.Rows("b").Put([]byte("\x01k"), row)
		if _, _, err := b.Get([]byte("k")); err != nil && !errors.Is(err, state.ErrCorrupt) {
			t.Errorf("buffer: %v is not ErrCorrupt", err)
		}
		j, err := state.OpenJoin(e, joins)
		if err != nil {
			t.Fatal(err)
		}
		layers.Rows("j").Cell("earliest").Store(-1 << 62)
		layers.Rows("j").Put(append([]byte{state.KindIndex}, index...), row)
		gone := func(state.Side, int64) bool { return true }
		if _, err := j.Leaving(1<<62, gone); err != nil && !errors.Is(err, state.ErrCorrupt) {
			t.Errorf("join: %v is not ErrCorrupt", err)
		}
	})
}
