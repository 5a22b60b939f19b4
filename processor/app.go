package processor

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"tailrace.dev/internal/engine"
	"tailrace.dev/internal/task"
	"tailrace.dev/state"
	"tailrace.dev/state/badger"
	"tailrace.dev/state/memory"
)

// App is a topology at work in this process, as a member of the consumer group that is named by the application's id.
// Start further processes with the same id to share the work.
type App struct {
	id       string
	topology *Topology
	config   Config
	given    Config
	running  atomic.Bool
	engine   atomic.Pointer[engine.Engine] // set by Run
}

// ErrRunning is returned by Run when it is called a second time.
var ErrRunning = errors.New("processor: the App has been run already; make a new one")

// New makes an App. id is the application's id: the name of the consumer group and the prefix of internal topics, and
// so for life. It connects to nothing.
func New(id string, t *Topology, c Config) (*App, error) {
	if err := state.CheckName("application", id); err != nil {
		return nil, fmt.Errorf("processor: %w", err)
	}
	if t == nil {
		return nil, errors.New("processor: the topology is nil")
	}
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("processor: %w", err)
	}
	full, err := c.withDefaults(id)
	if err != nil {
		return nil, err
	}
	return &App{id: id, topology: t, config: full, given: c}, nil
}

// ID returns the application's id.
func (a *App) ID() string { return a.id }

// Topology returns the topology.
func (a *App) Topology() *Topology { return a.topology }

// Config returns the configuration with its defaults filled in.
func (a *App) Config() Config { return a.config }

// Run processes until ctx is cancelled, and then stops cleanly: it commits, writes state to disk and returns nil. Any
// other end is an error, which errors.Is and errors.As tell apart; a bad record is a *TaskError. A broker that cannot
// be reached is waited for.
func (a *App) Run(ctx context.Context) error {
	if a.running.Swap(true) {
		return ErrRunning
	}
	c := a.config
	if len(c.Brokers) == 0 {
		b, err := a.startEmbedded(ctx)
		if err != nil {
			return err
		}
		defer func() {
			if err := b.Close(); err != nil {
				c.Log.Warn("closing the embedded broker failed", zap.Error(err))
			}
		}()
		c.Brokers = b.Addrs()
	}
	c.Log.Info("starting", zap.String("application", a.id), zap.Stringer("config", c))
	seams := engine.SeamsFrom(ctx)
	e, err := engine.New(a.program(c, seams), a.settings(c, seams))
	if err != nil {
		return err
	}
	a.engine.Store(e)
	return e.Run(ctx)
}

// startEmbedded starts a broker that has the topology's topics.
func (a *App) startEmbedded(ctx context.Context) (*EmbeddedBroker, error) {
	c := a.config
	b, err := StartEmbedded(c.Embedded, c.Log)
	if err != nil {
		return nil, err
	}
	var topics []TopicSetup
	for _, name := range a.userTopics() {
		setup := TopicSetup{Name: name, Partitions: c.Embedded.Partitions}
		if a.isFollowed(name) {
			setup.Config = map[string]string{"cleanup.policy": "compact"}
		}
		topics = append(topics, setup)
	}
	if err := EnsureTopics(ctx, b.Addrs(), nil, topics...); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	if c.Events.Embedded != nil {
		c.Events.Embedded(b.Addrs())
	}
	return b, nil
}

// isFollowed tells whether a topic is the changelog of a store.
func (a *App) isFollowed(topic string) bool {
	for _, sub := range a.topology.subs {
		if slices.ContainsFunc(sub.followers(), func(f *follower) bool { return f.source.topic == topic }) {
			return true
		}
	}
	return false
}

// userTopics returns the topics that must exist before the App starts.
func (a *App) userTopics() []string {
	var names []string
	for _, sub := range a.topology.subs {
		for _, src := range sub.sources {
			if src.internal == nil {
				names = append(names, src.topic)
			}
		}
		names = append(names, sub.sinks()...)
	}
	for _, g := range a.topology.globals {
		names = append(names, g.topic)
	}
	names = append(names, a.deadLetterTopics()...)
	slices.Sort(names)
	return slices.Compact(names)
}

func (a *App) deadLetterTopics() []string {
	var names []string
	for _, p := range []ErrorPolicy{a.config.OnDecodeError, a.config.OnProcessError} {
		if p.kind == policyDeadLetter && !slices.Contains(names, p.topic) {
			names = append(names, p.topic)
		}
	}
	return names
}

// program renders the topology for the engine.
func (a *App) program(c Config, seams engine.Seams) engine.Program {
	p := engine.Program{App: a.id, Fingerprint: a.topology.Fingerprint()}
	p.Description = engine.Description{
		Text: a.topology.String(), Mermaid: a.topology.Mermaid(), DOT: a.topology.DOT(),
	}
	fedBy := make(map[string][]string)
	for _, sub := range a.topology.subs {
		for _, n := range sub.nodes {
			if n.kind == "sink" && n.internal != nil && !slices.Contains(fedBy[n.topic], sub.name) {
				fedBy[n.topic] = append(fedBy[n.topic], sub.name)
			}
		}
	}
	for _, sub := range a.topology.subs {
		s := engine.Sub{Name: sub.name, Sinks: append(sub.sinks(), a.deadLetterTopics()...)}
		for _, src := range sub.sources {
			es := engine.Source{Topic: src.brokerTopic(a.id), Start: src.start}
			if src.internal != nil {
				es.Internal, es.Partitions, es.FedBy = true, src.internal.partitions, fedBy[src.topic]
				es.KeySerde, es.ValueSerde = src.keySerde, src.valueSerde
			}
			s.Sources = append(s.Sources, es)
		}
		followed := a.topology.Followed(a.id, sub.name)
		for _, st := range sub.stores {
			es := engine.Store{Name: st.Name(), Kind: st.Kind()}
			es.KeySerde, es.ValueSerde = st.SerdeIDs()
			if i := slices.IndexFunc(followed, func(f Followed) bool { return f.Store == st.Name() }); i >= 0 {
				es.Source, es.Row = followed[i].Topic, followed[i].Row
			} else {
				es.Changelog, es.Config = StoreTopic(a.id, st), st.ChangelogConfig()
				es.Outlives = st.Kind() == state.KindEffects
			}
			s.Stores = append(s.Stores, es)
		}
		p.Subs = append(p.Subs, s)
	}
	opts := TaskOptions{
		OnDecodeError: c.OnDecodeError, OnProcessError: c.OnProcessError, MaxTaskIdle: c.MaxTaskIdle,
		MaxRecordBytes: c.MaxRecordBytes,
		Wrapper:        c.Wrapper, SilentEffects: c.SilentEffects,
		OnSkipped: func(e *TaskError) {
			c.Log.Warn("record left out", zap.Stringer("task", e.Task), zap.String("topic", e.Topic),
				zap.Int32("partition", e.Partition), zap.Int64("offset", e.Offset), zap.String("operator", e.Operator))
			a.countSkipped(e)
			if c.Events.Skipped != nil {
				c.Events.Skipped(e)
			}
		},
	}
	for d := range dropReasons {
		p.DropReasons = append(p.DropReasons, d.String())
	}
	for store, topic := range a.topology.Globals() {
		p.Globals = append(p.Globals, engine.Global{Store: store, Topic: topic})
	}
	p.OpenGlobal = func(_, dir string) (state.Backend, error) {
		if c.InMemory {
			return memory.New(), nil
		}
		return badger.Open(dir, badger.Options{Logger: c.Log})
	}
	p.SetReplicas = func(byStore map[string]*state.Replica) { opts.Replicas = byStore }
	p.NewTask = func(id task.ID, backend state.Backend) (task.Machine, error) {
		return a.topology.NewTask(a.id, id, backend, opts)
	}
	p.DestroyState = badger.Destroy
	p.OpenState = func(id task.ID, dir string) (state.Backend, error) {
		if sub := a.topology.sub(id.Sub); c.InMemory || sub != nil && len(sub.stores) == 0 {
			return memory.New(), nil // a database costs memory, also when it is empty
		}
		return badger.Open(dir, badger.Options{Logger: c.Log, FreeBytes: seams.FreeBytes})
	}
	return p
}

// settings renders the configuration for the engine.
func (a *App) settings(c Config, seams engine.Seams) engine.Settings {
	s := engine.Settings{
		Brokers: c.Brokers, Kafka: c.Kafka, InstanceID: c.InstanceID, TransactionalID: c.TransactionalID,
		InMemory: c.InMemory, ExactlyOnce: !c.AtLeastOnce, Workers: c.Workers, MaxCalls: c.MaxCalls,
		CommitInterval: c.CommitInterval, TransactionTimeout: c.TransactionTimeout, SessionTimeout: c.SessionTimeout,
		HeartbeatInterval: min(c.SessionTimeout/10, time.Second), RebalanceTimeout: c.RebalanceTimeout,
		LeaveOnStop: c.LeaveOnStop, QueueRecords: c.QueueRecords, QueueBytes: c.QueueBytes,
		FetchMaxBytes: int32(c.FetchMaxBytes), FetchMaxPartitionBytes: int32(c.FetchMaxPartitionBytes),
		MaxDecompressBytes: c.MaxDecompressBytes, MaxRecordBytes: int32(c.MaxRecordBytes),
		StateBytes: c.StateBytes, FlushBytes: c.FlushBytes, FlushInterval: c.FlushInterval,
		ReplicationFactor: int16(c.ReplicationFactor), PurgeInterval: c.PurgeInterval,
		TopicCheck: c.TopicCheckInterval, AcceptStateLoss: c.AcceptStateLoss,
		Standbys: c.Standbys, WarmupLag: c.WarmupLag, MaxWarmups: c.MaxWarmups, CleanupDelay: c.StateCleanupDelay,
		OnOutOfRange: c.OnOutOfRange, AcceptTopologyChange: c.AcceptTopologyChange, Metrics: c.Metrics, ReadyLag: c.ReadyLag,
		Log: c.Log, Events: c.Events.engine(), Seams: seams,
	}
	if c.StateDir != "" {
		s.StateDir = filepath.Join(c.StateDir, a.id)
	}
	return s
}
