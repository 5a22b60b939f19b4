package embedded

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/twmb/franz-go/pkg/kfake"
	"go.uber.org/zap"
)

const (
	defaultPartitions = 4
	maxBrokers        = 16

	// compactionBackoff, in milliseconds, is a hundred years: far enough never to come, near enough not to overflow
	// when it is turned into nanoseconds.
	compactionBackoff = "3155760000000"
	// segmentBytes is small because a log gives space back by whole segments.
	segmentBytes = "8388608"
)

// Options say how the broker is started. The zero value is one broker on a random port with its data in memory.
type Options struct {
	// Port is the TCP port on 127.0.0.1 of the first broker; further brokers take the ports after it. 0, the default,
	// takes random free ports.
	Port int
	// Brokers is how many brokers the cluster has, at most 16. 0 means 1.
	Brokers int
	// Dir keeps the data in this directory, which is created with mode 0700. Empty, the default, keeps it in memory.
	Dir string
	// NoSync leaves out the sync of each batch when Dir is set: faster by an order of magnitude on most disks, and
	// what was acknowledged last may be lost when the machine, not just the process, goes down.
	NoSync bool
	// Topics are made at the start unless they exist.
	Topics []Topic
	// AutoCreate lets a client's metadata request create a topic. Off by default.
	AutoCreate bool
	// Partitions is the number of partitions of topics that are made without one. 0 means 4.
	Partitions int
	// AllowNullKeys accepts records without a key in compacted topics, which Kafka refuses. It saves the broker a look
	// into the batches of those topics.
	AllowNullKeys bool
	// Logger gets the banner and the broker's warnings and errors. Nil means none.
	Logger *zap.Logger
	// Extra are applied to the cluster after all other options. They are for fault tests in this repository, for
	// example a listener on a virtual network.
	Extra []kfake.Opt
}

// Topic is a topic to be made when the broker starts.
type Topic struct {
	// Name is the topic's name.
	Name string
	// Partitions is the number of its partitions. 0 means [Options.Partitions].
	Partitions int
	// Configs are Kafka topic configurations, for example "cleanup.policy": "compact".
	Configs map[string]string
}

// Broker is a running broker, or a small cluster of them. Its methods may be called by many goroutines.
type Broker struct {
	cluster *kfake.Cluster
	addrs   []string
	lock    *dirLock // nil in memory
	log     *clusterLog

	closeOnce sync.Once
	closeErr  error
}

// Start starts a broker and returns when it accepts connections and has its topics. The errors are about what the
// caller gave: a port or directory in use, a directory that cannot be made, a topic that cannot be as it should.
func Start(o Options) (*Broker, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	log := o.Logger
	if log == nil {
		log = zap.NewNop()
	}
	b := &Broker{log: &clusterLog{log: log}}
	opts := []kfake.Opt{
		kfake.ClusterID("tailrace-embedded"),
		kfake.DefaultNumPartitions(cmp.Or(o.Partitions, defaultPartitions)),
		kfake.WithLogger(b.log),
		kfake.BrokerConfigs(map[string]string{
			"log.cleaner.backoff.ms": compactionBackoff,
			"log.segment.bytes":      segmentBytes,
		}),
	}
	n := cmp.Or(o.Brokers, 1)
	if o.Port == 0 {
		opts = append(opts, kfake.NumBrokers(n))
	} else {
		ports := make([]int, n)
		for i := range ports {
			ports[i] = o.Port + i
		}
		opts = append(opts, kfake.Ports(ports...))
	}
	if o.AutoCreate {
		opts = append(opts, kfake.AllowAutoTopicCreation())
	}
	if o.Dir != "" {
		lock, err := lockDir(o.Dir)
		if err != nil {
			return nil, err
		}
		b.lock = lock
		opts = append(opts, kfake.DataDir(filepath.Join(o.Dir, "data")))
		if !o.NoSync {
			opts = append(opts, kfake.SyncWrites())
		}
	}
	cluster, err := kfake.NewCluster(append(opts, o.Extra...)...)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("embedded: start the broker: %w", err), b.lock.release())
	}
	b.cluster = cluster
	b.addrs = cluster.ListenAddrs()
	fenceConfigs(cluster)
	if !o.AllowNullKeys {
		fenceNullKeys(cluster)
	}
	if err := b.makeTopics(o); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	if err := b.lock.describe(b.addrs); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	log.Warn("embedded broker: for trying out and for tests, not for production",
		zap.Strings("addrs", b.addrs), zap.String("data", cmp.Or(o.Dir, "memory")))
	return b, nil
}

func (o *Options) validate() error {
	switch {
	case o.Port < 0 || o.Port+cmp.Or(o.Brokers, 1)-1 > 65535:
		return fmt.Errorf("embedded: port %d is not in 0 to 65535", o.Port)
	case o.Brokers < 0 || o.Brokers > maxBrokers:
		return fmt.Errorf("embedded: %d brokers: must be 1 to %d", o.Brokers, maxBrokers)
	case o.Partitions < 0:
		return fmt.Errorf("embedded: %d partitions: must be positive", o.Partitions)
	}
	for _, t := range o.Topics {
		if t.Partitions < 0 {
			return fmt.Errorf("embedded: topic %q: %d partitions: must be positive", t.Name, t.Partitions)
		}
		for k, v := range t.Configs {
			if why := badTopicConfig(k, &v); why != "" {
				return fmt.Errorf("embedded: topic %q: %s", t.Name, why)
			}
		}
	}
	return nil
}

// makeTopics makes the topics that are not there. One that is there, from an earlier run in the same directory, must
// have the right number of partitions: records of a key would go to another partition otherwise.
func (b *Broker) makeTopics(o Options) error {
	for _, t := range o.Topics {
		want := cmp.Or(t.Partitions, o.Partitions, defaultPartitions)
		if b.cluster.TopicInfo(t.Name) != nil {
			if have := len(b.cluster.PartitionInfos(t.Name)); have != want {
				return fmt.Errorf("embedded: topic %q has %d partitions in %s, not %d: use another directory or remove it",
					t.Name, have, o.Dir, want)
			}
			continue
		}
		if err := checkTopicName(t.Name); err != nil {
			return err
		}
		if err := b.cluster.CreateTopic(t.Name, int32(want), t.Configs); err != nil {
			return fmt.Errorf("embedded: create topic %q: %w", t.Name, err)
		}
	}
	return nil
}

// checkTopicName applies Kafka's rule for topic names.
func checkTopicName(name string) error {
	legal := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-'
	}
	if name == "" || name == "." || name == ".." || len(name) > 249 ||
		strings.ContainsFunc(name, func(r rune) bool { return !legal(r) }) {
		return fmt.Errorf("embedded: %q is not a topic name: use 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-'", name)
	}
	return nil
}

// Addrs are the brokers' addresses, each host:port. They stay the same until Close, and the slice is the caller's.
func (b *Broker) Addrs() []string { return slices.Clone(b.addrs) }

// Cluster is the cluster behind the broker, for fault tests: a control or fault that is added there comes after those
// of this package. It must not be used after Close.
func (b *Broker) Cluster() *kfake.Cluster { return b.cluster }

// Close stops the broker, writes what is left to the directory and gives the directory free. Clients see their
// connections closed. Calls after the first do nothing and return the same error, which tells what could not be
// written.
func (b *Broker) Close() error {
	b.closeOnce.Do(func() {
		b.log.collect()
		b.cluster.Close()
		b.closeErr = errors.Join(b.log.collected(), b.lock.release())
	})
	return b.closeErr
}

// makeDir makes dir for the owner alone. A directory that exists keeps its mode if nobody else can write to it.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("embedded: make the data directory: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("embedded: look at the data directory: %w", err)
	}
	if info.Mode().Perm()&0o022 != 0 && filepath.Separator == '/' {
		return fmt.Errorf("embedded: data directory %s may be written by others (mode %v): chmod it to 0700",
			dir, info.Mode().Perm())
	}
	// The files in it are made world readable by kfake, so nobody else may get through the directory above them.
	data := filepath.Join(dir, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return fmt.Errorf("embedded: make the data directory: %w", err)
	}
	if err := os.Chmod(data, 0o700); err != nil {
		return fmt.Errorf("embedded: make the data directory private: %w", err)
	}
	return nil
}
