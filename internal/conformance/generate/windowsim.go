package main

import (
	"maps"
	"slices"
)

// windowRule follows the windows of an aggregation far enough to tell when Kafka Streams loses what it should not. Its
// stores find a window only while its start is within the retention of the newest start, and the retention is no longer
// than needed for updates. Windows that are emitted on close are looked for after the record that closes them has
// started its own, and may be out of reach by then. And a sliding window is made of the contents of older ones: where these
// are out of reach, or were never stored because a late record found them closed, it lacks them.
//
// For sliding windows it errs on the side of caution: it sees some windows that there are not.
type windowRule struct {
	kind                           string
	size, advance, grace, retained int64
	onClose                        bool
	now, newest                    int64                // newest is the largest start, of sessions the largest end
	open                           map[int64]bool       // starts
	starts, times                  map[string][]int64   // sliding: of the windows and records of each key
	sessions                       map[string][]session // that have not been emitted
	// lost tells that Kafka Streams has lost something.
	lost bool
}

type session struct{ start, end int64 }

func newWindowRule(spec object) *windowRule {
	w := spec["window"].(object)
	millis := func(name string) int64 { n, _ := w[name].(int64); return n }
	r := &windowRule{
		kind: w["type"].(string), size: millis("size_ms"), advance: millis("advance_ms"), grace: millis("grace_ms"),
		onClose: spec["emit"] == "close", open: make(map[int64]bool), times: make(map[string][]int64),
		starts: make(map[string][]int64), sessions: make(map[string][]session), now: -1, newest: -1,
	}
	switch r.kind {
	case "tumbling":
		r.advance = r.size
	case "sliding":
		r.size = millis("diff_ms")
	case "session":
		r.size = millis("gap_ms")
	}
	r.retained = r.size + r.grace
	if r.kind == "sliding" {
		r.retained += r.size
	}
	return r
}

// take follows a record that has a key and, for sliding windows, a value.
func (r *windowRule) take(key any, at int64) {
	k, ok := key.(string)
	if !ok {
		return
	}
	r.now = max(r.now, at)
	closed := r.now - r.grace
	switch r.kind {
	case "session":
		r.merge(k, at, closed-r.size)
		return
	case "sliding":
		if at+r.size < closed {
			return
		}
		r.slide(k, at, closed)
	default:
		for start := max(0, (at-r.size+r.advance)/r.advance*r.advance); start <= at; start += r.advance {
			if start+r.size > closed {
				r.start(start)
			}
		}
		closed++ // the end of these windows is not a part of them
	}
	for start := range r.open {
		if start+r.size < closed {
			r.lost = r.lost || (r.onClose && start < r.newest-r.retained) // this lookup reaches one millisecond further
			delete(r.open, start)
		}
	}
}

func (r *windowRule) start(at int64) {
	r.open[at] = true
	r.newest = max(r.newest, at)
}

func (r *windowRule) slide(key string, at, closed int64) {
	for _, start := range r.starts[key] {
		if start >= at-2*r.size && start <= at+1 && start <= r.newest-r.retained {
			r.lost = true
		}
	}
	start := func(at int64) {
		r.start(at)
		r.starts[key] = append(r.starts[key], at)
	}
	left := max(0, at-r.size)
	if left+r.size < closed {
		r.lost = true
		return
	}
	start(left)
	for _, t := range r.times[key] {
		if lo, hi := min(t, at), max(t, at); lo < hi && hi <= lo+1+r.size {
			start(lo + 1)
		}
	}
	r.times[key] = append(r.times[key], at)
}

// merge follows sessions that are emitted on close. They are kept in segments, which are dropped as a whole; the end of a
// session says which one it is in.
func (r *windowRule) merge(key string, at, closed int64) {
	if !r.onClose {
		return
	}
	s := session{at, at}
	kept := slices.DeleteFunc(slices.Clone(r.sessions[key]), func(o session) bool {
		found := o.end >= at-r.size && o.start <= at+r.size && o.end > r.newest-r.retained
		if found {
			s = session{min(s.start, o.start), max(s.end, o.end)}
		}
		return found
	})
	if s.end >= closed {
		r.sessions[key] = append(kept, s)
		r.newest = max(r.newest, s.end)
	}
	interval := max(r.retained/2, 60_000)
	oldest := floor(r.newest-r.retained, interval)
	for k, sessions := range r.sessions {
		r.sessions[k] = slices.DeleteFunc(slices.Clone(sessions), func(o session) bool {
			r.lost = r.lost || (o.end < closed && floor(o.end, interval) < oldest)
			return o.end < closed
		})
	}
}

func floor(n, by int64) int64 {
	if n < 0 {
		return -1
	}
	return n / by
}

// trial reports whether Kafka Streams would lose something at one more record.
func (r *windowRule) trial(key any, at int64) bool {
	c := *r
	c.open, c.sessions = maps.Clone(r.open), maps.Clone(r.sessions)
	c.times, c.starts = maps.Clone(r.times), maps.Clone(r.starts)
	for k := range c.times {
		c.times[k], c.starts[k] = slices.Clip(c.times[k]), slices.Clip(c.starts[k])
	}
	c.take(key, at)
	return c.lost
}
