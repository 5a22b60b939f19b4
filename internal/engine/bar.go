package engine

import (
	"errors"

	"github.com/twmb/franz-go/pkg/kgo"
)

// bar ends the session as soon as what lies before a batch that cannot be read is processed and committed. Whoever then
// moves the committed offset past the batch, as the error says, leaves out that batch and nothing else.
type bar struct {
	in   *input
	upTo int64
	err  error
}

// barred takes note of a batch that exceeds the limits, and tells whether there are records before it to be processed
// first. The client fetches nothing more of the partition.
func (s *session) barred(topic string, p *kgo.FetchPartition) bool {
	var big *kgo.ErrDecompressTooLarge
	if !errors.As(p.Err, &big) {
		return false
	}
	parts := s.inputs[topic]
	if int(p.Partition) >= len(parts) || parts[p.Partition] == nil {
		return true // another member will meet it
	}
	in := parts[p.Partition]
	if !in.t.running {
		in.dropped = true // it is fetched again, and met again
		return true
	}
	upTo := in.next
	if n := len(p.Records); n > 0 {
		upTo = max(upTo, p.Records[n-1].Offset+1)
	}
	if in.committed >= upTo {
		return false
	}
	s.bars = append(s.bars, bar{in, upTo, s.fetchError(topic, p.Partition, p.Err)})
	return true
}

// reachedBar returns the error of the first bar that all before it was committed of.
func (s *session) reachedBar() error {
	for _, b := range s.bars {
		parts := s.inputs[b.in.topic]
		if int(b.in.partition) < len(parts) && parts[b.in.partition] == b.in && b.in.committed >= b.upTo {
			return b.err
		}
	}
	return nil
}
