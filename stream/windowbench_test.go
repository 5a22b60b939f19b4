package stream_test

import (
	"testing"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

var (
	RawWindowKeys = state.WindowedSerde(serde.Raw)
	RawWindowOut  = processor.NewTopic("raw-window-out", RawWindowKeys, serde.Int64)

	RawTumbling = state.Window("raw-tumbling", serde.Raw, serde.Int64, time.Hour)
	RawSessions = state.Session("raw-sessions", serde.Raw, serde.Int64, time.Hour)
)

// windowWorkloads are what one record goes through: 500 keys, a record each millisecond, in the order of time.
var windowWorkloads = []struct {
	name    string
	declare func(b *processor.Builder)
	// allocs bounds the allocations for each record. Windows are new rows, which cost some.
	allocs float64
}{
	{"count", func(b *processor.Builder) { // to compare with
		table.To(stream.Count(stream.Group(stream.From(b, RawIn)), RawCounts), RawOut)
	}, 0.05},
	{"tumbling", byWindows(stream.Tumbling(time.Minute)), 0.1},
	{"tumbling-close", byWindows(stream.Tumbling(time.Minute).EmitOnClose()), 0.2},
	{"hopping-4", byWindows(stream.Hopping(time.Minute, 15*time.Second)), 0.2},
	{"sliding", byWindows(stream.Sliding(2 * time.Second)), 8},
	{"session", func(b *processor.Builder) {
		w := stream.Sessions(10 * time.Second)
		table.To(stream.Count(stream.SessionBy(stream.Group(stream.From(b, RawIn)), w), RawSessions), RawWindowOut)
	}, 4},
	{"cogroup", func(b *processor.Builder) {
		g := stream.Group(stream.From(b, RawIn))
		add := func(n int64, _ []byte, v int64) int64 { return n + v }
		table.To(stream.Cogroup(RawCounts, stream.With(g, add)), RawOut)
	}, 0.05},
}

func byWindows(w stream.Windows) func(b *processor.Builder) {
	return func(b *processor.Builder) {
		windowed := stream.WindowBy(stream.Group(stream.From(b, RawIn)), w)
		table.To(stream.Count(windowed, RawTumbling), RawWindowOut)
	}
}

// feedOn feeds the next second's records.
func (f *feeder) feedOn() {
	for i := range f.records {
		f.records[i].TimeMillis += feedBatch
	}
	f.feed()
}

func BenchmarkTaskStepWindows(b *testing.B) {
	for _, w := range windowWorkloads {
		b.Run(w.name, func(b *testing.B) {
			f := newFeeder(b, w.declare)
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				f.feedOn()
				n += feedBatch
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/record")
			b.ReportMetric(float64(n)/b.Elapsed().Seconds()/1e6, "Mrec/s")
		})
	}
}

func TestWindowAllocationsPerRecord(t *testing.T) {
	for _, w := range windowWorkloads {
		f := newFeeder(t, w.declare)
		got := testing.AllocsPerRun(50, f.feedOn) / feedBatch
		t.Logf("%s: %.3f allocations a record", w.name, got)
		if got > w.allocs {
			t.Errorf("%s: %.3f allocations a record, want at most %v", w.name, got, w.allocs)
		}
	}
}
