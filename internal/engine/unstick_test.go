package engine

import (
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// lossy is a broker that says of the producer's last transaction what it is told to say.
type lossy struct {
	c     *cluster
	mu    sync.Mutex
	state string // "" is the truth
	id    int64
	epoch int16
	group bool // a transaction of this producer is open and has the group in it, but no offsets
	ends  atomic.Int64
	fault *kfake.FaultHandle
}

// newLossy watches the transactions. What is lost is there again after the commit of one that carries no offsets.
func newLossy(c *cluster) *lossy {
	l := &lossy{c: c}
	watch := func(key kmsg.Key, f func(kmsg.Request) (kmsg.Response, bool)) {
		c.fake.ControlKey(int16(key), func(req kmsg.Request) (kmsg.Response, error, bool) {
			c.fake.KeepControl()
			l.mu.Lock()
			defer l.mu.Unlock()
			resp, handled := f(req)
			return resp, nil, handled
		})
	}
	watch(kmsg.AddOffsetsToTxn, func(req kmsg.Request) (kmsg.Response, bool) {
		add := req.(*kmsg.AddOffsetsToTxnRequest)
		l.id, l.epoch, l.group = add.ProducerID, add.ProducerEpoch, true
		return nil, false
	})
	watch(kmsg.TxnOffsetCommit, func(kmsg.Request) (kmsg.Response, bool) {
		l.group = false
		return nil, false
	})
	watch(kmsg.EndTxn, func(req kmsg.Request) (kmsg.Response, bool) {
		if end := req.(*kmsg.EndTxnRequest); l.group && end.Commit && end.ProducerID == l.id {
			l.group = false
			l.ends.Add(1)
			if l.fault != nil {
				l.fault.Remove()
			}
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
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state = state
	l.fault = l.c.fake.Fault(kfake.Fault{
		Keys: []kmsg.Key{kmsg.OffsetFetch}, Err: kerr.UnstableOffsetCommit, Count: 1 << 30,
	})
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
			if state == "CompleteCommit" || state == "PrepareCommit" {
				until(t, "the marker", func() bool { return l.ends.Load() > 0 })
				c.verifyCounts("out", 600)
				p.stop()
				if n := l.ends.Load(); n != 1 {
					t.Errorf("the marker was written %d times", n)
				}
				return
			}
			until(t, "the offsets to be asked for", func() bool { return l.fault.Hits() > 0 })
			time.Sleep(unstickAfter + 2*time.Second)
			if n := l.ends.Load(); n != 0 {
				t.Errorf("a marker was guessed %d times", n)
			}
			l.fault.Remove()
			c.verifyCounts("out", 600)
			p.stop()
		})
	}
}

// TestFormerIsRemembered starts a process again after one that learned of a commit, and made the coordinator forget it.
func TestFormerIsRemembered(t *testing.T) {
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
	p = r.start(t)
	file := filepath.Join(r.settings.StateDir, formerFile)
	until(t, "it to be put down", func() bool { _, err := os.Stat(file); return err == nil })
	p.stop()
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info, err)
	}
	l.mu.Lock()
	l.state = "" // the fake says that it is empty, and says the epoch
	l.mu.Unlock()
	c.feed("in", 300, 300, 20)
	p = r.start(t)
	c.verifyCounts("out", 600)
	p.stop()
	if n := l.ends.Load(); n != 1 {
		t.Errorf("the marker was written %d times", n)
	}
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
	for range 2 { // from Empty, and from what the marker before left
		p = r.start(t)
		until(t, "tasks", func() bool { return len(p.tasksOf()) == 2 })
		p.stop()
		before := state()
		b, err := json.Marshal(former{Producer: before.ProducerID, Epoch: before.ProducerEpoch, Known: true, Mending: true})
		if err == nil {
			err = os.WriteFile(filepath.Join(r.settings.StateDir, formerFile), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		p = r.start(t)
		until(t, "tasks", func() bool { return len(p.tasksOf()) == 2 })
		if now := state(); now.ProducerEpoch < before.ProducerEpoch+2 {
			t.Errorf("no transaction wrote the marker: %+v, before %+v", now, before)
		}
		p.stop()
	}
	c.feed("in", 300, 300, 20)
	p = r.start(t)
	c.verifyCounts("out", 600)
	p.stop()
}

func TestFormerLearns(t *testing.T) {
	t.Parallel()
	commit := former{Producer: 7, Epoch: 3, Known: true}
	mending := former{Producer: 7, Epoch: 3, Known: true, Mending: true}
	wanted := former{Producer: 7, Epoch: 3, Known: true, Mending: true, wanted: true}
	for _, tc := range []struct {
		name  string
		was   former
		state string
		id    int64
		epoch int16
		want  former
	}{
		{"complete", former{}, "CompleteCommit", 7, 3, commit},
		{"prepared", former{Producer: 1, Known: true}, "PrepareCommit", 7, 3, commit},
		{"aborted", commit, "CompleteAbort", 7, 4, former{}},
		{"open", commit, "Ongoing", 7, 3, former{}},
		{"empty", commit, "Empty", 7, 3, commit},
		{"once more", commit, "Empty", 7, 4, commit},
		{"used between", commit, "Empty", 7, 5, former{}},
		{"another producer", commit, "Empty", 8, 3, former{}},
		{"nothing known", former{}, "Empty", 7, 3, former{}},
		{"interrupted", mending, "Ongoing", 7, 3, mending},
		{"interrupted later", mending, "Empty", 7, 3, mending},
		{"not by us", mending, "Ongoing", 7, 4, former{}},
		{"timed out", mending, "CompleteAbort", 7, 4, former{}},
		{"done", mending, "CompleteCommit", 7, 3, commit},
		{"wanted", wanted, "CompleteAbort", 7, 9, wanted},
		{"wanted of another", wanted, "Empty", 8, 0, former{}},
	} {
		f := tc.was
		f.learn(tc.state, tc.id, tc.epoch)
		if f != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, f, tc.want)
		}
	}
}
