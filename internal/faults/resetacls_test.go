//go:build unix

package faults

import (
	"fmt"
	"path/filepath"
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
)

// resetNeeds are the rights of somebody who resets an application that reads in, with force.
func resetNeeds(app, in string) []right {
	own := app + "-"
	return []right{
		{kmsg.ACLResourceTypeTopic, in, false, kadm.OpRead},
		{kmsg.ACLResourceTypeTopic, own, true, kadm.OpRead},
		{kmsg.ACLResourceTypeTopic, own, true, kadm.OpWrite},
		{kmsg.ACLResourceTypeTopic, own, true, kadm.OpDelete},
		{kmsg.ACLResourceTypeTransactionalId, own, true, kadm.OpWrite},
		{kmsg.ACLResourceTypeGroup, app, false, kadm.OpRead},
	}
}

// TestResetRightsAreMinimal resets an application under which a member was killed, by force, with exactly the rights that
// docs/security.md lists. Then it does so without each of them in turn: that ends with an error that names what is missing,
// and with the missing right the reset can be finished.
func TestResetRightsAreMinimal(t *testing.T) {
	t.Parallel()
	root := []kgo.Opt{kgo.SASL(plain.Auth{User: "root", Pass: "root"}.AsMechanism())}
	c := newSecured(t, 1, root, kfake.EnableSASL(), kfake.EnableACLs(), kfake.Superuser("PLAIN", "root", "root"),
		kfake.User("PLAIN", "ops", "ops"))
	for i := -1; i < len(resetNeeds("", "")); i++ {
		app := fmt.Sprintf("%s-reset%d", c.app, i+1)
		in, out, dead := "in-of-"+app, "out-of-"+app, "dead-of-"+app
		rights := resetNeeds(app, in)
		name := "all"
		var without *right
		if i >= 0 {
			without = &rights[i]
			name = "without " + without.String()
		}
		for _, topic := range []string{in, out, dead} {
			c.topic(topic, 1, nil)
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			grant := func(r right) {
				t.Helper()
				if _, err := c.adm.CreateACLs(t.Context(), r.builder("ops")); err != nil {
					t.Fatal(err)
				}
			}
			for _, r := range rights {
				if without == nil || r != *without {
					grant(r)
				}
			}
			c.runAndCrash(t, app, in, out, dead)
			reset := func() error {
				admin, err := engine.OpenAdmin(t.Context(), engine.AdminSettings{
					Brokers: c.addrs, SASL: &engine.SASL{Mechanism: "plain", User: "ops", Password: "ops"},
				})
				if err != nil {
					return err
				}
				defer admin.Close()
				spec := engine.ResetSpec{App: app, To: engine.ResetTarget{Kind: engine.ResetEarliest}}
				plan, err := admin.PlanReset(t.Context(), spec)
				if err != nil {
					return err
				}
				return admin.Reset(t.Context(), plan, engine.ResetOptions{Force: true})
			}
			err := reset()
			if without != nil {
				mustName(t, err, processor.ErrNotAuthorized, strings.TrimSuffix(without.name, "-"))
				t.Logf("ended with %v", err)
				grant(*without)
				err = reset()
			}
			if err != nil {
				t.Fatalf("with all rights it ended with %v", err)
			}
			committed, err := c.adm.FetchOffsets(t.Context(), app)
			if err != nil {
				t.Fatal(err)
			}
			if at, ok := committed.Lookup(in, 0); !ok || at.At != 0 {
				t.Errorf("the input is at %d (known: %v), want 0", at.At, ok)
			}
			if _, ok := committed.Lookup(app+"-by-value-repartition", 0); ok {
				t.Error("an offset of the repartition topic is left")
			}
		})
	}
}

// runAndCrash runs an application until it has committed something, and lets it die in the middle of a transaction.
func (c *cluster) runAndCrash(t *testing.T, app, in, out, dead string) {
	t.Helper()
	topology, err := rightsTopology(in, out)
	if err != nil {
		t.Fatal(err)
	}
	s := setup{app: app, topology: topology, config: memberConfig(c.addrs, filepath.Join(t.TempDir(), "0"))}
	s.config.SessionTimeout = 45 * time.Second
	s.config.OnProcessError = processor.DeadLetter(dead)
	s.config.Kafka = append(s.config.Kafka, kgo.SASL(plain.Auth{User: "root", Pass: "root"}.AsMechanism()))
	crash := make(chan struct{})
	s.seams.At = func(point string) error {
		select {
		case <-crash:
			if point == "before-end" {
				return engine.ErrCrash
			}
		default:
		}
		return nil
	}
	send := func() {
		t.Helper()
		r := &kgo.Record{Topic: in, Key: []byte("k"), Value: []byte("v")}
		if err := c.cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	send()
	l := s.run(t)
	until(t, time.Minute, "the input to be processed", func() bool {
		return c.processed(app, in) && c.processed(app, app+"-by-value-repartition")
	})
	close(crash)
	send()
	until(t, time.Minute, "the crash", l.ended)
}
