package serde

import "reflect"

// Convert returns a serde of B that writes what s writes for the A that from returns, and passes what s reads through
// to. It serves types of your own, such as `type UserID int64`, and the forms of other libraries. Both functions must
// be safe for concurrent use and depend on their argument alone, and to(from(b)) must equal b. An error of either is
// reported as [ErrInvalid], with that error as a further cause. The identity of the result is made of that of s and
// the type B: it does not change with the functions, see [WithID].
func Convert[A, B any](s Serde[A], to func(A) (B, error), from func(B) (A, error)) Serde[B] {
	id := "convert(" + ID(s) + "," + typeName(reflect.TypeFor[B]()) + ")"
	switch {
	case s == nil:
		return orBroken[B](nil, "the serde of Convert")
	case to == nil || from == nil:
		return orBroken[B](nil, "a function of "+id)
	}
	return convertSerde[A, B]{s: s, to: to, from: from, id: id}
}

type convertSerde[A, B any] struct {
	s    Serde[A]
	to   func(A) (B, error)
	from func(B) (A, error)
	id   string
}

func (c convertSerde[A, B]) Append(dst []byte, v B) ([]byte, error) {
	a, err := c.from(v)
	if err != nil {
		return dst, encodeError(c.id, ErrInvalid, "%w", err)
	}
	return c.s.Append(dst, a)
}

func (c convertSerde[A, B]) Decode(src []byte) (B, error) {
	var zero B
	a, err := c.s.Decode(src)
	if err != nil {
		return zero, err
	}
	b, err := c.to(a)
	if err != nil {
		return zero, decodeError(c.id, 0, ErrInvalid, "%w", err)
	}
	return b, nil
}

func (c convertSerde[A, B]) SerdeID() string        { return c.id }
func (c convertSerde[A, B]) fixedSize() (int, bool) { return fixedSizeOf(c.s) }

// WithLimit returns s restricted to encodings of at most maxBytes bytes; less than 0 counts as 0. A longer one is
// [ErrTooLarge], in both directions: set it where records from outside must not cost unbounded memory to decode, or
// to find a value that grew too large where it is made, and not later when the broker refuses it. A value is encoded
// before its length is known. The identity is that of s.
func WithLimit[T any](s Serde[T], maxBytes int) Serde[T] {
	return limitSerde[T]{s: orBroken(s, "the serde of WithLimit"), limit: max(0, maxBytes)}
}

type limitSerde[T any] struct {
	s     Serde[T]
	limit int
}

func (l limitSerde[T]) Append(dst []byte, v T) ([]byte, error) {
	out, err := l.s.Append(dst, v)
	if err != nil {
		return out, err
	}
	if n := len(out) - len(dst); n > l.limit {
		return out[:len(dst)], encodeError(ID(l.s), ErrTooLarge, "want at most %d bytes, have %d", l.limit, n)
	}
	return out, nil
}

func (l limitSerde[T]) Decode(src []byte) (T, error) {
	if len(src) > l.limit {
		var zero T
		return zero, decodeError(ID(l.s), l.limit, ErrTooLarge, "want at most %d bytes, have %d", l.limit, len(src))
	}
	return l.s.Decode(src)
}

func (l limitSerde[T]) SerdeID() string        { return ID(l.s) }
func (l limitSerde[T]) fixedSize() (int, bool) { return fixedSizeOf(l.s) }

// WithID returns s with another identity, see [ID]. Give the old one to a serde that still reads the old bytes, after
// its type was renamed or moved, to keep the state; give a new one to a [Convert] whose functions no longer read them,
// so that old state is refused and not misread.
func WithID[T any](s Serde[T], id string) Serde[T] {
	return idSerde[T]{Serde: orBroken(s, "the serde of WithID"), id: id}
}

type idSerde[T any] struct {
	Serde[T]
	id string
}

func (s idSerde[T]) SerdeID() string        { return s.id }
func (s idSerde[T]) fixedSize() (int, bool) { return fixedSizeOf(s.Serde) }

// broken stands for a serde that was not given. Combinators are called while package-level values are initialised,
// where an error cannot be returned and a panic would hide which declaration is wrong.
type broken[T any] struct{ what string }

func orBroken[T any](s Serde[T], what string) Serde[T] {
	if s == nil {
		return broken[T]{what: what}
	}
	return s
}

func (b broken[T]) Append(dst []byte, _ T) ([]byte, error) {
	return dst, encodeError(b.SerdeID(), ErrInvalid, "%s is nil", b.what)
}

func (b broken[T]) Decode([]byte) (T, error) {
	var zero T
	return zero, decodeError(b.SerdeID(), 0, ErrInvalid, "%s is nil", b.what)
}

func (broken[T]) SerdeID() string { return "nil" }
