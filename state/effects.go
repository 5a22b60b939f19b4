package state

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"time"

	"tailrace.dev/serde"
)

// KindEffects is the kind of the stores that Effects declares. Resetting or rebuilding an application empties stores of
// every other kind, and keeps those of this one.
const KindEffects = "effects"

// EffectsSpec declares a store of the ids of effects that have been made outside of the application: mails sent,
// payments ordered. It is what keeps stream.Gateway from making one again when input is processed again.
type EffectsSpec struct {
	name  string
	keep  time.Duration
	topic map[string]string
	err   error
}

// Effects declares a store of effects that have been made. Its changelog topic ends in "-effects" in place of
// "-changelog", because it must outlive a reset: with it goes the memory of what the world has been told.
//
//	var Sent = state.Effects("mails-sent")
func Effects(name string) *EffectsSpec {
	return &EffectsSpec{name: name, err: CheckName("store", name)}
}

// KeptFor returns the spec with a time, by the wall clock, after which an effect is forgotten; without it the store only
// grows. Input that lies further back must not be processed again, or its effects are made again.
func (s EffectsSpec) KeptFor(d time.Duration) *EffectsSpec {
	s.keep = d
	if s.err == nil && d < time.Millisecond {
		s.err = fmt.Errorf("store %q: effects are kept for %v: give a millisecond at least", s.name, d)
	}
	return &s
}

// WithChangelogConfig returns the spec with topic settings for its topic; see KeyValueSpec.WithChangelogConfig.
func (s EffectsSpec) WithChangelogConfig(config map[string]string) *EffectsSpec {
	s.topic = maps.Clone(config)
	return &s
}

// Name implements AnySpec.
func (s *EffectsSpec) Name() string { return s.name }

// Kind implements AnySpec.
func (s *EffectsSpec) Kind() string { return KindEffects }

// Err implements AnySpec.
func (s *EffectsSpec) Err() error { return s.err }

// SerdeIDs implements AnySpec.
func (s *EffectsSpec) SerdeIDs() (key, value string) { return serde.ID(serde.String), "none" }

// ChangelogConfig implements AnySpec.
func (s *EffectsSpec) ChangelogConfig() map[string]string {
	c := map[string]string{"cleanup.policy": "compact"}
	maps.Copy(c, s.topic)
	return c
}

// EffectStore is a store of effects as one task sees it. It belongs to the task, as a KeyValueStore does.
type EffectStore struct {
	rows   *Rows
	keep   int64
	oldest *Cell // no effect was made before; of stores that forget
	key    []byte
	row    []byte
}

// Open returns the store in a task.
func (s *EffectsSpec) Open(env Env) (*EffectStore, error) {
	rows, err := env.StoreRows(s)
	if err != nil {
		return nil, err
	}
	if rows.spec != AnySpec(s) {
		return nil, fmt.Errorf("%w: %q", ErrWrongStore, s.name)
	}
	return &EffectStore{rows: rows, keep: s.keep.Milliseconds(), oldest: rows.Cell("oldest")}, nil
}

func (s *EffectStore) rowKey(id string) []byte {
	s.key = append(append(s.key[:0], KindRow), id...)
	return s.key
}

// Done tells whether an effect has been made, and when, in Unix milliseconds of the wall clock.
func (s *EffectStore) Done(id string) (atMillis int64, ok bool, err error) {
	row, err := s.rows.Get(s.rowKey(id))
	if err != nil || row == nil {
		return 0, false, err
	}
	m, _, err := ParseRow(row)
	if err != nil {
		return 0, false, s.rows.fail(err)
	}
	return m.TimeMillis, true, nil
}

// Mark notes that an effect was made at a time of the wall clock. One that is known keeps its time.
func (s *EffectStore) Mark(id string, atMillis int64) error {
	if _, ok, err := s.Done(id); err != nil || ok {
		return err
	}
	s.row = AppendRow(s.row[:0], RowMeta{TimeMillis: atMillis})
	s.rows.Put(s.rowKey(id), s.row)
	if s.keep == 0 {
		return nil
	}
	s.key = append(effectTime(s.key[:0], atMillis), id...)
	s.rows.Put(s.key, s.row)
	oldest, ok, err := s.oldest.Load()
	if err != nil {
		return err
	}
	if !ok || atMillis < oldest {
		s.oldest.Store(atMillis)
	}
	return s.forget(atMillis)
}

// effectTime begins the index key of an effect.
func effectTime(dst []byte, atMillis int64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, KindIndex), uint64(atMillis)^1<<63)
}

// forgetAtOnce bounds what one effect's marking costs; it is above 1, so that forgetting catches up.
const forgetAtOnce = 8

// forget removes effects whose time is over.
func (s *EffectStore) forget(nowMillis int64) error {
	oldest, ok, err := s.oldest.Load()
	if err != nil || !ok || oldest > nowMillis-s.keep {
		return err
	}
	sc := s.rows.Scan([]byte{KindIndex}, []byte{KindIndex + 1}, false)
	defer sc.Close()
	oldest = math.MaxInt64
	for n := 0; sc.Next(); n++ {
		key := sc.Key()
		if len(key) < 9 {
			return s.rows.fail(fmt.Errorf("%w: index key of %d bytes", ErrCorrupt, len(key)))
		}
		oldest = int64(binary.BigEndian.Uint64(key[1:]) ^ 1<<63)
		if n == forgetAtOnce || oldest > nowMillis-s.keep {
			break
		}
		s.rows.Put(s.rowKey(string(key[9:])), nil)
		s.rows.Put(key, nil)
		oldest = math.MaxInt64
	}
	if err := sc.Err(); err != nil {
		return err
	}
	s.oldest.Store(oldest)
	return nil
}
