//go:build unix

package faults

import (
	"os"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/processor"
)

// TestFault19Changelog does to a changelog, between two runs, what an operator may do by mistake. The application goes on
// with exactly the state that it had, or refuses and says why; it never starts from a gap.
func TestFault19Changelog(t *testing.T) {
	t.Parallel()
	type scene struct {
		c      *cluster
		f      *feeder
		s      setup
		name   string // of the changelog
		before []*kgo.Record
	}
	remake := func(t *testing.T, sc *scene, policy string, records []*kgo.Record) {
		t.Helper()
		if _, err := sc.c.adm.DeleteTopic(t.Context(), sc.name); err != nil {
			t.Fatal(err)
		}
		sc.c.cl.PurgeTopicsFromClient(sc.name)
		until(t, 20*time.Second, "the changelog to be made anew", func() bool {
			_, err := sc.c.adm.CreateTopic(t.Context(), 1, -1, map[string]*string{"cleanup.policy": &policy}, sc.name)
			return err == nil
		})
		until(t, 20*time.Second, "the brokers to tell of it", func() bool {
			offsets, err := sc.c.adm.ListEndOffsets(t.Context(), sc.name)
			return err == nil && offsets.Error() == nil && len(offsets[sc.name]) == 1
		})
		for _, r := range records {
			put := &kgo.Record{Topic: sc.name, Key: r.Key, Value: r.Value}
			if err := sc.c.cl.ProduceSync(t.Context(), put).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	cases := []struct {
		name string
		do   func(t *testing.T, sc *scene)
		// kind is the error of the next start; nil: it goes on, and is exact.
		kind error
	}{
		{"recreated with its records", func(t *testing.T, sc *scene) { remake(t, sc, "compact", sc.before) }, nil},
		{"recreated empty", func(t *testing.T, sc *scene) { remake(t, sc, "compact", nil) }, processor.ErrStateLoss},
		{"recreated empty, local state lost, too", func(t *testing.T, sc *scene) {
			remake(t, sc, "compact", nil)
			if err := os.RemoveAll(sc.s.config.StateDir); err != nil {
				t.Fatal(err)
			}
		}, processor.ErrStateLoss},
		{"deleted", func(t *testing.T, sc *scene) {
			if _, err := sc.c.adm.DeleteTopic(t.Context(), sc.name); err != nil {
				t.Fatal(err)
			}
		}, processor.ErrStateLoss},
		{"set to delete", func(t *testing.T, sc *scene) {
			alter := []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "cleanup.policy", Value: kadm.StringPtr("delete")}}
			if _, err := sc.c.adm.AlterTopicConfigs(t.Context(), alter, sc.name); err != nil {
				t.Fatal(err)
			}
		}, processor.ErrTopicConfig},
		{"of another application", func(t *testing.T, sc *scene) {
			var records []*kgo.Record
			for _, r := range sc.before {
				if string(r.Key) == "\x00!author" {
					r = &kgo.Record{Key: r.Key, Value: []byte(`{"app":"another","store":"counts"}`)}
				}
				records = append(records, r)
			}
			remake(t, sc, "compact", records)
		}, processor.ErrForeignChangelog},
		{"of another program", func(t *testing.T, sc *scene) {
			remake(t, sc, "compact", []*kgo.Record{{Key: []byte("user-1"), Value: []byte("a row of something else")}})
		}, processor.ErrForeignChangelog},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 1)
			sc := &scene{c: c, f: c.feeder(20), s: c.setup(t.TempDir(), nil), name: processor.ChangelogTopic(c.app, counts.Name())}
			l := sc.s.run(t)
			sc.f.send(500)
			c.settle(20 * time.Second)
			l.stop()
			records, _ := c.readAll(sc.name)
			sc.before = records[0]
			tc.do(t, sc)
			l = sc.s.run(t)
			if tc.kind == nil {
				sc.f.send(500)
				c.settle(30 * time.Second)
				l.stop()
				c.mustBeExact(sc.f)
				c.mustMatchChangelog(t, sc.s.config.StateDir)
				return
			}
			err := l.end(30 * time.Second)
			mustName(t, err, tc.kind, sc.name)
			// It is refused for as long as nobody does anything about it.
			mustName(t, sc.s.run(t).end(30*time.Second), tc.kind, sc.name)
			records, _ = c.readAll(c.out)
			if got := c.check(records, sc.f); got.gaps+got.repeats != 0 {
				t.Errorf("%s", got)
			}
		})
	}
}

// TestFault19Truncated lets a second member do the work while the first stands still, and deletes the beginning of the
// changelog, up to where each row was written again. The first one's state ends before that: the gap must not be
// jumped over, but everything be restored.
func TestFault19Truncated(t *testing.T) {
	t.Parallel()
	c := newFake(t, 1) // a real broker deletes no records of a topic that is only compacted
	f := c.feeder(20)
	first, second := c.setup(t.TempDir(), nil), c.setup(t.TempDir(), nil)
	first.config.LeaveOnStop, second.config.LeaveOnStop = true, true
	name := processor.ChangelogTopic(c.app, counts.Name())
	work := func(s setup, n int) *local {
		t.Helper()
		l := s.run(t)
		f.send(n)
		c.settle(20 * time.Second)
		l.stop()
		return l
	}
	work(first, 400)
	work(second, 400)
	ends, err := c.adm.ListEndOffsets(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	work(second, 400)
	gone := kadm.Offsets{}
	gone.AddOffset(name, 0, ends[name][0].Offset, -1)
	if _, err := c.adm.DeleteRecords(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	l := work(first, 400)
	c.mustBeExact(f)
	c.mustMatchChangelog(t, first.config.StateDir)
	if l.logs.FilterMessageSnippet("dropping the local rows").Len() == 0 {
		t.Error("the state from before the gap was built on")
	}
}

// TestFault19WhileRunning deletes a changelog under an application, and sets one to lose rows. It stops soon, and says
// which.
func TestFault19WhileRunning(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"deleted", "set to delete"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 1)
			f := c.feeder(10)
			l := c.setup(t.TempDir(), nil).run(t)
			f.send(100)
			c.settle(20 * time.Second)
			name := processor.ChangelogTopic(c.app, counts.Name())
			kind := processor.ErrStateLoss
			if what == "deleted" {
				if _, err := c.adm.DeleteTopic(t.Context(), name); err != nil {
					t.Fatal(err)
				}
			} else {
				kind = processor.ErrTopicConfig
				alter := []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "cleanup.policy", Value: kadm.StringPtr("delete")}}
				if _, err := c.adm.AlterTopicConfigs(t.Context(), alter, name); err != nil {
					t.Fatal(err)
				}
			}
			mustName(t, l.end(30*time.Second), kind, name) // without any input: the topics are looked at now and then
		})
	}
}
