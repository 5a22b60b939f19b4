package engine

import (
	"cmp"
	"slices"

	"tailrace.dev/internal/task"
)

// placementLimits are the leader's settings of an assignment.
type placementLimits struct {
	standbys  int   // copies of each stateful task beside the active one
	warmupLag int64 // how many changelog records behind a copy is near enough to take over
	warmups   int   // tasks that warm up at the same time; 0: tasks move at once
}

// placement decides which member runs which task, and which keeps copies of it. It depends on nothing but its arguments:
// no clock, no chance, no order of a map.
//
// First it finds where tasks belong: they stay with their owners as long as the members' loads differ by one at most,
// and what is free or must move goes where its state is. Then it looks at what can be done now: a task whose state is far
// from where it belongs stays with its owner until a copy there is near. A task without an owner is never left alone for
// that.
type placement struct {
	subs    []subTopics
	members []*balanceMember
	limits  placementLimits
	tasks   []balanceTask

	can   [][]bool // by sub-topology and member: may run it
	keeps [][]bool // by sub-topology and member: may keep a copy of its tasks
	ends  []int64  // by task: the largest sum of changelog positions that anybody knows, or -1

	owner    []int   // by task: the member that has it, or -1
	target   []int   // where it belongs, or -1 when nobody can run it
	active   []int   // who gets it now
	warmup   []int   // who warms up for it, or -1
	standbys [][]int // who else keeps a copy

	stateful, stateless []int   // by member: loads by target
	perSub              [][]int // by member and sub-topology
	copies              []int   // by member: standbys
}

// balanceTask is a task by the index of its sub-topology.
type balanceTask struct {
	sub       int
	partition int32
}

func newPlacement(subs []subTopics, counts []int32, members []*balanceMember, limits placementLimits) *placement {
	p := &placement{
		subs: subs, members: members, limits: limits,
		stateful: make([]int, len(members)), stateless: make([]int, len(members)), copies: make([]int, len(members)),
		perSub: make([][]int, len(members)), can: make([][]bool, len(subs)), keeps: make([][]bool, len(subs)),
	}
	for m := range members {
		p.perSub[m] = make([]int, len(subs))
	}
	for s, sub := range subs {
		p.can[s], p.keeps[s] = make([]bool, len(members)), make([]bool, len(members))
		for m, member := range members {
			p.can[s][m] = member.canRun(sub)
			p.keeps[s][m] = p.can[s][m] && member.canCopy(sub)
		}
		for part := range counts[s] {
			p.tasks = append(p.tasks, balanceTask{s, part})
			p.owner = append(p.owner, ownerOf(sub, part, members, p.can[s]))
			end := int64(-1)
			for _, member := range members {
				if st, ok := member.state[task.ID{Sub: sub.name, Partition: part}]; ok {
					end = max(end, st.position)
				}
			}
			p.ends = append(p.ends, end)
		}
	}
	none := func() []int { return slices.Repeat([]int{-1}, len(p.tasks)) }
	p.target, p.active, p.warmup = none(), none(), none()
	p.standbys = make([][]int, len(p.tasks))
	return p
}

// ownerOf returns the member that owns the task and can run it: the newest claim, then the one of more partitions.
func ownerOf(sub subTopics, partition int32, members []*balanceMember, can []bool) int {
	owner, bestN, bestG := -1, 0, int32(0)
	for i, m := range members {
		n, g := m.claim(sub, partition)
		if n == 0 || !can[i] {
			continue
		}
		if owner < 0 || g > bestG || g == bestG && n > bestN {
			owner, bestN, bestG = i, n, g
		}
	}
	return owner
}

// decide fills in everything.
func (p *placement) decide() {
	if len(p.members) == 0 {
		return
	}
	for t, m := range p.owner {
		if m >= 0 {
			p.put(t, m)
		}
	}
	p.place(true)
	p.place(false)
	p.moveOrWarm()
	p.placeStandbys()
}

func (p *placement) id(t int) task.ID {
	return task.ID{Sub: p.subs[p.tasks[t].sub].name, Partition: p.tasks[t].partition}
}

func (p *placement) canRun(t, m int) bool { return p.can[p.tasks[t].sub][m] }

func (p *placement) isStateful(t int) bool { return p.subs[p.tasks[t].sub].stateful }

// rank says how good a member's copy of a task is: by class, and then by how much it is behind.
type rank struct {
	class  int
	behind int64
}

const (
	rankWarmed  = iota // warmed up for the move
	rankNear           // can take over at once
	rankSmall          // there is so little that it need not have it
	rankBehind         // a copy that is known to be far behind
	rankUnknown        // a copy that nobody has looked at
	rankNone           // nothing
)

func (r rank) compare(o rank) int {
	return cmp.Or(cmp.Compare(r.class, o.class), cmp.Compare(r.behind, o.behind))
}

// rank returns the rank of m's copy of t. Where there is no copy, everything is missing, which is little when the
// changelog is short.
func (p *placement) rank(t, m int) rank {
	if !p.isStateful(t) {
		return rank{}
	}
	st, ok := p.members[m].state[p.id(t)]
	end, lag := p.ends[t], int64(-1)
	switch {
	case ok && st.role == roleWarm && st.warmup:
		return rank{rankWarmed, max(0, st.lag)}
	case ok && st.role >= roleWarm:
		return rank{rankNear, max(0, st.lag)}
	case ok && st.lag >= 0:
		lag = st.lag
	case ok && st.position >= 0 && end >= 0:
		lag = max(0, end-st.position)
	case end >= 0:
		lag = end
	}
	switch {
	case lag >= 0 && lag <= p.limits.warmupLag && ok:
		return rank{rankNear, lag}
	case lag >= 0 && lag <= p.limits.warmupLag:
		return rank{rankSmall, lag}
	case ok && st.lag < 0 && st.position < 0:
		return rank{rankUnknown, max(0, lag)}
	case ok:
		return rank{rankBehind, lag}
	}
	return rank{rankNone, max(0, lag)}
}

// near tells whether t can move to m without anybody waiting for it.
func (p *placement) near(t, m int) bool { return p.rank(t, m).class <= rankSmall }

// put makes m the target of t.
func (p *placement) put(t, m int) {
	if old := p.target[t]; old >= 0 {
		p.count(t, old, -1)
	}
	p.target[t] = m
	p.count(t, m, 1)
}

func (p *placement) count(t, m, n int) {
	if p.isStateful(t) {
		p.stateful[m] += n
	} else {
		p.stateless[m] += n
	}
	p.perSub[m][p.tasks[t].sub] += n
}

// load is what has to be level: stateful tasks on their own, stateless ones together with them.
func (p *placement) load(m int, stateful bool) int {
	if stateful {
		return p.stateful[m]
	}
	return p.stateful[m] + p.stateless[m]
}

// other is what decides between members of the same load: the tasks of all kinds for stateful ones, the stateless ones
// alone for those.
func (p *placement) other(m int, stateful bool) int {
	if stateful {
		return p.load(m, false)
	}
	return p.stateless[m]
}

// place finds the targets of all tasks of one kind. Those that have an owner are with it.
func (p *placement) place(stateful bool) {
	var kind, free []int
	for t := range p.tasks {
		if p.isStateful(t) != stateful {
			continue
		}
		kind = append(kind, t)
		if p.owner[t] < 0 {
			free = append(free, t)
		}
	}
	for _, t := range free {
		best := -1
		for m := range p.members {
			if p.canRun(t, m) && (best < 0 || p.compareHomes(t, m, best, stateful) < 0) {
				best = m
			}
		}
		if best >= 0 {
			p.put(t, best)
		}
	}
	p.levelAll(kind, stateful)
	if stateful && p.arrange(kind) {
		p.levelAll(kind, stateful)
	}
}

// compareHomes compares two members as the new home of a free task.
func (p *placement) compareHomes(t, m, n int, stateful bool) int {
	sub := p.tasks[t].sub
	return cmp.Or(
		cmp.Compare(p.load(m, stateful), p.load(n, stateful)),
		p.rank(t, m).compare(p.rank(t, n)),
		cmp.Compare(p.load(m, false), p.load(n, false)),
		cmp.Compare(p.stateless[m], p.stateless[n]),
		cmp.Compare(p.perSub[m][sub], p.perSub[n][sub]),
	)
}

// levelAll moves tasks of one kind until loads are level. Each move lowers a sum of squares, so it ends.
func (p *placement) levelAll(kind []int, stateful bool) {
	for range 2*len(kind)*len(p.members) + 1 {
		if !p.level(kind, stateful) {
			return
		}
	}
}

// levelMove is a move that makes two loads more level. The better one comes first.
type levelMove struct {
	gain   int
	owned  bool // takes the task from an owner that is alive
	heavy  int  // how much more the one has who gives of what is leveled next
	rank   rank
	spread int
	t, to  int
}

func (x levelMove) better(y levelMove) bool {
	owned := func(v bool) int {
		if v {
			return 1
		}
		return 0
	}
	return cmp.Or(
		-cmp.Compare(x.gain, y.gain), cmp.Compare(owned(x.owned), owned(y.owned)),
		-cmp.Compare(x.heavy, y.heavy), cmp.Compare(x.rank.class, y.rank.class),
		-cmp.Compare(x.spread, y.spread), cmp.Compare(x.rank.behind, y.rank.behind), -cmp.Compare(x.t, y.t),
		cmp.Compare(x.to, y.to),
	) < 0
}

// level makes the best move, if there is any.
func (p *placement) level(kind []int, stateful bool) bool {
	var best levelMove
	for _, t := range kind {
		from := p.target[t]
		if from < 0 {
			continue
		}
		sub := p.tasks[t].sub
		for to := range p.members {
			gain := p.gain(from, to, stateful)
			if gain == 0 || gain < best.gain || !p.canRun(t, to) {
				continue
			}
			move := levelMove{
				gain: gain, owned: p.owner[t] == from, heavy: p.other(from, stateful) - p.other(to, stateful),
				rank:   p.rank(t, to),
				spread: p.perSub[from][sub] - p.perSub[to][sub], t: t, to: to,
			}
			if best.gain == 0 || move.better(best) {
				best = move
			}
		}
	}
	if best.gain == 0 {
		return false
	}
	p.put(best.t, best.to)
	return true
}

// gain tells how much a move of one task from a member to another levels, 0 for nothing. Members whose total loads
// differ by one still exchange which of them has it, when that spreads the stateless tasks.
func (p *placement) gain(from, to int, stateful bool) int {
	diff := p.load(from, stateful) - p.load(to, stateful)
	switch {
	case diff >= 2:
		return diff
	case diff == 1 && !stateful && p.stateless[from]-p.stateless[to] >= 2:
		return 1
	}
	return 0
}

// arrange exchanges the tasks that go to a new home anyway among their new homes, so that more of them come to where
// their state is. It tells whether it changed anything.
func (p *placement) arrange(kind []int) bool {
	var moving []int
	slots := make([]int, len(p.members))
	for _, t := range kind {
		if m := p.target[t]; m >= 0 && m != p.owner[t] {
			moving = append(moving, t)
			slots[m]++
		}
	}
	if len(moving) == 0 {
		return false
	}
	type option struct {
		r    rank
		t, m int
	}
	var options []option
	for _, t := range moving {
		for m := range p.members {
			if r := p.rank(t, m); slots[m] > 0 && p.canRun(t, m) && r.class < rankNone {
				options = append(options, option{r, t, m})
			}
		}
	}
	slices.SortFunc(options, func(x, y option) int {
		return cmp.Or(x.r.compare(y.r), cmp.Compare(x.t, y.t), cmp.Compare(x.m, y.m))
	})
	home := make(map[int]int, len(moving))
	take := func(t, m int) bool {
		if _, done := home[t]; done || slots[m] == 0 || !p.canRun(t, m) {
			return false
		}
		slots[m]--
		home[t] = m
		return true
	}
	for _, o := range options {
		take(o.t, o.m)
	}
	for _, t := range moving {
		take(t, p.target[t])
	}
	for _, t := range moving {
		for m := range p.members {
			take(t, m)
		}
	}
	changed := false
	if len(home) == len(moving) { // else members that cannot run everything are in the way
		for _, t := range moving {
			changed = changed || p.target[t] != home[t]
			p.put(t, home[t])
		}
	}
	return p.flip(moving) || changed
}

// flip moves tasks to a better copy at a member that has one task less, which then is the one that has one more.
func (p *placement) flip(moving []int) bool {
	changed := false
	for range moving { // each round improves at least one task's class
		again := false
		for _, t := range moving {
			from := p.target[t]
			class := p.rank(t, from).class
			for m := range p.members {
				if p.canRun(t, m) && p.stateful[m]+1 == p.stateful[from] && p.rank(t, m).class < class {
					p.put(t, m)
					again = true
					break
				}
			}
		}
		if !again {
			break
		}
		changed = true
	}
	return changed
}

// moveOrWarm decides who runs each task now.
func (p *placement) moveOrWarm() {
	load := make([]int, len(p.members)) // stateful tasks given out
	var waiting []int
	for t := range p.tasks {
		owner, target := p.owner[t], p.target[t]
		p.active[t] = target
		if target < 0 || !p.isStateful(t) {
			continue
		}
		if target != owner && p.limits.warmups > 0 && p.keeps[p.tasks[t].sub][target] && !p.near(t, target) {
			switch {
			case owner < 0:
				waiting = append(waiting, t) // for a member that has it, if there is any
				continue
			case p.runs(t, owner):
				p.active[t] = owner
			}
		}
		load[p.active[t]]++
	}
	for _, t := range waiting {
		best := p.target[t]
		for m := range p.members {
			if p.canRun(t, m) && p.near(t, m) && (best == p.target[t] || load[m] < load[best]) {
				best = m
			}
		}
		p.active[t] = best
		load[best]++
	}
	p.chooseWarmups()
}

// runs tells whether an owner has the state that its task needs. One that is still restoring has nothing to lose.
func (p *placement) runs(t, owner int) bool {
	m := p.members[owner]
	return m.data.version < 2 || m.state[p.id(t)].role == roleActive
}

// chooseWarmups gives the tasks that wait for a copy to those who shall have it: as many as may warm up at the same
// time, those first that are under way, then the shortest.
func (p *placement) chooseWarmups() {
	var wait []int
	for t := range p.tasks {
		if p.active[t] != p.target[t] {
			wait = append(wait, t)
		}
	}
	under := func(t int) int {
		if p.members[p.target[t]].state[p.id(t)].role >= roleCopy {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(wait, func(x, y int) int {
		return cmp.Or(cmp.Compare(under(x), under(y)), p.rank(x, p.target[x]).compare(p.rank(y, p.target[y])))
	})
	for _, t := range wait[:min(len(wait), p.limits.warmups)] {
		p.warmup[t] = p.target[t]
	}
}

// placeStandbys chooses who keeps copies: those who have them already, as far as all keep about the same number, and
// then those with the fewest.
func (p *placement) placeStandbys() {
	if p.limits.standbys <= 0 {
		return
	}
	var stateful []int
	able := make([]bool, len(p.members))
	for t := range p.tasks {
		if p.active[t] < 0 || !p.isStateful(t) {
			continue
		}
		stateful = append(stateful, t)
		for m := range p.members {
			able[m] = able[m] || p.keeps[p.tasks[t].sub][m]
		}
	}
	n := 0
	for _, ok := range able {
		if ok {
			n++
		}
	}
	if n < 2 {
		return
	}
	limit := (len(stateful)*min(p.limits.standbys, n-1) + n - 1) / n
	for _, t := range stateful {
		p.keepCopies(t, roleCopy, len(stateful)) // what is running stays; leveling comes later
	}
	for _, t := range stateful {
		p.keepCopies(t, roleDisk, limit)
	}
	for range p.limits.standbys {
		for _, t := range stateful {
			p.addCopy(t)
		}
	}
	for range len(stateful)*len(p.members) + 1 {
		if !p.levelCopies(stateful) {
			break
		}
	}
}

// mayCopy tells whether m may become a standby of t.
func (p *placement) mayCopy(t, m int) bool {
	return p.keeps[p.tasks[t].sub][m] && p.active[t] != m && p.warmup[t] != m && !slices.Contains(p.standbys[t], m)
}

// keepCopies leaves copies of t of some worth at least where they are, the best first.
func (p *placement) keepCopies(t int, worth taskRole, limit int) {
	id := p.id(t)
	for len(p.standbys[t]) < p.limits.standbys {
		best := -1
		for m, member := range p.members {
			st, ok := member.state[id]
			if !ok || st.role < worth || p.copies[m] >= limit || !p.mayCopy(t, m) {
				continue
			}
			if best < 0 || cmp.Or(p.rank(t, m).compare(p.rank(t, best)), cmp.Compare(p.copies[m], p.copies[best])) < 0 {
				best = m
			}
		}
		if best < 0 {
			return
		}
		p.copy(t, best)
	}
}

// addCopy gives t one more standby where one is missing.
func (p *placement) addCopy(t int) {
	if len(p.standbys[t]) >= p.limits.standbys {
		return
	}
	best := -1
	for m := range p.members {
		if p.mayCopy(t, m) && (best < 0 || cmp.Or(
			cmp.Compare(p.copies[m], p.copies[best]),
			p.rank(t, m).compare(p.rank(t, best)),
			cmp.Compare(p.load(m, false), p.load(best, false)),
		) < 0) {
			best = m
		}
	}
	if best >= 0 {
		p.copy(t, best)
	}
}

func (p *placement) copy(t, m int) {
	p.standbys[t] = append(p.standbys[t], m)
	p.copies[m]++
}

// levelCopies moves one standby between the members whose numbers of standbys differ most, if that is by two or more.
func (p *placement) levelCopies(stateful []int) bool {
	type move struct {
		gain    int
		running bool
		r       rank
		t, i    int
		to      int
	}
	var best move
	for _, t := range stateful {
		for i, from := range p.standbys[t] {
			for to := range p.members {
				gain := p.copies[from] - p.copies[to]
				if gain < 2 || gain < best.gain || !p.mayCopy(t, to) {
					continue
				}
				m := move{gain, p.members[from].state[p.id(t)].role >= roleCopy, p.rank(t, to), t, i, to}
				if best.gain == 0 || m.gain > best.gain || !m.running && best.running ||
					m.running == best.running && m.r.compare(best.r) < 0 {
					best = m
				}
			}
		}
	}
	if best.gain == 0 {
		return false
	}
	p.copies[p.standbys[best.t][best.i]]--
	p.standbys[best.t][best.i] = best.to
	p.copies[best.to]++
	return true
}

// assignmentData returns what each member is told beside its partitions, by member id.
func (p *placement) assignmentData() map[string]*assignmentData {
	known := true
	var ids []string
	for _, m := range p.members {
		known = known && m.data.version > 0
		if m.data.transactionalID != "" {
			ids = append(ids, m.data.transactionalID)
		}
	}
	slices.Sort(ids)
	out := make(map[string]*assignmentData, len(p.members))
	byIndex := make([]*assignmentData, len(p.members))
	for i, m := range p.members {
		byIndex[i] = &assignmentData{members: ids, known: known}
		out[m.member.MemberID] = byIndex[i]
	}
	for t := range p.tasks {
		id := p.id(t)
		if m := p.warmup[t]; m >= 0 {
			byIndex[m].copies = append(byIndex[m].copies, copyOrder{id, true})
		}
		for _, m := range p.standbys[t] {
			byIndex[m].copies = append(byIndex[m].copies, copyOrder{id, false})
		}
		// Until its owner has given the task up, the copy that takes over goes on.
		m := p.active[t]
		if m >= 0 && p.owner[t] >= 0 && p.owner[t] != m && p.members[m].state[id].role >= roleCopy &&
			p.members[m].state[id].role != roleActive && p.keeps[p.tasks[t].sub][m] {
			byIndex[m].copies = append(byIndex[m].copies, copyOrder{id, false})
		}
	}
	return out
}
