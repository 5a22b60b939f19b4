//go:build unix

package faults

import (
	"fmt"
	"testing"
	"time"
)

// TestFault05NetworkCut cuts a member off its brokers: all of them, one of three, one direction only; and lets all
// replies come late. The member notices nothing, or starts afresh; it is back within five seconds after the end of it,
// and the result is exact.
func TestFault05NetworkCut(t *testing.T) {
	t.Parallel()
	cuts := []time.Duration{time.Second, 4 * time.Second}
	if onKafka() {
		cuts = []time.Duration{time.Second, 5 * time.Second, 30 * time.Second}
	}
	for _, what := range []string{"all", "one broker", "to the broker", "from the broker", "latency"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 3)
			if what == "one broker" && c.broker != nil {
				c = newFakes(t, 3, 3)
			}
			cutOff(t, c, what, cuts)
		})
	}
}

func cutOff(t *testing.T, c *cluster, what string, cuts []time.Duration) {
	n := newNetwork()
	f := c.feeder(50)
	s := c.setup(t.TempDir(), nil)
	s.config.Kafka = append(s.config.Kafka, n.dialer())
	// Short enough that the longer cuts expel the member.
	s.config.SessionTimeout = 3 * time.Second
	if onKafka() {
		s.config.SessionTimeout = 6 * time.Second
	}
	l := s.run(t)
	f.send(100)
	c.settle(30 * time.Second)
	stop := f.flow(500)
	for _, d := range cuts {
		time.Sleep(300 * time.Millisecond)
		switch what {
		case "all":
			n.cut(everywhere, everywhere)
		case "one broker":
			// Each of them in turn, for each may be the coordinator, or the leader of what matters.
			for i, addr := range c.addrs {
				hit := func(a string) bool { return a == addr }
				n.cut(hit, hit)
				if i < len(c.addrs)-1 {
					time.Sleep(d)
					n.heal()
					c.resumed(time.Now(), 30*time.Second)
				}
			}
		case "to the broker":
			n.cut(everywhere, nowhere)
		case "from the broker":
			n.cut(nowhere, everywhere)
		case "latency":
			n.slow(200 * time.Millisecond)
		}
		time.Sleep(d)
		if what == "latency" {
			took := c.resumed(time.Now(), 30*time.Second)
			t.Logf("with replies 200 ms late: behind by %v", took.Round(time.Millisecond))
			n.slow(0)
		}
		n.heal()
		took := c.resumed(time.Now(), 60*time.Second)
		t.Logf("cut for %v: resumed %v after it was healed, %d rebuilds so far", d, took.Round(time.Millisecond), len(l.rebuilds()))
		limit := 15 * time.Second // on a machine that runs other tests
		if onKafka() {
			limit = 5 * time.Second
		}
		if took > limit {
			t.Errorf("cut for %v: resumed %v after it was healed, want less than %v; rebuilds %v", d, took, limit, l.rebuilds())
		}
		if l.ended() {
			t.Fatalf("the member ended: %v", l.err)
		}
	}
	stop()
	c.settle(30 * time.Second)
	l.stop()
	c.mustBeExact(f)
	if n := c.mustMatchChangelog(t, s.config.StateDir); n != 3 {
		t.Errorf("state of %d tasks, want 3", n)
	}
	for _, e := range l.logs.FilterMessageSnippet("dropping the local rows").All() {
		t.Errorf("local state was wiped: %s", fmt.Sprint(e.ContextMap()))
	}
}
