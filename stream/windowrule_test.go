package stream_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/processor/processortest"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
)

// These tests compare windows with their rules, written down without any care for cost: every result from scratch, from
// all records that came before.

// ruleWindow is a window and the values that it has taken, in the order in which they came.
type ruleWindow struct {
	key        string
	start, end int64
	values     string
	at         int64 // the largest time
}

func (w *ruleWindow) take(r processor.Record[string, string]) {
	w.values += "+" + r.Value
	w.at = max(w.at, r.Time.UnixMilli())
}

func (w *ruleWindow) String() string {
	return fmt.Sprintf("[%s@%d/%d]=%s@%d", w.key, w.start, w.end, w.values, w.at)
}

// closing takes the windows that closed tells to be closed out of open, in the order of their starts and keys.
func closing(open map[string]*ruleWindow, closed func(w *ruleWindow) bool, order func(a, b *ruleWindow) int) []string {
	var ws []*ruleWindow
	for id, w := range open {
		if closed(w) {
			ws = append(ws, w)
			delete(open, id)
		}
	}
	slices.SortFunc(ws, order)
	var out []string
	for _, w := range ws {
		out = append(out, w.String())
	}
	return out
}

func byStart(a, b *ruleWindow) int {
	return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.key, b.key))
}

func byEnd(a, b *ruleWindow) int { return cmp.Or(cmp.Compare(a.end, b.end), byStart(a, b)) }

// hoppingRule says what comes of records with hopping windows.
func hoppingRule(records []processor.Record[string, string], size, advance, grace int64, onClose bool) []string {
	var out []string
	now := int64(-1)
	all, open := map[string]*ruleWindow{}, map[string]*ruleWindow{}
	for _, r := range records {
		ts := r.Time.UnixMilli()
		now = max(now, ts)
		for start := int64(0); start <= ts; start += advance {
			if start+size <= ts || start+size+grace <= now {
				continue
			}
			id := fmt.Sprint(r.Key, "@", start)
			if all[id] == nil {
				all[id] = &ruleWindow{key: r.Key, start: start, end: start + size}
				open[id] = all[id]
			}
			all[id].take(r)
			if !onClose {
				out = append(out, all[id].String())
			}
		}
		if onClose {
			out = append(out, closing(open, func(w *ruleWindow) bool { return w.end+grace <= now }, byStart)...)
		}
	}
	return out
}

// slidingRule says what comes of records with sliding windows: for each there is the window that ends with it (or the
// first one of all), and the one that starts after it as soon as it has content. A window that has closed takes no
// records, and is not made.
func slidingRule(records []processor.Record[string, string], diff, grace int64, onClose bool) []string {
	var out []string
	now := int64(-1)
	var accepted []processor.Record[string, string]
	made, open := map[string]bool{}, map[string]*ruleWindow{}
	for _, r := range records {
		ts := r.Time.UnixMilli()
		now = max(now, ts)
		if ts+diff+grace < now {
			continue
		}
		accepted = append(accepted, r)
		content := func(start int64) *ruleWindow {
			w := &ruleWindow{key: r.Key, start: start, end: start + diff}
			for _, a := range accepted {
				if t := a.Time.UnixMilli(); a.Key == r.Key && start <= t && t <= w.end {
					w.take(a)
				}
			}
			return w
		}
		var starts []int64
		for _, a := range accepted {
			t := a.Time.UnixMilli()
			if a.Key == r.Key {
				starts = append(starts, max(0, t-diff))
				if content(t+1).values != "" {
					starts = append(starts, t+1)
				}
			}
		}
		slices.Sort(starts)
		for _, start := range slices.Compact(starts) {
			w, id := content(start), fmt.Sprint(r.Key, "@", start)
			isNew := !made[id]
			made[id] = true
			if w.end+grace < now || (!isNew && (ts < start || w.end < ts)) {
				continue
			}
			if open[id] = w; !onClose {
				out = append(out, w.String())
			}
		}
		if onClose {
			out = append(out, closing(open, func(w *ruleWindow) bool { return w.end+grace < now }, byStart)...)
		}
	}
	return out
}

// sessionRule says what comes of records with sessions. A session that is alive is met by records that are no further
// than the gap; alive is one that ends later than the time before the record, less the gap and the grace.
func sessionRule(records []processor.Record[string, string], gap, grace int64, onClose bool) []string {
	var out []string
	now := int64(-1)
	all, open := map[string]*ruleWindow{}, map[string]*ruleWindow{}
	for _, r := range records {
		ts, before := r.Time.UnixMilli(), now
		now = max(now, ts)
		s := &ruleWindow{key: r.Key, start: ts, end: ts}
		var met []*ruleWindow
		for _, w := range all {
			if w.key == r.Key && w.end >= ts-gap && w.start <= ts+gap && w.end > before-gap-grace {
				met = append(met, w)
			}
		}
		slices.SortFunc(met, byEnd)
		for _, w := range met {
			s.start, s.end, s.values = min(s.start, w.start), max(s.end, w.end), s.values+"&"+w.values
		}
		if s.end+gap+grace < now {
			continue
		}
		for _, w := range met {
			id := fmt.Sprint(w.key, "@", w.start, "/", w.end)
			delete(all, id)
			delete(open, id)
			if (s.start != ts || s.end != ts) && !onClose {
				out = append(out, fmt.Sprintf("[%s@%d/%d]=~@%d", w.key, w.start, w.end, w.end))
			}
		}
		s.take(r)
		s.at = s.end
		id := fmt.Sprint(r.Key, "@", s.start, "/", s.end)
		all[id], open[id] = s, s
		if !onClose {
			out = append(out, s.String())
			continue
		}
		out = append(out, closing(open, func(w *ruleWindow) bool { return w.end+gap+grace < now }, byEnd)...)
	}
	return out
}

func TestWindowRules(t *testing.T) {
	values := func(a string, _, v string) string { return a + "+" + v }
	store := state.Window("rule", serde.String, serde.String, time.Second)
	sessions := state.Session("rule", serde.String, serde.String, time.Second)
	drive := func(records []processor.Record[string, string], declare func(g *stream.Grouped[string, string])) []string {
		d := processortest.New(t, build(func(b *processor.Builder) { declare(stream.Group(stream.From(b, Words))) }))
		for _, r := range records {
			processortest.Input(d, Words).PipeRecord(r)
		}
		var got []string
		for _, r := range processortest.Output(d, Out).Read() {
			got = append(got, showRecord(r))
		}
		return got
	}
	for seed := range 10 * seeds(t) {
		rnd := rand.New(rand.NewPCG(uint64(seed), 9))
		records := slices.DeleteFunc(randomRecords(rnd, false), func(r processor.Record[string, string]) bool {
			return r.Tombstone
		})
		size := 1 + rnd.Int64N(20)
		advance := 1 + rnd.Int64N(size)
		grace := []int64{0, 1, size / 2, size, 3 * size}[rnd.IntN(5)]
		onClose := rnd.IntN(2) == 0
		inMillis := func(n int64) time.Duration { return time.Duration(n) * ms }
		what := fmt.Sprintf("seed %d, size %d, advance %d, grace %d, on close %v", seed, size, advance, grace, onClose)

		got := drive(records, func(g *stream.Grouped[string, string]) {
			w := stream.Hopping(inMillis(size), inMillis(advance)).Grace(inMillis(grace))
			if onClose {
				w = w.EmitOnClose()
			}
			writeWindows(stream.Aggregate(stream.WindowBy(g, w), store, values))
		})
		sameLines(t, "hopping, "+what, got, hoppingRule(records, size, advance, grace, onClose))

		got = drive(records, func(g *stream.Grouped[string, string]) {
			w := stream.Sliding(inMillis(size)).Grace(inMillis(grace))
			if onClose {
				w = w.EmitOnClose()
			}
			writeWindows(stream.Aggregate(stream.WindowBy(g, w), store, values))
		})
		want := slidingRule(records, size, grace, onClose)
		if !onClose { // the rule says nothing of the order within a record
			got, want = byWindow(got), byWindow(want)
		}
		sameLines(t, "sliding, "+what, got, want)

		got = drive(records, func(g *stream.Grouped[string, string]) {
			w := stream.Sessions(inMillis(size)).Grace(inMillis(grace))
			if onClose {
				w = w.EmitOnClose()
			}
			writeWindows(stream.AggregateSessions(stream.SessionBy(g, w), sessions, values,
				func(_, a, b string) string { return a + "&" + b }))
		})
		sameLines(t, "sessions, "+what, got, sessionRule(records, size, grace, onClose))
	}
}

// byWindow orders results by their windows, and leaves one of those that are the same as the one before: as in Kafka
// Streams, a new sliding window that both its record and the one before call for comes out twice.
func byWindow(results []string) []string {
	slices.SortStableFunc(results, func(a, b string) int {
		ka, _, _ := strings.Cut(a, "=")
		kb, _, _ := strings.Cut(b, "=")
		return cmp.Compare(ka, kb)
	})
	return slices.Compact(results)
}

func sameLines(t *testing.T, what string, got, want []string) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			t.Fatalf("%s: result %d:\n got %s\nwant %s", what, i, got[i:min(i+3, len(got))], want[i:min(i+3, len(want))])
		}
	}
}
