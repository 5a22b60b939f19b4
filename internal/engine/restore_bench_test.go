//go:build unix

package engine

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"tailrace.dev/internal/task"
	"tailrace.dev/state"
	"tailrace.dev/state/badger"
)

// BenchmarkRestore starts a member without any state on changelogs of two million records in four partitions, and
// measures the time until all of its tasks run. The brokers are those in BENCH_BROKERS, or one in the process, which
// then takes a part of the time.
func BenchmarkRestore(b *testing.B) {
	const records, partitions = 2_000_000, 4
	for _, keys := range []int{100_000, records} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			var brokers []string
			if env := os.Getenv("BENCH_BROKERS"); env != "" {
				brokers = strings.Split(env, ",")
			} else {
				fake, err := kfake.NewCluster(kfake.NumBrokers(1),
					kfake.BrokerConfigs(map[string]string{"log.cleaner.backoff.ms": "86400000"}))
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(fake.Close)
				brokers = fake.ListenAddrs()
			}
			program := countProgram("restore").within(fmt.Sprintf("bench-%d-", time.Now().UnixNano()%1e9))
			fillChangelog(b, brokers, &program, records, keys, partitions)
			b.ResetTimer()
			var cpu time.Duration
			for b.Loop() {
				cpu += restoreOnce(b, brokers, program, partitions)
			}
			b.ReportMetric(cpu.Seconds()/float64(b.N), "cpu-s/op")
			b.ReportMetric(float64(records)*float64(b.N)/b.Elapsed().Seconds(), "records/s")
		})
	}
}

// fillChangelog makes the topics of a program that has counted records by key, as they look after it.
func fillChangelog(b *testing.B, brokers []string, program *Program, records, keys, partitions int) {
	b.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.MetadataMinAge(50*time.Millisecond), kgo.ProducerBatchCompression(kgo.NoCompression()))
	if err != nil {
		b.Fatal(err)
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	sub := &program.Subs[0]
	in, out, changelog := sub.Sources[0].Topic, sub.Sinks[0], sub.Stores[0].Changelog
	compact := map[string]*string{"cleanup.policy": kadm.StringPtr("compact")}
	for topic, config := range map[string]map[string]*string{in: nil, out: nil, changelog: compact} {
		resp, err := adm.CreateTopics(b.Context(), int32(partitions), 1, config, topic)
		if err == nil {
			err = resp.Error()
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	var failed error
	produce := func(r *kgo.Record) {
		cl.Produce(b.Context(), r, func(_ *kgo.Record, err error) {
			if err != nil {
				failed = err
			}
		})
	}
	offsets := kadm.Offsets{}
	for p := range partitions {
		produce(&kgo.Record{Topic: in, Partition: int32(p), Key: []byte("k"), Value: []byte("v")})
		offsets.Add(kadm.Offset{Topic: in, Partition: int32(p), At: 1, LeaderEpoch: -1})
	}
	for i := range records {
		key := i * 7919 % keys
		produce(&kgo.Record{
			Topic: changelog, Partition: int32(key % partitions), Key: fmt.Appendf(nil, "\x01key-%08d", key),
			Value: fmt.Appendf(nil, "%016d", i),
		})
	}
	if err := cl.Flush(b.Context()); err != nil || failed != nil {
		b.Fatal(err, failed)
	}
	if err := adm.CommitAllOffsets(b.Context(), program.App, offsets); err != nil {
		b.Fatal(err)
	}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// restoreOnce runs a member with an empty state directory until all of its tasks run, and returns what that took of the
// processors.
func restoreOnce(b *testing.B, brokers []string, program Program, partitions int) time.Duration {
	b.Helper()
	b.StopTimer()
	program.OpenState = func(_ task.ID, dir string) (state.Backend, error) { return badger.Open(dir, badger.Options{}) }
	program.NewTask = func(id task.ID, backend state.Backend) (task.Machine, error) {
		return newCounter(id, backend, topicNames(&program.Subs[0]), program.Subs[0].Sinks[0], true)
	}
	running := make(chan struct{}, 1)
	e, err := New(program, Settings{
		Brokers: brokers, TransactionalID: program.App, StateDir: b.TempDir() + "/state", ExactlyOnce: true, Workers: 2,
		CommitInterval: 100 * time.Millisecond, TransactionTimeout: 10 * time.Second, SessionTimeout: 45 * time.Second,
		HeartbeatInterval: 3 * time.Second, RebalanceTimeout: time.Minute, QueueRecords: 20_000, QueueBytes: 16 << 20,
		FetchMaxBytes: 32 << 20, FetchMaxPartitionBytes: 1 << 20, MaxDecompressBytes: 64 << 20, MaxRecordBytes: 1 << 20,
		StateBytes: 512 << 20, FlushBytes: 64 << 20, FlushInterval: 10 * time.Second, ReplicationFactor: 1,
		LeaveOnStop: true, Log: zap.NewNop(),
		Events: Events{State: func(_, to string) {
			if to == StateRunning {
				select {
				case running <- struct{}{}:
				default:
				}
			}
		}},
	})
	if err != nil {
		b.Fatal(err)
	}
	p := &process{e: e, done: make(chan struct{})}
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	runtime.GC()
	before := cpuTime()
	b.StartTimer()
	go func() {
		defer close(p.done)
		p.err = e.Run(ctx)
	}()
	select {
	case <-running:
	case <-p.done:
		b.Fatal(p.err)
	}
	for len(p.tasksOf()) < partitions { // it may have run before it was assigned anything
		time.Sleep(time.Millisecond)
	}
	b.StopTimer()
	cpu := cpuTime() - before
	cancel()
	if <-p.done; p.err != nil {
		b.Fatal(p.err)
	}
	b.StartTimer()
	return cpu
}
