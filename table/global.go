package table

import (
	"tailrace.dev/processor"
	"tailrace.dev/state"
)

// GlobalTable is a table that every process holds whole, so that a stream can be joined with it by any key, whatever the
// partitions are.
type GlobalTable[K, V any] struct {
	b     *processor.Builder
	store *state.KeyValueSpec[K, V]
}

// Global reads a topic as a table that every process holds whole, in the given store: for small tables that all need, such as
// currencies. The topic is its own changelog, and should be compacted. It is loaded before any task starts, and followed
// from then on, without regard to the times of what tasks process. (Kafka Streams: StreamsBuilder#globalTable.)
func Global[K, V any](
	b *processor.Builder, topic *processor.Topic[K, V], store *state.KeyValueSpec[K, V],
) *GlobalTable[K, V] {
	processor.Global(b, topic, store)
	return &GlobalTable[K, V]{b, store}
}

// View returns how to look up the table's newest rows. It is for writing operators.
func (g *GlobalTable[K, V]) View() View[K, V] {
	return func(t *processor.Task) (Getter[K, V], error) {
		r, err := t.Replica(g.store)
		if err != nil {
			return nil, err
		}
		return g.store.View(r).Lookup, nil
	}
}
