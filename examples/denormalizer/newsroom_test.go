package main

import (
	"reflect"
	"testing"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/processor/processortest"
)

// TestNewsroom lets the newsroom work without a broker, with the limits of the program, and compares.
func TestNewsroom(t *testing.T) {
	k := newDesk(t, DefaultLimits)
	n, twin := newNewsroom(1, nil), newNewsroom(1, nil)
	tally := newTally()
	s := make(map[string]Newest)
	at := k.d.Now()
	kinds := make(map[string]int)
	for range 2000 {
		st := n.story()
		if other := twin.story(); !reflect.DeepEqual(st, other) {
			t.Fatalf("the same seed gave %+v and %+v", st, other)
		}
		kinds[st.what]++
		tally.appended(st, at)
		raw, err := st.record()
		if err != nil {
			t.Fatal(err)
		}
		r := processor.Record[string, Asset]{Key: st.asset.ID, Value: st.asset, Tombstone: st.delete, Time: at}
		for _, h := range raw.Headers {
			r.Headers = append(r.Headers, processor.Header(h))
		}
		if st.delete {
			r.Value = Asset{}
		}
		k.in.PipeRecord(r)
		now, news, err := s[r.Key].Accept(r)
		if err != nil {
			t.Fatal(err)
		}
		if news {
			s[r.Key] = now
		}
		k.d.AdvanceWallClock(drainInterval)
	}
	for k.pendingRows() > 0 {
		k.d.AdvanceWallClock(drainInterval)
	}
	docs := processortest.Map(k.out)
	shown := 0
	for id, a := range s {
		if Kind(id) != KindArticle || a.Deleted || !a.Published {
			continue
		}
		shown++
		want, err := Render(a, DefaultLimits, lookupIn(s))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(docs[id], want) {
			t.Fatalf("%s is\n  %s\nfrom scratch\n  %s", id, outline(docs[id]), outline(want))
		}
	}
	if len(docs) != shown || shown < 200 {
		t.Errorf("%d articles are published, from scratch %d", len(docs), shown)
	}
	for _, kind := range []string{
		"article published", "text corrected", "articles linked", "author renamed", "tag renamed", "list changed",
		"article unpublished", "article published again", "article deleted", "image deleted", "old version repeated",
	} {
		if kinds[kind] == 0 {
			t.Errorf("%q never happened: %v", kind, kinds)
		}
	}
	if len(tally.rows) != len(kinds) || tally.done(at.Add(time.Hour)) != nil {
		t.Errorf("the tally has %d kinds of %d, or tells of stories that nothing came of", len(tally.rows), len(kinds))
	}

	// A newsroom that opens over an archive goes on where the other one closed.
	next := newNewsroom(1, s).story()
	if have := s[next.asset.ID].Version; next.asset.Version != have+1 && next.what != "old version repeated" {
		t.Errorf("the next version of %s is %d after %d", next.asset.ID, next.asset.Version, have)
	}
}

func TestTally(t *testing.T) {
	tally := newTally()
	begin := time.Now()
	s := story{change: change{asset: Asset{ID: "tag/t", Version: 2}}, what: "tag renamed", tell: "tag/t renamed"}
	tally.appended(s, begin)
	for range 3 {
		tally.wrote(feedItem{Event: EventRepublished, Cause: "tag/t@2"})
	}
	tally.wrote(feedItem{Event: EventRepublished, Cause: "tag/of-an-earlier-run@2"})
	if lines := tally.done(time.Now()); len(lines) > 0 {
		t.Errorf("told too early: %q", lines)
	}
	if lines := tally.done(begin.Add(time.Minute)); len(lines) != 1 {
		t.Errorf("told %q", lines)
	}
	if r := tally.rows["tag renamed"]; r.stories != 1 || r.re != 3 || r.most != 3 {
		t.Errorf("%+v", r)
	}
	for v := range int64(maxCauses) {
		s.asset.Version = v + 3
		tally.appended(s, begin)
	}
	if len(tally.causes) != maxCauses || len(tally.order) != maxCauses {
		t.Errorf("%d causes are remembered", len(tally.causes))
	}
}
