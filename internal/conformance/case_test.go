package conformance

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
)

// testCase is one file.
type testCase struct {
	file     string
	Name     string            `json:"name"`
	Verified string            `json:"verified"`
	Compare  string            `json:"compare"`
	Spec     spec              `json:"spec"`
	Inputs   []input           `json:"inputs"`
	Expected []json.RawMessage `json:"expected"`
	Dropped  *int64            `json:"dropped_records"`
	Final    []json.RawMessage `json:"final_store"`
}

// spec is the topology of a case. Times are milliseconds.
type spec struct {
	Op        string   `json:"op"`
	Kind      string   `json:"kind"`
	Kinds     []string `json:"kinds"`
	Joiner    string   `json:"joiner"`
	Outputs   []string `json:"outputs"`
	Agg       string   `json:"agg"`
	Group     string   `json:"group"`
	Emit      string   `json:"emit"`
	Side      string   `json:"side"`
	Final     string   `json:"final_store"`
	Times     int      `json:"times"`
	Window    *window  `json:"window"`
	Before    int64    `json:"before_ms"`
	After     int64    `json:"after_ms"`
	Grace     *int64   `json:"grace_ms"`
	TimeLimit int64    `json:"time_limit_ms"`
	Max       *int     `json:"max_records"`
	Interval  int64    `json:"interval_ms"`
	History   int64    `json:"history_ms"`
	Segment   int64    `json:"segment_ms"`

	Self            bool `json:"self"`
	Repartition     bool `json:"repartition"`
	TableFromStream bool `json:"table_from_stream"`
	JoinTable       bool `json:"join_table"`
	ThenCount       bool `json:"then_count"`
	Materialized    bool `json:"materialized"`
	SuppressClose   bool `json:"suppress_until_close"`
	Optimize        bool `json:"optimize"`

	TableStore store   `json:"table_store"`
	LeftStore  store   `json:"left_store"`
	RightStore store   `json:"right_store"`
	Queries    []query `json:"queries"`
}

type window struct {
	Type    string `json:"type"`
	Size    int64  `json:"size_ms"`
	Advance int64  `json:"advance_ms"`
	Grace   int64  `json:"grace_ms"`
	Gap     int64  `json:"gap_ms"`
	Diff    int64  `json:"diff_ms"`
}

type query struct {
	Key  string `json:"key"`
	AsOf *int64 `json:"as_of"`
}

// store is "default", "named" or {"versioned_ms": n}.
type store struct {
	Named     bool
	Versioned *int64
}

func (s *store) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '{' {
		var v struct {
			Versioned *int64 `json:"versioned_ms"`
		}
		err := json.Unmarshal(b, &v)
		s.Versioned = v.Versioned
		return err
	}
	var name string
	err := json.Unmarshal(b, &name)
	s.Named = name == "named"
	return err
}

// input is a record, or an advance of the wall clock. Keys and values may be JSON numbers.
type input struct {
	Topic   string `json:"topic"`
	Key     text   `json:"key"`
	Value   text   `json:"value"`
	TS      int64  `json:"ts"`
	Advance *int64 `json:"advance_wall_ms"`
	Batch   int    `json:"batch"`
}

// text is a JSON string, number or null, read as text.
type text struct {
	s  string
	ok bool
}

func (t *text) UnmarshalJSON(b []byte) error {
	b = bytes.TrimSpace(b)
	switch {
	case string(b) == "null":
		*t = text{}
	case len(b) > 0 && b[0] == '"':
		t.ok = true
		return json.Unmarshal(b, &t.s)
	default:
		*t = text{string(b), true}
	}
	return nil
}

func some(s string) text { return text{s, true} }

func (t text) or(otherwise string) string {
	if t.ok {
		return t.s
	}
	return otherwise
}

// row is an output record, or a row of a store: what a case expects, and what was seen.
type row map[string]text

func (r row) String() string {
	if r == nil {
		return "nothing"
	}
	names := make([]string, 0, len(r))
	for n := range r {
		names = append(names, n)
	}
	sort.Strings(names)
	var b strings.Builder
	for i, n := range names {
		if i > 0 {
			b.WriteString(" ")
		}
		fmt.Fprintf(&b, "%s=%s", n, r[n].or("null"))
	}
	return b.String()
}

func parseRows(t testing.TB, raw []json.RawMessage) []row {
	t.Helper()
	rows := make([]row, len(raw))
	for i, r := range raw {
		if err := json.Unmarshal(r, &rows[i]); err != nil {
			t.Fatalf("expected #%d: %v", i, err)
		}
	}
	return rows
}

// caseFiles returns the files to replay.
func caseFiles(t testing.TB) []string {
	t.Helper()
	dir := os.Getenv("CONFORMANCE_DIR")
	if dir == "" {
		dir = "testdata"
	}
	var files []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, ".json") {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatalf("CONFORMANCE_DIR: %v", err)
	}
	if len(files) == 0 {
		t.Fatalf("no case files (*.json) in %q", dir)
	}
	sort.Strings(files)
	return files
}

func loadCase(t testing.TB, file string) *testCase {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	c := &testCase{file: file}
	if err := json.Unmarshal(b, c); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	if c.Compare == "" {
		c.Compare = "sequence"
	}
	return c
}
