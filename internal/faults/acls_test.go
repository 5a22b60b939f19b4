//go:build unix

package faults

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"tailrace.dev/internal/engine"
	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

// right is one operation on one resource, or on all whose names have a prefix. docs/security.md lists them.
type right struct {
	kind   kmsg.ACLResourceType
	name   string
	prefix bool
	op     kadm.ACLOperation
}

func (r right) String() string {
	name := r.name
	if r.prefix {
		name += "*"
	}
	return fmt.Sprintf("%v on %v %s", r.op, r.kind, name)
}

func (r right) builder(user string) *kadm.ACLBuilder {
	pattern := kadm.ACLPatternLiteral
	if r.prefix {
		pattern = kadm.ACLPatternPrefixed
	}
	b := kadm.NewACLs().Allow("User:" + user).AllowHosts("*").ResourcePatternType(pattern).Operations(r.op)
	switch r.kind {
	case kmsg.ACLResourceTypeTransactionalId:
		return b.TransactionalIDs(r.name)
	case kmsg.ACLResourceTypeGroup:
		return b.Groups(r.name)
	default:
		return b.Topics(r.name)
	}
}

// needed are the rights of an application that reads in, writes out and dead letters, and has internal topics of both
// kinds.
func needed(app, in, out, dead string) []right {
	own := app + "-"
	return []right{
		{kmsg.ACLResourceTypeTopic, in, false, kadm.OpRead},
		{kmsg.ACLResourceTypeTopic, out, false, kadm.OpWrite},
		{kmsg.ACLResourceTypeTopic, dead, false, kadm.OpWrite},
		{kmsg.ACLResourceTypeTopic, own, true, kadm.OpCreate},
		{kmsg.ACLResourceTypeTopic, own, true, kadm.OpRead},
		{kmsg.ACLResourceTypeTopic, own, true, kadm.OpWrite},
		{kmsg.ACLResourceTypeTopic, own, true, kadm.OpDelete},
		{kmsg.ACLResourceTypeTopic, own, true, kadm.OpDescribeConfigs},
		{kmsg.ACLResourceTypeTransactionalId, own, true, kadm.OpWrite},
		{kmsg.ACLResourceTypeGroup, app, false, kadm.OpRead},
	}
}

// TestRightsAreMinimal runs an application with exactly the rights that docs/security.md lists, through everything that
// asks a broker for something: making its topics, processing, dead letters, purging, the takeover from a member that
// died, leaving. Then it does so without each of them in turn: that ends with an error that names what is missing.
func TestRightsAreMinimal(t *testing.T) {
	t.Parallel()
	root := []kgo.Opt{kgo.SASL(plain.Auth{User: "root", Pass: "root"}.AsMechanism())}
	c := newSecured(t, 1, root, kfake.EnableSASL(), kfake.EnableACLs(), kfake.Superuser("PLAIN", "root", "root"),
		kfake.User("PLAIN", "app", "app"))
	n := len(needed("", "", "", ""))
	for i := -1; i < n; i++ {
		name := "all"
		app := fmt.Sprintf("%s-case%d", c.app, i+1)
		in, out, dead := "in-of-"+app, "out-of-"+app, "dead-of-"+app
		rights := needed(app, in, out, dead)
		var without *right
		if i >= 0 {
			without = &rights[i]
			name = "without " + rights[i].String()
		}
		for _, topic := range []string{in, out, dead} {
			c.topic(topic, 1, nil)
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, r := range rights {
				if without != nil && r == *without {
					continue
				}
				if _, err := c.adm.CreateACLs(t.Context(), r.builder("app")); err != nil {
					t.Fatal(err)
				}
			}
			topology, err := rightsTopology(in, out)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			member := func(i int) setup {
				s := setup{app: app, topology: topology, config: memberConfig(c.addrs, filepath.Join(dir, fmt.Sprint(i)))}
				s.config.SessionTimeout, s.config.PurgeInterval = 2*time.Second, 300*time.Millisecond
				s.config.OnProcessError = processor.DeadLetter(dead)
				s.config.LeaveOnStop = true
				s.config.Kafka = append(s.config.Kafka, kgo.SASL(plain.Auth{User: "app", Pass: "app"}.AsMechanism()))
				return s
			}
			warnings, err := c.useRights(t, member, in, app)
			if without == nil {
				if err != nil {
					t.Errorf("with all rights it ended with %v", err)
				}
				if len(warnings) > 0 {
					t.Errorf("with all rights it was denied something: %v", warnings)
				}
				return
			}
			resource := strings.TrimSuffix(without.name, "-")
			mustName(t, err, processor.ErrNotAuthorized, resource)
			t.Logf("ended with %v", err)
		})
	}
}

// useRights does all there is to do, and returns what was logged of denials, and the first error that a member ended
// with.
func (c *cluster) useRights(t *testing.T, member func(int) setup, in, app string) (warnings []string, ended error) {
	t.Helper()
	first := member(0)
	crash := make(chan struct{})
	first.seams.At = func(point string) error {
		if point == "before-end" {
			select {
			case <-crash:
				return engine.ErrCrash
			default:
			}
		}
		return nil
	}
	var members []*local
	defer func() {
		for _, m := range members {
			m.cancel()
			<-m.done
			for _, e := range m.logs.All() {
				if text := fmt.Sprint(e.Message, e.ContextMap()); strings.Contains(strings.ToLower(text), "authoriz") {
					warnings = append(warnings, text)
				}
			}
		}
	}()
	send := func() {
		t.Helper()
		var records []*kgo.Record
		for i := range 20 {
			records = append(records, &kgo.Record{Topic: in, Key: fmt.Appendf(nil, "k%d", i), Value: []byte("v")})
		}
		records = append(records, &kgo.Record{Topic: in, Key: []byte("bad"), Value: []byte("v")})
		if err := c.cl.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	// wait returns when the input is processed, or a member has ended.
	wait := func() bool {
		t.Helper()
		until(t, 40*time.Second, "the input to be processed, or an end", func() bool {
			return slices.ContainsFunc(members[len(members)-1:], (*local).ended) ||
				c.processed(app, in) && c.processed(app, app+"-by-value-repartition")
		})
		for _, m := range members {
			if m.ended() && m.err != nil && !errors.Is(m.err, engine.ErrCrash) {
				ended = m.err
				return false
			}
		}
		return true
	}
	send()
	members = append(members, first.run(t))
	if !wait() {
		return nil, ended
	}
	until(t, 40*time.Second, "the repartition topic to be purged, or an end", func() bool {
		starts, err := c.adm.ListStartOffsets(t.Context(), app+"-by-value-repartition")
		at, ok := starts.Lookup(app+"-by-value-repartition", 0)
		return members[0].ended() || err == nil && ok && at.Offset > 0
	})
	if members[0].ended() {
		return nil, members[0].err
	}
	// The first dies in the middle of a transaction; another has to take over from it.
	close(crash)
	send()
	until(t, 20*time.Second, "the crash", members[0].ended)
	members = append(members, member(1).run(t))
	if !wait() {
		return nil, ended
	}
	members[1].cancel()
	if err := members[1].end(30 * time.Second); err != nil {
		return nil, err
	}
	return nil, nil
}

// processed tells whether a group has committed the whole of a topic.
func (c *cluster) processed(group, topic string) bool {
	ends, err := c.adm.ListEndOffsets(c.t.Context(), topic)
	if err != nil || ends.Error() != nil {
		return false
	}
	committed, err := c.adm.FetchOffsets(c.t.Context(), group)
	if err != nil {
		return false
	}
	at, ok := committed.Lookup(topic, 0)
	end, _ := ends.Lookup(topic, 0)
	return ok && at.Err == nil && at.At == end.Offset
}

// rightsTopology counts, after a repartition, and fails at bad keys.
func rightsTopology(in, out string) (*processor.Topology, error) {
	byValue := processor.NewRepartition("by-value", serde.String, serde.Raw)
	return processor.Build(func(b *processor.Builder) {
		records := stream.From(b, processor.NewTopic(in, serde.String, serde.Raw))
		moved := stream.Repartition(stream.Rekey(records, func(k string, _ []byte) string { return "x" + k }), byValue)
		failing := stream.Peek(moved, func(k string, _ []byte) {
			if k == "xbad" {
				panic("a record that cannot be processed")
			}
		})
		table.To(stream.Count(stream.Group(failing), counts), processor.NewTopic(out, serde.String, serde.Int64))
	})
}
