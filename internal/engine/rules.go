package engine

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"tailrace.dev/internal/task"
	"tailrace.dev/state"
)

// The decisions of the protocol that depend on nothing but what is passed to them. The simulation of package sim makes
// them with the same code, in another order of events than any broker would give.

// LocalState is what is known of the local rows of a store when its task starts.
type LocalState struct {
	// Position is that of the rows; HasPosition tells whether there is one.
	Position    state.Position
	HasPosition bool
	// HasRows tells whether there are any rows. It is asked only where that matters.
	HasRows func() (bool, error)
	// TopicID, Start and End are those of the changelog partition, or of the topic that the store follows.
	TopicID    [16]byte
	Start, End int64
	// Follows tells that the store follows an input topic, whose offset Limit is the first that is not committed.
	Follows bool
	Limit   int64
	// TooOld tells that the changelog may have forgotten deletions that the rows do not have.
	TooOld bool
}

// JudgeLocalState tells why the rows must not be built on, or "" if they may. onlyCopy tells that they must not be
// dropped either without being asked: the changelog that they came from is gone and what took its place is empty.
func JudgeLocalState(l LocalState) (why string, onlyCopy bool, err error) {
	pos := l.Position
	switch {
	case !l.HasPosition:
		if rows, err := l.HasRows(); err != nil {
			return "", false, err
		} else if rows {
			why = "rows without a position: a restore was cut short"
		}
	case pos.TopicID != l.TopicID && l.Follows:
		why = "the topic was recreated, or is another one"
	case pos.TopicID != l.TopicID:
		rows, err := l.HasRows()
		if err != nil {
			return "", false, err
		}
		return "the changelog topic was recreated", rows && l.End == l.Start, nil
	case pos.Next > l.End:
		why = fmt.Sprintf("local position %d is past the changelog's end %d: the changelog was truncated", pos.Next, l.End)
	case l.Follows && pos.Next > l.Limit:
		why = fmt.Sprintf("local position %d is past the committed offset %d: that was set back", pos.Next, l.Limit)
	case pos.Next < l.Start:
		why = fmt.Sprintf("local position %d is before the changelog's start %d", pos.Next, l.Start)
	case l.TooOld:
		why = "the local state is older than the changelog keeps deletions"
	}
	return why, false, nil
}

// Passes tells whether an error of a coordinator passes by itself, so that the request is worth sending again.
func Passes(err error) bool { return passes(err) }

// Refusal is what follows from a refused request of a transaction that has not ended.
type Refusal int

// The refusals, by rising severity.
const (
	// RefusalAbort is definite: the transaction can be aborted and everything computed again, in place.
	RefusalAbort Refusal = iota
	// RefusalRebuild leaves the outcome, or whose tasks these are, open: drop memory, join again, restore.
	RefusalRebuild
	// RefusalFenced says that another process has this identity: stop.
	RefusalFenced
)

// JudgeRefusal judges an error of a request that belongs to the open transaction, before its end.
func JudgeRefusal(err error) Refusal {
	var ke *kerr.Error
	switch {
	case errors.Is(err, kerr.FencedInstanceID):
		return RefusalFenced
	case errors.Is(err, errMemberChanged), errors.Is(err, kerr.UnknownMemberID), fatalToProducer(err):
		return RefusalRebuild
	case errors.As(err, &ke):
		return RefusalAbort
	}
	return RefusalRebuild // the connection broke, or time ran out: nobody knows
}

// JudgeSendError judges the error of a record that could not be produced in a transaction.
func JudgeSendError(err error) Refusal {
	if fatalToProducer(err) {
		return RefusalRebuild
	}
	return RefusalAbort
}

// JudgeEndError judges an error of the end of a transaction.
func JudgeEndError(err error) Refusal {
	if errors.Is(err, kerr.OperationNotAttempted) || errors.Is(err, kerr.TransactionAbortable) {
		return RefusalAbort
	}
	return RefusalRebuild // the commit may have happened. Only a restore can tell.
}

// ChangelogRows appends the rows that a run of changelog records leaves behind, one for each record that is a row.
func ChangelogRows(id state.StoreID, records []*kgo.Record, rows []state.Row) ([]state.Row, error) {
	for _, r := range records {
		if r.Attrs.IsControl() || isMark(r.Key) {
			continue
		}
		if len(r.Key) == 0 || r.Key[0] > state.KindIndex {
			return rows, &Error{
				Kind: ErrForeignChangelog, Topic: r.Topic, Partition: r.Partition,
				Detail: fmt.Sprintf("the record at offset %d has no row key", r.Offset),
				Hint:   "another program writes to this topic; use another application id or reset the application",
			}
		}
		rows = append(rows, state.Row{Store: id, Key: r.Key, Value: r.Value})
	}
	return rows, nil
}

// NewestRows returns the last row of each key, in the order of the keys. The rows are copies.
func NewestRows(rows []state.Row) []state.Row {
	var b bulk
	for i := range rows {
		b.put(rows[i].Store, rows[i].Key, rows[i].Value)
	}
	return b.sorted()
}

// BarrierKey returns the key of the record that a restore reads up to.
func BarrierKey() []byte { return bytes.Clone(barrierKey) }

// MemberState is what a member of a simulated group says of itself when it joins.
type MemberState struct {
	TransactionalID string
	Standbys        int
	// Positions holds the sum of the changelog positions of the tasks that have state at the member, in a fixed order;
	// negative ones are unknown.
	Positions []MemberTask
}

// MemberTask is a task whose state a member has.
type MemberTask struct {
	ID            task.ID
	Position, Lag int64 // -1 while not known
	Active        bool
}

// SimBalancer returns the balancer of a member of a simulated group that runs p.
func SimBalancer(p *Program, m MemberState, warmupLag int64, maxWarmups int) kgo.GroupBalancer {
	data := userData{
		fingerprint: p.Fingerprint, transactionalID: m.TransactionalID, standbys: m.Standbys, subs: topicsOf(p.Subs),
	}
	for _, t := range m.Positions {
		role := roleDisk
		switch {
		case t.Active:
			role = roleActive
		case t.Lag >= 0:
			role = roleCopy
		}
		data.tasks = append(data.tasks, taskState{id: t.ID, position: t.Position, lag: t.Lag, role: role})
	}
	limits := placementLimits{standbys: m.Standbys, warmupLag: warmupLag, warmups: maxWarmups}
	return newBalancer(topicsOf(p.Subs), data, limits, zap.NewNop())
}

// SimOrders returns the tasks that an assignment of a simulated group tells its member to keep copies of, and whether
// partitions are withheld until their owners have given them up.
func SimOrders(userData []byte) (copies []task.ID, unsettled bool, err error) {
	data, err := parseAssignmentData(userData)
	if err != nil {
		return nil, false, err
	}
	for _, c := range data.copies {
		copies = append(copies, c.id)
	}
	return copies, data.unsettled, nil
}
