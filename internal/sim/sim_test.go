package sim

import (
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The environment of the tests, which make sim and make sim-net set.
const (
	envSeed     = "SIM_SEED"     // the first seed
	envRuns     = "SIM_RUNS"     // how many seeds of the model simulation
	envNetRuns  = "SIM_NET_RUNS" // how many of the simulation in virtual time
	envWorkload = "SIM_WORKLOAD" // the workload to run, in place of the seed's choice
	envTrace    = "SIM_TRACE"    // how many lines of the trace of a failed run are shown; all: every one
)

// few is how many seeds the ordinary tests run.
const few = 400

func fromEnv(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		t.Fatalf("%s=%q is not a number", name, text)
	}
	return n
}

func traceLines(t *testing.T) int {
	t.Helper()
	if os.Getenv(envTrace) == "all" {
		return -1
	}
	return fromEnv(t, envTrace, 80)
}

// report shows a failed run, made once more with its trace, and how to make it again.
func report(t *testing.T, r Result, o Options) {
	t.Helper()
	o.TraceLines = traceLines(t)
	again := Run(r.Seed, o)
	t.Errorf("seed %d, workload %s, defect %v:\n  %s\nlast steps (number, milliseconds, event):\n  %s\n"+
		"again: make sim SEED=%d RUNS=1 TRACE=all", r.Seed, r.Workload, o.Defect, strings.Join(r.Findings, "\n  "),
		strings.Join(again.Trace, "\n  "), r.Seed)
}

// TestModel runs the model simulation over many seeds, in parallel, one goroutine for each run.
func TestModel(t *testing.T) {
	t.Parallel()
	first, runs := uint64(fromEnv(t, envSeed, 0)), fromEnv(t, envRuns, few)
	if testing.Short() {
		runs = min(runs, few/10)
	}
	o := Options{Workload: os.Getenv(envWorkload)}
	var next, failed atomic.Int64
	var mu sync.Mutex
	var sum Result
	byWorkload := map[string]int{}
	began := time.Now()
	var wg sync.WaitGroup
	for range min(runs, runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(runs) && failed.Load() < 3; i = next.Add(1) - 1 {
				r := Run(first+uint64(i), o)
				mu.Lock()
				sum.Steps += r.Steps
				sum.Inputs += r.Inputs
				sum.Crashes += r.Crashes
				sum.Rebuilds += r.Rebuilds
				sum.Aborts += r.Aborts
				sum.Wipes += r.Wipes
				sum.Holds += r.Holds
				byWorkload[r.Workload]++
				if len(r.Findings) > 0 {
					failed.Add(1)
					report(t, r, o)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	t.Logf("seeds %d to %d in %v: %d steps, %d records, %d crashes, %d held, %d rebuilds, %d aborts, %d stores wiped; %v",
		first, first+uint64(runs)-1, time.Since(began).Round(time.Millisecond), sum.Steps, sum.Inputs, sum.Crashes,
		sum.Holds, sum.Rebuilds, sum.Aborts, sum.Wipes, byWorkload)
}

// TestSameSeedSameTrace makes runs twice. Their whole traces must be equal, byte by byte.
func TestSameSeedSameTrace(t *testing.T) {
	t.Parallel()
	for _, w := range workloads() {
		for seed := range uint64(5) {
			o := Options{TraceLines: -1, Workload: w.name}
			a, b := Run(seed, o), Run(seed, o)
			if len(a.Trace) < 100 {
				t.Errorf("seed %d, workload %s: only %d lines of trace", seed, w.name, len(a.Trace))
			}
			for i := range a.Trace {
				if i >= len(b.Trace) || a.Trace[i] != b.Trace[i] {
					t.Fatalf("seed %d, workload %s: the runs part at line %d: %s", seed, w.name, i, a.Trace[i])
				}
			}
			if !slices.Equal(a.Trace, b.Trace) {
				t.Errorf("seed %d, workload %s: the second run has more lines", seed, w.name)
			}
			quiet := Run(seed, Options{Workload: w.name})
			if quiet.Steps != a.Steps || quiet.Crashes != a.Crashes {
				t.Errorf("seed %d, workload %s: tracing changes the run", seed, w.name)
			}
		}
	}
}

// TestDefectsAreFound builds mistakes in. Each must be found within a bounded number of seeds, or the simulation is worth
// nothing.
func TestDefectsAreFound(t *testing.T) {
	t.Parallel()
	const most = 3000
	for d := NoDefect + 1; d < defects; d++ {
		t.Run(d.String(), func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(most) {
				if r := Run(seed, Options{Defect: d}); len(r.Findings) > 0 {
					t.Logf("found by seed %d, workload %s: %s", seed, r.Workload, r.Findings[0])
					return
				}
			}
			t.Errorf("not found by %d seeds", most)
		})
	}
}
