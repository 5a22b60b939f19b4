//go:build kafka && unix

package faults

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/internal/engine"
	"tailrace.dev/internal/kafkatest"
)

// With the build tag kafka the tests run on a real cluster, which they share: each has its own names.
func init() {
	realBrokers = func(t *testing.T) []string { t.Helper(); return kafkatest.Brokers(t) }
}

// oldBroker starts a broker of the test's own with transaction.version 1, on which an offset commit that was not
// announced by AddOffsetsToTxn is accepted and forgotten.
func oldBroker(t *testing.T) []string {
	t.Helper()
	script, err := filepath.Abs("../kafkatest/kafka")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	dir := t.TempDir()
	out, err := exec.Command(script, "start", dir, fmt.Sprint(port)).CombinedOutput()
	if err != nil {
		t.Fatalf("start a broker: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command(script, "kill", dir).Run() })
	addrs := []string{fmt.Sprintf("127.0.0.1:%d", port)}
	cl, err := kgo.NewClient(kgo.SeedBrokers(addrs...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	const safeDowngrade = 2
	updated, err := kadm.NewClient(cl).UpdateFeatures(ctx, false, kadm.FeatureUpdate{
		Feature: "transaction.version", MaxVersionLevel: 1, UpgradeType: safeDowngrade,
	})
	if err == nil {
		err = updated.Error()
	}
	if err != nil {
		t.Fatalf("set transaction.version 1: %v", err)
	}
	return addrs
}

// TestHarnessCatchesNoAddOffsets leaves AddOffsetsToTxn out on a broker that needs it: the outputs are there, the offsets
// are not.
func TestHarnessCatchesNoAddOffsets(t *testing.T) {
	addrs := oldBroker(t)
	for _, d := range []engine.Defect{engine.NoDefect, engine.NoAddOffsets} {
		t.Run(map[engine.Defect]string{engine.NoDefect: "none", engine.NoAddOffsets: "defect"}[d], func(t *testing.T) {
			c := &cluster{t: t, addrs: addrs, app: strings.ToLower(filepath.Base(t.Name()))}
			c.prepare(1)
			f := c.feeder(20)
			dir := t.TempDir()
			f.send(200)
			m := spawn(t, c.spec(dir))
			m.waitRunning(60 * time.Second)
			c.settle(60 * time.Second)
			m.stop()

			spec := c.spec(dir)
			spec.Defect = d
			m = spawn(t, spec)
			m.waitRunning(60 * time.Second)
			f.send(200)
			until(t, 30*time.Second, "the outputs", func() bool { return c.audit(f).records >= 400 })
			m.kill()
			m = spawn(t, c.spec(dir))
			m.waitRunning(60 * time.Second)
			c.settle(60 * time.Second)
			m.stop()
			found := findings(c, f, dir)
			t.Log(found)
			if (len(found) > 0) != (d == engine.NoAddOffsets) {
				t.Errorf("found %v", found)
			}
		})
	}
}
