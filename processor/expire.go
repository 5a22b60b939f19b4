package processor

import (
	"math"
	"time"

	"tailrace.dev/state"
)

// withTTL is a spec whose rows may have a time to live.
type withTTL interface {
	state.AnySpec
	TTL() time.Duration
	OpenSweep(env state.Env) (func(timeMillis int64) error, error)
}

func hasTTL(spec state.AnySpec) bool {
	s, ok := spec.(withTTL)
	return ok && s.TTL() > 0
}

// Expirer removes the expired rows of a store and forwards their deletions: what an operator that sets Operator.Expires
// calls with the key and the time of each record, before it handles that. It is nil where rows have no time to live.
type Expirer[K any] func(k K, at time.Time) error

// ExpireRows returns the Expirer of a store that the calling operator owns. change makes the value of the record that is
// forwarded, of what the row was; the record's time is that at which the row expired.
func ExpireRows[K, V, C any](
	spec *state.KeyValueSpec[K, V], s *state.KeyValueStore[K, V], change func(old V) C, next Handler[K, C],
) Expirer[K] {
	ttl := spec.TTL().Milliseconds()
	if ttl == 0 {
		return nil
	}
	forward := func(e state.Entry[K, V]) error {
		at := e.Time.UnixMilli()
		if at > math.MaxInt64-ttl {
			at = math.MaxInt64 - ttl
		}
		return next(Record[K, C]{Key: e.Key, Value: change(e.Value), Time: time.UnixMilli(at + ttl).UTC()})
	}
	return func(k K, at time.Time) error {
		if err := s.Sweep(at.UnixMilli(), forward); err != nil {
			return err
		}
		// The record must not go on from a row that is gone for all who read.
		return s.SweepKey(k, forward)
	}
}

// checkTTL reports an operator that owns a store and would not tell of the rows that expire in it.
func (b *Builder) checkTTL(op Operator) {
	for _, s := range op.Owned {
		if s != nil && s.Err() == nil && hasTTL(s) && !op.Expires {
			b.Fail(op.Kind, "store %q has a time to live, which this operator cannot keep: declare it without", s.Name())
		}
	}
}

// sweepers returns what removes the expired rows of the stores that belong to no operator, so that Processors share
// them; a store with an owner is swept by that.
func (b *Builder) sweepers(t *Task, specs []state.AnySpec) ([]func(timeMillis int64) error, error) {
	var all []func(timeMillis int64) error
	for _, s := range specs {
		if s == nil || !hasTTL(s) {
			continue
		}
		if d := b.stores[s.Name()]; d == nil || d.owner != nil {
			continue
		}
		sweep, err := s.(withTTL).OpenSweep(t)
		if err != nil {
			return nil, err
		}
		all = append(all, sweep)
	}
	return all, nil
}
