//go:build unix

package faults

import (
	"strings"
	"testing"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

// TestFault18Mismatch starts with two inputs of one sub-topology that have different numbers of partitions, and with a
// changelog that has another number than the input. The start is refused, with both numbers, and nothing is written.
func TestFault18Mismatch(t *testing.T) {
	t.Parallel()
	t.Run("inputs", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t, 2)
		other := c.app + "-other"
		c.topic(other, 3, nil)
		f := c.feeder(10)
		f.send(20)
		topology, err := processor.Build(func(b *processor.Builder) {
			left := stream.From(b, processor.NewTopic(c.in, serde.String, serde.Raw))
			right := table.From(b, processor.NewTopic(other, serde.String, serde.Raw), latest)
			joined := stream.LeftJoin(left, right, func(_ string, v []byte, _ processor.Opt[[]byte]) []byte { return v })
			stream.To(joined, processor.NewTopic(c.out, serde.String, serde.Raw))
		})
		if err != nil {
			t.Fatal(err)
		}
		s := setup{app: c.app, topology: topology, config: memberConfig(c.addrs, t.TempDir())}
		l := s.run(t)
		err = l.end(20 * time.Second)
		mustName(t, err, processor.ErrPartitionMismatch, c.in+" has 2")
		mustName(t, err, processor.ErrPartitionMismatch, other+" has 3")
		if took := time.Since(l.began); took > 10*time.Second {
			t.Errorf("it took %v", took)
		}
		if records, _ := c.readAll(c.out); len(records) != 0 {
			t.Error("there are outputs")
		}
	})
	t.Run("changelog", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t, 2)
		changelog := processor.ChangelogTopic(c.app, counts.Name())
		c.topic(changelog, 3, nil)
		err := c.setup(t.TempDir(), nil).run(t).end(20 * time.Second)
		mustName(t, err, processor.ErrPartitionMismatch, changelog)
		if !strings.Contains(err.Error(), "3 partitions") || !strings.Contains(err.Error(), "needs 2") {
			t.Errorf("%v does not tell both numbers", err)
		}
	})
}

// TestFault18PartitionsAdded adds partitions to the input of a running application while records flow. Keys move to other
// partitions than their state: the application stops and tells both numbers, and does so at each start. What it has
// written until then has each key in one partition only.
func TestFault18PartitionsAdded(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	f := c.feeder(50)
	s := c.setup(t.TempDir(), nil)
	l := s.run(t)
	f.send(200)
	c.settle(20 * time.Second)
	stop := f.flow(300)
	began := time.Now()
	if _, err := c.adm.UpdatePartitions(t.Context(), 5, c.in); err != nil {
		t.Fatal(err)
	}
	err := l.end(30 * time.Second)
	stop()
	t.Logf("stopped after %v: %v", since(began), err)
	check := func(err error) {
		t.Helper()
		mustName(t, err, processor.ErrPartitionMismatch, "2")
		mustName(t, err, processor.ErrPartitionMismatch, "5")
	}
	check(err)
	check(s.run(t).end(20 * time.Second))
	if _, err := c.adm.FetchOffsets(t.Context(), c.app); err != nil {
		t.Fatal(err)
	}
	// Within what was processed, every count is in order: none came from a partition whose state is elsewhere.
	records, _ := c.readAll(c.out)
	if r := c.check(records, f); r.gaps+r.repeats != 0 {
		t.Errorf("%s", r)
	}
}
