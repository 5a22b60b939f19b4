package stream

import (
	"tailrace.dev/processor"
	"tailrace.dev/state"
	"tailrace.dev/table"
)

// foldSliding aggregates by sliding windows.
//
// For each record the windows around it are updated, and at most three are made: the one that ends at the record, of
// the content that it shares with the window before; the one that starts after the record, of the content that later
// records have put into the window around it; and the one that starts after the record before, if this record is its
// first.
//
// A window that has closed takes no more records, yet windows still to come are made of its content. So what a late
// record adds to it is kept in a hidden row beside its own, which no one else sees.
func foldSliding[K, V, A any](
	g *WindowGrouped[K, V], spec *state.WindowSpec[K, A], agg aggregation[K, V, A],
) *table.Table[state.Windowed[K], A] {
	diff, grace := g.w.size, g.w.grace
	agg.records = false
	return windowedTable(g, spec, agg, func(f *windowFold[K, V, A]) processor.Handler[K, V] {
		s := &slider[K, V, A]{windowFold: f, diff: diff}
		return func(r processor.Record[K, V]) error {
			if !agg.accepts(f.t, r.NoKey, r.Tombstone) {
				return nil
			}
			ts := r.Time.UnixMilli()
			if ts < 0 {
				f.t.Drop(processor.DropLate) // windows start at the epoch
				return nil
			}
			now, err := f.store.Observe(ts)
			if err != nil {
				return err
			}
			s.closed = subMillis(now, grace)
			if addMillis(ts, diff) < s.closed {
				f.t.Drop(processor.DropLate)
				return nil
			}
			if err := s.slide(r, ts); err != nil || f.pending == nil {
				return err
			}
			return f.emit(subMillis(s.closed, diff))
		}
	})
}

// slider is a windowFold for sliding windows.
type slider[K, V, A any] struct {
	*windowFold[K, V, A]
	diff   int64
	closed int64 // windows that end before this have closed
	found  []state.SpanRow
	spans  []slidingWindow
}

// slidingWindow is a window in the store.
type slidingWindow struct {
	state.SpanRow      // of the row that has the whole content
	emitted       bool // it has a row that is not hidden
}

// slide folds a record into the windows around it, and makes those that it calls for. The order of the results is that
// of Kafka Streams: KStreamSlidingWindowAggregate, processReverse and processEarly.
func (s *slider[K, V, A]) slide(r processor.Record[K, V], ts int64) error {
	early := ts < s.diff // the window that ends here would start before the epoch
	leftStart := max(0, ts-s.diff)
	if err := s.look(r.Key, max(0, subMillis(ts, addMillis(s.diff, s.diff))), addMillis(ts, 2)); err != nil {
		return err
	}
	// The windows that s.spans has, in order: those that end before ts, the left one, others around ts, the right one.
	var before, left, around, right *slidingWindow
	first := len(s.spans) // of those around ts, without the left one
	for i := range s.spans {
		w := &s.spans[i]
		switch {
		case w.StartMillis > ts:
			right = w
		case w.StartMillis == leftStart:
			left = w
		case w.StartMillis < leftStart:
			before = w
		default:
			around, first = w, min(first, i)
		}
	}
	if around == nil {
		around = left
	}
	var previous processor.Opt[int64] // the time of the record before this one
	again := false                    // there is a record of this time already
	switch {
	case left != nil && left.TimeMillis < ts:
		previous = processor.Some(left.TimeMillis)
	case left != nil && early:
	case left != nil:
		again = left.TimeMillis == ts
	case before != nil:
		previous = processor.Some(before.TimeMillis)
	}

	// What windows to be made start from is read before the update.
	var content, shared processor.Opt[A]
	var contentTime int64
	var err error
	if right == nil && around != nil && around.TimeMillis > ts {
		if content.V, contentTime, content.OK, err = s.store.Peek(s.key(r.Key, around)); err != nil {
			return err
		}
	}
	if left == nil && before != nil && previous.V >= leftStart {
		if shared.V, _, shared.OK, err = s.store.Peek(s.key(r.Key, before)); err != nil {
			return err
		}
	}

	makeRight := func() error {
		if !content.OK {
			return nil
		}
		w := s.window(r.Key, ts+1)
		return s.save(r, w, false, table.Change[A]{New: content}, contentTime)
	}
	makePrevious := func() error {
		if !previous.OK || again {
			return nil
		}
		start := previous.V + 1
		if addMillis(start, s.diff) < ts || s.has(start) {
			return nil
		}
		return s.create(r, start, processor.None[A]())
	}
	// A window that has never come out counts as missed if the record would have made it come out.
	expected := func(i int) bool {
		start := s.spans[i].StartMillis
		return start == leftStart || (previous.OK && start == previous.V+1)
	}
	if early {
		for i := first; i < len(s.spans) && s.spans[i].StartMillis <= ts; i++ {
			if err := s.change(r, &s.spans[i], expected(i)); err != nil {
				return err
			}
		}
		if err := makeRight(); err != nil {
			return err
		}
		if err := makePrevious(); err != nil {
			return err
		}
		if left != nil {
			return s.change(r, left, true)
		}
		return s.create(r, 0, processor.None[A]())
	}
	for i := len(s.spans) - 1; i >= 0 && s.spans[i].StartMillis >= leftStart; i-- {
		if s.spans[i].StartMillis > ts {
			continue
		}
		if err := s.change(r, &s.spans[i], expected(i)); err != nil {
			return err
		}
	}
	if again {
		return nil
	}
	if err := makePrevious(); err != nil {
		return err
	}
	if left == nil {
		if err := s.create(r, leftStart, shared); err != nil {
			return err
		}
	}
	return makeRight()
}

// look reads which windows of a key start in a range. Where a hidden row is beside a window's own, the hidden one has
// the whole content.
func (s *slider[K, V, A]) look(k K, from, to int64) error {
	var err error
	if s.found, err = s.store.Spans(s.found[:0], k, from, to); err != nil {
		return err
	}
	s.spans = s.spans[:0]
	for _, w := range s.found { // a hidden row sorts before the window's own
		if n := len(s.spans); n > 0 && s.spans[n-1].StartMillis == w.StartMillis {
			s.spans[n-1].emitted = true
			continue
		}
		s.spans = append(s.spans, slidingWindow{w, !w.IsHidden()})
	}
	return nil
}

func (s *slider[K, V, A]) has(start int64) bool {
	for i := range s.spans {
		if s.spans[i].StartMillis == start {
			return true
		}
	}
	return false
}

func (s *slider[K, V, A]) window(k K, start int64) state.Windowed[K] {
	return state.Windowed[K]{Key: k, Span: state.Span{StartMillis: start, EndMillis: addMillis(start, s.diff)}}
}

func (s *slider[K, V, A]) key(k K, w *slidingWindow) state.Windowed[K] {
	return state.Windowed[K]{Key: k, Span: w.Span}
}

// change folds a record into a window that is there.
func (s *slider[K, V, A]) change(r processor.Record[K, V], w *slidingWindow, counts bool) error {
	open := s.window(r.Key, w.StartMillis)
	if open.EndMillis >= s.closed {
		return s.update(r, open.Span)
	}
	if counts || w.emitted {
		s.t.Drop(processor.DropLate)
	}
	a, _, ok, err := s.store.Peek(s.key(r.Key, w))
	if err != nil {
		return err
	}
	return s.hide(r, open, processor.Opt[A]{V: a, OK: ok}, max(w.TimeMillis, r.Time.UnixMilli()))
}

// create makes a window of a record and the content that it shares with others.
func (s *slider[K, V, A]) create(r processor.Record[K, V], start int64, shared processor.Opt[A]) error {
	w, ts := s.window(r.Key, start), r.Time.UnixMilli()
	if w.EndMillis < s.closed {
		s.t.Drop(processor.DropLate)
		return s.hide(r, w, shared, ts)
	}
	c := table.Change[A]{New: s.step(shared, r)}
	if *s.wantOld && s.pending == nil {
		// Absent, unless the window was made a moment ago as the one that starts after the record before: as in Kafka
		// Streams, it comes out twice then.
		var err error
		if c.Old.V, c.Old.OK, err = s.store.Get(w); err != nil {
			return err
		}
	}
	return s.save(r, w, false, c, ts)
}

// hide keeps the content of a window that has closed.
func (s *slider[K, V, A]) hide(
	r processor.Record[K, V], w state.Windowed[K], a processor.Opt[A], at int64,
) error {
	w.Span = w.Hidden()
	if a = s.step(a, r); !a.OK {
		return s.store.Delete(w)
	}
	return s.put(w, a.V, at)
}
