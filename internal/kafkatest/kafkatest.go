// Package kafkatest gives the tests with the build tag kafka their brokers.
//
// The tests need a real cluster and fail without one: a test that skips itself says nothing when it is green. The
// script kafka beside this file starts one from Maven Central, compose.yaml one with Docker.
package kafkatest

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Env is the environment variable with the brokers' addresses, separated by commas.
const Env = "TAILRACE_KAFKA"

const howTo = "start a broker with `make kafka` and set " + Env + "=127.0.0.1:19092, or run `make test-kafka`"

// reachTimeout is how long the brokers may take to answer. They are running, so it is short.
const reachTimeout = 10 * time.Second

// Brokers returns the addresses of the cluster under test. The test fails at once, with the command that starts a
// cluster, when none is named or none answers.
func Brokers(t testing.TB) []string {
	t.Helper()
	brokers := strings.FieldsFunc(os.Getenv(Env), func(r rune) bool { return r == ',' || r == ' ' })
	if len(brokers) == 0 {
		t.Fatalf("kafkatest: %s is not set: %s", Env, howTo)
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatalf("kafkatest: %s=%s: %v", Env, os.Getenv(Env), err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), reachTimeout)
	defer cancel()
	if err := cl.Ping(ctx); err != nil {
		t.Fatalf("kafkatest: no broker answers at %s: %v: %s", strings.Join(brokers, ","), err, howTo)
	}
	return brokers
}

// Name returns a name that no other test and no earlier run has used, for topics, groups and application ids: Kafka's
// data outlives the test. It is made of the test's name, the given part and the time.
func Name(t testing.TB, part string) string {
	t.Helper()
	test := regexp.MustCompile(`[^a-zA-Z0-9._-]+`).ReplaceAllString(t.Name(), "-")
	return fmt.Sprintf("%s-%s-%d", test, part, time.Now().UnixNano())
}

// CreateTopic creates a topic with a name from [Name] and returns that name. The topic is removed when the test ends,
// unless the test failed: then it stays, to be looked at.
func CreateTopic(t testing.TB, brokers []string, part string, partitions int, configs map[string]string) string {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatalf("kafkatest: %v", err)
	}
	t.Cleanup(cl.Close)
	adm := kadm.NewClient(cl)
	values := make(map[string]*string, len(configs))
	for k, v := range configs {
		values[k] = &v
	}
	name := Name(t, part)
	ctx, cancel := context.WithTimeout(t.Context(), reachTimeout)
	defer cancel()
	if _, err := adm.CreateTopic(ctx, int32(partitions), -1, values, name); err != nil {
		t.Fatalf("kafkatest: create topic %s: %v", name, err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("kafkatest: topic %s is left for inspection", name)
			return
		}
		// The test's own context has ended by now.
		ctx, cancel := context.WithTimeout(context.Background(), reachTimeout)
		defer cancel()
		if _, err := adm.DeleteTopic(ctx, name); err != nil {
			t.Logf("kafkatest: delete topic %s: %v", name, err)
		}
	})
	return name
}
