package serde

import (
	"encoding/binary"
	"math"
	"time"
)

var (
	// Time writes the Unix time in milliseconds, the unit of Kafka's timestamps, as [Int64] does. What is finer than
	// a millisecond is cut off, towards the past; the location is not kept and the decoded time is in UTC. A time
	// whose milliseconds do not fit into an int64, 292 million years from 1970, is an error. The zero time is kept.
	Time Serde[time.Time] = timeSerde{id: "time-ms"}

	// OrderedTime is for keys of stores: as [Time], but with the sign bit inverted as in [OrderedInt64], so that the
	// order of the bytes is the order of the times, those before 1970 included.
	OrderedTime Serde[time.Time] = timeSerde{id: "ordered-time-ms", flip: signBit}
)

var (
	minTime = time.UnixMilli(math.MinInt64)
	maxTime = time.UnixMilli(math.MaxInt64).Add(time.Millisecond - 1)
)

type timeSerde struct {
	id   string
	flip uint64
}

func (s timeSerde) Append(dst []byte, v time.Time) ([]byte, error) {
	if v.Before(minTime) || v.After(maxTime) {
		return dst, encodeError(s.id, ErrInvalid,
			"Unix time %d s is out of range: want one whose milliseconds fit into an int64", v.Unix())
	}
	return binary.BigEndian.AppendUint64(dst, uint64(v.UnixMilli())^s.flip), nil
}

func (s timeSerde) Decode(src []byte) (time.Time, error) {
	if err := checkSize(s.id, src, 8); err != nil {
		return time.Time{}, err
	}
	return time.UnixMilli(int64(binary.BigEndian.Uint64(src) ^ s.flip)).UTC(), nil
}

func (s timeSerde) SerdeID() string      { return s.id }
func (timeSerde) fixedSize() (int, bool) { return 8, true }
