// Package docs_test draws the pictures of the pages, from what the operators in them really do, and compiles the snippets.
package docs_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The flag is that of github.com/cockroachdb/datadriven, by which make golden finds the packages with golden files.
var rewrite = flag.Bool("rewrite", false, "draw the pictures anew")

// TestPictures runs what the pictures show, and compares what is drawn from that with the files.
func TestPictures(t *testing.T) {
	known := map[string]bool{}
	check := func(p *picture) {
		got, err := p.svg()
		if err != nil {
			t.Error(err)
			return
		}
		file := filepath.Join("img", p.name+".svg")
		known[file] = true
		if *rewrite {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Error(err)
			}
			return
		}
		if want, err := os.ReadFile(file); err != nil || string(want) != got {
			t.Errorf("%s is not what the operators do now (%v): run make golden, and look at it", file, err)
		}
	}
	check(partitions())
	for _, s := range scenarios() {
		p, err := s.draw()
		if err != nil {
			t.Errorf("%s: %v", s.name, err)
			continue
		}
		check(p)
	}
	files, err := filepath.Glob("img/*.svg")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !known[f] {
			t.Errorf("%s is drawn by nothing", f)
		}
	}
	pages := pages(t)
	for f := range known {
		if !strings.Contains(pages, filepath.ToSlash(f)) {
			t.Errorf("no page shows %s", f)
		}
	}
}

// draw runs the steps and puts what comes out on lanes.
func (s scenario) draw() (*picture, error) {
	p := s.picture
	for _, in := range s.inputs {
		l := lane{label: in.label, under: in.under}
		for i, st := range s.steps {
			if st.on != in.on {
				continue
			}
			m := mark{column: i, at: st.at, text: st.value, class: in.class}
			timed := st == record(st.at)
			if s.keys && !timed {
				m.text = st.key + "=" + st.value
			}
			if st.delete {
				m.text, m.class = "×", "gone"
				if s.keys {
					m.text = st.key + " ×"
				}
			}
			if s.times && !timed {
				m.note = "at " + strconv.FormatInt(st.at, 10)
				if st.key != "a" && !s.keys {
					m.text += " (" + st.key + ")"
				}
			}
			l.marks = append(l.marks, m)
		}
		p.lanes = append(p.lanes, l)
		if in.reach > 0 {
			reach := lane{label: "its window", under: fmt.Sprintf("%d ms either way", in.reach)}
			for _, m := range l.marks {
				reach.bars = append(reach.bars, bar{from: max(0, m.at-in.reach), to: m.at + in.reach, text: m.text, class: "window"})
			}
			p.lanes = append(p.lanes, reach)
		}
	}
	if s.name == "window-grace" {
		p.lanes = append(p.lanes, streamTime(s.steps), lifeOf(s.steps, 0, 10, 5))
	}
	for _, r := range s.results {
		out, _, err := run(s.steps, r.build)
		if err != nil {
			return nil, err
		}
		l := lane{label: r.label, under: r.under}
		switch {
		case strings.HasPrefix(s.name, "window-") && s.scale > 0:
			if l.bars, err = windowBars(out, s.name == "window-session"); err != nil {
				return nil, err
			}
		case s.name == "stream-and-table":
			l.marks = rowsAfter(out)
		default:
			l.marks = s.marks(out)
		}
		p.lanes = append(p.lanes, l)
	}
	return &p, nil
}

// marks shows results where the record is that made them come out, with their own time where that is another.
func (s scenario) marks(out []result) []mark {
	var marks []mark
	for _, r := range out {
		at := s.steps[r.step].at
		m := mark{column: r.step, at: at, text: r.Value, class: "out"}
		switch {
		case r.drops > 0:
			m.text, m.class = "too late", "dropped"
			marks = append(marks, m)
			continue
		case s.keys:
			m.text = r.Key + "=" + r.Value
		}
		if r.Tombstone {
			m.text, m.class = "×", "gone"
			if s.keys {
				m.text = r.Key + " ×"
			}
		}
		if own := r.Time.UnixMilli(); (s.times || s.scale > 0) && own != at {
			m.note = "at " + strconv.FormatInt(own, 10)
		}
		marks = append(marks, m)
	}
	return marks
}

// rowsAfter shows all rows of a table after each of its changes.
func rowsAfter(out []result) []mark {
	rows := map[string]string{}
	var marks []mark
	for _, r := range out {
		rows[r.Key] = r.Value
		if r.Tombstone {
			delete(rows, r.Key)
		}
		for _, k := range slices.Sorted(maps.Keys(rows)) {
			marks = append(marks, mark{column: r.step, text: k + "=" + rows[k], class: "out"})
		}
	}
	return marks
}

// partitions is the picture of a topic.
func partitions() *picture {
	p := &picture{name: "topic", title: "A topic of three partitions, and how far a reader has come"}
	for i, keys := range [][]string{{"ann", "dan", "ann", "dan", "ann"}, {"bob", "bob", "eve"}, {"cy", "cy", "cy", "cy"}} {
		l := lane{label: fmt.Sprintf("partition %d", i), under: "records by offset"}
		next := []int{3, 3, 1}[i]
		for o, k := range keys {
			m := mark{column: o, text: k, note: strconv.Itoa(o), class: "left"}
			if o >= next {
				m.class = "window"
			}
			l.marks = append(l.marks, m)
		}
		p.lanes = append(p.lanes, l)
	}
	return p
}

// windowBars shows the last value of each window.
func windowBars(out []result, sessions bool) ([]bar, error) {
	var order []string
	last := map[string]result{}
	for _, r := range out {
		if _, ok := last[r.Key]; !ok {
			order = append(order, r.Key)
		}
		last[r.Key] = r
	}
	var bars []bar
	for _, k := range order {
		if last[k].Tombstone {
			continue
		}
		b := bar{text: last[k].Value, class: "out"}
		if _, err := fmt.Sscanf(k, "%d/%d", &b.from, &b.to); err != nil {
			return nil, fmt.Errorf("window %q: %w", k, err)
		}
		b.open = b.to > 1e6
		if sessions {
			b.tail = b.to + 5
		}
		bars = append(bars, b)
	}
	return bars, nil
}

// streamTime shows the largest time after each step.
func streamTime(steps []step) lane {
	l := lane{label: "stream time", under: "the largest so far"}
	var now int64
	for i, s := range steps {
		now = max(now, s.at)
		l.marks = append(l.marks, mark{column: i, text: strconv.FormatInt(now, 10), class: "window"})
	}
	return l
}

// lifeOf shows when a window is open, in its grace, and closed.
func lifeOf(steps []step, start, end, grace int64) lane {
	l := lane{label: fmt.Sprintf("window %d/%d", start, end)}
	var now int64
	for i, s := range steps {
		now = max(now, s.at)
		text, class := "open", "out"
		if now >= end+grace {
			text, class = "closed", "gone"
		} else if now >= end {
			text, class = "in its grace", "right"
		}
		if n := len(l.bars); n > 0 && l.bars[n-1].text == text {
			l.bars[n-1].to = int64(i)
			continue
		}
		l.bars = append(l.bars, bar{from: int64(i), to: int64(i), text: text, class: class})
	}
	return l
}

// pages returns the text of all pages.
func pages(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
	}
	return all.String()
}
