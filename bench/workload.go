package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

// workConfig is what a workload is run with.
type workConfig struct {
	workload       string
	brokers        []string
	app, state     string
	in, table, out string
	exactlyOnce    bool
	workers        int
	commit         time.Duration
	// What follows is zero, and then the App's default, unless a test of failures asks for it.
	instance       string
	standbys       int
	session, flush time.Duration
	leave          bool
}

// workloads are the topologies that can be measured. Keys are opaque strings and values bytes.
var workloads = map[string]func(b *processor.Builder, c workConfig){
	"map":   mapValues,
	"count": countByKey,
}

// minValueBytes is below what the map workload drops a record.
const minValueBytes = 10

// mapValues is stateless: filter, make another value, write.
func mapValues(b *processor.Builder, c workConfig) {
	in := processor.NewTopic(c.in, serde.String, serde.Raw)
	out := processor.NewTopic(c.out, serde.String, serde.Raw)
	long := stream.Filter(stream.From(b, in), func(_ string, v []byte) bool { return len(v) > minValueBytes })
	stream.To(stream.Map(long, func(_ string, v []byte) []byte {
		w := slices.Clone(v)
		w[0] ^= 1
		return w
	}), out)
}

var counts = state.KeyValue("counts", serde.String, serde.Int64)

// countByKey is stateful: count the records of each key in a store with a changelog, and write every update.
func countByKey(b *processor.Builder, c workConfig) {
	in := processor.NewTopic(c.in, serde.String, serde.Raw)
	out := processor.NewTopic(c.out, serde.String, serde.Int64)
	table.To(stream.Count(stream.Group(stream.From(b, in)), counts), out)
}

// buildWorkload returns the topology of a workload.
func buildWorkload(c workConfig) (*processor.Topology, error) {
	declare, ok := workloads[c.workload]
	if !ok {
		return nil, fmt.Errorf("bench: workload=%s is not known: choose one of %s", c.workload,
			strings.Join(slices.Sorted(maps.Keys(workloads)), ", "))
	}
	t, err := processor.Build(func(b *processor.Builder) { declare(b, c) })
	if err != nil {
		return nil, fmt.Errorf("bench: workload %s: %w", c.workload, err)
	}
	return t, nil
}
