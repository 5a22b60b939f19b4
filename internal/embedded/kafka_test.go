//go:build kafka

package embedded

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/internal/kafkatest"
)

// TestTopicConfigsAreKafkas compares the table of topic configurations, and Kafka's default values with what the table
// allows, with a real broker.
func TestTopicConfigsAreKafkas(t *testing.T) {
	brokers := kafkatest.Brokers(t)
	topic := kafkatest.CreateTopic(t, brokers, "any", 1, nil)
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	rs, err := kadm.NewClient(cl).DescribeTopicConfigs(testContext(t), topic)
	if err != nil {
		t.Fatal(err)
	}
	known := make(map[string]bool)
	for _, c := range rs[0].Configs {
		known[c.Key] = true
		if why := badTopicConfig(c.Key, c.Value); why != "" {
			t.Errorf("Kafka has %s=%s: %s", c.Key, c.MaybeValue(), why)
		}
	}
	for name := range topicConfigs {
		if !known[name] {
			t.Errorf("Kafka does not know %s", name)
		}
	}
}
