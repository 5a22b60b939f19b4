package engine

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"tailrace.dev/internal/task"
	"tailrace.dev/state"
	"tailrace.dev/state/memory"
)

// The tests wait for brokers, timeouts and sessions most of the time: more of them at once do not need more cores.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// cluster is a broker with a client to look into it.
type cluster struct {
	t     *testing.T
	ns    string // goes before every name, on a cluster that others use too
	fake  *kfake.Cluster
	addrs []string
	cl    *kgo.Client
	adm   *kadm.Client
}

// realCluster returns a real cluster where the tests are built for one, else nil.
var realCluster func(t *testing.T) *cluster

// newCluster returns a broker of the test's own. With options, or where real is not said, it is a fake one.
func newCluster(t *testing.T, opts ...kfake.Opt) *cluster {
	t.Helper()
	if realCluster != nil && len(opts) == 0 {
		c := realCluster(t)
		c.connect()
		return c
	}
	fake, err := kfake.NewCluster(append([]kfake.Opt{
		kfake.NumBrokers(1),
		kfake.BrokerConfigs(map[string]string{"log.cleaner.backoff.ms": "86400000"}),
	}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	c := &cluster{t: t, fake: fake, addrs: fake.ListenAddrs()}
	c.connect()
	return c
}

func (c *cluster) connect() {
	c.t.Helper()
	var err error
	c.cl, err = kgo.NewClient(kgo.SeedBrokers(c.addrs...), kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		c.t.Fatal(err)
	}
	c.adm = kadm.NewClient(c.cl)
	c.t.Cleanup(c.cl.Close)
}

// onlyFake skips a test that needs what only the fake broker can do.
func (c *cluster) onlyFake() {
	if c.fake == nil {
		c.t.Skip("needs a fake broker: it injects what a real one does not do when asked")
	}
}

func (c *cluster) topic(name string, partitions int32) {
	c.t.Helper()
	resp, err := c.adm.CreateTopics(c.t.Context(), partitions, 1, nil, c.ns+name)
	if err == nil {
		err = resp[c.ns+name].Err
	}
	if err != nil {
		c.t.Fatal(err)
	}
	c.visible(name)
}

// remake deletes a topic, if it is there, and makes it anew with a cleanup policy. A real broker does both in the
// background.
func (c *cluster) remake(name string, partitions int32, policy string) {
	c.t.Helper()
	if _, err := c.adm.DeleteTopics(c.t.Context(), c.ns+name); err != nil {
		c.t.Fatal(err)
	}
	c.cl.PurgeTopicsFromClient(c.ns + name)
	until(c.t, "topic "+name+" to be made anew", func() bool {
		config := map[string]*string{"cleanup.policy": kadm.StringPtr(policy)}
		resp, err := c.adm.CreateTopics(c.t.Context(), partitions, 1, config, c.ns+name)
		return err == nil && resp[c.ns+name].Err == nil
	})
	until(c.t, "topic "+name, func() bool {
		offsets, err := c.adm.ListEndOffsets(c.t.Context(), c.ns+name)
		return err == nil && offsets.Error() == nil && len(offsets[c.ns+name]) == int(partitions)
	})
}

// visible waits until the broker tells of a topic.
func (c *cluster) visible(name string) {
	c.t.Helper()
	until(c.t, "topic "+name, func() bool {
		offsets, err := c.adm.ListEndOffsets(c.t.Context(), c.ns+name)
		return err == nil && offsets.Error() == nil && len(offsets[c.ns+name]) > 0
	})
}

// feedEpoch is when the records of the tests begin; a broker's retention must not reach it.
var feedEpoch = time.Now()

// feed produces n records to a topic, over the given number of keys in turn. from is the sequence number of the first.
func (c *cluster) feed(topic string, from, n, keys int) {
	c.t.Helper()
	var records []*kgo.Record
	for i := from; i < from+n; i++ {
		records = append(records, &kgo.Record{
			Topic: c.ns + topic, Key: []byte("key-" + strconv.Itoa(i%keys)), Value: []byte(strconv.Itoa(i)),
			Timestamp: feedEpoch.Add(time.Duration(i) * time.Millisecond),
		})
	}
	if err := c.cl.ProduceSync(c.t.Context(), records...).FirstErr(); err != nil {
		c.t.Fatal(err)
	}
}

// read returns the committed records of a topic, once there are at least want of them, or what there is after a while.
func (c *cluster) read(topic string, want int) []*kgo.Record {
	c.t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.addrs...), kgo.ConsumeTopics(c.ns+topic),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		c.t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
	defer cancel()
	var out []*kgo.Record
	for len(out) < want {
		fetches := cl.PollFetches(ctx)
		out = append(out, fetches.Records()...)
		if ctx.Err() != nil {
			break
		}
	}
	// More than expected would be as wrong as less.
	ctx, cancel = context.WithTimeout(c.t.Context(), 150*time.Millisecond)
	defer cancel()
	for ctx.Err() == nil {
		fetches := cl.PollFetches(ctx)
		out = append(out, fetches.Records()...)
	}
	return out
}

// verifyCounts checks that the outputs of each key are 1, 2, 3 … n, in order, and that there are total of them.
func (c *cluster) verifyCounts(topic string, total int) {
	c.t.Helper()
	got := c.read(topic, total)
	if len(got) != total {
		c.t.Errorf("%d outputs, want %d", len(got), total)
	}
	last := map[string]int{}
	for _, r := range got {
		n, err := strconv.Atoi(string(r.Value))
		if err != nil {
			c.t.Fatal(err)
		}
		if n != last[string(r.Key)]+1 {
			c.t.Fatalf("key %s: %d after %d (partition %d offset %d)", r.Key, n, last[string(r.Key)], r.Partition, r.Offset)
		}
		last[string(r.Key)] = n
	}
}

// disk keeps in-memory backends by directory over restarts, as files would be.
type disk struct {
	mu       sync.Mutex
	backends map[task.ID]*memory.Backend
	failing  map[task.ID][]error // of the next writes
}

// kept is a backend that outlives its closing.
type kept struct {
	*memory.Backend
	d  *disk
	id task.ID
}

func (kept) Close() error { return nil }

func (k kept) Write(w state.Write) error {
	k.d.mu.Lock()
	var err error
	if errs := k.d.failing[k.id]; len(errs) > 0 {
		err, k.d.failing[k.id] = errs[0], errs[1:]
	}
	k.d.mu.Unlock()
	if err != nil {
		return err
	}
	return k.Backend.Write(w)
}

// healthy tells whether no write is going to fail.
func (d *disk) healthy(id task.ID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.failing[id]) == 0
}

// clear forgets all rows, of tasks that nobody has open.
func (d *disk) clear() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.backends)
}

// backend returns the rows of a task, or nil.
func (d *disk) backend(id task.ID) *memory.Backend {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.backends[id]
}

// position returns how far the counts of a task are, or -1.
func (d *disk) position(t *testing.T, id task.ID) int64 {
	t.Helper()
	b := d.backend(id)
	if b == nil {
		return -1
	}
	store, err := b.Register(countStore)
	if err != nil {
		t.Fatal(err)
	}
	pos, ok, err := b.Position(store)
	if err != nil {
		t.Fatal(err)
	}
	if !ok {
		return -1
	}
	return pos.Next
}

func (d *disk) open(id task.ID, dir string) (state.Backend, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.backends == nil {
		d.backends = map[task.ID]*memory.Backend{}
	}
	if dir != "" {
		// A directory that was removed took the rows with it.
		if _, err := os.Stat(dir + "/present"); err != nil {
			delete(d.backends, id)
			if err := os.WriteFile(dir+"/present", nil, 0o600); err != nil {
				return nil, err
			}
		}
	}
	b := d.backends[id]
	if b == nil {
		b = memory.New()
		d.backends[id] = b
	}
	return kept{b, d, id}, nil
}

// rig is an application under test: what outlives its processes.
type rig struct {
	c        *cluster
	program  Program
	settings Settings
	disk     *disk
	perStep  func(task.Record) error

	mu       sync.Mutex
	states   []string
	commits  []CommitInfo
	aborted  []error
	rebuilt  []error
	assigned []task.ID
	restored map[task.ID]int64
}

// countProgram is one sub-topology that counts the records of "in" by key into "out".
func countProgram(app string) Program {
	return Program{
		App: app, Fingerprint: "f1",
		Subs: []Sub{{
			Name: "in", Sources: []Source{{Topic: "in"}}, Sinks: []string{"out"},
			Stores: []Store{{
				Name: countStore, Changelog: app + "-counts-changelog", Config: map[string]string{"cleanup.policy": "compact"},
			}},
		}},
	}
}

// within puts a prefix before every name of the program that others on the cluster could see.
func (p Program) within(ns string) Program {
	p.App = ns + p.App
	p.Subs = slices.Clone(p.Subs)
	for i := range p.Subs {
		sub := &p.Subs[i]
		sub.Sources, sub.Sinks, sub.Stores = slices.Clone(sub.Sources), slices.Clone(sub.Sinks), slices.Clone(sub.Stores)
		for j := range sub.Sources {
			sub.Sources[j].Topic = ns + sub.Sources[j].Topic
		}
		for j := range sub.Sinks {
			sub.Sinks[j] = ns + sub.Sinks[j]
		}
		for j := range sub.Stores {
			sub.Stores[j].Changelog = ns + sub.Stores[j].Changelog
		}
	}
	return p
}

func newRig(t *testing.T, c *cluster, program Program) *rig {
	t.Helper()
	program = program.within(c.ns)
	r := &rig{c: c, program: program, disk: &disk{}, restored: map[task.ID]int64{}}
	subs := map[string]*Sub{}
	for i := range program.Subs {
		subs[program.Subs[i].Name] = &program.Subs[i]
	}
	r.program.OpenState = r.disk.open
	r.program.NewTask = func(id task.ID, backend state.Backend) (task.Machine, error) {
		sub := subs[id.Sub]
		out := ""
		if len(sub.Sinks) > 0 {
			out = sub.Sinks[0]
		}
		m, err := newCounter(id, backend, topicNames(sub), out, len(sub.Stores) > 0)
		if err == nil {
			m.perStep = r.perStep
		}
		return m, err
	}
	r.settings = Settings{
		Brokers: c.addrs, InstanceID: program.App + "-1", TransactionalID: program.App + "-1",
		StateDir: t.TempDir() + "/" + program.App, ExactlyOnce: true, Workers: 2, CommitInterval: 20 * time.Millisecond,
		TransactionTimeout: 10 * time.Second, SessionTimeout: 6 * time.Second, HeartbeatInterval: 100 * time.Millisecond,
		RebalanceTimeout: 10 * time.Second, QueueRecords: 2000, QueueBytes: 1 << 20,
		StateBytes: 64 << 20, FlushBytes: 1 << 20, FlushInterval: 100 * time.Millisecond, ReplicationFactor: 1,
		PurgeInterval: time.Second, TopicCheck: time.Second, Log: testLog(t), Now: time.Now,
		Events: Events{
			State:     func(_, to string) { r.note(func() { r.states = append(r.states, to) }) },
			Committed: func(ci CommitInfo) { r.note(func() { r.commits = append(r.commits, ci) }) },
			Aborted:   func(err error) { r.note(func() { r.aborted = append(r.aborted, err) }) },
			Rebuilt:   func(err error) { r.note(func() { r.rebuilt = append(r.rebuilt, err) }) },
			TasksChanged: func(in, _ []task.ID) {
				r.note(func() { r.assigned = append(r.assigned, in...) })
			},
			RestoreDone: func(id task.ID, _ string, n int64, _ time.Duration) { r.note(func() { r.restored[id] += n }) },
		},
	}
	return r
}

func (r *rig) note(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

func testLog(t *testing.T) *zap.Logger {
	if os.Getenv("ENGINE_TEST_LOG") != "" {
		return zaptest.NewLogger(t)
	}
	return zap.NewNop()
}

// process is a run of an engine.
type process struct {
	t      *testing.T
	e      *Engine
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

func (r *rig) start(t *testing.T, change ...func(*Settings)) *process {
	t.Helper()
	settings := r.settings
	for _, f := range change {
		f(&settings)
	}
	e, err := New(r.program, settings)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{t: t, e: e, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = e.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		_ = p.wait() // the test has looked at it if it cares
	})
	return p
}

// wait waits for the end of the process and returns its error.
func (p *process) wait() error {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		panic("the engine does not end")
	}
	return p.err
}

// stop ends the process cleanly.
func (p *process) stop() {
	p.t.Helper()
	p.cancel()
	if err := p.wait(); err != nil {
		p.t.Errorf("stop: %v", err)
	}
}

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long for %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// committed returns the sum of the committed offsets of a group in a topic.
func (c *cluster) committed(group, topic string) int64 {
	offsets, err := c.adm.FetchOffsets(c.t.Context(), c.ns+group)
	if err != nil {
		return -1
	}
	var sum int64
	for _, o := range offsets[c.ns+topic] {
		sum += o.At
	}
	return sum
}

// crashAt returns a seam that crashes when the named point is passed for the nth time.
func crashAt(point string, nth int) func(string) error {
	var mu sync.Mutex
	seen := 0
	return func(at string) error {
		if at != point {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		if seen++; seen == nth {
			return fmt.Errorf("%w at %s", ErrCrash, point)
		}
		return nil
	}
}

func isKind(t *testing.T, err, kind error) *Error {
	t.Helper()
	var typed *Error
	if !errors.Is(err, kind) || !errors.As(err, &typed) {
		t.Fatalf("error %v, want one of kind %q", err, kind)
	}
	return typed
}
