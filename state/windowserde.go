package state

import (
	"encoding/binary"
	"fmt"
	"time"

	"tailrace.dev/serde"
)

// WindowedSerde encodes windowed keys as the key, then the start and the end of the window as big-endian int64. It
// suits windows of every kind.
func WindowedSerde[K any](key serde.Serde[K]) serde.Serde[Windowed[K]] {
	return windowedSerde[K]{key: key, id: "windowed", startAt: 0, endAt: 8, tail: 16}
}

// KafkaTimeWindowedSerde encodes windowed keys as Kafka Streams does for windows of a fixed size: the key, then the
// start of the window as big-endian int64. The end is start + size, and is not written. (Kafka Streams:
// TimeWindowedSerializer, WindowedSerdes.timeWindowedSerdeFrom.)
func KafkaTimeWindowedSerde[K any](key serde.Serde[K], size time.Duration) serde.Serde[Windowed[K]] {
	return windowedSerde[K]{key: key, id: "kafka-time-windowed", startAt: 0, endAt: -1, tail: 8, size: millisOf(size)}
}

// KafkaSessionWindowedSerde encodes windowed keys as Kafka Streams does for sessions: the key, then the end and the
// start of the session as big-endian int64. (Kafka Streams: SessionWindowedSerializer,
// WindowedSerdes.sessionWindowedSerdeFrom.)
func KafkaSessionWindowedSerde[K any](key serde.Serde[K]) serde.Serde[Windowed[K]] {
	return windowedSerde[K]{key: key, id: "kafka-session-windowed", startAt: 8, endAt: 0, tail: 16}
}

// windowedSerde writes the times behind the key: tail bytes, the start at startAt and the end at endAt of them.
type windowedSerde[K any] struct {
	key                  serde.Serde[K]
	id                   string
	startAt, endAt, tail int
	size                 int64 // where endAt is negative
}

// Append implements serde.Serde.
func (s windowedSerde[K]) Append(dst []byte, w Windowed[K]) ([]byte, error) {
	if s.key == nil {
		return nil, fmt.Errorf("state: %s key: the serde of the key is nil", s.id)
	}
	dst, err := s.key.Append(dst, w.Key)
	if err != nil {
		return nil, fmt.Errorf("state: %s key: %w", s.id, err)
	}
	at := len(dst)
	for range s.tail {
		dst = append(dst, 0)
	}
	binary.BigEndian.PutUint64(dst[at+s.startAt:], uint64(w.StartMillis))
	if s.endAt >= 0 {
		binary.BigEndian.PutUint64(dst[at+s.endAt:], uint64(w.EndMillis))
	}
	return dst, nil
}

// Decode implements serde.Serde.
func (s windowedSerde[K]) Decode(src []byte) (Windowed[K], error) {
	var w Windowed[K]
	n := len(src) - s.tail
	if n < 0 {
		return w, fmt.Errorf("state: %s key of %d bytes: want at least %d for the window", s.id, len(src), s.tail)
	}
	if s.key == nil {
		return w, fmt.Errorf("state: %s key: the serde of the key is nil", s.id)
	}
	var err error
	if w.Key, err = s.key.Decode(src[:n:n]); err != nil {
		return w, fmt.Errorf("state: %s key: %w", s.id, err)
	}
	w.StartMillis = int64(binary.BigEndian.Uint64(src[n+s.startAt:]))
	if s.endAt >= 0 {
		w.EndMillis = int64(binary.BigEndian.Uint64(src[n+s.endAt:]))
	} else {
		w.EndMillis = satAdd(w.StartMillis, s.size)
	}
	return w, nil
}

// SerdeID identifies the encoding.
func (s windowedSerde[K]) SerdeID() string {
	inner := "nil"
	if s.key != nil {
		inner = serde.ID(s.key)
	}
	if s.endAt < 0 {
		return fmt.Sprintf("%s(%s,%d)", s.id, inner, s.size)
	}
	return fmt.Sprintf("%s(%s)", s.id, inner)
}
