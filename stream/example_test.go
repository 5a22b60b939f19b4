package stream_test

import (
	"fmt"
	"strings"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/processor/processortest"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

// The topics, stores and repartition topics of the examples. Everything that outlives a deployment is a package-level
// value.
var (
	Words   = processor.NewTopic("words", serde.String, serde.String)
	Other   = processor.NewTopic("other", serde.String, serde.String)
	Out     = processor.NewTopic("out", serde.String, serde.String)
	Out2    = processor.NewTopic("out2", serde.String, serde.String)
	Numbers = processor.NewTopic("numbers", serde.String, serde.Int64)

	ByWord = processor.NewRepartition("by-word", serde.String, serde.String)

	Counts = state.KeyValue("counts", serde.String, serde.Int64)
	Latest = state.KeyValue("latest", serde.String, serde.String)
	Joined = state.KeyValue("joined", serde.String, serde.String).Initially(func() string { return ">" })
)

// build builds a topology, or panics with its mistakes.
func build(declare ...func(*processor.Builder)) *processor.Topology {
	t, err := processor.Build(declare...)
	if err != nil {
		panic(err)
	}
	return t
}

// show prints the records written to a topic since the last call: key=value, nil where there is none.
func show[K, V any](out *processortest.OutputTopic[K, V]) {
	for _, r := range out.Read() {
		key, value := any(r.Key), any(r.Value)
		if r.NoKey {
			key = nil
		}
		if r.Tombstone {
			value = nil
		}
		fmt.Printf("%v=%v\n", key, value)
	}
}

// drive builds a topology and returns a driver with the way into Words and what comes out of Out.
func drive(declare func(*processor.Builder)) (
	*processortest.Driver, *processortest.InputTopic[string, string], *processortest.OutputTopic[string, string],
) {
	d := processortest.New(processortest.Panics, build(declare))
	return d, processortest.Input(d, Words), processortest.Output(d, Out)
}

// noKey is a record without a key, which the broker may have put on any partition.
func noKey(value string) processor.Record[string, string] {
	return processor.Record[string, string]{NoKey: true, Value: value, Time: time.UnixMilli(1)}
}

func ExampleFrom() {
	_, in, out := drive(func(b *processor.Builder) {
		words := stream.From(b, Words)
		again := stream.From(b, Words) // one input, read once
		stream.To(stream.Merge(words, again), Out)
	})
	in.Pipe("a", "ant")
	in.PipeTombstone("a") // a stream may hold tombstones: what they mean is up to the operators
	show(out)
	// Output:
	// a=ant
	// a=ant
	// a=<nil>
	// a=<nil>
}

func ExampleFilter() {
	_, in, out := drive(func(b *processor.Builder) {
		short := stream.Filter(stream.From(b, Words), func(_, v string) bool { return len(v) <= 3 })
		stream.To(short, Out)
	})
	in.Pipe("a", "ant")
	in.Pipe("b", "bumblebee")
	in.PipeTombstone("b") // passes without a call, although nothing of b had passed
	show(out)
	// Output:
	// a=ant
	// b=<nil>
}

func ExampleFilterNot() {
	_, in, out := drive(func(b *processor.Builder) {
		long := stream.FilterNot(stream.From(b, Words), func(_, v string) bool { return len(v) <= 3 })
		stream.To(long, Out)
	})
	in.Pipe("a", "ant")
	in.Pipe("b", "bumblebee")
	in.PipeTombstone("a") // passes here, too: tombstones are on both sides of a condition
	show(out)
	// Output:
	// b=bumblebee
	// a=<nil>
}

func ExampleFilterRecord() {
	_, in, out := drive(func(b *processor.Builder) {
		live := stream.FilterRecord(stream.From(b, Words), func(r processor.Record[string, string]) bool {
			return !r.Tombstone && !r.NoKey // it sees everything: tombstones, keys, times, headers
		})
		stream.To(live, Out)
	})
	in.Pipe("a", "ant")
	in.PipeTombstone("a")
	in.PipeRecord(noKey("stray"))
	show(out)
	// Output:
	// a=ant
}

func ExampleMap() {
	_, in, out := drive(func(b *processor.Builder) {
		upper := stream.Map(stream.From(b, Words), func(_, v string) string { return strings.ToUpper(v) })
		stream.To(upper, Out)
	})
	in.Pipe("a", "ant")
	in.Pipe("a", "")      // an empty value is a value
	in.PipeTombstone("a") // a tombstone is not: it passes without a call
	show(out)
	// Output:
	// a=ANT
	// a=
	// a=<nil>
}

func ExampleFlatMap() {
	_, in, out := drive(func(b *processor.Builder) {
		words := stream.FlatMap(stream.From(b, Words), func(_, v string) []string { return strings.Fields(v) })
		stream.To(words, Out)
	})
	in.Pipe("a", "army of ants")
	in.Pipe("b", "") // no values, no records
	in.PipeTombstone("c")
	show(out)
	// Output:
	// a=army
	// a=of
	// a=ants
	// c=<nil>
}

func ExampleMapRecord() {
	_, in, out := drive(func(b *processor.Builder) {
		swapped := stream.MapRecord(stream.From(b, Words),
			func(r processor.Record[string, string]) processor.Record[string, string] {
				if r.Tombstone {
					return r // there is no value to become the key
				}
				return processor.WithValue(processor.WithKey(r, r.Value), r.Key)
			})
		stream.To(swapped, Out)
	})
	in.Pipe("a", "ant")
	in.PipeTombstone("a")
	show(out)
	// Output:
	// ant=a
	// a=<nil>
}

func ExampleFlatMapRecord() {
	_, in, out := drive(func(b *processor.Builder) {
		both := stream.FlatMapRecord(stream.From(b, Words),
			func(r processor.Record[string, string]) []processor.Record[string, string] {
				late := r
				late.Time = r.Time.Add(time.Hour)
				return []processor.Record[string, string]{r, processor.WithoutValue[string](late)}
			})
		stream.To(both, Out)
	})
	in.PipeAt("a", "ant", time.UnixMilli(0).UTC())
	for _, r := range out.Read() {
		fmt.Println(r.Key, r.Value, r.Tombstone, r.Time.Format(time.TimeOnly))
	}
	// Output:
	// a ant false 00:00:00
	// a  true 01:00:00
}

func ExampleRekey() {
	d, in, out := drive(func(b *processor.Builder) {
		byWord := stream.Rekey(stream.From(b, Words), func(_, v string) string { return v })
		stream.To(byWord, Out) // a topic brings each record to the partition of its key
	})
	in.Pipe("a", "ant")
	in.PipeTombstone("a") // which word was deleted cannot be told
	show(out)
	fmt.Println("dropped:", d.Dropped(processor.DropNoValue))

	_, err := processor.Build(func(b *processor.Builder) {
		byWord := stream.Rekey(stream.From(b, Words), func(_, v string) string { return v })
		stream.Count(stream.Group(byWord), Counts)
	})
	fmt.Println("grouped without a Repartition:", err != nil)
	// Output:
	// ant=ant
	// dropped: 1
	// grouped without a Repartition: true
}

func ExampleRekeyRecord() {
	_, in, out := drive(func(b *processor.Builder) {
		keyed := stream.RekeyRecord(stream.From(b, Words), func(r processor.Record[string, string]) string {
			if r.NoKey {
				return "unknown"
			}
			return "key-" + r.Key
		})
		stream.To(keyed, Out)
	})
	in.PipeTombstone("a") // not dropped, unlike in Rekey
	in.PipeRecord(noKey("stray"))
	show(out)
	// Output:
	// key-a=<nil>
	// unknown=stray
}

func ExampleFlatRekey() {
	_, in, out := drive(func(b *processor.Builder) {
		letters := stream.FlatRekey(stream.From(b, Words), func(_, v string) []string { return strings.Split(v, "") })
		stream.To(letters, Out)
	})
	in.Pipe("a", "ant")
	in.PipeTombstone("a") // dropped
	show(out)
	// Output:
	// a=ant
	// n=ant
	// t=ant
}

func ExampleRepartition() {
	d, in, out := drive(func(b *processor.Builder) {
		byWord := stream.Rekey(stream.From(b, Words), func(_, v string) string { return v })
		there := stream.Repartition(byWord, ByWord) // now words with one key are on one partition
		stream.To(stream.Changes(table.Map(stream.Count(stream.Group(there), Counts),
			func(_ string, n int64) string { return fmt.Sprint(n) })), Out)
	})
	in.Pipe("1", "ant")
	in.Pipe("2", "bee")
	in.Pipe("3", "ant")
	show(out)
	fmt.Println(len(d.Raw("test-by-word-repartition")), "records went through the internal topic")
	// Output:
	// ant=1
	// bee=1
	// ant=2
	// 3 records went through the internal topic
}

func ExampleThrough() {
	d, in, _ := drive(func(b *processor.Builder) {
		byWord := stream.Rekey(stream.From(b, Words), func(_, v string) string { return v })
		there := stream.Through(byWord, Other) // like Repartition, by a topic that others may read
		stream.Count(stream.Group(there), Counts)
	})
	in.Pipe("1", "ant")
	in.Pipe("2", "ant")
	show(processortest.Output(d, Other))
	n, _, err := processortest.Store(d, Counts).Get("ant")
	fmt.Println(n, err)
	// Output:
	// ant=ant
	// ant=ant
	// 2 <nil>
}

func ExampleMerge() {
	d, in, out := drive(func(b *processor.Builder) {
		stream.To(stream.Merge(stream.From(b, Words), stream.From(b, Other)), Out)
	})
	other := processortest.Input(d, Other)
	in.Pipe("a", "ant")
	other.Pipe("a", "axe") // order between the streams is that of processing, nothing else
	in.PipeTombstone("a")
	show(out)
	// Output:
	// a=ant
	// a=axe
	// a=<nil>
}

func ExamplePeek() {
	_, in, out := drive(func(b *processor.Builder) {
		seen := stream.Peek(stream.From(b, Words), func(k, v string) { fmt.Println("saw", k, v) })
		stream.To(seen, Out)
	})
	in.Pipe("a", "ant")
	in.PipeTombstone("a") // passes without a call
	show(out)
	// Output:
	// saw a ant
	// a=ant
	// a=<nil>
}

func ExamplePeekRecord() {
	_, in, _ := drive(func(b *processor.Builder) {
		stream.PeekRecord(stream.From(b, Words), func(r processor.Record[string, string]) {
			fmt.Printf("%q tombstone=%t headers=%d\n", r.Key, r.Tombstone, len(r.Headers))
		})
	})
	in.Pipe("a", "ant")
	in.PipeTombstone("a")
	// Output:
	// "a" tombstone=false headers=0
	// "a" tombstone=true headers=0
}

func ExampleForEach() {
	d := processortest.New(processortest.Panics, build(func(b *processor.Builder) {
		stream.ForEach(stream.From(b, Words), func(_, v string) { fmt.Println("called for", v) })
	}), processortest.CommitManually())
	in := processortest.Input(d, Words)
	in.Pipe("a", "ant")
	in.PipeTombstone("a") // no call
	d.Crash()             // before the commit: what was processed is processed again
	// Output:
	// called for ant
	// called for ant
}

func ExampleSplit() {
	d, in, out := drive(func(b *processor.Builder) {
		split := stream.Split(stream.From(b, Words))
		stream.To(split.When("short", func(_, v string) bool { return len(v) <= 3 }), Out)
		stream.To(split.When("with-e", func(_, v string) bool { return strings.Contains(v, "e") }), Out2)
	})
	in.Pipe("a", "bee") // both are true: the first branch takes it
	in.Pipe("b", "beetle")
	in.Pipe("c", "wasps")    // no branch, no record
	in.PipeTombstone("gone") // belongs to no branch: dropped and counted
	fmt.Println("short:")
	show(out)
	fmt.Println("with-e:")
	show(processortest.Output(d, Out2))
	fmt.Println("dropped:", d.Dropped(processor.DropNoValue))
	// Output:
	// short:
	// a=bee
	// with-e:
	// b=beetle
	// dropped: 1
}

func ExampleSplitter_When() {
	_, in, out := drive(func(b *processor.Builder) {
		split := stream.Split(stream.From(b, Words))
		split.When("short", func(_, v string) bool { return len(v) <= 3 }) // a branch that nothing follows swallows
		stream.To(split.When("any", func(_, _ string) bool { return true }), Out)
	})
	in.Pipe("a", "ant")
	in.Pipe("b", "beetle")
	show(out)
	// Output:
	// b=beetle
}

func ExampleSplitter_Otherwise() {
	_, in, out := drive(func(b *processor.Builder) {
		split := stream.Split(stream.From(b, Words))
		split.When("short", func(_, v string) bool { return len(v) <= 3 })
		stream.To(split.Otherwise("rest"), Out)
	})
	in.Pipe("a", "ant")
	in.Pipe("b", "beetle")
	in.PipeTombstone("b") // not even the rest gets tombstones
	show(out)
	// Output:
	// b=beetle
}

func ExampleTo() {
	_, in, out := drive(func(b *processor.Builder) {
		stream.To(stream.From(b, Words), Out)
	})
	in.PipeRecord(processor.Record[string, string]{
		Key: "a", Value: "ant", Time: time.UnixMilli(1500).UTC(),
		Headers: []processor.Header{{Key: "trace", Value: []byte("42")}},
	})
	r := out.Read()[0] // the time of the record and its headers go along
	fmt.Println(r.Key, r.Value, r.Time.UnixMilli(), r.Headers[0].Key)
	// Output:
	// a ant 1500 trace
}

func ExampleToChosen() {
	d, in, out := drive(func(b *processor.Builder) {
		stream.ToChosen(stream.From(b, Words),
			func(r processor.Record[string, string]) *processor.Topic[string, string] {
				switch {
				case r.Tombstone:
					return nil // dropped and counted
				case len(r.Value) <= 3:
					return Out
				default:
					return Out2
				}
			}, Out, Out2)
	})
	in.Pipe("a", "ant")
	in.Pipe("b", "beetle")
	in.PipeTombstone("a")
	show(out)
	show(processortest.Output(d, Out2))
	fmt.Println("dropped:", d.Dropped(processor.DropNoTopic))
	// Output:
	// a=ant
	// b=beetle
	// dropped: 1
}
