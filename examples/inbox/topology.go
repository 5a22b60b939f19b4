package main

import (
	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

// application is the name of the consumer group, and the prefix of the internal topics.
const application = "inbox"

// Everything that outlives a process: topics, the repartition, the store.
var (
	// Events is the log: everything that people did, keyed by who did it.
	Events = processor.NewTopic("mail-events", serde.String, serde.JSON[Event]())
	// ByRecipient brings each event to the partition of each user whose inbox it changes.
	ByRecipient = processor.NewRepartition("mail-by-recipient", serde.String, serde.JSON[Event]())
	// Mailboxes is the state.
	Mailboxes = state.KeyValue("mailboxes", serde.String, serde.JSON[Mailbox]())
	// Inboxes and UnreadCounts are the views, keyed by user. They are compacted: each keeps a user's newest value.
	Inboxes      = processor.NewTopic("inboxes", serde.String, serde.JSON[Inbox]())
	UnreadCounts = processor.NewTopic("unread", serde.String, serde.Int64)
)

// Build declares the topology: one fold, of which both views are made.
func Build(b *processor.Builder) {
	events := stream.FilterRecord(stream.From(b, Events), wellFormed)
	mail := stream.Repartition(stream.FlatRekey(events, recipients), ByRecipient)
	mailboxes := stream.Aggregate(stream.Group(mail), Mailboxes, Mailbox.apply)
	table.To(table.Map(mailboxes, inboxOf), Inboxes)
	table.To(table.Map(mailboxes, unreadOf), UnreadCounts)
}

func inboxOf(_ string, m Mailbox) Inbox  { return m.inbox() }
func unreadOf(_ string, m Mailbox) int64 { return m.unread() }

// partitions is how many partitions the topics get when this program creates them.
const partitions = 4

// topics returns how to create the topics.
func topics() []processor.TopicSetup {
	compacted := map[string]string{"cleanup.policy": "compact"}
	return []processor.TopicSetup{
		// The log is the truth and is kept for good.
		{Name: Events.Name(), Partitions: partitions, Config: map[string]string{"retention.ms": "-1"}},
		{Name: Inboxes.Name(), Partitions: partitions, Config: compacted},
		{Name: UnreadCounts.Name(), Partitions: partitions, Config: compacted},
	}
}
