package stream_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tailrace.dev/internal/task"
	"tailrace.dev/processor"
	"tailrace.dev/processor/processortest"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/state/memory"
	"tailrace.dev/stream"
)

// gatewayDriver drives Words through a gateway whose effect is remembered; the id is the value up to its colon.
func gatewayDriver(t *testing.T, done *state.EffectsSpec, made *[]string, opts ...processortest.Option) (
	*processortest.Driver, *processortest.InputTopic[string, string], *processortest.OutputTopic[string, string],
) {
	t.Helper()
	d := processortest.New(t, build(func(b *processor.Builder) {
		id := func(_, v string) string { id, _, _ := strings.Cut(v, ":"); return id }
		effect := func(_ context.Context, id, k, v string) error {
			*made = append(*made, id+" "+k+"="+v)
			return nil
		}
		stream.To(stream.Gateway(stream.From(b, Words), Mails, done, id, effect, processor.CallOptions{}), Out)
	}), opts...)
	return d, processortest.Input(d, Words), processortest.Output(d, Out)
}

// known returns how many of the effects the store knows.
func known(t *testing.T, d *processortest.Driver, spec *state.EffectsSpec, ids ...string) (n int) {
	t.Helper()
	store := processortest.Effects(d, spec)
	for _, id := range ids {
		_, ok, err := store.Done(id)
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			n++
		}
	}
	return n
}

func TestGatewayMakesAnEffectOnce(t *testing.T) {
	var made []string
	d, in, out := gatewayDriver(t, Sent, &made, processortest.CallManually())
	in.Pipe("a", "1:x")
	in.Pipe("b", "1:y") // the same effect, under another key
	in.Pipe("a", "2:x")
	in.Pipe("a", "1:z")
	if len(d.Calls()) != 1 {
		t.Fatalf("calls %v", d.Calls())
	}
	d.Crash()
	for range 5 {
		d.MakeCalls()
	}
	expect(t, "made", made, "1 a=1:x", "2 a=2:x")
	in.Pipe("c", "2:")
	got := pairs(out)
	slices.Sort(got)
	expect(t, "records go on", got, "a=1:x", "a=1:z", "a=2:x", "b=1:y", "c=2:")
	if len(d.Calls()) != 0 {
		t.Errorf("left over %v", d.Calls())
	}
	if n := known(t, d, Sent, "1", "2", "3"); n != 2 {
		t.Errorf("%d effects are known", n)
	}
	if err := in.TryPipe(processor.Record[string, string]{Key: "a", Value: ":x", Time: d.Now()}); err == nil ||
		!strings.Contains(err.Error(), "empty id") {
		t.Errorf("an empty id: %v", err)
	}
}

func TestGatewayIsSilent(t *testing.T) {
	var made []string
	_, in, out := gatewayDriver(t, Sent, &made, processortest.SilentEffects())
	in.Pipe("a", "1:x")
	in.PipeTombstone("a")
	expect(t, "records go on", pairs(out), "a=1:x", "a=<nil>")
	expect(t, "made", made)
}

func TestEffectsAreForgotten(t *testing.T) {
	var made, ids []string
	sent := Sent.KeptFor(time.Hour)
	d, in, _ := gatewayDriver(t, sent, &made)
	for i := range 30 {
		in.Pipe("a", strconv.Itoa(i)+":")
		ids = append(ids, strconv.Itoa(i))
	}
	if n := known(t, d, sent, ids...); n != 30 {
		t.Errorf("%d effects are known, want 30", n)
	}
	d.AdvanceWallClock(59 * time.Minute)
	in.Pipe("a", "0:")
	in.Pipe("a", "new:")
	if len(made) != 31 {
		t.Fatalf("made %q", made)
	}
	d.AdvanceWallClock(time.Minute)
	for i := range 5 {
		in.Pipe("a", "newer"+strconv.Itoa(i)+":")
	}
	if n := known(t, d, sent, ids...); n != 0 {
		t.Errorf("%d effects are known, want none", n)
	}
	if n := known(t, d, sent, "new", "newer0", "newer4"); n != 3 {
		t.Errorf("%d effects are known, want 3", n)
	}
	in.Pipe("a", "0:")
	if len(made) != 37 {
		t.Errorf("made %d", len(made))
	}
}

func TestDelay(t *testing.T) {
	d, in, out := drive(func(b *processor.Builder) {
		stream.To(stream.Delay(stream.From(b, Words), Held.WithLimit(3), time.Minute), Out)
	})
	start := d.Now()
	in.PipeAt("a", "1", start)
	in.PipeAt("a", "0", start.Add(-time.Hour)) // late, and yet behind the one before
	in.PipeTombstone("b")
	in.PipeAt("c", "1", start.Add(time.Hour)) // the store is full
	in.PipeAt("d", "1", start.Add(-time.Hour))
	expect(t, "at once", pairs(out))
	d.Crash()
	d.AdvanceWallClock(time.Minute)
	expect(t, "after a minute", pairs(out), "a=1", "b=<nil>", "a=0", "d=1")
	d.AdvanceWallClock(time.Hour)
	expect(t, "after an hour", pairs(out), "c=1")
}

var benchPending = state.Pending("bench-pending", serde.Bytes, serde.Int64).WithLimit(1 << 20)

// callFeeder feeds a task whose operator makes calls, as an engine does.
type callFeeder struct {
	b       testing.TB
	task    *processor.Task
	records []processor.RawRecord
}

func newCallFeeder(b testing.TB, topology *processor.Topology) *callFeeder {
	b.Helper()
	id := processor.TaskID{Sub: topology.SubTopologies()[0]}
	task, err := topology.NewTask("app", id, memory.New(), processor.TaskOptions{MaxTaskIdle: -1})
	if err != nil {
		b.Fatal(err)
	}
	if err := task.Start(nil, "", 1); err != nil {
		b.Fatal(err)
	}
	f := &callFeeder{b: b, task: task}
	for i := range feedBatch {
		r := processor.RawRecord{Topic: "raw-in", Offset: int64(i), TimeMillis: int64(i), Key: fmt.Appendf(nil, "user-%d", i)}
		if r.Value, err = serde.Encode(serde.Int64, int64(i)); err != nil {
			b.Fatal(err)
		}
		f.records = append(f.records, r)
	}
	return f
}

func (f *callFeeder) commit() {
	f.task.Outputs()
	f.task.Boundary()
	f.task.Commit([]state.Position{{}}, 1)
}

func (f *callFeeder) round() {
	f.task.Enqueue("raw-in", f.records)
	if n, _, err := f.task.Step(feedBatch, 1); n != feedBatch || err != nil {
		f.b.Fatal(n, err)
	}
	f.commit()
	calls, err := f.task.Calls(1)
	if len(calls) != feedBatch || err != nil {
		f.b.Fatal(len(calls), err)
	}
	for _, c := range calls {
		if err := f.task.Complete([]task.Result{c.Do(context.Background())}, 1); err != nil {
			f.b.Fatal(err)
		}
	}
	f.commit()
}

// BenchmarkAsync is a record's way in, a commit of a thousand, their calls, and the way out.
func BenchmarkAsync(b *testing.B) {
	topology := build(func(b *processor.Builder) {
		stream.To(stream.Async(stream.From(b, RawIn), benchPending,
			func(_ context.Context, _ string, _ []byte, v int64) (int64, error) { return v + 1, nil },
			processor.CallOptions{}), RawOut)
	})
	f := newCallFeeder(b, topology)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		f.round()
		n += feedBatch
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/record")
}

// An abort takes back what was made of a result, and not the result, nor the calls that are under way.
func TestCallsOutliveAnAbort(t *testing.T) {
	made := 0
	topology := build(func(b *processor.Builder) {
		stream.To(stream.Async(stream.From(b, RawIn), benchPending,
			func(_ context.Context, _ string, _ []byte, v int64) (int64, error) { made++; return v + 1, nil },
			processor.CallOptions{}), RawOut)
	})
	f := newCallFeeder(t, topology)
	a1, a2, b1 := f.records[0], f.records[1], f.records[2]
	a2.Key = a1.Key
	f.task.Enqueue("raw-in", []processor.RawRecord{a1, a2, b1})
	if _, _, err := f.task.Step(10, 1); err != nil {
		t.Fatal(err)
	}
	f.commit()
	calls, err := f.task.Calls(1)
	if err != nil || len(calls) != 2 {
		t.Fatal(len(calls), err)
	}
	complete := func(c task.Call) {
		t.Helper()
		if err := f.task.Complete([]task.Result{c.Do(t.Context())}, 1); err != nil {
			t.Fatal(err)
		}
	}
	complete(calls[0])
	if out := f.task.Outputs(); len(out) != 1 || !bytes.Equal(out[0].Key, a1.Key) {
		t.Fatalf("outputs %v", out)
	}
	b := f.task.Boundary()
	if err := f.task.Abort(b.Offsets, b.Metadata, 1); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.task.Step(10, 1); err != nil {
		t.Fatal(err)
	}
	if out := f.task.Outputs(); len(out) != 1 || !bytes.Equal(out[0].Key, a1.Key) {
		t.Fatalf("outputs after the abort %v", out)
	}
	f.commit()
	more, err := f.task.Calls(1)
	if err != nil || len(more) != 1 || more[0].Number == calls[0].Number || more[0].Number == calls[1].Number {
		t.Fatalf("calls after the abort %v, %v; before %v", more, err, calls)
	}
	complete(calls[1])
	complete(more[0])
	if out := f.task.Outputs(); len(out) != 2 {
		t.Errorf("outputs %v", out)
	}
	complete(calls[0]) // answered long since
	if out := f.task.Outputs(); len(out) != 0 || made != 4 {
		t.Errorf("%d calls, outputs %v", made, out)
	}
}

// A result that no topic takes is the failure of its record.
func TestAsyncResultTooLarge(t *testing.T) {
	topology := build(func(b *processor.Builder) {
		stream.To(stream.Async(stream.From(b, Words), Lookups,
			func(_ context.Context, _ string, _, v string) (string, error) { return strings.Repeat(v, 1000), nil },
			processor.CallOptions{}), Out)
	})
	var skipped []*processor.TaskError
	tk, err := topology.NewTask("app", processor.TaskID{Sub: "words"}, memory.New(), processor.TaskOptions{
		MaxTaskIdle: -1, MaxRecordBytes: 1000, OnProcessError: processor.Skip(),
		OnSkipped: func(e *processor.TaskError) { skipped = append(skipped, e) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := tk.Start(nil, "", 1); err != nil {
		t.Fatal(err)
	}
	tk.Enqueue("words", []processor.RawRecord{
		{Topic: "words", Offset: 7, Key: []byte("k"), Value: []byte("large")},
		{Topic: "words", Offset: 8, Key: []byte("k"), Value: []byte{}},
	})
	if n, _, err := tk.Step(9, 1); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	outputs := 0
	for range 2 {
		tk.Boundary()
		tk.Commit([]state.Position{{}}, 1)
		calls, err := tk.Calls(1)
		if err != nil || len(calls) != 1 {
			t.Fatal(len(calls), err)
		}
		if err := tk.Complete([]task.Result{calls[0].Do(t.Context())}, 1); err != nil {
			t.Fatal(err)
		}
		outputs += len(tk.Outputs())
	}
	if len(skipped) != 1 || skipped[0].Offset != 7 || outputs != 1 {
		t.Errorf("skipped %v, %d outputs", skipped, outputs)
	}
}
