package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"tailrace.dev/internal/task"
)

// The states of a group.
const (
	GroupStable      = "stable"      // all members have their tasks
	GroupRebalancing = "rebalancing" // the members are agreeing on who has what
	GroupEmpty       = "empty"       // no member
)

// GroupStatus is what a cluster knows of an application. It is a copy, which is the caller's.
type GroupStatus struct {
	App string `json:"application"`
	// State is one of GroupStable, GroupRebalancing and GroupEmpty.
	State string    `json:"state"`
	Time  time.Time `json:"time"`
	// UnfinishedReset tells that a reset was begun and not finished, so that no member can start.
	UnfinishedReset bool `json:"unfinishedReset,omitempty"`
	// Members are sorted by Instance and ID, Tasks by sub-topology and partition.
	Members []GroupMember `json:"members"`
	Tasks   []GroupTask   `json:"tasks"`
	// Lag is the sum of all known lags of the inputs.
	Lag int64 `json:"lag"`
}

// GroupMember is a member of an application's group. While the group is rebalancing the brokers tell nothing but who it is.
type GroupMember struct {
	ID       string `json:"id"`
	Instance string `json:"instance,omitempty"`
	Client   string `json:"client"`
	Host     string `json:"host"`
	// Fingerprint is that of the member's topology: members with different ones run different versions of the program.
	Fingerprint string `json:"fingerprint,omitempty"`
	// TransactionalID is that of its producer.
	TransactionalID string `json:"transactionalId,omitempty"`
	// Active, Standby and Warmup are how many tasks it has in each role.
	Active  int `json:"active"`
	Standby int `json:"standby"`
	Warmup  int `json:"warmup"`
}

// GroupTask is a task of an application: a sub-topology on one partition of its inputs.
type GroupTask struct {
	Task   task.ID `json:"-"`
	Name   string  `json:"task"`
	Stores int     `json:"stores"`
	// Active is the id of the member that runs it, empty if none does.
	Active string `json:"active,omitempty"`
	// Copies are with other members.
	Copies []TaskCopy `json:"copies"`
	Inputs []TaskLag  `json:"inputs"`
}

// Lag is the sum of the known lags of the inputs.
func (t *GroupTask) Lag() int64 {
	var n int64
	for _, in := range t.Inputs {
		if in.Lag != nil {
			n += *in.Lag
		}
	}
	return n
}

// TaskCopy is a copy of a task's state.
type TaskCopy struct {
	// Member is the id of the member that keeps it.
	Member string `json:"member"`
	// Role is RoleStandby, or RoleWarmup where the task is to move.
	Role Role `json:"role"`
	// Lag is how many changelog records it was behind when the member joined the group last; nil if it did not know.
	Lag *int64 `json:"lag"`
}

// TaskLag is how far a task is with one of its inputs. What is not known is nil.
type TaskLag struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	// Committed is the offset of the next record to process, End that behind the last committed record.
	Committed *int64 `json:"committed"`
	End       *int64 `json:"end"`
	// Lag is how many offsets are between the two. Without a committed offset, it is all that the partition holds.
	Lag *int64 `json:"lag"`
}

// parsedMember is a member of a group with what it and the leader said beside the protocol.
type parsedMember struct {
	GroupMember
	assigned map[string][]int32
	data     *userData
	orders   *assignmentData
}

// parseMembers reads what members and leader said. Whoever may join the group can have written it: what cannot be read
// counts as not said.
func parseMembers(g *kadm.DescribedGroup) []parsedMember {
	if g == nil {
		return nil
	}
	var out []parsedMember
	for _, m := range g.Members {
		p := parsedMember{
			GroupMember: GroupMember{ID: m.MemberID, Client: m.ClientID, Host: strings.TrimPrefix(m.ClientHost, "/")},
			assigned:    map[string][]int32{}, data: &userData{}, orders: &assignmentData{},
		}
		if m.InstanceID != nil {
			p.Instance = *m.InstanceID
		}
		if join, ok := m.Join.AsConsumer(); ok {
			if d, err := parseUserData(join.UserData); err == nil {
				p.data = d
				p.Fingerprint, p.TransactionalID = d.fingerprint, d.transactionalID
			}
		}
		if a, ok := m.Assigned.AsConsumer(); ok {
			for _, t := range a.Topics {
				p.assigned[t.Topic] = t.Partitions
			}
			if d, err := parseAssignmentData(a.UserData); err == nil {
				p.orders = d
			}
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b parsedMember) int {
		return cmp.Or(strings.Compare(a.Instance, b.Instance), strings.Compare(a.ID, b.ID))
	})
	return out
}

// Status returns what the cluster knows of an application. known are its sub-topologies where the caller knows them; else
// they are what was recorded, or what the members say. An error that is ErrUnknownApp says that there is nothing.
func (a *Admin) Status(ctx context.Context, app string, known []AppTopics) (*GroupStatus, error) {
	ctx, cancel := a.within(ctx)
	defer cancel()
	st, err := a.status(ctx, app, known)
	if err != nil {
		return nil, a.unanswered(ctx, err)
	}
	return st, nil
}

func (a *Admin) status(ctx context.Context, app string, known []AppTopics) (*GroupStatus, error) {
	g, err := a.group(ctx, app)
	if err != nil {
		return nil, err
	}
	rec, err := a.recorded(ctx, app)
	if err != nil {
		return nil, err
	}
	members := parseMembers(g)
	committed, err := a.committed(ctx, app)
	if err != nil {
		return nil, err
	}
	subs := known
	if len(subs) == 0 {
		subs = rec.shape.appTopics()
	}
	if len(subs) == 0 {
		subs = guessTopics(members, committed)
	}
	if g == nil && rec.shape == nil && len(committed) == 0 {
		return nil, unknownApp(app, "no group, no committed offset and no record of it")
	}
	st := &GroupStatus{App: app, State: groupState(g), Time: a.now().UTC(), Members: []GroupMember{}, Tasks: []GroupTask{}}
	st.UnfinishedReset = rec.mark != nil && rec.mark.Done.IsZero()
	if st.Tasks, err = a.groupTasks(ctx, subs, committed); err != nil {
		return nil, err
	}
	for _, m := range members {
		m.holdings(st.Tasks, subs)
		st.Members = append(st.Members, m.GroupMember)
	}
	for i := range st.Tasks {
		st.Lag += st.Tasks[i].Lag()
	}
	return st, nil
}

func groupState(g *kadm.DescribedGroup) string {
	switch {
	case g == nil || g.State == "Empty":
		return GroupEmpty
	case g.State == "Stable":
		return GroupStable
	}
	return GroupRebalancing
}

// committed returns the committed offsets of a group, which may not exist.
func (a *Admin) committed(ctx context.Context, app string) (kadm.OffsetResponses, error) {
	committed, err := a.adm.FetchOffsets(ctx, app)
	if errors.Is(err, kerr.GroupIDNotFound) {
		return kadm.OffsetResponses{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("engine: ask for the committed offsets of %q: %w", app, err)
	}
	return committed, nil
}

// guessTopics makes sub-topologies of what the members say, and else of each topic with a committed offset.
func guessTopics(members []parsedMember, committed kadm.OffsetResponses) []AppTopics {
	var subs []AppTopics
	have := map[string]bool{}
	for _, m := range members {
		for _, sub := range m.data.subs {
			if !slices.ContainsFunc(sub.topics, func(t string) bool { return have[t] }) {
				subs = append(subs, AppTopics{Name: sub.name, Sources: sub.topics})
			}
			for _, t := range sub.topics {
				have[t] = true
			}
		}
	}
	for topic := range committed {
		if !have[topic] {
			subs = append(subs, AppTopics{Name: topic, Sources: []string{topic}})
		}
	}
	slices.SortFunc(subs, func(a, b AppTopics) int { return strings.Compare(a.Name, b.Name) })
	return subs
}

// groupTasks lists the tasks of the sub-topologies with the positions in their inputs.
func (a *Admin) groupTasks(ctx context.Context, subs []AppTopics, committed kadm.OffsetResponses) ([]GroupTask, error) {
	var topics []string
	for _, sub := range subs {
		topics = append(topics, sub.Sources...)
	}
	tasks := []GroupTask{}
	if len(topics) == 0 {
		return tasks, nil
	}
	slices.Sort(topics)
	topics = slices.Compact(topics)
	starts, err := a.adm.ListStartOffsets(ctx, topics...)
	if err != nil {
		return nil, fmt.Errorf("engine: find where the inputs start: %w", err)
	}
	ends, err := a.adm.ListCommittedOffsets(ctx, topics...)
	if err != nil {
		return nil, fmt.Errorf("engine: find where the inputs end: %w", err)
	}
	for _, sub := range subs {
		n := int32(0)
		for _, t := range sub.Sources {
			for p := range ends[t] {
				n = max(n, p+1)
			}
		}
		for p := range n {
			t := GroupTask{Task: task.ID{Sub: sub.Name, Partition: p}, Stores: len(sub.Stores), Copies: []TaskCopy{}}
			t.Name = t.Task.String()
			for _, topic := range sub.Sources {
				if end, ok := ends.Lookup(topic, p); ok {
					start, _ := starts.Lookup(topic, p)
					t.Inputs = append(t.Inputs, taskLag(topic, p, committed, start, end))
				}
			}
			tasks = append(tasks, t)
		}
	}
	slices.SortFunc(tasks, func(a, b GroupTask) int {
		return cmp.Or(strings.Compare(a.Task.Sub, b.Task.Sub), cmp.Compare(a.Task.Partition, b.Task.Partition))
	})
	return tasks, nil
}

func taskLag(topic string, p int32, committed kadm.OffsetResponses, start, end kadm.ListedOffset) TaskLag {
	l := TaskLag{Topic: topic, Partition: p}
	from := int64(-1)
	if c, ok := committed.Lookup(topic, p); ok && c.Err == nil && c.At >= 0 {
		l.Committed = &c.At
		from = c.At
	} else if start.Err == nil {
		from = start.Offset
	}
	if end.Err == nil {
		l.End = &end.Offset
		if from >= 0 {
			behind := max(0, end.Offset-from)
			l.Lag = &behind
		}
	}
	return l
}

// holdings notes in tasks what a member has, and counts it.
func (m *parsedMember) holdings(tasks []GroupTask, subs []AppTopics) {
	inputs := make(map[string][]string, len(subs))
	for _, sub := range subs {
		inputs[sub.Name] = sub.Sources
	}
	for i := range tasks {
		t := &tasks[i]
		runs := slices.ContainsFunc(inputs[t.Task.Sub], func(topic string) bool {
			return slices.Contains(m.assigned[topic], t.Task.Partition)
		})
		if runs {
			t.Active = m.ID
			m.Active++
			continue
		}
		at := slices.IndexFunc(m.orders.copies, func(c copyOrder) bool { return c.id == t.Task })
		if at < 0 {
			continue
		}
		c := TaskCopy{Member: m.ID, Role: RoleStandby}
		if m.orders.copies[at].warmup {
			c.Role = RoleWarmup
			m.Warmup++
		} else {
			m.Standby++
		}
		if s := slices.IndexFunc(m.data.tasks, func(s taskState) bool { return s.id == t.Task }); s >= 0 && m.data.tasks[s].lag >= 0 {
			lag := m.data.tasks[s].lag
			c.Lag = &lag
		}
		t.Copies = append(t.Copies, c)
	}
}
