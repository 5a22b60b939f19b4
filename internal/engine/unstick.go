package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/zap"
)

// A broker that is killed while it ends a transaction can lose the marker that belongs to the group's offsets, although
// it says that the transaction is complete (Apache Kafka 4.3.0). The group's coordinator then holds the offsets back for
// ever. It keeps them by producer, and the next marker of the same producer decides all of them. So the member itself
// writes the lost marker once more: by a transaction that holds nothing but the group, with the outcome of the lost one.
//
// That outcome must be known, and not guessed: an offset that is committed wrongly loses records, and one that is aborted
// wrongly doubles them. The coordinator tells the outcome of a producer's last transaction until the producer starts
// anew, so a session looks before it does. Only a commit is made use of. Every transaction that this engine commits
// carries offsets, so its marker is the one that decides them. One that was aborted may have carried none, and then says
// nothing of the transaction before, which was possibly committed.

const (
	// formerFile remembers the outcome over a restart of the process.
	formerFile = ".former"
	// unstickAfter is how long offsets do not come before the marker counts as lost. The marker follows the end of a
	// transaction within milliseconds, and a session gets its producer id only when the end is complete.
	unstickAfter = 5 * time.Second
	// maxUnsticks bounds how often a process rebuilds its session for it, lest it does nothing else.
	maxUnsticks = 3
)

// former is what is known of the last transaction of this process's producer: it was committed. The zero value knows
// nothing. It belongs to the goroutine of the session.
type former struct {
	Producer int64 `json:"producer"`
	Epoch    int16 `json:"epoch"`
	Known    bool  `json:"committed"`
	// Mending tells that the marker is to be written once more. While it is, an open transaction of this very producer
	// and epoch is the one that does so.
	Mending bool `json:"mending,omitempty"`

	wanted bool // Mending was set in this process, by a session that knew that it had offered no offsets since
	count  int  // sessions that were rebuilt for it
}

func (f *former) forget() { *f = former{count: f.count} }

// learn takes what the coordinator says of the producer.
func (f *former) learn(state string, producer int64, epoch int16) {
	same := f.Known && f.Producer == producer
	switch {
	case state == "CompleteCommit" || state == "PrepareCommit":
		mend := same && f.wanted
		*f = former{Producer: producer, Epoch: epoch, Known: true, Mending: mend, wanted: mend, count: f.count}
	case same && f.wanted:
		// The session that wanted it has left at most records in an open transaction, which takes no part in the group.
	case state == "Empty" && same && (epoch == f.Epoch || epoch == f.Epoch+1):
		// A new producer id was given out, once at most: there was no transaction since.
	case state == "Ongoing" && same && f.Mending && epoch == f.Epoch:
	default:
		f.forget()
	}
}

// rememberFormer puts what is known into the state directory.
func (e *Engine) rememberFormer() error {
	if e.root == nil {
		return nil
	}
	if !e.former.Known {
		if err := e.root.Remove(formerFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("engine: forget the outcome of a former transaction: %w", err)
		}
		return nil
	}
	b, err := json.Marshal(&e.former)
	if err == nil {
		// A file that is half written does not parse, and then nothing is known.
		err = e.root.WriteFile(formerFile, b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("engine: remember the outcome of a former transaction: %w", err)
	}
	return nil
}

// recallFormer reads what an earlier process remembered. What it cannot read is not known.
func (e *Engine) recallFormer() {
	if e.root == nil {
		return
	}
	b, err := e.root.ReadFile(formerFile)
	var f former
	if errors.Is(err, os.ErrNotExist) || err == nil && json.Unmarshal(b, &f) == nil {
		e.former = f
		return
	}
	e.log.Warn("cannot read what became of a former transaction", zap.String("file", formerFile), zap.Error(err))
}

// lookAtFormer learns the outcome of the producer's last transaction, which the start of a session makes the coordinator
// forget. Where it is not told, nothing is known.
func (s *session) lookAtFormer(ctx context.Context) error {
	f, id := &s.e.former, s.e.cfg.TransactionalID
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	described, err := s.adm.DescribeTransactions(ctx, id)
	txn, told := described[id]
	if err == nil {
		err = txn.Err
	}
	switch {
	case err == nil && told:
		f.learn(txn.State, txn.ProducerID, txn.ProducerEpoch)
	case ctx.Err() != nil || kerr.IsRetriable(err) || kgo.IsRetryableBrokerErr(err):
		return rebuild("ask for the state of the producer: %w", err)
	default:
		// Never seen before, or not ours to ask, or a broker that has no answer.
		s.log.Debug("the outcome of the former transaction is not known", zap.Error(err))
		f.forget()
	}
	return nil
}

// forgetFormer gives up what was known.
func (s *session) forgetFormer() {
	s.e.former.forget()
	if err := s.e.rememberFormer(); err != nil {
		s.log.Warn("what does not hold any more stays in the state directory", zap.Error(err))
	}
}

// noteProducer notes the producer that the session got: from now on an unchanged epoch tells that nobody used it since.
func (s *session) noteProducer(id int64, epoch int16) {
	f := &s.e.former
	if f.Producer != id {
		f.forget()
	}
	if f.Known {
		f.Epoch, f.Mending, f.wanted = epoch, false, false
	}
	if err := s.e.rememberFormer(); err != nil {
		s.log.Warn("an outcome that a broker loses will not be known after a restart", zap.Error(err))
	}
}

// unstick decides what to do about offsets that do not come since the given time. It runs on the session's goroutine.
func (s *session) unstick(since, now time.Time) {
	f := &s.e.former
	if !s.e.cfg.ExactlyOnce || now.Sub(since) < unstickAfter || s.lastTxn.After(since) || !f.Known ||
		f.count >= maxUnsticks || !s.unsticking.CompareAndSwap(false, true) {
		return // a transaction that was committed since has written the very marker
	}
	s.async.Add(1)
	go func() {
		defer s.async.Done()
		defer s.unsticking.Store(false)
		ctx, cancel := context.WithTimeout(s.ctx, adminTimeout)
		defer cancel()
		if s.waitsForOthers(ctx, time.Since(since)) {
			sleep(s.ctx, time.Second)
			return
		}
		s.post(func() error { return s.wantMarker(since) })
	}()
}

// waitsForOthers tells whether another producer of the application has had a transaction open for as long as the offsets
// do not come: then it may be that one which they wait for.
func (s *session) waitsForOthers(ctx context.Context, waited time.Duration) bool {
	if waited > s.e.cfg.TransactionTimeout+unresolvedSlack {
		return false
	}
	open, err := s.abandoned(ctx, nil)
	if err != nil {
		return true
	}
	for _, txn := range open {
		if time.Since(time.UnixMilli(txn.StartTimestamp)) >= waited {
			return true
		}
	}
	return false
}

// wantMarker ends the session, for the next one to write the marker before it starts.
func (s *session) wantMarker(since time.Time) error {
	f := &s.e.former
	if s.unresolved.since != since || s.lastTxn.After(since) || !f.Known {
		return nil // came meanwhile
	}
	f.Mending, f.wanted = true, true
	f.count++
	s.log.Error("committed offsets do not come, although this producer's last transaction was committed: a broker lost "+
		"its marker for the group. It is written once more",
		zap.Duration("since", time.Since(since).Round(time.Second)), zap.Int64("producer", f.Producer))
	return rebuild("the marker of a committed transaction is lost")
}

// writeMarker writes the commit marker of this producer into the group's offsets, if that was found to be missing: by a
// transaction with the group in it, and nothing else. An interrupted one goes on where it was.
func (s *session) writeMarker(ctx context.Context) error {
	f := &s.e.former
	if !f.Mending {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*adminTimeout)
	defer cancel()
	open := !f.wanted && s.ongoing(ctx)
	if !open {
		known, err := s.takeProducer(ctx)
		if err != nil || !known {
			return err
		}
		add := kmsg.NewPtrAddOffsetsToTxnRequest()
		add.TransactionalID, add.ProducerID, add.ProducerEpoch = s.e.cfg.TransactionalID, f.Producer, f.Epoch
		add.Group = s.e.p.App
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
	end := kmsg.NewPtrEndTxnRequest()
	end.TransactionalID, end.ProducerID, end.ProducerEpoch = s.e.cfg.TransactionalID, f.Producer, f.Epoch
	end.Commit = true
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
	s.log.Warn("the marker of a committed transaction was written once more; its offsets count from now on",
		zap.String("transactional_id", s.e.cfg.TransactionalID), zap.Int64("producer", f.Producer))
	return nil
}

// ongoing tells whether the transaction that writes the marker is open already.
func (s *session) ongoing(ctx context.Context) bool {
	id, f := s.e.cfg.TransactionalID, &s.e.former
	described, err := s.adm.DescribeTransactions(ctx, id)
	txn := described[id]
	return err == nil && txn.Err == nil && txn.State == "Ongoing" && txn.ProducerID == f.Producer &&
		txn.ProducerEpoch == f.Epoch
}

// takeProducer gets an epoch of the producer for the transaction that writes the marker. known is false when the
// coordinator gave another producer, whose marker would decide nothing.
func (s *session) takeProducer(ctx context.Context) (known bool, err error) {
	f := &s.e.former
	req := kmsg.NewPtrInitProducerIDRequest()
	req.TransactionalID = kmsg.StringPtr(s.e.cfg.TransactionalID)
	req.TransactionTimeoutMillis = int32(s.e.cfg.TransactionTimeout.Milliseconds())
	var id int64
	var epoch int16
	err = s.coordinate(ctx, func() error {
		resp, err := req.RequestWith(ctx, s.plain)
		if err != nil {
			return err
		}
		id, epoch = resp.ProducerID, resp.ProducerEpoch
		return kerr.ErrorForCode(resp.ErrorCode)
	})
	if err != nil {
		return false, rebuild("write the marker of a committed transaction: get a producer id: %w", err)
	}
	if id != f.Producer {
		s.log.Error("the coordinator gave another producer id; the lost marker cannot be written",
			zap.Int64("producer", f.Producer), zap.Int64("now", id))
		f.forget()
		return false, nil
	}
	// From here on an open transaction of this epoch is this one. Another process that finds it must not abort it: that
	// would decide the offsets, too.
	f.Epoch, f.wanted = epoch, false
	if err := s.e.rememberFormer(); err != nil {
		s.log.Warn("an interruption now would abort the offsets", zap.Error(err))
	}
	return true, nil
}
