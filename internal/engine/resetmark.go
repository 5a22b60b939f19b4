package engine

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

// controlReset is the key of the record of resets in the control topic.
const controlReset = "reset"

// ErrResetUnfinished says that a reset of the application was begun and not finished.
var ErrResetUnfinished = errors.New("a reset was begun and not finished")

// resetMark is the record of the last reset. While it has no end, no member starts: some topics may be gone and the
// offsets still be old, which would lose state without a word.
type resetMark struct {
	Version int       `json:"version"`
	Begun   time.Time `json:"begun"`
	Done    time.Time `json:"done,omitzero"`
	// Shape is the topology whose topics are reset: the record of it is forgotten with the reset, and a second run of
	// the command must find the same topics.
	Shape *shape `json:"topology,omitempty"`
	// Discarded are the ids of changelogs that resets have deleted, oldest first. Local state that belongs to one of
	// them is not the last copy of anything, wherever it is found.
	Discarded []string `json:"discarded,omitempty"`
}

const (
	resetMarkVersion = 1
	maxDiscarded     = 4096
)

var errResetMark = errors.New("engine: the record of resets cannot be read")

func decodeResetMark(b []byte) (*resetMark, error) {
	if len(b) == 0 {
		return nil, nil
	}
	m := &resetMark{}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("%w: %w", errResetMark, err)
	}
	if m.Version != resetMarkVersion {
		return nil, fmt.Errorf("%w: its version is %d, and this program reads %d", errResetMark, m.Version, resetMarkVersion)
	}
	return m, nil
}

func (m *resetMark) encode() ([]byte, error) {
	b, err := json.Marshal(m)
	if err == nil && len(b) > maxShape && m.Shape != nil {
		without := *m
		without.Shape = nil
		b, err = json.Marshal(&without)
	}
	if err != nil {
		return nil, fmt.Errorf("engine: record the reset: %w", err)
	}
	return b, nil
}

// discard adds ids, and forgets the oldest of too many.
func (m *resetMark) discard(ids ...string) {
	for _, id := range ids {
		if id != "" && !slices.Contains(m.Discarded, id) {
			m.Discarded = append(m.Discarded, id)
		}
	}
	m.Discarded = m.Discarded[max(0, len(m.Discarded)-maxDiscarded):]
}

// checkReset refuses to start in the middle of a reset, and returns the ids of the changelogs that resets deleted.
func (c *control) checkReset(app string) (map[kadm.TopicID]bool, error) {
	m, err := decodeResetMark(c.values[controlReset])
	if err != nil {
		return nil, &Error{
			Kind: ErrTopologyChanged, Topic: ControlTopic(app), Partition: -1, Err: err,
			Hint: "start the version of the program that wrote it",
		}
	}
	if m == nil {
		return nil, nil
	}
	if m.Done.IsZero() {
		return nil, &Error{
			Kind: ErrResetUnfinished, Topic: ControlTopic(app), Partition: -1,
			Detail: "begun at " + m.Begun.UTC().Format(time.RFC3339),
			Hint:   "some topics may be gone already: wait for it, or run the reset again; it takes up where it ended",
		}
	}
	discarded := make(map[kadm.TopicID]bool, len(m.Discarded))
	for _, text := range m.Discarded {
		var id kadm.TopicID
		if b, err := hex.DecodeString(text); err == nil && len(b) == len(id) {
			discarded[kadm.TopicID(b)] = true
		}
	}
	return discarded, nil
}
