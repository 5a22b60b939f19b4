//go:build unix

package faults

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"tailrace.dev/processor"
)

// mustName requires that an error has a kind and names something.
func mustName(t *testing.T, err, kind error, name string) {
	t.Helper()
	var ee *processor.EngineError
	if !errors.Is(err, kind) || !errors.As(err, &ee) || !strings.Contains(err.Error(), name) ||
		ee.Hint == "" && !strings.Contains(ee.Detail, ": reset the application") {
		t.Errorf("ended with %v, want %q, naming %s and what to do", err, kind, name)
	}
}

// TestFault17MissingTopic starts without a source, a sink or a topic for dead letters. The start fails within ten
// seconds and names the topic.
func TestFault17MissingTopic(t *testing.T) {
	t.Parallel()
	for _, missing := range []string{"source", "sink", "dead letters"} {
		t.Run(missing, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 1)
			s := c.setup(t.TempDir(), nil)
			name := c.app + "-none"
			var err error
			switch missing {
			case "source":
				s.topology, err = countTopology(name, c.out, nil)
			case "sink":
				s.topology, err = countTopology(c.in, name, nil)
			default:
				s.config.OnDecodeError = processor.DeadLetter(name)
			}
			if err != nil {
				t.Fatal(err)
			}
			l := s.run(t)
			mustName(t, l.end(20*time.Second), processor.ErrMissingTopic, name)
			if took := time.Since(l.began); took > 10*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// TestFault17TopicDeleted deletes a topic under a running application. It ends and names the topic; it does not go on in
// silence.
func TestFault17TopicDeleted(t *testing.T) {
	t.Parallel()
	for _, which := range []string{"source", "sink", "changelog"} {
		t.Run(which, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 1)
			f := c.feeder(10)
			s := c.setup(t.TempDir(), nil)
			l := s.run(t)
			f.send(50)
			c.settle(20 * time.Second)
			name := map[string]string{
				"source": c.in, "sink": c.out, "changelog": processor.ChangelogTopic(c.app, counts.Name()),
			}[which]
			if _, err := c.adm.DeleteTopic(t.Context(), name); err != nil {
				t.Fatal(err)
			}
			if which != "source" {
				f.send(50) // what has to go there
			}
			began := time.Now()
			err := l.end(90 * time.Second)
			t.Logf("ended after %v: %v", since(began), err)
			kind := processor.ErrMissingTopic
			switch which {
			case "source":
				kind = processor.ErrTopicChanged
			case "changelog":
				kind = processor.ErrStateLoss
			}
			mustName(t, err, kind, name)
		})
	}
}

// TestFault17Denied takes away one right after the other from an application that has just those that it needs. Each
// time it ends within ten seconds and says what it may not do, at the start and while it runs.
func TestFault17Denied(t *testing.T) {
	t.Parallel()
	root := []kgo.Opt{kgo.SASL(plain.Auth{User: "root", Pass: "root"}.AsMechanism())}
	c := newSecured(t, 1, root, kfake.EnableSASL(), kfake.EnableACLs(), kfake.Superuser("PLAIN", "root", "root"),
		kfake.User("PLAIN", "app", "app"))
	f := c.feeder(10)
	s := c.setup(t.TempDir(), nil)
	s.config.Kafka = append(s.config.Kafka, kgo.SASL(plain.Auth{User: "app", Pass: "app"}.AsMechanism()))
	txnID := txnIDOf(t, s)
	changelog := processor.ChangelogTopic(c.app, counts.Name())
	rights := []struct {
		kind kmsg.ACLResourceType
		name string
		ops  []kadm.ACLOperation
	}{
		{kmsg.ACLResourceTypeTopic, c.in, []kadm.ACLOperation{kadm.OpRead, kadm.OpDescribe}},
		{kmsg.ACLResourceTypeTopic, c.out, []kadm.ACLOperation{kadm.OpWrite, kadm.OpDescribe}},
		{kmsg.ACLResourceTypeTopic, changelog, []kadm.ACLOperation{
			kadm.OpCreate, kadm.OpRead, kadm.OpWrite, kadm.OpDescribe, kadm.OpDescribeConfigs}},
		{kmsg.ACLResourceTypeTopic, c.app + "-control", []kadm.ACLOperation{
			kadm.OpCreate, kadm.OpRead, kadm.OpWrite, kadm.OpDescribe, kadm.OpDescribeConfigs}},
		{kmsg.ACLResourceTypeTransactionalId, txnID, []kadm.ACLOperation{kadm.OpWrite, kadm.OpDescribe}},
		{kmsg.ACLResourceTypeGroup, c.app, []kadm.ACLOperation{kadm.OpRead, kadm.OpDescribe}},
	}
	acl := func(i int) *kadm.ACLBuilder {
		r := rights[i]
		b := kadm.NewACLs().Allow("User:app").AllowHosts("*").ResourcePatternType(kadm.ACLPatternLiteral).Operations(r.ops...)
		switch r.kind {
		case kmsg.ACLResourceTypeTransactionalId:
			return b.TransactionalIDs(r.name)
		case kmsg.ACLResourceTypeGroup:
			return b.Groups(r.name)
		default:
			return b.Topics(r.name)
		}
	}
	grant := func(i int) {
		if _, err := c.adm.CreateACLs(t.Context(), acl(i)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range rights {
		grant(i)
	}
	l := s.run(t)
	f.send(20)
	c.settle(20 * time.Second)
	for i, r := range rights {
		if _, err := c.adm.DeleteACLs(t.Context(), acl(i)); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		f.send(20)
		if strings.HasSuffix(r.name, "-control") {
			c.settle(20 * time.Second) // it is used at the start alone
			l.stop()
		} else {
			err := l.end(20 * time.Second)
			mustName(t, err, processor.ErrNotAuthorized, "")
			t.Logf("without %s: ended after %v while running: %v", r.name, since(began), err)
		}
		l = s.run(t)
		err := l.end(20 * time.Second)
		mustName(t, err, processor.ErrNotAuthorized, r.name)
		if took := time.Since(l.began); took > 10*time.Second {
			t.Errorf("without %s the start took %v to fail", r.name, took)
		}
		grant(i)
		l = s.run(t)
		c.settle(20 * time.Second)
	}
	l.stop()
	c.mustBeExact(f)
}

// txnIDOf returns the transactional id that a member produces with.
func txnIDOf(t *testing.T, s setup) string {
	t.Helper()
	app, err := newApp(s)
	if err != nil {
		t.Fatal(err)
	}
	return app.Config().TransactionalID
}
