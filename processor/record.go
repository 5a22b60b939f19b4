package processor

import (
	"time"

	"tailrace.dev/internal/task"
)

// Record is a decoded record on its way through a topology. Operators pass it by value; its key, value and headers are
// shared by all that receive it and must not be changed in place.
type Record[K, V any] struct {
	Key   K
	Value V
	// NoKey tells that the record has no key, and Key is the zero value.
	NoKey bool
	// Tombstone tells that the record has no value: it stands for the deletion of what the key had. Value is the
	// zero value.
	Tombstone bool
	// Time is the event time. It has millisecond precision when it is read from, or written to, a topic.
	Time time.Time
	// Headers travel with the record to the topics it is forwarded to.
	Headers []Header
}

// Header is one header of a record. Kafka allows the same key several times.
type Header = task.Header

// RawRecord is a record of an input topic before it is decoded, as given to a Task.
type RawRecord = task.Record

// Offset is the position of a task in an input topic: the next offset to process.
type Offset = task.Offset

// Output is a record that a Task forwarded to a topic.
type Output = task.Output

// TaskID names a task: a sub-topology and a partition.
type TaskID = task.ID

// Opt is a value that may be absent: the right side of a left join, the old value of a change.
type Opt[T any] struct {
	V  T
	OK bool
}

// Some returns a value that is present.
func Some[T any](v T) Opt[T] { return Opt[T]{V: v, OK: true} }

// None returns a value that is absent.
func None[T any]() Opt[T] { return Opt[T]{} }

// Or returns the value, or otherwise where it is absent.
func (o Opt[T]) Or(otherwise T) T {
	if o.OK {
		return o.V
	}
	return otherwise
}

// WithKey returns the record with another key, and maybe of another key type.
func WithKey[K2, K, V any](r Record[K, V], key K2) Record[K2, V] {
	return Record[K2, V]{Key: key, Value: r.Value, Tombstone: r.Tombstone, Time: r.Time, Headers: r.Headers}
}

// WithValue returns the record with another value, and maybe of another value type.
func WithValue[V2, K, V any](r Record[K, V], value V2) Record[K, V2] {
	return Record[K, V2]{Key: r.Key, NoKey: r.NoKey, Value: value, Time: r.Time, Headers: r.Headers}
}

// WithoutValue returns the record as a tombstone of values of type V2.
func WithoutValue[V2, K, V any](r Record[K, V]) Record[K, V2] {
	return Record[K, V2]{Key: r.Key, NoKey: r.NoKey, Tombstone: true, Time: r.Time, Headers: r.Headers}
}
