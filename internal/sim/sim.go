package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/internal/engine"
	"tailrace.dev/internal/task"
	"tailrace.dev/state"
)

var barrierKey = engine.BarrierKey()

// valueOf returns the user's part of a row.
func valueOf(row []byte) []byte {
	_, value, err := state.ParseRow(row)
	if err != nil {
		return row
	}
	return value
}

// Result is what came of a run.
type Result struct {
	// Seed gives the same run again, Workload names the topology that it chose.
	Seed     uint64
	Workload string
	// Findings says what was wrong, a bounded number of lines; nil: nothing.
	Findings []string
	// Steps and Inputs count the steps and the records of the input, Crashes the processes killed, Holds those that were
	// stopped in a commit for a while, Rebuilds the sessions that began anew, Aborts the transactions undone in place, and
	// Wipes the stores dropped because they could not be built on.
	Steps, Inputs, Crashes, Holds, Rebuilds, Aborts, Wipes int
	// Trace holds the last lines of what happened, if it was asked for.
	Trace []string
}

// Options change a run.
type Options struct {
	// Defect is a mistake to be found.
	Defect Defect
	// TraceLines is how many lines of the trace to keep, the last ones; negative: all.
	TraceLines int
	// Workload, if not "", is the topology to run, in place of the one that the seed chooses.
	Workload string
}

// sim is one run.
type sim struct {
	r        *rand.Rand
	b        *broker
	w        *workload
	defect   Defect
	procs    []*process
	user     user
	findings []string
	healing  bool
	ending   bool
	steps    int

	partitions        int
	standbys, warmups int
	retention         int64
	txnTimeout        int64
	rates             rates

	crashes, holds, rebuilds, aborts, wipes int

	keep  int
	trace []string
}

// rates are how often faults happen, in a million steps or requests.
type rates struct {
	lost, refused                                  int // of requests
	crash, pause, stop, expel, rejoin, stall, sour int // of steps
	wipe                                           int // of crashes
	hold                                           int // of steps of a session at the end of a commit
}

// mishap is what happens to a request.
type mishap int

const (
	noMishap mishap = iota
	lostRequest
	lostAnswer
	refusedByCoordinator
)

const (
	million      = 1_000_000
	minFaultTime = 3_000  // steps, at least, in which things go wrong
	maxFaultTime = 10_000 // steps until everything heals
	maxHealTime  = 60_000 // steps that healing may take
	maxProcesses = 5
	sessionTime  = 6_000
	joinTime     = 8_000
)

// Run makes one run of the model simulation.
func Run(seed uint64, o Options) Result {
	s := newSim(seed, o)
	s.run()
	return Result{
		Seed: seed, Workload: s.w.name, Findings: s.findings, Steps: s.steps, Inputs: s.user.n, Crashes: s.crashes,
		Holds: s.holds, Rebuilds: s.rebuilds, Aborts: s.aborts, Wipes: s.wipes, Trace: s.trace,
	}
}

func newSim(seed uint64, o Options) *sim {
	s := &sim{r: rand.New(rand.NewPCG(seed, 0x7a11)), defect: o.Defect, keep: o.TraceLines}
	all := workloads()
	s.w = all[s.r.IntN(len(all))]
	if i := slices.IndexFunc(all, func(w *workload) bool { return w.name == o.Workload }); i >= 0 {
		s.w = all[i]
	}
	s.b = newBroker(epoch, s.say)
	s.b.defect = o.Defect
	s.b.onCommit = s.checkDecided
	s.b.group.offsets = map[tp]groupOffset{}
	s.b.group.session, s.b.group.rebalance = sessionTime, joinTime
	s.b.group.staticStays = s.r.IntN(3) > 0
	s.partitions = 1 + s.r.IntN(3)
	s.standbys, s.warmups = s.r.IntN(2), s.r.IntN(2)
	s.txnTimeout = []int64{2_000, 5_000, 20_000}[s.r.IntN(3)]
	s.retention = 24 * 3600 * 1000
	if s.r.IntN(4) == 0 {
		s.retention = 30_000
	}
	s.chooseRates()
	s.makeTopics()
	static := s.r.IntN(4) > 0
	for i := range 1 + s.r.IntN(3) {
		p := &process{s: s, name: string(rune('A' + i))}
		p.txID = "tx-" + p.name
		if static {
			p.instance = "i-" + p.name
		}
		p.disk = &disk{s: s, tasks: map[task.ID]*backend{}}
		p.startAt = epoch + s.r.Int64N(500)
		s.procs = append(s.procs, p)
	}
	s.user = user{s: s, left: 30 + s.r.IntN(150)}
	s.say("seed %d: %s, %d partitions, %d members, static %v, standbys %d", seed, s.w.name, s.partitions,
		len(s.procs), static, s.standbys)
	return s
}

// chooseRates makes some runs quiet in some respects, so that each kind of fault gets to meet a calm sea too.
func (s *sim) chooseRates() {
	pick := func(of ...int) int { return of[s.r.IntN(len(of))] }
	s.rates = rates{
		lost: pick(0, 1000, 8000), refused: pick(0, 1000, 10_000),
		crash: pick(0, 500, 3000), pause: pick(0, 500, 2000), stop: pick(0, 300, 1000), expel: pick(0, 300, 1500),
		rejoin: pick(0, 500, 3000), stall: pick(0, 500, 2000), sour: pick(0, 300, 1500), wipe: pick(0, 100_000, 400_000),
		hold: pick(0, 5_000, 50_000),
	}
}

func (s *sim) makeTopics() {
	for _, t := range s.w.inputs {
		s.b.createTopic(t, s.partitions, false)
	}
	for _, t := range s.w.internal {
		s.b.createTopic(t, s.partitions, false)
	}
	s.b.createTopic("out", s.partitions, false)
	for _, sb := range s.w.subs {
		for _, st := range sb.stores {
			if st.changelog != "" {
				s.b.createTopic(st.changelog, s.partitions, true)
			}
		}
	}
}

// say adds a line to the trace.
func (s *sim) say(format string, args ...any) {
	if s.keep == 0 {
		return
	}
	s.trace = append(s.trace, fmt.Sprintf("%6d %7d ", s.steps, s.b.now-epoch)+fmt.Sprintf(format, args...))
	if s.keep > 0 && len(s.trace) > 2*s.keep {
		s.trace = slices.Delete(s.trace, 0, len(s.trace)-s.keep)
	}
}

// chance tells whether something happens that does so n times in a million.
func (s *sim) chance(n int) bool { return !s.healing && n > 0 && s.r.IntN(million) < n }

func (s *sim) mishap() mishap {
	switch {
	case s.chance(2*s.rates.lost) && s.r.IntN(2) == 0:
		return lostRequest
	case s.chance(s.rates.lost):
		return lostAnswer
	case s.chance(s.rates.refused):
		return refusedByCoordinator
	}
	return noMishap
}

func (s *sim) lost() bool { return s.chance(s.rates.lost) }

// impatient tells whether a client stops trying again.
func (s *sim) impatient() bool { return !s.healing && s.r.IntN(20) == 0 }

// partitionOf is Kafka's default partitioner.
func (s *sim) partitionOf(topic string, key []byte) int32 {
	if key == nil || s.partitions == 1 {
		return 0
	}
	p := kgo.StickyKeyPartitioner(nil).ForTopic(topic)
	return int32(p.Partition(&kgo.Record{Key: key}, s.partitions))
}

// run goes through the faulty part, the healing, the clean end, and the verdict.
func (s *sim) run() {
	for len(s.findings) == 0 && (s.user.left > 0 || s.steps < minFaultTime) && s.steps < maxFaultTime {
		s.step()
	}
	s.heal()
	for limit := s.steps + maxHealTime; len(s.findings) == 0 && !s.settled(); {
		if s.step(); s.steps > limit {
			s.violate("does not come to rest: %s", s.unsettled())
		}
	}
	s.ending = true
	for _, p := range s.procs {
		p.stopping = p.sess != nil
	}
	running := func(p *process) bool { return p.sess != nil }
	for limit := s.steps + maxHealTime; len(s.findings) == 0 && slices.ContainsFunc(s.procs, running); {
		if s.step(); s.steps > limit {
			s.violate("does not stop")
		}
	}
	if len(s.findings) == 0 {
		s.judge()
	}
	if s.keep > 0 && len(s.trace) > s.keep {
		s.trace = slices.Delete(s.trace, 0, len(s.trace)-s.keep)
	}
}

// actor is somebody who can take a step.
type actor struct {
	weight int
	step   func()
}

// step lets somebody take a step.
func (s *sim) step() {
	s.steps++
	span := int64(12)
	if s.healing {
		span = 40
	}
	s.b.now += s.r.Int64N(span)
	if s.chance(s.rates.stall) {
		s.b.now += s.r.Int64N(15_000)
		s.say("time passes")
	}
	s.b.expire()
	if !s.healing && s.fault() {
		return
	}
	var actors []actor
	add := func(weight int, f func()) { actors = append(actors, actor{weight, f}) }
	if s.user.left > 0 || s.user.open {
		add(4, s.user.step)
	}
	for _, t := range s.b.deciding {
		add(6, func() { s.b.writeMarker(t, s.r.IntN) })
	}
	for _, p := range s.procs {
		s.actorsOf(p, add)
	}
	total := 0
	for _, a := range actors {
		total += a.weight
	}
	if total == 0 {
		return
	}
	n := s.r.IntN(total)
	for _, a := range actors {
		if n -= a.weight; n < 0 {
			a.step()
			return
		}
	}
}

func (s *sim) actorsOf(p *process, add func(int, func())) {
	c := p.sess
	switch {
	case p.paused || p.fenced:
		return
	case c == nil:
		if s.b.now >= p.startAt && !s.ending {
			add(4, func() {
				s.say("%s: starts", p.name)
				p.sess = newSession(p)
			})
		}
		return
	}
	add(10, c.run)
	if !c.inited {
		return
	}
	if g := &c.group; g.state != threadIn || len(g.fetching) > 0 {
		add(4, g.step)
	} else {
		add(1, g.step)
	}
	if len(c.sendq) > 0 {
		add(2, c.sendSome)
	}
	for _, t := range c.tasks {
		if t.running && len(c.plan) == 0 {
			add(3, func() { c.work(t) })
		}
		if t.start != nil && t.start.phase != phaseDone {
			add(4, t.start.step)
		}
		if t.flush != nil {
			add(2, func() { c.runFlush(t) })
		}
	}
	for _, k := range c.closing {
		add(3, k.finish)
	}
	for _, k := range c.copies {
		add(1, k.step)
	}
}

// fault maybe makes something go wrong. It tells whether that took the step.
func (s *sim) fault() bool {
	p := s.procs[s.r.IntN(len(s.procs))]
	switch {
	case s.chance(s.rates.crash):
		s.crash(p)
	case s.chance(s.rates.pause) && p.sess != nil && !p.paused:
		s.say("%s: paused", p.name)
		p.paused = true
	case p.paused && s.r.IntN(300) == 0:
		s.say("%s: goes on", p.name)
		p.paused = false
	case s.chance(s.rates.stop) && p.sess != nil && !p.paused && !p.stopping:
		s.say("%s: is asked to stop", p.name)
		p.stopping = true
	case s.chance(s.rates.expel) && len(s.b.group.members) > 0:
		s.b.group.remove(s.b.group.members[s.r.IntN(len(s.b.group.members))], "is expelled")
	case s.chance(s.rates.rejoin) && p.sess != nil && p.sess.group.state == threadIn && len(p.sess.group.callbacks) == 0:
		s.say("%s: wants a rebalance", p.name)
		p.sess.group.state = threadOut
	case s.chance(s.rates.sour):
		s.broken()
	case s.chance(s.rates.expel/4) && p.instance != "" && len(s.procs) < maxProcesses:
		s.double(p)
	default:
		return false
	}
	return true
}

// hold maybe stops a process just before a step, as a machine does that is out of memory, while the group goes on without
// it. Between the last request of a transaction and its end this is the longest that a transaction can be in doubt.
func (s *sim) hold(c *session, at string) bool {
	rate := s.rates.hold
	if at != "before-end" && at != "txn-offset-commit" {
		rate /= 10
	}
	if !s.chance(rate) {
		return false
	}
	s.say("%s: held at %s", c.p.name, at)
	c.p.paused = true
	s.holds++
	if m := s.b.group.member(c.group.memberID); m != nil && s.r.IntN(2) == 0 {
		s.b.group.remove(m, "is expelled")
	}
	return true
}

// broken does what a broker does behind everybody's back.
func (s *sim) broken() {
	switch s.r.IntN(4) {
	case 0:
		p := s.b.producers[s.r.IntN(max(1, len(s.b.producers)))%max(1, len(s.b.producers)):]
		if len(p) > 0 && p[0].txn != nil && p[0].txn.decision == undecided && p[0].txID != userID {
			s.b.abortByTimeout(p[0])
		}
	case 1, 2:
		for _, t := range s.b.topics {
			if t.compacted {
				for _, p := range t.parts {
					if n := p.compact(s.b.now, s.retention, s.reading(p.tp)); n > 0 {
						s.say("compacted %s[%d]: %d less", p.tp.topic, p.tp.partition, n)
					}
				}
			}
		}
	case 3:
		s.purge()
		s.moveChangelog()
	}
}

// reading returns the lowest offset at which somebody reads a changelog to restore from it or to follow it.
func (s *sim) reading(at tp) int64 {
	lowest := int64(1) << 62
	look := func(t *taskRun) {
		for _, st := range t.stores {
			if st.spec.changelog == at.topic && t.id.Partition == at.partition {
				lowest = min(lowest, st.position)
			}
		}
	}
	for _, p := range s.procs {
		if p.sess == nil {
			continue
		}
		for _, t := range p.sess.tasks {
			if t.start != nil && t.start.phase > phaseOpen && t.start.phase < phaseMake {
				look(t)
			}
		}
		for _, k := range p.sess.copies {
			if k.open {
				look(k.t)
			}
		}
	}
	return lowest
}

// purge removes what was processed of the topics between sub-topologies.
func (s *sim) purge() {
	for _, topic := range s.w.internal {
		for _, p := range s.b.byName[topic].parts {
			p.purge(s.b.group.offsets[p.tp].next)
		}
	}
}

// moveChangelog replaces a changelog topic by another one with the same rows, while nobody runs.
func (s *sim) moveChangelog() {
	if slices.ContainsFunc(s.procs, func(p *process) bool { return p.sess != nil }) {
		return
	}
	for _, t := range slices.Clone(s.b.topics) {
		busy := slices.ContainsFunc(t.parts, func(p *partition) bool { return len(p.open) > 0 })
		empty := !slices.ContainsFunc(t.parts, func(p *partition) bool { return len(p.log) > 0 })
		if t.compacted && !busy && !empty {
			s.say("changelog %s is recreated", t.name)
			s.b.recreate(t.name)
			return
		}
	}
}

// crash kills a process. What it was writing to disk is torn.
func (s *sim) crash(p *process) {
	c := p.sess
	if c == nil {
		return
	}
	s.crashes++
	s.say("%s: killed at %s", p.name, c.at())
	tasks := slices.Clone(c.tasks)
	for _, k := range c.closing {
		tasks = append(tasks, k.t)
	}
	for _, t := range tasks {
		if t.flush != nil && s.r.IntN(2) == 0 {
			t.tear(s.r.IntN(t.flush.Rows() + 1))
		}
	}
	p.sess, p.paused, p.stopping = nil, false, false
	p.startAt = s.b.now + s.r.Int64N(4000)
	switch {
	case s.r.IntN(million) < s.rates.wipe:
		s.say("%s: its disk is wiped", p.name)
		p.disk.wipe()
	case s.r.IntN(10) == 0:
		s.replace(p)
	}
}

// at names where the session's goroutine is.
func (c *session) at() string {
	if len(c.plan) > 0 {
		return c.plan[0].name
	}
	return "rest"
}

// replace starts the machine again under another identity, as in another container with the old one's disk.
func (s *sim) replace(p *process) {
	p.txID += "'"
	if p.instance != "" {
		p.instance += "'"
	}
	s.say("%s: comes back as %s", p.name, p.txID)
}

// double starts another machine with the identity of one that may well be alive: a mistake of an operator. One of the two
// has to end.
func (s *sim) double(p *process) {
	q := &process{s: s, name: p.name + "2", instance: p.instance, txID: p.txID, startAt: s.b.now}
	q.disk = &disk{s: s, tasks: map[task.ID]*backend{}}
	s.procs = append(s.procs, q)
	s.say("%s: starts with the identity of %s", q.name, p.name)
}

// heal ends all faults, and the input.
func (s *sim) heal() {
	s.say("healing")
	s.healing = true
	for s.user.left > 0 || s.user.open {
		s.user.step()
		for _, t := range slices.Clone(s.b.deciding) {
			if t.p.txID == userID {
				s.b.writeMarker(t, s.r.IntN)
			}
		}
	}
	s.user.finish()
	for i, p := range s.procs {
		p.paused = false
		twin := slices.ContainsFunc(s.procs[i+1:], func(q *process) bool { return q.txID == p.txID })
		if !twin {
			p.fenced = false // the operator keeps one of them
		} else if p.sess == nil {
			p.fenced = true
		}
	}
}

// settled tells whether everything was processed, and every transaction is over.
func (s *sim) settled() bool { return s.unsettled() == "" }

func (s *sim) unsettled() string {
	if len(s.b.deciding) > 0 {
		return "markers are missing"
	}
	for _, topic := range append(slices.Clone(s.w.inputs), s.w.internal...) {
		for _, p := range s.b.byName[topic].parts {
			if p.lso() != p.next {
				return fmt.Sprintf("a transaction is open in %s[%d]", topic, p.tp.partition)
			}
			for _, e := range slices.Backward(p.history) {
				if !e.visible() || string(e.key) == lastKey && s.w.ordered {
					continue
				}
				if at := s.b.group.offsets[p.tp].next; e.offset >= at {
					return fmt.Sprintf("%s[%d] is processed up to %d, not %d", topic, p.tp.partition, at, e.offset)
				}
				break
			}
		}
	}
	return ""
}

// user writes the input.
type user struct {
	s    *sim
	left int
	n    int
	open bool
}

const userID = "user"

// step writes a few records, outside of a transaction or in one, that may be aborted.
func (u *user) step() {
	s := u.s
	if !u.open && u.left > 0 && s.r.IntN(4) == 0 {
		if _, _, err := s.b.initProducer(userID, 1<<40); err != nil {
			return
		}
		u.open = true
	}
	if u.open && s.r.IntN(3) == 0 || u.left == 0 {
		u.end()
		return
	}
	for range min(u.left, 1+s.r.IntN(4)) {
		in := s.w.input(s.r, u.n)
		u.n++
		u.left--
		u.write(in, s.partitionOf(in.topic, []byte(in.key)))
	}
}

func (u *user) write(in input, partition int32) {
	m := &message{tp: tp{in.topic, partition}, key: []byte(in.key), value: []byte(in.value), time: in.time}
	if in.deleted {
		m.value = nil
	}
	if !u.open {
		u.s.b.producePlain(m)
		return
	}
	if _, err := u.s.b.produce(userID, u.s.b.byTxID[userID].epoch, m); err != nil {
		u.s.violate("the user's producer: %v", err)
	}
}

func (u *user) end() {
	b := u.s.b
	u.open = false
	p := b.byTxID[userID]
	if p == nil || p.txn == nil || p.txn.decision != undecided {
		return
	}
	if _, err := b.endTxn(userID, p.epoch, u.s.r.IntN(3) > 0); err != nil {
		u.s.violate("the user's producer: %v", err)
	}
}

// finish writes the records that make everything before them ready to be processed.
func (u *user) finish() {
	at := int64(epoch + 100_000_000)
	for _, topic := range u.s.w.inputs {
		for p := range u.s.partitions {
			at++
			u.write(input{topic: topic, key: lastKey, value: lastKey, time: at}, int32(p))
		}
	}
}

// judge compares what came out with the oracle, and what is on the disks with the changelogs.
func (s *sim) judge() {
	o := &outcome{partitions: s.partitions, logs: map[string][][]fact{}, stores: map[string][]map[string][]byte{}}
	for _, t := range s.b.topics {
		for _, p := range t.parts {
			var facts []fact
			for _, e := range p.history {
				if e.visible() {
					facts = append(facts, fact{string(e.key), string(e.value), e.value == nil, e.time})
				}
			}
			o.logs[t.name] = append(o.logs[t.name], facts)
		}
	}
	for _, sb := range s.w.subs {
		for _, st := range sb.stores {
			for p := range s.partitions {
				s.judgeStore(o, sb, st, int32(p))
			}
		}
	}
	for _, finding := range s.w.judge(o) {
		s.violate("%s: %s", s.w.name, finding)
	}
}

// judgeStore compares a store on every disk with its changelog, and hands its rows to the oracle.
func (s *sim) judgeStore(o *outcome, sb sub, st store, partition int32) {
	if st.changelog == "" {
		return
	}
	log := s.b.part(tp{st.changelog, partition})
	rows := map[string][]byte{}
	end := int64(0)
	for _, key := range log.keys {
		for _, e := range log.byKey[key] {
			if e.visible() && !strings.HasPrefix(key, string(barrierKey)) {
				end = max(end, e.offset+1)
			}
		}
		if last, _ := log.rowAt(key, log.next); last.row() != nil && key[0] == state.KindRow {
			rows[key[1:]] = valueOf(last.value)
		}
	}
	o.stores[st.name] = append(o.stores[st.name], rows)
	id := task.ID{Sub: sb.name, Partition: partition}
	newest := int64(-1)
	for _, p := range s.procs {
		b := p.disk.tasks[id]
		if b == nil {
			continue
		}
		for store, spec := range b.logs {
			if spec.name != st.name {
				continue
			}
			pos, ok, err := b.Position(store)
			if err != nil {
				s.violate("read disk: %v", err)
			}
			if ok && pos.TopicID == s.b.byName[st.changelog].id {
				newest = max(newest, pos.Next)
				b.checkStore(store, pos)
			}
		}
	}
	if newest < end {
		s.violate("store %s of task %s: no disk is further than %d, and its changelog ends at %d", st.name, id, newest, end)
	}
}
