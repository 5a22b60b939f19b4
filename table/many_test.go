package table_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tailrace.dev/processor"
	"tailrace.dev/processor/processortest"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/table"
)

var (
	pages  = processor.NewTopic("pages", serde.String, serde.JSON[[]string]()) // the assets of a page
	assets = processor.NewTopic("assets", serde.String, serde.String)
	whole  = processor.NewTopic("whole", serde.String, serde.String)
	uses   = table.NewLink("page-assets", serde.String, serde.String, serde.String)
)

func declarePages(link *table.Link[string, string, string]) func(b *processor.Builder) {
	return func(b *processor.Builder) {
		p := table.From(b, pages, state.KeyValue("pages-store", serde.String, serde.JSON[[]string]()))
		a := table.From(b, assets, state.KeyValue("assets-store", serde.String, serde.String))
		table.To(table.JoinMany(p, a, link,
			func(_ string, refs []string) []string { return refs },
			func(_ string, refs []string, rows []processor.Opt[string]) string { return render(refs, rows) }), whole)
	}
}

func render(refs []string, rows []processor.Opt[string]) string {
	parts := make([]string, len(refs))
	for i, ref := range refs {
		parts[i] = ref + "=" + rows[i].Or("?")
	}
	return strings.Join(parts, " ")
}

func pagesDriver(t processortest.TB, link *table.Link[string, string, string]) *processortest.Driver {
	topology, err := processor.Build(declarePages(link))
	if err != nil {
		t.Fatalf("%v", err)
	}
	return processortest.New(t, topology)
}

// A page is whole only with everything that it refers to, and follows all of it.
func ExampleJoinMany() {
	d := pagesDriver(processortest.Panics, uses)
	asset, page := processortest.Input(d, assets), processortest.Input(d, pages)
	asset.Pipe("logo", "L1")
	page.Pipe("home", []string{"logo", "photo", "logo"})
	asset.Pipe("photo", "P1")
	asset.Pipe("logo", "L2")
	asset.PipeTombstone("photo")
	page.PipeTombstone("home")
	for _, r := range processortest.Output(d, whole).Read() {
		fmt.Printf("%s: %s %v\n", r.Key, r.Value, r.Tombstone)
	}
	// Output:
	// home: logo=L1 photo=? logo=L1 false
	// home: logo=L1 photo=P1 logo=L1 false
	// home: logo=L2 photo=P1 logo=L2 false
	// home: logo=L2 photo=? logo=L2 false
	// home:  true
}

// Whatever happens, in whatever order and with crashes, the result is what a look at the newest rows gives.
func TestJoinManyAgainstRecomputation(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d := pagesDriver(rt, uses)
		asset, page := processortest.Input(d, assets), processortest.Input(d, pages)
		newest, lists := map[string]string{}, map[string][]string{}
		name := rapid.SampledFrom([]string{"a", "b", "c", "ab"})
		for i := range rapid.IntRange(1, 40).Draw(rt, "steps") {
			k := name.Draw(rt, "key")
			switch rapid.IntRange(0, 5).Draw(rt, "what") {
			case 0, 1:
				newest[k] = fmt.Sprint(i)
				asset.Pipe(k, newest[k])
			case 2:
				delete(newest, k)
				asset.PipeTombstone(k)
			case 3:
				lists[k] = rapid.SliceOfN(name, 0, 4).Draw(rt, "list")
				page.Pipe(k, lists[k])
			case 4:
				delete(lists, k)
				page.PipeTombstone(k)
			default:
				d.Crash()
			}
			want := map[string]string{}
			for k, refs := range lists {
				rows := make([]processor.Opt[string], len(refs))
				for i, ref := range refs {
					rows[i].V, rows[i].OK = newest[ref]
				}
				want[k] = render(refs, rows)
			}
			if got := processortest.Map(processortest.Output(d, whole)); !maps.Equal(got, want) {
				rt.Fatalf("step %d: got %v, want %v", i, got, want)
			}
		}
	})
}

func TestJoinManyIsBounded(t *testing.T) {
	d := pagesDriver(t, uses.WithMaxReferences(2))
	page := processortest.Input(d, pages)
	page.Pipe("short", []string{"a", "b"})
	err := page.TryPipe(processor.Record[string, []string]{Key: "long", Value: []string{"a", "b", "c"}, Time: d.Now()})
	if !errors.Is(err, table.ErrTooManyReferences) {
		t.Fatalf("got %v", err)
	}
	if got := slices.Sorted(maps.Keys(processortest.Map(processortest.Output(d, whole)))); !slices.Equal(got, []string{"short"}) {
		t.Fatalf("got %v", got)
	}
}
