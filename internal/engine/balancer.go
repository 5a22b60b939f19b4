package engine

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/zap"

	"tailrace.dev/internal/task"
)

// balancer assigns tasks, not partitions: partition p of all inputs of a sub-topology goes to one member. Tasks stay
// where they are as long as the members' loads differ by one at most.
type balancer struct {
	subs     []subTopics
	userData []byte
	log      *zap.Logger
}

// balanceProtocol is the name that all members of a group must agree on. It changes with the meaning of an assignment.
const balanceProtocol = "tailrace-sticky"

func newBalancer(subs []Sub, data userData, log *zap.Logger) *balancer {
	return &balancer{subs: topicsOf(subs), userData: data.append(nil), log: log}
}

func topicsOf(subs []Sub) []subTopics {
	out := make([]subTopics, len(subs))
	for i, sub := range subs {
		out[i].name = sub.Name
		for _, src := range sub.Sources {
			out[i].topics = append(out[i].topics, src.Topic)
		}
		slices.Sort(out[i].topics)
	}
	return out
}

// ProtocolName implements kgo.GroupBalancer.
func (b *balancer) ProtocolName() string { return balanceProtocol }

// IsCooperative implements kgo.GroupBalancer.
func (b *balancer) IsCooperative() bool { return true }

// JoinGroupMetadata implements kgo.GroupBalancer. The same member always says the same, or the coordinator would see a
// change and rebalance for ever.
func (b *balancer) JoinGroupMetadata(topics []string, owned map[string][]int32, generation int32) []byte {
	meta := kmsg.NewConsumerMemberMetadata()
	meta.Version = 3
	meta.Topics = topics
	meta.Generation = generation
	meta.UserData = b.userData
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
	return kgo.ParseConsumerSyncAssignment(assignment)
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
	assign(subs, counts, members)
	plan := cb.NewPlan()
	for _, m := range members {
		for _, t := range m.tasks {
			for _, topic := range subs[t.sub].topics {
				plan.AddPartition(m.member, topic, t.partition)
			}
		}
	}
	plan.AdjustCooperative(cb)
	return plan
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

// balanceTask is a task by the index of its sub-topology.
type balanceTask struct {
	sub       int
	partition int32
}

// balanceMember is a member as the assignment sees it.
type balanceMember struct {
	member *kmsg.JoinGroupResponseMember
	data   *userData
	topics []string                   // subscribed, sorted
	owned  map[string]map[int32]int32 // topic, partition: generation of the claim
	disk   map[task.ID]bool

	tasks []balanceTask
	perS  map[int]int
}

func newBalanceMember(
	m *kmsg.JoinGroupResponseMember, meta *kmsg.ConsumerMemberMetadata, data *userData,
) *balanceMember {
	bm := &balanceMember{
		member: m, data: data, topics: slices.Sorted(slices.Values(meta.Topics)),
		owned: map[string]map[int32]int32{}, disk: map[task.ID]bool{}, perS: map[int]int{},
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
		bm.disk[t.id] = true
	}
	return bm
}

// canRun reports whether the member subscribes to every input of the sub-topology: it may run an older version of the
// application, which does not have it.
func (m *balanceMember) canRun(sub subTopics) bool {
	for _, t := range sub.topics {
		if _, ok := slices.BinarySearch(m.topics, t); !ok {
			return false
		}
	}
	return true
}

func (m *balanceMember) add(t balanceTask) {
	m.tasks = append(m.tasks, t)
	m.perS[t.sub]++
}

func (m *balanceMember) remove(t balanceTask) {
	i := slices.Index(m.tasks, t)
	m.tasks = slices.Delete(m.tasks, i, i+1)
	m.perS[t.sub]--
}

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

// assign gives every task to a member that can run it. It depends on nothing but its arguments: owners keep their
// tasks, free ones go where their state is or where the load is least, and then loads that differ by two or more are
// levelled, one task at a time.
func assign(subs []subTopics, counts []int32, members []*balanceMember) {
	var free []balanceTask
	for s, sub := range subs {
		for p := range counts[s] {
			t := balanceTask{s, p}
			if owner := ownerOf(sub, p, members); owner != nil {
				owner.add(t)
			} else {
				free = append(free, t)
			}
		}
	}
	total := 0
	for _, n := range counts {
		total += int(n)
	}
	fair := (total + len(members) - 1) / max(1, len(members))
	for _, t := range free {
		sub := subs[t.sub]
		id := task.ID{Sub: sub.name, Partition: t.partition}
		var best *balanceMember
		for _, m := range members {
			if m.canRun(sub) && (best == nil || better(m, best, t, id, fair)) {
				best = m
			}
		}
		if best != nil {
			best.add(t)
		}
	}
	for range total * len(members) { // each move lowers the sum of squares: it ends much earlier
		if !level(subs, members) {
			break
		}
	}
}

// ownerOf returns the member that owns the task: the newest claim, then the one of more partitions.
func ownerOf(sub subTopics, partition int32, members []*balanceMember) *balanceMember {
	var owner *balanceMember
	var bestN int
	var bestG int32
	for _, m := range members {
		n, g := m.claim(sub, partition)
		if n == 0 || !m.canRun(sub) {
			continue
		}
		if owner == nil || g > bestG || g == bestG && n > bestN {
			owner, bestN, bestG = m, n, g
		}
	}
	return owner
}

// better tells whether a free task goes rather to m than to best, which comes before it.
func better(m, best *balanceMember, t balanceTask, id task.ID, fair int) bool {
	mDisk := m.disk[id] && len(m.tasks) < fair
	bestDisk := best.disk[id] && len(best.tasks) < fair
	if mDisk != bestDisk {
		return mDisk
	}
	if c := cmp.Compare(len(m.tasks), len(best.tasks)); c != 0 {
		return c < 0
	}
	return m.perS[t.sub] < best.perS[t.sub]
}

// level moves one task from a member that has at least two more than another that can run it.
func level(subs []subTopics, members []*balanceMember) bool {
	byLoad := slices.Clone(members)
	slices.SortStableFunc(byLoad, func(x, y *balanceMember) int { return cmp.Compare(len(x.tasks), len(y.tasks)) })
	for _, from := range slices.Backward(byLoad) {
		for _, to := range byLoad {
			if len(from.tasks) < len(to.tasks)+2 {
				break // the ones after it have even more
			}
			best := -1
			for i, t := range from.tasks {
				if !to.canRun(subs[t.sub]) {
					continue
				}
				if best < 0 || moves(subs, from, to, t, from.tasks[best]) {
					best = i
				}
			}
			if best >= 0 {
				t := from.tasks[best]
				from.remove(t)
				to.add(t)
				return true
			}
		}
	}
	return false
}

// moves tells whether task t is rather moved than u: to where its state is, and so that each sub-topology spreads.
func moves(subs []subTopics, from, to *balanceMember, t, u balanceTask) bool {
	tDisk := to.disk[task.ID{Sub: subs[t.sub].name, Partition: t.partition}]
	uDisk := to.disk[task.ID{Sub: subs[u.sub].name, Partition: u.partition}]
	if tDisk != uDisk {
		return tDisk
	}
	tGain := from.perS[t.sub] - to.perS[t.sub]
	uGain := from.perS[u.sub] - to.perS[u.sub]
	if tGain != uGain {
		return tGain > uGain
	}
	return t.partition > u.partition
}
