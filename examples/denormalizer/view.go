package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"tailrace.dev/processor"
)

// view is what the HTTP side reads: the denormalised topic, kept in memory. It follows the topic from its beginning, is
// written by nothing else, and can be thrown away and made again. Any number of processes may have one: following takes
// no part in the consumer group, and the topic's partitions could be divided between them.
//
// It is safe for concurrent use.
type view struct {
	cl     *kgo.Client
	log    *zap.Logger
	epoch  string         // identifies the topic, so that positions in a deleted one are not taken for its
	onItem func(feedItem) // called for each record, before watchers hear of it; set before follow

	mu       sync.RWMutex
	articles map[string]published
	at       []int64 // the next offset of each partition
	feed     []feedItem
	first    int64   // the number of feed[0], counted from the start
	lost     []int64 // for each partition, the offset above those that have left the feed
	wake     chan struct{}
	records  int64
	repeats  int64 // documents that equal the one before of their article
}

// published is an article as the newest record of it has it. It is not changed once it is made.
type published struct {
	ID      string    `json:"id"`
	Title   string    `json:"title"`
	Version int64     `json:"version"`
	At      time.Time `json:"at"` // when what caused this state happened
	json    []byte
	etag    string
}

// feedItem is a record of the denormalised topic, without the document: what happened to an article and why.
type feedItem struct {
	ID      string    `json:"id"`
	Event   string    `json:"event"`
	Title   string    `json:"title,omitempty"`
	Version int64     `json:"version,omitempty"`
	Cause   string    `json:"cause"`
	Path    []string  `json:"path"`
	At      time.Time `json:"at"`

	partition int32
	offset    int64
}

// feedLength is how many records a client may miss and still get one by one.
const feedLength = 1024

// openView makes a view of the topic, which must exist. Nothing is read before follow.
func openView(ctx context.Context, brokers []string, topic string, log *zap.Logger) (*view, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	if err != nil {
		return nil, fmt.Errorf("view: %w", err)
	}
	topics, err := kadm.NewClient(cl).ListTopics(ctx, topic)
	if err == nil {
		err = topics.Error()
	}
	if err != nil {
		cl.Close()
		return nil, fmt.Errorf("view: look up topic %s: %w", topic, err)
	}
	h := fnv.New32a()
	id := topics[topic].ID
	_, _ = h.Write(id[:]) // a hash cannot fail
	v := newView(len(topics[topic].Partitions), fmt.Sprintf("%08x", h.Sum32()), log)
	v.cl = cl
	return v, nil
}

func newView(partitions int, epoch string, log *zap.Logger) *view {
	return &view{
		log: log, epoch: epoch, articles: make(map[string]published), onItem: func(feedItem) {},
		at: make([]int64, partitions), lost: make([]int64, partitions), wake: make(chan struct{}),
	}
}

func (v *view) close() { v.cl.Close() }

// follow reads the topic until ctx is cancelled.
func (v *view) follow(ctx context.Context) error {
	for {
		fs := v.cl.PollFetches(ctx)
		if ctx.Err() != nil || fs.IsClientClosed() {
			return nil
		}
		fs.EachError(func(topic string, p int32, err error) {
			// The client goes on by itself after what passes; the rest is seen as a view that stands still.
			if !errors.Is(err, context.Canceled) {
				v.log.Warn("following failed", zap.String("topic", topic), zap.Int32("partition", p), zap.Error(err))
			}
		})
		v.take(fs.Records())
	}
}

// take applies records and wakes the watchers.
func (v *view) take(rs []*kgo.Record) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, r := range rs {
		if int(r.Partition) >= len(v.at) {
			continue
		}
		v.at[r.Partition] = r.Offset + 1
		v.records++
		item, err := v.apply(r)
		if err != nil {
			v.log.Warn("record of the denormalised topic left out", zap.Int32("partition", r.Partition),
				zap.Int64("offset", r.Offset), zap.Error(err))
			continue
		}
		v.onItem(item)
		v.feed = append(v.feed, item)
	}
	if over := len(v.feed) - feedLength; over > 0 {
		for _, item := range v.feed[:over] {
			v.lost[item.partition] = item.offset + 1
		}
		v.feed = slices.Delete(v.feed, 0, over)
		v.first += int64(over)
	}
	close(v.wake)
	v.wake = make(chan struct{})
}

func (v *view) apply(r *kgo.Record) (feedItem, error) {
	id, err := Denormalized.Key().Decode(r.Key)
	if err != nil {
		return feedItem{}, err
	}
	headers := make([]processor.Header, len(r.Headers))
	for i, h := range r.Headers {
		headers[i] = processor.Header(h)
	}
	item := feedItem{
		ID: id, Event: header(headers, EventHeader), Cause: header(headers, CauseHeader), At: r.Timestamp.UTC(),
		Path: strings.Split(header(headers, PathHeader), pathSeparator), partition: r.Partition, offset: r.Offset,
	}
	if r.Value == nil {
		item.Title, item.Version = v.articles[id].Title, v.articles[id].Version
		delete(v.articles, id)
		return item, nil
	}
	doc, err := Denormalized.Value().Decode(r.Value)
	if err != nil {
		return feedItem{}, err
	}
	item.Title, item.Version = doc.Title, doc.Version
	if bytes.Equal(v.articles[id].json, r.Value) {
		v.repeats++
	}
	v.articles[id] = published{
		ID: id, Title: doc.Title, Version: doc.Version, At: item.At, json: r.Value,
		etag: fmt.Sprintf(`"%s-%d-%d"`, v.epoch, r.Partition, r.Offset),
	}
	return item, nil
}

func header(hs []processor.Header, key string) string {
	for _, h := range hs {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

// article returns a published article.
func (v *view) article(id string) (published, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	a, ok := v.articles[id]
	return a, ok
}

// all returns the published articles, the one that changed last first.
func (v *view) all() []published {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.sorted()
}

func (v *view) sorted() []published {
	as := make([]published, 0, len(v.articles))
	for _, a := range v.articles {
		as = append(as, a)
	}
	slices.SortFunc(as, func(a, b published) int {
		return cmp.Or(b.At.Compare(a.At), strings.Compare(a.ID, b.ID))
	})
	return as
}

// update is what a reader gets: everything, or what happened since it was here.
type update struct {
	all   []published // nil for changes only
	items []feedItem
	next  int64  // to be given to since
	id    string // how far it goes, for another process to go on from
	wake  <-chan struct{}
}

// since returns what happened after the number of an earlier update, or everything if that is too long ago. A negative
// number is too long ago.
func (v *view) since(next int64) update {
	v.mu.RLock()
	defer v.mu.RUnlock()
	u := update{next: v.first + int64(len(v.feed)), id: v.cursor(), wake: v.wake}
	if next < v.first {
		u.all = v.sorted()
		u.items = slices.Clone(v.feed[max(0, len(v.feed)-50):])
		return u
	}
	u.items = slices.Clone(v.feed[next-v.first:])
	return u
}

// cursor renders the offsets, as "epoch_1.2.3.4".
func (v *view) cursor() string {
	var sb strings.Builder
	sb.WriteString(v.epoch)
	for i, o := range v.at {
		sb.WriteByte("_."[min(i, 1)])
		sb.WriteString(strconv.FormatInt(o, 10))
	}
	return sb.String()
}

// resume returns an update with what happened after a cursor, be it of this process or of another one. A cursor that is
// of another topic, too old or no cursor at all gives everything.
func (v *view) resume(cursor string) update {
	v.mu.RLock()
	at, ok := v.parse(cursor)
	var missed []feedItem
	for _, item := range v.feed {
		if ok && item.offset >= at[item.partition] {
			missed = append(missed, item)
		}
	}
	u := update{items: missed, next: v.first + int64(len(v.feed)), id: v.cursor(), wake: v.wake}
	v.mu.RUnlock()
	if !ok {
		return v.since(-1)
	}
	return u
}

func (v *view) parse(cursor string) ([]int64, bool) {
	epoch, offsets, found := strings.Cut(cursor, "_")
	if !found || epoch != v.epoch || len(cursor) > 4096 {
		return nil, false
	}
	fields := strings.Split(offsets, ".")
	if len(fields) != len(v.at) {
		return nil, false
	}
	at := make([]int64, len(fields))
	for p, f := range fields {
		o, err := strconv.ParseInt(f, 10, 64)
		if err != nil || o < v.lost[p] || o > v.at[p] {
			return nil, false
		}
		at[p] = o
	}
	return at, true
}
