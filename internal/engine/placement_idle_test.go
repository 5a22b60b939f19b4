package engine

import (
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/zap"

	"tailrace.dev/internal/task"
)

// TestPlacementLeavesNobodyIdle lets members say whatever they may after kills: stale claims, copies of any role and
// lag. When nothing moves, nothing warms up and nothing is withheld, nobody asks for another rebalance, so that the
// tasks must be level then.
func TestPlacementLeavesNobodyIdle(t *testing.T) {
	t.Parallel()
	subs := []subTopics{{name: "in", stateful: true, topics: []string{"in"}}}
	for seed := range uint64(20_000) {
		r := rand.New(rand.NewPCG(seed, 1))
		limits := placementLimits{standbys: r.IntN(2), warmupLag: 10_000, warmups: 2}
		lags := []int64{-1, 0, 9_999, 10_001, 1_000_000}
		var joined []kmsg.JoinGroupResponseMember
		for m := range 2 + r.IntN(3) {
			u := userData{transactionalID: strconv.Itoa(m), standbys: limits.standbys, subs: subs}
			var owned []int32
			for p := range int32(4) {
				if r.IntN(3) == 0 {
					owned = append(owned, p)
				}
				if r.IntN(2) == 0 {
					u.tasks = append(u.tasks, taskState{
						id: task.ID{Sub: "in", Partition: p}, role: taskRole(r.IntN(int(roleActive) + 1)),
						position: lags[r.IntN(len(lags))], lag: lags[r.IntN(len(lags))], warmup: r.IntN(2) == 0,
					})
				}
			}
			b := newBalancer(subs, u, limits, zap.NewNop())
			member := kmsg.NewJoinGroupResponseMember()
			member.MemberID = strconv.Itoa(m)
			member.ProtocolMetadata = b.JoinGroupMetadata([]string{"in"}, map[string][]int32{"in": owned}, int32(r.IntN(4)-1))
			joined = append(joined, member)
		}
		b := newBalancer(subs, userData{}, limits, zap.NewNop())
		mb, _, err := b.MemberBalancer(joined)
		if err != nil {
			t.Fatal(err)
		}
		plan, err := mb.(kgo.GroupMemberBalancerOrError).BalanceOrError(map[string]int32{"in": 4})
		if err != nil {
			t.Fatal(err)
		}
		var loads []int
		pending := false
		for _, a := range plan.IntoSyncAssignment() {
			var assigned kmsg.ConsumerMemberAssignment
			if err := assigned.ReadFrom(a.MemberAssignment); err != nil {
				t.Fatal(err)
			}
			data, err := parseAssignmentData(assigned.UserData)
			if err != nil {
				t.Fatal(err)
			}
			pending = pending || data.unsettled || slices.ContainsFunc(data.copies, func(c copyOrder) bool { return c.warmup })
			n := 0
			for _, topic := range assigned.Topics {
				n += len(topic.Partitions)
			}
			loads = append(loads, n)
		}
		for len(loads) < len(joined) {
			loads = append(loads, 0)
		}
		if !pending && slices.Max(loads)-slices.Min(loads) > 1 {
			t.Fatalf("seed %d: loads %v, and nobody has a reason to ask for a rebalance", seed, loads)
		}
	}
}
