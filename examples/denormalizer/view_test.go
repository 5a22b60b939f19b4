package main

import (
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"tailrace.dev/serde"
)

// written makes a record of the denormalised topic; an empty title is a tombstone.
func written(t *testing.T, partition int32, offset int64, id, title string) *kgo.Record {
	t.Helper()
	r := &kgo.Record{
		Partition: partition, Offset: offset, Key: []byte(id), Timestamp: time.UnixMilli(1000 + offset),
		Headers: []kgo.RecordHeader{
			{Key: EventHeader, Value: []byte(EventRepublished)},
			{Key: CauseHeader, Value: []byte("tag/t@2")},
			{Key: PathHeader, Value: []byte("tag/t > " + id)},
		},
	}
	if title != "" {
		var err error
		if r.Value, err = serde.Encode(Denormalized.Value(), Document{ID: id, Title: title, Version: 1}); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func ids(items []feedItem) string {
	s := ""
	for _, i := range items {
		s += fmt.Sprintf("%d:%d ", i.partition, i.offset)
	}
	return s
}

func TestViewFollowsAndResumes(t *testing.T) {
	v := newView(2, "e", zap.NewNop())
	first := v.since(-1)
	if first.all == nil || len(first.all) != 0 {
		t.Errorf("an empty view gives %v", first.all)
	}
	v.take([]*kgo.Record{written(t, 0, 0, "article/a", "A"), written(t, 1, 5, "article/b", "B")})
	select {
	case <-first.wake:
	default:
		t.Error("watchers were not woken")
	}
	u := v.since(first.next)
	if u.all != nil || ids(u.items) != "0:0 1:5 " || u.items[0].Path[0] != "tag/t" {
		t.Errorf("after the first two records: %+v", u)
	}
	cursor := u.id
	v.take([]*kgo.Record{written(t, 1, 6, "article/b", ""), written(t, 0, 2, "article/a", "A2")})
	if as := v.all(); len(as) != 1 || as[0].Title != "A2" {
		t.Errorf("the view holds %+v", as)
	}
	if u := v.resume(cursor); u.all != nil || ids(u.items) != "1:6 0:2 " {
		t.Errorf("resumed with %+v", u)
	}
	for _, bad := range []string{"", "e", "e_1", "e_1.2.3", "other_1.6", "e_1.x", "e_-1.6", "e_4.7"} {
		if u := v.resume(bad); u.all == nil {
			t.Errorf("cursor %q was taken for a good one", bad)
		}
	}
	for i := range int64(feedLength) {
		v.take([]*kgo.Record{written(t, 0, 3+i, "article/c", fmt.Sprint(i))})
	}
	if u := v.resume(cursor); u.all == nil {
		t.Error("a cursor older than the feed was resumed")
	}
	if u := v.since(first.next); u.all == nil {
		t.Error("a number older than the feed was resumed")
	}
	v.take([]*kgo.Record{written(t, 0, 3+feedLength, "article/c", fmt.Sprint(feedLength-1))})
	if records, repeats := v.repeated(); records != 5+feedLength || repeats != 1 {
		t.Errorf("%d records, %d of them repeated", records, repeats)
	}
	if len(v.feed) != feedLength {
		t.Errorf("the feed holds %d items", len(v.feed))
	}
}

func TestDifferences(t *testing.T) {
	v := newView(1, "e", zap.NewNop())
	a, b := written(t, 0, 0, "article/a", "A"), written(t, 0, 1, "article/b", "B")
	v.take([]*kgo.Record{a, b})
	if d := v.differences(map[string][]byte{"article/a": a.Value, "article/b": b.Value}); len(d) > 0 {
		t.Errorf("equal views differ: %v", d)
	}
	if d := v.differences(map[string][]byte{"article/a": b.Value, "article/c": a.Value}); len(d) != 3 {
		t.Errorf("want one other, one missing, one too many; have %v", d)
	}
}
