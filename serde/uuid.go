package serde

import (
	"encoding/hex"

	"github.com/google/uuid"
)

// UUID writes the text form of 36 characters, in lower case, as Kafka's UUIDSerializer does. It reads that form only,
// not the others that [uuid.Parse] knows, in either case. Letters in upper case come back in lower case: as keys, the
// two spellings are different bytes, and so different rows and maybe different partitions, until they are rewritten.
var UUID Serde[uuid.UUID] = uuidSerde{}

const uuidSize = 36

type uuidSerde struct{}

func (uuidSerde) Append(dst []byte, v uuid.UUID) ([]byte, error) {
	var text [uuidSize]byte
	hex.Encode(text[0:8], v[0:4])
	text[8] = '-'
	hex.Encode(text[9:13], v[4:6])
	text[13] = '-'
	hex.Encode(text[14:18], v[6:8])
	text[18] = '-'
	hex.Encode(text[19:23], v[8:10])
	text[23] = '-'
	hex.Encode(text[24:36], v[10:16])
	return append(dst, text[:]...), nil
}

func (s uuidSerde) Decode(src []byte) (uuid.UUID, error) {
	if err := checkSize(s.SerdeID(), src, uuidSize); err != nil {
		return uuid.UUID{}, err
	}
	var v uuid.UUID
	digits := 0
	for i, c := range src {
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if c != '-' {
				return uuid.UUID{}, decodeError(s.SerdeID(), i, ErrInvalid, "want '-', have %q", c)
			}
			continue
		}
		d, ok := hexDigit(c)
		if !ok {
			return uuid.UUID{}, decodeError(s.SerdeID(), i, ErrInvalid, "want a hexadecimal digit, have %q", c)
		}
		v[digits/2] = v[digits/2]<<4 | d
		digits++
	}
	return v, nil
}

func (uuidSerde) SerdeID() string        { return "uuid" }
func (uuidSerde) fixedSize() (int, bool) { return uuidSize, true }

func hexDigit(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	default:
		return 0, false
	}
}
