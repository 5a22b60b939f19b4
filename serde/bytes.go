package serde

import "bytes"

var (
	// String writes the bytes of the string as they are, as Kafka's StringSerializer does with its default of UTF-8.
	// It accepts any bytes: whether they are UTF-8 is not looked at, and they come back unchanged. The decoded string
	// is a copy. The order of the bytes is the order of the strings.
	String Serde[string] = stringSerde{}

	// Bytes is for byte slices that the receiver may keep and change: Decode copies. A nil slice is written like an
	// empty one. The order of the bytes is that of [bytes.Compare]. [Raw] does the same without the copy.
	Bytes Serde[[]byte] = bytesSerde{}

	// Raw passes byte slices through: Decode copies nothing, and the value shares the memory of src. Whoever receives
	// it must not write to its elements (appending is safe, since it has no spare capacity), and while it is kept, so
	// is the buffer that it is a part of, which for a record from Kafka is the whole fetched batch. Use [Bytes] for
	// values that are kept long or changed in place. Both write the same form and have the same [ID].
	Raw Serde[[]byte] = rawSerde{}

	// None is for topics and stores that have keys but no values, or the other way round. It writes no bytes. That
	// is an empty value, not an absent one, so that it differs from Kafka's VoidSerializer, which writes null.
	None Serde[struct{}] = noneSerde{}
)

type stringSerde struct{}

func (stringSerde) Append(dst []byte, v string) ([]byte, error) {
	return nonNil(append(dst, v...)), nil
}
func (stringSerde) Decode(src []byte) (string, error) { return string(src), nil }
func (stringSerde) SerdeID() string                   { return "string" }

type bytesSerde struct{}

func (bytesSerde) Append(dst, v []byte) ([]byte, error) { return nonNil(append(dst, v...)), nil }
func (bytesSerde) Decode(src []byte) ([]byte, error)    { return nonNil(bytes.Clone(src)), nil }
func (bytesSerde) SerdeID() string                      { return "bytes" }

type rawSerde struct{}

func (rawSerde) Append(dst, v []byte) ([]byte, error) { return nonNil(append(dst, v...)), nil }
func (rawSerde) Decode(src []byte) ([]byte, error)    { return nonNil(src[:len(src):len(src)]), nil }
func (rawSerde) SerdeID() string                      { return "bytes" }

type noneSerde struct{}

func (noneSerde) Append(dst []byte, _ struct{}) ([]byte, error) { return nonNil(dst), nil }
func (s noneSerde) Decode(src []byte) (struct{}, error) {
	return struct{}{}, checkSize(s.SerdeID(), src, 0)
}
func (noneSerde) SerdeID() string        { return "none" }
func (noneSerde) fixedSize() (int, bool) { return 0, true }
