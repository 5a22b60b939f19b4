package main

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// The limits of what a mailbox remembers. They bound the row that it is.
const (
	// maxLate is how late an event may be: an event about a message that the mailbox does not know, older by more
	// than this than the newest event of the mailbox, is left out, because the message may have been deleted and
	// forgotten.
	maxLate = 7 * 24 * time.Hour
	// remember is how long it is known that a message was deleted, and what was done to a message that has not
	// arrived. Twice maxLate, so that a read or a deletion may also bear a time that is up to maxLate before that of
	// its message, as clocks differ.
	remember = 2 * maxLate
	// maxMessages is how many messages an inbox holds; a further one pushes the oldest out, as if deleted.
	maxMessages = 1000
	// maxRemembered is how many deleted and not yet arrived messages are known. Beyond, the oldest is forgotten
	// early, and events of its time and before are too late from then on.
	maxRemembered = 1000
)

// Mailbox is the fold of all events that concern one user. It is the only state there is: the inbox and the counter
// of unread messages are computed from it and so cannot disagree.
//
// Each message in it is a join of the events about it: taking one in twice, or two in the other order, gives the
// same. Nothing is ever counted up or down, so nothing can be counted twice.
type Mailbox struct {
	// Clock is the time of the newest event, in Unix milliseconds: it is by this that others are old.
	Clock int64 `json:"clock"`
	// Floor is set when something had to be forgotten early: an event before it about an unknown message is too late.
	Floor int64 `json:"floor,omitempty"`
	// TooLate counts the events that were left out for that.
	TooLate int64 `json:"too_late,omitempty"`
	// Messages are the messages by name, among them deleted ones and such that have not arrived.
	Messages map[string]*Message `json:"messages"`
}

// Message is what a mailbox knows of a message.
type Message struct {
	// Sent is the message itself; nil before it has arrived, and after it was deleted.
	Sent *Letter `json:"sent,omitempty"`
	// Mark is the newest read or unread event.
	Mark Mark `json:"mark,omitzero"`
	// Deleted stays true whatever comes after.
	Deleted bool `json:"deleted,omitempty"`
	// Last is the time of the newest event about the message.
	Last int64 `json:"last"`
}

// Letter is a message as it was sent.
type Letter struct {
	At      int64  `json:"at"`
	Event   string `json:"event"`
	From    string `json:"from"`
	Subject string `json:"subject,omitempty"`
	Thread  string `json:"thread,omitempty"`
}

// Mark is a register of which the last writer, by time and then by event id, wins.
type Mark struct {
	At    int64  `json:"at"`
	Event string `json:"event"`
	Read  bool   `json:"read,omitempty"`
}

// apply takes one event into the mailbox and returns it. It owns m, as the argument of an aggregation.
func (m Mailbox) apply(_ string, e Event) Mailbox {
	if m.Messages == nil {
		m.Messages = make(map[string]*Message)
	}
	m.advance(e.At)
	msg := m.Messages[e.Message]
	if msg == nil {
		if e.At < max(m.Clock-maxLate.Milliseconds(), m.Floor) {
			m.TooLate++
			return m
		}
		msg = new(Message)
		m.Messages[e.Message] = msg
	}
	msg.join(e)
	m.limit()
	return m
}

// join takes an event into what is known of its message. It is commutative, associative and idempotent.
func (msg *Message) join(e Event) {
	msg.Last = max(msg.Last, e.At)
	if msg.Deleted {
		return
	}
	switch e.Kind {
	case Sent:
		// Two different letters under one name are a sender's mistake; the first is as good as any, but it must
		// be the same one in whatever order they come.
		l := &Letter{At: e.At, Event: e.ID, From: e.Actor, Subject: e.Subject, Thread: e.Thread}
		if msg.Sent == nil || l.compare(msg.Sent) < 0 {
			msg.Sent = l
		}
	case Read, Unread:
		if k := (Mark{At: e.At, Event: e.ID, Read: e.Kind == Read}); k.compare(msg.Mark) > 0 {
			msg.Mark = k
		}
	case Deleted:
		msg.forget()
	}
}

// forget leaves of the message only that it was deleted.
func (msg *Message) forget() { *msg = Message{Deleted: true, Last: msg.Last} }

func (l *Letter) compare(o *Letter) int {
	return cmp.Or(cmp.Compare(l.At, o.At), strings.Compare(l.Event, o.Event), strings.Compare(l.From, o.From),
		strings.Compare(l.Subject, o.Subject), strings.Compare(l.Thread, o.Thread))
}

func (k Mark) compare(o Mark) int {
	c := cmp.Or(cmp.Compare(k.At, o.At), strings.Compare(k.Event, o.Event))
	if c == 0 && k.Read != o.Read {
		if k.Read {
			return 1
		}
		return -1
	}
	return c
}

// visible tells whether the message is in the inbox.
func (msg *Message) visible() bool { return msg.Sent != nil && !msg.Deleted }

// pruneEvery is how far the clock goes between two looks for what may be forgotten.
const pruneEvery = int64(time.Hour / time.Millisecond)

// advance moves the clock on, and forgets what is older than remember.
func (m *Mailbox) advance(at int64) {
	if at <= m.Clock {
		return
	}
	before := m.Clock
	m.Clock = at
	if before/pruneEvery == at/pruneEvery {
		return
	}
	horizon := at/pruneEvery*pruneEvery - remember.Milliseconds()
	for id, msg := range m.Messages {
		if !msg.visible() && msg.Last < horizon {
			delete(m.Messages, id)
		}
	}
}

// limit keeps the mailbox within its bounds. An event adds at most one message, so one of each kind is too many.
func (m *Mailbox) limit() {
	if len(m.Messages) <= min(maxMessages, maxRemembered) {
		return
	}
	var visible int
	var oldest *Message
	for _, msg := range m.Messages {
		if !msg.visible() {
			continue
		}
		visible++
		if oldest == nil || msg.Sent.compare(oldest.Sent) < 0 {
			oldest = msg
		}
	}
	if visible > maxMessages {
		visible--
		oldest.forget()
	}
	if len(m.Messages)-visible <= maxRemembered {
		return
	}
	var first string
	var last int64
	for id, msg := range m.Messages {
		if !msg.visible() && (first == "" || msg.Last < last || msg.Last == last && id < first) {
			first, last = id, msg.Last
		}
	}
	delete(m.Messages, first)
	m.Floor = max(m.Floor, last+1)
}

// Inbox is what a user sees: the messages, newest first. It holds no counter, so that the counter can be compared
// with it.
type Inbox struct {
	Messages []Item `json:"messages"`
}

// Item is a message in an inbox.
type Item struct {
	Message string `json:"message"`
	From    string `json:"from"`
	Subject string `json:"subject,omitempty"`
	Thread  string `json:"thread,omitempty"`
	// At is when it was sent, in Unix milliseconds.
	At   int64 `json:"at"`
	Read bool  `json:"read,omitempty"`
}

// inbox returns the view of the mailbox.
func (m Mailbox) inbox() Inbox {
	in := Inbox{Messages: []Item{}}
	for id, msg := range m.Messages {
		if msg.visible() {
			s := msg.Sent
			in.Messages = append(in.Messages,
				Item{Message: id, From: s.From, Subject: s.Subject, Thread: s.Thread, At: s.At, Read: msg.Mark.Read})
		}
	}
	slices.SortFunc(in.Messages, func(a, b Item) int {
		return cmp.Or(cmp.Compare(b.At, a.At), strings.Compare(a.Message, b.Message))
	})
	return in
}

// unread returns how many messages of the inbox are not read.
func (m Mailbox) unread() int64 {
	var n int64
	for _, msg := range m.Messages {
		if msg.visible() && !msg.Mark.Read {
			n++
		}
	}
	return n
}

// unread counts in the view what Mailbox.unread counts in the state.
func (in Inbox) unread() int64 {
	var n int64
	for _, it := range in.Messages {
		if !it.Read {
			n++
		}
	}
	return n
}
