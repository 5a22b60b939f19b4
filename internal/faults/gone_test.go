//go:build unix

package faults

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestMemberGone kills one of three members, which does not come back. Its tasks resume at the others when its session
// has ended, within a second; the others' own tasks do not pause. With standbys nothing is restored but the tail.
func TestMemberGone(t *testing.T) {
	session, slack, calm := 2*time.Second, 10*time.Second, 10*time.Second // on a machine that runs other tests
	if onKafka() {
		session, slack, calm = 6*time.Second, time.Second, time.Second
	} else {
		t.Parallel()
	}
	for _, standbys := range []int{0, 1} {
		t.Run(fmt.Sprintf("%d standbys", standbys), func(t *testing.T) {
			if !onKafka() {
				t.Parallel()
			}
			const partitions = 6
			c := newCluster(t, partitions)
			f := c.feeder(1000)
			f.send(5000)
			at, _ := staticGroup(t, c, 3, func(s *childSpec) { s.Session, s.Standbys = session, standbys })
			c.waitBalanced(partitions, 3, 60*time.Second)
			stop := f.flow(2000)
			c.resumed(time.Now(), 30*time.Second)
			time.Sleep(3 * time.Second) // copies are made
			c.waitBalanced(partitions, 3, 60*time.Second)
			w := c.watch()
			time.Sleep(300 * time.Millisecond)
			w.reset()
			restored := make([]int, 3)
			for i, m := range at {
				restored[i] = len(m.said(saysRestored))
			}
			before := c.owners()
			at[2].kill()
			killed := time.Now()
			c.waitMembers(2, partitions, 60*time.Second)
			took := c.resumed(killed, 60*time.Second)
			time.Sleep(300 * time.Millisecond)
			pauses := w.reset()
			after := c.owners()
			stayed, moved := compare(before, after)
			untouched, touched := longest(pauses, stayed), longest(pauses, moved)
			stop()
			c.settle(60 * time.Second)
			offsets := 0
			for i, m := range at[:2] {
				for _, text := range m.said(saysRestored)[restored[i]:] {
					offsets += span(t, text)
				}
			}
			for _, m := range at[:2] {
				m.stop()
				if m.wiped() {
					t.Error("local state was wiped")
				}
			}
			c.mustBeExact(f)
			t.Logf("session %v, %d standbys: all processed %v after the kill; the tasks of the dead member paused for %v, the "+
				"others for %v; %d offsets were read back", session, standbys, took.Round(time.Millisecond), touched, untouched, offsets)
			if len(moved) != partitions/3 {
				t.Errorf("%d partitions moved, want %d: %v, then %v", len(moved), partitions/3, before, after)
			}
			if touched > session+slack {
				t.Errorf("the tasks of the dead member paused for %v, want less than %v", touched, session+slack)
			}
			if untouched > calm {
				t.Errorf("tasks that stay where they are paused for %v, want less than %v", untouched, calm)
			}
			// What was committed while the copy was handed over, and barriers.
			if standbys > 0 && offsets > 1000 {
				t.Errorf("%d offsets were read back, though there was a copy", offsets)
			}
		})
	}
}

// span returns how many offsets a restore had before it.
func span(t *testing.T, text string) int {
	t.Helper()
	fields := strings.Fields(text)
	from, err := strconv.Atoi(fields[len(fields)-2])
	if err != nil {
		t.Fatal(err)
	}
	to, err := strconv.Atoi(fields[len(fields)-1])
	if err != nil {
		t.Fatal(err)
	}
	return max(0, to-from)
}
