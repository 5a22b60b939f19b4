//go:build kafka

package kafkatest

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func client(t *testing.T, brokers []string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(brokers...)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// TestTransactionVersion checks what the exactly-once promise is made for.
func TestTransactionVersion(t *testing.T) {
	resp, err := kadm.NewClient(client(t, Brokers(t))).ApiVersions(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range resp {
		for key, level := range finalized(v) {
			if key == "transaction.version" && level >= 2 {
				return
			}
		}
	}
	t.Error("the cluster has not finalized transaction.version=2")
}

// finalized returns the feature levels that the broker reports.
func finalized(v kadm.BrokerApiVersions) map[string]int16 {
	levels := make(map[string]int16)
	for _, f := range v.Raw().FinalizedFeatures {
		levels[f.Name] = f.MaxVersionLevel
	}
	return levels
}

func TestTransaction(t *testing.T) {
	brokers := Brokers(t)
	topic := CreateTopic(t, brokers, "events", 1, nil)
	cl := client(t, brokers, kgo.DefaultProduceTopic(topic), kgo.TransactionalID(Name(t, "id")))
	for _, step := range []struct {
		value string
		end   kgo.TransactionEndTry
	}{{"one", kgo.TryCommit}, {"never", kgo.TryAbort}, {"two", kgo.TryCommit}} {
		transact(t, cl, step.value, step.end)
	}
	if got := fmt.Sprint(read(t, brokers, topic, 2)); got != "[one two]" {
		t.Errorf("read %s", got)
	}
}

// TestScript starts, kills and stops a broker of its own with the script, and looks for the data afterwards.
func TestScript(t *testing.T) {
	dir, port := t.TempDir(), freePorts(t)
	script := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(testContext(t), "./kafka", args...)
		var complaint strings.Builder
		cmd.Stderr = &complaint
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("kafka %s: %v: %s", strings.Join(args, " "), err, complaint.String())
		}
		return strings.TrimSpace(string(out))
	}
	// If all went well there is nothing to kill.
	t.Cleanup(func() { _ = exec.Command("./kafka", "kill", dir).Run() })
	brokers := strings.Split(script("start", dir, port), ",")
	const topic = "events" // its cluster goes with the test, so it is not cleaned up
	if _, err := kadm.NewClient(client(t, brokers)).CreateTopic(testContext(t), 1, 1, nil, topic); err != nil {
		t.Fatal(err)
	}
	cl := client(t, brokers, kgo.DefaultProduceTopic(topic), kgo.TransactionalID("script"))
	transact(t, cl, "before", kgo.TryCommit)
	script("kill", dir)
	if got := script("status", dir); !strings.Contains(got, "not running") {
		t.Errorf("after the kill: %s", got)
	}
	script("start", dir, port)
	transact(t, cl, "after", kgo.TryCommit)
	if got := fmt.Sprint(read(t, brokers, topic, 2)); got != "[before after]" {
		t.Errorf("read %s", got)
	}
	cl.Close()
	script("stop", dir)
	if got := script("status", dir); !strings.Contains(got, "not running") {
		t.Errorf("after the stop: %s", got)
	}
}

// freePorts finds two neighbouring free ports, for the broker and its controller.
func freePorts(t *testing.T) string {
	t.Helper()
	port, err := freeRange(2)
	if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(port)
}

func transact(t *testing.T, cl *kgo.Client, value string, end kgo.TransactionEndTry) {
	t.Helper()
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := cl.ProduceSync(testContext(t), kgo.StringRecord(value)).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if err := cl.EndTransaction(testContext(t), end); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, brokers []string, topic string, n int) []string {
	t.Helper()
	cl := client(t, brokers, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	var values []string
	for len(values) < n {
		fs := cl.PollFetches(testContext(t))
		if err := fs.Err(); err != nil {
			t.Fatalf("after %d of %d records: %v", len(values), n, err)
		}
		fs.EachRecord(func(r *kgo.Record) { values = append(values, string(r.Value)) })
	}
	return values
}
