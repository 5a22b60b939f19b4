package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// forgetPatience bounds how long the brokers may take to forget the offsets of a topic that is gone.
const forgetPatience = 5 * time.Second

// planOffsets works out the new offsets.
func (a *Admin) planOffsets(ctx context.Context, p *ResetPlan, spec ResetSpec, chosen map[string][]int32) error {
	topics := make([]string, 0, len(chosen))
	for t := range chosen {
		topics = append(topics, t)
	}
	slices.Sort(topics)
	if len(topics) == 0 {
		return nil
	}
	if _, err := metadata(ctx, a.adm, topics); err != nil {
		return err
	}
	starts, err := a.adm.ListStartOffsets(ctx, topics...)
	if err != nil {
		return fmt.Errorf("engine: find where the inputs start: %w", err)
	}
	ends, err := a.adm.ListCommittedOffsets(ctx, topics...)
	if err != nil {
		return fmt.Errorf("engine: find where the inputs end: %w", err)
	}
	var after kadm.ListedOffsets
	if spec.To.Kind == ResetTime {
		if after, err = a.adm.ListOffsetsAfterMilli(ctx, spec.To.Time.UnixMilli(), topics...); err != nil {
			return fmt.Errorf("engine: find the offsets of %v: %w", spec.To.Time, err)
		}
	}
	committed, err := a.committed(ctx, p.App)
	if err != nil {
		return err
	}
	for _, t := range topics {
		var partitions []int32
		for n := range starts[t] {
			if n >= 0 {
				partitions = append(partitions, n)
			}
		}
		if len(partitions) == 0 {
			return &Error{
				Kind: ErrMissingTopic, Topic: t, Partition: -1, Detail: "an input of the application is not there",
				Hint: "create it, or leave it out by naming the others",
			}
		}
		for _, n := range chosen[t] {
			if !slices.Contains(partitions, n) {
				return &Error{Kind: ErrBadReset, Topic: t, Partition: n, Detail: fmt.Sprintf("it has %d partitions", len(partitions))}
			}
		}
		if chosen[t] != nil {
			partitions = slices.Clone(chosen[t])
		}
		slices.Sort(partitions)
		for _, n := range slices.Compact(partitions) {
			start, end := starts[t][n], ends[t][n]
			if err := cmp.Or(start.Err, end.Err, after[t][n].Err); err != nil {
				return fmt.Errorf("engine: offsets of %s[%d]: %w", t, n, err)
			}
			r := OffsetReset{Topic: t, Partition: n, Start: start.Offset, End: end.Offset}
			switch spec.To.Kind {
			case ResetEarliest:
				r.To = r.Start
			case ResetLatest:
				r.To = r.End
			case ResetOffset:
				r.To = spec.To.Offset
			case ResetTime:
				r.To = after[t][n].Offset
			}
			r.To = max(r.Start, min(r.To, r.End))
			if c, ok := committed.Lookup(t, n); ok && c.Err == nil && c.At >= 0 {
				r.From = &c.At
			}
			p.Offsets = append(p.Offsets, r)
		}
	}
	return nil
}

// offsets forgets those of the internal topics, and sets those of the inputs. They carry no metadata: no stream time is
// left of what was processed before.
func (r *resetting) offsets(ctx context.Context) error {
	ctx, cancel := r.a.within(ctx)
	defer cancel()
	if err := r.forget(ctx); err != nil {
		return err
	}
	if len(r.p.Offsets) == 0 {
		return nil
	}
	set := kadm.Offsets{}
	for _, o := range r.p.Offsets {
		set.Add(kadm.Offset{Topic: o.Topic, Partition: o.Partition, At: o.To, LeaderEpoch: -1})
	}
	r.o.Progress(StepOffsets, fmt.Sprintf("set %d offsets", len(r.p.Offsets)))
	for deadline := r.a.now().Add(memberPatience); ; {
		err := r.a.adm.CommitAllOffsets(ctx, r.p.App, set)
		if err == nil {
			return nil
		}
		if !memberJoined(err) {
			if denied := authError(err, "", "set the offsets of group "+r.p.App); denied != nil {
				return denied
			}
			return fmt.Errorf("engine: set the offsets: %w", err)
		}
		// A member that noticed only now that it was removed has joined again. It ends as soon as it sees the record.
		if !r.o.Force || r.a.now().After(deadline) {
			return lateMember(err)
		}
		if err := r.members(ctx); err != nil {
			return err
		}
	}
}

// forget sees to it that the group has no offsets of internal topics. The brokers forget those of a topic that is deleted
// soon after it; only what they are slow with needs the right to delete them.
func (r *resetting) forget(ctx context.Context) error {
	released := false
	for deadline := r.a.now().Add(forgetPatience); ; {
		committed, err := r.a.committed(kadm.RequireStable(ctx), r.p.App)
		if err != nil {
			return err
		}
		// A transaction that is still open, with offsets in it, is waited for: its end would put them over ours.
		if err := unstable(committed); err != nil {
			switch {
			case r.a.now().Before(deadline) && sleep(ctx, memberPause):
				continue
			case ctx.Err() != nil || released:
				return fmt.Errorf("engine: the group's offsets are held back by a transaction: %w", cmp.Or(ctx.Err(), err))
			}
			if err := r.release(ctx); err != nil {
				return err
			}
			released, deadline = true, r.a.now().Add(forgetPatience)
			continue
		}
		left := kadm.TopicsSet{}
		for _, t := range r.p.internal {
			for n := range committed[t] {
				left.Add(t, n)
			}
		}
		if len(left) == 0 {
			return nil
		}
		deleted, err := r.a.adm.DeleteOffsets(ctx, r.p.App, left)
		if err == nil {
			deleted.EachError(func(_ string, _ int32, e error) {
				if !errors.Is(e, kerr.UnknownTopicOrPartition) { // it is deleted, and they with it in a moment
					err = e
				}
			})
		}
		denied := authError(err, "", "forget the offsets of group "+r.p.App)
		switch {
		case err == nil || errors.Is(err, kerr.GroupIDNotFound):
			return nil
		case memberJoined(err):
			return lateMember(err)
		case denied == nil:
			return fmt.Errorf("engine: forget the offsets of internal topics: %w", err)
		case r.a.now().After(deadline) || !sleep(ctx, memberPause):
			return denied
		}
	}
}

func unstable(offsets kadm.OffsetResponses) (err error) {
	offsets.Each(func(o kadm.OffsetResponse) {
		if errors.Is(o.Err, kerr.UnstableOffsetCommit) {
			err = o.Err
		}
	})
	return err
}

// release drops the offsets that transactions of the application hold back, whose ends a broker has lost (unstick.go):
// what they would have been does not matter any more.
func (r *resetting) release(ctx context.Context) error {
	a, app := r.a, r.p.App
	listed, err := a.adm.ListTransactions(ctx, nil, nil)
	if err != nil {
		return fmt.Errorf("engine: list transactions: %w", err)
	}
	cl, err := kgo.NewClient(append(a.readOpts[:len(a.readOpts):len(a.readOpts)], markerOpts())...)
	if err != nil {
		return fmt.Errorf("engine: make the client: %w", err)
	}
	defer cl.Close()
	w := &markerWriter{cl: cl, group: app, timeout: adminTimeout}
	for _, id := range listed.TransactionalIDs() {
		met := slices.ContainsFunc(r.p.Members, func(m GroupMember) bool { return m.TransactionalID == id })
		if !met && !defaultIdentity(app, id) {
			continue // possibly another application's
		}
		producer, epoch, err := w.take(ctx, id, -1, -1)
		if err == nil {
			if err = w.open(ctx, id, producer, epoch); err == nil {
				err = w.end(ctx, id, producer, epoch, false)
			}
		}
		if denied := authError(err, "", "use the transactional id "+id); denied != nil {
			return denied
		}
		if err != nil && !errors.Is(err, errFaster) {
			return fmt.Errorf("engine: release the group's offsets: %w", err)
		}
		if err := a.writeControl(ctx, app, controlMend+id, nil); err != nil {
			return err
		}
	}
	return nil
}

func lateMember(err error) error {
	return &Error{
		Kind: ErrMembersRun, Partition: -1, Err: err, Detail: "a member joined the group meanwhile",
		Hint: "it ends soon, because of the record of the reset: run the reset again",
	}
}

// memberJoined tells whether offsets were refused because the group has members.
func memberJoined(err error) bool {
	return errors.Is(err, kerr.UnknownMemberID) || errors.Is(err, kerr.RebalanceInProgress) ||
		errors.Is(err, kerr.IllegalGeneration) || errors.Is(err, kerr.GroupSubscribedToTopic)
}
