package engine

import (
	"errors"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
)

// TestPositionGoneWhileRunning refuses a fetch of a running task. Another member may have taken the task over, processed
// what comes next, and purged it, while this one was stopped: only what is committed can tell, and the next session asks.
func TestPositionGoneWhileRunning(t *testing.T) {
	t.Parallel()
	s := &session{e: &Engine{cfg: &Settings{OnOutOfRange: OutOfRangeFail}}}
	err := s.leftRange("in", 0, kerr.OffsetOutOfRange)
	var again *rebuildError
	if !errors.As(err, &again) || !errors.Is(err, kerr.OffsetOutOfRange) {
		t.Errorf("got %v, want a rebuild", err)
	}
}
