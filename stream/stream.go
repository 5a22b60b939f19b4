// Package stream holds the operators on streams of records.
//
// All operators are functions, so that a stream can lead to one of other types. A lambda is a pure function of what
// it is given, and must not change it in place; what may fail, wait or keep state of its own is a processor.Processor:
// see Process.
//
// Functions of a key and a value are not called for tombstones: Map, FlatMap, Filter and Peek pass those on, Rekey,
// FlatRekey and Split drop and count them. The functions whose name ends in Record see everything.
package stream

import (
	"tailrace.dev/processor"
	"tailrace.dev/state"
	"tailrace.dev/table"
)

// Stream is a stream of records under construction.
type Stream[K, V any] struct {
	node *processor.Node[K, V]
}

// New makes a stream of a node. It is for writing operators; see processor.Derive.
func New[K, V any](node *processor.Node[K, V]) *Stream[K, V] { return &Stream[K, V]{node: node} }

// Node returns the node at which the stream's records come out. It is for writing operators.
func (s *Stream[K, V]) Node() *processor.Node[K, V] { return s.node }

// From reads a topic as a stream. A topic that is read in several places is one input.
func From[K, V any](b *processor.Builder, topic *processor.Topic[K, V]) *Stream[K, V] {
	return New(processor.FromTopic(b, topic))
}

// To writes the stream to a topic, each record to the partition of its key by Kafka's default hash. The record's time
// and headers go with it.
func To[K, V any](s *Stream[K, V], topic *processor.Topic[K, V]) { processor.ToTopic(s.node, topic) }

// ToChosen writes each record to the topic that choose returns for it, which must be one of among; where it returns
// nil, the record is dropped and counted. (Kafka Streams: KStream#to with a TopicNameExtractor.)
func ToChosen[K, V any](
	s *Stream[K, V], choose func(r processor.Record[K, V]) *processor.Topic[K, V], among ...*processor.Topic[K, V],
) {
	processor.ToChosen(s.node, choose, among...)
}

// Through writes the stream to a topic of the user's and reads it back, so that the records are on the partition of
// their key and others may read them too. Retention is the topic's owner's choice.
func Through[K, V any](s *Stream[K, V], topic *processor.Topic[K, V]) *Stream[K, V] {
	processor.ToTopic(s.node, topic)
	return New(processor.FromTopic(s.node.Builder(), topic))
}

// Repartition writes the stream to an internal topic and reads it back, so that the records are on the partition of
// their key. Records without a key are dropped and counted. (Kafka Streams: KStream#repartition.)
func Repartition[K, V any](s *Stream[K, V], r *processor.Repartition[K, V]) *Stream[K, V] {
	processor.ToRepartition(s.node, r)
	return New(processor.FromRepartition(s.node.Builder(), r))
}

// Merge takes the records of several streams as they come: in order within each, in no order between them. (Kafka
// Streams: KStream#merge.)
func Merge[K, V any](first *Stream[K, V], more ...*Stream[K, V]) *Stream[K, V] {
	nodes := make([]*processor.Node[K, V], 0, len(more))
	for _, s := range more {
		if s == nil {
			first.node.Builder().Fail("merge", "a stream is nil")
			continue
		}
		nodes = append(nodes, s.node)
	}
	return New(processor.Combine(processor.Operator{Kind: "merge"}, first.node, nodes...))
}

// Process passes each record to a Processor. newP is called for each task and must return a new value each time;
// stores are those that the processor opens. The keys that it forwards are taken to have changed: use ProcessValues for
// a processor that keeps them.
func Process[K, V, K2, V2 any](
	s *Stream[K, V], newP func() processor.Processor[K, V, K2, V2], stores ...state.AnySpec,
) *Stream[K2, V2] {
	op := processor.Operator{Kind: "process", Stores: stores, Rekeys: true}
	return New(processor.ProcessWith(s.node, op, newP))
}

// ProcessValues is Process for a processor that forwards records under the key that it was given, so that its result can
// be grouped and joined without a Repartition. That it does is checked: forwarding under another key is an error of the
// record. (Kafka Streams: KStream#processValues.)
func ProcessValues[K comparable, V, V2 any](
	s *Stream[K, V], newP func() processor.Processor[K, V, K, V2], stores ...state.AnySpec,
) *Stream[K, V2] {
	op := processor.Operator{Kind: "process-values", Stores: stores}
	return New(processor.ProcessKeyed(s.node, op, newP))
}

// Changes turns a table back into the stream of its changes: each new value, and a tombstone for each deletion. (Kafka
// Streams: KTable#toStream.)
func Changes[K, V any](t *table.Table[K, V]) *Stream[K, V] { return New(table.Values(t)) }

// ToTable makes a table of the stream, kept in the given store: the newest record of a key is its value, and a
// tombstone deletes it. Records without a key are dropped and counted. (Kafka Streams: KStream#toTable.)
func ToTable[K, V any](s *Stream[K, V], store *state.KeyValueSpec[K, V]) *table.Table[K, V] {
	return table.Materialize(s.node, "to-table", store)
}
