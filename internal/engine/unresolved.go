package engine

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
)

// A broker holds committed offsets back for as long as a transaction that carries newer ones is not decided, and
// decides it after its timeout at the latest. The same holds for the records of a changelog. A broker that is killed at
// the wrong moment can lose the end of a transaction, though (seen with Apache Kafka 4.3.0: the coordinator wrote that a
// transaction was complete, and never the marker for the offsets' topic, or for a changelog). Then the client waits for
// ever, and nothing in it says so. Where that transaction is known to have been committed, it is mended (unstick.go).

// unresolved is what is known of inputs whose committed offsets, or whose tasks' changelogs, do not come.
type unresolved struct {
	since, told time.Time
}

const (
	// unresolvedSlack is how much longer than a transaction's timeout it takes a broker to notice.
	unresolvedSlack = 20 * time.Second
	unresolvedEvery = time.Minute
)

// lookForUnresolved says, from time to time, what is waited for for longer than any transaction can last.
func (s *session) lookForUnresolved(now time.Time) {
	var waiting []string
	for _, t := range s.tasks {
		for _, in := range t.inputs {
			if in.owned && !in.located {
				waiting = append(waiting, fmt.Sprintf("%s[%d]", in.topic, in.partition))
			}
		}
		if t.stalled.Load() && !t.running {
			waiting = append(waiting, "the changelogs of "+t.id.String())
		}
	}
	u := &s.unresolved
	switch {
	case len(waiting) == 0:
		*u = unresolved{}
		return
	case u.since.IsZero():
		u.since = now
		return
	}
	s.unstick(u.since, now)
	if now.Sub(u.since) < s.e.cfg.TransactionTimeout+unresolvedSlack || now.Sub(u.told) < unresolvedEvery {
		return
	}
	u.told = now
	slices.Sort(waiting)
	s.log.Error("committed offsets or records do not come: either a broker does not answer, or it waits for a "+
		"transaction that was ended and lost its end; kafka-transactions.sh find-hanging shows it. Do not abort it "+
		"before you know that its outputs were aborted, too",
		zap.Duration("since", now.Sub(u.since).Round(time.Second)), zap.String("waiting", strings.Join(waiting, ", ")))
}
