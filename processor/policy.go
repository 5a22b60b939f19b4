package processor

import (
	"errors"
	"fmt"
	"strconv"

	"tailrace.dev/internal/task"
	"tailrace.dev/state"
)

// ErrorPolicy says what becomes of an input record that cannot be decoded or processed. The zero value is Fail.
type ErrorPolicy struct {
	kind  policyKind
	topic string
}

type policyKind int

const (
	policyFail policyKind = iota
	policySkip
	policyDeadLetter
)

// Fail stops the application with a *TaskError; the record is the first to be processed after a restart.
func Fail() ErrorPolicy { return ErrorPolicy{} }

// Skip leaves the record out, counts it and goes on. Nothing of what it had done until it failed remains: no write, no
// forward, no timer.
func Skip() ErrorPolicy { return ErrorPolicy{kind: policySkip} }

// DeadLetter is Skip, and writes the record to the given topic as it was fetched, with its key, value and headers
// and the headers DeadLetterError and so on, in the same transaction as everything else of the batch.
func DeadLetter(topic string) ErrorPolicy { return ErrorPolicy{kind: policyDeadLetter, topic: topic} }

// String renders the policy.
func (p ErrorPolicy) String() string {
	switch p.kind {
	case policySkip:
		return "skip"
	case policyDeadLetter:
		return "dead letter to " + p.topic
	case policyFail:
	}
	return "fail"
}

func (p ErrorPolicy) validate() error {
	if p.kind != policyDeadLetter {
		return nil
	}
	return state.CheckName("dead letter topic", p.topic)
}

// The headers that a dead letter carries in addition to its own. (The names are those of Kafka Streams, KIP-1034.)
const (
	DeadLetterKind      = "__streams.errors.exception"
	DeadLetterMessage   = "__streams.errors.message"
	DeadLetterTopic     = "__streams.errors.topic"
	DeadLetterPartition = "__streams.errors.partition"
	DeadLetterOffset    = "__streams.errors.offset"
	DeadLetterOperator  = "__streams.errors.operator" // ours: the operator that failed
)

// deadLetterMessageBytes bounds the message header, which may hold a stack trace.
const deadLetterMessageBytes = 4 << 10

func deadLetter(topic string, raw *task.Record, e *TaskError) task.Output {
	message := e.Err.Error()
	if len(message) > deadLetterMessageBytes {
		message = message[:deadLetterMessageBytes] + fmt.Sprintf("… (%d bytes)", len(message))
	}
	hs := make([]task.Header, 0, len(raw.Headers)+6)
	hs = append(hs, raw.Headers...)
	hs = append(hs,
		task.Header{Key: DeadLetterKind, Value: []byte(e.kind())},
		task.Header{Key: DeadLetterMessage, Value: []byte(message)},
		task.Header{Key: DeadLetterTopic, Value: []byte(raw.Topic)},
		task.Header{Key: DeadLetterPartition, Value: strconv.AppendInt(nil, int64(raw.Partition), 10)},
		task.Header{Key: DeadLetterOffset, Value: strconv.AppendInt(nil, raw.Offset, 10)},
		task.Header{Key: DeadLetterOperator, Value: []byte(e.Operator)},
	)
	return task.Output{
		Topic: topic, Partition: task.AnyPartition, TimeMillis: max(0, raw.TimeMillis),
		Key: raw.Key, Value: raw.Value, Headers: hs,
	}
}

// kind names what failed, in dead letters and metrics.
func (e *TaskError) kind() string {
	switch {
	case errors.Is(e.Err, ErrDecode):
		return "decode"
	case errors.Is(e.Err, ErrPanic):
		return "panic"
	case errors.Is(e.Err, ErrCall):
		return "call"
	}
	return "process"
}

// DropReason says why an operator left a record out. Kafka Streams counts all of them as dropped-records-total.
type DropReason int

// The reasons.
const (
	// DropNoKey is a record without a key where one is needed.
	DropNoKey DropReason = iota
	// DropNoValue is a tombstone where a value is needed.
	DropNoValue
	// DropNoPartition is a record without a key on its way to a repartition topic. (Kafka Streams does not count these.)
	DropNoPartition
	// DropNoTopic is a record that a sink's chooser sent nowhere.
	DropNoTopic
	// DropNoTime is a record without a valid time, where its topic says to leave those out.
	DropNoTime
	// DropLate is a record behind the grace period of its window.
	DropLate
	// DropOutdated is a change of a versioned table that came too late to be the newest, where only the newest counts.
	DropOutdated
	// DropFailed is a record left out by an ErrorPolicy.
	DropFailed
	dropReasons // their number
)

// DropReasons returns all reasons, with the names that metrics use.
func DropReasons() map[DropReason]string {
	all := make(map[DropReason]string, dropReasons)
	for d := range dropReasons {
		all[d] = d.String()
	}
	return all
}

// String names the reason as metrics do.
func (d DropReason) String() string {
	switch d {
	case DropNoKey:
		return "no_key"
	case DropNoValue:
		return "no_value"
	case DropNoPartition:
		return "no_partition"
	case DropNoTopic:
		return "no_topic"
	case DropNoTime:
		return "no_time"
	case DropLate:
		return "late"
	case DropOutdated:
		return "outdated"
	case DropFailed:
		return "failed"
	case dropReasons:
	}
	return "drop_" + strconv.Itoa(int(d))
}
