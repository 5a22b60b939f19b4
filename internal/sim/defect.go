package sim

import "fmt"

// Defect is a mistake that is built into a run, to show that the simulation would find it.
type Defect int

// The defects. The first ones are mistakes of a member, the last ones of a broker that the members must rely on.
const (
	NoDefect Defect = iota
	// ApplyFirst writes rows to disk before the transaction that carries them has ended.
	ApplyFirst
	// NoBarrier restores up to the last stable offset as it was when the task was assigned.
	NoBarrier
	// CommitPolled commits the offsets of what was fetched, not of what was processed.
	CommitPolled
	// IgnoreSendErrors commits a transaction of which a record could not be produced.
	IgnoreSendErrors
	// NoRequireStable starts at the committed offsets without waiting for transactions that are about to move them.
	NoRequireStable
	// ZombieNotFenced is a broker that lets a producer's new epoch share with the former one.
	ZombieNotFenced
	// StaleGeneration is a broker that takes offsets from whoever brings them.
	StaleGeneration
	defects
)

// String returns the defect's name.
func (d Defect) String() string {
	names := [...]string{
		"none", "apply-first", "no-barrier", "commit-polled", "ignore-send-errors", "no-require-stable",
		"zombie-not-fenced", "stale-generation",
	}
	if d < 0 || int(d) >= len(names) {
		return fmt.Sprintf("Defect(%d)", int(d))
	}
	return names[d]
}
