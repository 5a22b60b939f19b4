package embedded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

const childEnv = "TAILRACE_EMBEDDED_CHILD"

// TestMain lets the test binary play a second process.
func TestMain(m *testing.M) {
	if job := os.Getenv(childEnv); job != "" {
		if err := child(job, os.Args[len(os.Args)-1]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child starts a broker in a directory or produces a record to a broker, as the job says.
func child(job, arg string) error {
	switch job {
	case "start":
		b, err := Start(Options{Dir: arg})
		if err != nil {
			return err
		}
		return b.Close()
	case "produce":
		cl, err := kgo.NewClient(kgo.SeedBrokers(arg), kgo.DefaultProduceTopic("events"))
		if err != nil {
			return err
		}
		defer cl.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		return cl.ProduceSync(ctx, kgo.StringRecord("from the child")).FirstErr()
	default:
		return fmt.Errorf("no such job: %q", job)
	}
}

func runChild(t *testing.T, job, arg string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], arg)
	cmd.Env = append(os.Environ(), childEnv+"="+job)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func start(t testing.TB, o Options) *Broker {
	t.Helper()
	b, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func client(t testing.TB, b *Broker, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(b.Addrs()...)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// read returns the values of the first n records of the topic.
func read(t *testing.T, b *Broker, topic string, n int) []string {
	t.Helper()
	ctx := testContext(t)
	cl := client(t, b, kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	var values []string
	for len(values) < n {
		fs := cl.PollFetches(ctx)
		if err := fs.Err(); err != nil {
			t.Fatalf("after %d of %d records: %v", len(values), n, err)
		}
		fs.EachRecord(func(r *kgo.Record) { values = append(values, string(r.Value)) })
	}
	return values
}

func TestStartInMemory(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	b := start(t, Options{
		Logger: zap.New(core),
		Topics: []Topic{
			{Name: "events", Partitions: 3}, {Name: "table", Configs: map[string]string{"cleanup.policy": "compact"}},
		},
	})
	for _, addr := range b.Addrs() {
		host, _, err := net.SplitHostPort(addr)
		if err != nil || !net.ParseIP(host).IsLoopback() {
			t.Errorf("address %q is not on the loopback interface", addr)
		}
	}
	if got := logs.FilterMessageSnippet("not for production").Len(); got != 1 {
		t.Errorf("the banner was printed %d times", got)
	}
	adm := kadm.NewClient(client(t, b))
	topics, err := adm.ListTopics(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if got := len(topics["events"].Partitions); got != 3 {
		t.Errorf("events has %d partitions", got)
	}
	if got := len(topics["table"].Partitions); got != defaultPartitions {
		t.Errorf("table has %d partitions", got)
	}
	if err := client(t, b, kgo.DefaultProduceTopic("events")).
		ProduceSync(testContext(t), kgo.StringRecord("a")).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if got := read(t, b, "events", 1); !slices.Equal(got, []string{"a"}) {
		t.Errorf("read %q", got)
	}
}

func TestBrokersAndPorts(t *testing.T) {
	b := start(t, Options{Brokers: 3})
	if len(b.Addrs()) != 3 {
		t.Errorf("three brokers have the addresses %v", b.Addrs())
	}
	if _, err := Start(Options{Port: firstPort(t, b)}); err == nil {
		t.Error("a second broker got the port of the first")
	}
}

// firstPort is the port of the first broker.
func firstPort(t *testing.T, b *Broker) int {
	t.Helper()
	a, err := net.ResolveTCPAddr("tcp", b.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	return a.Port
}

func TestNoTopicUnasked(t *testing.T) {
	for _, auto := range []bool{false, true} {
		b := start(t, Options{AutoCreate: auto})
		cl := client(t, b, kgo.AllowAutoTopicCreation(), kgo.UnknownTopicRetries(1), kgo.DefaultProduceTopic("new"))
		err := cl.ProduceSync(testContext(t), kgo.StringRecord("a")).FirstErr()
		if auto && err != nil {
			t.Errorf("auto creation on: %v", err)
		}
		if !auto && !errors.Is(err, kerr.UnknownTopicOrPartition) {
			t.Errorf("auto creation off: %v", err)
		}
	}
}

func TestBadOptions(t *testing.T) {
	for name, o := range map[string]Options{
		"port":            {Port: 70000},
		"brokers":         {Brokers: 99},
		"partitions":      {Partitions: -1},
		"topic name":      {Topics: []Topic{{Name: "../x"}}},
		"topic config":    {Topics: []Topic{{Name: "x", Configs: map[string]string{"cleanup.polcy": "compact"}}}},
		"config value":    {Topics: []Topic{{Name: "x", Configs: map[string]string{"retention.ms": "a day"}}}},
		"topic partition": {Topics: []Topic{{Name: "x", Partitions: -2}}},
	} {
		if b, err := Start(o); err == nil {
			t.Errorf("%s: accepted", name)
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		} else if !strings.HasPrefix(err.Error(), "embedded: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRestart writes in every way that leaves a trace on disk, restarts and looks for it: committed and aborted
// transactions, one that was open, group offsets, topic ids, a transactional id.
func TestRestart(t *testing.T) {
	for _, nosync := range []bool{false, true} {
		t.Run(fmt.Sprintf("nosync=%v", nosync), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "broker")
			o := Options{Dir: dir, NoSync: nosync, Topics: []Topic{{Name: "events", Partitions: 1}}}
			ctx := testContext(t)
			b := start(t, o)
			id := b.Cluster().TopicInfo("events").TopicID
			cl := client(t, b, kgo.DefaultProduceTopic("events"), kgo.TransactionalID("app"))
			transact(t, cl, kgo.TryCommit, "one")
			transact(t, cl, kgo.TryAbort, "never")
			transact(t, cl, kgo.TryCommit, "two")
			if err := cl.BeginTransaction(); err != nil {
				t.Fatal(err)
			}
			if err := cl.ProduceSync(ctx, kgo.StringRecord("open")).FirstErr(); err != nil {
				t.Fatal(err)
			}
			var offsets kadm.Offsets
			offsets.AddOffset("events", 0, 2, -1)
			if err := kadm.NewClient(client(t, b)).CommitAllOffsets(ctx, "group", offsets); err != nil {
				t.Fatal(err)
			}
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			cl.Close()

			b = start(t, o)
			if got := b.Cluster().TopicInfo("events").TopicID; got != id {
				t.Errorf("topic id %x after the restart, %x before", got, id)
			}
			committed, err := kadm.NewClient(client(t, b)).FetchOffsets(ctx, "group")
			if err != nil {
				t.Fatal(err)
			}
			if got, ok := committed.Lookup("events", 0); !ok || got.At != 2 {
				t.Errorf("committed offset %v after the restart", got.At)
			}
			cl = client(t, b, kgo.DefaultProduceTopic("events"), kgo.TransactionalID("app"))
			transact(t, cl, kgo.TryCommit, "three")
			if got := read(t, b, "events", 3); !slices.Equal(got, []string{"one", "two", "three"}) {
				t.Errorf("read %q", got)
			}
		})
	}
}

func transact(t *testing.T, cl *kgo.Client, end kgo.TransactionEndTry, value string) {
	t.Helper()
	ctx := testContext(t)
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := cl.ProduceSync(ctx, kgo.StringRecord(value)).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if err := cl.EndTransaction(ctx, end); err != nil {
		t.Fatal(err)
	}
}

func TestRestartWithOtherPartitions(t *testing.T) {
	o := Options{Dir: t.TempDir(), Topics: []Topic{{Name: "events", Partitions: 1}}}
	if err := start(t, o).Close(); err != nil {
		t.Fatal(err)
	}
	o.Topics[0].Partitions = 2
	if b, err := Start(o); err == nil || !strings.Contains(err.Error(), "has 1 partitions") {
		t.Errorf("started %v with %v", b, err)
	}
}

func TestSecondProcess(t *testing.T) {
	dir := t.TempDir()
	b := start(t, Options{Dir: dir, Topics: []Topic{{Name: "events", Partitions: 1}}})
	if _, err := Start(Options{Dir: dir}); err == nil {
		t.Error("a second broker of this process got the directory")
	}
	out, err := runChild(t, "start", dir)
	if err == nil {
		t.Error("a broker of another process got the directory")
	}
	for _, want := range []string{"in use", fmt.Sprintf("process %d", os.Getpid()), b.Addrs()[0]} {
		if !strings.Contains(out, want) {
			t.Errorf("the refusal %q does not say %q", out, want)
		}
	}
	if out, err := runChild(t, "produce", b.Addrs()[0]); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := read(t, b, "events", 1); got[0] != "from the child" {
		t.Errorf("read %q", got)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if out, err := runChild(t, "start", dir); err != nil {
		t.Errorf("the directory is not free after Close: %v: %s", err, out)
	}
}

func TestDirectoryIsPrivate(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "new")
	start(t, Options{Dir: dir})
	for _, d := range []string{dir, filepath.Join(dir, "data")} {
		info, err := os.Stat(d)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %v", d, info.Mode().Perm())
		}
	}
	open := filepath.Join(root, "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(Options{Dir: open}); err == nil || !strings.Contains(err.Error(), "0700") {
		t.Errorf("a directory that all may write to: %v", err)
	}
}

func TestCloseTwice(t *testing.T) {
	b := start(t, Options{})
	for range 2 {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}
