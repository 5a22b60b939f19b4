package table_test

import (
	"fmt"

	"tailrace.dev/processor"
	"tailrace.dev/processor/processortest"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

// The prices are kept without a changelog: a restart reads the topic again.
func ExampleFromSource() {
	prices := processor.NewTopic("prices", serde.String, serde.Int64) // compacted
	orders := processor.NewTopic("orders", serde.String, serde.Int64)
	sums := processor.NewTopic("sums", serde.String, serde.Int64)
	byItem := state.KeyValue("prices-by-item", prices.Key(), prices.Value())
	topology, err := processor.Build(func(b *processor.Builder) {
		t := table.FromSource(b, prices, byItem)
		stream.To(stream.Join(stream.From(b, orders), t, func(_ string, n, price int64) int64 { return n * price }), sums)
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	d := processortest.New(processortest.Panics, topology)
	processortest.Input(d, prices).Pipe("tea", 3)
	processortest.Input(d, prices).Pipe("tea", 4)
	d.Crash()
	processortest.Input(d, orders).Pipe("tea", 10)
	fmt.Println(processortest.Map(processortest.Output(d, sums)))
	// Output:
	// map[tea:40]
}
