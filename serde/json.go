package serde

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"sync"
)

// JSON returns a serde that writes T as encoding/json does, without a newline at the end and without the escaping of
// <, > and & that is meant for web pages.
//
// The bytes depend on the value alone, since the keys of maps are sorted; a MarshalJSON method of T, or of a part of
// it, has to keep to that. Methods on the pointer are found too, except by encoding/json in the values of a map.
// Decoding follows encoding/json: unknown fields are ignored, so that fields can be added; a null leaves the zero
// value; bytes that are not UTF-8 are replaced in both directions; what follows the value, white space apart, is an
// error.
//
// The position in an error is that of the first byte that is not JSON, or for a value of the wrong type the one that
// encoding/json gives, which is near its end; if an UnmarshalJSON method fails it is 0.
//
// Call JSON once for each type and keep the result, as a topic or a store does: it holds the buffers for encoding.
func JSON[T any]() Serde[T] {
	s := &jsonSerde[T]{id: "json:" + typeName(reflect.TypeFor[T]())}
	s.encoders.New = func() any {
		e := new(jsonEncoder[T])
		e.enc = json.NewEncoder(&e.out)
		e.enc.SetEscapeHTML(false)
		return e
	}
	return s
}

type jsonSerde[T any] struct {
	id       string
	encoders sync.Pool // of *jsonEncoder[T]
}

// jsonEncoder keeps what each call of Append would have to allocate: the encoder, and a place on the heap for the
// value, because encoding/json takes an interface.
type jsonEncoder[T any] struct {
	enc   *json.Encoder
	out   appender
	value T
}

// appender collects what is written to it. Unlike json.Marshal, which returns a copy of its buffer that then would be
// copied again, an encoder hands its buffer to a writer.
type appender struct{ buf []byte }

func (a *appender) Write(p []byte) (int, error) {
	a.buf = append(a.buf, p...)
	return len(p), nil
}

func (s *jsonSerde[T]) Append(dst []byte, v T) ([]byte, error) {
	e := s.encoders.Get().(*jsonEncoder[T])
	e.out.buf, e.value = dst, v
	// A pointer, so that methods of *T are used here as they are in Decode.
	err := e.enc.Encode(&e.value)
	out := e.out.buf
	var zero T
	e.out.buf, e.value = nil, zero // the pool must not keep the caller's memory alive
	s.encoders.Put(e)
	if err != nil {
		return out[:len(dst)], encodeError(s.id, ErrInvalid, "%w", err)
	}
	return out[:len(out)-1], nil // the encoder ends each value with a newline
}

func (s *jsonSerde[T]) Decode(src []byte) (T, error) {
	var v T
	if err := json.Unmarshal(src, &v); err != nil {
		var zero T
		return zero, s.decodeError(src, err)
	}
	return v, nil
}

func (s *jsonSerde[T]) SerdeID() string { return s.id }

// decodeError finds the cause and the position of err. Unmarshal tells neither apart for all of them, so that what is
// not JSON is read a second time, by a decoder, which stops after the first value.
func (s *jsonSerde[T]) decodeError(src []byte, err error) error {
	var wrongType *json.UnmarshalTypeError
	if errors.As(err, &wrongType) {
		return decodeError(s.id, clamp(wrongType.Offset, len(src)), ErrInvalid, "%w", err)
	}
	if json.Valid(src) {
		return decodeError(s.id, 0, ErrInvalid, "%w", err)
	}
	var first json.RawMessage
	dec := json.NewDecoder(bytes.NewReader(src))
	switch again := dec.Decode(&first); {
	case again == nil:
		rest := src[clamp(dec.InputOffset(), len(src)):]
		at := len(src) - len(bytes.TrimLeft(rest, " \t\r\n"))
		return decodeError(s.id, at, ErrTrailing, "want the end after one JSON value, have %d more", len(src)-at)
	case errors.Is(again, io.EOF), errors.Is(again, io.ErrUnexpectedEOF):
		return decodeError(s.id, len(src), ErrShort, "%w", err)
	default:
		var syntax *json.SyntaxError
		if !errors.As(err, &syntax) {
			return decodeError(s.id, 0, ErrInvalid, "%w", err)
		}
		// The offset counts the bytes that were read, the wrong one included.
		return decodeError(s.id, clamp(syntax.Offset-1, len(src)), ErrInvalid, "%w", err)
	}
}

// clamp keeps a position that another package computed inside src.
func clamp(offset int64, limit int) int {
	return int(max(0, min(offset, int64(limit))))
}
