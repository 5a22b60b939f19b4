package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"go.uber.org/zap"
)

// recheckPause is waited before a topic counts as gone.
const recheckPause = time.Second

// housekeep starts the jobs whose time has come, beside the processing: one of each at a time.
func (s *session) housekeep(now time.Time) {
	s.lookAtEnds(now)
	s.keepMembership(now)
	s.lookForUnresolved(now)
	s.cleanUp()
	if s.e.cfg.PurgeInterval > 0 && now.After(s.nextPurge) && s.purging.CompareAndSwap(false, true) {
		s.nextPurge = now.Add(s.e.cfg.PurgeInterval)
		offsets := s.processed()
		s.async.Add(1)
		go func() {
			defer s.async.Done()
			defer s.purging.Store(false)
			s.purge(offsets)
		}()
	}
	if s.e.cfg.TopicCheck > 0 && now.After(s.nextCheck) && s.checking.CompareAndSwap(false, true) {
		s.nextCheck = now.Add(s.e.cfg.TopicCheck)
		s.async.Add(1)
		go func() {
			defer s.async.Done()
			defer s.checking.Store(false)
			err := s.recheck()
			if (errors.Is(err, ErrTopicChanged) || errors.Is(err, ErrStateLoss)) && sleep(s.ctx, recheckPause) {
				err = s.recheck() // a broker that just started may not know all topics yet
			}
			if err != nil {
				s.fail(err)
			}
		}()
	}
}

// processed returns the committed offsets of the repartition topics that are ours.
func (s *session) processed() kadm.Offsets {
	offsets := kadm.Offsets{}
	for _, t := range s.tasks {
		if !t.running {
			continue
		}
		for i, in := range t.inputs {
			if t.sub.Sources[i].Internal && in.committed > 0 {
				offsets.Add(kadm.Offset{Topic: in.topic, Partition: in.partition, At: in.committed, LeaderEpoch: -1})
			}
		}
	}
	return offsets
}

// purge deletes what was processed from repartition topics: nobody else reads them, and they have no retention.
func (s *session) purge(offsets kadm.Offsets) {
	if len(offsets) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, adminTimeout)
	defer cancel()
	resp, err := s.adm.DeleteRecords(ctx, offsets)
	if err == nil {
		err = resp.Error()
	}
	if denied := authError(err, offsets.TopicsSet().Topics()[0], "delete records of the topic"); denied != nil {
		s.fail(denied) // it would grow for ever
		return
	}
	if err != nil && s.ctx.Err() == nil {
		s.log.Warn("cannot purge repartition topics; they grow meanwhile", zap.Error(err))
	}
}

// recheck compares the input topics and the changelogs with what they were when the session began.
func (s *session) recheck() error {
	ctx, cancel := context.WithTimeout(s.ctx, adminTimeout)
	defer cancel()
	topics := s.e.p.sourceTopics()
	meta, err := s.adm.Metadata(ctx, append(s.e.p.changelogs(), topics...)...)
	if err != nil {
		return nil // brokers away: the client says so
	}
	for _, topic := range topics {
		d, ok := meta.Topics[topic]
		if !ok {
			continue
		}
		changed := &Error{
			Kind: ErrTopicChanged, Topic: topic, Partition: -1,
			Hint: "results so far came from the old topic; reset the application before it goes on",
		}
		switch {
		case errors.Is(d.Err, kerr.UnknownTopicOrPartition):
			changed.Detail = "it was deleted"
			return changed
		case d.Err != nil:
			continue
		case d.ID != s.layout.ids[topic]:
			changed.Detail = "it was deleted and created again"
			return changed
		case int32(len(d.Partitions)) != s.layout.partitions[topic]:
			changed.Kind = ErrPartitionMismatch
			changed.Detail = fmt.Sprintf("it had %d partitions and has %d", s.layout.partitions[topic], len(d.Partitions))
			changed.Hint = "keys now go to other partitions than their state: reset the application with the new count"
			return changed
		}
	}
	return s.recheckChangelogs(ctx, meta.Topics)
}
