package main

import (
	"fmt"
	"math/rand/v2"
)

// gen makes the parts of one case.
type gen struct {
	*rand.Rand
	// spans are the times that matter to the topology, such as sizes and graces: what lies a span apart, or one
	// millisecond more or less, is where rules end.
	spans []int64
	used  []int64
	newest,
	last int64
	// allowed, if set, refuses times that a case must avoid.
	allowed func(at int64) bool
	values  map[string]int
	keys    []string
	// start is the time around which a case starts.
	start int64
	// loose tells not to look for what Kafka Streams breaks.
	loose bool
}

// chance is true so many times in a hundred.
func (g *gen) chance(percent int) bool { return g.IntN(100) < percent }

func pick[T any](g *gen, from ...T) T { return from[g.IntN(len(from))] }

// time returns the time of the next record: mostly at or soon after the newest, sometimes late, sometimes far ahead.
func (g *gen) time() int64 {
	at := g.candidate()
	for try := 0; g.allowed != nil && !g.allowed(at); try++ {
		if at = g.candidate(); try > 50 {
			at = g.newest
			break
		}
	}
	g.used, g.last = append(g.used, at), at
	g.newest = max(g.newest, at)
	return at
}

func (g *gen) candidate() int64 {
	span := max(1, pick(g, append([]int64{1}, g.spans...)...))
	near := pick[int64](g, -1, 0, 0, 1)
	var at int64
	switch n := g.IntN(100); {
	case n < 22:
		at = g.newest
	case n < 32:
		at = g.newest + 1
	case n < 42:
		at = g.last + pick[int64](g, 0, 1)
	case n < 57:
		at = g.newest + g.Int64N(min(span, 1<<40)+1)
	case n < 67:
		at = g.newest + span + near
	case n < 70:
		at = g.newest + span*int64(1+g.IntN(3)) + pick(g, g.spans...) + near
	case n < 85 && len(g.used) > 0:
		at = pick(g, g.used[max(0, len(g.used)-12):]...) + near
	case n < 87 && len(g.used) > 0:
		at = pick(g, g.used...) + near
	case n < 97:
		at = g.newest - span + near
	default:
		at = g.newest - g.Int64N(min(span, 1<<40)+1)
	}
	return max(0, at)
}

// key returns one of the case's keys, or now and then none.
func (g *gen) key(noKey int) any {
	if g.chance(noKey) {
		return nil
	}
	return pick(g, g.keys...)
}

// useKeys chooses a few of the keys, so that they meet.
func (g *gen) useKeys(from ...string) {
	g.Shuffle(len(from), func(i, j int) { from[i], from[j] = from[j], from[i] })
	g.keys = from[:1+g.IntN(min(4, len(from)))]
}

// value returns a new value, the last one again, or now and then none.
func (g *gen) value(prefix string, none int) any {
	if g.values == nil {
		g.values = make(map[string]int)
	}
	if g.chance(none) {
		return nil
	}
	if g.values[prefix] == 0 || !g.chance(15) {
		g.values[prefix]++
	}
	return fmt.Sprintf("%s%d", prefix, g.values[prefix])
}

// length returns how many records a case has.
func (g *gen) length() int {
	if g.chance(20) {
		return 4 + g.IntN(12)
	}
	return 10 + g.IntN(50)
}

func record(topic string, key, value any, ts int64) object {
	return object{"topic": topic, "key": key, "value": value, "ts": ts}
}

// flush ends a case by moving stream time past all that can wait.
func (g *gen) flush(c *testCase, topic string, ahead int64) {
	g.newest += ahead
	c.Inputs = append(c.Inputs, record(topic, "flush", "flush", g.newest))
}
