package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/zap"
)

// A broker that is killed while it ends a transaction can lose the marker that belongs to the group's offsets, although
// it says that the transaction is complete (Apache Kafka 4.3.0). The group's coordinator then holds the offsets back for
// ever. It keeps them by producer, and the next marker of the same producer decides all of them. So the lost marker is
// written once more: by a transaction of that producer that holds nothing but the group, with the outcome of the lost
// one.
//
// That outcome must be known, and not guessed: an offset that is committed wrongly loses records, and one that is aborted
// wrongly doubles them. The coordinator tells the outcome of a producer's last transaction until the producer starts
// anew. So a session looks before it does, and mends before it does anything else. Only a commit is made use of. Every
// transaction that this engine commits carries offsets, so its marker is the one that decides them, and writing it where
// none is lost changes nothing. One that was aborted may have carried none, and then says nothing of the transaction
// before, which was possibly committed.
//
// From the new start of the producer to the end of the mending transaction the coordinator does not know the outcome. The
// control topic does: a record there says that this producer is being mended, and whoever finds it goes on.

const (
	// heldPatience is how long offsets may be held back before that is more than the end of somebody's transaction, which
	// takes milliseconds.
	heldPatience = 500 * time.Millisecond
	heldPause    = 25 * time.Millisecond
	// unstickAfter is how long a session waits for offsets before it looks for the reason.
	unstickAfter = 5 * time.Second
	// maxUnsticks bounds how often a process does so, lest it does nothing else.
	maxUnsticks = 3
)

// controlMend begins the key of the record that a producer is being mended. Its transactional id follows.
const controlMend = "mend/"

// mending is the value of that record.
type mending struct {
	Producer int64 `json:"producer"`
}

// mendsOf returns the producers that are being mended, by their transactional ids.
func mendsOf(c *control) (map[string]mending, error) {
	found := map[string]mending{}
	for key, value := range c.values {
		id, ok := strings.CutPrefix(key, controlMend)
		if !ok {
			continue
		}
		var m mending
		if err := json.Unmarshal(value, &m); err != nil {
			return nil, fmt.Errorf("engine: the record %q of the control topic cannot be read: %w", key, err)
		}
		found[id] = m
	}
	return found, nil
}

// settleFormer writes the marker of our former self's last transaction if it is lost. It comes before the session asks
// for a producer id, which makes the coordinator forget the outcome.
func (s *session) settleFormer(ctx context.Context) error {
	id := s.e.cfg.TransactionalID
	ctx, cancel := context.WithTimeout(ctx, 2*adminTimeout)
	defer cancel()
	for {
		txn, known, err := s.describeProducer(ctx, id)
		if err != nil || !known {
			return err
		}
		begun, mends := s.layout.mends[id]
		switch {
		case txn.State == "PrepareCommit" || txn.State == "PrepareAbort":
			if !sleep(ctx, heldPause) {
				return rebuild("wait for the end of the former transaction: %w", ctx.Err())
			}
		case mends && begun.Producer == txn.ProducerID &&
			(txn.State == "Empty" || txn.State == "Ongoing" || txn.State == "CompleteCommit"):
			return s.writeMarker(ctx, txn)
		case mends:
			s.log.Error("the mending of a lost marker was interrupted for longer than a transaction lasts: offsets may be "+
				"held back, or be those before the last commit", zap.String("state", txn.State),
				zap.Int64("producer", txn.ProducerID), zap.Int64("mended", begun.Producer))
			return s.recordMend(ctx, id, nil)
		case txn.State == "CompleteCommit":
			if held, err := s.heldBack(ctx); err != nil || !held {
				return err
			}
			return s.writeMarker(ctx, txn)
		default:
			return nil
		}
	}
}

// describeProducer asks what became of a producer's last transaction. known is false when the coordinator does not say.
func (s *session) describeProducer(ctx context.Context, id string) (txn kadm.DescribedTransaction, known bool, err error) {
	described, err := s.adm.DescribeTransactions(ctx, id)
	txn, told := described[id]
	if err == nil {
		err = txn.Err
	}
	switch {
	case err == nil && told:
		return txn, true, nil
	case ctx.Err() != nil || kerr.IsRetriable(err) || kgo.IsRetryableBrokerErr(err):
		return txn, false, rebuild("ask for the state of the producer: %w", err)
	}
	// Never seen before, or not ours to ask, or a broker that has no answer.
	s.log.Debug("the outcome of the former transaction is not known", zap.Error(err))
	return txn, false, nil
}

// heldBack tells whether the coordinator holds offsets of the group back for longer than transactions take to end.
func (s *session) heldBack(ctx context.Context) (bool, error) {
	var held map[string]bool // partitions that were not seen stable yet; nil: all
	for deadline := time.Now().Add(heldPatience); ; {
		offsets, err := s.adm.FetchOffsets(kadm.RequireStable(ctx), s.e.p.App)
		switch {
		case err != nil && (ctx.Err() != nil || kgo.IsRetryableBrokerErr(err)):
			return false, rebuild("ask for the group's offsets: %w", err)
		case err != nil && !kerr.IsRetriable(err):
			s.log.Debug("cannot see whether offsets are held back", zap.Error(err))
			return false, nil
		case err == nil:
			now := map[string]bool{}
			offsets.Each(func(o kadm.OffsetResponse) {
				p := fmt.Sprintf("%s[%d]", o.Topic, o.Partition)
				if errors.Is(o.Err, kerr.UnstableOffsetCommit) && (held == nil || held[p]) {
					now[p] = true
				}
			})
			if held = now; len(held) == 0 {
				return false, nil
			}
		}
		if time.Now().After(deadline) {
			return true, nil
		}
		if !sleep(ctx, heldPause) {
			return false, rebuild("ask for the group's offsets: %w", ctx.Err())
		}
	}
}

// writeMarker writes the commit marker of a producer into the group's offsets: by a transaction with the group in it, and
// nothing else. One that was interrupted goes on where it was.
func (s *session) writeMarker(ctx context.Context, txn kadm.DescribedTransaction) error {
	id, producer, epoch := txn.TxnID, txn.ProducerID, txn.ProducerEpoch
	if txn.State != "Ongoing" {
		if err := s.recordMend(ctx, id, &mending{Producer: producer}); err != nil {
			return err
		}
		if err := rebuildUnlessTyped(s.e.at("mend-recorded")); err != nil {
			return err
		}
		took, e, err := s.takeProducer(ctx, id)
		if err != nil {
			return err
		}
		if took != producer {
			s.log.Error("the coordinator gave another producer id; the lost marker cannot be written",
				zap.String("transactional_id", id), zap.Int64("producer", producer), zap.Int64("now", took))
			return s.recordMend(ctx, id, nil)
		}
		epoch = e
		if err := rebuildUnlessTyped(s.e.at("mend-producer")); err != nil {
			return err
		}
		add := kmsg.NewPtrAddOffsetsToTxnRequest()
		add.TransactionalID, add.ProducerID, add.ProducerEpoch, add.Group = id, producer, epoch, s.e.p.App
		err = s.coordinate(ctx, func() error {
			resp, err := add.RequestWith(ctx, s.plain)
			if err != nil {
				return err
			}
			return kerr.ErrorForCode(resp.ErrorCode)
		})
		if err != nil {
			return rebuild("write the marker of a committed transaction: add the group: %w", err)
		}
	}
	if err := rebuildUnlessTyped(s.e.at("mend-open")); err != nil {
		return err
	}
	end := kmsg.NewPtrEndTxnRequest()
	end.TransactionalID, end.ProducerID, end.ProducerEpoch, end.Commit = id, producer, epoch, true
	err := s.coordinate(ctx, func() error {
		resp, err := end.RequestWith(ctx, s.plain)
		if err != nil {
			return err
		}
		return kerr.ErrorForCode(resp.ErrorCode)
	})
	if err != nil {
		return rebuild("write the marker of a committed transaction: %w", err)
	}
	if err := rebuildUnlessTyped(s.e.at("mend-ended")); err != nil {
		return err
	}
	s.log.Warn("committed offsets were held back although the producer's last transaction was committed. In case that a "+
		"broker lost its marker for the group, it was written once more",
		zap.String("transactional_id", id), zap.Int64("producer", producer))
	return s.recordMend(ctx, id, nil)
}

// recordMend puts into the control topic that a producer is being mended, or with nil that it no longer is.
func (s *session) recordMend(ctx context.Context, id string, m *mending) error {
	var value []byte
	if m != nil {
		var err error
		if value, err = json.Marshal(m); err != nil {
			return fmt.Errorf("engine: encode a record of the control topic: %w", err)
		}
	}
	topic := ControlTopic(s.e.p.App)
	r := &kgo.Record{Topic: topic, Key: []byte(controlMend + id), Value: value, Timestamp: s.e.cfg.Now()}
	if err := s.plain.ProduceSync(ctx, r).FirstErr(); err != nil {
		if denied := authError(err, topic, "write the topic"); denied != nil {
			return denied
		}
		return rebuild("write the control topic: %w", err)
	}
	return nil
}

// takeProducer starts a producer anew, which fences whoever had it.
func (s *session) takeProducer(ctx context.Context, id string) (producer int64, epoch int16, err error) {
	req := kmsg.NewPtrInitProducerIDRequest()
	req.TransactionalID = kmsg.StringPtr(id)
	req.TransactionTimeoutMillis = int32(s.e.cfg.TransactionTimeout.Milliseconds())
	err = s.coordinate(ctx, func() error {
		resp, err := req.RequestWith(ctx, s.plain)
		if err != nil {
			return err
		}
		producer, epoch = resp.ProducerID, resp.ProducerEpoch
		return kerr.ErrorForCode(resp.ErrorCode)
	})
	if err != nil {
		return 0, 0, rebuild("write the marker of a committed transaction: get a producer id: %w", err)
	}
	return producer, epoch, nil
}

// unstick looks for the reason when offsets do not come since the given time. It runs on the session's goroutine.
func (s *session) unstick(since, now time.Time) {
	if !s.e.cfg.ExactlyOnce || now.Sub(since) < unstickAfter || s.lastTxn.After(since) ||
		s.e.unsticks.Load() >= maxUnsticks || !s.unsticking.CompareAndSwap(false, true) {
		return // a transaction that was committed since has written the very marker
	}
	round := s.group.round.Load()
	s.async.Add(1)
	go func() {
		defer s.async.Done()
		defer s.unsticking.Store(false)
		ctx, cancel := context.WithTimeout(s.ctx, 2*adminTimeout)
		defer cancel()
		if err := s.mendAny(ctx, round); err != nil && s.ctx.Err() == nil {
			s.log.Warn("cannot find out why committed offsets do not come", zap.Error(err))
		}
		sleep(s.ctx, time.Second)
	}()
}

// mendAny writes the markers of members that are gone and whose last transaction was committed, and leaves our own to
// the next session, which it asks for.
func (s *session) mendAny(ctx context.Context, round int64) error {
	if held, err := s.heldBack(ctx); err != nil || !held {
		return err
	}
	own, known, err := s.describeProducer(ctx, s.e.cfg.TransactionalID)
	if err != nil {
		return err
	}
	if known && own.State == "CompleteCommit" {
		s.e.unsticks.Add(1)
		s.post(func() error { return rebuild("committed offsets are held back") })
		return nil
	}
	live := s.group.live.Load()
	if live == nil {
		return nil // nobody told who the members are
	}
	listed, err := s.adm.ListTransactions(ctx, nil, []string{"CompleteCommit"})
	if err != nil {
		return fmt.Errorf("engine: list transactions: %w", err)
	}
	for _, id := range listed.TransactionalIDs() {
		if id == s.e.cfg.TransactionalID || slices.Contains(*live, id) ||
			!s.e.met.has(id) && !defaultIdentity(s.e.p.App, id) {
			continue
		}
		txn, known, err := s.describeProducer(ctx, id)
		if err != nil {
			return err
		}
		if !known || txn.State != "CompleteCommit" {
			continue
		}
		if err := s.stillMember(ctx); err != nil || s.group.round.Load() != round {
			return err // it may be back
		}
		s.e.unsticks.Add(1)
		if err := s.writeMarker(ctx, txn); err != nil {
			return err
		}
		if held, err := s.heldBack(ctx); err != nil || !held {
			return err
		}
	}
	return nil
}
