//go:build unix

package faults

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// moved sums the tasks that a member was given and had taken from it.
func (m *member) moved(t *testing.T) (given, taken int) {
	t.Helper()
	for _, text := range m.said(saysTasks) {
		in, out, _ := strings.Cut(text, " ")
		for _, n := range []struct {
			text string
			sum  *int
		}{{in, &given}, {out, &taken}} {
			v, err := strconv.Atoi(n.text)
			if err != nil {
				t.Fatal(err)
			}
			*n.sum += v
		}
	}
	return given, taken
}

// TestFault04Rebalances lets a member come, and go for good, over and over while records flow. No more tasks move than
// the newcomer's share, and the partitions that do not move do not pause.
func TestFault04Rebalances(t *testing.T) {
	rounds, rate, limit := 2, 1000, 10*time.Second // on a machine that runs other tests
	if onKafka() {
		rounds, rate, limit = max(1, int(seconds(t, 60)/(6*time.Second))), 10_000, time.Second
	} else {
		t.Parallel()
	}
	const partitions = 6
	c := newCluster(t, partitions)
	f := c.feeder(1000)
	leave := func(s *childSpec) { s.Leave = true }
	at, _ := staticGroup(t, c, 2, leave)
	c.waitMembers(2, partitions, 60*time.Second)
	stop := f.flow(rate)
	c.resumed(time.Now(), 30*time.Second)
	w := c.watch()
	time.Sleep(time.Second)
	w.reset()
	taken := func() (n int) {
		for _, m := range at {
			_, out := m.moved(t)
			n += out
		}
		return n
	}
	dir := t.TempDir()
	var untouched, touched time.Duration
	for i := range rounds {
		was := taken()
		spec := c.spec(filepath.Join(dir, fmt.Sprint(i)))
		leave(&spec)
		before := c.owners()
		guest := spawn(t, spec)
		guest.waitRunning(60 * time.Second)
		after := c.waitBalanced(partitions, 3, 60*time.Second)
		time.Sleep(500 * time.Millisecond)
		pauses := w.reset()
		stayed, moved := compare(before, after)
		if len(moved) > partitions/3 || taken()-was > partitions/3 {
			t.Errorf("round %d: %d partitions moved to the newcomer, %d were taken, want %d: %v, then %v", i, len(moved),
				taken()-was, partitions/3, before, after)
		}
		untouched, touched = max(untouched, longest(pauses, stayed)), max(touched, longest(pauses, moved))

		was = taken()
		guest.stop()
		c.waitMembers(2, partitions, 60*time.Second)
		c.resumed(time.Now(), 60*time.Second)
		time.Sleep(500 * time.Millisecond)
		pauses = w.reset()
		if n := taken() - was; n != 0 {
			t.Errorf("round %d: %d tasks were taken from others when one left", i, n)
		}
		gone := moved
		untouched, touched = max(untouched, longest(pauses, stayed)), max(touched, longest(pauses, gone))
	}
	stop()
	c.settle(60 * time.Second)
	for _, m := range at {
		m.stop()
		if m.wiped() {
			t.Error("local state was wiped")
		}
	}
	c.mustBeExact(f)
	t.Logf("%d rounds, %d records: partitions that stay paused for at most %v, those that move %v", rounds, f.total,
		untouched, touched)
	if untouched > limit {
		t.Errorf("partitions that stay where they are paused for %v, want less than %v", untouched, limit)
	}
}

// waitBalanced waits until so many members have an equal share each.
func (c *cluster) waitBalanced(partitions, members int, limit time.Duration) map[string][]int32 {
	c.t.Helper()
	var owners map[string][]int32
	until(c.t, limit, "an equal share for each member", func() bool {
		owners = c.owners()
		for _, ps := range owners {
			if len(ps) != partitions/members {
				return false
			}
		}
		return len(owners) == members
	})
	return owners
}

// compare tells which partitions have the same owner as before.
func compare(before, after map[string][]int32) (stayed, moved []int32) {
	for name, ps := range after {
		for _, p := range ps {
			if slices.Contains(before[name], p) {
				stayed = append(stayed, p)
				continue
			}
			moved = append(moved, p)
		}
	}
	return stayed, moved
}
