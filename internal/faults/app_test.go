//go:build unix

package faults

import (
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

// counts is the store of the application under test.
var counts = state.KeyValue("counts", serde.String, serde.Int64)

// countTopology counts the records of each key and writes every count. each, if not nil, sees every record first.
func countTopology(in, out string, each func(key string, value []byte)) (*processor.Topology, error) {
	return processor.Build(func(b *processor.Builder) {
		records := stream.From(b, processor.NewTopic(in, serde.String, serde.Raw))
		if each != nil {
			records = stream.Peek(records, each)
		}
		counted := stream.Count(stream.Group(records), counts)
		table.To(counted, processor.NewTopic(out, serde.String, serde.Int64))
	})
}

// memberConfig is the configuration that members have in common: times are short, so that a short test passes every
// part of the protocol often.
func memberConfig(addrs []string, stateDir string) processor.Config {
	return processor.Config{
		Brokers: addrs, StateDir: stateDir, Workers: 2,
		CommitInterval: 20 * time.Millisecond, FlushInterval: 150 * time.Millisecond,
		SessionTimeout: 10 * time.Second, TransactionTimeout: 10 * time.Second,
		TopicCheckInterval: time.Second, PurgeInterval: time.Second,
	}
}
