package engine

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"tailrace.dev/internal/task"
)

// poolTask is a task as far as a pool of calls needs one.
func poolTask(t *testing.T, s *session) *taskRun {
	t.Helper()
	run := &taskRun{s: s}
	run.life, run.cancel = context.WithCancel(t.Context())
	return run
}

// load counts the calls that are under way.
type load struct {
	mu        sync.Mutex
	now, most map[string]int
	order     []string
}

func (l *load) call(operator string, number int64, limit int, took time.Duration) task.Call {
	return task.Call{
		Operator: operator, Number: number, Limit: limit, Timeout: time.Minute,
		Do: func(ctx context.Context) task.Result {
			l.mu.Lock()
			for _, name := range []string{operator, "all"} {
				l.now[name]++
				l.most[name] = max(l.most[name], l.now[name])
			}
			l.order = append(l.order, fmt.Sprint(operator, number))
			l.mu.Unlock()
			var err error
			select {
			case <-time.After(took):
			case <-ctx.Done():
				err = ctx.Err()
			}
			l.mu.Lock()
			l.now[operator]--
			l.now["all"]--
			l.mu.Unlock()
			return task.Result{Operator: operator, Number: number, Err: err}
		},
	}
}

func newLoad() *load { return &load{now: map[string]int{}, most: map[string]int{}} }

func TestCallPoolIsBoundedAndFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &session{runq: make(chan *taskRun, 10)}
		p, run, l := newCallPool(s, 5), poolTask(t, s), newLoad()
		var calls []task.Call
		for i := range int64(20) {
			calls = append(calls, l.call("a", i, 0, time.Second))
		}
		for i := range int64(6) {
			calls = append(calls, l.call("b", i, 2, time.Second))
		}
		p.add(run, calls)
		synctest.Wait()
		l.mu.Lock()
		if l.now["a"] != 3 || l.now["b"] != 2 {
			t.Errorf("under way %v: the operators do not take turns", l.now)
		}
		l.mu.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		if l.most["all"] != 5 || l.most["b"] != 2 || len(l.order) != 26 {
			t.Errorf("at most %v; %d calls", l.most, len(l.order))
		}
		run.answersMu.Lock()
		defer run.answersMu.Unlock()
		if len(run.answers) != 26 {
			t.Errorf("%d answers", len(run.answers))
		}
		for _, r := range run.answers {
			if r.Err != nil {
				t.Error(r)
			}
		}
		if got := <-s.runq; got != run {
			t.Error("the task was not scheduled")
		}
	})
}

func TestCallPoolDropsWhatHasGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &session{runq: make(chan *taskRun, 10)}
		p, gone, stays, l := newCallPool(s, 2), poolTask(t, s), poolTask(t, s), newLoad()
		p.add(gone, []task.Call{l.call("a", 1, 0, time.Hour), l.call("a", 2, 0, time.Hour), l.call("a", 3, 0, time.Hour)})
		p.add(stays, []task.Call{l.call("a", 4, 0, time.Second)})
		synctest.Wait()
		gone.cancel()
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(gone.answers) != 0 {
			t.Errorf("answers for a task that has gone: %v", gone.answers)
		}
		if len(stays.answers) != 1 || len(l.order) != 3 {
			t.Errorf("answers %v, calls %v", stays.answers, l.order)
		}
		slow := l.call("a", 5, 0, time.Hour)
		slow.Timeout = time.Second
		p.add(stays, []task.Call{slow})
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if len(stays.answers) != 2 || stays.answers[1].Err == nil {
			t.Errorf("no timeout: %v", stays.answers)
		}
		p.stop()
		p.add(stays, []task.Call{l.call("a", 6, 0, 0)})
		synctest.Wait()
		if len(l.order) != 4 {
			t.Errorf("a call was started after the stop: %v", l.order)
		}
		began := time.Now()
		p.wait(zap.NewNop())
		if took := time.Since(began); took > 0 {
			t.Errorf("waited %v for nothing", took)
		}
	})
}

// A call that does not heed its context does not hold up the end for ever.
func TestCallPoolDoesNotWaitForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.WarnLevel)
		s := &session{runq: make(chan *taskRun, 10)}
		p, run := newCallPool(s, 2), poolTask(t, s)
		deaf := func(d time.Duration) task.Call {
			return task.Call{Operator: "deaf", Timeout: time.Second, Do: func(context.Context) task.Result {
				time.Sleep(d)
				return task.Result{}
			}}
		}
		p.add(run, []task.Call{deaf(time.Second)})
		run.cancel()
		began := time.Now()
		p.wait(zap.New(core))
		if took := time.Since(began); took != time.Second || logs.Len() != 0 {
			t.Errorf("waited %v, logged %v", took, logs.All())
		}
		run.life, run.cancel = context.WithCancel(t.Context())
		p.add(run, []task.Call{deaf(time.Hour)})
		run.cancel()
		began = time.Now()
		p.wait(zap.New(core))
		if took := time.Since(began); took != callsPatience || logs.Len() != 1 {
			t.Errorf("waited %v, logged %v", took, logs.All())
		}
		time.Sleep(time.Hour) // until it returns
	})
}
