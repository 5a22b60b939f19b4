package main

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// cursor is how far a reader of the view has come: for each followed topic, the next offset of each partition. It is
// the id of a server-sent event, and so what a browser brings back as Last-Event-ID. The zero cursor is the
// beginning.
type cursor [2][]int64

func (c cursor) clone() cursor { return cursor{slices.Clone(c[0]), slices.Clone(c[1])} }

// before tells whether a row holds something that the cursor has not passed.
func (c cursor) before(r *row) bool {
	for i, p := range r.seen {
		if p.ok && (int(p.partition) >= len(c[i]) || p.offset >= c[i][p.partition]) {
			return true
		}
	}
	return false
}

// id renders the cursor, as "epoch_1.2.3.4_5.6.7.8".
func (c cursor) id(epoch string) string {
	var sb strings.Builder
	sb.WriteString(epoch)
	for _, offsets := range c {
		for i, o := range offsets {
			sb.WriteByte("_."[min(i, 1)])
			sb.WriteString(strconv.FormatInt(o, 10))
		}
	}
	return sb.String()
}

// parseCursor reads an id. One of other topics, or of another shape than now, is no error: its reader starts at the
// beginning, as one without an id does.
func parseCursor(id, epoch string, now cursor) cursor {
	parts := strings.Split(id, "_")
	if len(id) > 4096 || len(parts) != 1+len(now) || parts[0] != epoch {
		return cursor{}
	}
	var c cursor
	for i := range now {
		fields := strings.Split(parts[i+1], ".")
		if len(fields) != len(now[i]) {
			return cursor{}
		}
		for p, f := range fields {
			o, err := strconv.ParseInt(f, 10, 64)
			if err != nil || o < 0 || o > now[i][p] {
				return cursor{}
			}
			c[i] = append(c[i], o)
		}
	}
	return c
}

// byUnread sorts rows by their counters, the highest first.
func byUnread(a, b *row) int {
	return cmp.Or(cmp.Compare(b.unread, a.unread), strings.Compare(a.user, b.user))
}
