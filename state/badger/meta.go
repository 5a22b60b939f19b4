package badger

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"tailrace.dev/state"
)

const (
	storePrefixBytes = 2
	// maxStoreID is bounded by the two bytes of an even store number.
	maxStoreID = 1<<15 - 1

	formatVersion   = 1
	positionVersion = 1
	positionBytes   = 1 + 16 + 8 + 4 + 8 + crc32.Size
)

// Kinds of the backend's own rows, the byte after the store number 0.
const (
	metaFormat   = 'f' // the version of the layout
	metaLink     = 'l' // be64 number: see links in the package's documentation
	metaPosition = 'p' // be16 store number: a position
	metaStore    = 's' // be16 store number: a flag and the name of the store
)

const (
	storeLive    = 0
	storeDropped = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendPrefix(dst []byte, id state.StoreID) []byte {
	return binary.BigEndian.AppendUint16(dst, uint16(id)*2)
}

// appendRowKey appends the key of a row in Badger.
func appendRowKey(dst []byte, id state.StoreID, key []byte) []byte {
	return append(appendPrefix(dst, id), key...)
}

// afterStore returns the smallest key above all rows of a store. No row has it.
func afterStore(id state.StoreID) []byte {
	return binary.BigEndian.AppendUint16(nil, uint16(id)*2+1)
}

func formatKey() []byte { return []byte{0, 0, metaFormat} }

func storeKey(id state.StoreID) []byte { return appendPrefix([]byte{0, 0, metaStore}, id) }

func positionKey(id state.StoreID) []byte { return appendPrefix([]byte{0, 0, metaPosition}, id) }

func linkPrefix() []byte { return []byte{0, 0, metaLink} }

func linkKey(number uint64) []byte { return binary.BigEndian.AppendUint64(linkPrefix(), number) }

// encodePosition renders a position as a record of fixed size with a checksum.
func encodePosition(p state.Position) []byte {
	b := make([]byte, 0, positionBytes)
	b = append(b, positionVersion)
	b = append(b, p.TopicID[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(p.Next))
	b = binary.BigEndian.AppendUint32(b, uint32(p.LeaderEpoch))
	b = binary.BigEndian.AppendUint64(b, uint64(p.WallMillis))
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodePosition(b []byte) (p state.Position, err error) {
	if len(b) != positionBytes || b[0] != positionVersion {
		return p, corrupt("a position of %d bytes is not of version %d", len(b), positionVersion)
	}
	body := b[:positionBytes-crc32.Size]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(b[len(body):]) {
		return p, corrupt("the checksum of a position is wrong")
	}
	copy(p.TopicID[:], b[1:17])
	p.Next = int64(binary.BigEndian.Uint64(b[17:]))
	p.LeaderEpoch = int32(binary.BigEndian.Uint32(b[25:]))
	p.WallMillis = int64(binary.BigEndian.Uint64(b[29:]))
	return p, nil
}

// registered is a store known to a backend.
type registered struct {
	id      state.StoreID
	dropped bool
}

func encodeStore(name string, r registered) []byte {
	flag := byte(storeLive)
	if r.dropped {
		flag = storeDropped
	}
	return append([]byte{flag}, name...)
}

func decodeStore(key, value []byte) (name string, r registered, err error) {
	if len(key) != len(storeKey(0)) || len(value) < 1 {
		return "", r, corrupt("the name of a store cannot be read")
	}
	number := binary.BigEndian.Uint16(key[3:])
	return string(value[1:]), registered{id: state.StoreID(number / 2), dropped: value[0] == storeDropped}, nil
}

// decodeLink returns the number of a link.
func decodeLink(key []byte) (uint64, error) {
	if len(key) != len(linkKey(0)) {
		return 0, fmt.Errorf("a link has a key of %d bytes", len(key))
	}
	return binary.BigEndian.Uint64(key[3:]), nil
}
