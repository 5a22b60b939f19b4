package main

import (
	"math"
	"slices"
)

func tableCountSuppress(g *gen, c *testCase) {
	c.Spec["outputs"] = []string{"output-raw", "output-suppressed"}
	c.Compare = "sequence_per_topic"
	limit := g.timeLimit(c)
	if g.chance(35) {
		c.Spec["max_records"] = pick(g, 0, 1, 2, 3, 5)
		if g.chance(50) {
			c.Spec["time_limit_ms"] = int64(math.MaxInt64)
		}
	}
	g.useKeys(anyKeys()...)
	for range g.length() {
		value := g.value("v", 12)
		if value != nil {
			value = pick(g, "v1", "v2", "v3")
		}
		c.Inputs = append(c.Inputs, record("input", g.key(5), value, g.time()))
	}
	g.flush(c, "input", limit+1)
}

func (g *gen) timeLimit(c *testCase) int64 {
	limit := pick(g, 0, 1, 2, 10, 50, g.Int64N(100), 86_400_000)
	c.Spec["time_limit_ms"] = limit
	g.spans = []int64{limit, 5, 2 * limit}
	if g.chance(4) {
		c.Spec["time_limit_ms"] = int64(math.MaxInt64)
		g.spans = []int64{5, 10}
	}
	return limit
}

func suppressThenCount(g *gen, c *testCase) {
	limit := g.timeLimit(c)
	g.useKeys(anyKeys()...)
	g.records(c, 5, 12, [2]string{"input", "v"})
	if !g.loose {
		avoidLastOld(c, "input", limit)
	}
	g.flush(c, "input", limit+1)
}

// avoidLastOld removes records that would make Kafka Streams hand on a wrong old value: while a row waits in a
// suppression, it forgets what was emitted last and tells the last value that waited as the old one. That shows where a
// deletion is among what waits, or was what was emitted last.
func avoidLastOld(c *testCase, topic string, limit int64) {
	type waits struct {
		since   int64
		deleted bool
	}
	waiting, gone := make(map[any]waits), make(map[any]bool)
	now := int64(0)
	c.Inputs = slices.DeleteFunc(c.Inputs, func(in object) bool {
		if in["topic"] != topic || in["key"] == nil {
			return false
		}
		key, at, deleted := in["key"], in["ts"].(int64), in["value"] == nil
		w, ok := waiting[key]
		if ok && (deleted || w.deleted || gone[key]) {
			return true
		}
		if !ok {
			w.since = at
		}
		waiting[key] = waits{w.since, deleted}
		now = max(now, at)
		for k, w := range waiting {
			if w.since <= now-limit {
				delete(waiting, k)
				gone[k] = w.deleted
			}
		}
		return false
	})
}

func suppressBeforeOuterJoin(g *gen, c *testCase) {
	side := pick(g, "left", "right")
	c.Spec["side"] = side
	g.joiner(c)
	limit := g.timeLimit(c)
	g.useKeys(anyKeys()...)
	g.records(c, 5, 15, [2]string{"left", "L"}, [2]string{"right", "R"})
	if !g.loose {
		avoidLastOld(c, side, limit)
	}
	g.flush(c, side, limit+1)
}

func windowAggregate(g *gen, c *testCase) {
	kind := pick(g, "tumbling", "hopping", "sliding", "session")
	size := pick(g, 1, 2, 5, 7, 10, 12, 50, 60, 100, 600, 1200, 10_000, 86_400_000, 1+g.Int64N(100))
	grace := pick(g, 0, 0, 1, 5, size/2, size, 3*size, 10*size, g.Int64N(2*size))
	w := object{"type": kind, "grace_ms": grace}
	agg := pick(g, "count", "tostring", "reduce")
	c.Spec["window"] = w
	g.spans = []int64{size, grace, size + grace}
	switch kind {
	case "session":
		w["gap_ms"] = size
	case "sliding":
		w["diff_ms"] = size
		c.Compare = "per_key_sequence"
	case "hopping":
		w["size_ms"] = size
		// A record is in no more than a hundred windows.
		w["advance_ms"] = max(1, size/100) + g.Int64N(size-max(1, size/100)+1)
		fallthrough
	default:
		w["size_ms"] = size
		agg = pick(g, agg, "plus")
	}
	c.Spec["agg"] = agg
	switch n := g.IntN(100); {
	case n < 35:
		c.Spec["emit"] = "close"
	case n < 40:
		c.Spec["emit"] = "update"
	case n < 65:
		c.Spec["suppress_until_close"] = true
		if g.chance(20) {
			c.Spec["emit"] = "close"
		}
		c.Spec["outputs"] = []string{"output-raw", "output-suppressed"}
		c.Compare = "sequence_per_topic"
	}
	g.useKeys(anyKeys()...)
	rule := newWindowRule(c.Spec)
	for range g.length() {
		key, value := g.key(5), g.value("v", 7)
		if value == nil && kind == "sliding" {
			g.allowed = nil
			c.Inputs = append(c.Inputs, record("input", key, value, g.time())) // it is dropped
			continue
		}
		g.allowed = func(at int64) bool { return g.loose || !rule.trial(key, at) }
		in := record("input", key, value, g.time())
		if !g.allowed(g.last) {
			continue
		}
		rule.take(key, g.last)
		c.Inputs = append(c.Inputs, in)
	}
	// The end of a case comes in steps that are small enough for Kafka Streams to lose nothing.
	g.newest = max(0, rule.now)
	for end := g.newest + 3*size + grace; g.newest <= end; {
		step := 3*size + grace + 1 + g.Int64N(5)
		for step > 1 && !g.loose && rule.trial("flush", g.newest+step) {
			step = step * 3 / 4
		}
		if !g.loose && rule.trial("flush", g.newest+step) || len(c.Inputs) > 200 {
			return
		}
		g.flush(c, "input", step)
		rule.take("flush", g.newest)
	}
}
