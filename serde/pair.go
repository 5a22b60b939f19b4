package serde

import (
	"bytes"
	"slices"
)

// Pair is a composite key. It is comparable if both parts are. Its serde is made by [Tuple2].
type Pair[A, B any] struct {
	First  A
	Second B
}

// Prefixer is implemented by serdes of composite keys whose encodings of one leading part P share a prefix, such as
// [PairSerde]. Stores use it to iterate over all keys with that part.
type Prefixer[P any] interface {
	// AppendPrefix appends to dst the bytes with which the encoding of each key with the leading part p starts, and
	// that of no other key.
	AppendPrefix(dst []byte, p P) ([]byte, error)
}

// Tuple2 returns the serde of a composite key whose bytes sort by the first part and then by the second, if the bytes
// of the parts sort as their values do, and in which all keys of one first part have a common prefix. Use the ordered
// kinds for signed numbers and times. For three parts make the second one a pair too; then both (a) and (a, b) are
// prefixes.
//
// The form is the first part, made self-delimiting, followed by the second as it is. A first part that always has the
// same length (a number, a bool, a time, a UUID, a pair of such, or a [Convert] of one) delimits itself. In any other,
// each byte 00 is written as 00 FF, and the end as 00 01, which sorts before all that may follow in a longer one.
func Tuple2[A, B any](first Serde[A], second Serde[B]) PairSerde[A, B] {
	s := PairSerde[A, B]{
		first:  orBroken(first, "the first part of Tuple2"),
		second: orBroken(second, "the second part of Tuple2"),
	}
	s.width, s.fixed = fixedSizeOf(s.first)
	s.id = "pair(" + ID(s.first) + "," + ID(s.second) + ")"
	s.firstID, s.secondID = "first of "+s.id, "second of "+s.id
	return s
}

// PairSerde is the serde of a [Pair], made by [Tuple2]. It implements Prefixer[A].
type PairSerde[A, B any] struct {
	first                 Serde[A]
	second                Serde[B]
	width                 int  // of the first part, if fixed
	fixed                 bool // the first part needs no delimiter
	id, firstID, secondID string
}

// In a first part of varying length, escape follows each 00, and 00 and terminator end it.
const (
	escape     = 0xff
	terminator = 0x01
)

var zeroByte = []byte{0}

// Append appends the encoding of v to dst. See [Tuple2] for the form.
func (s PairSerde[A, B]) Append(dst []byte, v Pair[A, B]) ([]byte, error) {
	out, err := s.AppendPrefix(dst, v.First)
	if err != nil {
		return out, err
	}
	out, err = s.second.Append(out, v.Second)
	if err != nil {
		return out[:len(dst)], within(err, s.secondID, nowhere)
	}
	return nonNil(out), nil
}

// AppendPrefix appends to dst the bytes with which every pair starts that has this first part, and no other pair.
func (s PairSerde[A, B]) AppendPrefix(dst []byte, first A) ([]byte, error) {
	if s.first == nil {
		return dst, encodeError("pair", ErrInvalid, "the serde is a zero PairSerde: make it with Tuple2")
	}
	out, err := s.first.Append(dst, first)
	if err != nil {
		return out[:len(dst)], within(err, s.firstID, nowhere)
	}
	if s.fixed {
		return nonNil(out), nil
	}
	zeros := bytes.Count(out[len(dst):], zeroByte)
	if zeros > 0 {
		out = escapeZeros(out, len(dst), zeros)
	}
	return append(out, 0, terminator), nil
}

// escapeZeros writes each of the zeros in b[from:] as 00 FF. It moves bytes from the end backwards, in place, so that
// the common key needs no second buffer.
func escapeZeros(b []byte, from, zeros int) []byte {
	r := len(b) - 1
	b = slices.Grow(b, zeros+2)[:len(b)+zeros] // and 2 for the terminator
	w := len(b) - 1
	for ; r >= from && w > r; r-- {
		if b[r] == 0 {
			b[w] = escape
			w--
		}
		b[w] = b[r]
		w--
	}
	return b
}

// Decode returns the pair that src encodes.
func (s PairSerde[A, B]) Decode(src []byte) (Pair[A, B], error) {
	var v Pair[A, B]
	if s.first == nil {
		return v, decodeError("pair", 0, ErrInvalid, "the serde is a zero PairSerde: make it with Tuple2")
	}
	first, start, err := s.split(src)
	if err != nil {
		return v, err
	}
	if v.First, err = s.first.Decode(first); err != nil {
		return Pair[A, B]{}, within(err, s.firstID, func(offset int) int {
			if s.fixed {
				return offset
			}
			return offset + bytes.Count(first[:min(offset, len(first))], zeroByte)
		})
	}
	if v.Second, err = s.second.Decode(src[start:]); err != nil {
		return Pair[A, B]{}, within(err, s.secondID, func(offset int) int { return start + offset })
	}
	return v, nil
}

// split returns the first part without its escapes, and where the second part starts.
func (s PairSerde[A, B]) split(src []byte) (first []byte, second int, err error) {
	if s.fixed {
		if len(src) < s.width {
			return nil, 0, decodeError(s.firstID, len(src), ErrShort, "want %d, have %d", s.width, len(src))
		}
		return src[:s.width:s.width], s.width, nil
	}
	escapes := 0
	for i := 0; ; i += 2 {
		zero := bytes.IndexByte(src[i:], 0)
		if zero < 0 || i+zero+1 == len(src) {
			return nil, 0, decodeError(s.firstID, len(src), ErrShort, "want the end mark 00 01")
		}
		i += zero
		switch src[i+1] {
		case terminator:
			return unescape(src[:i:i], escapes), i + 2, nil
		case escape:
			escapes++
		default:
			return nil, 0, decodeError(s.firstID, i+1, ErrInvalid, "want FF or 01 after 00, have %02X", src[i+1])
		}
	}
}

// unescape drops the FF after each 00. Without any it shares the memory of b.
func unescape(b []byte, escapes int) []byte {
	if escapes == 0 {
		return b
	}
	out := make([]byte, 0, len(b)-escapes)
	for i := 0; i < len(b); i++ {
		out = append(out, b[i])
		if b[i] == 0 {
			i++
		}
	}
	return out
}

// SerdeID returns "pair(A,B)" with the identities of the parts.
func (s PairSerde[A, B]) SerdeID() string { return s.id }

func (s PairSerde[A, B]) fixedSize() (int, bool) {
	second, ok := fixedSizeOf(s.second)
	return s.width + second, s.fixed && ok
}
