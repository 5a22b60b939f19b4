package processortest

import "tailrace.dev/state"

// WindowStore is Store for a window store.
func WindowStore[K, V any](d *Driver, spec *state.WindowSpec[K, V]) *state.WindowStore[K, V] {
	d.t.Helper()
	return opened(d, spec, spec.Open)
}

// SessionStore is Store for a session store.
func SessionStore[K, V any](d *Driver, spec *state.SessionSpec[K, V]) *state.SessionStore[K, V] {
	d.t.Helper()
	return opened(d, spec, spec.Open)
}

// opened opens a store in the task that has it. It fails the test when there is none.
func opened[S any](d *Driver, spec state.AnySpec, open func(state.Env) (*S, error)) *S {
	d.t.Helper()
	for _, dr := range d.tasks {
		for _, s := range d.topology.Stores(dr.id.Sub) {
			if s != spec {
				continue
			}
			st, err := open(dr.task)
			if err != nil {
				d.t.Fatalf("processortest: %v", err)
			}
			return st
		}
	}
	d.t.Fatalf("processortest: the topology has no store %q", spec.Name())
	return nil
}
