package engine

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"

	"tailrace.dev/internal/task"
)

// callPool makes the calls that committed records of the session's tasks wait for, in goroutines of their own, so many at
// the same time as Settings.MaxCalls and the operators allow. What was not made or answered when a task goes is dropped:
// the records wait in its store, and their next owner asks again.
type callPool struct {
	s   *session
	max int

	mu      sync.Mutex
	running int
	groups  map[string]*callGroup // by operator
	order   []*callGroup          // those with queued calls come to their turn one after the other
	turn    int
	closed  bool          // no more calls are started
	idle    chan struct{} // closed when none runs; nil while no one waits for it
}

// callGroup are the calls of one operator, over all tasks of the session.
type callGroup struct {
	operator string
	limit    int // 0: none
	running  int
	queue    []queuedCall
}

type queuedCall struct {
	t    *taskRun
	call task.Call
}

// callsPatience is for how long a session that ends waits for calls that do not heed their context.
const callsPatience = 5 * time.Second

func newCallPool(s *session, limit int) *callPool {
	return &callPool{s: s, max: max(1, limit), groups: map[string]*callGroup{}}
}

// add queues calls of a task.
func (p *callPool) add(t *taskRun, calls []task.Call) {
	if len(calls) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range calls {
		c := &calls[i]
		g := p.groups[c.Operator]
		if g == nil {
			g = &callGroup{operator: c.Operator}
			p.groups[c.Operator] = g
			p.order = append(p.order, g)
		}
		g.limit = c.Limit
		g.queue = append(g.queue, queuedCall{t, *c})
	}
	p.start()
}

// start starts what may run, one call of each operator in turn. The pool is locked.
func (p *callPool) start() {
	for passed := 0; !p.closed && p.running < p.max && passed < len(p.order); {
		g := p.order[p.turn%len(p.order)]
		p.turn++
		if len(g.queue) == 0 || g.limit > 0 && g.running >= g.limit {
			passed++
			continue
		}
		passed = 0
		c := g.queue[0]
		g.queue[0] = queuedCall{}
		if g.queue = g.queue[1:]; len(g.queue) == 0 {
			g.queue = nil
		}
		if c.t.life.Err() != nil {
			continue
		}
		p.running++
		g.running++
		go p.run(g, c)
	}
}

func (p *callPool) run(g *callGroup, c queuedCall) {
	ctx, cancel := context.WithTimeout(c.t.life, c.call.Timeout)
	result := c.call.Do(ctx)
	cancel()
	if c.t.life.Err() == nil { // otherwise it failed for that, or no one waits for it
		c.t.answer(result)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running--
	g.running--
	p.start()
	if p.running == 0 && p.idle != nil {
		close(p.idle)
		p.idle = nil
	}
}

// stop lets no more calls start: they would be cut off by the end of the session.
func (p *callPool) stop() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
}

// wait waits until no call is under way, after the contexts of all have ended.
func (p *callPool) wait(log *zap.Logger) {
	p.mu.Lock()
	running, idle := p.running, make(chan struct{})
	p.idle = idle
	p.mu.Unlock()
	if running == 0 {
		return
	}
	select {
	case <-idle:
	case <-time.After(callsPatience):
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, g := range p.order {
			if g.running > 0 {
				log.Warn("calls do not heed the end of their context, and are left to themselves",
					zap.String("operator", g.operator), zap.Int("calls", g.running))
			}
		}
	}
}

// answer hands the result of a call to the task's next slice.
func (t *taskRun) answer(r task.Result) {
	t.answersMu.Lock()
	t.answers = append(t.answers, r)
	t.answersMu.Unlock()
	t.s.schedule(t)
}

// hasAnswers tells whether results of calls wait.
func (t *taskRun) hasAnswers() bool {
	t.answersMu.Lock()
	defer t.answersMu.Unlock()
	return len(t.answers) > 0
}

// complete moves results of calls into the machine.
func (t *taskRun) complete(wall int64) error {
	t.answersMu.Lock()
	results := t.answers
	t.answers = nil
	t.answersMu.Unlock()
	if len(results) == 0 {
		return nil
	}
	if err := t.machine.Complete(results, wall); err != nil {
		return err
	}
	t.s.send(t, t.machine.Outputs())
	return nil
}

// makeCalls starts the calls that the tasks ask for after a commit.
func (s *session) makeCalls(batches []pending, wall int64) {
	for i := range batches {
		t := batches[i].t
		calls, err := t.machine.Calls(wall)
		if err != nil {
			s.fail(s.stepError(t, err))
			return
		}
		s.calls.add(t, calls)
	}
}
