package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
)

// newsLog appends assets to the monolog. It is the only writer of anything in this program besides the topology:
// whoever wants to change an article appends an asset. It is safe for concurrent use.
type newsLog struct{ cl *kgo.Client }

// openLog makes a client that writes idempotently and waits for all in-sync replicas.
func openLog(brokers []string) (*newsLog, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.DefaultProduceTopic(Monolog.Name()),
		kgo.RequiredAcks(kgo.AllISRAcks()), kgo.MaxBufferedRecords(2000), kgo.RecordDeliveryTimeout(time.Minute))
	if err != nil {
		return nil, fmt.Errorf("monolog: %w", err)
	}
	return &newsLog{cl}, nil
}

func (l *newsLog) close() { l.cl.Close() }

// change is a record for the monolog: the next version of an asset, or its deletion.
type change struct {
	asset  Asset // of a deletion, only the id and the version
	delete bool
	time   time.Time // zero for the time of writing
}

func (c change) record() (*kgo.Record, error) {
	key, err := serde.Encode(Monolog.Key(), c.asset.ID)
	if err != nil {
		return nil, fmt.Errorf("monolog: %w", err)
	}
	r := &kgo.Record{Key: key, Timestamp: c.time}
	if c.delete {
		r.Headers = []kgo.RecordHeader{{Key: VersionHeader, Value: strconv.AppendInt(nil, c.asset.Version, 10)}}
		return r, nil
	}
	if r.Value, err = serde.Encode(Monolog.Value(), c.asset); err != nil {
		return nil, fmt.Errorf("monolog: %w", err)
	}
	return r, nil
}

// append writes a change and returns its offset once the broker has it. After an error it may be in the log or not;
// appending it again is harmless, because it has the same version.
func (l *newsLog) append(ctx context.Context, c change) (offset int64, err error) {
	r, err := c.record()
	if err != nil {
		return 0, err
	}
	if r, err = l.cl.ProduceSync(ctx, r).First(); err != nil {
		return 0, fmt.Errorf("monolog: append: %w", err)
	}
	return r.Offset, nil
}

// appendLater writes a change without waiting, except for room in the client's bounded buffer. failed is called when it
// could not be written, from another goroutine.
func (l *newsLog) appendLater(ctx context.Context, c change, failed func(error)) error {
	r, err := c.record()
	if err != nil {
		return err
	}
	l.cl.Produce(ctx, r, func(_ *kgo.Record, err error) {
		if err != nil {
			failed(fmt.Errorf("monolog: append: %w", err))
		}
	})
	return ctx.Err()
}

func (l *newsLog) flush(ctx context.Context) error {
	if err := l.cl.Flush(ctx); err != nil {
		return fmt.Errorf("monolog: flush: %w", err)
	}
	return nil
}

// archive is what whole topics say, by the newest version of each asset.
type archive struct {
	assets  map[string]Newest
	records int
	bad     int // records that are no assets
}

// readLog reads topics of assets from their beginning to their present end. It shares nothing with the denormaliser but
// Newest.Accept.
func readLog(ctx context.Context, brokers []string, topics ...string) (*archive, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topics...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return nil, fmt.Errorf("read %v: %w", topics, err)
	}
	defer cl.Close()
	ends, err := kadm.NewClient(cl).ListEndOffsets(ctx, topics...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("read %v: find the end: %w", topics, err)
	}
	left := make(map[source]int64) // the ends that are still to be reached
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[source{o.Topic, o.Partition}] = o.Offset
		}
	})
	a := &archive{assets: make(map[string]Newest)}
	for len(left) > 0 {
		fs := cl.PollFetches(ctx)
		if err := fs.Err0(); err != nil {
			return nil, fmt.Errorf("read %v: %w", topics, err)
		}
		if errs := fs.Errors(); len(errs) > 0 {
			return nil, fmt.Errorf("read %v: %w", topics, errs[0].Err)
		}
		for _, r := range fs.Records() {
			from := source{r.Topic, r.Partition}
			end, reading := left[from]
			if reading && r.Offset < end {
				a.add(r)
			}
			if r.Offset+1 >= end {
				delete(left, from)
			}
		}
	}
	return a, nil
}

func (a *archive) add(r *kgo.Record) {
	a.records++
	rec := processor.Record[string, Asset]{Key: string(r.Key), NoKey: r.Key == nil, Tombstone: r.Value == nil}
	for _, h := range r.Headers {
		rec.Headers = append(rec.Headers, processor.Header(h))
	}
	var err error
	if r.Value != nil {
		rec.Value, err = Monolog.Value().Decode(r.Value)
	}
	var now Newest
	var news bool
	if err == nil {
		now, news, err = a.assets[rec.Key].Accept(rec)
	}
	switch {
	case err != nil:
		a.bad++
	case news:
		a.assets[rec.Key] = now
	}
}

// source is a partition that is read.
type source struct {
	topic     string
	partition int32
}

// documents renders every published article from scratch.
func (a *archive) documents() (map[string][]byte, error) {
	look := func(id string) (Newest, bool, error) {
		n, ok := a.assets[id]
		return n, ok, nil
	}
	return a.render(func(n Newest) (Document, error) { return Render(n, DefaultLimits, look) })
}

func (a *archive) render(document func(article Newest) (Document, error)) (map[string][]byte, error) {
	docs := make(map[string][]byte)
	for id, n := range a.assets {
		if Kind(id) != KindArticle || n.Deleted || !n.Published {
			continue
		}
		doc, err := document(n)
		if err != nil {
			return nil, fmt.Errorf("render %s: %w", id, err)
		}
		if docs[id], err = serde.Encode(Denormalized.Value(), doc); err != nil {
			return nil, fmt.Errorf("render %s: %w", id, err)
		}
	}
	return docs, nil
}
