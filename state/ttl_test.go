package state_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/state/memory"
)

// TestTTLBytes fixes what is in the changelog of a store with a time to live.
func TestTTLBytes(t *testing.T) {
	spec := state.KeyValue("short", serde.String, serde.String).WithTTL(time.Second)
	e := newEnv(t, spec)
	st := open(t, e, spec)
	step := func(at int64, f func() error) string {
		t.Helper()
		e.now = at
		if err := errors.Join(st.Sweep(at, nil), f()); err != nil {
			t.Fatal(err)
		}
		var out []string
		e.layers.Changes(func(_ int, key, row []byte) {
			out = append(out, hex.EncodeToString(key)+" "+hex.EncodeToString(row))
		})
		slices.Sort(out)
		e.layers.Commit(nil, 1)
		return strings.Join(out, "\n")
	}
	for _, c := range []struct {
		what string
		at   int64
		f    func() error
		want string
	}{
		{"a new row has an index row; the store's time, and that all rows are in the index, are numbers", 5000,
			func() error { return st.Set("ab", "v") }, `
006e74746c2d636c6f636b 01000000000000001388
006e74746c2d696e6465786564 01000000000000000001
016162 0100000000000000138876
0280000000000013886162 01000000000000000000`},
		{"a row that is written again has the one that it had", 5500,
			func() error { return st.Set("ab", "w") }, `
006e74746c2d636c6f636b 0100000000000000157c
016162 0100000000000000157c77`},
		{"which moves when it comes up", 6000, func() error { return nil }, `
006e74746c2d636c6f636b 01000000000000001770
0280000000000013886162 
02800000000000157c6162 01000000000000000000`},
		{"and goes with the row", 6500, func() error { return nil }, `
006e74746c2d636c6f636b 01000000000000001964
016162 
02800000000000157c6162 `},
	} {
		if got := step(c.at, c.f); "\n"+got != c.want {
			t.Errorf("%s: got\n%s", c.what, got)
		}
	}
}

func TestTTLOfStore(t *testing.T) {
	spec := state.KeyValue("short", serde.String, serde.Int64).WithTTL(10 * time.Second)
	e := newEnv(t, spec)
	st := open(t, e, spec)
	var gone []string
	sweep := func(at int64) {
		t.Helper()
		e.now = at
		err := st.Sweep(at, func(en state.Entry[string, int64]) error {
			gone = append(gone, fmt.Sprintf("%s=%d@%d", en.Key, en.Value, en.Time.UnixMilli()))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	has := func(k string, want bool) {
		t.Helper()
		if _, ok, err := st.Get(k); ok != want || err != nil {
			t.Errorf("at %d: %s: %v, %v", e.now, k, ok, err)
		}
		n := 0
		for en, err := range st.All() {
			if err != nil {
				t.Fatal(err)
			}
			if en.Key == k {
				n++
			}
		}
		if (n == 1) != want {
			t.Errorf("at %d: %d rows of %s", e.now, n, k)
		}
	}
	sweep(1_000)
	if err := errors.Join(st.Set("a", 1), st.Set("b", 2), st.SetAt("late", 3, 503)); err != nil {
		t.Fatal(err)
	}
	sweep(10_499)
	has("late", true)
	sweep(10_505) // it has expired, and the next step of the time is at 10_510
	has("late", false)
	has("a", true)
	if len(gone) > 0 {
		t.Errorf("gone: %v", gone)
	}
	if err := st.Set("b", 4); err != nil {
		t.Fatal(err)
	}
	sweep(10_500) // time does not go back
	has("late", false)
	sweep(11_000)
	has("a", false)
	has("b", true)
	if err := st.SetAt("b", 5, 2_000); err != nil { // an older time brings its end closer
		t.Fatal(err)
	}
	has("b", true)
	sweep(12_000)
	has("b", false)
	sweep(100_000)
	if want := []string{"late=3@503", "a=1@1000", "b=5@2000"}; !slices.Equal(gone, want) {
		t.Errorf("gone: %v, want %v", gone, want)
	}
}

// TestTTLSweepIsBounded removes many rows a few at a time, and a row that is asked for at once.
func TestTTLSweepIsBounded(t *testing.T) {
	spec := state.KeyValue("short", serde.String, serde.Int64).WithTTL(time.Second)
	e := newEnv(t, spec)
	st := open(t, e, spec)
	for i := range 40 {
		e.now = int64(i)
		if err := errors.Join(st.Sweep(e.now, nil), st.Set(fmt.Sprintf("%02d", i), int64(i))); err != nil {
			t.Fatal(err)
		}
	}
	var gone []string
	note := func(en state.Entry[string, int64]) error { gone = append(gone, en.Key); return nil }
	var counts []int
	for i := range 3 {
		if err := st.Sweep(5_000, note); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if err := st.SweepKey("39", note); err != nil {
				t.Fatal(err)
			}
		}
		counts = append(counts, len(gone))
	}
	if !slices.Equal(counts, []int{17, 33, 40}) || gone[16] != "39" || gone[17] != "16" {
		t.Errorf("gone: %v, %v", counts, gone)
	}
	e.layers.Changes(func(_ int, key, row []byte) {
		if key[0] != state.KindMeta && row != nil {
			t.Errorf("left: %q", key)
		}
	})
}

// TestTTLOfOldRows gives a time to live to a store that has rows.
func TestTTLOfOldRows(t *testing.T) {
	b := memory.New()
	before := state.KeyValue("short", serde.String, serde.Int64)
	e := newEnvOver(t, b, before)
	st := open(t, e, before)
	for i := range 100 {
		if err := st.SetAt(fmt.Sprintf("%02d", i), int64(i), int64(i)); err != nil {
			t.Fatal(err)
		}
	}
	e.flush(t)

	after := before.WithTTL(time.Second)
	e = newEnvOver(t, b, after)
	st = open(t, e, after)
	gone := make(map[string]bool)
	for at := range int64(20) {
		if err := st.Sweep(2_000+at, func(en state.Entry[string, int64]) error {
			if gone[en.Key] {
				t.Errorf("%s is gone twice", en.Key)
			}
			gone[en.Key] = true
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if _, ok, err := st.Get("99"); ok || err != nil {
			t.Fatalf("at %d: seen: %v, %v", at, ok, err)
		}
		if at == 4 { // in the middle of it
			e.flush(t)
			e = newEnvOver(t, b, after)
			st = open(t, e, after)
		}
	}
	if len(gone) != 100 {
		t.Errorf("%d rows are gone", len(gone))
	}
}

func TestTTLMistake(t *testing.T) {
	spec := state.KeyValue("short", serde.String, serde.Int64).WithTTL(time.Microsecond)
	if err := spec.Err(); err == nil || !strings.Contains(err.Error(), "a millisecond at least") {
		t.Errorf("got %v", err)
	}
}

// TestTTLModel compares a store with a map, over undone writes, commits, flushes and restarts.
func TestTTLModel(t *testing.T) {
	t.Run("flat", func(t *testing.T) {
		ttlModel(t, serde.Int64, func(n int) int64 { return int64(n) })
	})
	t.Run("shared", func(t *testing.T) {
		ttlModel(t, serde.JSON[[]int](), func(n int) []int { return []int{n} })
	})
}

type ttlRow struct {
	value string
	at    int64
}

// ttlState is the model: the rows that are there, seen or not.
type ttlState struct {
	rows  map[string]ttlRow
	clock int64
}

func (s ttlState) clone() ttlState { return ttlState{maps.Clone(s.rows), s.clock} }

func ttlModel[V any](t *testing.T, value serde.Serde[V], makeValue func(n int) V) {
	const ttl = 3_000 // in steps of 3
	spec := state.KeyValue("short", serde.String, value).WithTTL(ttl * time.Millisecond)
	rapid.Check(t, func(t *rapid.T) {
		b := memory.New()
		e := newEnvOver(nopTB{}, b, spec)
		st, err := spec.Open(e)
		ok := func(errs ...error) {
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
		}
		ok(err)
		now := ttlState{rows: map[string]ttlRow{}, clock: -1}
		committed := now.clone()
		seen := func(k string) (ttlRow, bool) {
			r, ok := now.rows[k]
			return r, ok && r.at > now.clock-ttl
		}
		expired := func(en state.Entry[string, V]) error {
			r, ok := now.rows[en.Key]
			if !ok || r.value != fmt.Sprint(en.Value) || r.at != en.Time.UnixMilli() || r.at > now.clock-ttl {
				t.Fatalf("%s=%v@%d expired at %d, is %v", en.Key, en.Value, en.Time.UnixMilli(), now.clock, r)
			}
			delete(now.rows, en.Key)
			return nil
		}
		key := rapid.StringMatching(`[a-f]`)
		n := 0
		step := func(t *rapid.T) {
			at := max(0, now.clock) + int64(rapid.IntRange(-1500, 2500).Draw(t, "time"))
			e.now = max(0, at)
			now.clock = max(now.clock, e.now)
			ok(st.Sweep(e.now, expired))
			n++
			k, v := key.Draw(t, "key"), makeValue(n)
			switch rapid.IntRange(0, 5).Draw(t, "op") {
			case 0, 1:
				ok(st.Set(k, v))
				now.rows[k] = ttlRow{fmt.Sprint(v), e.now}
			case 2:
				ok(st.Delete(k))
				delete(now.rows, k)
			case 3:
				_, at, has, err := st.Take(k)
				ok(err)
				if r, want := seen(k); has != want || has && at != r.at {
					t.Fatalf("take %s: %v at %d, want %v at %d", k, has, at, want, r.at)
				}
				ok(st.Give(k, v, e.now))
				now.rows[k] = ttlRow{fmt.Sprint(v), e.now}
			case 4:
				ok(st.SweepKey(k, expired))
				if r, there := now.rows[k]; there && r.at <= now.clock-ttl {
					t.Fatalf("%s is there", k)
				}
			case 5:
				ok(st.SetAt(k, v, e.now/2))
				now.rows[k] = ttlRow{fmt.Sprint(v), e.now / 2}
			}
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 7).Draw(t, "then") {
			default:
				step(t)
			case 5:
				before := now.clone()
				e.layers.Savepoint()
				step(t)
				if rapid.Bool().Draw(t, "undo") {
					e.layers.Rollback()
					now = before
				}
			case 6:
				e.layers.Commit([]state.Position{{Next: 1}}, 1)
				committed = now.clone()
				if rapid.Bool().Draw(t, "flush") {
					f := e.layers.Freeze()
					ok(f.Run())
					e.layers.Done(f)
					if rapid.Bool().Draw(t, "restart") {
						e = newEnvOver(nopTB{}, b, spec)
						st, err = spec.Open(e)
						ok(err)
					}
				}
			case 7:
				e.layers.Drop()
				now = committed.clone()
			}
			if rapid.IntRange(0, 3).Draw(t, "rest") == 0 && now.clock >= 0 {
				for range 4 {
					ok(st.Sweep(now.clock, expired))
				}
				for k, r := range now.rows {
					if r.at <= now.clock-now.clock%3-ttl {
						t.Fatalf("%s@%d is still there at %d", k, r.at, now.clock)
					}
				}
			}
			for k := 'a'; k <= 'f'; k++ {
				v, at, has, err := st.Lookup(string(k))
				ok(err)
				if r, want := seen(string(k)); has != want || has && (at != r.at || fmt.Sprint(v) != r.value) {
					t.Fatalf("%c: %v@%d, %v, want %v, %v at %d", k, v, at, has, r, want, now.clock)
				}
			}
		}
		// In the end everything goes, the index too.
		for range 20 {
			now.clock += 2 * ttl
			ok(st.Sweep(now.clock, expired))
		}
		if len(now.rows) > 0 {
			t.Fatalf("left: %v", now.rows)
		}
		rows := e.layers.Rows("short")
		sc := rows.Scan([]byte{state.KindRow}, nil, false)
		defer sc.Close()
		for sc.Next() {
			t.Fatalf("left: %x", sc.Key())
		}
	})
}

// nopTB is for helpers that fail a test only where the test could not go on at all.
type nopTB struct{ testing.TB }

func (nopTB) Helper()           {}
func (nopTB) Fatal(args ...any) { panic(fmt.Sprint(args...)) }
