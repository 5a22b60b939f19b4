package table_test

import (
	"fmt"

	"tailrace.dev/processor"
	"tailrace.dev/processor/processortest"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/table"
)

// A price that is set again to what it is makes no change, and neither does the deletion of what is not there.
func ExampleDistinct() {
	prices := processor.NewTopic("prices", serde.String, serde.Int64)
	changes := processor.NewTopic("price-changes", serde.String, serde.Int64)
	topology, err := processor.Build(func(b *processor.Builder) {
		t := table.From(b, prices, state.KeyValue("prices-store", serde.String, serde.Int64))
		table.To(table.Distinct(t, func(a, b int64) bool { return a == b }), changes)
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	d := processortest.New(processortest.Panics, topology)
	in := processortest.Input(d, prices)
	in.Pipe("tea", 3)
	in.Pipe("tea", 3)
	in.Pipe("tea", 4)
	in.PipeTombstone("milk")
	in.PipeTombstone("tea")
	for _, r := range processortest.Output(d, changes).Read() {
		fmt.Println(r.Key, r.Value, r.Tombstone)
	}
	// Output:
	// tea 3 false
	// tea 4 false
	// tea 0 true
}
