package sim

import (
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/internal/task"
)

// broker is a model of a Kafka cluster with transaction.version=2, as far as the engine's protocol goes. A request is a
// method; it is applied at once and as a whole. What a real cluster does in the background, such as writing the markers
// of a decided transaction, are steps that the scheduler takes when it likes.
type broker struct {
	now       int64 // Unix milliseconds
	topics    []*topic
	byName    map[string]*topic
	made      uint64 // topics so far, for their ids
	producers []*producer
	byTxID    map[string]*producer
	deciding  []*txn // decided, and without some marker
	group     group
	defect    Defect
	commits   int64 // of offsets so far
	onCommit  func(t *txn)
	say       func(format string, args ...any)
}

func newBroker(now int64, say func(string, ...any)) *broker {
	b := &broker{now: now, byName: map[string]*topic{}, byTxID: map[string]*producer{}, say: say}
	b.group.b = b
	return b
}

func (b *broker) createTopic(name string, partitions int, compacted bool) {
	b.made++
	t := newTopic(name, b.made, partitions, compacted)
	b.topics = append(b.topics, t)
	b.byName[name] = t
}

// recreate replaces a changelog topic by one of another id that holds the same committed rows, as an operator does who
// moves it. Nothing may be open in it.
func (b *broker) recreate(name string) {
	old := b.byName[name]
	b.made++
	t := newTopic(name, b.made, len(old.parts), old.compacted)
	for i, p := range old.parts {
		for _, e := range p.log {
			if !e.marker && e.visible() {
				t.parts[i].append(&entry{key: e.key, value: e.value, time: e.time})
			}
		}
	}
	b.byName[name] = t
	b.topics[slices.Index(b.topics, old)] = t
}

func (b *broker) part(at tp) *partition { return b.byName[at.topic].parts[at.partition] }

// message is a record to be produced.
type message struct {
	tp      tp
	key     []byte
	value   []byte
	time    int64
	headers []task.Header
	// acked is told the offset.
	acked func(offset int64)
}

// initProducer gives a producer a new epoch and ends what an earlier one left open: first it decides that, then it asks
// to be called again when the markers are written.
func (b *broker) initProducer(txID string, limit int64) (id int64, epoch int16, err error) {
	p := b.byTxID[txID]
	if p == nil {
		p = &producer{id: int64(len(b.producers) + 1), txID: txID, epoch: -1}
		b.producers = append(b.producers, p)
		b.byTxID[txID] = p
	}
	p.limit = limit
	if p.txn != nil && !p.txn.ended() {
		if b.defect == ZombieNotFenced && txID != userID {
			return p.id, p.epoch, nil
		}
		if p.txn.decision == undecided {
			p.epoch++
			b.decide(p.txn, aborted)
		}
		return 0, 0, kerr.ConcurrentTransactions
	}
	p.epoch++
	return p.id, p.epoch, nil
}

// check finds the producer of a request and refuses those of an earlier epoch.
func (b *broker) check(txID string, epoch int16) (*producer, error) {
	p := b.byTxID[txID]
	if p == nil {
		return nil, kerr.InvalidProducerIDMapping
	}
	if p.epoch != epoch && b.defect != ZombieNotFenced {
		return nil, kerr.InvalidProducerEpoch
	}
	return p, nil
}

// enter returns the open transaction of a producer, opening it with the first request that is part of it.
func (b *broker) enter(p *producer) (*txn, error) {
	if p.txn == nil || p.txn.ended() {
		p.txn = &txn{p: p, since: b.now}
	}
	if p.txn.decision != undecided {
		return nil, kerr.ConcurrentTransactions
	}
	return p.txn, nil
}

// produce appends a record to the open transaction of a producer.
func (b *broker) produce(txID string, epoch int16, m *message) (int64, error) {
	p, err := b.check(txID, epoch)
	if err != nil {
		return 0, err
	}
	t, err := b.enter(p)
	if err != nil {
		return 0, err
	}
	part := b.part(m.tp)
	if !slices.Contains(t.parts, part) {
		t.parts = append(t.parts, part)
		part.open = append(part.open, openTxn{t, part.next})
	}
	return part.append(&entry{key: m.key, value: m.value, time: m.time, headers: m.headers, txn: t}), nil
}

// producePlain appends a record outside of any transaction.
func (b *broker) producePlain(m *message) int64 {
	return b.part(m.tp).append(&entry{key: m.key, value: m.value, time: m.time, headers: m.headers})
}

func (b *broker) addOffsets(txID string, epoch int16) error {
	p, err := b.check(txID, epoch)
	if err != nil {
		return err
	}
	t, err := b.enter(p)
	if err != nil {
		return err
	}
	t.offsets = true
	return nil
}

// commitInTxn puts offsets into the open transaction.
func (b *broker) commitInTxn(txID string, epoch int16, who membership, offsets []pendingOffset) error {
	p, err := b.check(txID, epoch)
	if err != nil {
		return err
	}
	if p.txn == nil || p.txn.decision != undecided || !p.txn.offsets {
		return kerr.InvalidTxnState
	}
	if err := b.group.check(who, true); err != nil {
		return err
	}
	for _, o := range offsets {
		b.commits++
		o.offset.number = b.commits
		p.txn.pending = append(p.txn.pending, o)
	}
	return nil
}

// commitPlain commits offsets outside of any transaction.
func (b *broker) commitPlain(who membership, offsets []pendingOffset) error {
	if err := b.group.check(who, false); err != nil {
		return err
	}
	for _, o := range offsets {
		b.commits++
		o.offset.number = b.commits
		b.group.offsets[o.tp] = o.offset
	}
	return nil
}

// endTxn decides the open transaction. The epoch rises with it, so that no late request can reach the next one.
func (b *broker) endTxn(txID string, epoch int16, commit bool) (int16, error) {
	p, err := b.check(txID, epoch)
	if err != nil {
		return 0, err
	}
	if p.txn == nil || p.txn.decision != undecided {
		return 0, kerr.InvalidTxnState
	}
	d := aborted
	if commit {
		d = committed
	}
	p.epoch++
	b.decide(p.txn, d)
	return p.epoch, nil
}

func (b *broker) decide(t *txn, d decision) {
	t.decision = d
	if d == committed && b.onCommit != nil {
		b.onCommit(t)
	}
	if t.offsets && len(t.pending) == 0 {
		t.offsets = false
	}
	if !t.ended() {
		b.deciding = append(b.deciding, t)
	}
}

// writeMarker writes one of the markers that a decided transaction still lacks.
func (b *broker) writeMarker(t *txn, choose func(n int) int) {
	n := len(t.parts)
	if t.offsets {
		n++
	}
	i := choose(n)
	if i < len(t.parts) {
		p := t.parts[i]
		t.parts = slices.Delete(t.parts, i, i+1)
		p.open = slices.DeleteFunc(p.open, func(o openTxn) bool { return o.t == t })
		p.append(&entry{txn: t, marker: true, time: b.now})
		b.say("marker %s[%d]@%d", p.tp.topic, p.tp.partition, p.next-1)
	} else {
		t.offsets = false
		if t.decision == committed {
			for _, o := range t.pending {
				if b.group.offsets[o.tp].number < o.offset.number { // not when a plain commit came after it
					b.group.offsets[o.tp] = o.offset
				}
			}
		}
		t.pending = nil
		b.say("offsets of %s %v", t.p.txID, t.decision == committed)
	}
	if t.ended() {
		b.deciding = slices.DeleteFunc(b.deciding, func(x *txn) bool { return x == t })
	}
}

// expire aborts transactions that are open for too long, and fences their producers.
func (b *broker) expire() {
	for _, p := range b.producers {
		if t := p.txn; t != nil && t.decision == undecided && !t.ended() && b.now-t.since > p.limit {
			b.abortByTimeout(p)
		}
	}
	b.group.expire()
}

func (b *broker) abortByTimeout(p *producer) {
	p.epoch++
	b.say("transaction of %s timed out", p.txID)
	b.decide(p.txn, aborted)
}

// fetchOffset returns the committed offset of a partition. stable waits for transactions that are about to change it.
func (b *broker) fetchOffset(at tp, stable bool) (o groupOffset, ok bool, err error) {
	if stable {
		for _, p := range b.producers {
			if p.txn == nil {
				continue
			}
			for _, pending := range p.txn.pending {
				if pending.tp == at {
					return groupOffset{}, false, kerr.UnstableOffsetCommit
				}
			}
		}
	}
	o, ok = b.group.offsets[at]
	return o, ok, nil
}

// fetch is a fetch of committed records.
func (b *broker) fetch(at tp, from int64, limit int) ([]*kgo.Record, int64, error) {
	records, lso, err := b.part(at).fetch(from, limit)
	if err != nil {
		return nil, 0, fmt.Errorf("fetch %s[%d]@%d: %w", at.topic, at.partition, from, err)
	}
	return records, lso, nil
}
