package engine

import (
	"testing"
)

func TestCountsExactlyOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 4)
	c.topic("out", 2)
	r := newRig(t, c, countProgram("count"))
	c.feed("in", 0, 5000, 50)
	p := r.start(t)
	c.verifyCounts("out", 5000)
	until(t, "the offsets", func() bool { return c.committed("count", "in") == 5000 })
	c.feed("in", 5000, 5000, 50)
	c.verifyCounts("out", 10000)
	p.stop()

	p = r.start(t)
	c.feed("in", 10000, 1000, 50)
	c.verifyCounts("out", 11000)
	p.stop()
}
