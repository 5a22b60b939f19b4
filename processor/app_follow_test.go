package processor_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/internal/engine"
	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

// pricing joins questions with a table that has no changelog.
func pricing(t *testing.T) *processor.Topology {
	t.Helper()
	text := serde.String
	prices := processor.NewTopic("prices", text, text)
	topology, err := processor.Build(func(b *processor.Builder) {
		byItem := table.FromSource(b, prices, state.KeyValue("price-by-item", text, text))
		table.To(byItem, processor.NewTopic("seen", text, text))
		stream.To(stream.LeftJoin(stream.From(b, processor.NewTopic("asked", text, text)), byItem,
			func(_, q string, price processor.Opt[string]) string { return q + "=" + price.Or("none") }),
			processor.NewTopic("answers", text, text))
	})
	if err != nil {
		t.Fatal(err)
	}
	return topology
}

func followBroker(t *testing.T) []string {
	t.Helper()
	brokers := broker(t, "asked", "seen", "answers")
	setup := processor.TopicSetup{Name: "prices", Partitions: 3, Config: map[string]string{"cleanup.policy": "compact"}}
	if err := processor.EnsureTopics(t.Context(), brokers, nil, setup); err != nil {
		t.Fatal(err)
	}
	return brokers
}

func admin(t *testing.T, brokers []string) *kadm.Client {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return kadm.NewClient(cl)
}

// produceIn writes strings to a topic in a transaction, and ends that.
func produceIn(t *testing.T, brokers []string, end kgo.TransactionEndTry, topic string, records ...string) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.TransactionalID("writer"))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(records); i += 2 {
		r := &kgo.Record{Topic: topic, Key: []byte(records[i]), Value: []byte(records[i+1])}
		if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	if err := cl.EndTransaction(t.Context(), end); err != nil {
		t.Fatal(err)
	}
}

// TestFollowedTopic restores a table from its source: from where the local copy ends, and without any.
func TestFollowedTopic(t *testing.T) {
	brokers := followBroker(t)
	dir := t.TempDir()
	var restored atomic.Int64
	c := processor.Config{
		Brokers: brokers, StateDir: dir, CommitInterval: 20 * time.Millisecond, FlushInterval: 50 * time.Millisecond,
		Events: processor.Events{
			RestoreDone: func(_ processor.TaskID, _ string, records int64, _ time.Duration) { restored.Add(records) },
		},
	}
	// The topic ends in a marker and in what was never committed: the committed offset lies behind them.
	produceIn(t, brokers, kgo.TryCommit, "prices", "tea", "1", "rye", "2", "oat", "3", "tea", "4")
	produceIn(t, brokers, kgo.TryAbort, "prices", "tea", "wrong", "rye", "wrong", "oat", "wrong", "fig", "wrong")

	stop := run(t, pricing(t), c)
	await(t, brokers, "seen", map[string]string{"tea": "4", "rye": "2", "oat": "3"})
	produce(t, brokers, "asked", "tea", "a")
	await(t, brokers, "answers", map[string]string{"tea": "a=4"})
	stop()
	if n := restored.Load(); n != 0 {
		t.Errorf("restored %d records at the first start", n)
	}

	// What came meanwhile is processed, not restored.
	produce(t, brokers, "prices", "rye", "5")
	stop = run(t, pricing(t), c)
	await(t, brokers, "seen", map[string]string{"tea": "4", "rye": "5", "oat": "3"})
	produce(t, brokers, "asked", "rye", "b")
	await(t, brokers, "answers", map[string]string{"tea": "a=4", "rye": "b=5"})
	stop()
	if n := restored.Load(); n != 0 {
		t.Errorf("restored %d records over a clean stop", n)
	}

	if err := os.RemoveAll(filepath.Join(dir, "shop")); err != nil {
		t.Fatal(err)
	}
	stop = run(t, pricing(t), c)
	produce(t, brokers, "asked", "tea", "c", "rye", "c", "oat", "c", "fig", "c")
	await(t, brokers, "answers", map[string]string{"tea": "c=4", "rye": "c=5", "oat": "c=3", "fig": "c=none"})
	stop()
	if restored.Load() == 0 {
		t.Error("nothing was restored though the state was gone")
	}

	topics, err := admin(t, brokers).ListTopics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range topics.Names() {
		if strings.Contains(name, "changelog") {
			t.Errorf("topic %q was made", name)
		}
	}
}

// TestFollowedTopicBehind sets the committed offsets back: the table goes back with them, and does not lead.
func TestFollowedTopicBehind(t *testing.T) {
	brokers := followBroker(t)
	c := processor.Config{Brokers: brokers, StateDir: t.TempDir(), CommitInterval: 20 * time.Millisecond, LeaveOnStop: true}
	produce(t, brokers, "prices", "tea", "1", "tea", "2")
	stop := run(t, pricing(t), c)
	await(t, brokers, "seen", map[string]string{"tea": "2"})
	stop()
	adm := admin(t, brokers)
	offsets, err := adm.FetchOffsets(t.Context(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	back := kadm.Offsets{}
	offsets.Each(func(o kadm.OffsetResponse) {
		if o.Topic == "prices" && o.At == 2 {
			o.At = 1
		}
		back.Add(o.Offset)
	})
	if err := adm.CommitAllOffsets(t.Context(), "shop", back); err != nil {
		t.Fatal(err)
	}
	text := serde.String
	held := make(chan string, 10)
	topology, err := processor.Build(func(b *processor.Builder) {
		prices := table.FromSource(b, processor.NewTopic("prices", text, text), state.KeyValue("price-by-item", text, text))
		stream.LeftJoin(stream.From(b, processor.NewTopic("asked", text, text)), prices, // or it were another task's
			func(_, q string, _ processor.Opt[string]) string { return q })
		old := table.Distinct(prices, func(a, b string) bool { held <- a + " to " + b; return false })
		table.To(old, processor.NewTopic("seen", text, text))
	})
	if err != nil {
		t.Fatal(err)
	}
	stop = run(t, topology, c)
	defer stop()
	select {
	case got := <-held:
		if got != "1 to 2" {
			t.Errorf("the row went from %s", got)
		}
	case <-time.After(20 * time.Second):
		t.Error("the record was not processed again")
	}
}

// TestFollowedTopicKilled kills the process again and again, at random points, while prices change. In the end each
// answer is the newest price, from a store whose files went through all of it, and from one without files.
func TestFollowedTopicKilled(t *testing.T) {
	brokers := followBroker(t)
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(7, 7)) //nolint:gosec // reproducible
	points := []string{
		"processed", "before-flush", "after-offsets", "after-end", "before-commit-apply", "after-commit-apply",
		"flush-start", "flush-end", "restore-mid", "restore-end",
	}
	c := processor.Config{
		Brokers: brokers, StateDir: dir, CommitInterval: 10 * time.Millisecond, FlushInterval: 20 * time.Millisecond,
	}
	want := make(map[string]string)
	change := func(n int) {
		var records []string
		for range n {
			k, v := fmt.Sprintf("item%d", rng.IntN(20)), fmt.Sprint(rng.IntN(1000))
			records, want[k] = append(records, k, v), v
		}
		if rng.IntN(2) == 0 {
			produceIn(t, brokers, kgo.TryAbort, "prices", "item1", "wrong")
			produceIn(t, brokers, kgo.TryCommit, "prices", records...)
			return
		}
		produce(t, brokers, "prices", records...)
	}
	for range 8 {
		var passes atomic.Int64
		point, nth := points[rng.IntN(len(points))], int64(1+rng.IntN(4))
		killed := engine.WithSeams(t.Context(), engine.Seams{At: func(at string) error {
			if at == point && passes.Add(1) == nth {
				return engine.ErrCrash
			}
			return nil
		}})
		ctx, cancel := context.WithTimeout(killed, time.Second)
		app, err := processor.New("shop", pricing(t), c)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- app.Run(ctx) }()
		change(30)
		time.Sleep(50 * time.Millisecond)
		change(30)
		if err := <-done; err != nil && !errors.Is(err, engine.ErrCrash) {
			t.Fatalf("at %s: %v", point, err)
		}
		cancel()
	}
	for round, q := range []string{"files", "none"} {
		stop := run(t, pricing(t), c)
		await(t, brokers, "seen", want)
		var ask []string
		answers := make(map[string]string)
		for k, v := range want {
			ask = append(ask, k, q)
			answers[k] = q + "=" + v
		}
		produce(t, brokers, "asked", ask...)
		await(t, brokers, "answers", maps.Clone(answers))
		stop()
		if round == 0 {
			if err := os.RemoveAll(filepath.Join(dir, "shop")); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// nothing reads a store and forwards nothing.
type nothing struct{}

func (nothing) Process(*processor.Context[string, string], processor.Record[string, string]) error {
	return nil
}

// TestReadOnlyCommitsPlainly fills a store that others read and finds no transaction, as there is nothing to put into one;
// after a kill the local rows are as new as the offsets that were flushed with them.
func TestReadOnlyCommitsPlainly(t *testing.T) {
	text := serde.String
	topic := processor.NewTopic("prices", text, text)
	byItem := state.KeyValue("price-by-item", text, text)
	topology, err := processor.Build(func(b *processor.Builder) {
		processor.ReadOnly(b, topic, byItem)
		stream.Process(stream.From(b, processor.NewTopic("asked", text, text)),
			func() processor.Processor[string, string, string, string] { return nothing{} }, byItem)
	})
	if err != nil {
		t.Fatal(err)
	}
	brokers := followBroker(t)
	var processed, flushed, restored atomic.Int64
	var kill atomic.Bool
	c := processor.Config{
		Brokers: brokers, StateDir: t.TempDir(), CommitInterval: 20 * time.Millisecond, FlushInterval: 20 * time.Millisecond,
		Events: processor.Events{
			Committed: func(ci processor.CommitInfo) {
				if processed.Add(int64(ci.Processed)); ci.Transactional || ci.Changes > 0 {
					t.Errorf("commit %+v", ci)
				}
			},
			Flushed:     func(_ processor.TaskID, rows int, _ time.Duration) { flushed.Add(int64(rows)) },
			RestoreDone: func(_ processor.TaskID, _ string, n int64, _ time.Duration) { restored.Add(n) },
		},
	}
	var records []string
	for i := range 60 {
		records = append(records, fmt.Sprintf("item%d", i), "1")
	}
	produce(t, brokers, "prices", records...)
	app, err := processor.New("shop", topology, c)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	ctx := engine.WithSeams(t.Context(), engine.Seams{At: func(string) error {
		if kill.Load() {
			return engine.ErrCrash
		}
		return nil
	}})
	go func() { done <- app.Run(ctx) }()
	for deadline := time.Now().Add(20 * time.Second); flushed.Load() < 60; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d records processed, %d rows flushed", processed.Load(), flushed.Load())
		}
	}
	kill.Store(true)
	produce(t, brokers, "prices", "item0", "2")
	if err := <-done; !errors.Is(err, engine.ErrCrash) {
		t.Fatalf("ended with %v", err)
	}
	processed.Store(0)
	stop := run(t, topology, c)
	for deadline := time.Now().Add(20 * time.Second); processed.Load() == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the last record was not processed")
		}
	}
	stop()
	if n := restored.Load(); n > 0 {
		t.Errorf("%d records were read again", n)
	}
}

func TestFollowedTopicMustBeCompacted(t *testing.T) {
	brokers := broker(t, "asked", "seen", "answers", "prices")
	app, err := processor.New("shop", pricing(t), processor.Config{Brokers: brokers, InMemory: true})
	if err != nil {
		t.Fatal(err)
	}
	err = app.Run(t.Context())
	if !errors.Is(err, engine.ErrTopicConfig) || !strings.Contains(err.Error(), "prices") {
		t.Errorf("got %v", err)
	}
}

// TestFollowedTopicEmbedded starts without a broker: the one that it brings along has the topic as it must be.
func TestFollowedTopicEmbedded(t *testing.T) {
	addrs := make(chan []string, 1)
	stop := run(t, pricing(t), processor.Config{
		InMemory: true, CommitInterval: 20 * time.Millisecond,
		Events: processor.Events{Embedded: func(a []string) { addrs <- a }},
	})
	defer stop()
	brokers := <-addrs
	produce(t, brokers, "prices", "tea", "1")
	await(t, brokers, "seen", map[string]string{"tea": "1"})
}
