package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/zap"
)

const (
	// heldPatience is how long offsets may be held back before that is more than the end of somebody's transaction, which
	// takes milliseconds.
	heldPatience = 500 * time.Millisecond
	heldPause    = 25 * time.Millisecond
)

// written returns the topics that the application writes to in transactions, with how many partitions they have. Those
// that a record chooses are not known.
func (s *session) written() map[string]int32 {
	topics := map[string]int32{}
	for _, sub := range s.e.p.Subs {
		for _, topic := range sub.Sinks {
			topics[topic] = s.layout.partitions[topic]
		}
		for _, st := range sub.Stores {
			if st.Changelog != "" {
				topics[st.Changelog] = s.layout.partitions[st.Changelog]
			}
		}
	}
	return topics
}

// place is where something is not decided yet: a partition of a topic, or the committed offset of one of an input.
type place struct {
	topic     string
	partition int32
	offset    bool
}

// heldBack tells whether something that was committed seems to be held back: offsets of the group, or records in a topic
// that the application writes to, for longer than transactions take to end, and not by one that is still open.
func (s *session) heldBack(ctx context.Context) (bool, error) {
	topics := slices.Sorted(maps.Keys(s.written()))
	var held map[place]int64 // what is held back since the first look, and from where on; nil: not looked yet
	var open map[txnStart]kadm.TopicsSet
	for deadline := time.Now().Add(heldPatience); ; {
		now := map[place]int64{}
		err := s.openOffsets(ctx, now)
		if err == nil {
			err = s.openRecords(ctx, topics, now)
		}
		if err == nil && held == nil && len(now) > 0 {
			open, err = s.openTransactions(ctx)
		}
		if definite(err) {
			s.log.Debug("cannot see whether something is held back", zap.Error(err))
			return false, nil
		}
		if err == nil {
			if held == nil {
				held = now
			}
			maps.DeleteFunc(held, func(where place, at int64) bool {
				still, is := now[where]
				return !is || still != at
			})
			if len(held) == 0 {
				return false, nil
			}
		}
		if over := time.Now().After(deadline); over && held != nil {
			return s.heldByNone(ctx, held, open)
		} else if over || !sleep(ctx, heldPause) {
			return false, rebuild("ask what is held back: %w", cmp.Or(err, ctx.Err()))
		}
	}
}

// heldByNone tells whether something is left of what is held back without what transactions hold that were open all the
// time.
func (s *session) heldByNone(ctx context.Context, held map[place]int64, open map[txnStart]kadm.TopicsSet) (bool, error) {
	still, err := s.openTransactions(ctx)
	if err != nil {
		return false, rebuild("ask what is held back: %w", err)
	}
	for txn, topics := range open {
		if _, is := still[txn]; !is {
			continue
		}
		maps.DeleteFunc(held, func(where place, _ int64) bool {
			return !where.offset && topics.Lookup(where.topic, where.partition)
		})
	}
	if len(held) > 0 {
		s.log.Info("held back, and by no transaction that is known to be open", zap.String("what", fmt.Sprint(held)))
	}
	return len(held) > 0, nil
}

// txnStart tells transactions apart.
type txnStart struct {
	id     string
	millis int64
}

// openTransactions returns what the transactions hold that are open or about to end, as far as they may be looked at.
func (s *session) openTransactions(ctx context.Context) (map[txnStart]kadm.TopicsSet, error) {
	listed, err := s.adm.ListTransactions(ctx, nil, []string{"Ongoing", "PrepareCommit", "PrepareAbort"})
	if err != nil {
		return nil, err
	}
	ids := listed.TransactionalIDs()
	if len(ids) == 0 {
		return nil, nil
	}
	described, err := s.adm.DescribeTransactions(ctx, ids[:min(len(ids), maxDescribed)]...)
	if err != nil {
		return nil, err
	}
	open := map[txnStart]kadm.TopicsSet{}
	for id, txn := range described {
		if txn.Err == nil {
			open[txnStart{id, txn.StartTimestamp}] = txn.Topics
		}
	}
	return open, nil
}

// openOffsets adds to found the inputs whose committed offsets are not decided. They are asked for by name: of all that
// there are, a coordinator leaves those out that were never committed before.
func (s *session) openOffsets(ctx context.Context, found map[place]int64) error {
	group := kmsg.NewOffsetFetchRequestGroup()
	group.Group = s.e.p.App
	names := map[[16]byte]string{}
	for _, topic := range s.e.p.sourceTopics() {
		t := kmsg.NewOffsetFetchRequestGroupTopic()
		t.Topic, t.TopicID = topic, s.layout.ids[topic]
		names[t.TopicID] = topic
		for p := range s.layout.partitions[topic] {
			t.Partitions = append(t.Partitions, p)
		}
		group.Topics = append(group.Topics, t)
	}
	req := kmsg.NewPtrOffsetFetchRequest()
	req.RequireStable, req.Groups = true, append(req.Groups, group)
	resp, err := req.RequestWith(ctx, s.plain)
	if err != nil {
		return err
	}
	for _, group := range resp.Groups {
		if err := kerr.ErrorForCode(group.ErrorCode); err != nil {
			return err
		}
		for _, t := range group.Topics {
			for _, p := range t.Partitions {
				if p.ErrorCode == kerr.UnstableOffsetCommit.Code {
					found[place{cmp.Or(t.Topic, names[t.TopicID]), p.Partition, true}] = -1
				}
			}
		}
	}
	return nil
}

// openRecords adds to found the partitions of topics with records that are not decided, and where the first of them is.
func (s *session) openRecords(ctx context.Context, topics []string, found map[place]int64) error {
	if len(topics) == 0 {
		return nil
	}
	stable, err := s.adm.ListCommittedOffsets(ctx, topics...)
	if err != nil {
		return err
	}
	ends, err := s.adm.ListEndOffsets(ctx, topics...)
	if err != nil {
		return err
	}
	if err := errors.Join(stable.Error(), ends.Error()); err != nil {
		return err
	}
	ends.Each(func(end kadm.ListedOffset) {
		if at, ok := stable.Lookup(end.Topic, end.Partition); ok && at.Offset < end.Offset {
			found[place{end.Topic, end.Partition, false}] = at.Offset
		}
	})
	return nil
}
