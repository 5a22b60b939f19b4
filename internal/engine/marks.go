package engine

import (
	"encoding/base64"
	"fmt"
	"hash/fnv"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
)

// A committed offset says nothing by itself about the topic that it is of: in a topic that was deleted and made anew it
// points into other records, and nobody notices. So what is committed beside each offset ends in a mark: the id of the
// topic, and which inputs the task had, whose offsets were all committed together. An offset that another tool has set
// has no mark, and is taken as it is.
const (
	markSeparator = ";"
	markBytes     = 22 + 8 // the id in base64, the inputs in hex
)

// mark is what a committed offset tells of its origin.
type mark struct {
	ours   bool
	id     kadm.TopicID
	inputs string
}

// markOf renders the mark of an offset of a task of sub.
func markOf(id kadm.TopicID, inputs string) string {
	return markSeparator + base64.RawURLEncoding.EncodeToString(id[:]) + inputs
}

// inputsOf identifies the inputs of a sub-topology.
func inputsOf(sub *Sub) string {
	h := fnv.New32a()
	for _, src := range sub.Sources {
		_, _ = h.Write([]byte(src.Topic + "\n")) // never fails
	}
	return fmt.Sprintf("%08x", h.Sum32())
}

// cutMark takes the mark off an offset's metadata.
func cutMark(metadata string) (string, mark) {
	at := strings.LastIndex(metadata, markSeparator)
	if at < 0 || len(metadata)-at-1 != markBytes {
		return metadata, mark{}
	}
	text := metadata[at+1:]
	id, err := base64.RawURLEncoding.DecodeString(text[:22])
	if err != nil {
		return metadata, mark{}
	}
	m := mark{ours: true, inputs: text[22:]}
	copy(m.id[:], id)
	return metadata[:at], m
}

// checkTopicID refuses an offset that was committed for another topic of the same name.
func (s *session) checkTopicID(topic string, partition int32, m mark) error {
	is := s.layout.ids[topic]
	if !m.ours || m.id == (kadm.TopicID{}) || is == (kadm.TopicID{}) || m.id == is {
		return nil
	}
	e := &Error{
		Kind: ErrTopicChanged, Topic: topic, Partition: partition,
		Detail: "it was deleted and created again since its offset was committed",
		Hint: "results so far came from the old topic: reset the application; or, to keep its state and go on with the new " +
			"topic, set the group's offsets of the topic with kafka-consumer-groups.sh --reset-offsets",
	}
	if src := s.source(topic); src != nil && src.Internal {
		e.Hint = "what waited in the old topic is lost: reset the application; or go on without it by deleting the group's " +
			"offsets of the topic with kafka-consumer-groups.sh --delete-offsets"
	}
	return e
}
