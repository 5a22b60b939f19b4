package serde

import (
	"encoding/binary"
	"math"
	"time"
)

// The integers are written big-endian, in as many bytes as the type has, as Kafka's ShortSerializer,
// IntegerSerializer and LongSerializer do. Unsigned integers sort by their bytes as by their value; signed ones sort
// the negative after the positive, see [OrderedInt64].
var (
	Int8   Serde[int8]   = fixed8[int8]{id: "int8"}      // Int8 writes one byte, in two's complement.
	Int16  Serde[int16]  = fixed16[int16]{id: "int16"}   // Int16 writes two bytes, as Kafka's ShortSerializer.
	Int32  Serde[int32]  = fixed32[int32]{id: "int32"}   // Int32 writes four bytes, as Kafka's IntegerSerializer.
	Int64  Serde[int64]  = fixed64[int64]{id: "int64"}   // Int64 writes eight bytes, as Kafka's LongSerializer.
	Uint8  Serde[uint8]  = fixed8[uint8]{id: "uint8"}    // Uint8 writes one byte.
	Uint16 Serde[uint16] = fixed16[uint16]{id: "uint16"} // Uint16 writes two bytes, big-endian.
	Uint32 Serde[uint32] = fixed32[uint32]{id: "uint32"} // Uint32 writes four bytes, big-endian.
	Uint64 Serde[uint64] = fixed64[uint64]{id: "uint64"} // Uint64 writes eight bytes, big-endian.

	// Duration writes the nanoseconds as [Int64] does.
	Duration Serde[time.Duration] = fixed64[time.Duration]{id: "duration-ns"}
)

// The ordered integers are for keys of stores. They are big-endian with the sign bit inverted, so that the order of the
// bytes, in which stores iterate, is the order of the values, negative ones included. Kafka's deserializers do not
// read them.
var (
	OrderedInt8  Serde[int8]  = fixed8[int8]{id: "ordered-int8", flip: 1 << 7}     // OrderedInt8 is the ordered [Int8].
	OrderedInt16 Serde[int16] = fixed16[int16]{id: "ordered-int16", flip: 1 << 15} // OrderedInt16 is the ordered [Int16].
	OrderedInt32 Serde[int32] = fixed32[int32]{id: "ordered-int32", flip: 1 << 31} // OrderedInt32 is the ordered [Int32].
	OrderedInt64 Serde[int64] = fixed64[int64]{id: "ordered-int64", flip: 1 << 63} // OrderedInt64 is the ordered [Int64].
)

var (
	// Float32 writes the IEEE 754 bits in four bytes, big-endian, as Kafka's FloatSerializer does. All bits of a NaN
	// are kept.
	Float32 Serde[float32] = float32Serde{}

	// Float64 writes the IEEE 754 bits in eight bytes, big-endian, as Kafka's DoubleSerializer does. All bits of a NaN
	// are kept.
	Float64 Serde[float64] = float64Serde{}

	// OrderedFloat64 is for keys of stores: the order of its bytes is the order of the numbers, with -0 before +0, NaN
	// of positive sign after +Inf and NaN of negative sign before -Inf. Kafka's deserializers do not read it.
	OrderedFloat64 Serde[float64] = orderedFloat64Serde{}

	// Bool writes one byte, 0 or 1, as Kafka's BooleanSerializer does. Any other byte is an error.
	Bool Serde[bool] = boolSerde{}
)

// The integers of one width differ by their name and by the bits that the ordered ones invert.
type fixed8[T ~int8 | ~uint8] struct {
	id   string
	flip uint8
}

func (s fixed8[T]) Append(dst []byte, v T) ([]byte, error) { return append(dst, uint8(v)^s.flip), nil }
func (s fixed8[T]) Decode(src []byte) (T, error) {
	if err := checkSize(s.id, src, 1); err != nil {
		return 0, err
	}
	return T(src[0] ^ s.flip), nil
}
func (s fixed8[T]) SerdeID() string      { return s.id }
func (fixed8[T]) fixedSize() (int, bool) { return 1, true }

type fixed16[T ~int16 | ~uint16] struct {
	id   string
	flip uint16
}

func (s fixed16[T]) Append(dst []byte, v T) ([]byte, error) {
	return binary.BigEndian.AppendUint16(dst, uint16(v)^s.flip), nil
}
func (s fixed16[T]) Decode(src []byte) (T, error) {
	if err := checkSize(s.id, src, 2); err != nil {
		return 0, err
	}
	return T(binary.BigEndian.Uint16(src) ^ s.flip), nil
}
func (s fixed16[T]) SerdeID() string      { return s.id }
func (fixed16[T]) fixedSize() (int, bool) { return 2, true }

type fixed32[T ~int32 | ~uint32] struct {
	id   string
	flip uint32
}

func (s fixed32[T]) Append(dst []byte, v T) ([]byte, error) {
	return binary.BigEndian.AppendUint32(dst, uint32(v)^s.flip), nil
}
func (s fixed32[T]) Decode(src []byte) (T, error) {
	if err := checkSize(s.id, src, 4); err != nil {
		return 0, err
	}
	return T(binary.BigEndian.Uint32(src) ^ s.flip), nil
}
func (s fixed32[T]) SerdeID() string      { return s.id }
func (fixed32[T]) fixedSize() (int, bool) { return 4, true }

type fixed64[T ~int64 | ~uint64] struct {
	id   string
	flip uint64
}

func (s fixed64[T]) Append(dst []byte, v T) ([]byte, error) {
	return binary.BigEndian.AppendUint64(dst, uint64(v)^s.flip), nil
}
func (s fixed64[T]) Decode(src []byte) (T, error) {
	if err := checkSize(s.id, src, 8); err != nil {
		return 0, err
	}
	return T(binary.BigEndian.Uint64(src) ^ s.flip), nil
}
func (s fixed64[T]) SerdeID() string      { return s.id }
func (fixed64[T]) fixedSize() (int, bool) { return 8, true }

type float32Serde struct{}

func (float32Serde) Append(dst []byte, v float32) ([]byte, error) {
	return binary.BigEndian.AppendUint32(dst, math.Float32bits(v)), nil
}
func (s float32Serde) Decode(src []byte) (float32, error) {
	if err := checkSize(s.SerdeID(), src, 4); err != nil {
		return 0, err
	}
	return math.Float32frombits(binary.BigEndian.Uint32(src)), nil
}
func (float32Serde) SerdeID() string        { return "float32" }
func (float32Serde) fixedSize() (int, bool) { return 4, true }

type float64Serde struct{}

func (float64Serde) Append(dst []byte, v float64) ([]byte, error) {
	return binary.BigEndian.AppendUint64(dst, math.Float64bits(v)), nil
}
func (s float64Serde) Decode(src []byte) (float64, error) {
	if err := checkSize(s.SerdeID(), src, 8); err != nil {
		return 0, err
	}
	return math.Float64frombits(binary.BigEndian.Uint64(src)), nil
}
func (float64Serde) SerdeID() string        { return "float64" }
func (float64Serde) fixedSize() (int, bool) { return 8, true }

const signBit = 1 << 63

type orderedFloat64Serde struct{}

// Append inverts all bits of a negative number, because the magnitude of those grows as the number falls, and the
// sign of the others, which puts them after.
func (orderedFloat64Serde) Append(dst []byte, v float64) ([]byte, error) {
	bits := math.Float64bits(v)
	if bits&signBit != 0 {
		bits = ^bits
	} else {
		bits |= signBit
	}
	return binary.BigEndian.AppendUint64(dst, bits), nil
}
func (s orderedFloat64Serde) Decode(src []byte) (float64, error) {
	if err := checkSize(s.SerdeID(), src, 8); err != nil {
		return 0, err
	}
	bits := binary.BigEndian.Uint64(src)
	if bits&signBit != 0 {
		bits &^= signBit
	} else {
		bits = ^bits
	}
	return math.Float64frombits(bits), nil
}
func (orderedFloat64Serde) SerdeID() string        { return "ordered-float64" }
func (orderedFloat64Serde) fixedSize() (int, bool) { return 8, true }

type boolSerde struct{}

func (boolSerde) Append(dst []byte, v bool) ([]byte, error) {
	if v {
		return append(dst, 1), nil
	}
	return append(dst, 0), nil
}
func (s boolSerde) Decode(src []byte) (bool, error) {
	if err := checkSize(s.SerdeID(), src, 1); err != nil {
		return false, err
	}
	if src[0] > 1 {
		return false, decodeError(s.SerdeID(), 0, ErrInvalid, "want 0 or 1, have %d", src[0])
	}
	return src[0] == 1, nil
}
func (boolSerde) SerdeID() string        { return "bool" }
func (boolSerde) fixedSize() (int, bool) { return 1, true }
