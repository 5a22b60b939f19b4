package processor_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/stream"
)

// ticker is a processor whose Init is a function, and which passes everything on.
type ticker struct {
	init    func(*processor.Context[string, string]) error
	process func(*processor.Context[string, string], processor.Record[string, string]) error
}

func (p *ticker) Init(c *processor.Context[string, string]) error { return p.init(c) }
func (p *ticker) Process(c *processor.Context[string, string], r processor.Record[string, string]) error {
	if p.process != nil {
		return p.process(c, r)
	}
	return c.Forward(r)
}

func withTicker(tk ticker) func(*processor.Builder) {
	return func(b *processor.Builder) {
		stream.To(stream.Process(stream.From(b, P1),
			func() processor.Processor[string, string, string, string] { c := tk; return &c }), Out)
	}
}

func TestStreamTimeTimer(t *testing.T) {
	var ticks []int64
	task := newTask(t, build(t, withTicker(ticker{init: func(c *processor.Context[string, string]) error {
		_, err := c.Schedule(processor.StreamTime, 10*time.Millisecond, func(now time.Time) error {
			ticks = append(ticks, now.UnixMilli())
			return nil
		})
		return err
	}})), processor.TaskOptions{})
	// At once with the first record, then at multiples of the interval; what was missed is one call, and late calls
	// do not move those that follow.
	fired := map[int64]bool{7: true, 8: false, 11: true, 12: false, 19: false, 20: true, 57: true, 58: false, 60: true}
	for i, at := range []int64{7, 8, 11, 12, 19, 20, 57, 5, 58, 60} {
		ticks = nil
		enqueue(task, "p1", rec(int64(i), at, "k", "v"))
		step(t, task, 0)
		if want := fired[at]; len(ticks) > 1 || (len(ticks) == 1) != want {
			t.Errorf("at %d: calls %v, want one: %t", at, ticks, want)
		} else if want && ticks[0] != at {
			t.Errorf("at %d: called with %d", at, ticks[0])
		}
	}
}

func TestWallClockTimer(t *testing.T) {
	var ticks []int64
	task := newTask(t, build(t, withTicker(ticker{init: func(c *processor.Context[string, string]) error {
		_, err := c.Schedule(processor.WallClock, 10*time.Millisecond, func(now time.Time) error {
			ticks = append(ticks, now.UnixMilli())
			return nil
		})
		return err
	}})), processor.TaskOptions{})
	for _, c := range []struct{ wall, next int64 }{{0, 10}, {9, 10}, {13, 20}, {19, 20}, {47, 50}, {50, 60}} {
		next, err := task.Punctuate(c.wall)
		if err != nil || next != c.next {
			t.Errorf("at %d: next %d %v, want %d", c.wall, next, err, c.next)
		}
	}
	if want := []int64{13, 47, 50}; !slices.Equal(ticks, want) {
		t.Errorf("ticks %v, want %v", ticks, want)
	}
	if at, _, _ := task.Step(1, 0); at != 0 {
		t.Error("a record came out of nowhere")
	}
}

func TestTimersFireInTheOrderOfTheirTimes(t *testing.T) {
	var fired []string
	task := newTask(t, build(t, withTicker(ticker{init: func(c *processor.Context[string, string]) error {
		for _, every := range []time.Duration{40, 30, 20} {
			_, err := c.Schedule(processor.StreamTime, every*time.Millisecond, func(time.Time) error {
				fired = append(fired, fmt.Sprint(int(every)))
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	}})), processor.TaskOptions{})
	enqueue(task, "p1", rec(0, 1, "k", "v"), rec(1, 50, "k", "v"))
	step(t, task, 0)
	want(t, "timers", fired, []string{"40", "30", "20", "20", "30", "40"})
}

// A timer may schedule and cancel others and itself; what it schedules waits for the next round.
func TestTimersOfTimers(t *testing.T) {
	var fired int
	var schedule func(c *processor.Context[string, string]) error
	schedule = func(c *processor.Context[string, string]) error {
		var tm *processor.Timer
		var err error
		tm, err = c.Schedule(processor.StreamTime, time.Millisecond, func(time.Time) error {
			fired++
			tm.Cancel()
			tm.Cancel() // again is nothing
			return schedule(c)
		})
		return err
	}
	task := newTask(t, build(t, withTicker(ticker{init: schedule})), processor.TaskOptions{})
	for i := range int64(5) {
		enqueue(task, "p1", rec(i, i, "k", "v"))
		step(t, task, 0)
	}
	if fired != 5 {
		t.Fatalf("%d calls, want one for each record", fired)
	}
}

func TestTimerForwards(t *testing.T) {
	task := newTask(t, build(t, withTicker(ticker{init: func(c *processor.Context[string, string]) error {
		_, err := c.Schedule(processor.StreamTime, time.Second, func(now time.Time) error {
			if _, _, _, ok := c.Source(); ok {
				return errors.New("a timer has no source")
			}
			return c.Forward(processor.Record[string, string]{Key: "tick", Value: "!", Time: now})
		})
		return err
	}})), processor.TaskOptions{})
	enqueue(task, "p1", rec(0, 1500, "k", "v"))
	step(t, task, 0)
	want(t, "outputs", outputs(task), []string{"k=v@1500", "tick=!@1500"})
}

func TestForwardWithoutATime(t *testing.T) {
	task := newTask(t, build(t, withTicker(ticker{init: func(c *processor.Context[string, string]) error {
		_, err := c.Schedule(processor.StreamTime, time.Second, func(time.Time) error {
			return c.Forward(processor.Record[string, string]{Key: "tick"})
		})
		return err
	}})), processor.TaskOptions{})
	enqueue(task, "p1", rec(0, 1500, "k", "v"))
	if _, _, err := task.Step(1, 0); !errors.Is(err, processor.ErrNoTime) || !strings.Contains(err.Error(), `"out"`) {
		t.Fatal(err)
	}
}

// A timer that fails would fail again at each record, so that Skip would skip them all.
func TestFailingTimerIsFatalUnderAnyPolicy(t *testing.T) {
	boom := errors.New("boom")
	for _, kind := range []processor.TimeKind{processor.StreamTime, processor.WallClock} {
		for _, panics := range []bool{false, true} {
			task := newTask(t, build(t, withTicker(ticker{init: func(c *processor.Context[string, string]) error {
				_, err := c.Schedule(kind, time.Millisecond, func(time.Time) error {
					if panics {
						panic(boom)
					}
					return boom
				})
				return err
			}})), processor.TaskOptions{OnProcessError: processor.Skip()})
			enqueue(task, "p1", rec(0, 5, "k", "v"))
			_, _, err := task.Step(1, 5)
			if kind == processor.WallClock && err == nil {
				_, err = task.Punctuate(5)
			}
			var e *processor.TaskError
			if !errors.Is(err, boom) || !errors.Is(err, processor.ErrProcess) || !errors.As(err, &e) || e.Topic != "" {
				t.Fatalf("kind %d: %v", kind, err)
			}
			if errors.Is(err, processor.ErrPanic) != panics {
				t.Errorf("panic: %v", err)
			}
			if s := "timer of process-1 (processor/timer_test.go:"; !strings.Contains(err.Error(), s) {
				t.Errorf("%v\ndoes not say %q", err, s)
			}
		}
	}
}

func TestSkippedRecordLeavesTimersAsTheyWere(t *testing.T) {
	var first *processor.Timer
	fired := map[string]int{}
	tick := func(name string) func(time.Time) error {
		return func(time.Time) error { fired[name]++; return nil }
	}
	task := newTask(t, build(t, withTicker(ticker{
		init: func(c *processor.Context[string, string]) (err error) {
			first, err = c.Schedule(processor.StreamTime, time.Millisecond, tick("first"))
			return err
		},
		process: func(c *processor.Context[string, string], r processor.Record[string, string]) error {
			if r.Value != "bad" {
				return nil
			}
			first.Cancel()
			if _, err := c.Schedule(processor.StreamTime, time.Millisecond, tick("second")); err != nil {
				return err
			}
			return errors.New("bad")
		},
	})), processor.TaskOptions{OnProcessError: processor.Skip()})
	for i, v := range []string{"bad", "good", "bad", "good"} {
		enqueue(task, "p1", rec(int64(i), int64(i), "k", v))
		step(t, task, 0)
	}
	if fired["first"] != 2 || fired["second"] != 0 {
		t.Errorf("calls %v, want those of the first at the good records", fired)
	}
	if n := task.Dropped(processor.DropFailed); n != 2 {
		t.Errorf("%d records failed", n)
	}
}
