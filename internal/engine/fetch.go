package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"
)

// ended is a context that is over: a poll with it takes nothing and returns at once.
var ended = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// allowRebalance lets a rebalance that waits run its callbacks, and handles what they posted. Nothing may be
// uncommitted. The poll returns at once, but only when no rebalance is under way, and it blocks those to come.
func (s *session) allowRebalance() error {
	s.cl.AllowRebalance()
	fetches := s.cl.PollRecords(ended, 1)
	if err := s.handleFetches(fetches); err != nil {
		return err
	}
	return s.callPosted()
}

// poll fetches, and hands what came to the tasks.
func (s *session) poll(until time.Time) error {
	s.balanceFetch()
	ctx, done := s.untilWoken(until)
	fetches := s.cl.PollRecords(ctx, 0)
	done()
	return s.handleFetches(fetches)
}

func (s *session) handleFetches(fetches kgo.Fetches) error {
	any := false
	given := s.given[:0]
	for i := range fetches {
		for j := range fetches[i].Topics {
			t := &fetches[i].Topics[j]
			for k := range t.Partitions {
				p := &t.Partitions[k]
				if p.Err != nil && !s.barred(t.Topic, p) {
					if err := s.fetchError(t.Topic, p.Partition, p.Err); err != nil {
						return err
					}
				}
				if len(p.Records) == 0 {
					continue
				}
				any = true
				if task := s.deliver(t.Topic, p); task != nil {
					given = append(given, task)
				}
			}
		}
	}
	// Only now, so that no task takes a record before an older one of another topic that came with it.
	for i, t := range given {
		s.schedule(t)
		given[i] = nil
	}
	s.given = given
	if any {
		return rebuildUnlessTyped(s.e.at("polled"))
	}
	return nil
}

// fetchError judges an error that a poll returned: nil means that the client goes on by itself.
func (s *session) fetchError(topic string, partition int32, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	var group *kgo.ErrGroupSession
	var typed *Error
	var loss *kgo.ErrDataLoss
	var big *kgo.ErrDecompressTooLarge
	what := "read the topic"
	if topic == "" {
		what = "join the group " + s.e.p.App
	}
	if denied := authError(err, topic, what); denied != nil {
		return denied
	}
	switch {
	case errors.As(err, &typed):
		return err
	case errors.Is(err, kerr.FencedInstanceID):
		return &Error{
			Kind: ErrFenced, Partition: -1, Detail: "instance id " + s.e.cfg.InstanceID, Err: err,
			Hint: "another process runs with this identity: stop it, or give each its own state directory or instance id",
		}
	case errors.As(err, &group):
		s.log.Warn("group session ended, joining again", zap.Error(err))
		s.lookForReset()
		return nil
	case errors.Is(err, kerr.OffsetOutOfRange):
		s.leftRange(topic, partition, err)
		return nil
	case errors.As(err, &loss):
		return &Error{
			Kind: ErrDataLoss, Topic: topic, Partition: partition, Err: err,
			Hint: "what is derived from the lost records cannot be undone; rebuild from the start, or reset the offsets",
		}
	case errors.As(err, &big):
		return &Error{
			Kind: ErrRecordTooLarge, Topic: topic, Partition: partition,
			Detail: fmt.Sprintf("the batch at offset %d exceeds %d bytes when decompressed", big.Offset,
				s.e.cfg.MaxDecompressBytes),
			Hint: "raise the limit, or move the committed offset past the batch", Err: err,
		}
	case errors.Is(err, kerr.UnknownTopicID), errors.Is(err, kerr.UnknownTopicOrPartition):
		s.nextCheck = time.Time{} // look at once what happened to it
		return nil
	}
	return rebuild("fetch %s[%d]: %w", topic, partition, err)
}
