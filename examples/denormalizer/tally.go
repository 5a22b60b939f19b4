package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
)

// tally counts what came of what happened in the newsroom: for each story that was appended, the documents that name it
// as their cause. It is safe for concurrent use.
type tally struct {
	mu      sync.Mutex
	rows    map[string]*tallyRow
	causes  map[string]*causeRow // by CauseHeader
	order   []string             // the keys of causes, oldest first
	waiting []*causeRow          // to be told once they are done
	newest  feedItem
	written int64
}

type tallyRow struct {
	what                   string
	stories, writes, most  int
	published, re, removed int
}

type causeRow struct {
	row      *tallyRow
	tell     string
	at, last time.Time
	writes   int
}

// maxCauses bounds what is remembered. Whatever came of a story has come long before as many others.
const maxCauses = 20_000

func newTally() *tally {
	return &tally{rows: make(map[string]*tallyRow), causes: make(map[string]*causeRow)}
}

// appended notes a story that is about to be appended.
func (t *tally) appended(s story, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	row := t.rows[s.what]
	if row == nil {
		row = &tallyRow{what: s.what}
		t.rows[s.what] = row
	}
	row.stories++
	if s.repeat {
		return // what comes of this version came of the first record of it
	}
	key := causeOf(s.asset.ID, s.asset.Version)
	c := &causeRow{row: row, tell: s.tell, at: now, last: now}
	t.causes[key] = c
	t.order = append(t.order, key)
	if len(t.order) > maxCauses {
		delete(t.causes, t.order[0])
		t.order = t.order[1:]
	}
	if c.tell != "" {
		t.waiting = append(t.waiting, c)
	}
}

// wrote notes a record of the denormalised topic.
func (t *tally) wrote(item feedItem) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.newest = item
	t.written++
	c := t.causes[item.Cause]
	if c == nil {
		return // of an earlier run
	}
	c.last = now
	c.writes++
	c.row.writes++
	c.row.most = max(c.row.most, c.writes)
	switch item.Event {
	case EventPublished:
		c.row.published++
	case EventRepublished:
		c.row.re++
	case EventWithdrawn:
		c.row.removed++
	}
}

// Quiet times after which a story is taken to be done: without any document, and after the last one.
const (
	doneEmpty = 2 * time.Second
	doneAfter = 500 * time.Millisecond
)

// done returns a line for each story that is done by now and reached several articles.
func (t *tally) done(now time.Time) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var lines []string
	t.waiting = slices.DeleteFunc(t.waiting, func(c *causeRow) bool {
		if now.Sub(c.last) < doneAfter || (c.writes == 0 && now.Sub(c.at) < doneEmpty) {
			return false
		}
		if c.writes > 1 { // or else it concerned nobody, or the article itself only
			lines = append(lines, fmt.Sprintf("%s → %d articles rewritten in %v", c.tell, c.writes,
				c.last.Sub(c.at).Round(time.Millisecond)))
		}
		return true
	})
	return lines
}

// last returns the newest record of the denormalised topic, and how many there were.
func (t *tally) last() (feedItem, int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.newest, t.written
}

// table renders what happened and what came of it.
func (t *tally) table() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	rows := make([]*tallyRow, 0, len(t.rows))
	sum := tallyRow{what: "together"}
	for _, r := range t.rows {
		rows = append(rows, r)
		sum.stories += r.stories
		sum.writes += r.writes
		sum.most = max(sum.most, r.most)
		sum.published += r.published
		sum.re += r.re
		sum.removed += r.removed
	}
	slices.SortFunc(rows, func(a, b *tallyRow) int {
		return cmp.Or(cmp.Compare(b.writes, a.writes), cmp.Compare(b.stories, a.stories), strings.Compare(a.what, b.what))
	})
	var sb strings.Builder
	w := tabwriter.NewWriter(&sb, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "%-24s\trecords\t→\tpublished\trepublished\twithdrawn\tmost by one\t\n", "in the monolog")
	for _, r := range append(rows, &sum) {
		fmt.Fprintf(w, "%-24s\t%d\t\t%d\t%d\t%d\t%d\t\n", r.what, r.stories, r.published, r.re, r.removed, r.most)
	}
	_ = w.Flush() // into memory
	return sb.String()
}
