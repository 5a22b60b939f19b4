package state_test

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/state/memory"
)

func openVersioned[K, V any](t testing.TB, e *env, spec *state.VersionedSpec[K, V]) *state.VersionedStore[K, V] {
	t.Helper()
	s, err := spec.Open(e)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestVersionedBytes fixes what is in the changelog of a versioned store.
func TestVersionedBytes(t *testing.T) {
	spec := state.Versioned("v", serde.String, serde.String, 100*time.Millisecond)
	e := newEnv(t, spec)
	s := openVersioned(t, e, spec)
	for _, c := range []struct {
		what, value string
		at          int64
		want        string
	}{
		{"the first value", "x", 16, `
006e74696d65 01000000000000000010
0161 010000000000000000100178`},
		{"a newer one, and the end of the first", "", 32, `
006e74696d65 01000000000000000020
0161 0100000000000000002001
02610000000000000020 010000000000000000100178`},
		{"an older one", "y", 24, `
02610000000000000018 010000000000000000100178
02610000000000000020 010000000000000000180179`},
		{"an older deletion, right before the newest", "-", 24, `
0161 0100000000000000002002
02610000000000000020 0100000000000000001800`},
		{"a deletion", "-", 48, `
006e74696d65 01000000000000000030
0161 0100000000000000003000
02610000000000000030 0100000000000000002001`},
		{"a value in its place", "z", 48, `
0161 01000000000000000030027a`},
		{"the deletion again", "-", 48, `
0161 0100000000000000003000`},
	} {
		var err error
		if c.value == "-" {
			_, _, _, err = s.Delete("a", c.at)
		} else {
			_, err = s.Put("a", c.value, c.at)
		}
		if err != nil {
			t.Fatal(err)
		}
		check(t, c.what, changed(t, e), c.want)
	}
}

// versions is what a model knows of a key: since when it has had which value, as far as that was ever put, until an end; and
// the newest value, which may start later than that end.
type versions struct {
	from   []int64 // rising; what was put to hold from then on until the next, or the end
	values []string
	end    int64

	latest   string
	latestAt int64
}

const noValue = "-"

func (m *versions) set(at int64, v string) {
	i, found := slices.BinarySearch(m.from, at)
	if !found {
		m.from = slices.Insert(m.from, i, at)
		m.values = slices.Insert(m.values, i, noValue)
	}
	m.values[i] = v
}

func (m *versions) extend(at int64, v string, end int64) {
	if len(m.from) > 0 && m.end < at {
		m.set(m.end, noValue)
	}
	m.set(at, v)
	m.end = end
}

// put returns until when the value holds.
func (m *versions) put(at int64, v string) int64 {
	newest := m.latest != noValue
	switch {
	case newest && at >= m.latestAt:
		if at > m.latestAt {
			m.extend(m.latestAt, m.latest, at)
		}
		m.latest, m.latestAt = v, at
		return state.Latest
	case len(m.from) > 0 && at < m.end:
		m.set(at, v)
		if i := sort.Search(len(m.from), func(i int) bool { return m.from[i] > at }); i < len(m.from) {
			return m.from[i]
		}
		return m.end
	case newest:
		m.extend(at, v, m.latestAt)
		return m.latestAt
	case v != noValue:
		m.latest, m.latestAt = v, at
	case len(m.from) == 0:
		m.from, m.values, m.end = []int64{at}, []string{noValue}, at
	case at > m.end:
		m.set(m.end, noValue)
		m.end = at
	}
	return state.Latest
}

func (m *versions) get(at int64) string {
	if m.latest != noValue && m.latestAt <= at {
		return fmt.Sprint(m.latest, " @", m.latestAt)
	}
	if at >= m.end {
		return noValue
	}
	i := sort.Search(len(m.from), func(i int) bool { return m.from[i] > at }) - 1
	if i < 0 || m.values[i] == noValue {
		return noValue
	}
	return fmt.Sprint(m.values[i], " @", m.from[i])
}

func (m *versions) clone() *versions {
	c := *m
	c.from, c.values = slices.Clone(m.from), slices.Clone(m.values)
	return &c
}

// TestVersionedModel compares a store with a plain model of its rules, over puts and deletions at near times, aborts, and
// restarts from what is on disk.
func TestVersionedModel(t *testing.T) {
	const history = 8
	spec := state.Versioned("model", serde.String, serde.String, history*time.Millisecond)
	keys := []string{"", "a", "a\x00\x00\x00\x00\x00\x00\x00\x05", "ab"}
	rapid.Check(t, func(t *rapid.T) {
		backend := memory.New()
		var e *env
		var s *state.VersionedStore[string, string]
		open := func() {
			layers, err := state.NewLayers(backend, []state.AnySpec{spec})
			if err != nil {
				t.Fatal(err)
			}
			e = &env{layers: layers}
			if s, err = spec.Open(e); err != nil {
				t.Fatal(err)
			}
		}
		open()
		type model struct {
			keys map[string]*versions
			seen int64
		}
		clone := func(m model) model {
			c := model{maps.Clone(m.keys), m.seen}
			for k, v := range c.keys {
				c.keys[k] = v.clone()
			}
			return c
		}
		now := model{map[string]*versions{}, math.MinInt64}
		for _, k := range keys {
			now.keys[k] = &versions{latest: noValue, end: math.MinInt64}
		}
		saved := clone(now)
		number := 0
		put := func(t *rapid.T, v string) {
			key := rapid.SampledFrom(keys).Draw(t, "key")
			at := max(0, now.seen) + rapid.Int64Range(-history-1, 3).Draw(t, "at")
			if at < 0 {
				return // no record has such a time
			}
			m := now.keys[key]
			want := state.Refused
			was := noValue
			if late := now.seen != math.MinInt64 && at < now.seen-history; !late {
				was, want = m.get(at), m.put(at, v)
				now.seen = max(now.seen, at)
			}
			if v != noValue {
				if got, err := s.Put(key, v, at); got != want || err != nil {
					t.Fatalf("Put(%q, %s, %d) = %d, %v; want %d", key, v, at, got, err, want)
				}
				return
			}
			old, ok, got, err := s.Delete(key, at)
			gave := noValue
			if ok {
				gave = fmt.Sprint(old.Value, " @", old.TimeMillis)
			}
			if gave != was || got != want || err != nil {
				t.Fatalf("Delete(%q, %d) = %s, %d, %v; want %s, %d", key, at, gave, got, err, was, want)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				number++
				put(t, fmt.Sprint("v", number))
			},
			"delete": func(t *rapid.T) { put(t, noValue) },
			"commit": func(*rapid.T) {
				e.layers.Commit([]state.Position{{Next: 1}}, 1)
				saved = clone(now)
			},
			"restart": func(t *rapid.T) {
				e.layers.Commit([]state.Position{{Next: 1}}, 1)
				saved = clone(now)
				if f := e.layers.Freeze(); f != nil {
					if err := f.Run(); err != nil {
						t.Fatal(err)
					}
					e.layers.Done(f)
				}
				open()
			},
			"abort": func(*rapid.T) {
				e.layers.Drop()
				now = clone(saved)
			},
			"": func(t *rapid.T) {
				for _, key := range keys {
					m := now.keys[key]
					for at := max(0, now.seen-history); at <= now.seen+1; at++ {
						got := noValue
						v, ok, err := s.GetAsOf(key, at)
						if ok {
							got = fmt.Sprint(v.Value, " @", v.TimeMillis)
						}
						if want := m.get(at); got != want || err != nil {
							t.Fatalf("GetAsOf(%q, %d) = %s, %v; want %s", key, at, got, err, want)
						}
					}
					if v, ok, err := s.Get(key); ok != (m.latest != noValue) || err != nil ||
						(ok && (v.Value != m.latest || v.TimeMillis != m.latestAt)) {
						t.Fatalf("Get(%q) = %v, %t, %v; want %s @%d", key, v, ok, err, m.latest, m.latestAt)
					}
				}
			},
		})
	})
}

// TestVersionedSweep puts other keys until the versions of one have left the store with its history.
func TestVersionedSweep(t *testing.T) {
	spec := state.Versioned("v", serde.String, serde.String, 100*time.Millisecond)
	e := newEnv(t, spec)
	s := openVersioned(t, e, spec)
	for at := int64(1); at <= 50; at++ {
		if _, err := s.Put("old", "x", at); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, _, err := s.Delete("old", 51); err != nil {
		t.Fatal(err)
	}
	count := func() (n int) {
		sc := e.layers.Rows("v").Scan([]byte{state.KindRow}, []byte{state.KindIndex + 1}, false)
		defer sc.Close()
		for sc.Next() {
			n++
		}
		if err := sc.Err(); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := count(); n != 51 {
		t.Fatalf("%d rows; want 51", n)
	}
	for i := range 1000 {
		if _, err := s.Put("new", "x", 1000); err != nil {
			t.Fatal(i, err)
		}
	}
	if n := count(); n != 1 {
		t.Errorf("%d rows are left; want 1", n)
	}
}

// FuzzVersionedRow reads what no store has written. It must tell, or give back something that can be.
func FuzzVersionedRow(f *testing.F) {
	for _, b := range []string{"", "\x00", "\x01", "\x02v", "\x03", "\x01value"} {
		f.Add([]byte(b), int64(5))
	}
	spec := state.Versioned("v", serde.String, serde.String, time.Second)
	f.Fuzz(func(t *testing.T, value []byte, at int64) {
		layers, err := state.NewLayers(memory.New(), []state.AnySpec{spec})
		if err != nil {
			t.Fatal(err)
		}
		e := &env{layers: layers}
		s, err := spec.Open(e)
		if err != nil {
			t.Fatal(err)
		}
		row := append(state.AppendRow(nil, state.RowMeta{TimeMillis: at}), value...)
		layers.Rows("v").Put([]byte("\x01k"), row)
		v, ok, err := s.Get("k")
		switch {
		case err != nil:
			if !errors.Is(err, state.ErrCorrupt) {
				t.Errorf("%v is not ErrCorrupt", err)
			}
		case len(value) == 0 || value[0] > 2:
			t.Errorf("%x gives %v, %t", value, v, ok)
		case ok != (value[0] > 0) || (ok && (v.Value != string(value[1:]) || v.TimeMillis != at)):
			t.Errorf("%x gives %v, %t", value, v, ok)
		}
	})
}
