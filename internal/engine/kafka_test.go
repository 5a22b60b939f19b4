//go:build kafka

package engine

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"tailrace.dev/internal/kafkatest"
)

// With the build tag kafka, the tests of this package run on a real cluster, which they share: each has its own names.
func init() {
	realCluster = func(t *testing.T) *cluster {
		t.Helper()
		name := strings.ToLower(strings.NewReplacer("/", "-", " ", "-").Replace(t.Name()))
		return &cluster{
			t: t, addrs: kafkatest.Brokers(t), ns: fmt.Sprintf("%s-%d-", name, time.Now().UnixNano()%1e9),
		}
	}
}
