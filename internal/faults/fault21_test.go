//go:build unix

package faults

import (
	"bytes"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"tailrace.dev/internal/engine"
	"tailrace.dev/processor"
)

// TestFault21OffsetsDeleted deletes the offsets of a group whose state is there. Processing all input again would count
// it twice: the start is refused, also without the local state, and each time.
func TestFault21OffsetsDeleted(t *testing.T) {
	t.Parallel()
	for _, local := range []bool{true, false} {
		t.Run(map[bool]string{true: "with local state", false: "without local state"}[local], func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 2)
			f := c.feeder(20)
			s := c.setup(t.TempDir(), nil)
			s.config.LeaveOnStop = true
			l := s.run(t)
			f.send(500)
			c.settle(20 * time.Second)
			l.stop()
			until(t, 20*time.Second, "the group to be deleted", func() bool {
				_, err := c.adm.DeleteGroup(t.Context(), c.app)
				return err == nil
			})
			if !local {
				if err := os.RemoveAll(s.config.StateDir); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				l := s.run(t)
				mustName(t, l.end(20*time.Second), processor.ErrNoCommittedOffset, c.in)
				if took := time.Since(l.began); took > 10*time.Second {
					t.Errorf("refused after %v", took)
				}
			}
			c.mustBeExact(f)
		})
	}
}

// TestFault21Reset sets an application back by hand as docs/guarantees.md says, and compares its second output with the
// first: the same for each partition, byte for byte.
func TestFault21Reset(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	f := c.feeder(20)
	s := c.setup(t.TempDir(), nil)
	s.config.LeaveOnStop = true
	l := s.run(t)
	f.send(1000)
	c.settle(20 * time.Second)
	l.stop()
	first, _ := c.readAll(c.out)

	topics, err := c.adm.ListTopics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(topics)) {
		if strings.HasPrefix(name, c.app+"-") && (strings.HasSuffix(name, "-changelog") || strings.HasSuffix(name, "-repartition")) {
			if _, err := c.adm.DeleteTopic(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.RemoveAll(s.config.StateDir); err != nil {
		t.Fatal(err)
	}
	until(t, 20*time.Second, "the offsets to be set", func() bool {
		starts, err := c.adm.ListStartOffsets(t.Context(), c.in)
		if err != nil {
			t.Fatal(err)
		}
		offsets := kadm.Offsets{}
		starts.Each(func(o kadm.ListedOffset) { offsets.AddOffset(o.Topic, o.Partition, o.Offset, -1) })
		resp, err := c.adm.CommitOffsets(t.Context(), c.app, offsets)
		return err == nil && resp.Error() == nil
	})
	if err := engine.ForgetTopology(t.Context(), c.cl, c.app); err != nil {
		t.Fatal(err)
	}
	l = s.run(t)
	c.settle(20 * time.Second)
	l.stop()
	both, _ := c.readAll(c.out)
	for p, records := range both {
		n := len(first[p])
		if len(records) != 2*n {
			t.Errorf("partition %d has %d records, and had %d before", p, len(records), n)
			continue
		}
		for i, r := range records[n:] {
			if was := records[i]; !bytes.Equal(r.Key, was.Key) || !bytes.Equal(r.Value, was.Value) {
				t.Fatalf("partition %d: record %d is %s=%x, and was %s=%x", p, i, r.Key, r.Value, was.Key, was.Value)
			}
		}
	}
}
