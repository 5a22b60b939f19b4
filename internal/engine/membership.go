package engine

import (
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"tailrace.dev/internal/task"
)

const (
	// tellInterval is how often what the next join will say is brought up to date.
	tellInterval = time.Second
	// A member that asks for rebalances does so at most every forceGapFirst, doubling to forceGapLimit while nothing
	// comes of it.
	forceGapFirst = 500 * time.Millisecond
	forceGapLimit = time.Minute
	// forceDelay lets copies that come near at about the same time move in one rebalance.
	forceDelay = 100 * time.Millisecond
	// settleDelay is how long owners get to give up what the assignment that a session begins with takes from them.
	settleDelay = time.Second
)

// membership is the part of a session that deals with the group: what this member says of itself, and what the leader
// told it. What is not said to be shared belongs to the session's goroutine.
type membership struct {
	b          *balancer
	made       chan struct{}              // closed when the session's client is there for the balancer's callbacks
	previous   map[string][]int32         // of the client's goroutine: the assignment before
	round      atomic.Int64               // shared: counts joins; what was known of the group before one is worth nothing after it
	copies     map[task.ID]bool           // that this member was told to keep; true: to warm up for a move here
	ends       map[task.ID]int64          // changelog positions of tasks that ran here, as last seen
	near       map[task.ID]bool           // copies that came near
	nextTell   time.Time                  // when to bring up to date what the next join says
	forceAt    time.Time                  // when to ask for a rebalance; zero: never
	forced     time.Time                  // when the last one was asked for
	forceGap   time.Duration              // to keep between two
	settleAt   time.Time                  // when to ask for one that our former self left to be asked for; zero: never
	generation atomic.Pointer[generation] // shared: the present one; nil: it is not known who its members are
	looking    atomic.Bool                // shared: a look for a reset is under way
	moved      bool                       // a task came here since the last one was asked for
}

// generation is who the members of the group were after a round of joins.
type generation struct {
	round   int64
	members []string // transactional ids
}

// placementLimits are this member's settings, for when it is the leader.
func (e *Engine) placementLimits() placementLimits {
	return placementLimits{standbys: e.cfg.Standbys, warmupLag: e.cfg.WarmupLag, warmups: e.cfg.MaxWarmups}
}

// newGroupBalancer makes the balancer of the session's client.
func (s *session) newGroupBalancer() *balancer {
	g := &s.group
	g.made = make(chan struct{})
	g.ends = map[task.ID]int64{}
	g.copies, g.near, g.forceGap = map[task.ID]bool{}, map[task.ID]bool{}, forceGapFirst
	g.b = newBalancer(topicsOf(s.e.p.Subs), s.userData(), s.e.placementLimits(), s.log)
	g.b.joining = func() { g.round.Add(1) }
	g.b.synced = s.synced
	return g.b
}

// userData is what this member says of itself when it joins: of every task with state here, how far it is.
func (s *session) userData() userData {
	u := userData{
		fingerprint: s.e.p.Fingerprint, transactionalID: s.e.cfg.TransactionalID, standbys: s.e.cfg.Standbys,
		subs: topicsOf(s.e.p.Subs),
	}
	if !s.e.cfg.ExactlyOnce {
		u.transactionalID = "" // no transaction of this member can be in anybody's way
	}
	for _, st := range s.standbys.positions() {
		t := s.tasks[st.id]
		warmup, ordered := s.group.copies[st.id]
		st.warmup = warmup
		switch {
		case t != nil && t.running:
			st = taskState{id: st.id, role: roleActive}
			for _, store := range t.stores {
				st.position += max(0, store.position)
			}
			s.group.ends[st.id] = st.position
		case t != nil:
			st = taskState{id: st.id, position: -1, lag: -1, role: roleCopy} // under restoration
		case ordered && st.lag >= 0 && st.lag <= s.e.cfg.WarmupLag:
			st.role = roleWarm
		case ordered:
			st.role = roleCopy
		default:
			st.role = roleDisk
		}
		if end, ran := s.group.ends[st.id]; ran && st.position < 0 && t == nil {
			// The next owner needs to know how little there is to restore, when nobody runs the task.
			st.position = end
		}
		u.tasks = append(u.tasks, st)
	}
	return u
}

// synced is called by the client with a new assignment, before it acts on it.
func (s *session) synced(partitions map[string][]int32, data *assignmentData) {
	select {
	case <-s.group.made:
	case <-s.ctx.Done():
		return
	}
	s.post(func() error { s.ordered(data.copies); return nil })
	stalled := data.unsettled && s.group.previous == nil && s.e.cfg.InstanceID != ""
	s.post(func() error { s.settleSoon(stalled); return nil })
	s.e.met.add(data.members)
	var present *generation
	if data.known {
		present = &generation{round: s.group.round.Load(), members: data.members}
	}
	s.group.generation.Store(present)
	more := hasMore(partitions, s.group.previous)
	s.group.previous = partitions
	if more && s.e.cfg.ExactlyOnce && data.known {
		s.fenceGone(data.members)
	}
}

// settleSoon deals with an assignment that withholds partitions until their owners have given them up and joined again.
// The owner may have been our former self, which took that intention with it: a static member gets its place back without
// a rebalance, and nobody else would ask for one. Any other assignment that comes first makes that unnecessary.
func (s *session) settleSoon(stalled bool) {
	s.group.settleAt = time.Time{}
	if stalled {
		s.group.settleAt = time.Now().Add(settleDelay)
		s.wake()
	}
}

// hasMore tells whether there are partitions in now that are not in before.
func hasMore(now, before map[string][]int32) bool {
	for topic, ps := range now {
		for _, p := range ps {
			if !slices.Contains(before[topic], p) {
				return true
			}
		}
	}
	return false
}

// ordered takes the leader's word on which copies to keep.
func (s *session) ordered(copies []copyOrder) {
	g := &s.group
	clear(g.copies)
	ids := make([]task.ID, 0, len(copies))
	for _, c := range copies {
		if s.e.p.sub(c.id.Sub) == nil {
			continue
		}
		if _, twice := g.copies[c.id]; !twice {
			ids = append(ids, c.id)
		}
		g.copies[c.id] = g.copies[c.id] || c.warmup
	}
	if len(ids) > 0 {
		s.log.Info("copies to keep", zap.Stringers("tasks", ids))
	}
	s.standbys.set(ids)
	s.e.board.ordered(g.copies)
	for id := range g.near {
		if warmup, kept := g.copies[id]; !kept {
			delete(g.near, id)
		} else if warmup {
			s.wantRebalance() // it is near, and the leader did not know
		}
	}
	g.nextTell = time.Time{}
}

// warm is called when a copy came near to its task. If the task is to move here, the group is told.
func (s *session) warm(id task.ID) {
	warmup, kept := s.group.copies[id]
	if !kept {
		return
	}
	s.group.near[id] = true
	s.group.nextTell = time.Time{}
	if warmup {
		s.log.Info("warmed up", zap.Stringer("task", id))
		s.wantRebalance()
	}
}

// wantRebalance asks for a rebalance soon, but not sooner than the gap after the one before allows: a group that cannot
// agree must not keep itself busy.
func (s *session) wantRebalance() {
	g := &s.group
	if !g.forceAt.IsZero() {
		return
	}
	now := time.Now()
	if g.moved || now.Sub(g.forced) > 2*forceGapLimit {
		g.forceGap, g.moved = forceGapFirst, false
	}
	g.forceAt = now.Add(forceDelay)
	if next := g.forced.Add(g.forceGap); next.After(g.forceAt) {
		g.forceAt = next
	}
}

// keepMembership does what is due: it brings up to date what the next join says, and asks for a rebalance.
func (s *session) keepMembership(now time.Time) {
	g := &s.group
	if !g.settleAt.IsZero() && !now.Before(g.settleAt) {
		g.settleAt = time.Time{}
		s.log.Info("partitions are withheld, and nobody gives them up")
		s.wantRebalance()
	}
	force := !g.forceAt.IsZero() && !now.Before(g.forceAt)
	if !force && now.Before(g.nextTell) {
		return
	}
	g.nextTell = now.Add(tellInterval)
	g.b.tell(s.userData())
	if !force {
		return
	}
	g.forceAt, g.forced = time.Time{}, now
	g.forceGap = min(2*g.forceGap, forceGapLimit)
	s.log.Info("asking for a rebalance: a task can move here")
	s.cl.ForceRebalance()
}

// joinMark is what a member remembers of its last join. A static member that comes back with another one has to ask for
// a rebalance: the coordinator would leave everything as it was.
func (e *Engine) joinMark() string {
	if e.cfg.Standbys == 0 {
		return e.p.Fingerprint
	}
	return e.p.Fingerprint + " standbys=" + strconv.Itoa(e.cfg.Standbys)
}

// metMembers are the transactional ids of members of the group that this process knew at some time.
type metMembers struct {
	mu  sync.Mutex
	ids map[string]bool
}

// maxMet bounds metMembers. What is forgotten is waited for until its transaction times out.
const maxMet = 10_000

func (m *metMembers) add(ids []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ids == nil {
		m.ids = map[string]bool{}
	}
	for _, id := range ids {
		if len(m.ids) < maxMet {
			m.ids[id] = true
		}
	}
}

func (m *metMembers) has(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ids[id]
}
