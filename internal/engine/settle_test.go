package engine

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestWithheldPartitionsAreTold assigns tasks while another member still owns them: everybody must be told that the
// assignment is not the last word, because the owner may die before it has given them up.
func TestWithheldPartitionsAreTold(t *testing.T) {
	t.Parallel()
	p := countProgram("settle")
	balance := func(owned ...map[string][]int32) (unsettled []bool) {
		b := SimBalancer(&p, MemberState{TransactionalID: "t"}, 0, 0)
		var members []kmsg.JoinGroupResponseMember
		for i, o := range owned {
			m := kmsg.NewJoinGroupResponseMember()
			m.MemberID = string(rune('a' + i))
			m.ProtocolMetadata = b.JoinGroupMetadata([]string{"in"}, o, 1)
			members = append(members, m)
		}
		mb, _, err := b.MemberBalancer(members)
		if err != nil {
			t.Fatal(err)
		}
		plan, err := mb.(kgo.GroupMemberBalancerOrError).BalanceOrError(map[string]int32{"in": 4})
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range plan.IntoSyncAssignment() {
			var assigned kmsg.ConsumerMemberAssignment
			if err := assigned.ReadFrom(a.MemberAssignment); err != nil {
				t.Fatal(err)
			}
			_, u, err := SimOrders(assigned.UserData)
			if err != nil {
				t.Fatal(err)
			}
			unsettled = append(unsettled, u)
		}
		return unsettled
	}
	for _, u := range balance(map[string][]int32{"in": {0, 1, 2, 3}}, nil) {
		if !u {
			t.Error("partitions are withheld, and a member is not told")
		}
	}
	for _, u := range balance(map[string][]int32{"in": {0, 1}}, nil) {
		if u {
			t.Error("a member is told of withheld partitions, and there are none")
		}
	}
}

// TestAssignmentDataOfTheVersionBefore reads what a leader wrote that knew nothing of withheld partitions.
func TestAssignmentDataOfTheVersionBefore(t *testing.T) {
	t.Parallel()
	a := assignmentData{members: []string{"x"}, known: true, unsettled: true}
	b := a.append(nil)
	now, err := parseAssignmentData(b)
	if err != nil || !now.unsettled {
		t.Errorf("read back %+v, %v", now, err)
	}
	before, err := parseAssignmentData(b[:len(b)-1])
	if err != nil || before.unsettled || len(before.members) != 1 {
		t.Errorf("read %+v, %v", before, err)
	}
}
