package main

import (
	"math"
	"slices"
	"strings"
)

// joinRule follows a join of two streams far enough to tell when Kafka Streams keeps an unmatched record back for
// longer than its rule says. It remembers one time of what waits, and that is the last one it has looked at rather than the
// first that waits; and it compares that time by the window of the side whose record has come, rather than by that of
// what waits. Values do not matter, only keys and times.
type joinRule struct {
	before, after, grace int64
	outer                [2]bool // left, right
	now                  int64
	newest               [2]int64
	rows                 [2][]joinRow
	waiting              []joinRow
	kafkaMin             int64
	// late tells that Kafka Streams has broken its rule.
	late bool
	next func(key any, at int64)
}

type joinRow struct {
	key  string
	at   int64
	side int
}

func newJoinRule(kind string, before, after, grace int64) *joinRule {
	return &joinRule{
		before: before, after: after, grace: grace, outer: [2]bool{kind != "inner", kind == "outer"},
		now: -1, newest: [2]int64{-1, -1}, kafkaMin: math.MaxInt64, next: func(any, int64) {},
	}
}

// take follows a record of a side; key is nil where there is none.
func (j *joinRule) take(side int, key any, hasValue bool, at int64) {
	j.now = max(j.now, at)
	if !hasValue {
		return
	}
	k, ok := key.(string)
	if !ok {
		if j.outer[side] {
			j.next(nil, at)
		}
		return
	}
	j.newest[side] = max(j.newest[side], at)
	j.rows[side] = append(j.rows[side], joinRow{k, at, side})
	before, after := j.before, j.after
	if side == 1 {
		before, after = after, before
	}
	if at == j.now {
		j.leave(after)
	}
	found := false
	other := 1 - side
	oldest := j.newest[other] - j.before - j.after - j.grace
	for _, r := range j.rows[other] {
		if r.key != k || r.at < at-before || r.at > at+after || r.at <= oldest {
			continue
		}
		found = true
		j.waiting = slices.DeleteFunc(j.waiting, func(w joinRow) bool { return w == r })
		j.next(k, max(at, r.at))
	}
	if found || !j.outer[side] {
		return
	}
	if at+after < j.now {
		j.next(k, at)
		return
	}
	j.waiting = append(j.waiting, joinRow{k, at, side})
	j.kafkaMin = min(j.kafkaMin, at)
	slices.SortFunc(j.waiting, func(a, b joinRow) int {
		if a.at != b.at {
			return int(a.at - b.at)
		}
		if a.side != b.side {
			return b.side - a.side
		}
		return strings.Compare(a.key, b.key)
	})
}

// leave lets go of what has waited for long enough; after is the side's that a record has come on.
func (j *joinRule) leave(after int64) {
	if !j.outer[0] {
		return
	}
	look := [2]int64{j.after, j.before}
	// How Kafka Streams goes through what waits: not at all, or until it has seen one of each side that stays.
	looks := j.kafkaMin != math.MaxInt64 && j.kafkaMin+after+j.grace < j.now
	if looks {
		j.kafkaMin = math.MaxInt64
	}
	var stays [2]bool
	var kept, gone []joinRow
	for _, w := range j.waiting {
		if looks {
			j.kafkaMin = w.at
			looks = !stays[0] || !stays[1]
		}
		if w.at+look[w.side]+j.grace < j.now {
			j.late = j.late || !looks
			gone = append(gone, w)
			continue
		}
		stays[w.side] = true
		kept = append(kept, w)
	}
	j.waiting = kept
	for _, w := range gone {
		j.next(w.key, w.at)
	}
}

// keepsRule reports whether Kafka Streams keeps its rule in a case of stream-stream-join.
func keepsRule(c *testCase) bool {
	kind := c.Spec["kind"].(string)
	millis := func(name string) int64 { return c.Spec[name].(int64) }
	fresh := func() *joinRule {
		return newJoinRule(kind, millis("before_ms"), millis("after_ms"), millis("grace_ms"))
	}
	first, second := fresh(), fresh()
	twice := c.Spec["times"] == 2
	if twice {
		first.next = func(key any, at int64) { second.take(0, key, true, at) }
	}
	for _, in := range c.Inputs {
		key, has, at := in["key"], in["value"] != nil, in["ts"].(int64)
		if in["topic"] == "left" {
			first.take(0, key, has, at)
		}
		if in["topic"] == "right" || c.Spec["self"] == true {
			first.take(1, key, has, at)
			if twice {
				second.take(1, key, has, at)
			}
		}
	}
	return !first.late && !second.late
}
