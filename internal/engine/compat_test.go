package engine

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// typed gives the store of a program an encoding.
func typed(p Program, value string) Program {
	st := &p.Subs[0].Stores[0]
	st.Kind, st.KeySerde, st.ValueSerde = "key-value", "string", value
	return p
}

// ran runs a program until it has counted ten records more than before, and stops it. What it counted is total in all.
func ran(t *testing.T, r *rig, total int, change ...func(*Settings)) {
	t.Helper()
	r.c.feed("in", total-10, 10, 10)
	p := r.start(t, change...)
	if got := r.c.read("out", total); len(got) != total {
		t.Errorf("%d outputs, want %d", len(got), total)
	}
	p.stop()
}

// again returns a rig with another program on the same disk.
func (r *rig) again(t *testing.T, p Program) *rig {
	t.Helper()
	next := newRig(t, r.c, p)
	next.disk, next.settings.StateDir = r.disk, r.settings.StateDir
	next.program.OpenState = r.disk.open
	return next
}

func counting(t *testing.T) *cluster {
	t.Helper()
	c := newCluster(t)
	c.topic("in", 2)
	c.topic("out", 1)
	c.feed("in", 0, 90, 10)
	return c
}

// TestTopologyIsRecorded starts once, and finds the shape and the description in a topic of the right kind; a second
// start writes nothing.
func TestTopologyIsRecorded(t *testing.T) {
	t.Parallel()
	c := counting(t)
	p := typed(countProgram("rec"), "int64")
	p.Description = Description{Text: "text", Mermaid: "flowchart", DOT: "digraph"}
	r := newRig(t, c, p)
	ran(t, r, 100)
	ran(t, r, 110)
	topic := c.ns + "rec-control"
	configs, err := c.adm.DescribeTopicConfigs(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	for _, cfg := range configs[0].Configs {
		if cfg.Key == "cleanup.policy" && cfg.MaybeValue() != "compact" {
			t.Errorf("cleanup.policy %q", cfg.MaybeValue())
		}
	}
	records := c.read("rec-control", 2)
	if len(records) != 2 {
		t.Fatalf("%d records after two starts", len(records))
	}
	s, err := decodeShape(records[0].Value)
	if err != nil || s.Subs[0].Partitions != 2 || s.Subs[0].Stores[0].ValueSerde() != "int64" ||
		len(s.Subs[0].Stores[0].TopicID) != 32 {
		t.Errorf("recorded: %+v, %v", s, err)
	}
	d, ok, err := RecordedDescription(t.Context(), []kgo.Opt{kgo.SeedBrokers(c.addrs...)}, c.ns+"rec")
	if err != nil || !ok || d.Text != "text" || d.Mermaid != "flowchart" || d.DOT != "digraph" || d.Fingerprint != "f1" {
		t.Errorf("description: %+v, %v, %v", d, ok, err)
	}
	if _, ok, err := RecordedDescription(t.Context(), []kgo.Opt{kgo.SeedBrokers(c.addrs...)}, "nobody"); ok || err != nil {
		t.Errorf("description of nothing: %v, %v", ok, err)
	}
}

// ValueSerde returns the recorded identity of the values' encoding.
func (s shapeStore) ValueSerde() string { return s.Value }

// TestTopologyChangeIsRefused changes the encoding of a store. The start is refused, changes nothing, and goes on when
// told to, once and for all; so it does after a reset.
func TestTopologyChangeIsRefused(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"accept", "forget", "delete the changelog"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			c := counting(t)
			r := newRig(t, c, typed(countProgram("change"), "int64"))
			ran(t, r, 100)
			p := typed(countProgram("change"), "json(Count)")
			p.Fingerprint = "f2"
			p.Subs[0].Stores = append(p.Subs[0].Stores, Store{Name: "other", Changelog: "change-other-changelog"})
			next := r.again(t, p)
			e := isKind(t, next.start(t).wait(), ErrTopologyChanged)
			if !strings.Contains(e.Error(), "was int64 and is json(Count)") || !strings.Contains(e.Error(), "reset the application") {
				t.Errorf("error: %v", e)
			}
			if topics, err := c.adm.ListTopics(t.Context(), c.ns+"change-other-changelog"); err != nil ||
				topics[c.ns+"change-other-changelog"].Err == nil {
				t.Errorf("a refused topology made a topic: %v, %v", topics, err)
			}
			switch way {
			case "accept":
				ran(t, next, 110, func(s *Settings) { s.AcceptTopologyChange = true })
			case "forget":
				// The local manifest still knows; a reset removes it, too.
				if err := ForgetTopology(t.Context(), c.cl, c.ns+"change"); err != nil {
					t.Fatal(err)
				}
				_ = isKind(t, next.start(t).wait(), ErrTopologyChanged)
				next.disk, next.settings.StateDir = &disk{}, t.TempDir()
				next.program.OpenState = next.disk.open
				// And the changelog itself knows.
				_ = isKind(t, next.start(t).wait(), ErrTopologyChanged)
				return
			case "delete the changelog":
				if _, err := c.adm.DeleteTopics(t.Context(), c.ns+"change-counts-changelog"); err != nil {
					t.Fatal(err)
				}
				// Rows that offsets tell of are gone with it.
				_ = isKind(t, next.start(t).wait(), ErrStateLoss)
				ran(t, next, 110, func(s *Settings) { s.AcceptStateLoss = true })
			}
			ran(t, next, 120)
		})
	}
}

// TestHarmlessTopologyChanges lets a store, a sub-topology and a sink come, and a stateless sub-topology go.
func TestHarmlessTopologyChanges(t *testing.T) {
	t.Parallel()
	c := counting(t)
	c.topic("side", 3)
	c.topic("sink", 1)
	r := newRig(t, c, typed(countProgram("harmless"), "int64"))
	ran(t, r, 100)
	p := typed(countProgram("harmless"), "int64")
	p.Fingerprint = "f2"
	p.Subs = append(p.Subs, Sub{Name: "side", Sources: []Source{{Topic: "side"}}, Sinks: []string{"sink"}})
	ran(t, r.again(t, p), 110)
	back := typed(countProgram("harmless"), "int64")
	ran(t, r.again(t, back), 120) // as a part of a rolling upgrade, or back for good
	back.Fingerprint = "f3"
	ran(t, r.again(t, back), 130) // a new version without it
}

// TestRollingTopologyChange runs two versions at once: the later has one more store and one more sub-topology. A rebuild of
// the earlier goes on, and the record is not taken back.
func TestRollingTopologyChange(t *testing.T) {
	t.Parallel()
	c := counting(t)
	c.onlyFake()
	c.topic("side", 2)
	c.topic("sink", 1)
	r := newRig(t, c, typed(countProgram("roll"), "int64"))
	fail := make(chan error, 1)
	r.settings.Seams.At = func(point string) error {
		if point != "processed" {
			return nil
		}
		select {
		case err := <-fail:
			return err
		default:
			return nil
		}
	}
	p := r.start(t)
	c.feed("in", 90, 10, 10)
	c.verifyCounts("out", 100)

	later := typed(countProgram("roll"), "int64")
	later.Fingerprint = "f2"
	later.Subs[0].Stores = append(later.Subs[0].Stores, Store{Name: "more", Kind: "key-value", Changelog: "roll-more-changelog"})
	later.Subs = append(later.Subs, Sub{Name: "side", Sources: []Source{{Topic: "side"}}, Sinks: []string{"sink"}})
	r2 := newRig(t, c, later)
	p2 := r2.start(t, func(s *Settings) { s.InstanceID, s.TransactionalID = "roll-2", "roll-2" })
	until(t, "the later version to run", func() bool {
		r2.mu.Lock()
		defer r2.mu.Unlock()
		return len(r2.states) > 0 && r2.states[len(r2.states)-1] == StateRunning
	})
	fail <- errInjected
	until(t, "a rebuild", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.rebuilt) > 0 })
	c.feed("in", 100, 100, 10)
	c.verifyCounts("out", 200)
	p2.stop()
	p.stop()
	var last *shape
	for _, rec := range c.read("roll-control", 2) {
		if string(rec.Key) == controlShape {
			s, err := decodeShape(rec.Value)
			if err != nil {
				t.Fatal(err)
			}
			last = s
		}
	}
	if _, more := last.store(&shapeStore{Name: "more"}); more == nil || last.sub("side") == nil {
		t.Errorf("the record is %+v", last)
	}
	// A new process of the earlier version would leave the new store behind.
	e := isKind(t, r.start(t).wait(), ErrTopologyChanged)
	if !strings.Contains(e.Error(), `store "more"`) || strings.Contains(e.Error(), "side") {
		t.Errorf("error: %v", e)
	}
}

var errInjected = json.Unmarshal([]byte("x"), new(int))

// TestPartitionsAddedWhileStopped refuses a start with more partitions of an input, with state or without.
func TestPartitionsAddedWhileStopped(t *testing.T) {
	t.Parallel()
	c := counting(t)
	p := countProgram("parts")
	p.Subs[0].Stores = nil
	r := newRig(t, c, p)
	proc := r.start(t)
	c.feed("in", 90, 10, 10)
	if got := c.read("out", 100); len(got) != 100 {
		t.Fatalf("%d outputs", len(got))
	}
	proc.stop()
	if _, err := c.adm.UpdatePartitions(t.Context(), 5, c.ns+"in"); err != nil {
		t.Fatal(err)
	}
	e := isKind(t, r.start(t).wait(), ErrPartitionMismatch)
	if e.Topic != c.ns+"in" || !strings.Contains(e.Error(), "had 2 partitions and has 5") {
		t.Errorf("error: %v", e)
	}
	proc = r.start(t, func(s *Settings) { s.AcceptTopologyChange = true })
	c.feed("in", 100, 100, 10)
	if got := c.read("out", 200); len(got) != 200 {
		t.Errorf("%d outputs", len(got))
	}
	proc.stop()
	proc = r.start(t)
	c.feed("in", 200, 10, 10)
	if got := c.read("out", 210); len(got) != 210 {
		t.Errorf("%d outputs", len(got))
	}
	proc.stop()
}

// TestInputRecreatedWhileStopped refuses a committed offset of another topic, and takes one that was set by hand.
func TestInputRecreatedWhileStopped(t *testing.T) {
	t.Parallel()
	for name, stateful := range map[string]bool{"with state": true, "without state": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := counting(t)
			p := countProgram("anew")
			if !stateful {
				p.Subs[0].Stores = nil
			}
			r := newRig(t, c, p)
			proc := r.start(t, func(s *Settings) { s.LeaveOnStop = true })
			c.feed("in", 90, 10, 10)
			if got := c.read("out", 100); len(got) != 100 {
				t.Fatalf("%d outputs", len(got))
			}
			proc.stop()
			c.remake("in", 2, "delete")
			c.feed("in", 100, 300, 10)
			e := isKind(t, r.start(t, func(s *Settings) { s.LeaveOnStop = true }).wait(), ErrTopicChanged)
			if e.Topic != c.ns+"in" {
				t.Errorf("error: %v", e)
			}
			offsets := kadm.Offsets{}
			offsets.AddOffset(c.ns+"in", 0, 0, -1)
			offsets.AddOffset(c.ns+"in", 1, 0, -1)
			until(t, "the offsets to be set", func() bool {
				resp, err := c.adm.CommitOffsets(t.Context(), c.ns+"anew", offsets)
				return err == nil && resp.Error() == nil
			})
			proc = r.start(t)
			if got := c.read("out", 400); len(got) != 400 {
				t.Errorf("%d outputs", len(got))
			}
			proc.stop()
		})
	}
}

// TestRaceForTheRecord starts many members with two compatible versions at once; the record has what any has.
func TestRaceForTheRecord(t *testing.T) {
	t.Parallel()
	c := counting(t)
	c.onlyFake()
	var procs []*process
	for i := range 4 {
		p := typed(countProgram("race"), "int64")
		p.Fingerprint = string(rune('a' + i))
		r := newRig(t, c, p)
		procs = append(procs, r.start(t, r.member(i)))
	}
	c.verifyCounts("out", 90)
	known := func() int {
		n := 0
		for _, rec := range c.read("race-control", 1) {
			if s, err := decodeShape(rec.Value); err == nil && string(rec.Key) == controlShape {
				n = len(s.Known)
			}
		}
		return n
	}
	deadline := time.Now().Add(20 * time.Second)
	for known() < 4 && time.Now().Before(deadline) {
		time.Sleep(50 * time.Millisecond)
	}
	if n := known(); n != 4 {
		t.Errorf("%d of 4 versions are recorded", n)
	}
	for _, p := range procs {
		p.cancel()
	}
	for _, p := range procs {
		p.stop()
	}
}
