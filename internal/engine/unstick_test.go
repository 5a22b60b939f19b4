package engine

import (
	"encoding/json"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// lossy is a broker that says of the producer's last transaction what it is told to say, until that starts anew.
type lossy struct {
	c     *cluster
	mu    sync.Mutex
	state string // "" is the truth
	id    int64
	epoch int16
	group bool // a transaction of this producer is open and has the group in it, but no offsets
	ends  atomic.Int64
	held  atomic.Bool
	hits  atomic.Int64 // offsets that were held back
}

// holdOffsets answers for as long as held says so as a coordinator does that waits for the end of a transaction.
func holdOffsets(c *cluster, held *atomic.Bool, hits *atomic.Int64) {
	c.fake.ControlKey(int16(kmsg.OffsetFetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		if !held.Load() {
			return nil, nil, false
		}
		hits.Add(1)
		resp := req.ResponseKind().(*kmsg.OffsetFetchResponse)
		for _, group := range req.(*kmsg.OffsetFetchRequest).Groups {
			g := kmsg.NewOffsetFetchResponseGroup()
			g.Group = group.Group
			t := kmsg.NewOffsetFetchResponseGroupTopic()
			t.Topic = c.ns + "in"
			if len(group.Topics) > 0 {
				t.TopicID = group.Topics[0].TopicID
			}
			for p := range int32(2) {
				at := kmsg.NewOffsetFetchResponseGroupTopicPartition()
				at.Partition, at.Offset, at.ErrorCode = p, -1, kerr.UnstableOffsetCommit.Code
				t.Partitions = append(t.Partitions, at)
			}
			g.Topics = append(g.Topics, t)
			resp.Groups = append(resp.Groups, g)
		}
		return resp, nil, true
	})
}

// newLossy watches the transactions. What is lost is there again after the commit of one that carries no offsets.
func newLossy(c *cluster) *lossy {
	l := &lossy{c: c}
	holdOffsets(c, &l.held, &l.hits)
	watch := func(key kmsg.Key, f func(kmsg.Request) (kmsg.Response, bool)) {
		c.fake.ControlKey(int16(key), func(req kmsg.Request) (kmsg.Response, error, bool) {
			c.fake.KeepControl()
			l.mu.Lock()
			defer l.mu.Unlock()
			resp, handled := f(req)
			return resp, nil, handled
		})
	}
	watch(kmsg.InitProducerID, func(req kmsg.Request) (kmsg.Response, bool) {
		if id := req.(*kmsg.InitProducerIDRequest).TransactionalID; id != nil && l.state != "" {
			l.state = "Empty"
			l.epoch++
		}
		return nil, false
	})
	watch(kmsg.AddOffsetsToTxn, func(req kmsg.Request) (kmsg.Response, bool) {
		add := req.(*kmsg.AddOffsetsToTxnRequest)
		l.id, l.epoch, l.group = add.ProducerID, add.ProducerEpoch, true
		if l.state != "" {
			l.state = "Ongoing"
		}
		return nil, false
	})
	watch(kmsg.TxnOffsetCommit, func(kmsg.Request) (kmsg.Response, bool) {
		l.group = false
		return nil, false
	})
	watch(kmsg.EndTxn, func(req kmsg.Request) (kmsg.Response, bool) {
		end := req.(*kmsg.EndTxnRequest)
		if l.state != "" {
			l.state = "CompleteAbort"
			if end.Commit {
				l.state = "CompleteCommit"
			}
		}
		if l.group && end.Commit && end.ProducerID == l.id {
			l.group = false
			l.ends.Add(1)
			l.held.Store(false)
		}
		return nil, false
	})
	watch(kmsg.DescribeTransactions, func(req kmsg.Request) (kmsg.Response, bool) {
		if l.state == "" {
			return nil, false
		}
		resp := req.ResponseKind().(*kmsg.DescribeTransactionsResponse)
		for _, id := range req.(*kmsg.DescribeTransactionsRequest).TransactionalIDs {
			st := kmsg.NewDescribeTransactionsResponseTransactionState()
			st.TransactionalID, st.State, st.ProducerID, st.ProducerEpoch = id, l.state, l.id, l.epoch
			resp.TransactionStates = append(resp.TransactionStates, st)
		}
		return resp, true
	})
	return l
}

// lose makes the broker hold back the committed offsets.
func (l *lossy) lose(state string) {
	l.say(state)
	l.held.Store(true)
}

func (l *lossy) say(state string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state = state
}

// TestLostMarkerIsWritten lets a broker lose the marker of a committed transaction: the member writes it, once it is
// sure that it was one.
func TestLostMarkerIsWritten(t *testing.T) {
	t.Parallel()
	for _, state := range []string{"CompleteCommit", "PrepareCommit", "CompleteAbort", "Ongoing", "Empty"} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			c.onlyFake()
			c.topic("in", 2)
			c.topic("out", 1)
			r := newRig(t, c, countProgram("marker"))
			l := newLossy(c)
			p := r.start(t)
			c.feed("in", 0, 300, 20)
			c.verifyCounts("out", 300)
			p.stop()
			l.lose(state)
			c.feed("in", 300, 300, 20)
			p = r.start(t)
			if state == "PrepareCommit" {
				time.Sleep(heldPatience)
				if n := l.ends.Load(); n != 0 {
					t.Errorf("a marker was written %d times before the former transaction was complete", n)
				}
				l.say("CompleteCommit")
				state = "CompleteCommit"
			}
			if state == "CompleteCommit" {
				until(t, "the marker", func() bool { return l.ends.Load() > 0 })
				c.verifyCounts("out", 600)
				p.stop()
				if n := l.ends.Load(); n != 1 {
					t.Errorf("the marker was written %d times", n)
				}
				return
			}
			until(t, "the offsets to be asked for", func() bool { return l.hits.Load() > 0 })
			time.Sleep(unstickAfter + 2*time.Second)
			if n := l.ends.Load(); n != 0 {
				t.Errorf("a marker was guessed %d times", n)
			}
			l.held.Store(false)
			c.verifyCounts("out", 600)
			p.stop()
		})
	}
}

// TestOpenTransactionIsNoLostMarker leaves a transaction of another program open on a topic that the application writes
// to: that is what holds its records back, and there is nothing to mend.
func TestOpenTransactionIsNoLostMarker(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.onlyFake()
	c.topic("in", 2)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("open"))
	l := newLossy(c)
	p := r.start(t)
	c.feed("in", 0, 300, 20)
	c.verifyCounts("out", 300)
	p.stop()
	l.mu.Lock()
	former := l.id
	l.mu.Unlock()
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.addrs...), kgo.TransactionalID("somebody"), kgo.TransactionTimeout(time.Minute))
	if err == nil {
		t.Cleanup(cl.Close)
		err = cl.BeginTransaction()
	}
	if err == nil {
		err = cl.ProduceSync(t.Context(), &kgo.Record{Topic: c.ns + "out", Value: []byte("open")}).FirstErr()
	}
	if err != nil {
		t.Fatal(err)
	}
	var visible atomic.Bool
	c.fake.ControlKey(int16(kmsg.DescribeTransactions), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		resp := req.ResponseKind().(*kmsg.DescribeTransactionsResponse)
		for _, id := range req.(*kmsg.DescribeTransactionsRequest).TransactionalIDs {
			st := kmsg.NewDescribeTransactionsResponseTransactionState()
			st.TransactionalID, st.State, st.StartTimestamp, st.ProducerID = id, "CompleteCommit", 1, former
			if id == "somebody" && visible.Load() {
				st.State = "Ongoing"
				topic := kmsg.NewDescribeTransactionsResponseTransactionStateTopic()
				topic.Topic, topic.Partitions = c.ns+"out", []int32{0}
				st.Topics = append(st.Topics, topic)
			}
			resp.TransactionStates = append(resp.TransactionStates, st)
		}
		return resp, nil, true
	})
	for _, open := range []bool{true, false} {
		visible.Store(open)
		before := l.ends.Load()
		p = r.start(t)
		until(t, "tasks", func() bool { return len(p.tasksOf()) == 2 })
		p.stop()
		if n := l.ends.Load() - before; open && n != 0 || !open && n == 0 {
			t.Errorf("open %v: a marker was written %d times", open, n)
		}
	}
}

// TestMendingSurvivesCrashes kills the member at each point of the mending, and removes its state directory.
func TestMendingSurvivesCrashes(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.onlyFake()
	c.topic("in", 2)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("former"))
	l := newLossy(c)
	p := r.start(t)
	c.feed("in", 0, 300, 20)
	c.verifyCounts("out", 300)
	p.stop()
	l.lose("CompleteCommit")
	c.feed("in", 300, 300, 20)
	for _, point := range []string{"mend-recorded", "mend-producer", "mend-open", "mend-ended"} {
		r.settings.Seams.At = func(at string) error {
			if at == point {
				return ErrCrash
			}
			return nil
		}
		if err := r.start(t).wait(); !errors.Is(err, ErrCrash) {
			t.Fatalf("%s: ended with %v", point, err)
		}
		if err := os.RemoveAll(r.settings.StateDir); err != nil {
			t.Fatal(err)
		}
	}
	r.settings.Seams.At = nil
	p = r.start(t)
	c.verifyCounts("out", 600)
	p.stop()
	// The record is gone: nothing is mended at the next start.
	before := l.ends.Load()
	p = r.start(t)
	until(t, "tasks", func() bool { return len(p.tasksOf()) == 2 })
	p.stop()
	if n := l.ends.Load() - before; n != 0 {
		t.Errorf("the marker was written %d times more", n)
	}
}

// TestMendingIsFinishedByOthers kills a member in the middle of the mending, for good: whoever takes over must not abort
// what it has open.
func TestMendingIsFinishedByOthers(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.onlyFake()
	c.topic("in", 2)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("heirs"))
	r.settings.InstanceID, r.settings.TransactionalID = "dead", r.program.App+"-0123456789abcdef"
	var commits, aborts atomic.Int64
	p := r.start(t)
	c.feed("in", 0, 300, 20)
	c.verifyCounts("out", 300)
	p.stop()
	l := newLossy(c)
	txns, err := c.adm.DescribeTransactions(t.Context(), r.settings.TransactionalID)
	if err != nil {
		t.Fatal(err)
	}
	l.id, l.epoch = txns[r.settings.TransactionalID].ProducerID, txns[r.settings.TransactionalID].ProducerEpoch
	l.lose("CompleteCommit")
	r.settings.Seams.At = func(at string) error {
		if at == "mend-open" {
			return ErrCrash
		}
		return nil
	}
	if err := r.start(t).wait(); !errors.Is(err, ErrCrash) {
		t.Fatalf("ended with %v", err)
	}
	l.say("") // from here on the truth: it is open, with nothing but the group and the topics in it
	c.fake.ControlKey(int16(kmsg.EndTxn), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		if end := req.(*kmsg.EndTxnRequest); end.TransactionalID == r.settings.TransactionalID {
			if end.Commit {
				commits.Add(1)
				l.held.Store(false)
			} else {
				aborts.Add(1)
			}
		}
		return nil, nil, false
	})
	c.fake.ControlKey(int16(kmsg.InitProducerID), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		if id := req.(*kmsg.InitProducerIDRequest).TransactionalID; id != nil && *id == r.settings.TransactionalID {
			aborts.Add(1)
		}
		return nil, nil, false
	})
	c.feed("in", 300, 300, 20)
	heir := newRig(t, c, countProgram("heirs"))
	heir.settings.InstanceID, heir.settings.TransactionalID = "heir", r.program.App+"-fedcba9876543210"
	p = heir.start(t)
	c.verifyCounts("out", 600)
	p.stop()
	if commits.Load() != 1 || aborts.Load() != 0 {
		t.Errorf("the transaction was committed %d times and aborted %d times", commits.Load(), aborts.Load())
	}
}

// TestStaleMendIsForgotten leaves a record of a mending that somebody else has ended long ago beside an ordinary open
// transaction: that is aborted, as ever.
func TestStaleMendIsForgotten(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 2)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("stale-mend"))
	p := r.start(t)
	c.feed("in", 0, 300, 20)
	c.verifyCounts("out", 300)
	var crash atomic.Bool
	p.stop()
	r.settings.Seams.At = func(at string) error {
		if at == "before-offsets" && crash.Load() {
			return ErrCrash
		}
		return nil
	}
	p = r.start(t)
	until(t, "tasks", func() bool { return len(p.tasksOf()) == 2 })
	crash.Store(true)
	c.feed("in", 300, 300, 20)
	if err := p.wait(); !errors.Is(err, ErrCrash) {
		t.Fatalf("ended with %v", err)
	}
	id := r.settings.TransactionalID
	txns, err := c.adm.DescribeTransactions(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if txns[id].State != "Ongoing" {
		t.Fatalf("no transaction is open: %+v", txns[id])
	}
	b, err := json.Marshal(mending{Producer: txns[id].ProducerID, Epoch: txns[id].ProducerEpoch - 1})
	if err != nil {
		t.Fatal(err)
	}
	mend := &kgo.Record{Topic: ControlTopic(r.program.App), Key: []byte(controlMend + id), Value: b}
	if err := c.cl.ProduceSync(t.Context(), mend).FirstErr(); err != nil {
		t.Fatal(err)
	}
	r.settings.Seams.At = nil
	p = r.start(t)
	c.verifyCounts("out", 600)
	p.stop()
}

// TestMarkerOfOneThatIsGone lets a member wait for offsets that one holds back which died and never returns.
func TestMarkerOfOneThatIsGone(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.onlyFake()
	c.topic("in", 2)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("gone"))
	r.settings.InstanceID, r.settings.TransactionalID = "dead", r.program.App+"-0123456789abcdef"
	r.settings.LeaveOnStop = true // lest the heir waits for the end of its session
	p := r.start(t)
	c.feed("in", 0, 300, 20)
	c.verifyCounts("out", 300)
	p.stop()
	txns, err := c.adm.DescribeTransactions(t.Context(), r.settings.TransactionalID)
	if err != nil {
		t.Fatal(err)
	}
	dead := txns[r.settings.TransactionalID]
	var ended, held atomic.Bool
	var hits atomic.Int64
	held.Store(true)
	holdOffsets(c, &held, &hits)
	c.fake.ControlKey(int16(kmsg.ListTransactions), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		resp := req.ResponseKind().(*kmsg.ListTransactionsResponse)
		for _, state := range req.(*kmsg.ListTransactionsRequest).StateFilters {
			if state == "CompleteCommit" {
				st := kmsg.NewListTransactionsResponseTransactionState()
				st.TransactionalID, st.ProducerID, st.TransactionState = dead.TxnID, dead.ProducerID, state
				resp.TransactionStates = append(resp.TransactionStates, st)
			}
		}
		return resp, nil, true
	})
	c.fake.ControlKey(int16(kmsg.DescribeTransactions), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		ids := req.(*kmsg.DescribeTransactionsRequest).TransactionalIDs
		if len(ids) != 1 || ids[0] != dead.TxnID {
			return nil, nil, false
		}
		resp := req.ResponseKind().(*kmsg.DescribeTransactionsResponse)
		st := kmsg.NewDescribeTransactionsResponseTransactionState()
		st.TransactionalID, st.State = dead.TxnID, "CompleteCommit"
		st.ProducerID, st.ProducerEpoch = dead.ProducerID, dead.ProducerEpoch
		resp.TransactionStates = append(resp.TransactionStates, st)
		return resp, nil, true
	})
	c.fake.ControlKey(int16(kmsg.EndTxn), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		if end := req.(*kmsg.EndTxnRequest); end.TransactionalID == dead.TxnID && end.Commit {
			ended.Store(true)
			held.Store(false)
		}
		return nil, nil, false
	})
	two := newRig(t, c, countProgram("gone"))
	two.settings.InstanceID, two.settings.TransactionalID = "heir", r.program.App+"-fedcba9876543210"
	c.feed("in", 300, 300, 20)
	p = two.start(t)
	c.verifyCounts("out", 600)
	if !ended.Load() {
		t.Error("nobody wrote the marker")
	}
	p.stop()
}

// TestResetReleasesOffsets resets an application whose offsets are held back for ever.
func TestResetReleasesOffsets(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.onlyFake()
	c.topic("in", 2)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("held"))
	r.settings.LeaveOnStop = true
	r.settings.TransactionalID = r.program.App + "-0123456789abcdef"
	p := r.start(t)
	c.feed("in", 0, 300, 20)
	c.verifyCounts("out", 300)
	p.stop()
	var held atomic.Bool
	var hits, aborts atomic.Int64
	held.Store(true)
	holdOffsets(c, &held, &hits)
	c.fake.ControlKey(int16(kmsg.EndTxn), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		if end := req.(*kmsg.EndTxnRequest); end.TransactionalID == r.settings.TransactionalID && !end.Commit {
			aborts.Add(1)
			held.Store(false)
		}
		return nil, nil, false
	})
	a := openAdmin(t, c)
	spec := ResetSpec{App: r.program.App, StateDir: r.settings.StateDir, To: ResetTarget{Kind: ResetEarliest}}
	plan, err := a.PlanReset(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Reset(t.Context(), plan, ResetOptions{}); err != nil {
		t.Fatal(err)
	}
	if aborts.Load() != 1 {
		t.Errorf("%d transactions were aborted", aborts.Load())
	}
	r.disk.clear()
	p = r.start(t)
	countedAgain(t, c, 300, 300)
	p.stop()
}

// TestMarkerIsWrittenAgain makes a member write its last marker once more where none is missing: a broker takes it, and
// nothing changes.
func TestMarkerIsWrittenAgain(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 2)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("again"))
	p := r.start(t)
	c.feed("in", 0, 300, 20)
	c.verifyCounts("out", 300)
	p.stop()
	state := func() kadm.DescribedTransaction {
		txns, err := c.adm.DescribeTransactions(t.Context(), r.settings.TransactionalID)
		if err != nil {
			t.Fatal(err)
		}
		return txns[r.settings.TransactionalID]
	}
	for range 2 { // from the commit, and from what the marker before left
		before := state()
		b, err := json.Marshal(mending{Producer: before.ProducerID, Epoch: -1})
		if err != nil {
			t.Fatal(err)
		}
		mend := &kgo.Record{
			Topic: ControlTopic(r.program.App), Key: []byte(controlMend + r.settings.TransactionalID), Value: b,
		}
		if err := c.cl.ProduceSync(t.Context(), mend).FirstErr(); err != nil {
			t.Fatal(err)
		}
		p = r.start(t)
		until(t, "tasks", func() bool { return len(p.tasksOf()) == 2 })
		if now := state(); now.ProducerEpoch < before.ProducerEpoch+2 {
			t.Errorf("no transaction wrote the marker: %+v, before %+v", now, before)
		}
		p.stop()
		began := state()
		p = r.start(t)
		until(t, "tasks", func() bool { return len(p.tasksOf()) == 2 })
		if now := state(); now.ProducerEpoch != began.ProducerEpoch+1 {
			t.Errorf("it was written again: %+v, before %+v", now, began)
		}
		p.stop()
	}
	c.feed("in", 300, 300, 20)
	p = r.start(t)
	c.verifyCounts("out", 600)
	p.stop()
}
