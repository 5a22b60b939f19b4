package engine

import (
	"errors"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// A member that was stopped while another processed and purged what it was about to read begins anew from what is
// committed. Only if nothing is does it end at once: the next session would not notice that anything is missing.
func TestLeftRange(t *testing.T) {
	holds := &ranges{
		starts: kadm.ListedOffsets{"in": {0: {Topic: "in", Offset: 50}}},
		ends:   kadm.ListedOffsets{"in": {0: {Topic: "in", Offset: 100}}},
	}
	s := &session{}
	for _, tc := range []struct {
		name      string
		next      int64
		committed bool
		err       error
		ends      bool
	}{
		{name: "purged by another", next: 10, committed: true},
		{name: "expired before anything was committed", next: 10, ends: true},
		{name: "in range by now", next: 60},
		{name: "broker away", next: 10, err: kerr.NotCoordinator},
	} {
		err := s.endInput(&input{topic: "in", next: tc.next}, holds, tc.committed, tc.err, kerr.OffsetOutOfRange)
		var again *rebuildError
		if errors.As(err, &again) == tc.ends || errors.Is(err, ErrOffsetOutOfRange) != tc.ends {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}
