//go:build unix

package faults

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace.dev/internal/engine"
)

// injection is a request that is answered with errors: those after which the application goes on by itself, in place or
// by a rebuild, and those that end it with a typed error, because a person has to act.
type injection struct {
	key     kmsg.Key
	atStart bool // only a start sends it
	keyless bool // needs input that has no effect, so that only offsets are committed
	goesOn  []*kerr.Error
	ends    []*kerr.Error
	kind    error // of ends
	lasting bool  // it takes more than one answer to end it
}

var injections = []injection{
	{
		key: kmsg.Produce,
		goesOn: []*kerr.Error{
			kerr.NotLeaderForPartition, kerr.LeaderNotAvailable, kerr.RequestTimedOut, kerr.NotEnoughReplicas,
			kerr.NotEnoughReplicasAfterAppend, kerr.UnknownTopicOrPartition, kerr.KafkaStorageError, kerr.CorruptMessage,
			kerr.NetworkException, kerr.InvalidRecord, kerr.InvalidTimestamp, kerr.PolicyViolation, kerr.UnknownServerError,
			kerr.TransactionAbortable, kerr.InvalidProducerEpoch, kerr.OutOfOrderSequenceNumber, kerr.UnknownProducerID,
			kerr.InvalidTxnState, kerr.InvalidProducerIDMapping, kerr.ProducerFenced,
		},
		ends: []*kerr.Error{kerr.TopicAuthorizationFailed}, kind: engine.ErrNotAuthorized,
	},
	{
		key: kmsg.Produce, ends: []*kerr.Error{kerr.MessageTooLarge, kerr.RecordListTooLarge}, kind: engine.ErrRecordTooLarge,
	},
	{
		key: kmsg.Fetch,
		goesOn: []*kerr.Error{
			kerr.NotLeaderForPartition, kerr.ReplicaNotAvailable, kerr.UnknownTopicOrPartition, kerr.UnknownTopicID,
			kerr.FencedLeaderEpoch, kerr.UnknownLeaderEpoch, kerr.KafkaStorageError, kerr.OffsetNotAvailable,
			kerr.UnknownServerError, kerr.CorruptMessage,
		},
		ends: []*kerr.Error{kerr.TopicAuthorizationFailed}, kind: engine.ErrNotAuthorized,
	},
	{
		key: kmsg.Metadata, goesOn: []*kerr.Error{kerr.LeaderNotAvailable},
		ends: []*kerr.Error{kerr.UnknownTopicOrPartition}, kind: engine.ErrTopicChanged, lasting: true,
	},
	{
		key:    kmsg.FindCoordinator,
		goesOn: []*kerr.Error{kerr.CoordinatorNotAvailable, kerr.UnknownServerError}, atStart: true,
	},
	{
		key: kmsg.OffsetCommit, keyless: true,
		goesOn: []*kerr.Error{
			kerr.CoordinatorLoadInProgress, kerr.CoordinatorNotAvailable, kerr.NotCoordinator, kerr.RequestTimedOut,
			kerr.IllegalGeneration, kerr.RebalanceInProgress, kerr.UnknownMemberID, kerr.UnknownServerError,
			kerr.OffsetMetadataTooLarge,
		},
		ends: []*kerr.Error{kerr.GroupAuthorizationFailed}, kind: engine.ErrNotAuthorized,
	},
	{
		key: kmsg.OffsetFetch, atStart: true,
		goesOn: []*kerr.Error{
			kerr.CoordinatorLoadInProgress, kerr.CoordinatorNotAvailable, kerr.NotCoordinator, kerr.UnknownServerError,
		},
		ends: []*kerr.Error{kerr.GroupAuthorizationFailed}, kind: engine.ErrNotAuthorized, lasting: true,
	},
	{
		key: kmsg.JoinGroup, atStart: true,
		goesOn: []*kerr.Error{
			kerr.CoordinatorLoadInProgress, kerr.CoordinatorNotAvailable, kerr.NotCoordinator, kerr.UnknownMemberID,
			kerr.RebalanceInProgress, kerr.UnknownServerError,
		},
		ends: []*kerr.Error{kerr.GroupAuthorizationFailed}, kind: engine.ErrNotAuthorized,
	},
	{
		key: kmsg.Heartbeat,
		goesOn: []*kerr.Error{
			kerr.CoordinatorLoadInProgress, kerr.CoordinatorNotAvailable, kerr.NotCoordinator, kerr.RebalanceInProgress,
			kerr.IllegalGeneration, kerr.UnknownMemberID, kerr.UnknownServerError,
		},
		ends: []*kerr.Error{kerr.FencedInstanceID}, kind: engine.ErrFenced,
	},
	{
		key: kmsg.SyncGroup, atStart: true,
		goesOn: []*kerr.Error{
			kerr.CoordinatorLoadInProgress, kerr.CoordinatorNotAvailable, kerr.NotCoordinator, kerr.RebalanceInProgress,
			kerr.IllegalGeneration, kerr.UnknownMemberID, kerr.UnknownServerError,
		},
		ends: []*kerr.Error{kerr.GroupAuthorizationFailed}, kind: engine.ErrNotAuthorized,
	},
	{
		key: kmsg.InitProducerID, atStart: true,
		goesOn: []*kerr.Error{
			kerr.CoordinatorLoadInProgress, kerr.CoordinatorNotAvailable, kerr.NotCoordinator, kerr.ConcurrentTransactions,
			kerr.UnknownServerError, kerr.InvalidProducerEpoch, kerr.ProducerFenced,
		},
		ends: []*kerr.Error{kerr.TransactionalIDAuthorizationFailed}, kind: engine.ErrNotAuthorized,
	},
	{
		key: kmsg.AddOffsetsToTxn,
		goesOn: []*kerr.Error{
			kerr.CoordinatorLoadInProgress, kerr.CoordinatorNotAvailable, kerr.NotCoordinator, kerr.ConcurrentTransactions,
			kerr.UnknownServerError, kerr.InvalidProducerEpoch, kerr.ProducerFenced, kerr.InvalidTxnState,
			kerr.InvalidProducerIDMapping, kerr.TransactionAbortable,
		},
		ends: []*kerr.Error{kerr.TransactionalIDAuthorizationFailed}, kind: engine.ErrNotAuthorized,
	},
	{
		key: kmsg.EndTxn,
		goesOn: []*kerr.Error{
			kerr.CoordinatorLoadInProgress, kerr.CoordinatorNotAvailable, kerr.NotCoordinator, kerr.ConcurrentTransactions,
			kerr.RequestTimedOut, kerr.UnknownServerError, kerr.InvalidProducerEpoch, kerr.ProducerFenced,
			kerr.InvalidTxnState, kerr.InvalidProducerIDMapping, kerr.TransactionAbortable,
		},
	},
	{
		key: kmsg.TxnOffsetCommit,
		goesOn: []*kerr.Error{
			kerr.CoordinatorLoadInProgress, kerr.CoordinatorNotAvailable, kerr.NotCoordinator, kerr.UnknownTopicOrPartition,
			kerr.IllegalGeneration, kerr.RebalanceInProgress, kerr.UnknownMemberID, kerr.UnknownServerError,
			kerr.OffsetMetadataTooLarge, kerr.InvalidProducerEpoch, kerr.ProducerFenced, kerr.InvalidTxnState,
			kerr.InvalidProducerIDMapping, kerr.TransactionAbortable,
		},
		ends: []*kerr.Error{kerr.GroupAuthorizationFailed, kerr.FencedInstanceID},
	},
}

// TestFault07InjectedCodes answers each request that a member sends with each error that it may get, once and for a
// while. The member goes on, or rebuilds within seconds and says why, or ends with an error that says what to do; the
// result is exact.
func TestFault07InjectedCodes(t *testing.T) {
	t.Parallel()
	counts := []int{1}
	if onKafka() {
		counts = append(counts, -1) // the long run, though on an embedded broker too
	}
	for _, in := range injections {
		for _, count := range counts {
			name := fmt.Sprintf("%s/count %d", in.key.Name(), count)
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				inject(t, in, count)
			})
		}
	}
}

// inject runs one application through all errors of an injection.
func inject(t *testing.T, in injection, count int) {
	c := newFake(t, 2)
	f := c.feeder(20)
	s := c.setup(t.TempDir(), nil)
	start := func() *local { return s.run(t) }
	if testing.Short() {
		in.goesOn = in.goesOn[:min(len(in.goesOn), 2)]
	}
	l := start()
	f.send(50)
	c.settle(20 * time.Second)
	for i, code := range append(append([]*kerr.Error{}, in.goesOn...), in.ends...) {
		if in.atStart {
			l.stop()
		}
		rebuilt := len(l.rebuilds())
		ends := i >= len(in.goesOn)
		if ends && in.lasting {
			count = -1
		}
		fault := kfake.Fault{Keys: []kmsg.Key{in.key}, Err: code, Count: count}
		if in.key == kmsg.Produce {
			fault.Topic = c.out // not what the test itself writes
		}
		if in.key == kmsg.Fetch {
			fault.Topic = c.in
		}
		h := c.broker.Cluster().Fault(fault)
		if in.atStart {
			l = start()
			rebuilt = 0
		}
		began := time.Now()
		feed(c, f, in)
		until(t, 20*time.Second, code.Message, func() bool { return h.Hits() > 0 })
		if ends {
			err := l.end(20 * time.Second)
			var typed *engine.Error
			if !errors.As(err, &typed) || in.kind != nil && !errors.Is(err, in.kind) {
				t.Errorf("%s: ended with %v, want an error of kind %v", code.Message, err, in.kind)
			}
			h.Remove()
			t.Logf("%-40s ended after %v: %v", code.Message, since(began), err)
			l = start()
			feed(c, f, in)
			c.settle(20 * time.Second)
			continue
		}
		if count < 0 {
			time.Sleep(1500 * time.Millisecond)
		}
		h.Remove()
		feed(c, f, in)
		until(t, 20*time.Second, "the committed offsets after "+code.Message, func() bool {
			if l.ended() {
				t.Fatalf("%s: ended with %v", code.Message, l.err)
			}
			return c.caughtUp()
		})
		took := since(began)
		what := "went on"
		if reasons := l.rebuilds()[rebuilt:]; len(reasons) > 0 {
			what = "rebuilt"
			if named := fmt.Sprint(reasons); !strings.Contains(named, code.Message) && count == 1 {
				t.Errorf("%s: rebuilt without naming it: %s", code.Message, named)
			}
		}
		t.Logf("%-40s %s, caught up after %v", code.Message, what, took)
		if count == 1 && took > 10*time.Second {
			t.Errorf("%s: caught up after %v", code.Message, took)
		}
	}
	c.settle(20 * time.Second)
	l.stop()
	c.mustBeExact(f)
	c.mustMatchChangelog(t, s.config.StateDir)
}

func since(t time.Time) time.Duration { return time.Since(t).Round(time.Millisecond) }

// feed writes some input, and if asked more that has no effect.
func feed(c *cluster, f *feeder, in injection) {
	c.t.Helper()
	if !in.keyless {
		f.send(20)
		return
	}
	// A record without a key is not counted.
	if err := c.cl.ProduceSync(c.t.Context(), &kgo.Record{Topic: c.in, Value: []byte("no key")}).FirstErr(); err != nil {
		c.t.Fatal(err)
	}
}
