package embedded

import (
	"encoding/binary"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Layout of a record batch of magic 2: where the attributes are, where the records begin.
const (
	batchMagicAt      = 16
	batchAttributesAt = 21
	batchCountAt      = 57
	batchHeaderLen    = 61
	codecMask         = 0x07
)

// keyScanner looks through record batches for records without a key. It walks the lengths and decodes nothing else,
// so that an uncompressed batch costs a few nanoseconds a record. Not for concurrent use.
type keyScanner struct {
	decompress kgo.Decompressor
}

// hasNullKey reports whether one of the batch's records has a null key. Of a batch that cannot be read it says no: the
// broker's own checks come after it and know the right error.
func (s *keyScanner) hasNullKey(batch []byte) bool {
	if len(batch) < batchHeaderLen || batch[batchMagicAt] != 2 {
		return false
	}
	records := batch[batchHeaderLen:]
	if codec := batch[batchAttributesAt+1] & codecMask; codec != 0 {
		if s.decompress == nil {
			s.decompress = kgo.DefaultDecompressor()
		}
		plain, err := s.decompress.Decompress(records, kgo.CompressionCodecType(codec))
		if err != nil {
			return false
		}
		records = plain
	}
	for n := binary.BigEndian.Uint32(batch[batchCountAt:]); n > 0; n-- {
		size, k := binary.Varint(records)
		if k <= 0 || size < 0 || size > int64(len(records)-k) {
			return false
		}
		record := records[k : k+int(size)]
		records = records[k+int(size):]
		if len(record) == 0 {
			return false
		}
		record = record[1:] // attributes
		for range 2 {       // timestamp delta, offset delta
			_, k := binary.Varint(record)
			if k <= 0 {
				return false
			}
			record = record[k:]
		}
		if keyLen, k := binary.Varint(record); k > 0 && keyLen < 0 {
			return true
		}
	}
	return false
}
