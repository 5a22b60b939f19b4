package processor_test

import (
	"fmt"

	"tailrace.dev/processor"
	"tailrace.dev/processor/processortest"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
)

var (
	limits     = processor.NewTopic("limits", serde.String, serde.Int64) // compacted
	limitStore = state.KeyValue("limit-by-account", limits.Key(), limits.Value())
)

// guard passes on what is within the account's limit.
type guard struct {
	limits *state.KeyValueStore[string, int64]
}

func (g *guard) Init(c *processor.Context[string, int64]) (err error) {
	g.limits, err = limitStore.Open(c)
	return err
}

func (g *guard) Process(c *processor.Context[string, int64], r processor.Record[string, int64]) error {
	limit, ok, err := g.limits.Get(r.Key)
	if err != nil || !ok || r.Value > limit {
		return err
	}
	return c.Forward(r)
}

func ExampleReadOnly() {
	payments := processor.NewTopic("payments", serde.String, serde.Int64)
	passed := processor.NewTopic("passed-payments", serde.String, serde.Int64)
	topology, err := processor.Build(func(b *processor.Builder) {
		processor.ReadOnly(b, limits, limitStore)
		stream.To(stream.Process(stream.From(b, payments),
			func() processor.Processor[string, int64, string, int64] { return &guard{} }, limitStore), passed)
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	d := processortest.New(processortest.Panics, topology)
	processortest.Input(d, limits).Pipe("ann", 100)
	in := processortest.Input(d, payments)
	in.Pipe("ann", 80)
	in.Pipe("ann", 120)
	in.Pipe("bob", 1)
	for _, r := range processortest.Output(d, passed).Read() {
		fmt.Println(r.Key, r.Value)
	}
	// Output:
	// ann 80
}
