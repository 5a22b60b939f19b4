package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

// markerTimeout is how long a transaction that mends may stay open: an interrupted one has to be found by somebody who
// knows how it ends, before the coordinator aborts it.
const markerTimeout = 10 * time.Minute

// errFaster says that somebody else has started a producer anew meanwhile.
var errFaster = errors.New("engine: another process has started the producer anew")

// markerOpts make a client for transactions that are written by hand. Version 5 of EndTxn is only for brokers of
// transaction.version 2, and older ones take it all the same; AddPartitionsToTxn from version 4 on is for brokers
// (KIP-890).
func markerOpts() kgo.Opt {
	versions := kversion.Stable()
	versions.SetMaxKeyVersion(kmsg.EndTxn.Int16(), 4)
	versions.SetMaxKeyVersion(kmsg.AddPartitionsToTxn.Int16(), 3)
	return kgo.MaxVersions(versions)
}

// markerWriter ends transactions that hold no records, which writes their markers.
type markerWriter struct {
	cl    *kgo.Client
	group string
	// topics are those that get a marker beside the group's offsets, with how many partitions they have.
	topics map[string]int32
	// timeout is that of the transaction where brokers do not allow markerTimeout.
	timeout time.Duration
}

// take starts a producer anew, which aborts what it has open and fences whoever had it. producer and epoch are those that
// it must have, or -1.
func (w *markerWriter) take(ctx context.Context, id string, producer int64, epoch int16) (int64, int16, error) {
	req := kmsg.NewPtrInitProducerIDRequest()
	req.TransactionalID = kmsg.StringPtr(id)
	req.ProducerID, req.ProducerEpoch = producer, epoch
	var resp *kmsg.InitProducerIDResponse
	var err error
	for _, timeout := range []time.Duration{markerTimeout, w.timeout} {
		req.TransactionTimeoutMillis = int32(timeout.Milliseconds())
		err = coordinate(ctx, func() error {
			var err error
			if resp, err = req.RequestWith(ctx, w.cl); err != nil {
				return err
			}
			return kerr.ErrorForCode(resp.ErrorCode)
		})
		if !errors.Is(err, kerr.InvalidTransactionTimeout) {
			break
		}
	}
	if errors.Is(err, kerr.ProducerFenced) || errors.Is(err, kerr.InvalidProducerEpoch) {
		return 0, 0, errFaster
	}
	if err != nil {
		return 0, 0, fmt.Errorf("get a producer id for %s: %w", id, err)
	}
	return resp.ProducerID, resp.ProducerEpoch, nil
}

// open begins a transaction with the group and the topics in it.
func (w *markerWriter) open(ctx context.Context, id string, producer int64, epoch int16) error {
	if err := addGroup(ctx, w.cl, id, producer, epoch, w.group); err != nil {
		return fmt.Errorf("add the group to a transaction of %s: %w", id, err)
	}
	if len(w.topics) == 0 {
		return nil
	}
	parts := kmsg.NewPtrAddPartitionsToTxnRequest()
	parts.TransactionalID, parts.ProducerID, parts.ProducerEpoch = id, producer, epoch
	for topic, n := range w.topics {
		t := kmsg.NewAddPartitionsToTxnRequestTopic()
		t.Topic = topic
		for p := range n {
			t.Partitions = append(t.Partitions, p)
		}
		parts.Topics = append(parts.Topics, t)
	}
	err := coordinate(ctx, func() error {
		resp, err := parts.RequestWith(ctx, w.cl)
		if err != nil {
			return err
		}
		var refused error // what is refused for itself, and not because of another partition
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil && (refused == nil || errors.Is(refused, kerr.OperationNotAttempted)) {
					refused = err
				}
			}
		}
		return refused
	})
	if err != nil {
		return fmt.Errorf("add the topics to a transaction of %s: %w", id, err)
	}
	return nil
}

// end ends the transaction, which writes the marker.
func (w *markerWriter) end(ctx context.Context, id string, producer int64, epoch int16, commit bool) error {
	req := kmsg.NewPtrEndTxnRequest()
	req.TransactionalID, req.ProducerID, req.ProducerEpoch, req.Commit = id, producer, epoch, commit
	err := coordinate(ctx, func() error {
		resp, err := req.RequestWith(ctx, w.cl)
		if err != nil {
			return err
		}
		return kerr.ErrorForCode(resp.ErrorCode)
	})
	if err != nil {
		return fmt.Errorf("end a transaction of %s: %w", id, err)
	}
	return nil
}
