package main

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"
	"unicode"
	"unicode/utf8"

	"tailrace.dev/processor"
)

// Kind says what happened to a message.
type Kind string

// The kinds of events.
const (
	// Sent puts a message into the inbox of each of Event.To.
	Sent Kind = "sent"
	// Read and Unread mark a message in the actor's own inbox.
	Read   Kind = "read"
	Unread Kind = "unread"
	// Deleted removes a message from the actor's own inbox, for good.
	Deleted Kind = "deleted"
)

// Event is one thing that somebody did, as it lies in the topic mail-events under the key Actor.
//
// The same event may be in the log several times (a client repeats what it got no answer for), and events may be in
// it in any order (they lie in several partitions, and some come late). What an event does depends on its fields
// alone, and so a repetition must be equal to the original in all of them.
type Event struct {
	// ID names the event. It decides between two events of the same millisecond.
	ID   string `json:"id"`
	Kind Kind   `json:"kind"`
	// Actor is who did it: the sender of a message, or the owner of the inbox.
	Actor string `json:"actor"`
	// At is when it happened, in Unix milliseconds. It is also the time of the record.
	At int64 `json:"at"`
	// Message names the message, in all inboxes that it is in.
	Message string `json:"message"`

	// To, Subject and Thread belong to Sent alone.
	To      []string `json:"to,omitempty"`
	Subject string   `json:"subject,omitempty"`
	Thread  string   `json:"thread,omitempty"`
}

// Bounds on what one event may hold: a mailbox is one row, and its size is bounded by them.
const (
	maxRecipients   = 50
	maxSubjectBytes = 200
)

var (
	userRule = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,31}$`)
	idRule   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
)

// check returns everything that is wrong with the event, joined.
func (e Event) check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !idRule.MatchString(e.ID) {
		bad("id %.70q: give 1 to 64 letters, digits, '.', '_' or '-'", e.ID)
	}
	if !idRule.MatchString(e.Message) {
		bad("message %.70q: give 1 to 64 letters, digits, '.', '_' or '-'", e.Message)
	}
	if !userRule.MatchString(e.Actor) {
		bad("actor %.40q: give 1 to 32 small letters, digits, '.', '_' or '-'", e.Actor)
	}
	if e.At <= 0 {
		bad("at is %d: give Unix milliseconds", e.At)
	}
	switch e.Kind {
	case Sent:
		errs = append(errs, e.checkSent())
	case Read, Unread, Deleted:
		if len(e.To) > 0 || e.Subject != "" || e.Thread != "" {
			bad("to, subject and thread belong to kind %q only", Sent)
		}
	default:
		bad("kind %.20q: give %q, %q, %q or %q", e.Kind, Sent, Read, Unread, Deleted)
	}
	return errors.Join(errs...)
}

func (e Event) checkSent() error {
	var errs []error
	if len(e.To) < 1 || len(e.To) > maxRecipients {
		errs = append(errs, fmt.Errorf("to has %d users: give 1 to %d", len(e.To), maxRecipients))
	}
	for _, u := range e.To {
		if !userRule.MatchString(u) {
			errs = append(errs, fmt.Errorf("to %.40q: give 1 to 32 small letters, digits, '.', '_' or '-'", u))
		}
	}
	if e.Thread != "" && !idRule.MatchString(e.Thread) {
		errs = append(errs, fmt.Errorf("thread %.70q: give up to 64 letters, digits, '.', '_' or '-'", e.Thread))
	}
	if len(e.Subject) > maxSubjectBytes || !utf8.ValidString(e.Subject) || !printable(e.Subject) {
		errs = append(errs, fmt.Errorf("subject: give up to %d bytes of printable UTF-8", maxSubjectBytes))
	}
	return errors.Join(errs...)
}

func printable(s string) bool {
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}

// time returns when the event happened.
func (e Event) time() time.Time { return time.UnixMilli(e.At).UTC() }

// wellFormed tells whether a record of the log holds an event that may be applied. Whoever can write to the topic can
// write anything, and one strange record must neither stop the application nor harm a mailbox.
//
// The time of the record has to be that of the event, because brokers refuse records from the future (Kafka's
// message.timestamp.after.max.ms, one hour): an event from the year 2100 would otherwise make all mail look late.
func wellFormed(r processor.Record[string, Event]) bool {
	return !r.NoKey && !r.Tombstone && r.Key == r.Value.Actor && r.Time.UnixMilli() == r.Value.At &&
		r.Value.check() == nil
}

// recipients returns whose inboxes an event changes, each once.
func recipients(actor string, e Event) []string {
	if e.Kind != Sent {
		return []string{actor}
	}
	to := slices.Clone(e.To)
	slices.Sort(to)
	return slices.Compact(to)
}
