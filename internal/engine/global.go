package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/zap"

	"tailrace.dev/state"
)

// Global is a topic that every member holds whole: it is its own changelog.
type Global struct {
	// Store is the name of the store, Topic that of the topic.
	Store, Topic string
}

// globalDir holds the replicas inside the state directory. Its name is no valid topic name, so that no sub-topology has
// it.
const globalDir = "@global"

const (
	// globalIdle is how long an end that no fetch reaches is waited for, and globalAnswers how many fetches the broker
	// must have answered meanwhile: a topic may end with offsets that hold no record and that the client does not show.
	// Time alone proves nothing: the broker may be slow, or its last answer may be to what was asked before.
	globalIdle     = 2 * time.Second
	globalAnswers  = 3
	globalPollWait = 250 * time.Millisecond
	globalRetry    = time.Second
)

// replica is a global topic at work.
type replica struct {
	Global
	backend state.Backend
	r       *state.Replica
	topicID [16]byte
	next    map[int32]int64
	end     map[int32]int64 // when loading began
	view    *globalView
}

// globals follow the program's global topics, for as long as the engine runs.
type globals struct {
	e        *Engine
	cl       *kgo.Client
	replicas map[string]*replica // by topic
	answers  *fetchAnswers
	stop     context.CancelFunc
	done     chan struct{}
}

// openGlobals loads the global topics up to what is committed by now, and goes on to follow them. The caller closes what
// it returns, which is nil where there are none.
func (e *Engine) openGlobals(ctx context.Context) (*globals, error) {
	if len(e.p.Globals) == 0 {
		return nil, nil
	}
	answers := &fetchAnswers{byBroker: make(map[int32]int)}
	opts := append(e.baseOpts(), e.fetchOpts()...)
	cl, err := kgo.NewClient(append(opts, kgo.ClientID(e.p.App+"-global"), kgo.WithHooks(answers), e.metrics.hook("global"))...)
	if err != nil {
		return nil, fmt.Errorf("engine: make the client: %w", err)
	}
	g := &globals{
		e: e, cl: cl, replicas: make(map[string]*replica), answers: answers, done: make(chan struct{}),
	}
	views := make(map[string]*state.Replica)
	for _, spec := range e.p.Globals {
		rep, err := g.open(spec)
		if err != nil {
			close(g.done)
			return nil, errors.Join(err, g.close())
		}
		g.replicas[spec.Topic], views[spec.Store] = rep, rep.r
	}
	if err := g.load(ctx); err != nil {
		close(g.done)
		return nil, errors.Join(err, g.close())
	}
	e.p.SetReplicas(views)
	following, stop := context.WithCancel(context.WithoutCancel(ctx))
	g.stop = stop
	go g.follow(following)
	return g, nil
}

func (g *globals) open(spec Global) (*replica, error) {
	dir := ""
	if !g.e.cfg.InMemory {
		rel := path.Join(globalDir, spec.Store)
		for _, d := range []string{globalDir, rel} {
			if err := g.e.root.Mkdir(d, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return nil, &Error{Kind: ErrStateDir, Partition: -1, Detail: "global table " + spec.Store, Err: err}
			}
		}
		dir = filepath.Join(g.e.cfg.StateDir, filepath.FromSlash(rel))
	}
	backend, err := g.e.p.OpenGlobal(spec.Store, dir)
	if errors.Is(err, state.ErrCorrupt) {
		g.e.log.Warn("local copy of a global table is damaged: loading it anew", zap.String("store", spec.Store))
		if err := g.e.root.RemoveAll(path.Join(globalDir, spec.Store)); err != nil {
			return nil, &Error{Kind: ErrStateDir, Partition: -1, Detail: "global table " + spec.Store, Err: err}
		}
		return g.open(spec)
	}
	if err != nil {
		return nil, &Error{Kind: ErrStateDir, Partition: -1, Detail: "global table " + spec.Store, Err: err}
	}
	r, err := state.OpenReplica(spec.Store, backend)
	if err != nil {
		return nil, errors.Join(err, backend.Close())
	}
	return &replica{
		Global: spec, backend: backend, r: r, next: make(map[int32]int64), end: make(map[int32]int64),
		view: g.e.board.follow(spec),
	}, nil
}

// load reads every topic from where the local copy ends up to the last stable offset of this moment.
func (g *globals) load(ctx context.Context) error {
	adm := kadm.NewClient(g.cl)
	from := make(map[string]map[int32]kgo.Offset)
	for topic, rep := range g.replicas {
		if err := g.locate(ctx, adm, rep); err != nil {
			return err
		}
		from[topic] = make(map[int32]kgo.Offset)
		for p, next := range rep.next {
			from[topic][p] = kgo.NewOffset().At(next)
		}
	}
	g.cl.AddConsumePartitions(from)
	moved, answered := time.Now(), g.answers.counts()
	for g.missing() > 0 {
		g.e.beat()
		n, err := g.poll(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return err
		case n > 0:
			moved, answered = time.Now(), g.answers.counts()
		case time.Since(moved) > globalIdle && g.askedInVain(answered):
			g.e.log.Info("global tables are loaded as far as there are records", zap.Int64("offsets_left", g.missing()))
			for _, rep := range g.replicas {
				rep.view.remaining.Store(0)
			}
			return nil
		}
	}
	return nil
}

// locate finds where to read a topic from and up to, and drops a copy that cannot be built on.
func (g *globals) locate(ctx context.Context, adm *kadm.Client, rep *replica) error {
	meta, err := adm.Metadata(ctx, rep.Topic)
	if err != nil {
		return fmt.Errorf("engine: global table %q: %w", rep.Store, err)
	}
	d := meta.Topics[rep.Topic]
	if d.Err != nil || len(d.Partitions) == 0 {
		return &Error{Kind: ErrMissingTopic, Topic: rep.Topic, Partition: -1, Err: d.Err, Hint: "create it before the start"}
	}
	starts, err := adm.ListStartOffsets(ctx, rep.Topic)
	if err != nil {
		return fmt.Errorf("engine: global table %q: %w", rep.Store, err)
	}
	ends, err := adm.ListCommittedOffsets(ctx, rep.Topic)
	if err != nil {
		return fmt.Errorf("engine: global table %q: %w", rep.Store, err)
	}
	rep.topicID = d.ID
	usable := true
	for p := range d.Partitions {
		start, okStart := starts.Lookup(rep.Topic, p)
		end, okEnd := ends.Lookup(rep.Topic, p)
		if err := errors.Join(start.Err, end.Err); err != nil || !okStart || !okEnd {
			return fmt.Errorf("engine: global table %q: offsets of %s[%d]: %w", rep.Store, rep.Topic, p,
				errors.Join(err, errors.New("not listed")))
		}
		pos, ok, err := rep.r.Position(p)
		if err != nil {
			return err
		}
		rep.next[p], rep.end[p] = start.Offset, end.Offset
		if ok {
			usable = usable && pos.TopicID == rep.topicID && pos.Next >= start.Offset && pos.Next <= end.Offset
			rep.next[p] = pos.Next
		}
	}
	if usable {
		return nil
	}
	g.e.log.Warn("local copy of a global table does not fit its topic: loading it anew",
		zap.String("store", rep.Store), zap.String("topic", rep.Topic))
	if err := rep.r.Clear(); err != nil {
		return err
	}
	for p := range d.Partitions {
		start, _ := starts.Lookup(rep.Topic, p)
		rep.next[p] = start.Offset
	}
	return nil
}

// missing returns how many offsets are left to load.
func (g *globals) missing() int64 {
	var n int64
	for _, rep := range g.replicas {
		n += rep.missing()
	}
	return n
}

// missing returns how many offsets of one topic are left to load.
func (rep *replica) missing() int64 {
	var n int64
	for p, end := range rep.end {
		n += max(0, end-rep.next[p])
	}
	rep.view.remaining.Store(n)
	return n
}

// askedInVain tells whether the leaders of all partitions that are left to load have answered often since.
func (g *globals) askedInVain(since map[int32]int) bool {
	now := g.answers.counts()
	for topic, rep := range g.replicas {
		for p, end := range rep.end {
			if rep.next[p] >= end {
				continue
			}
			leader, _, err := g.cl.PartitionLeader(topic, p)
			if err != nil || now[leader]-since[leader] < globalAnswers {
				return false
			}
		}
	}
	return true
}

// fetchAnswers counts the fetches that each broker has answered.
type fetchAnswers struct {
	mu       sync.Mutex
	byBroker map[int32]int
}

// OnBrokerRead implements kgo.HookBrokerRead.
func (a *fetchAnswers) OnBrokerRead(b kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, err error) {
	if key != int16(kmsg.Fetch) || err != nil {
		return
	}
	a.mu.Lock()
	a.byBroker[b.NodeID]++
	a.mu.Unlock()
}

func (a *fetchAnswers) counts() map[int32]int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.byBroker)
}

// poll applies what one fetch brings, and returns how many offsets it moved by.
func (g *globals) poll(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, globalPollWait)
	defer cancel()
	fetches := g.cl.PollFetches(ctx)
	var moved int64
	var failed error
	fetches.EachError(func(topic string, p int32, err error) {
		if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
			failed = &Error{Kind: ErrOffsetOutOfRange, Topic: topic, Partition: p, Err: err,
				Hint: "the global table is loaded anew at the next start"}
		}
	})
	if failed != nil {
		return 0, failed
	}
	fetches.EachPartition(func(fp kgo.FetchTopicPartition) {
		rep := g.replicas[fp.Topic]
		if failed != nil || rep == nil || len(fp.Records) == 0 {
			return
		}
		last := fp.Records[len(fp.Records)-1]
		records := make([]state.ReplicaRecord, 0, len(fp.Records))
		for _, r := range fp.Records {
			if !r.Attrs.IsControl() {
				records = append(records, state.ReplicaRecord{
					Key: r.Key, Value: r.Value, TimeMillis: r.Timestamp.UnixMilli(),
				})
			}
		}
		at := state.Position{
			TopicID: rep.topicID, Next: last.Offset + 1, LeaderEpoch: last.LeaderEpoch,
			WallMillis: g.e.cfg.Now().UnixMilli(),
		}
		if failed = rep.r.Apply(fp.Partition, records, at); failed == nil {
			moved += at.Next - rep.next[fp.Partition]
			rep.next[fp.Partition] = at.Next
		}
	})
	return moved, failed
}

// follow keeps the replicas up to date. What fails is tried again: tasks go on with what is there.
func (g *globals) follow(ctx context.Context) {
	defer close(g.done)
	for ctx.Err() == nil {
		if _, err := g.poll(ctx); err != nil && ctx.Err() == nil {
			g.e.log.Error("following global tables failed; trying again", zap.Error(err))
			sleep(ctx, globalRetry)
		}
	}
}

// close stops following and closes the replicas.
func (g *globals) close() error {
	if g == nil {
		return nil
	}
	if g.stop != nil {
		g.stop()
	}
	<-g.done
	g.cl.Close()
	var errs []error
	for _, rep := range g.replicas {
		errs = append(errs, rep.backend.Close())
	}
	return errors.Join(errs...)
}
