package engine

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kgo"
)

const slabRecords = 128

// slab is a row of records for the producer, all of one task and store. When the client is done with the last of them
// they are used again: at hundreds of thousands of records a second, garbage of this size is most of what the collector
// would have to do.
type slab struct {
	records [slabRecords]kgo.Record
	left    atomic.Int32 // records that the client is not done with, those not yet used included
	s       *session
	store   *storeRun // of changelog records; nil for outputs
	done    func(r *kgo.Record, err error)
}

var slabs sync.Pool // of *slab

func newSlab() *slab {
	if b, ok := slabs.Get().(*slab); ok {
		return b
	}
	b := new(slab)
	b.done = b.onDone
	return b
}

// sender produces records of one task that are either outputs or the changelog of one store. It fills one slab after
// another, so that there are about as many records in memory as the client holds, however few are sent at a time.
type sender struct {
	slab *slab
	used int
}

// next returns an empty record to be filled and given to send.
func (w *sender) next(s *session, store *storeRun) *kgo.Record {
	if w.slab == nil {
		w.slab, w.used = newSlab(), 0
		w.slab.s, w.slab.store = s, store
		w.slab.left.Store(slabRecords)
	}
	return &w.slab.records[w.used]
}

// send produces the record of the last call of next. It blocks while the producer is full.
func (w *sender) send() {
	b, r := w.slab, &w.slab.records[w.used]
	if w.used++; w.used == slabRecords {
		w.slab = nil
	}
	b.s.cl.Produce(context.Background(), r, b.done)
}

// onDone is called by the client when it is done with a record, in order for records of one partition.
func (b *slab) onDone(r *kgo.Record, err error) {
	switch {
	case err != nil:
		b.s.onSent(r, err)
	case b.store != nil:
		b.store.produced = r.Offset
	}
	*r = kgo.Record{}
	if b.left.Add(-1) == 0 {
		b.s, b.store = nil, nil
		slabs.Put(b)
	}
}
