package main

import (
	"container/heap"
	"math/rand/v2"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
)

// load invents the mail of a company: some get and send far more than others, most answers stay in their thread,
// people open their box now and then and read, delete, or mark something unread to come back to it; a few never look.
// Of its events 1 % come twice, 1 % out of order, and 0.3 % very late. The same seed gives the same mail.
type load struct {
	rng     *rand.Rand
	run     string // makes the names of this run's messages and events its own
	people  []*person
	senders *chooser
	readers *chooser
	next    int
	queue   []Event // what the person who is at their box is about to do
	held    holdback
	seq     int // events that left
	stats   loadStats
}

// loadStats counts what was invented.
type loadStats struct{ events, twice, swapped, late int }

// person is a user as the generator sees them: what they know is what was sent to them, not what arrived.
type person struct {
	name  string
	away  bool // never opens the box
	inbox []letter
}

// letter is a message in somebody's box.
type letter struct {
	message, thread, subject, from string
	read                           bool
}

// Shape of the load.
const (
	loadUsers    = 200
	sendShare    = 0.36 // of what people do, the rest is handling what they got
	replyShare   = 0.55
	twiceShare   = 0.01
	swappedShare = 0.01
	lateShare    = 0.003
	tidyAbove    = 120 // a box with more is tidied up, also by those who do not read
)

var (
	firstNames = strings.Fields(`ada amir anna ben bo carl cora dan dora eli emma finn gina hana hugo ida ivan jana jon
		kai kim lea leo lina max mia nia nils noa olga otto pia raj rosa sam sara tom uma vera zoe`)
	matters = strings.Fields(`budget roadmap offsite invoice release incident hiring onboarding contract survey audit
		launch`)
	papers = strings.Fields("draft numbers notes question plan review dates follow-up summary proposal")
)

func newLoad(seed uint64, run string) *load {
	l := &load{rng: rand.New(rand.NewPCG(seed, 0x7a11)), run: run}
	for i := range loadUsers {
		name := firstNames[i%len(firstNames)] + "." + string(rune('a'+i/len(firstNames)))
		l.people = append(l.people, &person{name: name, away: i%23 == 2})
	}
	// Being written to, writing and reading are each skewed, and not for the same people.
	l.readers = newChooser(l.rng, len(l.people), false)
	l.senders = newChooser(l.rng, len(l.people), true)
	return l
}

// event returns the next event to append.
func (l *load) event(now time.Time) Event {
	l.seq++
	l.stats.events++
	if e, ok := l.held.due(l.seq); ok {
		return e
	}
	for {
		e := l.invent(now)
		switch p := l.rng.Float64(); {
		case p < twiceShare:
			l.stats.twice++
			l.held.hold(e, l.seq+1+l.rng.IntN(300))
			return e
		case p < twiceShare+swappedShare:
			l.stats.swapped++
			l.held.hold(e, l.seq+1+l.rng.IntN(20))
		case p < twiceShare+swappedShare+lateShare:
			l.stats.late++
			l.held.hold(e, l.seq+500+l.rng.IntN(1500))
		default:
			return e
		}
	}
}

// rest returns what is still held back, at the end.
func (l *load) rest() []Event {
	var es []Event
	for l.held.Len() > 0 {
		es = append(es, heap.Pop(&l.held).(heldEvent).event)
	}
	l.stats.events += len(es)
	return es
}

func (l *load) invent(now time.Time) Event {
	for len(l.queue) == 0 {
		if l.rng.Float64() < sendShare {
			l.queue = append(l.queue, l.send())
		} else {
			l.handle()
		}
	}
	e := l.queue[0]
	l.queue = l.queue[1:]
	e.ID, e.At = l.name("e"), now.UnixMilli()
	return e
}

// name returns a new name that sorts after the earlier ones.
func (l *load) name(kind string) string {
	l.next++
	n := strconv.FormatInt(int64(l.next), 36)
	return kind + l.run + "." + strings.Repeat("0", max(0, 6-len(n))) + n
}

// send writes a message: an answer, if there is something to answer.
func (l *load) send() Event {
	from := l.people[l.senders.choose()]
	e := Event{Kind: Sent, Actor: from.name, Message: l.name("m")}
	var to []*person
	if n := len(from.inbox); n > 0 && l.rng.Float64() < replyShare {
		old := from.inbox[n-1-l.rng.IntN(min(n, 5))]
		e.Thread, e.Subject = old.thread, "Re: "+strings.TrimPrefix(old.subject, "Re: ")
		to = append(to, l.person(old.from))
	} else {
		e.Thread = l.name("t")
		e.Subject = matters[l.rng.IntN(len(matters))] + " " + papers[l.rng.IntN(len(papers))]
		to = append(to, l.people[l.readers.choose()])
	}
	for l.rng.Float64() < 0.4 && len(to) < 8 {
		to = append(to, l.people[l.readers.choose()])
	}
	for _, p := range to {
		if !slices.Contains(e.To, p.name) {
			e.To = append(e.To, p.name)
			p.inbox = append(p.inbox, letter{message: e.Message, thread: e.Thread, subject: e.Subject, from: from.name})
		}
	}
	return e
}

func (l *load) person(name string) *person {
	i := slices.IndexFunc(l.people, func(p *person) bool { return p.name == name })
	return l.people[i]
}

// handle lets somebody open their box.
func (l *load) handle() {
	p := l.people[l.readers.choose()]
	if len(p.inbox) > tidyAbove {
		for _, old := range p.inbox[:tidyAbove/4] {
			l.act(p, Deleted, old.message)
		}
		p.inbox = slices.Delete(p.inbox, 0, tidyAbove/4)
		return
	}
	if p.away {
		return
	}
	todo := 1 + l.rng.IntN(6)
	for i := len(p.inbox) - 1; i >= 0 && todo > 0; i-- {
		m := &p.inbox[i]
		again := m.read
		if again && l.rng.Float64() < 0.8 {
			continue
		}
		todo--
		m.read = true
		l.act(p, Read, m.message)
		switch x := l.rng.Float64(); {
		case x < 0.06:
			m.read = false
			l.act(p, Unread, m.message)
		case x < 0.35:
			l.act(p, Deleted, m.message)
			p.inbox = slices.Delete(p.inbox, i, i+1)
		}
	}
}

func (l *load) act(p *person, k Kind, message string) {
	l.queue = append(l.queue, Event{Kind: k, Actor: p.name, Message: message})
}

// chooser picks indexes with the skew of Zipf's law.
type chooser struct {
	rng   *rand.Rand
	order []int
	sums  []float64
}

func newChooser(rng *rand.Rand, n int, shuffled bool) *chooser {
	c := &chooser{rng: rng}
	var sum float64
	for i := range n {
		sum += 1 / float64(i+3)
		c.sums = append(c.sums, sum)
		c.order = append(c.order, i)
	}
	if shuffled {
		rng.Shuffle(n, func(i, j int) { c.order[i], c.order[j] = c.order[j], c.order[i] })
	}
	return c
}

func (c *chooser) choose() int {
	x := c.rng.Float64() * c.sums[len(c.sums)-1]
	return c.order[min(sort.SearchFloat64s(c.sums, x), len(c.order)-1)]
}

// holdback keeps events until a number of others have left.
type holdback []heldEvent

type heldEvent struct {
	event Event
	until int
}

func (h holdback) Len() int           { return len(h) }
func (h holdback) Less(i, j int) bool { return h[i].until < h[j].until }
func (h holdback) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *holdback) Push(x any)        { *h = append(*h, x.(heldEvent)) }
func (h *holdback) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}

func (h *holdback) hold(e Event, until int) { heap.Push(h, heldEvent{e, until}) }

func (h *holdback) due(seq int) (Event, bool) {
	if h.Len() == 0 || (*h)[0].until > seq {
		return Event{}, false
	}
	return heap.Pop(h).(heldEvent).event, true
}
