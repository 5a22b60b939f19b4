package main

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/processor"
)

// recount computes the unread counters from all events at once: sets and no state machine, no order, no limits. It is
// deliberately another program than Mailbox, to be compared with it.
type recount struct {
	arrived map[spot]bool
	deleted map[spot]bool
	newest  map[spot]Event // the newest read or unread event
	boxes   map[string]int // messages that ever arrived, by user
	events  int
}

// spot is a message in somebody's inbox.
type spot struct{ user, message string }

func newRecount() *recount {
	return &recount{
		arrived: make(map[spot]bool), deleted: make(map[spot]bool), newest: make(map[spot]Event),
		boxes: make(map[string]int),
	}
}

// add takes an event in. Events may come in any order and several times.
func (c *recount) add(e Event) {
	c.events++
	switch e.Kind {
	case Sent:
		for _, u := range e.To {
			if s := (spot{u, e.Message}); !c.arrived[s] {
				c.arrived[s] = true
				c.boxes[u]++
			}
		}
	case Deleted:
		c.deleted[spot{e.Actor, e.Message}] = true
	case Read, Unread:
		s := spot{e.Actor, e.Message}
		old, ok := c.newest[s]
		if !ok || e.At > old.At || e.At == old.At && e.ID > old.ID {
			c.newest[s] = e
		}
	}
}

// unread returns the number of unread messages of each user who ever got one.
func (c *recount) unread() map[string]int64 {
	counts := make(map[string]int64, len(c.boxes))
	for u := range c.boxes {
		counts[u] = 0
	}
	for s := range c.arrived {
		if !c.deleted[s] && c.newest[s].Kind != Read {
			counts[s.user]++
		}
	}
	return counts
}

// recountLog reads the whole log up to its present end.
func recountLog(ctx context.Context, brokers []string) (*recount, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(Events.Name()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return nil, fmt.Errorf("recount: %w", err)
	}
	defer cl.Close()
	ends, err := kadm.NewClient(cl).ListEndOffsets(ctx, Events.Name())
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("recount: find the end of %s: %w", Events.Name(), err)
	}
	left := make(map[int32]int64)
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[o.Partition] = o.Offset
		}
	})
	c := newRecount()
	for len(left) > 0 {
		fs := cl.PollFetches(ctx)
		if err := fs.Err0(); err != nil {
			return nil, fmt.Errorf("recount: read %s: %w", Events.Name(), err)
		}
		var failed error
		fs.EachError(func(_ string, p int32, err error) { failed = fmt.Errorf("recount: partition %d: %w", p, err) })
		if failed != nil {
			return nil, failed
		}
		fs.EachRecord(func(r *kgo.Record) {
			end, ok := left[r.Partition]
			if !ok || r.Offset >= end {
				return
			}
			if r.Offset == end-1 {
				delete(left, r.Partition)
			}
			v, err := Events.Value().Decode(r.Value)
			key := string(r.Key)
			if err == nil && wellFormed(processor.Record[string, Event]{
				Key: key, NoKey: r.Key == nil, Value: v, Tombstone: r.Value == nil, Time: r.Timestamp,
			}) {
				c.add(v)
			}
		})
	}
	return c, nil
}
