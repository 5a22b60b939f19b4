package conformance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"tailrace.dev/processor"
)

const (
	engineGroup    = 16 // plans in one application
	engineParallel = 6  // applications at a time
	engineTimeout  = 2 * time.Minute
)

// enginePoints are where members crash: everywhere in the commit.
var enginePoints = []string{
	"processed", "before-end", "after-end", "before-flush", "after-offsets", "before-commit-apply", "after-flush",
	"before-offsets", "after-commit-apply", "polled",
}

// TestCasesOnTheEngine runs the cases on an embedded broker, with topics of three partitions, two members, and a crash of
// either: each key must have the results that a driver, which has one partition, gives for the same records.
func TestCasesOnTheEngine(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while, and -short was asked for")
	}
	plans := enginePlans(t)
	for _, p := range plans {
		p.want = pipe(t, p.c, topologies[p.c.Spec.Op])
	}
	// What shares an application has one MaxTaskIdle.
	slices.SortStableFunc(plans, func(a, b *enginePlan) int { return cmp.Compare(b.idle, a.idle) })
	var groups [][]*enginePlan
	for i, p := range plans {
		if i == 0 || p.idle != plans[i-1].idle || len(groups[len(groups)-1]) == engineGroup {
			groups = append(groups, nil)
		}
		groups[len(groups)-1] = append(groups[len(groups)-1], p)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	agreed, crashes, places := 0, int64(0), make(chan struct{}, engineParallel)
	for i, group := range groups {
		wg.Add(1)
		dir := t.TempDir()
		go func() {
			defer wg.Done()
			places <- struct{}{}
			defer func() { <-places }()
			ctx, cancel := context.WithTimeout(t.Context(), engineTimeout)
			defer cancel()
			r := &engineRun{plans: group, number: i, dir: dir}
			err := r.run(ctx)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("application %d, of %v: %v", i, group, err)
			}
			crashes += r.crashes
			for j, got := range r.got {
				found := engineMismatches(group[j], got)
				for _, m := range found {
					t.Errorf("%v: %s", group[j], m)
				}
				if len(found) == 0 {
					agreed++
				}
			}
		}()
	}
	wg.Wait()
	fmt.Printf("engine: %d of %d agreed, in %d applications, with %d crashes\n", agreed, len(plans), len(groups), crashes)
}

// enginePlans returns all that the engine runs.
func enginePlans(t *testing.T) []*enginePlan {
	var plans []*enginePlan
	for i, file := range caseFiles(t) {
		plans = append(plans, plansFor(loadCase(t, file), i)...)
	}
	return plans
}

// engineRun is one application, with a broker of its own.
type engineRun struct {
	plans  []*enginePlan
	number int
	dir    string

	app     string
	members [2]*engineMember
	watch   *engineWatch
	inputs  map[string]bool // topics that the group reads
	ended   chan error

	got     []result
	crashes int64
}

func (r *engineRun) run(ctx context.Context) (err error) {
	broker, err := processor.StartEmbedded(processor.EmbeddedConfig{}, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, broker.Close()) }()
	if err := r.prepare(ctx, broker.Addrs()); err != nil {
		return err
	}
	defer r.watch.cl.Close()
	for phase := -1; phase <= 0; phase++ {
		if err := r.watch.send(ctx, r.plans, phase); err != nil {
			return err
		}
	}
	phases := r.plans[0].phases()
	if phases == 1 {
		r.members[0].armed.Store(true)
		r.members[1].armed.Store(true)
	}
	running, stop := context.WithCancel(ctx)
	r.ended = make(chan error, len(r.members))
	for _, m := range r.members {
		go func() { r.ended <- m.run(running, r.app) }()
	}
	err = r.phases(ctx, phases)
	stop()
	for range r.members {
		err = errors.Join(err, <-r.ended)
	}
	for _, m := range r.members {
		r.crashes += m.crashes.Load()
	}
	if err != nil {
		return err
	}
	return r.collect(ctx)
}

// prepare makes the topology and the topics.
func (r *engineRun) prepare(ctx context.Context, brokers []string) error {
	r.app, r.inputs = fmt.Sprintf("app%d", r.number), make(map[string]bool)
	b := processor.NewBuilder()
	var topics []processor.TopicSetup
	for i, p := range r.plans {
		p.build(b, fmt.Sprintf("c%d-", i))
		for _, name := range p.inputTopics() {
			r.inputs[p.b.named(name)] = name != "global"
		}
		for _, topic := range p.b.topics {
			topics = append(topics, processor.TopicSetup{
				Name: topic.Name(), Partitions: engineParts, Config: map[string]string{"retention.ms": "-1"},
			})
		}
	}
	topology, err := b.Build()
	if err != nil {
		return err
	}
	if err := processor.EnsureTopics(ctx, brokers, nil, topics...); err != nil {
		return err
	}
	for i := range r.members {
		name := fmt.Sprintf("member%d", i)
		r.members[i] = &engineMember{
			topology: topology, point: enginePoints[(2*r.number+i)%len(enginePoints)],
			config: processor.Config{
				Brokers: brokers, StateDir: filepath.Join(r.dir, name), InstanceID: name, InMemory: i == 1,
				CommitInterval: 50 * time.Millisecond, FlushInterval: 300 * time.Millisecond,
				MaxTaskIdle: r.plans[0].idle,
			},
		}
	}
	r.watch, err = watchAll(ctx, brokers)
	return err
}

// phases sends the inputs in parts, the first of which is there already. In each of the others a member crashes.
func (r *engineRun) phases(ctx context.Context, count int) error {
	for n := range count {
		if n > 0 {
			r.members[n%len(r.members)].armed.Store(true)
			if err := r.watch.send(ctx, r.plans, n); err != nil {
				return err
			}
		}
		for {
			quiet, err := r.watch.quiet(ctx, r.app, r.inputs)
			if err != nil {
				return err
			}
			if quiet {
				break
			}
			select {
			case err := <-r.ended:
				r.ended <- nil
				return fmt.Errorf("a member ended: %w", err)
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	return nil
}

// collect reads what came out.
func (r *engineRun) collect(ctx context.Context) error {
	if err := r.watch.catchUp(ctx); err != nil {
		return err
	}
	for _, p := range r.plans {
		var got result
		for _, name := range p.c.Spec.outputs() {
			rows, err := r.watch.output(p.b, name)
			if err != nil {
				return err
			}
			got.records = append(got.records, rows...)
		}
		var err error
		if got.final, err = r.watch.finalStore(p.b, r.app); err != nil {
			return err
		}
		r.got = append(r.got, got)
	}
	return nil
}
