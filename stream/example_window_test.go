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

// The stores of windows say how long they keep rows; Build tells when that is too short.
var (
	Windowed = state.Window("windowed", serde.String, serde.Int64, time.Minute)
	Activity = state.Session("activity", serde.String, serde.Int64, time.Minute)
	Texts    = state.Session("texts", serde.String, serde.String, time.Minute)
	Pairs    = state.Join("pairs", serde.String, serde.String, serde.String, time.Minute)
	Waiting  = state.Buffer("waiting", serde.String, serde.String)
	History  = state.Versioned("history", serde.String, serde.String, time.Minute)
)

// writeWindows writes a table of windows to Out, with keys as [key@start/end] in milliseconds.
func writeWindows[V any](t *table.Table[state.Windowed[string], V]) {
	type in = processor.Record[state.Windowed[string], V]
	stream.To(stream.MapRecord(stream.Changes(t), func(r in) processor.Record[string, string] {
		if r.Tombstone {
			return processor.WithKey(processor.WithoutValue[string](r), r.Key.String())
		}
		return processor.WithKey(processor.WithValue(r, fmt.Sprint(r.Value)), r.Key.String())
	}), Out)
}

// pipeAt pipes records of key a, whose values are their times in milliseconds.
func pipeAt(in *processortest.InputTopic[string, string], millis ...int64) {
	for _, ms := range millis {
		in.PipeAt("a", fmt.Sprint(ms), time.UnixMilli(ms))
	}
}

// tombstone is a deletion of key a.
func tombstone(millis int64) processor.Record[string, string] {
	return processor.Record[string, string]{Key: "a", Tombstone: true, Time: time.UnixMilli(millis)}
}

func ExampleTumbling() {
	d, in, out := drive(func(b *processor.Builder) {
		windows := stream.Tumbling(10 * time.Millisecond).Grace(5 * time.Millisecond)
		writeWindows(stream.Count(stream.WindowBy(stream.Group(stream.From(b, Words)), windows), Windowed))
	})
	pipeAt(in, 3, 9, 10) // the end of a window belongs to the next
	pipeAt(in, 4)        // late, but within the grace period
	pipeAt(in, 15, 5)    // now the time is at the end and the grace of the first window: too late
	show(out)
	fmt.Println("too late:", d.Dropped(processor.DropLate))
	// Output:
	// [a@0/10]=1
	// [a@0/10]=2
	// [a@10/20]=1
	// [a@0/10]=3
	// [a@10/20]=2
	// too late: 1
}

func ExampleHopping() {
	_, in, out := drive(func(b *processor.Builder) {
		windows := stream.Hopping(10*time.Millisecond, 5*time.Millisecond)
		writeWindows(stream.Count(stream.WindowBy(stream.Group(stream.From(b, Words)), windows), Windowed))
	})
	pipeAt(in, 12) // belongs to two windows
	pipeAt(in, 15)
	show(out)
	// Output:
	// [a@5/15]=1
	// [a@10/20]=1
	// [a@10/20]=2
	// [a@15/25]=1
}

func ExampleSliding() {
	_, in, out := drive(func(b *processor.Builder) {
		windows := stream.Sliding(10 * time.Millisecond)
		writeWindows(stream.Count(stream.WindowBy(stream.Group(stream.From(b, Words)), windows), Windowed))
	})
	pipeAt(in, 100, 110) // both ends belong to a window, so that both records are in one
	pipeAt(in, 111)      // not with the first
	show(out)
	// Output:
	// [a@90/100]=1
	// [a@101/111]=1
	// [a@100/110]=2
	// [a@101/111]=2
	// [a@111/121]=1
}

func ExampleUnlimited() {
	all := state.Window("all", serde.String, serde.Int64, state.Forever)
	_, in, out := drive(func(b *processor.Builder) {
		since := stream.Unlimited(time.UnixMilli(10))
		counts := stream.Count(stream.WindowBy(stream.Group(stream.From(b, Words)), since), all)
		stream.To(stream.Map(stream.MapRecord(stream.Changes(counts),
			func(r processor.Record[state.Windowed[string], int64]) processor.Record[string, int64] {
				return processor.WithKey(r, r.Key.Key)
			}), func(_ string, n int64) string { return fmt.Sprint(n) }), Out)
	})
	pipeAt(in, 9) // before the window: in none
	pipeAt(in, 10, 1_000_000)
	show(out)
	// Output:
	// a=1
	// a=2
}

func ExampleWindowBy() {
	_, in, out := drive(func(b *processor.Builder) {
		// One result for each window, once no record can change it any more.
		windows := stream.Tumbling(10 * time.Millisecond).EmitOnClose()
		writeWindows(stream.Count(stream.WindowBy(stream.Group(stream.From(b, Words)), windows), Windowed))
	})
	pipeAt(in, 1, 2, 3, 11, 12)
	pipeAt(in, 25) // windows close by the time of records: without this one, the second would stay open
	show(out)
	// Output:
	// [a@0/10]=3
	// [a@10/20]=2
}

func ExampleSessions() {
	_, in, out := drive(func(b *processor.Builder) {
		sessions := stream.Sessions(5 * time.Millisecond)
		counts := stream.Count(stream.SessionBy(stream.Group(stream.From(b, Words)), sessions.Grace(time.Second)),
			state.Session("clicks", serde.String, serde.Int64, time.Minute))
		writeWindows(counts)
	})
	pipeAt(in, 10, 20)
	pipeAt(in, 15) // lies between: two sessions become one; the rows of both are deleted
	show(out)
	// Output:
	// [a@10/10]=1
	// [a@20/20]=1
	// [a@10/10]=<nil>
	// [a@20/20]=<nil>
	// [a@10/20]=3
}

func ExampleSessionBy() {
	_, in, out := drive(func(b *processor.Builder) {
		sessions := stream.SessionBy(stream.Group(stream.From(b, Words)), stream.Sessions(5*time.Millisecond))
		writeWindows(stream.Reduce(sessions, Texts, func(a, v string) string { return a + "," + v }))
	})
	pipeAt(in, 10, 12) // each record that moves a session's end deletes the row of the old one
	show(out)
	// Output:
	// [a@10/10]=10
	// [a@10/10]=<nil>
	// [a@10/12]=10,12
}

func ExampleAggregateSessions() {
	_, in, out := drive(func(b *processor.Builder) {
		sessions := stream.SessionBy(stream.Group(stream.From(b, Words)),
			stream.Sessions(5*time.Millisecond).Grace(time.Second).EmitOnClose())
		writeWindows(stream.AggregateSessions(sessions, Texts,
			func(a, _, v string) string { return a + "." + v },
			func(_ string, a, b string) string { return "(" + a + "+" + b + ")" }))
	})
	pipeAt(in, 10, 20, 15, 5000)
	show(out)
	// Output:
	// [a@10/20]=((+.10)+.20).15
}

func ExampleAggregateSessionsRecord() {
	_, in, out := drive(func(b *processor.Builder) {
		sessions := stream.SessionBy(stream.Group(stream.From(b, Words)), stream.Sessions(5*time.Millisecond))
		writeWindows(stream.AggregateSessionsRecord(sessions, Activity,
			func(n int64, _ processor.Record[string, string]) int64 { return n + 1 }, // sees tombstones, too
			func(_ string, a, b int64) int64 { return a + b }))
	})
	pipeAt(in, 10)
	in.PipeRecord(tombstone(10))
	show(out)
	// Output:
	// [a@10/10]=1
	// [a@10/10]=2
}

func ExampleFoldSessionsRecord() {
	_, in, out := drive(func(b *processor.Builder) {
		sessions := stream.SessionBy(stream.Group(stream.From(b, Words)), stream.Sessions(5*time.Millisecond))
		writeWindows(stream.FoldSessionsRecord(sessions, Activity,
			func(n processor.Opt[int64], r processor.Record[string, string]) processor.Opt[int64] {
				if r.Tombstone {
					return processor.None[int64]() // ends the session without a trace
				}
				return processor.Some(n.V + 1)
			},
			func(_ string, a, b int64) int64 { return a + b }))
	})
	pipeAt(in, 10)
	in.PipeRecord(tombstone(10))
	pipeAt(in, 11)
	show(out)
	// Output:
	// [a@10/10]=1
	// [a@10/10]=<nil>
	// [a@11/11]=1
}

func ExampleAggregateRecord() {
	_, in, out := drive(func(b *processor.Builder) {
		all := stream.AggregateRecord(stream.Group(stream.From(b, Words)), Latest,
			func(a string, r processor.Record[string, string]) string {
				if r.Tombstone {
					return a + "-" // not dropped, unlike in Aggregate
				}
				return a + r.Value
			})
		table.To(all, Out)
	})
	in.Pipe("a", "x")
	in.PipeTombstone("a")
	in.PipeRecord(noKey("stray")) // dropped: it belongs to no group
	show(out)
	// Output:
	// a=x
	// a=x-
}

func ExampleCountRecord() {
	d, in, _ := drive(func(b *processor.Builder) {
		stream.CountRecord(stream.Group(stream.From(b, Words)), Counts)
	})
	in.Pipe("a", "x")
	in.PipeTombstone("a") // counts, unlike in Count
	n, _, err := processortest.Store(d, Counts).Get("a")
	fmt.Println(n, err)
	// Output:
	// 2 <nil>
}

func ExampleFoldRecord() {
	_, in, out := drive(func(b *processor.Builder) {
		latest := stream.FoldRecord(stream.Group(stream.From(b, Words)), Latest,
			func(a processor.Opt[string], r processor.Record[string, string]) processor.Opt[string] {
				if r.Tombstone {
					return processor.None[string]() // a tombstone can delete here
				}
				return processor.Some(a.V + r.Value)
			})
		table.To(latest, Out)
	})
	in.Pipe("a", "x")
	in.PipeTombstone("a")
	in.Pipe("a", "y")
	show(out)
	// Output:
	// a=x
	// a=<nil>
	// a=y
}

func ExampleCogroup() {
	d, in, out := drive(func(b *processor.Builder) {
		words, other := stream.Group(stream.From(b, Words)), stream.Group(stream.From(b, Other))
		both := stream.Cogroup(Latest, // one value for each key, made of two streams
			stream.With(words, func(a, _, v string) string { return a + "+" + v }),
			stream.With(other, func(a, _, v string) string { return a + "-" + v }))
		table.To(both, Out)
	})
	in.Pipe("a", "1")
	processortest.Input(d, Other).Pipe("a", "2")
	in.PipeTombstone("a") // dropped
	in.Pipe("a", "3")
	show(out)
	// Output:
	// a=+1
	// a=+1-2
	// a=+1-2+3
}

func ExampleWith() {
	type account struct{ Balance, Fees int64 }
	accounts := state.KeyValue("accounts", serde.String, serde.JSON[account]())
	d, in, _ := drive(func(b *processor.Builder) {
		deposits, fees := stream.Group(stream.From(b, Words)), stream.Group(stream.From(b, Numbers))
		stream.Cogroup(accounts, // the inputs may hold values of different types
			stream.With(deposits, func(a account, _, v string) account { a.Balance += int64(len(v)); return a }),
			stream.With(fees, func(a account, _ string, v int64) account { a.Fees += v; return a }))
	})
	in.Pipe("ann", "xxx")
	processortest.Input(d, Numbers).Pipe("ann", 2)
	a, _, err := processortest.Store(d, accounts).Get("ann")
	fmt.Printf("%+v %v\n", a, err)
	// Output:
	// {Balance:3 Fees:2} <nil>
}

func ExampleCogroupSessions() {
	d, in, out := drive(func(b *processor.Builder) {
		gap := stream.Sessions(5 * time.Millisecond)
		words := stream.SessionBy(stream.Group(stream.From(b, Words)), gap)
		other := stream.SessionBy(stream.Group(stream.From(b, Other)), gap)
		writeWindows(stream.CogroupSessions(Texts, func(_ string, a, b string) string { return a + b },
			stream.With(words, func(a, _, v string) string { return a + "+" + v }),
			stream.With(other, func(a, _, v string) string { return a + "-" + v })))
	})
	pipeAt(in, 10)
	pipeAt(processortest.Input(d, Other), 12)
	show(out)
	// Output:
	// [a@10/10]=+10
	// [a@10/10]=<nil>
	// [a@10/12]=+10-12
}

func ExampleWithin() {
	d, in, out := drive(func(b *processor.Builder) {
		within := stream.Within(0).After(10 * time.Millisecond) // the right record not before the left one
		stream.To(stream.JoinWindow(stream.From(b, Words), stream.From(b, Other), within, Pairs, pair), Out)
	})
	pipeAt(in, 100)
	pipeAt(processortest.Input(d, Other), 99, 100, 110, 111) // bounds are included
	show(out)
	// Output:
	// a=100-100
	// a=100-110
}

func ExampleJoinWindow() {
	d, in, out := drive(func(b *processor.Builder) {
		within := stream.Within(10 * time.Millisecond)
		stream.To(stream.JoinWindow(stream.From(b, Words), stream.From(b, Other), within, Pairs, pair), Out)
	})
	other := processortest.Input(d, Other)
	pipeAt(in, 100, 105)
	pipeAt(other, 108)            // each pair makes a result
	in.PipeRecord(tombstone(109)) // dropped
	show(out)
	// Output:
	// a=100-108
	// a=105-108
}

func ExampleLeftJoinWindow() {
	d, in, out := drive(func(b *processor.Builder) {
		within := stream.Within(10 * time.Millisecond)
		stream.To(stream.LeftJoinWindow(stream.From(b, Words), stream.From(b, Other), within, Pairs, leftPair), Out)
	})
	pipeAt(in, 100, 105)
	fmt.Println("so far:", len(out.Read()))
	// Too far from the first, and so the end of its window: now it is certain that it has no partner.
	pipeAt(processortest.Input(d, Other), 112)
	show(out)
	// Output:
	// so far: 0
	// a=100-none
	// a=105-112
}

func ExampleOuterJoinWindow() {
	d, in, out := drive(func(b *processor.Builder) {
		within := stream.Within(10 * time.Millisecond)
		stream.To(stream.OuterJoinWindow(stream.From(b, Words), stream.From(b, Other), within, Pairs,
			func(_ string, l, r processor.Opt[string]) string { return l.Or("none") + "-" + r.Or("none") }), Out)
	})
	pipeAt(in, 100)
	pipeAt(processortest.Input(d, Other), 150, 200)
	show(out)
	// Output:
	// a=100-none
	// a=none-150
}

func ExampleSelfJoinWindow() {
	_, in, out := drive(func(b *processor.Builder) {
		stream.To(stream.SelfJoinWindow(stream.From(b, Words), stream.Within(10*time.Millisecond), Pairs, pair), Out)
	})
	pipeAt(in, 100, 105) // each record meets itself, too
	show(out)
	// Output:
	// a=100-100
	// a=105-100
	// a=100-105
	// a=105-105
}

func ExampleJoinGrace() {
	d, in, out := drive(func(b *processor.Builder) {
		prices := table.FromVersioned(b, Other, History)
		stream.To(stream.JoinGrace(stream.From(b, Words), prices, 10*time.Millisecond, Waiting, pair), Out)
	})
	prices := processortest.Input(d, Other)
	prices.PipeAt("a", "old", time.UnixMilli(1))
	in.PipeAt("a", "word", time.UnixMilli(20))
	prices.PipeAt("a", "new", time.UnixMilli(15)) // comes later, but was true at the time of the record
	in.PipeAt("b", "later", time.UnixMilli(40))   // the grace period of the first is over
	show(out)
	// Output:
	// a=word-new
}

func ExampleLeftJoinGrace() {
	d, in, out := drive(func(b *processor.Builder) {
		prices := table.FromVersioned(b, Other, History)
		stream.To(stream.LeftJoinGrace(stream.From(b, Words), prices, 10*time.Millisecond, Waiting, leftPair), Out)
	})
	in.PipeAt("a", "word", time.UnixMilli(20))
	processortest.Input(d, Other).PipeAt("a", "new", time.UnixMilli(30)) // not yet true at the time of the record
	in.PipeAt("b", "later", time.UnixMilli(40))
	show(out)
	// Output:
	// a=word-none
}

func ExampleJoinGlobal() {
	d, in, out := drive(func(b *processor.Builder) {
		currencies := table.Global(b, Other, Latest) // every process holds all of it
		stream.To(stream.JoinGlobal(stream.From(b, Words), currencies,
			func(_, v string) (string, bool) { return v, v != "" }, // by any key, not only that of the record
			func(_, v, name string) string { return v + " is " + name }), Out)
	})
	processortest.Input(d, Other).Pipe("€", "euro")
	in.Pipe("1", "€")
	in.Pipe("2", "$") // no row, no result
	in.PipeRecord(noKey("€"))
	show(out)
	// Output:
	// 1=€ is euro
	// <nil>=€ is euro
}

func ExampleLeftJoinGlobal() {
	d, in, out := drive(func(b *processor.Builder) {
		currencies := table.Global(b, Other, Latest)
		stream.To(stream.LeftJoinGlobal(stream.From(b, Words), currencies,
			func(_, v string) (string, bool) { return v, v != "" },
			func(_, v string, name processor.Opt[string]) string { return v + " is " + name.Or("unknown") }), Out)
	})
	processortest.Input(d, Other).Pipe("€", "euro")
	in.Pipe("1", "€")
	in.Pipe("2", "$")
	in.Pipe("3", "") // no key to look up
	show(out)
	// Output:
	// 1=€ is euro
	// 2=$ is unknown
	// 3= is unknown
}

func ExampleSplitRecord() {
	_, in, out := drive(func(b *processor.Builder) {
		split := stream.SplitRecord(stream.From(b, Words))
		deletions := split.When("deletions", func(r processor.Record[string, string]) bool { return r.Tombstone })
		stream.To(deletions, Out)
	})
	in.Pipe("a", "ant")
	in.PipeTombstone("a") // seen, unlike in Split
	show(out)
	// Output:
	// a=<nil>
}
