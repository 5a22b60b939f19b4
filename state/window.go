package state

import (
	"fmt"
	"math"
	"time"
)

// Span is the bounds of a window. Whether its end belongs to it is for those to say who made it: tumbling and hopping
// windows end before it, sliding windows and sessions with it.
type Span struct {
	// StartMillis and EndMillis are Unix milliseconds.
	StartMillis, EndMillis int64
}

// Start returns the start as a time in UTC.
func (w Span) Start() time.Time { return time.UnixMilli(w.StartMillis).UTC() }

// End returns the end as a time in UTC.
func (w Span) End() time.Time { return time.UnixMilli(w.EndMillis).UTC() }

// String renders the window as start/end, in Unix milliseconds.
func (w Span) String() string { return fmt.Sprintf("%d/%d", w.StartMillis, w.EndMillis) }

// Windowed is the key of a value that belongs to a key and a window.
type Windowed[K any] struct {
	Key K
	Span
}

// String renders the key as [key@start/end], as Kafka Streams does.
func (w Windowed[K]) String() string {
	return fmt.Sprintf("[%v@%d/%d]", w.Key, w.StartMillis, w.EndMillis)
}

// Forever is the retention of rows that never expire.
const Forever time.Duration = math.MaxInt64

// hiddenEnd is the end of a row that no one sees but the operator that wrote it. It sorts before all others.
const hiddenEnd = math.MinInt64

// Hidden returns the window under which an operator keeps, beside the row of w, one that only Spans, Peek, Take, Give
// and Delete see.
func (w Span) Hidden() Span { return Span{w.StartMillis, hiddenEnd} }

// IsHidden tells whether the window was made by Hidden.
func (w Span) IsHidden() bool { return w.EndMillis == hiddenEnd }

// SpanRow is a window in a store and the time of its row.
type SpanRow struct {
	Span
	TimeMillis int64
}

// satAdd and satSub stay at the ends of the int64 range, where times and durations that stand for "never" are.
func satAdd(a, b int64) int64 {
	s := a + b
	switch {
	case a > 0 && b > 0 && s < 0:
		return math.MaxInt64
	case a < 0 && b < 0 && s >= 0:
		return math.MinInt64
	}
	return s
}

func satSub(a, b int64) int64 {
	if b == math.MinInt64 {
		return satAdd(satAdd(a, math.MaxInt64), 1)
	}
	return satAdd(a, -b)
}

// millisOf returns a duration in milliseconds, where Forever stays the largest number.
func millisOf(d time.Duration) int64 {
	if d == Forever {
		return math.MaxInt64
	}
	return d.Milliseconds()
}
