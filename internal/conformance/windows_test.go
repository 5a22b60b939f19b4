package conformance

import (
	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

func init() {
	topologies["window-aggregate"] = windowAggregate
	topologies["cogroup"] = cogroup
}

func windowAggregate(b *builder) {
	grouped := stream.Group(stream.From(b.Builder, b.topic("input")))
	if b.Window.Type == "session" {
		sessionAggregate(b, grouped)
		return
	}
	var w stream.Windows
	switch b.Window.Type {
	case "tumbling":
		w = stream.Tumbling(ms(b.Window.Size))
	case "hopping":
		w = stream.Hopping(ms(b.Window.Size), ms(b.Window.Advance))
	case "sliding":
		w = stream.Sliding(ms(b.Window.Diff))
	default:
		b.Fail("conformance", "unknown window type %q", b.Window.Type)
		return
	}
	w = w.Grace(ms(b.Window.Grace))
	if b.Emit == "close" {
		w = w.EmitOnClose()
	}
	windowed := stream.WindowBy(grouped, w)
	texts := state.Window(b.named("agg"), serde.String, serde.String, w.MinRetention())
	switch b.Agg {
	case "count":
		s := state.Window(b.named("agg"), serde.String, serde.Int64, w.MinRetention())
		emitWindowed(b, stream.CountRecord(windowed, s), serde.Int64)
	case "tostring":
		s := texts.Initially(func() string { return "0" })
		emitWindowed(b, stream.AggregateRecord(windowed, s, plusRecord), serde.String)
	case "plus":
		emitWindowed(b, stream.AggregateRecord(windowed, texts, plusRecord), serde.String)
	case "reduce":
		emitWindowed(b, stream.FoldRecord(windowed, texts, reduceRecord("+")), serde.String)
	default:
		b.Fail("conformance", "unknown agg %q", b.Agg)
	}
}

func sessionAggregate(b *builder, grouped *stream.Grouped[string, string]) {
	w := stream.Sessions(ms(b.Window.Gap)).Grace(ms(b.Window.Grace))
	if b.Emit == "close" {
		w = w.EmitOnClose()
	}
	windowed := stream.SessionBy(grouped, w)
	texts := state.Session(b.named("agg"), serde.String, serde.String, w.MinRetention())
	switch b.Agg {
	case "count":
		s := state.Session(b.named("agg"), serde.String, serde.Int64, w.MinRetention())
		emitWindowed(b, stream.CountRecord(windowed, s), serde.Int64)
	case "tostring":
		s := texts.Initially(func() string { return "0" })
		merge := func(_, l, r string) string { return l + "&" + r }
		emitWindowed(b, stream.AggregateSessionsRecord(windowed, s, plusRecord, merge), serde.String)
	case "reduce":
		merge := func(_, l, r string) string { return l + ":" + r }
		emitWindowed(b, stream.FoldSessionsRecord(windowed, texts, reduceRecord(":"), merge), serde.String)
	default:
		b.Fail("conformance", "unknown agg %q", b.Agg)
	}
}

// value reads a tombstone as "null", as Java does in text.
func value(r processor.Record[string, string]) string {
	if r.Tombstone {
		return "null"
	}
	return r.Value
}

func plusRecord(a string, r processor.Record[string, string]) string { return a + "+" + value(r) }

// reduceRecord reduces as Kafka Streams does where there are tombstones: one that comes first leaves nothing.
func reduceRecord(
	sign string,
) func(a processor.Opt[string], r processor.Record[string, string]) processor.Opt[string] {
	return func(a processor.Opt[string], r processor.Record[string, string]) processor.Opt[string] {
		switch {
		case a.OK:
			return processor.Some(a.V + sign + value(r))
		case r.Tombstone:
			return a
		default:
			return processor.Some(r.Value)
		}
	}
}

func emitWindowed[V any](b *builder, t *table.Table[state.Windowed[string], V], values serde.Serde[V]) {
	if !b.SuppressClose {
		emit(b, t, "output")
		return
	}
	buffer := state.Buffer(b.named("buffer"), state.WindowedSerde(serde.String), values)
	emit(b, table.SuppressUntilClose(t, buffer, table.Limits{}), "output-suppressed")
	emit(b, t, "output-raw")
}

func cogroup(b *builder) {
	one := stream.Group(stream.From(b.Builder, b.topic("one")))
	two := stream.Group(stream.From(b.Builder, b.topic("two")))
	var t *table.Table[string, string]
	switch b.Agg {
	case "concat":
		appended := func(a, _, v string) string { return a + v }
		t = stream.Cogroup(b.store("agg"), stream.With(one, appended), stream.With(two, appended))
	case "mixed":
		s := b.store("agg").Initially(func() string { return "0" })
		t = stream.Cogroup(s,
			stream.With(one, func(a, _, v string) string { return a + "-" + v }),
			stream.With(two, func(a, _, v string) string { return a + "+" + v }))
	default:
		b.Fail("conformance", "unknown agg %q", b.Agg)
		return
	}
	if b.JoinTable {
		three := table.From(b.Builder, b.topic("three"), b.store("three"))
		t = table.Join(t, three, func(_, l, r string) string { return b.join(l, r) })
	}
	emit(b, t, "output")
}
