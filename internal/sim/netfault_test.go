package sim

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace.dev/state"
	"tailrace.dev/state/badger"
)

// brokerFaults are answers that a broker may give at any time. Those with REQUEST_TIMED_OUT and
// NOT_ENOUGH_REPLICAS_AFTER_APPEND come of requests that were applied nevertheless.
var brokerFaults = []struct {
	key  kmsg.Key
	errs []*kerr.Error
}{
	{kmsg.Produce, []*kerr.Error{kerr.NotLeaderForPartition, kerr.NotEnoughReplicasAfterAppend, kerr.RequestTimedOut}},
	{kmsg.Fetch, []*kerr.Error{kerr.NotLeaderForPartition}},
	{kmsg.FindCoordinator, []*kerr.Error{kerr.CoordinatorNotAvailable}},
	{kmsg.JoinGroup, []*kerr.Error{kerr.CoordinatorLoadInProgress, kerr.NotCoordinator, kerr.UnknownMemberID}},
	{kmsg.SyncGroup, []*kerr.Error{kerr.RebalanceInProgress, kerr.NotCoordinator}},
	{kmsg.Heartbeat, []*kerr.Error{kerr.RebalanceInProgress, kerr.UnknownMemberID, kerr.NotCoordinator}},
	{kmsg.OffsetFetch, []*kerr.Error{kerr.NotCoordinator, kerr.UnstableOffsetCommit}},
	{kmsg.OffsetCommit, []*kerr.Error{kerr.CoordinatorLoadInProgress, kerr.RequestTimedOut, kerr.RebalanceInProgress}},
	{kmsg.InitProducerID, []*kerr.Error{kerr.CoordinatorLoadInProgress, kerr.ConcurrentTransactions}},
	{kmsg.AddOffsetsToTxn, []*kerr.Error{kerr.ConcurrentTransactions, kerr.NotCoordinator}},
	{kmsg.TxnOffsetCommit, []*kerr.Error{
		kerr.CoordinatorLoadInProgress, kerr.IllegalGeneration, kerr.RequestTimedOut, kerr.UnknownMemberID,
	}},
	{kmsg.EndTxn, []*kerr.Error{kerr.CoordinatorLoadInProgress, kerr.ConcurrentTransactions, kerr.NotCoordinator}},
}

// annoy makes the broker answer wrongly, and moves leaders and coordinators.
func (n *netRun) annoy(ctx context.Context) {
	cluster := n.broker.Cluster()
	for ctx.Err() == nil {
		pause(ctx, n.upTo(3*time.Second))
		if ctx.Err() != nil {
			return
		}
		n.mu.Lock()
		n.faults++
		n.mu.Unlock()
		switch n.intN(8) {
		case 0:
			n.say("the coordinators move")
			cluster.RehashCoordinators()
		case 1:
			if n.purge {
				continue
			}
			n.say("the leaders move")
			cluster.ShufflePartitionLeaders()
		default:
			f := brokerFaults[n.intN(len(brokerFaults))]
			err := f.errs[n.intN(len(f.errs))]
			count := 1 + n.intN(2)
			n.say("%d × %s answered %s", count, f.key.Name(), err.Message)
			cluster.Fault(kfake.Fault{Keys: []kmsg.Key{f.key}, Err: err, Count: count, When: n.fromMember})
		}
	}
}

// fromMember spares the requests of the test's own clients.
func (n *netRun) fromMember(r kmsg.Request) bool {
	if p, ok := r.(*kmsg.ProduceRequest); ok {
		return p.TransactionID != nil && *p.TransactionID != userID
	}
	if p, ok := r.(*kmsg.InitProducerIDRequest); ok {
		return p.TransactionalID != nil && *p.TransactionalID != userID
	}
	if p, ok := r.(*kmsg.EndTxnRequest); ok {
		return p.TransactionalID != userID
	}
	if p, ok := r.(*kmsg.FindCoordinatorRequest); ok {
		return p.CoordinatorType == 0 || len(p.CoordinatorKeys) == 0 || p.CoordinatorKeys[0] != userID
	}
	return true
}

// feed writes the input, part of it in transactions, of which some are aborted. The broker that the runs use loses such a
// transaction once in some hundred runs, and the client asks for its end for ever: that run tells nothing.
func (n *netRun) feed(ctx context.Context) {
	life, cut := context.WithCancel(context.Background())
	defer cut()
	cl, err := kgo.NewClient(kgo.SeedBrokers(n.broker.Addrs()...), kgo.Dialer(n.network.DialContext), kgo.WithContext(life),
		kgo.TransactionalID(userID), kgo.TransactionTimeout(time.Minute), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.MetadataMinAge(50*time.Millisecond), kgo.ProducerLinger(0))
	if err != nil {
		n.find("the user's client: %v", err)
		return
	}
	defer cl.Close()
	for at := 0; ctx.Err() == nil; {
		var records []*kgo.Record
		for range 1 + n.intN(6) {
			n.mu.Lock()
			in := n.w.input(n.r, at)
			n.mu.Unlock()
			at++
			r := &kgo.Record{
				Topic: in.topic, Key: []byte(in.key), Value: []byte(in.value), Timestamp: time.UnixMilli(in.time),
			}
			if in.deleted {
				r.Value = nil
			}
			if n.partitions > 1 {
				r.Partition = int32(kgo.StickyKeyPartitioner(nil).ForTopic(in.topic).Partition(r, n.partitions))
			}
			records = append(records, r)
		}
		if n.intN(4) > 0 {
			if err = n.cl.ProduceSync(context.Background(), records...).FirstErr(); err == nil {
				n.sent(records)
			}
		} else {
			overdue := time.AfterFunc(netHealTime, cut)
			err = n.feedTxn(cl, records)
			if !overdue.Stop() {
				n.giveUp("the user's producer: %v", err)
				return
			}
		}
		if err != nil {
			n.find("the user's producer: %v", err)
			return
		}
		pause(ctx, n.upTo(500*time.Millisecond))
	}
}

func (n *netRun) feedTxn(cl *kgo.Client, records []*kgo.Record) error {
	if err := cl.BeginTransaction(); err != nil {
		return err
	}
	if err := cl.ProduceSync(context.Background(), records...).FirstErr(); err != nil {
		return fmt.Errorf("in a transaction: %w", err)
	}
	time.Sleep(n.upTo(400 * time.Millisecond))
	commit := n.intN(3) > 0
	if commit {
		n.sent(records)
	}
	if err := cl.EndTransaction(context.Background(), kgo.TransactionEndTry(commit)); err != nil {
		return fmt.Errorf("end of a transaction: %w", err)
	}
	return nil
}

func (n *netRun) sent(records []*kgo.Record) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range records {
		at := tp{r.Topic, r.Partition}
		n.last[at] = max(n.last[at], r.Offset+1)
	}
}

// finishInput writes the records that make everything before them ready to be processed.
func (n *netRun) finishInput() {
	at := int64(epoch + 100_000_000)
	for _, topic := range n.w.inputs {
		for p := range n.partitions {
			at++
			r := &kgo.Record{
				Topic: topic, Partition: int32(p), Key: []byte(lastKey), Value: []byte(lastKey), Timestamp: time.UnixMilli(at),
			}
			if err := n.cl.ProduceSync(context.Background(), r).FirstErr(); err != nil {
				n.find("the user's producer: %v", err)
			}
		}
	}
}

// judge compares what came out with the oracle, and what is on the disks with the changelogs.
func (n *netRun) judge() {
	o := &outcome{partitions: n.partitions, logs: map[string][][]fact{}, stores: map[string][]map[string][]byte{}}
	logs := map[string][][]*kgo.Record{}
	read := func(topic string) {
		logs[topic] = n.readAll(topic)
		for _, records := range logs[topic] {
			var facts []fact
			for _, r := range records {
				facts = append(facts, fact{string(r.Key), string(r.Value), r.Value == nil, r.Timestamp.UnixMilli()})
			}
			o.logs[topic] = append(o.logs[topic], facts)
		}
	}
	for _, topic := range append(append([]string{"out"}, n.w.inputs...), n.w.internal...) {
		read(topic)
	}
	for _, sb := range n.w.subs {
		for _, st := range sb.stores {
			if st.changelog == "" {
				continue
			}
			read(st.changelog)
			for _, records := range logs[st.changelog] {
				rows := map[string][]byte{}
				for _, r := range records {
					if r.Key[0] != state.KindRow {
						continue
					}
					if delete(rows, string(r.Key[1:])); r.Value != nil {
						rows[string(r.Key[1:])] = valueOf(r.Value)
					}
				}
				o.stores[st.name] = append(o.stores[st.name], rows)
			}
		}
	}
	o.purged = n.purge
	for _, finding := range n.w.judge(o) {
		n.find("%s: %s", n.w.name, finding)
	}
	for _, m := range n.members {
		n.judgeDisk(m, logs)
	}
}

// readAll returns the committed records of a topic by partition.
func (n *netRun) readAll(topic string) [][]*kgo.Record {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out := make([][]*kgo.Record, n.partitions)
	starts, err := n.adm.ListStartOffsets(ctx, topic)
	if err != nil {
		n.find("list the start of %s: %v", topic, err)
		return out
	}
	ends, err := n.adm.ListCommittedOffsets(ctx, topic)
	if err != nil {
		n.find("list the ends of %s: %v", topic, err)
		return out
	}
	from := map[int32]kgo.Offset{}
	left := 0
	for p := range int32(n.partitions) {
		s, _ := starts.Lookup(topic, p)
		if e, ok := ends.Lookup(topic, p); ok && e.Offset > s.Offset {
			from[p] = kgo.NewOffset().At(s.Offset)
			left++
		}
	}
	if left == 0 {
		return out
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(n.broker.Addrs()...), kgo.Dialer(n.network.DialContext),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(), kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}))
	if err != nil {
		n.find("make a reader: %v", err)
		return out
	}
	defer cl.Close()
	for left > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			n.find("read %s: %v", topic, err)
			return out
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if e, _ := ends.Lookup(topic, r.Partition); r.Offset == e.Offset-1 {
				left--
			}
			if !r.Attrs.IsControl() {
				out[r.Partition] = append(out[r.Partition], r)
			}
		})
	}
	return out
}

// judgeDisk compares the local state of a member, which has ended, with the changelogs.
func (n *netRun) judgeDisk(m *netMember, logs map[string][][]*kgo.Record) {
	for _, sb := range n.w.subs {
		for p := range n.partitions {
			dir := filepath.Join(m.config.StateDir, app, sb.name, strconv.Itoa(p))
			if found, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(found) == 0 {
				continue
			}
			b, err := badger.Open(dir, badger.Options{})
			if err != nil {
				n.find("open the disk of %s: %v", m.name, err)
				continue
			}
			for _, st := range sb.stores {
				if st.changelog != "" {
					n.judgeStore(m, b, st, p, logs[st.changelog][p])
				}
			}
			if err := b.Close(); err != nil {
				n.find("close the disk of %s: %v", m.name, err)
			}
		}
	}
}

func (n *netRun) judgeStore(m *netMember, b state.Backend, st store, partition int, log []*kgo.Record) {
	id, err := b.Register(st.name)
	if err != nil {
		n.find("%v", err)
		return
	}
	pos, ok, err := b.Position(id)
	if err != nil || !ok {
		return
	}
	const librarys = "\x00!" // records of the library that are no rows: barriers, and whose changelog it is
	want, newer := map[string][]byte{}, map[string][][]byte{}
	for _, r := range log {
		key := string(r.Key)
		switch {
		case strings.HasPrefix(key, librarys):
		case r.Offset < pos.Next:
			want[key] = r.Value
		default:
			newer[key] = append(newer[key], r.Value)
		}
	}
	for key, row := range want {
		got, err := b.Get(id, []byte(key))
		if err != nil {
			n.find("read the disk of %s: %v", m.name, err)
			return
		}
		ahead := false
		for _, v := range newer[key] {
			ahead = ahead || same(got, v)
		}
		if !same(got, row) && !ahead && !st.expires {
			n.find("%s: store %s[%d] at %d: row %q is %x, want %x", m.name, st.name, partition, pos.Next, key, got, row)
		}
	}
	cur := b.Scan(id, nil, nil, false)
	defer cur.Close()
	for cur.Next() {
		key := string(cur.Key())
		if _, known := want[key]; !known && newer[key] == nil {
			n.find("%s: store %s[%d] at %d: row %q is in no committed record", m.name, st.name, partition, pos.Next, key)
		}
	}
}
