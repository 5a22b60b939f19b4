package processor_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/internal/engine"
	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
)

// server is a service that knows what it was asked before by the idempotency key.
type server struct {
	mu      sync.Mutex
	asked   map[string]string // by id: key=value
	ids     map[string]string // by key=value: id
	again   int
	running int
	most    int
	wrong   error
	failing int // percent of calls
}

func newServer(failing int) *server {
	return &server{asked: map[string]string{}, ids: map[string]string{}, failing: failing}
}

func (s *server) call(ctx context.Context, id, k, v string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running++
	s.most = max(s.most, s.running)
	s.mu.Unlock()
	select {
	case <-time.After(time.Duration(rand.IntN(3)) * time.Millisecond):
	case <-ctx.Done():
	}
	s.mu.Lock()
	s.running--
	what := k + "=" + v
	switch {
	case s.asked[id] == what:
		s.again++
	case s.asked[id] != "" || s.ids[what] != "":
		s.wrong = fmt.Errorf("%s is asked as %q, which is %q; it was asked as %q", what, id, s.asked[id], s.ids[what])
	}
	s.asked[id], s.ids[what] = what, id
	if rand.IntN(100) < s.failing {
		return "", errors.New("unlucky")
	}
	return v + "!", nil
}

// results reads a topic until it holds so many records, and a little longer, and checks that each of the n inputs of each
// key is there once, in order.
func results(t *testing.T, brokers []string, topic string, keys, n int, suffix string) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	total, next := 0, map[string]int{}
	read := func(ctx context.Context) {
		cl.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
			k := string(r.Key)
			if want := strconv.Itoa(next[k]) + suffix; string(r.Value) != want {
				t.Fatalf("topic %q: %s=%s, want %s", topic, k, r.Value, want)
			}
			next[k]++
			total++
		})
	}
	for total < keys*n {
		if ctx.Err() != nil {
			t.Fatalf("topic %q: %d results, want %d: %v", topic, total, keys*n, next)
		}
		read(ctx)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	read(ctx)
	if total != keys*n {
		t.Errorf("topic %q: %d results, want %d", topic, total, keys*n)
	}
}

// Killed again and again, an application makes one result of each record, and asks for it by one id.
func TestCallsOverCrashes(t *testing.T) {
	text := serde.String
	in, out := processor.NewTopic("in", text, text), processor.NewTopic("out", text, text)
	effects := processor.NewTopic("effects", text, text)
	lookups, mails := newServer(20), newServer(20)
	topology, err := processor.Build(func(b *processor.Builder) {
		words := stream.From(b, in)
		o := processor.CallOptions{FirstBackoff: 10 * time.Millisecond, Attempts: -1, Concurrency: 6}
		stream.To(stream.Async(words, state.Pending("lookups", text, text).WithLimit(20), lookups.call, o), out)
		id := func(k, v string) string { return k + "/" + v }
		mail := func(ctx context.Context, id, k, v string) error { _, err := mails.call(ctx, id, k, v); return err }
		stream.To(stream.Gateway(words, state.Pending("mails", text, text), state.Effects("sent"), id, mail, o), effects)
	})
	if err != nil {
		t.Fatal(err)
	}
	brokers := broker(t, "in", "out", "effects")
	const keys, n = 20, 15
	var records []string
	for i := range n {
		for k := range keys {
			records = append(records, "k"+strconv.Itoa(k), strconv.Itoa(i))
		}
	}
	produce(t, brokers, "in", records...)
	c := processor.Config{
		Brokers: brokers, StateDir: t.TempDir(), CommitInterval: 10 * time.Millisecond, MaxCalls: 8,
		FlushInterval: 50 * time.Millisecond,
	}
	crashes := 0
	for i, point := range []string{"after-end", "before-end", "after-commit-apply", "before-flush", "flush-end", "after-end"} {
		app, err := processor.New("calls", topology, c)
		if err != nil {
			t.Fatal(err)
		}
		passed := 0
		var mu sync.Mutex
		ctx := engine.WithSeams(t.Context(), engine.Seams{At: func(at string) error {
			mu.Lock()
			defer mu.Unlock()
			if at == point {
				passed++
			}
			if at == point && passed > 1+i%2 {
				return engine.ErrCrash
			}
			return nil
		}})
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		switch err := app.Run(ctx); {
		case errors.Is(err, engine.ErrCrash):
			crashes++
		case err != nil:
			t.Fatalf("at %s: %v", point, err)
		} // without an error all was done before the point was passed that often
		cancel()
	}
	if crashes < 3 {
		t.Fatalf("%d crashes", crashes)
	}
	app, err := processor.New("calls", topology, c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- app.Run(ctx) }()
	results(t, brokers, "out", keys, n, "!")
	results(t, brokers, "effects", keys, n, "")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for name, s := range map[string]*server{"lookups": lookups, "mails": mails} {
		t.Logf("%s: %d records, %d calls again, %d at most under way", name, len(s.asked), s.again, s.most)
		if s.wrong != nil {
			t.Errorf("%s: %v", name, s.wrong)
		}
		if len(s.asked) != keys*n {
			t.Errorf("%s: %d records were asked for, want %d", name, len(s.asked), keys*n)
		}
		if s.most > 6 {
			t.Errorf("%s: %d calls under way, want 6 at most", name, s.most)
		}
	}
	for id, what := range mails.asked {
		if k, v, _ := strings.Cut(id, "/"); what != k+"="+v {
			t.Errorf("effect %q is %q", id, what)
		}
	}
}

// Tasks move between members while calls are under way.
func TestCallsMoveWithTheirTask(t *testing.T) {
	text := serde.String
	in, out := processor.NewTopic("in", text, text), processor.NewTopic("out", text, text)
	lookups := newServer(10)
	topology, err := processor.Build(func(b *processor.Builder) {
		o := processor.CallOptions{FirstBackoff: 10 * time.Millisecond, Attempts: -1}
		store := state.Pending("lookups", text, text).WithLimit(10)
		stream.To(stream.Async(stream.From(b, in), store, lookups.call, o), out)
	})
	if err != nil {
		t.Fatal(err)
	}
	brokers := broker(t, "in", "out")
	const keys, n = 20, 20
	var records []string
	for i := range n {
		for k := range keys {
			records = append(records, "k"+strconv.Itoa(k), strconv.Itoa(i))
		}
	}
	half := len(records) / 2
	produce(t, brokers, "in", records[:half]...)
	config := func() processor.Config {
		return processor.Config{
			Brokers: brokers, StateDir: t.TempDir(), CommitInterval: 10 * time.Millisecond, MaxCalls: 4,
			SessionTimeout: 10 * time.Second, LeaveOnStop: true,
		}
	}
	progress := func(n int) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			lookups.mu.Lock()
			asked := len(lookups.asked)
			lookups.mu.Unlock()
			if asked >= n {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d records were asked for, want %d", asked, n)
			}
		}
	}
	first, again := run(t, topology, config()), config()
	progress(20)
	second := run(t, topology, config())
	produce(t, brokers, "in", records[half:]...)
	progress(150)
	first()
	third := run(t, topology, again)
	results(t, brokers, "out", keys, n, "!")
	second()
	third()
	t.Logf("%d records, %d calls again, %d at most under way", len(lookups.asked), lookups.again, lookups.most)
	if lookups.wrong != nil || len(lookups.asked) != keys*n {
		t.Errorf("%d records were asked for, want %d: %v", len(lookups.asked), keys*n, lookups.wrong)
	}
}

// Processing all input again, with nothing left of the application but what was told to the world, tells nothing again.
func TestEffectsOutliveAReset(t *testing.T) {
	text := serde.String
	in, out := processor.NewTopic("in", text, text), processor.NewTopic("out", text, text)
	mails := newServer(0)
	topology, err := processor.Build(func(b *processor.Builder) {
		id := func(k, v string) string { return k + "/" + v }
		mail := func(ctx context.Context, id, k, v string) error { _, err := mails.call(ctx, id, k, v); return err }
		stream.To(stream.Gateway(stream.From(b, in), state.Pending("mails", text, text), state.Effects("sent"), id, mail,
			processor.CallOptions{}), out)
	})
	if err != nil {
		t.Fatal(err)
	}
	brokers := broker(t, "in", "out")
	produce(t, brokers, "in", "a", "1", "b", "1", "a", "2", "c", "1")
	newest := map[string]string{"a": "2", "b": "1", "c": "1"}
	config := func() processor.Config {
		return processor.Config{
			Brokers: brokers, StateDir: t.TempDir(), CommitInterval: 10 * time.Millisecond, LeaveOnStop: true,
		}
	}
	stop := run(t, topology, config())
	await(t, brokers, "out", newest)
	stop()

	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	if _, err := adm.DeleteGroup(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	listed, err := adm.ListTopics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	kept := "shop-sent-effects"
	if !listed.Has(kept) {
		t.Fatalf("no topic %q among %v", kept, listed.Names())
	}
	if _, err := adm.DeleteTopic(t.Context(), "shop-mails-changelog"); err != nil {
		t.Fatal(err)
	}
	produce(t, brokers, "in", "d", "1")
	newest["d"] = "1"
	stop = run(t, topology, config())
	await(t, brokers, "out", newest)
	stop()
	ends, err := adm.ListEndOffsets(t.Context(), "out")
	if err != nil {
		t.Fatal(err)
	}
	total := int64(0)
	ends.Each(func(o kadm.ListedOffset) { total += o.Offset })
	if total < 4+5 {
		t.Errorf("%d records in the topic: the input was not processed again", total)
	}
	if mails.again != 0 || len(mails.asked) != 5 || mails.wrong != nil {
		t.Errorf("%d effects, %d made again, %v", len(mails.asked), mails.again, mails.wrong)
	}
}
