//go:build unix

package faults

import (
	"fmt"
	"maps"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
)

// clock is a wall clock that a test sets.
type clock struct {
	off    atomic.Int64 // from the real one
	frozen atomic.Int64 // if not 0, where it stands, in nanoseconds
}

func (c *clock) now() time.Time {
	if at := c.frozen.Load(); at != 0 {
		return time.Unix(0, at)
	}
	return time.Now().Add(time.Duration(c.off.Load()))
}

func (c *clock) jump(by time.Duration) { c.off.Add(int64(by)) }
func (c *clock) freeze()               { c.frozen.Store(c.now().UnixNano()) }
func (c *clock) thaw()                 { c.frozen.Store(0) }

// TestFault22Clock sets the wall clock forward and back by an hour and a day, and stops it, while records flow. Nothing is
// lost or doubled, no transaction times out, and it starts again after each jump.
func TestFault22Clock(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	f := c.feeder(50)
	clk := &clock{}
	s := c.setup(t.TempDir(), nil)
	s.seams.Now = clk.now
	l := s.run(t)
	f.send(100)
	c.settle(30 * time.Second)
	stop := f.flow(500)
	jumps := []struct {
		what string
		do   func()
	}{
		{"an hour forward", func() { clk.jump(time.Hour) }},
		{"two hours back", func() { clk.jump(-2 * time.Hour) }},
		{"a day and an hour forward", func() { clk.jump(25 * time.Hour) }},
		{"two days back", func() { clk.jump(-48 * time.Hour) }},
		{"frozen", clk.freeze},
		{"right again", func() { clk.thaw(); clk.off.Store(0) }},
	}
	for _, j := range jumps {
		j.do()
		time.Sleep(400 * time.Millisecond)
		took := c.resumed(time.Now(), 30*time.Second)
		t.Logf("%s: resumed after %v", j.what, took.Round(time.Millisecond))
		if l.ended() {
			t.Fatalf("%s: the member ended: %v", j.what, l.err)
		}
		if took > 5*time.Second {
			t.Errorf("%s: resumed after %v", j.what, took)
		}
	}
	if r := append(l.rebuilds(), l.aborts()...); len(r) > 0 {
		t.Errorf("rebuilt or aborted: %v", r)
	}
	// State that was left while the clock was wrong, and is found while it is wrong otherwise.
	for _, j := range jumps {
		l.stop()
		j.do()
		l = s.run(t)
		l.waitRunning(30 * time.Second)
		c.resumed(time.Now(), 30*time.Second)
	}
	stop()
	c.settle(30 * time.Second)
	l.stop()
	c.mustBeExact(f)
	c.mustMatchChangelog(t, s.config.StateDir)
}

// TestFault22FutureTimestamps sends records that lie in the future, to windows that close. Which records are late is
// decided by the records alone: the results are those of a fold over them, whatever the clock shows.
func TestFault22FutureTimestamps(t *testing.T) {
	t.Parallel()
	const size, grace = 10 * time.Second, 5 * time.Second
	base := time.Now().Add(-time.Hour).Truncate(size)
	at := func(seconds int) time.Time { return base.Add(time.Duration(seconds) * time.Second) }
	times := []time.Time{
		at(0), at(1), at(3), at(12), at(4), // 4 is late, but within the grace
		at(14), at(16), at(2), // 2 is too late: the window ended at 10, the stream is at 16
		at(40), at(33), at(24), // 24 is too late
		at(86400), at(41), at(86399), at(86400 + 3), // a day ahead: 41 is too late
		time.Now().Add(30 * time.Minute).Truncate(time.Second),
	}
	want := map[string]int64{}
	streamTime := time.Time{}
	for _, ts := range times {
		if ts.After(streamTime) {
			streamTime = ts
		}
		start := ts.Truncate(size)
		if !start.Add(size + grace).After(streamTime) {
			continue
		}
		want[fmt.Sprint(start.Unix())]++
	}
	for _, off := range []time.Duration{0, 25 * time.Hour, -25 * time.Hour} {
		t.Run(off.String(), func(t *testing.T) {
			t.Parallel()
			// The broker is told to take what comes: by default, a real one refuses what is an hour ahead.
			c := newFake(t, 1)
			clk := &clock{}
			clk.jump(off)
			store := state.Window("windows", serde.String, serde.Int64, size+grace)
			topology, err := processor.Build(func(b *processor.Builder) {
				in := stream.From(b, processor.NewTopic(c.in, serde.String, serde.Raw))
				counted := stream.Count(stream.WindowBy(stream.Group(in), stream.Tumbling(size).Grace(grace)), store)
				out := stream.Rekey(stream.Changes(counted), func(w state.Windowed[string], _ int64) string {
					return fmt.Sprint(w.StartMillis / 1000)
				})
				stream.To(out, processor.NewTopic(c.out, serde.String, serde.Int64))
			})
			if err != nil {
				t.Fatal(err)
			}
			s := setup{app: c.app, topology: topology, config: memberConfig(c.addrs, t.TempDir())}
			s.seams.Now = clk.now
			l := s.run(t)
			for i, ts := range times {
				r := &kgo.Record{Topic: c.in, Key: []byte("k"), Value: []byte("v"), Timestamp: ts}
				if err := c.cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
					t.Fatal(err)
				}
				if i == len(times)/2 { // stream time must outlive a restart, too
					c.settle(30 * time.Second)
					l.stop()
					l = s.run(t)
				}
			}
			c.settle(30 * time.Second)
			l.stop()
			got := map[string]int64{}
			records, _ := c.readAll(c.out)
			for _, r := range records[0] {
				n, err := serde.Int64.Decode(r.Value)
				if err != nil {
					t.Fatal(err)
				}
				got[string(r.Key)] = n
			}
			if !maps.Equal(got, want) {
				t.Errorf("windows %v, want %v", got, want)
			}
		})
	}
}
