package sim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/internal/embedded"
	"tailrace.dev/internal/engine"
	"tailrace.dev/processor"
)

// The simulation in virtual time: the real engine, its Kafka client, the embedded broker and the local database, in a
// bubble in which time passes only while everybody waits. The seed makes the plan; in which order goroutines run is the
// runtime's business, so that a seed does not give the same run again.

// netRun is one run.
type netRun struct {
	t          *testing.T
	seed       uint64
	w          *workload
	partitions int
	brokers    int
	standbys   int
	// purge lets the engine purge the topics between sub-topologies. Leaders do not move then: where nothing is left of a
	// partition, the broker in the process does not know how far an earlier leader epoch went, and the client takes that
	// for loss. (Kafka does know.)
	purge   bool
	defect  engine.Defect
	broker  *embedded.Broker
	network *kfake.VirtualNetwork
	cl      *kgo.Client
	adm     *kadm.Client
	members []*netMember
	rates   netRates
	calm    atomic.Bool // no faults any more

	mu      sync.Mutex // guards all below
	r       *rand.Rand
	began   time.Time
	trace   []string
	last    map[tp]int64 // the last record of the input that is not aborted
	crashes int
	faults  int
	bad     complaints
	why     string // it cannot be judged
}

// netRates are how often faults happen, in a million.
type netRates struct {
	crash, fail, delay, cut int // of points passed, and of reads from a connection
}

// netMember is a member of the application on a machine of its own.
type netMember struct {
	run    *netRun
	name   string
	config processor.Config
	cancel context.CancelFunc
	done   chan struct{} // nil: not running; closed: it ended with err
	err    error
}

const (
	netFaultTime = 40 * time.Second // virtual time in which things go wrong
	netHealTime  = 5 * time.Minute  // virtual time that healing may take
	netLimit     = 2 * time.Hour    // virtual time of a run
	netTrace     = 150              // lines
)

func newNetRun(t *testing.T, seed uint64, d engine.Defect) *netRun {
	n := &netRun{t: t, seed: seed, defect: d, r: rand.New(rand.NewPCG(seed, 0x2e7)), began: time.Now()}
	pick := func(of ...int) int { return of[n.r.IntN(len(of))] }
	all := workloads()
	n.w = all[n.r.IntN(len(all))]
	n.partitions, n.brokers, n.standbys = 1+n.r.IntN(3), 1+n.r.IntN(2), n.r.IntN(2)
	n.rates = netRates{
		crash: pick(0, 1_000, 5_000), fail: pick(0, 500, 3_000), delay: pick(0, 2_000, 10_000), cut: pick(0, 200, 1_000),
	}
	n.network = &kfake.VirtualNetwork{}
	n.purge, n.last = len(n.w.internal) > 0 && n.r.IntN(2) == 0, map[tp]int64{}
	return n
}

// say adds a line to the trace.
func (n *netRun) say(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.trace) >= 2*netTrace {
		n.trace = slices.Delete(n.trace, 0, netTrace)
	}
	n.trace = append(n.trace, fmt.Sprintf("%8.3f ", time.Since(n.began).Seconds())+fmt.Sprintf(format, args...))
}

// giveUp ends a run that cannot be judged.
func (n *netRun) giveUp(format string, args ...any) {
	n.mu.Lock()
	n.why = fmt.Sprintf(format, args...)
	n.mu.Unlock()
	n.say("given up: "+format, args...)
}

func (n *netRun) find(format string, args ...any) {
	n.mu.Lock()
	n.bad.add(format, args...)
	n.mu.Unlock()
	n.say("FOUND: "+format, args...)
}

// chance tells whether something happens that does so rate times in a million.
func (n *netRun) chance(rate int) bool {
	if n.calm.Load() || rate == 0 {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.r.IntN(million) < rate
}

func (n *netRun) intN(k int) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.r.IntN(k)
}

func (n *netRun) upTo(d time.Duration) time.Duration { return time.Duration(n.intN(int(d))) }

// dial connects to a broker of the bubble, over a connection that breaks now and then: what was asked by then may have
// been done or not.
func (n *netRun) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := n.network.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &brittle{c, n}, nil
}

type brittle struct {
	net.Conn
	n *netRun
}

// Read implements net.Conn.
func (b *brittle) Read(p []byte) (int, error) {
	got, err := b.Conn.Read(p)
	if err == nil && b.n.chance(b.n.rates.cut) {
		b.n.say("a connection breaks")
		_ = b.Conn.Close() // of a pipe: it does not fail
		return 0, io.ErrUnexpectedEOF
	}
	return got, err
}

// run goes through the faulty part, the healing, the clean end, and the verdict, inside of a bubble.
func (n *netRun) run() {
	time.Sleep(time.Until(time.UnixMilli(epoch)))
	n.began = time.Now()
	// What never ends would go on in virtual time without anybody noticing.
	defer time.AfterFunc(netLimit, func() {
		n.mu.Lock()
		panic(fmt.Sprintf("seed %d does not end:\n  %s", n.seed, strings.Join(n.trace, "\n  ")))
	}).Stop()
	if err := n.open(); err != nil {
		n.find("cannot start: %v", err)
		return
	}
	defer n.close()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { n.feed(ctx) })
	wg.Go(func() { n.annoy(ctx) })
	wg.Go(func() { n.manage(ctx) })
	time.Sleep(netFaultTime)
	n.say("healing")
	n.calm.Store(true)
	cancel()
	wg.Wait()
	quiet := false
	if n.why == "" {
		n.finishInput()
		for _, m := range n.members {
			m.settle()
		}
		quiet = n.waitQuiet()
	}
	for _, m := range n.members {
		if err := m.stop(); err != nil && !errors.Is(err, engine.ErrCrash) {
			n.find("%s did not stop cleanly: %v", m.name, err)
		}
	}
	if quiet {
		n.judge()
	}
}

// open starts the broker and makes the topics.
func (n *netRun) open() error {
	var err error
	n.broker, err = embedded.Start(embedded.Options{
		Port: 9092, Brokers: n.brokers, Partitions: n.partitions,
		Extra: []kfake.Opt{kfake.ListenFn(n.network.Listen), kfake.GroupMinSessionTimeout(time.Second)},
	})
	if err != nil {
		return err
	}
	n.cl, err = kgo.NewClient(kgo.SeedBrokers(n.broker.Addrs()...), kgo.Dialer(n.network.DialContext),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MetadataMinAge(50*time.Millisecond), kgo.ProducerLinger(0))
	if err != nil {
		return err
	}
	n.adm = kadm.NewClient(n.cl)
	for _, topic := range append(slices.Clone(n.w.inputs), "out") {
		configs := map[string]*string{}
		if n.w.name == "stream-source" && topic == "right" {
			configs["cleanup.policy"] = kadm.StringPtr("compact")
		}
		if _, err := n.adm.CreateTopic(context.Background(), int32(n.partitions), -1, configs, topic); err != nil {
			return err
		}
	}
	for i := range 1 + n.intN(3) {
		m := &netMember{run: n, name: string(rune('A' + i))}
		m.config = processor.Config{
			Brokers: n.broker.Addrs(), Kafka: []kgo.Opt{kgo.Dialer(n.dial)}, StateDir: filepath.Join(n.t.TempDir(), m.name),
			Workers: 2, CommitInterval: 50 * time.Millisecond, FlushInterval: 300 * time.Millisecond,
			SessionTimeout: 6 * time.Second, RebalanceTimeout: 10 * time.Second, TransactionTimeout: 8 * time.Second,
			TopicCheckInterval: 2 * time.Second, PurgeInterval: time.Hour, Standbys: n.standbys, WarmupLag: 10, MaxWarmups: 1,
		}
		if n.purge {
			m.config.PurgeInterval = time.Second
		}
		if n.w.ordered {
			m.config.MaxTaskIdle = maxIdle
		} else {
			m.config.MaxTaskIdle = -1
		}
		n.members = append(n.members, m)
	}
	n.say("seed %d: %s, %d partitions, %d brokers, %d members, standbys %d", n.seed, n.w.name, n.partitions, n.brokers,
		len(n.members), n.standbys)
	return nil
}

func (n *netRun) close() {
	n.cl.Close()
	if err := n.broker.Close(); err != nil {
		n.find("close the broker: %v", err)
	}
}

// at is the seam of a member: it may die, fail or dawdle at any point of the protocol.
func (m *netMember) at(point string) error {
	n := m.run
	switch {
	case n.chance(n.rates.crash):
		n.say("%s: killed at %s", m.name, point)
		n.mu.Lock()
		n.crashes++
		n.mu.Unlock()
		return engine.ErrCrash
	case n.chance(n.rates.fail):
		n.say("%s: fails at %s", m.name, point)
		return errors.New("a failure that was made up")
	case n.chance(n.rates.delay):
		d := n.upTo(500 * time.Millisecond)
		if n.intN(8) == 0 {
			d = n.upTo(14 * time.Second) // longer than its session, and than its transaction may take
		}
		n.say("%s: held at %s for %v", m.name, point, d.Round(time.Millisecond))
		time.Sleep(d)
	}
	return nil
}

// start runs the member, if it does not run.
func (m *netMember) start() {
	if m.done != nil {
		return
	}
	a, err := processor.New(app, m.run.w.topology, m.config)
	if err != nil {
		m.run.find("%s: %v", m.name, err)
		return
	}
	ctx, cancel := context.WithCancel(engine.WithSeams(context.Background(), engine.Seams{At: m.at, Defect: m.run.defect}))
	m.cancel, m.done = cancel, make(chan struct{})
	m.run.say("%s: starts", m.name)
	go func() {
		defer close(m.done)
		m.err = a.Run(ctx)
		m.run.say("%s: ended: %v", m.name, m.err)
	}()
}

// reap takes notice of a member that ended by itself. Nothing but a crash may end one.
func (m *netMember) reap() {
	if m.done == nil {
		return
	}
	select {
	case <-m.done:
		m.cancel()
		m.done = nil
		if m.err != nil && !errors.Is(m.err, engine.ErrCrash) && !errors.Is(m.err, processor.ErrUncommitted) {
			m.run.find("%s ended: %v", m.name, m.err)
		}
	default:
	}
}

func (m *netMember) stop() error {
	if m.done == nil {
		return nil
	}
	m.cancel()
	<-m.done
	m.done = nil
	return m.err
}

// settle makes sure that the member runs. A crash that began before may still come to light.
func (m *netMember) settle() {
	time.Sleep(20 * time.Second)
	m.reap()
	m.start()
}

// manage starts members, stops them, and starts them again when they died.
func (n *netRun) manage(ctx context.Context) {
	for ctx.Err() == nil {
		m := n.members[n.intN(len(n.members))]
		m.reap()
		switch {
		case m.done == nil:
			m.start()
		case n.intN(20) == 0:
			n.say("%s: is asked to stop", m.name)
			if err := m.stop(); err != nil && !errors.Is(err, engine.ErrCrash) && !errors.Is(err, processor.ErrUncommitted) {
				n.find("%s did not stop cleanly: %v", m.name, err)
			}
		}
		pause(ctx, n.upTo(600*time.Millisecond))
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// waitQuiet waits until the group has processed everything.
func (n *netRun) waitQuiet() bool {
	why := ""
	for end := time.Now().Add(netHealTime); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		for _, m := range n.members {
			m.reap()
			m.start() // a crash at the last moment
		}
		if why = n.unsettled(); why == "" {
			return true
		}
	}
	n.find("does not come to rest: %s", why)
	return false
}

func (n *netRun) unsettled() string {
	ctx := context.Background()
	topics := append(slices.Clone(n.w.inputs), n.w.internal...)
	committed, err := n.adm.FetchOffsets(ctx, app)
	if err != nil {
		return err.Error()
	}
	stable, err := n.adm.ListCommittedOffsets(ctx, topics...)
	if err != nil {
		return err.Error()
	}
	ends, err := n.adm.ListEndOffsets(ctx, topics...)
	if err != nil {
		return err.Error()
	}
	for _, topic := range topics {
		for p := range int32(n.partitions) {
			s, ok1 := stable.Lookup(topic, p)
			e, ok2 := ends.Lookup(topic, p)
			if !ok1 || !ok2 || s.Offset != e.Offset {
				return fmt.Sprintf("%s[%d] has something open", topic, p)
			}
			want := e.Offset
			if n.w.ordered {
				n.mu.Lock()
				want = n.last[tp{topic, p}] // the record that ends the input waits for the other one
				n.mu.Unlock()
			}
			if c, ok := committed.Lookup(topic, p); want > 0 && (!ok || c.At < want) {
				return fmt.Sprintf("%s[%d] is processed up to %d, not %d", topic, p, c.At, want)
			}
		}
	}
	return ""
}

// netReport is what a run tells.
type netReport struct {
	Workload string
	Crashes  int
	Faults   int
	Bad      []string
	Trace    []string
	Why      string // it tells nothing
}

// Each run is a process of its own. The Kafka client holds a mutex while it waits for an answer, and virtual time takes
// one that waits for a mutex for one that runs: about one run in 300 stands still for ever, and only a process can be
// ended then.
const (
	envNetPlan   = "SIM_NET_PLAN"   // the seed and the defect of the run that this process is
	envNetReport = "SIM_NET_REPORT" // the file that it writes its report to
	// netPatience is real time: a run takes a second of CPU.
	netPatience = 2 * time.Minute
)

// TestNetRun is a run, if this process is one.
func TestNetRun(t *testing.T) {
	plan := os.Getenv(envNetPlan)
	if plan == "" {
		t.Skip("TestNet runs it")
	}
	var seed uint64
	var d engine.Defect
	if _, err := fmt.Sscan(plan, &seed, &d); err != nil {
		t.Fatal(err)
	}
	var n *netRun
	synctest.Test(t, func(t *testing.T) {
		n = newNetRun(t, seed, d)
		n.run()
	})
	b, err := json.Marshal(netReport{
		Workload: n.w.name, Crashes: n.crashes, Faults: n.faults, Bad: n.bad, Trace: n.trace, Why: n.why,
	})
	if err == nil {
		err = os.WriteFile(os.Getenv(envNetReport), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// runNet makes one run, and returns what it tells.
func runNet(t *testing.T, seed uint64, d engine.Defect) (r netReport) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "report")
	ctx, cancel := context.WithTimeout(t.Context(), netPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestNetRun$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %d", envNetPlan, seed, d), envNetReport+"="+file)
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return netReport{Why: fmt.Sprintf("it stands still after %v", netPatience)}
	}
	if err != nil {
		t.Fatalf("seed %d: %v\n%s", seed, err, out)
	}
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		t.Fatalf("seed %d: %v\n%s", seed, err, out)
	}
	return r
}

// TestNet runs the simulation in virtual time over many seeds.
func TestNet(t *testing.T) {
	t.Parallel()
	first, runs := uint64(fromEnv(t, envSeed, 1)), fromEnv(t, envNetRuns, 6)
	if testing.Short() {
		runs = min(runs, 2)
	}
	began := time.Now()
	var crashes, faults, vain atomic.Int64
	t.Run("seeds", func(t *testing.T) {
		for i := range runs {
			seed := first + uint64(i)
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				r := runNet(t, seed, engine.NoDefect)
				crashes.Add(int64(r.Crashes))
				faults.Add(int64(r.Faults))
				if r.Why != "" {
					vain.Add(1)
					t.Logf("seed %d tells nothing: %s", seed, r.Why)
					return
				}
				if len(r.Bad) > 0 {
					t.Errorf("seed %d, workload %s:\n  %s\nlast events (seconds):\n  %s\nthe same plan: make sim-net SEED=%d NET_RUNS=1",
						seed, r.Workload, strings.Join(r.Bad, "\n  "), strings.Join(r.Trace, "\n  "), seed)
				}
			})
		}
	})
	t.Logf("seeds %d to %d in %v: %d members killed, %d faults in the broker, %d runs in vain", first, first+uint64(runs)-1,
		time.Since(began).Round(time.Millisecond), crashes.Load(), faults.Load(), vain.Load())
	if vain.Load() > int64(1+runs/50) {
		t.Errorf("%d of %d runs told nothing", vain.Load(), runs)
	}
}

// TestNetFindsDefects breaks a rule of the engine. That must be found within a bounded number of seeds.
func TestNetFindsDefects(t *testing.T) {
	t.Parallel()
	const most = 25
	for name, d := range map[string]engine.Defect{"apply-first": engine.ApplyFirst, "commit-polled": engine.CommitPolled} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := uint64(1000); seed < 1000+most; seed++ {
				if r := runNet(t, seed, d); len(r.Bad) > 0 && r.Why == "" {
					t.Logf("found by seed %d, workload %s: %s", seed, r.Workload, r.Bad[0])
					return
				}
			}
			t.Errorf("not found by %d seeds", most)
		})
	}
}
