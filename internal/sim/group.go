package sim

import (
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// group is the coordinator of the one consumer group, by the classic protocol.
type group struct {
	b          *broker
	offsets    map[tp]groupOffset
	generation int32
	state      groupState
	members    []*member // in the order of their first join
	leader     *member
	deadline   int64 // of the joins of a rebalance
	made       int   // member ids so far

	session, rebalance int64 // timeouts, milliseconds
	// staticStays tells that a static member that comes back under a new member id gets its place without a rebalance,
	// as Kafka does and some other brokers do not.
	staticStays bool
}

type groupOffset struct {
	next     int64
	metadata string
	number   int64 // of the commit, in the coordinator's order
}

type groupState int

const (
	groupStable     groupState = iota // also when empty
	groupPreparing                    // waits for members to join again
	groupCompleting                   // waits for the leader's assignment
)

// member is a member at the coordinator.
type member struct {
	id, instance string
	meta         []byte
	joined       bool // in the present rebalance
	assignment   []byte
	until        int64 // the end of its session, unless it is heard of
}

// membership is what a request carries to prove whose it is.
type membership struct {
	id, instance string
	generation   int32
}

func (g *group) member(id string) *member {
	i := slices.IndexFunc(g.members, func(m *member) bool { return m.id == id })
	if i < 0 {
		return nil
	}
	return g.members[i]
}

// check refuses requests of those that are no members, or not of this generation.
// A commit inside a transaction is taken while the leader assigns, as Kafka does.
func (g *group) check(who membership, inTxn bool) error {
	if g.b.defect == StaleGeneration {
		return nil
	}
	m := g.member(who.id)
	if m == nil {
		if who.instance != "" && slices.ContainsFunc(g.members, func(m *member) bool { return m.instance == who.instance }) {
			return kerr.FencedInstanceID
		}
		return kerr.UnknownMemberID
	}
	if who.generation != g.generation {
		return kerr.IllegalGeneration
	}
	if g.state == groupCompleting && !inTxn {
		return kerr.RebalanceInProgress
	}
	m.until = g.b.now + g.session
	return nil
}

// prepare begins a rebalance.
func (g *group) prepare(why string) {
	g.b.say("group: rebalance, %s", why)
	g.state, g.deadline, g.leader = groupPreparing, g.b.now+g.rebalance, nil
	for _, m := range g.members {
		m.joined = false
	}
}

// join lets a member in, or tells that it wants to stay. An id is given out to who has none.
func (g *group) join(id, instance string, meta []byte) (string, error) {
	m := g.member(id)
	if id != "" && m == nil {
		if instance != "" && slices.ContainsFunc(g.members, func(m *member) bool { return m.instance == instance }) {
			return "", kerr.FencedInstanceID
		}
		return "", kerr.UnknownMemberID
	}
	if m == nil && instance != "" {
		if i := slices.IndexFunc(g.members, func(m *member) bool { return m.instance == instance }); i >= 0 {
			m = g.members[i]
			g.made++
			m.id, m.meta, m.until = fmt.Sprintf("%s-%d", instance, g.made), meta, g.b.now+g.session
			if g.state == groupStable && g.staticStays {
				m.joined = true
				g.b.say("group: %s takes its place back", m.id)
				return m.id, nil
			}
			if g.state != groupPreparing {
				g.prepare("static member " + m.id + " is back")
			}
			m.joined = true
			g.complete()
			return m.id, nil
		}
	}
	if m == nil {
		g.made++
		m = &member{instance: instance, id: fmt.Sprintf("%s-%d", instance, g.made)}
		if instance == "" {
			m.id = fmt.Sprintf("dynamic-%d", g.made)
		}
		g.members = append(g.members, m)
	}
	m.meta, m.until = meta, g.b.now+g.session
	if g.state != groupPreparing {
		g.prepare("join of " + m.id)
	}
	m.joined = true
	g.complete()
	return m.id, nil
}

// complete ends the joining when everybody is there, or the time for it is over.
func (g *group) complete() {
	if g.state != groupPreparing {
		return
	}
	missing := slices.ContainsFunc(g.members, func(m *member) bool { return !m.joined })
	if missing && g.b.now < g.deadline {
		return
	}
	// Static members keep their place until their session ends, whether they join or not.
	g.members = slices.DeleteFunc(g.members, func(m *member) bool { return !m.joined && m.instance == "" })
	i := slices.IndexFunc(g.members, func(m *member) bool { return m.joined })
	if i < 0 {
		if len(g.members) == 0 {
			g.state = groupStable
		}
		return
	}
	g.leader, g.state = g.members[i], groupCompleting
	g.generation++
	for _, m := range g.members {
		m.assignment = nil
	}
	g.b.say("group: generation %d of %d members, led by %s", g.generation, len(g.members), g.leader.id)
}

// joined answers a join: ok is false while others are waited for. members is set for the leader alone.
func (g *group) answer(id string) (generation int32, members []kmsg.JoinGroupResponseMember, ok bool, err error) {
	m := g.member(id)
	switch {
	case m == nil:
		return 0, nil, false, kerr.UnknownMemberID
	case !m.joined || g.state == groupPreparing:
		return 0, nil, false, nil
	}
	m.until = g.b.now + g.session
	if g.state == groupCompleting && g.leader == m {
		for _, o := range g.members {
			jm := kmsg.NewJoinGroupResponseMember()
			jm.MemberID, jm.ProtocolMetadata = o.id, o.meta
			if o.instance != "" {
				jm.InstanceID = kmsg.StringPtr(o.instance)
			}
			members = append(members, jm)
		}
	}
	return g.generation, members, true, nil
}

// sync brings the leader's assignment, or asks for one's own: ok is false while it is not there.
func (g *group) sync(
	id string, generation int32, plan []kmsg.SyncGroupRequestGroupAssignment,
) (assignment []byte, ok bool, err error) {
	m := g.member(id)
	switch {
	case m == nil:
		return nil, false, kerr.UnknownMemberID
	case generation != g.generation:
		return nil, false, kerr.IllegalGeneration
	case g.state == groupPreparing:
		return nil, false, kerr.RebalanceInProgress
	}
	m.until = g.b.now + g.session
	if g.state == groupCompleting && plan != nil && g.leader == m {
		for _, a := range plan {
			if to := g.member(a.MemberID); to != nil {
				to.assignment = a.MemberAssignment
			}
		}
		g.state = groupStable
	}
	if g.state != groupStable {
		return nil, false, nil
	}
	return m.assignment, true, nil
}

func (g *group) heartbeat(who membership) error {
	m := g.member(who.id)
	switch {
	case m == nil && who.instance != "" &&
		slices.ContainsFunc(g.members, func(m *member) bool { return m.instance == who.instance }):
		return kerr.FencedInstanceID
	case m == nil:
		return kerr.UnknownMemberID
	case who.generation != g.generation:
		return kerr.IllegalGeneration
	}
	m.until = g.b.now + g.session
	if g.state == groupPreparing {
		return kerr.RebalanceInProgress
	}
	return nil
}

func (g *group) leave(id string) {
	if m := g.member(id); m != nil {
		g.remove(m, "left")
	}
}

func (g *group) remove(m *member, why string) {
	g.members = slices.DeleteFunc(g.members, func(o *member) bool { return o == m })
	g.b.say("group: %s %s", m.id, why)
	switch {
	case len(g.members) == 0:
		g.state, g.leader = groupStable, nil
		g.generation++
	case g.state == groupPreparing:
		g.complete()
	default:
		g.prepare("it lost " + m.id)
	}
}

// expire removes the members that were not heard of for the session timeout, and ends joins that take too long. Who
// waits for the end of a rebalance that it joined is connected all the time, unless its process died.
func (g *group) expire() {
	for _, m := range slices.Clone(g.members) {
		if g.b.now >= m.until {
			g.remove(m, "expired")
		}
	}
	g.complete()
}
