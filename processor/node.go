package processor

import (
	"strconv"
	"time"

	"tailrace.dev/internal/task"
	"tailrace.dev/serde"
	"tailrace.dev/state"
)

// Handler receives the records that reach an operator, one at a time. An error ends the processing of the input record
// that led to it: what happens then is the application's ErrorPolicy.
type Handler[K, V any] func(r Record[K, V]) error

// Node is a point of a topology at which records of the given types come out: the extension point that the operators
// of packages stream and table are made with. Programs that use those have no need of it.
type Node[K, V any] struct {
	b    *Builder
	meta *node
	outs []func(t *Task) (Handler[K, V], error)
}

// Operator describes an operator to the Builder.
type Operator struct {
	// Kind names it in descriptions and errors: "map", "join".
	Kind string
	// Stores are the stores that it may open.
	Stores []state.AnySpec
	// Owned are the stores that it alone writes, in addition.
	Owned []state.AnySpec
	// Rekeys tells that keys that come out may differ from those that go in, so that records may no longer be on
	// the partition of their key.
	Rekeys bool
	// NeedsKey tells that records must be on the partition of their key.
	NeedsKey bool
	// KeyRequired is NeedsKey where Node.RequireKey has reported the mistake already.
	KeyRequired bool
	// Expires tells that it removes the expired rows of the Owned stores, with ExpireRows.
	Expires bool
}

// Builder returns the builder that the node belongs to.
func (n *Node[K, V]) Builder() *Builder { return n.b }

func newNode[K, V any](b *Builder, op Operator, parents ...*node) *Node[K, V] {
	m := b.addNode(op.Kind, parents)
	for _, s := range op.Stores {
		b.useStore(m, s, false)
	}
	for _, s := range op.Owned {
		b.useStore(m, s, true)
	}
	m.owner = len(op.Owned) > 0
	b.checkTTL(op)
	for _, p := range parents {
		switch {
		case op.NeedsKey:
			b.requireKey(p, op.Kind) // said here; what follows is not at fault
		case !op.KeyRequired:
			if p.rekeyed != nil {
				m.rekeyed = p.rekeyed
			}
			if p.mixedKeys != nil {
				m.mixedKeys = p.mixedKeys
			}
		}
		if m.keySerde == "" {
			m.keySerde = p.keySerde
		}
	}
	if op.Rekeys {
		m.rekeyed, m.mixedKeys, m.keySerde = m, nil, ""
	}
	return &Node[K, V]{b: b, meta: m}
}

// Derive adds an operator with one input. make is called once in each task, when the task starts: it returns what
// handles the operator's input and calls next with its output. All state that is not in a store lives in the closure
// that make returns, and is lost when the task moves or restarts.
func Derive[K, V, K2, V2 any](
	p *Node[K, V], op Operator, make func(t *Task, next Handler[K2, V2]) (Handler[K, V], error),
) *Node[K2, V2] {
	n := newNode[K2, V2](p.b, op, p.meta)
	p.outs = append(p.outs, func(t *Task) (Handler[K, V], error) {
		next, err := n.handler(t)
		if err != nil {
			return nil, err
		}
		t.at = n.meta
		h, err := make(t, next)
		if err != nil {
			return nil, err
		}
		return guard(t, n.meta, h), nil
	})
	return n
}

// OperatorCall is one record's turn at an operator, as a Wrapper sees it.
type OperatorCall struct {
	Task TaskID
	// Kind is the kind of the operator and Name what Topology.String calls it; Caller is the file:line of the call that
	// declared it.
	Kind, Name, Caller string
	// Key and Value are those of the record, nil for none; Value is a table.Change where the operator is one of a table.
	Key, Value any
	// Time is the record's, and Headers too.
	Time    time.Time
	Headers []Header
}

// Wrapper runs around every operator of a topology, those of stream and table included: for tracing, measuring, or a
// policy of one's own. It calls next, at most once, and returns its error or another; what comes after the operator runs
// within next. Keys and values are boxed for it, so it is not free. (Kafka Streams: ProcessorWrapper, KIP-1112.)
type Wrapper func(c OperatorCall, next func() error) error

// guard notes which operator is at work, for errors, and puts the application's Wrapper around it.
func guard[K, V any](t *Task, m *node, h Handler[K, V]) Handler[K, V] {
	if wrap := t.opts.Wrapper; wrap != nil {
		inner := h
		h = func(r Record[K, V]) error {
			c := OperatorCall{
				Task: t.id, Kind: m.kind, Name: m.name(), Caller: m.caller, Time: r.Time, Headers: r.Headers,
			}
			if !r.NoKey {
				c.Key = r.Key
			}
			if !r.Tombstone {
				c.Value = r.Value
			}
			return wrap(c, func() error { return inner(r) })
		}
	}
	return func(r Record[K, V]) error {
		t.at = m
		return h(r)
	}
}

// Derive2 adds an operator with two inputs, which must be co-partitioned when op.NeedsKey is set. make is called once
// in each task and returns what handles either input.
func Derive2[KA, VA, KB, VB, K2, V2 any](
	a *Node[KA, VA], b *Node[KB, VB], op Operator,
	make func(t *Task, next Handler[K2, V2]) (Handler[KA, VA], Handler[KB, VB], error),
) *Node[K2, V2] {
	if a.b != b.b {
		a.b.Fail(op.Kind, "the two sides belong to different builders")
		return newNode[K2, V2](a.b, op, a.meta)
	}
	n := newNode[K2, V2](a.b, op, a.meta, b.meta)
	if op.NeedsKey && a.meta.keySerde != b.meta.keySerde && a.meta.keySerde != "" && b.meta.keySerde != "" {
		a.b.Fail(op.Kind, "the keys of the two sides are encoded differently (%s and %s), so equal keys may lie on different "+
			"partitions: bring one side to the other's encoding with stream.Repartition", a.meta.keySerde, b.meta.keySerde)
	}
	type pair struct {
		a Handler[KA, VA]
		b Handler[KB, VB]
	}
	both := func(t *Task) (*pair, error) {
		if p, ok := t.memo[n.meta]; ok {
			return p.(*pair), nil //nolint:forcetypeassert // memo is keyed by the node, whose types are these
		}
		next, err := n.handler(t)
		if err != nil {
			return nil, err
		}
		t.at = n.meta
		ha, hb, err := make(t, next)
		if err != nil {
			return nil, err
		}
		p := &pair{guard(t, n.meta, ha), guard(t, n.meta, hb)}
		t.memo[n.meta] = p
		return p, nil
	}
	a.outs = append(a.outs, func(t *Task) (Handler[KA, VA], error) {
		p, err := both(t)
		if err != nil {
			return nil, err
		}
		return p.a, nil
	})
	b.outs = append(b.outs, func(t *Task) (Handler[KB, VB], error) {
		p, err := both(t)
		if err != nil {
			return nil, err
		}
		return p.b, nil
	})
	return n
}

// Combine adds an operator that takes the records of several nodes of one type as they come.
func Combine[K, V any](op Operator, first *Node[K, V], more ...*Node[K, V]) *Node[K, V] {
	all := append([]*Node[K, V]{first}, more...)
	metas := make([]*node, 0, len(all))
	for _, p := range all {
		if p.b != first.b {
			first.b.Fail(op.Kind, "the inputs belong to different builders")
			continue
		}
		metas = append(metas, p.meta)
	}
	n := newNode[K, V](first.b, op, metas...)
	for _, p := range all {
		if p.b != first.b {
			continue
		}
		if k := p.meta.keySerde; k != "" && k != n.meta.keySerde {
			n.meta.mixedKeys = n.meta
		}
		p.outs = append(p.outs, n.handler)
	}
	if n.meta.mixedKeys != nil {
		n.meta.keySerde = ""
	}
	return n
}

// handler composes what receives the node's output in a task: once a task, however many inputs lead here.
func (n *Node[K, V]) handler(t *Task) (Handler[K, V], error) {
	type outKey struct{ *node }
	if h, ok := t.memo[outKey{n.meta}]; ok {
		return h.(Handler[K, V]), nil //nolint:forcetypeassert // memo is keyed by the node, whose types are these
	}
	hs := make([]Handler[K, V], 0, len(n.outs))
	for _, out := range n.outs {
		h, err := out(t)
		if err != nil {
			return nil, err
		}
		hs = append(hs, h)
	}
	var h Handler[K, V]
	switch len(hs) {
	case 0:
		h = func(Record[K, V]) error { return nil }
	case 1:
		h = hs[0]
	default:
		h = func(r Record[K, V]) error {
			for _, h := range hs {
				if err := h(r); err != nil {
					return err
				}
			}
			return nil
		}
	}
	t.memo[outKey{n.meta}] = h
	return h, nil
}

// AskOld makes the operators above, up to those that own the rows, tell old values in a table's changes: what they
// registered by OnAskOld is set before any task starts.
func (n *Node[K, V]) AskOld() {
	seen := make(map[*node]bool)
	var up func(m *node)
	up = func(m *node) {
		// What keeps its own rows has the old value at hand, and what makes no changes of a table has none to give:
		// the tables above those are not concerned, and their filters behave differently once asked.
		if seen[m] || len(m.needsOld) == 0 {
			return
		}
		seen[m] = true
		for _, w := range m.needsOld {
			*w = true
		}
		if m.owner {
			return
		}
		for _, p := range m.parents {
			up(p)
		}
	}
	up(n.meta)
}

// OnAskOld registers a flag that is set when an operator below asks for old values.
func (n *Node[K, V]) OnAskOld(wanted *bool) { n.meta.needsOld = append(n.meta.needsOld, wanted) }

// RequireKey reports a mistake unless the node's records are on the partition of their key. Operators that only
// prepare what needs the key call it, so that the error names them; what they prepare then sets Operator.KeyRequired.
func (n *Node[K, V]) RequireKey(operator string) { n.b.requireKey(n.meta, operator) }

func (b *Builder) requireKey(p *node, operator string) {
	switch {
	case p.rekeyed != nil:
		b.Fail(operator, "the key was changed by the %s at %s, so records may not be on the partition of their key: "+
			"put stream.Repartition in between", p.rekeyed.kind, p.rekeyed.caller)
	case p.mixedKeys != nil:
		b.Fail(operator, "the %s at %s takes streams whose keys are encoded differently, so equal keys may lie on "+
			"different partitions: put stream.Repartition in between", p.mixedKeys.kind, p.mixedKeys.caller)
	}
}

// source is the decoding end of an input topic in a task.
type source struct {
	feed func(raw *task.Record) error
	// time finds the time of a record, for topics that say how; otherwise it is nil. seen is the largest time of the
	// partition, or negative. ok is false where the record is to be left out.
	time func(raw *task.Record, seen, wall int64) (millis int64, ok bool, err error)
}

// FromTopic adds a topic as an input. A topic that is read several times is one source.
func FromTopic[K, V any](b *Builder, topic *Topic[K, V]) *Node[K, V] {
	if topic == nil {
		b.Fail("source", "the topic is nil")
		return newNode[K, V](b, Operator{Kind: "source"})
	}
	return addSource(b, topic.name, topic, topic.err, topic.key, topic.value, topic.start, nil, topic.times)
}

// FromRepartition adds a repartition topic as an input.
func FromRepartition[K, V any](b *Builder, r *Repartition[K, V]) *Node[K, V] {
	if r == nil {
		b.Fail("source", "the repartition topic is nil")
		return newNode[K, V](b, Operator{Kind: "source"})
	}
	return addSource(b, r.name, r, r.err, r.key, r.value, Earliest, &internalTopic{r.name, r.partitions},
		topicTimes[K, V]{})
}

func addSource[K, V any](
	b *Builder, name string, descriptor any, err error, key serde.Serde[K], value serde.Serde[V],
	start StartAt, internal *internalTopic, times topicTimes[K, V],
) *Node[K, V] {
	b.declareTopic("source", name, descriptor, err)
	if old, ok := b.typed[name].(*Node[K, V]); ok && b.topics[name] == descriptor {
		return old
	}
	n := newNode[K, V](b, Operator{Kind: "source"})
	n.meta.topic, n.meta.label, n.meta.internal, n.meta.start = name, "source "+name, internal, start
	if err != nil || key == nil || value == nil {
		return n // reported; keep going for the other mistakes
	}
	n.meta.keySerde, n.meta.valueSerde = serde.ID(key), serde.ID(value)
	n.meta.open = func(t *Task) (*source, error) {
		h, err := n.handler(t)
		if err != nil {
			return nil, err
		}
		decode := func(raw *task.Record) (Record[K, V], error) { return decodeRecord(raw, key, value) }
		return &source{time: times.finder(decode), feed: func(raw *task.Record) error {
			r, err := decode(raw)
			if err != nil {
				return err
			}
			return h(r)
		}}, nil
	}
	if _, ok := b.sources[name]; !ok {
		b.sources[name], b.typed[name] = n.meta, n
	}
	return n
}

func decodeRecord[K, V any](
	raw *task.Record, key serde.Serde[K], value serde.Serde[V],
) (r Record[K, V], err error) {
	r = Record[K, V]{Time: time.UnixMilli(raw.TimeMillis).UTC(), Headers: raw.Headers}
	if raw.Key == nil {
		r.NoKey = true
	} else if r.Key, err = key.Decode(raw.Key); err != nil {
		return r, &decodeError{"key", err}
	}
	if raw.Value == nil {
		r.Tombstone = true
	} else if r.Value, err = value.Decode(raw.Value); err != nil {
		return r, &decodeError{"value", err}
	}
	return r, nil
}

// Switch is an operator that sends each record to at most one of several outputs.
type Switch[K, V any] struct {
	b    *Builder
	meta *node
	outs []*Node[K, V]
}

// NewSwitch adds a Switch to a node. pick returns the number of the output, in the order of the calls of Out, or a
// negative number to drop the record, which it counts itself.
func NewSwitch[K, V any](p *Node[K, V], op Operator, pick func(t *Task, r Record[K, V]) int) *Switch[K, V] {
	n := newNode[K, V](p.b, op, p.meta)
	s := &Switch[K, V]{b: p.b, meta: n.meta}
	p.outs = append(p.outs, func(t *Task) (Handler[K, V], error) {
		hs := make([]Handler[K, V], len(s.outs))
		for i, out := range s.outs {
			h, err := out.handler(t)
			if err != nil {
				return nil, err
			}
			hs[i] = h
		}
		return guard(t, s.meta, func(r Record[K, V]) error {
			if i := pick(t, r); i >= 0 && i < len(hs) {
				return hs[i](r)
			}
			return nil
		}), nil
	})
	return s
}

// Out adds an output, which descriptions call by the given name.
func (s *Switch[K, V]) Out(name string) *Node[K, V] {
	n := newNode[K, V](s.b, Operator{Kind: "branch"}, s.meta)
	n.meta.label = "branch-" + strconv.Itoa(n.meta.id) + " " + name
	s.outs = append(s.outs, n)
	return n
}

// Builder returns the builder that the operator belongs to.
func (s *Switch[K, V]) Builder() *Builder { return s.b }
