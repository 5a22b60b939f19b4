//go:build unix

package faults

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// staticGroup starts members that differ in their state directory alone.
func staticGroup(t *testing.T, c *cluster, members int, change func(*childSpec)) (at []*member, start func(i int) *member) {
	t.Helper()
	dir := t.TempDir()
	start = func(i int) *member {
		spec := c.spec(filepath.Join(dir, fmt.Sprint(i)))
		if change != nil {
			change(&spec)
		}
		return spawn(t, spec)
	}
	for i := range members {
		at = append(at, start(i))
	}
	for _, m := range at {
		m.waitRunning(60 * time.Second)
	}
	return at, start
}

// TestFault02Graceful stops members in good order and starts them again at once: one, and in a rolling restart three of
// three, twice. Nothing moves: each comes back to the partitions that it had, and the others do not notice.
func TestFault02Graceful(t *testing.T) {
	if !onKafka() { // there it measures pauses, and wants the machine for itself
		t.Parallel()
	}
	const partitions = 6
	for _, members := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d members", members), func(t *testing.T) {
			if !onKafka() {
				t.Parallel()
			}
			c := newCluster(t, partitions)
			f := c.feeder(100)
			at, start := staticGroup(t, c, members, nil)
			before := c.waitMembers(members, partitions, 30*time.Second)
			stop := f.flow(1000)
			c.resumed(time.Now(), 30*time.Second)
			w := c.watch()
			time.Sleep(300 * time.Millisecond)
			w.reset()
			var own, others time.Duration
			for range 2 {
				for i := range at {
					// Which partitions pause is taken from the pauses themselves: those of one member are longest.
					calm := map[int]int{}
					for j, m := range at {
						calm[j] = len(m.said(saysTasks))
					}
					at[i].stop()
					at[i] = start(i)
					at[i].waitRunning(60 * time.Second)
					c.resumed(time.Now(), 30*time.Second)
					time.Sleep(100 * time.Millisecond)
					pauses := slices.Sorted(maps.Values(w.reset()))
					own = max(own, pauses[len(pauses)-1])
					if share := partitions / members; members > 1 {
						others = max(others, pauses[len(pauses)-1-share])
					}
					for j, m := range at {
						if j != i && len(m.said(saysTasks)) != calm[j] {
							t.Errorf("member %d noticed the restart of member %d: %v", j, i, m.said(saysTasks))
						}
					}
				}
			}
			stop()
			c.settle(30 * time.Second)
			if after := c.owners(); !maps.EqualFunc(before, after, slices.Equal) {
				t.Errorf("partitions moved: from %v to %v", before, after)
			}
			for _, m := range at {
				m.stop()
				if m.wiped() {
					t.Error("local state was wiped")
				}
			}
			c.mustBeExact(f)
			t.Logf("%d members, %d records: a partition paused for at most %v over its member's restart, the others for %v",
				members, f.total, own.Round(time.Millisecond), others.Round(time.Millisecond))
			if limit := time.Second; onKafka() && max(own, others) > limit {
				t.Errorf("a partition paused for %v, want less than %v", max(own, others), limit)
			}
		})
	}
}
