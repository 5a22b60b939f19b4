package engine

import (
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

// member returns the change that makes a process another member, with its own state directory.
func (r *rig) member(n int) func(*Settings) {
	return func(s *Settings) {
		s.InstanceID = r.program.App + "-" + strconv.Itoa(n)
		s.TransactionalID = s.InstanceID
		s.StateDir += "-" + strconv.Itoa(n)
	}
}

// TestMembersComeAndGo runs up to three members under load, and lets them crash, stop, and leave.
func TestMembersComeAndGo(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 8)
	c.topic("out", 2)
	r := newRig(t, c, countProgram("members"))
	total := 0
	feed := func(n int) {
		for range n / 50 {
			c.feed("in", total, 50, 40)
			total += 50
			time.Sleep(2 * time.Millisecond)
		}
	}
	// Each member has a disk of its own.
	rigs := []*rig{r, newRig(t, c, countProgram("members")), newRig(t, c, countProgram("members"))}
	for _, other := range rigs[1:] {
		other.settings.StateDir = r.settings.StateDir
	}
	one := rigs[0].start(t, r.member(1))
	feed(1000)
	two := rigs[1].start(t, r.member(2))
	feed(1000)
	until(t, "the second member's tasks", func() bool {
		feed(50)
		rigs[1].mu.Lock()
		defer rigs[1].mu.Unlock()
		return len(rigs[1].assigned) >= 4
	})
	three := rigs[2].start(t, r.member(3), func(s *Settings) {
		s.LeaveOnStop = true
		s.Seams.At = crashAt("before-end", 40)
	})
	feed(2000)
	for crashed := false; !crashed; {
		select {
		case <-three.done:
			crashed = true
		default:
			feed(50)
		}
	}
	if !errors.Is(three.err, ErrCrash) {
		t.Fatal(three.err)
	}
	three = rigs[2].start(t, r.member(3), func(s *Settings) { s.LeaveOnStop = true })
	feed(1000)
	three.stop()
	feed(1000)
	two.stop()
	two = rigs[1].start(t, r.member(2))
	feed(500)
	c.verifyCounts("out", total)
	one.stop()
	two.stop()
	for _, r := range rigs {
		if len(r.rebuilt) > 0 {
			t.Errorf("rebuilt: %v", r.rebuilt)
		}
	}
}

// TestDynamicMembers leaves the instance ids out.
func TestDynamicMembers(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 4)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("dynamic"))
	other := newRig(t, c, countProgram("dynamic"))
	dynamic := func(n string) func(*Settings) {
		return func(s *Settings) { s.InstanceID, s.TransactionalID = "", "dynamic-"+n }
	}
	one := r.start(t, dynamic("1"))
	c.feed("in", 0, 1000, 20)
	two := other.start(t, dynamic("2"))
	until(t, "tasks of the second", func() bool {
		other.mu.Lock()
		defer other.mu.Unlock()
		return len(other.assigned) >= 2
	})
	c.feed("in", 1000, 1000, 20)
	one.stop()
	c.feed("in", 2000, 1000, 20)
	c.verifyCounts("out", 3000)
	two.stop()
}

// TestSecondProcessIsFenced starts another process with the same identity: the older one ends loudly.
func TestSecondProcessIsFenced(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 2)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("fence"))
	other := newRig(t, c, countProgram("fence"))
	one := r.start(t)
	c.feed("in", 0, 100, 10)
	c.verifyCounts("out", 100)
	two := other.start(t)
	if err := one.wait(); !errors.Is(err, ErrFenced) {
		t.Fatalf("the older process ended with %v", err)
	}
	c.feed("in", 100, 100, 10)
	c.verifyCounts("out", 200)
	two.stop()
}

func TestStateDirIsLocked(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 2)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("lock"))
	one := r.start(t)
	c.feed("in", 0, 100, 10)
	c.verifyCounts("out", 100)
	err := r.start(t).wait()
	_ = isKind(t, err, ErrStateLocked)
	c.feed("in", 100, 100, 10)
	c.verifyCounts("out", 200)
	one.stop()
}

// pipeline passes "in" through a repartition topic to the counting sub-topology.
func pipeline(app string) Program {
	p := countProgram(app)
	re := app + "-by-key-repartition"
	p.Subs[0].Name = "by-key"
	p.Subs[0].Sources = []Source{{Topic: re, Internal: true, FedBy: []string{"in"}}}
	p.Subs = append(p.Subs, Sub{Name: "in", Sources: []Source{{Topic: "in"}}, Sinks: []string{re}})
	return p
}

// TestRepartition runs two sub-topologies over two members, and finds the repartition topic made and purged.
func TestRepartition(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 3)
	c.topic("out", 1)
	r, other := newRig(t, c, pipeline("re")), newRig(t, c, pipeline("re"))
	r.settings.PurgeInterval = 50 * time.Millisecond
	one := r.start(t, r.member(1))
	c.feed("in", 0, 1000, 20)
	two := other.start(t, r.member(2))
	c.feed("in", 1000, 1000, 20)
	until(t, "tasks of the second", func() bool {
		other.mu.Lock()
		defer other.mu.Unlock()
		return len(other.assigned) >= 3
	})
	c.feed("in", 2000, 1000, 20)
	c.verifyCounts("out", 3000)
	until(t, "the purge", func() bool {
		starts, err := c.adm.ListStartOffsets(t.Context(), c.ns+"re-by-key-repartition")
		if err != nil || len(starts[c.ns+"re-by-key-repartition"]) != 3 {
			return false
		}
		purged := int64(0)
		starts.Each(func(o kadm.ListedOffset) { purged += o.Offset })
		return purged > 500
	})
	one.stop()
	two.stop()
}
