package main

import (
	"slices"
	"strconv"
)

// operation makes cases of one spec.op. The weights are how often each is made.
type operation struct {
	name   string
	weight int
	make   func(g *gen, c *testCase)
}

var operations = []operation{
	{"stream-stream-join", 14, streamStreamJoin},
	{"stream-table-join", 10, streamTableJoin},
	{"stream-global-join", 3, streamGlobalJoin},
	{"table-table-join", 13, tableTableJoin},
	{"fk-join", 12, foreignKeyJoin},
	{"table-group-aggregate", 10, tableGroupAggregate},
	{"stream-aggregate", 3, streamAggregate},
	{"cogroup", 3, cogroup},
	{"window-aggregate", 19, windowAggregate},
	{"table-count-suppress", 5, tableCountSuppress},
	{"suppress-then-count", 2, suppressThenCount},
	{"suppress-before-outer-join", 2, suppressBeforeOuterJoin},
	{"table-filter", 3, tableFilter},
	{"table-source", 2, tableSource},
	{"stream-to-table", 1, streamToTable},
	{"repartition", 1, repartition},
	{"split", 2, split},
	{"recursive", 1, recursive},
	{"punctuate", 2, punctuate},
	{"versioned-store", 3, versionedStore},
}

func anyKeys() []string { return []string{"a", "b", "c", "aa", "A", "9", "10", "", "é", "a b"} }

// joiner sets the template that results are made with.
func (g *gen) joiner(c *testCase) {
	c.Spec["joiner"] = pick(g, "{l}+{r}", "{l}-{r}", "{r}/{l}", "({l},{r})", "{l}{r}", "{l}", "{r}", "same")
}

// store chooses the kind of a table's store, and makes its history matter to the times.
func (g *gen) store(c *testCase, field string) {
	if !g.chance(45) {
		c.Spec[field] = pick(g, "default", "named")
		return
	}
	g.history(c, field, pick(g, 0, 1, 5, 12, 20, 100, 300_000, 1+g.Int64N(1000)))
}

func (g *gen) history(c *testCase, field string, millis int64) {
	c.Spec[field] = object{"versioned_ms": millis}
	g.spans = append(g.spans, millis)
}

// final asks for what is in one of the stores at the end, now and then.
func (g *gen) final(c *testCase, stores ...string) {
	if !g.chance(30) {
		return
	}
	// Kafka Streams keeps the rows of a source table only where its store has a name, and gives no list of versions.
	name := pick(g, stores...)
	for field, of := range map[string][]string{
		"left_store": {"left"}, "right_store": {"right"}, "table_store": {"right", "source", "store"},
	} {
		if kind, has := c.Spec[field]; has && slices.Contains(of, name) && kind != "named" {
			return
		}
	}
	c.Spec["final_store"] = name
}

// fewSpans sets the times that matter where nothing of the topology does.
func (g *gen) fewSpans() {
	if len(g.spans) == 0 {
		g.spans = []int64{5, 10}
	}
}

// records adds records of some topics, each with its prefix for values.
func (g *gen) records(c *testCase, noKey, noValue int, topics ...[2]string) {
	for range g.length() {
		t := pick(g, topics...)
		c.Inputs = append(c.Inputs, record(t[0], g.key(noKey), g.value(t[1], noValue), g.time()))
	}
}

func streamStreamJoin(g *gen, c *testCase) {
	for range 20 {
		*g = gen{Rand: g.Rand, start: g.start, newest: g.start, loose: g.loose}
		c.Spec, c.Inputs = object{"op": "stream-stream-join"}, nil
		someStreamStreamJoin(g, c)
		if g.loose || keepsRule(c) {
			return
		}
	}
	c.Inputs = nil
}

func someStreamStreamJoin(g *gen, c *testCase) {
	kind := pick(g, "inner", "left", "outer")
	before := pick(g, 0, 1, 2, 3, 7, 10, 20, 100, 110, 800, 10_000, g.Int64N(200))
	after := before
	if g.chance(40) {
		after = pick(g, 0, 1, 2, 7, 10, 80, 100, 1200, g.Int64N(200))
	}
	grace := pick(g, 0, 0, 1, 5, before, 3*after, 1000, g.Int64N(300))
	if before == 10_000 && g.chance(50) {
		grace = 86_400_000
	}
	c.Spec["kind"], c.Spec["before_ms"], c.Spec["after_ms"], c.Spec["grace_ms"] = kind, before, after, grace
	g.joiner(c)
	topics := [][2]string{{"left", "L"}, {"right", "R"}}
	c.Spec["repartition"] = g.chance(18)
	if g.chance(14) {
		c.Spec["self"], topics = true, topics[:1]
	}
	if g.chance(16) {
		c.Spec["times"] = 2
		if kind == "inner" && g.chance(20) {
			c.Spec["times"] = 3
		}
	}
	c.Spec["optimize"] = g.chance(10) || (c.Spec["self"] == true && g.chance(50))
	if kind == "inner" && g.chance(5) { // partners from before or after only
		before, after = -after, after+before
		if g.chance(50) {
			before, after = after, before
		}
		c.Spec["before_ms"], c.Spec["after_ms"] = before, after
	}
	g.spans = []int64{before, after, grace, before + after, before + after + grace}
	g.useKeys(anyKeys()...)
	g.records(c, 6, 7, topics...)
	for _, t := range topics {
		g.flush(c, t[0], 2*(before+after)+grace+1+g.Int64N(20))
	}
}

func streamTableJoin(g *gen, c *testCase) {
	kind := pick(g, "inner", "left")
	c.Spec["kind"] = kind
	g.joiner(c)
	noKey := 6
	switch n := g.IntN(100); {
	case n < 15:
		c.Spec["table_from_stream"] = true
	case n < 50:
		history := pick(g, 1, 5, 12, 20, 100, 300_000, 1+g.Int64N(1000))
		grace := pick(g, 0, 1, min(2, history), history/2, history-1, history)
		g.history(c, "table_store", history)
		c.Spec["grace_ms"] = grace
		g.spans = append(g.spans, grace)
		if kind == "left" {
			noKey = 0 // Kafka Streams fails on a record without a key that has to wait
		}
	default:
		g.store(c, "table_store")
		g.final(c, "right")
	}
	g.fewSpans()
	g.useKeys(anyKeys()...)
	for range g.length() {
		if g.chance(50) {
			c.Inputs = append(c.Inputs, record("left", g.key(noKey), g.value("L", 8), g.time()))
			continue
		}
		c.Inputs = append(c.Inputs, record("right", g.key(6), g.value("R", 12), g.time()))
	}
	g.flush(c, "left", g.spans[0]*2+1)
}

func streamGlobalJoin(g *gen, c *testCase) {
	c.Spec["kind"] = pick(g, "inner", "left")
	g.joiner(c)
	g.fewSpans()
	g.useKeys(anyKeys()...)
	for range g.length() {
		if g.chance(40) {
			var key any = pick(g, "g1", "g2", "g3", "")
			if g.chance(4) {
				key = nil
			}
			c.Inputs = append(c.Inputs, record("global", key, g.value("G", 20), g.time()))
			continue
		}
		value := g.value("S", 7)
		if s, ok := value.(string); ok {
			value = s + pick(g, "", ",g1", ",g1", ",g2", ",g2", ",g3", ",nowhere", ",", ",,", ",,g1", ",g1,g2")
		}
		c.Inputs = append(c.Inputs, record("stream", g.key(7), value, g.time()))
	}
}

func tableTableJoin(g *gen, c *testCase) {
	g.joiner(c)
	kinds := []string{pick(g, "inner", "left", "outer")}
	for len(kinds) < 3 && g.chance(25) {
		kinds = append(kinds, pick(g, "inner", "left", "outer"))
	}
	c.Spec["kinds"] = kinds
	g.store(c, "left_store")
	g.store(c, "right_store")
	g.final(c, "joined", "left", "right")
	g.fewSpans()
	g.useKeys(anyKeys()...)
	g.records(c, 4, 20, [2]string{"left", "L"}, [2]string{"right", "R"})
}

func foreignKeyJoin(g *gen, c *testCase) {
	c.Compare = "last_per_key_per_step"
	c.Spec["kind"] = pick(g, "inner", "left")
	g.joiner(c)
	g.store(c, "left_store")
	g.store(c, "right_store")
	g.final(c, "joined", "left", "right")
	g.fewSpans()
	g.useKeys(anyKeys()...)
	foreign := []string{"r1", "r2", "r3"}[:1+g.IntN(3)]
	for range g.length() {
		var value any
		if g.chance(60) {
			if !g.chance(15) {
				to := pick(g, append([]string{"nowhere", "returnNull"}, append(foreign, foreign...)...)...)
				value = pick(g, "L1", "L2", "L3", "L4") + "|" + to
			}
			c.Inputs = append(c.Inputs, record("left", g.key(5), value, g.time()))
			continue
		}
		var key any = pick(g, foreign...)
		if g.chance(4) {
			key = nil
		}
		if !g.chance(18) {
			value = pick(g, "R1", "R2", "R3")
		}
		c.Inputs = append(c.Inputs, record("right", key, value, g.time()))
	}
}

func tableGroupAggregate(g *gen, c *testCase) {
	group := pick(g, "identity", "value", "swap", "chars", "value-unless-null")
	c.Spec["group"] = group
	c.Spec["agg"] = pick(g, "count", "tostring", "reduce", "concat")
	g.store(c, "table_store")
	g.final(c, "agg", "source")
	g.fewSpans()
	few := group != "identity" && group != "chars"
	switch group {
	case "chars":
		g.useKeys("12", "1A", "2A", "21")
	case "value-unless-null":
		g.useKeys("a", "b", "null", "NULL")
	default:
		g.useKeys(anyKeys()...)
	}
	for range g.length() {
		value := g.value("v", 18)
		if few && value != nil { // rows of several keys are to meet in a group
			value = pick(g, "v1", "v2", "v3")
		}
		c.Inputs = append(c.Inputs, record("input", g.key(5), value, g.time()))
	}
}

func streamAggregate(g *gen, c *testCase) {
	agg := pick(g, "count", "tostring", "reduce", "null-on-DEL")
	c.Spec["agg"], c.Spec["final_store"] = agg, "agg"
	g.fewSpans()
	g.useKeys(anyKeys()...)
	for range g.length() {
		value := g.value("v", 8)
		if agg == "null-on-DEL" && g.chance(20) {
			value = "DEL"
		}
		c.Inputs = append(c.Inputs, record("input", g.key(6), value, g.time()))
	}
}

func cogroup(g *gen, c *testCase) {
	c.Spec["agg"] = pick(g, "concat", "mixed")
	topics := [][2]string{{"one", "x"}, {"two", "y"}}
	if g.chance(50) {
		c.Spec["join_table"] = true
		g.joiner(c)
		topics = append(topics, [2]string{"three", "T"})
	}
	g.fewSpans()
	g.useKeys(anyKeys()...)
	g.records(c, 6, 8, topics...)
}

func tableFilter(g *gen, c *testCase) {
	g.store(c, "table_store")
	if g.chance(30) {
		c.Spec["materialized"] = true
		g.final(c, "filtered", "source")
	} else {
		g.final(c, "source")
	}
	if g.chance(40) {
		c.Spec["then_count"] = true
	} else {
		c.Spec["outputs"] = []string{"filter", "filterNot"}
		c.Compare = "sequence_per_topic"
	}
	g.fewSpans()
	g.useKeys(anyKeys()...)
	for range g.length() {
		var value any
		if !g.chance(20) {
			value = strconv.Itoa(g.IntN(12) - 2)
		}
		c.Inputs = append(c.Inputs, record("input", g.key(5), value, g.time()))
	}
}

func tableSource(g *gen, c *testCase) {
	g.store(c, "table_store")
	if c.Spec["table_store"] == "named" {
		c.Spec["final_store"] = "store"
	}
	g.fewSpans()
	g.useKeys(anyKeys()...)
	g.records(c, 5, 15, [2]string{"input", "v"})
}

func streamToTable(g *gen, c *testCase) {
	c.Spec["final_store"] = "store"
	g.fewSpans()
	g.useKeys(anyKeys()...)
	g.records(c, 5, 15, [2]string{"input", "v"})
}

func repartition(g *gen, c *testCase) {
	g.fewSpans()
	g.useKeys(anyKeys()...)
	g.records(c, 8, 12, [2]string{"left", "v"})
}

func split(g *gen, c *testCase) {
	c.Spec["outputs"] = []string{"foo-bar", "foo-4", "foo-5", "foo-0"}
	c.Compare = "sequence_per_topic"
	g.fewSpans()
	g.keys = []string{"19", "-7", "34", "1", "11", "33", "7", "4", "30", "39", "14", "38", "25", "-2", "-9", "0", "49"}
	g.records(c, 0, 8, [2]string{"input", "V"})
}

func recursive(g *gen, c *testCase) {
	g.fewSpans()
	g.useKeys(anyKeys()...)
	g.records(c, 0, 0, [2]string{"input", "v"})
}

func punctuate(g *gen, c *testCase) {
	interval := pick(g, 1, 3, 10, 25, 100, 1+g.Int64N(50), 60_000)
	c.Spec["kind"], c.Spec["interval_ms"], c.Spec["outputs"] = pick(g, "stream", "wall"), interval, []string{}
	g.spans = []int64{interval, 2 * interval}
	g.useKeys("c", "d")
	if c.Spec["kind"] == "stream" {
		g.records(c, 5, 7, [2]string{"input", "v"})
		g.flush(c, "input", interval+g.Int64N(3*interval))
		return
	}
	for range g.length() {
		by := pick(g, 0, 1, interval-1, interval, interval+1, 3*interval, 4*interval-1, 30*interval+1)
		c.Inputs = append(c.Inputs, object{"advance_wall_ms": by})
	}
}

func versionedStore(g *gen, c *testCase) {
	c.Compare = "store_ops"
	history := pick(g, 1, 10, 100, 300_000, 1+g.Int64N(50))
	c.Spec["history_ms"], c.Spec["segment_ms"] = history, max(1, history/pick[int64](g, 1, 2, 3))
	g.spans = []int64{history, history / 2}
	g.useKeys(anyKeys()...)
	for range g.length() {
		if g.chance(15) {
			c.Inputs = append(c.Inputs, object{"topic": "delete", "key": pick(g, g.keys...), "ts": g.time()})
			continue
		}
		c.Inputs = append(c.Inputs, record("put", pick(g, g.keys...), g.value("v", 15), g.time()))
	}
	queries := []object{}
	for _, k := range g.keys {
		queries = append(queries, object{"key": k})
		for range 12 {
			// What is older than the history may still be found or not, as its segment has been dropped or not.
			at := g.newest - g.Int64N(history+1)
			if g.chance(50) {
				at = pick(g, g.used...) + pick[int64](g, -1, 0, 1)
			}
			if at >= max(0, g.newest-history) {
				queries = append(queries, object{"key": k, "as_of": at})
			}
		}
	}
	c.Spec["queries"] = queries
}
