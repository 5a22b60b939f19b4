package engine

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"tailrace.dev/internal/task"
	"tailrace.dev/state"
)

const (
	// standbyLinger is how long a copy that is wanted no more is kept going: most often it is about to become the active
	// task, and then hands its backend over as it is.
	standbyLinger = 3 * time.Second
	// maxStandbyOpens bounds how many copies open their state at the same time.
	maxStandbyOpens = 2
	// maxStandbyWrites bounds how many copies write at the same time.
	maxStandbyWrites = 2
)

// standbys are the copies that this member keeps of tasks that others run: standbys, and those that warm up before a
// task moves here. Each follows its task's changelogs with a goroutine of its own, and one client fetches for all. What
// goes wrong with a copy is the copy's alone: no active task notices.
//
// A task's state is held by at most one of a copy and an active task. It passes between the two open, by take and
// release, so that a takeover reads no more than the tail of the changelogs.
//
// All methods may be called by any goroutine, and none of set, positions and snapshot waits for a disk or a
// broker, but for the listing of the state directory in positions.
type standbys struct {
	s      *session
	tailer *tailer
	opens  chan struct{}
	writes chan *bulk     // one for each write at a time
	wg     sync.WaitGroup // copies on their way out

	mu      sync.Mutex
	wanted  map[task.ID]bool
	copies  map[task.ID]*standby
	active  map[task.ID]bool          // whose state an active task holds, or is about to give up
	closing map[task.ID]chan struct{} // copies on their way out; closed when the directory is free
	closed  bool
}

func newStandbys(s *session) *standbys {
	b := &standbys{
		s: s, tailer: newTailer(s),
		opens:  make(chan struct{}, maxStandbyOpens),
		writes: make(chan *bulk, maxStandbyWrites),
		wanted: map[task.ID]bool{}, copies: map[task.ID]*standby{}, active: map[task.ID]bool{},
		closing: map[task.ID]chan struct{}{},
	}
	for range maxStandbyWrites {
		b.writes <- new(bulk)
	}
	return b
}

// set says which tasks this member keeps copies of from now on. A task that is active here becomes a copy when it is
// given up; one that has no changelog is left out. Copies that are not named end after a while, and leave their
// directories.
func (b *standbys) set(want []task.ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	clear(b.wanted)
	for _, id := range want {
		sub := b.s.e.p.sub(id.Sub)
		if sub == nil || !slices.ContainsFunc(sub.Stores, func(st Store) bool { return st.log() != "" }) {
			continue
		}
		b.wanted[id] = true
		switch c := b.copies[id]; {
		case c != nil && c.linger != nil:
			c.linger.Stop()
			c.linger = nil
		case c == nil && !b.active[id]:
			b.start(id, sub, nil)
		}
		if c := b.copies[id]; c != nil && c.over.Load() {
			<-c.done // it has ended, and closed its state
			b.s.e.board.hide(c.view)
			b.start(id, sub, nil)
		}
	}
	for id, c := range b.copies {
		if !b.wanted[id] && c.linger == nil {
			c.linger = time.AfterFunc(standbyLinger, func() { b.drop(c) })
		}
	}
}

// start makes a copy and lets it run. The caller holds mu.
func (b *standbys) start(id task.ID, sub *Sub, backend state.Backend) {
	c := newStandby(b, id, sub, backend)
	b.copies[id] = c
	var former <-chan struct{}
	if old := b.closing[id]; old != nil {
		former = old
	}
	b.wg.Go(func() { c.run(former) })
}

// drop ends a copy that nobody has wanted for a while.
func (b *standbys) drop(c *standby) {
	id := c.t.id
	b.mu.Lock()
	if b.closed || b.wanted[id] || b.copies[id] != c {
		b.mu.Unlock()
		return
	}
	delete(b.copies, id)
	done := make(chan struct{})
	b.closing[id] = done
	b.wg.Add(1)
	b.mu.Unlock()
	defer b.wg.Done()
	c.end()
	c.closeBackend()
	b.mu.Lock()
	if b.closing[id] == done {
		delete(b.closing, id)
	}
	b.mu.Unlock()
	close(done)
	c.t.log.Info("standby ended")
}

// take ends the copy of a task that becomes active here and returns its open backend, which holds all that the copy
// received, or nil where there is none. From now on the state is the active task's, until release.
func (b *standbys) take(ctx context.Context, id task.ID) state.Backend {
	b.mu.Lock()
	b.active[id] = true
	c, closing := b.copies[id], b.closing[id]
	delete(b.copies, id)
	b.mu.Unlock()
	if c == nil {
		if closing != nil {
			select {
			case <-closing:
			case <-ctx.Done():
			}
		}
		return nil
	}
	c.end()
	if c.t.backend != nil {
		c.t.log.Info("standby becomes active")
	}
	return c.t.backend
}

// release takes back the backend of an active task that was given up, which may be nil: a copy goes on with it where
// one is wanted and the backend is healthy, else it is closed.
func (b *standbys) release(id task.ID, backend state.Backend, healthy bool) error {
	sub := b.s.e.p.sub(id.Sub)
	wanted := func() bool { return !b.closed && b.wanted[id] && b.copies[id] == nil && b.s.ctx.Err() == nil }
	b.mu.Lock()
	if backend != nil && healthy && wanted() {
		delete(b.active, id)
		b.start(id, sub, backend)
		b.mu.Unlock()
		return nil
	}
	b.mu.Unlock()
	var err error
	if backend != nil {
		err = backend.Close()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.active, id)
	if wanted() {
		b.start(id, sub, nil)
	}
	return err
}

// close ends all copies, and the client that fetches for them. No call of release may follow.
func (b *standbys) close() {
	b.mu.Lock()
	b.closed = true
	copies := make([]*standby, 0, len(b.copies))
	for _, c := range b.copies {
		if c.linger != nil {
			c.linger.Stop()
		}
		copies = append(copies, c)
	}
	clear(b.copies)
	b.mu.Unlock()
	for _, c := range copies {
		c.cancel()
	}
	for _, c := range copies {
		c.end()
		c.closeBackend()
	}
	b.wg.Wait()
	b.tailer.close()
}

// positions tells of all tasks that have state here how far it is, in a fixed order: no lag for those that are active, an
// unknown one for those that are only on disk.
func (b *standbys) positions() []taskState {
	states := map[task.ID]taskState{}
	for _, id := range b.s.e.tasksOnDisk() {
		states[id] = taskState{id: id, position: -1, lag: -1}
	}
	for _, c := range b.snapshot() {
		states[c.ID] = taskState{id: c.ID, position: c.Position, lag: c.Lag}
	}
	b.mu.Lock()
	for id := range b.active {
		states[id] = taskState{id: id, position: -1}
	}
	b.mu.Unlock()
	out := make([]taskState, 0, len(states))
	for _, st := range states {
		out = append(out, st)
	}
	slices.SortFunc(out, func(x, y taskState) int { return compareIDs(x.id, y.id) })
	return out
}

func compareIDs(x, y task.ID) int {
	if c := strings.Compare(x.Sub, y.Sub); c != 0 {
		return c
	}
	return int(x.Partition) - int(y.Partition)
}

// StandbyStatus describes a copy of a task that another member runs.
type StandbyStatus struct {
	ID task.ID
	// Position is the sum of the offsets that the copy has come to in its changelogs, End that of the ends of what is
	// committed in them as far as known, and Lag how many offsets it is behind. All are -1 while not known.
	Position, End, Lag int64
	// Failure is what went wrong last, if the copy waits to be tried again or was given up; else nil.
	Failure error
}

// snapshot describes the copies, in a fixed order.
func (b *standbys) snapshot() []StandbyStatus {
	b.mu.Lock()
	copies := make([]*standby, 0, len(b.copies))
	for _, c := range b.copies {
		copies = append(copies, c)
	}
	b.mu.Unlock()
	out := make([]StandbyStatus, 0, len(copies))
	for _, c := range copies {
		out = append(out, c.status())
	}
	slices.SortFunc(out, func(x, y StandbyStatus) int { return compareIDs(x.ID, y.ID) })
	return out
}

func (p *Program) sub(name string) *Sub {
	for i := range p.Subs {
		if p.Subs[i].Name == name {
			return &p.Subs[i]
		}
	}
	return nil
}

// end stops the copy and waits until it has written what it received. Its backend is left open.
func (c *standby) end() {
	c.cancel()
	<-c.done
	c.b.s.e.board.hide(c.view)
}

// closeBackend closes the state of a copy that does not run.
func (c *standby) closeBackend() {
	if c.t.backend == nil {
		return
	}
	if err := c.t.backend.Close(); err != nil {
		c.t.log.Warn("standby closed with an error", zap.Error(err))
	}
	c.t.backend, c.t.stores = nil, nil
}
