//go:build kafka && unix

package faults

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"tailrace.dev/internal/kafkatest"
)

// TestFault06ThreeBrokers runs three real brokers, with three replicas of everything, and kills and stops them in turn:
// five times the leader of a partition that is written to, the coordinators of the group and of the transactions, all
// of them for a minute, and before the member starts. The member goes on within fifteen seconds of there being a quorum.
func TestFault06ThreeBrokers(t *testing.T) {
	brokers, err := kafkatest.StartCluster(t.TempDir(), 3)
	t.Cleanup(func() {
		if brokers != nil {
			_ = brokers.Kill(0)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, addrs: brokers.Addrs(), app: fmt.Sprintf("three-%d", time.Now().UnixNano()%1e10)}
	c.prepare(6)
	f := c.feeder(100)
	f.send(500)

	do := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	// Down at the start.
	do("kill", brokers.Kill(0))
	dir := t.TempDir()
	at := []*member{spawn(t, c.spec(dir+"/0")), spawn(t, c.spec(dir+"/1"))}
	time.Sleep(5 * time.Second)
	do("start", brokers.Start())
	began := time.Now()
	for _, m := range at {
		m.waitRunning(time.Minute)
	}
	t.Logf("down at the start: running %v after there were brokers", since(began))
	stop := f.flow(2000)

	// check requires that the members go on soon after the brokers do: after all partitions are led by one that runs.
	check := func(what string, began time.Time, gone int) {
		t.Helper()
		led := c.waitLeaders(gone)
		if by := led.Sub(began); by > 0 {
			what += fmt.Sprintf(" (%v until all had leaders)", by.Round(time.Millisecond))
			began = led
		}
		took := c.resumed(began, 2*time.Minute)
		t.Logf("%s: resumed after %v", what, took.Round(time.Millisecond))
		if took > 15*time.Second {
			t.Errorf("%s: resumed after %v, want less than 15 s", what, took)
		}
		for i, m := range at {
			if m.ended() {
				t.Fatalf("%s: member %d ended:\n%s", what, i, m.transcript())
			}
		}
	}
	hit := func(what string, node int, kill bool) {
		t.Helper()
		how := "stopped"
		if kill {
			how = "killed"
		}
		began := time.Now()
		if kill {
			do(what, brokers.Kill(node))
		} else {
			do(what, brokers.Stop(node))
			began = time.Now()
		}
		check(fmt.Sprintf("broker %d, %s, %s", node, what, how), began, node)
		do("start", brokers.Start())
		check(fmt.Sprintf("broker %d is back", node), time.Now(), 0)
		c.waitReplicas(3)
	}
	for i := range 5 {
		hit("leader of an output partition", c.leader(c.out, int32(i)), i%2 == 0)
	}
	for _, kill := range []bool{true, false} {
		hit("coordinator of the group", c.coordinator(false), kill)
		hit("coordinator of the transactions", c.coordinator(true), kill)
	}
	// No quorum at all.
	do("kill", brokers.Kill(0))
	time.Sleep(time.Minute)
	do("start", brokers.Start())
	check("all were away for a minute", time.Now(), 0)
	// The members die with a broker.
	at[0].kill()
	gone := 1 + rand.IntN(3)
	do("kill", brokers.Kill(gone))
	at[0] = spawn(t, c.spec(dir+"/0"))
	at[0].waitRunning(time.Minute)
	check("a member and a broker died together", time.Now(), gone)
	do("start", brokers.Start())

	stop()
	c.settle(time.Minute)
	for _, m := range at {
		m.stop()
		if m.wiped() {
			t.Errorf("local state was wiped:\n%s", m.transcript())
		}
	}
	c.mustBeExact(f)
	for i := range at {
		c.mustMatchChangelog(t, fmt.Sprintf("%s/%d", dir, i))
	}
	t.Logf("%d records", f.total)
}

// TestFault05OneOfThreeBrokers cuts members off one of three real brokers after the other.
func TestFault05OneOfThreeBrokers(t *testing.T) {
	brokers, err := kafkatest.StartCluster(t.TempDir(), 3)
	t.Cleanup(func() {
		if brokers != nil {
			_ = brokers.Kill(0)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, addrs: brokers.Addrs(), app: fmt.Sprintf("cut-%d", time.Now().UnixNano()%1e10)}
	c.prepare(3)
	cutOff(t, c, "one broker", []time.Duration{time.Second, 5 * time.Second, 30 * time.Second})
}

// leader returns the broker that leads a partition.
func (c *cluster) leader(topic string, partition int32) int {
	c.t.Helper()
	topics, err := c.adm.ListTopics(c.t.Context(), topic)
	if err != nil || topics.Error() != nil {
		c.t.Fatal(err, topics.Error())
	}
	return int(topics[topic].Partitions[partition].Leader)
}

// coordinator returns the broker that coordinates the group, or the transactions of one of its members.
func (c *cluster) coordinator(txn bool) int {
	c.t.Helper()
	if !txn {
		found := c.adm.FindGroupCoordinators(c.t.Context(), c.app)
		if err := found.Error(); err != nil {
			c.t.Fatal(err)
		}
		return int(found[c.app].NodeID)
	}
	listed, err := c.adm.ListTransactions(c.t.Context(), nil, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, l := range listed.Sorted() {
		if strings.HasPrefix(l.TxnID, c.app) {
			return int(l.Coordinator)
		}
	}
	c.t.Fatal("no transaction of the application is known")
	return 0
}

// waitLeaders waits until each partition of each topic, Kafka's own included, is led by a broker other than one.
func (c *cluster) waitLeaders(gone int) time.Time {
	c.t.Helper()
	until(c.t, 2*time.Minute, "all partitions to have leaders", func() bool {
		topics, err := c.adm.ListTopicsWithInternal(c.t.Context())
		if err != nil || topics.Error() != nil {
			return false
		}
		for _, topic := range topics {
			for _, p := range topic.Partitions {
				if p.Err != nil || p.Leader < 0 || int(p.Leader) == gone {
					return false
				}
			}
		}
		return true
	})
	return time.Now()
}

// waitReplicas waits until all replicas of all partitions are in sync: killing the next broker too early takes more away
// than one.
func (c *cluster) waitReplicas(n int) {
	c.t.Helper()
	until(c.t, 2*time.Minute, "all replicas to be in sync", func() bool {
		topics, err := c.adm.ListTopicsWithInternal(c.t.Context())
		if err != nil || topics.Error() != nil {
			return false
		}
		for _, topic := range topics {
			for _, p := range topic.Partitions {
				if len(p.ISR) != n {
					return false
				}
			}
		}
		return true
	})
}
