package state_test

import (
	"fmt"
	"testing"

	"tailrace.dev/serde"
	"tailrace.dev/state"
)

func BenchmarkKeyValue(b *testing.B) {
	const keys = 100_000
	names := make([]string, keys)
	for i := range names {
		names[i] = fmt.Sprintf("user-%d", i)
	}
	counts := state.KeyValue("counts", serde.String, serde.Int64)
	fill := func(b *testing.B) (*env, *state.KeyValueStore[string, int64]) {
		e := newEnv(b, counts, lists)
		s := open(b, e, counts)
		for i, k := range names {
			must(b, s.Set(k, int64(i)))
		}
		e.layers.Commit([]state.Position{{Next: 1}}, 1)
		return e, s
	}
	b.Run("get", func(b *testing.B) {
		_, s := fill(b)
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			if _, ok, err := s.Get(names[i%1000]); err != nil || !ok {
				b.Fatal(ok, err)
			}
			i++
		}
	})
	b.Run("get-uncached", func(b *testing.B) {
		_, s := fill(b)
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			if _, ok, err := s.Get(names[i%keys]); err != nil || !ok {
				b.Fatal(ok, err)
			}
			i += 7919
		}
	})
	b.Run("set", func(b *testing.B) {
		e, s := fill(b)
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			must(b, s.Set(names[i%1000], int64(i)))
			if i++; i%10_000 == 0 {
				e.layers.Commit(nil, 1)
			}
		}
	})
	b.Run("take-give", func(b *testing.B) {
		e, s := fill(b)
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			v, at, _, err := s.Take(names[i%1000])
			must(b, err)
			must(b, s.Give(names[i%1000], v+1, at))
			if i++; i%10_000 == 0 {
				e.layers.Commit(nil, 1)
			}
		}
	})
	b.Run("take-give-list", func(b *testing.B) {
		e, _ := fill(b)
		s := open(b, e, lists)
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			v, at, _, err := s.Take(names[i%1000])
			must(b, err)
			must(b, s.Give(names[i%1000], append(v[:0], i), at))
			if i++; i%10_000 == 0 {
				e.layers.Commit(nil, 1)
			}
		}
	})
}
