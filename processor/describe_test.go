package processor_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

type event struct {
	ID   string
	To   []string
	Read bool
}

type mailbox struct{ Unread map[string]bool }

func (m mailbox) apply(_ string, e event) mailbox {
	if m.Unread == nil {
		m.Unread = make(map[string]bool)
	}
	if e.Read {
		delete(m.Unread, e.ID)
	} else {
		m.Unread[e.ID] = true
	}
	return m
}

func recipients(actor string, e event) []string {
	if e.Read {
		return []string{actor}
	}
	return e.To
}

var (
	MailEvents = processor.NewTopic("mail-events", serde.String, serde.JSON[event]())
	ByUser     = processor.NewRepartition("mail-by-user", serde.String, serde.JSON[event]())
	Unread     = processor.NewTopic("unread", serde.String, serde.Int64)
	Inboxes    = state.KeyValue("inboxes", serde.String, serde.JSON[mailbox]())
)

func inbox(b *processor.Builder) {
	events := stream.From(b, MailEvents)
	mail := stream.Repartition(stream.FlatRekey(events, recipients), ByUser)
	box := stream.Aggregate(stream.Group(mail), Inboxes, mailbox.apply)
	table.To(table.Map(box, func(_ string, m mailbox) int64 { return int64(len(m.Unread)) }), Unread)
}

func operators(b *processor.Builder) {
	yes := func(string, string) bool { return true }
	words := stream.From(b, P1)
	for range 2 {
		split := stream.Split(words)
		stream.To(split.When("short", yes), Out)
		stream.ForEach(split.Otherwise("rest"), func(string, string) {})
	}
	rows := table.From(b, P2, Latest)
	joined := stream.Join(words, table.Join(rows, rows, func(string, string, string) string { return "" }),
		func(string, string, string) string { return "" })
	stream.ToChosen(stream.Process(joined, passOn, Lists, Lists),
		func(processor.Record[string, string]) *processor.Topic[string, string] { return nil }, P2, P3)
}

func TestDescribe(t *testing.T) {
	for file, declare := range map[string]func(*processor.Builder){"inbox": inbox, "operators": operators} {
		topology := build(t, declare)
		datadriven.RunTest(t, "testdata/"+file, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "describe":
				return topology.String()
			case "mermaid":
				return topology.Mermaid()
			case "dot":
				return topology.DOT()
			case "topics":
				var b strings.Builder
				for _, sub := range topology.SubTopologies() {
					fmt.Fprintf(&b, "%s reads %q", sub, topology.Sources("app", sub))
					for _, s := range topology.Stores(sub) {
						fmt.Fprintf(&b, ", keeps %q in %q", s.Name(), processor.ChangelogTopic("app", s.Name()))
					}
					b.WriteString("\n")
				}
				return b.String()
			}
			d.Fatalf(t, "unknown command %q", d.Cmd)
			return ""
		})
	}
}

func TestDescribedNamesAreUnique(t *testing.T) {
	seen := make(map[string]bool)
	for _, line := range strings.Split(build(t, operators).String(), "\n") {
		var name string
		for _, kind := range []string{"Source: ", "Processor: ", "Sink: "} {
			if _, rest, ok := strings.Cut(line, kind); ok {
				name, _, _ = strings.Cut(rest, " ")
			}
		}
		if name != "" && seen[name] {
			t.Errorf("%q is there twice", name)
		}
		seen[name] = true
	}
}

func ExampleBuild() {
	_, err := processor.Build(func(b *processor.Builder) {
		byWord := stream.Rekey(stream.From(b, P1), func(_, v string) string { return v })
		stream.Count(stream.Group(byWord), Counts) // not on the partition of its key
		stream.To(byWord, nil)
	})
	for _, line := range strings.Split(err.Error(), "\n") { // all mistakes at once, each with its place
		_, what, _ := strings.Cut(line, ": ")
		what, _, _ = strings.Cut(what, " by the ")
		fmt.Println(what)
	}
	// Output:
	// 2 mistakes in the topology:
	// group: the key was changed
	// sink: the topic is nil
}

func ExampleTopology_String() {
	topology, err := processor.Build(func(b *processor.Builder) {
		table.To(stream.Count(stream.Group(stream.From(b, P1)), Counts), Numbers)
	})
	if err != nil {
		panic(err)
	}
	fmt.Print(topology) // as Kafka Streams describes its own, so that tools which draw that draw this
	// Output:
	// Topologies:
	//    Sub-topology: 0 (p1)
	//     Source: source-p1 (topics: [p1])
	//       --> count-1
	//     Processor: count-1 (stores: [counts])
	//       --> changes-2
	//       <-- source-p1
	//     Processor: changes-2 (stores: [])
	//       --> sink-numbers
	//       <-- count-1
	//     Sink: sink-numbers (topic: numbers)
	//       <-- changes-2
}

func ExampleTopology_Mermaid() {
	topology, err := processor.Build(func(b *processor.Builder) {
		table.To(stream.Count(stream.Group(stream.From(b, P1)), Counts), Numbers)
	})
	if err != nil {
		panic(err)
	}
	fmt.Print(topology.Mermaid())
	// Output:
	// flowchart LR
	//   n0[["p1"]]
	//   n1[["numbers"]]
	//   subgraph s0["p1"]
	//     n2("count-1")
	//     n3("changes-2")
	//     n4[("counts")]
	//   end
	//   n0 --> n2
	//   n2 --> n3
	//   n2 -.- n4
	//   n3 --> n1
}
