package engine

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/zap"

	"tailrace.dev/internal/task"
)

// balancer speaks the group protocol: it tells the leader what this member has, and as the leader it assigns tasks, not
// partitions. Partition p of all inputs of a sub-topology goes to one member. Who gets what is decided by placement.
type balancer struct {
	subs   []subTopics
	limits placementLimits
	log    *zap.Logger

	// joining is called before a join, whose outcome makes the present assignment outdated; synced after it, with the
	// whole assignment. Both run on the client's goroutine. They may be nil.
	joining func()
	synced  func(partitions map[string][]int32, data *assignmentData)

	mu       sync.Mutex
	userData []byte
}

// balanceProtocol is the name that all members of a group must agree on. It changes with the meaning of an assignment.
const balanceProtocol = "tailrace-sticky"

func newBalancer(subs []subTopics, data userData, limits placementLimits, log *zap.Logger) *balancer {
	b := &balancer{subs: subs, limits: limits, log: log}
	b.tell(data)
	return b
}

// tell replaces what this member says of itself at its next join.
func (b *balancer) tell(data userData) {
	encoded := data.append(nil)
	b.mu.Lock()
	b.userData = encoded
	b.mu.Unlock()
}

func topicsOf(subs []Sub) []subTopics {
	out := make([]subTopics, len(subs))
	for i, sub := range subs {
		out[i].name = sub.Name
		for _, src := range sub.Sources {
			out[i].topics = append(out[i].topics, src.Topic)
		}
		slices.Sort(out[i].topics)
		out[i].stateful = slices.ContainsFunc(sub.Stores, func(st Store) bool { return st.log() != "" })
	}
	return out
}

// ProtocolName implements kgo.GroupBalancer.
func (b *balancer) ProtocolName() string { return balanceProtocol }

// IsCooperative implements kgo.GroupBalancer.
func (b *balancer) IsCooperative() bool { return true }

// JoinGroupMetadata implements kgo.GroupBalancer. A join is either part of a rebalance that is under way, or was asked
// for; it is never caused by what an earlier join said, so that telling something new here cannot go on for ever.
func (b *balancer) JoinGroupMetadata(topics []string, owned map[string][]int32, generation int32) []byte {
	if b.joining != nil {
		b.joining()
	}
	meta := kmsg.NewConsumerMemberMetadata()
	meta.Version = 3
	meta.Topics = topics
	meta.Generation = generation
	b.mu.Lock()
	meta.UserData = b.userData
	b.mu.Unlock()
	for topic, partitions := range owned {
		o := kmsg.NewConsumerMemberMetadataOwnedPartition()
		o.Topic, o.Partitions = topic, partitions
		meta.OwnedPartitions = append(meta.OwnedPartitions, o)
	}
	slices.SortFunc(meta.OwnedPartitions, func(x, y kmsg.ConsumerMemberMetadataOwnedPartition) int {
		return strings.Compare(x.Topic, y.Topic)
	})
	return meta.AppendTo(nil)
}

// ParseSyncAssignment implements kgo.GroupBalancer.
func (b *balancer) ParseSyncAssignment(assignment []byte) (map[string][]int32, error) {
	partitions, err := kgo.ParseConsumerSyncAssignment(assignment)
	if err != nil {
		return nil, fmt.Errorf("engine: read the assignment: %w", err)
	}
	var a kmsg.ConsumerMemberAssignment
	if err := a.ReadFrom(assignment); err != nil {
		return nil, fmt.Errorf("engine: read the assignment: %w", err)
	}
	data, err := parseAssignmentData(a.UserData)
	if err != nil {
		b.log.Warn("ignoring what the leader of the group said beside the partitions", zap.Error(err))
		data = &assignmentData{}
	}
	if b.synced != nil {
		b.synced(partitions, data)
	}
	return partitions, nil
}

// MemberBalancer implements kgo.GroupBalancer.
func (b *balancer) MemberBalancer(
	members []kmsg.JoinGroupResponseMember,
) (kgo.GroupMemberBalancer, map[string]struct{}, error) {
	cb, err := kgo.NewConsumerBalancer(b, members)
	if err != nil {
		return nil, nil, fmt.Errorf("engine: read the members' metadata: %w", err)
	}
	topics := cb.MemberTopics()
	return cb, topics, nil
}

// Balance implements kgo.ConsumerBalancerBalance.
func (b *balancer) Balance(cb *kgo.ConsumerBalancer, partitions map[string]int32) kgo.IntoSyncAssignment {
	var members []*balanceMember
	cb.EachMember(func(m *kmsg.JoinGroupResponseMember, meta *kmsg.ConsumerMemberMetadata) {
		data, err := parseUserData(meta.UserData)
		if err != nil {
			b.log.Warn("ignoring a member's user data", zap.String("member", m.MemberID), zap.Error(err))
			data = &userData{}
		}
		members = append(members, newBalanceMember(m, meta, data))
	})
	subs := b.knownSubs(members)
	counts := make([]int32, len(subs))
	for i, sub := range subs {
		n, err := coPartitions(sub, partitions)
		if err != nil {
			cb.SetError(err)
			return nil
		}
		counts[i] = n
	}
	limits := b.limits
	for _, m := range members {
		limits.standbys = max(limits.standbys, min(m.data.standbys, len(members)))
	}
	p := newPlacement(subs, counts, members, limits)
	p.decide()
	plan, given := cb.NewPlan(), 0
	for t, bt := range p.tasks {
		if m := p.active[t]; m >= 0 {
			for _, topic := range subs[bt.sub].topics {
				plan.AddPartition(members[m].member, topic, bt.partition)
				given++
			}
		}
	}
	plan.AdjustCooperative(cb)
	b.logPlacement(p)
	data := p.assignmentData()
	for _, topics := range plan.AsMemberIDMap() {
		for _, partitions := range topics {
			given -= len(partitions)
		}
	}
	for _, d := range data {
		d.unsettled = given > 0
	}
	return withUserData{plan, data}
}

// logPlacement tells what the leader decided, once for each rebalance.
func (b *balancer) logPlacement(p *placement) {
	moved, warming, kept := 0, 0, 0
	for t := range p.tasks {
		if p.owner[t] >= 0 && p.active[t] != p.owner[t] {
			moved++
		}
		if p.warmup[t] >= 0 {
			warming++
		}
		kept += len(p.standbys[t])
	}
	b.log.Info("assigned the tasks of the group", zap.Int("members", len(p.members)), zap.Int("tasks", len(p.tasks)),
		zap.Int("moved", moved), zap.Int("warming_up", warming), zap.Int("standbys", kept))
}

// withUserData adds the leader's words to a plan.
type withUserData struct {
	plan *kgo.BalancePlan
	data map[string]*assignmentData // by member id
}

// IntoSyncAssignment implements kgo.IntoSyncAssignment.
func (w withUserData) IntoSyncAssignment() []kmsg.SyncGroupRequestGroupAssignment {
	out := w.plan.IntoSyncAssignment()
	for i := range out {
		data := w.data[out[i].MemberID]
		var a kmsg.ConsumerMemberAssignment
		if data == nil || a.ReadFrom(out[i].MemberAssignment) != nil {
			continue // what was encoded a moment ago is read back
		}
		a.UserData = data.append(nil)
		out[i].MemberAssignment = a.AppendTo(nil)
	}
	return out
}

// knownSubs returns our own sub-topologies and those of other members, running another version of the application,
// that have no topic in common with them.
func (b *balancer) knownSubs(members []*balanceMember) []subTopics {
	subs := slices.Clone(b.subs)
	taken := map[string]bool{}
	for _, sub := range subs {
		for _, t := range sub.topics {
			taken[t] = true
		}
	}
	for _, m := range members {
		for _, sub := range m.data.subs {
			if len(sub.topics) == 0 || slices.ContainsFunc(sub.topics, func(t string) bool { return taken[t] }) {
				continue
			}
			for _, t := range sub.topics {
				taken[t] = true
			}
			subs = append(subs, sub)
		}
	}
	slices.SortFunc(subs, func(x, y subTopics) int {
		return cmp.Or(strings.Compare(x.name, y.name), slices.Compare(x.topics, y.topics))
	})
	return subs
}

// coPartitions returns the number of tasks of a sub-topology; 0 while one of its topics is not known.
func coPartitions(sub subTopics, partitions map[string]int32) (int32, error) {
	n := partitions[sub.topics[0]]
	for _, t := range sub.topics[1:] {
		c := partitions[t]
		if c == 0 || n == 0 {
			return 0, nil
		}
		if c != n {
			return 0, &Error{
				Kind: ErrPartitionMismatch, Topic: t, Partition: -1,
				Detail: fmt.Sprintf("it has %d partitions and %s has %d", c, sub.topics[0], n),
				Hint:   "the inputs of a sub-topology must have the same number of partitions",
			}
		}
	}
	return n, nil
}

// balanceMember is a member as the assignment sees it.
type balanceMember struct {
	member *kmsg.JoinGroupResponseMember
	data   *userData
	topics []string                   // subscribed, sorted
	owned  map[string]map[int32]int32 // topic, partition: generation of the claim
	state  map[task.ID]taskState
}

func newBalanceMember(
	m *kmsg.JoinGroupResponseMember, meta *kmsg.ConsumerMemberMetadata, data *userData,
) *balanceMember {
	bm := &balanceMember{
		member: m, data: data, topics: slices.Sorted(slices.Values(meta.Topics)),
		owned: map[string]map[int32]int32{}, state: make(map[task.ID]taskState, len(data.tasks)),
	}
	for _, o := range meta.OwnedPartitions {
		claims := bm.owned[o.Topic]
		if claims == nil {
			claims = map[int32]int32{}
			bm.owned[o.Topic] = claims
		}
		for _, p := range o.Partitions {
			claims[p] = meta.Generation
		}
	}
	for _, t := range data.tasks {
		bm.state[t.id] = t
	}
	return bm
}

// canRun reports whether the member processes just these topics together. It may run another version of the
// application, which does not have the sub-topology, or has it with other topics.
func (m *balanceMember) canRun(sub subTopics) bool {
	for _, t := range sub.topics {
		if _, ok := slices.BinarySearch(m.topics, t); !ok {
			return false
		}
	}
	return len(m.data.subs) == 0 ||
		slices.ContainsFunc(m.data.subs, func(s subTopics) bool { return sameTopics(s.topics, sub.topics) })
}

// canCopy reports whether the member keeps copies when it is told to, and knows this sub-topology by its name.
func (m *balanceMember) canCopy(sub subTopics) bool {
	return m.data.version >= 2 && slices.ContainsFunc(m.data.subs, func(s subTopics) bool {
		return s.name == sub.name && s.stateful && sameTopics(s.topics, sub.topics)
	})
}

// sameTopics compares lists that are sorted, or were made by a member that sorts them.
func sameTopics(x, y []string) bool { return slices.Equal(x, y) }

// claim returns how many partitions of the task the member says to own, and in which generation.
func (m *balanceMember) claim(sub subTopics, partition int32) (n int, generation int32) {
	generation = -1
	for _, topic := range sub.topics {
		if g, ok := m.owned[topic][partition]; ok {
			n++
			generation = max(generation, g)
		}
	}
	return n, generation
}
