//go:build unix

package faults

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/internal/engine"
)

// TestFault10DiskFull lets the free space of the disk shrink below the floor while records flow. The application stops
// in good order and says why; when there is space again it goes on, with nothing lost or repeated.
func TestFault10DiskFull(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	f := c.feeder(50)
	s := c.setup(t.TempDir(), nil)
	var full atomic.Bool
	s.seams.FreeBytes = func(string) (uint64, error) {
		if full.Load() {
			return 10 << 20, nil
		}
		return 10 << 30, nil
	}
	stop := f.flow(500)
	for range 2 {
		l := s.run(t)
		l.waitRunning(20 * time.Second)
		c.progress(20 * time.Second)
		full.Store(true)
		err := l.end(20 * time.Second)
		if !errors.Is(err, engine.ErrNoSpace) {
			t.Fatalf("ended with %v", err)
		}
		if l.state() != "stopped" {
			t.Errorf("the last state is %q", l.state())
		}
		// A supervisor starts it again while the disk is still full.
		err = s.run(t).end(20 * time.Second)
		if !errors.Is(err, engine.ErrNoSpace) {
			t.Fatalf("on a full disk it ended with %v", err)
		}
		full.Store(false)
	}
	l := s.run(t)
	stop()
	c.settle(20 * time.Second)
	l.stop()
	c.mustBeExact(f)
	if n := c.mustMatchChangelog(t, s.config.StateDir); n != 2 {
		t.Errorf("state of %d tasks, want 2", n)
	}
}

// TestFault10FileSizeLimit lets the operating system refuse to let files grow, as a full disk does for a database that
// writes through memory maps: from the start, and later, when a new file is needed.
func TestFault10FileSizeLimit(t *testing.T) {
	t.Parallel()
	t.Run("from the start", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t, 2)
		f := c.feeder(50)
		dir := t.TempDir()
		f.send(500)
		for range 2 {
			spec := c.spec(dir)
			spec.FileLimit = 1 << 20
			m := spawn(t, spec)
			if end := m.wait(30 * time.Second); !strings.Contains(end, engine.ErrNoSpace.Error()) {
				t.Fatalf("ended with %q: %s", end, m.transcript())
			}
		}
		m := spawn(t, c.spec(dir))
		c.settle(20 * time.Second)
		m.stop()
		if m.wiped() {
			t.Error("local state was wiped")
		}
		c.mustBeExact(f)
		c.mustMatchChangelog(t, dir)
	})
	t.Run("while it runs", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t, 1)
		f := c.feeder(1)
		dir := t.TempDir()
		spec := c.spec(dir)
		spec.FileLimit, spec.LimitAt = 1<<20, 3
		m := spawn(t, spec)
		m.waitRunning(30 * time.Second)
		// Long keys fill a table in memory, after which the database needs another file.
		hit := func() bool { return m.ended() || slices.Contains(m.said(saysState), "stopping") }
		for i := 0; i < 60 && !hit(); i++ {
			f.sendKeys(1000, func(n int) string { return fmt.Sprintf("%08d-%s", i*1000+n, strings.Repeat("k", 1000)) })
			time.Sleep(20 * time.Millisecond)
		}
		for deadline := time.Now().Add(2 * time.Minute); !hit(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the limit was not hit: %s", m.transcript())
			}
		}
		if end := m.wait(time.Minute); !strings.Contains(end, engine.ErrNoSpace.Error()) {
			t.Fatalf("ended with %q: %s", end, m.transcript())
		}
		spec.FileLimit, spec.LimitAt = 0, 0
		m = spawn(t, spec)
		c.settle(4 * time.Minute)
		m.stop()
		c.mustBeExact(f)
		c.mustMatchChangelog(t, dir)
	})
}

// sendKeys writes n records with keys that key makes.
func (f *feeder) sendKeys(n int, key func(n int) string) {
	f.c.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	records := make([]*kgo.Record, n)
	for i := range records {
		k := key(i)
		f.total++
		f.sent[k]++
		records[i] = &kgo.Record{Topic: f.c.in, Key: []byte(k), Value: []byte(`{"seq": 1, "item": "book"}`)}
	}
	if err := f.c.cl.ProduceSync(f.c.t.Context(), records...).FirstErr(); err != nil {
		f.c.t.Errorf("feed: %v", err)
	}
}
