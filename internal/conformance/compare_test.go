package conformance

import (
	"fmt"
	"slices"
	"sort"
)

// result is what a replay gave.
type result struct {
	records []row
	final   []row
	dropped int64
}

// mismatches returns what differs between the case and the result; nothing if they agree.
func mismatches(c *testCase, expected, final []row, got result) []string {
	var found []string
	switch c.Compare {
	case "sequence", "observed", "store_ops":
		if c.Compare == "store_ops" {
			expected = withoutValidToOfGets(expected)
		}
		found = compareRows("record", expected, got.records)
	case "sequence_per_topic":
		found = compareGroups("topic", expected, got.records, "topic")
	case "per_key_sequence":
		found = compareGroups("key", expected, got.records, "key")
	case "last_per_key":
		found = compareLastPerListedKey(expected, got.records)
	case "last_per_key_per_step":
		found = compareGroups("step and key", lastOf(expected, "after", "key"), lastOf(got.records, "after", "key"),
			"after", "key")
	case "final_store":
		found = compareRows("final store", byKey(expected), byKey(got.final))
	default:
		found = []string{fmt.Sprintf("unknown compare mode %q", c.Compare)}
	}
	if len(final) > 0 || c.Final != nil {
		found = append(found, compareRows("final store", byKey(final), byKey(got.final))...)
	}
	if c.Dropped != nil && *c.Dropped != got.dropped {
		found = append(found, fmt.Sprintf("dropped records: want %d, got %d", *c.Dropped, got.dropped))
	}
	return found
}

// compareRows returns the first difference of two lists: a row is as wanted when every field that is wanted is equal.
func compareRows(what string, want, got []row) []string {
	for i := range max(len(want), len(got)) {
		var w, g row
		if i < len(want) {
			w = want[i]
		}
		if i < len(got) {
			g = got[i]
		}
		if w == nil || g == nil || !matches(w, g) {
			return []string{fmt.Sprintf("%s #%d: want %v, got %v", what, i, w, g)}
		}
	}
	return nil
}

func matches(want, got row) bool {
	for name, w := range want {
		if got[name] != w {
			return false
		}
	}
	return true
}

func fields(r row, names []string) string {
	s := ""
	for _, n := range names {
		s += fmt.Sprintf("%q%v ", r[n].s, r[n].ok)
	}
	return s
}

func compareGroups(what string, want, got []row, names ...string) []string {
	groups := make(map[string][2][]row)
	var order []string
	for side, rows := range [2][]row{want, got} {
		for _, r := range rows {
			k := fields(r, names)
			g, ok := groups[k]
			if !ok {
				order = append(order, k)
			}
			g[side] = append(g[side], r)
			groups[k] = g
		}
	}
	var found []string
	for _, k := range order {
		found = append(found, compareRows(what+" "+k, groups[k][0], groups[k][1])...)
	}
	return found
}

func compareLastPerListedKey(want, got []row) []string {
	var found []string
	for _, w := range want {
		var last []row
		for _, g := range got {
			if g["key"] == w["key"] {
				last = []row{g}
			}
		}
		found = append(found, compareRows("last of key "+w["key"].or("null"), []row{w}, last)...)
	}
	return found
}

// lastOf keeps the last row of each group.
func lastOf(rows []row, names ...string) []row {
	at := make(map[string]int)
	var last []row
	for _, r := range rows {
		k := fields(r, names)
		if i, ok := at[k]; ok {
			last[i] = r
			continue
		}
		at[k] = len(last)
		last = append(last, r)
	}
	return last
}

func byKey(rows []row) []row {
	rows = slices.Clone(rows)
	sort.SliceStable(rows, func(i, j int) bool { return rows[i]["key"].s < rows[j]["key"].s })
	return rows
}

func withoutValidToOfGets(rows []row) []row {
	var out []row
	for _, r := range rows {
		c := make(row)
		for n, v := range r {
			if n != "valid_to" || r["op"].s != "get" {
				c[n] = v
			}
		}
		out = append(out, c)
	}
	return out
}
