package serde

import (
	"errors"
	"fmt"
	"strconv"
)

// The causes of an [Error], for errors.Is.
var (
	// ErrShort says that the bytes end before the value does.
	ErrShort = errors.New("too few bytes")
	// ErrTrailing says that bytes are left over after the value.
	ErrTrailing = errors.New("bytes left over")
	// ErrInvalid says that the bytes are not an encoding of the type, or that the value has no encoding.
	ErrInvalid = errors.New("invalid")
	// ErrTooLarge says that an encoding is longer than [WithLimit] allows.
	ErrTooLarge = errors.New("too large")
)

// Error says where and why a value could not be encoded or decoded.
type Error struct {
	// Type is the [ID] of the serde. For a part of a composite it names the part and then the whole:
	// "int64 in second of pair(string,int64)".
	Type string
	// Offset is the position in src of the first byte that is wrong, left over or missing, or of the start of the
	// part that failed if no more is known. It is -1 if a value could not be encoded.
	Offset int
	// Err is the cause. It wraps one of the sentinels, except where a serde from outside this package failed with
	// an error that does not.
	Err error
}

// Error returns a message with the kind, the position and the cause.
func (e *Error) Error() string {
	if e.Offset < 0 {
		return "serde: encode " + e.Type + ": " + e.Err.Error()
	}
	return "serde: decode " + e.Type + " at byte " + strconv.Itoa(e.Offset) + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// encodeError reports that a value has no encoding, for the reason given.
func encodeError(id string, sentinel error, format string, args ...any) *Error {
	return decodeError(id, -1, sentinel, format, args...)
}

// decodeError reports what was expected at offset. The format may hold one %w for a cause of its own.
func decodeError(id string, offset int, sentinel error, format string, args ...any) *Error {
	return &Error{Type: id, Offset: offset, Err: fmt.Errorf("%w: "+format, append([]any{sentinel}, args...)...)}
}

// checkSize reports src as too short or too long for a kind that takes exactly want bytes. It is small and calls the
// slow part only on failure, so that it is inlined into the decoders.
func checkSize(id string, src []byte, want int) error {
	if len(src) == want {
		return nil
	}
	return sizeError(id, len(src), want)
}

func sizeError(id string, have, want int) error {
	if have < want {
		return decodeError(id, have, ErrShort, "want %d, have %d", want, have)
	}
	return decodeError(id, want, ErrTrailing, "want %d, have %d", want, have)
}

// within reports err, which a part of a composite returned, as an error of the whole. at translates a position in the
// part to one in the whole.
func within(err error, whole string, at func(int) int) error {
	part, ok := err.(*Error) //nolint:errorlint // one that is wrapped has a message of its own, which must stay
	switch {
	case !ok:
		return &Error{Type: whole, Offset: at(0), Err: err}
	case part.Offset < 0:
		return &Error{Type: part.Type + " in " + whole, Offset: -1, Err: part.Err}
	default:
		return &Error{Type: part.Type + " in " + whole, Offset: at(part.Offset), Err: part.Err}
	}
}

// nowhere is the translation of positions for within while encoding, where there are none.
func nowhere(int) int { return -1 }
