package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"
)

// OffsetMove describes a position that was moved because the topic does not have it any more.
type OffsetMove struct {
	Topic     string
	Partition int32
	// From is the offset that should have been read next, To the one that is; Start and End are what the topic holds.
	From, To, Start, End int64
}

// Lost returns how many offsets are left out by the move, some of which may never have held a record.
func (m OffsetMove) Lost() int64 { return max(0, m.To-m.From) }

// inRange moves those of the committed offsets that are outside of their topic, as Settings.OnOutOfRange says: they may
// have expired while nothing was fetched, which no fetch of a paused partition would tell. It changes at.
func (s *session) inRange(ctx context.Context, at map[topicPartition]location) error {
	if len(at) == 0 {
		return nil
	}
	seen := map[string]bool{}
	var topics []string
	for tp := range at {
		if !seen[tp.topic] {
			seen[tp.topic] = true
			topics = append(topics, tp.topic)
		}
	}
	r, err := s.ranges(ctx, topics)
	if err != nil {
		return err
	}
	for tp, loc := range at {
		m, err := r.move(tp, loc.offset)
		if err != nil {
			return err
		}
		if m.From == m.To {
			continue
		}
		if s.e.cfg.OnOutOfRange == OutOfRangeFail {
			return outOfRange(m)
		}
		s.moved(m)
		loc.offset = m.To
		at[tp] = loc
	}
	return nil
}

// ranges is what topics hold.
type ranges struct {
	policy         OutOfRange
	starts, ends   kadm.ListedOffsets
	stable         kadm.ListedOffsets // the ends for who reads committed records
	stableIsNeeded bool
}

// ranges asks for what topics hold, all of it at the same time.
func (s *session) ranges(ctx context.Context, topics []string) (*ranges, error) {
	r := &ranges{policy: s.e.cfg.OnOutOfRange, stableIsNeeded: s.e.cfg.OnOutOfRange == OutOfRangeLatest}
	errs := make(chan error, 3)
	ask := func(list func(context.Context, ...string) (kadm.ListedOffsets, error), into *kadm.ListedOffsets) {
		go func() {
			var err error
			*into, err = list(ctx, topics...)
			errs <- err
		}()
	}
	n := 2
	ask(s.adm.ListStartOffsets, &r.starts)
	ask(s.adm.ListEndOffsets, &r.ends)
	if r.stableIsNeeded {
		n++
		ask(s.adm.ListCommittedOffsets, &r.stable)
	}
	var err error
	for range n {
		err = errors.Join(err, <-errs)
	}
	if err != nil {
		return nil, fmt.Errorf("engine: find what the inputs hold: %w", err)
	}
	return r, nil
}

// move tells where a position goes; From and To are equal when it is in range.
func (r *ranges) move(tp topicPartition, at int64) (OffsetMove, error) {
	m := OffsetMove{Topic: tp.topic, Partition: tp.partition, From: at, To: at}
	start, okStart := r.starts.Lookup(tp.topic, tp.partition)
	end, okEnd := r.ends.Lookup(tp.topic, tp.partition)
	if err := errors.Join(start.Err, end.Err); err != nil || !okStart || !okEnd {
		return m, fmt.Errorf("engine: find what %s[%d] holds: %w", tp.topic, tp.partition,
			errors.Join(err, errors.New("not listed")))
	}
	m.Start, m.End = start.Offset, end.Offset
	if at >= m.Start && at <= m.End {
		return m, nil
	}
	m.To = m.Start
	if r.policy == OutOfRangeLatest {
		stable, ok := r.stable.Lookup(tp.topic, tp.partition)
		if stable.Err != nil || !ok {
			return m, fmt.Errorf("engine: find the end of %s[%d]: %w", tp.topic, tp.partition,
				errors.Join(stable.Err, errors.New("not listed")))
		}
		m.To = stable.Offset
	}
	return m, nil
}

func outOfRange(m OffsetMove) error {
	e := &Error{
		Kind: ErrOffsetOutOfRange, Topic: m.Topic, Partition: m.Partition,
		Detail: fmt.Sprintf("offset %d is next, and the topic holds %d to %d", m.From, m.Start, m.End),
		Hint: "records were deleted before they were processed; reset the application, or choose OnOutOfRange to go on " +
			"without them",
	}
	if m.From > m.End {
		e.Hint = "the topic lost records that had been processed; reset the application, or choose OnOutOfRange to go on"
	}
	return e
}

// moved tells of a move, loudly: results lack records from here on, or count some twice.
func (s *session) moved(m OffsetMove) {
	s.log.Error("the position of an input is not in its topic any more; going on elsewhere, as OnOutOfRange says",
		zap.String("topic", m.Topic), zap.Int32("partition", m.Partition), zap.Int64("from", m.From), zap.Int64("to", m.To),
		zap.Int64("lost_offsets", m.Lost()), zap.Int64("start", m.Start), zap.Int64("end", m.End),
		zap.Stringer("policy", s.e.cfg.OnOutOfRange))
	s.e.outOfRange.Add(1)
	s.e.lostOffsets.Add(m.Lost())
	if f := s.e.cfg.Events.OutOfRange; f != nil {
		f(m)
	}
}

// leftRange handles a fetch that the broker refused because the position has expired meanwhile, or never was there.
func (s *session) leftRange(topic string, partition int32, cause error) {
	parts := s.inputs[topic]
	if int(partition) >= len(parts) || parts[partition] == nil || parts[partition].moving {
		return
	}
	in := parts[partition]
	in.moving = true
	s.async.Add(1)
	go func() {
		defer s.async.Done()
		ctx, cancel := context.WithTimeout(s.ctx, adminTimeout)
		defer cancel()
		r, err := s.ranges(ctx, []string{topic})
		if err != nil || s.e.cfg.OnOutOfRange != OutOfRangeFail {
			s.post(func() error { return s.moveInput(in, r, err) })
			return
		}
		offsets, err := s.committedOffsets(ctx, []string{topic})
		committed, ok := offsets.Lookup(topic, partition)
		s.post(func() error {
			return s.endInput(in, r, ok && committed.At >= 0, errors.Join(err, committed.Err), cause)
		})
	}()
}

// endInput ends the processing of an input whose position is gone, where the policy is to fail. A member that was stopped
// for a while may only have found that another one has processed and purged what it was about to read: if anything is
// committed, the next session starts from that, and fails if it is gone. If nothing is, the next session would start with
// what is left, as if nothing had been lost.
func (s *session) endInput(in *input, r *ranges, committed bool, err, cause error) error {
	in.moving = false
	if err == nil && !committed {
		m, err := r.move(topicPartition{in.topic, in.partition}, in.next)
		if err == nil && m.From != m.To {
			return outOfRange(m)
		}
	}
	return rebuild("read %s[%d]: %w", in.topic, in.partition, errors.Join(cause, err))
}

// moveInput moves the fetch position of an input into what its topic holds. What was fetched before is processed first.
func (s *session) moveInput(in *input, r *ranges, err error) error {
	in.moving = false
	if err != nil {
		s.log.Warn("cannot find out what an input holds; trying again", zap.String("topic", in.topic), zap.Error(err))
		return nil // the next fetch asks for it again
	}
	if s.inputs[in.topic][in.partition] != in || !in.t.running {
		return nil
	}
	m, err := r.move(topicPartition{in.topic, in.partition}, in.next)
	switch {
	case err != nil:
		return rebuild("%w", err)
	case m.From > m.End:
		// The task has seen more than there is: it starts anew from what is committed.
		return rebuild("offset %d of %s[%d] is past its end %d", m.From, m.Topic, m.Partition, m.End)
	case m.From != m.To:
		s.moved(m)
	}
	in.next = m.To
	s.cl.SetOffsets(map[string]map[int32]kgo.EpochOffset{in.topic: {in.partition: {Epoch: -1, Offset: m.To}}})
	return nil
}
