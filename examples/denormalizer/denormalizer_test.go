package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/processor/processortest"
)

// desk drives the topology and makes assets briefly.
type desk struct {
	t   *testing.T
	d   *processortest.Driver
	in  *processortest.InputTopic[string, Asset]
	out *processortest.OutputTopic[string, Document]
}

func newDesk(t *testing.T, l Limits, opts ...processortest.Option) *desk {
	t.Helper()
	topology, err := processor.Build(BuildWith(l))
	if err != nil {
		t.Fatal(err)
	}
	d := processortest.New(t, topology, opts...)
	return &desk{t, d, processortest.Input(d, Monolog), processortest.Output(d, Denormalized)}
}

// put appends an asset. Its references are ids; the role is their kind.
func (k *desk) put(id string, version int64, title string, refs ...string) {
	k.t.Helper()
	k.in.Pipe(id, asset(id, version, title, true, refs...))
}

func (k *desk) draft(id string, version int64, title string, refs ...string) {
	k.t.Helper()
	k.in.Pipe(id, asset(id, version, title, false, refs...))
}

func asset(id string, version int64, title string, published bool, refs ...string) Asset {
	a := Asset{ID: id, Version: version, Title: title, Published: published && Kind(id) == KindArticle}
	for _, r := range refs {
		a.Refs = append(a.Refs, Ref{Role: Kind(r), ID: r})
	}
	return a
}

// want reads what was written since the last call, as "event id because path", in order.
func (k *desk) want(lines ...string) []processor.Record[string, Document] {
	k.t.Helper()
	rs := k.out.Read()
	var have []string
	for _, r := range rs {
		if e := header(r.Headers, EventHeader); r.Tombstone != (e == EventWithdrawn) {
			k.t.Errorf("%s: event %q, but tombstone is %v", r.Key, e, r.Tombstone)
		}
		have = append(have, header(r.Headers, EventHeader)+" "+r.Key+" because "+header(r.Headers, PathHeader))
	}
	if !slices.Equal(have, lines) {
		k.t.Errorf("written:\n  %s\nwant:\n  %s", strings.Join(have, "\n  "), strings.Join(lines, "\n  "))
	}
	return rs
}

// outline renders the shape of a document: ids, titles, stubs.
func outline(d Document) string {
	var b strings.Builder
	b.WriteString(d.ID)
	if d.Title != "" {
		fmt.Fprintf(&b, ":%s", d.Title)
	}
	if d.Stub != "" {
		fmt.Fprintf(&b, "!%s", d.Stub)
	}
	if d.Omitted > 0 {
		fmt.Fprintf(&b, "+%d", d.Omitted)
	}
	if len(d.Parts) > 0 {
		b.WriteString("(")
		for i, p := range d.Parts {
			if i > 0 {
				b.WriteString(" ")
			}
			b.WriteString(outline(p))
		}
		b.WriteString(")")
	}
	return b.String()
}

func (k *desk) shows(id, want string) {
	k.t.Helper()
	d, ok := processortest.Map(k.out)[id]
	have := "nothing"
	if ok {
		have = outline(d)
	}
	if have != want {
		k.t.Errorf("%s is\n  %s\nwant\n  %s", id, have, want)
	}
}

func TestPublishedOnceWhole(t *testing.T) {
	k := newDesk(t, DefaultLimits)
	k.put("byline/jane", 1, "Jane")
	k.put("image/1", 1, "Bridge", "byline/jane")
	k.put("tag/city", 1, "City")
	k.draft("article/a", 1, "A", "image/1", "tag/city")
	k.want()
	k.put("article/a", 2, "A", "image/1", "tag/city")
	rs := k.want("published article/a because article/a")
	k.shows("article/a", "article/a:A(image/1:Bridge(byline/jane:Jane) tag/city:City)")
	if c := header(rs[0].Headers, CauseHeader); c != "article/a@2" {
		t.Errorf("cause is %q", c)
	}
}

func TestRepublishedAtAnyDepth(t *testing.T) {
	k := newDesk(t, DefaultLimits)
	k.put("byline/jane", 1, "Jane")
	k.put("image/1", 1, "Bridge", "byline/jane")
	k.put("article/a", 1, "A", "image/1")
	k.put("list/l", 1, "L", "article/a")
	k.put("article/b", 1, "B", "list/l")
	k.put("article/other", 1, "Other")
	k.out.Read()
	at := time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)
	k.in.PipeAt("byline/jane", asset("byline/jane", 2, "Jane Doe", false), at)
	rs := k.want(
		"republished article/a because byline/jane > image/1 > article/a",
		"republished article/b because byline/jane > image/1 > article/a > list/l > article/b",
	)
	k.shows("article/b", "article/b:B(list/l:L(article/a:A(image/1:Bridge(byline/jane:Jane Doe))))")
	if c := header(rs[1].Headers, CauseHeader); c != "byline/jane@2" || !rs[1].Time.Equal(at) {
		t.Errorf("cause is %q, time %v", c, rs[1].Time)
	}
}

func TestUsedTwiceIsWrittenOnce(t *testing.T) {
	k := newDesk(t, DefaultLimits)
	k.put("byline/jane", 1, "Jane")
	k.put("image/1", 1, "One", "byline/jane")
	k.put("article/a", 1, "A", "byline/jane", "image/1", "byline/jane")
	k.out.Read()
	k.put("byline/jane", 2, "Jane Doe")
	k.want("republished article/a because byline/jane > article/a")
}

func TestNotWrittenWhenNothingChanged(t *testing.T) {
	k := newDesk(t, Limits{Depth: 1, Nodes: 100, Bytes: 1 << 20, Visits: 100, Edges: 100})
	k.put("byline/jane", 1, "Jane")
	k.put("image/1", 1, "One", "byline/jane")
	k.put("article/a", 1, "A", "image/1")
	k.draft("article/draft", 1, "Draft", "image/1")
	k.put("article/b", 1, "B", "article/draft")
	k.out.Read()
	k.put("byline/jane", 2, "too deep to be seen")
	k.put("tag/unused", 1, "used by none")
	k.draft("article/draft", 2, "still a draft, shown by its id only", "image/1")
	k.want()
}

func TestOlderVersionsAreIgnored(t *testing.T) {
	k := newDesk(t, DefaultLimits)
	k.put("tag/new", 3, "New")
	k.put("article/a", 2, "two", "tag/new")
	k.out.Read()
	k.put("article/a", 1, "one", "tag/old")
	k.put("article/a", 2, "two again", "tag/old")
	k.put("tag/new", 2, "Old")
	k.want()
	k.put("tag/old", 1, "a reference that only the older versions had")
	k.want()
}

func TestUnpublishAndPublishAgain(t *testing.T) {
	k := newDesk(t, DefaultLimits)
	k.put("article/a", 1, "A")
	k.put("article/b", 1, "B", "article/a")
	k.out.Read()
	k.draft("article/a", 2, "secret")
	k.want("withdrawn article/a because article/a", "republished article/b because article/a > article/b")
	k.shows("article/a", "nothing")
	k.shows("article/b", "article/b:B(article/a!unpublished)")
	k.draft("article/a", 3, "more secret")
	k.want()
	k.put("article/a", 4, "A again")
	k.want("published article/a because article/a", "republished article/b because article/a > article/b")
	k.shows("article/b", "article/b:B(article/a:A again)")
}

func TestDelete(t *testing.T) {
	k := newDesk(t, DefaultLimits)
	k.put("image/1", 1, "One")
	k.put("article/a", 1, "A", "image/1")
	k.put("article/b", 1, "B", "article/a")
	k.out.Read()
	k.in.PipeTombstone("image/1")
	k.want("republished article/a because image/1 > article/a",
		"republished article/b because image/1 > article/a > article/b")
	k.shows("article/a", "article/a:A(image/1!missing)")
	k.in.PipeTombstone("article/a")
	k.want("withdrawn article/a because article/a", "republished article/b because article/a > article/b")
	k.shows("article/b", "article/b:B(article/a!missing)")
	k.in.PipeTombstone("article/a")
	k.in.PipeTombstone("article/never-seen")
	k.put("image/1", 1, "too old to come back")
	k.want()
	k.put("image/1", 2, "back, but what used it is gone")
	k.want()
	k.put("article/a", 2, "A", "image/1")
	k.want("published article/a because article/a", "republished article/b because article/a > article/b")
}

func TestTombstoneWithVersion(t *testing.T) {
	k := newDesk(t, DefaultLimits)
	bury := func(version string) error {
		return k.in.TryPipe(processor.Record[string, Asset]{
			Key: "article/a", Tombstone: true, Time: k.d.Now(),
			Headers: []processor.Header{{Key: VersionHeader, Value: []byte(version)}},
		})
	}
	k.put("article/a", 5, "A")
	k.out.Read()
	if err := bury("4"); err != nil {
		t.Fatal(err)
	}
	k.want()
	if err := bury("6"); err != nil {
		t.Fatal(err)
	}
	rs := k.want("withdrawn article/a because article/a")
	if c := header(rs[0].Headers, CauseHeader); c != "article/a@6" {
		t.Errorf("cause is %q", c)
	}
	k.put("article/a", 6, "not newer than its deletion")
	k.want()
	if err := bury("six"); !errors.Is(err, ErrBadAsset) {
		t.Errorf("a version that is no number: %v", err)
	}
}

func TestReferencesBeforeTheirAssets(t *testing.T) {
	k := newDesk(t, DefaultLimits)
	k.put("article/a", 1, "A", "image/1")
	k.want("published article/a because article/a")
	k.shows("article/a", "article/a:A(image/1!missing)")
	k.put("image/1", 1, "One", "byline/jane")
	k.want("republished article/a because image/1 > article/a")
	k.put("byline/jane", 1, "Jane")
	k.want("republished article/a because byline/jane > image/1 > article/a")
	k.shows("article/a", "article/a:A(image/1:One(byline/jane:Jane))")
}

func TestChangedReferences(t *testing.T) {
	k := newDesk(t, DefaultLimits)
	k.put("tag/old", 1, "Old")
	k.put("tag/both", 1, "Both")
	k.put("tag/new", 1, "New")
	k.put("article/a", 1, "A", "tag/old", "tag/both")
	k.put("article/a", 2, "A", "tag/both", "tag/new")
	k.out.Read()
	k.put("tag/old", 2, "Old 2")
	k.want()
	k.put("tag/both", 2, "Both 2")
	k.put("tag/new", 2, "New 2")
	k.want("republished article/a because tag/both > article/a", "republished article/a because tag/new > article/a")
	k.shows("article/a", "article/a:A(tag/both:Both 2 tag/new:New 2)")

	var edges []edge
	for e, err := range processortest.Store(k.d, UsedBy).All() {
		if err != nil {
			t.Fatal(err)
		}
		edges = append(edges, e.Key)
	}
	if want := []edge{{First: "tag/both", Second: "article/a"}, {First: "tag/new", Second: "article/a"}}; !slices.Equal(
		edges, want) {
		t.Errorf("used-by holds %v, want %v", edges, want)
	}
}

func TestCycles(t *testing.T) {
	k := newDesk(t, DefaultLimits)
	k.put("article/a", 1, "A", "article/b")
	k.put("article/b", 1, "B", "article/a")
	k.put("article/self", 1, "S", "article/self")
	k.out.Read()
	k.shows("article/a", "article/a:A(article/b:B(article/a!cycle))")
	k.shows("article/b", "article/b:B(article/a:A(article/b!cycle))")
	k.shows("article/self", "article/self:S(article/self!cycle)")
	k.put("article/b", 2, "B2", "article/a")
	k.want("republished article/b because article/b", "republished article/a because article/b > article/a")
	k.shows("article/a", "article/a:A(article/b:B2(article/a!cycle))")
}

func TestBadAssets(t *testing.T) {
	letters := processor.DeadLetter(DeadLetters)
	k := newDesk(t, DefaultLimits, processortest.OnErrors(letters, letters))
	k.put("article/a", 1, "A")
	k.out.Read()
	bad := []Asset{
		asset("article/a", 0, "no version", true),
		asset("article/b", 2, "under the key of another", true),
		asset("article/a", 2, strings.Repeat("x", maxAssetBytes+1), true),
		asset("article/a", 2, "refers to nothing", true, "nothing"),
		asset("article/a", 2, "refers to many", true, slices.Repeat([]string{"tag/x"}, maxRefs+1)...),
	}
	for _, a := range bad {
		k.in.Pipe("article/a", a)
	}
	k.in.PipeTombstone("no such kind")
	if err := k.d.PipeRaw(processor.RawRecord{
		Topic: Monolog.Name(), Key: []byte("article/a"), Value: []byte("{"), TimeMillis: k.d.Now().UnixMilli(),
	}); err != nil {
		t.Fatal(err)
	}
	k.want()
	if n := len(k.d.Raw(DeadLetters)); n != len(bad)+2 {
		t.Errorf("%d dead letters, want %d", n, len(bad)+2)
	}
	k.put("article/a", 2, "A2")
	k.want("republished article/a because article/a")
}

func TestSizes(t *testing.T) {
	for _, s := range []string{"", "plain", "ünïcödé", "a\"b\\c\n\x00\x7f\xff\u2028", strings.Repeat("\x01", 99)} {
		b, err := Monolog.Value().Append(nil, Asset{Title: s})
		if err != nil {
			t.Fatal(err)
		}
		empty, err := Monolog.Value().Append(nil, Asset{})
		if err != nil {
			t.Fatal(err)
		}
		if have := jsonLen(s); have < len(b)-len(empty) {
			t.Errorf("%q takes %d bytes, counted %d", s, len(b)-len(empty), have)
		}
	}
}
