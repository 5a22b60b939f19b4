package main

import (
	"fmt"
	"testing"

	"tailrace.dev/processor/processortest"
)

// pendingRows counts what waits.
func (k *desk) pendingRows() int {
	k.t.Helper()
	n := 0
	for _, err := range processortest.Store(k.d, Pending).All() {
		if err != nil {
			k.t.Fatal(err)
		}
		n++
	}
	return n
}

// TestFanOutIsBounded renames a tag of many articles: no record and no tick may write more than the limit, breaking
// news do not wait, a crash in the middle loses nothing, and every article is written once.
func TestFanOutIsBounded(t *testing.T) {
	const articles = 1000
	l := DefaultLimits
	l.Visits = 64
	k := newDesk(t, l)
	k.put("tag/t", 1, "T")
	for i := range articles {
		k.put(fmt.Sprintf("article/%d", i), 1, "A", "tag/t")
	}
	k.out.Read()

	k.put("tag/t", 2, "T2")
	written := len(k.out.Read())
	if written == 0 || written > l.Visits {
		t.Fatalf("the record wrote %d documents at once; the limit is %d", written, l.Visits)
	}
	if n := k.pendingRows(); n == 0 || n > l.Edges+1 {
		t.Errorf("%d rows are pending; want the tag and at most the %d users of a visit", n, l.Edges)
	}
	k.put("article/breaking", 1, "News", "tag/t")
	k.want("published article/breaking because article/breaking")

	ticks := 0
	for ; k.pendingRows() > 0; ticks++ {
		if ticks == 5 {
			k.d.Crash()
		}
		if ticks > articles {
			t.Fatal("the pending store does not run empty")
		}
		k.d.AdvanceWallClock(drainInterval)
		n := len(k.out.Read())
		if n > l.Visits {
			t.Fatalf("a tick wrote %d documents; the limit is %d", n, l.Visits)
		}
		written += n
	}
	if written != articles {
		t.Errorf("%d documents were written for %d articles", written, articles)
	}
	for id, d := range processortest.Map(k.out) {
		if d.Parts[0].Title != "T2" {
			t.Errorf("%s still has the tag %s", id, d.Parts[0].Title)
		}
	}
}

// TestFanOutGoesOnUnderChange renames a tag again at each tick, faster than its users can be visited. The last of them
// must get their turn all the same.
func TestFanOutGoesOnUnderChange(t *testing.T) {
	k := newDesk(t, Limits{Depth: 3, Nodes: 9, Bytes: 1 << 20, Visits: 4, Edges: 2})
	k.put("tag/t", 1, "T")
	for i := range 100 {
		k.put(fmt.Sprintf("article/%02d", i), 1, "A", "tag/t")
	}
	for v := range int64(150) {
		k.put("tag/t", v+2, fmt.Sprint("T", v+2))
		k.d.AdvanceWallClock(drainInterval)
	}
	if title := processortest.Map(k.out)["article/99"].Parts[0].Title; title == "T" {
		t.Error("the last article was never reached")
	}
	for range 1000 {
		k.d.AdvanceWallClock(drainInterval)
	}
	for id, d := range processortest.Map(k.out) {
		if d.Parts[0].Title != "T151" {
			t.Errorf("%s has the tag %s in the end", id, d.Parts[0].Title)
		}
	}
}
