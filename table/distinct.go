package table

import "tailrace.dev/processor"

// Distinct leaves out the changes that change nothing: those for which equal is true of the old and the new value, and
// deletions of what was not there. The row that is forwarded keeps the time at which it took its value. (Kafka Streams
// forwards all of them: KAFKA-12508.)
func Distinct[K, V any](t *Table[K, V], equal func(a, b V) bool) *Table[K, V] {
	given(t, "distinct", equal != nil)
	RequireStored(t, "distinct")
	wantOld := new(bool)
	n := processor.Derive(t.node, processor.Operator{Kind: "distinct"},
		func(_ *processor.Task, next processor.Handler[K, Change[V]]) (processor.Handler[K, Change[V]], error) {
			return func(r processor.Record[K, Change[V]]) error {
				was, is := r.Value.Old, r.Value.New
				if was.OK == is.OK && (!is.OK || equal(was.V, is.V)) {
					return nil
				}
				return next(r)
			}, nil
		})
	n.OnAskOld(wantOld)
	n.AskOld()
	out := New(n, t.view, t.stores...).WithClosing(t.closing)
	out.asOf, out.history = t.asOf, t.history
	return out
}
