package main

import "slices"

// Visit is an asset to be looked at because something that it depends on changed, or it did itself: if it is an article
// its document is brought up to date, and then its users are visited in turn. It is also the row of Pending.
type Visit struct {
	// Left is how many references further up the change may still be felt: documents have a greatest depth.
	Left int `json:"left"`
	// Cause and Version name the asset that changed, Time the time of the record that changed it, and Path the assets
	// from there to here.
	Cause   string   `json:"cause"`
	Version int64    `json:"version"`
	Time    int64    `json:"time"`
	Path    []string `json:"path"`
	// After is the last user that has been looked up, when only some of them have.
	After string `json:"after,omitempty"`
	// Again, unless it is 0, asks for a further visit from the beginning when this one is done, with Again-1 left.
	// Beginning anew at once could go on for ever, for a tag that is changed more often than all its users can be
	// visited; and with as much left as this one has, it could go round in a cycle of references for ever.
	Again int `json:"again,omitempty"`
}

type queued struct {
	id string
	Visit
}

// walk is a bounded piece of the way from changed assets to the articles that depend on them, breadth first. During a
// walk no asset changes, so that one visit of each is enough.
type walk struct {
	d     *denormalizer
	queue []queued
	seen  map[string]int // assets that are or were queued from their beginning, and with how much left
	left  int            // visits

	known map[string]found // what was read of the assets: many documents share an author
	bytes int              // of the strings in known
}

type found struct {
	Newest
	ok bool
}

// maxKnownBytes bounds what a walk remembers.
const maxKnownBytes = 8 << 20

func (d *denormalizer) newWalk() *walk {
	return &walk{d: d, seen: make(map[string]int), left: max(1, d.limits.Visits), known: make(map[string]found)}
}

// asset is Lookup in the store.
func (w *walk) asset(id string) (Newest, bool, error) {
	if f, ok := w.known[id]; ok {
		return f.Newest, f.ok, nil
	}
	n, ok, err := w.d.assets.Get(id)
	if err != nil {
		return n, false, err
	}
	const row = 200 // for the rest of it
	if w.bytes += n.size() + row*(1+len(n.Refs)); w.bytes > maxKnownBytes {
		clear(w.known)
		w.bytes = 0
	}
	w.known[id] = found{n, ok}
	return n, ok, nil
}

// push queues a visit. One that was only begun in an earlier walk does not stand for a visit in this one: something may
// have changed in between.
func (w *walk) push(id string, v Visit) {
	if v.After == "" {
		if left, ok := w.seen[id]; ok && left >= v.Left {
			return
		}
		w.seen[id] = v.Left
	}
	w.queue = append(w.queue, queued{id, v})
}

// run makes visits until there are none left to make, or none that may be made.
func (w *walk) run() error {
	for len(w.queue) > 0 && w.left > 0 {
		q := w.queue[0]
		w.queue = w.queue[1:]
		w.left--
		if err := w.visit(q); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) visit(q queued) error {
	if q.After == "" {
		if err := w.d.publish(q.id, &q.Visit, w.asset); err != nil {
			return err
		}
	}
	if q.Left > 0 {
		users, more, err := w.d.users(q.id, q.After)
		if err != nil {
			return err
		}
		for _, user := range users {
			v := q.Visit
			v.Left, v.After, v.Again = q.Left-1, "", 0
			v.Path = append(slices.Clone(q.Path), user)
			w.push(user, v)
		}
		if more {
			// Behind the users: they are done before more of them are looked up, and the queue stays short.
			q.After = users[len(users)-1]
			w.queue = append(w.queue, q)
			return nil
		}
	}
	if q.Again > 0 {
		q.Left, q.After, q.Again = q.Again-1, "", 0
		w.push(q.id, q.Visit)
	}
	return nil
}

// users returns the next users of an asset after a given one, and whether there are more.
func (d *denormalizer) users(id, after string) (users []string, more bool, err error) {
	from, to := edge{First: id}, edge{First: id + "\x00"} // the smallest string above id, which is no id
	if after != "" {
		from.Second = after + "\x00"
	}
	for e, err := range d.usedBy.Range(from, to) {
		if err != nil {
			return nil, false, err
		}
		if len(users) == max(1, d.limits.Edges) {
			return users, true, nil
		}
		users = append(users, e.Key.Second)
	}
	return users, false, nil
}

// spill puts what was not visited into Pending.
func (w *walk) spill() error {
	for _, q := range w.queue {
		v := q.Visit
		have, ok, err := w.d.pending.Get(q.id)
		if err != nil {
			return err
		}
		if ok {
			v = merge(have, v)
		}
		if err := w.d.pending.SetAt(q.id, v, v.Time); err != nil {
			return err
		}
	}
	return nil
}

// merge returns a visit of one asset that does what both do. The newer one gives the reason. The one that has more
// left, or is farther, is done first and to its end; the other one starts again after it. So every user gets its turn,
// however often an asset changes; and since only what has less left comes of a visit, every walk ends.
func merge(have, v Visit) Visit {
	first, then := have, v
	if v.Left > have.Left || (v.Left == have.Left && v.After > have.After) {
		first, then = v, have
	}
	m := v
	m.Left, m.After, m.Again = first.Left, first.After, max(first.Again, then.Again)
	if first.After != "" {
		m.Again = max(m.Again, then.Left+1)
	}
	return m
}

// takeAtOnce is how many rows of Pending are taken in one go.
const takeAtOnce = 32

// drain takes up pending visits, round and round by id, so that none waits for ever.
func (d *denormalizer) drain() error {
	w := d.newWalk()
	for w.left > 0 {
		taken, err := d.take(min(w.left, takeAtOnce))
		if err != nil {
			return err
		}
		if len(taken) == 0 {
			return nil
		}
		for _, q := range taken {
			w.push(q.id, q.Visit)
		}
		if err := w.run(); err != nil {
			return err
		}
	}
	return w.spill()
}

// take removes the next n visits from Pending.
func (d *denormalizer) take(n int) ([]queued, error) {
	var taken []queued
	rows := d.pending.Range(d.next, "~") // above every id
	for pass := 0; pass < 2 && len(taken) < n; pass++ {
		for e, err := range rows {
			if err != nil {
				return nil, err
			}
			if len(taken) == n {
				break
			}
			taken = append(taken, queued{e.Key, e.Value})
			if err := d.pending.Delete(e.Key); err != nil {
				return nil, err
			}
		}
		if d.next == "" {
			break
		}
		if len(taken) < n {
			rows = d.pending.Range("", d.next)
		}
	}
	d.next = ""
	if len(taken) == n && n > 0 {
		d.next = taken[n-1].id + "\x00"
	}
	return taken, nil
}
