package docs_test

import (
	"fmt"
	"html"
	"slices"
	"strings"
	"unicode/utf8"
)

// picture is a drawing of records on lanes. The horizontal axis is either the order in which records are processed, one
// column for each, or time.
type picture struct {
	name, title string
	scale       float64 // pixels a millisecond where the axis is time; 0: it is order
	until       int64   // the last time of the axis
	tick        int64   // between the labels of the axis
	lanes       []lane
}

// lane is a row of a picture. It holds marks or bars.
type lane struct {
	label, under string // under is a second line in small letters
	marks        []mark
	bars         []bar
}

// mark is a record: a pill with a text, and a note in small letters below it. Marks of one column are stacked.
type mark struct {
	column int
	at     int64 // where the axis is time
	text   string
	note   string
	class  string
}

// bar is a span: a window, or for how long something holds. Where the axis is time, from and to are times; otherwise they
// are columns, both included. A tail, to a later time, is drawn in outline.
type bar struct {
	from, to, tail int64
	open           bool // has no end
	text           string
	class          string
}

const (
	labelWidth = 176.0
	margin     = 16.0
	pillHeight = 20.0
	noteHeight = 13.0
	gap        = 8.0
	barHeight  = 22.0
	head       = 40.0 // of the title
)

func pillWidth(text string) float64 { return 7.3*float64(utf8.RuneCountInString(text)) + 14 }

// columns returns the middle of each column, and the right end of the last.
func (p *picture) columns() (middle []float64, end float64) {
	n := 0
	widths := map[int]float64{}
	for _, l := range p.lanes {
		for _, m := range l.marks {
			n = max(n, m.column+1)
			widths[m.column] = max(widths[m.column], pillWidth(m.text), 5.6*float64(utf8.RuneCountInString(m.note)))
		}
		for _, b := range l.bars {
			n = max(n, int(b.to)+1)
		}
	}
	x := labelWidth
	for i := range n {
		w := max(widths[i], 34) + 14
		middle = append(middle, x+w/2)
		x += w
	}
	return middle, x
}

// x places a time.
func (p *picture) x(at int64) float64 { return labelWidth + 10 + p.scale*float64(at) }

// svg draws the picture, or tells what overlaps.
func (p *picture) svg() (string, error) {
	var middle []float64
	var right float64
	if p.scale > 0 {
		right = p.x(p.until) + 10
	} else {
		middle, right = p.columns()
	}
	width := max(right+margin, margin*2+8.2*float64(len(p.title)))
	var body strings.Builder
	y := head
	var problems []string
	for i, l := range p.lanes {
		height, bad := p.lane(&body, l, y, middle)
		for _, b := range bad {
			problems = append(problems, l.label+": "+b)
		}
		if i > 0 {
			fmt.Fprintf(&body, `<line class="rule" x1="%.0f" x2="%.0f" y1="%.0f" y2="%.0f"/>`+"\n", margin, width-margin, y, y)
		}
		y += height
	}
	if p.scale > 0 {
		y += 4
		fmt.Fprintf(&body, `<line class="axis" x1="%.0f" x2="%.0f" y1="%.0f" y2="%.0f"/>`+"\n", p.x(0), right, y, y)
		for t := int64(0); t <= p.until; t += p.tick {
			fmt.Fprintf(&body, `<line class="axis" x1="%.1f" x2="%.1f" y1="%.0f" y2="%.0f"/>`+"\n", p.x(t), p.x(t), y, y+4)
			fmt.Fprintf(&body, `<text class="note" x="%.1f" y="%.0f">%d</text>`+"\n", p.x(t), y+16, t)
		}
		fmt.Fprintf(&body, `<text class="label" x="%.0f" y="%.0f">time</text>`+"\n", margin, y+8)
		y += 18
	}
	height := y + 12
	if len(problems) > 0 {
		return "", fmt.Errorf("%s: %s", p.name, strings.Join(problems, "; "))
	}
	title := html.EscapeString(p.title)
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%.0f" viewBox="0 0 %.0f %.0f" role="img">
<title>%s</title>
%s<rect class="bg" x="0.5" y="0.5" width="%.0f" height="%.0f" rx="8"/>
<text class="title" x="%.0f" y="25">%s</text>
%s</svg>
`, width, height, width, height, title, style, width-1, height-1, margin, title, body.String()), nil
}

// lane draws one lane and returns its height.
func (p *picture) lane(w *strings.Builder, l lane, top float64, middle []float64) (height float64, bad []string) {
	height = max(p.marks(w, l, top, middle, &bad), p.bars(w, l, top, middle))
	at := top + height/2 + 4
	if l.under != "" {
		at -= 7
	}
	fmt.Fprintf(w, `<text class="label" x="%.0f" y="%.0f">%s</text>`+"\n", margin, at, html.EscapeString(l.label))
	if l.under != "" {
		fmt.Fprintf(w, `<text class="under" x="%.0f" y="%.0f">%s</text>`+"\n", margin, at+14, html.EscapeString(l.under))
	}
	if w := 6.9 * float64(utf8.RuneCountInString(l.label)); w > labelWidth-margin {
		bad = append(bad, "the label is too long")
	}
	if w := 5.8 * float64(utf8.RuneCountInString(l.under)); w > labelWidth-margin+4 {
		bad = append(bad, "the second label is too long")
	}
	return height, bad
}

func (p *picture) marks(w *strings.Builder, l lane, top float64, middle []float64, bad *[]string) float64 {
	type span struct{ from, to float64 }
	rows := map[int][]span{}
	stack := map[int]int{} // marks by column
	hasNote := slices.ContainsFunc(l.marks, func(m mark) bool { return m.note != "" })
	step := pillHeight + 4
	if hasNote {
		step += noteHeight
	}
	deepest := 1
	for _, m := range l.marks {
		row := stack[m.column]
		stack[m.column]++
		deepest = max(deepest, row+1)
		x := 0.0
		if p.scale > 0 {
			x = p.x(m.at)
		} else {
			x = middle[m.column]
		}
		half := max(pillWidth(m.text)/2, 2.8*float64(utf8.RuneCountInString(m.note)))
		s := span{x - half, x + half}
		for _, o := range rows[row] {
			if s.from < o.to && o.from < s.to {
				*bad = append(*bad, fmt.Sprintf("%q overlaps another mark", m.text))
			}
		}
		rows[row] = append(rows[row], s)
		y := top + gap + float64(row)*step
		pw := pillWidth(m.text)
		fmt.Fprintf(w, `<rect class="%s" x="%.1f" y="%.1f" width="%.1f" height="%.0f" rx="10"/>`+"\n", m.class, x-pw/2, y, pw, pillHeight)
		fmt.Fprintf(w, `<text class="pill" x="%.1f" y="%.1f">%s</text>`+"\n", x, y+14, html.EscapeString(m.text))
		if m.note != "" {
			fmt.Fprintf(w, `<text class="note" x="%.1f" y="%.1f">%s</text>`+"\n", x, y+pillHeight+10, html.EscapeString(m.note))
		}
	}
	return 2*gap + float64(deepest)*step - 4
}

func (p *picture) bars(w *strings.Builder, l lane, top float64, middle []float64) float64 {
	var ends []float64 // of the rows so far
	for _, b := range l.bars {
		var from, to, tail float64
		if p.scale > 0 {
			from, to, tail = p.x(b.from), p.x(b.to), p.x(max(b.to, b.tail))
			if b.open {
				to = p.x(p.until) + 8
				tail = to
			}
			if to-from < 10 { // a span without length
				from, to = from-9, from+9
				tail = max(tail, to)
			}
		} else {
			from, to = middle[b.from]-28, middle[b.to]+28
			if int(b.from) > 0 {
				from = max(from, (middle[b.from-1]+middle[b.from])/2+2)
			}
			if int(b.to)+1 < len(middle) {
				to = (middle[b.to]+middle[b.to+1])/2 - 2
			}
			tail = to
		}
		row := slices.IndexFunc(ends, func(end float64) bool { return end <= from+0.5 })
		if row < 0 {
			row = len(ends)
			ends = append(ends, 0)
		}
		ends[row] = tail
		y := top + gap + float64(row)*(barHeight+4)
		if tail > to {
			fmt.Fprintf(w, `<rect class="tail" x="%.1f" y="%.1f" width="%.1f" height="%.0f" rx="4"/>`+"\n", to, y, tail-to-1, barHeight)
		}
		fmt.Fprintf(w, `<rect class="%s" x="%.1f" y="%.1f" width="%.1f" height="%.0f" rx="4"/>`+"\n", b.class, from+1, y, to-from-2, barHeight)
		fmt.Fprintf(w, `<text class="pill" x="%.1f" y="%.1f">%s</text>`+"\n", (from+to)/2, y+15, html.EscapeString(b.text))
	}
	if len(ends) == 0 {
		return 0
	}
	return 2*gap + float64(len(ends))*(barHeight+4) - 4
}

// style has its own background in both schemes, so that a page of either colour can show it.
const style = `<style>
svg{--bg:#ffffff;--fg:#1f2328;--mut:#59636e;--line:#d8dee4;
--l:#ddf4ff;--lb:#0969da;--r:#fff1e5;--rb:#bc4c00;--o:#dafbe1;--ob:#1a7f37;--d:#ffebe9;--db:#cf222e;--w:#f6f8fa;--wb:#8c959f}
@media (prefers-color-scheme:dark){svg{--bg:#0d1117;--fg:#e6edf3;--mut:#9198a1;--line:#30363d;
--l:#0c2d6b;--lb:#4493f8;--r:#4d2408;--rb:#db6d28;--o:#0f3d1f;--ob:#3fb950;--d:#67060c;--db:#f85149;--w:#21262d;--wb:#6e7681}}
.bg{fill:var(--bg);stroke:var(--line)}
text{fill:var(--fg);font-family:-apple-system,"Segoe UI",Helvetica,Arial,sans-serif}
.title{font-size:15px;font-weight:600}
.label{font-size:12.5px;font-weight:600}
.under{font-size:10.5px;fill:var(--mut)}
.pill{font:12px ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace;text-anchor:middle}
.note{font-size:10px;fill:var(--mut);text-anchor:middle}
.rule{stroke:var(--line)}
.axis{stroke:var(--mut)}
.left{fill:var(--l);stroke:var(--lb)}
.right{fill:var(--r);stroke:var(--rb)}
.out{fill:var(--o);stroke:var(--ob)}
.gone{fill:var(--d);stroke:var(--db)}
.dropped{fill:none;stroke:var(--db);stroke-dasharray:3 2}
.window{fill:var(--w);stroke:var(--wb)}
.tail{fill:none;stroke:var(--wb);stroke-dasharray:3 3}
</style>
`
