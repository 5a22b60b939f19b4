package table

import (
	"encoding/binary"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
)

// subscriptionSerde encodes a subscription: what is wanted, then the key of the left row.
type subscriptionSerde[K any] struct{ key serde.Serde[K] }

// SerdeID identifies the encoding.
func (s subscriptionSerde[K]) SerdeID() string { return "subscription(" + serde.ID(s.key) + ")" }

// Append implements serde.Serde.
func (s subscriptionSerde[K]) Append(dst []byte, v subscription[K]) ([]byte, error) {
	return s.key.Append(append(dst, byte(v.want)), v.key)
}

// Decode implements serde.Serde.
func (s subscriptionSerde[K]) Decode(src []byte) (v subscription[K], err error) {
	if len(src) == 0 {
		return v, &serde.Error{Type: "subscription", Offset: 0, Err: serde.ErrShort}
	}
	v.want = want(src[0])
	if v.want < wantRow || v.want > unsubscribeOK {
		return v, &serde.Error{Type: "subscription", Offset: 0, Err: serde.ErrInvalid}
	}
	v.key, err = s.key.Decode(src[1:])
	return v, err
}

// answerSerde encodes an answer: flags, the foreign key with its length before it, then the row.
type answerSerde[R any] struct{ row serde.Serde[R] }

const (
	answerGone = 1 << 0
	answerRow  = 1 << 1
)

// SerdeID identifies the encoding.
func (s answerSerde[R]) SerdeID() string { return "answer(" + serde.ID(s.row) + ")" }

// Append implements serde.Serde.
func (s answerSerde[R]) Append(dst []byte, a answer[R]) ([]byte, error) {
	var flags byte
	if a.gone {
		flags |= answerGone
	}
	if a.row.OK {
		flags |= answerRow
	}
	dst = append(dst, flags)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(a.foreign)))
	dst = append(dst, a.foreign...)
	if a.row.OK {
		return s.row.Append(dst, a.row.V)
	}
	return dst, nil
}

// Decode implements serde.Serde.
func (s answerSerde[R]) Decode(src []byte) (a answer[R], err error) {
	if len(src) < 5 {
		return a, &serde.Error{Type: "answer", Offset: len(src), Err: serde.ErrShort}
	}
	flags := src[0]
	n := binary.BigEndian.Uint32(src[1:])
	rest := src[5:]
	switch {
	case flags&^(answerGone|answerRow) != 0:
		return a, &serde.Error{Type: "answer", Offset: 0, Err: serde.ErrInvalid}
	case uint64(n) > uint64(len(rest)):
		return a, &serde.Error{Type: "answer", Offset: len(src), Err: serde.ErrShort}
	}
	a.gone = flags&answerGone != 0
	a.foreign, rest = rest[:n:n], rest[n:]
	if flags&answerRow == 0 {
		if len(rest) > 0 {
			return a, &serde.Error{Type: "answer", Offset: len(src) - len(rest), Err: serde.ErrTrailing}
		}
		return a, nil
	}
	v, err := s.row.Decode(rest)
	if err != nil {
		return a, err
	}
	a.row = processor.Some(v)
	return a, nil
}
