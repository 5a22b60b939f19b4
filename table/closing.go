package table

import "tailrace.dev/state"

// Closing tells of the windows of a table's keys: when no record can change their rows any more. Aggregations by
// windows give it to their tables, and what is made of those row by row keeps it.
type Closing[K any] struct {
	// Span returns the window of a key.
	Span func(k K) state.Span
	// GraceMillis is for how long after the end of a window records are still taken for it: its grace period, and for
	// sessions the gap in addition.
	GraceMillis int64
	// Inclusive tells that the end belongs to the window, as it does for sliding windows and sessions: the window is
	// closed once the time is larger than end + GraceMillis. Otherwise it is once the time is equal.
	Inclusive bool
	// Final tells that each row is forwarded once, when its window has closed, so that nothing is left to be suppressed.
	Final bool
}

// WithClosing returns the table with a description of its windows. It is for writing operators.
func (t *Table[K, V]) WithClosing(c *Closing[K]) *Table[K, V] {
	w := *t
	w.closing = c
	return &w
}

// Closing returns when the windows of the table's keys close, or nil where that is not known. It is for writing
// operators.
func (t *Table[K, V]) Closing() *Closing[K] { return t.closing }
