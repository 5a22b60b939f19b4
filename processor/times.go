package processor

import (
	"fmt"
	"time"

	"tailrace.dev/internal/task"
)

// ErrInvalidTime is the error of a record that has no valid time, under FailOnInvalidTime. It counts as ErrDecode.
var ErrInvalidTime = fmt.Errorf("%w the time of the record, which must not be before 1970", ErrDecode)

// InvalidTime says what becomes of a record without a valid time.
type InvalidTime int

// The choices.
const (
	// FailOnInvalidTime treats it as a record that cannot be decoded: Config.OnDecodeError. It is the default. (Kafka
	// Streams: FailOnInvalidTimestamp.)
	FailOnInvalidTime InvalidTime = iota
	// SkipInvalidTime leaves it out and counts it. (LogAndSkipOnInvalidTimestamp.)
	SkipInvalidTime
	// UsePartitionTime gives it the largest time that its partition has had; without one, it is left out. (UsePartitionTimeOnInvalidTimestamp.)
	UsePartitionTime
)

// topicTimes says how the times of a topic's records are found.
type topicTimes[K, V any] struct {
	of      func(r Record[K, V]) (time.Time, bool)
	wall    bool
	invalid InvalidTime
}

// finder returns the function that a source finds times by, or nil where the broker's are good.
func (tt topicTimes[K, V]) finder(
	decode func(raw *task.Record) (Record[K, V], error),
) func(raw *task.Record, seen, wall int64) (int64, bool, error) {
	if tt.of == nil && !tt.wall && tt.invalid == FailOnInvalidTime {
		return nil
	}
	return func(raw *task.Record, seen, wall int64) (int64, bool, error) {
		if tt.wall {
			return wall, true, nil
		}
		millis := raw.TimeMillis
		if tt.of != nil {
			r, err := decode(raw)
			if err != nil {
				return 0, false, err
			}
			millis = -1
			if at, ok := tt.of(r); ok {
				millis = at.UnixMilli()
			}
		}
		switch {
		case millis >= 0:
			return millis, true, nil
		case tt.invalid == SkipInvalidTime:
			return 0, false, nil
		case tt.invalid == UsePartitionTime:
			return seen, seen >= 0, nil
		default:
			return 0, false, ErrInvalidTime
		}
	}
}
