package sim

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/internal/task"
)

// decision is what became of a transaction.
type decision int

const (
	undecided decision = iota
	committed
	aborted
)

// txn is one transaction of a producer.
type txn struct {
	p        *producer
	decision decision
	since    int64
	// parts are the partitions that have records of it and no marker yet.
	parts []*partition
	// offsets tells that the group's offsets are part of it; they become visible by a marker of their own.
	offsets bool
	pending []pendingOffset
}

// pendingOffset is an offset that waits for the end of its transaction.
type pendingOffset struct {
	tp     tp
	offset groupOffset
}

// ended tells whether everything that the transaction touched has its marker.
func (t *txn) ended() bool { return t.decision != undecided && len(t.parts) == 0 && !t.offsets }

// producer is a transactional id at the coordinator.
type producer struct {
	id    int64
	txID  string
	epoch int16
	txn   *txn // the last one; nil before the first
	limit int64
}

// tp names a partition.
type tp struct {
	topic     string
	partition int32
}

// entry is one offset of a log.
type entry struct {
	offset     int64
	key, value []byte
	time       int64 // of the record
	headers    []task.Header
	txn        *txn // nil: written outside of any
	marker     bool
	cleaned    int64 // when a compaction first left it alone
	superseded bool  // compaction removed it for a later one
}

func (e *entry) visible() bool { return e.txn == nil || e.txn.decision == committed }

// partition is a log. history keeps what compaction and purging remove, for the oracle alone.
type partition struct {
	tp      tp
	start   int64
	next    int64
	log     []*entry
	history []*entry
	open    []openTxn
	keys    []string // of the history, in the order of their first record
	byKey   map[string][]*entry
}

type openTxn struct {
	t     *txn
	first int64
}

// lso is the last stable offset: what lies below it is decided, and every reader sees it alike.
func (p *partition) lso() int64 {
	lso := p.next
	for _, o := range p.open {
		lso = min(lso, o.first)
	}
	return lso
}

func (p *partition) append(e *entry) int64 {
	e.offset = p.next
	p.next++
	p.log = append(p.log, e)
	if !e.marker {
		p.history = append(p.history, e)
		key := string(e.key)
		if p.byKey[key] == nil {
			p.keys = append(p.keys, key)
		}
		p.byKey[key] = append(p.byKey[key], e)
	}
	return e.offset
}

// fetch returns up to limit committed records and markers from an offset on, below the last stable offset.
func (p *partition) fetch(from int64, limit int) (records []*kgo.Record, lso int64, err error) {
	if from < p.start || from > p.next {
		return nil, 0, kerr.OffsetOutOfRange
	}
	lso = p.lso()
	at, _ := slices.BinarySearchFunc(p.log, from, func(e *entry, o int64) int { return int(e.offset - o) })
	for _, e := range p.log[at:] {
		if e.offset >= lso || len(records) == limit {
			break
		}
		if !e.visible() && !e.marker {
			continue
		}
		r := &kgo.Record{
			Topic: p.tp.topic, Partition: p.tp.partition, Offset: e.offset, Key: e.key, Value: e.value,
			Timestamp: time.UnixMilli(e.time), LeaderEpoch: -1,
		}
		if e.marker {
			r.Attrs = controlAttrs
		}
		for _, h := range e.headers {
			r.Headers = append(r.Headers, kgo.RecordHeader(h))
		}
		records = append(records, r)
	}
	return records, lso, nil
}

var controlAttrs = kgo.NewRecordAttrs(kgo.RecordAttrsOpts{Transactional: true, Control: true})

// compact removes what a later committed record of the same key replaces, up to the last stable offset, and deletions
// that a compaction has left alone for longer than retention, in milliseconds. Readers below held are on their way, and
// nobody is on the way for longer than the retention: they find the deletions.
func (p *partition) compact(now, retention, held int64) int {
	lso := p.lso()
	last := make(map[string]int64)
	for _, e := range p.log {
		if e.offset < lso && !e.marker && e.visible() {
			last[string(e.key)] = e.offset
		}
	}
	before := len(p.log)
	p.log = slices.DeleteFunc(p.log, func(e *entry) bool {
		switch {
		case e.offset >= lso || e.offset == p.next-1: // the last one stays, so that the log's end is known by it
			return false
		case e.marker:
			return now-e.time > retention
		case !e.visible():
			return true
		case last[string(e.key)] != e.offset:
			e.superseded = true
			return true
		}
		if e.value == nil && e.cleaned == 0 {
			e.cleaned = now
		}
		return e.value == nil && e.offset < held && now-e.cleaned > retention
	})
	return before - len(p.log)
}

// purge removes everything below an offset.
func (p *partition) purge(to int64) {
	to = min(to, p.next)
	if to <= p.start {
		return
	}
	p.start = to
	p.log = slices.DeleteFunc(p.log, func(e *entry) bool { return e.offset < to })
}

// topic is a topic of the model broker.
type topic struct {
	name      string
	id        [16]byte
	compacted bool
	parts     []*partition
}

func newTopic(name string, number uint64, partitions int, compacted bool) *topic {
	t := &topic{name: name, compacted: compacted}
	binary.BigEndian.PutUint64(t.id[:], number)
	for p := range partitions {
		t.parts = append(t.parts, &partition{tp: tp{name, int32(p)}, byKey: map[string][]*entry{}})
	}
	return t
}
