package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"go.uber.org/zap"
)

// layout is what a session knows about its topics: checked before it joins.
type layout struct {
	partitions map[string]int32         // of every source, sink and changelog topic
	ids        map[string]kadm.TopicID  // of the same
	tasks      []int32                  // how many tasks each sub-topology has
	retention  map[string]time.Duration // delete.retention.ms of each changelog
	created    map[string]bool          // internal topics made just now
	discarded  map[kadm.TopicID]bool    // changelogs that a reset deleted
	mends      map[string]mending       // producers whose lost markers are being written, by transactional id
}

// defaultDeleteRetention is Kafka's default of delete.retention.ms.
const defaultDeleteRetention = 24 * time.Hour

const (
	connectBackoffFirst = 200 * time.Millisecond
	connectBackoffLimit = 5 * time.Second
	adminTimeout        = 10 * time.Second
	warnInterval        = 5 * time.Second
	// A topic that a broker does not know is asked for again before it counts as missing.
	missingTries = 10
	missingPause = 300 * time.Millisecond
)

// prepareTopics checks all topics and makes the internal ones. While no broker answers it keeps trying.
func (s *session) prepareTopics(ctx context.Context) (*layout, error) {
	backoff, warned := connectBackoffFirst, time.Time{}
	for {
		s.e.beat()
		tryCtx, cancel := context.WithTimeout(ctx, adminTimeout)
		l, err := s.checkTopics(tryCtx)
		cancel()
		var typed *Error
		if err == nil || errors.As(err, &typed) || ctx.Err() != nil {
			return l, err
		}
		if time.Since(warned) >= warnInterval {
			warned = time.Now()
			s.log.Warn("cannot check the topics; is a broker there? trying again",
				zap.Strings("brokers", s.e.cfg.Brokers), zap.Error(err))
		}
		if !sleep(ctx, backoff) {
			return nil, ctx.Err()
		}
		backoff = min(2*backoff, connectBackoffLimit)
	}
}

func (s *session) checkTopics(ctx context.Context) (*layout, error) {
	p := s.e.p
	control, stop := s.readControlBeside(ctx)
	defer stop()
	var user, sinks []string
	internal := map[string]bool{}
	for _, sub := range p.Subs {
		for _, src := range sub.Sources {
			if src.Internal {
				internal[src.Topic] = true
			} else {
				user = append(user, src.Topic)
			}
		}
		sinks = append(sinks, sub.Sinks...)
	}
	sinks = slices.DeleteFunc(sinks, func(t string) bool { return internal[t] })
	l := &layout{
		partitions: map[string]int32{}, ids: map[string]kadm.TopicID{},
		retention: map[string]time.Duration{}, created: map[string]bool{},
	}
	if err := s.describe(ctx, l, append(user, sinks...)); err != nil {
		return nil, err
	}
	want, err := p.plan(l.partitions)
	if err != nil {
		return nil, err
	}
	l.tasks = want.tasks
	if err := s.checkFollowed(ctx, l); err != nil {
		return nil, err
	}
	ctl, err := control()
	if err != nil {
		return nil, err
	}
	if l.discarded, err = ctl.checkReset(p.App); err != nil {
		return nil, err
	}
	l.mends = s.mendsOf(ctl)
	want.topics = append(want.topics, controlTopic(p.App))
	found, err := s.findInternal(ctx, want.topics, recordedTopics(ctl))
	if err != nil {
		return nil, err
	}
	shape := p.shape(want.tasks)
	shape.identify(func(topic string) string { return idText(l.ids[topic]) })
	compat, err := s.checkShape(ctx, ctl, shape, found)
	if err != nil {
		return nil, err
	}
	if err := s.ensureInternal(ctx, l, want.topics, found); err != nil {
		return nil, err
	}
	if err := compat.record(ctx, l); err != nil {
		return nil, err
	}
	if !s.e.weakTxnLogged && s.e.cfg.ExactlyOnce {
		s.e.weakTxnLogged = true
		s.checkTransactionVersion(ctx)
	}
	return l, nil
}

// describe loads the named topics into l. A topic that was made a moment ago may not be known everywhere yet: it is
// looked for a few times before it counts as missing.
func (s *session) describe(ctx context.Context, l *layout, topics []string) error {
	if len(topics) == 0 {
		return nil
	}
	for try := 0; ; try++ {
		meta, err := metadata(ctx, s.adm, topics)
		if err != nil {
			return err
		}
		var missing []string
		for _, t := range topics {
			d, ok := meta.Topics[t]
			switch {
			case !ok || errors.Is(d.Err, kerr.UnknownTopicOrPartition):
				missing = append(missing, t)
			case d.Err != nil:
				if err := authError(d.Err, t, "describe the topic"); err != nil {
					return err
				}
				return fmt.Errorf("engine: topic %q: %w", t, d.Err)
			default:
				l.partitions[t], l.ids[t] = int32(len(d.Partitions)), d.ID
			}
		}
		if len(missing) == 0 {
			return nil
		}
		if try == missingTries {
			return &Error{
				Kind: ErrMissingTopic, Topic: missing[0], Partition: -1,
				Detail: fmt.Sprintf("missing on %s: %s", strings.Join(s.e.cfg.Brokers, ","), strings.Join(missing, ", ")),
				Hint:   "create it, or correct the name or the brokers",
			}
		}
		if !sleep(ctx, missingPause) {
			return ctx.Err()
		}
	}
}

// metadata asks for topics. When access is denied it finds out to which.
func metadata(ctx context.Context, adm *kadm.Client, topics []string) (kadm.Metadata, error) {
	meta, err := adm.Metadata(ctx, topics...)
	if err == nil {
		return meta, nil
	}
	denied := authError(err, topics[0], "describe the topic")
	if denied == nil {
		return meta, fmt.Errorf("engine: ask for topics: %w", err)
	}
	for _, t := range topics {
		_, err := adm.Metadata(ctx, t)
		if err := authError(err, t, "describe the topic"); err != nil {
			return meta, err
		}
	}
	return meta, denied
}

// internalTopic is an internal topic as it should be.
type internalTopic struct {
	name       string
	partitions int32
	config     map[string]string
	changelog  bool
}

// topicPlan is what follows from a program and the partition counts of the user's topics.
type topicPlan struct {
	tasks  []int32 // of each sub-topology
	topics []internalTopic
}

// plan works out the task count of every sub-topology and with it the internal topics. have holds the partition counts
// of the user's topics.
func (p *Program) plan(have map[string]int32) (*topicPlan, error) {
	tasks := make([]int32, len(p.Subs))
	index := make(map[string]int, len(p.Subs))
	for i, sub := range p.Subs {
		index[sub.Name] = i
	}
	for i, sub := range p.Subs {
		n, err := sub.declaredTasks(have)
		if err != nil {
			return nil, err
		}
		tasks[i] = n
	}
	// What is left reads repartition topics only: it takes the count of what feeds it, through any chain of those.
	for range p.Subs {
		for i, sub := range p.Subs {
			if tasks[i] > 0 {
				continue
			}
			var n int32
			known := true
			for _, src := range sub.Sources {
				for _, feeder := range src.FedBy {
					f, ok := index[feeder]
					if f == i && ok {
						continue // a loop to itself adds nothing
					}
					if !ok || tasks[f] == 0 {
						known = false
						break
					}
					n = max(n, tasks[f])
				}
			}
			if known {
				tasks[i] = n
			}
		}
	}
	out := &topicPlan{tasks: tasks}
	for i, sub := range p.Subs {
		if tasks[i] == 0 {
			return nil, &Error{
				Kind: ErrPartitionMismatch, Topic: sub.Sources[0].Topic, Partition: -1,
				Detail: fmt.Sprintf("the partition count of sub-topology %q follows from nothing", sub.Name),
				Hint:   "declare the number of partitions of its repartition topic",
			}
		}
		for _, src := range sub.Sources {
			if src.Internal {
				out.topics = append(out.topics, internalTopic{
					name: src.Topic, partitions: tasks[i],
					config: map[string]string{"cleanup.policy": "delete", "retention.ms": "-1"},
				})
			}
		}
		for _, store := range sub.Stores {
			if store.Changelog != "" {
				out.topics = append(out.topics, internalTopic{
					name: store.Changelog, partitions: tasks[i], config: store.Config, changelog: true,
				})
			}
		}
	}
	return out, nil
}

// declaredTasks returns the task count that the user's topics and declared counts of the sub-topology agree on, or 0
// when it has none of either.
func (sub *Sub) declaredTasks(have map[string]int32) (int32, error) {
	var n int32
	equal := true
	var counts []string
	first := ""
	for _, src := range sub.Sources {
		c := src.Partitions
		if !src.Internal {
			c = have[src.Topic]
		}
		if c == 0 {
			continue
		}
		counts = append(counts, fmt.Sprintf("%s has %d", src.Topic, c))
		equal = equal && (n == 0 || n == c)
		n = max(n, c)
		if first == "" {
			first = src.Topic
		}
	}
	if !equal {
		return 0, &Error{
			Kind: ErrPartitionMismatch, Topic: first, Partition: -1,
			Detail: fmt.Sprintf("the inputs of sub-topology %q must have the same number of partitions: %s",
				sub.Name, strings.Join(counts, ", ")),
			Hint: "recreate the smaller topic, or repartition one of the streams",
		}
	}
	return n, nil
}

// findInternal looks for internal topics: those that are needed, and those that are recorded.
func (s *session) findInternal(
	ctx context.Context, needed []internalTopic, recorded []string,
) (kadm.TopicDetails, error) {
	names := recorded
	for _, t := range needed {
		names = append(names, t.name)
	}
	slices.Sort(names)
	meta, err := metadata(ctx, s.adm, slices.Compact(names))
	return meta.Topics, err
}

// ensureInternal creates the internal topics that are missing among those found, and checks those that exist.
func (s *session) ensureInternal(
	ctx context.Context, l *layout, topics []internalTopic, found kadm.TopicDetails,
) error {
	names := make([]string, len(topics))
	for i, t := range topics {
		names[i] = t.name
	}
	for _, t := range topics {
		d, ok := found[t.name]
		if ok && !errors.Is(d.Err, kerr.UnknownTopicOrPartition) {
			continue
		}
		if err := s.createTopic(ctx, l, t); err != nil {
			return err
		}
	}
	if err := s.describe(ctx, l, names); err != nil {
		return err
	}
	for _, t := range topics {
		if got := l.partitions[t.name]; got != t.partitions {
			return &Error{
				Kind: ErrPartitionMismatch, Topic: t.name, Partition: -1,
				Detail: fmt.Sprintf("the internal topic has %d partitions and needs %d", got, t.partitions),
				Hint:   "the number of partitions of an input changed: reset the application, then start it again",
			}
		}
	}
	return s.checkConfigs(ctx, l, topics, names)
}

// Changelogs and the control topic are stamped by the broker: it refuses records of a clock that is ahead of its own by an
// hour, and would let a process with such a clock commit nothing.
const (
	timestampType = "message.timestamp.type"
	brokerTime    = "LogAppendTime"
)

func (s *session) createTopic(ctx context.Context, l *layout, t internalTopic) error {
	config := make(map[string]*string, len(t.config))
	for k, v := range t.config {
		config[k] = kadm.StringPtr(v)
	}
	if _, given := config[timestampType]; !given && (t.changelog || t.name == ControlTopic(s.e.p.App)) {
		config[timestampType] = kadm.StringPtr(brokerTime)
	}
	rf := s.e.cfg.ReplicationFactor
	if rf == 0 {
		rf = -1
	}
	resp, err := s.adm.CreateTopics(ctx, t.partitions, rf, config, t.name)
	if denied := authError(err, t.name, "create the topic"); denied != nil {
		return denied
	}
	if err != nil {
		return fmt.Errorf("engine: create topic %q: %w", t.name, err)
	}
	r := resp[t.name]
	switch {
	case r.Err == nil:
		l.created[t.name] = true
		s.log.Info("created internal topic", zap.String("topic", t.name), zap.Int32("partitions", t.partitions))
		return nil
	case errors.Is(r.Err, kerr.TopicAlreadyExists):
		return nil // another member was faster
	}
	if err := authError(r.Err, t.name, "create the topic"); err != nil {
		return err
	}
	if errors.Is(r.Err, kerr.InvalidReplicationFactor) || errors.Is(r.Err, kerr.InvalidConfig) ||
		errors.Is(r.Err, kerr.PolicyViolation) || errors.Is(r.Err, kerr.InvalidTopicException) {
		return &Error{
			Kind: ErrTopicConfig, Topic: t.name, Partition: -1, Detail: r.ErrMessage, Err: r.Err,
			Hint: "correct the replication factor or the store's topic settings, or create the topic by hand",
		}
	}
	return fmt.Errorf("engine: create topic %q: %w", t.name, r.Err)
}

// checkConfigs refuses internal topics whose cleanup policy would lose what they are there to keep.
func (s *session) checkConfigs(ctx context.Context, l *layout, topics []internalTopic, names []string) error {
	resources, err := s.adm.DescribeTopicConfigs(ctx, names...)
	if denied := authError(err, names[0], "describe the topic's configuration"); denied != nil {
		return denied
	}
	if err != nil {
		return fmt.Errorf("engine: ask for topic configurations: %w", err)
	}
	for _, t := range topics {
		r, err := resources.On(t.name, nil)
		if err == nil {
			err = r.Err
		}
		if err != nil {
			// Only the check is lost. Retention is then assumed to be the default.
			s.log.Warn("cannot check the configuration of an internal topic", zap.String("topic", t.name), zap.Error(err))
			l.retention[t.name] = defaultDeleteRetention
			continue
		}
		policy, retention := "", defaultDeleteRetention
		for _, c := range r.Configs {
			switch c.Key {
			case "cleanup.policy":
				policy = c.MaybeValue()
			case "delete.retention.ms":
				if ms, err := strconv.ParseInt(c.MaybeValue(), 10, 64); err == nil {
					retention = time.Duration(min(ms, int64(1<<53)/1e6)) * time.Millisecond
				}
			}
		}
		l.retention[t.name] = retention
		want := t.config["cleanup.policy"]
		if want == "" || policy == "" || samePolicy(policy, want) {
			continue
		}
		return &Error{
			Kind: ErrTopicConfig, Topic: t.name, Partition: -1,
			Detail: fmt.Sprintf("cleanup.policy is %q and must be %q", policy, want),
			Hint:   "set it with kafka-configs.sh, or reset the application so that the topic is made anew",
		}
	}
	return nil
}

// samePolicy compares two comma-separated lists as sets.
func samePolicy(a, b string) bool {
	split := func(s string) []string {
		parts := strings.Split(strings.ReplaceAll(s, " ", ""), ",")
		slices.Sort(parts)
		return parts
	}
	return slices.Equal(split(a), split(b))
}

// checkTransactionVersion says so once when the brokers are too old for the full promise.
func (s *session) checkTransactionVersion(ctx context.Context) {
	versions, err := s.adm.ApiVersions(ctx)
	if err != nil {
		s.log.Debug("cannot ask for API versions", zap.Error(err))
		return
	}
	for _, v := range versions {
		level := int16(0)
		if v.Err != nil {
			continue
		}
		for _, f := range v.Raw().FinalizedFeatures {
			if f.Name == "transaction.version" {
				level = f.MaxVersionLevel
			}
		}
		if level < 2 {
			s.log.Warn("transaction.version of the brokers is below 2: exactly-once is weaker here, because a delayed "+
				"request of an earlier transaction can reach a later one (KIP-890)", zap.Int16("level", level))
		}
		return
	}
}
