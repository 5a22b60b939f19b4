package engine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/zap"

	"tailrace.dev/internal/task"
)

func TestPlanResolvesChains(t *testing.T) {
	p := Program{Subs: []Sub{
		{Name: "c", Sources: []Source{{Topic: "rc", Internal: true, FedBy: []string{"b"}}},
			Stores: []Store{{Name: "s", Changelog: "s-changelog"}}},
		{Name: "b", Sources: []Source{{Topic: "rb", Internal: true, FedBy: []string{"a", "x"}}}},
		{Name: "a", Sources: []Source{{Topic: "ta"}}},
		{Name: "x", Sources: []Source{{Topic: "tx"}}},
		{Name: "d", Sources: []Source{{Topic: "rd", Internal: true, FedBy: []string{"a"}}, {Topic: "td"}}},
		{Name: "e", Sources: []Source{{Topic: "re", Internal: true, Partitions: 9, FedBy: []string{"a"}}}},
	}}
	plan, err := p.plan(map[string]int32{"ta": 3, "tx": 5, "td": 4})
	if err != nil {
		t.Fatal(err)
	}
	if want := []int32{5, 5, 3, 5, 4, 9}; !slices.Equal(plan.tasks, want) {
		t.Errorf("tasks %v, want %v", plan.tasks, want)
	}
	got := map[string]int32{}
	for _, topic := range plan.topics {
		got[topic.name] = topic.partitions
	}
	for name, n := range map[string]int32{"rc": 5, "rb": 5, "rd": 4, "re": 9, "s-changelog": 5} {
		if got[name] != n {
			t.Errorf("%s has %d partitions, want %d", name, got[name], n)
		}
	}
}

func TestPlanRefusesLoops(t *testing.T) {
	p := Program{Subs: []Sub{
		{Name: "a", Sources: []Source{{Topic: "ra", Internal: true, FedBy: []string{"b"}}}},
		{Name: "b", Sources: []Source{{Topic: "rb", Internal: true, FedBy: []string{"a"}}}},
	}}
	if _, err := p.plan(nil); !errors.Is(err, ErrPartitionMismatch) {
		t.Errorf("error %v", err)
	}
}

// group is a model of a consumer group whose members use the balancer.
type group struct {
	t          *testing.T
	b          *balancer
	partitions map[string]int32
	owned      map[string]map[string][]int32
	data       map[string]userData
	topics     map[string][]string
	generation int32
}

// rebalance runs rounds until nothing moves, as the members do when they rejoin after a revocation.
func (g *group) rebalance() {
	g.t.Helper()
	for round := 0; ; round++ {
		if round == 5 {
			g.t.Fatal("the group does not settle")
		}
		g.generation++
		var members []kmsg.JoinGroupResponseMember
		for id := range g.owned {
			mb := newBalancer(nil, g.data[id], placementLimits{}, zap.NewNop())
			topics := g.topics[id]
			if topics == nil {
				for t := range g.partitions {
					topics = append(topics, t)
				}
				slices.Sort(topics)
			}
			members = append(members, kmsg.JoinGroupResponseMember{
				MemberID: id, ProtocolMetadata: mb.JoinGroupMetadata(topics, g.owned[id], g.generation-1),
			})
		}
		slices.SortFunc(members, func(a, b kmsg.JoinGroupResponseMember) int {
			if a.MemberID < b.MemberID {
				return -1
			}
			return 1
		})
		mb, _, err := g.b.MemberBalancer(members)
		if err != nil {
			g.t.Fatal(err)
		}
		into, err := mb.(kgo.GroupMemberBalancerOrError).BalanceOrError(g.partitions)
		if err != nil {
			g.t.Fatal(err)
		}
		revoked := false
		for _, a := range into.IntoSyncAssignment() {
			next, err := g.b.ParseSyncAssignment(a.MemberAssignment)
			if err != nil {
				g.t.Fatal(err)
			}
			for topic, ps := range g.owned[a.MemberID] {
				for _, p := range ps {
					revoked = revoked || !slices.Contains(next[topic], p)
				}
			}
			g.owned[a.MemberID] = next
		}
		if !revoked {
			return
		}
	}
}

// check finds every task at exactly one member, whole, and the loads level.
func (g *group) check() {
	g.t.Helper()
	owner := map[string]string{}
	for id, topics := range g.owned {
		for topic, ps := range topics {
			for _, p := range ps {
				key := fmt.Sprintf("%s/%d", topic, p)
				if other, taken := owner[key]; taken {
					g.t.Fatalf("%s is owned by %s and %s", key, id, other)
				}
				owner[key] = id
			}
		}
	}
	load := map[string]int{}
	for _, sub := range g.b.subs {
		for p := range g.partitions[sub.topics[0]] {
			first := owner[fmt.Sprintf("%s/%d", sub.topics[0], p)]
			if first == "" {
				g.t.Fatalf("%s/%d is owned by nobody", sub.name, p)
			}
			load[first]++
			for _, topic := range sub.topics[1:] {
				if got := owner[fmt.Sprintf("%s/%d", topic, p)]; got != first {
					g.t.Fatalf("%s/%d is at %s, and the rest of its task at %s", topic, p, got, first)
				}
			}
		}
	}
	low, high := 1<<30, 0
	for id := range g.owned {
		low, high = min(low, load[id]), max(high, load[id])
	}
	if len(g.owned) > 0 && high-low > 1 {
		g.t.Errorf("loads %v", load)
	}
}

func newGroup(t *testing.T) *group {
	subs := []Sub{
		{Name: "a", Sources: []Source{{Topic: "a"}, {Topic: "a2"}}, Stores: []Store{{Name: "s", Changelog: "s"}}},
		{Name: "b", Sources: []Source{{Topic: "b"}}, Stores: []Store{{Name: "r", Changelog: "r"}}},
	}
	return &group{
		t: t, b: newBalancer(topicsOf(subs), userData{}, placementLimits{}, zap.NewNop()),
		partitions: map[string]int32{"a": 7, "a2": 7, "b": 4},
		owned:      map[string]map[string][]int32{}, data: map[string]userData{}, topics: map[string][]string{},
	}
}

func TestBalancerSettlesAndSticks(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		g := newGroup(t)
		next := 0
		for range 15 {
			if len(g.owned) == 0 || rnd.IntN(3) > 0 && len(g.owned) < 6 {
				next++
				g.owned[fmt.Sprintf("m%02d", next)] = nil
			} else {
				for id := range g.owned {
					delete(g.owned, id)
					break
				}
			}
			if len(g.owned) == 0 {
				continue
			}
			before := fmt.Sprint(g.owned)
			g.rebalance()
			g.check()
			after := fmt.Sprint(g.owned)
			g.rebalance()
			if again := fmt.Sprint(g.owned); again != after {
				t.Fatalf("seed %d: a rebalance without a reason moved tasks\n%s\n%s\n%s", seed, before, after, again)
			}
		}
	}
}

// TestBalancerMovesTheLeast adds a member to two: each of them gives up only what the new one gets.
func TestBalancerMovesTheLeast(t *testing.T) {
	g := newGroup(t)
	g.owned["m1"], g.owned["m2"] = nil, nil
	g.rebalance()
	before := map[string]map[string][]int32{"m1": g.owned["m1"], "m2": g.owned["m2"]}
	g.owned["m3"] = nil
	g.rebalance()
	g.check()
	for _, id := range []string{"m1", "m2"} {
		for topic, ps := range g.owned[id] {
			for _, p := range ps {
				if !slices.Contains(before[id][topic], p) {
					t.Errorf("%s got %s/%d", id, topic, p)
				}
			}
		}
	}
}

func TestBalancerPrefersTheDisk(t *testing.T) {
	g := newGroup(t)
	g.data["m2"] = userData{subs: g.b.subs, tasks: []taskState{
		{id: task.ID{Sub: "a", Partition: 1}, position: -1}, {id: task.ID{Sub: "b", Partition: 3}, position: -1},
	}}
	g.owned["m1"], g.owned["m2"] = nil, nil
	g.rebalance()
	g.check()
	if !slices.Contains(g.owned["m2"]["a"], 1) || !slices.Contains(g.owned["m2"]["b"], 3) {
		t.Errorf("m2 got %v", g.owned["m2"])
	}
}

// TestBalancerServesOtherVersions gives a sub-topology only to the members that have it, and knows one that the leader
// does not have.
func TestBalancerServesOtherVersions(t *testing.T) {
	g := newGroup(t)
	g.partitions["new"] = 2
	g.topics["old"] = []string{"a", "a2"}
	g.topics["mid"] = []string{"a", "a2", "b"}
	g.topics["new"] = []string{"a", "a2", "b", "new"}
	g.data["new"] = userData{subs: append(slices.Clone(g.b.subs), subTopics{name: "new", topics: []string{"new"}})}
	g.owned["old"], g.owned["mid"], g.owned["new"] = nil, nil, nil
	g.rebalance()
	if len(g.owned["new"]["new"]) != 2 || len(g.owned["old"]["b"]) != 0 || len(g.owned["mid"]["new"]) != 0 {
		t.Errorf("owned %v", g.owned)
	}
}

func TestBalancerRefusesMismatch(t *testing.T) {
	g := newGroup(t)
	g.partitions["a2"] = 6
	m := kmsg.JoinGroupResponseMember{
		MemberID: "m", ProtocolMetadata: g.b.JoinGroupMetadata([]string{"a", "a2", "b"}, nil, 0),
	}
	mb, _, err := g.b.MemberBalancer([]kmsg.JoinGroupResponseMember{m})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = mb.(kgo.GroupMemberBalancerOrError).BalanceOrError(g.partitions); !errors.Is(err, ErrPartitionMismatch) {
		t.Errorf("error %v", err)
	}
}
