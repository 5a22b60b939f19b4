package table_test

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

var (
	Users = processor.NewTopic("users", serde.String, serde.String)
	Towns = processor.NewTopic("towns", serde.String, serde.String)
	Out   = processor.NewTopic("out", serde.String, serde.String)

	UserRows = state.KeyValue("user-rows", serde.String, serde.String)
	TownRows = state.KeyValue("town-rows", serde.String, serde.String)
)

// drive builds a topology and returns ways into Users and Towns and what comes out of Out.
func drive(declare func(*processor.Builder)) (
	d *processortest.Driver, users, towns *processortest.InputTopic[string, string],
	out *processortest.OutputTopic[string, string],
) {
	t, err := processor.Build(declare)
	if err != nil {
		panic(err)
	}
	d = processortest.New(processortest.Panics, t)
	return d, processortest.Input(d, Users), processortest.Input(d, Towns), processortest.Output(d, Out)
}

// show prints the records written to a topic since the last call: key=value, nil where there is none, and the time.
func show(out *processortest.OutputTopic[string, string]) {
	for _, r := range out.Read() {
		value := any(r.Value)
		if r.Tombstone {
			value = nil
		}
		fmt.Printf("%s=%v @%d\n", r.Key, value, r.Time.UnixMilli())
	}
}

func at(millis int64) time.Time { return time.UnixMilli(millis) }

func ExampleFrom() {
	d, users, _, out := drive(func(b *processor.Builder) {
		table.To(table.From(b, Users, UserRows), Out)
	})
	users.PipeAt("ann", "Ann A.", at(20))
	users.PipeAt("ann", "Ann B.", at(10)) // the log's order counts, not the times: this is the newest
	users.PipeRecord(processor.Record[string, string]{NoKey: true, Value: "nobody", Time: at(30)})
	show(out)
	fmt.Println("dropped:", d.Dropped(processor.DropNoKey))
	name, _, err := processortest.Store(d, UserRows).Get("ann")
	fmt.Println(name, err)
	// Output:
	// ann=Ann A. @20
	// ann=Ann B. @10
	// dropped: 1
	// Ann B. <nil>
}

func ExampleFilter() {
	_, users, _, out := drive(func(b *processor.Builder) {
		short := table.Filter(table.From(b, Users, UserRows), func(_, name string) bool { return len(name) <= 3 })
		table.To(short, Out)
	})
	users.PipeAt("ann", "Ann", at(1))
	users.PipeAt("ann", "Annabel", at(2)) // does not pass any more: the row is deleted from the result
	users.PipeAt("bob", "Bobby", at(3))   // never passed; deleted all the same, as nobody asked whether it had
	show(out)
	// Output:
	// ann=Ann @1
	// ann=<nil> @2
	// bob=<nil> @3
}

func ExampleFilterNot() {
	_, users, _, out := drive(func(b *processor.Builder) {
		long := table.FilterNot(table.From(b, Users, UserRows), func(_, name string) bool { return len(name) <= 3 })
		table.To(long, Out)
	})
	users.PipeAt("ann", "Annabel", at(1))
	users.PipeAt("ann", "Ann", at(2))
	show(out)
	// Output:
	// ann=Annabel @1
	// ann=<nil> @2
}

func ExampleMap() {
	_, users, _, out := drive(func(b *processor.Builder) {
		initials := table.Map(table.From(b, Users, UserRows), func(_, name string) string { return name[:1] })
		table.To(initials, Out)
	})
	users.PipeAt("ann", "Ann", at(1))
	users.PipeAt("ann", "Annabel", at(2)) // the same result is an update, too
	// A deletion passes without a call, so that name[:1] meets real names only.
	users.PipeRecord(processor.Record[string, string]{Key: "ann", Tombstone: true, Time: at(3)})
	show(out)
	// Output:
	// ann=A @1
	// ann=A @2
	// ann=<nil> @3
}

func ExampleJoin() {
	_, users, towns, out := drive(func(b *processor.Builder) {
		lives := table.Join(table.From(b, Users, UserRows), table.From(b, Towns, TownRows),
			func(_, name, town string) string { return name + " in " + town })
		table.To(lives, Out)
	})
	users.PipeAt("ann", "Ann", at(5)) // no town, no row
	towns.PipeAt("ann", "Oslo", at(3))
	users.PipeAt("ann", "Annabel", at(4)) // the time is the larger of both rows': it may go back
	towns.PipeRecord(processor.Record[string, string]{Key: "ann", Tombstone: true, Time: at(7)})
	users.PipeAt("ann", "Ann", at(8)) // no town again: nothing changes
	show(out)
	// Output:
	// ann=Ann in Oslo @5
	// ann=Annabel in Oslo @4
	// ann=<nil> @7
}

func ExampleLeftJoin() {
	_, users, towns, out := drive(func(b *processor.Builder) {
		lives := table.LeftJoin(table.From(b, Users, UserRows), table.From(b, Towns, TownRows),
			func(_, name string, town processor.Opt[string]) string { return name + " in " + town.Or("?") })
		table.To(lives, Out)
	})
	towns.PipeAt("ann", "Oslo", at(1)) // no user, no row
	users.PipeAt("ann", "Ann", at(2))
	towns.PipeRecord(processor.Record[string, string]{Key: "ann", Tombstone: true, Time: at(3)})
	users.PipeRecord(processor.Record[string, string]{Key: "ann", Tombstone: true, Time: at(4)})
	show(out)
	// Output:
	// ann=Ann in Oslo @2
	// ann=Ann in ? @3
	// ann=<nil> @4
}

func ExampleTo() {
	_, users, _, out := drive(func(b *processor.Builder) {
		table.To(table.From(b, Users, UserRows), Out) // Out should be compacted: it holds a table
	})
	users.PipeAt("ann", "Ann", at(1))
	users.PipeRecord(processor.Record[string, string]{Key: "ann", Tombstone: true, Time: at(2)})
	users.PipeAt("bob", "Bob", at(3))
	fmt.Println(processortest.Map(out)) // what a reader of the whole topic ends up with
	// Output:
	// map[bob:Bob]
}

func ExampleMaterialize() {
	d, users, _, _ := drive(func(b *processor.Builder) {
		// What From and stream.ToTable are made of, for operators of your own.
		table.Materialize(stream.From(b, Users).Node(), "my-table", UserRows)
	})
	users.Pipe("ann", "Ann")
	name, ok, err := processortest.Store(d, UserRows).Get("ann")
	fmt.Println(name, ok, err)
	// Output:
	// Ann true <nil>
}

func ExampleStoreView() {
	// A join of your own looks rows up by a view, which processor.Derive opens in each task.
	topology, err := processor.Build(func(b *processor.Builder) {
		users := table.From(b, Users, UserRows)
		view := users.View()
		op := processor.Operator{Kind: "greet", Stores: users.Stores(), NeedsKey: true}
		n := processor.Derive(stream.From(b, Towns).Node(), op,
			func(t *processor.Task, next processor.Handler[string, string]) (processor.Handler[string, string], error) {
				get, err := view(t)
				return func(r processor.Record[string, string]) error {
					name, _, ok, err := get(r.Key)
					if err != nil || !ok {
						return err
					}
					return next(processor.WithValue(r, "hello "+name))
				}, err
			})
		stream.To(stream.New(n), Out)
	})
	if err != nil {
		panic(err)
	}
	d := processortest.New(processortest.Panics, topology)
	processortest.Input(d, Users).PipeAt("ann", "Ann", at(1))
	processortest.Input(d, Towns).PipeAt("ann", "Oslo", at(2))
	show(processortest.Output(d, Out))
	// Output:
	// ann=hello Ann @2
}
