package processor

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"tailrace.dev/internal/embedded"
	"tailrace.dev/internal/engine"
)

// EmbeddedBroker is a Kafka broker in the process, for trying things out and for tests: it speaks the protocol to any
// client on this machine, transactions included, and is neither durable nor fast in the way that a real one is.
type EmbeddedBroker struct {
	b *embedded.Broker
}

// StartEmbedded starts an embedded broker on the loopback interface. Other processes reach it at its address. Close
// ends it.
func StartEmbedded(c EmbeddedConfig, log *zap.Logger) (*EmbeddedBroker, error) {
	if log == nil {
		log = zap.NewNop()
	}
	b, err := embedded.Start(embedded.Options{Port: c.Port, Dir: c.Dir, Logger: log})
	if err != nil {
		return nil, fmt.Errorf("processor: embedded broker: %w", err)
	}
	return &EmbeddedBroker{b}, nil
}

// Addrs returns the broker's addresses, for Config.Brokers.
func (b *EmbeddedBroker) Addrs() []string { return b.b.Addrs() }

// Close stops the broker. Data in a directory stays for the next start.
func (b *EmbeddedBroker) Close() error { return b.b.Close() }

// TopicSetup says how to create a topic.
type TopicSetup struct {
	// Name is the topic's name.
	Name string
	// Partitions is their number; at least 1.
	Partitions int
	// ReplicationFactor is 0 for the broker's default.
	ReplicationFactor int
	// Config holds topic settings by Kafka's names, such as cleanup.policy.
	Config map[string]string
}

// ensureTimeout bounds EnsureTopics.
const ensureTimeout = 30 * time.Second

// EnsureTopics creates the topics that do not exist yet, and leaves those that do as they are. It is for examples,
// tests and set-up programs: an App expects its topics to be there. kafka are client options, as in Config.Kafka.
func EnsureTopics(ctx context.Context, brokers []string, kafka []kgo.Opt, topics ...TopicSetup) error {
	ctx, cancel := context.WithTimeout(ctx, ensureTimeout)
	defer cancel()
	nts := make([]engine.NewTopic, 0, len(topics))
	for _, t := range topics {
		rf := int16(t.ReplicationFactor)
		if rf == 0 {
			rf = -1
		}
		nts = append(nts, engine.NewTopic{
			Name: t.Name, Partitions: int32(t.Partitions), ReplicationFactor: rf, Config: t.Config,
		})
	}
	return engine.EnsureTopics(ctx, brokers, kafka, nts)
}
