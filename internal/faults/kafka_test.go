//go:build kafka && unix

package faults

import (
	"testing"

	"tailrace.dev/internal/kafkatest"
)

// With the build tag kafka the tests run on a real cluster, which they share: each has its own names.
func init() {
	realBrokers = func(t *testing.T) []string { t.Helper(); return kafkatest.Brokers(t) }
}
