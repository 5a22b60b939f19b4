package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// NewTopic is a topic to be created.
type NewTopic struct {
	Name              string
	Partitions        int32
	ReplicationFactor int16
	Config            map[string]string
}

// EnsureTopics creates the topics that do not exist yet, and leaves those that do as they are.
func EnsureTopics(ctx context.Context, brokers []string, opts []kgo.Opt, topics []NewTopic) error {
	cl, err := kgo.NewClient(append(append([]kgo.Opt{}, opts...), kgo.SeedBrokers(brokers...))...)
	if err != nil {
		return fmt.Errorf("engine: create topics: %w", err)
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	var errs []error
	for _, t := range topics {
		config := make(map[string]*string, len(t.Config))
		for k, v := range t.Config {
			config[k] = &v
		}
		_, err := adm.CreateTopic(ctx, t.Partitions, t.ReplicationFactor, config, t.Name)
		if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
			errs = append(errs, fmt.Errorf("engine: create topic %q: %w", t.Name, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return awaitTopics(ctx, adm, topics)
}

// awaitTopics waits until the broker that answers knows the topics: a cluster makes them before all of it knows.
func awaitTopics(ctx context.Context, adm *kadm.Client, topics []NewTopic) error {
	names := make([]string, len(topics))
	for i, t := range topics {
		names[i] = t.Name
	}
	for {
		meta, err := adm.Metadata(ctx, names...)
		if err == nil {
			for _, d := range meta.Topics {
				err = errors.Join(err, d.Err)
				for _, p := range d.Partitions {
					err = errors.Join(err, p.Err)
				}
			}
			if err == nil {
				return nil
			}
		}
		if !sleep(ctx, 50*time.Millisecond) {
			return fmt.Errorf("engine: wait for the new topics: %w", err)
		}
	}
}
