package engine

import "tailrace.dev/internal/task"

// warm is called on the session's goroutine when a copy has come within Settings.WarmupLag.
func (s *session) warm(task.ID) {}
