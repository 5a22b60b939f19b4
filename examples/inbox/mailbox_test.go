package main

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tailrace.dev/serde"
)

// base is the time at which the tests' events begin.
const base = int64(1_750_000_000_000)

// drawEvents draws events about the messages of one mailbox whose times lie within span. Ids and times collide now
// and then, as do different letters under one name.
func drawEvents(t *rapid.T, span time.Duration) []Event {
	kinds := []Kind{Sent, Sent, Read, Read, Unread, Deleted}
	n := rapid.IntRange(1, 40).Draw(t, "n")
	events := make([]Event, n)
	for i := range events {
		e := Event{
			ID:      fmt.Sprintf("e%d", rapid.IntRange(0, 2*n).Draw(t, "id")),
			Kind:    rapid.SampledFrom(kinds).Draw(t, "kind"),
			Actor:   "bob",
			At:      base + rapid.Int64Range(0, span.Milliseconds()).Draw(t, "at"),
			Message: fmt.Sprintf("m%d", rapid.IntRange(0, 6).Draw(t, "message")),
		}
		if rapid.Bool().Draw(t, "sameTime") {
			e.At = base + span.Milliseconds()/2
		}
		if e.Kind == Sent {
			e.Actor, e.To = rapid.SampledFrom([]string{"ann", "carl"}).Draw(t, "from"), []string{"bob"}
			e.Subject = rapid.SampledFrom([]string{"one", "two"}).Draw(t, "subject")
		}
		events[i] = e
	}
	return events
}

// shuffled returns the events in another order, some of them several times.
func shuffled(t *rapid.T, events []Event) []Event {
	again := slices.Clone(events)
	for range rapid.IntRange(0, len(events)).Draw(t, "repeats") {
		again = append(again, rapid.SampledFrom(events).Draw(t, "repeat"))
	}
	return rapid.Permutation(again).Draw(t, "order")
}

func foldAll(events []Event) Mailbox {
	var m Mailbox
	for _, e := range events {
		m = m.apply("bob", e)
	}
	return m
}

// oracleUnread counts by definition, over the set of events.
func oracleUnread(events []Event) int64 {
	c := newRecount()
	for _, e := range events {
		c.add(e)
	}
	return c.unread()["bob"]
}

// TestAnyOrder: within maxLate, the mailbox is a function of the set of events.
func TestAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		events := drawEvents(t, maxLate)
		// Even where ids are not unique, the contents decide in the same way.
		want, got := foldAll(events), foldAll(shuffled(t, events))
		if !reflect.DeepEqual(want, got) {
			t.Fatalf("another order gives another mailbox:\n%+v\n%+v", want.inbox(), got.inbox())
		}
	})
}

// TestCounter: at each step the counter is what counting all events so far gives, and what the inbox shows.
func TestCounter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		events := drawEvents(t, maxLate)
		for i := range events {
			events[i].ID = fmt.Sprintf("e%02d", i)
		}
		events = shuffled(t, events)
		var m Mailbox
		for i, e := range events {
			m = m.apply("bob", e)
			n := m.unread()
			if n < 0 || n != oracleUnread(events[:i+1]) || n != m.inbox().unread() {
				t.Fatalf("after %d events the counter is %d, the inbox has %d, the oracle says %d",
					i+1, n, m.inbox().unread(), oracleUnread(events[:i+1]))
			}
		}
		if m.TooLate != 0 {
			t.Fatalf("%d events within the limit were left out", m.TooLate)
		}
	})
}

// TestForgetting: over months, with each event late by at most maxLate, what was forgotten makes no difference to
// what is seen, and little is remembered.
func TestForgetting(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		type arrival struct {
			e  Event
			at int64
		}
		var arrivals []arrival
		at := base
		for i := range 300 {
			at += rng.Int64N(int64(12 * time.Hour / time.Millisecond))
			message := fmt.Sprintf("m%03d", i)
			life := []Event{
				{ID: "s" + message, Kind: Sent, Actor: "ann", To: []string{"bob"}, At: at, Message: message},
			}
			for j, k := range []Kind{Read, Unread, Read, Deleted}[:rng.IntN(5)] {
				// A clock that is behind by up to half of the limit makes a read older than its message.
				when := at + rng.Int64N(20*24*3_600_000) - rng.Int64N(maxLate.Milliseconds()/2)
				id := fmt.Sprintf("x%s.%d", message, j)
				life = append(life, Event{ID: id, Kind: k, Actor: "bob", At: when, Message: message})
			}
			for _, e := range life {
				for range 1 + rng.IntN(2) {
					arrivals = append(arrivals, arrival{e, e.At + rng.Int64N(maxLate.Milliseconds())})
				}
			}
		}
		slices.SortFunc(arrivals, func(a, b arrival) int { return int(a.at - b.at) })
		var m Mailbox
		var events []Event
		for _, a := range arrivals {
			m = m.apply("bob", a.e)
			events = append(events, a.e)
		}
		if got, want := m.unread(), oracleUnread(events); got != want {
			t.Fatalf("the counter is %d, the oracle says %d", got, want)
		}
		remembered := len(m.Messages) - len(m.inbox().Messages)
		if m.TooLate != 0 || remembered > 200 {
			t.Fatalf("%d left out, %d deleted messages remembered", m.TooLate, remembered)
		}
	})
}

func TestReadBeforeSent(t *testing.T) {
	read := Event{ID: "e2", Kind: Read, Actor: "bob", At: base + 2, Message: "m1"}
	sent := Event{ID: "e1", Kind: Sent, Actor: "ann", To: []string{"bob"}, At: base + 1, Message: "m1", Subject: "hi"}
	m := foldAll([]Event{read})
	if m.unread() != 0 || len(m.inbox().Messages) != 0 {
		t.Fatalf("a read without its message: unread %d, inbox %v", m.unread(), m.inbox())
	}
	m = m.apply("bob", sent)
	if in := m.inbox(); m.unread() != 0 || len(in.Messages) != 1 || !in.Messages[0].Read {
		t.Fatalf("the message arrives after it was read: unread %d, inbox %v", m.unread(), in)
	}
}

func TestDeletedStaysDeleted(t *testing.T) {
	sent := Event{ID: "e1", Kind: Sent, Actor: "ann", To: []string{"bob"}, At: base + 1, Message: "m1"}
	deleted := Event{ID: "e2", Kind: Deleted, Actor: "bob", At: base + 2, Message: "m1"}
	unread := Event{ID: "e3", Kind: Unread, Actor: "bob", At: base + 3, Message: "m1"}
	if m := foldAll([]Event{deleted, sent, unread, sent}); m.unread() != 0 || len(m.inbox().Messages) != 0 {
		t.Fatalf("unread %d, inbox %v", m.unread(), m.inbox())
	}
	// The deletion is forgotten after a while; then the message itself is too late to come back.
	later := Event{
		ID: "e4", Kind: Sent, Actor: "ann", To: []string{"bob"}, Message: "m2",
		At: base + (remember + 2*time.Hour).Milliseconds(),
	}
	m := foldAll([]Event{sent, deleted, later})
	if m.Messages["m1"] != nil {
		t.Fatalf("m1 is still remembered: %+v", m.Messages["m1"])
	}
	m = m.apply("bob", sent)
	if m.unread() != 1 || len(m.inbox().Messages) != 1 || m.TooLate != 1 {
		t.Fatalf("unread %d, inbox %v, too late %d", m.unread(), m.inbox(), m.TooLate)
	}
}

// TestBounds: whatever comes, the row stays within a Kafka message, and the counter is that of the inbox.
func TestBounds(t *testing.T) {
	var m Mailbox
	value := Mailboxes.Value()
	long := func(i int, kind string) string { return fmt.Sprintf("%s%063d", kind, i) }
	subject := string(slices.Repeat([]byte{'"'}, maxSubjectBytes)) // the longest in JSON
	for i := range 2 * (maxMessages + maxRemembered) {
		e := Event{
			ID: long(i, "e"), Kind: Sent, Actor: long(0, "a")[:32], To: []string{"bob"}, At: base + int64(i),
			Message: long(i, "m"), Subject: subject, Thread: long(i, "t"),
		}
		if i%3 > 0 {
			e = Event{ID: long(i, "e"), Kind: Read, Actor: "bob", At: base + int64(i), Message: long(i, "m")}
		}
		m = m.apply("bob", e)
		if n := len(m.Messages); n > maxMessages+maxRemembered {
			t.Fatalf("after %d events %d messages are held", i+1, n)
		}
	}
	row, err := serde.Encode(value, m)
	if err != nil {
		t.Fatal(err)
	}
	in := m.inbox()
	t.Logf("%d messages in the inbox, %d known in all, %d bytes", len(in.Messages), len(m.Messages), len(row))
	if len(row) > 1<<20-1024 {
		t.Errorf("the row has %d bytes", len(row))
	}
	if len(in.Messages) != maxMessages || m.unread() != in.unread() || m.Floor == 0 {
		t.Errorf("%d messages, unread %d and %d, floor %d", len(in.Messages), m.unread(), in.unread(), m.Floor)
	}
	// The pushed out messages are not taken in again.
	old := Event{ID: "e0", Kind: Sent, Actor: "ann", To: []string{"bob"}, At: base, Message: long(0, "m")}
	if again := m.apply("bob", old); again.inbox().Messages[maxMessages-1] != in.Messages[maxMessages-1] {
		t.Error("an old message came back")
	}
}

// TestForgottenEarly: a deletion that there was no room to remember is not undone by its message coming again.
func TestForgottenEarly(t *testing.T) {
	sent := Event{ID: "e1", Kind: Sent, Actor: "ann", To: []string{"bob"}, At: base, Message: "m1"}
	m := foldAll([]Event{sent, {ID: "e2", Kind: Deleted, Actor: "bob", At: base + 1, Message: "m1"}})
	for i := range maxRemembered {
		id := fmt.Sprintf("x%d", i)
		m = m.apply("bob", Event{ID: id, Kind: Deleted, Actor: "bob", At: base + 2, Message: id})
	}
	if m.Messages["m1"] != nil {
		t.Fatal("m1 is still remembered")
	}
	if m = m.apply("bob", sent); m.unread() != 0 || m.TooLate != 1 {
		t.Fatalf("unread %d, too late %d", m.unread(), m.TooLate)
	}
}

func TestCheck(t *testing.T) {
	good := Event{ID: "e1", Kind: Sent, Actor: "ann", To: []string{"bob"}, At: base, Message: "m1", Subject: "Grüße"}
	if err := good.check(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(e *Event){
		"no id":         func(e *Event) { e.ID = "" },
		"long id":       func(e *Event) { e.ID = string(make([]byte, 65)) },
		"kind":          func(e *Event) { e.Kind = "burnt" },
		"actor":         func(e *Event) { e.Actor = "../ann" },
		"time":          func(e *Event) { e.At = 0 },
		"no message":    func(e *Event) { e.Message = "" },
		"nobody":        func(e *Event) { e.To = nil },
		"to":            func(e *Event) { e.To = []string{"Bob"} },
		"everybody":     func(e *Event) { e.To = slices.Repeat([]string{"bob"}, maxRecipients+1) },
		"new line":      func(e *Event) { e.Subject = "a\nb" },
		"not UTF-8":     func(e *Event) { e.Subject = "\xff" },
		"long subject":  func(e *Event) { e.Subject = string(slices.Repeat([]byte{'a'}, maxSubjectBytes+1)) },
		"thread":        func(e *Event) { e.Thread = "a b" },
		"read with to":  func(e *Event) { e.Kind = Read },
		"empty kind":    func(e *Event) { e.Kind = "" },
		"negative time": func(e *Event) { e.At = -1 },
	} {
		e := good
		change(&e)
		if e.check() == nil {
			t.Errorf("%s: %+v passes", name, e)
		}
	}
}

func BenchmarkApply(b *testing.B) {
	var m Mailbox
	for i := range 120 {
		m = m.apply("bob", Event{
			ID: fmt.Sprintf("e%d", i), Kind: Sent, Actor: "ann", To: []string{"bob"}, At: base + int64(i),
			Message: fmt.Sprintf("m%d", i), Subject: "Re: budget review",
		})
	}
	read := Event{ID: "e999", Kind: Read, Actor: "bob", At: base + 999, Message: "m50"}
	b.ReportAllocs()
	for b.Loop() {
		m = m.apply("bob", read)
	}
}
