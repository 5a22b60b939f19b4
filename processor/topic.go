package processor

import (
	"fmt"
	"time"

	"tailrace.dev/internal/engine"
	"tailrace.dev/serde"
	"tailrace.dev/state"
)

// Topic declares a topic of the user's: its name and encodings. Declare it once, as a package-level value.
//
//	var Events = processor.NewTopic("mail-events", serde.String, serde.JSON[Event]())
//
// The topic must exist on the broker before the application starts, with the partitions and the retention that its
// owner chose. Methods return a changed copy; a Topic is immutable and safe for concurrent use.
type Topic[K, V any] struct {
	name  string
	key   serde.Serde[K]
	value serde.Serde[V]
	start StartAt
	times topicTimes[K, V]
	to    func(k K, v V, partitions int) int
	err   error
}

// StartAt says where a task that has no committed offset starts to read a topic.
type StartAt = engine.StartAt

// Where to start without a committed offset. (Kafka's auto.offset.reset.)
const (
	// Earliest reads everything that the topic still holds. It is the default.
	Earliest = engine.StartEarliest
	// Latest reads what arrives after the start.
	Latest = engine.StartLatest
	// NoStart refuses to start, with ErrNoCommittedOffset.
	NoStart = engine.StartFail
)

// NewTopic declares a topic. A mistake in the name is reported by Builder.Build.
func NewTopic[K, V any](name string, key serde.Serde[K], value serde.Serde[V]) *Topic[K, V] {
	t := &Topic[K, V]{name: name, key: key, value: value, err: state.CheckName("topic", name)}
	if t.err == nil && (key == nil || value == nil) {
		t.err = fmt.Errorf("topic %q: a serde is nil", name)
	}
	return t
}

// StartingAt returns the topic with another start policy.
func (t Topic[K, V]) StartingAt(s StartAt) *Topic[K, V] {
	t.start = s
	return &t
}

// WithTimes returns the topic with a function that finds the time of each record that is read, in place of the time that
// the broker holds; it returns false where the record has none, which InvalidTimes then deals with. It is called before
// the record's turn, because the times decide between topics, and the record is decoded for that in addition. (Kafka
// Streams: TimestampExtractor.)
func (t Topic[K, V]) WithTimes(f func(r Record[K, V]) (time.Time, bool)) *Topic[K, V] {
	t.times.of = f
	return &t
}

// WithWallClock returns the topic with the time at which a record is processed as its time. Results are not the same at a
// replay.
func (t Topic[K, V]) WithWallClock() *Topic[K, V] {
	t.times.wall = true
	return &t
}

// InvalidTimes returns the topic with a choice of what becomes of a record whose time is before 1970, or absent.
func (t Topic[K, V]) InvalidTimes(p InvalidTime) *Topic[K, V] {
	t.times.invalid = p
	return &t
}

// PartitionedBy returns the topic with a function that chooses the partition of each record that is written, in place of
// Kafka's default hash of the key; v is the zero value for a tombstone. It runs while records are produced, must be a
// pure function, and must return a number from 0 to partitions-1: another stops the application. All writers of a topic
// whose readers join or group by key must agree. (Kafka Streams: StreamPartitioner.)
func (t Topic[K, V]) PartitionedBy(f func(k K, v V, partitions int) int) *Topic[K, V] {
	t.to = f
	return &t
}

// Name returns the topic's name.
func (t *Topic[K, V]) Name() string { return t.name }

// Key returns the serde of the keys.
func (t *Topic[K, V]) Key() serde.Serde[K] { return t.key }

// Value returns the serde of the values.
func (t *Topic[K, V]) Value() serde.Serde[V] { return t.value }

// Repartition declares an internal topic that brings records to the partition of a new key. The library creates it as
// <application>-<name>-repartition, without retention, and deletes what was processed. Its records are no one's
// but this application's; use stream.Through for a topic that others may read.
type Repartition[K, V any] struct {
	name       string
	key        serde.Serde[K]
	value      serde.Serde[V]
	partitions int32
	keepNoKey  bool
	err        error
}

// NewRepartition declares a repartition topic. A mistake in the name is reported by Builder.Build.
func NewRepartition[K, V any](name string, key serde.Serde[K], value serde.Serde[V]) *Repartition[K, V] {
	r := &Repartition[K, V]{name: name, key: key, value: value, err: state.CheckName("repartition topic", name)}
	if r.err == nil && (key == nil || value == nil) {
		r.err = fmt.Errorf("repartition topic %q: a serde is nil", name)
	}
	return r
}

// WithPartitions returns the repartition topic with a partition count of its own. Without one it gets the largest count
// of the topics that it is processed together with, or else of the topics that feed it.
func (r Repartition[K, V]) WithPartitions(n int) *Repartition[K, V] {
	if n < 1 || n > 100_000 {
		r.err = fmt.Errorf("repartition topic %q: %d partitions: give 1 to 100000", r.name, n)
	}
	r.partitions = int32(n)
	return &r
}

// WithNoKeys returns the repartition topic with a place for records without a key, on any partition: left and outer
// joins make results of them, and those of two streams go by their times, on either side. Otherwise they are dropped
// and counted.
func (r Repartition[K, V]) WithNoKeys() *Repartition[K, V] {
	r.keepNoKey = true
	return &r
}

// Name returns the declared name; the topic on the broker has the application's prefix and a suffix.
func (r *Repartition[K, V]) Name() string { return r.name }

// Key returns the serde of the keys.
func (r *Repartition[K, V]) Key() serde.Serde[K] { return r.key }

// Value returns the serde of the values.
func (r *Repartition[K, V]) Value() serde.Serde[V] { return r.value }

// RepartitionTopic returns the name on the broker of an application's repartition topic.
func RepartitionTopic(app, name string) string { return app + "-" + name + "-repartition" }

// ChangelogTopic returns the name on the broker of the changelog of an application's store.
func ChangelogTopic(app, store string) string { return app + "-" + store + "-changelog" }

// StoreTopic returns the name on the broker of the topic that keeps an application's store: that of ChangelogTopic, and
// another one for stores of state.KindEffects, which a reset must not delete.
func StoreTopic(app string, spec state.AnySpec) string {
	if spec.Kind() == state.KindEffects {
		return app + "-" + spec.Name() + "-effects"
	}
	return ChangelogTopic(app, spec.Name())
}

// RepartitionAs returns the repartition topic r for records with other values than its declaration says, such as the
// changes of a table. It is for writing operators.
func RepartitionAs[V2, K, V any](r *Repartition[K, V], value serde.Serde[V2]) *Repartition[K, V2] {
	if r == nil {
		return nil
	}
	return &Repartition[K, V2]{name: r.name, key: r.key, value: value, partitions: r.partitions, keepNoKey: r.keepNoKey, err: r.err}
}
