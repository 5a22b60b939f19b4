package state

import (
	"encoding/binary"
	"fmt"
)

// rowFormat is the first byte of every row. A reader that meets another one refuses the row.
const rowFormat = 1

// Row flags.
const (
	flagHeaders     = 1 << 0 // a header block follows the time
	flagFingerprint = 1 << 1 // an 8-byte schema fingerprint follows the headers
	knownRowFlags   = flagHeaders | flagFingerprint
)

const rowFixedBytes = 1 + 1 + 8

// RowMeta is what a row carries besides its value.
type RowMeta struct {
	// TimeMillis is the event time of the row in Unix milliseconds: that of the record which wrote it last, or what
	// the operator's rule says (an aggregate keeps the largest).
	TimeMillis int64
	// Headers is the encoded header block, nil for none. Its layout is the owner's.
	Headers []byte
	// Fingerprint identifies the schema that wrote the value; 0 means none.
	Fingerprint uint64
}

// AppendRow appends the encoded row to dst, up to where the value begins; the caller appends the value.
//
// The layout is fixed by docs/adr/0006: format byte, flags byte, time as big-endian int64, then, as the flags say, the
// length (big-endian uint32) and bytes of the headers and the fingerprint (big-endian uint64), then the value.
func AppendRow(dst []byte, m RowMeta) []byte {
	var flags byte
	if m.Headers != nil {
		flags |= flagHeaders
	}
	if m.Fingerprint != 0 {
		flags |= flagFingerprint
	}
	dst = append(dst, rowFormat, flags)
	dst = binary.BigEndian.AppendUint64(dst, uint64(m.TimeMillis))
	if m.Headers != nil {
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(m.Headers)))
		dst = append(dst, m.Headers...)
	}
	if m.Fingerprint != 0 {
		dst = binary.BigEndian.AppendUint64(dst, m.Fingerprint)
	}
	return dst
}

// ParseRow splits an encoded row. The returned slices refer to row. An error wraps ErrCorrupt.
func ParseRow(row []byte) (m RowMeta, value []byte, err error) {
	if len(row) < rowFixedBytes {
		return m, nil, fmt.Errorf("%w: row of %d bytes, want at least %d", ErrCorrupt, len(row), rowFixedBytes)
	}
	if row[0] != rowFormat {
		return m, nil, fmt.Errorf("%w: row format %d, this version reads %d", ErrCorrupt, row[0], rowFormat)
	}
	flags := row[1]
	if flags&^knownRowFlags != 0 {
		return m, nil, fmt.Errorf("%w: unknown row flags %#x", ErrCorrupt, flags)
	}
	m.TimeMillis = int64(binary.BigEndian.Uint64(row[2:]))
	rest := row[rowFixedBytes:]
	if flags&flagHeaders != 0 {
		if len(rest) < 4 {
			return m, nil, fmt.Errorf("%w: row ends in its header length", ErrCorrupt)
		}
		n := binary.BigEndian.Uint32(rest)
		rest = rest[4:]
		if uint64(n) > uint64(len(rest)) {
			return m, nil, fmt.Errorf("%w: row headers of %d bytes, %d left", ErrCorrupt, n, len(rest))
		}
		m.Headers, rest = rest[:n:n], rest[n:]
	}
	if flags&flagFingerprint != 0 {
		if len(rest) < 8 {
			return m, nil, fmt.Errorf("%w: row ends in its schema fingerprint", ErrCorrupt)
		}
		m.Fingerprint = binary.BigEndian.Uint64(rest)
		rest = rest[8:]
	}
	return m, rest[:len(rest):len(rest)], nil
}
