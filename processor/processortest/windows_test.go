package processortest_test

import (
	"fmt"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/processor/processortest"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
)

func ExampleWindowStore() {
	clicks := processor.NewTopic("clicks", serde.String, serde.String) // in a program: package-level values
	windows := stream.Tumbling(time.Minute)
	perMinute := state.Window("clicks-per-minute", serde.String, serde.Int64, time.Hour)
	topology, err := processor.Build(func(b *processor.Builder) {
		stream.Count(stream.WindowBy(stream.Group(stream.From(b, clicks)), windows), perMinute)
	})
	if err != nil {
		panic(err)
	}
	d := processortest.New(processortest.Panics, topology, processortest.StartingAt(time.UnixMilli(0)))
	in := processortest.Input(d, clicks)
	for range 3 {
		in.Pipe("home", "ann")
		in.Pipe("home", "bob")
		d.AdvanceWallClock(45 * time.Second)
	}
	for e, err := range processortest.WindowStore(d, perMinute).Fetch("home", 0, time.Hour.Milliseconds()) {
		if err != nil {
			panic(err)
		}
		fmt.Println(e.Key.Start().Format("15:04"), e.Value)
	}
	// Output:
	// 00:00 4
	// 00:01 2
}

func ExampleSessionStore() {
	clicks := processor.NewTopic("clicks", serde.String, serde.String) // in a program: package-level values
	visits := state.Session("visits", serde.String, serde.Int64, time.Hour)
	topology, err := processor.Build(func(b *processor.Builder) {
		stream.Count(stream.SessionBy(stream.Group(stream.From(b, clicks)), stream.Sessions(time.Minute)), visits)
	})
	if err != nil {
		panic(err)
	}
	d := processortest.New(processortest.Panics, topology, processortest.StartingAt(time.UnixMilli(0)))
	in := processortest.Input(d, clicks)
	for _, pause := range []time.Duration{20 * time.Second, 40 * time.Second, 5 * time.Minute, 0} {
		in.Pipe("ann", "click")
		d.AdvanceWallClock(pause)
	}
	for e, err := range processortest.SessionStore(d, visits).Find("ann", 0, time.Hour.Milliseconds()) {
		if err != nil {
			panic(err)
		}
		fmt.Println(e.Key.Start().Format("15:04:05"), e.Key.End().Format("15:04:05"), e.Value)
	}
	// Output:
	// 00:00:00 00:01:00 3
	// 00:06:00 00:06:00 1
}
