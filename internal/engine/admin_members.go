package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// writeControl writes a record to an application's control topic, which exists.
func (a *Admin) writeControl(ctx context.Context, app, key string, value []byte) error {
	for try := 1; ; try++ {
		err := produceControl(ctx, a.cl, app, &kgo.Record{Key: []byte(key), Value: value})
		if errors.Is(err, kerr.UnknownTopicOrPartition) && try < missingTries && sleep(ctx, missingPause) {
			continue // made a moment ago
		}
		return err
	}
}

// remove takes members out of the group, and fences their producers, so that nothing which they have under way is
// committed later. Those that come back are told to stop by the record of the reset.
func (r *resetting) remove(ctx context.Context, members []parsedMember) error {
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Group = r.p.App
	for _, m := range members {
		r.o.Progress(StepMembers, fmt.Sprintf("remove member %s at %s", cmp.Or(m.Instance, m.ID), m.Host))
		rm := kmsg.NewLeaveGroupRequestMember()
		rm.Reason = kmsg.StringPtr("the application is reset")
		if m.Instance != "" {
			rm.InstanceID = kmsg.StringPtr(m.Instance)
		} else {
			rm.MemberID = m.ID
		}
		req.Members = append(req.Members, rm)
	}
	resp, err := req.RequestWith(ctx, r.a.cl)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err != nil && !errors.Is(err, kerr.UnknownMemberID) {
		if denied := authError(err, "", "remove members of group "+r.p.App); denied != nil {
			return denied
		}
		return fmt.Errorf("engine: remove members: %w", err)
	}
	for _, m := range members {
		if m.TransactionalID == "" {
			continue
		}
		if err := r.a.fence(ctx, m.TransactionalID); err != nil {
			return err
		}
	}
	return nil
}

// fence gives a transactional id a new epoch, which aborts what is open and refuses whoever had the old one.
func (a *Admin) fence(ctx context.Context, transactionalID string) error {
	for {
		req := kmsg.NewPtrInitProducerIDRequest()
		req.TransactionalID = kmsg.StringPtr(transactionalID)
		req.TransactionTimeoutMillis = 10_000
		req.ProducerID, req.ProducerEpoch = -1, -1
		resp, err := req.RequestWith(ctx, a.cl)
		if err == nil {
			err = kerr.ErrorForCode(resp.ErrorCode)
		}
		if errors.Is(err, kerr.ConcurrentTransactions) && sleep(ctx, memberPause) {
			continue // the abort is under way
		}
		if denied := authError(err, "", "fence producer "+transactionalID); denied != nil {
			return denied
		}
		if err != nil {
			return fmt.Errorf("engine: fence producer %s: %w", transactionalID, err)
		}
		return nil
	}
}
