//go:build unix

package faults

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace.dev/processor"
)

// TestFault08AppliedButRefused answers produce requests with errors after the records are in the log.
func TestFault08AppliedButRefused(t *testing.T) {
	t.Parallel()
	for _, code := range []*kerr.Error{kerr.RequestTimedOut, kerr.NotEnoughReplicasAfterAppend} {
		t.Run(code.Message, func(t *testing.T) {
			t.Parallel()
			c := newFake(t, 2)
			f := c.feeder(20)
			s := c.setup(t.TempDir(), nil)
			l := s.run(t)
			f.send(100)
			c.settle(15 * time.Second)
			for _, topic := range []string{c.out, processor.ChangelogTopic(c.app, counts.Name())} {
				h := c.broker.Cluster().Fault(kfake.Fault{
					Keys: []kmsg.Key{kmsg.Produce}, Topic: topic, Err: code, Count: 5,
				})
				until(t, 15*time.Second, "the faults", func() bool { f.send(20); return h.Hits() == 5 })
			}
			c.settle(15 * time.Second)
			l.stop()
			c.mustBeExact(f)
			c.mustMatchChangelog(t, s.config.StateDir)
		})
	}
}

// TestFault08ReplyLost loses the replies to requests that the broker has carried out, again and again, while records
// flow. Of EndTxn, this leaves open whether the transaction has committed.
func TestFault08ReplyLost(t *testing.T) {
	t.Parallel()
	times := 4
	if onKafka() {
		times = 10
	}
	for _, key := range []kmsg.Key{kmsg.EndTxn, kmsg.Produce, kmsg.AddOffsetsToTxn, kmsg.TxnOffsetCommit, kmsg.Fetch,
		kmsg.Heartbeat} {
		t.Run(key.Name(), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 2)
			f := c.feeder(20)
			w := newWire()
			s := c.setup(t.TempDir(), nil)
			s.config.Kafka = append(s.config.Kafka, w.dialer())
			l := s.run(t)
			f.send(100)
			c.settle(15 * time.Second)
			stop := f.flow(500)
			for i := range times {
				w.lose(key, 1+i%2)
				until(t, 15*time.Second, "a lost reply", func() bool { return w.lost.Load() > 0 })
				c.progress(20 * time.Second)
			}
			stop()
			c.settle(20 * time.Second)
			l.stop()
			c.mustBeExact(f)
			c.mustMatchChangelog(t, s.config.StateDir)
			t.Logf("%d rounds, %d records, %d rebuilds, %d aborts", times, f.total, len(l.rebuilds()), len(l.aborts()))
		})
	}
}
