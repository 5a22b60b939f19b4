package engine

import (
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TestReadable asks a broker where a partition has anything to read: over data that was aborted, over what compaction
// left out, and behind a transaction that is undecided.
func TestReadable(t *testing.T) {
	c := newCluster(t, kfake.NumBrokers(1))
	s := &session{adm: c.adm, plain: c.cl}
	check := func(topic string, next, limit, want int64) {
		t.Helper()
		got, err := s.readable(t.Context(), topic, 0, next, limit)
		if err != nil || got != want {
			t.Errorf("readable from %d to %d: %d, %v, want %d", next, limit, got, err, want)
		}
	}
	transact := func(topic string, n int, end *kgo.TransactionEndTry) {
		t.Helper()
		cl, err := kgo.NewClient(kgo.SeedBrokers(c.addrs...), kgo.TransactionalID(topic), kgo.DefaultProduceTopic(topic))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(cl.Close)
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		for i := range n {
			r := &kgo.Record{Key: []byte{byte(i)}, Value: []byte("v")}
			if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		if end != nil {
			if err := cl.EndTransaction(t.Context(), *end); err != nil {
				t.Fatal(err)
			}
		}
	}
	abort, commit := kgo.TryAbort, kgo.TryCommit

	c.topic("aborted", 1)
	transact("aborted", 5, &abort) // 0 to 4, and a marker at 5
	check("aborted", 0, 6, 5)
	check("aborted", 0, 5, 5)
	check("aborted", 0, 3, 3)
	transact("aborted", 2, &commit)
	check("aborted", 6, 9, 6)
	check("aborted", 9, 9, 9)

	c.topic("undecided", 1)
	transact("undecided", 3, nil)
	check("undecided", 0, 3, 0)

	config := map[string]*string{"cleanup.policy": kadm.StringPtr("compact")}
	if resp, err := c.adm.CreateTopics(t.Context(), 1, 1, config, "compacted"); err != nil || resp["compacted"].Err != nil {
		t.Fatal(err, resp["compacted"].Err)
	}
	c.visible("compacted")
	for i := range 40 {
		r := &kgo.Record{Topic: "compacted", Key: fmt.Append(nil, min(i, 1)), Value: fmt.Append(nil, i)}
		if err := c.cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	c.fake.Compact()
	check("compacted", 0, 40, 0)
	check("compacted", 1, 40, 38) // the last batch takes no part in it
	check("compacted", 1, 10, 10)
	check("compacted", 3, 8, 8)
}
