//go:build unix

package faults

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TestFault16DecompressionBomb sends a batch that is some kilobytes long and sixty megabytes when it is decompressed. The
// member ends with an error that names the place, without decompressing all of it; when the offset has been moved past
// the batch, as the error says, it goes on, and everything else is exact.
func TestFault16DecompressionBomb(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	f := c.feeder(20)
	f.send(200)
	cl, err := kgo.NewClient(append(c.opts, kgo.ProducerBatchCompression(kgo.ZstdCompression()),
		kgo.ProducerBatchMaxBytes(80<<20))...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	bomb := &kgo.Record{Topic: c.in, Key: []byte("bomb"), Value: make([]byte, 60<<20)}
	if err := cl.ProduceSync(t.Context(), bomb).FirstErr(); err != nil {
		t.Fatal(err)
	}
	f.send(200)
	dir := t.TempDir()
	spec := c.spec(dir)
	spec.MaxDecompress = 16 << 20
	for range 2 { // a supervisor starts it again: the same, at once
		m := spawn(t, spec)
		// What the kernel counts for a process that has ended includes its parent from before it was another program.
		most := 0
		for began := time.Now(); !m.ended() && time.Since(began) < 40*time.Second; time.Sleep(time.Millisecond) {
			if mib, ok := m.status("VmHWM:"); ok {
				most = mib
			}
		}
		end := m.wait(time.Second)
		for _, want := range []string{c.in, "decompressed", "raise the limit, or move"} {
			if !strings.Contains(end, want) {
				t.Fatalf("ended with %q, want %q in it", end, want)
			}
		}
		t.Logf("resident at most %d MiB", most)
		if most > 300 {
			t.Errorf("resident at most %d MiB, want less than 300", most)
		}
	}
	// What was before the batch was processed all the same.
	var o kadm.Offsets
	until(t, 20*time.Second, "the group to be empty", func() bool {
		o = kadm.Offsets{}
		committed, err := c.adm.FetchOffsets(t.Context(), c.app)
		if err != nil {
			return false
		}
		at, ok := committed.Lookup(c.in, 0)
		if !ok || at.At != bomb.Offset {
			t.Fatalf("committed up to %v, want %d, where the batch is", at, bomb.Offset)
		}
		o.AddOffset(c.in, 0, bomb.Offset+1, -1)
		return c.release() && c.adm.CommitAllOffsets(context.Background(), c.app, o) == nil
	})
	m := spawn(t, spec)
	c.settle(30 * time.Second)
	m.stop()
	c.mustBeExact(f)
}

// release takes members that have ended, but keep their place, out of the group.
func (c *cluster) release() bool {
	group, err := c.adm.DescribeGroups(c.t.Context(), c.app)
	if err != nil {
		return false
	}
	for _, m := range group[c.app].Members {
		if m.InstanceID == nil {
			continue
		}
		if _, err := c.adm.LeaveGroup(c.t.Context(), kadm.LeaveGroup(c.app).InstanceIDs(*m.InstanceID)); err != nil {
			return false
		}
	}
	return true
}
