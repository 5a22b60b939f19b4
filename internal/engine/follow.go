package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/zap"

	"tailrace.dev/internal/task"
	"tailrace.dev/state"
)

// A store may follow an input topic instead of having a changelog. Its rows are made of the records below the committed
// offset of that input, so a restore reads up to there: no barrier is needed, because the offset was fetched with all
// transactions decided, and none may be written, because the topic is not ours.

const (
	// followIdle is how long a restore waits for records below the committed offset before it asks the broker whether
	// there are any: compaction and aborted transactions leave offsets that hold none.
	followIdle = 250 * time.Millisecond
	// probeBytes bounds the answer to that question, and probeTries how many answers without a record are followed up
	// at once.
	probeBytes = 1 << 20
	probeTries = 64
)

// followed returns the topics that stores follow.
func (p *Program) followed() []string {
	var topics []string
	for _, sub := range p.Subs {
		for i := range sub.Stores {
			if t := sub.Stores[i].Source; t != "" {
				topics = append(topics, t)
			}
		}
	}
	slices.Sort(topics)
	return slices.Compact(topics)
}

// checkFollowed refuses to follow topics that forget rows.
func (s *session) checkFollowed(ctx context.Context, l *layout) error {
	topics := s.e.p.followed()
	if len(topics) == 0 {
		return nil
	}
	resources, err := s.adm.DescribeTopicConfigs(ctx, topics...)
	if denied := authError(err, topics[0], "describe the topic's configuration"); denied != nil {
		return denied
	}
	if err != nil {
		return fmt.Errorf("engine: ask for topic configurations: %w", err)
	}
	for _, topic := range topics {
		r, err := resources.On(topic, nil)
		if err == nil {
			err = r.Err
		}
		l.retention[topic] = defaultDeleteRetention
		if err != nil {
			// Only the check is lost. Retention is then assumed to be the default.
			s.log.Warn("cannot check the configuration of a topic that a store follows", zap.String("topic", topic), zap.Error(err))
			continue
		}
		policy := ""
		for _, c := range r.Configs {
			switch c.Key {
			case "cleanup.policy":
				policy = c.MaybeValue()
			case "delete.retention.ms":
				if ms, err := strconv.ParseInt(c.MaybeValue(), 10, 64); err == nil {
					l.retention[topic] = time.Duration(min(ms, int64(1<<53)/1e6)) * time.Millisecond
				}
			}
		}
		if !strings.Contains(policy, "compact") {
			return &Error{
				Kind: ErrTopicConfig, Topic: topic, Partition: -1,
				Detail: fmt.Sprintf("cleanup.policy is %q, and a store has the topic as its changelog", policy),
				Hint: "set cleanup.policy to compact, or keep the table in a store with a changelog of its own, by " +
					"table.From",
			}
		}
	}
	return nil
}

// rowOf adds the row that a record of a followed topic leaves behind, if it does.
func (st *storeRun) rowOf(r *kgo.Record, rows []state.Row) []state.Row {
	raw := task.Record{
		Topic: r.Topic, Partition: r.Partition, Offset: r.Offset,
		TimeMillis: r.Timestamp.UnixMilli(), Key: r.Key, Value: r.Value,
	}
	for _, h := range r.Headers {
		raw.Headers = append(raw.Headers, task.Header(h))
	}
	key, row, ok := st.spec.Row(&raw)
	if !ok {
		return rows
	}
	return append(rows, state.Row{Store: st.id, Key: key, Value: row})
}

// within returns the records that a restore of the store takes.
func (st *storeRun) within(records []*kgo.Record) []*kgo.Record {
	for len(records) > 0 && records[0].Offset < st.position {
		records = records[1:]
	}
	if st.spec.Source == "" {
		return records // nothing but our own rows lies beyond the barrier
	}
	for len(records) > 0 && records[len(records)-1].Offset > st.barrier {
		records = records[:len(records)-1]
	}
	return records
}

// skipGap moves a restore that nothing arrives for past the offsets that hold nothing.
func (s *session) skipGap(ctx context.Context, t *taskRun, st *storeRun) error {
	next, err := s.readable(ctx, st.spec.Source, t.id.Partition, st.position, st.barrier+1)
	if err != nil {
		// The fetch itself tells what matters.
		t.log.Debug("cannot ask where a topic has records", zap.String("topic", st.spec.Source), zap.Error(err))
		return nil
	}
	if next == st.position {
		return nil
	}
	st.position, st.epoch, st.unsettled = next, -1, true
	st.view.moved(st.position, st.records)
	return s.settle(t, st, st.bulk)
}

// readable returns the first offset, from next on, that a committed record or a marker may lie at, or limit when there
// is none below it. It asks the leader, and so tells a topic that is silent from a broker that is.
func (s *session) readable(ctx context.Context, topic string, partition int32, next, limit int64) (int64, error) {
	meta, err := s.adm.Metadata(ctx, topic)
	if err != nil {
		return next, err
	}
	d := meta.Topics[topic]
	p, ok := d.Partitions[partition]
	if err := errors.Join(d.Err, p.Err); err != nil || !ok {
		return next, errors.Join(err, errors.New("the partition has no leader"))
	}
	for try := 0; try < probeTries && next < limit; try++ {
		rp, err := s.probe(ctx, topic, d.ID, partition, p.Leader, next)
		if err != nil {
			return next, err
		}
		fp, after := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{
			KeepControlRecords: true, Offset: next, IsolationLevel: kgo.ReadCommitted(), Topic: topic, Partition: partition,
		}, rp, kgo.DefaultDecompressor(), nil)
		switch {
		case fp.Err != nil:
			return next, fp.Err
		case len(fp.Records) > 0:
			return min(fp.Records[0].Offset, limit), nil
		case after > next:
			next = after
		case rp.LastStableOffset >= limit:
			return limit, nil
		default:
			return next, nil // a transaction is undecided
		}
	}
	return min(next, limit), nil
}

// probe fetches once from the leader, without waiting.
func (s *session) probe(
	ctx context.Context, topic string, id [16]byte, partition, leader int32, at int64,
) (*kmsg.FetchResponseTopicPartition, error) {
	req := kmsg.NewPtrFetchRequest()
	req.ReplicaID, req.MaxWaitMillis, req.MaxBytes, req.IsolationLevel, req.SessionEpoch = -1, 0, probeBytes, 1, -1
	rt := kmsg.NewFetchRequestTopic()
	rt.Topic, rt.TopicID = topic, id
	rp := kmsg.NewFetchRequestTopicPartition()
	rp.Partition, rp.FetchOffset, rp.PartitionMaxBytes = partition, at, probeBytes
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	resp, err := s.plain.Broker(int(leader)).RetriableRequest(ctx, req)
	if err != nil {
		return nil, err
	}
	fetched, ok := resp.(*kmsg.FetchResponse)
	if !ok {
		return nil, fmt.Errorf("engine: answer of type %T to a fetch", resp)
	}
	if err := kerr.ErrorForCode(fetched.ErrorCode); err != nil {
		return nil, err
	}
	if len(fetched.Topics) != 1 || len(fetched.Topics[0].Partitions) != 1 {
		return nil, errors.New("engine: the answer to a fetch leaves out the partition")
	}
	return &fetched.Topics[0].Partitions[0], nil
}

// follow moves a store on to the committed offset of its topic, and returns its position, or none when that is as it
// was.
func (st *storeRun) follow(t *taskRun, wall int64) state.Position {
	in := t.input(st.spec.Source)
	if in == nil {
		return state.Position{}
	}
	if in.committed >= in.end {
		// Only at the end can no deletion have been compacted away unseen.
		st.wall = wall
	}
	if in.committed == st.position {
		return state.Position{}
	}
	st.position = in.committed
	return state.Position{TopicID: st.topicID, Next: st.position, LeaderEpoch: -1, WallMillis: st.wall}
}
