package conformance

import (
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/processor/processortest"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/state/memory"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

func init() {
	topologies["stream-aggregate"] = streamAggregate
	topologies["stream-to-table"] = func(b *builder) {
		s := b.store("store")
		emit(b, stream.ToTable(stream.From(b.Builder, b.topic("input")), s), "output")
		readFinal(b, s, "store")
	}
	topologies["repartition"] = func(b *builder) {
		by := b.repartition("by-key")
		stream.To(stream.Repartition(stream.From(b.Builder, b.topic("left")), by), b.topic("output"))
	}
	topologies["split"] = split
	topologies["recursive"] = recursive
	replayers["punctuate"] = punctuate
	replayers["partition-choice"] = partitionChoice
}

// emit writes a table's changes, with keys and values as text.
func emit[K, V any](b *builder, t *table.Table[K, V], topic string) {
	asText := stream.MapRecord(stream.Changes(t), func(r processor.Record[K, V]) processor.Record[string, string] {
		out := processor.Record[string, string]{
			Key: fmt.Sprint(r.Key), NoKey: r.NoKey, Tombstone: r.Tombstone, Time: r.Time, Headers: r.Headers,
		}
		if !r.Tombstone {
			out.Value = fmt.Sprint(r.Value)
		}
		return out
	})
	stream.To(asText, b.topic(topic))
}

func streamAggregate(b *builder) {
	grouped := stream.Group(stream.From(b.Builder, b.topic("input")))
	add := func(a, _, v string) string { return a + "+" + v }
	switch b.Agg {
	case "count":
		s := state.KeyValue(b.named("agg"), serde.String, serde.Int64)
		emit(b, stream.Count(grouped, s), "output")
		readFinal(b, s, "agg")
	case "tostring":
		s := b.store("agg").Initially(func() string { return "0" })
		emit(b, stream.Aggregate(grouped, s, add), "output")
		readFinal(b, s, "agg")
	case "null-on-DEL":
		s := b.store("agg")
		emit(b, stream.Fold(grouped, s, func(a processor.Opt[string], k, v string) processor.Opt[string] {
			if v == "DEL" {
				return processor.None[string]()
			}
			return processor.Some(add(a.Or("0"), k, v))
		}), "output")
		readFinal(b, s, "agg")
	case "reduce":
		s := b.store("agg")
		emit(b, stream.Reduce(grouped, s, func(a, v string) string { return a + "+" + v }), "output")
		readFinal(b, s, "agg")
	default:
		b.Fail("conformance", "unknown agg %q", b.Agg)
	}
}

func split(b *builder) {
	is := func(test func(n int) bool) func(r processor.Record[string, string]) bool {
		return func(r processor.Record[string, string]) bool { n, _ := strconv.Atoi(r.Key); return test(n) }
	}
	sp := stream.SplitRecord(stream.From(b.Builder, b.topic("input")))
	stream.To(sp.When("bar", is(func(n int) bool { return n%2 == 0 })), b.topic("foo-bar"))
	sp.When("3", is(func(n int) bool { return n%3 == 0 })) // taken, and not read
	sp.When("5", is(func(n int) bool { return n%5 == 0 }))
	stream.To(sp.When("4", is(func(n int) bool { return n < 0 })), b.topic("foo-4"))
	stream.To(sp.When("5th", is(func(n int) bool { return n%7 == 0 })), b.topic("foo-5"))
	stream.To(sp.Otherwise("rest"), b.topic("foo-0"))
}

// recursive writes each record back to its own source once, and to the output.
func recursive(b *builder) {
	in := stream.From(b.Builder, b.topic("input"))
	isBack := func(_, v string) bool { return len(v) >= 8 && v[:8] == "recurse-" }
	back := stream.Map(stream.FilterNot(in, isBack), func(_, v string) string { return "recurse-" + v })
	stream.To(back, b.topic("input"))
	stream.To(in, b.topic("output"))
}

// ticker records when its timer ran.
type ticker struct {
	kind     processor.TimeKind
	interval time.Duration
	ticks    *[]time.Time
}

func (p *ticker) Init(c *processor.Context[string, string]) error {
	_, err := c.Schedule(p.kind, p.interval, func(now time.Time) error {
		*p.ticks = append(*p.ticks, now)
		return nil
	})
	return err
}

func (*ticker) Process(*processor.Context[string, string], processor.Record[string, string]) error {
	return nil
}

func punctuate(t *testing.T, c *testCase) result {
	t.Helper()
	kind := processor.WallClock
	if c.Spec.Kind == "stream" {
		kind = processor.StreamTime
	}
	var ticks []time.Time
	in := processor.NewTopic("input", serde.String, serde.String)
	topology, err := processor.Build(func(b *processor.Builder) {
		stream.Process(stream.From(b, in), func() processor.Processor[string, string, string, string] {
			return &ticker{kind, time.Duration(c.Spec.Interval) * time.Millisecond, &ticks}
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	d := processortest.New(t, topology, processortest.StartingAt(time.UnixMilli(0).UTC()))
	var got result
	for step, i := range c.Inputs {
		if i.Advance != nil {
			d.AdvanceWallClock(time.Duration(*i.Advance) * time.Millisecond)
		} else {
			processortest.Input(d, in).PipeRecord(i.record())
		}
		for _, at := range ticks {
			got.records = append(got.records, row{
				"topic": some("punctuate"), "key": {}, "value": some("punctuated"), "ts": millis(at),
				"after": some(strconv.Itoa(step)),
			})
		}
		ticks = nil
	}
	return got
}

// partitionChoice pipes batches into a task with two inputs, and notes the order in which it takes records. A later batch
// arrives after two records of the earlier one.
func partitionChoice(t *testing.T, c *testCase) result {
	t.Helper()
	var got result
	var topics []*processor.Topic[string, string]
	var names []string
	for _, in := range c.Inputs {
		if in.Topic != "" && !slices.Contains(names, in.Topic) {
			names = append(names, in.Topic)
			topics = append(topics, processor.NewTopic(in.Topic, serde.String, serde.String))
		}
	}
	note := processor.ProcessorFunc[string, string, string, string](
		func(ctx *processor.Context[string, string], r processor.Record[string, string]) error {
			topic, _, _, _ := ctx.Source()
			o := outputRow(topic, r, 0)
			at, _ := ctx.StreamTime()
			o["stream_time"] = millis(at)
			got.records = append(got.records, o)
			return nil
		})
	topology, err := processor.Build(func(b *processor.Builder) {
		var inputs []*stream.Stream[string, string]
		for _, topic := range topics {
			inputs = append(inputs, stream.From(b, topic))
		}
		all := stream.Merge(inputs[0], inputs[1:]...)
		stream.Process(all, func() processor.Processor[string, string, string, string] { return note })
	})
	if err != nil {
		t.Fatal(err)
	}
	task, err := topology.NewTask("conformance", processor.TaskID{Sub: topology.SubTopologies()[0]}, memory.New(),
		processor.TaskOptions{MaxTaskIdle: -1})
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(nil, "", 0); err != nil {
		t.Fatal(err)
	}
	batch := 1
	step := func(n int) {
		if _, _, err := task.Step(n, 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, in := range c.Inputs {
		if in.Batch > batch {
			step(2)
			batch = in.Batch
		}
		raw := processor.RawRecord{Topic: in.Topic, TimeMillis: in.TS}
		task.Enqueue(in.Topic, []processor.RawRecord{raw})
	}
	step(len(c.Inputs))
	return got
}
