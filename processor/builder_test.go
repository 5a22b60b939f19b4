package processor_test

import (
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

var (
	ByValue = processor.NewRepartition("by-value", serde.String, serde.String)
	Ints    = processor.NewTopic("ints", serde.Int64, serde.String)
	Ints32  = processor.NewTopic("ints-32", serde.OrderedInt64, serde.String)
)

func value(_, v string) string { return v }

func sum(n int64, _, _ string) int64 { return n + 1 }

func passOn() processor.Processor[string, string, string, string] {
	return processor.ProcessorFunc[string, string, string, string](
		func(c *processor.Context[string, string], r processor.Record[string, string]) error {
			return c.Forward(r)
		})
}

// Each mistake alone: what the error says behind its place.
func TestBuildFindsMistakes(t *testing.T) {
	var (
		noString func(string, string) string
		noBool   func(string, string) bool
		noTable  *table.Table[string, string]
		noStream *stream.Stream[string, string]
		noTopic  *processor.Topic[string, string]
		noVia    *processor.Repartition[string, string]
		noStore  *state.KeyValueSpec[string, string]
	)
	cases := []struct {
		name    string
		declare func(b *processor.Builder)
		want    []string // one for each mistake, in order
	}{
		{"nothing", func(*processor.Builder) {}, []string{"reads no topic"}},
		{"group after rekey", func(b *processor.Builder) {
			stream.Count(stream.Group(stream.Rekey(stream.From(b, P1), value)), Counts)
		}, []string{"group: the key was changed by the rekey at processor/builder_test.go:"}},
		{"group after rekey, and what follows from it", func(b *processor.Builder) {
			counts := stream.Count(stream.Group(stream.Rekey(stream.From(b, P1), value)), Counts)
			table.Join(counts, table.From(b, P2, Latest), func(string, int64, string) string { return "" })
		}, []string{"group: the key was changed"}},
		{"group and join after rekey", func(b *processor.Builder) {
			s := stream.Rekey(stream.From(b, P1), value)
			stream.Count(stream.Group(s), Counts)
			stream.Join(s, table.From(b, P2, Latest), func(string, string, string) string { return "" })
		}, []string{"group: the key was changed", "join: the key was changed"}},
		{"to-table after process", func(b *processor.Builder) {
			stream.ToTable(stream.Process(stream.From(b, P1), passOn), Latest)
		}, []string{"to-table: the key was changed by the process at"}},
		{"rekey far above", func(b *processor.Builder) {
			s := stream.Filter(stream.Map(stream.Rekey(stream.From(b, P1), value), value),
				func(string, string) bool { return true })
			stream.Group(stream.Merge(s, stream.From(b, P2)))
		}, []string{"group: the key was changed by the rekey at"}},
		{"join of different key serdes", func(b *processor.Builder) {
			a := table.From(b, Ints, state.KeyValue("a", serde.Int64, serde.String))
			c := table.From(b, Ints32, state.KeyValue("c", serde.Int64, serde.String))
			table.Join(a, c, func(int64, string, string) string { return "" })
		}, []string{"join: the keys of the two sides are encoded differently (int64 and "}},
		{"group of merged different key serdes", func(b *processor.Builder) {
			s := stream.Merge(stream.From(b, Ints), stream.From(b, Ints32))
			stream.Count(stream.Group(stream.Map(s, func(_ int64, v string) string { return v })),
				state.KeyValue("a", serde.Int64, serde.Int64))
		}, []string{"group: the merge at processor/builder_test.go:"}},
		{"two stores of one name", func(b *processor.Builder) {
			g := stream.Group(stream.From(b, P1))
			stream.Count(g, Counts)
			stream.Count(g, state.KeyValue("counts", serde.String, serde.Int64))
		}, []string{`count: store name "counts" is already used by another spec at processor/builder_test.go:`}},
		{"one store written twice", func(b *processor.Builder) {
			g := stream.Group(stream.From(b, P1))
			stream.Count(g, Counts)
			stream.Aggregate(g, Counts, sum)
		}, []string{`aggregate: store "counts" is already written by the count at processor/builder_test.go:`}},
		{"two topics of one name", func(b *processor.Builder) {
			stream.From(b, P1)
			stream.To(stream.From(b, P2), processor.NewTopic("p1", serde.String, serde.String))
		}, []string{`sink: topic "p1" is declared twice`}},
		{"a topic and its changed copy", func(b *processor.Builder) {
			stream.From(b, P1)
			stream.From(b, P1.StartingAt(processor.Latest))
		}, []string{`source: topic "p1" is declared twice`}},
		{"a repartition with a topic's name", func(b *processor.Builder) {
			stream.Repartition(stream.From(b, P1), processor.NewRepartition("p1", serde.String, serde.String))
		}, []string{`sink: topic "p1" is declared twice`, `source: topic "p1" is declared twice`}},
		{"a repartition that nothing writes", func(b *processor.Builder) {
			processor.FromRepartition(b, ByValue)
		}, []string{`source: repartition topic "by-value" is read, but nothing writes it`}},
		{"a repartition that nothing reads", func(b *processor.Builder) {
			processor.ToRepartition(stream.From(b, P1).Node(), ByValue)
		}, []string{`sink: repartition topic "by-value" is written, but nothing reads it`}},
		{"repartitions of different counts together", func(b *processor.Builder) {
			a := stream.Repartition(stream.From(b, P1), ByValue.WithPartitions(3))
			c := stream.Repartition(stream.From(b, P2),
				processor.NewRepartition("other", serde.String, serde.String).WithPartitions(4))
			stream.Merge(a, c)
		}, []string{`source: repartition topics "by-value" (3 partitions) and "other" (4) are processed together`}},
		{"bad names", func(b *processor.Builder) {
			s := stream.From(b, processor.NewTopic("a topic", serde.String, serde.String))
			stream.Repartition(s, processor.NewRepartition("..", serde.String, serde.String))
			stream.ToTable(s, state.KeyValue("a/store", serde.String, serde.String))
			stream.Split(s).When("a branch\"", func(string, string) bool { return true })
		}, []string{
			`topic name "a topic" is not valid`, `repartition topic name ".." is not valid`,
			`repartition topic name ".." is not valid`, `store name "a/store" is not valid`,
			`branch name "a branch\"" is not valid`,
		}},
		{"no partitions", func(b *processor.Builder) {
			stream.Repartition(stream.From(b, P1), ByValue.WithPartitions(0))
		}, []string{"0 partitions: give 1 to 100000", "0 partitions: give 1 to 100000"}},
		{"nil serdes", func(b *processor.Builder) {
			stream.ToTable(stream.From(b, processor.NewTopic[string, string]("t", nil, serde.String)),
				state.KeyValue[string, string]("s", serde.String, nil))
		}, []string{`topic "t": a serde is nil`, `store "s": a serde is nil`}},
		{"nil functions of streams", func(b *processor.Builder) {
			s := stream.From(b, P1)
			stream.Filter(s, noBool)
			stream.FilterNot(s, noBool)
			stream.FilterRecord(s, nil)
			stream.Map(s, noString)
			stream.FlatMap[string, string, string](s, nil)
			stream.MapRecord[string, string, string, string](s, nil)
			stream.FlatMapRecord[string, string, string, string](s, nil)
			stream.Rekey(s, noString)
			stream.RekeyRecord[string, string, string](s, nil)
			stream.FlatRekey[string, string, string](s, nil)
			stream.Peek(s, nil)
			stream.PeekRecord(s, nil)
			stream.ForEach(s, nil)
			stream.Split(s).When("a", nil)
			stream.ToChosen(s, nil)
			stream.Process[string, string, string, string](s, nil)
			stream.ProcessValues[string, string, string](s, nil)
			stream.Aggregate[string, string, string, int64](stream.Group(s), Counts, nil)
			stream.Reduce[string, string, string](stream.Group(s), Latest, nil)
		}, []string{
			"filter:", "filter-not:", "filter-record:", "map:", "flat-map:", "map-record:", "flat-map-record:", "rekey:",
			"rekey-record:", "flat-rekey:", "peek:", "peek-record:", "for-each:", `split: the function of branch "a" is nil`,
			"sink:", "process:", "process-values:", "aggregate:", "reduce:",
		}},
		{"nil functions of tables", func(b *processor.Builder) {
			s := table.From(b, P1, Latest)
			table.Filter(s, noBool)
			table.FilterNot(s, noBool)
			table.Map(s, noString)
			table.Join[string, string, string, string](s, s, nil)
			table.LeftJoin[string, string, string, string](s, s, nil)
			stream.Join[string, string, string, string](stream.From(b, P2), s, nil)
			stream.LeftJoin[string, string, string, string](stream.From(b, P2), s, nil)
		}, []string{"filter:", "filter-not:", "map:", "join:", "left-join:", "join:", "left-join:"}},
		{"nil streams, tables, topics and stores", func(b *processor.Builder) {
			s := stream.From(b, P1)
			stream.Merge(s, noStream)
			stream.Join(s, noTable, func(string, string, string) string { return "" })
			table.Join(table.From(b, P2, Latest), noTable, func(string, string, string) string { return "" })
			stream.To(s, noTopic)
			stream.From(b, noTopic)
			stream.Repartition(s, noVia)
			stream.ToTable(s, noStore)
			stream.Process(s, passOn, nil)
			stream.ToChosen(s, func(processor.Record[string, string]) *processor.Topic[string, string] { return nil }, noTopic)
		}, []string{
			"merge: a stream is nil", "join: the table is nil", "join: the right table is nil", "sink: the topic is nil",
			"source: the topic is nil", "repartition: the repartition topic is nil", "source: the repartition topic is nil",
			"to-table: a store is nil", "process: a store is nil", "sink: a topic is nil",
		}},
		{"branches", func(b *processor.Builder) {
			sp := stream.Split(stream.From(b, P1))
			sp.When("a", func(string, string) bool { return true })
			sp.When("a", func(string, string) bool { return true })
			sp.Otherwise("rest")
			sp.When("late", func(string, string) bool { return true })
		}, []string{`split: branch "a" is declared twice`, `split: branch "late" comes after Otherwise`}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := processor.Build(c.declare)
			if err == nil {
				t.Fatal("it builds")
			}
			lines := strings.Split(err.Error(), "\n")
			noun := "mistakes"
			if len(c.want) == 1 {
				noun = "mistake"
			}
			if first := fmt.Sprintf("processor: %d %s in the topology:", len(c.want), noun); lines[0] != first {
				t.Fatalf("want %q:\n%v", first, err)
			}
			for i, w := range c.want {
				if !strings.Contains(lines[i+1], w) {
					t.Errorf("mistake %d: %s\ndoes not say %q", i, lines[i+1], w)
				}
				if c.name != "nothing" && !strings.HasPrefix(lines[i+1], "processor/builder_test.go:") {
					t.Errorf("mistake %d: %s\ndoes not start with its place", i, lines[i+1])
				}
			}
		})
	}
}

// All mistakes come at once, each with the line of the call that made it.
func TestBuildErrorsNameTheLineOfTheCall(t *testing.T) {
	_, file, line, _ := runtime.Caller(0)
	_, err := processor.Build(func(b *processor.Builder) {
		s := stream.Rekey(stream.From(b, P1), value) // line + 2
		g := stream.Group(s)                         // line + 3
		stream.
			Count(g, Counts) // line + 5 (the line of the selector)
		helper(s)
	})
	if !strings.HasSuffix(file, "processor/builder_test.go") {
		t.Fatal(file)
	}
	var places []string
	for _, l := range strings.Split(err.Error(), "\n")[1:] {
		places = append(places, regexp.MustCompile(`^\S+`).FindString(l))
	}
	want(t, "places", places, []string{
		fmt.Sprintf("processor/builder_test.go:%d:", line+3), fmt.Sprintf("processor/builder_test.go:%d:", helperLine),
	})
	text := fmt.Sprintf("by the rekey at processor/builder_test.go:%d, so", line+2)
	if !strings.Contains(err.Error(), text) {
		t.Errorf("%v\ndoes not say %q", err, text)
	}
	var e *processor.BuildError
	if !errors.As(err, &e) || e.Operator != "group" || e.Problem == "" {
		t.Errorf("%+v", e)
	}
}

var helperLine int

// helper is a function of the user's: mistakes in it are reported there.
func helper(s *stream.Stream[string, string]) {
	_, _, line, _ := runtime.Caller(0)
	helperLine = line + 2
	stream.ToTable(s, Latest)
}

func TestBuildOnce(t *testing.T) {
	b := processor.NewBuilder()
	stream.From(b, P1)
	if _, err := b.Build(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Build(); err == nil {
		t.Fatal("a builder builds twice")
	}
}

func TestSubTopologies(t *testing.T) {
	shared := passOn
	topology := build(t, func(b *processor.Builder) {
		// Joined through an operator; named after the smallest of the topics.
		stream.Join(stream.From(b, P3), table.From(b, P2, Latest), func(string, string, string) string { return "" })
		// Parted by a repartition.
		stream.Count(stream.Group(stream.Repartition(stream.Rekey(stream.From(b, P3), value), ByValue)), Counts)
		// Joined through a store that both use.
		none := func() processor.Processor[string, int64, string, string] { return nil }
		stream.Process(stream.From(b, Numbers), none, Lists)
		stream.Process(stream.From(b, P1), shared, Lists)
	})
	want(t, "names", topology.SubTopologies(), []string{"by-value", "numbers", "p2"})
	want(t, "sources", topology.Sources("app", "by-value"), []string{"app-by-value-repartition"})
	want(t, "sources", topology.Sources("app", "numbers"), []string{"numbers", "p1"})
	want(t, "sources", topology.Sources("app", "p2"), []string{"p2", "p3"})
	want(t, "sources of none", topology.Sources("app", "p3"), nil)
	if s := topology.Stores("p2"); len(s) != 1 || s[0] != state.AnySpec(Latest) {
		t.Errorf("stores %v", s)
	}
}

func TestFingerprint(t *testing.T) {
	print := func(declare ...func(*processor.Builder)) string { return build(t, declare...).Fingerprint() }
	plain := func(b *processor.Builder) {
		stream.Count(stream.Group(stream.From(b, P1)), Counts)
	}
	viaA := func(b *processor.Builder) {
		stream.To(stream.Repartition(stream.Rekey(stream.From(b, P1), value), ByValue), Out)
	}
	viaB := func(b *processor.Builder) {
		stream.To(stream.Repartition(stream.From(b, P1), processor.NewRepartition("b", serde.String, serde.String)), Out)
	}
	base := print(plain)
	same := map[string]string{
		"again": print(plain),
		"an operator in between": print(func(b *processor.Builder) {
			stream.Count(stream.Group(stream.Filter(stream.From(b, P1), func(string, string) bool { return true })), Counts)
		}),
		"a sink": print(func(b *processor.Builder) {
			stream.To(stream.From(b, P1), Out)
			plain(b)
		}),
		"another way of aggregating": print(func(b *processor.Builder) {
			stream.Aggregate(stream.Group(stream.From(b, P1)), Counts, sum)
		}),
	}
	for what, f := range same {
		if f != base {
			t.Errorf("%s changes the fingerprint", what)
		}
	}
	differ := map[string]string{
		"another source": print(func(b *processor.Builder) { stream.Count(stream.Group(stream.From(b, P2)), Counts) }),
		"another store": print(func(b *processor.Builder) {
			stream.Count(stream.Group(stream.From(b, P1)), state.KeyValue("n", serde.String, serde.Int64))
		}),
		"another encoding of the store": print(func(b *processor.Builder) {
			stream.Count(stream.Group(stream.From(b, P1)), state.KeyValue("counts", serde.String, serde.OrderedInt64))
		}),
		"no store":      print(func(b *processor.Builder) { stream.From(b, P1) }),
		"a repartition": print(plain, viaA),
	}
	for what, f := range differ {
		if f == base {
			t.Errorf("%s does not change the fingerprint", what)
		}
	}
	if print(viaA, viaB) != print(viaB, viaA) {
		t.Error("the order of declaration changes the fingerprint")
	}
	// Fixed for ever: directories and control topics remember it.
	if want := "0ec944d8ec5d7e10025b7ea8beea98a5"; base != want {
		t.Errorf("fingerprint %s, want %s", base, want)
	}
}
