package sim

import (
	"slices"

	"tailrace.dev/internal/engine"
	"tailrace.dev/internal/task"
	"tailrace.dev/processor"
	"tailrace.dev/state"
)

// starter opens and restores a task, one step at a time.
type starter struct {
	t     *taskRun
	phase startPhase
	at    int // store
}

type startPhase int

const (
	phaseOpen    startPhase = iota // waits for the former owner here, and takes over from a standby
	phaseInspect                   // restore-start
	phaseBarrier
	phaseReplay // restore-mid
	phaseMake   // restore-end
	phaseDone
)

func (k *starter) step() {
	t := k.t
	c := t.c
	switch k.phase {
	case phaseOpen:
		if slices.ContainsFunc(c.closing, func(o *closer) bool { return o.t.id == t.id }) {
			return
		}
		c.dropStandby(t.id)
		t.backend = c.p.disk.open(t.id)
		if err := c.register(t); err != nil {
			c.s.violate("open task %s: %v", t.id, err)
			return
		}
		k.phase = phaseInspect
	case phaseInspect:
		c.s.say("%s: restore-start %s", c.p.name, t.id)
		for _, st := range t.stores {
			if !c.inspect(t, st) {
				return
			}
		}
		k.phase, k.at = phaseBarrier, 0
	case phaseBarrier:
		k.barrier()
	case phaseReplay:
		k.replay()
	case phaseMake:
		k.make()
	case phaseDone:
	}
}

// register makes the stores of a task over its backend.
func (c *session) register(t *taskRun) error {
	for _, st := range t.stores {
		id, err := t.backend.Register(st.spec.name)
		if err != nil {
			return err
		}
		st.id = id
		t.backend.logs[id] = st.spec
	}
	return nil
}

// inspect compares the local position with the changelog, and drops rows that cannot be built on.
func (c *session) inspect(t *taskRun, st *storeRun) bool {
	topic := c.s.b.byName[st.log()]
	p := topic.parts[t.id.Partition]
	pos, ok, err := t.backend.Position(st.id)
	if err != nil {
		c.s.violate("position of task %s: %v", t.id, err)
		return false
	}
	st.topicID, st.has, st.position, st.wall = topic.id, ok, pos.Next, pos.WallMillis
	if st.spec.source != "" {
		st.barrier = min(t.input(st.spec.source).start, p.next) - 1
	}
	limit := c.s.retention - c.s.retention/2
	why, onlyCopy, err := engine.JudgeLocalState(engine.LocalState{
		Position: pos, HasPosition: ok, HasRows: func() (bool, error) { return t.backend.hasRows(st.id) },
		TopicID: topic.id, Start: p.start, End: p.next, Follows: st.spec.source != "", Limit: st.barrier + 1,
		TooOld: ok && c.s.b.now-pos.WallMillis > limit,
	})
	if err != nil || onlyCopy {
		c.s.violate("task %s: store %s: only copy %v: %v", t.id, st.spec.name, onlyCopy, err)
		return false
	}
	if why != "" {
		c.s.say("%s: %s: wipe store %s: %s", c.p.name, t.id, st.spec.name, why)
		if err := t.backend.DropStore(st.id); err != nil {
			c.s.violate("wipe: %v", err)
			return false
		}
		st.has = false
		c.s.wipes++
	}
	if !st.has {
		st.position = p.start
	}
	return true
}

func (b *backend) hasRows(id state.StoreID) (bool, error) {
	c := b.Scan(id, nil, nil, false)
	defer c.Close()
	return c.Next(), c.Err()
}

// barrier writes a record into each changelog. It can be read when every transaction before it is decided.
func (k *starter) barrier() {
	t := k.t
	c := t.c
	if k.at == len(t.stores) {
		for _, st := range t.stores {
			st.open = st.position <= st.barrier
		}
		k.phase = phaseReplay
		return
	}
	st := t.stores[k.at]
	switch {
	case st.spec.source != "":
	case c.s.defect == NoBarrier:
		st.barrier = st.early - 1
	default:
		err := c.request(func() error {
			st.barrier = c.s.b.producePlain(&message{
				tp: tp{st.spec.changelog, t.id.Partition}, key: engine.BarrierKey(), time: c.s.b.now,
			})
			return nil
		})
		if err != nil {
			c.fail(rebuild("write the barrier: %w", err))
			return
		}
		c.s.say("%s: barrier of %s in %s at %d", c.p.name, t.id, st.spec.changelog, st.barrier)
	}
	k.at++
}

// replay reads a piece of one changelog.
func (k *starter) replay() {
	t := k.t
	c := t.c
	var open []*storeRun
	for _, st := range t.stores {
		if st.open {
			open = append(open, st)
		}
	}
	if len(open) == 0 {
		k.phase = phaseMake
		return
	}
	st := open[c.s.r.IntN(len(open))]
	c.follow(t, st, st.barrier)
	st.open = st.position <= st.barrier
}

// follow writes a piece of a changelog, or of the topic that the store follows, to the backend. Of a followed topic it
// takes nothing behind the limit.
func (c *session) follow(t *taskRun, st *storeRun, limit int64) {
	at := tp{st.log(), t.id.Partition}
	records, lso, err := c.s.b.fetch(at, st.position, 1+c.s.r.IntN(10))
	if err != nil {
		c.s.violate("restore of task %s: %v", t.id, err)
		return
	}
	followed := st.spec.source != ""
	for (followed || c.s.defect == NoBarrier) && len(records) > 0 && records[len(records)-1].Offset > limit {
		records = records[:len(records)-1]
	}
	var rows []state.Row
	if len(records) == 0 {
		// Nothing but offsets without a record may be left up to the limit.
		if !(followed || c.s.defect == NoBarrier) || lso <= limit || st.position > limit {
			return
		}
		st.position = limit + 1
	} else {
		st.position = records[len(records)-1].Offset + 1
	}
	if followed {
		for _, r := range records {
			if r.Attrs.IsControl() {
				continue
			}
			rec := recordOf(r)
			if key, row, ok := st.spec.row(&rec); ok {
				rows = append(rows, state.Row{Store: st.id, Key: key, Value: row})
			}
		}
	} else if rows, err = engine.ChangelogRows(st.id, records, nil); err != nil {
		c.s.violate("restore of task %s: %v", t.id, err)
		return
	}
	pos := state.Position{TopicID: st.topicID, Next: st.position, LeaderEpoch: -1, WallMillis: c.s.b.now}
	if len(records) > 0 && !followed && st.position <= limit {
		pos.WallMillis = records[len(records)-1].Timestamp.UnixMilli()
	}
	w := state.Write{Rows: engine.NewestRows(rows), Positions: map[state.StoreID]state.Position{st.id: pos}}
	if err := t.backend.Write(w); err != nil {
		c.s.violate("restore of task %s: %v", t.id, err)
	}
}

// make makes the machine over the restored rows.
func (k *starter) make() {
	t := k.t
	c := t.c
	opts := processor.TaskOptions{MaxTaskIdle: -1}
	if c.s.w.ordered {
		opts.MaxTaskIdle = maxIdle
	}
	m, err := c.s.w.topology.NewTask(app, t.id, t.backend, opts)
	if err == nil {
		t.machine = m
		offsets := make([]task.Offset, len(t.inputs))
		for i, in := range t.inputs {
			offsets[i] = task.Offset{Topic: in.topic, Next: in.start}
		}
		err = m.Start(offsets, t.metadata, c.s.b.now)
	}
	if err != nil {
		c.s.violate("start of task %s: %v", t.id, err)
		return
	}
	for _, in := range t.inputs {
		in.end = max(in.start, c.s.b.part(in.at).lso())
		in.committed, in.next = in.start, in.start
		m.Position(in.topic, in.start, in.end)
	}
	k.phase = phaseDone
	c.s.say("%s: restore-end %s", c.p.name, t.id)
	c.post(func() error {
		if c.task(t.id) == t {
			t.running = true
		}
		return nil
	})
}

// standby is a copy of a task that another member runs.
type standby struct {
	c    *session
	t    *taskRun
	open bool
}

func (c *session) standby(id task.ID) *standby {
	i := slices.IndexFunc(c.copies, func(k *standby) bool { return k.t.id == id })
	if i < 0 {
		return nil
	}
	return c.copies[i]
}

// setCopies says which tasks to keep copies of. What is active here, or on its way out, becomes a copy later.
func (c *session) setCopies(ids []task.ID) {
	c.wanted = ids
	c.copies = slices.DeleteFunc(c.copies, func(k *standby) bool { return !slices.Contains(ids, k.t.id) })
	for _, id := range ids {
		busy := c.task(id) != nil || c.standby(id) != nil ||
			slices.ContainsFunc(c.closing, func(k *closer) bool { return k.t.id == id })
		i := slices.IndexFunc(c.s.w.subs, func(s sub) bool { return s.name == id.Sub })
		if busy || i < 0 {
			continue
		}
		k := &standby{c: c, t: &taskRun{c: c, id: id, sub: &c.s.w.subs[i]}}
		for _, spec := range k.t.sub.stores {
			if spec.source == "" { // a copy of a topic has nothing to be ahead of
				k.t.stores = append(k.t.stores, &storeRun{spec: spec})
			}
		}
		if len(k.t.stores) == len(k.t.sub.stores) {
			c.copies = append(c.copies, k)
		}
	}
}

func (c *session) dropStandby(id task.ID) {
	c.copies = slices.DeleteFunc(c.copies, func(k *standby) bool { return k.t.id == id })
}

// step follows the changelogs for a piece.
func (k *standby) step() {
	t := k.t
	if !k.open {
		t.backend = k.c.p.disk.open(t.id)
		if err := k.c.register(t); err != nil {
			k.c.s.violate("open the copy of %s: %v", t.id, err)
			return
		}
		for _, st := range t.stores {
			if !k.c.inspect(t, st) {
				return
			}
		}
		k.open = true
		k.c.s.say("%s: standby of %s opened", k.c.p.name, t.id)
		return
	}
	if len(t.stores) > 0 {
		st := t.stores[k.c.s.r.IntN(len(t.stores))]
		k.c.follow(t, st, 1<<62)
	}
}

// progress is the sum of the positions, and how far they are behind; negative while not known.
func (k *standby) progress() (position, lag int64) {
	if !k.open {
		return -1, -1
	}
	for _, st := range k.t.stores {
		position += st.position
		lag += k.c.s.b.part(tp{st.spec.changelog, k.t.id.Partition}).lso() - st.position
	}
	return position, lag
}
