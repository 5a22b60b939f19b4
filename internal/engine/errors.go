package engine

import (
	"errors"
	"fmt"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
)

// The kinds of errors that Run returns. Each arrives wrapped in an *Error, which names the topic and says what to do.
var (
	// ErrMissingTopic: a source or sink topic does not exist.
	ErrMissingTopic = errors.New("topic does not exist")
	// ErrPartitionMismatch: topics that must have the same number of partitions do not.
	ErrPartitionMismatch = errors.New("partition counts do not match")
	// ErrTopicConfig: an internal topic exists with a configuration that would lose or mix data.
	ErrTopicConfig = errors.New("topic configuration is wrong")
	// ErrTopicChanged: an input topic was deleted, recreated or extended, while the application ran or stood still.
	ErrTopicChanged = errors.New("input topic is not the one that was read")
	// ErrTopologyChanged: the state was written by a topology that does not go with the present one.
	ErrTopologyChanged = errors.New("the topology does not go with its state")
	// ErrOffsetOutOfRange: the committed offset of an input is not in the topic any more.
	ErrOffsetOutOfRange = errors.New("committed offset is out of range")
	// ErrDataLoss: the broker lost records of an input topic that had been read.
	ErrDataLoss = errors.New("input topic lost records")
	// ErrFenced: another process runs with the same instance id.
	ErrFenced = errors.New("fenced by another process with the same identity")
	// ErrStateLoss: a changelog vanished that local state says existed.
	ErrStateLoss = errors.New("changelog is gone")
	// ErrNoCommittedOffset: there is no committed offset where one is needed.
	ErrNoCommittedOffset = errors.New("no committed offset")
	// ErrNotAuthorized: an ACL denies an operation.
	ErrNotAuthorized = errors.New("not authorized")
	// ErrStateLocked: the state directory is in use by another process.
	ErrStateLocked = errors.New("state directory is in use")
	// ErrStateDir: the state directory cannot be used.
	ErrStateDir = errors.New("state directory is not usable")
	// ErrNoSpace: the disk of the state directory is nearly full.
	ErrNoSpace = errors.New("too little free disk space for state")
	// ErrRecordTooLarge: a record exceeds a size limit of ours or of the broker's.
	ErrRecordTooLarge = errors.New("record is too large")
	// ErrForeignChangelog: a changelog holds records that this library did not write.
	ErrForeignChangelog = errors.New("changelog holds foreign records")
	// ErrUncommitted: a stop was asked for and the last commit failed; nothing is lost, the work will be done again.
	ErrUncommitted = errors.New("stopped without a last commit")
)

// ErrLeave as the cause of the end of Run's context makes the member leave the group, as Settings.LeaveOnStop does: it is
// not expected back.
var ErrLeave = errors.New("engine: stopped for good")

// ErrCrash makes Run, when Seams.At returns it, drop everything as if the process had died at that point: no commit, no
// abort, no flush, no leaving of the group. Run returns an error that wraps it.
var ErrCrash = errors.New("engine: crash injected")

// Error is an error of the engine that a person has to act on.
type Error struct {
	// Kind is one of the sentinels of this package.
	Kind error
	// Topic and Partition say where, if anywhere: "" and -1 mean nowhere in particular.
	Topic     string
	Partition int32
	// Detail says what was found, Hint what to do about it. Both may be empty.
	Detail, Hint string
	// Err is the cause, or nil.
	Err error
}

// Error implements error.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("engine: ")
	b.WriteString(e.Kind.Error())
	if e.Topic != "" {
		fmt.Fprintf(&b, ": topic %q", e.Topic)
		if e.Partition >= 0 {
			fmt.Fprintf(&b, " partition %d", e.Partition)
		}
	}
	if e.Detail != "" {
		b.WriteString(": " + e.Detail)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	if e.Hint != "" {
		b.WriteString(" (" + e.Hint + ")")
	}
	return b.String()
}

// Unwrap gives the kind and the cause to errors.Is and errors.As.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// rebuildError asks for the one answer to an outcome that is unknown or cannot be repaired in place: close the client,
// drop memory, rejoin and restore, as after a kill -9.
type rebuildError struct{ cause error }

func (r *rebuildError) Error() string { return r.cause.Error() }
func (r *rebuildError) Unwrap() error { return r.cause }

func rebuild(format string, args ...any) error {
	return &rebuildError{fmt.Errorf("engine: "+format, args...)}
}

// rebuildUnlessTyped makes a rebuild of err, unless it is one already, or one that a restart cannot mend.
func rebuildUnlessTyped(err error) error {
	var typed *Error
	var again *rebuildError
	if err == nil || errors.As(err, &typed) || errors.As(err, &again) || errors.Is(err, ErrCrash) {
		return err
	}
	return &rebuildError{err}
}

// authError returns a typed error when err is a denial of access, else nil.
func authError(err error, topic, operation string) error {
	for _, denied := range []*kerr.Error{
		kerr.TopicAuthorizationFailed, kerr.GroupAuthorizationFailed, kerr.ClusterAuthorizationFailed,
		kerr.TransactionalIDAuthorizationFailed, kerr.SaslAuthenticationFailed,
	} {
		if errors.Is(err, denied) {
			hint := "grant the principal of this application that operation"
			if denied == kerr.SaslAuthenticationFailed {
				hint = "check the user and the password, and that the broker knows the mechanism"
			}
			return &Error{Kind: ErrNotAuthorized, Topic: topic, Partition: -1, Detail: operation, Err: err, Hint: hint}
		}
	}
	return nil
}
