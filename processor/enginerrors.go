package processor

import "tailrace.dev/internal/engine"

// EngineError is an error of App.Run that a person has to act on: it names the topic and says what to do. errors.As finds
// it, and errors.Is its kind, which is one of the following.
type EngineError = engine.Error

// The kinds of errors that App.Run returns, besides a *TaskError.
var (
	// ErrMissingTopic: a source or sink topic does not exist.
	ErrMissingTopic = engine.ErrMissingTopic
	// ErrPartitionMismatch: topics that must have the same number of partitions do not.
	ErrPartitionMismatch = engine.ErrPartitionMismatch
	// ErrTopicConfig: an internal topic exists with a configuration that would lose or mix data.
	ErrTopicConfig = engine.ErrTopicConfig
	// ErrTopicChanged: an input topic was deleted, recreated or extended, while the application ran or stood still.
	ErrTopicChanged = engine.ErrTopicChanged
	// ErrTopologyChanged: the state was written by a topology that does not go with the present one. The error lists all
	// differences and what to do about each.
	ErrTopologyChanged = engine.ErrTopologyChanged
	// ErrOffsetOutOfRange: the committed offset of an input is not in the topic any more.
	ErrOffsetOutOfRange = engine.ErrOffsetOutOfRange
	// ErrDataLoss: the broker lost records of an input topic that had been read.
	ErrDataLoss = engine.ErrDataLoss
	// ErrFenced: another process runs with the same identity.
	ErrFenced = engine.ErrFenced
	// ErrLeave, as the cause with which Run's context is cancelled (context.WithCancelCause), makes the process leave the
	// group: it is not expected back, and others take over at once. Run does not return it.
	ErrLeave = engine.ErrLeave
	// ErrStateLoss: a changelog vanished that local state says existed.
	ErrStateLoss = engine.ErrStateLoss
	// ErrNoCommittedOffset: there is no committed offset where one is needed.
	ErrNoCommittedOffset = engine.ErrNoCommittedOffset
	// ErrNotAuthorized: an ACL denies an operation.
	ErrNotAuthorized = engine.ErrNotAuthorized
	// ErrStateLocked: the state directory is in use by another process.
	ErrStateLocked = engine.ErrStateLocked
	// ErrStateDir: the state directory cannot be used.
	ErrStateDir = engine.ErrStateDir
	// ErrNoSpace: the disk of the state directory is nearly full.
	ErrNoSpace = engine.ErrNoSpace
	// ErrRecordTooLarge: a record exceeds a size limit of ours or of the broker's.
	ErrRecordTooLarge = engine.ErrRecordTooLarge
	// ErrForeignChangelog: a changelog holds records that this library did not write.
	ErrForeignChangelog = engine.ErrForeignChangelog
	// ErrResetUnfinished: a reset of the application was begun and not finished; run it again.
	ErrResetUnfinished = engine.ErrResetUnfinished
	// ErrUncommitted: a stop was asked for and the last commit failed; nothing is lost, the work will be done again.
	ErrUncommitted = engine.ErrUncommitted
)
