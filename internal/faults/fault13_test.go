//go:build unix

package faults

import (
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"tailrace.dev/internal/engine"
)

// TestFault13TwoProcessesOneDir starts a second process on the state directory of a first. It refuses at once, names the
// directory and the process, and does not disturb the first.
func TestFault13TwoProcessesOneDir(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	f := c.feeder(20)
	dir := t.TempDir()
	first := spawn(t, c.spec(dir))
	first.waitRunning(30 * time.Second)
	f.send(100)

	refused := func(err string) {
		t.Helper()
		for _, want := range []string{dir, strconv.Itoa(first.cmd.Process.Pid)} {
			if !strings.Contains(err, want) {
				t.Errorf("the refusal does not name %s: %s", want, err)
			}
		}
	}
	second := spawn(t, c.spec(dir))
	refused(second.wait(10 * time.Second))

	// The time is taken in this process, so that it is not that of starting one.
	l := c.setup(dir, nil).run(t)
	err := l.end(10 * time.Second)
	took := time.Since(l.began)
	if !errors.Is(err, engine.ErrStateLocked) {
		t.Fatalf("the second ended with %v", err)
	}
	refused(err.Error())
	if took > time.Second {
		t.Errorf("refused after %v, want less than 1 s", took)
	}

	f.send(100)
	c.settle(15 * time.Second)
	if n := len(first.said(saysRebuilt)); n > 0 {
		t.Errorf("the first was rebuilt %d times", n)
	}
	first.stop()
	c.mustBeExact(f)
}
