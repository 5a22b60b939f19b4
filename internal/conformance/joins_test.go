package conformance

import (
	"strconv"
	"strings"
	"testing"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/state/memory"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

func init() {
	topologies["stream-table-join"] = streamTableJoin
	topologies["table-table-join"] = tableTableJoin
	topologies["table-filter"] = tableFilter
	topologies["stream-global-join"] = streamGlobalJoin
	replayers["versioned-store"] = versionedStore
	topologies["fk-join"] = foreignKeyJoin
	topologies["table-group-aggregate"] = tableGroupAggregate
	topologies["table-source"] = func(b *builder) {
		emit(b, b.table("input", b.TableStore, "store"), "output")
	}
}

// table reads a topic as a table, in the kind of store that the spec asks for; called is its name in the case.
func (b *builder) table(topic string, kind store, called string) *table.Table[string, string] {
	if kind.Versioned != nil {
		spec := state.Versioned(b.named(topic+"-store"), serde.String, serde.String, ms(*kind.Versioned))
		return table.FromVersioned(b.Builder, b.topic(topic), spec)
	}
	s := b.store(topic + "-store")
	readFinal(b, s, called)
	return table.From(b.Builder, b.topic(topic), s)
}

// stored keeps a table in a store if a case asks for that.
func (b *builder) stored(t *table.Table[string, string], called string) *table.Table[string, string] {
	if b.Final != called && !(called == "filtered" && b.Materialized) {
		return t
	}
	s := b.store(called)
	readFinal(b, s, called)
	return table.Store(t, s)
}

// versionedStore puts, deletes and asks without a topology of records: the store's own rules.
func versionedStore(t *testing.T, c *testCase) result {
	t.Helper()
	spec := state.Versioned("versioned", serde.String, serde.String, ms(c.Spec.History))
	layers, err := state.NewLayers(memory.New(), []state.AnySpec{spec})
	if err != nil {
		t.Fatal(err)
	}
	s, err := spec.Open(env{layers})
	if err != nil {
		t.Fatal(err)
	}
	var got result
	version := func(o row, v state.Version[string], ok bool) row {
		o["value"], o["ts"] = text{}, text{}
		if ok {
			o["value"], o["ts"] = some(v.Value), some(strconv.FormatInt(v.TimeMillis, 10))
		}
		return o
	}
	for _, in := range c.Inputs {
		o := row{"op": some(in.Topic), "key": in.Key}
		if in.Topic == "put" {
			var until int64
			var err error
			if in.Value.ok {
				until, err = s.Put(in.Key.s, in.Value.s, in.TS)
			} else {
				_, _, until, err = s.Delete(in.Key.s, in.TS)
			}
			if err != nil {
				t.Fatal(err)
			}
			o["value"], o["ts"] = in.Value, some(strconv.FormatInt(in.TS, 10))
			o["valid_to"] = some(strconv.FormatInt(until, 10))
		} else {
			was, ok, _, err := s.Delete(in.Key.s, in.TS)
			if err != nil {
				t.Fatal(err)
			}
			version(o, was, ok)
		}
		got.records = append(got.records, o)
	}
	for _, q := range c.Spec.Queries {
		o := row{"op": some("get"), "key": some(q.Key)}
		v, ok, err := s.Get(q.Key)
		if q.AsOf != nil {
			o["as_of"] = some(strconv.FormatInt(*q.AsOf, 10))
			v, ok, err = s.GetAsOf(q.Key, *q.AsOf)
		}
		if err != nil {
			t.Fatal(err)
		}
		got.records = append(got.records, version(o, v, ok))
	}
	return got
}

type env struct{ layers *state.Layers }

func (e env) StoreRows(spec state.AnySpec) (*state.Rows, error) {
	return e.layers.Rows(spec.Name()), nil
}
func (env) RecordTimeMillis() int64 { return 0 }

func streamTableJoin(b *builder) {
	left := stream.From(b.Builder, b.topic("left"))
	var right *table.Table[string, string]
	if b.TableFromStream {
		right = stream.ToTable(stream.From(b.Builder, b.topic("right")), b.store("right-store"))
	} else {
		right = b.table("right", b.TableStore, "right")
	}
	if b.Grace != nil {
		buffer := state.Buffer(b.named("waiting"), serde.String, serde.String)
		if b.Kind == "left" {
			stream.To(stream.LeftJoinGrace(left, right, ms(*b.Grace), buffer,
				func(_, l string, r processor.Opt[string]) string { return b.join(l, opt(r)) }), b.topic("output"))
			return
		}
		stream.To(stream.JoinGrace(left, right, ms(*b.Grace), buffer,
			func(_, l, r string) string { return b.join(l, r) }), b.topic("output"))
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

func streamGlobalJoin(b *builder) {
	left := stream.From(b.Builder, b.topic("stream"))
	g := table.Global(b.Builder, b.topic("global"), b.store("global-store"))
	key := func(_, v string) (string, bool) {
		parts := strings.Split(strings.TrimRight(v, ","), ",")
		if len(parts) < 2 {
			return "", false
		}
		return parts[1], true
	}
	if b.Kind == "left" {
		stream.To(stream.LeftJoinGlobal(left, g, key,
			func(_, l string, r processor.Opt[string]) string { return b.join(l, opt(r)) }), b.topic("output"))
		return
	}
	stream.To(stream.JoinGlobal(left, g, key,
		func(_, l, r string) string { return b.join(l, r) }), b.topic("output"))
}

func tableTableJoin(b *builder) {
	t := b.table("left", b.LeftStore, "left")
	right := b.table("right", b.RightStore, "right")
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
	emit(b, b.stored(t, "joined"), "output")
}

func tableFilter(b *builder) {
	t := b.table("input", b.TableStore, "source")
	even := func(_, v string) bool { return (v[len(v)-1]-'0')%2 == 0 }
	var opts []table.FilterOption
	if b.TableStore.Named {
		opts = append(opts, table.Quiet)
	}
	evens := b.stored(table.Filter(t, even, opts...), "filtered")
	if b.ThenCount {
		by := b.repartition("by-all")
		all := table.GroupBy(evens, by, func(_, v string) (string, string, bool) { return "all", v, true })
		emit(b, table.Count(all, state.KeyValue(b.named("count"), serde.String, serde.Int64)), "output")
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
	left := b.table("left", b.LeftStore, "left")
	right := b.table("right", b.RightStore, "right")
	link := table.NewLink(b.named("link"), serde.String, serde.String, serde.String)
	key := func(_, l string) (string, bool) {
		_, fk, _ := strings.Cut(l, "|")
		fk, _, _ = strings.Cut(fk, "|")
		return fk, fk != "returnNull"
	}
	if b.Kind == "left" {
		joined := table.LeftForeignKeyJoin(left, right, link, key, func(_, l string, r processor.Opt[string]) string {
			return b.join(l, opt(r))
		})
		emit(b, b.stored(joined, "joined"), "output")
		return
	}
	joined := table.ForeignKeyJoin(left, right, link, key, func(_, l, r string) string { return b.join(l, r) })
	emit(b, b.stored(joined, "joined"), "output")
}

func tableGroupAggregate(b *builder) {
	t := b.table("input", b.TableStore, "source")
	by := b.repartition("by-group")
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
		s := state.KeyValue(b.named("agg"), serde.String, serde.Int64)
		emit(b, table.Count(g, s), "output")
		readFinal(b, s, "agg")
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
	readFinal(b, s, "agg")
}
