package engine

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/zap"
	"pgregory.net/rapid"

	"tailrace.dev/internal/task"
)

// crowd is a model of a group over time: its members speak to the balancer in the real encoding, revoke before others
// get, keep state on disk, and follow changelogs.
type crowd struct {
	t       *rapid.T
	subs    []subTopics
	parts   map[string]int32
	size    map[task.ID]int64 // of the task's changelogs
	limits  placementLimits
	members map[string]*person

	generation int32
}

type person struct {
	id     string
	subs   []subTopics
	owned  map[string][]int32
	orders map[task.ID]bool
	lag    map[task.ID]int64 // of what is on disk
	ran    map[task.ID]bool  // since it joined
	near   map[task.ID]bool  // copies that it said are near
}

const crowdWarmupLag = 100

func (p *person) canRun(sub subTopics) bool {
	return slices.ContainsFunc(p.subs, func(s subTopics) bool { return s.name == sub.name })
}

func (p *person) topics() []string {
	var out []string
	for _, sub := range p.subs {
		out = append(out, sub.topics...)
	}
	slices.Sort(out)
	return out
}

// ids lists all tasks.
func (c *crowd) ids() []task.ID {
	var out []task.ID
	for _, sub := range c.subs {
		for p := range c.parts[sub.topics[0]] {
			out = append(out, task.ID{Sub: sub.name, Partition: p})
		}
	}
	return out
}

func (c *crowd) sub(id task.ID) subTopics {
	return c.subs[slices.IndexFunc(c.subs, func(s subTopics) bool { return s.name == id.Sub })]
}

// owner returns who owns all of the task, and fails when two own some of it.
func (c *crowd) owner(id task.ID) string {
	owner := ""
	for _, name := range slices.Sorted(maps.Keys(c.members)) {
		n := 0
		sub := c.sub(id)
		for _, topic := range sub.topics {
			if slices.Contains(c.members[name].owned[topic], id.Partition) {
				n++
			}
		}
		if n == 0 {
			continue
		}
		if owner != "" {
			c.t.Fatalf("task %s is at %s and at %s", id, owner, name)
		}
		if n != len(sub.topics) {
			c.t.Fatalf("%s owns a part of %s", name, id)
		}
		owner = name
	}
	return owner
}

func (c *crowd) owners() map[task.ID]string {
	out := map[task.ID]string{}
	for _, id := range c.ids() {
		out[id] = c.owner(id)
	}
	return out
}

func (c *crowd) runnable(id task.ID) bool {
	for _, m := range c.members {
		if m.canRun(c.sub(id)) {
			return true
		}
	}
	return false
}

func (c *crowd) userData(m *person, owners map[task.ID]string) userData {
	m.near = map[task.ID]bool{}
	u := userData{transactionalID: m.id, standbys: c.limits.standbys, subs: m.subs}
	for _, id := range c.ids() {
		lag, has := m.lag[id]
		warmup, ordered := m.orders[id]
		st := taskState{id: id, position: -1, lag: -1, warmup: warmup}
		switch {
		case owners[id] == m.id:
			st = taskState{id: id, position: c.size[id], lag: 0, role: roleActive}
		case !has:
			continue
		case ordered && lag <= crowdWarmupLag:
			st.position, st.lag, st.role = c.size[id]-lag, lag, roleWarm
		case ordered:
			st.position, st.lag, st.role = c.size[id]-lag, lag, roleCopy
		case m.ran[id]:
			st.position = c.size[id] - lag
		}
		if st.role == roleWarm {
			m.near[id] = true
		}
		u.tasks = append(u.tasks, st)
	}
	return u
}

// round is one rebalance. It tells whether anybody gave something up, which makes another one follow.
func (c *crowd) round() bool {
	c.generation++
	before := c.owners()
	var joins []kmsg.JoinGroupResponseMember
	for _, name := range slices.Sorted(maps.Keys(c.members)) {
		m := c.members[name]
		b := newBalancer(m.subs, c.userData(m, before), placementLimits{}, zap.NewNop())
		joins = append(joins, kmsg.JoinGroupResponseMember{
			MemberID: name, ProtocolMetadata: b.JoinGroupMetadata(m.topics(), m.owned, c.generation-1),
		})
	}
	balance := func(leader string) []kmsg.SyncGroupRequestGroupAssignment {
		b := newBalancer(c.members[leader].subs, userData{}, c.limits, zap.NewNop())
		mb, _, err := b.MemberBalancer(joins)
		if err != nil {
			c.t.Fatal(err)
		}
		into, err := mb.(kgo.GroupMemberBalancerOrError).BalanceOrError(c.parts)
		if err != nil {
			c.t.Fatal(err)
		}
		return into.IntoSyncAssignment()
	}
	leader := joins[rapid.IntRange(0, len(joins)-1).Draw(c.t, "leader")].MemberID
	plan, again := balance(leader), balance(leader)
	for i := range plan {
		if plan[i].MemberID != again[i].MemberID || !bytes.Equal(plan[i].MemberAssignment, again[i].MemberAssignment) {
			c.t.Fatal("the same group was assigned in two ways")
		}
	}
	revoked := false
	for _, a := range plan {
		revoked = c.apply(c.members[a.MemberID], a.MemberAssignment) || revoked
	}
	after := c.owners()
	for _, id := range c.ids() {
		c.checkMove(id, before[id], after[id])
	}
	return revoked
}

// apply gives a member its assignment, and tells whether it had to give something up.
func (c *crowd) apply(m *person, assignment []byte) bool {
	var orders []copyOrder
	b := newBalancer(m.subs, userData{}, placementLimits{}, zap.NewNop())
	b.synced = func(_ map[string][]int32, data *assignmentData) {
		orders = data.copies
		if !data.known || len(data.members) != len(c.members) {
			c.t.Fatalf("told of members %v", data.members)
		}
	}
	next, err := b.ParseSyncAssignment(assignment)
	if err != nil {
		c.t.Fatal(err)
	}
	revoked := hasMore(m.owned, next)
	m.owned = next
	m.orders = map[task.ID]bool{}
	for _, o := range orders {
		if !m.canRun(c.sub(o.id)) || !c.sub(o.id).stateful {
			c.t.Fatalf("%s is to keep a copy of %s", m.id, o.id)
		}
		m.orders[o.id] = m.orders[o.id] || o.warmup
		if _, has := m.lag[o.id]; !has {
			m.lag[o.id] = c.size[o.id] // it begins to follow
		}
	}
	return revoked
}

// checkMove checks that a task comes to who is near, or has to begin anew anyway.
func (c *crowd) checkMove(id task.ID, before, after string) {
	if before == after || after == "" {
		return
	}
	m := c.members[after]
	lag, has := m.lag[id]
	if !has {
		lag = c.size[id]
	}
	if c.sub(id).stateful && c.limits.warmups > 0 && lag > crowdWarmupLag {
		for _, other := range c.members {
			if other != m && other.near[id] && other.canRun(c.sub(id)) {
				c.t.Fatalf("%s went to %s, which is %d behind, though %s is near", id, after, lag, other.id)
			}
		}
	}
	if c.sub(id).stateful {
		m.ran[id] = true
		m.lag[id] = 0 // it restores
	}
}

// settle lets rounds follow until nobody gives anything up, then lets copies come near, until all is done.
func (c *crowd) settle() {
	for warmed := 0; ; warmed++ {
		for round := 0; c.round(); round++ {
			if round == 4 {
				c.t.Fatal("rebalances do not end")
			}
		}
		for _, id := range c.ids() {
			if c.owner(id) == "" && c.runnable(id) {
				c.t.Fatalf("%s is nowhere", id)
			}
		}
		waiting := false
		for _, m := range c.members {
			for id, warmup := range m.orders {
				waiting = waiting || warmup
				m.lag[id] = 0
			}
		}
		if !waiting {
			return
		}
		if warmed > 2*len(c.ids())+2 {
			c.t.Fatal("warming up does not end")
		}
	}
}

func (c *crowd) loads(stateful bool) map[string]int {
	out := map[string]int{}
	for name := range c.members {
		out[name] = 0
	}
	for _, id := range c.ids() {
		if o := c.owner(id); o != "" && c.sub(id).stateful == stateful {
			out[o]++
		}
	}
	return out
}

func spreadOf(loads map[string]int) int {
	values := slices.Sorted(maps.Values(loads))
	if len(values) == 0 {
		return 0
	}
	return values[len(values)-1] - values[0]
}

// uniform tells whether all members can run everything.
func (c *crowd) uniform() bool {
	for _, m := range c.members {
		if len(m.subs) != len(c.subs) {
			return false
		}
	}
	return true
}

// check looks at a group that has settled.
func (c *crowd) check() {
	stateful, stateless := c.loads(true), c.loads(false)
	total := map[string]int{}
	for name := range c.members {
		total[name] = stateful[name] + stateless[name]
	}
	if c.uniform() {
		if spreadOf(stateful) > 1 || spreadOf(stateless) > 1 || spreadOf(total) > 1 {
			c.t.Fatalf("loads: stateful %v stateless %v", stateful, stateless)
		}
	}
	for _, id := range c.ids() {
		from := c.owner(id)
		if from == "" {
			continue
		}
		for name, m := range c.members {
			if !m.canRun(c.sub(id)) {
				continue
			}
			if c.sub(id).stateful && stateful[from] > stateful[name]+1 || !c.sub(id).stateful && total[from] > total[name]+1 {
				c.t.Fatalf("%s would be better at %s than at %s: stateful %v, total %v", id, name, from, stateful, total)
			}
		}
	}
	c.checkStandbys()
}

func (c *crowd) checkStandbys() {
	copies := map[string]int{}
	for _, id := range c.ids() {
		if !c.sub(id).stateful || c.owner(id) == "" {
			continue
		}
		n, able := 0, 0
		for name, m := range c.members {
			if m.canRun(c.sub(id)) {
				able++
			}
			if _, ordered := m.orders[id]; ordered {
				n++
				copies[name]++
				if c.owner(id) == name {
					c.t.Fatalf("%s has both %s and a copy of it", name, id)
				}
			}
		}
		if want := min(c.limits.standbys, able-1); n != want {
			c.t.Fatalf("%s has %d copies, want %d", id, n, want)
		}
	}
	for name := range c.members {
		copies[name] += 0
	}
	if c.uniform() && spreadOf(copies) > 1 {
		c.t.Fatalf("copies %v", copies)
	}
}

// checkSteady checks that a rebalance without a reason changes nothing.
func (c *crowd) checkSteady() {
	before := fmt.Sprint(c.owners())
	orders := func() string {
		out := map[string]map[task.ID]bool{}
		for name, m := range c.members {
			out[name] = m.orders
		}
		return fmt.Sprint(out)
	}
	copies := orders()
	if c.round() || fmt.Sprint(c.owners()) != before {
		c.t.Fatalf("a rebalance without a reason moved tasks:\n%s\n%v", before, c.owners())
	}
	if orders() != copies {
		c.t.Fatalf("a rebalance without a reason moved copies:\n%s\n%s", copies, orders())
	}
}

// checkMoves checks after a change of one member that nothing moved that need not. A task may make room for a stateful one
// whose member is gone and that goes to where its state is: a stateless one, or, where that home is one for the time
// being, one that somebody else has a copy of.
func (c *crowd) checkMoves(before map[task.ID]string, joined string) {
	moved, freed := 0, 0
	for id, was := range before {
		now := c.owner(id)
		if c.members[was] == nil {
			if c.sub(id).stateful {
				freed++
			}
			continue
		}
		if was == now || joined == now {
			continue
		}
		temporary := c.limits.standbys > 0 && c.limits.warmups > 0
		if moved++; c.sub(id).stateful && !temporary || joined != "" {
			c.t.Fatalf("%s moved from %s to %s, which was there before", id, was, now)
		}
	}
	if moved > freed {
		c.t.Fatalf("%d tasks moved because %d lost their member", moved, freed)
	}
}

func newCrowd(t *rapid.T, stateless bool) *crowd {
	c := &crowd{
		t:     t,
		subs:  []subTopics{{"a", true, []string{"a", "a2"}}, {"b", true, []string{"b"}}},
		parts: map[string]int32{}, size: map[task.ID]int64{}, members: map[string]*person{},
	}
	if stateless {
		c.subs = append(c.subs, subTopics{"c", false, []string{"c"}}, subTopics{"d", false, []string{"d", "d2"}})
	}
	for _, sub := range c.subs {
		n := rapid.Int32Range(1, 6).Draw(t, "partitions of "+sub.name)
		for _, topic := range sub.topics {
			c.parts[topic] = n
		}
	}
	for _, id := range c.ids() {
		c.size[id] = rapid.SampledFrom([]int64{0, 50, 1000, 100_000}).Draw(t, "size")
	}
	c.limits = placementLimits{
		standbys: rapid.IntRange(0, 2).Draw(t, "standbys"), warmupLag: crowdWarmupLag,
		warmups: rapid.IntRange(0, 3).Draw(t, "warmups"),
	}
	return c
}

func (c *crowd) join(name string, subs []subTopics, lag map[task.ID]int64) {
	c.members[name] = &person{id: name, subs: subs, lag: lag, orders: map[task.ID]bool{}, ran: map[task.ID]bool{}}
}

// TestPlacementOverTime lets members with random abilities come, go, die, lose their state, and come back.
func TestPlacementOverTime(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		c := newCrowd(t, true)
		alike := rapid.Bool().Draw(t, "all members alike")
		left := map[string]map[task.ID]int64{}
		next := 0
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			names := slices.Sorted(maps.Keys(c.members))
			gone := slices.Sorted(maps.Keys(left))
			switch what := rapid.IntRange(0, 5).Draw(t, "what"); {
			case len(names) == 0 || what <= 1 && len(names) < 6:
				next++
				subs := c.subs
				if !alike {
					subs = slices.DeleteFunc(slices.Clone(c.subs), func(subTopics) bool {
						return rapid.IntRange(0, 3).Draw(t, "lacks") == 0
					})
				}
				if len(subs) == 0 {
					continue
				}
				c.join(fmt.Sprintf("m%02d", next), subs, map[task.ID]int64{})
			case what == 2 && len(gone) > 0: // it comes back with what it had, which is old
				name := rapid.SampledFrom(gone).Draw(t, "back")
				lag := left[name]
				for _, id := range slices.SortedFunc(maps.Keys(lag), compareIDs) {
					lag[id] = min(c.size[id], lag[id]+rapid.SampledFrom([]int64{0, 10, 5000}).Draw(t, "missed"))
				}
				if rapid.Bool().Draw(t, "wiped") {
					lag = map[task.ID]int64{}
				}
				delete(left, name)
				c.join(name, c.subs, lag)
			case what == 3: // copies fall behind, or catch up
				for _, name := range names {
					m := c.members[name]
					for _, id := range c.ids() {
						if _, ordered := m.orders[id]; ordered {
							m.lag[id] = min(c.size[id], rapid.SampledFrom([]int64{0, 90, 110, 9000}).Draw(t, "lag"))
						}
					}
				}
			default:
				name := rapid.SampledFrom(names).Draw(t, "leaves")
				left[name] = c.members[name].lag
				delete(c.members, name)
			}
			if len(c.members) == 0 {
				continue
			}
			if rapid.IntRange(0, 3).Draw(t, "settles") == 0 {
				c.round() // and the next change comes before it is done
				continue
			}
			c.settle()
			c.check()
			c.checkSteady()
		}
	})
}

// TestPlacementMovesTheLeast changes a settled group by one member: a new one gets tasks and nobody else does; when one
// goes, the others keep all they have.
func TestPlacementMovesTheLeast(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		c := newCrowd(t, rapid.Bool().Draw(t, "stateless"))
		if rapid.Bool().Draw(t, "no copies") {
			c.limits.standbys = 0
		}
		for i := range rapid.IntRange(1, 5).Draw(t, "members") {
			c.join(fmt.Sprint("m", i), c.subs, map[task.ID]int64{})
		}
		c.settle()
		for i := range rapid.IntRange(1, 6).Draw(t, "changes") {
			c.check()
			before := c.owners()
			names := slices.Sorted(maps.Keys(c.members))
			if len(names) < 2 || rapid.Bool().Draw(t, "join") {
				name := fmt.Sprint("n", i)
				c.join(name, c.subs, map[task.ID]int64{})
				c.settle()
				c.checkMoves(before, name)
			} else {
				delete(c.members, rapid.SampledFrom(names).Draw(t, "leaves"))
				c.settle()
				c.checkMoves(before, "")
			}
		}
	})
}
