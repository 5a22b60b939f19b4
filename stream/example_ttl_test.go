package stream_test

import (
	"fmt"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/processor/processortest"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

// A visitor who has not come for half an hour is counted from the beginning; the table tells when a count goes.
func ExampleCount_ttl() {
	visits := processor.NewTopic("visits", serde.String, serde.String)
	counts := processor.NewTopic("visit-counts", serde.String, serde.Int64)
	store := state.KeyValue("visit-counts", serde.String, serde.Int64).WithTTL(30 * time.Minute)
	topology, err := processor.Build(func(b *processor.Builder) {
		table.To(stream.Count(stream.Group(stream.From(b, visits)), store), counts)
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	d := processortest.New(processortest.Panics, topology)
	in := processortest.Input(d, visits)
	noon := time.Date(2024, 1, 1, 12, 0, 0, 0, time.UTC)
	in.PipeAt("ann", "/", noon)
	in.PipeAt("ann", "/news", noon.Add(5*time.Minute))
	in.PipeAt("bob", "/", noon.Add(40*time.Minute))
	in.PipeAt("ann", "/", noon.Add(50*time.Minute))
	for _, r := range processortest.Output(d, counts).Read() {
		fmt.Println(r.Time.Format("15:04"), r.Key, r.Value, r.Tombstone)
	}
	// Output:
	// 12:00 ann 1 false
	// 12:05 ann 2 false
	// 12:35 ann 0 true
	// 12:40 bob 1 false
	// 12:50 ann 1 false
}
