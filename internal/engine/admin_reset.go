package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"tailrace.dev/internal/task"
)

// ResetTarget says where the inputs are read from after a reset.
type ResetTarget struct {
	// Kind is one of the Reset constants. Offset belongs to ResetOffset, Time to ResetTime.
	Kind   ResetKind
	Offset int64
	Time   time.Time
}

// ResetKind is a kind of target.
type ResetKind int

// The kinds of targets.
const (
	// ResetEarliest is the first record that a partition has.
	ResetEarliest ResetKind = iota
	// ResetLatest is behind the last committed record.
	ResetLatest
	// ResetOffset is an offset, or the nearest that the partition has.
	ResetOffset
	// ResetTime is the first record with that time or a later one.
	ResetTime
)

// String describes the target in the words of the command line.
func (t ResetTarget) String() string {
	switch t.Kind {
	case ResetEarliest:
		return "earliest"
	case ResetLatest:
		return "latest"
	case ResetOffset:
		return fmt.Sprintf("offset=%d", t.Offset)
	case ResetTime:
		return "time=" + t.Time.UTC().Format(time.RFC3339Nano)
	}
	return fmt.Sprintf("ResetKind(%d)", int(t.Kind))
}

// ResetSpec is a reset that is asked for.
type ResetSpec struct {
	App string
	// Known are the sub-topologies where the caller knows them. What is recorded of the application counts as well.
	Known []AppTopics
	To    ResetTarget
	// Only limits the reset of offsets to partitions of some inputs; an empty list means all partitions of a topic. Nil
	// means all inputs. Internal topics and local state are reset in any case.
	Only map[string][]int32
	// StateDir is the application's own state directory on this machine, empty for none.
	StateDir string
}

// ResetPlan is what a reset will do. Lists are sorted.
type ResetPlan struct {
	App string `json:"application"`
	To  string `json:"to"`
	// Unfinished tells that an earlier reset was begun and not finished; this one finishes it.
	Unfinished bool `json:"unfinished,omitempty"`
	// Members have to be gone first.
	Members []GroupMember `json:"members"`
	// Delete are internal topics, which the application makes anew. Keep are those that stay, with the effects that
	// were made in the world. Unknown have the application's prefix and are neither: they may be another application's.
	Delete  []string `json:"delete"`
	Keep    []string `json:"keep"`
	Unknown []string `json:"unknown"`
	// StateDir is the application's state directory here, if there is one, and Tasks what is removed in it. InUse says by
	// whom it is used, if it is.
	StateDir string   `json:"stateDir,omitempty"`
	Tasks    []string `json:"tasks"`
	InUse    string   `json:"inUse,omitempty"`
	// Offsets are those that are set.
	Offsets []OffsetReset `json:"offsets"`

	recorded bool // the control topic is there
	shape    *shape
	ids      map[string]string // of the topics in Delete and of those that were deleted before
	internal []string          // all internal topics that are not kept, there or not
	taskIDs  []task.ID
	mark     *resetMark
}

// OffsetReset is one offset that a reset sets.
type OffsetReset struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	// From is the offset that is committed now, nil if there is none. Start and End are those of the partition.
	From  *int64 `json:"from"`
	To    int64  `json:"to"`
	Start int64  `json:"start"`
	End   int64  `json:"end"`
}

// PlanReset finds out what a reset would do, and changes nothing.
func (a *Admin) PlanReset(ctx context.Context, spec ResetSpec) (*ResetPlan, error) {
	ctx, cancel := a.within(ctx)
	defer cancel()
	p, err := a.planReset(ctx, spec)
	if err != nil {
		return nil, a.unanswered(ctx, err)
	}
	return p, nil
}

func (a *Admin) planReset(ctx context.Context, spec ResetSpec) (*ResetPlan, error) {
	rec, err := a.recorded(ctx, spec.App)
	if err != nil {
		return nil, err
	}
	subs := append(slices.Clone(spec.Known), rec.shape.appTopics()...)
	if len(subs) == 0 {
		return nil, unknownApp(spec.App, "its topology is not recorded, so that its topics cannot be told from those of others")
	}
	p := &ResetPlan{
		App: spec.App, To: spec.To.String(), Members: []GroupMember{}, Delete: []string{}, Keep: []string{},
		Unknown: []string{}, Tasks: []string{}, Offsets: []OffsetReset{},
		recorded: rec.control.exists, shape: rec.shape, mark: rec.mark,
	}
	p.Unfinished = rec.mark != nil && rec.mark.Done.IsZero()
	g, err := a.group(ctx, spec.App)
	if err != nil {
		return nil, err
	}
	for _, m := range parseMembers(g) {
		p.Members = append(p.Members, m.GroupMember)
	}
	inputs := p.sortTopics(subs)
	if err := a.findTopics(ctx, p); err != nil {
		return nil, err
	}
	if err := p.findState(spec.StateDir); err != nil {
		return nil, err
	}
	chosen, err := spec.choose(inputs)
	if err != nil {
		return nil, err
	}
	return p, a.planOffsets(ctx, p, spec, chosen)
}

// sortTopics fills in the internal topics, and returns the inputs that are the user's.
func (p *ResetPlan) sortTopics(subs []AppTopics) (inputs []string) {
	for _, sub := range subs {
		for _, t := range sub.Internal {
			if strings.HasSuffix(t, effectsSuffix) {
				p.Keep = append(p.Keep, t)
			} else {
				p.internal = append(p.internal, t)
			}
		}
		for _, t := range sub.Sources {
			if !slices.Contains(sub.Internal, t) {
				inputs = append(inputs, t)
			}
		}
	}
	if p.shape != nil {
		for _, st := range p.shape.Left {
			if st.Changelog != "" && !strings.HasSuffix(st.Changelog, effectsSuffix) {
				p.internal = append(p.internal, st.Changelog)
			}
		}
	}
	for _, list := range []*[]string{&p.internal, &p.Keep, &inputs} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return inputs
}

// findTopics finds out which of the internal topics exist, and what else has the application's prefix.
func (a *Admin) findTopics(ctx context.Context, p *ResetPlan) error {
	all, err := a.adm.ListTopics(ctx)
	if err != nil {
		return fmt.Errorf("engine: list topics: %w", err)
	}
	p.ids = map[string]string{}
	for _, t := range p.internal {
		// Asked for by name: a list leaves out what the principal may not see.
		meta, err := a.adm.Metadata(ctx, t)
		if err == nil {
			err = meta.Topics[t].Err
		}
		switch {
		case errors.Is(err, kerr.UnknownTopicOrPartition):
			continue
		case err != nil:
			if denied := authError(err, t, "describe the topic"); denied != nil {
				return denied
			}
			return fmt.Errorf("engine: topic %q: %w", t, err)
		}
		p.Delete = append(p.Delete, t)
		p.ids[t] = idText(meta.Topics[t].ID)
	}
	p.Keep = slices.DeleteFunc(p.Keep, func(t string) bool { return !all.Has(t) })
	for t := range all {
		named := slices.Contains(p.internal, t) || slices.Contains(p.Keep, t) || t == ControlTopic(p.App)
		if strings.HasPrefix(t, p.App+"-") && !named && internalName(t) {
			p.Unknown = append(p.Unknown, t)
		}
	}
	slices.Sort(p.Unknown)
	return nil
}

func internalName(topic string) bool {
	return strings.HasSuffix(topic, "-changelog") || strings.HasSuffix(topic, "-repartition") ||
		strings.HasSuffix(topic, effectsSuffix)
}

func (p *ResetPlan) findState(dir string) error {
	l, err := openLocal(dir)
	if l == nil || err != nil {
		return err
	}
	defer l.close()
	if p.taskIDs, err = l.tasks(); err != nil {
		return err
	}
	p.StateDir = l.dir
	for _, id := range p.taskIDs {
		p.Tasks = append(p.Tasks, taskPath(id))
	}
	err = l.hold()
	var locked *Error
	if errors.As(err, &locked) && errors.Is(err, ErrStateLocked) {
		p.InUse = locked.Detail
		return nil
	}
	return err
}

// choose returns the partitions whose offsets are set: nil for all of a topic.
func (spec *ResetSpec) choose(inputs []string) (map[string][]int32, error) {
	chosen := map[string][]int32{}
	if spec.Only == nil {
		for _, t := range inputs {
			chosen[t] = nil
		}
		return chosen, nil
	}
	for t, ps := range spec.Only {
		if !slices.Contains(inputs, t) {
			return nil, &Error{
				Kind: ErrBadReset, Topic: t, Partition: -1, Detail: "it is no input of the application",
				Hint: "its inputs are " + strings.Join(inputs, ", "),
			}
		}
		chosen[t] = ps
	}
	return chosen, nil
}

// The steps of a reset, in their order. Wherever it ends, the same reset takes up again: the record that it was begun
// keeps members from starting until it is done, and the offsets, which are what makes the application go on, come last.
const (
	StepMark    = "mark"    // record that a reset was begun, and which changelogs it discards
	StepMembers = "members" // remove the members, where that is asked for
	StepTopics  = "topics"  // delete the internal topics
	StepState   = "state"   // remove local state
	StepOffsets = "offsets" // set the offsets
	StepDone    = "done"    // record the end
)

const (
	memberPause = 100 * time.Millisecond
	// memberPatience bounds how long members that were removed may come back, and a process may hold its directory.
	memberPatience = 30 * time.Second
)

// ResetOptions say how a plan is carried out.
type ResetOptions struct {
	// Force removes members that run. They stop, because they may not start again before the reset is done.
	Force bool
	// Progress, if set, is called before each step with what is done to what.
	Progress func(step, what string)
}

// Reset carries out a plan. An error that is ErrMembersRun or ErrStateLocked says that nothing was changed. After any
// other error, or none at all because the process died, the application does not start until a reset has been finished.
func (a *Admin) Reset(ctx context.Context, p *ResetPlan, o ResetOptions) error {
	r := &resetting{a: a, p: p, o: o}
	if o.Progress == nil {
		r.o.Progress = func(string, string) {}
	}
	local, err := openLocal(p.StateDir)
	if err != nil {
		return err
	}
	defer local.close()
	r.local = local
	if !o.Force {
		if err := r.refuseMembers(ctx); err != nil {
			return err
		}
		if local != nil {
			if err := local.hold(); err != nil {
				return err
			}
		}
	}
	for _, s := range []struct {
		name string
		do   func(context.Context) error
	}{
		{StepMark, r.mark}, {StepMembers, r.members}, {StepTopics, r.topics}, {StepState, r.state}, {StepOffsets, r.offsets},
		{StepDone, r.done},
	} {
		if a.at != nil {
			if err := a.at(s.name); err != nil {
				return err
			}
		}
		if err := s.do(ctx); err != nil {
			return a.unanswered(ctx, err)
		}
	}
	return nil
}

// resetting is a reset under way.
type resetting struct {
	a     *Admin
	p     *ResetPlan
	o     ResetOptions
	local *localState // nil: none
	rec   *resetMark

	changed bool // topics may be gone
}

func (r *resetting) refuseMembers(ctx context.Context) error {
	ctx, cancel := r.a.within(ctx)
	defer cancel()
	g, err := r.a.group(ctx, r.p.App)
	if err != nil {
		return r.a.unanswered(ctx, err)
	}
	if members := parseMembers(g); len(members) > 0 {
		return membersError(r.p.App, members)
	}
	return nil
}

func membersError(app string, members []parsedMember) error {
	names := make([]string, len(members))
	for i, m := range members {
		names[i] = fmt.Sprintf("%s at %s", cmp.Or(m.Instance, m.ID), m.Host)
	}
	return &Error{
		Kind: ErrMembersRun, Partition: -1, Detail: fmt.Sprintf("%q has %d: %s", app, len(members), strings.Join(names, ", ")),
		Hint: "stop them; a member that was stopped keeps its place until its session times out (45 s by default). " +
			"Force removes them",
	}
}

func (r *resetting) mark(ctx context.Context) error {
	ctx, cancel := r.a.within(ctx)
	defer cancel()
	r.rec = &resetMark{Version: resetMarkVersion, Begun: r.a.now().UTC(), Shape: r.p.shape}
	if old := r.p.mark; old != nil {
		r.rec.discard(old.Discarded...)
		if r.rec.Shape == nil {
			r.rec.Shape = old.Shape
		}
	}
	for _, t := range r.p.Delete {
		r.rec.discard(r.p.ids[t])
	}
	if r.p.shape != nil {
		for _, sub := range r.p.shape.Subs {
			for _, st := range sub.Stores {
				if !strings.HasSuffix(st.Changelog, effectsSuffix) {
					r.rec.discard(st.TopicID)
				}
			}
		}
	}
	topic := ControlTopic(r.p.App)
	r.o.Progress(StepMark, "record in "+topic+" that a reset begins")
	if r.p.recorded {
		return r.record(ctx)
	}
	config := map[string]*string{
		"cleanup.policy": kadm.StringPtr("compact"), timestampType: kadm.StringPtr(brokerTime),
	}
	resp, err := r.a.adm.CreateTopics(ctx, 1, -1, config, topic)
	if err == nil {
		err = resp[topic].Err
	}
	if denied := authError(err, topic, "create the topic"); denied != nil {
		return denied
	}
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		return fmt.Errorf("engine: create the control topic: %w", err)
	}
	return r.record(ctx)
}

func (r *resetting) record(ctx context.Context) error {
	b, err := r.rec.encode()
	if err != nil {
		return err
	}
	return r.a.writeControl(ctx, r.p.App, controlReset, b)
}

// members makes sure that the group is empty, after it was recorded that none may start.
func (r *resetting) members(ctx context.Context) error {
	deadline := r.a.now().Add(memberPatience)
	for {
		once, cancel := r.a.within(ctx)
		g, err := r.a.group(once, r.p.App)
		members := parseMembers(g)
		if err == nil && len(members) > 0 {
			if !r.o.Force || r.a.now().After(deadline) {
				err = membersError(r.p.App, members)
			} else {
				err = r.remove(once, members)
			}
		}
		cancel()
		if errors.Is(err, ErrMembersRun) {
			return errors.Join(err, r.withdraw())
		}
		if err != nil {
			return err
		}
		if len(members) == 0 {
			break
		}
		if !sleep(ctx, memberPause) {
			return ctx.Err()
		}
	}
	if r.local == nil || r.local.lock != nil {
		return nil
	}
	err := r.local.holdWithin(memberPatience)
	if errors.Is(err, ErrStateLocked) {
		err = errors.Join(err, r.withdraw())
	}
	return err
}

// withdraw takes the record back that a reset was begun, while nothing else was changed.
func (r *resetting) withdraw() error {
	if r.p.Unfinished || r.changed {
		return nil // what was changed stays to be finished
	}
	var b []byte
	if r.p.mark != nil {
		var err error
		if b, err = r.p.mark.encode(); err != nil {
			return err
		}
	}
	ctx, cancel := r.a.within(context.Background()) // also after an interruption
	defer cancel()
	return r.a.writeControl(ctx, r.p.App, controlReset, b)
}

// topics deletes the internal topics, and waits until they are gone.
func (r *resetting) topics(ctx context.Context) error {
	ctx, cancel := r.a.within(ctx)
	defer cancel()
	r.changed = true
	for _, t := range r.p.Delete {
		r.o.Progress(StepTopics, "delete topic "+t)
		resp, err := r.a.adm.DeleteTopics(ctx, t)
		if err == nil {
			err = resp[t].Err
		}
		if errors.Is(err, kerr.UnknownTopicOrPartition) {
			continue
		}
		if err != nil {
			if denied := authError(err, t, "delete the topic"); denied != nil {
				return denied
			}
			return fmt.Errorf("engine: delete topic %q: %w", t, err)
		}
		r.a.cl.PurgeTopicsFromClient(t)
	}
	for _, t := range r.p.Delete {
		for {
			meta, err := r.a.adm.Metadata(ctx, t)
			if err == nil {
				err = meta.Topics[t].Err
			}
			if errors.Is(err, kerr.UnknownTopicOrPartition) {
				break
			}
			if !sleep(ctx, memberPause) {
				return fmt.Errorf("engine: wait until topic %q is gone: %w", t, cmp.Or(err, ctx.Err()))
			}
		}
	}
	return nil
}

// state removes the directories of tasks, those that appeared since the plan was made included.
func (r *resetting) state(context.Context) error {
	ids, err := r.local.tasks()
	if err != nil {
		return err
	}
	for _, id := range ids {
		r.o.Progress(StepState, "remove "+filepath.Join(r.local.dir, taskPath(id)))
		if err := r.local.remove(id); err != nil {
			return err
		}
	}
	return nil
}

// done lets members start again. The shape of the topology is forgotten only then: it goes with topics that are gone.
func (r *resetting) done(ctx context.Context) error {
	ctx, cancel := r.a.within(ctx)
	defer cancel()
	r.o.Progress(StepDone, "record in "+ControlTopic(r.p.App)+" that the reset is done")
	r.rec.Done = r.a.now().UTC()
	if err := r.record(ctx); err != nil {
		return err
	}
	return ForgetTopology(ctx, r.a.cl, r.p.App)
}
