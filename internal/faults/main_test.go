//go:build unix

package faults

import (
	"flag"
	"os"
	"strconv"
	"testing"
	"time"
)

// TestMain runs the tests, or, in a process that a test started, the member that it asked for.
func TestMain(m *testing.M) {
	if spec := os.Getenv(childEnv); spec != "" {
		os.Exit(runChild(spec))
	}
	flag.Parse()
	// The tests wait for brokers, timeouts and sessions most of the time: more of them at once do not need more cores.
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// seconds is how long a kill loop runs.
func seconds(t *testing.T, otherwise int) time.Duration {
	t.Helper()
	return time.Duration(fromEnv(t, "FAULTS_SECONDS", otherwise)) * time.Second
}

func fromEnv(t *testing.T, name string, otherwise int) int {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return otherwise
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: want a positive number", name, v)
	}
	return n
}

// until waits for a condition.
func until(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", limit, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
