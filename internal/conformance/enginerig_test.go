package conformance

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/internal/engine"
	"tailrace.dev/processor"
	"tailrace.dev/state"
	"tailrace.dev/state/memory"
)

// engineMember is a member of the group that is started again when it has crashed.
type engineMember struct {
	topology *processor.Topology
	config   processor.Config
	point    string // where it crashes

	armed, polled atomic.Bool
	crashes       atomic.Int64
}

// at crashes the member once it is armed and has got records to process.
func (m *engineMember) at(point string) error {
	if !m.armed.Load() {
		return nil
	}
	if point == "polled" {
		m.polled.Store(true)
	}
	if point != m.point || !m.polled.Load() || !m.armed.Swap(false) {
		return nil
	}
	m.crashes.Add(1)
	return engine.ErrCrash
}

func (m *engineMember) run(ctx context.Context, app string) error {
	for {
		a, err := processor.New(app, m.topology, m.config)
		if err != nil {
			return err
		}
		err = a.Run(engine.WithSeams(ctx, engine.Seams{At: m.at}))
		if err == nil || !errors.Is(err, engine.ErrCrash) {
			return err
		}
	}
}

// engineWatch reads all topics of a broker from their start, committed records only.
type engineWatch struct {
	cl  *kgo.Client
	adm *kadm.Client
	mu  sync.Mutex
	// By topic and partition.
	records map[string][][]*kgo.Record
	next    map[string][]int64 // the first offset that was not read, markers included
	failed  error
}

func watchAll(ctx context.Context, brokers []string) (*engineWatch, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeRegex(), kgo.ConsumeTopics(".*"),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0),
		kgo.MetadataMinAge(100*time.Millisecond), kgo.MetadataMaxAge(500*time.Millisecond),
		kgo.FetchMaxWait(200*time.Millisecond))
	if err != nil {
		return nil, err
	}
	w := &engineWatch{
		cl: cl, adm: kadm.NewClient(cl), records: make(map[string][][]*kgo.Record), next: make(map[string][]int64),
	}
	go w.read(ctx)
	return w, nil
}

func (w *engineWatch) read(ctx context.Context) {
	for ctx.Err() == nil {
		fetches := w.cl.PollFetches(ctx)
		w.mu.Lock()
		fetches.EachError(func(topic string, partition int32, err error) {
			if w.failed == nil && ctx.Err() == nil {
				w.failed = fmt.Errorf("read %s[%d]: %w", topic, partition, err)
			}
		})
		fetches.EachRecord(func(r *kgo.Record) {
			p := int(r.Partition)
			for len(w.next[r.Topic]) <= p {
				w.next[r.Topic] = append(w.next[r.Topic], 0)
				w.records[r.Topic] = append(w.records[r.Topic], nil)
			}
			w.next[r.Topic][p] = r.Offset + 1
			if !r.Attrs.IsControl() {
				w.records[r.Topic][p] = append(w.records[r.Topic][p], r)
			}
		})
		w.mu.Unlock()
	}
}

// quiet tells whether the group has processed everything. What it committed is asked for first, then where the topics
// end: if all records up to there were committed by then, there was nothing to do in between.
func (w *engineWatch) quiet(ctx context.Context, app string, inputs map[string]bool) (bool, error) {
	committed, err := w.adm.FetchOffsets(ctx, app)
	if errors.Is(err, kerr.GroupIDNotFound) {
		return false, nil // nobody has joined yet
	}
	if err != nil {
		return false, err
	}
	if err := w.catchUp(ctx); err != nil {
		return false, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for topic, parts := range w.records {
		if !inputs[topic] && !strings.HasSuffix(topic, "-repartition") {
			continue
		}
		for p, records := range parts {
			if len(records) == 0 {
				continue
			}
			o, ok := committed.Lookup(topic, int32(p))
			if !ok || o.At <= records[len(records)-1].Offset {
				return false, nil
			}
		}
	}
	return true, nil
}

// catchUp waits until everything was read that the topics hold now.
func (w *engineWatch) catchUp(ctx context.Context) error {
	ends, err := w.adm.ListEndOffsets(ctx)
	if err != nil {
		return err
	}
	for {
		w.mu.Lock()
		err, behind := w.failed, ""
		ends.Each(func(o kadm.ListedOffset) {
			if err == nil {
				err = o.Err
			}
			if strings.HasPrefix(o.Topic, "__") || o.Offset == 0 {
				return
			}
			if p := int(o.Partition); p >= len(w.next[o.Topic]) || w.next[o.Topic][p] < o.Offset {
				behind = fmt.Sprintf("%s[%d]", o.Topic, p)
			}
		})
		w.mu.Unlock()
		if err != nil || behind == "" {
			return err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%w: %s was not read to its end", ctx.Err(), behind)
		}
	}
}

// output returns the records of a topic, in the order of their partitions.
func (w *engineWatch) output(b *builder, name string) ([]row, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	topic := b.topic(name)
	var rows []row
	for _, records := range w.records[topic.Name()] {
		for _, r := range records {
			o := row{"topic": some(name), "ts": millis(r.Timestamp), "key": {}, "value": {}}
			for _, side := range []struct {
				field string
				bytes []byte
			}{{"key", r.Key}, {"value", r.Value}} {
				if side.bytes == nil {
					continue
				}
				s, err := topic.Key().Decode(side.bytes)
				if err != nil {
					return nil, err
				}
				o[side.field] = some(s)
			}
			rows = append(rows, o)
		}
	}
	return rows, nil
}

// finalStore reads a store back from its changelog.
func (w *engineWatch) finalStore(b *builder, app string) ([]row, error) {
	if b.finalSpec == nil {
		return nil, nil
	}
	backend := memory.New()
	id, err := backend.Register(b.finalSpec.Name())
	if err != nil {
		return nil, err
	}
	newest := make(map[string][]byte)
	w.mu.Lock()
	for _, records := range w.records[processor.ChangelogTopic(app, b.finalSpec.Name())] {
		for _, r := range records {
			if len(r.Key) > 0 && r.Key[0] != state.KindMeta {
				newest[string(r.Key)] = r.Value
			}
		}
	}
	w.mu.Unlock()
	write := state.Write{}
	for _, key := range slices.Sorted(maps.Keys(newest)) {
		if newest[key] != nil {
			write.Rows = append(write.Rows, state.Row{Store: id, Key: []byte(key), Value: newest[key]})
		}
	}
	if err := backend.Write(write); err != nil {
		return nil, err
	}
	layers, err := state.NewLayers(backend, []state.AnySpec{b.finalSpec})
	if err != nil {
		return nil, err
	}
	return b.finalIn(env{layers}), nil
}

// send produces the inputs of a phase for all plans and waits for the broker to have them. A record is sent when those of
// its case before it have arrived: whoever sees it sees them.
func (w *engineWatch) send(ctx context.Context, plans []*enginePlan, phase int) error {
	for i := 0; ; i++ {
		var records []*kgo.Record
		for _, p := range plans {
			if inputs := p.phase(phase); i < len(inputs) {
				records = append(records, p.records(inputs[i], phase < 0)...)
			}
		}
		if len(records) == 0 {
			return nil
		}
		if err := w.cl.ProduceSync(ctx, records...).FirstErr(); err != nil {
			return err
		}
	}
}

// records returns an input as it is sent, and unrelated ones for the other partitions. global tells that it is of the
// global table, which everyone reads whole.
func (p *enginePlan) records(in input, global bool) []*kgo.Record {
	r := &kgo.Record{Topic: p.b.topic(in.Topic).Name(), Timestamp: time.UnixMilli(in.TS), Partition: p.home}
	if in.Key.ok {
		r.Key = []byte(in.Key.s)
	}
	if in.Value.ok {
		r.Value = []byte(in.Value.s)
	}
	if (p.spread || global) && r.Key != nil {
		r.Partition = int32(kgo.StickyKeyPartitioner(nil).ForTopic(r.Topic).Partition(r, engineParts))
	}
	records := []*kgo.Record{r}
	if p.spread || global || !p.noisy || r.Key == nil {
		return records
	}
	for n := range int32(engineParts) {
		if n == p.home {
			continue
		}
		noise := *r
		noise.Partition, noise.Key = n, fmt.Appendf(nil, "%s%d%s", strange, n, in.Key.s)
		if r.Value != nil {
			noise.Value = []byte(strange + in.Value.s)
		}
		records = append(records, &noise)
	}
	return records
}
