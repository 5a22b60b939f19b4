package engine

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"tailrace.dev/internal/task"
	"tailrace.dev/state"
)

func TestMissingTopics(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 2)
	r := newRig(t, c, countProgram("missing"))
	began := time.Now()
	err := r.start(t).wait()
	typed := isKind(t, err, ErrMissingTopic)
	if typed.Topic != c.ns+"out" || !strings.Contains(err.Error(), c.addrs[0]) {
		t.Errorf("error: %v", err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestCoPartitioningIsChecked(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 2)
	c.topic("other", 3)
	c.topic("out", 1)
	p := countProgram("co")
	p.Subs[0].Sources = append(p.Subs[0].Sources, Source{Topic: "other"})
	err := newRig(t, c, p).start(t).wait()
	_ = isKind(t, err, ErrPartitionMismatch)
	for _, want := range []string{c.ns + "in has 2", c.ns + "other has 3"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
}

func TestInternalTopicsAreChecked(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 2)
	c.topic("out", 1)
	const changelog = "internal-counts-changelog"
	c.remake(changelog, 3, "compact")
	_ = isKind(t, newRig(t, c, countProgram("internal")).start(t).wait(), ErrPartitionMismatch)
	c.remake(changelog, 2, "delete")
	_ = isKind(t, newRig(t, c, countProgram("internal")).start(t).wait(), ErrTopicConfig)
	c.remake(changelog, 2, "compact")
	r := newRig(t, c, countProgram("internal"))
	p := r.start(t)
	c.feed("in", 0, 100, 10)
	c.verifyCounts("out", 100)
	p.stop()
}

// TestInputChangesWhileRunning ends Run when an input gets partitions, is deleted, or is made anew.
func TestInputChangesWhileRunning(t *testing.T) {
	t.Parallel()
	change := map[string]struct {
		do   func(*testing.T, *cluster)
		kind error
	}{
		"partitions": {func(t *testing.T, c *cluster) {
			if _, err := c.adm.UpdatePartitions(t.Context(), 5, c.ns+"in"); err != nil {
				t.Fatal(err)
			}
		}, ErrPartitionMismatch},
		"deleted": {func(t *testing.T, c *cluster) {
			if _, err := c.adm.DeleteTopics(t.Context(), c.ns+"in"); err != nil {
				t.Fatal(err)
			}
		}, ErrTopicChanged},
		"recreated": {func(t *testing.T, c *cluster) {
			if _, err := c.adm.DeleteTopics(t.Context(), c.ns+"in"); err != nil {
				t.Fatal(err)
			}
			c.topic("in", 2)
		}, ErrTopicChanged},
	}
	for name, tc := range change {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			c.topic("in", 2)
			c.topic("out", 1)
			r := newRig(t, c, countProgram("change"))
			r.settings.TopicCheck = 100 * time.Millisecond
			p := r.start(t)
			c.feed("in", 0, 100, 10)
			c.verifyCounts("out", 100)
			tc.do(t, c)
			_ = isKind(t, p.wait(), tc.kind)
		})
	}
}

func TestStartPolicies(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 2)
	c.topic("out", 1)
	c.feed("in", 0, 100, 10)

	fail := countProgram("policy")
	fail.Subs[0].Sources[0].Start = StartFail
	typed := isKind(t, newRig(t, c, fail).start(t).wait(), ErrNoCommittedOffset)
	if typed.Topic != c.ns+"in" {
		t.Errorf("topic %q", typed.Topic)
	}

	latest := countProgram("policy")
	latest.Subs[0].Sources[0].Start = StartLatest
	r := newRig(t, c, latest)
	p := r.start(t)
	until(t, "running", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.states) > 0 && r.states[len(r.states)-1] == StateRunning && len(r.restored) == 2
	})
	c.feed("in", 100, 50, 10)
	c.verifyCounts("out", 50)
	p.stop()
}

// TestOffsetsGone refuses to count everything again when the group's offsets vanish and the state does not.
func TestOffsetsGone(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 2)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("gone"))
	p := r.start(t, func(s *Settings) { s.LeaveOnStop = true })
	c.feed("in", 0, 100, 10)
	c.verifyCounts("out", 100)
	p.stop()
	if _, err := c.adm.DeleteGroups(t.Context(), c.ns+"gone"); err != nil {
		t.Fatal(err)
	}
	_ = isKind(t, r.start(t).wait(), ErrNoCommittedOffset)
}

// TestChangelogGone refuses to begin with an empty store when the changelog was deleted, unless told to.
func TestChangelogGone(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 2)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("loss"))
	p := r.start(t)
	c.feed("in", 0, 100, 10)
	c.verifyCounts("out", 100)
	p.stop()
	if _, err := c.adm.DeleteTopics(t.Context(), c.ns+"loss-counts-changelog"); err != nil {
		t.Fatal(err)
	}
	typed := isKind(t, r.start(t).wait(), ErrStateLoss)
	if typed.Topic != c.ns+"loss-counts-changelog" {
		t.Errorf("topic %q", typed.Topic)
	}
	p = r.start(t, func(s *Settings) { s.AcceptStateLoss = true })
	c.feed("in", 100, 100, 10)
	if got := c.read("out", 200); len(got) != 200 {
		t.Errorf("%d outputs", len(got))
	}
	p.stop()
}

// TestStateIsRestored loses the disk, in whole or by damage, and goes on counting.
func TestStateIsRestored(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 2)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("disk"))
	total := 0
	run := func(what string, wantRestored bool, change ...func(*Settings)) {
		t.Helper()
		clear(r.restored)
		p := r.start(t, change...)
		c.feed("in", total, 500, 20)
		total += 500
		c.verifyCounts("out", total)
		p.stop()
		var records int64
		for _, n := range r.restored {
			records += n
		}
		if got := records > 20; got != wantRestored {
			t.Errorf("%s: %d records restored", what, records)
		}
	}
	run("fresh", false)
	run("clean restart", false)
	if err := os.RemoveAll(r.settings.StateDir); err != nil {
		t.Fatal(err)
	}
	run("lost directory", true)
	var damaged sync.Map
	r.program.OpenState = func(id task.ID, dir string) (state.Backend, error) {
		if _, was := damaged.LoadOrStore(id, true); !was {
			return nil, errors.Join(errors.New("torn"), state.ErrCorrupt)
		}
		return r.disk.open(id, dir)
	}
	r.settings.Workers = 1
	run("damaged", true)
	r.program.OpenState = r.disk.open
	run("clean again", false)
	if c.fake == nil {
		return // a real broker refuses records from tomorrow
	}
	run("old", true, func(s *Settings) {
		s.Now = func() time.Time { return time.Now().Add(24 * time.Hour) }
	})
}

// TestForeignChangelog finds what another program wrote in a changelog that was made anew, and does not touch it.
func TestForeignChangelog(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 1)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("trunc"))
	p := r.start(t)
	c.feed("in", 0, 100, 10)
	c.verifyCounts("out", 100)
	p.stop()
	c.remake("trunc-counts-changelog", 1, "compact")
	foreign := &kgo.Record{Topic: c.ns + "trunc-counts-changelog", Key: []byte("no row key"), Value: []byte("x")}
	if err := c.cl.ProduceSync(t.Context(), foreign).FirstErr(); err != nil {
		t.Fatal(err)
	}
	_ = isKind(t, r.start(t).wait(), ErrForeignChangelog)
}

func TestStateDirIsPrivate(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 1)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("private"))
	p := r.start(t)
	c.feed("in", 0, 10, 10)
	c.verifyCounts("out", 10)
	p.stop()
	for _, dir := range []string{"", "/in", "/in/0"} {
		info, err := os.Stat(r.settings.StateDir + dir)
		if err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%q: %v, %v", dir, info, err)
		}
	}
	if err := os.RemoveAll(r.settings.StateDir + "/in/0"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(t.TempDir(), r.settings.StateDir+"/in/0"); err != nil {
		t.Fatal(err)
	}
	_ = isKind(t, r.start(t).wait(), ErrStateDir)
}

// TestBrokerAway starts with no broker at all: Run keeps trying, and ends when asked.
func TestBrokerAway(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	r := newRig(t, c, countProgram("away"))
	r.settings.Brokers = []string{"127.0.0.1:1"}
	p := r.start(t)
	time.Sleep(300 * time.Millisecond)
	p.stop()
}

func TestDeniedAccessIsNamed(t *testing.T) {
	t.Parallel()
	c := newCluster(t, kfake.EnableACLs(), kfake.EnableSASL(), kfake.Superuser("PLAIN", "root", "root"),
		kfake.User("PLAIN", "app", "app"))
	root, err := kgo.NewClient(kgo.SeedBrokers(c.addrs...), kgo.SASL(plain.Auth{User: "root", Pass: "root"}.AsMechanism()))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	adm := kadm.NewClient(root)
	if _, err := adm.CreateTopics(t.Context(), 1, 1, nil, "in", "out"); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, c, countProgram("acl"))
	r.settings.Kafka = []kgo.Opt{kgo.SASL(plain.Auth{User: "app", Pass: "app"}.AsMechanism())}
	allow := func(res kmsg.ACLResourceType, name string, ops ...kadm.ACLOperation) {
		b := kadm.NewACLs().Allow("User:app").AllowHosts("*").ResourcePatternType(kadm.ACLPatternLiteral).Operations(ops...)
		switch res {
		case kmsg.ACLResourceTypeTopic:
			b = b.Topics(name)
		case kmsg.ACLResourceTypeGroup:
			b = b.Groups(name)
		case kmsg.ACLResourceTypeTransactionalId:
			b = b.TransactionalIDs(name)
		default:
			t.Fatalf("no such resource: %v", res)
		}
		if _, err := adm.CreateACLs(context.Background(), b); err != nil {
			t.Fatal(err)
		}
	}
	denied := func(what string) {
		t.Helper()
		if err := r.start(t).wait(); !errors.Is(err, ErrNotAuthorized) {
			t.Fatalf("%s: %v", what, err)
		}
	}
	denied("nothing allowed")
	allow(kmsg.ACLResourceTypeTopic, "in", kadm.OpRead, kadm.OpDescribe)
	denied("sink")
	allow(kmsg.ACLResourceTypeTopic, "out", kadm.OpWrite, kadm.OpDescribe)
	denied("changelog")
	allow(kmsg.ACLResourceTypeTopic, "acl-counts-changelog",
		kadm.OpCreate, kadm.OpRead, kadm.OpWrite, kadm.OpDescribe, kadm.OpDescribeConfigs)
	denied("control topic")
	allow(kmsg.ACLResourceTypeTopic, "acl-control",
		kadm.OpCreate, kadm.OpRead, kadm.OpWrite, kadm.OpDescribe, kadm.OpDescribeConfigs)
	denied("transactional id")
	allow(kmsg.ACLResourceTypeTransactionalId, "acl-1", kadm.OpWrite, kadm.OpDescribe)
	denied("group")
	allow(kmsg.ACLResourceTypeGroup, "acl", kadm.OpRead, kadm.OpDescribe)
	p := r.start(t)
	if err := root.ProduceSync(t.Context(), &kgo.Record{Topic: "in", Key: []byte("k")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	until(t, "a commit", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.commits) > 0
	})
	p.stop()
}
