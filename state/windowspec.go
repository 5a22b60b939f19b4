package state

import (
	"fmt"
	"maps"
	"reflect"
	"strconv"
	"time"

	"tailrace.dev/serde"
)

// timedSpec is what the declarations of window and session stores share.
type timedSpec[K, V any] struct {
	name      string
	key       serde.Serde[K]
	value     serde.Serde[V]
	retention time.Duration
	initially func() V
	topic     map[string]string
	flat      bool
	err       error
}

func newTimedSpec[K, V any](
	name string, key serde.Serde[K], value serde.Serde[V], retention time.Duration,
) timedSpec[K, V] {
	s := timedSpec[K, V]{name: name, key: key, value: value, retention: retention}
	s.err = CheckName("store", name)
	switch {
	case s.err != nil:
	case key == nil || value == nil:
		s.err = fmt.Errorf("store %q: a serde is nil", name)
	case retention < time.Millisecond:
		s.err = fmt.Errorf("store %q: the retention is %v: it must be a millisecond at least", name, retention)
	}
	s.flat = isFlat(reflect.TypeFor[V](), 0)
	return s
}

// Name implements AnySpec.
func (s *timedSpec[K, V]) Name() string { return s.name }

// Err implements AnySpec.
func (s *timedSpec[K, V]) Err() error { return s.err }

// SerdeIDs implements AnySpec.
func (s *timedSpec[K, V]) SerdeIDs() (key, value string) { return serde.ID(s.key), serde.ID(s.value) }

// changelogSlack is how much longer than its retention asks a row stays in the changelog, because that counts by the
// wall clock, which may be ahead of the times of the records. (Kafka Streams:
// windowstore.changelog.additional.retention.ms.)
const changelogSlack = 24 * time.Hour

// ChangelogConfig implements AnySpec: rows leave the changelog a day after they may leave the store, by the wall
// clock. A store that keeps its rows for ever has a changelog that is only compacted.
func (s *timedSpec[K, V]) ChangelogConfig() map[string]string {
	c := map[string]string{"cleanup.policy": "compact"}
	if s.retention < Forever-changelogSlack {
		c["cleanup.policy"] = "compact,delete"
		c["retention.ms"] = strconv.FormatInt((s.retention + changelogSlack).Milliseconds(), 10)
	}
	maps.Copy(c, s.topic)
	return c
}

// Initial returns the value that an aggregation of an unseen key and window starts from.
func (s *timedSpec[K, V]) Initial() V {
	if s.initially != nil {
		return s.initially()
	}
	var zero V
	return zero
}

// Key returns the serde of the keys, without their windows.
func (s *timedSpec[K, V]) Key() serde.Serde[K] { return s.key }

// Value returns the serde of the values.
func (s *timedSpec[K, V]) Value() serde.Serde[V] { return s.value }

// Retention returns for how long rows are kept, by the times of the records.
func (s *timedSpec[K, V]) Retention() time.Duration { return s.retention }

// interval returns the span of the time slices that rows are kept in, which expire as a whole. (Kafka Streams: the
// segment interval.)
func (s *timedSpec[K, V]) interval() int64 {
	return max(millisOf(s.retention)/2, time.Minute.Milliseconds())
}

// WindowSpec declares a window store.
type WindowSpec[K, V any] struct{ timedSpec[K, V] }

// Window declares a store of one value under each key and window, with the given name and encodings. A row expires when
// the store has seen a time that is retention or more after the start of its window; Forever keeps all rows. Operators
// on windows say how long they need, by stream.Windows.MinRetention.
//
//	var Hourly = state.Window("clicks-hourly", serde.String, serde.Int64, 24*time.Hour)
func Window[K, V any](
	name string, key serde.Serde[K], value serde.Serde[V], retention time.Duration,
) *WindowSpec[K, V] {
	return &WindowSpec[K, V]{newTimedSpec(name, key, value, retention)}
}

// Initially returns the spec with a function that makes the value that an aggregation of an unseen key and window
// starts from. Without it that is the zero value of V. The function must return a fresh value at each call.
func (s WindowSpec[K, V]) Initially(f func() V) *WindowSpec[K, V] {
	s.initially = f
	return &s
}

// WithChangelogConfig returns the spec with topic settings for its changelog topic, as in Kafka's documentation, added
// to those of ChangelogConfig. They apply when the topic is created.
func (s WindowSpec[K, V]) WithChangelogConfig(config map[string]string) *WindowSpec[K, V] {
	s.topic = maps.Clone(config)
	return &s
}

// Kind implements AnySpec.
func (s *WindowSpec[K, V]) Kind() string { return "window" }

func (s *WindowSpec[K, V]) types(Windowed[K], V) {}

// SessionSpec declares a session store.
type SessionSpec[K, V any] struct{ timedSpec[K, V] }

// Session declares a store of one value under each key and session, with the given name and encodings. A row expires
// when the store has seen a time that is retention or more after the end of its session; Forever keeps all rows.
// Operators on sessions say how long they need, by stream.SessionWindows.MinRetention.
func Session[K, V any](
	name string, key serde.Serde[K], value serde.Serde[V], retention time.Duration,
) *SessionSpec[K, V] {
	return &SessionSpec[K, V]{newTimedSpec(name, key, value, retention)}
}

// Initially returns the spec with a function that makes the value that an aggregation of a new session starts from.
// Without it that is the zero value of V. The function must return a fresh value at each call.
func (s SessionSpec[K, V]) Initially(f func() V) *SessionSpec[K, V] {
	s.initially = f
	return &s
}

// WithChangelogConfig returns the spec with topic settings for its changelog topic, as in Kafka's documentation, added
// to those of ChangelogConfig. They apply when the topic is created.
func (s SessionSpec[K, V]) WithChangelogConfig(config map[string]string) *SessionSpec[K, V] {
	s.topic = maps.Clone(config)
	return &s
}

// Kind implements AnySpec.
func (s *SessionSpec[K, V]) Kind() string { return "session" }

func (s *SessionSpec[K, V]) types(Windowed[K], V) {}
