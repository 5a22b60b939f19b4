package state_test

import (
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

// env is a task with a clock and one backend.
type env struct {
	layers *state.Layers
	now    int64
}

func newEnv(t testing.TB, specs ...state.AnySpec) *env {
	return newEnvOver(t, memory.New(), specs...)
}

func newEnvOver(t testing.TB, b state.Backend, specs ...state.AnySpec) *env {
	t.Helper()
	layers, err := state.NewLayers(b, specs)
	if err != nil {
		t.Fatal(err)
	}
	return &env{layers: layers}
}

func (e *env) StoreRows(spec state.AnySpec) (*state.Rows, error) {
	if rows := e.layers.Rows(spec.Name()); rows != nil {
		return rows, nil
	}
	return nil, fmt.Errorf("no store %q", spec.Name())
}

func (e *env) RecordTimeMillis() int64 { return e.now }

// flush writes everything to the backend.
func (e *env) flush(t testing.TB) {
	t.Helper()
	e.layers.Commit([]state.Position{{Next: 1}}, 1)
	f := e.layers.Freeze()
	if err := f.Run(); err != nil {
		t.Fatal(err)
	}
	e.layers.Done(f)
}

func open[K, V any](t testing.TB, e *env, spec *state.KeyValueSpec[K, V]) *state.KeyValueStore[K, V] {
	t.Helper()
	s, err := spec.Open(e)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func ExampleKeyValueSpec_Open() {
	unread := state.KeyValue("unread", serde.String, serde.Int64) // in a program: a package-level value
	layers, err := state.NewLayers(memory.New(), []state.AnySpec{unread})
	if err != nil {
		panic(err)
	}
	task := &env{layers: layers, now: 1500} // in a program: the Context of a Processor
	store, err := unread.Open(task)
	if err != nil {
		panic(err)
	}
	_, ok, err := store.Get("bob")
	fmt.Println(ok, err) // what is not there is no error
	fmt.Println(store.Set("bob", 0), store.Set("ann", 2))
	for row, err := range store.All() { // uncommitted writes included, in the order of the encoded keys
		fmt.Println(row.Key, row.Value, row.Time.UnixMilli(), err)
	}
	// Output:
	// false <nil>
	// <nil> <nil>
	// ann 2 1500 <nil>
	// bob 0 1500 <nil>
}

func ExampleKeyValueStore_Take() {
	tags := state.KeyValue("tags", serde.String, serde.JSON[map[string]bool]())
	layers, err := state.NewLayers(memory.New(), []state.AnySpec{tags})
	if err != nil {
		panic(err)
	}
	store, err := tags.Open(&env{layers: layers})
	if err != nil {
		panic(err)
	}
	// Take and Give hand a value over without decoding it each time. Between the two, the caller owns it.
	value, _, _, err := store.Take("doc")
	if value == nil {
		value = make(map[string]bool)
	}
	value["urgent"] = true
	fmt.Println(err, store.Give("doc", value, 0))

	// What Get returns is the caller's own, too: changing it changes nothing in the store.
	mine, _, err := store.Get("doc")
	mine["urgent"] = false
	again, _, _ := store.Get("doc")
	fmt.Println(again["urgent"], err)
	// Output:
	// <nil> <nil>
	// true <nil>
}

func TestOpenTwiceIsOneStore(t *testing.T) {
	e := newEnv(t, storeA)
	if first, again := open(t, e, storeA), open(t, e, storeA); first != again {
		t.Fatal("two stores over the same rows have two caches")
	}
	other := state.KeyValue("a", serde.String, serde.String)
	if _, err := other.Open(e); !errors.Is(err, state.ErrWrongStore) {
		t.Fatalf("opened by another spec of the name: %v", err)
	}
}

var lists = state.KeyValue("lists", serde.String, serde.JSON[[]int]())

func TestTakenValueIsNotSeenUntilGiven(t *testing.T) {
	e := newEnv(t, lists)
	s := open(t, e, lists)
	must(t, s.Give("k", []int{1}, 5))
	v, millis, ok, err := s.Take("k")
	if err != nil || !ok || millis != 5 || !slices.Equal(v, []int{1}) {
		t.Fatal(v, millis, ok, err)
	}
	v[0] = 99 // and then the operator fails
	if got, _, _ := s.Get("k"); !slices.Equal(got, []int{1}) {
		t.Fatalf("a change that was not given back is seen: %v", got)
	}
	if got, _, _, _ := s.Take("k"); !slices.Equal(got, []int{1}) {
		t.Fatalf("a change that was not given back is taken: %v", got)
	}
}

func TestValueIsTheCallers(t *testing.T) {
	for _, flushed := range []bool{false, true} {
		e := newEnv(t, lists)
		s := open(t, e, lists)
		mine := []int{1, 2}
		must(t, s.Set("k", mine))
		if flushed {
			e.flush(t)
		}
		mine[0] = 99
		got, _, _ := s.Get("k")
		got[1] = 99
		for row, err := range s.All() {
			if err != nil {
				t.Fatal(err)
			}
			row.Value[0] = 98
		}
		if got, _, _ := s.Get("k"); !slices.Equal(got, []int{1, 2}) {
			t.Errorf("flushed=%t: %v, want what was set", flushed, got)
		}
	}
}

// A serde may return values that refer to the bytes that it decodes.
func TestBytesValuesAreTheCallers(t *testing.T) {
	spec := state.KeyValue("bytes", serde.String, serde.Bytes)
	e := newEnv(t, spec)
	s := open(t, e, spec)
	must(t, s.Set("k", []byte("abc")))
	e.layers.Commit(nil, 1)
	for range 2 {
		got, _, _ := s.Get("k")
		if string(got) != "abc" {
			t.Fatalf("%q, want abc", got)
		}
		clear(got)
		taken, _, _, _ := s.Take("k")
		if string(taken) != "abc" {
			t.Fatalf("took %q, want abc", taken)
		}
		clear(taken)
	}
	must(t, s.Set("k", []byte{}))
	if got, ok, _ := s.Get("k"); !ok || got == nil || len(got) != 0 {
		t.Fatalf("an empty value is a value: %v %t", got, ok)
	}
}

func TestUndoEvictsDecodedCopies(t *testing.T) {
	undo := map[string]func(*state.Layers){
		"rollback": (*state.Layers).Rollback,
		"drop":     (*state.Layers).Drop,
	}
	for name, undo := range undo {
		t.Run(name, func(t *testing.T) {
			counts := state.KeyValue("counts", serde.String, serde.Int64)
			e := newEnv(t, lists, counts)
			l, c := open(t, e, lists), open(t, e, counts)
			must(t, l.Give("k", []int{1}, 1))
			must(t, c.Set("k", 1))
			e.layers.Commit(nil, 1)
			e.layers.Savepoint()
			v, _, _, _ := l.Take("k")
			v[0] = 2
			must(t, l.Give("k", append(v, 3), 2))
			must(t, c.Set("k", 2))
			must(t, l.Give("new", []int{9}, 2))
			must(t, c.Set("new", 9))
			undo(e.layers)
			if got, millis, _, _ := l.Take("k"); !slices.Equal(got, []int{1}) || millis != 1 {
				t.Errorf("list is %v @%d", got, millis)
			}
			if got, _, _ := c.Get("k"); got != 1 {
				t.Errorf("count is %d", got)
			}
			_, okList, _ := l.Get("new")
			_, okCount, _ := c.Get("new")
			if okList || okCount {
				t.Error("what was undone is still there")
			}
		})
	}
}

// The typed store, with its caches, against a map of values; every value is changed in place after it changed hands.
func TestKeyValueModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		backend := memory.New()
		layers, err := state.NewLayers(backend, []state.AnySpec{lists})
		if err != nil {
			t.Fatal(err)
		}
		e := &env{layers: layers}
		s, err := lists.Open(e)
		if err != nil {
			t.Fatal(err)
		}
		now, committed, back := map[string][]int{}, map[string][]int{}, map[string][]int{}
		saved := false
		clone := func(m map[string][]int) map[string][]int {
			c := maps.Clone(m)
			for k, v := range c {
				c[k] = slices.Clone(v)
			}
			return c
		}
		key := rapid.SampledFrom([]string{"", "a", "b", "ab", "\xff"})
		value := rapid.SliceOfN(rapid.IntRange(0, 9), 1, 3)
		spoil := func(v []int) {
			for i := range v {
				v[i] = -1
			}
		}
		check := func(k string, got []int, ok bool, err error) {
			want, there := now[k]
			if err != nil || ok != there || !slices.Equal(got, want) {
				t.Fatalf("%q is %v %t %v, want %v", k, got, ok, err, want)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				k, v := key.Draw(t, "k"), value.Draw(t, "v")
				now[k] = slices.Clone(v)
				if err := s.Set(k, v); err != nil {
					t.Fatal(err)
				}
				spoil(v)
			},
			"get": func(t *rapid.T) {
				k := key.Draw(t, "k")
				v, ok, err := s.Get(k)
				check(k, v, ok, err)
				spoil(v)
			},
			"take and give": func(t *rapid.T) {
				k := key.Draw(t, "k")
				v, _, ok, err := s.Take(k)
				check(k, v, ok, err)
				v = append(v[:len(v):len(v)], 7)
				v[0] = 8
				now[k] = slices.Clone(v)
				if err := s.Give(k, v, 1); err != nil {
					t.Fatal(err)
				}
			},
			"take and fail": func(t *rapid.T) {
				k := key.Draw(t, "k")
				v, _, ok, err := s.Take(k)
				check(k, v, ok, err)
				spoil(v)
			},
			"delete": func(t *rapid.T) {
				k := key.Draw(t, "k")
				delete(now, k)
				if err := s.Delete(k); err != nil {
					t.Fatal(err)
				}
			},
			"savepoint": func(*rapid.T) {
				e.layers.Savepoint()
				back, saved = clone(now), true
			},
			"rollback": func(*rapid.T) {
				if saved {
					e.layers.Rollback()
					now = clone(back)
				}
			},
			"commit": func(*rapid.T) {
				e.layers.Commit([]state.Position{{Next: 1}}, 1)
				committed, back = clone(now), clone(now)
			},
			"drop": func(*rapid.T) {
				e.layers.Drop()
				now, back = clone(committed), clone(committed)
			},
			"flush": func(t *rapid.T) {
				f := e.layers.Freeze()
				if f == nil {
					return
				}
				if err := f.Run(); err != nil {
					t.Fatal(err)
				}
				e.layers.Done(f)
			},
			"": func(t *rapid.T) {
				var keys []string
				for row, err := range s.All() {
					check(row.Key, row.Value, true, err)
					keys = append(keys, row.Key)
				}
				if !slices.Equal(keys, slices.Sorted(maps.Keys(now))) {
					t.Fatalf("keys %q, want %q", keys, slices.Sorted(maps.Keys(now)))
				}
			},
		})
	})
}

func TestRangeAndPrefix(t *testing.T) {
	e := newEnv(t, storeA)
	s := open(t, e, storeA)
	for _, k := range []string{"b", "ab", "a", "abc", "\xff", "\xff\xff"} {
		must(t, s.Set(k, strings.ToUpper(k)))
	}
	e.flush(t)
	must(t, s.Delete("ab"))
	must(t, s.Set("aa", ""))
	keys := func(seq func(func(state.Entry[string, string], error) bool)) string {
		var ks []string
		for row, err := range seq {
			must(t, err)
			ks = append(ks, row.Key)
		}
		return fmt.Sprintf("%q", ks)
	}
	for _, c := range []struct {
		what, got, want string
	}{
		{"all", keys(s.All()), `["a" "aa" "abc" "b" "\xff" "\xff\xff"]`},
		{"all backward", keys(s.AllBackward()), `["\xff\xff" "\xff" "b" "abc" "aa" "a"]`},
		{"range", keys(s.Range("aa", "b")), `["aa" "abc"]`},
		{"range backward", keys(s.RangeBackward("aa", "b")), `["abc" "aa"]`},
		{"empty range", keys(s.Range("b", "b")), `[]`},
		{"range the wrong way round", keys(s.Range("b", "a")), `[]`},
		{"prefix", keys(s.Prefix([]byte("a"))), `["a" "aa" "abc"]`},
		{"prefix backward", keys(s.PrefixBackward([]byte("a"))), `["abc" "aa" "a"]`},
		{"prefix of the last byte", keys(s.Prefix([]byte{0xff})), `["\xff" "\xff\xff"]`},
		{"no prefix", keys(s.Prefix(nil)), `["a" "aa" "abc" "b" "\xff" "\xff\xff"]`},
	} {
		if c.got != c.want {
			t.Errorf("%s: %s, want %s", c.what, c.got, c.want)
		}
	}
	if row := first(s.All()); row.Time != time.UnixMilli(0).UTC() {
		t.Errorf("time %v", row.Time)
	}
}

func first[K, V any](seq func(func(state.Entry[K, V], error) bool)) (e state.Entry[K, V]) {
	for e, err := range seq {
		if err != nil {
			panic(err)
		}
		return e
	}
	return e
}

// broken is a backend that cannot be read.
type broken struct {
	state.Backend
	err error
}

func (b *broken) Get(state.StoreID, []byte) ([]byte, error) { return nil, b.err }

func TestBackendErrorsAreKept(t *testing.T) {
	boom := errors.New("disk is gone")
	b := &broken{memory.New(), boom}
	e := newEnvOver(t, b, storeA)
	s := open(t, e, storeA)
	if _, _, err := s.Get("k"); !errors.Is(err, boom) || !strings.Contains(err.Error(), `"a"`) {
		t.Fatalf("get: %v", err)
	}
	if !errors.Is(e.layers.Err(), boom) {
		t.Fatal("the layers do not know of the error, which the reader may have dropped")
	}
	e.layers.Drop()
	if e.layers.Err() != nil {
		t.Fatal("the error outlives the batch")
	}
}

func TestDamagedRowIsABackendError(t *testing.T) {
	e := newEnv(t, storeA)
	s := open(t, e, storeA)
	e.layers.Rows("a").Put([]byte("\x01k"), []byte("not a row"))
	if _, _, err := s.Get("k"); !errors.Is(err, state.ErrCorrupt) || e.layers.Err() == nil {
		t.Fatalf("get: %v, kept: %v", err, e.layers.Err())
	}
}

func TestSerdeErrorsNameTheStore(t *testing.T) {
	spec := state.KeyValue("limited", serde.WithLimit(serde.String, 3), serde.WithLimit(serde.String, 3))
	e := newEnv(t, spec)
	s := open(t, e, spec)
	for what, err := range map[string]error{
		"key": s.Set("long key", "v"), "value": s.Set("k", "long value"), "delete": s.Delete("long key"),
	} {
		if !errors.Is(err, serde.ErrTooLarge) || !strings.Contains(err.Error(), `store "limited"`) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if e.layers.Changed() {
		t.Error("a write that failed left something")
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
