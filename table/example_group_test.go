package table_test

import (
	"fmt"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

var (
	ByTown   = processor.NewRepartition("by-town", serde.String, serde.String)
	Counts   = state.KeyValue("counts", serde.String, serde.Int64)
	Sets     = state.KeyValue("sets", serde.String, serde.String)
	Waiting  = state.Buffer("waiting", serde.String, serde.String)
	History  = state.Versioned("history", serde.String, serde.String, time.Minute)
	HomeTown = table.NewLink("home-town", serde.String, serde.String, serde.String)
)

func tombstone(key string, millis int64) processor.Record[string, string] {
	return processor.Record[string, string]{Key: key, Tombstone: true, Time: at(millis)}
}

// text makes numbers readable in Out.
func text(t *table.Table[string, int64]) *table.Table[string, string] {
	return table.Map(t, func(_ string, n int64) string { return fmt.Sprint(n) })
}

// byTown groups users, whose values are their towns, by town.
func byTown(b *processor.Builder) *table.Grouped[string, string] {
	return table.GroupBy(table.From(b, Users, UserRows), ByTown,
		func(user, town string) (string, string, bool) { return town, user, town != "" })
}

func ExampleGroupBy() {
	_, users, _, out := drive(func(b *processor.Builder) {
		table.To(text(table.Count(byTown(b), Counts)), Out)
	})
	users.PipeAt("ann", "Oslo", at(1))
	users.PipeAt("bob", "Oslo", at(2))
	users.PipeAt("ann", "Rome", at(3)) // leaves one group before she joins the other
	users.PipeAt("ann", "", at(4))     // belongs to no group
	show(out)
	// Output:
	// Oslo=1 @1
	// Oslo=2 @2
	// Oslo=1 @3
	// Rome=1 @3
	// Rome=0 @4
}

func ExampleCount() {
	_, users, _, out := drive(func(b *processor.Builder) {
		table.To(text(table.Count(byTown(b), Counts)), Out)
	})
	users.PipeAt("ann", "Oslo", at(1))
	users.PipeAt("ann", "Oslo", at(2))       // an update of a row is not a second row
	users.PipeRecord(tombstone("ann", 3))    // the group stays, with 0
	users.PipeRecord(tombstone("nobody", 4)) // deletes nothing
	show(out)
	// Output:
	// Oslo=1 @1
	// Oslo=1 @2
	// Oslo=0 @3
}

func ExampleAggregate() {
	_, users, _, out := drive(func(b *processor.Builder) {
		table.To(table.Aggregate(byTown(b), Sets,
			func(a, _, user string) string { return a + "+" + user },
			func(a, _, user string) string { return a + "-" + user }), Out)
	})
	users.PipeAt("ann", "Oslo", at(1))
	users.PipeAt("ann", "Oslo", at(2)) // the old value is taken out before the new one is put in
	users.PipeRecord(tombstone("ann", 3))
	show(out)
	// Output:
	// Oslo=+ann @1
	// Oslo=+ann-ann+ann @2
	// Oslo=+ann-ann+ann-ann @3
}

func ExampleReduce() {
	_, users, _, out := drive(func(b *processor.Builder) {
		table.To(table.Reduce(byTown(b), Sets,
			func(a, user string) string { return a + "+" + user }, // not called for the first value of a group
			func(a, user string) string { return a + "-" + user }), Out)
	})
	users.PipeAt("ann", "Oslo", at(1))
	users.PipeAt("bob", "Oslo", at(2))
	users.PipeRecord(tombstone("ann", 3))
	show(out)
	// Output:
	// Oslo=ann @1
	// Oslo=ann+bob @2
	// Oslo=ann+bob-ann @3
}

func ExampleOuterJoin() {
	_, users, towns, out := drive(func(b *processor.Builder) {
		table.To(table.OuterJoin(table.From(b, Users, UserRows), table.From(b, Towns, TownRows),
			func(_ string, name, town processor.Opt[string]) string { return name.Or("?") + " in " + town.Or("?") }), Out)
	})
	towns.PipeAt("ann", "Oslo", at(1))
	users.PipeAt("ann", "Ann", at(2))
	towns.PipeRecord(tombstone("ann", 3))
	users.PipeRecord(tombstone("ann", 4)) // now there is neither
	show(out)
	// Output:
	// ann=? in Oslo @1
	// ann=Ann in Oslo @2
	// ann=Ann in ? @3
	// ann=<nil> @4
}

// hometown is where a user's value says, if it does.
func hometown(_, town string) (string, bool) { return town, town != "" }

func ExampleForeignKeyJoin() {
	_, users, towns, out := drive(func(b *processor.Builder) {
		table.To(table.ForeignKeyJoin(table.From(b, Users, UserRows), table.From(b, Towns, TownRows), HomeTown, hometown,
			func(_, town, country string) string { return town + " in " + country }), Out)
	})
	users.PipeAt("ann", "Oslo", at(1))
	users.PipeAt("bob", "Oslo", at(2))
	towns.PipeAt("Oslo", "Norway", at(3)) // one change of the right side updates all that refer to it
	users.PipeAt("ann", "", at(4))        // refers to nothing any more
	towns.PipeRecord(tombstone("Oslo", 5))
	show(out)
	// Output:
	// ann=Oslo in Norway @3
	// bob=Oslo in Norway @3
	// ann=<nil> @4
	// bob=<nil> @5
}

func ExampleLeftForeignKeyJoin() {
	_, users, towns, out := drive(func(b *processor.Builder) {
		table.To(table.LeftForeignKeyJoin(table.From(b, Users, UserRows), table.From(b, Towns, TownRows), HomeTown, hometown,
			func(_, town string, country processor.Opt[string]) string { return town + " in " + country.Or("?") }), Out)
	})
	users.PipeAt("ann", "Oslo", at(1))
	towns.PipeAt("Oslo", "Norway", at(2))
	users.PipeAt("ann", "", at(3))
	users.PipeRecord(tombstone("ann", 4))
	show(out)
	// Output:
	// ann=Oslo in ? @1
	// ann=Oslo in Norway @2
	// ann= in ? @3
	// ann=<nil> @4
}

func ExampleNewLink() {
	topology, err := processor.Build(func(b *processor.Builder) {
		table.ForeignKeyJoin(table.From(b, Users, UserRows), table.From(b, Towns, TownRows), HomeTown, hometown,
			func(_, town, country string) string { return town + " in " + country })
	})
	if err != nil {
		panic(err)
	}
	// The link owns what the join leaves behind: that is why it has a name, which is for life.
	for _, sub := range topology.SubTopologies() {
		fmt.Println(topology.Sources("app", sub))
	}
	// Output:
	// [app-home-town-answer-repartition users]
	// [app-home-town-ask-repartition towns]
}

func ExampleStore() {
	_, users, towns, out := drive(func(b *processor.Builder) {
		homes := table.ForeignKeyJoin(table.From(b, Users, UserRows), table.From(b, Towns, TownRows), HomeTown, hometown,
			func(_, town, country string) string { return town + " in " + country })
		// The result of a foreign-key join is not kept. To look it up, as grouping and joining do, it has to be.
		table.To(text(table.Count(table.GroupBy(table.Store(homes, Sets), ByTown,
			func(_, home string) (string, string, bool) { return home, "", true }), Counts)), Out)
	})
	towns.PipeAt("Oslo", "Norway", at(1))
	users.PipeAt("ann", "Oslo", at(2))
	users.PipeAt("bob", "Oslo", at(3))
	show(out)
	// Output:
	// Oslo in Norway=1 @2
	// Oslo in Norway=2 @3
}

func ExampleSuppress() {
	_, users, _, out := drive(func(b *processor.Builder) {
		table.To(table.Suppress(table.From(b, Users, UserRows), Waiting, 10*time.Millisecond, table.Limits{}), Out)
	})
	users.PipeAt("ann", "Ann", at(1))
	users.PipeAt("ann", "Annabel", at(5))
	users.PipeAt("bob", "Bob", at(11)) // 10 ms after the first change of ann, by the time of records
	show(out)
	// Output:
	// ann=Annabel @5
}

func ExampleSuppressUntilClose() {
	perWindow := state.Window("per-window", serde.String, serde.Int64, time.Minute)
	final := state.Buffer("final", state.WindowedSerde(serde.String), serde.Int64)
	_, users, _, out := drive(func(b *processor.Builder) {
		windows := stream.WindowBy(stream.Group(stream.From(b, Users)), stream.Tumbling(10*time.Millisecond))
		counts := table.SuppressUntilClose(stream.Count(windows, perWindow), final, table.Limits{})
		type in = processor.Record[state.Windowed[string], int64]
		stream.To(stream.MapRecord(stream.Changes(counts), func(r in) processor.Record[string, string] {
			return processor.WithKey(processor.WithValue(r, fmt.Sprint(r.Value)), r.Key.String())
		}), Out)
	})
	for _, ms := range []int64{1, 2, 3, 9, 10} {
		users.PipeAt("ann", "x", at(ms)) // the last closes the window of the others
	}
	show(out)
	// Output:
	// [ann@0/10]=4 @9
}

func ExampleFromVersioned() {
	_, users, towns, out := drive(func(b *processor.Builder) {
		homes := table.FromVersioned(b, Towns, History)
		stream.To(stream.Join(stream.From(b, Users), homes,
			func(_, name, town string) string { return name + " in " + town }), Out)
	})
	towns.PipeAt("ann", "Oslo", at(10))
	towns.PipeAt("ann", "Rome", at(20))
	towns.PipeAt("ann", "Bonn", at(5)) // late: it goes to its place in the history
	users.PipeAt("ann", "Ann", at(15)) // meets the row as of its own time
	users.PipeAt("ann", "Ann", at(25))
	users.PipeAt("ann", "Ann", at(7))
	users.PipeAt("ann", "Ann", at(3)) // before there was any
	show(out)
	// Output:
	// ann=Ann in Oslo @15
	// ann=Ann in Rome @25
	// ann=Ann in Bonn @7
}

func ExampleGlobal() {
	_, users, towns, out := drive(func(b *processor.Builder) {
		countries := table.Global(b, Towns, TownRows)
		stream.To(stream.JoinGlobal(stream.From(b, Users), countries, hometown,
			func(_, town, country string) string { return town + " in " + country }), Out)
	})
	towns.PipeAt("Oslo", "Norway", at(100)) // followed without regard to times
	users.PipeAt("ann", "Oslo", at(1))
	towns.PipeRecord(tombstone("Oslo", 50))
	users.PipeAt("ann", "Oslo", at(2))
	show(out)
	// Output:
	// ann=Oslo in Norway @1
}

func ExampleFilter_quiet() {
	_, users, _, out := drive(func(b *processor.Builder) {
		short := table.Filter(table.From(b, Users, UserRows),
			func(_, name string) bool { return len(name) <= 3 }, table.Quiet)
		table.To(short, Out)
	})
	users.PipeAt("bob", "Bobby", at(1)) // never passed, so that there is nothing to delete
	users.PipeAt("ann", "Ann", at(2))
	users.PipeAt("ann", "Annabel", at(3))
	show(out)
	// Output:
	// ann=Ann @2
	// ann=<nil> @3
}

func ExampleValues() {
	_, users, _, out := drive(func(b *processor.Builder) {
		// What stream.Changes gives, for operators of your own: new values and tombstones.
		stream.To(stream.New(table.Values(table.From(b, Users, UserRows))), Out)
	})
	users.PipeAt("ann", "Ann", at(1))
	users.PipeRecord(tombstone("ann", 2))
	show(out)
	// Output:
	// ann=Ann @1
	// ann=<nil> @2
}
