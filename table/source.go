package table

import (
	"tailrace.dev/processor"
	"tailrace.dev/state"
)

// FromSource reads a topic as a table, as From does, but makes no changelog for the store: the topic is it. That halves
// what is stored and written for a large table, and the topic is asked for more:
//
//   - It must be compacted: cleanup.policy must contain compact, or the application does not start. What retention or
//     DeleteRecords removes is missing after the next restore, though it was there before.
//   - Its keys must be encoded exactly as the serde does it, because rows are found by those bytes. A record whose key
//     is not counts as one that cannot be decoded. Keys and values are kept as they are, so topic and store must have
//     the same serdes.
//   - Its times must follow from the records: WithWallClock and UsePartitionTime are mistakes.
//
// The table holds what the topic says up to the committed offset, whatever was processed: a task that starts at the
// topic's end, by StartingAt(Latest) or because the offset was set, has the rows before it too, and a record that a
// policy leaves out because something below failed still changes its row. One that cannot be decoded does not.
//
// Records without a key are dropped and counted. (Kafka Streams: the optimisation reuse.ktable.source.topics.)
func FromSource[K, V any](
	b *processor.Builder, topic *processor.Topic[K, V], store *state.KeyValueSpec[K, V],
) *Table[K, V] {
	wantOld := new(bool)
	n := processor.FollowTopic(b, "table", topic, store, wantOld, func(old, is processor.Opt[V]) Change[V] {
		return Change[V]{Old: old, New: is}
	})
	n.OnAskOld(wantOld)
	return New(n, StoreView(store), spec(store))
}
