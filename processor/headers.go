package processor

import (
	"encoding/binary"
	"fmt"

	"tailrace.dev/state"
)

// AppendHeaders appends headers to dst, for operators that keep records: nothing for none, otherwise for each the length
// and bytes of its key, and those of its value. ParseHeaders reads them back.
func AppendHeaders(dst []byte, hs []Header) []byte {
	for _, h := range hs {
		dst = binary.AppendUvarint(dst, uint64(len(h.Key)))
		dst = append(dst, h.Key...)
		if h.Value == nil {
			dst = append(dst, 0)
			continue
		}
		dst = binary.AppendUvarint(dst, uint64(len(h.Value))+1)
		dst = append(dst, h.Value...)
	}
	return dst
}

// ParseHeaders reads what AppendHeaders wrote, to the end of src. The values refer to src. An error wraps
// state.ErrCorrupt.
func ParseHeaders(src []byte) ([]Header, error) {
	var hs []Header
	part := func() ([]byte, uint64, bool) {
		n, w := binary.Uvarint(src)
		if w <= 0 {
			return nil, 0, false
		}
		return src[w:], n, true
	}
	for len(src) > 0 {
		rest, n, ok := part()
		if !ok || n > uint64(len(rest)) {
			return nil, fmt.Errorf("%w: header key", state.ErrCorrupt)
		}
		h := Header{Key: string(rest[:n])}
		src = rest[n:]
		rest, n, ok = part()
		if !ok || n > uint64(len(rest))+1 {
			return nil, fmt.Errorf("%w: header value", state.ErrCorrupt)
		}
		src = rest
		if n > 0 {
			h.Value, src = rest[:n-1:n-1], rest[n-1:]
		}
		hs = append(hs, h)
	}
	return hs, nil
}
