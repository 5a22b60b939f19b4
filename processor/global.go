package processor

import (
	"fmt"

	"tailrace.dev/state"
)

// globalTable is a topic that every process holds whole.
type globalTable struct {
	topic  string
	spec   state.AnySpec
	caller string
}

// Global declares that every process holds the whole topic as a table, in the store of the given spec, before any task
// starts, and follows it from then on. It is not synchronised with the records that tasks process: a task sees what
// has been followed by then. table.Global is its public face.
func Global[K, V any](b *Builder, topic *Topic[K, V], store *state.KeyValueSpec[K, V]) {
	if topic == nil || store == nil {
		b.Fail("global", "the topic or the store is nil")
		return
	}
	b.declareTopic("global", topic.name, topic, topic.err)
	if err := store.Err(); err != nil {
		b.Fail("global", "%v", err)
		return
	}
	if d := b.stores[store.Name()]; d != nil {
		b.Fail("global", "store name %q is already used at %s: names are for life, choose another one",
			store.Name(), d.caller)
		return
	}
	if hasTTL(store) {
		b.Fail("global", "store %q has a time to live, which a global table cannot keep: declare it without", store.Name())
		return
	}
	b.stores[store.Name()] = &declaredStore{spec: store, caller: caller()}
	b.globals = append(b.globals, globalTable{topic.name, store, caller()})
}

// Globals returns the topics that every process holds whole, by the names of their stores.
func (t *Topology) Globals() map[string]string {
	m := make(map[string]string, len(t.globals))
	for _, g := range t.globals {
		m[g.spec.Name()] = g.topic
	}
	return m
}

// Replica returns the replica of a global table's store.
func (t *Task) Replica(spec state.AnySpec) (*state.Replica, error) {
	r := t.opts.Replicas[spec.Name()]
	if r == nil {
		return nil, fmt.Errorf("processor: %q is not the store of a global table of this topology", spec.Name())
	}
	return r, nil
}
