package stream

import (
	"reflect"

	"tailrace.dev/processor"
	"tailrace.dev/state"
	"tailrace.dev/table"
)

// Cogroup aggregates several streams into one value for each key, or for each key and window: each input has its own
// function, and all share the aggregate. It starts at the zero value, or at what the store's spec says by Initially.
//
//	Cogroup(Accounts, With(orders, Account.order), With(payments, Account.pay))
//
// The streams are grouped in one way, by keys or by the same windows, and must be partitioned alike by equally encoded
// keys. Records without a key, and tombstones, are dropped and counted; the rest is as in Aggregate. The operator has
// one stream time, made of the records of all its inputs. (Kafka Streams: CogroupedKStream, where each input has a
// stream time of its own.)
//
// Sessions need a function that merges two: see CogroupSessions.
func Cogroup[RK, A any](
	store state.Spec[RK, A], first CoInput[RK, A], more ...CoInput[RK, A],
) *table.Table[RK, A] {
	in := append([]CoInput[RK, A]{first}, more...)
	return first.cogroup(in, store, coAggregation{kind: "cogroup"}).(*table.Table[RK, A])
}

// CogroupSessions is Cogroup by sessions: when a record makes sessions meet, mergeTwo makes one value of theirs, as in
// AggregateSessions.
func CogroupSessions[K, A any](
	store *state.SessionSpec[K, A], mergeTwo func(k K, a, b A) A,
	first CoInput[state.Windowed[K], A], more ...CoInput[state.Windowed[K], A],
) *table.Table[state.Windowed[K], A] {
	in := append([]CoInput[state.Windowed[K], A]{first}, more...)
	if mergeTwo == nil {
		first.builder().Fail("cogroup-sessions", "the function is nil")
	}
	co := coAggregation{kind: "cogroup-sessions", merge: merging(mergeTwo)}
	return first.cogroup(in, store, co).(*table.Table[state.Windowed[K], A])
}

// CoInput is one of the streams that Cogroup aggregates together, with the function that folds it in: see With.
type CoInput[RK, A any] interface {
	types(RK, A)
	builder() *processor.Builder
	// node returns a *processor.Node[K, coStep[A]] of the input's records.
	node() any
	// windows returns the definition of the grouping's windows, to be compared; nil without windows.
	windows() any
	// own tells that the function cannot return a record's value itself.
	own() bool
	// cogroup aggregates all inputs, which are of its own kind, and returns a *table.Table[RK, A].
	cogroup(all []CoInput[RK, A], store state.Spec[RK, A], co coAggregation) any
}

// coAggregation is what the inputs of a Cogroup have in common.
type coAggregation struct {
	kind  string
	merge any // a merge[K, A] as it is made in a task, or nil
}

// coStep folds the record that is in process, of whatever type, into an aggregate.
type coStep[A any] interface {
	fold(a A) A
}

// With makes an input of Cogroup: f folds the records of a grouped stream into the aggregate, as in Aggregate.
func With[K, V, RK, A any](g Grouping[K, V, RK], f func(a A, k K, v V) A) CoInput[RK, A] {
	given(g.source(), "cogroup", f != nil)
	return &coInput[K, V, RK, A]{g: g, f: f}
}

type coInput[K, V, RK, A any] struct {
	g Grouping[K, V, RK]
	f func(a A, k K, v V) A
}

// coRecord is the record in process. There is one for each input and task: what comes next is done with it when it
// returns.
type coRecord[K, V, A any] struct {
	f func(a A, k K, v V) A
	k K
	v V
}

func (r *coRecord[K, V, A]) fold(a A) A { return r.f(a, r.k, r.v) }

func (c *coInput[K, V, RK, A]) types(RK, A)                 {}
func (c *coInput[K, V, RK, A]) builder() *processor.Builder { return c.g.source().node.Builder() }
func (c *coInput[K, V, RK, A]) own() bool                   { return reflect.TypeFor[A]() != reflect.TypeFor[V]() }

func (c *coInput[K, V, RK, A]) windows() any {
	switch g := any(c.g).(type) {
	case *WindowGrouped[K, V]:
		return g.w
	case *SessionGrouped[K, V]:
		return g.w
	}
	return nil
}

func (c *coInput[K, V, RK, A]) node() any {
	return processor.Derive(c.g.source().node, processor.Operator{Kind: "cogroup-input"},
		func(_ *processor.Task, next processor.Handler[K, coStep[A]]) (processor.Handler[K, V], error) {
			now := &coRecord[K, V, A]{f: c.f}
			return func(r processor.Record[K, V]) error {
				if r.Tombstone {
					return next(processor.WithoutValue[coStep[A]](r))
				}
				now.k, now.v = r.Key, r.Value
				return next(processor.WithValue(r, coStep[A](now)))
			}, nil
		})
}

func (c *coInput[K, V, RK, A]) cogroup(all []CoInput[RK, A], store state.Spec[RK, A], co coAggregation) any {
	agg := aggregation[K, coStep[A], A]{kind: co.kind, own: true,
		step: func(initial func() A) step[K, coStep[A], A] {
			return func(a processor.Opt[A], r processor.Record[K, coStep[A]]) processor.Opt[A] {
				if !a.OK {
					a.V = initial()
				}
				return processor.Some(r.Value.fold(a.V))
			}
		}}
	agg.merge, _ = co.merge.(func(initial func() A) merge[K, A])
	nodes := make([]*processor.Node[K, coStep[A]], len(all))
	for i, in := range all {
		if in.windows() != c.windows() {
			c.builder().Fail(co.kind, "the streams are grouped by different windows: give all of them the same")
		}
		nodes[i] = in.node().(*processor.Node[K, coStep[A]]) // RK fixes K
		agg.own = agg.own && in.own()
	}
	s := New(processor.Combine(processor.Operator{Kind: co.kind + "-inputs"}, nodes[0], nodes[1:]...))
	s.node.RequireKey(co.kind)
	var g any = &Grouped[K, coStep[A]]{s}
	switch c := any(c.g).(type) {
	case *WindowGrouped[K, V]:
		g = &WindowGrouped[K, coStep[A]]{s, c.w}
	case *SessionGrouped[K, V]:
		g = &SessionGrouped[K, coStep[A]]{s, c.w}
	}
	return fold(g.(Grouping[K, coStep[A], RK]), store, agg)
}
