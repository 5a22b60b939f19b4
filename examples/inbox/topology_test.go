package main

import (
	"maps"
	"testing"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/processor/processortest"
)

func newDriver(t *testing.T, opts ...processortest.Option) *processortest.Driver {
	t.Helper()
	topology, err := processor.Build(Build)
	if err != nil {
		t.Fatal(err)
	}
	opts = append(opts, processortest.Application(application), processortest.StartingAt(time.UnixMilli(base).UTC()))
	return processortest.New(t, topology, opts...)
}

// pipe appends an event as the program does: under its actor, with its own time.
func pipe(d *processortest.Driver, e Event) {
	processortest.Input(d, Events).PipeAt(e.Actor, e, e.time())
}

func sent(id, from string, at int64, to ...string) Event {
	return Event{
		ID: "e" + id, Kind: Sent, Actor: from, To: to, At: base + at, Message: "m" + id, Subject: "about " + id,
	}
}

func did(id string, k Kind, who string, at int64, message string) Event {
	return Event{ID: "x" + id, Kind: k, Actor: who, At: base + at, Message: "m" + message}
}

func unreadCounts(d *processortest.Driver) map[string]int64 {
	return processortest.Map(processortest.Output(d, UnreadCounts))
}

func wantCounts(t *testing.T, d *processortest.Driver, want map[string]int64) {
	t.Helper()
	if got := unreadCounts(d); !maps.Equal(got, want) {
		t.Fatalf("unread %v, want %v", got, want)
	}
	for user, in := range processortest.Map(processortest.Output(d, Inboxes)) {
		if in.unread() != want[user] {
			t.Fatalf("%d unread messages in the inbox of %s, and the counter is %d", in.unread(), user, want[user])
		}
	}
}

func TestTopology(t *testing.T) {
	d := newDriver(t)
	pipe(d, sent("1", "ann", 1, "bob", "cid", "bob"))
	wantCounts(t, d, map[string]int64{"bob": 1, "cid": 1})
	pipe(d, did("2", Read, "bob", 2, "1"))
	wantCounts(t, d, map[string]int64{"bob": 0, "cid": 1})
	pipe(d, did("3", Unread, "bob", 3, "1"))
	pipe(d, did("2", Read, "bob", 2, "1")) // once more, and late
	wantCounts(t, d, map[string]int64{"bob": 1, "cid": 1})
	pipe(d, did("4", Deleted, "cid", 1, "1"))
	pipe(d, sent("1", "ann", 1, "bob", "cid", "bob"))
	wantCounts(t, d, map[string]int64{"bob": 1, "cid": 0})

	box := processortest.Map(processortest.Output(d, Inboxes))["bob"]
	want := Item{Message: "m1", From: "ann", Subject: "about 1", At: base + 1}
	if len(box.Messages) != 1 || box.Messages[0] != want {
		t.Fatalf("inbox of bob: %+v", box)
	}
	// All that the repartition topic got is keyed by recipient.
	for _, out := range d.Raw(processor.RepartitionTopic(application, ByRecipient.Name())) {
		if key := string(out.Key); key != "bob" && key != "cid" {
			t.Fatalf("a record for %q", key)
		}
	}
}

// TestCrash: what was committed is there after a crash, and what was not is done again, once.
func TestCrash(t *testing.T) {
	d := newDriver(t, processortest.CommitManually())
	pipe(d, sent("1", "ann", 1, "bob"))
	pipe(d, sent("2", "ann", 2, "bob"))
	d.Commit()
	wantCounts(t, d, map[string]int64{"bob": 2})
	pipe(d, did("3", Read, "bob", 3, "1"))
	pipe(d, sent("4", "cid", 4, "bob"))
	d.Crash()
	d.Crash()
	d.Commit()
	wantCounts(t, d, map[string]int64{"bob": 2})
	m, ok, err := processortest.Store(d, Mailboxes).Get("bob")
	if err != nil || !ok || len(m.Messages) != 3 {
		t.Fatalf("mailbox %+v, %v, %v", m, ok, err)
	}
}

// TestStrangeRecords: what should not be in the log neither stops the application nor changes a mailbox.
func TestStrangeRecords(t *testing.T) {
	d := newDriver(t)
	in := processortest.Input(d, Events)
	pipe(d, sent("1", "ann", 1, "bob"))
	in.PipeAt("eve", did("2", Deleted, "bob", 2, "1"), time.UnixMilli(base+2)) // not under the actor's key
	in.PipeAt("bob", did("3", Read, "bob", 3, "1"), time.UnixMilli(base))      // another time than the record's
	in.PipeAt("bob", did("4", "burnt", "bob", 4, "1"), time.UnixMilli(base+4))
	in.PipeTombstone("bob")
	in.PipeRecord(processor.Record[string, Event]{
		NoKey: true, Value: sent("5", "ann", 5, "bob"), Time: time.UnixMilli(base + 5),
	})
	wantCounts(t, d, map[string]int64{"bob": 1})
}

// TestLoad sends the invented mail, with all its repetitions and disorder, through the topology, with crashes in
// between, and compares with a recount.
func TestLoad(t *testing.T) {
	events := 6000
	if testing.Short() {
		events = 1500
	}
	d := newDriver(t, processortest.CommitManually())
	l := newLoad(7, "t")
	c := newRecount()
	put := func(e Event) {
		c.add(e)
		pipe(d, e)
	}
	now := time.UnixMilli(base)
	for i := range events {
		now = now.Add(4 * time.Millisecond)
		put(l.event(now))
		if i%50 == 49 {
			d.Commit()
		}
		if i%777 == 0 {
			d.Crash()
		}
	}
	for _, e := range l.rest() {
		put(e)
	}
	d.Commit()
	if l.stats.events != c.events || l.stats.twice == 0 || l.stats.swapped == 0 || l.stats.late == 0 {
		t.Fatalf("the load says %+v, the recount %d", l.stats, c.events)
	}
	want := c.unread()
	for _, p := range l.people {
		if c.boxes[p.name] == 0 {
			delete(want, p.name)
		}
	}
	wantCounts(t, d, want)
	// The sequence of counters that others saw never went below zero.
	for _, r := range processortest.Output(d, UnreadCounts).Read() {
		if r.Value < 0 {
			t.Fatalf("%s had %d unread messages", r.Key, r.Value)
		}
	}
	var sum, top int64
	for _, n := range want {
		sum, top = sum+n, max(top, n)
	}
	t.Logf("%+v: %d mailboxes, %d unread, at most %d", l.stats, len(want), sum, top)
	if len(want) < loadUsers/2 || top < 10 {
		t.Errorf("the load is dull: %d mailboxes, at most %d unread", len(want), top)
	}
}

// TestLoadIsReproducible: one seed, one mail.
func TestLoadIsReproducible(t *testing.T) {
	a, b := newLoad(3, "r"), newLoad(3, "r")
	for range 2000 {
		now := time.UnixMilli(base)
		x, y := a.event(now), b.event(now)
		if x.ID != y.ID || x.Message != y.Message || x.Kind != y.Kind || x.Actor != y.Actor {
			t.Fatalf("%+v and %+v", x, y)
		}
		if err := x.check(); err != nil {
			t.Fatalf("%+v: %v", x, err)
		}
	}
}
