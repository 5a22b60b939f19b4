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
	allocs  float64
}{
	{"count", func(b *processor.Builder) { // to compare with
		table.To(stream.Count(stream.Group(stream.From(b, RawIn)), RawCounts), RawOut)
	}, 0},
	{"tumbling", byWindows(stream.Tumbling(time.Minute)), 0.1},
	{"tumbling-close", byWindows(stream.Tumbling(time.Minute).EmitOnClose()), 0.2},
	{"hopping-4", byWindows(stream.Hopping(time.Minute, 15*time.Second)), 0.2},
	{"sliding", byWindows(stream.Sliding(2 * time.Second)), 60},
	{"session", func(b *processor.Builder) {
		w := stream.Sessions(10 * time.Second)
		table.To(stream.Count(stream.SessionBy(stream.Group(stream.From(b, RawIn)), w), RawSessions), RawWindowOut)
	}, 20},
	{"cogroup", func(b *processor.Builder) {
		g := stream.Group(stream.From(b, RawIn))
		add := func(n int64, _ []byte, v int64) int64 { return n + v }
		table.To(stream.Cogroup(RawCounts, stream.With(g, add)), RawOut)
	}, 0},
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
			for range 200 {
				f.feedOn()
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; i += feedBatch {
				f.feedOn()
			}
		})
	}
}
