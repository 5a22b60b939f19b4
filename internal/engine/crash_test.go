package engine

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// crashPoints are the named points of the protocol.
var crashPoints = []string{
	"polled", "processed", "before-flush", "after-flush", "before-offsets", "after-offsets", "before-end", "after-end",
	"before-commit-apply", "after-commit-apply", "flush-start", "flush-end",
	"restore-start", "restore-mid", "restore-end",
}

// TestCrashAtEveryPoint ends a process at each point of the protocol, starts it again, and finds every record counted
// exactly once.
func TestCrashAtEveryPoint(t *testing.T) {
	for _, point := range crashPoints {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			c.topic("in", 2)
			c.topic("out", 1)
			r := newRig(t, c, countProgram("crash"))
			total := 0
			feed := func(n int) { c.feed("in", total, n, 20); total += n }
			feed(500)
			for i := range 4 {
				p := r.start(t, func(s *Settings) { s.Seams.At = crashAt(point, 1+i%2) })
				feed(300)
				for crashed := false; !crashed; {
					select {
					case <-p.done:
						crashed = true
					case <-time.After(20 * time.Millisecond):
						feed(20) // some points need more input to be passed that often
					}
				}
				if !errors.Is(p.err, ErrCrash) {
					t.Fatalf("ended with %v", p.err)
				}
			}
			p := r.start(t)
			feed(200)
			c.verifyCounts("out", total)
			p.stop()
			if len(r.rebuilt) > 0 {
				t.Errorf("rebuilt: %v", r.rebuilt)
			}
		})
	}
}

// TestInjectedErrorRebuilds lets each point fail in a process that goes on: the session is rebuilt, nothing is lost.
func TestInjectedErrorRebuilds(t *testing.T) {
	for _, point := range crashPoints {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			c.topic("in", 2)
			c.topic("out", 1)
			r := newRig(t, c, countProgram("inject"))
			c.feed("in", 0, 1000, 20)
			crash := crashAt(point, 2)
			p := r.start(t, func(s *Settings) {
				s.FlushInterval = time.Millisecond
				s.Seams.At = func(at string) error {
					if err := crash(at); err != nil {
						return fmt.Errorf("injected")
					}
					return nil
				}
			})
			total := 1000
			until(t, "the rebuild", func() bool {
				c.feed("in", total, 10, 20)
				total += 10
				r.mu.Lock()
				defer r.mu.Unlock()
				return len(r.rebuilt) > 0
			})
			c.feed("in", total, 100, 20)
			c.verifyCounts("out", total+100)
			p.stop()
		})
	}
}
