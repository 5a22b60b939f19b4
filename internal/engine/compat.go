package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"go.uber.org/zap"
)

// readControlBeside reads the control topic while other topics are looked at. stop must be called.
func (s *session) readControlBeside(ctx context.Context) (wait func() (*control, error), stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var c *control
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err = s.readControl(ctx)
	}()
	wait = func() (*control, error) {
		<-done
		return c, err
	}
	return wait, func() {
		cancel()
		<-done
	}
}

func (s *session) readControl(ctx context.Context) (*control, error) {
	return readControl(ctx, s.adm, append(s.e.baseOpts(), s.e.fetchOpts()...), s.e.p.App)
}

// compat is the check of the present shape against the recorded one.
type compat struct {
	s       *session
	control *control
	is      *shape
	was     *shape // nil: nothing is recorded
	found   kadm.TopicDetails
	// committed is what the group has committed; nil until it was asked for.
	committed kadm.OffsetResponses
	leave     bool // stores that is lacks are left behind
}

// checkShape refuses to start when the present topology would misread or forget what a former one has left, before
// anything is created. found are the internal topics of both that exist.
func (s *session) checkShape(ctx context.Context, c *control, is *shape, found kadm.TopicDetails) (*compat, error) {
	k := &compat{s: s, control: c, is: is, found: found}
	var err error
	if k.was, err = decodeShape(c.values[controlShape]); err != nil {
		if !s.e.cfg.AcceptTopologyChange {
			return nil, &Error{
				Kind: ErrTopologyChanged, Topic: ControlTopic(s.e.p.App), Partition: -1, Err: err,
				Hint: "start the version of the program that wrote it, or start once with AcceptTopologyChange",
			}
		}
		s.log.Error("the recorded topology cannot be read and is replaced, as was asked for", zap.Error(err))
	}
	if k.was == nil {
		return k, nil
	}
	if err := k.compare(ctx, k.there); err != nil {
		return nil, err
	}
	if err := k.checkLost(ctx); err != nil {
		return nil, err
	}
	return k, nil
}

// compare judges the differences. An input that was made anew is none when its offsets were set by hand since.
func (k *compat) compare(ctx context.Context, there func(topic, id string) bool) error {
	found := compareShapes(k.was, k.is, there)
	if slices.ContainsFunc(found, func(d difference) bool { return d.recreated }) {
		if err := k.fetchOffsets(ctx); err != nil {
			return err
		}
		found = slices.DeleteFunc(found, func(d difference) bool { return d.recreated && setByHand(k.committed[d.topic]) })
	}
	return k.judge(found)
}

// setByHand tells whether some offset of a topic comes from another tool.
func setByHand(partitions map[int32]kadm.OffsetResponse) bool {
	for _, o := range partitions {
		if _, mark := cutMark(o.Metadata); o.Err == nil && o.At >= 0 && !mark.ours {
			return true
		}
	}
	return false
}

// fetchOffsets asks for what the group has committed, once.
func (k *compat) fetchOffsets(ctx context.Context) error {
	if k.committed != nil {
		return nil
	}
	committed, err := k.s.adm.FetchOffsets(ctx, k.s.e.p.App)
	if errors.Is(err, kerr.GroupIDNotFound) {
		committed, err = kadm.OffsetResponses{}, nil
	}
	if err != nil {
		if denied := authError(err, "", "read the offsets of group "+k.s.e.p.App); denied != nil {
			return denied
		}
		return fmt.Errorf("engine: ask for the committed offsets: %w", err)
	}
	k.committed = committed
	return nil
}

// recordedTopics returns the names of internal topics that are recorded.
func recordedTopics(c *control) []string {
	was, err := decodeShape(c.values[controlShape])
	if err != nil || was == nil {
		return nil
	}
	var names []string
	for t := range was.topics() {
		names = append(names, t)
	}
	return names
}

// there tells whether a topic exists and is the recorded one. Where that cannot be told, it is.
func (k *compat) there(topic, id string) bool {
	d, ok := k.found[topic]
	switch {
	case !ok || errors.Is(d.Err, kerr.UnknownTopicOrPartition):
		return false
	case d.Err != nil || id == "" || idText(d.ID) == "":
		return true
	}
	return idText(d.ID) == id
}

// judge refuses differences, unless a rolling upgrade or the configuration excuses them.
func (k *compat) judge(found []difference) error {
	s := k.s
	var refused []difference
	for _, d := range found {
		switch {
		case d.verdict == harmless:
			if s.e.accepted == nil {
				s.log.Info("the topology has changed", zap.String("what", d.what), zap.String("consequence", d.do))
			}
		case d.verdict == orphaned && k.upgrading(d):
			s.log.Warn("a later version of the topology runs, too", zap.String("what", d.what))
		default:
			refused = append(refused, d)
		}
	}
	if len(refused) == 0 {
		return nil
	}
	if s.e.cfg.AcceptTopologyChange {
		for _, d := range refused {
			s.log.Error("the topology does not go with its state; going on, as was asked for",
				zap.String("what", d.what), zap.String("instead", d.do))
		}
		k.leave = true
		return nil
	}
	return refusal(refused)
}

// upgrading tells whether what this topology lacks was added by a later version that is being rolled out: while this
// process ran, or, where it is a whole sub-topology, after one like it was recorded. A store of a sub-topology that both
// run is something else at a start: it would miss what this process does.
func (k *compat) upgrading(d difference) bool {
	if k.s.e.accepted != nil {
		_, had := k.s.e.accepted.store(&shapeStore{Name: d.item, Changelog: d.topic})
		return had == nil && k.s.e.accepted.sub(d.item) == nil
	}
	return d.whole && k.was.knows(k.is.Fingerprint)
}

// refusal makes one error of all differences.
func refusal(refused []difference) error {
	e := &Error{
		Kind: ErrTopologyChanged, Topic: refused[0].topic, Partition: -1,
		Hint: "nothing was changed; AcceptTopologyChange starts all the same",
	}
	if !slices.ContainsFunc(refused, func(d difference) bool { return !d.count }) {
		e.Kind, e.Hint = ErrPartitionMismatch, ""
	}
	if !slices.ContainsFunc(refused, func(d difference) bool { return !d.recreated }) {
		e.Kind = ErrTopicChanged
	}
	lines := make([]string, len(refused))
	for i, d := range refused {
		lines[i] = d.String()
		if d.topic != e.Topic {
			e.Topic = ""
		}
	}
	e.Detail = lines[0]
	if len(lines) > 1 {
		e.Detail = fmt.Sprintf("%d differences:\n  - %s\n", len(lines), strings.Join(lines, "\n  - "))
	}
	return e
}

// checkLost refuses to begin with empty stores when a changelog is gone and the committed offsets say that it had
// rows. Offsets that another tool has set do not say so.
func (k *compat) checkLost(ctx context.Context) error {
	for i := range k.was.Subs {
		sub := &k.was.Subs[i]
		for _, st := range sub.Stores {
			_, now := k.is.store(&st)
			if st.Changelog == "" || now == nil || now.Changelog != st.Changelog || k.there(st.Changelog, st.TopicID) {
				continue
			}
			if err := k.fetchOffsets(ctx); err != nil {
				return err
			}
			if !processedBy(k.committed, sub) {
				continue // reset
			}
			if err := k.lost(ctx, st); err != nil {
				return err
			}
		}
	}
	return nil
}

// processedBy tells whether this library has committed an offset of the sub-topology.
func processedBy(committed kadm.OffsetResponses, sub *shapeSub) bool {
	for _, src := range sub.Sources {
		for _, o := range committed[src.Topic] {
			if _, mark := cutMark(o.Metadata); o.Err == nil && o.At > 0 && mark.ours {
				return true
			}
		}
	}
	return false
}

// lost judges a changelog that is not the recorded one.
func (k *compat) lost(ctx context.Context, st shapeStore) error {
	what := "it was deleted"
	if d, ok := k.found[st.Changelog]; ok && d.Err == nil {
		starts, err := k.s.adm.ListStartOffsets(ctx, st.Changelog)
		if err != nil {
			return fmt.Errorf("engine: look at changelog %q: %w", st.Changelog, err)
		}
		ends, err := k.s.adm.ListEndOffsets(ctx, st.Changelog)
		if err != nil {
			return fmt.Errorf("engine: look at changelog %q: %w", st.Changelog, err)
		}
		empty := true
		ends.Each(func(end kadm.ListedOffset) {
			start, ok := starts.Lookup(end.Topic, end.Partition)
			empty = empty && ok && end.Err == nil && start.Offset == end.Offset
		})
		if !empty {
			k.s.log.Warn("a changelog was made anew and has records: stores are restored from them",
				zap.String("store", st.Name), zap.String("topic", st.Changelog))
			return nil
		}
		what = "it was recreated and is empty"
	}
	if k.s.e.cfg.AcceptStateLoss {
		k.s.log.Error("a changelog is gone; its store starts empty, as was asked for",
			zap.String("store", st.Name), zap.String("topic", st.Changelog))
		return nil
	}
	return &Error{
		Kind: ErrStateLoss, Topic: st.Changelog, Partition: -1,
		Detail: fmt.Sprintf("%s, while the committed offsets say that store %q has rows", what, st.Name),
		Hint: "restore the topic, or reset the application, or start with AcceptStateLoss to begin with an empty store; " +
			"local state may be the only copy of the rows",
	}
}

// record writes the shape that results, if that is not what is recorded already. Another member may do so at the same
// moment: then what it wrote is checked, too.
func (k *compat) record(ctx context.Context, l *layout) error {
	s := k.s
	if !k.control.exists && !l.created[ControlTopic(s.e.p.App)] {
		var err error // another member has made it, and maybe written to it
		if k.control, err = s.readControl(ctx); err != nil {
			return err
		}
		if k.was, err = decodeShape(k.control.values[controlShape]); err != nil {
			return err
		}
		if k.was != nil {
			if err := k.compare(ctx, k.there); err != nil {
				return err
			}
		}
	}
	k.is.identify(func(topic string) string { return idText(l.ids[topic]) })
	there := func(topic, id string) bool {
		if now, ok := l.ids[topic]; ok {
			return id == "" || idText(now) == "" || idText(now) == id
		}
		return k.there(topic, id)
	}
	merged := k.is
	if k.was != nil {
		merged = k.was.merge(k.is, k.leave, there)
	}
	last := k.was // what the newest record says
	for try := 0; ; try++ {
		values := k.values(last, merged)
		if len(values) == 0 {
			break
		}
		at, err := s.writeControl(ctx, values)
		if err != nil {
			return err
		}
		if at == k.control.end || try == maxControlWrites {
			break
		}
		// Other members wrote in between, and may not know of what this one wrote.
		c, err := s.readControl(ctx)
		if err != nil {
			return err
		}
		for _, between := range c.shapesSince(k.control.end, at) {
			if k.was, err = decodeShape(between); err != nil {
				return err
			}
			if err := k.compare(ctx, there); err != nil {
				_, back := s.writeControl(ctx, map[string][]byte{controlShape: between})
				return errors.Join(err, back)
			}
			merged = merged.unite(k.was)
		}
		k.control = c
		if last, err = decodeShape(c.values[controlShape]); err != nil {
			return err
		}
	}
	s.e.accepted = merged
	return nil
}

// values returns the records to write after last: the shape, if it says something new, and at the first start of the
// process its description.
func (k *compat) values(last, merged *shape) map[string][]byte {
	s := k.s
	values := map[string][]byte{}
	if last == nil || !merged.same(last) {
		b, err := merged.encode()
		if err != nil {
			s.log.Warn("the topology cannot be recorded; later changes of it are not checked", zap.Error(err))
		} else {
			values[controlShape] = b
		}
	}
	if s.e.accepted == nil {
		if b := s.e.describeSelf(k.control); b != nil {
			values[controlDescription] = b
		}
	}
	return values
}
