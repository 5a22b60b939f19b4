package stream_test

import (
	"fmt"
	"maps"
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
	"tailrace.dev/table"
)

const ms = time.Millisecond

// texts is an aggregate that is changed in place.
type texts struct{ All []string }

var (
	windowTexts  = state.Window("window-texts", serde.String, serde.JSON[texts](), 10*time.Minute)
	sessionTexts = state.Session("session-texts", serde.String, serde.JSON[texts](), 10*time.Minute)
	windowCount  = state.Window("window-count", serde.String, serde.Int64, 10*time.Minute)
	sessionCount = state.Session("session-count", serde.String, serde.Int64, 10*time.Minute)
	lengthSums   = state.KeyValue("length-sums", serde.String, serde.Int64)

	byInnerKey = processor.NewRepartition("by-inner-key", serde.String, serde.Int64)
	sums64     = processor.NewTopic("sums", serde.String, serde.Int64)
)

// inPlace changes its first argument, copied does not; nobody may be able to tell.
func inPlace(a texts, v string) texts {
	for i := range a.All {
		a.All[i] += "."
	}
	a.All = append(a.All, v)
	return a
}

func copied(a texts, v string) texts { return inPlace(texts{slices.Clone(a.All)}, v) }

func mergedTexts(_ string, a, b texts) texts {
	return texts{append(slices.Clone(a.All), b.All...)}
}

// poison is a value that the aggregations panic at, when they have done their work.
const poison = "poison"

// windowKinds are the windows under test: each makes a table of texts of the records in Words.
var windowKinds = map[string]func(s *stream.Stream[string, string], add func(texts, string) texts) windowedTexts{
	"tumbling":       timeTexts(stream.Tumbling(10 * ms).Grace(5 * ms)),
	"tumbling-close": timeTexts(stream.Tumbling(10 * ms).Grace(5 * ms).EmitOnClose()),
	"hopping":        timeTexts(stream.Hopping(10*ms, 3*ms).Grace(20 * ms)),
	"hopping-close":  timeTexts(stream.Hopping(10*ms, 4*ms).EmitOnClose()),
	"sliding":        timeTexts(stream.Sliding(10 * ms).Grace(3 * ms)),
	"sliding-close":  timeTexts(stream.Sliding(10 * ms).Grace(8 * ms).EmitOnClose()),
	"unlimited":      timeTexts(stream.Unlimited(time.UnixMilli(40))),
	"session":        sessionsTexts(stream.Sessions(5 * ms).Grace(10 * ms)),
	"session-close":  sessionsTexts(stream.Sessions(5 * ms).Grace(3 * ms).EmitOnClose()),
}

type windowedTexts = *table.Table[state.Windowed[string], texts]

func timeTexts(w stream.Windows) func(*stream.Stream[string, string], func(texts, string) texts) windowedTexts {
	store := windowTexts
	if w.MinRetention() > store.Retention() {
		store = state.Window("window-texts", serde.String, serde.JSON[texts](), w.MinRetention())
	}
	return func(s *stream.Stream[string, string], add func(texts, string) texts) windowedTexts {
		return stream.Aggregate(stream.WindowBy(stream.Group(s), w), store, func(a texts, _, v string) texts {
			a = add(a, v)
			if v == poison {
				panic(v)
			}
			return a
		})
	}
}

func sessionsTexts(
	w stream.SessionWindows,
) func(*stream.Stream[string, string], func(texts, string) texts) windowedTexts {
	return func(s *stream.Stream[string, string], add func(texts, string) texts) windowedTexts {
		return stream.AggregateSessions(stream.SessionBy(stream.Group(s), w), sessionTexts,
			func(a texts, _, v string) texts {
				a = add(a, v)
				if v == poison {
					panic(v)
				}
				return a
			}, mergedTexts)
	}
}

// randomRecords returns records in the order of time, but for some that are late, some that jump ahead, and tombstones.
func randomRecords(rnd *rand.Rand, poisoned bool) []processor.Record[string, string] {
	var rs []processor.Record[string, string]
	now := int64(0)
	for i := range 120 {
		now += rnd.Int64N(6)
		if rnd.IntN(30) == 0 {
			now += rnd.Int64N(80)
		}
		at := now
		if rnd.IntN(4) == 0 {
			at = max(0, now-rnd.Int64N(40))
		}
		r := processor.Record[string, string]{
			Key: []string{"a", "ab", "b"}[rnd.IntN(3)], Value: fmt.Sprint(i), Time: time.UnixMilli(at),
			Tombstone: rnd.IntN(20) == 0,
		}
		if poisoned && rnd.IntN(6) == 0 {
			r.Value, r.Tombstone = poison, false
			r.Time = r.Time.Add(time.Duration(rnd.IntN(60)) * ms)
		}
		rs = append(rs, r)
	}
	return rs
}

// outcome is what comes of records: what was written, in order, and how many records were late.
func outcome(d *processortest.Driver) string {
	var all []string
	for _, r := range processortest.Output(d, Out).Read() {
		all = append(all, showRecord(r))
	}
	return strings.Join(all, "\n") + fmt.Sprint("\nlate: ", d.Dropped(processor.DropLate))
}

func seeds(t *testing.T) int {
	if testing.Short() {
		return 3
	}
	return 15
}

// Whatever the commits, crashes and failed records are, and whether or not the aggregate is changed in place, the
// results are the same.
func TestWindowsUnderDisturbance(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(windowKinds)) {
		t.Run(name, func(t *testing.T) {
			for seed := range seeds(t) {
				disturb(t, windowKinds[name], rand.New(rand.NewPCG(uint64(seed), 7)))
			}
		})
	}
}

func disturb(
	t *testing.T, declare func(*stream.Stream[string, string], func(texts, string) texts) windowedTexts, rnd *rand.Rand,
) {
	t.Helper()
	topology := func(add func(texts, string) texts) *processor.Topology {
		return build(func(b *processor.Builder) { writeWindows(declare(stream.From(b, Words), add)) })
	}
	records := randomRecords(rnd, true)
	calm := processortest.New(t, topology(copied))
	for _, r := range records {
		if r.Value != poison {
			processortest.Input(calm, Words).PipeRecord(r)
		}
	}
	want := outcome(calm)

	skip := processortest.OnErrors(processor.Fail(), processor.Skip())
	rough := processortest.New(t, topology(inPlace), skip)
	for _, r := range records {
		processortest.Input(rough, Words).PipeRecord(r)
	}
	if got := outcome(rough); withoutLate(got) != withoutLate(want) {
		t.Fatalf("with records that fail:\n got %s\nwant %s", got, want)
	}

	crashing := processortest.New(t, topology(inPlace), skip, processortest.CommitManually())
	for _, r := range records {
		processortest.Input(crashing, Words).PipeRecord(r)
		switch rnd.IntN(8) {
		case 0, 1, 2:
			crashing.Commit()
		case 3:
			crashing.Crash() // and what came since the commit is processed again
		}
	}
	crashing.Commit()
	if got := outcome(crashing); withoutLate(got) != withoutLate(want) {
		t.Fatalf("with crashes:\n got %s\nwant %s", got, want)
	}
}

// withoutLate leaves the number of late records out: failed and crashed attempts count, too.
func withoutLate(s string) string { return s[:strings.LastIndex(s, "\nlate: ")] }

// The old values that a windowed table tells are those that it told as new before: sums that take the old and add the
// new agree with the store.
func TestWindowedOldValues(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(windowKinds)) {
		t.Run(name, func(t *testing.T) {
			for seed := range seeds(t) {
				checkOldValues(t, windowKinds[name], rand.New(rand.NewPCG(uint64(seed), 8)))
			}
		})
	}
}

func checkOldValues(
	t *testing.T, declare func(*stream.Stream[string, string], func(texts, string) texts) windowedTexts, rnd *rand.Rand,
) {
	t.Helper()
	d := processortest.New(t, build(func(b *processor.Builder) {
		windowed := declare(stream.From(b, Words), inPlace)
		writeWindows(windowed)
		lengths := table.GroupBy(windowed, byInnerKey, func(k state.Windowed[string], v texts) (string, int64, bool) {
			return k.Key, int64(len(fmt.Sprint(v))), true
		})
		table.To(table.Aggregate(lengths, lengthSums,
			func(a int64, _ string, v int64) int64 { return a + v },
			func(a int64, _ string, v int64) int64 { return a - v }), sums64)
	}))
	rows := make(map[string]processor.Record[string, string])
	out := processortest.Output(d, Out)
	for _, r := range randomRecords(rnd, false) {
		processortest.Input(d, Words).PipeRecord(r)
		for _, w := range out.Read() {
			if rows[w.Key] = w; w.Tombstone {
				delete(rows, w.Key)
			}
		}
		want := make(map[string]int64)
		for k, w := range rows {
			inner, _, _ := strings.Cut(k[1:], "@")
			want[inner] += int64(len(w.Value))
		}
		got := processortest.Map(processortest.Output(d, sums64))
		for k, n := range got {
			if n != want[k] {
				t.Fatalf("after %s: the sum for %q is %d, want %d", showRecord(r), k, n, want[k])
			}
		}
	}
}

// A closed window comes out however far the time has jumped.
func TestEmitOnCloseOverAJump(t *testing.T) {
	d := processortest.New(t, build(func(b *processor.Builder) {
		w := stream.Tumbling(10 * ms).Grace(5 * ms).EmitOnClose()
		writeWindows(stream.Count(stream.WindowBy(stream.Group(stream.From(b, Words)), w), windowCount))
	}))
	in := processortest.Input(d, Words)
	for _, at := range []int64{0, 3, 12, 40, 100_000_000_000} {
		in.PipeAt("a", "x", time.UnixMilli(at))
	}
	d.Crash()
	in.PipeAt("b", "x", time.UnixMilli(0)) // too late, also after a crash
	in.PipeAt("b", "x", time.UnixMilli(100_000_000_020))
	want := "[a@0/10]=2@3\n[a@10/20]=1@12\n[a@40/50]=1@40\n[a@100000000000/100000000010]=1@100000000000\nlate: 1"
	if got := outcome(d); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

// A lookup in a windowed table finds what the store has.
func TestWindowedTableJoin(t *testing.T) {
	d := processortest.New(t, build(func(b *processor.Builder) {
		w := stream.Tumbling(10 * ms)
		counts := stream.Count(stream.WindowBy(stream.Group(stream.From(b, Words)), w), windowCount)
		others := stream.Aggregate(stream.WindowBy(stream.Group(stream.From(b, Other)), w), windowTexts,
			func(a texts, _, v string) texts { return inPlace(a, v) })
		writeWindows(table.Join(counts, others,
			func(_ state.Windowed[string], n int64, a texts) string { return fmt.Sprint(n, a.All) }))
	}))
	words, other := processortest.Input(d, Words), processortest.Input(d, Other)
	words.PipeAt("a", "x", time.UnixMilli(1))
	other.PipeAt("a", "y", time.UnixMilli(5))
	words.PipeAt("a", "x", time.UnixMilli(3))
	other.PipeAt("a", "y", time.UnixMilli(15))
	want := "[a@0/10]=1 [y]@5\n[a@0/10]=2 [y]@5\nlate: 0"
	if got := outcome(d); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

func TestWindowMistakes(t *testing.T) {
	counts := state.KeyValue("counts", serde.String, serde.Int64)
	short := state.Window("short", serde.String, serde.Int64, 10*ms)
	shortSessions := state.Session("short-sessions", serde.String, serde.Int64, 10*ms)
	zero := func(_ int64, _, _ string) int64 { return 0 }
	for _, c := range []struct {
		problem string
		declare func(g, other *stream.Grouped[string, string])
	}{
		{"size of the windows is 0s", func(g, _ *stream.Grouped[string, string]) {
			stream.Count(stream.WindowBy(g, stream.Tumbling(0)), windowCount)
		}},
		{"whole number of milliseconds", func(g, _ *stream.Grouped[string, string]) {
			stream.Count(stream.WindowBy(g, stream.Tumbling(1500*time.Microsecond)), windowCount)
		}},
		{"more than their size", func(g, _ *stream.Grouped[string, string]) {
			stream.Count(stream.WindowBy(g, stream.Hopping(10*ms, 11*ms)), windowCount)
		}},
		{"grace period is -1ms", func(g, _ *stream.Grouped[string, string]) {
			stream.Count(stream.WindowBy(g, stream.Sliding(10*ms).Grace(-ms)), windowCount)
		}},
		{"gap of the sessions is 0s", func(g, _ *stream.Grouped[string, string]) {
			stream.Count(stream.SessionBy(g, stream.Sessions(0)), sessionCount)
		}},
		{"the windows are not set", func(g, _ *stream.Grouped[string, string]) {
			stream.Count(stream.WindowBy(g, stream.Windows{}), windowCount)
		}},
		{"the sessions are not set", func(g, _ *stream.Grouped[string, string]) {
			stream.Count(stream.SessionBy(g, stream.SessionWindows{}), sessionCount)
		}},
		{"never closes", func(g, _ *stream.Grouped[string, string]) {
			w := stream.Unlimited(time.UnixMilli(0)).EmitOnClose()
			stream.Count(stream.WindowBy(g, w), state.Window("f", serde.String, serde.Int64, w.MinRetention()))
		}},
		{"before the epoch", func(g, _ *stream.Grouped[string, string]) {
			w := stream.Unlimited(time.UnixMilli(-1))
			stream.Count(stream.WindowBy(g, w), state.Window("f", serde.String, serde.Int64, w.MinRetention()))
		}},
		{`store "short" keeps rows for 10ms, but the windows and their grace period need 12ms`,
			func(g, _ *stream.Grouped[string, string]) {
				stream.Count(stream.WindowBy(g, stream.Tumbling(10*ms).Grace(2*ms)), short)
			}},
		{"need 31ms", func(g, _ *stream.Grouped[string, string]) {
			stream.Count(stream.WindowBy(g, stream.Sliding(10*ms).Grace(ms)), short)
		}},
		{"need 11ms", func(g, _ *stream.Grouped[string, string]) {
			stream.Count(stream.SessionBy(g, stream.Sessions(10*ms).Grace(ms)), shortSessions)
		}},
		{"declared by state.Window", func(g, _ *stream.Grouped[string, string]) {
			stream.Count(stream.WindowBy(g, stream.Tumbling(10*ms)), state.Spec[state.Windowed[string], int64](sessionCount))
		}},
		{"declared by state.Session", func(g, _ *stream.Grouped[string, string]) {
			stream.Count(stream.SessionBy(g, stream.Sessions(10*ms)), state.Spec[state.Windowed[string], int64](windowCount))
		}},
		{"use stream.AggregateSessions", func(g, _ *stream.Grouped[string, string]) {
			stream.Aggregate(stream.SessionBy(g, stream.Sessions(10*ms)), sessionCount, zero)
		}},
		{"the function is nil", func(g, _ *stream.Grouped[string, string]) {
			stream.Cogroup(counts, stream.With[string, string, string, int64](g, nil))
		}},
		{"different windows", func(g, other *stream.Grouped[string, string]) {
			stream.Cogroup(windowCount,
				stream.With(stream.WindowBy(g, stream.Tumbling(10*ms)), zero),
				stream.With(stream.WindowBy(other, stream.Tumbling(20*ms)), zero))
		}},
	} {
		t.Run(c.problem, func(t *testing.T) {
			_, err := processor.Build(func(b *processor.Builder) {
				c.declare(stream.Group(stream.From(b, Words)), stream.Group(stream.From(b, Other)))
			})
			if err == nil || !strings.Contains(err.Error(), c.problem) || !strings.Contains(err.Error(), "windows_test.go:") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A cogroup of streams whose keys are encoded differently is a mistake: equal keys may be on different partitions.
func TestCogroupMixedKeys(t *testing.T) {
	raw := processor.NewTopic("raw-words", serde.WithID(serde.String, "other"), serde.String)
	appended := func(a, _, v string) string { return a + v }
	_, err := processor.Build(func(b *processor.Builder) {
		stream.Cogroup(Latest, stream.With(stream.Group(stream.From(b, Words)), appended),
			stream.With(stream.Group(stream.From(b, raw)), appended))
	})
	if err == nil || !strings.Contains(err.Error(), "encoded differently") {
		t.Errorf("got %v", err)
	}
}

func TestWindowedCogroup(t *testing.T) {
	add := func(sign string) func(a texts, _, v string) texts {
		return func(a texts, _, v string) texts { return inPlace(a, sign+v) }
	}
	for _, c := range []struct {
		name    string
		declare func(one, two *stream.Grouped[string, string]) windowedTexts
		want    string
	}{
		{"tumbling", func(one, two *stream.Grouped[string, string]) windowedTexts {
			w := stream.Tumbling(10 * ms)
			return stream.Cogroup(windowTexts, stream.With(stream.WindowBy(one, w), add("1")),
				stream.With(stream.WindowBy(two, w), add("2")))
		}, "[a@0/10]={[1x]}@1\n[a@0/10]={[1x. 2x]}@4\n[a@20/30]={[2x]}@25\nlate: 1"},
		{"session", func(one, two *stream.Grouped[string, string]) windowedTexts {
			w := stream.Sessions(5 * ms)
			return stream.CogroupSessions(sessionTexts, mergedTexts, stream.With(stream.SessionBy(one, w), add("1")),
				stream.With(stream.SessionBy(two, w), add("2")))
		}, "[a@1/1]={[1x]}@1\n[a@1/1]=~@1\n[a@1/4]={[1x. 2x]}@4\n[a@25/25]={[2x]}@25\nlate: 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := processortest.New(t, build(func(b *processor.Builder) {
				writeWindows(c.declare(stream.Group(stream.From(b, Words)), stream.Group(stream.From(b, Other))))
			}))
			processortest.Input(d, Words).PipeAt("a", "x", time.UnixMilli(1))
			processortest.Input(d, Other).PipeAt("a", "x", time.UnixMilli(4))
			processortest.Input(d, Other).PipeAt("a", "x", time.UnixMilli(25))
			processortest.Input(d, Words).PipeAt("a", "x", time.UnixMilli(9)) // the time is that of both inputs
			if got := outcome(d); got != c.want {
				t.Errorf("got %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestMinRetention(t *testing.T) {
	for _, c := range []struct {
		got, want time.Duration
	}{
		{stream.Tumbling(time.Hour).Grace(time.Minute).MinRetention(), time.Hour + time.Minute},
		{stream.Hopping(time.Hour, time.Minute).MinRetention(), time.Hour},
		{stream.Sliding(time.Hour).Grace(time.Minute).MinRetention(), 3*time.Hour + time.Minute},
		{stream.Sliding(0).MinRetention(), ms},
		{stream.Unlimited(time.UnixMilli(0)).MinRetention(), state.Forever},
		{stream.Tumbling(time.Hour).Grace(state.Forever).MinRetention(), state.Forever},
		{stream.Sessions(time.Hour).Grace(time.Minute).MinRetention(), time.Hour + time.Minute},
	} {
		if c.got != c.want {
			t.Errorf("got %v, want %v", c.got, c.want)
		}
	}
}
