package embedded

import (
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// BenchmarkProduce measures records of 100 bytes over TCP into four partitions of a compacted topic, client included.
func BenchmarkProduce(b *testing.B) {
	for _, c := range []struct {
		name  string
		opts  Options
		codec kgo.CompressionCodec
	}{
		{"memory", Options{}, kgo.SnappyCompression()},
		{"memory/null keys allowed", Options{AllowNullKeys: true}, kgo.SnappyCompression()},
		{"memory/uncompressed", Options{}, kgo.NoCompression()},
		{"memory/uncompressed/null keys allowed", Options{AllowNullKeys: true}, kgo.NoCompression()},
		{"disk/nosync", Options{Dir: "x", NoSync: true}, kgo.SnappyCompression()},
		{"disk", Options{Dir: "x"}, kgo.SnappyCompression()},
	} {
		b.Run(c.name, func(b *testing.B) {
			cl := benchClient(b, c.opts, kgo.ProducerBatchCompression(c.codec))
			b.ResetTimer()
			produce(b, cl, b.N)
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
		})
	}
}

func BenchmarkConsume(b *testing.B) {
	for _, o := range []Options{{}, {Dir: "x", NoSync: true}} {
		b.Run("disk="+fmt.Sprint(o.Dir != ""), func(b *testing.B) {
			cl := benchClient(b, o, kgo.ConsumeTopics("table"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
			produce(b, cl, b.N)
			b.ResetTimer()
			for n := 0; n < b.N; {
				fs := cl.PollFetches(b.Context())
				if err := fs.Err(); err != nil {
					b.Fatal(err)
				}
				n += fs.NumRecords()
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
		})
	}
}

// BenchmarkTransaction measures transactions of ten records.
func BenchmarkTransaction(b *testing.B) {
	for _, c := range []struct {
		name string
		opts Options
	}{{"memory", Options{}}, {"disk/nosync", Options{Dir: "x", NoSync: true}}, {"disk", Options{Dir: "x"}}} {
		b.Run(c.name, func(b *testing.B) {
			cl := benchClient(b, c.opts, kgo.TransactionalID("bench"))
			for b.Loop() {
				if err := cl.BeginTransaction(); err != nil {
					b.Fatal(err)
				}
				produce(b, cl, 10)
				if err := cl.EndTransaction(b.Context(), kgo.TryCommit); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func benchClient(b *testing.B, o Options, opts ...kgo.Opt) *kgo.Client {
	b.Helper()
	o.Topics = []Topic{{Name: "table", Partitions: 4, Configs: map[string]string{"cleanup.policy": "compact"}}}
	if o.Dir != "" {
		o.Dir = b.TempDir()
	}
	return client(b, start(b, o), append(opts, kgo.DefaultProduceTopic("table"))...)
}

func produce(b *testing.B, cl *kgo.Client, n int) {
	b.Helper()
	var failed error
	value := make([]byte, 90)
	for i := range n {
		r := &kgo.Record{Key: fmt.Appendf(nil, "key-%06d", i), Value: value}
		cl.Produce(b.Context(), r, func(_ *kgo.Record, err error) {
			if err != nil {
				failed = err // promises run one after another
			}
		})
	}
	if err := cl.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
	if failed != nil {
		b.Fatal(failed)
	}
}
