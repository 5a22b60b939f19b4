package embedded

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func TestUnknownConfigsAreRefused(t *testing.T) {
	b := start(t, Options{})
	ctx := testContext(t)
	adm := kadm.NewClient(client(t, b))
	for name, configs := range map[string]map[string]*string{
		"unknown": {"cleanup.polcy": kadm.StringPtr("compact")},
		"value":   {"cleanup.policy": kadm.StringPtr("shrink")},
		"null":    {"retention.ms": nil},
	} {
		if _, err := adm.CreateTopic(ctx, 1, 1, configs, "bad"); !errors.Is(err, kerr.InvalidConfig) {
			t.Errorf("create with a bad %s: %v", name, err)
		}
	}
	if _, err := adm.CreateTopic(ctx, 1, 1, map[string]*string{
		"cleanup.policy": kadm.StringPtr("compact,delete"), "min.cleanable.dirty.ratio": kadm.StringPtr("0.1"),
	}, "good"); err != nil {
		t.Fatal(err)
	}
	for name, alter := range map[string]kadm.AlterConfig{
		"set unknown":    {Op: kadm.SetConfig, Name: "polcy", Value: kadm.StringPtr("compact")},
		"set bad value":  {Op: kadm.SetConfig, Name: "retention.ms", Value: kadm.StringPtr("soon")},
		"delete unknown": {Op: kadm.DeleteConfig, Name: "polcy"},
	} {
		rs, err := adm.AlterTopicConfigs(ctx, []kadm.AlterConfig{alter}, "good")
		if err != nil {
			t.Fatal(err)
		}
		if !errors.Is(rs[0].Err, kerr.InvalidConfig) {
			t.Errorf("%s: %v", name, rs[0].Err)
		}
	}
	rs, err := adm.AlterTopicConfigsState(ctx, []kadm.AlterConfig{{Name: "polcy", Value: kadm.StringPtr("x")}}, "good")
	if err != nil {
		t.Fatal(err)
	}
	if !errors.Is(rs[0].Err, kerr.InvalidConfig) {
		t.Errorf("set all: %v", rs[0].Err)
	}
	rs, err = adm.AlterTopicConfigs(ctx, []kadm.AlterConfig{
		{Op: kadm.SetConfig, Name: "retention.ms", Value: kadm.StringPtr("-1")},
		{Op: kadm.DeleteConfig, Name: "segment.bytes"},
	}, "good")
	if err != nil || rs[0].Err != nil {
		t.Errorf("good alteration: %v, %v", err, rs)
	}
}

// TestOneBadTopic checks that the topics beside a refused one are made, as Kafka makes them.
func TestOneBadTopic(t *testing.T) {
	b := start(t, Options{})
	req := kmsg.NewPtrCreateTopicsRequest()
	for _, name := range []string{"good", "bad", "fine"} {
		rt := kmsg.NewCreateTopicsRequestTopic()
		rt.Topic, rt.NumPartitions, rt.ReplicationFactor = name, 1, 1
		if name == "bad" {
			kv := kmsg.NewCreateTopicsRequestTopicConfig()
			kv.Name, kv.Value = "nonsense", kmsg.StringPtr("1")
			rt.Configs = append(rt.Configs, kv)
		}
		req.Topics = append(req.Topics, rt)
	}
	resp, err := req.RequestWith(testContext(t), client(t, b))
	if err != nil {
		t.Fatal(err)
	}
	for _, rt := range resp.Topics {
		want := error(nil)
		if rt.Topic == "bad" {
			want = kerr.InvalidConfig
		}
		if err := kerr.ErrorForCode(rt.ErrorCode); !errors.Is(err, want) {
			t.Errorf("%s: %v", rt.Topic, err)
		}
		if exists := b.Cluster().TopicInfo(rt.Topic) != nil; exists != (want == nil) {
			t.Errorf("%s exists: %v", rt.Topic, exists)
		}
	}
}

func TestNullKeysInCompactedTopics(t *testing.T) {
	codecs := map[string]kgo.CompressionCodec{
		"none": kgo.NoCompression(), "snappy": kgo.SnappyCompression(), "zstd": kgo.ZstdCompression(),
		"lz4": kgo.Lz4Compression(), "gzip": kgo.GzipCompression(),
	}
	topics := []Topic{
		{Name: "table", Partitions: 2, Configs: map[string]string{"cleanup.policy": "compact"}}, {Name: "log", Partitions: 2},
	}
	for name, codec := range codecs {
		t.Run(name, func(t *testing.T) {
			b := start(t, Options{Topics: topics})
			cl := client(t, b, kgo.ProducerBatchCompression(codec), kgo.RecordPartitioner(kgo.ManualPartitioner()))
			ctx := testContext(t)
			long := make([]byte, 4096) // long enough that compression is worth it, or the client sends the batch as it is
			res := cl.ProduceSync(ctx,
				&kgo.Record{Topic: "log", Value: long},
				&kgo.Record{Topic: "table", Partition: 0, Key: []byte{}, Value: long}, // an empty key is a key
				&kgo.Record{Topic: "table", Partition: 1, Key: []byte("k"), Value: long},
				&kgo.Record{Topic: "table", Partition: 1, Value: long},
			)
			for _, r := range res {
				bad := r.Record.Topic == "table" && r.Record.Partition == 1
				if bad != errors.Is(r.Err, kerr.InvalidRecord) || !bad && r.Err != nil {
					t.Errorf("%s/%d: %v", r.Record.Topic, r.Record.Partition, r.Err)
				}
			}
			if hw := b.Cluster().PartitionInfo("table", 1).HighWatermark; hw != 0 {
				t.Errorf("the refused batch is in the log: %d records", hw)
			}
		})
	}
}

func TestNullKeysAllowed(t *testing.T) {
	b := start(t, Options{AllowNullKeys: true, Topics: []Topic{
		{Name: "table", Partitions: 1, Configs: map[string]string{"cleanup.policy": "compact"}},
	}})
	if err := client(t, b).ProduceSync(testContext(t), &kgo.Record{Topic: "table"}).FirstErr(); err != nil {
		t.Error(err)
	}
}

// TestPolicyChangeIsSeen makes a topic compacted after the fence has looked at it.
func TestPolicyChangeIsSeen(t *testing.T) {
	b := start(t, Options{Topics: []Topic{{Name: "log", Partitions: 1}}})
	ctx, cl := testContext(t), client(t, b)
	if err := cl.ProduceSync(ctx, &kgo.Record{Topic: "log"}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	alter := []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "cleanup.policy", Value: kadm.StringPtr("compact")}}
	if rs, err := kadm.NewClient(cl).AlterTopicConfigs(ctx, alter, "log"); err != nil || rs[0].Err != nil {
		t.Fatal(err, rs)
	}
	if err := cl.ProduceSync(ctx, &kgo.Record{Topic: "log"}).FirstErr(); !errors.Is(err, kerr.InvalidRecord) {
		t.Errorf("a null key after the change of policy: %v", err)
	}
}

// TestFaultsStillWork checks that a test's own faults and controls come through the fences.
func TestFaultsStillWork(t *testing.T) {
	b := start(t, Options{Topics: []Topic{
		{Name: "table", Partitions: 1, Configs: map[string]string{"cleanup.policy": "compact"}},
	}})
	h := b.Cluster().Fault(kfake.Fault{
		Keys: []kmsg.Key{kmsg.Produce}, Topic: "table", Err: kerr.NotEnoughReplicas, Count: 2,
	})
	seen := 0
	b.Cluster().ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		seen++
		return nil, nil, false
	})
	cl := client(t, b, kgo.MetadataMinAge(10*time.Millisecond)) // a retry waits for new metadata
	if err := cl.ProduceSync(testContext(t), &kgo.Record{Topic: "table", Key: []byte("k")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if h.Hits() != 2 || seen != 3 {
		t.Errorf("%d faults and %d controlled requests", h.Hits(), seen)
	}
}

func TestNoCompactionByTimer(t *testing.T) {
	b := start(t, Options{Dir: t.TempDir()})
	configs, err := kadm.NewClient(client(t, b)).DescribeBrokerConfigs(testContext(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range configs[0].Configs {
		if c.Key == "log.cleaner.backoff.ms" && c.Value != nil && *c.Value == compactionBackoff {
			return
		}
	}
	t.Error("the compaction timer is not set out of reach")
}

func FuzzHasNullKey(f *testing.F) {
	f.Add([]byte{}, byte(0))
	for _, codec := range []byte{0, 1, 2, 3, 4, 7} {
		f.Add([]byte{12, 0, 0, 0, 1, 0, 0}, codec)
		f.Add([]byte{14, 0, 0, 0, 2, 'k', 0, 0}, codec)
	}
	f.Fuzz(func(t *testing.T, records []byte, codec byte) {
		if len(records) > 1<<16 {
			t.Skip("large inputs only make the decompressors slow")
		}
		batch := make([]byte, batchHeaderLen, batchHeaderLen+len(records))
		batch[batchMagicAt] = 2
		batch[batchAttributesAt+1] = codec
		binary.BigEndian.PutUint32(batch[batchCountAt:], 1<<31-1)
		var s keyScanner
		s.hasNullKey(append(batch, records...)) // must not panic or hang
		s.hasNullKey(records)
	})
}
