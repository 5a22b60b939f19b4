package stream_test

import (
	"fmt"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/processor/processortest"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

// dedup forwards a record unless its value is the one that its key had before.
type dedup struct {
	last *state.KeyValueStore[string, string]
}

func (p *dedup) Init(c *processor.Context[string, string]) (err error) {
	p.last, err = Latest.Open(c) // one of the stores named where the processor was declared
	return err
}

func (p *dedup) Process(c *processor.Context[string, string], r processor.Record[string, string]) error {
	if r.Tombstone { // a Processor sees everything
		if err := p.last.Delete(r.Key); err != nil {
			return err
		}
		return c.Forward(r)
	}
	old, ok, err := p.last.Get(r.Key)
	if err != nil || (ok && old == r.Value) {
		return err
	}
	if err := p.last.Set(r.Key, r.Value); err != nil {
		return err
	}
	return c.Forward(r)
}

func newDedup() processor.Processor[string, string, string, string] { return &dedup{} }

func ExampleProcess() {
	d, in, out := drive(func(b *processor.Builder) {
		stream.To(stream.Process(stream.From(b, Words), newDedup, Latest), Out)
	})
	in.Pipe("a", "ant")
	in.Pipe("a", "ant")
	d.Crash() // the store is restored from its changelog
	in.Pipe("a", "ant")
	in.PipeTombstone("a")
	in.Pipe("a", "ant")
	show(out)
	// Output:
	// a=ant
	// a=<nil>
	// a=ant
}

func ExampleProcessValues() {
	d, in, _ := drive(func(b *processor.Builder) {
		// Its result can be grouped at once, because the processor keeps the keys. That it does is checked.
		fresh := stream.ProcessValues(stream.From(b, Words), newDedup, Latest)
		stream.Count(stream.Group(fresh), Counts)
	})
	in.Pipe("a", "ant")
	in.Pipe("a", "ant")
	in.Pipe("a", "asp")
	n, _, err := processortest.Store(d, Counts).Get("a")
	fmt.Println(n, err)
	// Output:
	// 2 <nil>
}

func ExampleGroup() {
	d, in, _ := drive(func(b *processor.Builder) {
		group := stream.Group(stream.From(b, Words)) // may be aggregated in several ways
		stream.Count(group, Counts)
		stream.Reduce(group, Latest, func(_, v string) string { return v })
	})
	in.Pipe("a", "ant")
	in.PipeRecord(noKey("stray")) // belongs to no group: each aggregation drops and counts it
	n, _, err := processortest.Store(d, Counts).Get("a")
	fmt.Println(n, err, "dropped:", d.Dropped(processor.DropNoKey))
	// Output:
	// 1 <nil> dropped: 2
}

func ExampleCount() {
	d := processortest.New(processortest.Panics, build(func(b *processor.Builder) {
		table.To(stream.Count(stream.Group(stream.From(b, Words)), Counts), Numbers)
	}))
	in := processortest.Input(d, Words)
	in.Pipe("a", "ant")
	in.Pipe("a", "asp")
	in.PipeTombstone("a") // deletes nothing: a tombstone in a stream is not counted, it is dropped
	show(processortest.Output(d, Numbers))
	fmt.Println("dropped:", d.Dropped(processor.DropNoValue))
	// Output:
	// a=1
	// a=2
	// dropped: 1
}

func ExampleReduce() {
	d, in, out := drive(func(b *processor.Builder) {
		longest := stream.Reduce(stream.Group(stream.From(b, Words)), Latest, func(a, v string) string {
			return max(a, v) // not called for the first value of a key, which is stored as it is
		})
		table.To(longest, Out)
	})
	in.PipeAt("a", "ant", time.UnixMilli(20))
	in.PipeAt("a", "asp", time.UnixMilli(10)) // late: the row keeps the largest time
	show(out)
	_, millis, _, err := processortest.Store(d, Latest).Lookup("a")
	fmt.Println(millis, err)
	// Output:
	// a=ant
	// a=asp
	// 20 <nil>
}

func ExampleAggregate() {
	_, in, out := drive(func(b *processor.Builder) {
		// The store says what an aggregate starts from: Joined is declared with Initially.
		all := stream.Aggregate(stream.Group(stream.From(b, Words)), Joined,
			func(a, _, v string) string { return a + v })
		table.To(all, Out)
	})
	in.Pipe("a", "x")
	in.Pipe("a", "y")
	in.PipeTombstone("a") // dropped: an Aggregate never deletes, see Fold
	in.Pipe("b", "z")
	show(out)
	// Output:
	// a=>x
	// a=>xy
	// b=>z
}

func ExampleFold() {
	_, in, out := drive(func(b *processor.Builder) {
		open := stream.Fold(stream.Group(stream.From(b, Words)), Latest,
			func(a processor.Opt[string], _, v string) processor.Opt[string] {
				if v == "close" {
					return processor.None[string]() // deletes the row
				}
				return processor.Some(a.Or("new") + "+" + v)
			})
		table.To(open, Out)
	})
	in.Pipe("a", "x")
	in.Pipe("a", "close")
	in.Pipe("a", "y")     // starts from nothing again
	in.Pipe("b", "close") // there was nothing to delete; the deletion is forwarded nevertheless
	show(out)
	// Output:
	// a=new+x
	// a=<nil>
	// a=new+y
	// b=<nil>
}

func ExampleJoin() {
	d, in, out := drive(func(b *processor.Builder) {
		prices := table.From(b, Other, Latest)
		stream.To(stream.Join(stream.From(b, Words), prices,
			func(_, word, price string) string { return word + " at " + price }), Out)
	})
	prices := processortest.Input(d, Other)
	in.Pipe("a", "ant") // there is no row yet: no result, not later either
	prices.Pipe("a", "1€")
	in.Pipe("a", "ant")
	prices.PipeTombstone("a") // makes no result, and deletes none that was made
	in.Pipe("a", "ant")
	show(out)
	// Output:
	// a=ant at 1€
}

func ExampleLeftJoin() {
	d, in, out := drive(func(b *processor.Builder) {
		prices := table.From(b, Other, Latest)
		stream.To(stream.LeftJoin(stream.From(b, Words), prices,
			func(_, word string, price processor.Opt[string]) string { return word + " at " + price.Or("?") }), Out)
	})
	in.Pipe("a", "ant")
	processortest.Input(d, Other).Pipe("a", "1€")
	in.Pipe("a", "ant")
	in.PipeTombstone("a")         // dropped: there is nothing to join
	in.PipeRecord(noKey("stray")) // no key finds no row, which a left join can say
	show(out)
	// Output:
	// a=ant at ?
	// a=ant at 1€
	// <nil>=stray at ?
}

func ExampleChanges() {
	d, _, out := drive(func(b *processor.Builder) {
		stream.To(stream.Changes(table.From(b, Other, Latest)), Out)
	})
	in := processortest.Input(d, Other)
	in.Pipe("a", "ant")
	in.Pipe("a", "ant") // an update to the same value is an update
	in.PipeTombstone("a")
	show(out)
	// Output:
	// a=ant
	// a=ant
	// a=<nil>
}

func ExampleToTable() {
	d, in, _ := drive(func(b *processor.Builder) {
		stream.ToTable(stream.From(b, Words), Latest)
	})
	in.PipeAt("a", "asp", time.UnixMilli(20))
	in.PipeAt("a", "ant", time.UnixMilli(10)) // newest is what comes last in the log, not what has the latest time
	in.Pipe("b", "bee")
	in.PipeTombstone("b")
	in.PipeRecord(noKey("stray")) // dropped and counted
	for row, err := range processortest.Store(d, Latest).All() {
		fmt.Println(row.Key, row.Value, row.Time.UnixMilli(), err)
	}
	fmt.Println("dropped:", d.Dropped(processor.DropNoKey))
	// Output:
	// a ant 10 <nil>
	// dropped: 1
}
