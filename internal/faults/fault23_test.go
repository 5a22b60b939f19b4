//go:build unix

package faults

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// resident returns the memory of a member's process that is not that of files, in MiB; ok is false where the system does not tell.
func (m *member) resident() (mib int, ok bool) { return m.status("RssAnon:") }

// status returns a line, in MiB, of what the system tells of a member's memory.
func (m *member) status(name string) (mib int, ok bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(m.cmd.Process.Pid) + "/status")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(b)) {
		if rest, found := strings.CutPrefix(line, name); found {
			kib, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			return kib >> 10, err == nil
		}
	}
	return 0, false
}

// TestFault23SlowSink has the broker acknowledge the output slowly, or the program process slowly, while input comes ten
// times as fast as it can be processed. What waits stays on the broker: memory does not grow with it, and the member is
// not taken for dead.
func TestFault23SlowSink(t *testing.T) {
	t.Parallel()
	long := 8 * time.Second
	if onKafka() {
		long = 90 * time.Second
	}
	for _, slow := range []string{"broker", "program"} {
		t.Run(slow, func(t *testing.T) {
			t.Parallel()
			c := newFake(t, 2)
			f := c.feeder(500)
			spec := c.spec(t.TempDir())
			spec.Session, spec.QueueBytes, spec.StateBytes = 2*time.Second, 1<<20, 4<<20
			spec.Commit = 100 * time.Millisecond
			// Four thousand records a second, or about.
			var slowed atomic.Bool
			slowed.Store(true)
			if slow == "program" {
				spec.Delay = 400 * time.Microsecond
			} else {
				c.slowProduce(&slowed, 800*time.Millisecond)
			}
			m := spawn(t, spec)
			m.waitRunning(30 * time.Second)
			if _, ok := m.resident(); !ok {
				t.Skip("the system does not tell how much memory a process has")
			}
			value := bytes.Repeat([]byte("v"), 1000)
			var early, most, earlyRecords int
			began := time.Now()
			for time.Since(began) < long {
				f.sendValues(4000, value) // as fast as the broker takes them, but for the sleep
				time.Sleep(100 * time.Millisecond)
				mib, _ := m.resident()
				if time.Since(began) < long/2 {
					early, earlyRecords = max(early, mib), f.total
				}
				most = max(most, mib)
			}
			behind := int64(f.total) - c.committed()
			came := (f.total - earlyRecords) * len(value) >> 20
			t.Logf("%d records in, %d behind; %d MiB at most in the first half, %d MiB in all, while %d MiB came in", f.total,
				behind, early, most, came)
			if behind < int64(f.total)/8 {
				t.Errorf("only %d of %d records are behind: the sink was not slow", behind, f.total)
			}
			// A short run ends while the tables in memory still fill. The race detector's memory grows by itself.
			if grew := most - early; !raceDetector && (onKafka() && most > early*6/5+16 || grew > came/2+16 || most > 300) {
				t.Errorf("memory grew from %d to %d MiB", early, most)
			}
			if n := len(m.said(saysRebuilt)) + len(m.said(saysTasks)); n != 1 {
				t.Errorf("the member was disturbed: %s", m.transcript())
			}
			slowed.Store(false)
			if slow == "program" {
				m.stop()
				spec.Delay = 0
				m = spawn(t, spec)
			}
			c.settle(2 * time.Minute)
			m.stop()
			c.mustBeExact(f)
		})
	}
}

// slowProduce delays the acknowledgement of records of the output.
func (c *cluster) slowProduce(on *atomic.Bool, by time.Duration) {
	fake := c.broker.Cluster()
	fake.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		fake.KeepControl()
		if !on.Load() {
			return nil, nil, false
		}
		produce, ok := req.(*kmsg.ProduceRequest)
		if ok && len(produce.Topics) > 0 && c.isOut(produce) {
			fake.SleepControl(func() { time.Sleep(by) })
		}
		return nil, nil, false
	})
}

func (c *cluster) isOut(produce *kmsg.ProduceRequest) bool {
	out := c.broker.Cluster().TopicInfo(c.out)
	for _, t := range produce.Topics {
		if t.Topic == c.out || out != nil && t.TopicID == out.TopicID {
			return true
		}
	}
	return false
}

// sendValues is send with a value of a test's own.
func (f *feeder) sendValues(n int, value []byte) {
	f.c.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	records := make([]*kgo.Record, n)
	for i := range records {
		key := "key-" + strconv.Itoa(f.total%f.keys)
		f.total++
		f.sent[key]++
		records[i] = &kgo.Record{Topic: f.c.in, Key: []byte(key), Value: value}
	}
	if err := f.c.cl.ProduceSync(f.c.t.Context(), records...).FirstErr(); err != nil {
		f.c.t.Errorf("feed: %v", err)
	}
}
