package state

// Layers holds the rows of one task that are not yet in its backend. See layers.go (being written).
type Layers struct{}

// Unflushed returns how many bytes of committed rows wait to be written to the backend, and since when the oldest of
// them waits (Unix milliseconds; 0: nothing waits).
func (l *Layers) Unflushed() (bytes int64, sinceMillis int64) { return 0, 0 }

// Uncommitted returns how many bytes of rows the current batch holds.
func (l *Layers) Uncommitted() int64 { return 0 }

// Freeze sets the committed rows aside as an immutable flush. It returns nil when there is nothing to flush or a flush
// is under way. Call it from the task's goroutine (with no Boundary outstanding); call Flush.Run from any goroutine, then Done from
// the task's.
func (l *Layers) Freeze() *Flush { return nil }

// Done ends a flush that Run has written without error: its layer is let go. After an error of Run, the flush stays
// readable, and Run may be called again.
func (l *Layers) Done(f *Flush) {}

// Flush is a set of committed rows on its way into the backend.
type Flush struct{}

// Run writes the rows to the backend, with the changelog positions last.
func (f *Flush) Run() error { return nil }

// Bytes returns the size of the flush.
func (f *Flush) Bytes() int64 { return 0 }
