package main

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tailrace.dev/processor"
	"tailrace.dev/processor/processortest"
)

// naive renders a document by plain recursion, without limits other than the depth: what Render must agree with while
// no other limit is reached.
func naive(id, role string, way []string, depth int, assets map[string]Newest) Document {
	a, ok := assets[id]
	stub := Document{ID: id, Role: role}
	switch {
	case !ok || a.Deleted:
		stub.Stub = StubMissing
		return stub
	case Kind(id) == KindArticle && !a.Published:
		stub.Stub = StubUnpublished
		return stub
	case slices.Contains(way, id):
		stub.Stub = StubCycle
		return stub
	}
	d := Document{ID: id, Role: role, Version: a.Version, Title: a.Title, Text: a.Text, URL: a.URL}
	if depth == 0 {
		d.Omitted = len(a.Refs)
		return d
	}
	way = append(slices.Clone(way), id)
	for _, r := range a.Refs {
		d.Parts = append(d.Parts, naive(r.ID, r.Role, way, depth-1, assets))
	}
	return d
}

// scratch is the oracle: the newest assets, and from them every published article.
type scratch map[string]Newest

func (s scratch) apply(t *rapid.T, r processor.Record[string, Asset]) {
	now, news, err := s[r.Key].Accept(r)
	if err != nil {
		t.Fatal(err)
	}
	if news {
		s[r.Key] = now
	}
}

func (s scratch) documents(render func(a Newest) Document) map[string]Document {
	docs := make(map[string]Document)
	for id, a := range s {
		if Kind(id) == KindArticle && a.Published && !a.Deleted {
			docs[id] = render(a)
		}
	}
	return docs
}

// genRecord draws a record of a small newsroom, in which everything refers to everything before long.
func genRecord(t *rapid.T, now time.Time) processor.Record[string, Asset] {
	id := genID().Draw(t, "id")
	version := rapid.Int64Range(1, 12).Draw(t, "version")
	r := processor.Record[string, Asset]{Key: id, Time: now}
	if rapid.IntRange(0, 9).Draw(t, "what") == 0 {
		r.Tombstone = true
		if rapid.Bool().Draw(t, "with version") {
			r.Headers = []processor.Header{{Key: VersionHeader, Value: fmt.Append(nil, version)}}
		}
		return r
	}
	refs := rapid.SliceOfN(genID(), 0, 3).Draw(t, "refs")
	title := rapid.SampledFrom([]string{"x", "y", "z"}).Draw(t, "title")
	r.Value = asset(id, version, title, rapid.IntRange(0, 4).Draw(t, "draft") > 0, refs...)
	return r
}

func genID() *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		kind := rapid.SampledFrom([]string{"article", "article", "article", "image", "tag", "list"}).Draw(t, "kind")
		return fmt.Sprintf("%s/%d", kind, rapid.IntRange(1, 4).Draw(t, "n"))
	})
}

// TestEqualsFromScratch compares the denormalised table with the oracle after each record, where limits let a record do
// all its work at once.
func TestEqualsFromScratch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := Limits{Depth: rapid.IntRange(1, 5).Draw(t, "depth"), Nodes: 1 << 20, Bytes: 1 << 30, Visits: 1 << 20, Edges: 3}
		k, in, out := rapidDesk(t, l)
		s := scratch{}
		for range rapid.IntRange(1, 60).Draw(t, "records") {
			r := genRecord(t, k.Now())
			in.PipeRecord(r)
			s.apply(t, r)
			maybeCrash(t, k)
			want := s.documents(func(a Newest) Document { return naive(a.ID, "", nil, l.Depth, s) })
			compare(t, processortest.Map(out), want)
		}
		noRepeats(t, out)
	})
}

// TestEqualsFromScratchWhenDrained lets a record do very little at once, so that nearly everything goes through the
// pending store, crashes now and then, and compares whenever that store has run empty.
func TestEqualsFromScratchWhenDrained(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := Limits{
			Depth: rapid.IntRange(1, 5).Draw(t, "depth"), Nodes: rapid.IntRange(1, 40).Draw(t, "nodes"), Bytes: 1 << 30,
			Visits: rapid.IntRange(1, 4).Draw(t, "visits"), Edges: rapid.IntRange(1, 3).Draw(t, "edges"),
		}
		k, in, out := rapidDesk(t, l)
		s := scratch{}
		render := func(a Newest) Document {
			d, err := Render(a, l, lookupIn(s))
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		for range rapid.IntRange(1, 40).Draw(t, "records") {
			r := genRecord(t, k.Now())
			in.PipeRecord(r)
			s.apply(t, r)
			maybeCrash(t, k)
			for range rapid.IntRange(0, 3).Draw(t, "ticks") {
				k.AdvanceWallClock(drainInterval)
			}
			if rapid.IntRange(0, 3).Draw(t, "drain") == 0 {
				drainAll(t, k)
				compare(t, processortest.Map(out), s.documents(render))
			}
		}
		drainAll(t, k)
		compare(t, processortest.Map(out), s.documents(render))
		noRepeats(t, out)
	})
}

func rapidDesk(t *rapid.T, l Limits) (
	*processortest.Driver, *processortest.InputTopic[string, Asset], *processortest.OutputTopic[string, Document],
) {
	topology, err := processor.Build(BuildWith(l))
	if err != nil {
		t.Fatal(err)
	}
	d := processortest.New(t, topology)
	return d, processortest.Input(d, Monolog), processortest.Output(d, Denormalized)
}

func maybeCrash(t *rapid.T, d *processortest.Driver) {
	if rapid.IntRange(0, 7).Draw(t, "crash") == 0 {
		d.Crash()
	}
}

// drainAll ticks until nothing is pending. The bound is far above what any of these newsrooms needs.
func drainAll(t *rapid.T, d *processortest.Driver) {
	for range 20_000 {
		empty := true
		for _, err := range processortest.Store(d, Pending).All() {
			if err != nil {
				t.Fatal(err)
			}
			empty = false
			break
		}
		if empty {
			return
		}
		d.AdvanceWallClock(drainInterval)
	}
	t.Fatal("the pending store does not run empty")
}

func compare(t *rapid.T, have, want map[string]Document) {
	for _, id := range slices.Sorted(maps.Keys(want)) {
		d, ok := have[id]
		if !ok {
			t.Fatalf("%s is not published", id)
		}
		if !reflect.DeepEqual(d, want[id]) {
			t.Fatalf("%s is\n  %s\nfrom scratch\n  %s", id, outline(d), outline(want[id]))
		}
	}
	for id := range have {
		if _, ok := want[id]; !ok {
			t.Fatalf("%s is published and must not be", id)
		}
	}
}

// noRepeats checks that each record of the denormalised topic says something new of its article.
func noRepeats(t *rapid.T, out *processortest.OutputTopic[string, Document]) {
	last := make(map[string]Document)
	for _, r := range out.Read() {
		d, ok := last[r.Key]
		if r.Tombstone && !ok {
			t.Fatalf("tombstone for %s, which was not published", r.Key)
		}
		if !r.Tombstone && ok && reflect.DeepEqual(d, r.Value) {
			t.Fatalf("%s was published twice alike: %s", r.Key, outline(d))
		}
		delete(last, r.Key)
		if !r.Tombstone {
			last[r.Key] = r.Value
		}
	}
}

// TestCrashBeforeCommit loses a batch in its middle, and does it again to the same end.
func TestCrashBeforeCommit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		topology, err := processor.Build(Build)
		if err != nil {
			t.Fatal(err)
		}
		calm := processortest.New(t, topology)
		wild := processortest.New(t, topology, processortest.CommitManually())
		for range rapid.IntRange(1, 40).Draw(t, "records") {
			r := genRecord(t, calm.Now())
			processortest.Input(calm, Monolog).PipeRecord(r)
			processortest.Input(wild, Monolog).PipeRecord(r)
			switch rapid.IntRange(0, 5).Draw(t, "then") {
			case 0:
				wild.Crash()
			case 1:
				wild.Commit()
			}
		}
		wild.Commit()
		have, want := wild.Raw(Denormalized.Name()), calm.Raw(Denormalized.Name())
		if !reflect.DeepEqual(have, want) {
			t.Fatalf("after crashes %d records were written, without %d, or other ones", len(have), len(want))
		}
	})
}
