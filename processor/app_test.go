package processor_test

import (
	"context"
	"maps"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

// broker starts an embedded broker with the given topics, of 3 partitions each.
func broker(t *testing.T, topics ...string) []string {
	t.Helper()
	b, err := processor.StartEmbedded(processor.EmbeddedConfig{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	for _, name := range topics {
		setup := processor.TopicSetup{Name: name, Partitions: 3}
		if err := processor.EnsureTopics(t.Context(), b.Addrs(), nil, setup); err != nil {
			t.Fatal(err)
		}
	}
	return b.Addrs()
}

// produce writes strings to a topic.
func produce(t *testing.T, brokers []string, topic string, records ...string) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for i := 0; i < len(records); i += 2 {
		r := &kgo.Record{Topic: topic, Key: []byte(records[i]), Value: []byte(records[i+1])}
		if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// await reads a topic until it holds the wanted newest values.
func await(t *testing.T, brokers []string, topic string, want map[string]string) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	got := make(map[string]string)
	for !maps.Equal(got, want) {
		fetches := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("topic %q: got %v, want %v", topic, got, want)
		}
		fetches.EachRecord(func(r *kgo.Record) { got[string(r.Key)] = string(r.Value) })
	}
}

// run runs an app until the returned function is called, which waits for its clean end.
func run(t *testing.T, topology *processor.Topology, c processor.Config) (stop func()) {
	t.Helper()
	app, err := processor.New("shop", topology, c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		err := app.Run(ctx)
		if err != nil {
			t.Errorf("run: %v", err) // at once, rather than when something is waited for in vain
		}
		ended <- err
	}()
	return func() {
		t.Helper()
		cancel()
		<-ended //nolint:errcheck // said already
	}
}

func TestGlobalTable(t *testing.T) {
	text := serde.String
	rates := processor.NewTopic("rates", text, text)
	orders := processor.NewTopic("orders", text, text)
	priced := processor.NewTopic("priced", text, text)
	topology, err := processor.Build(func(b *processor.Builder) {
		g := table.Global(b, rates, state.KeyValue("rates-by-currency", text, text))
		currency := func(_, v string) (string, bool) { return v, v != "" }
		stream.To(stream.LeftJoinGlobal(stream.From(b, orders), g, currency,
			func(_, v string, rate processor.Opt[string]) string { return v + "@" + rate.Or("?") }), priced)
	})
	if err != nil {
		t.Fatal(err)
	}
	brokers := broker(t, "rates", "orders", "priced")
	produce(t, brokers, "rates", "eur", "1.1", "gbp", "1.3", "usd", "0.9", "usd", "1")
	produce(t, brokers, "orders", "o1", "usd", "o2", "eur", "o3", "chf")

	c := processor.Config{Brokers: brokers, StateDir: t.TempDir(), CommitInterval: 20 * time.Millisecond}
	stop := run(t, topology, c)
	await(t, brokers, "priced", map[string]string{"o1": "usd@1", "o2": "eur@1.1", "o3": "chf@?"})
	stop()

	// What changed meanwhile is loaded before the first record, from where the local copy ends.
	produce(t, brokers, "rates", "chf", "1.2")
	produce(t, brokers, "orders", "o4", "chf", "o5", "gbp")
	stop = run(t, topology, c)
	await(t, brokers, "priced", map[string]string{
		"o1": "usd@1", "o2": "eur@1.1", "o3": "chf@?", "o4": "chf@1.2", "o5": "gbp@1.3",
	})
	stop()
}

func TestTimesAndPartitionsOfTheUsersChoice(t *testing.T) {
	text := serde.String
	in := processor.NewTopic("in", text, text).
		WithTimes(func(r processor.Record[string, string]) (time.Time, bool) {
			at, err := time.Parse(time.DateOnly, r.Value)
			return at, err == nil
		}).
		InvalidTimes(processor.SkipInvalidTime)
	out := processor.NewTopic("out", text, text).
		PartitionedBy(func(_, _ string, partitions int) int { return partitions - 1 })
	topology, err := processor.Build(func(b *processor.Builder) {
		stream.To(stream.MapRecord(stream.From(b, in),
			func(r processor.Record[string, string]) processor.Record[string, string] {
				r.Value = r.Time.Format(time.RFC3339)
				return r
			}), out)
	})
	if err != nil {
		t.Fatal(err)
	}
	brokers := broker(t, "in", "out")
	produce(t, brokers, "in", "a", "2024-05-06", "b", "no date", "c", "2025-01-02")
	stop := run(t, topology, processor.Config{Brokers: brokers, InMemory: true, CommitInterval: 20 * time.Millisecond})
	defer stop()
	await(t, brokers, "out", map[string]string{"a": "2024-05-06T00:00:00Z", "c": "2025-01-02T00:00:00Z"})
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{
		"out": {2: kgo.NewOffset().AtStart()},
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	n := 0
	for n < 2 {
		n += cl.PollFetches(t.Context()).NumRecords()
	}
}
