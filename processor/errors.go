package processor

import (
	"errors"
	"fmt"
	"strings"
)

// Sentinels that errors.Is finds in what App.Run, Driver and Task return.
var (
	// ErrDecode marks a key or value that could not be decoded.
	ErrDecode = errors.New("processor: cannot decode")
	// ErrProcess marks a failure of an operator: an error returned by a Processor, or by encoding its result.
	ErrProcess = errors.New("processor: cannot process")
	// ErrPanic marks a panic in a user's function, in addition to ErrProcess.
	ErrPanic = errors.New("processor: panic")
)

// TaskError is the failure of one record of a task, or of a timer, or of starting or closing a Processor.
type TaskError struct {
	// Task is the task that was at work.
	Task TaskID
	// Topic, Partition and Offset name the input record; Topic is empty outside of one.
	Topic     string
	Partition int32
	Offset    int64
	// Operator is the operator that failed, with the place in the program that declared it. Outside of a record it says
	// what was called: "timer of …", "start of …", "close of …".
	Operator string
	// Err is the cause. It matches ErrDecode or ErrProcess.
	Err error
	// Policy is what was done with the record: the zero value, Fail, where the error ends the application.
	Policy ErrorPolicy
}

// Error renders the failure with the place of the record and what to do.
func (e *TaskError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "processor: task %s: ", e.Task)
	if e.Topic != "" {
		fmt.Fprintf(&b, "record %s[%d]@%d: ", e.Topic, e.Partition, e.Offset)
	}
	fmt.Fprintf(&b, "%s: %v", e.Operator, e.Err)
	switch {
	case errors.Is(e.Err, ErrDecode):
		b.WriteString(" (mend the producer or the serde; or set Config.OnDecodeError to Skip or DeadLetter)")
	case e.Topic != "":
		b.WriteString(" (mend the operator; or set Config.OnProcessError to Skip or DeadLetter)")
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *TaskError) Unwrap() error { return e.Err }

// decodeError is what a source returns.
type decodeError struct {
	part string
	err  error
}

func (e *decodeError) Error() string        { return "decode " + e.part + ": " + e.err.Error() }
func (e *decodeError) Unwrap() error        { return e.err }
func (e *decodeError) Is(target error) bool { return target == ErrDecode }

// processError marks the failure of an operator.
type processError struct{ err error }

func (e *processError) Error() string        { return e.err.Error() }
func (e *processError) Unwrap() error        { return e.err }
func (e *processError) Is(target error) bool { return target == ErrProcess }

// panicError is a recovered panic.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v\n%s", e.value, e.stack) }
func (e *panicError) Is(target error) bool {
	return target == ErrPanic || target == ErrProcess
}
func (e *panicError) Unwrap() error {
	err, _ := e.value.(error)
	return err
}
