package main

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/serde"
)

// mailLog appends events to the log. It is the only writer of anything in this program besides the topology: whoever
// wants to change a mailbox appends an event. It is safe for concurrent use.
type mailLog struct{ cl *kgo.Client }

// openLog makes a client that writes idempotently and waits for all in-sync replicas.
func openLog(brokers []string) (*mailLog, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.DefaultProduceTopic(Events.Name()),
		kgo.RequiredAcks(kgo.AllISRAcks()), kgo.MaxBufferedRecords(2000), kgo.RecordDeliveryTimeout(time.Minute))
	if err != nil {
		return nil, fmt.Errorf("mail log: %w", err)
	}
	return &mailLog{cl}, nil
}

func (l *mailLog) close() { l.cl.Close() }

// record returns the event as a record under its actor, with its own time as the record's.
func record(e Event) (*kgo.Record, error) {
	key, err := serde.Encode(Events.Key(), e.Actor)
	if err != nil {
		return nil, fmt.Errorf("mail log: %w", err)
	}
	value, err := serde.Encode(Events.Value(), e)
	if err != nil {
		return nil, fmt.Errorf("mail log: %w", err)
	}
	return &kgo.Record{Key: key, Value: value, Timestamp: e.time()}, nil
}

// append writes an event and returns where it lies once the broker has it. After an error the event may be in the log
// or not; appending an equal one again is harmless.
func (l *mailLog) append(ctx context.Context, e Event) (partition int32, offset int64, err error) {
	r, err := record(e)
	if err != nil {
		return 0, 0, err
	}
	r, err = l.cl.ProduceSync(ctx, r).First()
	if err != nil {
		return 0, 0, fmt.Errorf("mail log: append: %w", err)
	}
	return r.Partition, r.Offset, nil
}

// appendLater writes an event without waiting, except for room in the client's bounded buffer. failed is called when
// it could not be written, from another goroutine.
func (l *mailLog) appendLater(ctx context.Context, e Event, failed func(error)) error {
	r, err := record(e)
	if err != nil {
		return err
	}
	l.cl.Produce(ctx, r, func(_ *kgo.Record, err error) {
		if err != nil {
			failed(fmt.Errorf("mail log: append: %w", err))
		}
	})
	return ctx.Err()
}

// flush waits until everything is written.
func (l *mailLog) flush(ctx context.Context) error {
	if err := l.cl.Flush(ctx); err != nil {
		return fmt.Errorf("mail log: flush: %w", err)
	}
	return nil
}
