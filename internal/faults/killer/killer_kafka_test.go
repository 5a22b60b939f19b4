//go:build kafka && unix

package main

import (
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestKills is a short run of the program for each number of members, on a broker of its own that is killed, too. make
// kills runs it at length.
func TestKills(t *testing.T) {
	t.Chdir("../../..")
	dir := t.TempDir()
	o := options{
		runs: 3, seed: uint64(time.Now().Unix()), kills: 12, rate: 4000, keys: 1000, every: 1500 * time.Millisecond,
		bounce: 8, wipe: 6, within: 5 * time.Second, kafkaDir: filepath.Join(dir, "kafka"), dir: dir,
		bench: filepath.Join(dir, "bench"),
	}
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", o.bench, "./bench").CombinedOutput(); err != nil {
		t.Fatalf("build the benchmark program: %v: %s", err, out)
	}
	if _, err := o.execute(t.Context(), func(line string) { t.Log(line) }); err != nil {
		t.Error(err)
	}
}
