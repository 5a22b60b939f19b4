package engine

import (
	"context"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// The limits of what waits in the producer's memory. A producer that is over them blocks the workers, which is the
// back-pressure of a slow broker.
const (
	maxBufferedRecords = 200_000
	maxBufferedBytes   = 128 << 20
)

// baseOpts are the options of every client: the user's come before the engine's, so that these win, and after what is
// only another default.
func (e *Engine) baseOpts() []kgo.Opt {
	// Kafka's own producers do not compress by default either. Where the network is not the bottleneck, compression
	// costs more than it saves: the broker decompresses each batch to check it.
	opts := append([]kgo.Opt{kgo.ProducerBatchCompression(kgo.NoCompression())}, e.cfg.Kafka...)
	opts = append(opts,
		kgo.SeedBrokers(e.cfg.Brokers...),
		kgo.WithLogger(kafkaLog{e.log.Named("kafka").WithOptions(zap.IncreaseLevel(zapcore.WarnLevel))}),
		// The default of 5 s makes the first transaction on a fresh topic wait for that long.
		kgo.MetadataMinAge(250*time.Millisecond),
		kgo.MetadataMaxAge(time.Minute),
		kgo.RetryBackoffFn(retryBackoff),
		kgo.ConsiderMissingTopicDeletedAfter(time.Minute),
	)
	if n := e.cfg.MaxDecompressBytes; n > 0 {
		opts = append(opts, kgo.MaxDecompressBatchBytes(n))
	}
	if n := e.cfg.MaxRecordBytes; n > 0 {
		opts = append(opts, kgo.ProducerBatchMaxBytes(n))
	}
	return opts
}

// retryBackoff is how long the client waits before it asks again. The client's default goes up to five seconds, and so
// finds out that much later that a broker is back, or that another has taken over.
func retryBackoff(failures int) time.Duration {
	const first, most = 100 * time.Millisecond, time.Second
	d := min(first<<min(max(failures-1, 0), 10), most)
	return d*4/5 + rand.N(d/5)
}

// fetchOpts are the options of every client that reads.
func (e *Engine) fetchOpts() []kgo.Opt {
	opts := []kgo.Opt{
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// Never jump: a position that is out of range is an error, not a reason to read something else.
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		// Transaction markers own offsets; without them a position could not be told past the end of a transaction.
		kgo.KeepControlRecords(),
		// A fetch that waits keeps partitions that were added meanwhile from being asked for.
		kgo.FetchMaxWait(500 * time.Millisecond),
	}
	if n := e.cfg.FetchMaxBytes; n > 0 {
		opts = append(opts, kgo.FetchMaxBytes(n), kgo.BrokerMaxReadBytes(max(2*n, 100<<20)))
	}
	if n := e.cfg.FetchMaxPartitionBytes; n > 0 {
		opts = append(opts, kgo.FetchMaxPartitionBytes(n))
	}
	return opts
}

// plainOpts make the client beside the group member: administration, barriers, nothing transactional. A side write
// through the transactional producer would become part of a transaction that is under way.
func (e *Engine) plainOpts() []kgo.Opt {
	return append(e.baseOpts(),
		kgo.ClientID(e.p.App+"-admin"),
		e.metrics.hook("admin"),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerLinger(0),
	)
}

// memberOpts make the one client of a session: group member, consumer and transactional producer.
func (s *session) memberOpts() []kgo.Opt {
	e := s.e
	opts := append(e.baseOpts(), e.fetchOpts()...)
	opts = append(opts,
		kgo.ClientID(e.p.App),
		e.metrics.hook("member"),
		kgo.ConsumerGroup(e.p.App),
		kgo.ConsumeTopics(e.p.sourceTopics()...),
		kgo.Balancers(s.newGroupBalancer()),
		kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()), // replaced by adjustOffsets for each partition
		kgo.OnPartitionsAssigned(s.onAssigned),
		kgo.OnPartitionsRevoked(s.onRevoked),
		kgo.OnPartitionsLost(s.onLost),
		kgo.OnPartitionsCallbackBlocked(func(context.Context, *kgo.Client) { s.requestCommit() }),
		kgo.OnOffsetsFetched(s.onOffsets),
		kgo.AdjustFetchOffsetsFn(s.adjustOffsets),
		kgo.RecordPartitioner(partitioner{}),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.MaxBufferedRecords(maxBufferedRecords),
		kgo.MaxBufferedBytes(maxBufferedBytes),
	)
	if e.cfg.InstanceID != "" {
		opts = append(opts, kgo.InstanceID(e.cfg.InstanceID))
	}
	if e.cfg.SessionTimeout > 0 {
		opts = append(opts, kgo.SessionTimeout(e.cfg.SessionTimeout))
	}
	if e.cfg.HeartbeatInterval > 0 {
		opts = append(opts, kgo.HeartbeatInterval(e.cfg.HeartbeatInterval))
	}
	if e.cfg.RebalanceTimeout > 0 {
		opts = append(opts, kgo.RebalanceTimeout(e.cfg.RebalanceTimeout))
	}
	if e.cfg.ExactlyOnce {
		opts = append(opts,
			kgo.TransactionalID(e.cfg.TransactionalID),
			kgo.TransactionTimeout(e.cfg.TransactionTimeout),
		)
	}
	return opts
}

// partitioner honours a partition that is set beforehand, and else follows Kafka's default: murmur2 of the key, or one
// partition for a whole batch of records without a key.
type partitioner struct{}

// ForTopic implements kgo.Partitioner.
func (partitioner) ForTopic(topic string) kgo.TopicPartitioner {
	hashed := kgo.StickyKeyPartitioner(nil).ForTopic(topic)
	batched, _ := hashed.(kgo.TopicPartitionerOnNewBatch)
	return &topicPartitioner{hashed, batched}
}

type topicPartitioner struct {
	hashed  kgo.TopicPartitioner
	batched kgo.TopicPartitionerOnNewBatch
}

// chooserKey is where a record's context holds the function that chooses its partition.
type chooserKey struct{}

func chooser(r *kgo.Record) func(partitions int) int {
	if r.Context == nil {
		return nil
	}
	f, _ := r.Context.Value(chooserKey{}).(func(int) int)
	return f
}

func (t *topicPartitioner) RequiresConsistency(r *kgo.Record) bool {
	return r.Partition >= 0 || chooser(r) != nil || t.hashed.RequiresConsistency(r)
}

func (t *topicPartitioner) Partition(r *kgo.Record, n int) int {
	if r.Partition >= 0 {
		return int(r.Partition)
	}
	if choose := chooser(r); choose != nil {
		return choose(n)
	}
	return t.hashed.Partition(r, n)
}

func (t *topicPartitioner) OnNewBatch() {
	if t.batched != nil {
		t.batched.OnNewBatch()
	}
}

// kafkaLog passes the client's warnings to zap. The client never logs contents of records.
type kafkaLog struct{ log *zap.Logger }

func (l kafkaLog) Level() kgo.LogLevel { return kgo.LogLevelWarn }

func (l kafkaLog) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	fields := make([]zap.Field, 0, len(keyvals)/2)
	for i := 0; i+1 < len(keyvals); i += 2 {
		if k, ok := keyvals[i].(string); ok {
			fields = append(fields, zap.Any(strings.ReplaceAll(k, " ", "_"), keyvals[i+1]))
		}
	}
	if level == kgo.LogLevelError {
		l.log.Error(msg, fields...)
		return
	}
	l.log.Warn(msg, fields...)
}
