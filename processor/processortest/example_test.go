package processortest_test

import (
	"fmt"
	"slices"

	"tailrace.dev/processor"
	"tailrace.dev/processor/processortest"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

// Mail is an event: a message that was sent, or one that its recipient has read.
type Mail struct {
	ID, Read string
	To       []string
}

var (
	Events  = processor.NewTopic("mail-events", serde.String, serde.JSON[Mail]())        // keyed by who acted
	ByUser  = processor.NewRepartition("mail-by-user", serde.String, serde.JSON[Mail]()) // keyed by whose box it is
	Inboxes = state.KeyValue("inboxes", serde.String, serde.JSON[[]string]())            // unread messages by user
	Unread  = processor.NewTopic("unread", serde.String, serde.Int64)
)

func Build(b *processor.Builder) {
	events := stream.From(b, Events)
	mail := stream.Repartition(stream.FlatRekey(events, func(actor string, m Mail) []string {
		if m.Read != "" {
			return []string{actor}
		}
		return m.To
	}), ByUser)
	inbox := stream.Aggregate(stream.Group(mail), Inboxes, func(unread []string, _ string, m Mail) []string {
		unread = slices.DeleteFunc(unread, func(id string) bool { return id == m.ID || id == m.Read })
		if m.ID != "" {
			unread = append(unread, m.ID)
		}
		return unread
	})
	table.To(table.Map(inbox, func(_ string, unread []string) int64 { return int64(len(unread)) }), Unread)
}

// The inbox of the README, driven without a broker.
func Example() {
	topology, err := processor.Build(Build)
	if err != nil {
		fmt.Println(err)
		return
	}
	d := processortest.New(processortest.Panics, topology)
	in := processortest.Input(d, Events)
	in.Pipe("ann", Mail{ID: "m1", To: []string{"bob", "cy"}})
	in.Pipe("ann", Mail{ID: "m2", To: []string{"bob"}})
	in.Pipe("bob", Mail{Read: "m1"})
	in.Pipe("bob", Mail{Read: "m1"}) // twice, as networks do
	d.Crash()                        // what was committed is still there
	for _, r := range processortest.Output(d, Unread).Read() {
		fmt.Println(r.Key, r.Value)
	}
	// Output:
	// bob 1
	// cy 1
	// bob 2
	// bob 1
	// bob 1
}
