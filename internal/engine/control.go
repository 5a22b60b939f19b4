package engine

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// The control topic holds what must outlive every directory and every member: a few records by key, compacted, in one
// partition. No transaction writes to it.

// ControlTopic returns the name of an application's control topic.
func ControlTopic(app string) string { return app + "-control" }

// Keys of the control topic.
const (
	controlShape       = "topology"
	controlDescription = "description"
)

const (
	// controlIdle is how long an end is waited for that no record reaches: a tombstone at the end may be gone.
	controlIdle = 2 * time.Second
	// maxControlRecords bounds what is read of a topic that another program may have written to.
	maxControlRecords = 100_000
	// maxControlWrites bounds how often a record is written again because another member wrote in between.
	maxControlWrites = 16
	maxControlShapes = 32
)

// Description says what a topology looks like: as text in the form of Kafka Streams' Topology#describe, as a Mermaid
// flowchart, and in the language of Graphviz.
type Description struct {
	Fingerprint string `json:"fingerprint"`
	Text        string `json:"text"`
	Mermaid     string `json:"mermaid,omitempty"`
	DOT         string `json:"dot,omitempty"`
}

// control is what the control topic held when it was read.
type control struct {
	exists bool
	end    int64 // the offset behind its last record
	values map[string][]byte
	shapes []controlRecord // the last few records of the topology's shape
}

// controlRecord is a record of the topology's shape.
type controlRecord struct {
	offset int64
	value  []byte
}

// shapesSince returns the shapes from an offset on, other than the one at mine, oldest first.
func (c *control) shapesSince(from, mine int64) [][]byte {
	var found [][]byte
	for _, r := range c.shapes {
		if r.offset >= from && r.offset != mine {
			found = append(found, r.value)
		}
	}
	return found
}

func controlTopic(app string) internalTopic {
	return internalTopic{name: ControlTopic(app), partitions: 1, config: map[string]string{"cleanup.policy": "compact"}}
}

// readControl reads the control topic up to its end. opts make a client that reads.
func readControl(ctx context.Context, adm *kadm.Client, opts []kgo.Opt, app string) (*control, error) {
	topic := ControlTopic(app)
	c := &control{values: map[string][]byte{}}
	meta, err := adm.Metadata(ctx, topic)
	if err == nil {
		err = meta.Topics[topic].Err
	}
	if denied := authError(err, topic, "describe the topic"); denied != nil {
		return nil, denied
	}
	if errors.Is(err, kerr.UnknownTopicOrPartition) {
		return c, nil
	}
	if err != nil {
		return nil, fmt.Errorf("engine: ask for the control topic: %w", err)
	}
	if n := len(meta.Topics[topic].Partitions); n != 1 {
		return nil, &Error{
			Kind: ErrPartitionMismatch, Topic: topic, Partition: -1,
			Detail: fmt.Sprintf("the control topic has %d partitions and needs 1", n),
			Hint:   "delete it; it is made again, and the shape of the topology is recorded anew",
		}
	}
	c.exists = true
	starts, err := adm.ListStartOffsets(ctx, topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("engine: find the start of the control topic: %w", err)
	}
	ends, err := adm.ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("engine: find the end of the control topic: %w", err)
	}
	start, _ := starts.Lookup(topic, 0)
	end, _ := ends.Lookup(topic, 0)
	c.end = end.Offset
	if start.Offset >= end.Offset {
		return c, nil
	}
	if err := c.read(ctx, opts, topic, start.Offset); err != nil {
		return nil, err
	}
	return c, nil
}

// read reads the records from an offset to the end.
func (c *control) read(ctx context.Context, opts []kgo.Opt, topic string, from int64) error {
	cl, err := kgo.NewClient(append(opts, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{
		topic: {0: kgo.NewOffset().At(from)},
	}))...)
	if err != nil {
		return fmt.Errorf("engine: make the client: %w", err)
	}
	defer cl.Close()
	for read, at := 0, from; at < c.end; {
		pollCtx, cancel := context.WithTimeout(ctx, controlIdle)
		fetches := cl.PollFetches(pollCtx)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := fetches.Err(); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			if denied := authError(err, topic, "read the topic"); denied != nil {
				return denied
			}
			return fmt.Errorf("engine: read the control topic: %w", err)
		}
		records := fetches.Records()
		if len(records) == 0 && read > 0 {
			return nil // what is left of the offsets holds nothing
		}
		for _, r := range records {
			at = r.Offset + 1
			if r.Offset >= c.end || r.Attrs.IsControl() {
				continue
			}
			if string(r.Key) == controlShape && r.Value != nil {
				c.shapes = append(c.shapes, controlRecord{r.Offset, r.Value})
				c.shapes = c.shapes[max(0, len(c.shapes)-maxControlShapes):]
			}
			if r.Value == nil {
				delete(c.values, string(r.Key))
			} else {
				c.values[string(r.Key)] = r.Value
			}
		}
		if read += len(records); read > maxControlRecords {
			return &Error{
				Kind: ErrForeignChangelog, Topic: topic, Partition: 0,
				Detail: fmt.Sprintf("the control topic holds more than %d records", maxControlRecords),
				Hint:   "another program writes to it; delete it, or use another application id",
			}
		}
	}
	return nil
}

// writeControl appends records, and returns the offset of the first.
func (s *session) writeControl(ctx context.Context, values map[string][]byte) (int64, error) {
	var records []*kgo.Record
	for _, key := range []string{controlShape, controlDescription} {
		if v, ok := values[key]; ok {
			records = append(records, &kgo.Record{Key: []byte(key), Value: v, Timestamp: s.e.cfg.Now()})
		}
	}
	if err := produceControl(ctx, s.plain, s.e.p.App, records...); err != nil {
		return 0, err
	}
	return records[0].Offset, nil
}

// produceControl appends records to an application's control topic.
func produceControl(ctx context.Context, cl *kgo.Client, app string, records ...*kgo.Record) error {
	topic := ControlTopic(app)
	for _, r := range records {
		r.Topic = topic
	}
	err := cl.ProduceSync(ctx, records...).FirstErr()
	if denied := authError(err, topic, "write the topic"); denied != nil {
		return denied
	}
	if err != nil {
		return fmt.Errorf("engine: write the control topic: %w", err)
	}
	return nil
}

// describeSelf returns the record that describes the topology, or nil when it is there already or too large. It is that of
// the process which started last.
func (e *Engine) describeSelf(c *control) []byte {
	d := e.p.Description
	if d.Text == "" {
		return nil
	}
	d.Fingerprint = e.p.Fingerprint
	b, err := json.Marshal(d)
	for _, drop := range []*string{&d.DOT, &d.Mermaid} { // both can be drawn again from the program
		if err == nil && len(b) > maxShape {
			*drop = ""
			b, err = json.Marshal(d)
		}
	}
	if err != nil || len(b) > maxShape || bytes.Equal(b, c.values[controlDescription]) {
		return nil
	}
	return b
}

// RecordedDescription returns the description of the topology that an application's last started process has recorded;
// ok is false when there is none. opts are the client's options, the seed brokers among them.
func RecordedDescription(ctx context.Context, opts []kgo.Opt, app string) (d Description, ok bool, err error) {
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return d, false, fmt.Errorf("engine: make the client: %w", err)
	}
	defer cl.Close()
	c, err := readControl(ctx, kadm.NewClient(cl), append(opts[:len(opts):len(opts)],
		kgo.ConsumeResetOffset(kgo.NoResetOffset())), app)
	if err != nil {
		return d, false, err
	}
	b, ok := c.values[controlDescription]
	if !ok {
		return d, false, nil
	}
	if err := json.Unmarshal(b, &d); err != nil {
		return d, false, fmt.Errorf("engine: the recorded description cannot be read: %w", err)
	}
	return d, true, nil
}

// ForgetTopology removes the record of an application's shape, so that its next start takes whatever topology comes. It
// belongs to a reset, while no member runs; an application that never ran has nothing to forget. It does not touch other
// records of the control topic.
func ForgetTopology(ctx context.Context, cl *kgo.Client, app string) error {
	topic := ControlTopic(app)
	meta, err := kadm.NewClient(cl).Metadata(ctx, topic)
	if err == nil {
		err = meta.Topics[topic].Err
	}
	if errors.Is(err, kerr.UnknownTopicOrPartition) {
		return nil
	}
	if err == nil {
		err = cl.ProduceSync(ctx, &kgo.Record{Topic: topic, Key: []byte(controlShape)}).FirstErr()
	}
	if err != nil {
		return fmt.Errorf("engine: forget the recorded topology: %w", err)
	}
	return nil
}

// idText renders a topic's id for records; "" where the brokers have none.
func idText(id kadm.TopicID) string {
	if id == (kadm.TopicID{}) {
		return ""
	}
	return hex.EncodeToString(id[:])
}
