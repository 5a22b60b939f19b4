package processortest

import (
	"errors"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
)

// InputTopic pipes records into a topic.
type InputTopic[K, V any] struct {
	d     *Driver
	name  string
	key   serde.Serde[K]
	value serde.Serde[V]
}

// Input returns the way into a topic that the topology reads.
func Input[K, V any](d *Driver, topic *processor.Topic[K, V]) *InputTopic[K, V] {
	return &InputTopic[K, V]{d, topic.Name(), topic.Key(), topic.Value()}
}

// Pipe pipes a record with the time of the driver's wall clock, and processes all that follows from it. It fails the
// test when that fails; TryPipe returns the error instead.
func (in *InputTopic[K, V]) Pipe(key K, value V) {
	in.d.t.Helper()
	in.PipeRecord(processor.Record[K, V]{Key: key, Value: value, Time: in.d.wall})
}

// PipeAt is Pipe with a time.
func (in *InputTopic[K, V]) PipeAt(key K, value V, at time.Time) {
	in.d.t.Helper()
	in.PipeRecord(processor.Record[K, V]{Key: key, Value: value, Time: at})
}

// PipeTombstone pipes the deletion of a key, with the time of the driver's wall clock.
func (in *InputTopic[K, V]) PipeTombstone(key K) {
	in.d.t.Helper()
	in.PipeRecord(processor.Record[K, V]{Key: key, Tombstone: true, Time: in.d.wall})
}

// PipeRecord is Pipe of a whole record: one without a key, with headers, a tombstone.
func (in *InputTopic[K, V]) PipeRecord(r processor.Record[K, V]) {
	in.d.t.Helper()
	if err := in.TryPipe(r); err != nil {
		in.d.t.Fatalf("processortest: %v", err)
	}
}

// TryPipe is PipeRecord that returns the failure. The driver can be used again after Crash.
func (in *InputTopic[K, V]) TryPipe(r processor.Record[K, V]) error {
	raw, err := in.Encode(r)
	if err != nil {
		return err
	}
	return in.d.pipe(raw)
}

// Encode returns the record as it would lie in the topic, for Driver.PipeRaw.
func (in *InputTopic[K, V]) Encode(r processor.Record[K, V]) (processor.RawRecord, error) {
	raw := processor.RawRecord{Topic: in.name, TimeMillis: r.Time.UnixMilli(), Headers: r.Headers}
	var err1, err2 error
	if !r.NoKey {
		raw.Key, err1 = in.key.Append([]byte{}, r.Key)
	}
	if !r.Tombstone {
		raw.Value, err2 = in.value.Append([]byte{}, r.Value)
	}
	return raw, errors.Join(err1, err2)
}

// PipeRaw pipes records as they would lie in their topics: all are there before the first is processed, so that the task
// chooses between topics by time. Offsets are the driver's.
func (d *Driver) PipeRaw(records ...processor.RawRecord) error { return d.pipe(records...) }

// OutputTopic reads what the topology wrote to a topic.
type OutputTopic[K, V any] struct {
	d     *Driver
	name  string
	key   serde.Serde[K]
	value serde.Serde[V]
	next  int
}

// Output returns the records that the topology writes to a topic, from the first on. Several readers of one topic do
// not disturb each other.
func Output[K, V any](d *Driver, topic *processor.Topic[K, V]) *OutputTopic[K, V] {
	return &OutputTopic[K, V]{d: d, name: topic.Name(), key: topic.Key(), value: topic.Value()}
}

// Read returns the records written since the last Read. It fails the test when one cannot be decoded.
func (o *OutputTopic[K, V]) Read() []processor.Record[K, V] {
	o.d.t.Helper()
	all := o.d.committed[o.name]
	var rs []processor.Record[K, V]
	for ; o.next < len(all); o.next++ {
		out := all[o.next]
		r := processor.Record[K, V]{
			NoKey: out.Key == nil, Tombstone: out.Value == nil,
			Time: time.UnixMilli(out.TimeMillis).UTC(), Headers: out.Headers,
		}
		var err1, err2 error
		if !r.NoKey {
			r.Key, err1 = o.key.Decode(out.Key)
		}
		if !r.Tombstone {
			r.Value, err2 = o.value.Decode(out.Value)
		}
		if err := errors.Join(err1, err2); err != nil {
			o.d.t.Fatalf("processortest: output topic %q, record %d: %v", o.name, o.next, err)
		}
		rs = append(rs, r)
	}
	return rs
}

// Map returns what a table of the whole topic holds: the newest value of each key, less the deleted ones. It does not
// move Read on.
func Map[K comparable, V any](o *OutputTopic[K, V]) map[K]V {
	o.d.t.Helper()
	all := *o
	all.next = 0
	m := make(map[K]V)
	for _, r := range all.Read() {
		if r.Tombstone {
			delete(m, r.Key)
		} else {
			m[r.Key] = r.Value
		}
	}
	return m
}

// Raw returns everything that was committed to a topic, undecoded: dead letters, repartition topics.
func (d *Driver) Raw(topic string) []processor.Output { return d.committed[topic] }

// Store returns a store of the topology for looking at, uncommitted writes included. Writing to it writes as a processor of
// its task would.
func Store[K, V any](d *Driver, spec *state.KeyValueSpec[K, V]) *state.KeyValueStore[K, V] {
	d.t.Helper()
	return opened(d, spec, spec.Open)
}
