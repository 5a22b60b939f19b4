package main

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"
)

// checkOutput reads the committed output and returns how many records it has. Of the count workload it requires that
// the values of each key are exactly 1, 2, 3 and so on, in order.
func (m *measurement) checkOutput(ctx context.Context, topic, workload string) (int64, error) {
	ends, err := m.admin.ListCommittedOffsets(ctx, topic)
	if err != nil {
		return 0, fmt.Errorf("check %s: %w", topic, err)
	}
	left := make(map[int32]int64)
	for _, o := range ends[topic] {
		if o.Offset > 0 {
			left[o.Partition] = o.Offset
		}
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(m.brokers...), kgo.ConsumeTopics(topic),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords()) // markers own offsets, which end a partition as a record does
	if err != nil {
		return 0, fmt.Errorf("check %s: %w", topic, err)
	}
	defer client.Close()
	var n int64
	seen := make(map[string]int64)
	for len(left) > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return n, fmt.Errorf("check %s: %w", topic, err)
		}
		var bad error
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset >= left[r.Partition]-1 {
				delete(left, r.Partition)
			}
			if r.Attrs.IsControl() {
				return
			}
			n++
			if workload != "count" || bad != nil {
				return
			}
			seen[string(r.Key)]++
			want := seen[string(r.Key)]
			if len(r.Value) != 8 || int64(binary.BigEndian.Uint64(r.Value)) != want {
				bad = fmt.Errorf("check %s: key %q has value %x at partition %d offset %d, want the count %d",
					topic, r.Key, r.Value, r.Partition, r.Offset, want)
			}
		})
		if bad != nil {
			return n, bad
		}
	}
	if n != int64(m.events) {
		return n, fmt.Errorf("check %s: %d records for %d of input", topic, n, m.events)
	}
	return n, nil
}
