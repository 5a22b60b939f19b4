package processor

import (
	"errors"
	"fmt"
	"strconv"

	"tailrace.dev/internal/task"
	"tailrace.dev/serde"
)

// ToTopic adds a sink: the node's records are written to the topic, partitioned by Kafka's default hash of the key.
func ToTopic[K, V any](p *Node[K, V], topic *Topic[K, V]) {
	if topic == nil {
		p.b.Fail("sink", "the topic is nil")
		return
	}
	m := addSink(p, topic.name, topic, topic.err)
	p.outs = append(p.outs, func(t *Task) (Handler[K, V], error) {
		return guard(t, m, sinkHandler(t, topic.name, topic.key, topic.value, topic.to)), nil
	})
}

// ToRepartition adds a sink to an internal topic; FromRepartition reads it. Records without a key are dropped and
// counted, because no partition is theirs. (Kafka Streams: KStream#repartition.)
func ToRepartition[K, V any](p *Node[K, V], r *Repartition[K, V]) {
	if r == nil {
		p.b.Fail("repartition", "the repartition topic is nil")
		return
	}
	m := addSink(p, r.name, r, r.err)
	m.internal = &internalTopic{r.name, r.partitions}
	p.outs = append(p.outs, func(t *Task) (Handler[K, V], error) {
		write := sinkHandler(t, RepartitionTopic(t.app, r.name), r.key, r.value, nil)
		return guard(t, m, func(rec Record[K, V]) error {
			if rec.NoKey && !r.keepNoKey {
				t.Drop(DropNoPartition)
				return nil
			}
			return write(rec)
		}), nil
	})
}

// ErrNotAChoice is returned by the processing of a record that a chooser sent to a topic which is not among those
// declared.
var ErrNotAChoice = errors.New("processor: the chosen topic is not among those declared for the sink")

// ToChosen adds a sink that writes each record to the topic that choose returns, which must be one of among; nil drops
// the record and counts it.
func ToChosen[K, V any](p *Node[K, V], choose func(r Record[K, V]) *Topic[K, V], among ...*Topic[K, V]) {
	if choose == nil || len(among) == 0 {
		p.b.Fail("sink", "give a function that chooses and the topics that it chooses among")
		return
	}
	m := p.b.addNode("sink", []*node{p.meta})
	for _, topic := range among {
		if topic == nil {
			p.b.Fail("sink", "a topic is nil")
			return
		}
		p.b.declareTopic("sink", topic.name, topic, topic.err)
		m.choices = append(m.choices, topic.name)
	}
	p.outs = append(p.outs, func(t *Task) (Handler[K, V], error) {
		writers := make(map[*Topic[K, V]]Handler[K, V], len(among))
		for _, topic := range among {
			writers[topic] = sinkHandler(t, topic.name, topic.key, topic.value, topic.to)
		}
		return guard(t, m, func(r Record[K, V]) error {
			topic := choose(r)
			if topic == nil {
				t.Drop(DropNoTopic)
				return nil
			}
			w, ok := writers[topic]
			if !ok {
				return fmt.Errorf("%w: %q; add it to the sink's list", ErrNotAChoice, topic.name)
			}
			return w(r)
		}), nil
	})
}

// ErrNoTime is the error of a record that reaches a sink with a time before 1970, such as the zero time, which brokers
// refuse.
var ErrNoTime = errors.New("processor: a record has no time")

// noTimeMillis is Kafka's mark of a record without a time, which may pass from topic to topic.
const noTimeMillis = -1

func addSink[K, V any](p *Node[K, V], name string, descriptor any, err error) *node {
	m := p.b.addNode("sink", []*node{p.meta})
	m.topic, m.label = name, "sink "+name
	for _, n := range p.b.nodes {
		if n != m && n.label == m.label {
			m.label += "-" + strconv.Itoa(m.id)
			break
		}
	}
	p.b.declareTopic("sink", name, descriptor, err)
	return m
}

// sinkHandler encodes records into the task's arena and queues them for the topic.
func sinkHandler[K, V any](
	t *Task, topic string, key serde.Serde[K], value serde.Serde[V], to func(k K, v V, partitions int) int,
) Handler[K, V] {
	return func(r Record[K, V]) error {
		out := task.Output{
			Topic: topic, Partition: task.AnyPartition, TimeMillis: r.Time.UnixMilli(), Headers: r.Headers,
		}
		if out.TimeMillis < noTimeMillis {
			return fmt.Errorf("%w: record for topic %q at %v: set Record.Time", ErrNoTime, topic, r.Time)
		}
		var err error
		if !r.NoKey {
			if out.Key, err = key.Append(t.arena.tail(), r.Key); err != nil {
				return fmt.Errorf("encode key for topic %q: %w", topic, err)
			}
			out.Key = t.arena.keep(out.Key) // never nil, which would mean no key
		}
		if !r.Tombstone {
			if out.Value, err = value.Append(t.arena.tail(), r.Value); err != nil {
				return fmt.Errorf("encode value for topic %q: %w", topic, err)
			}
			out.Value = t.arena.keep(out.Value)
		}
		if to != nil {
			k, v := r.Key, r.Value
			out.Choose = func(partitions int) int { return to(k, v, partitions) }
		}
		t.outputs = append(t.outputs, out)
		return nil
	}
}

// arena is where outputs are encoded: slices of larger chunks, so that an output costs no allocation of its own. What
// was handed out stays valid for as long as it is referred to.
type arena struct{ chunk []byte }

const (
	arenaChunkBytes = 64 << 10
	arenaTailBytes  = 1 << 10 // room that tail guarantees, so that small encodings never move
)

// tail returns an empty slice to append an encoding to.
func (a *arena) tail() []byte {
	if cap(a.chunk)-len(a.chunk) < arenaTailBytes {
		a.chunk = make([]byte, 0, arenaChunkBytes)
	}
	return a.chunk[len(a.chunk):len(a.chunk):cap(a.chunk)]
}

// keep claims what was appended to the last tail, and cuts its spare capacity. An encoding that outgrew the tail lies
// elsewhere by then and is returned as it is.
func (a *arena) keep(b []byte) []byte {
	at := len(a.chunk)
	if len(b) > 0 && at+len(b) <= cap(a.chunk) && &a.chunk[:at+1][at] == &b[0] {
		a.chunk = a.chunk[:at+len(b)]
	}
	if b == nil {
		return []byte{} // an encoding of no bytes; nil would mean that there is none
	}
	return b[:len(b):len(b)]
}
