package engine

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
)

// A process has one identity in the group and one as a producer, and keeps both over restarts. This file is about its
// two ends: when it is given up for good, and when another process has taken it.

// leaves tells whether the end of ctx is one from which this member is not expected back. SIGTERM is how a process is
// told to restart; a person who interrupts it has no such plan.
func (e *Engine) leaves(ctx context.Context) bool {
	cause := context.Cause(ctx)
	return e.cfg.LeaveOnStop || errors.Is(cause, ErrLeave) || interrupted(cause)
}

// interrupted tells whether the cause is what signal.NotifyContext gives for SIGINT.
func interrupted(cause error) bool {
	return cause != nil && cause.Error() == os.Interrupt.String()+" signal received"
}

const (
	fencedTries = 6
	fencedPause = 100 * time.Millisecond
)

// notFenced finds out why the producer was fenced. A process that starts takes over the identity as a producer and as a
// member at about the same time; when the older one would only begin anew, it would take the identity back, and the two
// would go on like that.
func (s *session) notFenced(err error) error {
	if err == nil || s.e.cfg.InstanceID == "" || !fatalToProducer(err) || errors.Is(err, ErrCrash) {
		return err
	}
	for range fencedTries {
		ctx, cancel := context.WithTimeout(s.ctx, time.Second)
		was := s.stillMember(ctx)
		cancel()
		if errors.Is(was, kerr.FencedInstanceID) {
			return s.fencedError(was)
		}
		if was != nil || !sleep(s.patience, fencedPause) {
			break
		}
	}
	return err
}

// lookForReset finds out whether a reset of the application has removed this member from the group, in which case it must
// not go on: nothing else tells a member that had no work under way. A reset puts down that it begins before it removes
// anybody.
func (s *session) lookForReset() {
	if !s.group.looking.CompareAndSwap(false, true) {
		return
	}
	s.async.Add(1)
	go func() {
		defer s.async.Done()
		defer s.group.looking.Store(false)
		ctx, cancel := context.WithTimeout(s.ctx, adminTimeout)
		defer cancel()
		c, err := s.readControl(ctx)
		if err != nil {
			return // brokers away: the client says so
		}
		if _, err := c.checkReset(s.e.p.App); err != nil {
			s.fail(err)
		}
	}()
}
