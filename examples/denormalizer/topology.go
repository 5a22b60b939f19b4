package main

import (
	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
)

// AppID is the application's id: the name of its consumer group and the prefix of its changelog topics.
const AppID = "denormalizer"

// DeadLetters receives records of the monolog that are no assets, so that one of them does not stop the publishing.
const DeadLetters = "monolog-dead-letters"

// Everything that outlives a deployment.
var (
	// Monolog holds every asset that the newsroom ever made, by its id. It has one partition, because the order between
	// an asset and what it refers to is what everything else rests on, and no end of retention.
	Monolog = processor.NewTopic("monolog", serde.String, serde.JSON[Asset]())
	// Denormalized holds the published articles, whole, by their ids. Only the versions of one article need an order, so
	// it is partitioned, and only the newest counts, so it is compacted.
	Denormalized = processor.NewTopic("denormalized", serde.String, serde.JSON[Document]())

	// Assets is the newest of each asset.
	Assets = state.KeyValue("assets", serde.String, serde.JSON[Newest]())
	// UsedBy has a row for each pair of an asset and one that refers to it. The keys of one asset's users lie side by
	// side, so that a tag with a hundred thousand articles is a range and not one huge value.
	UsedBy = state.KeyValue("used-by", edgeSerde, serde.None)
	// Hashes has, for each article that is published, the hash of the document that the denormalised topic holds.
	Hashes = state.KeyValue("hashes", serde.String, serde.Bytes)
	// Pending has the assets whose users are still to be looked at. It holds at most a row for each asset.
	Pending = state.KeyValue("pending", serde.String, serde.JSON[Visit]())
)

// edge is a key of UsedBy: an asset that is used, and what uses it.
type edge = serde.Pair[string, string]

var edgeSerde = serde.Tuple2(serde.String, serde.String)

// Build declares the topology.
func Build(b *processor.Builder) { BuildWith(DefaultLimits)(b) }

// BuildWith declares the topology with other limits.
func BuildWith(l Limits) func(b *processor.Builder) {
	return func(b *processor.Builder) {
		articles := stream.Process(stream.From(b, Monolog), func() processor.Processor[string, Asset, string, Document] {
			return &denormalizer{limits: l}
		}, Assets, UsedBy, Hashes, Pending)
		stream.To(articles, Denormalized)
	}
}

// topics are created by EnsureTopics when they do not exist.
func topics() []processor.TopicSetup {
	return []processor.TopicSetup{
		{Name: Monolog.Name(), Partitions: 1, Config: map[string]string{
			"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1",
		}},
		{Name: Denormalized.Name(), Partitions: 4, Config: map[string]string{"cleanup.policy": "compact"}},
		{Name: DeadLetters, Partitions: 1, Config: map[string]string{"cleanup.policy": "delete"}},
	}
}
