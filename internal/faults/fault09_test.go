//go:build unix

package faults

import (
	"sync/atomic"
	"testing"
	"time"
)

// TestFault09TransactionTimeout lets processing take longer than the broker lets a transaction live. The broker aborts
// it, and the client is made anew, once.
func TestFault09TransactionTimeout(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	f := c.feeder(20)
	timeout, pause := time.Second, 2500*time.Millisecond
	if onKafka() {
		pause = 22 * time.Second // a real broker looks for transactions that timed out every ten seconds
	}
	var sleep atomic.Bool
	s := c.setup(t.TempDir(), func(string, []byte) {
		if sleep.CompareAndSwap(true, false) {
			time.Sleep(pause)
		}
	})
	s.config.TransactionTimeout = timeout
	// The pause must come when something of the transaction has been sent already.
	s.config.CommitInterval = 500 * time.Millisecond
	s.config.Workers = 1
	l := s.run(t)
	f.send(200)
	c.settle(15 * time.Second)
	for range 2 {
		before := len(l.rebuilds())
		stop := f.flow(3000)
		time.Sleep(300 * time.Millisecond)
		sleep.Store(true)
		time.Sleep(300 * time.Millisecond)
		stop()
		until(t, pause+20*time.Second, "the rebuild", func() bool { return len(l.rebuilds()) > before })
		c.settle(30 * time.Second)
		if n := len(l.rebuilds()) - before; n != 1 {
			t.Errorf("%d rebuilds, want 1: %v", n, l.rebuilds()[before:])
		}
	}
	l.stop()
	c.mustBeExact(f)
	c.mustMatchChangelog(t, s.config.StateDir)
}
