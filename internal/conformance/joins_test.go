package conformance

import (
	"strings"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

func init() {
	topologies["stream-table-join"] = streamTableJoin
	topologies["table-table-join"] = tableTableJoin
	topologies["table-filter"] = tableFilter
	topologies["fk-join"] = foreignKeyJoin
	topologies["table-group-aggregate"] = tableGroupAggregate
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
			t = table.OuterJoin(t, right, func(_ string, l, r processor.Opt[string]) string { return b.join(opt(l), opt(r)) })
		}
	}
	emit(b, t, "output")
}

func tableFilter(b *builder) {
	t := b.table("input", b.TableStore)
	even := func(_, v string) bool { return (v[len(v)-1]-'0')%2 == 0 }
	var opts []table.FilterOption
	if b.Materialized || b.TableStore.Named {
		opts = append(opts, table.Quiet)
	}
	evens := table.Filter(t, even, opts...)
	if b.ThenCount {
		by := processor.NewRepartition("by-all", serde.String, serde.String)
		all := table.GroupBy(evens, by, func(_, v string) (string, string, bool) { return "all", v, true })
		emit(b, table.Count(all, state.KeyValue("count", serde.String, serde.Int64)), "output")
		return
	}
	emit(b, evens, "filter")
	opts = nil
	if b.TableStore.Named {
		opts = append(opts, table.Quiet)
	}
	emit(b, table.FilterNot(t, even, opts...), "filterNot")
}

func foreignKeyJoin(b *builder) {
	left := b.table("left", b.LeftStore)
	right := b.table("right", b.RightStore)
	link := table.NewLink("link", serde.String, serde.String, serde.String)
	key := func(_, l string) (string, bool) {
		_, fk, _ := strings.Cut(l, "|")
		fk, _, _ = strings.Cut(fk, "|")
		return fk, fk != "returnNull"
	}
	if b.Kind == "left" {
		emit(b, table.LeftForeignKeyJoin(left, right, link, key, func(_, l string, r processor.Opt[string]) string {
			return b.join(l, opt(r))
		}), "output")
		return
	}
	joined := table.ForeignKeyJoin(left, right, link, key, func(_, l, r string) string { return b.join(l, r) })
	emit(b, joined, "output")
}

func tableGroupAggregate(b *builder) {
	t := b.table("input", b.TableStore)
	by := processor.NewRepartition("by-group", serde.String, serde.String)
	g := table.GroupBy(t, by, func(k, v string) (string, string, bool) {
		switch b.Group {
		case "swap":
			return v, k, true
		case "value":
			return v, v, true
		case "chars":
			return k[:1], k[1:2], true
		case "value-unless-null":
			return v, v, k != "null" && k != "NULL"
		default:
			return k, v, true
		}
	})
	s := b.store("agg")
	switch b.Agg {
	case "count":
		s := state.KeyValue("agg", serde.String, serde.Int64)
		emit(b, table.Count(g, s), "output")
		readFinal(b, s)
		return
	case "tostring":
		s = s.Initially(func() string { return "0" })
		emit(b, table.Aggregate(g, s,
			func(a, _, v string) string { return a + "+" + v },
			func(a, _, v string) string { return a + "-" + v }), "output")
	case "reduce":
		emit(b, table.Reduce(g, s,
			func(a, v string) string { return a + "+" + v },
			func(a, v string) string { return a + "-" + v }), "output")
	case "concat":
		emit(b, table.Aggregate(g, s,
			func(a, _, v string) string { return a + v },
			func(a, _, v string) string { return strings.ReplaceAll(a, v, "") }), "output")
	default:
		b.Fail("conformance", "unknown agg %q", b.Agg)
	}
	readFinal(b, s)
}
