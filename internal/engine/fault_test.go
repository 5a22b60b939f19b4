package engine

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace.dev/internal/task"
	"tailrace.dev/state/memory"
)

// TestRefusedCommitIsUndone lets the broker refuse what belongs to a transaction: it is aborted and done again, in
// place or by a rebuild.
func TestRefusedCommitIsUndone(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name  string
		fault kfake.Fault
		want  string // "abort", "rebuild", or "" for neither
	}{
		{"offsets refused", kfake.Fault{Keys: []kmsg.Key{kmsg.TxnOffsetCommit}, Err: kerr.OffsetMetadataTooLarge}, "abort"},
		{"transaction abortable",
			kfake.Fault{Keys: []kmsg.Key{kmsg.TxnOffsetCommit}, Err: kerr.TransactionAbortable}, "abort"},
		{"produce refused", kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "out", Err: kerr.InvalidRecord}, "abort"},
		{"generation passes", kfake.Fault{Keys: []kmsg.Key{kmsg.TxnOffsetCommit}, Err: kerr.IllegalGeneration, Count: 3}, ""},
		{"coordinator loads", kfake.Fault{Keys: []kmsg.Key{kmsg.AddOffsetsToTxn}, Err: kerr.CoordinatorLoadInProgress}, ""},
		{"concurrent transactions",
			kfake.Fault{Keys: []kmsg.Key{kmsg.AddOffsetsToTxn}, Err: kerr.ConcurrentTransactions, Count: 3}, ""},
		{"not enough replicas",
			kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "out", Err: kerr.NotEnoughReplicas, Count: 2}, ""},
		{"applied but refused",
			kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "out", Err: kerr.NotEnoughReplicasAfterAppend}, ""},
		{"unknown member", kfake.Fault{Keys: []kmsg.Key{kmsg.TxnOffsetCommit}, Err: kerr.UnknownMemberID}, "rebuild"},
		{"end unknown", kfake.Fault{Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.UnknownServerError}, "rebuild"},
		{"end fenced", kfake.Fault{Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.ProducerFenced}, "rebuild"},
		{"end invalid", kfake.Fault{Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.InvalidTxnState}, "rebuild"},
		{"expelled", kfake.Fault{Keys: []kmsg.Key{kmsg.Heartbeat}, Err: kerr.UnknownMemberID}, ""},
		{"generation of heartbeat", kfake.Fault{Keys: []kmsg.Key{kmsg.Heartbeat}, Err: kerr.IllegalGeneration}, ""},
		{"coordinator away", kfake.Fault{Keys: []kmsg.Key{kmsg.Heartbeat}, Err: kerr.NotCoordinator, Count: 3}, ""},
		{"metadata away", kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Err: kerr.LeaderNotAvailable, Count: 3}, ""},
		{"leader away",
			kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: "in", Err: kerr.NotLeaderForPartition, Count: 3}, ""},
		{"epoch", kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "out", Err: kerr.InvalidProducerEpoch}, "rebuild"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			c.onlyFake()
			c.topic("in", 2)
			c.topic("out", 1)
			r := newRig(t, c, countProgram("fault"))
			p := r.start(t)
			c.feed("in", 0, 300, 20)
			c.verifyCounts("out", 300)
			h := c.fake.Fault(tc.fault)
			defer h.Remove()
			c.feed("in", 300, 300, 20)
			until(t, "the fault", func() bool { return h.Hits() > 0 })
			c.feed("in", 600, 300, 20)
			c.verifyCounts("out", 900)
			p.stop()
			if got := len(r.aborted) > 0; got != (tc.want == "abort") {
				t.Errorf("aborted: %v", r.aborted)
			}
			if got := len(r.rebuilt) > 0; got != (tc.want == "rebuild") {
				t.Errorf("rebuilt: %v", r.rebuilt)
			}
		})
	}
}

// TestNetworkIsCut breaks every connection for a while, again and again.
func TestNetworkIsCut(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 2)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("cut"))
	var cut atomic.Bool
	var mu sync.Mutex
	var conns []net.Conn
	dial := func(ctx context.Context, network, host string) (net.Conn, error) {
		if cut.Load() {
			return nil, errors.New("network is cut")
		}
		conn, err := new(net.Dialer).DialContext(ctx, network, host)
		if err == nil {
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
		}
		return conn, err
	}
	r.settings.Kafka = append(r.settings.Kafka, kgo.Dialer(dial))
	p := r.start(t)
	total := 0
	for i := range 6 {
		c.feed("in", total, 300, 20)
		total += 300
		time.Sleep(time.Duration(i) * 20 * time.Millisecond)
		cut.Store(true)
		mu.Lock()
		for _, conn := range conns {
			_ = conn.Close()
		}
		conns = nil
		mu.Unlock()
		time.Sleep(time.Duration(i) * 100 * time.Millisecond)
		cut.Store(false)
	}
	c.verifyCounts("out", total)
	p.stop()
}

// TestReplyOfEndIsLost drops the connection after the broker has committed: the outcome is unknown, and found out.
func TestReplyOfEndIsLost(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.onlyFake()
	c.topic("in", 2)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("lost"))
	p := r.start(t)
	c.feed("in", 0, 300, 20)
	c.verifyCounts("out", 300)
	for i := range 3 {
		// The broker is asked to commit by another hand first; the engine's own request then fails without a reply.
		c.fake.ControlKey(int16(kmsg.EndTxn), func(kmsg.Request) (kmsg.Response, error, bool) {
			return nil, errors.New("connection lost"), true
		})
		c.feed("in", 300*(i+1), 300, 20)
		c.verifyCounts("out", 300*(i+2))
	}
	p.stop()
}

func TestTooLargeRecord(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 1)
	resp, err := c.adm.CreateTopics(t.Context(), 1, 1, map[string]*string{"max.message.bytes": kadm.StringPtr("2000")},
		c.ns+"out")
	if err != nil || resp[c.ns+"out"].Err != nil {
		t.Fatal(err, resp[c.ns+"out"].Err)
	}
	r := newRig(t, c, countProgram("large"))
	r.program.Subs[0].Stores = nil // passes values on
	p := r.start(t)
	c.feed("in", 0, 10, 10)
	if got := c.read("out", 10); len(got) != 10 {
		t.Fatalf("%d outputs", len(got))
	}
	big := make([]byte, 100_000)
	for i := range big {
		big[i] = byte(i * 7919 >> 3) // does not compress below the limit
	}
	rec := &kgo.Record{Topic: c.ns + "in", Key: []byte("secret"), Value: big}
	if err := c.cl.ProduceSync(t.Context(), rec).FirstErr(); err != nil {
		t.Fatal(err)
	}
	typed := isKind(t, p.wait(), ErrRecordTooLarge)
	if typed.Topic != c.ns+"out" {
		t.Errorf("topic %q", typed.Topic)
	}
	if c.committed("large", "in") != 10 {
		t.Errorf("committed %d, want 10", c.committed("large", "in"))
	}
}

// TestTaskErrorEndsRun returns the error of a task as it is, and leaves the batch undone.
func TestTaskErrorEndsRun(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 1)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("task"))
	poison := errors.New("poison")
	r.perStep = func(rec task.Record) error {
		if rec.Offset == 150 {
			return poison
		}
		return nil
	}
	c.feed("in", 0, 100, 10)
	p := r.start(t)
	c.verifyCounts("out", 100)
	c.feed("in", 100, 100, 10)
	if err := p.wait(); !errors.Is(err, poison) {
		t.Fatalf("ended with %v", err)
	}
	r.perStep = nil
	p = r.start(t)
	c.verifyCounts("out", 200)
	p.stop()
}

// TestTransactionTimeout lets a transaction live too long: the broker aborts it, and the session is rebuilt.
func TestTransactionTimeout(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 1)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("slow"))
	r.settings.TransactionTimeout = time.Second
	slept := false
	r.perStep = func(rec task.Record) error {
		if rec.Offset == 150 && !slept {
			slept = true
			time.Sleep(3 * time.Second)
		}
		return nil
	}
	p := r.start(t)
	c.feed("in", 0, 100, 10)
	c.verifyCounts("out", 100)
	c.feed("in", 100, 10, 10) // open the transaction before the sleep
	c.feed("in", 110, 190, 10)
	c.verifyCounts("out", 300)
	p.stop()
}

func TestAtLeastOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 3)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("alos"))
	r.settings.ExactlyOnce = false
	c.feed("in", 0, 2000, 20)
	p := r.start(t)
	c.verifyCounts("out", 2000) // nothing crashed: nothing is repeated
	p.stop()
	p = r.start(t, func(s *Settings) { s.Seams.At = crashAt("after-flush", 2) })
	total := 2000
	for done := false; !done; {
		c.feed("in", total, 50, 20)
		total += 50
		select {
		case <-p.done:
			done = true
		case <-time.After(10 * time.Millisecond):
		}
	}
	p = r.start(t)
	last := map[string]int{}
	got := c.read("out", total)
	if len(got) < total {
		t.Fatalf("%d outputs, want at least %d", len(got), total)
	}
	for _, rec := range got {
		last[string(rec.Key)]++
	}
	if len(last) != 20 {
		t.Fatalf("%d keys", len(last))
	}
	p.stop()
}

// TestQueuesAreBounded holds a worker back under a big backlog: what is queued stays within its bound.
func TestQueuesAreBounded(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 2)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("bounded"))
	r.settings.QueueRecords = 100
	r.settings.FetchMaxPartitionBytes = 4 << 10
	r.perStep = func(task.Record) error { time.Sleep(50 * time.Microsecond); return nil }
	c.feed("in", 0, 1500, 20)
	p := r.start(t)
	c.verifyCounts("out", 1500)
	p.stop()
}

// TestBudgetHoldsProcessing gives state so little room that every cycle has to wait for a flush.
func TestBudgetHoldsProcessing(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 2)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("budget"))
	r.settings.StateBytes, r.settings.FlushBytes = 2<<10, 1<<30
	r.settings.FlushInterval = time.Hour
	c.feed("in", 0, 3000, 500)
	p := r.start(t)
	c.verifyCounts("out", 3000)
	p.stop()
	if n := len(r.disk.backends); n != 2 {
		t.Errorf("%d backends", n)
	}
	rows := 0
	for _, b := range r.disk.backends {
		rows += countRows(t, b)
	}
	if rows != 500 {
		t.Errorf("%d rows on disk, want 500", rows)
	}
}

func countRows(t *testing.T, b *memory.Backend) int {
	t.Helper()
	id, err := b.Register(countStore)
	if err != nil {
		t.Fatal(err)
	}
	cur := b.Scan(id, nil, nil, false)
	defer cur.Close()
	n := 0
	for cur.Next() {
		n++
	}
	return n
}

// TestBrokerDies takes the broker away under load: Run keeps trying, and ends in bounded time when asked, saying that
// the last commit is missing.
func TestBrokerDies(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.onlyFake()
	c.topic("in", 2)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("dies"))
	r.settings.TransactionTimeout = time.Second
	r.settings.CommitInterval = 300 * time.Millisecond
	c.feed("in", 0, 200, 20)
	p := r.start(t)
	c.verifyCounts("out", 200)
	c.feed("in", 200, 2000, 20)
	c.fake.Close()
	time.Sleep(time.Second)
	select {
	case <-p.done:
		t.Fatalf("ended by itself: %v", p.err)
	default:
	}
	p.cancel()
	if err := p.wait(); err != nil && !errors.Is(err, ErrUncommitted) {
		t.Errorf("ended with %v", err)
	}
}
