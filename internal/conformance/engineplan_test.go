package conformance

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"tailrace.dev/processor"
)

// The engine tests run the cases on a broker, where two things have to be as a broker can promise them: the records of
// a case come in the order of their times, and what depends on the times of all keys is in one partition.

const (
	engineParts  = 3
	enginePhases = 3
	// strange marks the keys and values of records that do not belong to the case.
	strange = "~"
)

// enginePlan says how the engine runs a case.
type enginePlan struct {
	c *testCase // with the inputs as they are sent
	// spread sends each key to the partition of its hash. Otherwise all go to the home partition, and unrelated keys
	// to the others.
	spread bool
	home   int32
	// noisy tells whether unrelated keys are sent.
	noisy bool
	// exact tells that the records of each key come in a fixed order, and so are compared one by one; otherwise the
	// last of each key is. timeless leaves times out of that.
	exact, timeless bool
	// gather gives repartition topics one partition.
	gather bool
	idle   time.Duration // MaxTaskIdle
	global int           // how many inputs, the first ones, are those of the global table

	b    *builder
	want result
}

func (p *enginePlan) String() string {
	if p.spread {
		return p.c.Name + ", spread over all partitions"
	}
	return fmt.Sprintf("%s, in partition %d", p.c.Name, p.home)
}

// The values of MaxTaskIdle.
const (
	// idleDirect is for records that are all there when the first of them is fetched.
	idleDirect = 300 * time.Millisecond
	// idleRepartitioned is for records that other tasks send on, one of which may have to start again first. No input
	// is waited for twice, so all records come in one phase.
	idleRepartitioned = 8 * time.Second
	// idleUnordered is for what has no order to keep.
	idleUnordered = 20 * time.Millisecond
)

// plansFor returns the ways in which the engine runs a case; none if it is not a topology, or needs the wall clock.
func plansFor(c *testCase, number int) []*enginePlan {
	if topologies[c.Spec.Op] == nil {
		return nil
	}
	if slices.ContainsFunc(c.Inputs, func(in input) bool { return in.Advance != nil }) {
		return nil
	}
	p := enginePlan{home: int32(number % engineParts), idle: idleDirect, exact: true, noisy: !mentions(c, strange)}
	changed := *c
	changed.Inputs, p.global = globalFirst(c)
	rise(changed.Inputs)
	p.c = &changed

	s := &c.Spec
	switch s.Op {
	case "fk-join":
		// Both sides meet where their keys' hashes say, by answers that may overtake each other.
		p.spread, p.exact, p.timeless, p.idle = true, false, true, idleUnordered
		return []*enginePlan{&p}
	case "recursive":
		p.exact = false // a record that is written back comes after what was there already
	case "table-count-suppress":
		p.gather = true
	case "stream-stream-join":
		if s.Repartition {
			p.gather, p.idle = true, idleRepartitioned
		}
	}
	p.noisy = p.noisy && !p.gather && !s.ThenCount
	plans := []*enginePlan{&p}
	if spreadable(s) {
		q := p
		q.spread = true
		// Records of several keys meet in a group in any order.
		q.exact = p.exact && !s.ThenCount && (s.Op != "table-group-aggregate" || keepsKey(s))
		plans = append(plans, &q)
	}
	return plans
}

// keepsKey tells whether a grouped table is grouped by the key that it had.
func keepsKey(s *spec) bool { return s.Group == "" || s.Group == "identity" }

// spreadable tells whether the results of a key depend on that key's records alone.
func spreadable(s *spec) bool {
	switch s.Op {
	case "stream-aggregate", "stream-to-table", "repartition", "split", "recursive", "table-source", "table-filter",
		"table-table-join", "stream-global-join", "cogroup":
		return true
	case "stream-table-join":
		return s.Grace == nil
	case "table-group-aggregate":
		return s.Agg == "count" || keepsKey(s)
	case "window-aggregate":
		return s.Emit != "close" && !s.SuppressClose && s.Window.Type != "sliding"
	default:
		return false
	}
}

// globalFirst returns the inputs with those of the global table first: no broker says when a member sees them.
func globalFirst(c *testCase) (inputs []input, n int) {
	inputs = slices.Clone(c.Inputs)
	if c.Spec.Op != "stream-global-join" {
		return inputs, 0
	}
	slices.SortStableFunc(inputs, func(a, b input) int {
		switch a.Topic {
		case b.Topic:
			return 0
		case "global":
			return -1
		default:
			return 1
		}
	})
	n = slices.IndexFunc(inputs, func(in input) bool { return in.Topic != "global" })
	if n < 0 {
		n = len(inputs)
	}
	return inputs, n
}

// rise makes the times rise strictly, changing those that do not.
func rise(inputs []input) {
	last := int64(math.MinInt64)
	for i := range inputs {
		inputs[i].TS = max(inputs[i].TS, last+1)
		last = inputs[i].TS
	}
}

func mentions(c *testCase, s string) bool {
	return slices.ContainsFunc(c.Inputs, func(in input) bool {
		return strings.Contains(in.Key.s, s) || strings.Contains(in.Value.s, s)
	})
}

// inputTopics returns the topics that the case's records go to.
func (p *enginePlan) inputTopics() []string {
	var names []string
	for _, in := range p.c.Inputs {
		if !slices.Contains(names, in.Topic) {
			names = append(names, in.Topic)
		}
	}
	return names
}

// build adds the case to a topology that it shares with others.
func (p *enginePlan) build(b *processor.Builder, prefix string) {
	p.b = newBuilder(b, p.c.Spec)
	p.b.prefix, p.b.gather = prefix, p.gather
	topologies[p.c.Spec.Op](p.b)
}

// phases returns in how many parts the inputs are sent.
func (p *enginePlan) phases() int {
	if p.idle == idleRepartitioned {
		return 1
	}
	return enginePhases
}

// phase returns the inputs of one phase. Phase -1 is that of the global table.
func (p *enginePlan) phase(n int) []input {
	if n < 0 {
		return p.c.Inputs[:p.global]
	}
	rest := p.c.Inputs[p.global:]
	return rest[n*len(rest)/p.phases() : (n+1)*len(rest)/p.phases()]
}

// engineMismatches returns what differs between what the driver and the engine gave.
func engineMismatches(p *enginePlan, got result) []string {
	want, has := ofCase(p.want.records), ofCase(got.records)
	var found []string
	if p.exact {
		// Records without a key may be in any partition, and so in any order.
		found = compareGroups("topic and key", orderless(want), orderless(has), "topic", "key")
	} else {
		found = compareRows("last of key", p.final(want), p.final(has))
	}
	return append(found, compareRows("final store", byKey(ofCase(p.want.final)), byKey(ofCase(got.final)))...)
}

// final returns the last record of each key, in order, leaving out keys that have none: deleted or never there.
func (p *enginePlan) final(rows []row) []row {
	var out []row
	for _, r := range lastOf(rows, "topic", "key") {
		if !r["value"].ok {
			continue
		}
		if p.timeless {
			r = row{"topic": r["topic"], "key": r["key"], "value": r["value"]}
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b row) int { return strings.Compare(a.String(), b.String()) })
	return out
}

// ofCase returns the rows of the case's own keys, without where they came from.
func ofCase(rows []row) []row {
	var out []row
	for _, r := range rows {
		if strings.Contains(r["key"].s, strange) {
			continue
		}
		c := make(row, len(r))
		for n, v := range r {
			if n != "after" {
				c[n] = v
			}
		}
		out = append(out, c)
	}
	return out
}

// orderless sorts the rows that have no key, and leaves the others as they are.
func orderless(rows []row) []row {
	var keyed, others []row
	for _, r := range rows {
		if r["key"].ok {
			keyed = append(keyed, r)
		} else {
			others = append(others, r)
		}
	}
	slices.SortFunc(others, func(a, b row) int { return strings.Compare(a.String(), b.String()) })
	return append(keyed, others...)
}
