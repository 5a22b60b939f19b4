package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// The requests that put input offsets into a transaction, or commit them without one. They are made by hand, because
// the client's own transaction session commits what was polled, not what was processed, and knows no metadata.

const (
	coordinatorBackoff  = 20 * time.Millisecond
	coordinatorPatience = 5 * time.Second
)

// topicOffsets is the body that both requests share.
type topicOffsets struct {
	topic      string
	id         [16]byte
	partitions []partitionOffset
}

type partitionOffset struct {
	partition int32
	next      int64
	metadata  string
}

// offsetsOf collects the offsets of the batches by topic. Offsets that did not move are in it too: they make the
// commit fail when a task is not ours any more.
func (s *session) offsetsOf(batches []pending) []topicOffsets {
	index := map[string]int{}
	var out []topicOffsets
	for _, b := range batches {
		for _, o := range b.batch.Offsets {
			i, ok := index[o.Topic]
			if !ok {
				i = len(out)
				index[o.Topic] = i
				out = append(out, topicOffsets{topic: o.Topic, id: s.layout.ids[o.Topic]})
			}
			next := o.Next
			if s.e.has(CommitPolled) {
				next = b.t.input(o.Topic).next
			}
			out[i].partitions = append(out[i].partitions,
				partitionOffset{b.t.id.Partition, next, b.batch.Metadata + markOf(s.layout.ids[o.Topic], inputsOf(b.t.sub))})
		}
	}
	return out
}

// addOffsets adds the input offsets to the open transaction. A refusal is an *abortError.
func (s *session) addOffsets(ctx context.Context, batches []pending) error {
	id, epoch, err := s.cl.ProducerID(ctx)
	if err != nil {
		return rebuild("get the producer id: %w", err)
	}
	// Always first: without it a broker of transaction.version 1 takes the offsets, says yes, and forgets them.
	err = addGroup(ctx, s.cl, s.e.cfg.TransactionalID, id, epoch, s.e.p.App)
	if err != nil {
		return s.refused("add the offsets to the transaction", err)
	}
	req := kmsg.NewPtrTxnOffsetCommitRequest()
	req.TransactionalID, req.ProducerID, req.ProducerEpoch = s.e.cfg.TransactionalID, id, epoch
	req.Group = s.e.p.App
	for _, t := range s.offsetsOf(batches) {
		rt := kmsg.NewTxnOffsetCommitRequestTopic()
		rt.Topic, rt.TopicID = t.topic, t.id
		for _, p := range t.partitions {
			rp := kmsg.NewTxnOffsetCommitRequestTopicPartition()
			rp.Partition, rp.Offset, rp.LeaderEpoch, rp.Metadata = p.partition, p.next, -1, kmsg.StringPtr(p.metadata)
			rt.Partitions = append(rt.Partitions, rp)
		}
		req.Topics = append(req.Topics, rt)
	}
	err = coordinate(ctx, func() error {
		if err := s.asMember(&req.MemberID, &req.Generation, &req.InstanceID); err != nil {
			return err
		}
		resp, err := req.RequestWith(ctx, s.cl)
		if err != nil {
			return err
		}
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return s.refused("commit the offsets in the transaction", err)
	}
	return nil
}

// commitOffsets commits offsets outside any transaction. Whatever goes wrong, the offsets are the only effect, so the
// session starts over.
func (s *session) commitOffsets(batches []pending) error {
	ctx, cancel := context.WithTimeout(s.patience, s.commitTimeout())
	defer cancel()
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Group = s.e.p.App
	for _, t := range s.offsetsOf(batches) {
		rt := kmsg.NewOffsetCommitRequestTopic()
		rt.Topic, rt.TopicID = t.topic, t.id
		for _, p := range t.partitions {
			rp := kmsg.NewOffsetCommitRequestTopicPartition()
			rp.Partition, rp.Offset, rp.LeaderEpoch, rp.Metadata = p.partition, p.next, -1, kmsg.StringPtr(p.metadata)
			rt.Partitions = append(rt.Partitions, rp)
		}
		req.Topics = append(req.Topics, rt)
	}
	err := coordinate(ctx, func() error {
		if err := s.asMember(&req.MemberID, &req.Generation, &req.InstanceID); err != nil {
			return err
		}
		resp, err := req.RequestWith(ctx, s.cl)
		if err != nil {
			return err
		}
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		if denied := authError(err, "", "commit offsets of group "+s.e.p.App); denied != nil {
			return denied
		}
		if errors.Is(err, kerr.FencedInstanceID) {
			return s.fencedError(err)
		}
		return rebuild("commit the offsets: %w", err)
	}
	return nil
}

// errMemberChanged says that the group knows this member under another id than the one its tasks were assigned to.
var errMemberChanged = errors.New("the group let this member in anew; its tasks may have been another's meanwhile")

// asMember fills in who commits. The generation may have moved while we processed: a rebalance that took nothing from
// us, or that waits to take something, leaves everything here ours. Another member id means that we were expelled.
func (s *session) asMember(member *string, generation *int32, instance **string) error {
	id, gen := s.cl.GroupMetadata()
	if id != s.memberID {
		return errMemberChanged
	}
	*member, *generation = id, gen
	if s.e.cfg.InstanceID != "" {
		*instance = kmsg.StringPtr(s.e.cfg.InstanceID)
	}
	return nil
}

// addGroup makes the group's offsets part of the open transaction of a producer, or opens one with them.
func addGroup(ctx context.Context, cl *kgo.Client, id string, producer int64, epoch int16, group string) error {
	req := kmsg.NewPtrAddOffsetsToTxnRequest()
	req.TransactionalID, req.ProducerID, req.ProducerEpoch, req.Group = id, producer, epoch, group
	return coordinate(ctx, func() error {
		resp, err := req.RequestWith(ctx, cl)
		if err != nil {
			return err
		}
		return kerr.ErrorForCode(resp.ErrorCode)
	})
}

// coordinate sends a request until it is answered with something definite. What passes by itself is waited for, for a
// bounded time: a coordinator on the move, the end of the transaction before, a rebalance that is under way.
func coordinate(ctx context.Context, send func() error) error {
	deadline := time.Now().Add(coordinatorPatience)
	backoff := coordinatorBackoff
	for {
		err := send()
		if err == nil || !passes(err) || time.Now().After(deadline) {
			return err
		}
		if !sleep(ctx, backoff) {
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
		backoff = min(2*backoff, 250*time.Millisecond)
	}
}

func passes(err error) bool {
	for _, e := range []*kerr.Error{
		kerr.ConcurrentTransactions, kerr.CoordinatorLoadInProgress, kerr.CoordinatorNotAvailable, kerr.NotCoordinator,
		kerr.IllegalGeneration, kerr.RebalanceInProgress, kerr.UnknownTopicOrPartition, kerr.UnknownTopicID,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// refused judges an error of a request that belongs to the open transaction, before its end.
func (s *session) refused(what string, err error) error {
	wrapped := fmt.Errorf("engine: %s: %w", what, err)
	switch JudgeRefusal(err) {
	case RefusalFenced:
		return s.fencedError(err)
	case RefusalRebuild:
		return &rebuildError{wrapped}
	case RefusalAbort:
		if denied := authError(err, "", what); denied != nil {
			return denied
		}
	}
	return &abortError{wrapped}
}

func (s *session) fencedError(err error) error {
	return &Error{
		Kind: ErrFenced, Partition: -1, Detail: "instance id " + s.e.cfg.InstanceID, Err: err,
		Hint: "another process runs with this identity: stop it, or give each its own state directory or instance id",
	}
}
