package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/state"
	"tailrace.dev/state/memory"
)

// The benchmarks of this file drive tasks without a broker: what the pure machine costs for each record, and what it
// allocates. Commits are included, at the number of records that 100 ms hold end to end, and so are flushes.
const (
	stepRecords   = 500
	commitRecords = 50_000
	flushBytes    = 64 << 20
)

// inputRecords returns the records of one partition, with keys drawn from the given number.
func inputRecords(n, keys int) []processor.RawRecord {
	rng := rand.New(rand.NewPCG(1, 2))
	value := slices.Repeat([]byte("v"), valueBytes)
	rs := make([]processor.RawRecord, n)
	for i := range rs {
		rs[i] = processor.RawRecord{
			Topic: "events", Offset: int64(i), TimeMillis: 1_700_000_000_000 + int64(i/10),
			Key: fmt.Appendf(nil, "k%07d", rng.IntN(keys)), Value: value,
		}
	}
	return rs
}

// stepper is a task that is fed the same records again and again.
type stepper struct {
	tb       testing.TB
	task     *processor.Task
	records  []processor.RawRecord
	at       int
	uncommit int
}

func newStepper(tb testing.TB, workload string, keys int) *stepper {
	tb.Helper()
	topology, err := buildWorkload(workConfig{workload: workload, in: "events", table: "table", out: "out"})
	if err != nil {
		tb.Fatal(err)
	}
	backend := memory.New()
	tb.Cleanup(func() {
		if err := backend.Close(); err != nil {
			tb.Error(err)
		}
	})
	id := processor.TaskID{Sub: topology.SubTopologies()[0]}
	task, err := topology.NewTask("bench", id, backend, processor.TaskOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	if err := task.Start(nil, "", time.Now().UnixMilli()); err != nil {
		tb.Fatal(err)
	}
	return &stepper{tb: tb, task: task, records: inputRecords(1<<18, keys)}
}

// step processes the next records and commits when it is time.
func (s *stepper) step() {
	if s.at+stepRecords > len(s.records) {
		s.at = 0
	}
	s.task.Enqueue("events", s.records[s.at:s.at+stepRecords])
	s.at += stepRecords
	if n, _, err := s.task.Step(stepRecords, 0); err != nil || n != stepRecords {
		s.tb.Fatalf("step: %d records, %v", n, err)
	}
	s.task.Outputs()
	if s.uncommit += stepRecords; s.uncommit >= commitRecords {
		s.uncommit = 0
		s.task.Boundary()
		s.task.Commit([]state.Position{{Next: 1}}, 1)
		if n, _ := s.task.Layers().Unflushed(); n < flushBytes {
			return
		}
		if f := s.task.Layers().Freeze(); f != nil {
			if err := f.Run(); err != nil {
				s.tb.Fatal(err)
			}
			s.task.Layers().Done(f)
		}
	}
}

func benchmarkStep(b *testing.B, workload string, keys int) {
	s := newStepper(b, workload, keys)
	for range 2 * len(s.records) / stepRecords {
		s.step() // the state is as large as it gets
	}
	b.ReportAllocs()
	records := 0
	for b.Loop() {
		s.step()
		records += stepRecords
	}
	b.ReportMetric(float64(records)/b.Elapsed().Seconds(), "records/s")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(records), "ns/record")
}

func BenchmarkStepMap(b *testing.B)       { benchmarkStep(b, "map", 25_000) }
func BenchmarkStepCount(b *testing.B)     { benchmarkStep(b, "count", 25_000) }
func BenchmarkStepCountHot(b *testing.B)  { benchmarkStep(b, "count", 100) }
func BenchmarkStepCountWide(b *testing.B) { benchmarkStep(b, "count", 1<<18) }
