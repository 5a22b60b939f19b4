// Package serde turns typed values into the bytes that Kafka and the stores hold, and back.
//
// A [Serde] is named wherever data outlives the process: a topic, a repartition, a store. The package has one
// for each basic kind in the form of Kafka's own serializers ([String], [Int64], [Float64], [UUID], …), so that
// Java programs and Kafka's command line tools read what is written; [JSON] for structures; kinds whose bytes sort
// as their values do ([OrderedInt64], [OrderedTime], …), because stores iterate in the order of the serialised keys;
// and combinators: [Tuple2] for composite keys, [Convert] for a type of your own, [WithLimit], [WithID].
//
// # Empty is not absent
//
// Nil never reaches a serde. A missing key and a tombstone are handled before a serde is asked, and a serde cannot
// produce either. A slice that is empty and not nil does reach it: it is the empty string, for example. For the same
// reason the result of Append is not nil, even where the encoding is empty; [Encode] makes sure of that for a serde
// from elsewhere.
//
// # Errors
//
// Every error of this package is an [*Error], which names the kind, the byte position and what was expected there.
// Use errors.Is with [ErrShort], [ErrTrailing], [ErrInvalid] and [ErrTooLarge] to tell the causes apart.
package serde

import (
	"fmt"
	"reflect"
	"strconv"
)

// Serde turns values of T into bytes and back. It is safe for concurrent use, and it is a pure function: the same
// value gives the same bytes in every process, because records are routed by the bytes of their key and stores find
// rows by them.
type Serde[T any] interface {
	// Append appends the encoding of v to dst and returns the extended slice, which is not nil. It keeps neither dst
	// nor what v refers to. When it fails it returns dst at its old length, possibly in a larger array, so that a
	// buffer can be used again.
	Append(dst []byte, v T) ([]byte, error)

	// Decode returns the value that src encodes. It consumes all of src: bytes left over are an error. The caller
	// never changes src again and never reuses its memory, so that the value may refer to it; in turn, Decode and
	// those who receive the value must not write to src.
	Decode(src []byte) (T, error)
}

// Encode returns the encoding of v in a slice of its own. The result is not nil unless there is an error, also for a
// serde that appends nothing to a nil slice, so that an empty value cannot be taken for a tombstone.
func Encode[T any](s Serde[T], v T) ([]byte, error) {
	b, err := s.Append(nil, v)
	if err != nil {
		return nil, err
	}
	return nonNil(b), nil
}

// nonNil keeps an empty encoding apart from an absent one. An empty literal takes no memory.
func nonNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// Identified is implemented by serdes that can say what form they write. See [ID].
type Identified interface {
	// SerdeID returns a name for the form of the bytes. It must be the same in each process and each build, and has
	// to change when bytes written before can no longer be read.
	SerdeID() string
}

// ID returns the identity of the form that s writes. It is recorded beside stored state, and compared when the state
// is opened by a later build, to find a store whose bytes the program would misread. For an [Identified] serde, as all
// of this package are, it is what that says; for any other it is the Go type as %T prints it.
//
// Serdes of equal identity write the same form: [Bytes] and [Raw] are both "bytes", and [WithLimit] changes nothing.
// The identity of [JSON] holds the name and package path of the Go type, but not its fields, since JSON allows for
// change of these; use [WithID] to keep the identity when a type is renamed or moved.
func ID(s any) string {
	if i, ok := s.(Identified); ok {
		return i.SerdeID()
	}
	return fmt.Sprintf("%T", s)
}

// typeName names t with full package paths, unlike its String method, which has only their last elements: two
// packages called model must not look alike.
func typeName(t reflect.Type) string {
	if name := t.Name(); name != "" {
		if path := t.PkgPath(); path != "" {
			return path + "." + name
		}
		return name
	}
	switch t.Kind() {
	case reflect.Pointer:
		return "*" + typeName(t.Elem())
	case reflect.Slice:
		return "[]" + typeName(t.Elem())
	case reflect.Array:
		return "[" + strconv.Itoa(t.Len()) + "]" + typeName(t.Elem())
	case reflect.Map:
		return "map[" + typeName(t.Key()) + "]" + typeName(t.Elem())
	default:
		return t.String()
	}
}

// fixedSizer is implemented by serdes whose encodings all have one length, and by the combinators, which know only
// when asked. It is not exported because [Tuple2] derives its format from it: a serde of a user that grew such a
// method later would change the bytes of keys that are already stored.
type fixedSizer interface {
	fixedSize() (n int, ok bool)
}

// fixedSizeOf returns the length of every encoding of s, and whether there is such a length.
func fixedSizeOf(s any) (int, bool) {
	if f, ok := s.(fixedSizer); ok {
		return f.fixedSize()
	}
	return 0, false
}
