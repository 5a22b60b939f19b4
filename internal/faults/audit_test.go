//go:build unix

package faults

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/processor"
	"tailrace.dev/state"
	"tailrace.dev/state/badger"
)

// report is what an audit of the output found.
type report struct {
	records int
	// gaps are counts that skip some, repeats such as were there before; missing and extra compare how often each key
	// was counted in the end with how often it was written.
	gaps, repeats, missing, extra int
	examples                      []string
}

// exact tells that the output is exactly what it must be.
func (r *report) exact() bool { return r.gaps+r.repeats+r.missing+r.extra == 0 }

func (r *report) String() string {
	return fmt.Sprintf("%d outputs: %d gaps, %d repeats, %d missing, %d extra %s",
		r.records, r.gaps, r.repeats, r.missing, r.extra, strings.Join(r.examples, "; "))
}

func (r *report) note(n *int, by int, format string, args ...any) {
	if *n += by; len(r.examples) < 5 {
		r.examples = append(r.examples, fmt.Sprintf(format, args...))
	}
}

// audit reads the output, committed, and compares it with what went in: for each key exactly 1, 2, 3 … n in order.
// Everything must have been processed.
func (c *cluster) audit(f *feeder) *report {
	c.t.Helper()
	records, _ := c.readAll(c.out)
	return c.check(records, f)
}

// check compares outputs with what went in.
func (c *cluster) check(records map[int32][]*kgo.Record, f *feeder) *report {
	c.t.Helper()
	r := &report{}
	last := map[string]int{}
	for p, rs := range records {
		for _, rec := range rs {
			r.records++
			key := string(rec.Key)
			if len(rec.Value) != 8 {
				c.t.Fatalf("output %s[%d]@%d is no count", c.out, p, rec.Offset)
			}
			n := int(binary.BigEndian.Uint64(rec.Value))
			switch was := last[key]; {
			case n > was+1:
				r.note(&r.gaps, 1, "%s: %d after %d at %d@%d", key, n, was, p, rec.Offset)
			case n <= was:
				r.note(&r.repeats, 1, "%s: %d after %d at %d@%d", key, n, was, p, rec.Offset)
			}
			last[key] = max(last[key], n)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, want := range f.sent {
		switch got := last[key]; {
		case got < want:
			r.note(&r.missing, want-got, "%s: ends at %d, want %d", key, got, want)
		case got > want:
			r.note(&r.extra, got-want, "%s: ends at %d, want %d", key, got, want)
		}
	}
	if r.exact() && r.records != f.total {
		r.note(&r.extra, r.records-f.total, "%d outputs of %d inputs", r.records, f.total)
	}
	return r
}

// mustBeExact audits the output after everything was processed.
func (c *cluster) mustBeExact(f *feeder) {
	c.t.Helper()
	if r := c.audit(f); !r.exact() {
		c.t.Errorf("%s", r)
	}
}

// stateAudit is what a comparison of local state with the changelog found.
type stateAudit struct {
	tasks, rows int
	ahead       []string // rows or positions that the changelog does not have
}

// auditState opens the local state of an application that does not run, and compares it with the changelog: it must be
// exactly the committed records below its position.
func (c *cluster) auditState(stateDir string) *stateAudit {
	c.t.Helper()
	a := &stateAudit{}
	changelog := processor.ChangelogTopic(c.app, counts.Name())
	dirs, err := filepath.Glob(filepath.Join(stateDir, c.app, c.in, "*"))
	if err != nil {
		c.t.Fatal(err)
	}
	if len(dirs) == 0 {
		return a
	}
	records, ends := c.readAll(changelog)
	for _, dir := range dirs {
		p, err := strconv.ParseInt(filepath.Base(dir), 10, 32)
		if err != nil {
			c.t.Fatal(err)
		}
		b, err := badger.Open(dir, badger.Options{})
		if err != nil {
			c.t.Errorf("open %s: %v", dir, err)
			continue
		}
		a.tasks++
		id, err := b.Register(counts.Name())
		if err != nil {
			c.t.Fatal(err)
		}
		pos, ok, err := b.Position(id)
		if err != nil {
			c.t.Fatal(err)
		}
		if ok && pos.Next > ends[int32(p)] {
			a.ahead = append(a.ahead, fmt.Sprintf("partition %d: position %d, last stable offset %d", p, pos.Next, ends[int32(p)]))
		}
		want := map[string][]byte{}
		for _, r := range records[int32(p)] {
			if !ok || r.Offset >= pos.Next || bytes.HasPrefix(r.Key, []byte{state.KindMeta, '!'}) {
				continue // not there yet, or a mark of the engine's
			}
			if r.Value == nil {
				delete(want, string(r.Key))
				continue
			}
			want[string(r.Key)] = r.Value
		}
		cur := b.Scan(id, nil, nil, false)
		for cur.Next() {
			a.rows++
			key := string(cur.Key())
			if w, ok := want[key]; !ok || !bytes.Equal(w, cur.Value()) {
				a.ahead = append(a.ahead, fmt.Sprintf("partition %d: row %q is %x, want %x", p, key, cur.Value(), w))
			}
			delete(want, key)
		}
		if err := cur.Err(); err != nil {
			c.t.Error(err)
		}
		cur.Close()
		for key, w := range want {
			a.ahead = append(a.ahead, fmt.Sprintf("partition %d: row %q is absent, want %x", p, key, w))
		}
		if err := b.Close(); err != nil {
			c.t.Error(err)
		}
	}
	return a
}

// mustMatchChangelog audits local state and reports what is wrong with it. It returns how many tasks were on disk.
func (c *cluster) mustMatchChangelog(t *testing.T, stateDir string) int {
	t.Helper()
	a := c.auditState(stateDir)
	for i, what := range a.ahead {
		if i == 5 {
			t.Errorf("… and %d more", len(a.ahead)-i)
			break
		}
		t.Errorf("state is not that of its position: %s", what)
	}
	return a.tasks
}
