package sim

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// outcome is what a run read and wrote, as a reader of committed records sees it: by topic and partition, in the order of
// the log.
type outcome struct {
	partitions int
	logs       map[string][][]fact
	// stores holds the final rows of the stores by name and partition, in the users' own encoding, where they are plain.
	stores map[string][]map[string][]byte
	// purged tells that what was processed of the topics between sub-topologies is gone.
	purged bool
}

// fact is a committed record.
type fact struct {
	key, value string
	deleted    bool
	time       int64
}

// The oracles below are folds over the whole log, as one would write them on a napkin: no windows stores, no changelogs,
// no incremental anything. They must not use a line of the operators.

const maxFindings = 8

// complaints collects findings, a bounded number of them.
type complaints []string

func (c *complaints) add(format string, args ...any) {
	if len(*c) < maxFindings {
		*c = append(*c, fmt.Sprintf(format, args...))
	}
}

// outputs returns the output in the order of each partition, less what came of the records that end the input.
func (o *outcome) outputs() [][]fact {
	all := make([][]fact, o.partitions)
	for p, facts := range o.logs["out"] {
		for _, f := range facts {
			if !strings.HasPrefix(f.key, lastKey) {
				all[p] = append(all[p], f)
			}
		}
	}
	return all
}

func (o *outcome) inputs(topic string) [][]fact {
	all := make([][]fact, o.partitions)
	for p, facts := range o.logs[topic] {
		for _, f := range facts {
			if f.key != lastKey {
				all[p] = append(all[p], f)
			}
		}
	}
	return all
}

// byKey splits the output by key. A key has one partition, so its order is that of the log.
func (o *outcome) byKey(bad *complaints) map[string][]fact {
	at := map[string]int{}
	keyed := map[string][]fact{}
	for p, facts := range o.outputs() {
		for _, f := range facts {
			if was, ok := at[f.key]; ok && was != p {
				bad.add("key %q is in partitions %d and %d", f.key, was, p)
			}
			at[f.key] = p
			keyed[f.key] = append(keyed[f.key], f)
		}
	}
	return keyed
}

// compare compares the outputs of each key, in order, with what they must be.
func (o *outcome) compare(want map[string][]string) []string {
	var bad complaints
	got := o.byKey(&bad)
	for _, key := range slices.Sorted(maps.Keys(got)) {
		if want[key] == nil {
			bad.add("key %q: unexpected output %v", key, texts(got[key]))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if have := texts(got[key]); !slices.Equal(have, want[key]) {
			bad.add("key %q: output %s", key, difference(have, want[key]))
		}
	}
	return bad
}

// deletion is how a tombstone is shown.
const deletion = "<deleted>"

func texts(facts []fact) []string {
	out := make([]string, len(facts))
	for i, f := range facts {
		out[i] = f.value
		if f.deleted {
			out[i] = deletion
		}
	}
	return out
}

func difference(got, want []string) string {
	i := 0
	for i < len(got) && i < len(want) && got[i] == want[i] {
		i++
	}
	show := func(s []string) string {
		var words []string
		for _, w := range s[min(max(0, i-1), len(s)):min(len(s), i+3)] {
			if len(w) == 8 && w[0] == 0 {
				w = strconv.FormatUint(binary.BigEndian.Uint64([]byte(w)), 10)
			}
			words = append(words, w)
		}
		return strings.Join(words, " ")
	}
	return fmt.Sprintf("of %d, want %d, differs at %d: … %s …, want … %s …", len(got), len(want), i, show(got), show(want))
}

func countText(n int64) string { return string(binary.BigEndian.AppendUint64(nil, uint64(n))) }

// countsUpTo is 1, 2, 3 … n.
func countsUpTo(n int64) []string {
	var out []string
	for i := int64(1); i <= n; i++ {
		out = append(out, countText(i))
	}
	return out
}

func judgeCount(o *outcome) []string {
	counts := map[string]int64{}
	for _, facts := range o.inputs("in") {
		for _, f := range facts {
			counts[f.value]++
		}
	}
	want := map[string][]string{}
	for key, n := range counts {
		want[key] = countsUpTo(n)
	}
	bad := complaints(o.compare(want))
	for _, rows := range o.stores["counts"] {
		for _, key := range slices.Sorted(maps.Keys(rows)) {
			if !strings.HasPrefix(key, lastKey) && string(rows[key]) != countText(counts[key]) {
				bad.add("store counts: %q is %x, want %d", key, rows[key], counts[key])
			}
			delete(counts, key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(counts)) {
		bad.add("store counts: %q is not there, want %d", key, counts[key])
	}
	return bad
}

func windowKey(key string, start int64) string {
	b := binary.BigEndian.AppendUint64([]byte(key), uint64(start))
	return string(binary.BigEndian.AppendUint64(b, uint64(start+windowSize.Milliseconds())))
}

// foldWindows counts by key and window; what comes after the end of its window and the grace is left out.
func foldWindows(o *outcome) map[string]int64 {
	counts := map[string]int64{}
	for _, facts := range o.logs["in"] {
		now := int64(-1)
		for _, f := range facts {
			now = max(now, f.time)
			start := f.time - f.time%windowSize.Milliseconds()
			if f.key != lastKey && start+windowSize.Milliseconds()+windowGrace.Milliseconds() > now {
				counts[windowKey(f.key, start)]++
			}
		}
	}
	return counts
}

func judgeWindow(o *outcome) []string {
	want := map[string][]string{}
	for key, n := range foldWindows(o) {
		want[key] = countsUpTo(n)
	}
	return o.compare(want)
}

func judgeSuppress(o *outcome) []string {
	want := map[string][]string{}
	for key, n := range foldWindows(o) {
		want[key] = []string{countText(n)}
	}
	return o.compare(want)
}

// side is a record of one of two inputs.
type side struct {
	fact
	right bool
}

// inTime returns the records of both inputs of a partition in the order of their times, which are all different.
func (o *outcome) inTime(p int) []side {
	var all []side
	for _, f := range o.inputs("left")[p] {
		all = append(all, side{f, false})
	}
	for _, f := range o.inputs("right")[p] {
		all = append(all, side{f, true})
	}
	slices.SortFunc(all, func(a, b side) int { return cmp.Compare(a.time, b.time) })
	return all
}

func judgeStreamTable(o *outcome) []string {
	want := map[string][]string{}
	for p := range o.partitions {
		rows := map[string]string{}
		for _, f := range o.inTime(p) {
			switch {
			case f.right && f.deleted:
				delete(rows, f.key)
			case f.right:
				rows[f.key] = f.value
			case rows[f.key] != "":
				want[f.key] = append(want[f.key], f.value+"+"+rows[f.key])
			}
		}
	}
	return o.compare(want)
}

func judgeTables(o *outcome) []string {
	want := map[string][]string{}
	for p := range o.partitions {
		rows := [2]map[string]string{{}, {}}
		for _, f := range o.inTime(p) {
			own, other := 0, 1
			if f.right {
				own, other = 1, 0
			}
			had := rows[own][f.key] != "" && rows[other][f.key] != ""
			delete(rows[own], f.key)
			if !f.deleted {
				rows[own][f.key] = f.value
			}
			l, r := rows[0][f.key], rows[1][f.key]
			switch {
			case l != "" && r != "":
				want[f.key] = append(want[f.key], l+"+"+r)
			case had:
				want[f.key] = append(want[f.key], deletion)
			}
		}
	}
	// A deletion of what is not there may be forwarded or not: nobody can tell the difference.
	for key, facts := range o.byKey(&complaints{}) {
		o.dropIdle(key, facts)
	}
	return o.compare(want)
}

// dropIdle takes the deletions out of the output that delete nothing.
func (o *outcome) dropIdle(key string, _ []fact) {
	for p := range o.logs["out"] {
		there := false
		o.logs["out"][p] = slices.DeleteFunc(o.logs["out"][p], func(f fact) bool {
			if f.key != key {
				return false
			}
			idle := f.deleted && !there
			there = !f.deleted
			return idle
		})
	}
}

// judgeForeign checks the last result of each key, that none came out of order (a result joins a version of the left row
// with one of the right, and neither ever goes back), and that the left side asked the right one as often as it must. How
// often it was answered depends on how the two sides interleave.
func judgeForeign(o *outcome) []string {
	var bad complaints
	lefts, rights := map[string]string{}, map[string]string{}
	fold := func(topic string, into map[string]string) {
		for _, facts := range o.inputs(topic) {
			for _, f := range facts {
				delete(into, f.key)
				if !f.deleted {
					into[f.key] = f.value
				}
			}
		}
	}
	fold("left", lefts)
	fold("right", rights)
	if !o.purged {
		o.judgeAsked(&bad)
	}
	got := o.byKey(&bad)
	for key, l := range lefts {
		if _, ok := got[key]; !ok && rights[foreignKey(l)] != "" {
			got[key] = nil
		}
	}
	for _, key := range slices.Sorted(maps.Keys(got)) {
		last, lastLeft, lastRight := deletion, "", ""
		for _, f := range got[key] {
			last = deletion
			if f.deleted {
				continue
			}
			last = f.value
			l, r, _ := strings.Cut(f.value, "+")
			_, version, _ := strings.Cut(l, ":")
			if version < lastLeft || version == lastLeft && r < lastRight {
				bad.add("key %q: %s after %s+%s", key, f.value, lastLeft, lastRight)
			}
			lastLeft, lastRight = version, r
		}
		want := deletion
		if l := lefts[key]; l != "" {
			if r := rights[foreignKey(l)]; r != "" {
				want = l + "+" + r
			}
		}
		if last != want {
			bad.add("key %q ends as %s, want %s", key, last, want)
		}
	}
	return bad
}

// judgeAsked counts what the left side of the foreign-key join sent to the right, by kind: 1 asks for the row if it is
// there, 3 unsubscribes and 2 asks again elsewhere when a row moves to another one, 4 is a deletion. A row that came while
// the deletion of its predecessor was under way leads to another 2.
func (o *outcome) judgeAsked(bad *complaints) {
	want, got := map[string]*[5]int{}, map[string]*[5]int{}
	of := func(m map[string]*[5]int, key string) *[5]int {
		if m[key] == nil {
			m[key] = new([5]int)
		}
		return m[key]
	}
	for _, facts := range o.inputs("left") {
		rows := map[string]string{}
		for _, f := range facts {
			was := rows[f.key]
			rows[f.key] = f.value
			switch w := of(want, f.key); {
			case f.deleted && was != "":
				w[4]++
			case f.deleted:
			case was != "" && foreignKey(was) != foreignKey(f.value):
				w[3]++
				w[2]++
			default:
				w[1]++
			}
		}
	}
	for _, facts := range o.logs["sim-link-ask-repartition"] {
		for _, f := range facts {
			if f.value != "" && f.value[1:] != lastKey {
				of(got, f.value[1:])[f.value[0]%5]++
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		w, g := *want[key], *of(got, key)
		if w[2] <= g[2] && g[2] <= w[2]+w[4] {
			g[2] = w[2]
		}
		if g != w {
			bad.add("key %q: asked %v times by kind, want %v", key, g[1:], w[1:])
		}
	}
}
