package conformance

import (
	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/table"
)

func init() {
	topologies["table-count-suppress"] = tableCountSuppress
	topologies["suppress-then-count"] = suppressThenCount
	topologies["suppress-before-outer-join"] = suppressBeforeOuterJoin
}

func tableCountSuppress(b *builder) {
	by := b.repartition("by-value")
	g := table.GroupBy(b.table("input", store{}, ""), by, func(k, v string) (string, string, bool) { return v, k, true })
	counts := table.Count(g, state.KeyValue(b.named("count"), serde.String, serde.Int64))
	var limits table.Limits
	limit := ms(b.TimeLimit)
	if b.Max != nil {
		limits.MaxRecords = int64(*b.Max)
		if *b.Max == 0 { // nothing waits
			limit = 0
		}
	}
	buffer := state.Buffer(b.named("buffer"), serde.String, serde.Int64)
	emit(b, table.Suppress(counts, buffer, limit, limits), "output-suppressed")
	emit(b, counts, "output-raw")
}

func (b *builder) suppressed(t *table.Table[string, string]) *table.Table[string, string] {
	return table.Suppress(t, state.Buffer(b.named("buffer"), serde.String, serde.String), ms(b.TimeLimit), table.Limits{})
}

func suppressThenCount(b *builder) {
	by := b.repartition("by-key")
	g := table.GroupBy(b.suppressed(b.table("input", store{}, "")), by,
		func(k, v string) (string, string, bool) { return k, v, true })
	emit(b, table.Count(g, state.KeyValue(b.named("count"), serde.String, serde.Int64)), "output")
}

func suppressBeforeOuterJoin(b *builder) {
	left, right := b.table("left", store{}, ""), b.table("right", store{}, "")
	if b.Side == "right" {
		right = b.suppressed(right)
	} else {
		left = b.suppressed(left)
	}
	emit(b, table.OuterJoin(left, right, func(_ string, l, r processor.Opt[string]) string {
		return b.join(opt(l), opt(r))
	}), "output")
}
