package main

import (
	"strings"
	"testing"
)

func TestEveryWorkloadBuilds(t *testing.T) {
	for name := range workloads {
		c := workConfig{workload: name, in: "events", table: "table", out: "out"}
		if _, err := buildWorkload(c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := buildWorkload(workConfig{workload: "none"}); err == nil || !strings.Contains(err.Error(), "count, map") {
		t.Errorf("an unknown workload gives %v, want an error that lists those that are known", err)
	}
}

func TestArguments(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want string // in the error
	}{
		{"not a pair", []string{"workload"}, `"workload" is not name=value`},
		{"unknown", []string{"workload=map", "app=a", "out=o", "color=red"}, `"color" is not known`},
		{"bad number", []string{"workload=map", "app=a", "out=o", "threads=two"}, "threads=two"},
		{"bad flag", []string{"workload=map", "app=a", "out=o", "eos=maybe"}, "eos=maybe"},
		{"record cache", []string{"workload=map", "app=a", "out=o", "cache=1024"}, "cache=1024"},
		{"unknown workload", []string{"workload=sort", "app=a", "out=o"}, "workload=sort"},
		{"unknown workload to measure", []string{"run=sort"}, "run=sort"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := run(t.Context(), tt.args)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want one with %q", err, tt.want)
			}
		})
	}
}

// TestStepAllocations holds the tasks to what the workloads themselves allocate: the string of the key, the copy that
// map makes of the value.
func TestStepAllocations(t *testing.T) {
	const slack = 0.1 // chunks that outputs and rows are cut from, the commits
	for workload, budget := range map[string]float64{"map": 2, "count": 1} {
		s := newStepper(t, workload, 100)
		for range 2 * commitRecords / stepRecords {
			s.step()
		}
		perStep := testing.AllocsPerRun(commitRecords/stepRecords, s.step)
		if got := perStep / stepRecords; got > budget+slack {
			t.Errorf("%s: %.2f allocations a record, want at most %.2f", workload, got, budget+slack)
		}
	}
}
