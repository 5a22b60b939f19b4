package engine

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Seams are injection points for tests; the zero value injects nothing.
type Seams struct {
	// At is called at named points of the commit and restore protocol; tests kill, delay or fail there.
	At func(point string) error
	// FreeBytes replaces the question to the file system how much space a directory has left.
	FreeBytes func(dir string) (uint64, error)
	// Now replaces the wall clock: what records are stamped with, and what they are compared with. Waiting goes by the
	// monotonic clock, which nobody can set.
	Now func() time.Time
	// Defect breaks one rule of the protocol, so that a test can show that it would notice.
	Defect Defect
}

// Defect is a mistake that an exactly-once engine must not have. A fault test that passes with one of them is worth
// nothing.
type Defect int

// The defects.
const (
	NoDefect Defect = iota
	// ApplyFirst writes rows to the local disk before the transaction that carries them has committed.
	ApplyFirst
	// NoBarrier restores up to the last stable offset as it was when the partition was assigned, before the committed
	// input offsets were known.
	NoBarrier
	// IgnoreSendErrors commits a transaction of which a record could not be produced.
	IgnoreSendErrors
	// CommitPolled commits the offsets of what was fetched, not of what was processed.
	CommitPolled
)

type seamsKey struct{}

// WithSeams returns a context that makes an engine whose Run gets it use the seams. It is how tests reach the engine
// of an application from outside, without the application's configuration having a field for them.
func WithSeams(ctx context.Context, s Seams) context.Context {
	return context.WithValue(ctx, seamsKey{}, s)
}

// SeamsFrom returns the seams of a context, or the zero value.
func SeamsFrom(ctx context.Context) Seams {
	s, _ := ctx.Value(seamsKey{}).(Seams)
	return s
}

// has tells whether the engine is to have a defect.
func (e *Engine) has(d Defect) bool { return e.cfg.Seams.Defect == d }

// applyFirst is the defect ApplyFirst: rows go to disk before their transaction ends.
func (s *session) applyFirst(batches []pending) error {
	s.applyCommit(batches)
	for _, b := range batches {
		layers := b.t.machine.Layers()
		f := layers.Freeze()
		if f == nil {
			continue
		}
		if err := f.Run(); err != nil {
			return rebuild("flush task %s: %w", b.t.id, err)
		}
		layers.Done(f)
		b.t.countUnflushed()
	}
	return nil
}

// changelogEnds is a part of the defect NoBarrier: where the changelogs of a task end for who reads committed records,
// at a time when transactions of a former owner may still be undecided.
func (s *session) changelogEnds(t *taskRun) map[string]int64 {
	ends := make(map[string]int64, len(t.sub.Stores))
	for _, store := range t.sub.Stores {
		if store.Changelog == "" {
			continue
		}
		listed, err := s.adm.ListCommittedOffsets(s.ctx, store.Changelog)
		if end, ok := listed.Lookup(store.Changelog, t.id.Partition); err == nil && ok {
			ends[store.Changelog] = end.Offset
		}
	}
	return ends
}

// noBarrier is the defect NoBarrier: the restore reads up to what was the end before.
func (s *session) noBarrier(t *taskRun, stores []*storeRun) error {
	for _, st := range stores {
		st.barrier = t.earlyEnds[st.spec.Changelog] - 1
	}
	return nil
}

// upTo leaves out the records behind an offset, which the defect NoBarrier does not know of.
func upTo(records []*kgo.Record, last int64) []*kgo.Record {
	for len(records) > 1 && records[len(records)-1].Offset > last {
		records = records[:len(records)-1]
	}
	return records
}
