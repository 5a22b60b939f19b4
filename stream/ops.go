package stream

import (
	"tailrace.dev/processor"
	"tailrace.dev/state"
)

// derive adds an operator that handles each record by a function without state.
func derive[K, V, K2, V2 any](
	s *Stream[K, V], op processor.Operator,
	f func(t *processor.Task, r processor.Record[K, V], next processor.Handler[K2, V2]) error,
) *Stream[K2, V2] {
	return New(processor.Derive(s.node, op,
		func(t *processor.Task, next processor.Handler[K2, V2]) (processor.Handler[K, V], error) {
			return func(r processor.Record[K, V]) error { return f(t, r, next) }, nil
		}))
}

// given reports a function that is nil at the call, which would otherwise panic at the first record.
func given[K, V any](s *Stream[K, V], kind string, ok bool) {
	if !ok {
		s.node.Builder().Fail(kind, "the function is nil")
	}
}

// Filter keeps the records that keep is true for. Tombstones pass. (Kafka Streams: KStream#filter.)
func Filter[K, V any](s *Stream[K, V], keep func(k K, v V) bool) *Stream[K, V] {
	given(s, "filter", keep != nil)
	return New(processor.Derive(s.node, processor.Operator{Kind: "filter"},
		func(_ *processor.Task, next processor.Handler[K, V]) (processor.Handler[K, V], error) {
			return func(r processor.Record[K, V]) error {
				if r.Tombstone || keep(r.Key, r.Value) {
					return next(r)
				}
				return nil
			}, nil
		}))
}

// FilterNot keeps the records that drop is false for. Tombstones pass. (Kafka Streams: KStream#filterNot.)
func FilterNot[K, V any](s *Stream[K, V], drop func(k K, v V) bool) *Stream[K, V] {
	given(s, "filter-not", drop != nil)
	op := processor.Operator{Kind: "filter-not"}
	return derive(s, op, func(_ *processor.Task, r processor.Record[K, V], next processor.Handler[K, V]) error {
		if r.Tombstone || !drop(r.Key, r.Value) {
			return next(r)
		}
		return nil
	})
}

// FilterRecord keeps the records that keep is true for; tombstones are asked about too.
func FilterRecord[K, V any](s *Stream[K, V], keep func(r processor.Record[K, V]) bool) *Stream[K, V] {
	given(s, "filter-record", keep != nil)
	op := processor.Operator{Kind: "filter-record"}
	return derive(s, op, func(_ *processor.Task, r processor.Record[K, V], next processor.Handler[K, V]) error {
		if keep(r) {
			return next(r)
		}
		return nil
	})
}

// Map makes another value of each value; key, time and headers stay. Tombstones pass. (Kafka Streams:
// KStream#mapValues.)
func Map[K, V, W any](s *Stream[K, V], f func(k K, v V) W) *Stream[K, W] {
	given(s, "map", f != nil)
	return New(processor.Derive(s.node, processor.Operator{Kind: "map"},
		func(_ *processor.Task, next processor.Handler[K, W]) (processor.Handler[K, V], error) {
			return func(r processor.Record[K, V]) error {
				if r.Tombstone {
					return next(processor.WithoutValue[W](r))
				}
				return next(processor.WithValue(r, f(r.Key, r.Value)))
			}, nil
		}))
}

// FlatMap makes any number of values of each value, in order; key, time and headers stay. Tombstones pass. (Kafka
// Streams: KStream#flatMapValues.)
func FlatMap[K, V, W any](s *Stream[K, V], f func(k K, v V) []W) *Stream[K, W] {
	given(s, "flat-map", f != nil)
	op := processor.Operator{Kind: "flat-map"}
	return derive(s, op, func(_ *processor.Task, r processor.Record[K, V], next processor.Handler[K, W]) error {
		if r.Tombstone {
			return next(processor.WithoutValue[W](r))
		}
		for _, w := range f(r.Key, r.Value) {
			if err := next(processor.WithValue(r, w)); err != nil {
				return err
			}
		}
		return nil
	})
}

// MapRecord makes another record of each record, tombstones included: key, value, time and headers are the function's
// choice. The key is taken to have changed. (Kafka Streams: KStream#map.)
func MapRecord[K, V, K2, V2 any](
	s *Stream[K, V], f func(r processor.Record[K, V]) processor.Record[K2, V2],
) *Stream[K2, V2] {
	given(s, "map-record", f != nil)
	op := processor.Operator{Kind: "map-record", Rekeys: true}
	return derive(s, op, func(_ *processor.Task, r processor.Record[K, V], next processor.Handler[K2, V2]) error {
		return next(f(r))
	})
}

// FlatMapRecord makes any number of records of each record, tombstones included. The keys are taken to have changed.
// (Kafka Streams: KStream#flatMap.)
func FlatMapRecord[K, V, K2, V2 any](
	s *Stream[K, V], f func(r processor.Record[K, V]) []processor.Record[K2, V2],
) *Stream[K2, V2] {
	given(s, "flat-map-record", f != nil)
	op := processor.Operator{Kind: "flat-map-record", Rekeys: true}
	return derive(s, op, func(_ *processor.Task, r processor.Record[K, V], next processor.Handler[K2, V2]) error {
		for _, out := range f(r) {
			if err := next(out); err != nil {
				return err
			}
		}
		return nil
	})
}

// Rekey gives each record another key. Tombstones are dropped and counted, because the new key of a deletion cannot be
// told from a value that is not there. Records stay where they are until a Repartition brings them to the partition of
// the new key; grouping or joining before that is a mistake that Build reports. (Kafka Streams: KStream#selectKey.)
func Rekey[K, V, K2 any](s *Stream[K, V], f func(k K, v V) K2) *Stream[K2, V] {
	given(s, "rekey", f != nil)
	op := processor.Operator{Kind: "rekey", Rekeys: true}
	return derive(s, op, func(t *processor.Task, r processor.Record[K, V], next processor.Handler[K2, V]) error {
		if r.Tombstone {
			t.Drop(processor.DropNoValue)
			return nil
		}
		return next(processor.WithKey(r, f(r.Key, r.Value)))
	})
}

// RekeyRecord is Rekey with a function that sees tombstones as well.
func RekeyRecord[K, V, K2 any](s *Stream[K, V], f func(r processor.Record[K, V]) K2) *Stream[K2, V] {
	given(s, "rekey-record", f != nil)
	op := processor.Operator{Kind: "rekey-record", Rekeys: true}
	return derive(s, op, func(_ *processor.Task, r processor.Record[K, V], next processor.Handler[K2, V]) error {
		return next(processor.WithKey(r, f(r)))
	})
}

// FlatRekey sends each record on once for each key that f returns, in order. Tombstones are dropped and counted. The rest
// is as in Rekey.
func FlatRekey[K, V, K2 any](s *Stream[K, V], f func(k K, v V) []K2) *Stream[K2, V] {
	given(s, "flat-rekey", f != nil)
	op := processor.Operator{Kind: "flat-rekey", Rekeys: true}
	return derive(s, op, func(t *processor.Task, r processor.Record[K, V], next processor.Handler[K2, V]) error {
		if r.Tombstone {
			t.Drop(processor.DropNoValue)
			return nil
		}
		for _, k := range f(r.Key, r.Value) {
			if err := next(processor.WithKey(r, k)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Peek calls f for each record and passes it on. Tombstones pass without a call. f is called again for records that are
// processed again after a failure, so it is for looking, not for doing. (Kafka Streams: KStream#peek.)
func Peek[K, V any](s *Stream[K, V], f func(k K, v V)) *Stream[K, V] {
	given(s, "peek", f != nil)
	op := processor.Operator{Kind: "peek"}
	return derive(s, op, func(_ *processor.Task, r processor.Record[K, V], next processor.Handler[K, V]) error {
		if !r.Tombstone {
			f(r.Key, r.Value)
		}
		return next(r)
	})
}

// PeekRecord is Peek with a function that sees tombstones as well.
func PeekRecord[K, V any](s *Stream[K, V], f func(r processor.Record[K, V])) *Stream[K, V] {
	given(s, "peek-record", f != nil)
	op := processor.Operator{Kind: "peek-record"}
	return derive(s, op, func(_ *processor.Task, r processor.Record[K, V], next processor.Handler[K, V]) error {
		f(r)
		return next(r)
	})
}

// ForEach calls f for each record that is not a tombstone, and ends the stream. f is called again for records that are
// processed again after a failure. (Kafka Streams: KStream#foreach.)
func ForEach[K, V any](s *Stream[K, V], f func(k K, v V)) {
	given(s, "for-each", f != nil)
	op := processor.Operator{Kind: "for-each"}
	derive(s, op, func(_ *processor.Task, r processor.Record[K, V], _ processor.Handler[K, V]) error {
		if !r.Tombstone {
			f(r.Key, r.Value)
		}
		return nil
	})
}

// Splitter sends each record of a stream to one of several branches.
type Splitter[K, V any] struct {
	sw    *processor.Switch[K, V]
	tests []func(r processor.Record[K, V]) bool
	names map[string]bool
	rest  bool
}

// Split divides a stream into branches: a record goes to the first whose function is true, in the order in which they
// are declared. Tombstones, and records that no branch takes, are dropped; tombstones are counted. (Kafka Streams:
// KStream#split.)
//
//	split := stream.Split(mail)
//	read := split.When("read", isRead)
//	rest := split.Otherwise("rest")
func Split[K, V any](s *Stream[K, V]) *Splitter[K, V] {
	return split(s, "split", func(t *processor.Task, r processor.Record[K, V]) bool {
		if r.Tombstone {
			t.Drop(processor.DropNoValue)
		}
		return !r.Tombstone
	})
}

func split[K, V any](
	s *Stream[K, V], kind string, takes func(t *processor.Task, r processor.Record[K, V]) bool,
) *Splitter[K, V] {
	sp := &Splitter[K, V]{names: make(map[string]bool)}
	sp.sw = processor.NewSwitch(s.node, processor.Operator{Kind: kind},
		func(t *processor.Task, r processor.Record[K, V]) int {
			if !takes(t, r) {
				return -1
			}
			for i, test := range sp.tests {
				if test(r) {
					return i
				}
			}
			return -1
		})
	return sp
}

// When adds a branch for the records that test is true for.
func (sp *Splitter[K, V]) When(name string, test func(k K, v V) bool) *Stream[K, V] {
	if test == nil {
		return sp.when(name, nil)
	}
	return sp.when(name, func(r processor.Record[K, V]) bool { return test(r.Key, r.Value) })
}

func (sp *Splitter[K, V]) when(name string, test func(r processor.Record[K, V]) bool) *Stream[K, V] {
	switch {
	case test == nil:
		sp.sw.Builder().Fail("split", "the function of branch %q is nil", name)
	case state.CheckName("branch", name) != nil:
		sp.sw.Builder().Fail("split", "%v", state.CheckName("branch", name))
	case sp.rest:
		sp.sw.Builder().Fail("split", "branch %q comes after Otherwise, so no record would reach it", name)
	case sp.names[name]:
		sp.sw.Builder().Fail("split", "branch %q is declared twice", name)
	}
	sp.names[name] = true
	sp.tests = append(sp.tests, test)
	return New(sp.sw.Out(name))
}

// Otherwise adds a branch for the records that no earlier branch takes.
func (sp *Splitter[K, V]) Otherwise(name string) *Stream[K, V] {
	out := sp.when(name, func(processor.Record[K, V]) bool { return true })
	sp.rest = true
	return out
}

// RecordSplitter is a Splitter whose functions see tombstones as well.
type RecordSplitter[K, V any] struct{ sp *Splitter[K, V] }

// SplitRecord is Split with functions that see tombstones as well.
func SplitRecord[K, V any](s *Stream[K, V]) *RecordSplitter[K, V] {
	always := func(*processor.Task, processor.Record[K, V]) bool { return true }
	return &RecordSplitter[K, V]{split(s, "split-record", always)}
}

// When adds a branch for the records that test is true for.
func (sp *RecordSplitter[K, V]) When(name string, test func(r processor.Record[K, V]) bool) *Stream[K, V] {
	return sp.sp.when(name, test)
}

// Otherwise adds a branch for the records that no earlier branch takes.
func (sp *RecordSplitter[K, V]) Otherwise(name string) *Stream[K, V] { return sp.sp.Otherwise(name) }
