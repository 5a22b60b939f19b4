package state_test

import (
	"encoding/hex"
	"fmt"
	"iter"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/state/memory"
)

var (
	hourly   = state.Window("hourly", serde.String, serde.Int64, time.Hour)
	visits   = state.Session("visits", serde.String, serde.Int64, time.Hour)
	tagLists = state.Window("tag-lists", serde.String, serde.JSON[[]int](), time.Hour)
)

func windowed(key string, start, end int64) state.Windowed[string] {
	return state.Windowed[string]{Key: key, Span: state.Span{StartMillis: start, EndMillis: end}}
}

func openWindows[K, V any](t testing.TB, e *env, spec *state.WindowSpec[K, V]) *state.WindowStore[K, V] {
	t.Helper()
	s, err := spec.Open(e)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func openSessions[K, V any](t testing.TB, e *env, spec *state.SessionSpec[K, V]) *state.SessionStore[K, V] {
	t.Helper()
	s, err := spec.Open(e)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// failer is what testing.T and rapid.T share.
type failer interface {
	Helper()
	Fatal(args ...any)
}

// list renders what an iterator gives.
func list[K, V any](t failer, rows iter.Seq2[state.Entry[state.Windowed[K], V], error]) string {
	t.Helper()
	var all []string
	for e, err := range rows {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%v=%v", e.Key, e.Value))
	}
	return strings.Join(all, " ")
}

func check(t testing.TB, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\n got %s\nwant %s", what, got, want)
	}
}

// The bytes of rows are for ever: see docs/adr/0006.
func TestWindowRowBytes(t *testing.T) {
	e := newEnv(t, hourly, visits)
	must(t, openWindows(t, e, hourly).SetAt(windowed("ann", 3_600_000, 3_660_000), 7, 3_600_001))
	must(t, openSessions(t, e, visits).SetAt(windowed("ann", 3_600_000, 3_660_000), 7, 3_660_000))
	hidden := state.Windowed[string]{Key: "", Span: state.Span{StartMillis: -1}.Hidden()}
	must(t, openWindows(t, e, hourly).SetAt(hidden, 1, 2))
	var got []string
	e.layers.Changes(func(store int, key, row []byte) {
		got = append(got, fmt.Sprintf("%d %s %s", store, hex.EncodeToString(key), hex.EncodeToString(row)))
	})
	slices.Sort(got)
	check(t, "rows", strings.Join(got, "\n"), strings.Join([]string{
		// the clock: its time, and slices of half an hour
		"0 0074" + " 0100000000000036ee80" + "00000000001b7740",
		// slice -1, the empty key, start -1, the smallest end
		"0 01" + "7fffffffffffffff" + "" + "7fffffffffffffff" + "0000000000000000" +
			" 01000000000000000002" + "0000000000000001",
		// slice 2, key, start, end
		"0 01" + "8000000000000002" + "616e6e" + "800000000036ee80" + "800000000037d8e0" +
			" 0100000000000036ee81" + "0000000000000007",
		// slice 2, key, end, start
		"1 0074" + " 0100000000000037d8e0" + "00000000001b7740",
		"1 01" + "8000000000000002" + "616e6e" + "800000000037d8e0" + "800000000036ee80" +
			" 0100000000000037d8e0" + "0000000000000007",
	}, "\n"))
}

func TestWindowedSerdes(t *testing.T) {
	w := windowed("ann", 60_000, 120_000)
	for _, c := range []struct {
		serde     serde.Serde[state.Windowed[string]]
		id, bytes string
	}{
		{state.WindowedSerde(serde.String), "windowed(string)", "616e6e" + "000000000000ea60" + "000000000001d4c0"},
		{
			state.KafkaTimeWindowedSerde(serde.String, time.Minute), "kafka-time-windowed(string,60000)",
			"616e6e" + "000000000000ea60",
		},
		{
			state.KafkaSessionWindowedSerde(serde.String), "kafka-session-windowed(string)",
			"616e6e" + "000000000001d4c0" + "000000000000ea60",
		},
	} {
		b, err := c.serde.Append([]byte{0xff}, w)
		must(t, err)
		check(t, c.id, hex.EncodeToString(b), "ff"+c.bytes)
		back, err := c.serde.Decode(b[1:])
		must(t, err)
		check(t, c.id, back.String(), "[ann@60000/120000]")
		check(t, "id", serde.ID(c.serde), c.id)
		if _, err := c.serde.Decode([]byte("short")); err == nil {
			t.Errorf("%s: no error for a key without a window", c.id)
		}
	}
	if _, err := state.WindowedSerde[string](nil).Append(nil, w); err == nil {
		t.Error("no error for a nil serde")
	}
	if d, err := state.KafkaTimeWindowedSerde(serde.String, state.Forever).Decode(make([]byte, 8)); err != nil ||
		d.EndMillis != math.MaxInt64 {
		t.Errorf("a window without an end: %v, %v", d, err)
	}
}

func TestWindowStore(t *testing.T) {
	e := newEnv(t, hourly)
	s := openWindows(t, e, hourly)
	check(t, "empty", list(t, s.All()), "")
	const m = 60_000
	for i, w := range []state.Windowed[string]{
		windowed("b", 0, m), windowed("a", 0, m), windowed("ab", 20*m, 21*m), windowed("a", 40*m, 41*m),
		windowed("a", 20*m, 21*m), windowed("", 50*m, 51*m), windowed("a\x80\x00\x00\x00\x00\x00\x00\x00\x00", 20*m, 21*m),
		windowed("a", 20*m, 22*m),
	} {
		e.now = int64(i)
		must(t, s.Set(w, int64(i)))
		if i == 3 {
			e.flush(t) // the rest stays in memory
		}
	}
	v, at, ok, err := s.Lookup(windowed("a", 40*m, 41*m))
	if v != 3 || at != 3 || !ok || err != nil {
		t.Error("Lookup", v, at, ok, err)
	}
	if _, ok, err := s.Get(windowed("a", 40*m, 42*m)); ok || err != nil {
		t.Error("Get of another window", ok, err)
	}
	const a = "[a@0/60000]=1 [a@1200000/1260000]=4 [a@1200000/1320000]=7 [a@2400000/2460000]=3"
	check(t, "Fetch", list(t, s.Fetch("a", 0, math.MaxInt64)), a)
	check(t, "Fetch", list(t, s.Fetch("a", 1, 40*m)), "[a@1200000/1260000]=4 [a@1200000/1320000]=7")
	check(t, "FetchBackward", list(t, s.FetchBackward("a", math.MinInt64, 20*m+1)),
		"[a@1200000/1320000]=7 [a@1200000/1260000]=4 [a@0/60000]=1")
	check(t, "Fetch of none", list(t, s.Fetch("a", 5, 5)), "")
	check(t, "Fetch of the empty key", list(t, s.Fetch("", 0, math.MaxInt64)), "[@3000000/3060000]=5")
	check(t, "FetchAll", list(t, s.FetchAll(20*m+1, 50*m+1)), "[a@2400000/2460000]=3 [@3000000/3060000]=5")
	check(t, "FetchAllBackward", list(t, s.FetchAllBackward(0, 20*m)), "[b@0/60000]=0 [a@0/60000]=1")
	must(t, s.Delete(windowed("a", 20*m, 21*m)))
	check(t, "after Delete", list(t, s.Fetch("a", 1, 40*m)), "[a@1200000/1320000]=7")
	if n := strings.Count(list(t, s.All()), "="); n != 7 {
		t.Errorf("All gives %d rows, want 7", n)
	}
	for _, err := range s.All() {
		must(t, err)
		break // an iteration may end early
	}
}

func TestSessionStore(t *testing.T) {
	e := newEnv(t, visits)
	s := openSessions(t, e, visits)
	for i, w := range []state.Windowed[string]{
		windowed("a", 10, 20), windowed("a", 30, 45), windowed("b", 15, 31), windowed("a", 100, 100), windowed("a", 5, 200),
	} {
		must(t, s.Set(w, int64(i)))
	}
	check(t, "Find", list(t, s.Find("a", 20, 30)), "[a@10/20]=0 [a@30/45]=1 [a@5/200]=4")
	check(t, "Find", list(t, s.Find("a", 21, 29)), "[a@5/200]=4")
	check(t, "FindBackward", list(t, s.FindBackward("a", 46, 1000)), "[a@5/200]=4 [a@100/100]=3")
	check(t, "FindAll", list(t, s.FindAll(20, 30)), "[a@10/20]=0 [a@30/45]=1 [a@5/200]=4 [b@15/31]=2")
	check(t, "FindAllBackward", list(t, s.FindAllBackward(math.MinInt64, 14)), "[a@5/200]=4 [a@10/20]=0")
	if v, ok, err := s.Get(windowed("b", 15, 31)); v != 2 || !ok || err != nil {
		t.Error("Get", v, ok, err)
	}
	spans, err := s.Spans(nil, "a", 45)
	must(t, err)
	check(t, "Spans", fmt.Sprint(spans), "[30/45 100/100 5/200]")
}

// Rows expire by the times that the store has seen: reads do not find them at once, and a commit and a flush later
// their slices are gone from the backend, without a write for each.
func TestWindowExpiry(t *testing.T) {
	b := memory.New()
	e := newEnvOver(t, b, hourly)
	s := openWindows(t, e, hourly)
	const m = 60_000
	must(t, s.Set(windowed("a", 0, m), 1))
	must(t, s.Set(windowed("a", 29*m, 30*m), 2))
	must(t, s.Set(windowed("a", 30*m, 31*m), 3))
	e.flush(t)
	now, err := s.Observe(60*m + 29*m)
	if err != nil || now != 89*m {
		t.Fatal(now, err)
	}
	check(t, "after an hour", list(t, s.All()), "[a@1800000/1860000]=3")
	if _, ok, _ := s.Get(windowed("a", 29*m, 30*m)); ok {
		t.Error("a row that has expired is found")
	}
	if v, _, ok, _ := s.Peek(windowed("a", 29*m, 30*m)); !ok || v != 2 {
		t.Error("Peek does not find what has just expired")
	}
	// The time is not committed, and neither is what follows from it.
	e.layers.Drop()
	check(t, "after an abort", list(t, s.Fetch("a", 0, math.MaxInt64)),
		"[a@0/60000]=1 [a@1740000/1800000]=2 [a@1800000/1860000]=3")
	if now, ok, err := s.StreamTime(); now != 30*m || !ok || err != nil {
		t.Error("the time after an abort is", now, ok, err)
	}
	if _, err := s.Observe(92 * m); err != nil {
		t.Fatal(err)
	}
	e.flush(t)
	e.flush2(t)
	id, err := b.Register("hourly")
	must(t, err)
	var left int
	c := b.Scan(id, []byte{state.KindRow}, []byte{state.KindRow + 1}, false)
	for c.Next() {
		left++
	}
	c.Close()
	if left != 1 {
		t.Errorf("the backend has %d rows, want the one of the slice that is alive", left)
	}
	// What the store has seen survives a restart.
	s = openWindows(t, newEnvOver(t, b, hourly), hourly)
	if now, ok, err := s.StreamTime(); now != 92*m || !ok || err != nil {
		t.Error("the time after a restart is", now, ok, err)
	}
	check(t, "after a restart", list(t, s.All()), "")
}

// flush2 flushes what a flush before it has committed only.
func (e *env) flush2(t testing.TB) {
	t.Helper()
	e.layers.Commit([]state.Position{{Next: 2}}, 1)
	if f := e.layers.Freeze(); f != nil {
		must(t, f.Run())
		e.layers.Done(f)
	}
}

// The slices of a store stay what they were when its retention changes.
func TestWindowRetentionChanges(t *testing.T) {
	const day = 24 * 60 * 60_000
	b := memory.New()
	e := newEnvOver(t, b, hourly)
	s := openWindows(t, e, hourly)
	for i := range int64(3) {
		must(t, s.Set(windowed("a", i*20*60_000, day), i))
	}
	e.flush(t)
	longer := state.Window("hourly", serde.String, serde.Int64, 1000*time.Hour)
	e = newEnvOver(t, b, longer)
	s = openWindows(t, e, longer)
	must(t, s.Set(windowed("a", 10*day, 11*day), 9))
	e.flush(t)
	check(t, "Fetch", list(t, s.Fetch("a", 0, math.MaxInt64)),
		"[a@0/86400000]=0 [a@1200000/86400000]=1 [a@2400000/86400000]=2 [a@864000000/950400000]=9")
	if v, ok, err := s.Get(windowed("a", 20*60_000, day)); v != 1 || !ok || err != nil {
		t.Error("Get", v, ok, err)
	}
}

func TestWindowForever(t *testing.T) {
	forever := state.Window("forever", serde.String, serde.Int64, state.Forever)
	s := openWindows(t, newEnv(t, forever), forever)
	must(t, s.Set(windowed("a", 0, math.MaxInt64), 1))
	must(t, s.Set(windowed("a", math.MaxInt64-1, math.MaxInt64), 2))
	check(t, "All", list(t, s.All()), "[a@0/9223372036854775807]=1 [a@9223372036854775806/9223372036854775807]=2")
	if p := forever.ChangelogConfig()["cleanup.policy"]; p != "compact" {
		t.Errorf("cleanup.policy is %q", p)
	}
}

func TestHiddenRows(t *testing.T) {
	s := openWindows(t, newEnv(t, hourly), hourly)
	w := windowed("a", 10, 20)
	must(t, s.Set(w, 1))
	hidden := state.Windowed[string]{Key: "a", Span: w.Hidden()}
	must(t, s.Give(hidden, 2, 12))
	check(t, "All", list(t, s.All()), "[a@10/20]=1")
	if v, _, ok, err := s.Peek(hidden); v != 2 || !ok || err != nil {
		t.Error("Peek", v, ok, err)
	}
	spans, err := s.Spans(nil, "a", 0, 100)
	must(t, err)
	if len(spans) != 2 || !spans[0].IsHidden() || spans[1].IsHidden() {
		t.Error("Spans", spans)
	}
}

// A value that is changed in place by its owner is decoded again for everyone else.
func TestWindowTake(t *testing.T) {
	e := newEnv(t, tagLists)
	s := openWindows(t, e, tagLists)
	w := windowed("a", 0, 10)
	must(t, s.Set(w, []int{1, 2}))
	e.flush(t)
	v, _, ok, err := s.Take(w)
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	v[0] = 7
	must(t, s.Give(w, v, 5))
	got, _, err := s.Get(w)
	must(t, err)
	check(t, "Get", fmt.Sprint(got), "[7 2]")
	got[1] = 0
	v, at, _, err := s.Take(w)
	must(t, err)
	check(t, "Take", fmt.Sprint(v, at), "[7 2] 5")
	v[0] = 99
	e.layers.Drop() // and nothing of it remains
	got, _, err = s.Get(w)
	must(t, err)
	check(t, "Get after an abort", fmt.Sprint(got), "[1 2]")
}

func TestWindowSpecMistakes(t *testing.T) {
	for _, s := range []state.AnySpec{
		state.Window("a/b", serde.String, serde.Int64, time.Hour),
		state.Window("a", serde.String, serde.Int64, 0),
		state.Window[string, int64]("a", nil, serde.Int64, time.Hour),
		state.Session[string, int64]("a", serde.String, nil, time.Hour),
	} {
		if s.Err() == nil {
			t.Errorf("%s store %q has no error", s.Kind(), s.Name())
		}
	}
	c := visits.WithChangelogConfig(map[string]string{"segment.ms": "600000"}).ChangelogConfig()
	if c["cleanup.policy"] != "compact,delete" || c["retention.ms"] != "90000000" || c["segment.ms"] != "600000" {
		t.Error(c)
	}
	e := newEnv(t, hourly)
	other := state.Window("hourly", serde.String, serde.Int64, time.Hour)
	if _, err := other.Open(e); err == nil {
		t.Error("a store was opened by another spec")
	}
}
