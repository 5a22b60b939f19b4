//go:build kafka

package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"time"
)

// TestKafka runs the whole program against a real cluster. Its topics and its group keep their names and stay, so
// that each run goes on where the last one ended; the recount covers all of them.
func TestKafka(t *testing.T) {
	brokers := os.Getenv("TAILRACE_KAFKA")
	if brokers == "" {
		t.Fatal("TAILRACE_KAFKA names no broker: make kafka starts one, make test-kafka sets it")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	args := []string{
		"-brokers", brokers, "-state", t.TempDir(), "-http", "127.0.0.1:0", "-events", "3000", "-rate", "500", "-once",
	}
	if code := command(ctx, args, &out, &errs); code != 0 || !strings.Contains(out.String(), "check 2") {
		t.Fatalf("exit code %d\n%s\n%s", code, out.String(), errs.String())
	}
	t.Log(out.String())
}
