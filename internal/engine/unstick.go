package engine

import (
	"cmp"
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

// A broker that is killed while it ends a transaction can lose markers of it, although it says that the transaction is
// complete (Apache Kafka 4.3.0, TransactionMarkerChannelManager: it leaves out partitions whose leaders it does not know,
// and it may not know them yet when it goes on with that after its start). Then the group's coordinator holds the offsets back for ever, and nobody reads committed records past
// those of that transaction. Both keep what is open by producer, and the next marker of the same producer decides it. So
// the markers are written once more: by a transaction of that producer that holds no records, with the group and all
// partitions in it that it may have written to, and with the outcome of the lost one.
//
// That outcome must be known, and not guessed: what is committed wrongly is doubled, and what is aborted wrongly is lost.
// The coordinator tells the outcome of a producer's last transaction until the producer starts anew. So a session looks
// before it does, and mends before it does anything else. Only a commit is made use of. Every transaction that this
// engine commits carries offsets, so its marker is the one that decides them, and writing it where none is lost changes
// nothing. One that was aborted may have carried none, and then says nothing of the transaction before, which was possibly
// committed.
//
// From the new start of the producer to the end of the mending transaction the coordinator does not know the outcome. The
// control topic does: a record there says that this producer is being mended, and in which epoch. The member itself goes
// on when it starts again, and so do those who would abort the transaction because its member is gone (fence.go).

const (
	// unstickAfter is how long a session waits for offsets before it looks for the reason, and unstickEvery how long it
	// waits before it looks again.
	unstickAfter = 5 * time.Second
	unstickEvery = 30 * time.Second
	// maxMends bounds how many producers that are gone are mended at once.
	maxMends = 50
)

// controlMend begins the key of the record that a producer is being mended. Its transactional id follows.
const controlMend = "mend/"

// mending is the value of that record.
type mending struct {
	Producer int64 `json:"producer"`
	// Epoch is that of the mending transaction, -1 before it is known. Nothing else is done in it.
	Epoch int16 `json:"epoch"`
}

// mendsOf returns the producers that are being mended, by their transactional ids.
func (s *session) mendsOf(c *control) map[string]mending {
	found := map[string]mending{}
	for key, value := range c.values {
		id, ok := strings.CutPrefix(key, controlMend)
		if !ok {
			continue
		}
		var m mending
		if err := json.Unmarshal(value, &m); err != nil {
			s.log.Warn("a record of the control topic cannot be read, and is passed over", zap.String("key", key), zap.Error(err))
			continue
		}
		found[id] = m
	}
	return found
}

// settleFormer writes the marker of our former self's last transaction if it is lost. It comes before the session asks
// for a producer id, which makes the coordinator forget the outcome.
func (s *session) settleFormer(ctx context.Context) error {
	id := s.e.cfg.TransactionalID
	ctx, cancel := context.WithTimeout(ctx, 2*adminTimeout)
	defer cancel()
	for {
		txns, err := s.describeProducers(ctx, id)
		if err != nil || len(txns) == 0 {
			return err
		}
		txn := txns[0]
		begun, mends := s.layout.mends[id]
		switch {
		case txn.State == "PrepareCommit" || txn.State == "PrepareAbort":
			if !sleep(ctx, heldPause) {
				return rebuild("wait for the end of the former transaction: %w", ctx.Err())
			}
		case mends && mendable(txn, begun):
			return s.writeMarker(ctx, txn)
		case mends:
			s.log.Warn("the mending of a lost marker was not finished, and cannot be",
				zap.String("state", txn.State), zap.Int64("producer", txn.ProducerID), zap.Int64("mended", begun.Producer))
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

// mendable tells whether a mending that was begun can go on.
func mendable(txn kadm.DescribedTransaction, begun mending) bool {
	return begun.Producer == txn.ProducerID && (txn.State == "Empty" || txn.State == "CompleteCommit" ||
		txn.State == "Ongoing" && txn.ProducerEpoch == begun.Epoch)
}

// describeProducers asks what became of the last transactions of some producers. It leaves out those of which the
// coordinator does not say. Only a definite answer counts as none.
func (s *session) describeProducers(ctx context.Context, ids ...string) (known []kadm.DescribedTransaction, err error) {
	described, err := s.adm.DescribeTransactions(ctx, ids...)
	if err != nil && !definite(err) && !s.brokersLack(ctx, kmsg.DescribeTransactions) {
		return nil, rebuild("ask for the state of producers: %w", err)
	}
	for _, txn := range described.Sorted() {
		switch {
		case txn.Err == nil:
			known = append(known, txn)
		case !definite(txn.Err):
			return nil, rebuild("ask for the state of producer %s: %w", txn.TxnID, txn.Err)
		}
	}
	return known, nil
}

// definite tells whether a broker has answered with an error that asking again does not change.
func definite(err error) bool {
	var answer *kerr.Error
	return errors.As(err, &answer) && !answer.Retriable
}

// brokersLack tells whether brokers do not know a request.
func (s *session) brokersLack(ctx context.Context, key kmsg.Key) bool {
	versions, err := s.adm.ApiVersions(ctx)
	if err != nil {
		return false
	}
	for _, v := range versions {
		if _, _, exists := v.KeyVersions(key.Int16()); v.Err == nil && !exists {
			return true
		}
	}
	return false
}

// writeMarker writes the commit marker of a producer into the group's offsets, and into all topics that the application
// writes to. What was interrupted goes on where it was.
func (s *session) writeMarker(ctx context.Context, txn kadm.DescribedTransaction) error {
	cl, err := kgo.NewClient(append(s.e.plainOpts(), markerOpts())...)
	if err != nil {
		return fmt.Errorf("engine: make the client: %w", err)
	}
	defer cl.Close()
	w := &markerWriter{cl: cl, group: s.e.p.App, topics: s.written(), timeout: s.e.cfg.TransactionTimeout}
	id, producer, epoch := txn.TxnID, txn.ProducerID, txn.ProducerEpoch
	if txn.State != "Ongoing" {
		if err := s.recordMend(ctx, id, &mending{Producer: producer, Epoch: -1}); err != nil {
			return err
		}
		if err := rebuildUnlessTyped(s.e.at("mend-recorded")); err != nil {
			return err
		}
		took, e, err := w.take(ctx, id, producer, epoch)
		if err != nil {
			return markerError(err, id)
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
		if err := s.recordMend(ctx, id, &mending{Producer: producer, Epoch: epoch}); err != nil {
			return err
		}
		if err := w.open(ctx, id, producer, epoch); err != nil {
			return markerError(err, id)
		}
	}
	if err := rebuildUnlessTyped(s.e.at("mend-open")); err != nil {
		return err
	}
	if err := w.end(ctx, id, producer, epoch, true); err != nil {
		return markerError(err, id)
	}
	if err := rebuildUnlessTyped(s.e.at("mend-ended")); err != nil {
		return err
	}
	s.log.Warn("offsets or records were held back although the producer's last transaction was committed. In case that a "+
		"broker lost its marker, it was written once more",
		zap.String("transactional_id", id), zap.Int64("producer", producer))
	return s.recordMend(ctx, id, nil)
}

func markerError(err error, id string) error {
	if denied := authError(err, "", "use the transactional id "+id); denied != nil {
		return denied
	}
	return rebuild("write the marker of a committed transaction: %w", err)
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
	r := &kgo.Record{Key: []byte(controlMend + id), Value: value, Timestamp: s.e.cfg.Now()}
	return rebuildUnlessTyped(produceControl(ctx, s.plain, s.e.p.App, r))
}

// finishMend ends the open transaction of a member that is gone by a commit, if it is one that mends.
func (s *session) finishMend(ctx context.Context, txn kadm.DescribedTransaction) (bool, error) {
	c, err := s.readControl(ctx)
	if err != nil {
		return false, err
	}
	begun, mends := s.mendsOf(c)[txn.TxnID]
	if !mends || !mendable(txn, begun) {
		return false, nil
	}
	return true, s.writeMarker(ctx, txn)
}

// unstick looks for the reason when offsets or records do not come since the given time. It runs on the session's goroutine.
func (s *session) unstick(since, now time.Time) {
	gen := s.group.generation.Load()
	if !s.e.cfg.ExactlyOnce || now.Sub(since) < unstickAfter || now.Sub(s.e.unstuck) < unstickEvery || gen == nil ||
		!s.unsticking.CompareAndSwap(false, true) {
		return
	}
	s.e.unstuck = now
	ownWritten := s.lastTxn.After(since) // by a transaction that was committed since
	s.async.Add(1)
	go func() {
		defer s.async.Done()
		defer s.unsticking.Store(false)
		ctx, cancel := context.WithTimeout(s.ctx, 2*adminTimeout)
		defer cancel()
		err := s.mendAny(ctx, gen, since, ownWritten)
		if errors.Is(err, ErrCrash) {
			s.fail(err)
		} else if err != nil && s.ctx.Err() == nil {
			s.log.Warn("cannot find out why committed offsets do not come", zap.Error(err))
		}
	}()
}

// mendAny writes the markers of members that are gone and whose last transaction was committed, and leaves our own to
// the next session, which it asks for.
func (s *session) mendAny(ctx context.Context, gen *generation, since time.Time, ownWritten bool) error {
	if s.waitsForOthers(ctx, time.Since(since)) {
		return nil
	}
	if held, err := s.heldBack(ctx); err != nil || !held {
		return err
	}
	listed, err := s.adm.ListTransactions(ctx, nil, []string{"CompleteCommit"})
	if err != nil {
		return fmt.Errorf("engine: list transactions: %w", err)
	}
	c, err := s.readControl(ctx)
	if err != nil {
		return err
	}
	mends := s.mendsOf(c)
	own := s.e.cfg.TransactionalID
	var ids []string
	for _, id := range listed.TransactionalIDs() {
		if id == own || s.e.met.has(id) || defaultIdentity(s.e.p.App, id) {
			ids = append(ids, id)
		}
	}
	for id := range mends {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	ids = slices.DeleteFunc(slices.Compact(ids), func(id string) bool { return id != own && slices.Contains(gen.members, id) })
	if len(ids) == 0 {
		return nil
	}
	txns, err := s.describeProducers(ctx, ids...)
	if err != nil {
		return err
	}
	slices.SortStableFunc(txns, func(a, b kadm.DescribedTransaction) int { return cmp.Compare(b.StartTimestamp, a.StartTimestamp) })
	for _, txn := range txns[:min(len(txns), maxMends)] {
		begun, mends := mends[txn.TxnID]
		switch {
		case txn.State != "CompleteCommit" && !(mends && mendable(txn, begun)):
			continue
		case txn.TxnID == own:
			if !ownWritten {
				s.post(func() error { return s.settleAgain(since) })
			}
			continue
		}
		if err := s.stillMember(ctx); err != nil || s.group.round.Load() != gen.round {
			return err // it may be back
		}
		if err := s.writeMarker(ctx, txn); err != nil && !errors.Is(err, errFaster) {
			return err
		}
	}
	return nil
}

// settleAgain ends the session for the next one to write our own marker, unless the offsets came meanwhile.
func (s *session) settleAgain(since time.Time) error {
	if s.unresolved.since != since || s.lastTxn.After(since) {
		return nil
	}
	return rebuild("offsets or records are held back since %v, although our last transaction was committed",
		since.UTC().Format(time.RFC3339))
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
