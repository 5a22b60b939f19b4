//go:build unix

package faults

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/internal/embedded"
)

// cluster is a broker with an input topic and an output topic of a test's own, and a client to look into it.
type cluster struct {
	t       *testing.T
	broker  *embedded.Broker // nil: a real cluster
	addrs   []string
	app     string
	in, out string
	opts    []kgo.Opt // of the test's own clients
	cl      *kgo.Client
	adm     *kadm.Client
}

// realBrokers returns the addresses of a real cluster where the tests are built for one.
var realBrokers func(t *testing.T) []string

// seconds and numbers that differ between a short run on the embedded broker and a long one on a real cluster.
func onKafka() bool { return realBrokers != nil }

var clusters atomic.Int64

// newCluster returns a cluster: a real one where the tests are built for that, else an embedded broker.
func newCluster(t *testing.T, partitions int) *cluster {
	t.Helper()
	if realBrokers == nil {
		return newFake(t, partitions)
	}
	name := strings.ToLower(strings.NewReplacer("/", "-", " ", "-", ":", "-", "_", "-", "#", "-", ",", "").Replace(t.Name()))
	c := &cluster{t: t, addrs: realBrokers(t), app: fmt.Sprintf("%s-%d", name, time.Now().UnixNano()%1e10)}
	c.prepare(partitions)
	return c
}

// newFake returns an embedded broker, also where a real cluster is there: for faults that only it can be asked for.
func newFake(t *testing.T, partitions int, extra ...kfake.Opt) *cluster {
	t.Helper()
	return newSecured(t, partitions, nil, extra...)
}

// newFakes is newFake with several embedded brokers.
func newFakes(t *testing.T, brokers, partitions int, extra ...kfake.Opt) *cluster {
	t.Helper()
	return newFake(t, partitions, append([]kfake.Opt{kfake.NumBrokers(brokers)}, extra...)...)
}

// newSecured is newFake for a broker to which the test's own clients need options.
func newSecured(t *testing.T, partitions int, opts []kgo.Opt, extra ...kfake.Opt) *cluster {
	t.Helper()
	b, err := embedded.Start(embedded.Options{
		Extra: append([]kfake.Opt{kfake.GroupMinSessionTimeout(time.Second)}, extra...),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	c := &cluster{t: t, broker: b, addrs: b.Addrs(), app: fmt.Sprintf("app%d", clusters.Add(1))}
	c.prepare(partitions, opts...)
	return c
}

func (c *cluster) prepare(partitions int, opts ...kgo.Opt) {
	c.t.Helper()
	c.in, c.out = c.app+"-in", c.app+"-out"
	var err error
	c.opts = append(slices.Clone(opts), kgo.SeedBrokers(c.addrs...), kgo.MetadataMinAge(50*time.Millisecond), kgo.ProducerLinger(0))
	c.cl, err = kgo.NewClient(c.opts...)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(c.cl.Close)
	c.adm = kadm.NewClient(c.cl)
	c.topic(c.in, partitions, nil)
	c.topic(c.out, partitions, nil)
}

// topic makes a topic and waits until the broker tells of it.
func (c *cluster) topic(name string, partitions int, configs map[string]*string) {
	c.t.Helper()
	if _, err := c.adm.CreateTopic(c.t.Context(), int32(partitions), -1, configs, name); err != nil {
		c.t.Fatalf("create topic %s: %v", name, err)
	}
	until(c.t, 15*time.Second, "topic "+name, func() bool {
		offsets, err := c.adm.ListEndOffsets(c.t.Context(), name)
		return err == nil && offsets.Error() == nil && len(offsets[name]) == partitions
	})
	c.t.Cleanup(func() {
		if c.broker == nil && !c.t.Failed() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			_, _ = c.adm.DeleteTopics(ctx, name)
		}
	})
}

// spec returns what a member of the cluster's application runs.
func (c *cluster) spec(stateDir string) childSpec {
	return childSpec{Brokers: c.addrs, App: c.app, In: c.in, Out: c.out, StateDir: stateDir}
}

// feeder writes the input and knows how many records of each key there are.
type feeder struct {
	c    *cluster
	keys int

	mu    sync.Mutex
	total int
	sent  map[string]int
}

func (c *cluster) feeder(keys int) *feeder { return &feeder{c: c, keys: keys, sent: map[string]int{}} }

// send writes n records, over all keys in turn, and returns when they are acknowledged.
func (f *feeder) send(n int) {
	f.c.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	records := make([]*kgo.Record, n)
	for i := range records {
		key := fmt.Sprintf("key-%04d", f.total%f.keys)
		f.total++
		f.sent[key]++
		records[i] = &kgo.Record{Topic: f.c.in, Key: []byte(key), Value: binary.BigEndian.AppendUint64(nil, uint64(f.sent[key]))}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := f.c.cl.ProduceSync(ctx, records...).FirstErr(); err != nil {
		f.c.t.Errorf("feed: %v", err)
	}
}

// flow writes records at a rate per second until stop is called.
func (f *feeder) flow(rate int) (stop func()) {
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		began, n := time.Now(), 0
		for {
			select {
			case <-end:
				return
			case <-time.After(20 * time.Millisecond):
			}
			if due := int(time.Since(began).Seconds()*float64(rate)) - n; due > 0 {
				f.send(due)
				n += due
			}
		}
	}()
	var once sync.Once
	stop = func() { once.Do(func() { close(end); <-done }) }
	f.c.t.Cleanup(stop)
	return stop
}

// caughtUp tells whether the group has committed the whole input.
func (c *cluster) caughtUp() bool {
	ends, err := c.adm.ListEndOffsets(c.t.Context(), c.in)
	if err != nil || ends.Error() != nil || len(ends[c.in]) == 0 {
		return false
	}
	committed, err := c.adm.FetchOffsets(c.t.Context(), c.app)
	if err != nil {
		return false
	}
	for p, end := range ends[c.in] {
		at, ok := committed.Lookup(c.in, p)
		if end.Offset > 0 && (!ok || at.Err != nil || at.At != end.Offset) {
			return false
		}
	}
	return true
}

// settle waits until the group has committed the whole input, and returns how long that took.
func (c *cluster) settle(limit time.Duration) time.Duration {
	c.t.Helper()
	began := time.Now()
	until(c.t, limit, "the committed offsets to reach the input's end", c.caughtUp)
	return time.Since(began)
}

// readAll returns the committed records of a topic by partition, up to its last stable offset, which it returns too.
func (c *cluster) readAll(topic string) (records map[int32][]*kgo.Record, ends map[int32]int64) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	listed, err := c.adm.ListCommittedOffsets(ctx, topic)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		c.t.Fatalf("list the ends of %s: %v", topic, err)
	}
	records, ends = map[int32][]*kgo.Record{}, map[int32]int64{}
	from := map[int32]kgo.Offset{}
	left := 0
	for p, o := range listed[topic] {
		ends[p] = o.Offset
		if o.Offset > 0 {
			from[p] = kgo.NewOffset().AtStart()
			left++
		}
	}
	if left == 0 {
		return records, ends
	}
	// Transaction markers own offsets: with them the end can be seen.
	cl, err := kgo.NewClient(append(slices.Clone(c.opts), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}))...)
	if err != nil {
		c.t.Fatal(err)
	}
	defer cl.Close()
	for left > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			c.t.Fatalf("read %s: %v (%d partitions not read to the end)", topic, err, left)
		}
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			for _, r := range p.Records {
				if r.Offset == ends[p.Partition]-1 {
					left--
				}
				if !r.Attrs.IsControl() && r.Offset < ends[p.Partition] {
					records[p.Partition] = append(records[p.Partition], r)
				}
			}
		})
	}
	return records, ends
}

// progress waits until the group commits something that it had not.
func (c *cluster) progress(limit time.Duration) {
	c.t.Helper()
	was := int64(-1)
	until(c.t, limit, "a commit", func() bool {
		n := c.committed()
		if was < 0 {
			was = n
		}
		return n > was && was >= 0
	})
}
