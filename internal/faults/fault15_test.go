//go:build unix

package faults

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

var latest = state.KeyValue("latest", serde.String, serde.Raw)

// blowUp is the value of a record that a member makes a large one of.
const blowUp = "blow up"

func blown(v []byte) []byte {
	if string(v) == blowUp {
		return bytes.Repeat([]byte("x"), 2<<20)
	}
	return v
}

// outputTopology writes every record to out, some of them blown up; stateTopology keeps them in a store and writes how
// large they are.
func outputTopology(in, out string) (*processor.Topology, error) {
	return processor.Build(func(b *processor.Builder) {
		records := stream.From(b, processor.NewTopic(in, serde.String, serde.Raw))
		stream.To(stream.Map(records, func(_ string, v []byte) []byte { return blown(v) }),
			processor.NewTopic(out, serde.String, serde.Raw))
	})
}

func stateTopology(in, out string) (*processor.Topology, error) {
	return processor.Build(func(b *processor.Builder) {
		records := stream.From(b, processor.NewTopic(in, serde.String, serde.Raw))
		kept := stream.Aggregate(stream.Group(records), latest, func(_ []byte, _ string, v []byte) []byte { return blown(v) })
		table.To(table.Map(kept, func(_ string, v []byte) int64 { return int64(len(v)) }),
			processor.NewTopic(out, serde.String, serde.Int64))
	})
}

// TestFault15Oversized makes a record of 2 MB of a small one, for an output topic and for a changelog. Without a policy
// the application ends, says which and how large, and has not committed its input; with dead letters it goes on and
// there is one.
func TestFault15Oversized(t *testing.T) {
	t.Parallel()
	for name, build := range map[string]func(in, out string) (*processor.Topology, error){
		"output": outputTopology, "changelog": stateTopology,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 1)
			dead := c.app + "-dead"
			c.topic(dead, 1, nil)
			topology, err := build(c.in, c.out)
			if err != nil {
				t.Fatal(err)
			}
			s := setup{app: c.app, topology: topology, config: memberConfig(c.addrs, t.TempDir())}
			l := s.run(t)
			c.put("a", "1")
			c.put("b", "2")
			c.settle(20 * time.Second)
			bad := c.put("c", blowUp)
			c.put("d", "3")
			err = l.end(20 * time.Second)
			var te *processor.TaskError
			if !errors.Is(err, processor.ErrRecordTooLarge) || !errors.As(err, &te) || te.Offset != bad.Offset {
				t.Fatalf("ended with %v", err)
			}
			where := map[string]string{"output": c.out, "changelog": latest.Name()}[name]
			for _, want := range []string{where, "2097"} { // 2 MiB and something
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v does not name %s", err, want)
				}
			}
			if n := c.committed(); n > bad.Offset {
				t.Errorf("committed %d, behind the record at %d", n, bad.Offset)
			}
			s.config.OnProcessError = processor.DeadLetter(dead)
			l = s.run(t)
			c.settle(20 * time.Second)
			l.stop()
			c.mustHoldDeadLetters(dead, []poison{{"process", bad}})
			records, _ := c.readAll(c.out)
			var keys []byte
			for _, r := range records[0] {
				keys = append(keys, r.Key...)
			}
			if string(keys) != "abd" {
				t.Errorf("outputs of keys %q, want abd", keys)
			}
		})
	}
}

// TestFault15BrokerLimit writes to a topic that takes less than the application thinks. Only the broker knows that: the
// application ends, names the topic and the size, and has not committed the input.
func TestFault15BrokerLimit(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	small := c.app + "-small"
	c.topic(small, 1, map[string]*string{"max.message.bytes": kadm.StringPtr("2000")})
	topology, err := outputTopology(c.in, small)
	if err != nil {
		t.Fatal(err)
	}
	s := setup{app: c.app, topology: topology, config: memberConfig(c.addrs, t.TempDir())}
	c.put("a", "1")
	l := s.run(t)
	c.settle(20 * time.Second)
	bad := c.put("b", strings.Repeat("y", 5000))
	for range 2 {
		err := l.end(20 * time.Second)
		var ee *processor.EngineError
		if !errors.Is(err, processor.ErrRecordTooLarge) || !errors.As(err, &ee) || ee.Topic != small ||
			!strings.Contains(err.Error(), "5001 bytes") {
			t.Fatalf("ended with %v", err)
		}
		if n := c.committed(); n > bad.Offset {
			t.Errorf("committed %d, behind the record at %d", n, bad.Offset)
		}
		l = s.run(t)
	}
	_ = l.end(20 * time.Second) // as before
	if _, err := c.adm.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{
		{Op: kadm.SetConfig, Name: "max.message.bytes", Value: kadm.StringPtr("100000")},
	}, small); err != nil {
		t.Fatal(err)
	}
	l = s.run(t)
	c.settle(20 * time.Second)
	l.stop()
	if records, _ := c.readAll(small); len(records[0]) != 2 {
		t.Errorf("%d outputs, want 2", len(records[0]))
	}
}

// put writes one record to the input and returns it, with its offset.
func (c *cluster) put(key, value string) *kgo.Record {
	c.t.Helper()
	r := &kgo.Record{
		Topic: c.in, Key: []byte(key), Value: []byte(value), Headers: []kgo.RecordHeader{{Key: "trace", Value: []byte("x")}},
	}
	if err := c.cl.ProduceSync(c.t.Context(), r).FirstErr(); err != nil {
		c.t.Fatal(err)
	}
	return r
}

// committed returns the sum of the committed offsets of the input.
func (c *cluster) committed() int64 {
	offsets, err := c.adm.FetchOffsets(c.t.Context(), c.app)
	if err != nil {
		return -1
	}
	var n int64
	for _, o := range offsets[c.in] {
		n += o.At
	}
	return n
}
