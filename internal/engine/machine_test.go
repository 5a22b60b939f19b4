package engine

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"

	"tailrace.dev/internal/task"
	"tailrace.dev/serde"
	"tailrace.dev/state"
)

// countStore is the store of the machines in these tests.
const countStore = "counts"

var countSpec = state.KeyValue(countStore, serde.Bytes, serde.Bytes)

// counter is a machine that counts records by key, or only passes them on when it has no store. Every output's value is
// the count that the record made, so that the outputs of a key must be 1, 2, 3 and so on.
type counter struct {
	id      task.ID
	layers  *state.Layers
	rows    *state.Rows // nil: pass on
	out     string
	perStep func(task.Record) error

	topics    []string
	queue     map[string][]task.Record
	next      map[string]int64
	time      int64
	outputs   []task.Output
	sent      bool
	processed int
	closed    bool
}

func newCounter(id task.ID, backend state.Backend, topics []string, out string, stateful bool) (*counter, error) {
	var specs []state.AnySpec
	if stateful {
		specs = append(specs, countSpec)
	}
	layers, err := state.NewLayers(backend, specs)
	if err != nil {
		return nil, err
	}
	c := &counter{id: id, layers: layers, topics: topics, out: out}
	if stateful {
		c.rows = layers.Rows(countStore)
	}
	return c, nil
}

func (c *counter) ID() task.ID { return c.id }

func (c *counter) Start(committed []task.Offset, metadata string, _ int64) error {
	c.queue, c.next = map[string][]task.Record{}, map[string]int64{}
	c.outputs, c.sent, c.processed, c.time = nil, false, 0, 0
	for _, o := range committed {
		c.next[o.Topic] = o.Next
	}
	if metadata != "" {
		t, err := strconv.ParseInt(metadata, 16, 64)
		if err != nil {
			return err
		}
		c.time = t
	}
	return nil
}

func (c *counter) Enqueue(topic string, records []task.Record) {
	c.queue[topic] = append(c.queue[topic], records...)
}

func (c *counter) Position(topic string, next, _ int64) {
	if len(c.queue[topic]) == 0 {
		c.next[topic] = max(c.next[topic], next)
	}
}

func (c *counter) Queued(topic string) (records, bytes int) {
	for _, r := range c.queue[topic] {
		bytes += len(r.Key) + len(r.Value)
	}
	return len(c.queue[topic]), bytes
}

func (c *counter) Step(limit int, _ int64) (n int, retryMillis int64, err error) {
	c.outputs = c.outputs[:0]
	for n < limit {
		best := ""
		for _, t := range c.topics {
			q := c.queue[t]
			if len(q) > 0 && (best == "" || q[0].TimeMillis < c.queue[best][0].TimeMillis) {
				best = t
			}
		}
		if best == "" {
			return n, 0, nil
		}
		r := c.queue[best][0]
		c.queue[best] = c.queue[best][1:]
		if c.perStep != nil {
			if err := c.perStep(r); err != nil {
				return n, 0, err
			}
		}
		if r.Offset < c.next[best] {
			return n, 0, fmt.Errorf("offset %d again, expected at least %d", r.Offset, c.next[best])
		}
		c.next[best] = r.Offset + 1
		c.time = max(c.time, r.TimeMillis)
		if err := c.process(r); err != nil {
			return n, 0, err
		}
		n++
		c.processed++
	}
	return n, 0, nil
}

func (c *counter) process(r task.Record) error {
	value := r.Value
	if c.rows != nil {
		key := append([]byte{state.KindRow}, r.Key...)
		row, err := c.rows.Get(key)
		if err != nil {
			return err
		}
		var n uint64
		if row != nil {
			n = binary.BigEndian.Uint64(row)
		}
		n++
		c.rows.Put(key, binary.BigEndian.AppendUint64(nil, n))
		value = []byte(strconv.FormatUint(n, 10))
	}
	if c.out != "" {
		c.outputs = append(c.outputs, task.Output{
			Topic: c.out, Partition: task.AnyPartition, TimeMillis: r.TimeMillis, Key: r.Key, Value: value,
		})
		c.sent = true
	}
	return nil
}

func (c *counter) Punctuate(int64) (int64, error) { c.outputs = c.outputs[:0]; return 0, nil }

func (c *counter) Outputs() []task.Output {
	out := c.outputs
	c.outputs = nil
	return out
}

func (c *counter) Boundary() task.Batch {
	b := task.Batch{Metadata: fmt.Sprintf("%016x", c.time), Processed: c.processed}
	c.layers.Changes(func(store int, key, row []byte) {
		b.Changes = append(b.Changes, task.Change{Store: store, Key: key, Row: row})
	})
	for _, t := range c.topics {
		b.Offsets = append(b.Offsets, task.Offset{Topic: t, Next: c.next[t]})
	}
	b.Empty = !c.sent && len(b.Changes) == 0
	return b
}

func (c *counter) Commit(positions []state.Position, wallMillis int64) {
	c.layers.Commit(positions, wallMillis)
	c.sent, c.processed = false, 0
}

func (c *counter) Abort(committed []task.Offset, metadata string, wallMillis int64) error {
	c.layers.Drop()
	return c.Start(committed, metadata, wallMillis)
}

func (c *counter) Layers() *state.Layers { return c.layers }

func (c *counter) Close() error { c.closed = true; return nil }

func topicNames(sub *Sub) []string {
	var out []string
	for _, src := range sub.Sources {
		out = append(out, src.Topic)
	}
	return slices.Clone(out)
}
