//go:build unix

package faults

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	// startLimit is within which a member that has its state on disk has to process its first record, from when its
	// process is made.
	startLimit = time.Second
	// startRounds is how many starts of each kind are measured; the median counts. Where the machine is busy with other
	// things there are more, until the limit is met.
	startRounds    = 3
	maxStartRounds = 9
)

// TestFault02RestartIsFast restarts a member that has counts of many keys on disk, after a clean stop and after a kill,
// and measures from the start of the process until it processes a record that came while it was away.
func TestFault02RestartIsFast(t *testing.T) {
	keys := fromEnv(t, "FAULTS_KEYS", 100_000)
	if onKafka() {
		keys = fromEnv(t, "FAULTS_KEYS", 1_000_000)
	}
	c := newCluster(t, 4)
	f := c.feeder(keys)
	spec := c.spec(t.TempDir())
	spec.Defaults, spec.First = true, true
	m := spawn(t, spec)
	for left := keys; left > 0; left -= 50_000 {
		f.send(min(left, 50_000))
	}
	c.settle(5 * time.Minute)
	m.stop() // all of the state is on disk

	for _, how := range []struct {
		name string
		kill bool
		rate int // records a second that flow meanwhile; 0: there is a tail of 1,000
		tail int64
	}{
		{"stopped", false, 0, 4_000}, // each commit's marker and each start's barrier takes an offset, too
		{"killed", true, 0, 4_000},
		{"killed under load", true, 5_000, 5_000 * 15}, // what is committed waits up to 10 s for its flush
	} {
		var took []time.Duration
		var slots int64
		for len(took) < startRounds || median(took) > startLimit && len(took) < maxStartRounds {
			m := spawn(t, spec)
			m.waitRunning(30 * time.Second)
			stopFlow := func() {}
			if how.rate > 0 {
				stopFlow = f.flow(how.rate)
				c.progress(30 * time.Second)
			} else {
				f.send(1000)
				c.settle(time.Minute)
			}
			if how.kill {
				m.kill()
			} else {
				m.stop()
			}
			f.send(100)
			m = spawn(t, spec)
			took = append(took, m.first(30*time.Second))
			stopFlow()
			n := m.slotsRestored(t)
			if slots = max(slots, n); n > how.tail {
				t.Errorf("%s: %d offsets were read back, more than the tail (%d)", how.name, n, how.tail)
			}
			c.settle(time.Minute)
			if m.wiped() {
				t.Errorf("%s: state was wiped", how.name)
			}
			m.stop()
		}
		t.Logf("%d keys, %s: first record after %v (median of %v), at most %d offsets read back", keys, how.name,
			median(took), took, slots)
		if median(took) > startLimit {
			t.Errorf("%s: the first record was processed %v after the start of the process, want %v", how.name,
				median(took), startLimit)
		}
	}
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2].Round(time.Millisecond)
}

// first waits for the first record, and returns how long after the start of the process it was processed.
func (m *member) first(limit time.Duration) time.Duration {
	m.t.Helper()
	until(m.t, limit, "the first record", func() bool { return len(m.said(saysFirst)) > 0 })
	m.mu.Lock()
	defer m.mu.Unlock()
	i := slices.IndexFunc(m.lines, func(l line) bool { return l.word == saysFirst })
	return m.lines[i].at.Sub(m.started)
}

// slotsRestored returns how many offsets of changelogs the member has had to read back.
func (m *member) slotsRestored(t *testing.T) (n int64) {
	t.Helper()
	for _, text := range m.said(saysRestored) {
		var task, store string
		var from, to int64
		if _, err := fmt.Fscan(strings.NewReader(text), &task, &store, &from, &to); err != nil {
			t.Fatalf("line %q: %v", text, err)
		}
		n += to - from
	}
	return n
}
