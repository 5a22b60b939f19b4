package state

import (
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"time"

	"tailrace.dev/serde"
)

// AnySpec is a store's declaration without its types: what a topology, a manifest and a changelog need to know of it.
type AnySpec interface {
	// Name is the store's name. It names the changelog topic and the rows on disk, and so must never change while
	// they are to be kept.
	Name() string
	// Kind is the kind of the store: "key-value".
	Kind() string
	// ChangelogConfig returns the configuration of the changelog topic.
	ChangelogConfig() map[string]string
	// SerdeIDs identifies how keys and values are encoded: what is recorded beside them and compared at start.
	SerdeIDs() (key, value string)
	// Err returns what is wrong with the declaration, if anything.
	Err() error
}

// Spec declares a store of any kind that holds values V under keys K. Declare it once, as a package-level value: its
// identity is the store's.
type Spec[K, V any] interface {
	AnySpec
	// types makes a spec of other types another Go type, so that the compiler finds a mix-up.
	types(K, V)
}

// nameRule is Kafka's rule for topic names, which store names become a part of, and which makes them safe as paths.
var nameRule = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,200}$`)

// CheckName returns an error unless name can be a part of a topic name and of a path: letters, digits, '.', '_' and
// '-', at most 200 of them, and neither "." nor "..". (Kafka Streams: Named.validate.)
func CheckName(what, name string) error {
	if !nameRule.MatchString(name) || name == "." || name == ".." {
		return fmt.Errorf("%s name %q is not valid: use 1 to 200 letters, digits, '.', '_' or '-'", what, name)
	}
	return nil
}

// KeyValueSpec declares a key-value store.
type KeyValueSpec[K, V any] struct {
	name      string
	key       serde.Serde[K]
	value     serde.Serde[V]
	initially func() V
	topic     map[string]string
	ttl       time.Duration
	flat      bool
	err       error
}

// KeyValue declares a store of one value under each key, with the given name and encodings.
//
//	var Unread = state.KeyValue("unread", serde.String, serde.Int64)
func KeyValue[K, V any](name string, key serde.Serde[K], value serde.Serde[V]) *KeyValueSpec[K, V] {
	s := &KeyValueSpec[K, V]{name: name, key: key, value: value}
	s.err = CheckName("store", name)
	if s.err == nil && (key == nil || value == nil) {
		s.err = fmt.Errorf("store %q: a serde is nil", name)
	}
	s.flat = isFlat(reflect.TypeFor[V](), 0)
	return s
}

// Initially returns the spec with a function that makes the value that an aggregation of an unseen key starts from.
// Without it that is the zero value of V. The function must return a fresh value at each call.
func (s KeyValueSpec[K, V]) Initially(f func() V) *KeyValueSpec[K, V] {
	s.initially = f
	return &s
}

// WithChangelogConfig returns the spec with topic settings for its changelog topic, as in Kafka's documentation, added
// to the default cleanup.policy=compact. They apply when the topic is created.
func (s KeyValueSpec[K, V]) WithChangelogConfig(config map[string]string) *KeyValueSpec[K, V] {
	s.topic = maps.Clone(config)
	return &s
}

// Name implements AnySpec.
func (s *KeyValueSpec[K, V]) Name() string { return s.name }

// Kind implements AnySpec.
func (s *KeyValueSpec[K, V]) Kind() string { return "key-value" }

// Err implements AnySpec.
func (s *KeyValueSpec[K, V]) Err() error { return s.err }

// SerdeIDs implements AnySpec.
func (s *KeyValueSpec[K, V]) SerdeIDs() (key, value string) {
	return serde.ID(s.key), serde.ID(s.value)
}

// ChangelogConfig implements AnySpec.
func (s *KeyValueSpec[K, V]) ChangelogConfig() map[string]string {
	c := map[string]string{"cleanup.policy": "compact"}
	maps.Copy(c, s.topic)
	return c
}

// Initial returns the value that an aggregation of an unseen key starts from.
func (s *KeyValueSpec[K, V]) Initial() V {
	if s.initially != nil {
		return s.initially()
	}
	var zero V
	return zero
}

// Key returns the serde of the keys.
func (s *KeyValueSpec[K, V]) Key() serde.Serde[K] { return s.key }

// Value returns the serde of the values.
func (s *KeyValueSpec[K, V]) Value() serde.Serde[V] { return s.value }

func (s *KeyValueSpec[K, V]) types(K, V) {}

// Env is what a store needs of the task that it is opened in. The contexts of package processor implement it.
type Env interface {
	// StoreRows returns the rows of a store that was declared for the caller, or an error that says how to declare it.
	StoreRows(spec AnySpec) (*Rows, error)
	// RecordTimeMillis returns the time of the record in process, or the stream time inside a timer.
	RecordTimeMillis() int64
}

// isFlat tells whether values of the type hold no reference that two copies could share, so that a decoded value can be
// cached and handed out many times.
func isFlat(t reflect.Type, depth int) bool {
	if depth > 8 {
		return false
	}
	switch t.Kind() {
	case reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr,
		reflect.Float32, reflect.Float64, reflect.Complex64, reflect.Complex128, reflect.String:
		return true
	case reflect.Array:
		return isFlat(t.Elem(), depth+1)
	case reflect.Struct:
		if t.PkgPath() == "time" && t.Name() == "Time" {
			return true // its location is immutable
		}
		for i := range t.NumField() {
			if !isFlat(t.Field(i).Type, depth+1) {
				return false
			}
		}
		return true
	default:
		return false
	}
}
