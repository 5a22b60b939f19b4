package sim

import (
	"errors"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace.dev/internal/engine"
	"tailrace.dev/internal/task"
)

// groupThread is the part of the client that keeps the membership. It goes on while the session's goroutine is in the
// middle of a commit, but for the callbacks: those wait until that allows a rebalance.
type groupThread struct {
	c          *session
	state      threadState
	memberID   string
	generation int32
	assigned   []tp // as of the last callbacks
	next       []tp // as of the last sync
	plan       []kmsg.SyncGroupRequestGroupAssignment
	callbacks  []func() error // wait for the session
	rejoin     bool           // when the callbacks have run
	// synchronised tells that this session had an assignment before.
	synchronised bool
	fetching     []tp // partitions whose committed offsets are asked for
}

type threadState int

const (
	threadOut     threadState = iota // no member
	threadJoining                    // waits for the answer to a join
	threadSyncing                    // waits for its assignment
	threadIn                         // a member
)

// step takes the next step of the thread.
func (g *groupThread) step() {
	c := g.c
	err := g.request()
	switch {
	case err == nil || errors.Is(err, errLost) || errors.Is(err, kerr.NotCoordinator):
	case errors.Is(err, kerr.FencedInstanceID):
		c.fail(&fencedError{err})
	case errors.Is(err, kerr.RebalanceInProgress):
		if len(g.callbacks) > 0 {
			g.rejoin = true
			return
		}
		g.state = threadOut
	default:
		g.lost(err)
	}
}

// lost forgets the membership. The thread joins again when the session has taken notice.
func (g *groupThread) lost(err error) {
	c := g.c
	c.s.say("%s: membership lost: %v", c.p.name, err)
	gone := g.assigned
	g.assigned, g.next, g.fetching = nil, nil, nil
	if errors.Is(err, kerr.UnknownMemberID) {
		g.memberID = ""
	}
	g.generation, g.state = -1, threadOut
	g.callbacks = append(g.callbacks, func() error { return c.revoked(gone, "lost") })
}

func (g *groupThread) request() error {
	c := g.c
	b := c.s.b
	switch g.state {
	case threadOut:
		if len(g.callbacks) > 0 {
			return nil
		}
		meta := c.balancer().JoinGroupMetadata(c.topics(), byTopic(g.assigned), g.generation)
		var id string
		err := c.request(func() (err error) {
			id, err = b.group.join(g.memberID, c.p.instance, meta)
			return err
		})
		if err == nil {
			g.memberID, g.state = id, threadJoining
			c.s.say("%s: joins as %s", c.p.name, id)
		}
		return err
	case threadJoining:
		generation, members, ok, err := b.group.answer(g.memberID)
		if err != nil || !ok {
			return err
		}
		g.generation, g.state, g.plan = generation, threadSyncing, nil
		if members != nil {
			g.plan, err = c.balance(members)
		}
		return err
	case threadSyncing:
		var assignment []byte
		ok := false
		err := c.request(func() (err error) {
			assignment, ok, err = b.group.sync(g.memberID, g.generation, g.plan)
			return err
		})
		if err != nil || !ok {
			return err
		}
		return g.synced(assignment)
	case threadIn:
		if len(g.fetching) > 0 {
			return g.fetchOffsets()
		}
		return c.request(func() error {
			return b.group.heartbeat(membership{g.memberID, c.p.instance, g.generation})
		})
	}
	return nil
}

// synced takes an assignment. What is lost is given up first, and then another join tells so.
func (g *groupThread) synced(assignment []byte) error {
	c := g.c
	g.state, g.next = threadIn, nil
	if len(assignment) > 0 {
		parts, err := c.balancer().ParseSyncAssignment(assignment)
		if err != nil {
			return fmt.Errorf("read the assignment: %w", err)
		}
		g.next = sorted(parts)
		var a kmsg.ConsumerMemberAssignment
		if err := a.ReadFrom(assignment); err != nil {
			return fmt.Errorf("read the assignment: %w", err)
		}
		copies, unsettled, err := engine.SimOrders(a.UserData)
		if err != nil {
			return err
		}
		if unsettled && !g.synchronised {
			g.rejoin = true // what our former self was about to give up is withheld from its next owner
		}
		c.post(func() error { c.setCopies(copies); return nil })
	}
	var added, gone []tp
	for _, p := range g.next {
		if !slices.Contains(g.assigned, p) {
			added = append(added, p)
		}
	}
	for _, p := range g.assigned {
		if !slices.Contains(g.next, p) {
			gone = append(gone, p)
		}
	}
	c.s.say("%s: generation %d, %d new, %d gone", c.p.name, g.generation, len(added), len(gone))
	if len(gone) > 0 {
		g.rejoin = true
		g.callbacks = append(g.callbacks, func() error { return c.revoked(gone, "revoked") })
	}
	g.synchronised = true
	member := g.memberID
	g.callbacks = append(g.callbacks, func() error {
		g.fetching = append(g.fetching, added...)
		return c.assignedTo(added, member)
	})
	g.assigned = g.next
	return nil
}

// fetchOffsets asks where the new partitions start. Offsets that are part of a transaction under way are waited for.
func (g *groupThread) fetchOffsets() error {
	c := g.c
	located := map[tp]groupOffset{}
	fresh := map[tp]bool{}
	for _, p := range g.fetching {
		o, ok, err := c.s.b.fetchOffset(p, c.s.defect != NoRequireStable)
		if errors.Is(err, kerr.UnstableOffsetCommit) {
			c.s.say("%s: the offset of %s[%d] is not stable", c.p.name, p.topic, p.partition)
			return nil
		}
		if err != nil {
			return err
		}
		if start := c.s.b.part(p).start; !ok {
			o.next = start
		} else if o.next < start {
			c.s.violate("%s: the committed offset %d of %s[%d] is gone", c.p.name, o.next, p.topic, p.partition)
		}
		located[p], fresh[p] = o, !ok
	}
	asked := g.fetching
	g.fetching = nil
	c.post(func() error { c.locate(asked, located); return nil })
	return nil
}

func sorted(parts map[string][]int32) []tp {
	var all []tp
	for topic, ps := range parts {
		for _, p := range ps {
			all = append(all, tp{topic, p})
		}
	}
	slices.SortFunc(all, func(a, b tp) int {
		return compareIDs(task.ID{Sub: a.topic, Partition: a.partition}, task.ID{Sub: b.topic, Partition: b.partition})
	})
	return all
}

func byTopic(parts []tp) map[string][]int32 {
	m := map[string][]int32{}
	for _, p := range parts {
		m[p.topic] = append(m[p.topic], p.partition)
	}
	return m
}

func (c *session) topics() []string {
	topics := append(slices.Clone(c.s.w.inputs), c.s.w.internal...)
	slices.Sort(topics)
	return topics
}

// balancer is the engine's own, with what this member has to say of itself.
func (c *session) balancer() kgo.GroupBalancer {
	m := engine.MemberState{TransactionalID: c.p.txID, Standbys: c.s.standbys}
	for _, id := range c.p.disk.ids() {
		mt := engine.MemberTask{ID: id, Position: -1, Lag: -1}
		if c.task(id) != nil {
			mt.Active, mt.Lag = true, 0
		} else if k := c.standby(id); k != nil {
			mt.Position, mt.Lag = k.progress()
		}
		m.Positions = append(m.Positions, mt)
	}
	return engine.SimBalancer(c.s.w.program, m, 10, c.s.warmups)
}

func (d *disk) ids() []task.ID {
	ids := make([]task.ID, 0, len(d.tasks))
	for id := range d.tasks {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, compareIDs)
	return ids
}

func (c *session) balance(members []kmsg.JoinGroupResponseMember) ([]kmsg.SyncGroupRequestGroupAssignment, error) {
	mb, _, err := c.balancer().MemberBalancer(members)
	if err != nil {
		return nil, err
	}
	counts := map[string]int32{}
	for _, t := range c.topics() {
		counts[t] = int32(c.s.partitions)
	}
	var into kgo.IntoSyncAssignment
	if fallible, ok := mb.(kgo.GroupMemberBalancerOrError); ok {
		into, err = fallible.BalanceOrError(counts)
	} else {
		into = mb.Balance(counts)
	}
	if err != nil {
		return nil, err
	}
	plan := into.IntoSyncAssignment()
	if plan == nil {
		plan = []kmsg.SyncGroupRequestGroupAssignment{}
	}
	return plan, nil
}

// allowRebalance lets the callbacks of a rebalance run. Nothing is uncommitted.
func (c *session) allowRebalance() error {
	g := &c.group
	for len(g.callbacks) > 0 {
		f := g.callbacks[0]
		g.callbacks = g.callbacks[1:]
		c.post(f)
	}
	if err := c.runPosted(); err != nil {
		return err
	}
	if g.rejoin {
		g.rejoin = false
		if g.state == threadIn {
			g.state = threadOut
		}
	}
	return nil
}

// assignedTo takes partitions over.
func (c *session) assignedTo(parts []tp, member string) error {
	if c.memberID != "" && member != c.memberID && len(c.tasks) > 0 {
		return rebuild("the group gave this member another id while it had tasks")
	}
	c.memberID = member
	for _, p := range parts {
		c.own(p).owned = true
	}
	c.startReady()
	return nil
}

// own returns the input of a partition, making its task where that is new.
func (c *session) own(p tp) *taskInput {
	i := slices.IndexFunc(c.s.w.subs, func(s sub) bool { return slices.Contains(s.inputs, p.topic) })
	sb := &c.s.w.subs[i]
	id := task.ID{Sub: sb.name, Partition: p.partition}
	t := c.task(id)
	if t == nil {
		t = c.newTask(sb, id)
	}
	return t.input(p.topic)
}

func (c *session) newTask(sb *sub, id task.ID) *taskRun {
	t := &taskRun{c: c, id: id, sub: sb}
	for _, topic := range sb.inputs {
		t.inputs = append(t.inputs, &taskInput{topic: topic, at: tp{topic, id.Partition}})
	}
	for _, spec := range sb.stores {
		st := &storeRun{spec: spec, produced: -1}
		st.early = c.s.b.part(tp{st.log(), id.Partition}).lso()
		t.stores = append(t.stores, st)
	}
	c.tasks = append(c.tasks, t)
	slices.SortFunc(c.tasks, func(a, b *taskRun) int { return compareIDs(a.id, b.id) })
	return t
}

func (c *session) locate(asked []tp, located map[tp]groupOffset) {
	for _, p := range asked {
		o := located[p]
		for _, t := range c.tasks {
			in := t.input(p.topic)
			if in == nil || t.id.Partition != p.partition || !in.owned || t.start != nil {
				continue
			}
			in.located, in.start, in.committed = true, o.next, o.next
			if o.metadata != "" {
				t.metadata = o.metadata
			}
		}
	}
	c.startReady()
}

func (c *session) startReady() {
	for _, t := range c.tasks {
		if t.start != nil || slices.ContainsFunc(t.inputs, func(in *taskInput) bool { return !in.owned || !in.located }) {
			continue
		}
		t.start = &starter{t: t}
	}
}

// revoked gives partitions up.
func (c *session) revoked(parts []tp, how string) error {
	var gone []*taskRun
	for _, p := range parts {
		for _, t := range c.tasks {
			in := t.input(p.topic)
			if in == nil || t.id.Partition != p.partition {
				continue
			}
			in.owned = false
			if !slices.Contains(gone, t) {
				gone = append(gone, t)
			}
		}
	}
	for _, t := range gone {
		if t.dirty {
			return rebuild("task %s was %s with uncommitted work", t.id, how)
		}
		c.s.say("%s: %s %s", c.p.name, t.id, how)
		c.retire(t, true)
	}
	return nil
}

// retire takes a task out of the session; it is closed in the background.
func (c *session) retire(t *taskRun, flush bool) {
	c.tasks = slices.DeleteFunc(c.tasks, func(o *taskRun) bool { return o == t })
	if t.backend == nil {
		return // it has opened nothing yet
	}
	c.closing = append(c.closing, &closer{t: t, flush: flush})
}
