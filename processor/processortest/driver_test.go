package processortest_test

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/processor/processortest"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

var (
	Words  = processor.NewTopic("words", serde.String, serde.String)
	Other  = processor.NewTopic("other", serde.String, serde.String)
	Counts = processor.NewTopic("counts", serde.String, serde.Int64)
	Out    = processor.NewTopic("out", serde.String, serde.String)

	ByWord = processor.NewRepartition("by-word", serde.String, serde.String)
	Rows   = state.KeyValue("rows", serde.String, serde.Int64)
)

func counts(b *processor.Builder) {
	byWord := stream.Rekey(stream.From(b, Words), func(_, v string) string {
		if v == "boom" {
			panic("boom")
		}
		return v
	})
	table.To(stream.Count(stream.Group(stream.Repartition(byWord, ByWord)), Rows), Counts)
}

func build(t testing.TB, declare func(*processor.Builder)) *processor.Topology {
	t.Helper()
	topology, err := processor.Build(declare)
	if err != nil {
		t.Fatal(err)
	}
	return topology
}

func ExampleNew() {
	topology, err := processor.Build(counts)
	if err != nil {
		panic(err)
	}
	d := processortest.New(processortest.Panics, topology) // in a test: the *testing.T
	words := processortest.Input(d, Words)
	words.Pipe("1", "ant")
	words.Pipe("2", "bee")
	d.Crash() // what is committed comes back from the changelogs
	words.Pipe("3", "ant")
	out := processortest.Output(d, Counts)
	fmt.Println(processortest.Map(out)) // the newest value of each key
	for _, r := range out.Read() {      // every record
		fmt.Print(r.Key, "=", r.Value, " ")
	}
	n, _, err := processortest.Store(d, Rows).Get("ant")
	fmt.Println(n, err)
	// Output:
	// map[ant:2 bee:1]
	// ant=1 bee=1 ant=2 2 <nil>
}

func ExampleCommitManually() {
	topology, err := processor.Build(counts)
	if err != nil {
		panic(err)
	}
	d := processortest.New(processortest.Panics, topology, processortest.CommitManually())
	words, out := processortest.Input(d, Words), processortest.Output(d, Counts)
	words.Pipe("1", "ant")
	fmt.Println(len(out.Read()), "seen before the commit")
	d.Crash() // nothing is lost, and nothing happens twice
	d.Commit()
	fmt.Println(processortest.Map(out))
	// Output:
	// 0 seen before the commit
	// map[ant:1]
}

func ExampleDriver_AdvanceWallClock() {
	topology, err := processor.Build(func(b *processor.Builder) {
		stream.To(stream.Process(stream.From(b, Words), func() processor.Processor[string, string, string, string] {
			return &clock{}
		}), Out)
	})
	if err != nil {
		panic(err)
	}
	d := processortest.New(processortest.Panics, topology)
	d.AdvanceWallClock(59 * time.Second)
	d.AdvanceWallClock(time.Second)
	d.AdvanceWallClock(10 * time.Minute) // what was missed is made up by one call
	for _, r := range processortest.Output(d, Out).Read() {
		fmt.Println(r.Key, r.Value)
	}
	// Output:
	// tick 00:01:00
	// tick 00:11:00
}

// clock forwards the time each minute.
type clock struct{}

func (*clock) Init(c *processor.Context[string, string]) error {
	_, err := c.Schedule(processor.WallClock, time.Minute, func(now time.Time) error {
		return c.Forward(processor.Record[string, string]{Key: "tick", Value: now.Format(time.TimeOnly), Time: now})
	})
	return err
}

func (*clock) Process(*processor.Context[string, string], processor.Record[string, string]) error {
	return nil
}

// fatal is a TB that remembers.
type fatal struct{ said string }

func (*fatal) Helper() {}
func (f *fatal) Fatalf(format string, args ...any) {
	f.said = fmt.Sprintf(format, args...)
	panic(f)
}

// failing returns what f fails a test with.
func failing(tb *fatal, f func()) (said string) {
	defer func() {
		if recover() != nil {
			said = tb.said
		}
	}()
	f()
	return ""
}

func TestFailures(t *testing.T) {
	topology := build(t, counts)
	other := state.KeyValue("rows", serde.String, serde.Int64)
	cases := map[string]struct {
		do   func(d *processortest.Driver)
		says string
	}{
		"a record that fails": {
			func(d *processortest.Driver) { processortest.Input(d, Words).Pipe("1", "boom") }, "panic: boom",
		},
		"a topic that nothing reads": {
			func(d *processortest.Driver) { processortest.Input(d, Other).Pipe("1", "x") }, `does not read topic "other"`,
		},
		"another store of the name": {
			func(d *processortest.Driver) { processortest.Store(d, other) }, `no store "rows"`,
		},
		"a sub-topology that is not there": {
			func(d *processortest.Driver) { d.StreamTime("x") }, `["by-word" "words"]`,
		},
		"a clock that goes back": {
			func(d *processortest.Driver) { d.AdvanceWallClock(-1) }, "cannot go back",
		},
		"an output of another type": {
			func(d *processortest.Driver) {
				processortest.Input(d, Words).Pipe("1", "a")
				processortest.Output(d, processor.NewTopic("counts", serde.String, serde.Int32)).Read()
			}, `output topic "counts", record 0`,
		},
		"a commit after a failure": {
			func(d *processortest.Driver) {
				if err := processortest.Input(d, Words).TryPipe(record("boom")); err == nil {
					t.Error("no failure")
				}
				d.Commit()
			}, "nothing to commit after a failure",
		},
	}
	for name, c := range cases {
		tb := &fatal{}
		d := processortest.New(tb, topology)
		if said := failing(tb, func() { c.do(d) }); !strings.Contains(said, c.says) {
			t.Errorf("%s: %q\ndoes not say %q", name, said, c.says)
		}
	}
}

func record(v string) processor.Record[string, string] {
	return processor.Record[string, string]{Key: "k", Value: v, Time: time.UnixMilli(1)}
}

func TestCrashMendsAFailedDriver(t *testing.T) {
	for _, manual := range []bool{false, true} {
		var opts []processortest.Option
		if manual {
			opts = append(opts, processortest.CommitManually())
		}
		d := processortest.New(t, build(t, counts), opts...)
		in := processortest.Input(d, Words)
		in.PipeRecord(record("ant"))
		err := in.TryPipe(record("boom"))
		if !errors.Is(err, processor.ErrPanic) {
			t.Fatal(err)
		}
		if err := in.TryPipe(record("bee")); !errors.Is(err, processor.ErrPanic) {
			t.Fatalf("a failed driver goes on: %v", err)
		}
		d.Crash()
		in.PipeRecord(record("ant"))
		if manual {
			d.Commit()
		}
		want := map[string]int64{"ant": 2}
		if got := processortest.Map(processortest.Output(d, Counts)); !reflect.DeepEqual(got, want) {
			t.Errorf("manual=%t: %v, want %v", manual, got, want)
		}
	}
}

func TestEndlessTopologyIsFound(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds, and -short was asked for")
	}
	d := processortest.New(t, build(t, func(b *processor.Builder) { stream.To(stream.From(b, Words), Words) }))
	if err := processortest.Input(d, Words).TryPipe(record("x")); !errors.Is(err, processortest.ErrEndless) {
		t.Fatal(err)
	}
}

// A record that is written to an input of its own task is processed once the record that led to it is done.
func TestRecursionWaitsForTheRecord(t *testing.T) {
	d := processortest.New(t, build(t, func(b *processor.Builder) {
		words := stream.From(b, Words)
		again := stream.Map(stream.Filter(words, func(_, v string) bool { return len(v) < 4 }),
			func(_, v string) string { return "again-" + v })
		stream.To(again, Words)
		stream.To(words, Out)
	}))
	processortest.Input(d, Words).Pipe("k", "one")
	var got []string
	for _, r := range processortest.Output(d, Out).Read() {
		got = append(got, r.Value)
	}
	if want := []string{"one", "again-one"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestSkippedAndDeadLetters(t *testing.T) {
	d := processortest.New(t, build(t, counts), processortest.Application("app"),
		processortest.OnErrors(processor.Skip(), processor.DeadLetter("dead")))
	in := processortest.Input(d, Words)
	for _, v := range []string{"ant", "boom", "ant"} {
		in.PipeRecord(record(v))
	}
	if s := d.Skipped(); len(s) != 1 || s[0].Offset != 1 || s[0].Topic != "words" {
		t.Errorf("skipped %v", s)
	}
	if dead := d.Raw("dead"); len(dead) != 1 || string(dead[0].Value) != "boom" {
		t.Errorf("dead letters %+v", dead)
	}
	if n := len(d.Raw("app-by-word-repartition")); n != 2 {
		t.Errorf("%d records went through the repartition topic", n)
	}
	if d.Dropped(processor.DropFailed) != 1 {
		t.Errorf("dropped %d", d.Dropped(processor.DropFailed))
	}
	if got := processortest.Map(processortest.Output(d, Counts))["ant"]; got != 2 {
		t.Errorf("ant=%d", got)
	}
}

func TestPipeRawChoosesByTime(t *testing.T) {
	d := processortest.New(t, build(t, func(b *processor.Builder) {
		stream.To(stream.Merge(stream.From(b, Words), stream.From(b, Other)), Out)
	}))
	var raw []processor.RawRecord
	for i, name := range []string{"words", "other"} {
		in := processortest.Input(d, Words)
		if i == 1 {
			in = processortest.Input(d, Other)
		}
		for j := range 2 {
			r := processor.Record[string, string]{Key: name, Value: fmt.Sprint(j), Time: time.UnixMilli(int64(10*j + 1 - i))}
			enc, err := in.Encode(r)
			if err != nil {
				t.Fatal(err)
			}
			raw = append(raw, enc)
		}
	}
	if err := d.PipeRaw(raw...); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range processortest.Output(d, Out).Read() {
		got = append(got, r.Key+r.Value)
	}
	if want := []string{"other0", "words0", "other1", "words1"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestCloseIsSeen(t *testing.T) {
	closed := 0
	d := processortest.New(t, build(t, func(b *processor.Builder) {
		stream.Process(stream.From(b, Words), func() processor.Processor[string, string, string, string] {
			return &closer{closed: &closed}
		})
	}))
	d.Crash()
	d.Close()
	if closed != 1 {
		t.Errorf("%d processors were closed: a crash closes none, Close all", closed)
	}
}

type closer struct{ closed *int }

func (*closer) Process(*processor.Context[string, string], processor.Record[string, string]) error {
	return nil
}
func (p *closer) Close() error { *p.closed++; return nil }
