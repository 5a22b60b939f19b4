package engine

import (
	"fmt"
	"sync"

	"tailrace.dev/internal/task"
)

// relapses remembers for which failure the state of a task was last thrown away. A failure that comes again in the same
// words, at the same record, is in the changelog: throwing the state away does not help, and would go on for ever.
type relapses struct {
	mu   sync.Mutex
	last map[task.ID]string
}

// relapsed takes note of a failure of a task to read its state, and returns an error to end with if it is the one for
// which the state was thrown away before.
func (e *Engine) relapsed(id task.ID, err error) error {
	r := &e.relapses
	r.mu.Lock()
	defer r.mu.Unlock()
	text := err.Error()
	if r.last[id] == text {
		return &Error{
			Kind: ErrForeignChangelog, Partition: -1, Err: err,
			Detail: fmt.Sprintf("the state of task %s is as unreadable as before it was restored from the changelog", id),
			Hint:   "run the version of the program that wrote it, or reset the application",
		}
	}
	if r.last == nil {
		r.last = make(map[task.ID]string)
	}
	r.last[id] = text
	return nil
}
