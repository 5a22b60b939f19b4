package main

import (
	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/table"
)

// PartitionedAppID is the application's id in the partitioned form.
const PartitionedAppID = "denormalizer-partitioned"

// The partitioned form: what the monolog holds is divided into two topics, so that any number of members share the
// work. There is no order between an article and its assets any more, and none is needed. What a topic says last about
// an id is its newest state, so whoever writes must keep the versions of one id in order.
var (
	// ArticlesTopic holds the newest of each article, by its id.
	ArticlesTopic = processor.NewTopic("articles", serde.String, serde.JSON[Asset]())
	// AssetsTopic holds the newest of everything else, by its id.
	AssetsTopic = processor.NewTopic("assets", serde.String, serde.JSON[Asset]())
	// DenormalizedPartitioned holds the published articles with what they refer to, by their ids.
	DenormalizedPartitioned = processor.NewTopic("denormalized-partitioned", serde.String, serde.JSON[Document]())

	// ArticleRows is the newest of each article of a partition.
	ArticleRows = state.KeyValue("article-rows", serde.String, serde.JSON[Asset]())
	// AssetRows is the newest of each asset of a partition.
	AssetRows = state.KeyValue("asset-rows", serde.String, serde.JSON[Asset]())
	// ArticleAssets takes the question of an article to the partition of an asset, and the answers back.
	ArticleAssets = table.NewLink("article-assets", serde.String, serde.String, serde.JSON[Asset]()).
			WithMaxReferences(maxRefs)
)

// BuildPartitioned declares the partitioned form: a published article is written again when it or one of the assets
// that it refers to changes. That is one level of references: of an image's photographer, a document counts only that
// there is one. For another level, join the assets with what they refer to first, and the articles with the result,
// kept by table.Store.
func BuildPartitioned(b *processor.Builder) {
	articles := table.From(b, ArticlesTopic, ArticleRows)
	assets := table.From(b, AssetsTopic, AssetRows)
	published := table.Filter(articles, func(_ string, a Asset) bool { return a.Published })
	table.To(table.JoinMany(published, assets, ArticleAssets, assetRefs, renderFlat), DenormalizedPartitioned)
}

// assetRefs returns the ids of what an article shows, which the topic of assets has. Other articles are not among it.
func assetRefs(_ string, a Asset) []string {
	var ids []string
	for _, r := range a.Refs {
		if Kind(r.ID) != KindArticle {
			ids = append(ids, r.ID)
		}
	}
	return ids
}

// renderFlat makes the document of an article from the assets that assetRefs names, in that order.
func renderFlat(id string, a Asset, rows []processor.Opt[Asset]) Document {
	known := make(map[string]processor.Opt[Asset], len(rows))
	for i, ref := range assetRefs(id, a) {
		known[ref] = rows[i]
	}
	return flatDocument(id, a, func(ref string) (Asset, bool) { return known[ref].V, known[ref].OK })
}

// flatDocument is Render with one level of references: another article is only named.
func flatDocument(id string, a Asset, look func(id string) (Asset, bool)) Document {
	l := DefaultLimits
	l.Depth = 1
	a.ID = id
	doc, _ := Render(Newest{Asset: a}, l, func(ref string) (Newest, bool, error) { // its errors are those of look
		row, ok := look(ref)
		row.ID = ref
		return Newest{Asset: row}, ok, nil
	})
	for i, p := range doc.Parts {
		if Kind(p.ID) == KindArticle {
			doc.Parts[i] = Document{ID: p.ID, Role: p.Role, Stub: StubLink}
		}
	}
	return doc
}

// topicOf returns the topic in which an asset lies in the partitioned form.
func topicOf(id string) *processor.Topic[string, Asset] {
	if Kind(id) == KindArticle {
		return ArticlesTopic
	}
	return AssetsTopic
}

// partitionedTopics are created by EnsureTopics when they do not exist. The topics need not have as many partitions as
// each other.
func partitionedTopics() []processor.TopicSetup {
	compact := map[string]string{"cleanup.policy": "compact"}
	return []processor.TopicSetup{
		{Name: ArticlesTopic.Name(), Partitions: 4, Config: compact},
		{Name: AssetsTopic.Name(), Partitions: 2, Config: compact},
		{Name: DenormalizedPartitioned.Name(), Partitions: 4, Config: compact},
		{Name: DeadLetters, Partitions: 1, Config: map[string]string{"cleanup.policy": "delete"}},
	}
}
