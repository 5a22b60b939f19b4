package engine

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

const (
	// lagInterval is how often the brokers are asked where the inputs end, lagTimeout how long they may take.
	lagInterval = 2 * time.Second
	lagTimeout  = 5 * time.Second
	// brokersSilent is after how long without an answer a process does not count as ready any more.
	brokersSilent = 8 * time.Second
	// maxReasons bounds what Status.Missing lists.
	maxReasons = 20
)

// states are all states, in the order in which a life passes through them.
var states = []string{
	StateStarting, StateRestoring, StateRunning, StateRebuilding, StateStopping, StateStopped,
}

// missing returns what is missing for the process to be ready, nothing when it is: the group joined, all tasks
// restored and running, the inputs processed up to Settings.ReadyLag, and brokers that answer.
func (e *Engine) missing(s *Status) []string {
	var why []string
	more := 0
	say := func(format string, args ...any) {
		if len(why) == maxReasons {
			more++
			return
		}
		why = append(why, fmt.Sprintf(format, args...))
	}
	switch {
	case s.Error != "":
		say("it ended with an error: %s", s.Error)
	case s.State == "":
		say("it has not been started")
	case s.State != StateRunning && s.State != StateRestoring:
		say("it is %s", s.State)
	}
	for _, g := range s.Globals {
		if g.Remaining > 0 {
			say("global table %s has %d offsets left to load", g.Store, g.Remaining)
		}
	}
	if len(why) > 0 {
		return why
	}
	if !s.Joined {
		say("the group has not given this member an assignment yet")
	}
	for i := range s.Tasks {
		if t := &s.Tasks[i]; t.Role == RoleActive && t.State != TaskRunning {
			say("%s", t.whyNot())
		}
	}
	if age := time.Since(s.BrokersSeen); s.BrokersSeen.IsZero() || age > brokersSilent {
		if s.BrokersSeen.IsZero() {
			say("the brokers have not told yet where the inputs end")
		} else {
			say("the brokers have not answered for %v", age.Round(time.Second))
		}
	} else if limit := e.cfg.ReadyLag; limit >= 0 {
		switch lag, known := s.Lag(); {
		case lag > limit:
			say("the inputs are %d offsets behind, of at most %d", lag, limit)
		case !known:
			say("how far the inputs are behind is not known yet")
		}
	}
	if more > 0 {
		why = append(why, fmt.Sprintf("and %d more", more))
	}
	return why
}

// whyNot tells why a task does not run.
func (t *TaskStatus) whyNot() string {
	for _, r := range t.Restores {
		if r.Done {
			continue
		}
		if eta, ok := r.ETA(); ok {
			return fmt.Sprintf("task %s restores store %s: %.1f %%, about %v left", t.Task, r.Store, 100*r.Fraction(),
				eta.Round(100*time.Millisecond))
		}
		return fmt.Sprintf("task %s restores store %s: %.1f %%", t.Task, r.Store, 100*r.Fraction())
	}
	return fmt.Sprintf("task %s is %s", t.Task, t.State)
}

// stuck returns why the run loop counts as stuck, or "". Brokers that are away do not make it stuck.
func (e *Engine) stuck(s *Status) string {
	switch {
	case s.State == "":
		return ""
	case s.Error != "":
		return "it ended with an error: " + s.Error
	case s.State == StateStopped:
		return "it has stopped"
	case s.Idle > e.stuckAfter():
		return fmt.Sprintf("the run loop has not moved for %v", s.Idle.Round(time.Second))
	}
	return ""
}

// stuckAfter is beyond all waits that end by themselves: for a worker, and for a commit whose broker is away.
func (e *Engine) stuckAfter() time.Duration {
	pause := max(2*e.cfg.TransactionTimeout, 30*time.Second)
	commit := 2 * max(e.cfg.TransactionTimeout, 10*time.Second)
	return pause + commit + 30*time.Second
}

// lookAtEnds asks where the inputs of the tasks end, beside the processing: fetches tell it only of partitions that have
// something new.
func (s *session) lookAtEnds(now time.Time) {
	if now.Before(s.nextLag) || !s.joined || !s.lagging.CompareAndSwap(false, true) {
		return
	}
	s.nextLag = now.Add(lagInterval)
	var inputs []*inputView
	topics := make(map[string]bool)
	for _, t := range s.tasks {
		for _, in := range t.view.inputs {
			inputs = append(inputs, in)
			topics[in.topic] = true
		}
	}
	if len(topics) == 0 {
		// A member without tasks has nothing to be behind in, but still has to see its brokers.
		for _, topic := range s.e.p.sourceTopics() {
			topics[topic] = true
		}
	}
	names := make([]string, 0, len(topics))
	for topic := range topics {
		names = append(names, topic)
	}
	s.async.Add(1)
	go func() {
		defer s.async.Done()
		defer s.lagging.Store(false)
		s.askEnds(names, inputs)
	}()
}

func (s *session) askEnds(topics []string, inputs []*inputView) {
	ctx, cancel := context.WithTimeout(s.ctx, lagTimeout)
	defer cancel()
	asked := time.Now()
	listed, err := s.adm.ListCommittedOffsets(ctx, topics...)
	if err != nil {
		return // it shows as silence
	}
	all := true
	for _, in := range inputs {
		end, ok := listed.Lookup(in.topic, in.partition)
		if !ok || end.Err != nil {
			all = false
			continue
		}
		in.sawEnd(end.Offset)
	}
	if all && answered(listed) {
		s.e.board.sawBrokers(asked)
	}
}

// answered tells whether any partition was listed without an error.
func answered(listed kadm.ListedOffsets) bool {
	any := false
	listed.Each(func(o kadm.ListedOffset) { any = any || o.Err == nil })
	return any
}
