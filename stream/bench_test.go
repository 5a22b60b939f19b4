package stream_test

import (
	"fmt"
	"slices"
	"testing"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/state/memory"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

var (
	RawIn    = processor.NewTopic("raw-in", serde.Raw, serde.Int64)
	RawTable = processor.NewTopic("raw-table", serde.Raw, serde.Int64)
	RawOut   = processor.NewTopic("raw-out", serde.Raw, serde.Int64)

	RawCounts = state.KeyValue("raw-counts", serde.Raw, serde.Int64)
	RawRows   = state.KeyValue("raw-rows", serde.Raw, serde.Int64)
	RawSums   = state.KeyValue("raw-sums", serde.Raw, serde.JSON[sums]())
)

// sums is an aggregate that is expensive to decode, and changed in place.
type sums struct {
	ByParity map[string]int64
	Last     []int64
}

func (s sums) add(_ []byte, v int64) sums {
	if s.ByParity == nil {
		s.ByParity = make(map[string]int64)
	}
	s.ByParity[[]string{"even", "odd"}[v&1]] += v
	if s.Last = append(s.Last, v); len(s.Last) > 4 {
		s.Last = append(s.Last[:0], s.Last[1:]...)
	}
	return s
}

// workloads are what one record goes through.
var workloads = []struct {
	name    string
	declare func(b *processor.Builder)
	// allocs bounds the allocations for each record.
	allocs float64
}{
	{"map", func(b *processor.Builder) {
		stream.Map(stream.From(b, RawIn), func(_ []byte, v int64) int64 { return v + 1 })
	}, 0},
	{"filter-map-to", func(b *processor.Builder) {
		kept := stream.Filter(stream.From(b, RawIn), func(_ []byte, v int64) bool { return v >= 0 })
		stream.To(stream.Map(kept, func(_ []byte, v int64) int64 { return v + 1 }), RawOut)
	}, 0},
	{"count", func(b *processor.Builder) {
		table.To(stream.Count(stream.Group(stream.From(b, RawIn)), RawCounts), RawOut)
	}, 0},
	{"aggregate", func(b *processor.Builder) { // in JSON
		stream.Aggregate(stream.Group(stream.From(b, RawIn)), RawSums, sums.add)
	}, 4},
	{"join", func(b *processor.Builder) {
		stream.To(stream.Join(stream.From(b, RawIn), table.From(b, RawTable, RawRows),
			func(_ []byte, v, row int64) int64 { return v + row }), RawOut)
	}, 0},
}

// feeder feeds a task with batches, taking its outputs and committing as an engine does.
type feeder struct {
	tb      testing.TB
	task    *processor.Task
	records []processor.RawRecord
	stores  int
	batches int
}

const feedBatch = 1000

func newFeeder(tb testing.TB, declare func(b *processor.Builder)) *feeder {
	tb.Helper()
	topology, err := processor.Build(declare)
	if err != nil {
		tb.Fatal(err)
	}
	sub := topology.SubTopologies()[0]
	for _, s := range topology.SubTopologies() {
		if slices.Contains(topology.Sources("app", s), "raw-in") {
			sub = s
		}
	}
	task, err := topology.NewTask("app", processor.TaskID{Sub: sub}, memory.New(), processor.TaskOptions{MaxTaskIdle: -1})
	if err != nil {
		tb.Fatal(err)
	}
	if err := task.Start(nil, "", 0); err != nil {
		tb.Fatal(err)
	}
	f := &feeder{tb: tb, task: task, stores: len(topology.Stores(sub))}
	var rows []processor.RawRecord
	for i := range feedBatch {
		key := fmt.Appendf(nil, "user-%d", i%500)
		r := processor.RawRecord{Topic: "raw-in", Offset: int64(i), TimeMillis: int64(i), Key: key}
		var err error
		if r.Value, err = serde.Encode(serde.Int64, int64(i)); err != nil {
			tb.Fatal(err)
		}
		f.records = append(f.records, r)
		r.Topic = "raw-table"
		rows = append(rows, r)
	}
	task.Enqueue("raw-table", rows)
	for range 20 {
		f.feed() // what grows has grown
	}
	return f
}

func (f *feeder) feed() {
	f.task.Enqueue("raw-in", f.records)
	if _, _, err := f.task.Step(2*feedBatch, 0); err != nil {
		f.tb.Fatal(err)
	}
	f.task.Outputs()
	if f.batches++; f.batches%10 != 0 {
		return
	}
	f.task.Boundary()
	f.task.Commit(make([]state.Position, f.stores), 1)
}

func BenchmarkTaskStep(b *testing.B) {
	for _, w := range workloads {
		b.Run(w.name, func(b *testing.B) {
			f := newFeeder(b, w.declare)
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				f.feed()
				n += feedBatch
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/record")
			b.ReportMetric(float64(n)/b.Elapsed().Seconds()/1e6, "Mrec/s")
		})
	}
}

// What a record allocates is what the garbage collector costs at a million records a second. Chunks that hold the bytes
// of many records, and what a commit allocates, are spread over those.
func TestAllocationsPerRecord(t *testing.T) {
	for _, w := range workloads {
		f := newFeeder(t, w.declare)
		got := testing.AllocsPerRun(50, f.feed) / feedBatch
		t.Logf("%s: %.3f allocations a record", w.name, got)
		slack := 0.05
		if w.allocs > 0 {
			slack = 1 // encoding/json pools what it uses, and the race detector empties pools at random
		}
		if got > w.allocs+slack {
			t.Errorf("%s: %.3f allocations a record, want at most %v", w.name, got, w.allocs)
		}
	}
}
