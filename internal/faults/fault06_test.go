//go:build unix

package faults

import (
	"math/rand/v2"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"tailrace.dev/internal/embedded"
)

// TestFault06BrokerGone takes an embedded broker that keeps its data away and brings it back: while records flow, for
// longer than the session lasts, and before a member starts. The member waits and goes on; it does not end.
func TestFault06BrokerGone(t *testing.T) {
	t.Parallel()
	options := embedded.Options{
		Port: freePort(t), Dir: t.TempDir(), NoSync: true,
		Extra: []kfake.Opt{kfake.GroupMinSessionTimeout(time.Second)},
	}
	var b *embedded.Broker
	up := func() {
		t.Helper()
		var err error
		if b, err = embedded.Start(options); err != nil {
			t.Fatal(err)
		}
	}
	down := func() {
		t.Helper()
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	up()
	t.Cleanup(func() { _ = b.Close() })
	c := &cluster{t: t, addrs: b.Addrs(), app: "app" + strconv.FormatInt(clusters.Add(1), 10)}
	c.prepare(2)
	f := c.feeder(20)
	s := c.setup(t.TempDir(), nil)
	s.config.SessionTimeout = 2 * time.Second
	f.send(100)

	down()
	l := s.run(t)
	time.Sleep(500 * time.Millisecond)
	up()
	began := time.Now()
	l.waitRunning(30 * time.Second)
	c.settle(30 * time.Second)
	t.Logf("down at the start: running %v after it is up", since(began))
	for _, d := range []time.Duration{300 * time.Millisecond, 3 * time.Second, 0, 0, 0} {
		f.send(100)
		time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
		down()
		time.Sleep(d)
		up()
		began := time.Now()
		f.send(100)
		took := c.resumed(began, 60*time.Second)
		t.Logf("down for %v: resumed %v after it was up", d, took.Round(time.Millisecond))
		if took > 15*time.Second {
			t.Errorf("down for %v: resumed %v after it was up, want less than 15 s", d, took)
		}
		if l.ended() {
			t.Fatalf("the member ended: %v", l.err)
		}
	}
	c.settle(30 * time.Second)
	l.stop()
	c.mustBeExact(f)
	c.mustMatchChangelog(t, s.config.StateDir)
}

// freePort finds a port that the system does not give to outgoing connections.
func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		port := 20000 + rand.IntN(10000)
		if l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port)); err == nil {
			_ = l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

// TestFault06Moves moves the coordinators and the leaders of all partitions about, and takes a broker out of a cluster of
// three, while records flow.
func TestFault06Moves(t *testing.T) {
	t.Parallel()
	c := newFakes(t, 3, 3)
	f := c.feeder(50)
	s := c.setup(t.TempDir(), nil)
	l := s.run(t)
	f.send(100)
	c.settle(30 * time.Second)
	stop := f.flow(500)
	fake := c.broker.Cluster()
	for range 6 {
		time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
		fake.RehashCoordinators()
		time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
		fake.ShufflePartitionLeaders()
	}
	_, text, err := net.SplitHostPort(c.addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := fake.RemoveNode(0); err != nil {
		t.Fatal(err)
	}
	took := c.resumed(time.Now(), time.Minute)
	if _, _, err := fake.AddNode(0, port); err != nil {
		t.Fatal(err)
	}
	took = max(took, c.resumed(time.Now(), time.Minute))
	t.Logf("without a broker for a while: resumed after %v, %d rebuilds", took.Round(time.Millisecond), len(l.rebuilds()))
	// Mostly it takes a tenth of a second. Where the embedded broker's coordinators do not agree for a while on who they
	// are, a commit is tried twice for as long as its patience lasts before the client is made anew.
	if took > 45*time.Second {
		t.Errorf("resumed after %v, want less than 45 s", took)
	}
	stop()
	c.settle(30 * time.Second)
	if l.ended() {
		t.Fatalf("the member ended: %v", l.err)
	}
	l.stop()
	c.mustBeExact(f)
	c.mustMatchChangelog(t, s.config.StateDir)
}
