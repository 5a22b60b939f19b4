package main

import (
	"errors"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"tailrace.dev/processor"
	"tailrace.dev/processor/processortest"
	"tailrace.dev/table"
)

func partitionedDriver(t processortest.TB) *processortest.Driver {
	topology, err := processor.Build(BuildPartitioned)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return processortest.New(t, topology)
}

// The image comes after its article, and the author is renamed: the article follows both.
func ExampleBuildPartitioned() {
	d := partitionedDriver(processortest.Panics)
	articles, assets := processortest.Input(d, ArticlesTopic), processortest.Input(d, AssetsTopic)
	assets.Pipe("byline/jane", asset("byline/jane", 1, "Jane Doe", false))
	articles.Pipe("article/flood", asset("article/flood", 1, "Flood", false, "byline/jane"))
	articles.Pipe("article/flood", asset("article/flood", 2, "Flood", true, "byline/jane", "image/bridge", "article/dam"))
	assets.Pipe("image/bridge", asset("image/bridge", 1, "Bridge", false, "byline/jane"))
	assets.Pipe("byline/jane", asset("byline/jane", 2, "Jane Smith", false))
	assets.PipeTombstone("image/bridge")
	articles.PipeTombstone("article/flood")
	for _, r := range processortest.Output(d, DenormalizedPartitioned).Read() {
		if r.Tombstone {
			fmt.Println(r.Key, "withdrawn")
			continue
		}
		fmt.Println(outline(r.Value))
	}
	// Output:
	// article/flood:Flood(byline/jane:Jane Doe image/bridge!missing article/dam!link)
	// article/flood:Flood(byline/jane:Jane Doe image/bridge:Bridge+1 article/dam!link)
	// article/flood:Flood(byline/jane:Jane Smith image/bridge:Bridge+1 article/dam!link)
	// article/flood:Flood(byline/jane:Jane Smith image/bridge!missing article/dam!link)
	// article/flood withdrawn
}

// naiveFlat is the document of an article by a look at the newest of everything.
func naiveFlat(a Asset, newest map[string]Asset) Document {
	d := Document{ID: a.ID, Version: a.Version, Title: a.Title, Text: a.Text, URL: a.URL}
	for _, r := range a.Refs {
		part := Document{ID: r.ID, Role: r.Role, Stub: StubMissing}
		if got, ok := newest[r.ID]; ok {
			part = Document{
				ID: r.ID, Role: r.Role, Version: got.Version, Title: got.Title, Text: got.Text, URL: got.URL,
				Omitted: len(got.Refs),
			}
		}
		if Kind(r.ID) == KindArticle {
			part = Document{ID: r.ID, Role: r.Role, Stub: StubLink}
		}
		d.Parts = append(d.Parts, part)
	}
	return d
}

// TestPartitionedEqualsFromScratch edits, deletes and crashes in any order, and compares with a computation from
// nothing after each record.
func TestPartitionedEqualsFromScratch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := partitionedDriver(t)
		newest := map[string]Asset{}
		for range rapid.IntRange(1, 60).Draw(t, "records") {
			r := genRecord(t, d.Now())
			processortest.Input(d, topicOf(r.Key)).PipeRecord(r)
			if r.Tombstone {
				delete(newest, r.Key)
			} else {
				newest[r.Key] = r.Value
			}
			maybeCrash(t, d)
			want := map[string]Document{}
			for id, a := range newest {
				if Kind(id) == KindArticle && a.Published {
					want[id] = naiveFlat(a, newest)
				}
			}
			compare(t, processortest.Map(processortest.Output(d, DenormalizedPartitioned)), want)
		}
	})
}

func TestPartitionedIsBounded(t *testing.T) {
	d := partitionedDriver(t)
	a := asset("article/a", 1, "A", true)
	for i := range maxRefs + 1 {
		a.Refs = append(a.Refs, Ref{Role: "tag", ID: fmt.Sprintf("tag/%d", i)})
	}
	r := processor.Record[string, Asset]{Key: a.ID, Value: a, Time: d.Now()}
	if err := processortest.Input(d, ArticlesTopic).TryPipe(r); !errors.Is(err, table.ErrTooManyReferences) {
		t.Fatalf("got %v", err)
	}
}
