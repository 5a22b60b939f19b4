package stream_test

import (
	"testing"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

// kv declares a store for a benchmark.
func kv(name string) *state.KeyValueSpec[[]byte, int64] {
	return state.KeyValue(name, serde.Raw, serde.Int64)
}

func rawIn(b *processor.Builder) *stream.Stream[[]byte, int64] { return stream.From(b, RawIn) }
func rawRows(b *processor.Builder) *table.Table[[]byte, int64] {
	return table.From(b, RawIn, kv("rows"))
}

// operators are those that the other workloads do not measure, each alone. Those that send records through an internal topic are
// measured up to it.
var operators = []struct {
	name    string
	declare func(b *processor.Builder)
}{
	{"filter-record", func(b *processor.Builder) {
		stream.FilterRecord(rawIn(b), func(r processor.Record[[]byte, int64]) bool { return !r.Tombstone })
	}},
	{"flat-map", func(b *processor.Builder) {
		var two [2]int64
		stream.FlatMap(rawIn(b), func(_ []byte, v int64) []int64 { two[0], two[1] = v, v; return two[:] })
	}},
	{"map-record", func(b *processor.Builder) {
		stream.MapRecord(rawIn(b), func(r processor.Record[[]byte, int64]) processor.Record[[]byte, int64] { return r })
	}},
	{"rekey-repartition", func(b *processor.Builder) {
		by := processor.NewRepartition("by", serde.Int64, serde.Int64)
		stream.Repartition(stream.Rekey(rawIn(b), func(_ []byte, v int64) int64 { return v }), by)
	}},
	{"split", func(b *processor.Builder) {
		sp := stream.Split(rawIn(b))
		sp.When("even", func(_ []byte, v int64) bool { return v&1 == 0 })
		sp.Otherwise("odd")
	}},
	{"merge-peek", func(b *processor.Builder) {
		stream.Peek(stream.Merge(rawIn(b), rawIn(b)), func([]byte, int64) {})
	}},
	{"process", func(b *processor.Builder) {
		stream.Process(rawIn(b), func() processor.Processor[[]byte, int64, []byte, int64] {
			return processor.ProcessorFunc[[]byte, int64, []byte, int64](
				func(c *processor.Context[[]byte, int64], r processor.Record[[]byte, int64]) error {
					return c.Forward(r)
				})
		})
	}},
	{"reduce", func(b *processor.Builder) {
		stream.Reduce(stream.Group(rawIn(b)), kv("sums"), func(a, v int64) int64 { return a + v })
	}},
	{"to-table-changes", func(b *processor.Builder) { stream.Changes(stream.ToTable(rawIn(b), kv("rows"))) }},
	{"self-join-window", func(b *processor.Builder) {
		w := stream.Within(time.Millisecond)
		stream.SelfJoinWindow(rawIn(b), w, state.Join("join", serde.Raw, serde.Int64, serde.Int64, w.MinRetention()),
			func(_ []byte, l, r int64) int64 { return l + r })
	}},
	{"outer-join-window", func(b *processor.Builder) {
		w := stream.Within(time.Millisecond)
		stream.OuterJoinWindow(rawIn(b), stream.From(b, RawTable), w,
			state.Join("join", serde.Raw, serde.Int64, serde.Int64, w.MinRetention()),
			func(_ []byte, l, r processor.Opt[int64]) int64 { return l.V + r.V })
	}},
	{"join-grace", func(b *processor.Builder) {
		t := table.FromVersioned(b, RawTable, state.Versioned("versions", serde.Raw, serde.Int64, time.Minute))
		stream.LeftJoinGrace(rawIn(b), t, time.Millisecond, state.Buffer("waiting", serde.Raw, serde.Int64),
			func(_ []byte, v int64, row processor.Opt[int64]) int64 { return v + row.V })
	}},
	{"table", func(b *processor.Builder) { rawRows(b) }},
	{"table-filter-map", func(b *processor.Builder) {
		t := table.Filter(rawRows(b), func(_ []byte, v int64) bool { return v&1 == 0 }, table.Quiet)
		table.Map(t, func(_ []byte, v int64) int64 { return v + 1 })
	}},
	{"table-distinct", func(b *processor.Builder) {
		table.Distinct(rawRows(b), func(a, b int64) bool { return a == b })
	}},
	{"table-outer-join", func(b *processor.Builder) {
		table.OuterJoin(rawRows(b), table.From(b, RawTable, kv("others")),
			func(_ []byte, l, r processor.Opt[int64]) int64 { return l.V + r.V })
	}},
	{"table-group-by", func(b *processor.Builder) {
		by := processor.NewRepartition("by", serde.Int64, serde.Int64)
		g := table.GroupBy(rawRows(b), by, func(_ []byte, v int64) (int64, int64, bool) { return v % 10, v, true })
		table.Count(g, state.KeyValue("groups", serde.Int64, serde.Int64))
	}},
	{"versioned-table", func(b *processor.Builder) {
		table.FromVersioned(b, RawIn, state.Versioned("versions", serde.Raw, serde.Int64, time.Minute))
	}},
	{"suppress", func(b *processor.Builder) {
		table.Suppress(rawRows(b), state.Buffer("held", serde.Raw, serde.Int64), 100*time.Millisecond, table.Limits{})
	}},
	{"foreign-key-ask", func(b *processor.Builder) {
		link := table.NewLink("link", serde.Raw, serde.Int64, serde.Int64)
		right := processor.NewTopic("right", serde.Int64, serde.Int64)
		table.ForeignKeyJoin(rawRows(b), table.From(b, right, state.KeyValue("right-rows", serde.Int64, serde.Int64)), link,
			func(_ []byte, v int64) (int64, bool) { return v % 10, true },
			func(_ []byte, l, r int64) int64 { return l + r })
	}},
}

func BenchmarkTaskStepOperators(b *testing.B) {
	for _, o := range operators {
		b.Run(o.name, func(b *testing.B) {
			f := newFeeder(b, o.declare)
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				f.feedOn()
				n += feedBatch
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/record")
		})
	}
}
