package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/zap"
)

// A member that died in the middle of a transaction leaves it open until it times out. Until then nobody learns its
// committed offsets, and no barrier in its changelogs can be read. Whoever takes over from it therefore asks the broker
// for a new epoch of the dead member's producer, which aborts the transaction at once and fences the producer for ever.
//
// A member that is alive must never be hit. What is fenced is a transaction that was open at a time when its id belonged
// to no member of the generation; that the generation was the present one at that time is asked of the coordinator after
// the transactions were listed. Who joins later cannot have had one open, but for one that mends (unstick.go). That one
// must not be aborted, and is finished instead.

const (
	// fenceWait is how long the client is held up for it: a fetch of committed offsets that comes too early is repeated
	// only after a second.
	fenceWait    = time.Second
	fencePause   = 50 * time.Millisecond
	fenceRetries = 40
	// maxDescribed bounds how many transactions of unknown origin are looked at.
	maxDescribed = 200
)

// fenceGone decides the open transactions of members that are gone. It runs on the client's goroutine, which it holds
// up for a moment, and goes on in the background after that.
func (s *session) fenceGone(live []string) {
	round := s.group.round.Load()
	done := make(chan struct{})
	s.async.Add(1)
	go func() {
		defer s.async.Done()
		defer close(done)
		ctx, cancel := context.WithTimeout(s.ctx, max(s.e.cfg.TransactionTimeout, adminTimeout))
		defer cancel()
		if err := s.fence(ctx, live, round); err != nil && s.ctx.Err() == nil {
			s.log.Warn("cannot fence members that are gone; if one left a transaction open, its tasks wait until it "+
				"times out", zap.Error(err))
		}
	}()
	limit := time.NewTimer(fenceWait)
	defer limit.Stop()
	select {
	case <-done:
	case <-limit.C:
	case <-s.ctx.Done():
	}
}

// fence goes on until no transaction is open that belongs to a member that is gone.
func (s *session) fence(ctx context.Context, live []string, round int64) error {
	fenced := map[string]int16{}
	for range fenceRetries {
		open, err := s.abandoned(ctx, live)
		if err != nil {
			return err
		}
		if len(open) == 0 {
			return nil
		}
		if s.group.round.Load() != round {
			return nil // another assignment follows, and looks again
		}
		if err := s.stillMember(ctx); err != nil {
			return err
		}
		for _, txn := range open {
			if epoch, done := fenced[txn.TxnID]; done && epoch == txn.ProducerEpoch {
				continue // under way
			}
			if s.group.round.Load() != round {
				return nil
			}
			fenced[txn.TxnID] = txn.ProducerEpoch
			mended, err := s.finishMend(ctx, txn)
			if err != nil {
				return err
			}
			if mended {
				continue
			}
			s.log.Info("fencing a member that is gone", zap.String("transactional_id", txn.TxnID),
				zap.Int64("producer", txn.ProducerID), zap.Int16("epoch", txn.ProducerEpoch))
			if err := s.fenceProducer(ctx, txn); err != nil {
				return err
			}
		}
		if !sleep(ctx, fencePause) {
			return ctx.Err()
		}
	}
	return errors.New("engine: transactions of members that are gone stay open")
}

// abandoned lists the open transactions of this application that belong to no member.
func (s *session) abandoned(ctx context.Context, live []string) ([]kadm.DescribedTransaction, error) {
	listed, err := s.adm.ListTransactions(ctx, nil, []string{"Ongoing"})
	if err != nil {
		return nil, fmt.Errorf("engine: list transactions: %w", err)
	}
	var ids []string
	others := 0
	for _, id := range listed.TransactionalIDs() {
		switch {
		case slices.Contains(live, id) || id == s.e.cfg.TransactionalID:
		case s.e.met.has(id) || defaultIdentity(s.e.p.App, id):
			ids = append(ids, id)
		case others < maxDescribed:
			others++
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	described, err := s.adm.DescribeTransactions(ctx, ids...)
	if err != nil {
		return nil, fmt.Errorf("engine: describe transactions: %w", err)
	}
	var open []kadm.DescribedTransaction
	for _, txn := range described.Sorted() {
		if txn.Err == nil && txn.State == "Ongoing" && s.isOurs(txn) {
			open = append(open, txn)
		}
	}
	return open, nil
}

// isOurs tells whether only a member of this application can have made the transaction: we have met it, or its id is
// one that this application makes by default, or it wrote to a topic that nobody else writes to.
func (s *session) isOurs(txn kadm.DescribedTransaction) bool {
	if s.e.met.has(txn.TxnID) || defaultIdentity(s.e.p.App, txn.TxnID) {
		return true
	}
	for _, sub := range s.e.p.Subs {
		for _, src := range sub.Sources {
			if _, wrote := txn.Topics[src.Topic]; wrote && src.Internal {
				return true
			}
		}
		for _, store := range sub.Stores {
			if _, wrote := txn.Topics[store.Changelog]; wrote && store.Changelog != "" {
				return true
			}
		}
	}
	return false
}

// defaultIdentity tells whether id is the application's id followed by a hash, which is what a process is called that
// was given no name. No application's id makes the same of another name.
func defaultIdentity(app, id string) bool {
	hash, ok := strings.CutPrefix(id, app+"-")
	return ok && len(hash) == 16 && strings.Trim(hash, "0123456789abcdef") == ""
}

// stillMember asks the coordinator whether the generation that this member knows is the present one.
func (s *session) stillMember(ctx context.Context) error {
	req := kmsg.NewPtrHeartbeatRequest()
	req.Group = s.e.p.App
	req.MemberID, req.Generation = s.cl.GroupMetadata()
	if s.e.cfg.InstanceID != "" {
		req.InstanceID = kmsg.StringPtr(s.e.cfg.InstanceID)
	}
	resp, err := req.RequestWith(ctx, s.plain)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err != nil && !errors.Is(err, kerr.RebalanceInProgress) {
		return fmt.Errorf("engine: ask whether this member is in the group: %w", err)
	}
	return nil
}

// fenceProducer makes the coordinator abort the transaction and give the producer a new epoch. Naming the producer keeps
// the request from hitting another one of the same id.
func (s *session) fenceProducer(ctx context.Context, txn kadm.DescribedTransaction) error {
	req := kmsg.NewPtrInitProducerIDRequest()
	req.TransactionalID = kmsg.StringPtr(txn.TxnID)
	req.TransactionTimeoutMillis = int32(s.e.cfg.TransactionTimeout.Milliseconds())
	req.ProducerID, req.ProducerEpoch = txn.ProducerID, txn.ProducerEpoch
	resp, err := req.RequestWith(ctx, s.plain)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	switch {
	case err == nil,
		errors.Is(err, kerr.ConcurrentTransactions), // the abort is under way
		errors.Is(err, kerr.ProducerFenced), errors.Is(err, kerr.InvalidProducerEpoch),
		errors.Is(err, kerr.InvalidProducerIDMapping): // somebody else was faster
		return nil
	}
	return fmt.Errorf("engine: fence %s: %w", txn.TxnID, err)
}
