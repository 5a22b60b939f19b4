package conformance

import (
	"tailrace.dev/processor"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

func init() {
	topologies["stream-table-join"] = streamTableJoin
	topologies["table-table-join"] = tableTableJoin
	topologies["table-filter"] = tableFilter
	topologies["table-source"] = func(b *builder) {
		s := b.store("store")
		if b.TableStore.Versioned > 0 {
			emit(b, b.versioned("input", b.TableStore), "output")
			return
		}
		emit(b, table.From(b.Builder, b.topic("input"), s), "output")
		readFinal(b, s)
	}
}

// table reads a topic as a table, in the kind of store that the spec asks for.
func (b *builder) table(topic string, kind store) *table.Table[string, string] {
	if kind.Versioned > 0 {
		return b.versioned(topic, kind)
	}
	return table.From(b.Builder, b.topic(topic), b.store(topic+"-store"))
}

// versioned reads a topic as a table that keeps history.
func (b *builder) versioned(topic string, kind store) *table.Table[string, string] {
	b.Fail("conformance", "versioned tables (of %s, %d ms) cannot be expressed", topic, kind.Versioned)
	return table.From(b.Builder, b.topic(topic), b.store(topic+"-store"))
}

func streamTableJoin(b *builder) {
	left := stream.From(b.Builder, b.topic("left"))
	var right *table.Table[string, string]
	if b.TableFromStream {
		right = stream.ToTable(stream.From(b.Builder, b.topic("right")), b.store("right-store"))
	} else {
		right = b.table("right", b.TableStore)
	}
	if b.Grace != nil {
		b.Fail("conformance", "a stream-table join with grace cannot be expressed")
		return
	}
	switch b.Kind {
	case "left":
		stream.To(stream.LeftJoin(left, right, func(_, l string, r processor.Opt[string]) string {
			return b.join(l, opt(r))
		}), b.topic("output"))
	default:
		stream.To(stream.Join(left, right, func(_, l, r string) string { return b.join(l, r) }), b.topic("output"))
	}
}

func tableTableJoin(b *builder) {
	t := b.table("left", b.LeftStore)
	right := b.table("right", b.RightStore)
	for _, kind := range b.Kinds {
		switch kind {
		case "inner":
			t = table.Join(t, right, func(_, l, r string) string { return b.join(l, r) })
		case "left":
			t = table.LeftJoin(t, right, func(_, l string, r processor.Opt[string]) string { return b.join(l, opt(r)) })
		default:
			b.Fail("conformance", "join %q cannot be expressed", kind)
			return
		}
	}
	emit(b, t, "output")
}

func tableFilter(b *builder) {
	t := b.table("input", b.TableStore)
	even := func(_, v string) bool { return (v[len(v)-1]-'0')%2 == 0 }
	if b.ThenCount || b.Materialized {
		b.Fail("conformance", "a count of a table, or a stored filter, cannot be expressed")
		return
	}
	emit(b, table.Filter(t, even), "filter")
	emit(b, table.FilterNot(t, even), "filterNot")
}
