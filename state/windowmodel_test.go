package state_test

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/state/memory"
)

// TestWindowStoreModel compares a store with a plain map, over writes, aborts, flushes, restarts and passing time.
func TestWindowStoreModel(t *testing.T) {
	spec := state.Window("model", serde.String, serde.Int64, 10*time.Minute)
	type row struct {
		w  state.Windowed[string]
		v  int64
		at int64
	}
	keys := []string{"", "a", "ab", "a\x80\x00\x00\x00\x00\x00\x02\xbf\x20", "b"}
	rapid.Check(t, func(t *rapid.T) {
		backend := memory.New()
		layers, err := state.NewLayers(backend, []state.AnySpec{spec})
		if err != nil {
			t.Fatal(err)
		}
		e := &env{layers: layers}
		s, err := spec.Open(e)
		if err != nil {
			t.Fatal(err)
		}
		rows, saved := map[string]row{}, map[string]row{}
		clock, savedClock := int64(math.MinInt64), int64(math.MinInt64)
		alive := func(start int64) bool { return clock == math.MinInt64 || start > clock-600_000 }
		window := func() state.Windowed[string] {
			start := rapid.Int64Range(0, 30).Draw(t, "start") * 60_000
			if clock > 0 {
				start += clock / 60_000 * 60_000 * rapid.Int64Range(0, 1).Draw(t, "late")
			}
			return windowed(rapid.SampledFrom(keys).Draw(t, "key"), start, start+60_000*rapid.Int64Range(1, 2).Draw(t, "size"))
		}
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				w, v := window(), rapid.Int64().Draw(t, "value")
				e.now++
				if err := s.Set(w, v); err != nil {
					t.Fatal(err)
				}
				clock = max(clock, w.StartMillis)
				rows[w.String()] = row{w, v, e.now}
			},
			"delete": func(t *rapid.T) {
				w := window()
				if err := s.Delete(w); err != nil {
					t.Fatal(err)
				}
				delete(rows, w.String())
			},
			"commit": func(*rapid.T) {
				e.layers.Commit([]state.Position{{Next: 1}}, 1)
				saved, savedClock = maps.Clone(rows), clock
			},
			"flush": func(t *rapid.T) {
				e.layers.Commit([]state.Position{{Next: 1}}, 1)
				saved, savedClock = maps.Clone(rows), clock
				if f := e.layers.Freeze(); f != nil {
					if err := f.Run(); err != nil {
						t.Fatal(err)
					}
					e.layers.Done(f)
				}
			},
			"abort": func(*rapid.T) {
				e.layers.Drop()
				rows, clock = maps.Clone(saved), savedClock
			},
			"": func(t *rapid.T) {
				var want []row
				for k, r := range rows {
					if alive(r.w.StartMillis) {
						want = append(want, r)
					} else {
						delete(rows, k) // it does not come back, but with an abort
					}
				}
				key := rapid.SampledFrom(keys).Draw(t, "fetched")
				var ofKey []row
				for _, r := range want {
					if v, at, ok, err := s.Lookup(r.w); v != r.v || at != r.at || !ok || err != nil {
						t.Fatalf("Lookup(%v) = %d at %d, %v, %v; want %d at %d", r.w, v, at, ok, err, r.v, r.at)
					}
					if r.w.Key == key {
						ofKey = append(ofKey, r)
					}
				}
				slices.SortFunc(ofKey, func(a, b row) int {
					if a.w.StartMillis != b.w.StartMillis {
						return int(a.w.StartMillis - b.w.StartMillis)
					}
					return int(a.w.EndMillis - b.w.EndMillis)
				})
				var wanted []string
				for _, r := range ofKey {
					wanted = append(wanted, fmt.Sprintf("%v=%d", r.w, r.v))
				}
				got := list(t, s.Fetch(key, math.MinInt64, math.MaxInt64))
				if got != strings.Join(wanted, " ") {
					t.Fatalf("Fetch(%q) = %s; want %s", key, got, wanted)
				}
				spans, err := s.Spans(nil, key, math.MinInt64, math.MaxInt64)
				if err != nil {
					t.Fatal(err)
				}
				spans = slices.DeleteFunc(spans, func(r state.SpanRow) bool { return !alive(r.StartMillis) })
				if len(spans) != len(ofKey) {
					t.Fatalf("Spans(%q) = %v; want %s", key, spans, wanted)
				}
				for i, r := range ofKey {
					if spans[i].Span != r.w.Span || spans[i].TimeMillis != r.at {
						t.Fatalf("Spans(%q) = %v; want %s", key, spans, wanted)
					}
				}
				if n := strings.Count(list(t, s.AllBackward()), "="); n != len(want) {
					t.Fatalf("AllBackward gives %d rows; want %d", n, len(want))
				}
			},
		})
	})
}
