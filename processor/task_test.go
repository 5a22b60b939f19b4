package processor_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/state/memory"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

var (
	P1  = processor.NewTopic("p1", serde.String, serde.String)
	P2  = processor.NewTopic("p2", serde.String, serde.String)
	P3  = processor.NewTopic("p3", serde.String, serde.String)
	Out = processor.NewTopic("out", serde.String, serde.String)

	Numbers = processor.NewTopic("numbers", serde.String, serde.Int64)
	Counts  = state.KeyValue("counts", serde.String, serde.Int64)
	Latest  = state.KeyValue("latest", serde.String, serde.String)
	Lists   = state.KeyValue("lists", serde.String, serde.JSON[[]string]())
)

func build(t testing.TB, declare ...func(*processor.Builder)) *processor.Topology {
	t.Helper()
	topology, err := processor.Build(declare...)
	if err != nil {
		t.Fatal(err)
	}
	return topology
}

// newTask makes and starts the task of a topology of one sub-topology.
func newTask(t testing.TB, topology *processor.Topology, opts processor.TaskOptions) *processor.Task {
	t.Helper()
	return newTaskOver(t, topology, memory.New(), opts)
}

func newTaskOver(
	t testing.TB, topology *processor.Topology, b state.Backend, opts processor.TaskOptions,
) *processor.Task {
	t.Helper()
	id := processor.TaskID{Sub: topology.SubTopologies()[0], Partition: 3}
	task, err := topology.NewTask("app", id, b, opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(nil, "", 0); err != nil {
		t.Fatal(err)
	}
	return task
}

func rec(offset, millis int64, key, value string) processor.RawRecord {
	return processor.RawRecord{Partition: 3, Offset: offset, TimeMillis: millis, Key: []byte(key), Value: []byte(value)}
}

// enqueue adds records to a topic; their Topic is set.
func enqueue(task *processor.Task, topic string, records ...processor.RawRecord) {
	for i := range records {
		records[i].Topic = topic
	}
	task.Enqueue(topic, records)
}

// step processes everything that can be.
func step(t testing.TB, task *processor.Task, wall int64) (n int, retry int64) {
	t.Helper()
	n, retry, err := task.Step(1000, wall)
	if err != nil {
		t.Fatal(err)
	}
	return n, retry
}

// outputs takes the outputs as "key=value@millis".
func outputs(task *processor.Task) []string {
	var all []string
	for _, o := range task.Outputs() {
		all = append(all, fmt.Sprintf("%s=%s@%d", o.Key, o.Value, o.TimeMillis))
	}
	return all
}

func want(t testing.TB, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}

// merged writes what it reads of three topics to one.
func merged(b *processor.Builder) {
	stream.To(stream.Merge(stream.From(b, P1), stream.From(b, P2), stream.From(b, P3)), Out)
}

// merged2 is merged of two.
func merged2(b *processor.Builder) {
	stream.To(stream.Merge(stream.From(b, P1), stream.From(b, P2)), Out)
}

func TestLowestHeadTimestampFirst(t *testing.T) {
	task := newTask(t, build(t, merged2), processor.TaskOptions{MaxTaskIdle: -1})
	enqueue(task, "p1", rec(0, 1, "p1", "0"), rec(1, 3, "p1", "1"), rec(2, 5, "p1", "2"))
	enqueue(task, "p2", rec(0, 2, "p2", "0"), rec(1, 4, "p2", "1"), rec(2, 6, "p2", "2"))
	if n, _, err := task.Step(2, 0); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	// Offset order within a partition, whatever the times are; they come into play at its head only.
	enqueue(task, "p1", rec(3, 2, "p1", "3"), rec(4, 4, "p1", "4"))
	step(t, task, 0)
	want(t, "order", outputs(task), []string{
		"p1=0@1", "p2=0@2", "p1=1@3", "p2=1@4", "p1=2@5", "p1=3@2", "p1=4@4", "p2=2@6",
	})
}

func TestStreamTimeIsTheLargestSeen(t *testing.T) {
	task := newTask(t, build(t, merged2), processor.TaskOptions{MaxTaskIdle: -1})
	if _, ok := task.StreamTime(); ok {
		t.Error("there is a stream time before the first record")
	}
	enqueue(task, "p1", rec(0, 50, "k", ""), rec(1, 20, "k", ""))
	step(t, task, 0)
	if at, ok := task.StreamTime(); !ok || at.UnixMilli() != 50 {
		t.Errorf("stream time %v %t", at, ok)
	}
	metadata := task.Boundary().Metadata

	// A restart takes it over, so that what was late stays late.
	restarted := newTask(t, build(t, merged2), processor.TaskOptions{})
	if err := restarted.Start([]processor.Offset{{Topic: "p1", Next: 2}}, metadata, 0); err != nil {
		t.Fatal(err)
	}
	if at, ok := restarted.StreamTime(); !ok || at.UnixMilli() != 50 {
		t.Errorf("stream time after a restart %v %t", at, ok)
	}
	if got := restarted.Boundary().Metadata; got != metadata {
		t.Errorf("metadata %q, want %q", got, metadata)
	}
	for _, foreign := range []string{"", "1", "2" + metadata[1:], metadata + "0", strings.Repeat("x", len(metadata))} {
		if err := restarted.Start(nil, foreign, 0); err != nil {
			t.Fatal(err)
		}
		if _, ok := restarted.StreamTime(); ok {
			t.Errorf("metadata %q gave a stream time", foreign)
		}
	}
}

// The waiting rules of KIP-353 and KIP-695, with a bound on all of them.
func TestMaxTaskIdle(t *testing.T) {
	type check struct {
		wall  int64
		n     int
		retry int64
	}
	cases := []struct {
		name   string
		idle   time.Duration
		set    func(*processor.Task) // before the first check; p1 has a record by then
		checks []check
	}{
		{
			name: "a negative idle never waits", idle: -1,
			checks: []check{{wall: 0, n: 1}},
		},
		{
			name: "zero does not wait for what is caught up", idle: 0,
			set:    func(task *processor.Task) { task.Position("p2", 7, 7) },
			checks: []check{{wall: 0, n: 1}},
		},
		{
			name: "zero waits for what the broker is known to have, for a bounded time", idle: 0,
			set:    func(task *processor.Task) { task.Position("p2", 7, 9) },
			checks: []check{{0, 0, 10_000}, {4_000, 0, 6_000}, {10_000, 1, 0}},
		},
		{
			name: "zero waits for an input that nothing is known of, for a bounded time", idle: 0,
			checks: []check{{0, 0, 1_000}, {999, 0, 1}, {1_000, 1, 0}},
		},
		{
			name: "a positive one waits for new records", idle: 200 * time.Millisecond,
			set:    func(task *processor.Task) { task.Position("p2", 7, 7) },
			checks: []check{{100, 0, 200}, {299, 0, 1}, {300, 1, 0}},
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			task := newTask(t, build(t, merged2), processor.TaskOptions{MaxTaskIdle: c.idle})
			enqueue(task, "p1", rec(0, 1, "k", "v"))
			if c.set != nil {
				c.set(task)
			}
			for _, ch := range c.checks {
				if n, retry := step(t, task, ch.wall); n != ch.n || retry != ch.retry {
					t.Errorf("at %d: %d records, retry in %d ms; want %d, %d", ch.wall, n, retry, ch.n, ch.retry)
				}
			}
		})
	}
}

func TestIdlingOfOneInputIsNotThatOfAnother(t *testing.T) {
	const idle = 100
	task := newTask(t, build(t, merged), processor.TaskOptions{MaxTaskIdle: idle * time.Millisecond})
	for _, topic := range []string{"p1", "p2", "p3"} {
		task.Position(topic, 0, 0)
	}
	expect := func(wall int64, n int, retry int64) {
		t.Helper()
		if gotN, gotRetry := step(t, task, wall); gotN != n || gotRetry != retry {
			t.Fatalf("at %d: %d records, retry in %d ms; want %d, %d", wall, gotN, gotRetry, n, retry)
		}
	}
	expect(0, 0, 0) // nothing to do: no reason to call again, but all three are empty from now on
	enqueue(task, "p1", rec(0, 1, "k", "1"), rec(1, 2, "k", "2"))
	enqueue(task, "p2", rec(0, 3, "k", "3"))
	expect(90, 0, 10)
	expect(100, 2, 100) // p3 has been empty for long enough; p1 is empty only now, and holds up p2's record
	enqueue(task, "p1", rec(2, 4, "k", "4"))
	expect(150, 1, 100) // p2's; now p2 holds up p1's. p3 is not waited for again
	expect(249, 0, 1)
	expect(250, 1, 0)

	// An input that is known to have more is waited for from when that became known.
	expect(5_000, 0, 0)
	task.Position("p3", 0, 5)
	enqueue(task, "p1", rec(3, 9, "k", "9"))
	expect(5_001, 0, 10_000)
	enqueue(task, "p3", rec(4, 8, "k", "8"))
	expect(5_002, 1, idle) // p3's record is the older one; then p3 is caught up and empty, from now on
}

func TestBoundary(t *testing.T) {
	task := newTask(t, build(t, func(b *processor.Builder) {
		table.To(stream.Count(stream.Group(stream.From(b, P1)), Counts), Numbers)
	}), processor.TaskOptions{})
	if b := task.Boundary(); !b.Empty || len(b.Offsets) != 0 || b.Processed != 0 {
		t.Fatalf("before anything: %+v", b)
	}
	task.Commit(nil, 0)

	enqueue(task, "p1", rec(5, 1, "a", ""), rec(6, 2, "a", ""), rec(8, 3, "b", "")) // 7 is a transaction marker
	if r, bytes := task.Queued("p1"); r != 3 || bytes != 3 {
		t.Fatalf("queued %d records, %d bytes", r, bytes)
	}
	step(t, task, 0)
	if got := len(task.Outputs()); got != 3 {
		t.Fatalf("%d outputs", got)
	}
	if task.Outputs() != nil {
		t.Fatal("outputs are handed out twice")
	}
	task.Position("p1", 10, 10)
	b := task.Boundary()
	if b.Empty || b.Processed != 3 || !slices.Equal(b.Offsets, []processor.Offset{{Topic: "p1", Next: 10}}) {
		t.Fatalf("boundary: %+v", b)
	}
	if len(b.Changes) != 2 { // one for each row, not for each write
		t.Fatalf("%d changes", len(b.Changes))
	}
	task.Commit([]state.Position{{Next: 2}}, 0)

	enqueue(task, "p1", rec(10, 4, "a", ""), rec(11, 5, "a", ""))
	if n, _, err := task.Step(1, 0); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	task.Position("p1", 20, 20)
	b = task.Boundary()
	if b.Offsets[0].Next != 11 {
		t.Fatalf("offset %d passes a record that is queued", b.Offsets[0].Next)
	}
	if len(task.Outputs()) != 1 {
		t.Fatal("no output")
	}
	task.Commit([]state.Position{{Next: 3}}, 0)
	if b := task.Boundary(); !b.Empty || b.Offsets[0].Next != 11 {
		t.Fatalf("after a commit: %+v", b)
	}
}

func TestOutputsKeepTheirBytes(t *testing.T) {
	pass := func(b *processor.Builder) { stream.To(stream.From(b, P1), Out) }
	task := newTask(t, build(t, pass), processor.TaskOptions{})
	big := strings.Repeat("x", 100_000)
	var got [][]byte
	for i := range int64(200) {
		value := fmt.Sprint(i)
		if i%50 == 7 {
			value += big
		}
		enqueue(task, "p1", rec(i, i, "k", value))
		step(t, task, 0)
		for _, o := range task.Outputs() {
			got = append(got, o.Value)
		}
	}
	for i, v := range got {
		if !strings.HasPrefix(string(v), fmt.Sprint(i)) || cap(v) != len(v) {
			t.Fatalf("output %d reads %.10q", i, v)
		}
	}
}

func TestAbortStartsAfresh(t *testing.T) {
	var inits, closes int
	topology := build(t, func(b *processor.Builder) {
		s := stream.From(b, P1)
		stream.To(stream.ProcessValues(s, func() processor.Processor[string, string, string, string] {
			return &counted{inits: &inits, closes: &closes}
		}), Out)
		stream.Count(stream.Group(s), Counts)
	})
	task := newTask(t, topology, processor.TaskOptions{})
	counts := openStore(t, task, Counts)
	enqueue(task, "p1", rec(0, 10, "a", "1"), rec(1, 11, "a", "2"))
	step(t, task, 0)
	task.Outputs()
	committed := task.Boundary()
	task.Commit([]state.Position{{Next: 1}}, 0)

	enqueue(task, "p1", rec(2, 99, "a", "3"), rec(3, 99, "b", "4"), rec(4, 99, "b", "5"))
	if _, _, err := task.Step(2, 0); err != nil {
		t.Fatal(err)
	}
	if err := task.Abort(committed.Offsets, committed.Metadata, 0); err != nil {
		t.Fatal(err)
	}
	if r, bytes := task.Queued("p1"); r != 0 || bytes != 0 {
		t.Errorf("%d records, %d bytes are still queued", r, bytes)
	}
	if len(task.Outputs()) != 0 {
		t.Error("there are outputs of the aborted batch")
	}
	if at, _ := task.StreamTime(); at.UnixMilli() != 11 {
		t.Errorf("stream time %v", at)
	}
	if inits != 2 || closes != 1 {
		t.Errorf("%d processors were made, %d closed; want 2 and 1", inits, closes)
	}
	if n, _, _ := counts.Get("a"); n != 2 {
		t.Errorf("count %d, want what was committed: 2", n)
	}
	if _, ok, _ := counts.Get("b"); ok {
		t.Error("a row of the aborted batch is there")
	}
	if b := task.Boundary(); !b.Empty || b.Offsets[0].Next != 2 || b.Processed != 0 {
		t.Errorf("boundary after the abort: %+v", b)
	}
	task.Commit(nil, 0)
	enqueue(task, "p1", rec(2, 99, "a", "3"))
	step(t, task, 0)
	// The processor's own fields started afresh, the store did not.
	want(t, "outputs", outputs(task), []string{"a=3 (1 seen)@99"})
	if n, _, _ := counts.Get("a"); n != 3 {
		t.Errorf("count %d, want 3", n)
	}
	if err := task.Close(); err != nil || closes != 2 {
		t.Errorf("close: %v, %d closed", err, closes)
	}
}

// counted is a processor that counts in a field, which a restart loses.
type counted struct {
	seen          int
	inits, closes *int
}

func (p *counted) Init(*processor.Context[string, string]) error { *p.inits++; return nil }
func (p *counted) Close() error                                  { *p.closes++; return nil }
func (p *counted) Process(c *processor.Context[string, string], r processor.Record[string, string]) error {
	p.seen++
	return c.Forward(processor.WithValue(r, fmt.Sprintf("%s (%d seen)", r.Value, p.seen)))
}

func openStore[K, V any](
	t testing.TB, task *processor.Task, spec *state.KeyValueSpec[K, V],
) *state.KeyValueStore[K, V] {
	t.Helper()
	s, err := spec.Open(task)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStartErrors(t *testing.T) {
	boom := errors.New("boom")
	start := func(newP func() processor.Processor[string, string, string, string], stores ...state.AnySpec) error {
		topology := build(t, func(b *processor.Builder) { stream.Process(stream.From(b, P1), newP, stores...) })
		task, err := topology.NewTask("app", processor.TaskID{Sub: "p1"}, memory.New(), processor.TaskOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return task.Start(nil, "", 0)
	}
	cases := map[string]struct {
		err  error
		is   error
		says []string
	}{
		"init fails": {
			start(func() processor.Processor[string, string, string, string] {
				return &initer{func(*processor.Context[string, string]) error { return boom }}
			}), boom, []string{"start of process-1 (processor/task_test.go:", "boom"},
		},
		"init panics": {
			start(func() processor.Processor[string, string, string, string] {
				return &initer{func(*processor.Context[string, string]) error { panic(boom) }}
			}), processor.ErrPanic, []string{"start of process-1 (processor/task_test.go:", "panic: boom"},
		},
		"nothing is made": {
			start(func() processor.Processor[string, string, string, string] { return nil }),
			processor.ErrProcess, []string{"start of process-1 (processor/task_test.go:", "returned nil"},
		},
		"store is not connected": {
			start(func() processor.Processor[string, string, string, string] {
				return &initer{func(c *processor.Context[string, string]) error { _, err := Latest.Open(c); return err }}
			}, Counts), processor.ErrProcess,
			[]string{`store "latest" is not connected to the process at processor/task_test.go:`},
		},
		"timer without an interval": {
			start(func() processor.Processor[string, string, string, string] {
				return &initer{func(c *processor.Context[string, string]) error {
					_, err := c.Schedule(processor.StreamTime, 0, nil)
					return err
				}}
			}), processor.ErrProcess, []string{"must be positive"},
		},
	}
	for name, c := range cases {
		var e *processor.TaskError
		if !errors.Is(c.err, c.is) || !errors.As(c.err, &e) || e.Topic != "" || e.Task.Sub != "p1" {
			t.Errorf("%s: %v", name, c.err)
			continue
		}
		for _, s := range c.says {
			if !strings.Contains(c.err.Error(), s) {
				t.Errorf("%s: %v\ndoes not say %q", name, c.err, s)
			}
		}
	}
}

type initer struct {
	init func(*processor.Context[string, string]) error
}

func (p *initer) Init(c *processor.Context[string, string]) error { return p.init(c) }
func (p *initer) Process(*processor.Context[string, string], processor.Record[string, string]) error {
	return nil
}

func TestNewTaskOfUnknownSubTopology(t *testing.T) {
	_, err := build(t, merged).NewTask("app", processor.TaskID{Sub: "p2"}, memory.New(), processor.TaskOptions{})
	if err == nil || !strings.Contains(err.Error(), `"p2"`) {
		t.Fatal(err) // it is called p1, after its smallest topic
	}
}
