package processor

import (
	"fmt"

	"tailrace.dev/internal/task"
)

// framingBytes is the most that a batch adds to its only record: its own header, and the lengths and times in front of
// key and value. headerFraming is that of a header.
const (
	framingBytes  = 100
	headerFraming = 10
)

// sizeError refuses a record that no broker would take, while it can still be blamed on the input that made it.
type sizeError struct {
	what        string // where the record goes
	size, limit int
}

func (e *sizeError) Error() string {
	return fmt.Sprintf("a record of %d bytes for %s exceeds Config.MaxRecordBytes (%d)", e.size, e.what, e.limit)
}

func (e *sizeError) Unwrap() error { return ErrRecordTooLarge }

// oversized returns an error if something that was written since the mark cannot be produced for its size.
func (t *Task) oversized(m mark) error {
	limit := t.opts.MaxRecordBytes
	if limit <= 0 {
		return nil
	}
	for i := m.outputs; i < len(t.outputs); i++ {
		if n := producedBytes(&t.outputs[i]); n > limit {
			return &processError{&sizeError{"topic " + t.outputs[i].Topic, n, limit}}
		}
	}
	if store, n := t.layers.Oversized(); n > 0 {
		return &processError{&sizeError{"the changelog of store " + store, n + framingBytes, limit}}
	}
	return nil
}

// producedBytes is an upper bound of a batch that holds nothing but the output.
func producedBytes(o *task.Output) int {
	n := framingBytes + len(o.Key) + len(o.Value)
	for _, h := range o.Headers {
		n += headerFraming + len(h.Key) + len(h.Value)
	}
	return n
}

// limitRows bounds the rows of the stores that have a changelog.
func (t *Task) limitRows() {
	for i, spec := range t.sub.stores {
		if t.opts.MaxRecordBytes > framingBytes && (len(t.unlogged) == 0 || !t.unlogged[i]) {
			t.layers.Rows(spec.Name()).LimitBytes(t.opts.MaxRecordBytes - framingBytes)
		}
	}
}
